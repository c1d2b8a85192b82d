//! Where things are: the arithmetic between log addresses, the device and the log pool.

use crate::limits;
use crate::reserve::Pool;
use crate::units::{BLOCK_BYTES_U64, Buffer};

/// A block of the log, counted from the first block of the first use of the first segment.
///
/// Addresses only grow: segments are used in turn, and use *u* lies on segment *u* modulo their
/// number. So a later address is a later write, whether a block is still in memory, durable or
/// dirty is a comparison, and an address that was reclaimed never comes again. (52 bits: 18
/// exabytes of writes.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogAddress(pub u64);

impl LogAddress {
    /// The address `blocks` further on.
    #[must_use]
    pub const fn plus(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }
}

/// The shape of a formatted device and of the log pool in front of it.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Blocks in a segment, footer included.
    pub segment_blocks: u32,
    /// Blocks of a segment for records.
    pub payload_blocks: u32,
    /// Segments on the device.
    pub segments: u64,
    /// Segments whose image fits the log pool.
    pub pool_segments: u64,
    /// The log pool.
    pub pool: Pool,
}

impl Geometry {
    /// The shape of a device with `segments` segments of `segment_bytes`.
    #[must_use]
    pub fn new(segment_bytes: u64, segments: u64, pool: Pool, pool_segments: u64) -> Self {
        let blocks = |bytes: u64| u32::try_from(bytes / BLOCK_BYTES_U64).expect("a small segment");
        let segment_blocks = blocks(segment_bytes);
        let footer_blocks = blocks(limits::footer_bytes(segment_bytes));
        Self {
            segment_blocks,
            payload_blocks: segment_blocks - footer_blocks,
            segments,
            pool_segments,
            pool,
        }
    }

    /// Bytes of a footer's room.
    #[must_use]
    pub const fn footer_bytes(&self) -> u32 {
        (self.segment_blocks - self.payload_blocks) * limits::BLOCK_BYTES_U32
    }

    /// Blocks of the whole log.
    #[must_use]
    pub const fn log_blocks(&self) -> u64 {
        self.segments * self.segment_blocks as u64
    }

    /// Blocks of the log that dirty data may take, so that a lap always frees space (rule 15):
    /// three quarters, and in a small log no more than surely fits the segments that reclaim does
    /// not keep for itself, one of which is being filled. A segment may be left short by the
    /// largest step.
    #[must_use]
    pub const fn dirty_blocks_max(&self) -> u64 {
        let segments = self.segments - limits::SEGMENTS_RESERVED as u64 - 1;
        let fits = segments * (self.payload_blocks as u64 - limits::STEP_BLOCKS_MAX as u64);
        let share = self.log_blocks() / 4 * 3;
        if fits < share { fits } else { share }
    }

    /// The address of a block of a segment's use.
    #[must_use]
    pub const fn address(&self, segment_use: u64, offset_blocks: u32) -> LogAddress {
        LogAddress(segment_use * self.segment_blocks as u64 + offset_blocks as u64)
    }

    /// Which use of a segment an address belongs to.
    #[must_use]
    pub const fn segment_use(&self, address: LogAddress) -> u64 {
        address.0 / self.segment_blocks as u64
    }

    /// The segment of a use, as an index.
    #[must_use]
    pub const fn segment(&self, segment_use: u64) -> usize {
        (segment_use % self.segments) as usize
    }

    /// The block of the log area that an address lies on, as an index.
    #[must_use]
    pub const fn log_block(&self, address: LogAddress) -> usize {
        (address.0 % self.log_blocks()) as usize
    }

    /// Bytes from the start of the device.
    #[must_use]
    pub const fn device_offset(&self, address: LogAddress) -> u64 {
        limits::SEGMENTS_OFFSET + (address.0 % self.log_blocks()) * BLOCK_BYTES_U64
    }

    /// The frames of the log pool for so many blocks from an address, within one segment.
    #[must_use]
    pub fn frames(&self, address: LogAddress, blocks: u32) -> Buffer {
        let pool_blocks = self.pool_segments * u64::from(self.segment_blocks);
        let index = address.0 % pool_blocks;
        Buffer {
            offset: self.pool.offset + index * BLOCK_BYTES_U64,
            length: blocks * limits::BLOCK_BYTES_U32,
        }
    }

    /// The room for the footer in the image of a segment.
    #[must_use]
    pub fn footer_frames(&self, segment_use: u64) -> Buffer {
        let blocks = self.segment_blocks - self.payload_blocks;
        self.frames(self.address(segment_use, self.payload_blocks), blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_wrap_around_device_and_pool() {
        let pool = Pool { offset: 8192, length: 2 * (4 << 20) };
        let geometry = Geometry::new(4 << 20, 12, pool, 2);
        let address = geometry.address(13, 5);
        assert_eq!(geometry.segment_use(address), 13);
        assert_eq!(geometry.segment(13), 1);
        assert_eq!(geometry.device_offset(address), limits::SEGMENTS_OFFSET + (4 << 20) + 5 * 4096);
        assert_eq!(geometry.frames(address, 3).offset, 8192 + (4 << 20) + 5 * 4096);
        assert_eq!(geometry.footer_bytes(), 64 << 10);
    }
}
