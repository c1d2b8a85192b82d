//! What the log area of a device holds: every segment's records, read without changing anything.
//!
//! Used by recovery and by whoever only looks. A segment with a footer is known from it; the few
//! without one are walked from header to header (rule 2). What follows the newest end is looked at
//! once more, never to be used, only for what it says of what was durable (decision 0013).
//!
//! A block that cannot be read counts as damaged: a second copy is used if there is one. That is
//! noted, since it is no end of the log: what could be read another time may have been durable.

use crate::facts::{LogFacts, Writer};
use crate::format::{
    Entry, EntryFlags, Footer, FooterBuilder, HeaderExpectation, RecordHeader, SUMMARY_OFFSET,
    SummaryReader, Superblock, checksum,
};
use crate::geometry::Geometry;
use crate::limits::{EXPORTS_MAX, SEGMENTS_WITHOUT_FOOTER_MAX};
use crate::storage::{ReadPiece, Storage, StorageError};
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Segments that are read together, so that not each of them has to be waited for: their first
/// blocks, and then their summaries.
const BATCH_SEGMENTS: u64 = 64;
/// Room that footers which are read together may have.
const BATCH_FOOTER_BYTES: u64 = 16 << 20;
/// Blocks that are read at a time where only the headers of long records are wanted.
const WINDOW_BLOCKS_MIN: u32 = 16;
/// The same where everything is read, one window after the other.
const WINDOW_BLOCKS_MAX: u32 = 64;

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
    /// The sequences that recovery accepts of it, once it has decided.
    pub accepted: Option<RangeInclusive<u64>>,
    footer: Option<Footer>,
}

impl FoundSegment {
    /// What wrote it.
    #[must_use]
    pub const fn writer(&self) -> Writer {
        Writer { incarnation: self.incarnation, segment_use: self.segment_use }
    }

    /// Whether its footer's header is intact. The summary behind it may still be damaged.
    #[must_use]
    pub const fn has_footer(&self) -> bool {
        self.footer.is_some()
    }

    /// Room for what its footer has, in whole blocks; none if it was walked.
    fn room(&self) -> Vec<u8> {
        let Some(footer) = self.footer.as_ref().filter(|_| self.walked.is_none()) else {
            return Vec::new();
        };
        let length = SUMMARY_OFFSET + footer.summary_bytes.get() as usize;
        vec![0; length.next_multiple_of(BLOCK_BYTES)]
    }
}

/// A segment without a footer.
#[derive(Debug)]
pub struct WalkedSegment {
    /// Its records, as a footer would have them.
    pub summary: Vec<u8>,
    /// The block in which the walk ended: no record of this use follows at once.
    pub end_blocks: u32,
}

/// What wrote a header.
fn writer_of(header: &RecordHeader) -> Writer {
    Writer { incarnation: header.incarnation.get(), segment_use: header.segment_use.get() }
}

/// What wrote a footer.
fn writer_of_footer(footer: &Footer) -> Writer {
    Writer { incarnation: footer.incarnation.get(), segment_use: footer.segment_use.get() }
}

/// What the first block of a segment and that of its footer say.
struct Heads {
    segment: u64,
    /// The first header, if it is newer than the footer: the segment is to be walked.
    first: Option<Box<RecordHeader>>,
    footer: Option<Footer>,
}

impl Heads {
    fn is_in_use(&self) -> bool {
        self.first.is_some() || self.footer.is_some()
    }

    /// What wrote the segment, and the first sequence of that life.
    fn life(&self) -> (Writer, u64) {
        match (&self.first, &self.footer) {
            (Some(header), _) => (writer_of(header), header.first_sequence.get()),
            (None, Some(footer)) => (writer_of_footer(footer), footer.first_sequence.get()),
            (None, None) => unreachable!("a segment in use"),
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
    window: Window,
    /// Room for the footer of a segment that is being walked.
    room: Vec<u8>,
    /// Room for the payload of a record that is being verified.
    payload: Vec<u8>,
    unreadable: Unreadable,
}

/// By offset: blocks that could not be read, and what the device said.
type Unreadable = BTreeMap<u64, StorageError>;

/// Reads pieces. What fails is read again, in the end block by block: a block that fails once more
/// is noted, and left as zeroes, which are no header and no footer.
fn read_all(storage: &mut dyn Storage, unreadable: &mut Unreadable, pieces: &mut [ReadPiece<'_>]) {
    if storage.read(pieces).is_ok() {
        return;
    }
    for piece in pieces {
        if storage.read_at(piece.offset, piece.into).is_ok() {
            continue;
        }
        let blocks = piece.into.chunks_exact_mut(BLOCK_BYTES);
        for (block, offset) in blocks.zip((piece.offset..).step_by(BLOCK_BYTES)) {
            if let Err(error) = storage.read_at(offset, block) {
                block.fill(0);
                unreadable.insert(offset, error);
            }
        }
    }
}

/// What the payload of a record is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadState {
    /// What its header says.
    Intact,
    /// Something else.
    Damaged,
    /// Nothing else as far as it can be read, which the block at this offset cannot.
    Unreadable(u64),
}

/// Some blocks of a segment that is being walked.
#[derive(Default)]
struct Window {
    segment: u64,
    first: u32,
    blocks: u32,
    bytes: Vec<u8>,
}

impl Window {
    fn covers(&self, segment: u64, at: u32) -> bool {
        self.segment == segment && (self.first..self.first + self.blocks).contains(&at)
    }
}

impl<'a> Scanner<'a> {
    /// Of a device that holds this cache.
    pub fn new(
        storage: &'a mut dyn Storage,
        superblock: &'a Superblock,
        geometry: Geometry,
    ) -> Self {
        let (room, payload) = (vec![0; geometry.footer_bytes() as usize], Vec::new());
        let (window, unreadable) = (Window::default(), Unreadable::new());
        Self { storage, superblock, geometry, window, room, payload, unreadable }
    }

    /// Reads a range; blocks that cannot be read are zeroes, and noted.
    pub fn read_at(&mut self, offset: u64, into: &mut [u8]) {
        read_all(self.storage, &mut self.unreadable, &mut [ReadPiece { offset, into }]);
    }

    /// Whether the block at an offset could not be read.
    #[must_use]
    pub fn is_unreadable(&self, offset: u64) -> bool {
        self.unreadable.contains_key(&offset)
    }

    /// Whether any block could not be read.
    #[must_use]
    pub fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// What the device said of a block that could not be read, once.
    pub fn take_error(&mut self, offset: u64) -> Option<StorageError> {
        self.unreadable.remove(&offset)
    }

    /// What the device said of any block that could not be read.
    pub fn take_any_error(&mut self) -> Option<StorageError> {
        self.unreadable.pop_first().map(|(_, error)| error)
    }

    /// Finds every segment with records, oldest first, and what counts in the whole log.
    pub fn scan(&mut self) -> (Vec<FoundSegment>, LogFacts) {
        let mut facts = LogFacts::new(self.superblock);
        let mut all = Vec::new();
        let segments = self.geometry.segments;
        let mut blocks = vec![[[0; BLOCK_BYTES]; 2]; segments.min(BATCH_SEGMENTS) as usize];
        for start in (0..segments).step_by(BATCH_SEGMENTS as usize) {
            let end = segments.min(start + BATCH_SEGMENTS);
            self.read_heads(start..end, &mut blocks);
            let heads =
                (start..end).zip(&blocks).map(|(segment, heads)| self.heads(segment, heads));
            all.extend(heads.filter(Heads::is_in_use));
        }
        for heads in &all {
            let (writer, first_sequence) = heads.life();
            facts.note_life(writer, first_sequence);
        }
        facts.accept_lives();
        let mut found: Vec<_> = all.into_iter().map(|one| self.identify(one, &mut facts)).collect();
        self.look_behind_the_end(&found, &mut facts);
        found.sort_by_key(|segment| (segment.sequence_first, segment.incarnation));
        (found, facts)
    }

    /// Reads the first block and the first block of the footer, of some segments.
    fn read_heads(&mut self, segments: Range<u64>, heads: &mut [[[u8; BLOCK_BYTES]; 2]]) {
        let geometry = self.geometry;
        let mut pieces = Vec::new();
        for (segment, [header, footer]) in segments.zip(heads) {
            let offset = |blocks| geometry.device_offset(geometry.address(segment, blocks));
            pieces.push(ReadPiece { offset: offset(0), into: header });
            pieces.push(ReadPiece { offset: offset(geometry.payload_blocks), into: footer });
        }
        read_all(self.storage, &mut self.unreadable, &mut pieces);
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
            device_offset: geometry.device_offset(geometry.address(segment, offset)),
            payload_blocks_max: (geometry.payload_blocks - offset - 1) as usize,
        };
        let header = RecordHeader::parse(block, &expectation).ok()?;
        (header.segment_use.get() % geometry.segments == segment).then_some(header)
    }

    /// What the two heads of a segment say. The newer one counts: the other may be left over from
    /// an earlier use.
    fn heads(&self, segment: u64, [header, footer]: &[[u8; BLOCK_BYTES]; 2]) -> Heads {
        let header = self.parse_header(segment, 0, header);
        let footer = Footer::parse(
            footer,
            &self.superblock.cache_uuid,
            &self.superblock.secret,
            segment,
            self.geometry.segments,
            self.geometry.footer_bytes() as usize,
        )
        .ok();
        let age_of_footer = footer.as_ref().map(|f| (f.incarnation.get(), f.segment_use.get()));
        let is_newer = |header: &&RecordHeader| {
            Some((header.incarnation.get(), header.segment_use.get())) > age_of_footer
        };
        Heads { segment, first: header.filter(is_newer).cloned().map(Box::new), footer }
    }

    /// Decides what a segment holds.
    fn identify(&mut self, heads: Heads, facts: &mut LogFacts) -> FoundSegment {
        let Heads { segment, first, footer } = heads;
        let says = |footer: &&Footer| {
            // What was accepted as lost says nothing, either.
            !self.superblock.accepts_loss_of(footer.sequence_last.get())
        };
        if let Some(footer) = footer.as_ref().filter(says) {
            let last = footer.sequence_last.get();
            let writer = writer_of_footer(footer);
            // It was written once all records of its segment were durable.
            let durable = footer.durable.get().max(last);
            facts.note((writer, last), footer.tail.get(), durable, &footer.watermarks);
        }
        if let Some(header) = first {
            return self.walk(segment, &header, Some(facts));
        }
        let footer = footer.expect("a header or a footer");
        FoundSegment {
            segment_use: footer.segment_use.get(),
            incarnation: footer.incarnation.get(),
            first_sequence: footer.first_sequence.get(),
            sequence_first: footer.sequence_first.get(),
            sequence_last: footer.sequence_last.get(),
            epochs: footer.epochs.map(U64::get),
            walked: None,
            accepted: None,
            footer: Some(footer),
        }
    }

    /// Makes sure that a block of a segment is in the window.
    fn load(&mut self, segment: u64, at: u32) {
        let window = &mut self.window;
        if window.covers(segment, at) {
            return;
        }
        let goes_on = window.covers(segment, at.saturating_sub(WINDOW_BLOCKS_MIN));
        let blocks = if goes_on { 2 * window.blocks } else { WINDOW_BLOCKS_MIN };
        let blocks = blocks.min(WINDOW_BLOCKS_MAX).min(self.geometry.payload_blocks - at);
        let length = blocks as usize * BLOCK_BYTES;
        if window.bytes.len() < length {
            window.bytes.resize(length, 0);
        }
        let offset = self.geometry.device_offset(self.geometry.address(segment, at));
        let piece = ReadPiece { offset, into: &mut window.bytes[..length] };
        read_all(self.storage, &mut self.unreadable, &mut [piece]);
        (window.segment, window.first, window.blocks) = (segment, at, blocks);
    }

    /// The header that a block of a segment is, if it is one.
    #[must_use]
    pub fn header_in<'b>(
        &self,
        segment: u64,
        offset: u32,
        block: &'b [u8],
    ) -> Option<&'b RecordHeader> {
        self.parse_header(segment, offset, block)
    }

    /// The room of a footer.
    pub fn read_footer(&mut self, segment_use: u64) -> Vec<u8> {
        let mut room = vec![0; self.geometry.footer_bytes() as usize];
        let address = self.geometry.address(segment_use, self.geometry.payload_blocks);
        self.read_at(self.geometry.device_offset(address), &mut room);
        room
    }

    /// The header at a block that is in the window.
    fn header(&self, segment: u64, at: u32) -> Option<&RecordHeader> {
        self.parse_header(segment, at, self.block(at))
    }

    /// A block that is in the window.
    fn block(&self, at: u32) -> &[u8] {
        let start = (at - self.window.first) as usize * BLOCK_BYTES;
        &self.window.bytes[start..start + BLOCK_BYTES]
    }

    /// Walks a segment from header to header.
    fn walk(
        &mut self,
        segment: u64,
        first: &RecordHeader,
        mut facts: Option<&mut LogFacts>,
    ) -> FoundSegment {
        let geometry = self.geometry;
        let writer = writer_of(first);
        let mut room = std::mem::take(&mut self.room);
        let (mut at, mut end, mut next) = (0, SUMMARY_OFFSET, first.sequence.get());
        while at < geometry.payload_blocks {
            // The first one is here. Were it read again, and in vain, nothing would be left of it.
            if at > 0 {
                self.load(segment, at);
            }
            let header = if at == 0 { Some(first) } else { self.header(segment, at) };
            let Some(header) = header else { break };
            let bytes = FooterBuilder::record_bytes(
                header.entry_count.get().into(),
                header.payload_blocks.get().into(),
            );
            let is_next = writer_of(header) == writer && header.sequence.get() == next;
            if !is_next || end + bytes > room.len() {
                break;
            }
            if let Some(facts) = &mut facts
                && !self.superblock.accepts_loss_of(next)
            {
                let (tail, durable) = (header.tail.get(), header.durable.get());
                facts.note((writer, next), tail, durable, &header.watermarks);
            }
            end = FooterBuilder::append(&mut room, end, header, at);
            at += 1 + u32::from(header.payload_blocks.get());
            next += 1;
        }
        let summary = room[SUMMARY_OFFSET..end].to_vec();
        self.room = room;
        FoundSegment {
            segment_use: first.segment_use.get(),
            incarnation: first.incarnation.get(),
            first_sequence: first.first_sequence.get(),
            sequence_first: first.sequence.get(),
            sequence_last: next - 1,
            epochs: first.epochs.map(U64::get),
            walked: Some(WalkedSegment { summary, end_blocks: at }),
            accepted: None,
            footer: None,
        }
    }

    /// Looks behind the newest end of the log for headers that say that what is missing there was
    /// durable: without them, one lost write would pass for the end of the log, and take flushed
    /// data with it (decision 0013). What earlier lives wrote is known from the newest life.
    fn look_behind_the_end(&mut self, found: &[FoundSegment], facts: &mut LogFacts) {
        let incarnation = facts.incarnation();
        let newest = |counts: &dyn Fn(&FoundSegment) -> bool| {
            found.iter().filter(|segment| counts(segment)).map(|segment| segment.segment_use).max()
        };
        let is_own = |segment: &FoundSegment| segment.incarnation == incarnation;
        let earlier = newest(&|segment| {
            segment.incarnation < incarnation
                && segment.sequence_first < facts.void_from(segment.writer())
                && !self.superblock.accepts_loss_of(segment.sequence_first)
        });
        let behind = |newest: u64| newest + 1;
        let begun =
            earlier.or(newest(&|_| true)).map_or(0, behind).max(facts.first_use().unwrap_or(0));
        let last = newest(&is_own).map_or(begun, behind);
        let first = earlier.map_or(0, |earlier| earlier + 1);
        let first = first.max(last.saturating_sub(SEGMENTS_WITHOUT_FOOTER_MAX as u64));
        let own = |segment_use| {
            found.iter().find(|segment| is_own(segment) && segment.segment_use == segment_use)
        };
        for segment_use in first..first + self.geometry.segments {
            let writer = Writer { incarnation, segment_use };
            let strays = facts.strays;
            if let Some(segment) = own(segment_use) {
                let goes_on = own(segment_use + 1)
                    .is_some_and(|next| next.sequence_first == segment.sequence_last + 1);
                if let Some(walked) = segment.walked.as_ref().filter(|_| !goes_on) {
                    self.search(writer, walked.end_blocks, facts);
                }
            } else {
                self.search(writer, 0, facts);
            }
            // A segment in which nothing is left is the last: the next would have been opened
            // only when it was full.
            if segment_use >= last && facts.strays == strays {
                break;
            }
        }
    }

    /// Searches a segment for headers of one use, from a block on.
    fn search(&mut self, writer: Writer, first: u32, facts: &mut LogFacts) {
        let segment = writer.segment_use % self.geometry.segments;
        let mut at = first;
        loop {
            if !self.window.covers(segment, at) {
                at = self.skip_zeroes(segment, at);
            }
            if at >= self.geometry.payload_blocks {
                return;
            }
            self.load(segment, at);
            let block = self.block(at);
            // Payload and what an earlier use left are told by a look, not by a checksum.
            let is_of = |header: &RecordHeader| writer_of(header) == writer;
            let resembles = RecordHeader::ref_from_bytes(block).is_ok_and(is_of);
            let header = resembles.then(|| self.parse_header(segment, at, block)).flatten();
            let Some(header) = header else {
                at += 1;
                continue;
            };
            facts.strays += 1;
            facts.durable = facts.durable.max(header.durable.get());
            at += 1 + u32::from(header.payload_blocks.get());
        }
    }

    /// The first block of a segment from one on that the device does not know to be zeroes, if it
    /// lies in the part for records; a block behind that part if not.
    fn skip_zeroes(&mut self, segment: u64, at: u32) -> u32 {
        let offset = self.geometry.device_offset(self.geometry.address(segment, at));
        let zeroes = self.storage.data_from(offset).saturating_sub(offset) / BLOCK_BYTES_U64;
        at.saturating_add(u32::try_from(zeroes).unwrap_or(u32::MAX))
    }

    /// Whether the payload of a record is what its header says, but for copies of damaged blocks.
    pub fn payload_state(
        &mut self,
        segment_use: u64,
        offset_blocks: u32,
        checksums: &[zerocopy::little_endian::U32],
        entries: &[Entry],
    ) -> PayloadState {
        let length = checksums.len() * BLOCK_BYTES;
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(payload.len().max(length), 0);
        let offset =
            self.geometry.device_offset(self.geometry.address(segment_use, offset_blocks + 1));
        self.read_at(offset, &mut payload[..length]);
        let mut state = PayloadState::Intact;
        let is_damaged = |entry: &Entry| entry.flags().contains(EntryFlags::DAMAGED);
        let entries = entries.iter().flat_map(|entry| {
            std::iter::repeat_n(is_damaged(entry), entry.payload_blocks() as usize)
        });
        let blocks = checksums.iter().zip(payload.chunks_exact(BLOCK_BYTES)).zip(entries);
        for (((sum, block), is_damaged), at) in blocks.zip((offset..).step_by(BLOCK_BYTES)) {
            if is_damaged {
                continue;
            }
            if self.is_unreadable(at) {
                state = PayloadState::Unreadable(at);
            } else if sum.get() != checksum(block) {
                state = PayloadState::Damaged;
                break;
            }
        }
        self.payload = payload;
        state
    }

    /// How many segments to ask [`Scanner::summaries`] for.
    #[must_use]
    pub fn summaries_at_once(&self) -> usize {
        let footers = BATCH_FOOTER_BYTES / u64::from(self.geometry.footer_bytes());
        footers.clamp(1, BATCH_SEGMENTS) as usize
    }

    /// The records of found segments in short. A footer whose summary is damaged (torn, when it
    /// was being written) is made up for by walking; the segment counts as one without a footer.
    pub fn summaries(&mut self, found: &mut [&mut FoundSegment]) -> Vec<Vec<u8>> {
        let geometry = self.geometry;
        let mut summaries: Vec<Vec<u8>> = found.iter().map(|segment| segment.room()).collect();
        let mut pieces = Vec::new();
        for (segment, into) in found.iter().zip(&mut summaries) {
            let address = geometry.address(segment.segment_use, geometry.payload_blocks);
            if segment.walked.is_none() {
                pieces.push(ReadPiece { offset: geometry.device_offset(address), into });
            }
        }
        read_all(self.storage, &mut self.unreadable, &mut pieces);
        for (segment, summary) in found.iter_mut().zip(&mut summaries) {
            self.judge_summary(segment, summary);
        }
        summaries
    }

    /// The same of one segment.
    pub fn summary(&mut self, found: &mut FoundSegment) -> Vec<u8> {
        self.summaries(&mut [found]).pop().expect("one for each")
    }

    /// Makes a summary of what was read of a footer, or of walking where that is damaged.
    fn judge_summary(&mut self, found: &mut FoundSegment, summary: &mut Vec<u8>) {
        if found.walked.is_none() {
            let footer = found.footer.as_ref().expect("walked or with a footer");
            summary.truncate(SUMMARY_OFFSET + footer.summary_bytes.get() as usize);
            summary.drain(..SUMMARY_OFFSET);
            if footer.check_summary(summary, self.geometry.payload_blocks).is_ok() {
                return;
            }
            found.walked = self.walk_instead(found.segment_use % self.geometry.segments, found);
        }
        *summary = found.walked.as_ref().map(|walked| walked.summary.clone()).unwrap_or_default();
    }

    fn walk_instead(&mut self, segment: u64, found: &FoundSegment) -> Option<WalkedSegment> {
        let mut block = vec![0; BLOCK_BYTES];
        self.read_at(self.geometry.device_offset(self.geometry.address(segment, 0)), &mut block);
        let first = self.parse_header(segment, 0, &block).cloned()?;
        let walked = self.walk(segment, &first, None);
        let is_the_same =
            walked.segment_use == found.segment_use && walked.incarnation == found.incarnation;
        walked.walked.filter(|_| is_the_same)
    }
}

impl WalkedSegment {
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
