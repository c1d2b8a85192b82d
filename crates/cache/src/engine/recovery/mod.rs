//! Recovery: from what is on the device to an engine that serves. Clean and unclean restarts take
//! the same way (rule 7), and a crash during recovery is a crash like any other.

mod new_life;

use super::carried::{Carried, CarriedKey, CarriedTable};
use super::control::CONTROLS_MAX;
use super::destage::Destager;
use super::exports::{Cursor, Export, Exports};
use super::foresight::Foresight;
use super::log::{Identity, Log, LogStart, SegmentInfo};
use super::pieces::ReadProgress;
use super::reclaim::Reclaim;
use super::step::Op;
use super::superblock::SuperblockKeeper;
use super::tables::{FixedQueue, IoTable, Slots, TicketLinks, TicketQueue};
use super::{EFFECTS_MAX, Engine};
use crate::canary;
use crate::config::{Config, ExportOptions, Mode, OpenedExport};
use crate::counters::{Counter, Counters, ExportCounter};
use crate::error::OpenError;
use crate::facts::LogFacts;
use crate::format::{
    Entry, EntryFlags, EntryKind, ExportTable, SummaryReader, SummaryRecord, Superblock,
    incarnation_nonce,
};
use crate::geometry::{Geometry, LogAddress};
use crate::index::{Index, IndexEntry};
use crate::layout;
use crate::limits::{
    BLOCK_BYTES_U32, DEVICE_IOS_MAX, EXPORTS_MAX, FETCH_BUFFERS_PER_EXPORT, FETCH_BUFFERS_SHARED,
    FETCHES_PER_EXPORT, FETCHES_SHARED, MERGES_MAX, WAIT_LINKS_PER_EXPORT,
};
use crate::policy::Admission;
use crate::quota::Quota;
use crate::reserve::{Reserve, ReservePlan};
use crate::scan::{FoundSegment, PayloadState, Scanner};
use crate::storage::Storage;
use crate::tier::MemoryTier;
use crate::units::{BLOCK_BYTES_U64, ExportSlot, LayerId, Now, Sequence};
use std::sync::Arc;
use zerocopy::little_endian::U32;

/// Leaves that are always worth having: 16 MiB of memory.
const LEAVES_MIN: u64 = 4096;

/// Blocks of log for each leaf: 1.45 times as many leaves as full ones would take. With checksums
/// and what admission remembers that stays below 16 bytes per block, 4 GiB per TiB.
const LOG_BLOCKS_PER_LEAF: u64 = 352;

fn leaves_by_default(log_blocks: u64) -> u64 {
    LEAVES_MIN.max(log_blocks / LOG_BLOCKS_PER_LEAF)
}

/// What recovery did.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// The configured exports, in the order in which they were given.
    pub exports: Vec<OpenedExport>,
    /// The cache's UUID.
    pub cache_uuid: [u8; 16],
    /// This life of the cache.
    pub incarnation: u64,
    /// Records that were found and count.
    pub records: u64,
    /// Sequences that were durable and are lost, if that was accepted.
    pub lost: Option<(u64, u64)>,
}

/// The state that recovery builds up, record by record.
struct Rebuild {
    geometry: Geometry,
    index: Index,
    exports: Exports,
    epochs: [u64; EXPORTS_MAX],
    checksums: Box<[u32]>,
    segments: Box<[SegmentInfo]>,
    oldest_use: Option<u64>,
    next_use: u64,
    /// The sequence that must come next.
    expected: u64,
    /// The end of the last record that was accepted.
    end: LogAddress,
    recovery: Recovery,
    /// Layers from this one on were not known to the export table when it was read.
    layers_known: u32,
    /// Per export: what was written below this sequence is void.
    void_before: [u64; EXPORTS_MAX],
    /// The exports of which the log has anything that is not, a bit each.
    has_entries: u64,
    /// Per slot: the last version whose header is in the dirty account.
    counted: [Sequence; EXPORTS_MAX],
    /// Ranges of sequences that were durable and are not there.
    losses: Vec<(u64, u64)>,
    /// Where the log may go on and cannot be read.
    ends_unreadable: Vec<u64>,
    /// Whether a record was found that was not written whole: it ends the log.
    is_torn: bool,
    carried: Vec<Carried>,
}

/// What recovery would make of a log, without an engine to come of it: for `check`.
pub(crate) struct Survey {
    /// Where each block is.
    pub index: Index,
    /// Their watermarks and dirty accounts.
    pub exports: Exports,
    /// Records that count.
    pub records: u64,
    /// Where numbering would continue.
    pub next_sequence: u64,
    /// The end of the last record that counts.
    pub end: LogAddress,
    /// The use of the segment that the next record would go to.
    pub next_use: u64,
    /// Ranges of sequences that were durable and are not there: a start would be refused.
    pub losses: Vec<(u64, u64)>,
    /// Where the log may go on and cannot be read: a start would be refused for that, too.
    pub ends_unreadable: Vec<u64>,
}

/// Decides what of a scanned log counts, as a start that accepts loss would. Each segment is told
/// what is accepted of it.
///
/// # Errors
/// When the device cannot be read.
pub(crate) fn survey(
    scanner: &mut Scanner<'_>,
    table: &ExportTable,
    found: &mut [FoundSegment],
    facts: &LogFacts,
) -> Result<Survey, OpenError> {
    let mut table = table.clone();
    // Layers that the table does not know are for `check` to name.
    table.next_layer = U32::new(u32::MAX);
    let mut config = Config::default();
    let (superblock, geometry) = (scanner.superblock, scanner.geometry);
    let rebuild = loop {
        let mut rebuild = Rebuild::new(superblock, &mut table, geometry, &[], &config)?;
        rebuild.seed(facts);
        match rebuild.replay(scanner, found, facts, true) {
            Ok(()) => break rebuild,
            // It may have been served with a larger index.
            Err(OpenError::IndexTooSmall { leaves }) => {
                config.index_bytes = Some(2 * u64::from(leaves) * BLOCK_BYTES_U64);
            }
            Err(error) => return Err(error),
        }
    };
    Ok(Survey {
        index: rebuild.index,
        exports: rebuild.exports,
        records: rebuild.recovery.records,
        next_sequence: rebuild.expected,
        end: rebuild.end,
        next_use: rebuild.next_use,
        losses: rebuild.losses,
        ends_unreadable: rebuild.ends_unreadable,
    })
}

impl Engine {
    /// Recovers the log, starts a new incarnation and is ready to serve.
    ///
    /// # Errors
    /// See [`OpenError`]. Unless the device failed in the midst of it, nothing was written.
    pub fn open(
        storage: &mut dyn Storage,
        reserve: Reserve,
        plan: ReservePlan,
        options: &[ExportOptions],
        config: Config,
        now: Now,
    ) -> Result<(Self, Recovery), OpenError> {
        // Rule 1: what is read from here on can no longer be taken back by a power cut.
        storage.flush()?;
        let (mut superblock, newest_in) = layout::read_superblock(storage)?;
        let features = superblock.features_read_only.get();
        if features != 0 {
            // Others may read such a cache, but not write to it.
            return Err(OpenError::Newer { version: superblock.version(), features });
        }
        let found_table = layout::read_export_table(storage, &superblock.cache_uuid)?;
        let (mut table, table_slot) = (found_table.table, found_table.slot);
        let next_layer = table.next_layer;
        let segment_bytes = superblock.segment_bytes.get();
        assert_eq!(plan.log.length % segment_bytes, 0, "a plan for this segment size");
        let pool_segments = u64::from(plan.log_segments);
        let geometry =
            Geometry::new(segment_bytes, superblock.segments.get(), plan.log, pool_segments);
        let mut rebuild = Rebuild::new(&superblock, &mut table, geometry, options, &config)?;
        let mut scanner = Scanner::new(storage, &superblock, geometry);
        let (mut found, facts) = scanner.scan();
        rebuild.seed(&facts);
        rebuild.replay(&mut scanner, &mut found, &facts, config.accept_loss)?;
        rebuild.refuse_dirty_read_only()?;
        rebuild.refuse_owed_origins(&table, options)?;
        let voids = rebuild.void_other_names(&mut table, options);
        if voids || table.next_layer != next_layer || !found_table.copies_agree {
            layout::write_export_table(storage, &mut table, table_slot)?;
        }
        // Rule 5: the new life is durable in both copies before its first record.
        rebuild.begin_life(&mut superblock, &facts);
        layout::write_superblocks(storage, &mut superblock, newest_in)?;
        // A footer ends its segment where this start says that it ends, so that comes first.
        rebuild.write_missing_footers(storage, &superblock, &found, &facts)?;
        Ok(rebuild.into_engine(&superblock, reserve, plan, config, now))
    }
}

impl Rebuild {
    fn new(
        superblock: &Superblock,
        table: &mut ExportTable,
        geometry: Geometry,
        options: &[ExportOptions],
        config: &Config,
    ) -> Result<Self, OpenError> {
        let mut recovery = Recovery { cache_uuid: superblock.cache_uuid, ..Recovery::default() };
        let layers_known = table.next_layer.get();
        for option in options {
            let (slot, known) = layout::register_export(table, option)?;
            recovery.exports.push(OpenedExport {
                slot,
                name: option.name.clone(),
                size_bytes: option.origin.size_bytes,
                known,
            });
        }
        let mut exports = Vec::new();
        let mut export_blocks = [0; EXPORTS_MAX];
        for (slot, record) in table.exports.iter().enumerate().filter(|(_, r)| !r.is_free()) {
            let mut export = Export::new(LayerId(record.layer.get()), record.size_bytes.get());
            let opened = recovery.exports.iter().position(|e| e.slot.index() == slot);
            if let Some(option) = opened.map(|at| &options[at]) {
                configure(&mut export, option, &geometry);
            }
            export_blocks[slot] = export.size_blocks();
            exports.push((ExportSlot(slot as u8), export));
        }
        let all_leaves: u64 =
            export_blocks.iter().map(|blocks| blocks.div_ceil(crate::index::LEAF_BLOCKS)).sum();
        let asked = config.index_bytes.map(|bytes| (bytes / BLOCK_BYTES_U64).max(1));
        let most = asked.unwrap_or_else(|| leaves_by_default(geometry.log_blocks()));
        let leaves = u32::try_from(all_leaves.min(most)).expect("an index of less than 16 TiB");
        Ok(Self {
            geometry,
            index: Index::new(&export_blocks, leaves),
            exports: Exports::new(exports),
            epochs: [0; EXPORTS_MAX],
            checksums: vec![0; geometry.log_blocks() as usize].into(),
            segments: vec![SegmentInfo::default(); geometry.segments as usize].into(),
            oldest_use: None,
            next_use: 0,
            expected: 0,
            end: LogAddress(0),
            recovery,
            layers_known,
            void_before: table.exports.each_ref().map(|record| record.void_before.get()),
            has_entries: 0,
            counted: [Sequence(0); EXPORTS_MAX],
            losses: Vec::new(),
            ends_unreadable: Vec::new(),
            is_torn: false,
            carried: Vec::new(),
        })
    }

    /// Takes over what the newest headers say (rule 13).
    fn seed(&mut self, facts: &LogFacts) {
        self.expected = facts.tail;
        for slot in self.exports.in_use() {
            let export = self.exports.get_mut(slot);
            let watermark = Sequence(facts.watermarks[slot.index()]);
            let nowhere = Cursor { segment_use: 0, summary_at: 0 };
            export.advance_watermark(watermark, LogAddress(0), nowhere);
            export.newest_dirty = watermark;
            export.origin_written = watermark;
        }
    }

    /// Accepts contiguous sequences from the tail on, and enters them into the index.
    fn replay(
        &mut self,
        scanner: &mut Scanner<'_>,
        found: &mut [FoundSegment],
        facts: &LogFacts,
        accept_loss: bool,
    ) -> Result<(), OpenError> {
        let max_use = found.iter().map(|segment| segment.segment_use).max();
        let (mut counting, left): (Vec<_>, Vec<_>) = found.iter_mut().partition(|segment| {
            let void_from = facts.void_from(segment.writer());
            segment.sequence_last >= facts.tail && segment.sequence_first < void_from
        });
        for segment in left {
            // Void or left behind: it must not get a footer that says otherwise.
            segment.walked = None;
        }
        for batch in counting.chunks_mut(scanner.summaries_at_once()) {
            let summaries = scanner.summaries(batch);
            for (segment, summary) in batch.iter_mut().zip(summaries) {
                let last = self.replay_segment(scanner, segment, &summary, facts, accept_loss)?;
                if let Some(walked) = &mut segment.walked {
                    walked.truncate(last);
                }
                segment.sequence_last = last;
            }
        }
        let missing = scanner.superblock.skip_accepted(self.expected);
        if missing <= facts.durable {
            self.lose(scanner, missing, facts.durable, accept_loss)?;
        }
        self.expected = self.expected.max(facts.durable + 1);
        if self.oldest_use.is_none() {
            self.next_use = max_use.map_or(0, |newest| newest + 1);
        }
        self.judge_end(scanner, found, facts, accept_loss)
    }

    /// Where the next record would be must have been read: else nobody knows whether the log ends
    /// there, and the last records that were flushed are known to no later one (rule 4).
    fn judge_end(
        &mut self,
        scanner: &mut Scanner<'_>,
        found: &[FoundSegment],
        facts: &LogFacts,
        accept_loss: bool,
    ) -> Result<(), OpenError> {
        if self.is_torn {
            return Ok(());
        }
        let geometry = self.geometry;
        let last = found.iter().rev().find(|segment| segment.accepted.is_some());
        let may_go_on = |segment: &&FoundSegment| {
            let in_segment = self.end.0 - geometry.address(segment.segment_use, 0).0;
            segment.walked.is_some()
                && segment.incarnation == facts.incarnation()
                && in_segment < u64::from(geometry.payload_blocks)
        };
        let end = last.filter(may_go_on).map(|_| self.end);
        let next = geometry.address(self.next_use, 0);
        for address in end.into_iter().chain([next]) {
            let offset = geometry.device_offset(address);
            if scanner.is_unreadable(offset) {
                self.miss_end(scanner, offset, accept_loss)?;
            }
        }
        Ok(())
    }

    /// Notes that the log may go on where it cannot be read, or refuses to go on without that.
    fn miss_end(
        &mut self,
        scanner: &mut Scanner<'_>,
        offset: u64,
        accept_loss: bool,
    ) -> Result<(), OpenError> {
        if !accept_loss {
            let error = scanner.take_error(offset).expect("it could not be read");
            return Err(OpenError::EndUnreadable(error));
        }
        self.ends_unreadable.push(offset);
        Ok(())
    }

    /// A read-only export's origin is not written to: what it lacks would stay in the log for ever.
    fn refuse_dirty_read_only(&self) -> Result<(), OpenError> {
        let is_stuck = |opened: &&OpenedExport| {
            let export = self.exports.get(opened.slot);
            export.mode == Mode::ReadOnly && export.is_dirty()
        };
        match self.recovery.exports.iter().find(is_stuck) {
            Some(opened) => Err(OpenError::ReadOnlyDirty { name: opened.name.clone() }),
            None => Ok(()),
        }
    }

    /// An origin under another name than before: what the cache holds for it would be missed, and
    /// be written over what is written now once somebody uses the old name again.
    fn refuse_owed_origins(
        &self,
        table: &ExportTable,
        options: &[ExportOptions],
    ) -> Result<(), OpenError> {
        for (opened, option) in self.recovery.exports.iter().zip(options) {
            let owes = |slot: &ExportSlot| {
                *slot != opened.slot
                    && self.exports.get(*slot).is_dirty()
                    && option.origin.has_name(&table.exports[slot.index()].origin())
            };
            if let Some(other) = self.exports.in_use().find(owes) {
                let owed = table.exports[other.index()].name();
                return Err(OpenError::OriginOwed { name: opened.name.clone(), owed });
            }
        }
        Ok(())
    }

    /// Notes that durable records are lost, or refuses to go on without them (rule 4).
    fn lose(
        &mut self,
        scanner: &Scanner<'_>,
        first: u64,
        last: u64,
        accept_loss: bool,
    ) -> Result<(), OpenError> {
        if !accept_loss {
            let unreadable = scanner.has_unreadable();
            return Err(OpenError::DurableDamaged { first, last, unreadable });
        }
        self.losses.push((first, last));
        let lost = self.recovery.lost.get_or_insert((first, last));
        lost.1 = last;
        Ok(())
    }

    /// Replays one segment; returns the last sequence that was accepted.
    fn replay_segment(
        &mut self,
        scanner: &mut Scanner<'_>,
        segment: &mut FoundSegment,
        summary: &[u8],
        facts: &LogFacts,
        accept_loss: bool,
    ) -> Result<u64, OpenError> {
        let void_from = facts.void_from(segment.writer());
        let mut reader = SummaryReader::new(summary);
        let (mut last, mut is_first) = (0, true);
        let mut epochs = segment.epochs;
        loop {
            let at = reader.position();
            let Some((record, entries, sums)) = reader.next() else { break };
            let sequence = record.sequence.get();
            // What was accepted as lost stays lost, as does what only its life knew to be void.
            let is_lost = scanner.superblock.accepts_loss_of(sequence);
            // Nor is what was accepted once asked for again.
            let missing = scanner.superblock.skip_accepted(self.expected);
            let is_behind_the_end = sequence > missing && missing > facts.durable;
            if sequence >= void_from || sequence < self.expected || is_lost || is_behind_the_end {
                break;
            }
            // Above what is known to have been durable, payload is verified too (rule 4).
            let (segment_use, offset) = (segment.segment_use, record.offset_blocks.get());
            if sequence > facts.durable && !canary::breaks(4) {
                match scanner.payload_state(segment_use, offset, sums, entries) {
                    PayloadState::Intact => {}
                    PayloadState::Damaged => {
                        self.is_torn = true;
                        break;
                    }
                    PayloadState::Unreadable(at) => {
                        self.miss_end(scanner, at, accept_loss)?;
                        break;
                    }
                }
            }
            if sequence > missing {
                // Once it is accepted: else numbers between the two would be used again.
                self.lose(scanner, missing, sequence - 1, accept_loss)?;
            }
            if is_first {
                self.accept_segment(segment, sequence);
            } else {
                record.begin_epochs(&mut epochs);
            }
            is_first = false;
            let first = segment.accepted.as_ref().map_or(sequence, |range| *range.start());
            segment.accepted = Some(first..=sequence);
            self.epochs = epochs;
            let place = Cursor { segment_use: segment.segment_use, summary_at: at };
            self.replay_record(place, reader.position(), record, entries, sums)?;
            self.expected = sequence + 1;
            self.recovery.records += 1;
            last = sequence;
        }
        if last > 0 {
            let info = &mut self.segments[self.geometry.segment(segment.segment_use)];
            info.sequence_last = Sequence(last);
            info.summary_bytes = u32::try_from(summary_length(summary, last)).expect("small");
        }
        Ok(last)
    }

    fn accept_segment(&mut self, segment: &FoundSegment, sequence: u64) {
        if let Some(oldest) = self.oldest_use {
            // Segments between that are lost, and accepted as lost, hold nothing.
            for missing in self.next_use.max(oldest)..segment.segment_use {
                let info = &mut self.segments[self.geometry.segment(missing)];
                info.sequence_first = Sequence(sequence);
            }
        }
        self.oldest_use.get_or_insert(segment.segment_use);
        self.next_use = segment.segment_use + 1;
        let info = &mut self.segments[self.geometry.segment(segment.segment_use)];
        *info = SegmentInfo { sequence_first: Sequence(sequence), ..SegmentInfo::default() };
    }

    fn replay_record(
        &mut self,
        place: Cursor,
        next_at: usize,
        record: &SummaryRecord,
        entries: &[Entry],
        sums: &[U32],
    ) -> Result<(), OpenError> {
        let sequence = Sequence(record.sequence.get());
        let header = self.geometry.address(place.segment_use, record.offset_blocks.get());
        let end = header.plus(1 + u64::from(record.payload_blocks.get()));
        self.end = end;
        let first = self.geometry.log_block(header) + 1;
        for (room, sum) in self.checksums[first..].iter_mut().zip(sums) {
            *room = sum.get();
        }
        // Up to the watermark everything is clean; the marks follow the replay.
        for slot in self.exports.in_use() {
            let export = self.exports.get_mut(slot);
            if sequence <= export.watermark {
                export.watermark_end = end;
                export.watermark_cursor =
                    Cursor { segment_use: place.segment_use, summary_at: next_at };
            }
        }
        let mut payload = header.plus(1);
        for entry in entries {
            self.replay_entry(place, sequence, record.wall_ns.get(), header, payload, entry)?;
            payload = payload.plus(u64::from(entry.payload_blocks()));
        }
        Ok(())
    }

    fn replay_entry(
        &mut self,
        place: Cursor,
        sequence: Sequence,
        wall_ns: u64,
        header: LogAddress,
        payload: LogAddress,
        entry: &Entry,
    ) -> Result<(), OpenError> {
        let layer = entry.layer.get();
        if layer >= self.layers_known {
            return Err(OpenError::ExportTableOld { layer });
        }
        let Some(slot) = self.exports.slot_of(layer) else { return Ok(()) };
        let (first, count) = (entry.block.get(), u64::from(entry.count.get()));
        let kind = entry.kind();
        let version = if kind.is_copy() { Sequence(entry.version.get()) } else { sequence };
        let export = self.exports.get_mut(slot);
        let is_void = version.0 < self.void_before[slot.index()];
        if is_void || first + count > export.size_blocks() {
            return Ok(());
        }
        self.has_entries |= slot.bit();
        let dirty = kind.is_client_data()
            && version > export.watermark
            && (kind.has_payload() || !canary::breaks(12));
        let is_dirty_copy = matches!(kind, EntryKind::DirtyCopy | EntryKind::DirtyZeroCopy);
        let index_only = entry.flags().contains(EntryFlags::INDEX_ONLY);
        if dirty && is_dirty_copy && !index_only {
            let ordinal = entry.ordinal.get();
            self.carried.push(Carried {
                key: CarriedKey { export: slot, version, ordinal, block: first },
                count: entry.count.get(),
                is_zero: !kind.has_payload(),
                no_hole: entry.flags().contains(EntryFlags::NO_HOLE),
                epoch: entry.epoch.get(),
                address: payload,
            });
            export.carry_epoch = export.carry_epoch.max(entry.epoch.get() + 1);
        }
        if dirty && !index_only {
            if !export.is_dirty() {
                export.watermark_cursor = place;
                export.oldest_dirty_wall_ns = wall_ns;
            }
            // The entries of a record lie together, and so do the copies of them.
            let is_first = std::mem::replace(&mut self.counted[slot.index()], version) != version;
            export.newest_dirty = export.newest_dirty.max(version);
            export.dirty.add(count, u64::from(entry.payload_blocks()), is_first);
        }
        let is_void_copy = is_dirty_copy && !dirty;
        if entry.flags().contains(EntryFlags::SUPERSEDED) || is_void_copy {
            return Ok(());
        }
        if kind == EntryKind::Bad {
            return self.set(slot, first, count, |_| IndexEntry::bad(header));
        }
        if !kind.has_payload() {
            return self.set(slot, first, count, |_| IndexEntry::zero(header));
        }
        self.set(slot, first, count, |offset| {
            IndexEntry::stored(payload.plus(offset), kind.is_client_data())
        })
    }

    /// Sets a run of blocks; clean leaves make room for what comes later.
    fn set(
        &mut self,
        slot: ExportSlot,
        first: u64,
        count: u64,
        entry: impl Fn(u64) -> IndexEntry,
    ) -> Result<(), OpenError> {
        let is_zero = !matches!(entry(0).place(), crate::index::Place::Stored(_));
        let exports = &self.exports;
        // What is forgotten may be what the run counted on: it needs more then.
        let make_room = |index: &mut Index, needed: &dyn Fn(&Index) -> usize| {
            while index.leaves_free() < needed(index) {
                if !index.evict_clean_leaf(u64::MAX, &|slot| exports.watermark_end(slot)) {
                    let leaves = index.leaves_total();
                    let leaves = u32::try_from(leaves).expect("a number of leaves");
                    return Err(OpenError::IndexTooSmall { leaves });
                }
            }
            Ok(())
        };
        if is_zero {
            make_room(&mut self.index, &|index| index.leaves_for_run(slot, first, count))?;
            self.index.set_run(slot, first, count, entry(0)).expect("room was made");
            return Ok(());
        }
        for offset in 0..count {
            while self.index.set(slot, first + offset, entry(offset)).is_err() {
                make_room(&mut self.index, &|_| 1)?;
            }
        }
        Ok(())
    }

    fn into_engine(
        mut self,
        superblock: &Superblock,
        reserve: Reserve,
        plan: ReservePlan,
        config: Config,
        now: Now,
    ) -> (Engine, Recovery) {
        let counters = Arc::new(Counters::default());
        for slot in self.exports.in_use() {
            let epoch = self.epochs[slot.index()];
            let export = self.exports.get_mut(slot);
            export.resume(epoch, now.monotonic_ns);
            counters.set_export(slot, ExportCounter::OriginUp, 1);
        }
        let incarnation = superblock.incarnation.get();
        let identity = Identity {
            cache_uuid: superblock.cache_uuid,
            secret: superblock.secret,
            incarnation,
            nonce: incarnation_nonce(&superblock.secret, incarnation),
            first_sequence: Sequence(self.expected),
        };
        let oldest_use = self.oldest_use.unwrap_or(self.next_use);
        let has_wrapped = self.next_use >= self.geometry.segments;
        let start = LogStart {
            oldest_use,
            next_use: self.next_use,
            next_sequence: Sequence(self.expected),
            tail: Sequence(superblock.tail.get()),
            segments: self.segments,
            checksums: self.checksums,
        };
        let requests = config.requests_max as usize;
        // Those that nobody configured have no origin, and ask for nothing.
        let exports = self.recovery.exports.len().max(1);
        assert_eq!(plan.destagers as usize, exports, "a plan for these exports");
        let fetches = Quota::slots(FETCHES_PER_EXPORT, FETCHES_SHARED, exports);
        let links = requests * 2;
        let batch_blocks = plan.destage_batch_bytes / BLOCK_BYTES_U32;
        let destager = |_| Destager::new(batch_blocks as usize);
        let engine = Engine {
            reserve,
            plan,
            counters,
            effects: FixedQueue::new(EFFECTS_MAX),
            log: Log::new(self.geometry, identity, start),
            index: self.index,
            exports: self.exports,
            ops: vec![Op::default(); requests].into(),
            reads: vec![ReadProgress::default(); requests].into(),
            telling: Vec::with_capacity(requests),
            is_telling: vec![false; requests].into(),
            links: TicketLinks::new(config.requests_max),
            ios: IoTable::new(DEVICE_IOS_MAX),
            merges: Slots::new(MERGES_MAX),
            merge_quota: Quota::new(1, MERGES_MAX - EXPORTS_MAX, exports),
            fetches: Slots::new(fetches),
            fetch_quota: Quota::new(FETCHES_PER_EXPORT, FETCHES_SHARED, exports),
            fetch_queue: FixedQueue::new(fetches),
            fetch_buffers: (0..plan.fetch_buffers).rev().collect(),
            buffer_quota: Quota::new(FETCH_BUFFERS_PER_EXPORT, FETCH_BUFFERS_SHARED, exports),
            fetches_due_ns: u64::MAX,
            wait_links: Slots::new(Quota::slots(WAIT_LINKS_PER_EXPORT, links, exports)),
            link_quota: Quota::new(WAIT_LINKS_PER_EXPORT, links, exports),
            durable_waiters: TicketQueue::default(),
            foresight: Foresight::default(),
            written_waiters: TicketQueue::default(),
            admission: Admission::new(
                has_wrapped || !config.admits_first_lap,
                self.geometry.log_blocks(),
            ),
            tier: MemoryTier::new((plan.memory_tier.length / BLOCK_BYTES_U64) as usize),
            destagers: (0..plan.destagers).map(destager).collect(),
            reclaim: Reclaim::new(Sequence(superblock.tail.get())),
            carried: CarriedTable::new(self.carried),
            superblock: SuperblockKeeper::new(superblock.clone()),
            controls: FixedQueue::new(CONTROLS_MAX + 1),
            latched: false,
            stopping: false,
            device_waited_until_ns: 0,
            last_request_ns: now.monotonic_ns,
            now,
            config,
        };
        let tables_bytes: usize = engine.memory().iter().map(|(_, length)| length).sum();
        engine.counters.set(Counter::TablesBytes, tables_bytes as u64);
        self.recovery.incarnation = incarnation;
        (engine, self.recovery)
    }
}

/// Bytes of a summary up to and including a record.
fn summary_length(summary: &[u8], sequence_last: u64) -> usize {
    let mut reader = SummaryReader::new(summary);
    let mut end = 0;
    while let Some((record, _, _)) = reader.next() {
        if record.sequence.get() > sequence_last {
            break;
        }
        end = reader.position();
    }
    end
}

/// Takes over what the operator asked for.
fn configure(export: &mut Export, option: &ExportOptions, geometry: &Geometry) {
    export.configured = true;
    export.mode = option.mode;
    export.order = option.order;
    export.wait_ns_max = option.wait_ns_max;
    export.origin.timeout_ns = option.origin_timeout_ns;
    let most = geometry.dirty_blocks_max();
    let asked = option.dirty_bytes_max.map_or(most, |bytes| bytes / BLOCK_BYTES_U64);
    export.dirty_log_blocks_max = asked.clamp(1, most);
}
