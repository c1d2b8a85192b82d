//! The reserve: all memory of the I/O path, one mapping, divided into pools once at start.

use crate::limits;
use crate::quota::Quota;
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64, Buffer};
use std::ptr::NonNull;

/// The memory itself. Frames are shared with the kernel (device and socket I/O) while an I/O is
/// in flight; the engine's state says who owns which range at any moment.
#[derive(Debug)]
pub struct Reserve {
    base: NonNull<u8>,
    length: u64,
    /// Memory of our own, when nobody mapped any for us (tests and the simulator).
    owned: Option<std::alloc::Layout>,
}

// SAFETY: the reserve is plain memory without thread affinity; it is moved to the ring thread
// once, before the ring starts, and only that thread reads or writes it afterwards.
unsafe impl Send for Reserve {}

impl Reserve {
    /// Takes over a mapping.
    ///
    /// # Safety
    /// `base` points to `length` readable and writable bytes, aligned to 4096, that outlive the
    /// reserve, and that nobody touches except through this reserve and through I/O on buffers
    /// that the engine (or the owner of the receive pool) handed out.
    #[must_use]
    pub unsafe fn from_mapping(base: NonNull<u8>, length: u64) -> Self {
        assert!((base.as_ptr() as usize).is_multiple_of(BLOCK_BYTES), "an aligned mapping");
        Self { base, length, owned: None }
    }

    /// Allocates zeroed memory on the heap.
    #[must_use]
    pub fn allocate(length: u64) -> Self {
        let layout = std::alloc::Layout::from_size_align(
            usize::try_from(length).expect("a reserve fits the address space"),
            BLOCK_BYTES,
        )
        .expect("a valid layout");
        // SAFETY: the layout has a non-zero size: a plan is never empty.
        let pointer = unsafe { std::alloc::alloc_zeroed(layout) };
        let base = NonNull::new(pointer).expect("memory for the reserve");
        Self { base, length, owned: Some(layout) }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// The address of a buffer, for an I/O.
    #[must_use]
    pub fn address(&self, buffer: Buffer) -> NonNull<u8> {
        self.check(buffer);
        // SAFETY: the offset lies inside the mapping, as just checked.
        unsafe { self.base.add(buffer.offset as usize) }
    }

    /// The bytes of a buffer.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> &[u8] {
        // SAFETY: inside the mapping, and initialised (mappings and `alloc_zeroed` start as
        // zeroes). No I/O into this range is in flight: whoever owns a buffer reads it only
        // between I/Os, which is what the engine's and the ring's states keep.
        unsafe { std::slice::from_raw_parts(self.address(buffer).as_ptr(), buffer.length as usize) }
    }

    /// The bytes of a buffer, to change them.
    #[must_use]
    pub fn bytes_mut(&mut self, buffer: Buffer) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes any other slice of the reserve.
        unsafe {
            std::slice::from_raw_parts_mut(self.address(buffer).as_ptr(), buffer.length as usize)
        }
    }

    /// Copies between two buffers of the same length that do not overlap.
    ///
    /// # Panics
    /// When they differ in length or overlap.
    pub fn copy(&mut self, from: Buffer, to: Buffer) {
        assert_eq!(from.length, to.length, "a copy keeps its length");
        let length = u64::from(from.length);
        assert!(
            from.offset + length <= to.offset || to.offset + length <= from.offset,
            "the buffers of a copy overlap"
        );
        let source = self.address(from);
        let target = self.address(to);
        // SAFETY: both ranges lie inside the mapping and do not overlap, as just checked.
        unsafe { source.copy_to_nonoverlapping(target, from.length as usize) };
    }

    fn check(&self, buffer: Buffer) {
        assert!(
            buffer.offset + u64::from(buffer.length) <= self.length,
            "buffer {buffer:?} outside a reserve of {} bytes",
            self.length
        );
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if let Some(layout) = self.owned {
            // SAFETY: allocated by `allocate` with this very layout.
            unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// A pool's place in the reserve, in bytes; both are multiples of 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// First byte.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

impl Pool {
    /// The `index`th of the equal pieces of `length` bytes that the pool is made of.
    #[must_use]
    pub fn piece(self, index: usize, length: u32) -> Buffer {
        let offset = index as u64 * u64::from(length);
        assert!(offset + u64::from(length) <= self.length, "a piece outside its pool");
        Buffer { offset: self.offset + offset, length }
    }
}

/// How the reserve is divided. Each pool waits only for pools further down, and the last waits
/// for hardware alone, so no cycle of waiting can form:
/// `receive → merge → fetch → log → reclaim → destage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservePlan {
    /// The windows of the connections. Belongs to the ring.
    pub receive: Pool,
    /// Single blocks that a partial write is merged in.
    pub merge: Pool,
    /// Ranges on their way from an origin.
    pub fetch: Pool,
    /// Missed blocks that wait for a second reader. Nothing waits for it: it gives up its oldest.
    pub memory_tier: Pool,
    /// The images of the newest segments: a window onto the cache device.
    pub log: Pool,
    /// Summary and payload of the segment that is being reclaimed.
    pub reclaim: Pool,
    /// Summaries and staging of the destagers.
    pub destage: Pool,
    /// A superblock on its way to the device.
    pub superblock: Pool,
    /// Segments whose image fits the log pool.
    pub log_segments: u32,
    /// Ranges that can be on their way from origins at once.
    pub fetch_buffers: u32,
    /// Exports that can be destaged at once: all of them.
    pub destagers: u32,
    /// Payload of one destage batch.
    pub destage_batch_bytes: u32,
}

/// What a reserve is divided for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReserveShape {
    /// All memory.
    pub reserve_bytes: u64,
    /// As much of it belongs to the connections.
    pub receive_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Exports that are served.
    pub exports: usize,
    /// As much of it is the memory tier, as far as the log pool keeps the least that it needs.
    pub memory_tier_bytes: u64,
}

/// The reserve is too small for what it has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a reserve of {given_bytes} bytes is too small for these exports and segments of this size: \
     start with --reserve {}MiB or more", needed_bytes.div_ceil(1 << 20)
)]
pub struct ReserveTooSmall {
    /// What was given.
    pub given_bytes: u64,
    /// What is needed.
    pub needed_bytes: u64,
}

impl ReservePlan {
    /// Divides a reserve: fixed quotas first, and what remains is the log pool.
    ///
    /// # Errors
    /// When less than two segments would remain for the log pool.
    pub fn new(shape: &ReserveShape) -> Result<Self, ReserveTooSmall> {
        let segment_bytes = shape.segment_bytes;
        let summary_bytes = limits::footer_bytes(segment_bytes);
        let exports = shape.exports.max(1);
        let fetch_buffers =
            Quota::slots(limits::FETCH_BUFFERS_PER_EXPORT, limits::FETCH_BUFFERS_SHARED, exports)
                as u64;
        let destagers = exports as u64;
        let batch_bytes = (limits::DESTAGE_BYTES / exports as u32)
            .clamp(limits::DESTAGE_BATCH_BYTES_MIN, limits::DESTAGE_BATCH_BYTES_MAX);
        let batch_bytes = batch_bytes / limits::BLOCK_BYTES_U32 * limits::BLOCK_BYTES_U32;
        let mut end = 0;
        let mut pool = |length: u64| {
            let length = length.next_multiple_of(BLOCK_BYTES_U64);
            let offset = end;
            end += length;
            Pool { offset, length }
        };
        let receive = pool(shape.receive_bytes);
        let merge = pool(limits::MERGES_MAX as u64 * 2 * BLOCK_BYTES_U64);
        let fetch = pool(fetch_buffers * u64::from(limits::FETCH_BYTES));
        let reclaim = pool(summary_bytes + u64::from(limits::RECLAIM_BYTES));
        let destage = pool(destagers * (summary_bytes + u64::from(batch_bytes)));
        let superblock = pool(BLOCK_BYTES_U64);
        let least = limits::LOG_POOL_SEGMENTS_MIN * segment_bytes;
        let spare = shape.reserve_bytes.saturating_sub(superblock.offset + BLOCK_BYTES_U64 + least);
        let tier = shape.memory_tier_bytes.min(spare) / BLOCK_BYTES_U64 * BLOCK_BYTES_U64;
        let memory_tier = pool(tier);
        let fixed = end;
        let log_segments = shape.reserve_bytes.saturating_sub(fixed) / segment_bytes;
        if log_segments < limits::LOG_POOL_SEGMENTS_MIN {
            return Err(ReserveTooSmall {
                given_bytes: shape.reserve_bytes,
                needed_bytes: fixed + limits::LOG_POOL_SEGMENTS_MIN * segment_bytes,
            });
        }
        let log = Pool { offset: fixed, length: log_segments * segment_bytes };
        let number = |value: u64| u32::try_from(value).expect("a reserve of less than 2^32 pieces");
        Ok(Self {
            receive,
            merge,
            fetch,
            memory_tier,
            log,
            reclaim,
            destage,
            superblock,
            log_segments: number(log_segments),
            fetch_buffers: number(fetch_buffers),
            destagers: number(destagers),
            destage_batch_bytes: batch_bytes,
        })
    }

    /// The end of the last pool: how much memory to map.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.log.offset + self.log.length
    }
}
