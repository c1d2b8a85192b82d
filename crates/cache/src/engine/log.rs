//! The append stream: open record, closed records on their way, flushes, segments, footers.
//!
//! ```text
//!             append            close              write done         flush done
//!   (nothing) ──────▶ open record ────▶ closed record ────▶ written ────────▶ durable
//! ```
//!
//! Entries are visible (and writes answered) from the moment they are in the open record. The
//! image of the newest segments is the log pool: a record is built in the frames that it is
//! written from, and serves reads from there until its segment's image makes room for a newer.

use super::device_flush::{DeviceFlush, RecordEnd};
use super::exports::Exports;
use super::tables::FixedQueue;
use crate::canary;
use crate::config::Uuid;
use crate::format::{
    BODY_BYTES, ENTRY_BYTES, Entry, Footer, FooterBuilder, RecordHeader, SUMMARY_OFFSET,
    body_bytes, checksum,
};
use crate::geometry::{Geometry, LogAddress};
use crate::limits::{
    BLOCK_BYTES_U32, EXPORTS_MAX, RECORD_AGE_NS_MAX, RECORD_TARGET_BLOCKS, RECORDS_IN_FLIGHT_MAX,
    SEGMENTS_RESERVED, SEGMENTS_WITHOUT_FOOTER_MAX, WRITE_BLOCKS_MAX,
};
use crate::prefetch::prefetch;
use crate::reserve::Reserve;
use crate::units::{BLOCK_BYTES, Buffer, Now, Sequence};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Closed records that may wait for their write to end.
const CLOSED_RECORDS_MAX: usize = 4096;

/// What names this life of the cache in every header.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The cache.
    pub cache_uuid: Uuid,
    /// The source of nonces.
    pub secret: Uuid,
    /// This life.
    pub incarnation: u64,
    /// Its nonce.
    pub nonce: u64,
    /// Its first sequence.
    pub first_sequence: Sequence,
}

/// There is no room in the log now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Who asks for room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// A client's write, or a fill: leaves the reserved segments alone.
    Ordinary,
    /// Dirty data that is carried forward: leaves a segment for the record with the new tail,
    /// without which nothing that was carried makes room.
    Carried,
    /// Reclaim and payload-free records (rule 27).
    Reserved,
}

#[derive(Debug)]
struct OpenSegment {
    segment_use: u64,
    offset_blocks: u32,
    summary_end: usize,
    sequence_first: Sequence,
    epochs: [u64; EXPORTS_MAX],
}

#[derive(Clone, Copy, Debug)]
struct OpenRecord {
    sequence: Sequence,
    header: LogAddress,
    blocks: u32,
    entries: u32,
    opened_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteState {
    Closed,
    Writing,
    Written,
}

#[derive(Clone, Copy, Debug)]
struct ClosedRecord {
    sequence: Sequence,
    header: LogAddress,
    /// Header included.
    blocks: u32,
    state: WriteState,
}

#[derive(Debug)]
struct PendingFooter {
    segment_use: u64,
    summary_end: usize,
    sequence_first: Sequence,
    sequence_last: Sequence,
    epochs: [u64; EXPORTS_MAX],
    writing: bool,
}

/// What is remembered of a segment's current use.
#[derive(Clone, Copy, Debug, Default)]
pub struct SegmentInfo {
    /// Sequence of its first record.
    pub sequence_first: Sequence,
    /// Sequence of its last record, once it is full.
    pub sequence_last: Sequence,
    /// Bytes of its summary, once it is full.
    pub summary_bytes: u32,
    /// Device reads that hold it.
    pub pins: u32,
}

/// A write that is due: closed records, or a footer.
#[derive(Clone, Copy, Debug)]
pub struct DueWrite {
    /// Bytes from the start of the device.
    pub device_offset: u64,
    /// What to write.
    pub buffer: Buffer,
    /// The first record's sequence, or the use of the footer's segment.
    pub name: u64,
    /// Records written together.
    pub count: u32,
}

/// The append stream.
#[derive(Debug)]
pub struct Log {
    /// Where things are.
    pub geometry: Geometry,
    identity: Identity,
    /// The oldest use that still holds data; `next_use` when none does.
    pub oldest_use: u64,
    /// The use that is opened next.
    pub next_use: u64,
    /// Uses below this have no image in the log pool.
    pool_floor: u64,
    /// One past the last use of a segment that a damaged block was copied to.
    damaged_end: u64,
    segment: Option<OpenSegment>,
    record: Option<OpenRecord>,
    next_sequence: Sequence,
    closed: FixedQueue<ClosedRecord>,
    writes_in_flight: usize,
    /// The last record of those that are on the device without a gap.
    written: RecordEnd,
    flush: DeviceFlush,
    /// Up to here records are closed without waiting for more.
    wanted_closed: Sequence,
    footers: FixedQueue<PendingFooter>,
    /// Per segment.
    pub segments: Box<[SegmentInfo]>,
    /// CRC32C of every block of the log.
    checksums: Box<[u32]>,
    /// The oldest sequence that counts.
    tail: Sequence,
    /// The first record that carries the current tail.
    tail_record: Option<Sequence>,
    record_wanted: bool,
    /// A record is wanted but no segment is left for it.
    starved: bool,
}

/// Where recovery left the log.
#[derive(Debug)]
pub struct LogStart {
    /// The oldest use that holds data.
    pub oldest_use: u64,
    /// The use to open first.
    pub next_use: u64,
    /// The number of the next record.
    pub next_sequence: Sequence,
    /// The oldest sequence that counts.
    pub tail: Sequence,
    /// Per segment.
    pub segments: Box<[SegmentInfo]>,
    /// CRC32C of every block of the log.
    pub checksums: Box<[u32]>,
}

impl Log {
    /// The stream continues where recovery left it, in a new segment.
    pub fn new(geometry: Geometry, identity: Identity, start: LogStart) -> Self {
        let last = start.next_sequence.previous();
        let address = geometry.address(start.next_use, 0);
        let end = RecordEnd { sequence: last, address };
        Self {
            geometry,
            identity,
            oldest_use: start.oldest_use,
            next_use: start.next_use,
            pool_floor: start.next_use,
            damaged_end: 0,
            segment: None,
            record: None,
            next_sequence: start.next_sequence,
            closed: FixedQueue::new(CLOSED_RECORDS_MAX),
            writes_in_flight: 0,
            written: end,
            flush: DeviceFlush::new(end),
            wanted_closed: last,
            footers: FixedQueue::new(geometry.pool_segments as usize + 1),
            segments: start.segments,
            checksums: start.checksums,
            tail: start.tail,
            tail_record: Some(last),
            record_wanted: false,
            starved: false,
        }
    }

    /// The cache, and the secret that its nonces come from.
    pub fn names(&self) -> (&Uuid, &Uuid) {
        (&self.identity.cache_uuid, &self.identity.secret)
    }

    /// Segments that hold nothing that counts.
    pub fn segments_free(&self) -> u64 {
        self.geometry.segments - (self.next_use - self.oldest_use)
    }

    /// The number of the newest record, open or closed.
    pub fn newest(&self) -> Sequence {
        self.next_sequence.previous()
    }

    /// The highest sequence that a finished flush covers.
    pub fn durable(&self) -> Sequence {
        self.flush.durable().sequence
    }

    /// Whether a durable record carries the current tail.
    pub fn tail_is_durable(&self) -> bool {
        self.tail_record.is_some_and(|sequence| sequence <= self.durable())
    }

    /// Moves the tail forward; the next record carries it.
    pub fn set_tail(&mut self, tail: Sequence) {
        assert!(tail >= self.tail, "the tail only moves forward");
        self.tail = tail;
        self.tail_record = None;
    }

    /// The use of the segment that is open, or will be next.
    pub fn open_use(&self) -> u64 {
        self.segment.as_ref().map_or(self.next_use, |segment| segment.segment_use)
    }

    /// Where the summary of the open record will be: its segment's use and the place in it.
    pub fn open_record_place(&self) -> (u64, usize) {
        let segment = self.segment.as_ref().expect("an open record has a segment");
        (segment.segment_use, segment.summary_end - SUMMARY_OFFSET)
    }

    /// The summary of a segment whose image is in the log pool, as far as it has closed records.
    pub fn resident_summary(&self, segment_use: u64) -> Option<Buffer> {
        if !self.is_resident_use(segment_use) {
            return None;
        }
        let length = match &self.segment {
            Some(open) if open.segment_use == segment_use => {
                u32::try_from(open.summary_end - SUMMARY_OFFSET).expect("within a footer")
            }
            _ => self.segments[self.geometry.segment(segment_use)].summary_bytes,
        };
        let room = self.geometry.footer_frames(segment_use);
        Some(room.part(SUMMARY_OFFSET as u32, length))
    }

    fn is_resident_use(&self, segment_use: u64) -> bool {
        segment_use >= self.pool_floor && segment_use < self.next_use
    }

    /// The frame that holds a block, while its image is in the log pool.
    pub fn resident(&self, address: LogAddress) -> Option<Buffer> {
        self.is_resident_use(self.geometry.segment_use(address))
            .then(|| self.geometry.frames(address, 1))
    }

    /// The end of the durable records: every address below is durable, none from here on.
    pub fn durable_end(&self) -> LogAddress {
        self.flush.durable().address
    }

    /// The checksum of a block.
    pub fn checksum(&self, address: LogAddress) -> u32 {
        self.checksums[self.geometry.log_block(address)]
    }

    /// Has the checksum of a block fetched from memory.
    pub fn prefetch_checksum(&self, address: LogAddress) {
        prefetch(&self.checksums[self.geometry.log_block(address)]);
    }

    /// Whether the bytes are those that were appended at an address.
    pub fn verify(&self, address: LogAddress, block: &[u8]) -> bool {
        checksum(block) == self.checksum(address)
    }

    /// Makes sure that a step of so many entries and blocks of payload fits the open record,
    /// closing and opening records and segments as needed.
    pub fn ensure_room(
        &mut self,
        entries: u32,
        blocks: u32,
        privilege: Privilege,
        reserve: &mut Reserve,
        exports: &mut Exports,
        now: Now,
    ) -> Result<(), NoRoom> {
        // A segment opened for a privileged record must not be filled by others.
        let kept = u64::from(SEGMENTS_RESERVED);
        if privilege == Privilege::Ordinary && self.segments_free() < kept {
            return Err(NoRoom);
        }
        if let Some(record) = self.record {
            if self.fits(record.entries + entries, record.blocks + blocks) {
                return Ok(());
            }
            self.close_record(reserve, exports, now);
        }
        if self.closed.is_full() {
            return Err(NoRoom);
        }
        if self.segment.is_none() || !self.fits(entries, blocks) {
            self.open_segment(privilege, exports)?;
        }
        self.open_record(reserve, now);
        Ok(())
    }

    /// Whether the open segment takes so many more blocks, in a record and an entry each.
    pub fn segment_takes(&self, blocks: u32) -> bool {
        let Some(segment) = &self.segment else { return false };
        let begun = self.record.map_or(0, |record| 1 + record.blocks);
        let entries = self.record.map_or(0, |record| record.entries);
        let records = FooterBuilder::record_bytes(1, 1) * blocks as usize
            + FooterBuilder::record_bytes(entries as usize, begun as usize);
        segment.offset_blocks + begun + 2 * blocks <= self.geometry.payload_blocks
            && segment.summary_end + records <= self.geometry.footer_bytes() as usize
    }

    fn fits(&self, entries: u32, blocks: u32) -> bool {
        let Some(segment) = &self.segment else { return false };
        let (entries, count) = (entries as usize, blocks as usize);
        body_bytes(entries, count) <= BODY_BYTES
            && segment.offset_blocks + 1 + blocks <= self.geometry.payload_blocks
            && segment.summary_end + FooterBuilder::record_bytes(entries, count)
                <= self.geometry.footer_bytes() as usize
    }

    fn open_segment(&mut self, privilege: Privilege, exports: &Exports) -> Result<(), NoRoom> {
        let kept = match privilege {
            Privilege::Ordinary => u64::from(SEGMENTS_RESERVED),
            Privilege::Carried => 1,
            Privilege::Reserved => 0,
        };
        if self.segments_free() <= kept {
            return Err(NoRoom);
        }
        self.close_segment();
        if self.footers_are_due() {
            // A footer waits for a flush (rule 8), so ask for one.
            self.want_durable(self.newest());
            return Err(NoRoom);
        }
        let segment_use = self.next_use;
        self.next_use += 1;
        let pool_segments = self.geometry.pool_segments;
        self.pool_floor = self.pool_floor.max(self.next_use.saturating_sub(pool_segments));
        self.segments[self.geometry.segment(segment_use)] =
            SegmentInfo { sequence_first: self.next_sequence, ..SegmentInfo::default() };
        self.segment = Some(OpenSegment {
            segment_use,
            offset_blocks: 0,
            summary_end: SUMMARY_OFFSET,
            sequence_first: self.next_sequence,
            epochs: exports.epochs(),
        });
        Ok(())
    }

    /// Whether no segment can be opened before footers have been written: the new image takes the
    /// frames of the oldest one, whose records and footer must have left them.
    fn footers_are_due(&self) -> bool {
        let pool_segments = self.geometry.pool_segments;
        let oldest_leaves = |f: &PendingFooter| f.segment_use + pool_segments <= self.next_use;
        self.footers.front().is_some_and(oldest_leaves)
            || self.footers.len() >= SEGMENTS_WITHOUT_FOOTER_MAX
    }

    /// Whether the log has room on the device, and only the memory that it is written from is full
    /// of what is still on its way there.
    pub fn waits_for_device(&self) -> bool {
        self.segments_free() > u64::from(SEGMENTS_RESERVED)
            && (self.closed.is_full() || self.footers_are_due())
    }

    /// Closes the open segment; its footer is due once a flush covers its records.
    fn close_segment(&mut self) {
        assert!(self.record.is_none(), "a segment closes between records");
        let Some(segment) = self.segment.take() else { return };
        let last = self.newest();
        let info = &mut self.segments[self.geometry.segment(segment.segment_use)];
        info.sequence_last = last;
        info.summary_bytes =
            u32::try_from(segment.summary_end - SUMMARY_OFFSET).expect("within a footer");
        self.footers.push(PendingFooter {
            segment_use: segment.segment_use,
            summary_end: segment.summary_end,
            sequence_first: segment.sequence_first,
            sequence_last: last,
            epochs: segment.epochs,
            writing: false,
        });
        // One flush does for several footers, and comes early enough for the next segment.
        let unsealed_max = SEGMENTS_WITHOUT_FOOTER_MAX.min(self.geometry.pool_segments as usize);
        if 2 * self.footers.len() >= unsealed_max {
            self.want_durable(last);
        }
    }

    fn open_record(&mut self, reserve: &mut Reserve, now: Now) {
        let segment = self.segment.as_ref().expect("a segment was opened");
        let header = self.geometry.address(segment.segment_use, segment.offset_blocks);
        let frame = reserve.bytes_mut(self.geometry.frames(header, 1));
        RecordHeader::mut_from_bytes(frame).expect("a frame").begin();
        self.record = Some(OpenRecord {
            sequence: self.next_sequence,
            header,
            blocks: 0,
            entries: 0,
            opened_ns: now.monotonic_ns,
        });
        self.next_sequence = self.next_sequence.next();
    }

    /// The sequence and header address of the open record.
    ///
    /// # Panics
    /// When there is none: room was not ensured.
    pub fn open(&self) -> (Sequence, LogAddress) {
        let record = self.record.as_ref().expect("room was ensured");
        (record.sequence, record.header)
    }

    /// The end of the closed records: where the open one lies or, at the earliest, the next one.
    pub fn closed_end(&self) -> LogAddress {
        match (&self.record, &self.segment) {
            (Some(record), _) => record.header,
            (None, Some(open)) => self.geometry.address(open.segment_use, open.offset_blocks),
            (None, None) => self.geometry.address(self.next_use, 0),
        }
    }

    /// Whether a record is open.
    pub fn has_open_record(&self) -> bool {
        self.record.is_some()
    }

    /// Adds an entry to the open record and returns the frames for its payload, in order, and
    /// the log address of the first.
    pub fn append(&mut self, entry: &Entry, reserve: &mut Reserve) -> (LogAddress, Buffer) {
        let record = self.record.as_mut().expect("room was ensured");
        let frame = reserve.bytes_mut(self.geometry.frames(record.header, 1));
        let header = RecordHeader::mut_from_bytes(frame).expect("a frame");
        let at = record.entries as usize * ENTRY_BYTES;
        header.body[at..at + ENTRY_BYTES].copy_from_slice(entry.as_bytes());
        record.entries += 1;
        let address = record.header.plus(1 + u64::from(record.blocks));
        let blocks = entry.payload_blocks();
        record.blocks += blocks;
        (address, self.geometry.frames(address, blocks))
    }

    /// Notes the checksums of payload that has been copied into its frames.
    pub fn seal_payload(&mut self, address: LogAddress, frames: Buffer, reserve: &Reserve) {
        let first = self.geometry.log_block(address);
        for (index, block) in reserve.bytes(frames).chunks_exact(BLOCK_BYTES).enumerate() {
            self.checksums[first + index] = checksum(block);
        }
    }

    /// Notes for a block that was copied the checksum of its original, right or wrong.
    pub fn keep_checksum(&mut self, original: LogAddress, copy: LogAddress) {
        self.checksums[self.geometry.log_block(copy)] = self.checksum(original);
    }

    /// A damaged block has been copied to an address: frames are no longer trusted blindly.
    pub fn note_damaged_copy(&mut self, copy: LogAddress) {
        self.damaged_end = self.damaged_end.max(self.geometry.segment_use(copy) + 1);
    }

    /// Whether the frame of an address may hold a damaged copy.
    pub fn may_be_damaged_copy(&self, address: LogAddress) -> bool {
        self.geometry.segment_use(address) < self.damaged_end
    }

    /// Closes the open record if it has reached its size.
    pub fn close_if_full(&mut self, reserve: &mut Reserve, exports: &mut Exports, now: Now) {
        if self.record.is_some_and(|record| record.blocks as usize >= RECORD_TARGET_BLOCKS) {
            self.close_record(reserve, exports, now);
        }
    }

    /// Completes the open record: its header is whole, and it waits for its write.
    fn close_record(&mut self, reserve: &mut Reserve, exports: &mut Exports, now: Now) {
        let Some(record) = self.record.take() else { return };
        let segment = self.segment.as_mut().expect("an open record has a segment");
        let frame = reserve.bytes_mut(self.geometry.frames(record.header, 1));
        let header = RecordHeader::mut_from_bytes(frame).expect("a frame");
        header.cache_uuid = self.identity.cache_uuid;
        header.incarnation = U64::new(self.identity.incarnation);
        header.nonce = U64::new(self.identity.nonce);
        header.first_sequence = U64::new(self.identity.first_sequence.0);
        header.segment_use = U64::new(segment.segment_use);
        header.device_offset = U64::new(self.geometry.device_offset(record.header));
        header.sequence = U64::new(record.sequence.0);
        header.durable = U64::new(self.durable().0);
        header.tail = U64::new(self.tail.0);
        header.wall_ns = U64::new(now.wall_ns);
        header.epoch_starts = U64::new(exports.take_epoch_starts());
        header.payload_blocks = U16::new(u16::try_from(record.blocks).expect("a record's size"));
        header.entry_count = U16::new(u16::try_from(record.entries).expect("a record's size"));
        for (slot, epoch) in exports.epochs().into_iter().enumerate() {
            header.epochs[slot] = U64::new(epoch);
        }
        for (slot, watermark) in exports.watermarks().into_iter().enumerate() {
            header.watermarks[slot] = U64::new(watermark);
        }
        let first = self.geometry.log_block(record.header) + 1;
        let sums = &self.checksums[first..first + record.blocks as usize];
        let at = record.entries as usize * ENTRY_BYTES;
        for (room, sum) in header.body[at..].chunks_exact_mut(4).zip(sums) {
            room.copy_from_slice(&sum.to_le_bytes());
        }
        header.seal();
        self.finish_close(record, reserve, exports);
    }

    /// Enters a closed record into the summary and the queue of due writes.
    fn finish_close(&mut self, record: OpenRecord, reserve: &mut Reserve, exports: &mut Exports) {
        let segment = self.segment.as_mut().expect("an open record has a segment");
        let room = self.geometry.footer_frames(segment.segment_use);
        let mut header = RecordHeader::new_zeroed();
        header
            .as_mut_bytes()
            .copy_from_slice(reserve.bytes(self.geometry.frames(record.header, 1)));
        segment.summary_end = FooterBuilder::append(
            reserve.bytes_mut(room),
            segment.summary_end,
            &header,
            segment.offset_blocks,
        );
        let blocks = 1 + record.blocks;
        segment.offset_blocks += blocks;
        self.closed.push(ClosedRecord {
            sequence: record.sequence,
            header: record.header,
            blocks,
            state: WriteState::Closed,
        });
        self.tail_record.get_or_insert(record.sequence);
        self.record_wanted = false;
        exports.record_closed(record.sequence);
    }

    /// Everything up to this sequence is with the device, flushed or not.
    pub fn written(&self) -> Sequence {
        self.written.sequence
    }

    /// Asks for everything up to a sequence to become durable.
    pub fn want_durable(&mut self, sequence: Sequence) {
        self.flush.want(sequence);
    }

    /// Asks for everything up to now to be on its way to the device, durable or not.
    pub fn want_closed(&mut self) {
        self.wanted_closed = self.newest();
    }

    /// Asks for a watermark or a tail to become durable: by the record that carries it already,
    /// or by a new one, empty if need be.
    pub fn want_record(&mut self, carried_by: Option<Sequence>) {
        match carried_by {
            Some(record) => self.want_durable(record),
            None => self.record_wanted = true,
        }
    }

    /// Asks for the tail to become durable.
    pub fn want_tail(&mut self) {
        self.want_record(self.tail_record);
    }

    /// Whether tail and watermarks can no longer be kept in a record: no segment is left.
    pub fn is_starved(&self) -> bool {
        self.starved
    }

    /// The tail was made durable outside the log.
    pub fn tail_persisted(&mut self, tail: Sequence) {
        if tail == self.tail {
            self.tail_record.get_or_insert(Sequence(0));
        }
        self.starved = false;
        self.record_wanted = false;
    }

    /// The oldest sequence that counts.
    pub fn tail(&self) -> Sequence {
        self.tail
    }

    /// Decides at the end of a turn whether the open record is closed now.
    pub fn close_if_due(&mut self, reserve: &mut Reserve, exports: &mut Exports, now: Now) {
        if self.record_wanted && self.writes_in_flight == 0 {
            let room = self.ensure_room(0, 0, Privilege::Reserved, reserve, exports, now);
            if room.is_ok() {
                self.want_durable(self.newest());
            }
            self.starved = room.is_err() && self.segments_free() == 0;
        }
        let Some(record) = self.record else { return };
        let waited_for = self.flush.wanted().max(self.wanted_closed) >= record.sequence;
        let old = now.monotonic_ns >= record.opened_ns + RECORD_AGE_NS_MAX;
        // While a record is in flight the next one gathers.
        if (waited_for || old) && self.writes_in_flight == 0 && !self.closed.is_full() {
            self.close_record(reserve, exports, now);
        }
    }

    /// When the open record is due even if nothing happens.
    pub fn deadline_ns(&self) -> Option<u64> {
        let record = self.record?;
        (self.writes_in_flight == 0).then_some(record.opened_ns + RECORD_AGE_NS_MAX)
    }

    /// The next device write that is due: closed records that lie side by side go together.
    pub fn next_write(&mut self) -> Option<DueWrite> {
        if self.writes_in_flight == RECORDS_IN_FLIGHT_MAX {
            return None;
        }
        let mut due: Option<DueWrite> = None;
        let mut end = LogAddress(0);
        let mut blocks = 0;
        let pending = self.closed.iter_mut().skip_while(|r| r.state != WriteState::Closed);
        for record in pending {
            match &mut due {
                None => {
                    due = Some(DueWrite {
                        device_offset: self.geometry.device_offset(record.header),
                        buffer: self.geometry.frames(record.header, record.blocks),
                        name: record.sequence.0,
                        count: 1,
                    });
                }
                Some(due) => {
                    if record.header != end || blocks + record.blocks > WRITE_BLOCKS_MAX {
                        break;
                    }
                    due.buffer.length += record.blocks * BLOCK_BYTES_U32;
                    due.count += 1;
                }
            }
            record.state = WriteState::Writing;
            end = record.header.plus(u64::from(record.blocks));
            blocks += record.blocks;
        }
        self.writes_in_flight += usize::from(due.is_some());
        due
    }

    /// The write of some records has ended well.
    pub fn records_written(&mut self, first: Sequence, count: u32) {
        self.writes_in_flight -= 1;
        let last = first.0 + u64::from(count) - 1;
        for record in self.closed.iter_mut() {
            if (first.0..=last).contains(&record.sequence.0) {
                record.state = WriteState::Written;
            }
        }
        while self.closed.front().is_some_and(|record| record.state == WriteState::Written) {
            let record = self.closed.pop().expect("a front");
            let address = record.header.plus(u64::from(record.blocks));
            self.written = RecordEnd { sequence: record.sequence, address };
        }
    }

    /// Whether to flush the device now.
    pub fn start_flush(&mut self) -> bool {
        self.flush.start(self.written)
    }

    /// The flush has ended well.
    pub fn flush_done(&mut self) {
        self.flush.done(self.written);
    }

    /// The next footer that is due: a flush covers all its records (rule 8).
    pub fn next_footer(&mut self, reserve: &mut Reserve, exports: &Exports) -> Option<DueWrite> {
        let durable = self.durable();
        let pending = self
            .footers
            .iter_mut()
            .find(|f| !f.writing && (f.sequence_last <= durable || canary::breaks(8)))?;
        pending.writing = true;
        let mut fields = Footer::new_zeroed();
        fields.cache_uuid = self.identity.cache_uuid;
        fields.incarnation = U64::new(self.identity.incarnation);
        fields.first_sequence = U64::new(self.identity.first_sequence.0);
        fields.segment_use = U64::new(pending.segment_use);
        fields.sequence_first = U64::new(pending.sequence_first.0);
        fields.sequence_last = U64::new(pending.sequence_last.0);
        fields.durable = U64::new(durable.0);
        // Tail and watermarks are true from the moment they are set: what they leave behind was
        // durable elsewhere before.
        fields.tail = U64::new(self.tail.0);
        fields.epochs = pending.epochs.map(U64::new);
        fields.watermarks = exports.watermarks().map(U64::new);
        let room = self.geometry.footer_frames(pending.segment_use);
        let bytes = FooterBuilder::seal(
            reserve.bytes_mut(room),
            pending.summary_end,
            fields,
            &self.identity.secret,
        );
        let address = self.geometry.address(pending.segment_use, self.geometry.payload_blocks);
        Some(DueWrite {
            device_offset: self.geometry.device_offset(address),
            buffer: room.part(0, u32::try_from(bytes).expect("within a footer")),
            name: pending.segment_use,
            count: 1,
        })
    }

    /// The write of a footer has ended well.
    pub fn footer_written(&mut self, segment_use: u64) {
        // Footers end in any order; the queue is emptied from the front.
        for footer in self.footers.iter_mut() {
            if footer.segment_use == segment_use {
                footer.summary_end = 0;
            }
        }
        while self.footers.front().is_some_and(|footer| footer.summary_end == 0) {
            self.footers.pop();
        }
    }

    /// Whether the footer of a full segment has been written.
    pub fn has_footer(&self, segment_use: u64) -> bool {
        self.footers.iter().all(|footer| footer.segment_use != segment_use)
    }

    /// Whether it is known what a full segment holds; if not, it was lost, and accepted as lost.
    pub fn has_summary(&self, segment_use: u64) -> bool {
        self.segments[self.geometry.segment(segment_use)].summary_bytes > 0
    }

    /// The memory of checksums, to be locked.
    pub fn memory(&self) -> (*const u8, usize) {
        (self.checksums.as_ptr().cast(), size_of_val(&*self.checksums))
    }

    /// Panics if the state contradicts itself.
    pub fn check_invariants(&self) {
        assert!(self.durable() <= self.written(), "only what was written is durable");
        assert!(self.written() < self.next_sequence, "only what was numbered is written");
        assert!(self.oldest_use <= self.next_use, "uses grow");
        assert!(self.next_use - self.oldest_use <= self.geometry.segments, "uses fit the device");
        assert!(self.tail <= self.next_sequence, "the tail lies in the log");
        let mut sequence = self.written();
        for record in self.closed.iter() {
            sequence = sequence.next();
            assert_eq!(record.sequence, sequence, "closed records are contiguous");
        }
        let open = self.record.map_or(sequence, |record| record.sequence);
        assert_eq!(open, self.newest(), "the open record is the newest");
    }
}
