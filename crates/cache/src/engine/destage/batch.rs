//! One batch: its payload is read into staging in the order of the log, sorted by block, and
//! written to the origin.

use super::{ACTIVE_NS, DEPTH_WHILE_ACTIVE, Phase, PlanItem, WRITE_BLOCKS_MAX};
use crate::config::{Mode, Order};
use crate::counters::ExportCounter;
use crate::engine::api::{Effect, IoError, Notice};
use crate::engine::damage::{DAMAGE_RETRY_NS, Damage};
use crate::engine::tables::IoOwner;
use crate::engine::{Engine, blocks_of};
use crate::index::Place;
use crate::limits::DESTAGE_DEPTH_MAX;
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64, ExportSlot, Sequence};

/// There is no room now for what has to be said first.
const EAGAIN: i32 = 11;

impl Engine {
    /// Brings the batch's payload into staging.
    pub(super) fn read_batch(&mut self, index: usize) {
        let staging = self.staging(index);
        while self.destagers[index].next < self.destagers[index].plan.len() {
            let destager = &self.destagers[index];
            let first = destager.next;
            let item = destager.plan[first];
            if let Some(frame) = self.resident(item.address) {
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
                    && self.resident(other.address).is_none()
            };
            let run = destager.plan[first..]
                .iter()
                .zip(0u64..WRITE_BLOCKS_MAX as u64)
                .take_while(|(other, at)| {
                    other.address == item.address.plus(*at) && same_segment(other)
                })
                .count();
            let (first, blocks) = (first as u32, run as u32);
            let owner = IoOwner::DestageRead { destager: index as u8, first, blocks, again: false };
            self.destagers[index].next += run;
            self.destagers[index].outstanding += 1;
            self.device_read(owner, item.address, blocks_of(staging, first, blocks));
        }
        if self.destagers[index].outstanding == 0 {
            self.batch_is_read(index);
        }
    }

    pub(in crate::engine) fn destage_read_done(
        &mut self,
        destager: u8,
        (first, blocks): (u32, u32),
        again: bool,
        result: Result<(), IoError>,
    ) {
        let index = usize::from(destager);
        let staging = self.staging(index);
        let address = self.destagers[index].plan[first as usize].address;
        self.unpin(address);
        self.destagers[index].outstanding -= 1;
        for offset in first..first + blocks {
            let address = address.plus(u64::from(offset - first));
            let frame = blocks_of(staging, offset, 1);
            let Some(damage) = self.damage_of(address, frame, result) else { continue };
            if again {
                self.damaged_block_found(index, offset as usize, damage);
                continue;
            }
            // What the device or its bus got wrong once is not lost.
            if self.ios.free() == 0 {
                self.destagers[index].error = Some(IoError::Failed { errno: EAGAIN });
                continue;
            }
            self.destagers[index].outstanding += 1;
            let owner = IoOwner::DestageRead { destager, first: offset, blocks: 1, again: true };
            self.device_read(owner, address, frame);
        }
    }

    /// Rule 25: strict order cannot go on without the version that the log names; relaxed passes
    /// over it, and so does strict where the loss is accepted. What the device cannot read may be
    /// readable later: nothing but an operator gives it up.
    fn damaged_block_found(&mut self, index: usize, item: usize, damage: Damage) {
        let slot = self.destagers[index].export;
        // Who waits for this version on the origin waits in vain (rule 23). Whose it is, is not
        // known here: the outcome of all is unknown.
        self.fail_origin_waiters(slot);
        let PlanItem { block, address, version, .. } = self.destagers[index].plan[item];
        let export = self.exports.get(slot);
        let accepted = version <= export.loss_accepted
            || export.order == Order::Relaxed && damage == Damage::Checksum;
        self.destagers[index].plan[item].skip = true;
        if self.index.get(slot, block).place() == Place::Stored(address) {
            self.note_damage(slot, block, true);
            let may_record = accepted || damage == Damage::Checksum;
            let recorded = if may_record { self.record_bad(slot, block) } else { None };
            if accepted && recorded.is_none() {
                // It must not pass for clean: later, when there is room to say that it is lost.
                self.destagers[index].error = Some(IoError::Failed { errno: EAGAIN });
            }
        }
        if accepted {
            // Until what took its place is durable, a crash would bring the damaged version back,
            // and the watermark would make it a clean one.
            let newest = self.log.newest();
            self.destagers[index].lost_in = newest;
        } else {
            let unreadable = damage == Damage::Unreadable;
            self.destagers[index].debts.add(block, version, unreadable);
        }
    }

    pub(super) fn batch_is_read(&mut self, index: usize) {
        if let Some(error) = self.destagers[index].error.take() {
            if self.latched {
                return self.stop_for_good(index);
            }
            return self.fail_destage(index, error, false);
        }
        self.sort_batch(index);
        let destager = &mut self.destagers[index];
        destager.debts.pay(&destager.plan);
        destager.next = 0;
        destager.phase = Phase::Writing;
        // The tail may move past what was read.
        self.reclaim.look_again = true;
        self.destage_waits_anew(index);
    }

    /// Sorts the batch by block, the plan and what it has in staging: neighbours on the origin are
    /// written together.
    fn sort_batch(&mut self, index: usize) {
        let staging = self.staging(index);
        let plan = &mut self.destagers[index].plan;
        for (at, item) in (0..).zip(plan.iter_mut()) {
            item.order = at;
        }
        plan.sort_unstable_by_key(|item| item.block);
        let mut spare = [0; BLOCK_BYTES];
        for start in 0..plan.len() as u32 {
            // Each cycle of the permutation is walked once: what is in place names its own place.
            if plan[start as usize].order == start {
                continue;
            }
            spare.copy_from_slice(self.reserve.bytes(blocks_of(staging, start, 1)));
            let mut at = start;
            loop {
                let from = std::mem::replace(&mut plan[at as usize].order, at);
                if from == start {
                    break;
                }
                self.reserve.copy(blocks_of(staging, from, 1), blocks_of(staging, at, 1));
                at = from;
            }
            self.reserve.bytes_mut(blocks_of(staging, at, 1)).copy_from_slice(&spare);
        }
    }

    /// The epoch cannot end: something of it is damaged.
    pub(super) fn stop_in_debt(&mut self, index: usize) {
        let (block, newest, unreadable) = self.destagers[index].debts.sum();
        let slot = self.destagers[index].export;
        let (now_ns, durable) = (self.now.monotonic_ns, self.log.durable());
        let export = self.exports.get_mut(slot);
        // Newer versions of the same epoch may be on their way.
        let may_be_paid = !self.destagers[index].epoch_ended && export.newest_dirty > durable;
        export.tries_again = unreadable || may_be_paid;
        export.damage_retry_at_ns = now_ns + DAMAGE_RETRY_NS;
        self.stop_damaged(index, block, newest);
    }

    /// What is lost can no longer be said: the cache device has failed.
    pub(super) fn stop_for_good(&mut self, index: usize) {
        let slot = self.destagers[index].export;
        self.exports.get_mut(slot).tries_again = false;
        self.stop_damaged(index, None, Sequence(0));
    }

    pub(super) fn stop_damaged(&mut self, index: usize, block: Option<u64>, up_to: Sequence) {
        let slot = self.destagers[index].export;
        let export = self.exports.get_mut(slot);
        let is_news = !std::mem::replace(&mut export.damaged, true) || up_to > export.damaged_up_to;
        export.damaged_up_to = export.damaged_up_to.max(up_to);
        if is_news {
            self.emit(Effect::Notice(Notice::DestageDamaged { export: slot, block }));
        }
        self.release_destager(index);
        self.fail_origin_waiters(slot);
    }

    pub(super) fn destage_depth(&self, slot: ExportSlot) -> usize {
        let export = self.exports.get(slot);
        let active = self.now.monotonic_ns < self.last_request_ns.saturating_add(ACTIVE_NS);
        let urgent = self.is_short_of_log(slot)
            || export.mode == Mode::Writethrough
            || export.dirty.log_blocks * 4 >= export.dirty_log_blocks_max * 3;
        if active && !urgent { DEPTH_WHILE_ACTIVE } else { DESTAGE_DEPTH_MAX }
    }

    pub(super) fn write_batch(&mut self, index: usize) {
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

    /// Writes zeroes piece by piece, each once the origin has the one before: it may write them
    /// out like data, and what it is given at once it has to answer in time.
    pub(super) fn write_zeroes_batch(&mut self, index: usize) {
        let destager = &self.destagers[index];
        if destager.outstanding > 0 {
            return;
        }
        let Some(zero) = destager.zero.filter(|_| destager.error.is_none()) else {
            return self.batch_is_written(index);
        };
        if self.stopping {
            return self.release_destager(index);
        }
        let slot = destager.export;
        let (piece, rest) = zero.split();
        if self.ios.free() == 0 || self.is_being_fetched(slot, piece.block, piece.blocks) {
            return;
        }
        self.destagers[index].debts.pay_zeroes(&piece);
        let offset = piece.block * BLOCK_BYTES_U64;
        let end = (offset + piece.blocks * BLOCK_BYTES_U64).min(self.exports.get(slot).size_bytes);
        self.destagers[index].zero = rest;
        self.destagers[index].outstanding = 1;
        self.destagers[index].unflushed_blocks += 1;
        self.counters.add_export(slot, ExportCounter::OriginWrites, 1);
        let length = end - offset;
        let io = self.ios.start(IoOwner::DestageWrite { destager: index as u8, bytes: length });
        let may_punch_hole = !piece.no_hole;
        self.emit(Effect::OriginZero { io, export: slot, offset, length, may_punch_hole });
    }

    pub(in crate::engine) fn destage_write_done(
        &mut self,
        destager: u8,
        bytes: u64,
        result: Result<(), IoError>,
    ) {
        let index = usize::from(destager);
        self.destagers[index].outstanding -= 1;
        self.destage_waits_anew(index);
        let slot = self.destagers[index].export;
        match result {
            Ok(()) => {
                self.origin_answered(slot);
                self.counters.add_export(slot, ExportCounter::DestagedBytes, bytes);
                self.destagers[index].written_bytes += bytes;
                let written = self.destagers[index].written_bytes;
                self.exports.get_mut(slot).note_progress(written, self.now.monotonic_ns);
            }
            Err(error) => self.destagers[index].error = Some(error),
        }
    }

    /// All writes of a batch have ended.
    pub(super) fn batch_is_written(&mut self, index: usize) {
        if let Some(error) = self.destagers[index].error.take() {
            return self.fail_destage(index, error, true);
        }
        let destager = &self.destagers[index];
        let export = self.exports.get_mut(destager.export);
        export.origin_written = destager.done.sequence;
        let in_debt = !destager.debts.is_empty();
        // After the cache device has failed the whole epoch goes: no watermark keeps up with it.
        let keeps_up = !in_debt && !self.latched;
        if destager.epoch_ended && in_debt {
            self.stop_in_debt(index);
        } else if destager.epoch_ended || keeps_up && self.wants_watermark(index) {
            self.flush_origin(index);
        } else {
            self.destagers[index].phase = Phase::Planning;
        }
    }
}
