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
//! cache device before the first write of the next (rule 19). In `relaxed` order a *round* takes
//! the place of the epoch: what is durable when it begins, up to a quarter of the log. Versions
//! that the round supersedes itself are passed over (rule 17); at its end nothing is left of that,
//! and its data has *settled*. In both, the watermark rises in their midst, too, where it would
//! fall far behind or writes wait for room. Any failure starts over behind it (rule 20).
//!
//! A damaged version is a *debt* (rule 25, decision 0009): the rest of its epoch may go to the
//! origin, any part of it is a legal disk, but the epoch cannot end, nor the watermark rise,
//! before a newer version of the same epoch has paid the debt or an operator has let it off.

mod batch;
mod debts;
mod plan;

use super::Engine;
use super::api::{Effect, IoError};
use super::carried::CarriedKey;
use super::exports::{Cursor, DirtyAccount};
use super::summary::SummaryLoad;
use super::tables::IoOwner;
use crate::canary;
use crate::config::Order;
use crate::counters::ExportCounter;
use crate::geometry::LogAddress;
use crate::units::{BLOCK_BYTES_U64, ExportSlot, Sequence};
use debts::Debts;

/// The longest origin write.
const WRITE_BLOCKS_MAX: usize = 256;
/// The most zeroes in one go: an origin that writes them out at no more than 1.1 MB/s still answers
/// within the default limit of 30 s. Cut at multiples of it, no unit is cut in two that an origin
/// could deallocate.
const ZERO_BLOCKS_MAX: u64 = (32 << 20) / BLOCK_BYTES_U64;
/// Flush the origin at least this often, so that the watermark keeps up.
const UNFLUSHED_BLOCKS_MAX: u64 = (64 << 20) / BLOCK_BYTES_U64;
/// Flush it sooner while writes wait for room, but write for at least so many times as long as the
/// last flush took (decision 0026).
const WRITING_PER_FLUSH: u64 = 16;
/// A round in relaxed order goes over this part of the log at most: the larger, the more versions
/// collapse; the smaller, the sooner reclaim gets room.
const ROUND_SHARE: u64 = 4;
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
    /// Later items win over earlier ones of the same block. Once those are gone and the batch is
    /// read: where in staging the payload lies, in blocks.
    order: u32,
    address: LogAddress,
    /// The sequence that wrote it.
    version: Sequence,
    /// Damaged, and passed over.
    skip: bool,
}

#[derive(Clone, Copy, Debug)]
struct ZeroItem {
    block: u64,
    blocks: u64,
    no_hole: bool,
}

impl ZeroItem {
    /// The piece that goes to the origin next, and what is left behind it.
    fn split(self) -> (Self, Option<Self>) {
        let blocks = self.blocks.min(ZERO_BLOCKS_MAX - self.block % ZERO_BLOCKS_MAX);
        let rest = Self { block: self.block + blocks, blocks: self.blocks - blocks, ..self };
        (Self { blocks, ..self }, (rest.blocks > 0).then_some(rest))
    }
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

/// One of as many workers as there are exports; each serves one export at a time, and is held by
/// it for as long as its origin does not answer.
#[derive(Debug)]
pub struct Destager {
    phase: Phase,
    export: ExportSlot,
    position: Position,
    done: Done,
    /// What the watermark will leave behind, done or in the current record.
    passed: DirtyAccount,
    /// The newest version whose header is in that account.
    counted: Sequence,
    /// The segment whose summary is loaded, and its length.
    summary: Option<(u64, u32)>,
    loading: Option<SummaryLoad>,
    plan: Vec<PlanItem>,
    /// The most items of a plan.
    batch_blocks: usize,
    zero: Option<ZeroItem>,
    next: usize,
    outstanding: usize,
    /// Since when the origin has had something of it without ending anything.
    origin_since_ns: u64,
    error: Option<IoError>,
    debts: Debts,
    /// What is given up must be known to be lost before the watermark passes it: the record that
    /// has to be durable first.
    lost_in: Sequence,
    /// Blocks written since the origin was last flushed.
    unflushed_blocks: u64,
    /// How long that flush took, and when it ended.
    flush_ns: u64,
    flushed_at_ns: u64,
    /// Bytes that the origin has taken since the watermark rose, this time.
    written_bytes: u64,
    epoch_ended: bool,
    /// In relaxed order: where the round ends.
    horizon: LogAddress,
    /// Nothing of the round is left to plan.
    round_is_over: bool,
    /// The last carried entry that was planned and is not below the watermark yet, and its epoch.
    carried: Option<(CarriedKey, u64)>,
}

impl Destager {
    /// An idle worker.
    pub fn new(batch_blocks: usize) -> Self {
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
            counted: Sequence(0),
            summary: None,
            loading: None,
            plan: Vec::with_capacity(batch_blocks),
            batch_blocks,
            zero: None,
            next: 0,
            outstanding: 0,
            origin_since_ns: 0,
            error: None,
            debts: Debts::new(),
            lost_in: Sequence(0),
            unflushed_blocks: 0,
            flush_ns: 0,
            flushed_at_ns: 0,
            written_bytes: 0,
            epoch_ended: false,
            horizon: LogAddress(0),
            round_is_over: false,
            carried: None,
        }
    }

    /// Counts an entry as passed, and the header of its record with the first one.
    fn pass(&mut self, version: Sequence, blocks: u64, payload_blocks: u64) {
        self.passed.add(blocks, payload_blocks, version > self.counted);
        self.counted = self.counted.max(version);
    }

    /// Whether it serves an export.
    pub fn is_active(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// Whether it waits for its origin: for an answer, or for a fetch that has to end first.
    fn waits_for_origin(&self) -> bool {
        matches!(self.phase, Phase::Writing | Phase::Zeroing | Phase::Flushing)
    }
}

impl Engine {
    /// Starts and continues destaging wherever it is due.
    pub(super) fn run_destage(&mut self) {
        for slot in self.exports.in_use() {
            self.trigger_destage(slot);
            self.assign_destager(slot);
        }
        for destager in 0..self.destagers.len() {
            self.advance_destager(destager);
            self.look_at_late_destager(destager);
        }
        for slot in self.exports.in_use() {
            self.answer_origin_waiters(slot);
        }
    }

    /// Decides how much of what is dirty should go to the origin now (policy).
    fn trigger_destage(&mut self, slot: ExportSlot) {
        let now_ns = self.now.monotonic_ns;
        let pressure = self.log_is_short();
        let blocked = self.reclaim.is_blocked_by(slot);
        let export = self.exports.get_mut(slot);
        if !export.configured || !export.is_dirty() || export.destage_target >= export.newest_dirty
        {
            return;
        }
        let age_ns = self.config.destage_age_ns;
        let is_past = |deadline_ns: u64| now_ns >= deadline_ns;
        if export.epoch_is_large() || export.epoch_deadline_ns(age_ns).is_some_and(is_past) {
            self.end_epoch_unasked(slot);
        }
        let export = self.exports.get_mut(slot);
        let high = export.dirty_log_blocks_max / 100 * u64::from(self.config.destage_high_percent);
        let aged = is_past(export.dirty_since_ns.saturating_add(age_ns));
        let idle = is_past(self.last_request_ns.saturating_add(self.config.destage_idle_ns));
        if !(pressure || blocked || aged || idle || export.dirty.log_blocks >= high) {
            return;
        }
        // The epoch of now goes last: to end it while older ones are on their way would make many
        // small ones of it, each with flushes of its own.
        if export.newest_ended > export.watermark {
            export.destage_target = export.destage_target.max(export.newest_ended);
        } else {
            export.destage_target = export.newest_dirty;
            self.end_epoch_unasked(slot);
        }
    }

    /// Ends an epoch that no client ends, with a flush of our own (rule 14).
    fn end_epoch_unasked(&mut self, slot: ExportSlot) {
        let newest = self.exports.get(slot).newest_dirty;
        self.exports.end_epoch(slot, self.log.has_open_record());
        self.log.want_durable(newest);
    }

    /// Whether writes wait for room that destage gives back.
    fn log_is_short(&self) -> bool {
        self.exports.in_use().any(|slot| self.is_short_of_log(slot))
    }

    /// The same of one export. Where writes wait for the cache device to take older ones, destage
    /// would only keep it longer: it reads from that device, and often writes to the same disk.
    fn is_short_of_log(&self, slot: ExportSlot) -> bool {
        !self.exports.get(slot).room_waiters.is_empty() && !self.log.waits_for_device()
    }

    fn assign_destager(&mut self, slot: ExportSlot) {
        let durable = self.log.durable();
        let now_ns = self.now.monotonic_ns;
        let may_go_on = self.may_destage_latched(slot);
        let export = self.exports.get_mut(slot);
        let wanted = export.configured
            && (!export.damaged || export.tries_again && now_ns >= export.damage_retry_at_ns)
            && !export.destaging
            && export.is_dirty()
            && export.is_destage_wanted()
            && (durable > export.watermark || canary::breaks(17))
            && export.origin.may_be_asked(now_ns)
            && (!self.latched || may_go_on)
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
        destager.counted = export.watermark;
        destager.done = Done {
            sequence: export.watermark,
            end: export.watermark_end,
            cursor,
            wall_ns: export.oldest_dirty_wall_ns,
            passed: DirtyAccount::default(),
        };
        destager.summary = None;
        destager.unflushed_blocks = 0;
        destager.flush_ns = 0;
        destager.flushed_at_ns = now_ns;
        destager.written_bytes = 0;
        destager.epoch_ended = false;
        destager.carried = None;
        destager.debts.clear();
        destager.lost_in = Sequence(0);
        let index = self.destagers.iter().position(|d| d.export == slot && d.is_active());
        self.begin_round(index.expect("it was just assigned"));
    }

    /// Whether destage may begin after the cache device has failed (rule 32): what is durable may
    /// go to the origin. In strict order not beyond an epoch whose watermark is not durable, and
    /// it never will be (rule 19); in relaxed order a restart writes it all again anyway.
    fn may_destage_latched(&self, slot: ExportSlot) -> bool {
        let export = self.exports.get(slot);
        export.order == Order::Relaxed || export.watermark_is_durable(self.log.durable())
    }

    /// Decides how far the next round goes. A round that has risen in its midst keeps its end: if
    /// that moved on, what is overwritten again and again would never settle.
    fn begin_round(&mut self, index: usize) {
        let geometry = self.log.geometry;
        let oldest = geometry.address(self.log.oldest_use, 0);
        // From the segment with the first dirty record on: what lies before it is not ours.
        let export = self.exports.get(self.destagers[index].export);
        let first = geometry.address(export.watermark_cursor.segment_use, 0);
        let start = export.watermark_end.max(first).max(oldest);
        let most = start.plus(geometry.log_blocks() / ROUND_SHARE);
        self.destagers[index].horizon = self.log.durable_end().min(most);
    }

    /// When destage is due even if nothing happens.
    pub(super) fn destage_deadline_ns(&self) -> Option<u64> {
        if self.stopping {
            return None;
        }
        let due = |slot: ExportSlot| {
            let export = self.exports.get(slot);
            if !export.is_dirty() || !export.configured || export.destaging {
                return None;
            }
            let has_durable = self.log.durable() > export.watermark;
            if self.latched && !(has_durable && self.may_destage_latched(slot)) {
                return None;
            }
            let is_wanted = export.is_destage_wanted();
            if is_wanted && export.damaged && export.tries_again {
                return Some(export.damage_retry_at_ns.max(export.origin.retry_at_ns));
            }
            if !export.origin.may_be_asked(self.now.monotonic_ns) {
                return Some(export.origin.retry_at_ns);
            }
            let aged = export.dirty_since_ns.saturating_add(self.config.destage_age_ns);
            let idle = self.last_request_ns.saturating_add(self.config.destage_idle_ns);
            let epoch = export.epoch_deadline_ns(self.config.destage_age_ns).unwrap_or(u64::MAX);
            // What is on its way already waits for completions, not for time.
            (!is_wanted).then_some(aged.min(idle).min(epoch))
        };
        self.exports.in_use().filter_map(due).min()
    }

    /// Whether a destager has planned what lies in a segment, and not read it yet.
    pub(super) fn destage_reads(&self, segment_use: u64) -> bool {
        let lies_there =
            |item: &PlanItem| self.log.geometry.segment_use(item.address) == segment_use;
        self.destagers.iter().any(|destager| {
            destager.phase == Phase::Reading && destager.plan.iter().any(lies_there)
        })
    }

    /// When the next origin is overdue with destage.
    pub(super) fn destage_late_ns(&self) -> Option<u64> {
        let late_at = |destager: &Destager| {
            let export = self.exports.get(destager.export);
            (destager.waits_for_origin() && !export.destage_late)
                .then(|| destager.origin_since_ns.saturating_add(export.origin.timeout_ns))
        };
        self.destagers.iter().filter_map(late_at).min()
    }

    /// An origin that is overdue counts as down. What it has of ours stays where it is.
    fn look_at_late_destager(&mut self, index: usize) {
        let destager = &self.destagers[index];
        let slot = destager.export;
        if !destager.waits_for_origin() {
            return;
        }
        let export = self.exports.get_mut(slot);
        let late_at_ns = destager.origin_since_ns.saturating_add(export.origin.timeout_ns);
        if export.destage_late || self.now.monotonic_ns < late_at_ns {
            return;
        }
        export.destage_late = true;
        self.reclaim.look_again = true;
        self.origin_is_late(slot);
        // Their outcome is unknown; the data stays dirty (rule 23).
        self.fail_origin_waiters(slot);
    }

    /// The destager starts to wait for its origin, or has got something from it.
    fn destage_waits_anew(&mut self, index: usize) {
        let destager = &mut self.destagers[index];
        destager.origin_since_ns = self.now.monotonic_ns;
        let slot = destager.export;
        if std::mem::take(&mut self.exports.get_mut(slot).destage_late) {
            self.origin_no_longer_late(slot);
        }
    }

    fn advance_destager(&mut self, index: usize) {
        loop {
            let before = self.destagers[index].phase;
            self.release_void_destager(index);
            match self.destagers[index].phase {
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

    /// What it planned was carried elsewhere while it waited: it starts over from the watermark,
    /// once nothing of it is with the origin any more.
    fn release_void_destager(&mut self, index: usize) {
        let destager = &self.destagers[index];
        let slot = destager.export;
        let is_writing = matches!(destager.phase, Phase::Writing | Phase::Zeroing);
        let is_void = self.exports.get(slot).destage_void;
        if is_void && is_writing && destager.outstanding == 0 {
            match self.destagers[index].error {
                Some(error) => self.fail_destage(index, error, true),
                None => {
                    self.exports.get_mut(slot).note_destage_failed();
                    self.release_destager(index);
                }
            }
        }
    }

    /// Whether the watermark should rise now, though the epoch goes on: it is far behind, or writes
    /// wait for what it gives back.
    fn wants_watermark(&self, index: usize) -> bool {
        let destager = &self.destagers[index];
        if destager.done.sequence <= self.exports.get(destager.export).watermark {
            // All of it is the beginning of one record.
            return false;
        }
        let writing_ns = self.now.monotonic_ns - destager.flushed_at_ns;
        let is_due = writing_ns >= destager.flush_ns.saturating_mul(WRITING_PER_FLUSH);
        destager.unflushed_blocks >= UNFLUSHED_BLOCKS_MAX || is_due && self.log_is_short()
    }

    fn flush_origin(&mut self, index: usize) {
        let lost_in = self.destagers[index].lost_in;
        if lost_in > self.log.durable() {
            if self.latched {
                return self.stop_for_good(index);
            }
            return self.log.want_durable(lost_in);
        }
        if self.ios.free() == 0 {
            return;
        }
        let slot = self.destagers[index].export;
        self.destagers[index].phase = Phase::Flushing;
        self.destage_waits_anew(index);
        self.counters.add_export(slot, ExportCounter::OriginFlushes, 1);
        let io = self.ios.start(IoOwner::DestageFlush { destager: index as u8 });
        self.emit(Effect::OriginFlush { io, export: slot });
    }

    pub(super) fn destage_flush_done(&mut self, destager: u8, result: Result<(), IoError>) {
        let index = usize::from(destager);
        let (now_ns, asked_at_ns) = (self.now.monotonic_ns, self.destagers[index].origin_since_ns);
        self.destage_waits_anew(index);
        match result {
            Ok(()) => {
                self.origin_answered(self.destagers[index].export);
                let destager = &mut self.destagers[index];
                destager.flush_ns = now_ns - asked_at_ns;
                destager.flushed_at_ns = now_ns;
                destager.unflushed_blocks = 0;
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
        let slot = destager.export;
        let export = self.exports.get_mut(slot);
        let rises = destager.done.sequence > export.watermark;
        if !rises && export.has_settled() {
            return self.release_destager(index);
        }
        destager.phase = Phase::Persisting;
        if rises {
            self.raise_watermark(index);
        }
        if self.destagers[index].round_is_over {
            let export = self.exports.get_mut(slot);
            export.settled = export.watermark;
        }
    }

    fn raise_watermark(&mut self, index: usize) {
        let destager = &mut self.destagers[index];
        let done = destager.done;
        let export = self.exports.get_mut(destager.export);
        export.dirty.subtract(done.passed);
        destager.passed.subtract(done.passed);
        destager.done.passed = DirtyAccount::default();
        // Where the copies end, their round does, and no other one.
        destager.carried = destager.carried.filter(|(key, _)| key.version > done.sequence);
        export.advance_watermark(done.sequence, done.end, done.cursor);
        if !export.is_dirty() {
            // Copies that were carried lie behind the end of what destage took from the log,
            // wherever they are. Only what joins the open record from now on is newer.
            export.watermark_end = export.watermark_end.max(self.log.closed_end());
        }
        export.origin_written = export.origin_written.max(done.sequence);
        export.oldest_dirty_wall_ns = done.wall_ns;
        export.note_watermark_risen(self.now.monotonic_ns);
        destager.written_bytes = 0;
        let (slot, watermark) = (destager.export, done.sequence);
        self.carried.forget(slot, watermark);
    }

    fn persist_watermark(&mut self, index: usize) {
        let slot = self.destagers[index].export;
        let export = self.exports.get(slot);
        // After the cache device has failed it never will be.
        if !self.latched && !export.watermark_is_durable(self.log.durable()) {
            self.log.want_record(export.watermark_record());
            if !canary::breaks(19) {
                return;
            }
        }
        let more = !self.stopping
            && !export.destage_void
            && export.is_destage_wanted()
            && export.is_dirty()
            && self.log.durable() > export.watermark
            && (!self.latched || self.may_destage_latched(slot));
        let has_settled = export.has_settled();
        if more {
            if has_settled {
                self.begin_round(index);
            }
            self.destagers[index].phase = Phase::Planning;
        } else {
            self.release_destager(index);
        }
    }

    /// The origin, or the way to it, failed: everything since the watermark is written again,
    /// after a while (rule 20).
    fn fail_destage(&mut self, index: usize, error: IoError, is_origin: bool) {
        let slot = self.destagers[index].export;
        self.exports.get_mut(slot).note_destage_failed();
        if is_origin {
            self.origin_failed(slot, error);
        } else {
            self.exports.get_mut(slot).origin.rest(self.now.monotonic_ns);
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
        destager.debts.clear();
        let slot = destager.export;
        self.destage_waits_anew(index);
        self.reclaim.look_again = true;
        let export = self.exports.get_mut(slot);
        export.destaging = false;
        if std::mem::take(&mut export.destage_void) {
            // It starts over from the watermark, in a moment: somebody has to wake it.
            export.origin.rest(self.now.monotonic_ns);
        }
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
            if !answered && (export.stands_still() || export.destage_late) {
                // Their data stays dirty, and nobody can say for how long (rule 23).
                return self.fail_origin_waiters(slot);
            }
            if !answered {
                return;
            }
            self.links.pop(&mut queue);
            self.exports.get_mut(slot).origin_waiters = queue;
            self.complete(ticket, Ok(()));
        }
    }
}
