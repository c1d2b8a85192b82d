//! Every limit and its reason, in one place.

use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64};

/// `units::BLOCK_BYTES` for lengths of buffers.
pub const BLOCK_BYTES_U32: u32 = BLOCK_BYTES as u32;

/// Exports of one cache; a bit of a 64-bit set each.
pub const EXPORTS_MAX: usize = 64;

/// The largest step: what is atomic for every reader.
pub const STEP_BYTES_MAX: u32 = 1 << 20;
/// A step of [`STEP_BYTES_MAX`] that does not start on a block boundary touches one block more.
pub const STEP_BLOCKS_MAX: usize = STEP_BYTES_MAX as usize / BLOCK_BYTES + 1;
/// The largest step of zeroes: 512 whole leaves, so that a step is a bounded walk of the index.
pub const ZERO_STEP_BYTES_MAX: u64 = 1 << 30;

/// A record closes once it has this much payload: large enough to share the header's cost among
/// all who wait, small enough that a device write stays short.
pub const RECORD_TARGET_BLOCKS: usize = 64;
/// The most a record can hold: a step of the largest size that joins an almost full record.
pub const RECORD_BLOCKS_MAX: usize = RECORD_TARGET_BLOCKS - 1 + STEP_BLOCKS_MAX;
/// A record that nobody waits for is closed when it is this old.
pub const RECORD_AGE_NS_MAX: u64 = 1_000_000;
/// Record writes in flight at once: enough to keep a fast device busy.
pub const RECORDS_IN_FLIGHT_MAX: usize = 32;
/// One device write carries at most so many blocks of records: neighbours are written together.
/// What a lost write hides is bounded by it (decision 0013).
pub const WRITE_BLOCKS_MAX: u32 = 512;

/// The smallest segment: a record of every size, several times over, and a footer.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// The default segment.
pub const SEGMENT_BYTES_DEFAULT: u64 = 16 << 20;
/// The largest segment; block offsets within a segment and the footer's size stay small.
pub const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Segments that only reclaim and payload-free records may use.
pub const SEGMENTS_RESERVED: u32 = 4;
/// The smallest log: the reserved segments, the open one, and as many again to be of use.
pub const SEGMENTS_MIN: u32 = 12;
/// Segments that may lack a footer at a time; recovery walks these from header to header.
pub const SEGMENTS_WITHOUT_FOOTER_MAX: usize = 4;

/// Segments in the log pool: the open one and one whose records are being written.
pub const LOG_POOL_SEGMENTS_MIN: u64 = 2;

/// Partial writes that wait for a block to merge with; two blocks each, the first and the last.
/// Every export has one of its own.
pub const MERGES_MAX: usize = 256;
/// The longest range fetched at once; a longer miss is several fetches.
pub const FETCH_BYTES: u32 = 256 << 10;
/// Ranges that an export can have claimed for fetching whatever others do: a step of the largest
/// size claims so many at once.
pub const FETCHES_PER_EXPORT: usize = 6;
/// Ranges claimed for fetching beyond those.
pub const FETCHES_SHARED: usize = 64;
/// Claimed ranges of an export that are on their way whatever others do.
pub const FETCH_BUFFERS_PER_EXPORT: usize = 1;
/// Ranges on their way from origins beyond those.
pub const FETCH_BUFFERS_SHARED: usize = 32;
/// Waits for a fetch that an export can have whatever others do: a step that joins every fetch
/// of its export, and starts as many as it can.
pub const WAIT_LINKS_PER_EXPORT: usize = 2 * FETCHES_PER_EXPORT + FETCHES_SHARED;
/// Payload that reclaim re-appends at a time.
pub const RECLAIM_BYTES: u32 = 1 << 20;
/// Staging of all destagers together, before the least for each: every export has a destager of
/// its own, because one whose origin hangs cannot serve another.
pub const DESTAGE_BYTES: u32 = 16 << 20;
/// The largest destage batch: sorted, merged and written to the origin together.
pub const DESTAGE_BATCH_BYTES_MAX: u32 = 4 << 20;
/// The smallest one: an entry that reclaim carried fits.
pub const DESTAGE_BATCH_BYTES_MIN: u32 = RECLAIM_BYTES;
/// Origin writes in flight per destager.
pub const DESTAGE_DEPTH_MAX: usize = 16;
/// Device I/Os in flight, of all kinds.
pub const DEVICE_IOS_MAX: usize = 4096;

/// Losses of durable records that a superblock remembers as accepted: as many as segments can be
/// damaged at one start, since only those without a footer can lose records, twice over.
pub const ACCEPTED_LOSSES_MAX: usize = 2 * SEGMENTS_WITHOUT_FOOTER_MAX;

/// Fixed positions on the device, in bytes.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];
/// The two slots of the export table.
pub const EXPORT_TABLE_OFFSETS: [u64; 2] = [128 << 10, 192 << 10];
/// Size of a slot of the export table.
pub const EXPORT_TABLE_BYTES: usize = 64 << 10;
/// Where the first segment starts.
pub const SEGMENTS_OFFSET: u64 = 1 << 20;

/// Room for the footer at the end of a segment: a 64th of it. A record of one block costs 92
/// bytes there and 8 KiB of log, a full one 44 bytes per 4 KiB.
#[must_use]
pub const fn footer_bytes(segment_bytes: u64) -> u64 {
    (segment_bytes / 64).next_multiple_of(BLOCK_BYTES_U64)
}

const _: () = {
    assert!(SEGMENTS_OFFSET >= EXPORT_TABLE_OFFSETS[1] + EXPORT_TABLE_BYTES as u64);
    assert!(FETCH_BYTES.is_multiple_of(BLOCK_BYTES as u32));
    assert!(WRITE_BLOCKS_MAX as usize > RECORD_BLOCKS_MAX);
    assert!(
        (WRITE_BLOCKS_MAX as u64)
            < (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) / BLOCK_BYTES_U64
    );
    assert!(MERGES_MAX > EXPORTS_MAX);
    assert!(STEP_BYTES_MAX.is_multiple_of(BLOCK_BYTES as u32));
    assert!(
        (RECORD_BLOCKS_MAX as u64 + 1) * BLOCK_BYTES_U64
            <= SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)
    );
    assert!(SEGMENTS_MIN > 2 * SEGMENTS_RESERVED);
};
