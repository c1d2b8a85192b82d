//! Destage: a cursor walks the log in sequence order and carries dirty blocks to the origin.
//!
//! ```text
//!   Idle ──▶ Planning ──▶ Reading ──▶ Writing ──▶ Planning …   (batches of one epoch)
//!               │  ▲                     ▲
//!               │  │ LoadingSummary      └── Zeroing
//!               ▼  │
//!            Flushing ──▶ Persisting ──▶ Planning (next epoch) or Idle
//! ```
//!
//! In `strict` order an epoch is whole on the origin, flushed, and its watermark is durable on the
//! cache device before the first write of the next (rule 19). In `relaxed` order epochs do not
//! matter and superseded versions are passed over (rule 17). Any failure starts over behind the
//! watermark (rule 20).

use super::api::{Effect, IoError, Notice};
use super::exports::{Cursor, DirtyAccount};
use super::tables::IoOwner;
use super::{Engine, blocks_of};
use crate::config::{Mode, Order};
use crate::counters::ExportCounter;
use crate::format::{Entry, EntryFlags, EntryKind, SUMMARY_OFFSET, SummaryReader, SummaryRecord};
use crate::geometry::LogAddress;
use crate::index::Place;
use crate::limits::{BLOCK_BYTES_U32, DESTAGE_BATCH_BYTES, DESTAGE_DEPTH_MAX, DESTAGERS};
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64, Buffer, ExportSlot, Sequence};

const BATCH_BLOCKS: usize = DESTAGE_BATCH_BYTES as usize / BLOCK_BYTES;
/// The longest origin write.
const WRITE_BLOCKS_MAX: usize = 256;
/// Flush the origin at least this often, so that the watermark keeps up.
const UNFLUSHED_BLOCKS_MAX: u64 = (64 << 20) / BLOCK_BYTES_U64;
/// Origin writes in flight while clients are active.
const DEPTH_WHILE_ACTIVE: usize = 4;
/// Clients count as active for so long after their last request.
const ACTIVE_NS: u64 = 10_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Planning,
    LoadingSummary,
    Reading,
    Writing,
    Zeroing,
    Flushing,
    Persisting,
}

/// A block that is to be written.
#[derive(Clone, Copy, Debug)]
struct PlanItem {
    block: u64,
    /// Later items win over earlier ones of the same block.
    order: u32,
    address: LogAddress,
    /// Damaged, and passed over (relaxed order only).
    skip: bool,
}

#[derive(Clone, Copy, Debug)]
struct ZeroItem {
    block: u64,
    blocks: u64,
    no_hole: bool,
}

/// A place between two blocks of the log.
#[derive(Clone, Copy, Debug)]
struct Position {
    cursor: Cursor,
    entry: usize,
    block: u32,
}

/// The end of the last record that is wholly on the origin or not ours.
#[derive(Clone, Copy, Debug)]
struct Done {
    sequence: Sequence,
    end: LogAddress,
    cursor: Cursor,
    wall_ns: u64,
    passed: DirtyAccount,
}

/// One of a fixed number of workers; each serves one export at a time.
#[derive(Debug)]
pub struct Destager {
    phase: Phase,
    export: ExportSlot,
    position: Position,
    done: Done,
    /// What the watermark will leave behind, done or in the current record.
    passed: DirtyAccount,
    /// The segment whose summary is loaded, and its length.
    summary: Option<(u64, u32)>,
    loading: u64,
    plan: Vec<PlanItem>,
    zero: Option<ZeroItem>,
    next: usize,
    outstanding: usize,
    error: Option<IoError>,
    damaged_block: Option<u64>,
    /// Blocks written since the origin was last flushed.
    unflushed_blocks: u64,
    epoch_ended: bool,
}

impl Destager {
    /// An idle worker.
    pub fn new() -> Self {
        let cursor = Cursor { segment_use: 0, summary_at: 0 };
        Self {
            phase: Phase::Idle,
            export: ExportSlot(0),
            position: Position { cursor, entry: 0, block: 0 },
            done: Done {
                sequence: Sequence(0),
                end: LogAddress(0),
                cursor,
                wall_ns: 0,
                passed: DirtyAccount::default(),
            },
            passed: DirtyAccount::default(),
            summary: None,
            loading: 0,
            plan: Vec::with_capacity(BATCH_BLOCKS),
            zero: None,
            next: 0,
            outstanding: 0,
            error: None,
            damaged_block: None,
            unflushed_blocks: 0,
            epoch_ended: false,
        }
    }

    /// Whether it serves an export.
    pub fn is_active(&self) -> bool {
        self.phase != Phase::Idle
    }
}

impl Engine {
    /// Starts and continues destaging wherever it is due.
    pub(super) fn run_destage(&mut self) {
        for slot in self.exports.in_use() {
            self.trigger_destage(slot);
            self.assign_destager(slot);
        }
        for destager in 0..DESTAGERS {
            self.advance_destager(destager);
        }
        for slot in self.exports.in_use() {
            self.answer_origin_waiters(slot);
        }
    }

    /// Decides whether what is dirty now should go to the origin (policy).
    fn trigger_destage(&mut self, slot: ExportSlot) {
        let now_ns = self.now.monotonic_ns;
        let pressure = self.log_is_short();
        let blocked = self.reclaim.is_blocked_by(slot);
        let export = self.exports.get_mut(slot);
        if !export.configured || !export.is_dirty() || export.destage_target >= export.newest_dirty
        {
            return;
        }
        let high = export.dirty_log_blocks_max / 100 * u64::from(self.config.destage_high_percent);
        let aged = now_ns >= export.dirty_since_ns.saturating_add(self.config.destage_age_ns);
        let idle = now_ns >= self.last_request_ns.saturating_add(self.config.destage_idle_ns);
        if !(pressure || blocked || aged || idle || export.dirty.log_blocks >= high) {
            return;
        }
        // The engine ends an epoch that no client ends (rule 14).
        export.destage_target = export.newest_dirty;
        let target = export.destage_target;
        self.exports.end_epoch(slot, self.log.has_open_record());
        self.log.want_durable(target);
    }

    /// Whether writes wait for room.
    fn log_is_short(&self) -> bool {
        self.exports.in_use().any(|slot| !self.exports.get(slot).room_waiters.is_empty())
    }

    fn assign_destager(&mut self, slot: ExportSlot) {
        let durable = self.log.durable();
        let now_ns = self.now.monotonic_ns;
        let export = self.exports.get_mut(slot);
        let wanted = export.configured
            && export.destage_enabled
            && !export.damaged
            && !export.destaging
            && export.is_dirty()
            && export.destage_target > export.watermark
            && durable > export.watermark
            && (export.origin_up || now_ns >= export.retry_at_ns)
            && !self.latched
            && !self.stopping;
        if !wanted {
            return;
        }
        let Some(destager) = self.destagers.iter_mut().find(|d| d.phase == Phase::Idle) else {
            return;
        };
        export.destaging = true;
        destager.export = slot;
        destager.phase = Phase::Planning;
        let cursor = export.watermark_cursor;
        destager.position = Position { cursor, entry: 0, block: 0 };
        destager.passed = DirtyAccount::default();
        destager.done = Done {
            sequence: export.watermark,
            end: export.watermark_end,
            cursor,
            wall_ns: export.oldest_dirty_wall_ns,
            passed: DirtyAccount::default(),
        };
        destager.summary = None;
        destager.unflushed_blocks = 0;
        destager.epoch_ended = false;
    }

    /// When destage is due even if nothing happens.
    pub(super) fn destage_deadline_ns(&self) -> Option<u64> {
        let due = |slot: ExportSlot| {
            let export = self.exports.get(slot);
            if !export.is_dirty() || !export.configured || export.destaging || self.latched {
                return None;
            }
            if !export.origin_up {
                return Some(export.retry_at_ns);
            }
            let aged = export.dirty_since_ns.saturating_add(self.config.destage_age_ns);
            let idle = self.last_request_ns.saturating_add(self.config.destage_idle_ns);
            (export.destage_target < export.newest_dirty && export.destage_enabled)
                .then_some(aged.min(idle))
        };
        self.exports.in_use().filter_map(due).min()
    }

    fn advance_destager(&mut self, index: usize) {
        loop {
            let before = self.destagers[index].phase;
            match before {
                Phase::Planning => self.plan_batch(index),
                Phase::Reading => self.read_batch(index),
                Phase::Writing => self.write_batch(index),
                Phase::Zeroing => self.write_zeroes_batch(index),
                Phase::Persisting => self.persist_watermark(index),
                Phase::Idle | Phase::LoadingSummary | Phase::Flushing => {}
            }
            if self.destagers[index].phase == before {
                return;
            }
        }
    }

    // ---- planning --------------------------------------------------------------------------

    /// Collects the next batch: what the log holds of this export behind the position, up to the
    /// end of the epoch (strict), of what is durable (rule 17), or of the staging room.
    fn plan_batch(&mut self, index: usize) {
        if self.stopping {
            // Nothing needs draining: what the origin lacks stays dirty.
            return self.release_destager(index);
        }
        self.destagers[index].plan.clear();
        self.destagers[index].zero = None;
        self.destagers[index].next = 0;
        self.destagers[index].epoch_ended = false;
        while self.plan_record(index) {}
        let destager = &mut self.destagers[index];
        if destager.phase == Phase::LoadingSummary {
            return;
        }
        if destager.zero.is_some() {
            destager.phase = Phase::Zeroing;
        } else if !destager.plan.is_empty() {
            sort_newest_last(&mut destager.plan);
            destager.phase = Phase::Reading;
        } else if destager.unflushed_blocks > 0 {
            self.flush_origin(index);
        } else {
            self.finish_epoch(index);
        }
    }

    /// The summary of a segment, from the log pool or the destager's own room.
    fn destage_summary(&self, index: usize, segment_use: u64) -> Option<Buffer> {
        if let Some(buffer) = self.log.resident_summary(segment_use) {
            return Some(buffer);
        }
        let (loaded, length) = self.destagers[index].summary?;
        (loaded == segment_use)
            .then(|| self.summary_room(index).part(SUMMARY_OFFSET as u32, length))
    }

    fn summary_room(&self, index: usize) -> Buffer {
        let room = self.log.geometry.footer_bytes();
        let offset = self.plan.destage.offset
            + index as u64 * (u64::from(room) + u64::from(DESTAGE_BATCH_BYTES));
        Buffer { offset, length: room }
    }

    fn staging(&self, index: usize) -> Buffer {
        let room = self.summary_room(index);
        Buffer { offset: room.offset + u64::from(room.length), length: DESTAGE_BATCH_BYTES }
    }

    /// Plans one record, or a part of it. Returns whether to go on with the next.
    fn plan_record(&mut self, index: usize) -> bool {
        let oldest_use = self.log.oldest_use;
        let position = &mut self.destagers[index].position;
        if position.cursor.segment_use < oldest_use {
            let cursor = Cursor { segment_use: oldest_use, summary_at: 0 };
            *position = Position { cursor, entry: 0, block: 0 };
        }
        let Cursor { segment_use, summary_at } = position.cursor;
        if segment_use >= self.log.next_use {
            return false;
        }
        let Some(buffer) = self.destage_summary(index, segment_use) else {
            if self.destagers[index].plan.is_empty() {
                self.load_summary(index, segment_use);
            }
            return false;
        };
        let mut reader = SummaryReader::at(self.reserve.bytes(buffer), summary_at);
        let Some((record, entries, _)) = reader.next() else {
            if segment_use >= self.log.open_use() {
                return false;
            }
            let cursor = Cursor { segment_use: segment_use + 1, summary_at: 0 };
            self.destagers[index].position = Position { cursor, entry: 0, block: 0 };
            return true;
        };
        let sequence = Sequence(record.sequence.get());
        let destager = &mut self.destagers[index];
        let export = self.exports.get(destager.export);
        if sequence > self.log.durable() {
            return false;
        }
        let starts_epoch = record.epoch_starts.get() & destager.export.bit() != 0;
        let at_start = destager.position.entry == 0 && destager.position.block == 0;
        if export.order == Order::Strict && starts_epoch && at_start {
            let epoch_has_writes = destager.unflushed_blocks > 0 || !destager.plan.is_empty();
            if epoch_has_writes {
                destager.epoch_ended = true;
                return false;
            }
        }
        let index_state = (&self.index, &self.log);
        let finished = plan_entries(destager, export, index_state, record, entries);
        if finished {
            let offset = record.offset_blocks.get() + 1 + u32::from(record.payload_blocks.get());
            let cursor = Cursor { segment_use, summary_at: reader.position() };
            destager.position = Position { cursor, entry: 0, block: 0 };
            destager.done = Done {
                sequence,
                end: self.log.geometry.address(segment_use, offset),
                cursor,
                wall_ns: record.wall_ns.get(),
                passed: destager.passed,
            };
        }
        finished && destager.zero.is_none()
    }

    fn load_summary(&mut self, index: usize, segment_use: u64) {
        if self.ios.free() == 0 {
            return;
        }
        let geometry = self.log.geometry;
        let info = self.log.segments[geometry.segment(segment_use)];
        let bytes = (SUMMARY_OFFSET as u32 + info.summary_bytes).next_multiple_of(BLOCK_BYTES_U32);
        let buffer = self.summary_room(index).part(0, bytes);
        let address = geometry.address(segment_use, geometry.payload_blocks);
        self.destagers[index].loading = segment_use;
        self.destagers[index].summary = None;
        self.destagers[index].phase = Phase::LoadingSummary;
        self.device_read(IoOwner::DestageSummary { destager: index as u8 }, address, buffer);
    }

    pub(super) fn destage_summary_done(&mut self, destager: u8, result: Result<(), IoError>) {
        let index = usize::from(destager);
        let segment_use = self.destagers[index].loading;
        self.unpin(self.log.geometry.address(segment_use, 0));
        let length = self.checked_summary(self.summary_room(index), segment_use);
        match (result, length) {
            (Ok(()), Some(length)) => {
                self.destagers[index].summary = Some((segment_use, length));
                self.destagers[index].phase = Phase::Planning;
            }
            // Without its summary nobody knows what the segment holds for the origin.
            (Ok(()), None) => self.stop_damaged(index, None),
            (Err(error), _) => self.fail_destage(index, error, false),
        }
    }

    // ---- reading ---------------------------------------------------------------------------

    /// Brings the batch's payload into staging, sorted by block.
    fn read_batch(&mut self, index: usize) {
        let staging = self.staging(index);
        while self.destagers[index].next < self.destagers[index].plan.len() {
            let destager = &self.destagers[index];
            let first = destager.next;
            let item = destager.plan[first];
            if let Some(frame) = self.log.resident(item.address) {
                self.reserve.copy(frame, blocks_of(staging, first as u32, 1));
                self.destagers[index].next += 1;
                continue;
            }
            if destager.outstanding >= DESTAGE_DEPTH_MAX || self.ios.free() == 0 {
                return;
            }
            let same_segment = |other: &PlanItem| {
                self.log.geometry.segment_use(other.address)
                    == self.log.geometry.segment_use(item.address)
                    && self.log.resident(other.address).is_none()
            };
            let run = destager.plan[first..]
                .iter()
                .zip(0u64..WRITE_BLOCKS_MAX as u64)
                .take_while(|(other, at)| {
                    other.address == item.address.plus(*at) && same_segment(other)
                })
                .count();
            let (first, blocks) = (first as u32, run as u32);
            let owner = IoOwner::DestageRead { destager: index as u8, first, blocks };
            self.destagers[index].next += run;
            self.destagers[index].outstanding += 1;
            self.device_read(owner, item.address, blocks_of(staging, first, blocks));
        }
        if self.destagers[index].outstanding == 0 {
            self.batch_is_read(index);
        }
    }

    pub(super) fn destage_read_done(
        &mut self,
        destager: u8,
        first: u32,
        blocks: u32,
        result: Result<(), IoError>,
    ) {
        let index = usize::from(destager);
        let staging = self.staging(index);
        let address = self.destagers[index].plan[first as usize].address;
        self.unpin(address);
        for offset in first..first + blocks {
            let address = address.plus(u64::from(offset - first));
            let bytes = self.reserve.bytes(blocks_of(staging, offset, 1));
            if result.is_err() || !self.log.verify(address, bytes) {
                self.damaged_block_found(index, offset as usize);
            }
        }
        self.destagers[index].outstanding -= 1;
    }

    /// Rule 25: strict stops before a damaged block, relaxed passes over it.
    fn damaged_block_found(&mut self, index: usize, item: usize) {
        let slot = self.destagers[index].export;
        let block = self.destagers[index].plan[item].block;
        self.counters.add_export(slot, ExportCounter::ChecksumErrorsDirty, 1);
        self.emit(Effect::Notice(Notice::ChecksumMismatch { export: slot, block, dirty: true }));
        if self.exports.get(slot).order == Order::Strict {
            self.destagers[index].damaged_block = Some(block);
        } else {
            self.destagers[index].plan[item].skip = true;
        }
    }

    fn batch_is_read(&mut self, index: usize) {
        if let Some(block) = self.destagers[index].damaged_block.take() {
            return self.stop_damaged(index, Some(block));
        }
        self.destagers[index].next = 0;
        self.destagers[index].phase = Phase::Writing;
    }

    fn stop_damaged(&mut self, index: usize, block: Option<u64>) {
        let slot = self.destagers[index].export;
        self.exports.get_mut(slot).damaged = true;
        let block = block.unwrap_or(u64::MAX);
        self.emit(Effect::Notice(Notice::DestageDamaged { export: slot, block }));
        self.release_destager(index);
        self.fail_origin_waiters(slot);
    }

    // ---- writing ---------------------------------------------------------------------------

    fn destage_depth(&self, slot: ExportSlot) -> usize {
        let export = self.exports.get(slot);
        let active = self.now.monotonic_ns < self.last_request_ns.saturating_add(ACTIVE_NS);
        let urgent = !export.room_waiters.is_empty()
            || export.mode == Mode::Writethrough
            || export.dirty.log_blocks * 4 >= export.dirty_log_blocks_max * 3;
        if active && !urgent { DEPTH_WHILE_ACTIVE } else { DESTAGE_DEPTH_MAX }
    }

    fn write_batch(&mut self, index: usize) {
        let slot = self.destagers[index].export;
        let staging = self.staging(index);
        let depth = self.destage_depth(slot);
        while self.destagers[index].next < self.destagers[index].plan.len() {
            let destager = &self.destagers[index];
            if destager.error.is_some() {
                break;
            }
            let (first, item) = (destager.next, destager.plan[destager.next]);
            if item.skip {
                self.destagers[index].next += 1;
                continue;
            }
            let run = destager.plan[first..]
                .iter()
                .zip(0u64..WRITE_BLOCKS_MAX as u64)
                .take_while(|(other, at)| other.block == item.block + at && !other.skip)
                .count();
            // A fetch of these blocks must not see half of the write (rule 30).
            let claimed = self.is_being_fetched(slot, item.block, run as u64);
            if destager.outstanding >= depth || self.ios.free() == 0 || claimed {
                return;
            }
            let bytes = run as u64 * BLOCK_BYTES_U64;
            let buffer = blocks_of(staging, first as u32, run as u32);
            self.destagers[index].next += run;
            self.destagers[index].outstanding += 1;
            self.destagers[index].unflushed_blocks += run as u64;
            self.counters.add_export(slot, ExportCounter::OriginWrites, 1);
            let io = self.ios.start(IoOwner::DestageWrite { destager: index as u8, bytes });
            let offset = item.block * BLOCK_BYTES_U64;
            self.emit(Effect::OriginWrite { io, export: slot, offset, buffer });
        }
        if self.destagers[index].outstanding == 0 {
            self.batch_is_written(index);
        }
    }

    fn write_zeroes_batch(&mut self, index: usize) {
        let slot = self.destagers[index].export;
        let Some(zero) = self.destagers[index].zero else {
            if self.destagers[index].outstanding == 0 {
                self.batch_is_written(index);
            }
            return;
        };
        if self.ios.free() == 0 || self.is_being_fetched(slot, zero.block, zero.blocks) {
            return;
        }
        let offset = zero.block * BLOCK_BYTES_U64;
        let end = (offset + zero.blocks * BLOCK_BYTES_U64).min(self.exports.get(slot).size_bytes);
        self.destagers[index].zero = None;
        self.destagers[index].outstanding = 1;
        self.destagers[index].unflushed_blocks += 1;
        self.counters.add_export(slot, ExportCounter::OriginWrites, 1);
        let length = end - offset;
        let io = self.ios.start(IoOwner::DestageWrite { destager: index as u8, bytes: length });
        let may_punch_hole = !zero.no_hole;
        self.emit(Effect::OriginZero { io, export: slot, offset, length, may_punch_hole });
    }

    pub(super) fn destage_write_done(
        &mut self,
        destager: u8,
        bytes: u64,
        result: Result<(), IoError>,
    ) {
        let index = usize::from(destager);
        self.destagers[index].outstanding -= 1;
        let slot = self.destagers[index].export;
        match result {
            Ok(()) => {
                self.origin_answered(slot);
                self.counters.add_export(slot, ExportCounter::DestagedBytes, bytes);
                self.exports.get_mut(slot).progress_ns = self.now.monotonic_ns;
            }
            Err(error) => self.destagers[index].error = Some(error),
        }
    }

    /// All writes of a batch have ended.
    fn batch_is_written(&mut self, index: usize) {
        if let Some(error) = self.destagers[index].error.take() {
            return self.fail_destage(index, error, true);
        }
        let destager = &mut self.destagers[index];
        let export = self.exports.get_mut(destager.export);
        export.origin_written = destager.done.sequence;
        if destager.epoch_ended || destager.unflushed_blocks >= UNFLUSHED_BLOCKS_MAX {
            self.flush_origin(index);
        } else {
            destager.phase = Phase::Planning;
        }
    }

    fn flush_origin(&mut self, index: usize) {
        if self.ios.free() == 0 {
            return;
        }
        let slot = self.destagers[index].export;
        self.destagers[index].phase = Phase::Flushing;
        self.counters.add_export(slot, ExportCounter::OriginFlushes, 1);
        let io = self.ios.start(IoOwner::DestageFlush { destager: index as u8 });
        self.emit(Effect::OriginFlush { io, export: slot });
    }

    pub(super) fn destage_flush_done(&mut self, destager: u8, result: Result<(), IoError>) {
        let index = usize::from(destager);
        match result {
            Ok(()) => {
                self.origin_answered(self.destagers[index].export);
                self.destagers[index].unflushed_blocks = 0;
                self.finish_epoch(index);
            }
            // A failed flush never makes data clean.
            Err(error) => self.fail_destage(index, error, true),
        }
    }

    /// The origin has everything up to `done`, flushed: the watermark rises, and has to become
    /// durable before anything newer goes to the origin.
    fn finish_epoch(&mut self, index: usize) {
        let destager = &mut self.destagers[index];
        let done = destager.done;
        let export = self.exports.get_mut(destager.export);
        if done.sequence == export.watermark {
            return self.release_destager(index);
        }
        export.dirty.subtract(done.passed);
        destager.passed.subtract(done.passed);
        destager.done.passed = DirtyAccount::default();
        export.advance_watermark(done.sequence, done.end, done.cursor);
        export.origin_written = export.origin_written.max(done.sequence);
        export.oldest_dirty_wall_ns = done.wall_ns;
        export.dirty_since_ns = self.now.monotonic_ns;
        export.progress_ns = self.now.monotonic_ns;
        destager.phase = Phase::Persisting;
    }

    fn persist_watermark(&mut self, index: usize) {
        let slot = self.destagers[index].export;
        if self.latched {
            return self.release_destager(index);
        }
        let export = self.exports.get(slot);
        if !export.watermark_is_durable(self.log.durable()) {
            return self.log.want_record();
        }
        let more = !self.stopping
            && export.destage_target > export.watermark
            && export.is_dirty()
            && export.destage_enabled
            && self.log.durable() > export.watermark;
        if more {
            self.destagers[index].phase = Phase::Planning;
        } else {
            self.release_destager(index);
        }
    }

    /// The origin, or the way to it, failed: everything since the watermark is written again,
    /// after a while (rule 20).
    fn fail_destage(&mut self, index: usize, error: IoError, is_origin: bool) {
        let slot = self.destagers[index].export;
        if is_origin {
            self.origin_failed(slot, error);
        } else {
            self.exports.get_mut(slot).origin_failed(self.now.monotonic_ns);
        }
        self.release_destager(index);
        self.fail_origin_waiters(slot);
    }

    fn release_destager(&mut self, index: usize) {
        let destager = &mut self.destagers[index];
        assert!(destager.outstanding == 0, "a destager is released between I/Os");
        destager.phase = Phase::Idle;
        destager.plan.clear();
        destager.zero = None;
        destager.error = None;
        destager.damaged_block = None;
        self.exports.get_mut(destager.export).destaging = false;
    }

    /// Answers writethrough requests whose data is on the origin (rule 23).
    fn answer_origin_waiters(&mut self, slot: ExportSlot) {
        loop {
            let export = self.exports.get(slot);
            let mut queue = export.origin_waiters;
            let Some(ticket) = queue.front() else { return };
            let op = &self.ops[ticket.0 as usize];
            let durable = self.log.durable();
            let answered = if op.request().needs_flush() {
                export.watermark >= op.sequence && export.watermark_is_durable(durable)
            } else {
                export.origin_written >= op.sequence
            };
            if !answered {
                return;
            }
            self.links.pop(&mut queue);
            self.exports.get_mut(slot).origin_waiters = queue;
            self.complete(ticket, Ok(()));
        }
    }
}

/// Adds the dirty blocks of a record's entries to the plan, from the position on. Returns whether
/// the record is finished; if not, the position says where to go on.
fn plan_entries(
    destager: &mut Destager,
    export: &super::exports::Export,
    (index, log): (&crate::index::Index, &super::log::Log),
    record: &SummaryRecord,
    entries: &[Entry],
) -> bool {
    let segment_use = destager.position.cursor.segment_use;
    let mut payload = u64::from(record.offset_blocks.get()) + 1;
    for (number, entry) in entries.iter().enumerate() {
        let first_payload = payload;
        payload += u64::from(entry.payload_blocks());
        if number < destager.position.entry || !is_dirty_entry(export, record, entry) {
            continue;
        }
        destager.position.entry = number;
        if !entry.kind().has_payload() {
            if !destager.plan.is_empty() {
                return false;
            }
            destager.zero = Some(ZeroItem {
                block: entry.block.get(),
                blocks: u64::from(entry.count.get()),
                no_hole: entry.flags().contains(EntryFlags::NO_HOLE),
            });
            destager.passed.add(u64::from(entry.count.get()), 0);
            destager.position.entry = number + 1;
            return number + 1 == entries.len();
        }
        while destager.position.block < entry.count.get() {
            if destager.plan.len() == BATCH_BLOCKS {
                return false;
            }
            let offset = u64::from(destager.position.block);
            let block = entry.block.get() + offset;
            let base = log.geometry.address(segment_use, 0);
            let address = base.plus(first_payload + offset);
            destager.position.block += 1;
            // A writethrough answer stands for this very version on the origin (rule 23).
            if export.order == Order::Relaxed
                && export.mode != Mode::Writethrough
                && is_superseded(destager.export, index, log, block, address)
            {
                continue;
            }
            let order = u32::try_from(destager.plan.len()).expect("a small batch");
            destager.plan.push(PlanItem { block, order, address, skip: false });
        }
        let count = u64::from(entry.count.get());
        destager.passed.add(count, count);
        destager.position.block = 0;
        destager.position.entry = number + 1;
    }
    true
}

/// Rule 12: client data above the watermark.
fn is_dirty_entry(export: &super::exports::Export, record: &SummaryRecord, entry: &Entry) -> bool {
    let version = match entry.kind() {
        EntryKind::DirtyCopy | EntryKind::DirtyZeroCopy => entry.version.get(),
        _ => record.sequence.get(),
    };
    entry.layer.get() == export.layer.0
        && entry.kind().is_client_data()
        && version > export.watermark.0
}

/// Whether a newer version of a block is durable: then this one may be passed over (rule 17).
fn is_superseded(
    slot: ExportSlot,
    index: &crate::index::Index,
    log: &super::log::Log,
    block: u64,
    address: LogAddress,
) -> bool {
    match index.get(slot, block).place() {
        Place::Stored(newer) | Place::Zero(newer) => {
            newer > address && log.is_durable_address(newer)
        }
        Place::Missing => false,
    }
}

/// Sorts a batch by block and keeps the newest version of each (rule 18: within an epoch).
fn sort_newest_last(plan: &mut Vec<PlanItem>) {
    plan.sort_unstable_by_key(|item| (item.block, item.order));
    let mut kept = 0;
    for at in 0..plan.len() {
        let is_last = plan.get(at + 1).is_none_or(|next| next.block != plan[at].block);
        if is_last {
            plan[kept] = plan[at];
            kept += 1;
        }
    }
    plan.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_keeps_the_newest_version_of_each_block() {
        let item = |block, order| PlanItem {
            block,
            order,
            address: LogAddress(u64::from(order)),
            skip: false,
        };
        let mut plan = vec![item(5, 0), item(3, 1), item(5, 2), item(4, 3), item(3, 4)];
        sort_newest_last(&mut plan);
        let found: Vec<_> = plan.iter().map(|item| (item.block, item.order)).collect();
        assert_eq!(found, [(3, 4), (4, 3), (5, 2)]);
    }
}
