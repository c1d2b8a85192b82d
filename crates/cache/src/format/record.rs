//! A record: one header block that says what the payload behind it is.

use super::{Mismatch, checksum, expect_checksum, expect_field, is_zero};
use crate::config::Uuid;
use crate::limits::{EXPORTS_MAX, RECORD_BLOCKS_MAX, RECORD_TARGET_BLOCKS};
use crate::units::BLOCK_BYTES;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"rfre");

/// Bytes of a header for entries and payload checksums.
pub const BODY_BYTES: usize = BLOCK_BYTES - 128 - 2 * 8 * EXPORTS_MAX;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 40;

/// The block in front of a record's payload.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RecordHeader {
    pub(super) checksum: U32,
    pub(super) magic: U32,
    /// The cache that it belongs to.
    pub cache_uuid: Uuid,
    /// The life of the cache that wrote it.
    pub incarnation: U64,
    /// That life's nonce.
    pub nonce: U64,
    /// That life's first sequence (rule 3).
    pub first_sequence: U64,
    /// Which use of which segment: the segment is this modulo the number of segments.
    pub segment_use: U64,
    /// Where the header itself is, in bytes from the start of the device.
    pub device_offset: U64,
    /// The record's number.
    pub sequence: U64,
    /// The highest sequence that a finished flush covered when this was closed (rule 4).
    pub durable: U64,
    /// The oldest sequence that counted when this was closed (rule 26).
    pub tail: U64,
    /// When this was closed, in nanoseconds since the Unix epoch; only shown.
    pub wall_ns: U64,
    /// The exports that begin a new epoch with this record, a bit per slot (rule 14).
    pub epoch_starts: U64,
    /// Blocks of payload behind this header.
    pub payload_blocks: U16,
    /// Entries in the body.
    pub entry_count: U16,
    reserved: [u8; 20],
    /// Per export: the epoch that its entries in this record belong to.
    pub epochs: [U64; EXPORTS_MAX],
    /// Per export: the highest sequence that its origin has (rule 13).
    pub watermarks: [U64; EXPORTS_MAX],
    /// Entries, then one CRC32C per payload block; zero behind.
    pub body: [u8; BODY_BYTES],
}

const _: () = {
    assert!(size_of::<RecordHeader>() == BLOCK_BYTES);
    assert!(std::mem::offset_of!(RecordHeader, epochs) == 128);
    assert!(std::mem::offset_of!(RecordHeader, body) == 1152);
    // A record of the target size, each block its own entry, fits; so does the largest step that
    // joins it, with the three entries that a step has at most (first, middle, last).
    assert!(RECORD_TARGET_BLOCKS * (ENTRY_BYTES + 4) <= BODY_BYTES);
    assert!(body_bytes(3, RECORD_BLOCKS_MAX) <= BODY_BYTES);
};

/// Bytes of a body with so many entries and payload blocks.
#[must_use]
pub const fn body_bytes(entries: usize, payload_blocks: usize) -> usize {
    entries * ENTRY_BYTES + payload_blocks * 4
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Blocks that a client wrote.
    Write,
    /// Blocks that read as zeroes; no payload.
    Zero,
    /// Clean blocks fetched from the origin.
    Fill,
    /// Clean blocks copied forward by reclaim.
    Reappend,
    /// Dirty blocks copied forward by reclaim while their origin was away (rule 28).
    DirtyCopy,
    /// Dirty zeroes carried forward likewise; no payload.
    DirtyZeroCopy,
    /// Blocks whose dirty content was damaged: they cannot be read until they are overwritten
    /// (rule 25); no payload.
    Bad,
}

impl EntryKind {
    /// The kind's number on the device. Numbers 7 and 9 are kept for `forget` and `clone`.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Write => 1,
            Self::Zero => 2,
            Self::Fill => 3,
            Self::Reappend => 4,
            Self::DirtyCopy => 5,
            Self::DirtyZeroCopy => 6,
            Self::Bad => 8,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Write,
            2 => Self::Zero,
            3 => Self::Fill,
            4 => Self::Reappend,
            5 => Self::DirtyCopy,
            6 => Self::DirtyZeroCopy,
            8 => Self::Bad,
            _ => return None,
        })
    }

    /// Whether the record carries a block of payload for each block of the entry.
    #[must_use]
    pub const fn has_payload(self) -> bool {
        !matches!(self, Self::Zero | Self::DirtyZeroCopy | Self::Bad)
    }

    /// Whether the origin lacks the blocks until the watermark passes their version (rule 12).
    #[must_use]
    pub const fn is_client_data(self) -> bool {
        !matches!(self, Self::Fill | Self::Reappend | Self::Bad)
    }

    /// Whether the version is that of an earlier record.
    #[must_use]
    pub const fn is_copy(self) -> bool {
        matches!(self, Self::Reappend | Self::DirtyCopy | Self::DirtyZeroCopy)
    }
}

/// Bits beside an entry's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFlags(pub u8);

impl EntryFlags {
    /// A copy of a version that was not the newest when it was copied: it is destaged in its
    /// epoch but never enters the index, so it cannot come back from the dead (rule 28).
    pub const SUPERSEDED: Self = Self(1);
    /// Zeroes that must stay allocated on the origin.
    pub const NO_HOLE: Self = Self(2);
    /// A part of carried zeroes that is still current: it enters the index, but it is the whole
    /// copy beside it that is destaged.
    pub const INDEX_ONLY: Self = Self(4);
    /// A copy of blocks that were damaged already: their checksums are wrong, so that nobody takes
    /// them for data, and say nothing about whether the record was written whole (rule 4).
    pub const DAMAGED: Self = Self(8);
    /// All that are known.
    const ALL: u8 = 15;

    /// Both sets of bits.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A run of blocks in a record.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Entry {
    /// First block, in 4 KiB units from the start of the layer.
    pub block: U64,
    /// Of a copy: the sequence that wrote the original. Otherwise zero: the record's own.
    pub version: U64,
    /// Of a dirty copy: the epoch of the original. Otherwise zero.
    pub epoch: U64,
    /// The owner of the blocks.
    pub layer: U32,
    /// Number of blocks.
    pub count: U32,
    kind: u8,
    flags: u8,
    /// Of a dirty copy: which entry of its record the original was. Copies of one record are
    /// destaged in this order.
    pub ordinal: U16,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

impl Entry {
    /// An entry.
    #[must_use]
    pub fn new(kind: EntryKind, flags: EntryFlags, layer: u32, block: u64, count: u32) -> Self {
        Self {
            block: U64::new(block),
            version: U64::ZERO,
            epoch: U64::ZERO,
            layer: U32::new(layer),
            count: U32::new(count),
            kind: kind.code(),
            flags: flags.0,
            ordinal: U16::ZERO,
            reserved: [0; 4],
        }
    }

    /// What it is.
    ///
    /// # Panics
    /// On an unknown kind, which a checked header or footer does not have.
    #[must_use]
    pub fn kind(&self) -> EntryKind {
        EntryKind::from_code(self.kind).expect("a kind that was checked")
    }

    /// Its flags.
    #[must_use]
    pub const fn flags(&self) -> EntryFlags {
        EntryFlags(self.flags)
    }

    /// The same entry with other flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: EntryFlags) -> Self {
        self.flags = flags.0;
        self
    }

    /// Blocks of payload that it has.
    #[must_use]
    pub fn payload_blocks(&self) -> u32 {
        if self.kind().has_payload() { self.count.get() } else { 0 }
    }

    /// Checks what a checksum cannot: kinds and lengths that this code understands.
    fn check(&self) -> Result<(), Mismatch> {
        let bounds = |field, found| Err(Mismatch::Bounds { field, found });
        if EntryKind::from_code(self.kind).is_none() {
            return bounds("kind", u64::from(self.kind));
        }
        if self.flags & !EntryFlags::ALL != 0 || self.reserved != [0; 4] {
            return bounds("flags", u64::from(self.flags));
        }
        if self.count.get() == 0 || self.block.get() > u64::MAX / 8192 {
            return bounds("count", u64::from(self.count.get()));
        }
        Ok(())
    }
}

/// What a header must agree with to be believed.
#[derive(Clone, Copy, Debug)]
pub struct HeaderExpectation<'a> {
    /// The cache.
    pub cache_uuid: &'a Uuid,
    /// The cache's secret, which the nonce is derived from.
    pub secret: &'a Uuid,
    /// Where the header was read.
    pub device_offset: u64,
    /// Blocks of payload that still fit the segment behind it.
    pub payload_blocks_max: usize,
}

impl RecordHeader {
    /// Starts a header: magic and identity; the rest is zero.
    pub fn begin(&mut self) {
        self.as_mut_bytes().fill(0);
        self.magic = U32::new(MAGIC);
    }

    /// Sets the checksum: the header is complete.
    pub fn seal(&mut self) {
        self.checksum = U32::new(checksum(&self.as_bytes()[4..]));
    }

    /// The checksum, which the footer repeats.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.checksum.get()
    }

    /// The entries of a checked header.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        let bytes = usize::from(self.entry_count.get()) * ENTRY_BYTES;
        <[Entry]>::ref_from_bytes(&self.body[..bytes]).expect("whole entries")
    }

    /// The payload checksums of a checked header.
    #[must_use]
    pub fn payload_checksums(&self) -> &[U32] {
        let start = usize::from(self.entry_count.get()) * ENTRY_BYTES;
        let end = start + usize::from(self.payload_blocks.get()) * 4;
        <[U32]>::ref_from_bytes(&self.body[start..end]).expect("whole checksums")
    }

    /// Whether a damaged block was a header at this place: at least two of the fields that say so
    /// are right.
    #[must_use]
    pub fn resembles(block: &[u8], cache_uuid: &Uuid, device_offset: u64, nonce: u64) -> bool {
        let Ok(header) = Self::ref_from_bytes(block) else { return false };
        let right = [
            header.magic.get() == MAGIC,
            header.cache_uuid == *cache_uuid,
            header.device_offset.get() == device_offset,
            header.nonce.get() == nonce,
        ];
        right.iter().filter(|&&right| right).count() >= 2
    }

    /// Reads a header block and checks it against where it was found.
    ///
    /// # Errors
    /// When it is damaged, or not a header of this cache at this place.
    pub fn parse<'a>(
        block: &'a [u8],
        expectation: &HeaderExpectation<'_>,
    ) -> Result<&'a Self, Mismatch> {
        let header = Self::ref_from_bytes(block).expect("a block long");
        if header.magic.get() != MAGIC {
            return Err(Mismatch::Magic);
        }
        expect_checksum(block)?;
        if header.cache_uuid != *expectation.cache_uuid {
            return Err(Mismatch::OtherCache);
        }
        expect_field("device offset", header.device_offset.get(), expectation.device_offset)?;
        let incarnation = header.incarnation.get();
        let nonce = super::incarnation_nonce(expectation.secret, incarnation);
        expect_field("nonce", header.nonce.get(), nonce)?;
        let (entries, blocks) =
            (usize::from(header.entry_count.get()), usize::from(header.payload_blocks.get()));
        if blocks > expectation.payload_blocks_max {
            return Err(Mismatch::Bounds { field: "payload blocks", found: blocks as u64 });
        }
        check_body(&header.body, entries, blocks)?;
        let used = body_bytes(entries, blocks);
        if !is_zero(&header.reserved) || !is_zero(&header.body[used..]) {
            return Err(Mismatch::Bounds { field: "reserved", found: 1 });
        }
        Ok(header)
    }
}

/// Checks the lengths and kinds of a body before anything in it is used.
pub(super) fn check_body(body: &[u8], entries: usize, blocks: usize) -> Result<(), Mismatch> {
    if body_bytes(entries, blocks) > body.len() {
        return Err(Mismatch::Bounds { field: "entries", found: entries as u64 });
    }
    let list = <[Entry]>::ref_from_bytes(&body[..entries * ENTRY_BYTES]).expect("whole entries");
    let mut payload = 0;
    for entry in list {
        entry.check()?;
        payload += u64::from(entry.payload_blocks());
    }
    expect_field("payload blocks", blocks as u64, payload)
}
