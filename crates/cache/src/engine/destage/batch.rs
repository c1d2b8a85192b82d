//! One batch: its payload is read into staging, sorted by block, and written to the origin.

use super::{
    ACTIVE_NS, DEPTH_WHILE_ACTIVE, Phase, PlanItem, UNFLUSHED_BLOCKS_MAX, WRITE_BLOCKS_MAX,
};
use crate::config::{Mode, Order};
use crate::counters::ExportCounter;
use crate::engine::api::{Effect, IoError, Notice};
use crate::engine::tables::IoOwner;
use crate::engine::{Engine, blocks_of};
use crate::limits::DESTAGE_DEPTH_MAX;
use crate::units::{BLOCK_BYTES_U64, ExportSlot};

impl Engine {
    /// Brings the batch's payload into staging, sorted by block.
    pub(super) fn read_batch(&mut self, index: usize) {
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

    pub(in crate::engine) fn destage_read_done(
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
    pub(super) fn damaged_block_found(&mut self, index: usize, item: usize) {
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

    pub(super) fn batch_is_read(&mut self, index: usize) {
        if let Some(block) = self.destagers[index].damaged_block.take() {
            return self.stop_damaged(index, Some(block));
        }
        self.destagers[index].next = 0;
        self.destagers[index].phase = Phase::Writing;
    }

    pub(super) fn stop_damaged(&mut self, index: usize, block: Option<u64>) {
        let slot = self.destagers[index].export;
        self.exports.get_mut(slot).damaged = true;
        let block = block.unwrap_or(u64::MAX);
        self.emit(Effect::Notice(Notice::DestageDamaged { export: slot, block }));
        self.release_destager(index);
        self.fail_origin_waiters(slot);
    }

    pub(super) fn destage_depth(&self, slot: ExportSlot) -> usize {
        let export = self.exports.get(slot);
        let active = self.now.monotonic_ns < self.last_request_ns.saturating_add(ACTIVE_NS);
        let urgent = !export.room_waiters.is_empty()
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

    pub(super) fn write_zeroes_batch(&mut self, index: usize) {
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

    pub(in crate::engine) fn destage_write_done(
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
    pub(super) fn batch_is_written(&mut self, index: usize) {
        if let Some(error) = self.destagers[index].error.take() {
            return self.fail_destage(index, error, true);
        }
        let destager = &mut self.destagers[index];
        let export = self.exports.get_mut(destager.export);
        export.origin_written = destager.done.sequence;
        let keeps_up = export.order == Order::Strict;
        if destager.epoch_ended || keeps_up && destager.unflushed_blocks >= UNFLUSHED_BLOCKS_MAX {
            self.flush_origin(index);
        } else {
            destager.phase = Phase::Planning;
        }
    }
}
