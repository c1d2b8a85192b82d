//! What the log area of a device holds: every segment's records, read without changing anything.
//!
//! Used by recovery and by whoever only looks. A segment with a footer is known from it; the few
//! without one are walked from header to header, never searching payload (rule 2).

use crate::error::OpenError;
use crate::format::{
    Footer, FooterBuilder, HeaderExpectation, RecordHeader, SUMMARY_OFFSET, SummaryReader,
    Superblock, checksum,
};
use crate::geometry::Geometry;
use crate::limits::EXPORTS_MAX;
use crate::storage::{ReadPiece, Storage, StorageError};
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::collections::BTreeMap;
use zerocopy::little_endian::U64;

/// Segments whose first blocks are read together.
const BATCH_SEGMENTS: u64 = 64;

/// One segment with records.
#[derive(Debug)]
pub struct FoundSegment {
    /// Its use.
    pub segment_use: u64,
    /// The life of the cache that wrote it.
    pub incarnation: u64,
    /// That life's first sequence.
    pub first_sequence: u64,
    /// Sequence of its first record.
    pub sequence_first: u64,
    /// Sequence of its last record.
    pub sequence_last: u64,
    /// Per export: its epoch in the first record.
    pub epochs: [u64; EXPORTS_MAX],
    /// Records in short, if the segment was walked; else its footer says where to read them.
    pub walked: Option<WalkedSegment>,
    footer: Option<Footer>,
}

/// A segment without a footer.
#[derive(Debug)]
pub struct WalkedSegment {
    /// Its records, as a footer would have them.
    pub summary: Vec<u8>,
    /// All its blocks, to verify payload with.
    pub image: Vec<u8>,
}

/// What the newest headers say of the whole log.
#[derive(Clone, Debug)]
pub struct LogFacts {
    /// The oldest sequence that counts (rule 2: the largest found).
    pub tail: u64,
    /// The highest sequence that is known to have been durable (rule 4).
    pub durable: u64,
    /// Per export: the highest sequence that its origin has (rule 13).
    pub watermarks: [u64; EXPORTS_MAX],
    /// First sequences by incarnation (rule 3).
    first_sequences: BTreeMap<u64, u64>,
}

impl LogFacts {
    /// A record is void from here on if a later incarnation started below it (rule 3).
    pub fn void_from(&self, incarnation: u64) -> u64 {
        self.first_sequences
            .range(incarnation + 1..)
            .map(|(_, &first)| first)
            .min()
            .unwrap_or(u64::MAX)
    }

    fn note(&mut self, tail: u64, durable: u64, watermarks: &[U64; EXPORTS_MAX]) {
        self.tail = self.tail.max(tail);
        self.durable = self.durable.max(durable);
        for (known, found) in self.watermarks.iter_mut().zip(watermarks) {
            *known = (*known).max(found.get());
        }
    }
}

/// Reads segments.
pub struct Scanner<'a> {
    /// The device.
    pub storage: &'a mut dyn Storage,
    /// Which cache it should hold.
    pub superblock: &'a Superblock,
    /// Its shape.
    pub geometry: Geometry,
}

impl Scanner<'_> {
    /// Finds every segment with records, oldest first, and what the newest headers say.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn scan(&mut self) -> Result<(Vec<FoundSegment>, LogFacts), OpenError> {
        let superblock = self.superblock;
        let mut facts = LogFacts {
            tail: superblock.tail.get(),
            durable: 0,
            watermarks: superblock.watermarks.map(U64::get),
            first_sequences: BTreeMap::new(),
        };
        facts.first_sequences.insert(superblock.incarnation.get(), superblock.first_sequence.get());
        let mut found = Vec::new();
        let segments = self.geometry.segments;
        for start in (0..segments).step_by(BATCH_SEGMENTS as usize) {
            let end = segments.min(start + BATCH_SEGMENTS);
            for (segment, heads) in (start..end).zip(self.read_heads(start, end)?) {
                found.extend(self.identify(segment, &heads, &mut facts)?);
            }
        }
        for segment in &found {
            facts.first_sequences.entry(segment.incarnation).or_insert(segment.first_sequence);
        }
        found.sort_by_key(|segment| (segment.sequence_first, segment.incarnation));
        Ok((found, facts))
    }

    /// The first block and the first block of the footer, of some segments.
    fn read_heads(&mut self, start: u64, end: u64) -> Result<Vec<[Vec<u8>; 2]>, StorageError> {
        let geometry = self.geometry;
        let mut heads: Vec<[Vec<u8>; 2]> =
            (start..end).map(|_| [vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]]).collect();
        let mut pieces = Vec::new();
        for (segment, [header, footer]) in (start..end).zip(&mut heads) {
            let offset = |blocks| geometry.device_offset(geometry.address(segment, blocks));
            pieces.push(ReadPiece { offset: offset(0), into: header });
            pieces.push(ReadPiece { offset: offset(geometry.payload_blocks), into: footer });
        }
        self.storage.read(&mut pieces)?;
        Ok(heads)
    }

    fn parse_header<'b>(
        &self,
        segment: u64,
        offset: u32,
        block: &'b [u8],
    ) -> Option<&'b RecordHeader> {
        let geometry = self.geometry;
        let expectation = HeaderExpectation {
            cache_uuid: &self.superblock.cache_uuid,
            secret: &self.superblock.secret,
            incarnation_max: self.superblock.incarnation.get(),
            device_offset: geometry.device_offset(geometry.address(segment, offset)),
            payload_blocks_max: (geometry.payload_blocks - offset - 1) as usize,
        };
        let header = RecordHeader::parse(block, &expectation).ok()?;
        (header.segment_use.get() % geometry.segments == segment).then_some(header)
    }

    /// Decides what a segment holds by its two heads. The newer of the two counts: the other may
    /// be left over from an earlier use.
    fn identify(
        &mut self,
        segment: u64,
        [header, footer]: &[Vec<u8>; 2],
        facts: &mut LogFacts,
    ) -> Result<Option<FoundSegment>, StorageError> {
        let header = self.parse_header(segment, 0, header);
        let footer = Footer::parse(
            footer,
            &self.superblock.cache_uuid,
            &self.superblock.secret,
            self.superblock.incarnation.get(),
            segment,
            self.geometry.segments,
            self.geometry.footer_bytes() as usize,
        )
        .ok();
        let age_of_header = header.map(|h| (h.incarnation.get(), h.segment_use.get()));
        let age_of_footer = footer.as_ref().map(|f| (f.incarnation.get(), f.segment_use.get()));
        if let Some(footer) = &footer {
            facts.note(footer.tail.get(), footer.durable.get(), &footer.watermarks);
        }
        if age_of_header > age_of_footer {
            let header = header.expect("it has an age").clone();
            return self.walk(segment, &header, facts).map(Some);
        }
        let Some(footer) = footer else { return Ok(None) };
        facts.durable = facts.durable.max(footer.sequence_last.get());
        Ok(Some(FoundSegment {
            segment_use: footer.segment_use.get(),
            incarnation: footer.incarnation.get(),
            first_sequence: footer.first_sequence.get(),
            sequence_first: footer.sequence_first.get(),
            sequence_last: footer.sequence_last.get(),
            epochs: footer.epochs.map(U64::get),
            walked: None,
            footer: Some(footer),
        }))
    }

    /// Walks a segment from header to header.
    fn walk(
        &mut self,
        segment: u64,
        first: &RecordHeader,
        facts: &mut LogFacts,
    ) -> Result<FoundSegment, StorageError> {
        let geometry = self.geometry;
        let mut image = vec![0; geometry.payload_blocks as usize * BLOCK_BYTES];
        let offset = geometry.device_offset(geometry.address(segment, 0));
        self.storage.read_at(offset, &mut image)?;
        let mut room = vec![0; geometry.footer_bytes() as usize];
        let (mut at, mut end, mut next) = (0, SUMMARY_OFFSET, first.sequence.get());
        while at < geometry.payload_blocks {
            let start = at as usize * BLOCK_BYTES;
            let block = &image[start..start + BLOCK_BYTES];
            let Some(header) = self.parse_header(segment, at, block) else { break };
            let bytes = FooterBuilder::record_bytes(
                header.entry_count.get().into(),
                header.payload_blocks.get().into(),
            );
            let same_life = header.incarnation == first.incarnation
                && header.segment_use == first.segment_use
                && header.sequence.get() == next;
            if !same_life || end + bytes > room.len() {
                break;
            }
            facts.note(header.tail.get(), header.durable.get(), &header.watermarks);
            end = FooterBuilder::append(&mut room, end, header, at);
            at += 1 + u32::from(header.payload_blocks.get());
            next += 1;
        }
        let summary = room[SUMMARY_OFFSET..end].to_vec();
        Ok(FoundSegment {
            segment_use: first.segment_use.get(),
            incarnation: first.incarnation.get(),
            first_sequence: first.first_sequence.get(),
            sequence_first: first.sequence.get(),
            sequence_last: next - 1,
            epochs: first.epochs.map(U64::get),
            walked: Some(WalkedSegment { summary, image }),
            footer: None,
        })
    }

    /// The records of a found segment in short. A footer whose summary is damaged (torn, when it
    /// was being written) is made up for by walking; the segment counts as one without a footer.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn summary(&mut self, found: &mut FoundSegment) -> Result<Vec<u8>, StorageError> {
        if let Some(walked) = &found.walked {
            return Ok(walked.summary.clone());
        }
        let geometry = self.geometry;
        let footer = found.footer.as_ref().expect("walked or with a footer");
        let length = footer.summary_bytes.get() as usize;
        let mut bytes = vec![0; (SUMMARY_OFFSET + length).next_multiple_of(BLOCK_BYTES)];
        let segment = found.segment_use % geometry.segments;
        let address = geometry.address(segment, geometry.payload_blocks);
        self.storage.read_at(geometry.device_offset(address), &mut bytes)?;
        let summary = bytes[SUMMARY_OFFSET..SUMMARY_OFFSET + length].to_vec();
        if footer.check_summary(&summary, geometry.payload_blocks).is_ok() {
            return Ok(summary);
        }
        found.walked = self.walk_instead(segment, found)?;
        Ok(found.walked.as_ref().map(|walked| walked.summary.clone()).unwrap_or_default())
    }

    fn walk_instead(
        &mut self,
        segment: u64,
        found: &FoundSegment,
    ) -> Result<Option<WalkedSegment>, StorageError> {
        let mut block = vec![0; BLOCK_BYTES];
        let offset = self.geometry.device_offset(self.geometry.address(segment, 0));
        self.storage.read_at(offset, &mut block)?;
        let Some(first) = self.parse_header(segment, 0, &block).cloned() else {
            return Ok(None);
        };
        let mut ignored = LogFacts {
            tail: 0,
            durable: 0,
            watermarks: [0; EXPORTS_MAX],
            first_sequences: BTreeMap::new(),
        };
        let walked = self.walk(segment, &first, &mut ignored)?;
        let is_the_same =
            walked.segment_use == found.segment_use && walked.incarnation == found.incarnation;
        Ok(walked.walked.filter(|_| is_the_same))
    }
}

impl WalkedSegment {
    /// Whether the payload of the record that is `offset_blocks` in is what its header says.
    #[must_use]
    pub fn payload_is_intact(
        &self,
        offset_blocks: u32,
        checksums: &[zerocopy::little_endian::U32],
    ) -> bool {
        let start = (u64::from(offset_blocks) + 1) * BLOCK_BYTES_U64;
        let payload = &self.image[start as usize..];
        checksums
            .iter()
            .zip(payload.chunks_exact(BLOCK_BYTES))
            .all(|(sum, block)| sum.get() == checksum(block))
    }

    /// Cuts the summary behind a sequence.
    pub fn truncate(&mut self, sequence_last: u64) {
        let mut reader = SummaryReader::new(&self.summary);
        let mut end = 0;
        while let Some((record, _, _)) = reader.next() {
            if record.sequence.get() > sequence_last {
                break;
            }
            end = reader.position();
        }
        self.summary.truncate(end);
    }
}
