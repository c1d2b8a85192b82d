//! The last resort of a full log: tail and watermarks go to a superblock.
//!
//! Normally the next record carries them. But a cache that is restarted again and again before
//! reclaim got anywhere can run out of segments for that record: each life needs a new one
//! (rule 3). Then the one of the two superblocks that is older is written and flushed instead, so
//! that destage and reclaim, which wait for nothing else, always make progress (decision 0006).

use super::Engine;
use super::api::{Effect, IoError};
use super::tables::IoOwner;
use crate::counters::Counter;
use crate::format::Superblock;
use crate::limits::{BLOCK_BYTES_U32, EXPORTS_MAX, SUPERBLOCK_OFFSETS};
use crate::units::Sequence;
use zerocopy::little_endian::U64;

/// The superblock of this life, and whether one is on its way to the device.
pub struct SuperblockKeeper {
    superblock: Box<Superblock>,
    in_flight: bool,
}

impl SuperblockKeeper {
    /// From the superblock that recovery wrote.
    pub fn new(superblock: Superblock) -> Self {
        Self { superblock: Box::new(superblock), in_flight: false }
    }

    /// Whether one is on its way to the device.
    pub const fn is_in_flight(&self) -> bool {
        self.in_flight
    }
}

impl Engine {
    /// Writes a superblock if a record is wanted and cannot be had.
    pub(super) fn run_superblock(&mut self) {
        if self.superblock.in_flight || !self.log.is_starved() || self.ios.free() == 0 {
            return;
        }
        let superblock = &mut self.superblock.superblock;
        let revision = superblock.revision.get() + 1;
        superblock.revision = U64::new(revision);
        superblock.tail = U64::new(self.log.tail().0);
        superblock.durable = U64::new(self.log.durable().0);
        superblock.watermarks = self.exports.watermarks().map(U64::new);
        let frame = self.plan.superblock.piece(0, BLOCK_BYTES_U32);
        self.reserve.bytes_mut(frame).copy_from_slice(superblock.seal());
        self.superblock.in_flight = true;
        let offset = SUPERBLOCK_OFFSETS[revision as usize % SUPERBLOCK_OFFSETS.len()];
        let io = self.ios.start(IoOwner::SuperblockWrite);
        self.device_write(io, offset, frame);
    }

    pub(super) fn superblock_written(&mut self, result: Result<(), IoError>) {
        if let Err(error) = result {
            return self.latch(error);
        }
        let io = self.ios.start(IoOwner::SuperblockFlush);
        self.counters.add(Counter::DeviceFlushes, 1);
        self.emit(Effect::DeviceFlush { io });
    }

    pub(super) fn superblock_flushed(&mut self, result: Result<(), IoError>) {
        if let Err(error) = result {
            return self.latch(error);
        }
        self.superblock.in_flight = false;
        let superblock = &self.superblock.superblock;
        let watermarks: [u64; EXPORTS_MAX] = superblock.watermarks.map(U64::get);
        let tail = Sequence(superblock.tail.get());
        self.log.tail_persisted(tail);
        self.exports.watermarks_persisted(&watermarks);
    }
}
