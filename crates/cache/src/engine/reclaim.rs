//! Reclaim: makes the oldest segment writable again.
//!
//! ```text
//!   Idle ──▶ Loading ──▶ Scanning ⇄ Reading ──▶ FlushingCopies ──▶ PersistingTail ──▶ Idle
//!               ▲                                     │
//!               └───────────── next segment ──────────┘
//! ```
//!
//! A device flush may take longer than filling a segment does: while there is room, clean segments
//! are left behind together, by one record with the new tail (decision 0023).
//!
//! Cold clean blocks are forgotten, blocks that were hit are appended again, dirty blocks wait for
//! destage, or are carried forward if their origin is away and others need room (rule 28, in
//! `carry`). The order is rule 26: re-append, flush, a record with the new tail, flush, no pins,
//! reuse.

use super::api::{Effect, IoError, Notice};
use super::damage::DAMAGE_RETRY_NS;
use super::log::Privilege;
use super::summary::{Loaded, SummaryLoad};
use super::tables::IoOwner;
use super::{Engine, blocks_of};
use crate::canary;
use crate::counters::Counter;
use crate::format::{Entry, EntryFlags, EntryKind, SUMMARY_OFFSET, SummaryReader, SummaryRecord};
use crate::geometry::LogAddress;
use crate::index::{IndexEntry, Place};
use crate::limits::{RECLAIM_BYTES, SEGMENTS_RESERVED};
use crate::units::{BLOCK_BYTES, Buffer, ExportSlot, Sequence};

/// Blocks that are copied forward at a time.
pub(super) const BATCH_BLOCKS: usize = RECLAIM_BYTES as usize / BLOCK_BYTES;
/// Quarters of a segment's payload that may be copied. Where clients hit all that the log has,
/// reclaim would copy it round and round and free nothing; so a copy of three blocks frees one.
const QUARTERS_COPIED_MAX: u64 = 3;
/// Segments that are left behind together, and the part of the log that they may be.
const SEGMENTS_TOGETHER_MAX: u64 = 4;
const LOG_TOGETHER_MAX: u64 = 8;
/// Blocks looked at per turn, some 30 us of the index at random: nobody is served meanwhile. A
/// segment of the default size takes 16 turns (decision 0026), fewer where destage gets further:
/// then there is a second look in the same turn.
const BLOCKS_PER_TURN: u64 = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Loading,
    Scanning,
    Reading,
    FlushingCopies,
    PersistingTail,
}

/// How far a segment's summary has been looked through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    /// Where the record begins in the summary.
    record: usize,
    /// Which entry of the record.
    pub entry: usize,
    /// Blocks of payload that the record's earlier entries have.
    pub payload_before: u64,
    /// Which block of the entry.
    pub block: u64,
}

impl Cursor {
    /// The record that begins there.
    fn at_record(record: usize) -> Self {
        Self { record, ..Self::default() }
    }

    fn is_at_record(&self) -> bool {
        self.entry == 0 && self.block == 0
    }

    /// Goes on behind this entry.
    pub fn pass(&mut self, entry: &Entry) {
        self.entry += 1;
        self.payload_before += u64::from(entry.payload_blocks());
        self.block = 0;
    }
}

/// A block that goes to the head of the log: clean and hit, or dirty and carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Survivor {
    pub export: ExportSlot,
    pub block: u64,
    pub address: LogAddress,
    pub version: u64,
    pub intact: bool,
    /// Whether it could not be read at all, now.
    pub unread: bool,
    /// Of a dirty block: which entry of its record the original was, and its epoch.
    pub dirty: Option<(u16, u64)>,
}

/// The state of the one reclaimer.
#[derive(Debug)]
pub struct Reclaim {
    phase: Phase,
    /// The segment that is looked at. Those from the log's oldest up to it have been, and are left
    /// behind together with it.
    segment_use: u64,
    summary_bytes: u32,
    loading: Option<SummaryLoad>,
    /// Something of the segment could not be read: when that is tried again.
    retry_at_ns: Option<u64>,
    pub(super) cursor: Cursor,
    pub(super) survivors: Vec<Survivor>,
    /// The newest record of the segments before this one.
    before: Sequence,
    /// The newest record that was looked at, of this one or before.
    passed: Sequence,
    /// Clean blocks of the segment that were worth copying.
    kept: u64,
    outstanding: usize,
    /// It starts over, but not before the next turn.
    paused: bool,
    /// The newest record with something copied forward.
    pub(super) copies: Sequence,
    /// Exports whose dirty data stands in the way, a bit each.
    blocked_by: u64,
    /// Whether destage has changed what may be carried.
    pub(super) look_again: bool,
    /// The next turn is due at once: the segment has not been looked through, and only this turn is
    /// over; or writes can have the room that was made.
    pub(super) goes_on: bool,
}

/// Why a segment is looked at again from its start.
pub(super) enum Again {
    /// What it holds may be treated otherwise now.
    Changed,
    /// There is no room for it: an I/O has to end.
    NoRoom,
    /// Something could not be read.
    Unread,
}

impl Reclaim {
    /// Nothing to do yet, on a log with this tail.
    pub fn new(tail: Sequence) -> Self {
        Self {
            phase: Phase::Idle,
            segment_use: 0,
            summary_bytes: 0,
            loading: None,
            retry_at_ns: None,
            cursor: Cursor::default(),
            survivors: Vec::with_capacity(BATCH_BLOCKS),
            before: tail.previous(),
            passed: tail.previous(),
            kept: 0,
            outstanding: 0,
            paused: false,
            copies: Sequence(0),
            blocked_by: 0,
            look_again: false,
            goes_on: false,
        }
    }

    /// Whether a segment is being reclaimed.
    pub fn is_active(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// The use of the segment that is being looked at.
    pub fn segment_use(&self) -> u64 {
        self.segment_use
    }

    /// When the next turn is due even if nothing happens.
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        self.goes_on.then_some(now_ns).or(self.retry_at_ns)
    }

    /// Whether it waits for an export's dirty data to reach the origin.
    pub fn is_blocked_by(&self, slot: ExportSlot) -> bool {
        self.blocked_by & slot.bit() != 0
    }
}

impl Engine {
    /// Segments that should be free before reclaim rests.
    fn segments_free_wanted(&self) -> u64 {
        u64::from(SEGMENTS_RESERVED) + 2 + self.log.geometry.segments / 16
    }

    /// Starts and continues reclaiming while segments are short.
    pub(super) fn run_reclaim(&mut self) {
        // After a stop nothing is appended any more.
        if self.latched || self.stopping {
            return;
        }
        let mut budget = BLOCKS_PER_TURN;
        self.reclaim.paused = false;
        let now_ns = self.now.monotonic_ns;
        self.reclaim.retry_at_ns = self.reclaim.retry_at_ns.filter(|at_ns| now_ns < *at_ns);
        loop {
            let before = (self.reclaim.phase, self.reclaim.segment_use);
            match self.reclaim.phase {
                Phase::Idle => self.start_reclaim(),
                Phase::Scanning => self.scan(&mut budget),
                Phase::Reading => self.append_survivors(),
                Phase::FlushingCopies if canary::breaks(26) => self.reuse_segments(),
                Phase::FlushingCopies => self.leave_segment(),
                Phase::PersistingTail => self.free_segments(),
                Phase::Loading => {}
            }
            let stands = (self.reclaim.phase, self.reclaim.segment_use) == before;
            if stands || self.reclaim.paused {
                break;
            }
        }
        let is_stuck = self.reclaim.phase == Phase::Scanning && budget > 0;
        if is_stuck && self.segments_left() > 0 {
            // The room behind it is not kept waiting.
            self.turn_back();
            self.free_segments();
        }
        self.reclaim.goes_on |=
            budget == 0 && self.reclaim.phase == Phase::Scanning && !self.reclaim.paused;
    }

    fn start_reclaim(&mut self) {
        let segment_use = self.log.oldest_use;
        if self.reclaim.retry_at_ns.is_some()
            || self.log.segments_free() >= self.segments_free_wanted()
            || segment_use >= self.log.open_use()
            || !self.log.has_footer(segment_use)
            || self.ios.free() == 0
        {
            return;
        }
        self.look_through(segment_use);
    }

    /// Begins with a segment that has its footer.
    fn look_through(&mut self, segment_use: u64) {
        let geometry = self.log.geometry;
        let info = self.log.segments[geometry.segment(segment_use)];
        self.reclaim.segment_use = segment_use;
        self.reclaim.summary_bytes = info.summary_bytes;
        self.reclaim.cursor = Cursor::default();
        self.reclaim.copies = Sequence(0);
        self.reclaim.kept = 0;
        let room = self.reclaim_summary_room();
        if !self.log.has_summary(segment_use) {
            // Lost, and accepted as lost: there is nothing to keep.
            self.reclaim.phase = Phase::Scanning;
            return;
        }
        if let Some(summary) = self.log.resident_summary(segment_use) {
            self.reserve.copy(summary, room.part(SUMMARY_OFFSET as u32, summary.length));
            self.reclaim.phase = Phase::Scanning;
            return;
        }
        self.reclaim.phase = Phase::Loading;
        let frame = blocks_of(self.reclaim_staging(), 0, 1);
        let load = self.load_summary(IoOwner::ReclaimSummary, segment_use, room, frame);
        self.reclaim.loading = Some(load);
    }

    fn reclaim_summary_room(&self) -> Buffer {
        let length = self.log.geometry.footer_bytes();
        Buffer { offset: self.plan.reclaim.offset, length }
    }

    pub(super) fn reclaim_staging(&self) -> Buffer {
        let room = self.reclaim_summary_room();
        Buffer { offset: room.offset + u64::from(room.length), length: RECLAIM_BYTES }
    }

    pub(super) fn reclaim_summary_done(&mut self, result: Result<(), IoError>) {
        let mut load = self.reclaim.loading.take().expect("a summary is being loaded");
        match self.summary_piece_done(&mut load, result) {
            Loaded::Whole(_) => self.reclaim.phase = Phase::Scanning,
            Loaded::Reading => self.reclaim.loading = Some(load),
            Loaded::Failed if self.segments_left() > 0 => self.turn_back(),
            Loaded::Failed => {
                // Nobody knows what the segment holds: it is not reused (rule 4). It may be
                // readable later, and until the log is full nobody else needs it.
                self.reclaim.phase = Phase::Idle;
                self.reclaim.retry_at_ns = Some(self.now.monotonic_ns + DAMAGE_RETRY_NS);
                let segment_use = load.segment_use;
                self.emit(Effect::Notice(Notice::SegmentDamaged { segment_use }));
            }
        }
    }

    /// Looks at the segment's entries: what is dirty stops it, what is clean is forgotten or kept.
    fn scan(&mut self, budget: &mut u64) {
        self.reclaim.blocked_by = 0;
        while *budget > 0 {
            let room = self.reclaim_summary_room();
            let summary = room.part(SUMMARY_OFFSET as u32, self.reclaim.summary_bytes);
            let mut reader =
                SummaryReader::at(self.reserve.bytes(summary), self.reclaim.cursor.record);
            let Some((record, entries, _)) = reader.next() else {
                return self.scan_finished();
            };
            if self.reclaim.cursor.is_at_record() {
                let sequence = Sequence(record.sequence.get());
                let is_behind_loss = sequence > self.reclaim.passed.next();
                self.reclaim.passed = sequence;
                // Also of a record without entries: it may be the one that begins an epoch. So may
                // be one that is lost, and accepted as lost.
                let starts = if is_behind_loss { u64::MAX } else { record.epoch_starts.get() };
                self.exports.count_carry_epochs(starts);
            }
            let Some(entry) = entries.get(self.reclaim.cursor.entry).copied() else {
                self.reclaim.cursor = Cursor::at_record(reader.position());
                continue;
            };
            let record = *record;
            if !self.scan_entry(&record, &entry, budget) {
                return;
            }
            self.reclaim.cursor.pass(&entry);
        }
    }

    /// Returns whether the entry is finished.
    fn scan_entry(&mut self, record: &SummaryRecord, entry: &Entry, budget: &mut u64) -> bool {
        let Some(slot) = self.exports.slot_of(entry.layer.get()) else { return true };
        let version = if entry.kind().is_copy() { entry.version } else { record.sequence };
        let watermark = self.exports.get(slot).watermark;
        if entry.kind().is_client_data() && version.get() > watermark.0 && !canary::breaks(28) {
            let header = self.record_address(record);
            return self.carry_entry(slot, version.get(), header, entry, budget);
        }
        let header = self.record_address(record);
        let (first, count) = (entry.block.get(), u64::from(entry.count.get()));
        if entry.kind() == EntryKind::Bad {
            return self.carry_bad(slot, entry, header);
        }
        if !entry.kind().has_payload() {
            *budget = budget.saturating_sub(count / 512 + 1);
            let zero = IndexEntry::zero(header);
            self.index.replace_in_run(slot, first, count, zero, IndexEntry::MISSING);
            return true;
        }
        while self.reclaim.cursor.block < count {
            if *budget == 0 {
                return false;
            }
            let Cursor { payload_before, block: offset, .. } = self.reclaim.cursor;
            let block = first + offset;
            let address = header.plus(1 + payload_before + offset);
            let found = self.index.get(slot, block);
            if found.place() == Place::Stored(address) {
                if found.is_hit() && self.may_copy_forward() {
                    if self.reclaim.survivors.len() == BATCH_BLOCKS {
                        self.read_survivors();
                        return false;
                    }
                    self.reclaim.kept += 1;
                    self.reclaim.survivors.push(Survivor {
                        export: slot,
                        block,
                        address,
                        version: version.get(),
                        intact: true,
                        unread: false,
                        dirty: None,
                    });
                } else {
                    self.index.set(slot, block, IndexEntry::MISSING).expect("its leaf is there");
                }
            }
            *budget -= 1;
            self.reclaim.cursor.block += 1;
        }
        true
    }

    fn record_address(&self, record: &SummaryRecord) -> LogAddress {
        self.log.geometry.address(self.reclaim.segment_use, record.offset_blocks.get())
    }

    /// Dirty data stands in the way: its export should be destaged.
    pub(super) fn reclaim_blocked_by(&mut self, slot: ExportSlot) {
        self.reclaim.blocked_by |= slot.bit();
    }

    /// Looks at the segment again from its start, in the next turn; says when that is due.
    pub(super) fn rewind_reclaim(&mut self, again: &Again) {
        match again {
            Again::Changed => self.reclaim.goes_on = true,
            Again::NoRoom => {}
            Again::Unread => {
                self.reclaim.retry_at_ns = Some(self.now.monotonic_ns + DAMAGE_RETRY_NS);
            }
        }
        self.reclaim.paused = true;
        self.reclaim.cursor = Cursor::default();
        self.reclaim.passed = self.reclaim.before;
        let clean = self.reclaim.survivors.iter().filter(|survivor| survivor.dirty.is_none());
        self.reclaim.kept -= clean.count() as u64;
        self.reclaim.survivors.clear();
    }

    /// At the reserve, clean hits are dropped instead of copied (rule 27); so are those beyond the
    /// part of a segment that may be copied.
    fn may_copy_forward(&self) -> bool {
        let most = u64::from(self.log.geometry.payload_blocks) * QUARTERS_COPIED_MAX / 4;
        self.log.segments_free() > u64::from(SEGMENTS_RESERVED) && self.reclaim.kept < most
    }

    fn scan_finished(&mut self) {
        if self.reclaim.survivors.is_empty() {
            self.log.want_durable(self.reclaim.copies);
            self.reclaim.phase = Phase::FlushingCopies;
        } else {
            self.read_survivors();
        }
    }

    /// Brings the survivors' payload into staging.
    pub(super) fn read_survivors(&mut self) {
        let staging = self.reclaim_staging();
        let mut first = 0;
        while first < self.reclaim.survivors.len() {
            let survivor = self.reclaim.survivors[first];
            if let Some(frame) = self.resident(survivor.address) {
                self.reserve.copy(frame, blocks_of(staging, first as u32, 1));
                first += 1;
                continue;
            }
            let run = self.reclaim.survivors[first..]
                .iter()
                .zip(0..)
                .take_while(|(other, at)| other.address == survivor.address.plus(*at))
                .count();
            if self.ios.free() == 0 {
                // Clean: dropped. Dirty: looked at again.
                self.reclaim.survivors[first].intact = false;
                self.reclaim.survivors[first].unread = true;
                first += 1;
                continue;
            }
            let (at, blocks) = (first as u32, run as u32);
            self.reclaim.outstanding += 1;
            let owner = IoOwner::ReclaimRead { first: at, blocks, again: false };
            self.device_read(owner, survivor.address, blocks_of(staging, at, blocks));
            first += run;
        }
        self.reclaim.phase = Phase::Reading;
    }

    pub(super) fn reclaim_read_done(
        &mut self,
        (first, blocks): (u32, u32),
        again: bool,
        result: Result<(), IoError>,
    ) {
        let staging = self.reclaim_staging();
        self.unpin(self.reclaim.survivors[first as usize].address);
        self.reclaim.outstanding -= 1;
        for at in first..first + blocks {
            let Survivor { address, dirty, .. } = self.reclaim.survivors[at as usize];
            let frame = blocks_of(staging, at, 1);
            let intact = self.damage_of(address, frame, result).is_none();
            self.reclaim.survivors[at as usize].intact = intact;
            // There is no other copy: what comes wrong once is not lost.
            let is_asked_again = !intact && dirty.is_some() && !again;
            self.reclaim.survivors[at as usize].unread = result.is_err() || is_asked_again;
            if is_asked_again && self.ios.free() > 0 {
                self.reclaim.outstanding += 1;
                let owner = IoOwner::ReclaimRead { first: at, blocks: 1, again: true };
                self.device_read(owner, address, frame);
            }
        }
    }

    /// Appends the survivors whose index entry is still the one that was read (rule 10).
    fn append_survivors(&mut self) {
        if self.reclaim.outstanding > 0 {
            return;
        }
        if self.reclaim.survivors.first().is_some_and(|survivor| survivor.dirty.is_some()) {
            self.reclaim.phase = Phase::Scanning;
            return self.append_carried();
        }
        for at in 0..self.reclaim.survivors.len() {
            let survivor = self.reclaim.survivors[at];
            let Survivor { export, block, address, .. } = survivor;
            if self.index.get(export, block).place() != Place::Stored(address) {
                continue;
            }
            let room = survivor.intact && self.ensure_room(1, 1, Privilege::Ordinary).is_ok();
            if !room {
                self.index.set(export, block, IndexEntry::MISSING).expect("its leaf is there");
                continue;
            }
            self.append_survivor(at, &survivor);
        }
        self.reclaim.survivors.clear();
        self.reclaim.phase = Phase::Scanning;
    }

    fn append_survivor(&mut self, at: usize, survivor: &Survivor) {
        let Survivor { export, block, version, .. } = *survivor;
        let layer = self.exports.get(export).layer.0;
        let mut entry = Entry::new(EntryKind::Reappend, EntryFlags::default(), layer, block, 1);
        entry.version = version.into();
        let (address, frame) = self.log.append(&entry, &mut self.reserve);
        self.reserve.copy(blocks_of(self.reclaim_staging(), at as u32, 1), frame);
        self.log.seal_payload(address, frame, &self.reserve);
        let entry = IndexEntry::stored(address, false);
        self.index.set(export, block, entry).expect("its leaf is there");
        self.reclaim.copies = self.log.open().0;
        self.counters.add(Counter::BlocksReappended, 1);
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
    }

    /// Segments that have been looked through and wait for the one that is looked at.
    pub(super) fn segments_left(&self) -> u64 {
        self.reclaim.segment_use - self.log.oldest_use
    }

    /// The copies are durable: the tail may leave the segment behind, at once or with the next.
    fn leave_segment(&mut self) {
        let segment_use = self.reclaim.segment_use;
        if self.log.durable() < self.reclaim.copies || self.destage_reads(segment_use) {
            return;
        }
        self.reclaim.before = self.reclaim.passed;
        if self.takes_along(segment_use + 1) {
            self.look_through(segment_use + 1);
        } else {
            self.move_tail();
        }
    }

    /// Whether a segment can be left behind with those before it, without anybody waiting for
    /// room meanwhile.
    fn takes_along(&self, segment_use: u64) -> bool {
        let part = 1 + self.log.geometry.segments / LOG_TOGETHER_MAX;
        if self.segments_left() + 1 >= part.min(SEGMENTS_TOGETHER_MAX)
            || self.log.segments_free() <= u64::from(SEGMENTS_RESERVED)
            || segment_use >= self.log.open_use()
            || !self.log.has_footer(segment_use)
            || self.ios.free() == 0
        {
            return false;
        }
        let last = self.log.segments[self.log.geometry.segment(segment_use)].sequence_last;
        self.exports.in_use().all(|slot| {
            let export = self.exports.get(slot);
            !export.is_dirty() || export.watermark >= last
        })
    }

    /// Gives up the segment that is looked at for now: it is looked at again when those before it
    /// are free.
    fn turn_back(&mut self) {
        self.reclaim.survivors.clear();
        self.reclaim.passed = self.reclaim.before;
        self.reclaim.blocked_by = 0;
        self.reclaim.segment_use -= 1;
        self.move_tail();
    }

    fn move_tail(&mut self) {
        let next = self.log.segments[self.log.geometry.segment(self.reclaim.segment_use + 1)];
        self.log.set_tail(next.sequence_first);
        self.reclaim.phase = Phase::PersistingTail;
    }

    /// The new tail is durable and nobody reads the segments any more: they are free.
    fn free_segments(&mut self) {
        if !self.log.tail_is_durable() {
            // While there is room the next flush will do, which footers need before it is used.
            let enough = u64::from(SEGMENTS_RESERVED) + SEGMENTS_TOGETHER_MAX;
            if self.log.segments_free() <= enough {
                self.log.want_tail();
            }
            return;
        }
        let geometry = self.log.geometry;
        let is_pinned = |segment_use| self.log.segments[geometry.segment(segment_use)].pins > 0;
        if (self.log.oldest_use..=self.reclaim.segment_use).any(is_pinned) {
            return;
        }
        self.reuse_segments();
    }

    fn reuse_segments(&mut self) {
        self.counters.add(Counter::SegmentsReclaimed, self.segments_left() + 1);
        self.log.oldest_use = self.reclaim.segment_use + 1;
        self.admission.log_wrapped();
        self.reclaim.phase = Phase::Idle;
        self.reclaim.retry_at_ns = None;
        self.reclaim.goes_on |=
            self.exports.in_use().any(|slot| !self.exports.get(slot).room_waiters.is_empty());
    }
}
