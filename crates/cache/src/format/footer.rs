//! The footer of a segment: all its headers in short, so that a restart need not visit each.
//!
//! The same bytes, without the footer's own header, are the *summary* of a segment while its image
//! is in the log pool: destage and reclaim read what a segment holds from there.

use super::record::{ENTRY_BYTES, Entry, RecordHeader, body_bytes, check_body};
use super::{Mismatch, checksum, expect_checksum, expect_field, incarnation_nonce, is_zero};
use crate::config::Uuid;
use crate::limits::EXPORTS_MAX;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: u32 = u32::from_le_bytes(*b"rffo");
/// Where the summary starts in the footer's room: behind the footer's own header.
pub const SUMMARY_OFFSET: usize = size_of::<Footer>();

/// The start of a footer.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Footer {
    checksum: U32,
    magic: U32,
    /// The cache that it belongs to.
    pub cache_uuid: Uuid,
    /// The life of the cache that wrote the segment's records.
    pub incarnation: U64,
    nonce: U64,
    /// That life's first sequence (rule 3).
    pub first_sequence: U64,
    /// Which use of which segment.
    pub segment_use: U64,
    /// Sequence of the segment's first record.
    pub sequence_first: U64,
    /// Sequence of the segment's last record.
    pub sequence_last: U64,
    /// The highest durable sequence known when the footer was written.
    pub durable: U64,
    /// The tail known when the footer was written.
    pub tail: U64,
    /// Bytes of summary.
    pub summary_bytes: U32,
    summary_checksum: U32,
    reserved: [u8; 32],
    /// Per export: its epoch in the segment's first record.
    pub epochs: [U64; EXPORTS_MAX],
    /// Per export: the highest sequence that its origin has.
    pub watermarks: [U64; EXPORTS_MAX],
}

const _: () = {
    assert!(size_of::<Footer>() == 1152);
    assert!(std::mem::offset_of!(Footer, epochs) == 128);
};

/// One record in a summary; its entries and payload checksums follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SummaryRecord {
    /// The record's number.
    pub sequence: U64,
    /// The exports that begin a new epoch with it.
    pub epoch_starts: U64,
    /// When it was closed, in nanoseconds since the Unix epoch.
    pub wall_ns: U64,
    /// Where its header is, in blocks from the start of the segment.
    pub offset_blocks: U32,
    /// Blocks of payload.
    pub payload_blocks: U16,
    /// Entries.
    pub entry_count: U16,
    /// The header's own checksum.
    pub header_checksum: U32,
    reserved: U32,
}

const _: () = assert!(size_of::<SummaryRecord>() == 40);

impl SummaryRecord {
    /// Counts the epochs that begin with it, per export.
    pub fn begin_epochs(&self, epochs: &mut [u64; EXPORTS_MAX]) {
        for (slot, epoch) in epochs.iter_mut().enumerate() {
            *epoch += self.epoch_starts.get() >> slot & 1;
        }
    }
}

/// Bytes that a record takes in a summary.
#[must_use]
pub const fn summary_bytes(entries: usize, payload_blocks: usize) -> usize {
    size_of::<SummaryRecord>() + body_bytes(entries, payload_blocks)
}

/// Writes summaries and footers.
#[derive(Debug)]
pub struct FooterBuilder;

impl FooterBuilder {
    /// Bytes that a record with so many entries and blocks adds to a summary.
    #[must_use]
    pub const fn record_bytes(entries: usize, payload_blocks: usize) -> usize {
        summary_bytes(entries, payload_blocks)
    }

    /// Appends a record to the summary in `room` at `at` and returns the new end.
    pub fn append(room: &mut [u8], at: usize, header: &RecordHeader, offset_blocks: u32) -> usize {
        let record = SummaryRecord {
            sequence: header.sequence,
            epoch_starts: header.epoch_starts,
            wall_ns: header.wall_ns,
            offset_blocks: U32::new(offset_blocks),
            payload_blocks: header.payload_blocks,
            entry_count: header.entry_count,
            header_checksum: U32::new(header.checksum()),
            reserved: U32::ZERO,
        };
        let body = body_bytes(
            usize::from(header.entry_count.get()),
            usize::from(header.payload_blocks.get()),
        );
        let body_at = at + size_of::<SummaryRecord>();
        room[at..body_at].copy_from_slice(record.as_bytes());
        room[body_at..body_at + body].copy_from_slice(&header.body[..body]);
        body_at + body
    }

    /// Completes the footer in `room`: `fields` has everything but magic, nonce and checksums;
    /// the summary ends at `end`. Returns the bytes to write, padded to whole blocks.
    pub fn seal(room: &mut [u8], end: usize, mut fields: Footer, secret: &Uuid) -> usize {
        let padded = end.next_multiple_of(crate::units::BLOCK_BYTES);
        room[end..padded].fill(0);
        fields.magic = U32::new(MAGIC);
        fields.nonce = U64::new(incarnation_nonce(secret, fields.incarnation.get()));
        let summary = &room[SUMMARY_OFFSET..end];
        fields.summary_bytes = U32::new(u32::try_from(summary.len()).expect("within a segment"));
        fields.summary_checksum = U32::new(checksum(summary));
        fields.checksum = U32::new(checksum(&fields.as_bytes()[4..]));
        room[..SUMMARY_OFFSET].copy_from_slice(fields.as_bytes());
        padded
    }
}

impl Footer {
    /// Reads the start of a footer and checks it against where it was found.
    ///
    /// # Errors
    /// When it is damaged, or not a footer of this cache for this segment.
    pub fn parse(
        room: &[u8],
        cache_uuid: &Uuid,
        secret: &Uuid,
        segment: u64,
        segments: u64,
        room_bytes: usize,
    ) -> Result<Self, Mismatch> {
        let bytes = &room[..SUMMARY_OFFSET];
        let footer = Self::read_from_bytes(bytes).expect("long enough");
        if footer.magic.get() != MAGIC {
            return Err(Mismatch::Magic);
        }
        expect_checksum(bytes)?;
        if footer.cache_uuid != *cache_uuid {
            return Err(Mismatch::OtherCache);
        }
        if !is_zero(&footer.reserved) {
            return Err(Mismatch::Bounds { field: "reserved", found: 1 });
        }
        let incarnation = footer.incarnation.get();
        expect_field("nonce", footer.nonce.get(), incarnation_nonce(secret, incarnation))?;
        expect_field("segment", footer.segment_use.get() % segments, segment)?;
        let length = footer.summary_bytes.get() as usize;
        if length > room_bytes - SUMMARY_OFFSET {
            return Err(Mismatch::Bounds { field: "summary bytes", found: length as u64 });
        }
        Ok(footer)
    }

    /// Whether damaged bytes were a footer of this use, as far as a few wrong bits let one tell.
    #[must_use]
    pub fn resembles(room: &[u8], cache_uuid: &Uuid, segment_use: u64) -> bool {
        let Ok((footer, _)) = Self::ref_from_prefix(room) else { return false };
        let is_this_use = (footer.segment_use.get() ^ segment_use).count_ones() <= 1;
        let is_footer = footer.magic.get() == MAGIC || footer.cache_uuid == *cache_uuid;
        is_this_use && is_footer && expect_checksum(&room[..SUMMARY_OFFSET]).is_err()
    }

    /// Bytes of summary that the header in `room` names, if there is room for so many.
    #[must_use]
    pub fn summary_length(room: &[u8]) -> Option<usize> {
        let length = Self::ref_from_prefix(room).ok()?.0.summary_bytes.get() as usize;
        (SUMMARY_OFFSET + length <= room.len()).then_some(length)
    }

    /// Checks the summary that belongs to this footer: checksum, order and bounds.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn check_summary(&self, summary: &[u8], segment_blocks: u32) -> Result<(), Mismatch> {
        let expected = checksum(summary);
        let found = self.summary_checksum.get();
        if found != expected {
            return Err(Mismatch::Checksum { found, expected });
        }
        let mut reader = SummaryReader::new(summary);
        let mut sequence = self.sequence_first.get();
        let mut offset = 0;
        while let Some((record, body)) = reader.next_unchecked() {
            let blocks = record.payload_blocks.get();
            check_body(body, usize::from(record.entry_count.get()), usize::from(blocks))?;
            expect_field("sequence", record.sequence.get(), sequence)?;
            expect_field("reserved", record.reserved.get().into(), 0)?;
            expect_field("offset", u64::from(record.offset_blocks.get()), u64::from(offset))?;
            offset += 1 + u32::from(blocks);
            if offset > segment_blocks {
                return Err(Mismatch::Bounds { field: "offset", found: u64::from(offset) });
            }
            sequence += 1;
        }
        expect_field("summary bytes", reader.at as u64, summary.len() as u64)?;
        expect_field("last sequence", self.sequence_last.get() + 1, sequence)
    }
}

/// Walks the records of a checked summary.
#[derive(Clone, Debug)]
pub struct SummaryReader<'a> {
    summary: &'a [u8],
    at: usize,
}

impl<'a> SummaryReader<'a> {
    /// From the first record.
    #[must_use]
    pub const fn new(summary: &'a [u8]) -> Self {
        Self { summary, at: 0 }
    }

    /// From the record that starts `at` bytes in.
    #[must_use]
    pub const fn at(summary: &'a [u8], at: usize) -> Self {
        Self { summary, at }
    }

    /// Where the next record starts.
    #[must_use]
    pub const fn position(&self) -> usize {
        self.at
    }

    /// The next record, its entries and its payload checksums.
    #[allow(clippy::should_implement_trait, reason = "a lending reader, not an iterator")]
    pub fn next(&mut self) -> Option<(&'a SummaryRecord, &'a [Entry], &'a [U32])> {
        let (record, body) = self.next_unchecked()?;
        let split = usize::from(record.entry_count.get()) * ENTRY_BYTES;
        let entries = <[Entry]>::ref_from_bytes(&body[..split]).expect("whole entries");
        let checksums = <[U32]>::ref_from_bytes(&body[split..]).expect("whole checksums");
        Some((record, entries, checksums))
    }

    fn next_unchecked(&mut self) -> Option<(&'a SummaryRecord, &'a [u8])> {
        let rest = self.summary.get(self.at..)?;
        let (record, rest) = SummaryRecord::ref_from_prefix(rest).ok()?;
        let body = rest.get(
            ..body_bytes(
                usize::from(record.entry_count.get()),
                usize::from(record.payload_blocks.get()),
            ),
        )?;
        self.at += size_of::<SummaryRecord>() + body.len();
        Some((record, body))
    }
}
