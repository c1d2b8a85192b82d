//! Loading what a full segment holds, for reclaim and destage, where it is not in memory any more.
//!
//! ```text
//!   Footer ──▶ Footer again ──▶ Headers, one by one, each again if need be ──▶ failed
//! ```
//!
//! The footer has it in short. What cannot be read, or comes wrong, is read once more; then the
//! record headers make up for the footer, as at a start (rule 4).

use super::Engine;
use super::api::IoError;
use super::tables::IoOwner;
use crate::counters::Counter;
use crate::format::{
    Footer, FooterBuilder, HeaderExpectation, RecordHeader, SUMMARY_OFFSET, SummaryReader,
};
use crate::geometry::LogAddress;
use crate::limits::BLOCK_BYTES_U32;
use crate::units::{BLOCK_BYTES, Buffer, Sequence};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Footer,
    /// The header at a block is next; the summary ends at a byte of the room.
    Headers {
        at: u32,
        end: u32,
        /// The life and the sequence that it must have, but for the first.
        expected: Option<(u64, u64)>,
    },
}

/// How far a load has come.
#[derive(Clone, Copy, Debug)]
pub struct SummaryLoad {
    /// Which use of which segment.
    pub segment_use: u64,
    stage: Stage,
    /// Whether it is the second time that this is read.
    again: bool,
    owner: IoOwner,
    /// Where the footer goes.
    room: Buffer,
    /// Where a header goes.
    frame: Buffer,
}

/// What a read has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The summary is in its room, of this length.
    Whole(u32),
    /// Another read is on its way.
    Reading,
    /// Neither the footer nor all of the headers can be had.
    Failed,
}

impl Engine {
    /// Starts to load the summary of a full segment into `room`; `frame` is a block that may be
    /// used meanwhile. The caller has seen that an I/O is free.
    pub(super) fn load_summary(
        &mut self,
        owner: IoOwner,
        segment_use: u64,
        room: Buffer,
        frame: Buffer,
    ) -> SummaryLoad {
        let load =
            SummaryLoad { segment_use, stage: Stage::Footer, again: false, owner, room, frame };
        self.read_summary_piece(&load);
        load
    }

    fn read_summary_piece(&mut self, load: &SummaryLoad) {
        let geometry = self.log.geometry;
        let (at, buffer) = match load.stage {
            Stage::Footer => {
                let summary = self.log.segments[geometry.segment(load.segment_use)].summary_bytes;
                let bytes = (SUMMARY_OFFSET as u32 + summary).next_multiple_of(BLOCK_BYTES_U32);
                (geometry.payload_blocks, load.room.part(0, bytes))
            }
            Stage::Headers { at, .. } => (at, load.frame),
        };
        self.device_read(load.owner, geometry.address(load.segment_use, at), buffer);
    }

    /// A read of it has ended, and left an I/O free.
    pub(super) fn summary_piece_done(
        &mut self,
        load: &mut SummaryLoad,
        result: Result<(), IoError>,
    ) -> Loaded {
        self.unpin(self.log.geometry.address(load.segment_use, 0));
        let length = self.log.segments[self.log.geometry.segment(load.segment_use)].summary_bytes;
        let next = match (result, load.stage) {
            (Err(_), _) => None,
            (Ok(()), Stage::Footer) => {
                if self.footer_is_intact(load) {
                    return Loaded::Whole(length);
                }
                None
            }
            (Ok(()), Stage::Headers { at, end, expected }) => {
                self.append_header(load, at, end, expected)
            }
        };
        match (next, load.stage) {
            (Some(Stage::Headers { end, .. }), _) if end == SUMMARY_OFFSET as u32 + length => {
                return Loaded::Whole(length);
            }
            (Some(next), _) => (load.stage, load.again) = (next, false),
            (None, _) if !load.again => load.again = true,
            (None, Stage::Footer) => {
                let end = SUMMARY_OFFSET as u32;
                load.stage = Stage::Headers { at: 0, end, expected: None };
                load.again = false;
            }
            (None, Stage::Headers { .. }) => {
                self.counters.add(Counter::SummaryErrors, 1);
                return Loaded::Failed;
            }
        }
        self.read_summary_piece(load);
        Loaded::Reading
    }

    /// Whether the footer that was read says what the segment holds.
    fn footer_is_intact(&self, load: &SummaryLoad) -> bool {
        let geometry = self.log.geometry;
        let bytes = self.reserve.bytes(load.room);
        let Ok((footer, _)) = Footer::read_from_prefix(bytes) else { return false };
        let length = footer.summary_bytes.get();
        let expected = self.log.segments[geometry.segment(load.segment_use)].summary_bytes;
        if footer.segment_use.get() != load.segment_use || length != expected {
            return false;
        }
        let summary = &bytes[SUMMARY_OFFSET..SUMMARY_OFFSET + length as usize];
        if footer.check_summary(summary, geometry.payload_blocks).is_err() {
            return false;
        }
        // Of a use that was accepted as lost there may be an older footer.
        let mut reader = SummaryReader::new(summary);
        while let Some((record, _, sums)) = reader.next() {
            let header = geometry.address(load.segment_use, record.offset_blocks.get());
            if !self.payload_is_known(header, Sequence(record.sequence.get()), sums) {
                return false;
            }
        }
        true
    }

    /// Whether these are the checksums of a record's payload.
    fn payload_is_known(&self, header: LogAddress, sequence: Sequence, sums: &[U32]) -> bool {
        let geometry = self.log.geometry;
        let segment_use = geometry.segment_use(header);
        // What lies before the tail was not looked at when the cache was opened.
        sequence < self.log.segments[geometry.segment(segment_use)].sequence_first
            || sums
                .iter()
                .zip(1..)
                .all(|(sum, block)| self.log.checksum(header.plus(block)) == sum.get())
    }

    /// Adds the header that was read to the summary, if it is the one that must be there: of the
    /// same life as those before it, and of payload whose checksums are known. Returns what comes
    /// next.
    fn append_header(
        &mut self,
        load: &SummaryLoad,
        at: u32,
        end: u32,
        expected: Option<(u64, u64)>,
    ) -> Option<Stage> {
        let geometry = self.log.geometry;
        if at >= geometry.payload_blocks {
            return None;
        }
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(self.reserve.bytes(load.frame));
        let address = geometry.address(load.segment_use, at);
        let (cache_uuid, secret) = self.log.names();
        let expectation = HeaderExpectation {
            cache_uuid,
            secret,
            device_offset: geometry.device_offset(address),
            payload_blocks_max: (geometry.payload_blocks - at - 1) as usize,
        };
        let header = RecordHeader::parse(&block, &expectation).ok()?;
        let (life, sequence) = (header.incarnation.get(), header.sequence.get());
        let info = self.log.segments[geometry.segment(load.segment_use)];
        let blocks = u32::from(header.payload_blocks.get());
        let bytes =
            FooterBuilder::record_bytes(header.entry_count.get().into(), blocks as usize) as u32;
        let sums = header.payload_checksums();
        let is_known = self.payload_is_known(address, Sequence(sequence), sums);
        let is_last = end + bytes == SUMMARY_OFFSET as u32 + info.summary_bytes;
        let is_the_one = header.segment_use.get() == load.segment_use
            && expected.is_none_or(|expected| expected == (life, sequence))
            && is_known
            && end + bytes <= SUMMARY_OFFSET as u32 + info.summary_bytes
            && is_last == (Sequence(sequence) == info.sequence_last);
        if !is_the_one {
            return None;
        }
        FooterBuilder::append(self.reserve.bytes_mut(load.room), end as usize, header, at);
        let expected = Some((life, sequence + 1));
        Some(Stage::Headers { at: at + 1 + blocks, end: end + bytes, expected })
    }
}
