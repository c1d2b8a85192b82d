//! A small formatted cache with every kind of structure in it, written structure by structure, so
//! that of each block of it is known what it is, what it holds, and what was there before.

use ringfence_cache::Uuid;
use ringfence_cache::format::{
    Entry, EntryFlags, EntryKind, ExportRecord, ExportTable, Footer, FooterBuilder, RecordHeader,
    SUMMARY_OFFSET, Superblock, checksum, incarnation_nonce,
};
use ringfence_cache::limits::{
    EXPORT_TABLE_BYTES, EXPORT_TABLE_OFFSETS, SEGMENT_BYTES_MIN, SEGMENTS_MIN, SEGMENTS_OFFSET,
    SUPERBLOCK_OFFSETS, footer_bytes,
};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::sync::Arc;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Blocks of each export.
pub const EXPORT_BLOCKS: u64 = 64;
/// The exports, by slot: name and identity of the origin.
pub const EXPORTS: [(&str, &str); 2] = [("web", "origin of web"), ("db", "origin of db")];
/// The block that was found damaged long ago: export and block. It cannot be read (rule 25).
pub const BAD_BLOCK: (usize, u64) = (1, 60);
/// What the origin of each has, flushed.
const WATERMARKS: [u64; 2] = [103, 0];
/// The oldest sequence that counts.
const TAIL: u64 = 100;
/// The life that the cache is in, and its first sequence.
const LIFE: (u64, u64) = (7, 110);
/// What a record says of what was durable reaches up to here.
pub const DURABLE: u64 = 111;
/// The last record that is whole.
pub const LAST: u64 = 112;
const OWN: Owner = Owner { uuid: [0x11; 16], secret: *b"nobody knows it!" };
/// The cache that the device held before it was formatted again: the log is left as it was.
const FORMER: Owner = Owner { uuid: [0x22; 16], secret: *b"nor did they it!" };
const SEGMENTS: u64 = SEGMENTS_MIN as u64;
const SEGMENT_BLOCKS: u64 = SEGMENT_BYTES_MIN / BLOCK_BYTES_U64;

/// One block of a device.
pub type Page = [u8; BLOCK_BYTES];

/// What some blocks of the device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One of two copies.
    Superblock,
    /// One of two slots.
    ExportTable,
    /// A header whose segment has a footer: one of two copies.
    CopiedHeader,
    /// A header whose segment has none: the only copy.
    OnlyHeader,
    /// A footer.
    Footer,
    /// What a power cut, an earlier life or another cache left behind the end: it does not count.
    Remains,
    /// One block of data.
    Payload(Data),
}

/// A block of payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data {
    /// The export's slot.
    pub export: usize,
    /// Its block.
    pub block: u64,
    /// Whether the origin lacks it.
    pub dirty: bool,
}

/// Some blocks of the device, and what they are.
#[derive(Clone, Debug)]
pub struct Structure {
    /// What.
    pub kind: Kind,
    /// The record's sequence; zero for what belongs to none.
    pub sequence: u64,
    /// The first block on the device.
    pub page: usize,
    /// Its blocks as they were in an earlier life; empty where there is nothing of the sort.
    pub earlier: Vec<Page>,
    /// How many.
    pub pages: usize,
}

/// What one record changed: export, block, and whether it is data.
#[derive(Clone, Copy, Debug)]
struct Change {
    sequence: u64,
    export: usize,
    block: u64,
    is_zero: bool,
}

/// The device, and what is known of it.
#[derive(Debug)]
pub struct Image {
    /// Its blocks; those that were never written are not there.
    pub pages: Vec<Option<Box<Page>>>,
    /// Everything that was written.
    pub structures: Vec<Structure>,
    changes: Vec<Change>,
    contents: Vec<Contents>,
}

/// Which records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All but the last.
    BeforeLast,
    /// All.
    AtEnd,
}

/// What one block of an export should hold. Equal contents are the same page, so that they are
/// compared once.
#[derive(Debug)]
struct Contents {
    at_origin: Arc<Page>,
    before_last: Arc<Page>,
    at_end: Arc<Page>,
}

/// One entry of a record to be.
#[derive(Clone, Copy)]
struct Part(EntryKind, usize, u64, u32);

/// A cache: what none of its structures can be believed without.
struct Owner {
    uuid: Uuid,
    secret: Uuid,
}

struct Life {
    owner: &'static Owner,
    incarnation: u64,
    first_sequence: u64,
}

/// A segment that is being written.
struct Segment {
    segment_use: u64,
    life: Life,
    at: u32,
    room: Vec<u8>,
    end: usize,
    first: u64,
    last: u64,
}

impl Segment {
    fn new(segment_use: u64, incarnation: u64, first_sequence: u64) -> Self {
        let room = vec![0; usize::try_from(footer_bytes(SEGMENT_BYTES_MIN)).expect("small")];
        let life = Life { owner: &OWN, incarnation, first_sequence };
        Self { segment_use, life, at: 0, room, end: SUMMARY_OFFSET, first: 0, last: 0 }
    }

    fn of(mut self, owner: &'static Owner) -> Self {
        self.life.owner = owner;
        self
    }

    fn footer_page(&self) -> usize {
        self.page(u32::try_from(SEGMENT_BLOCKS).expect("small") - footer_blocks())
    }

    fn page(&self, at: u32) -> usize {
        let segment = self.segment_use % SEGMENTS;
        let block = SEGMENTS_OFFSET / BLOCK_BYTES_U64 + segment * SEGMENT_BLOCKS + u64::from(at);
        usize::try_from(block).expect("a small device")
    }
}

/// What a block of an export holds after a record.
#[must_use]
pub fn content(export: usize, block: u64, sequence: u64) -> Page {
    let mut page = [0; BLOCK_BYTES];
    let seed = (sequence << 20 | block << 4 | export as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for (word, at) in page.as_chunks_mut::<8>().0.iter_mut().zip(1u64..) {
        *word = seed.wrapping_mul(at | 1).rotate_left(17).to_le_bytes();
    }
    page
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    /// Writes it.
    #[must_use]
    pub fn new() -> Self {
        let blocks = SEGMENTS_OFFSET / BLOCK_BYTES_U64 + SEGMENTS * SEGMENT_BLOCKS;
        let pages = vec![None; usize::try_from(blocks).expect("a small device")];
        let (structures, changes, contents) = (Vec::new(), Vec::new(), Vec::new());
        let mut image = Self { pages, structures, changes, contents };
        image.superblocks();
        image.export_tables();
        image.log();
        // A trial looks at each block of each export: making their contents each time would take
        // as long as recovery does.
        for export in 0..EXPORTS.len() {
            let contents = (0..EXPORT_BLOCKS).map(|block| image.contents_of(export, block));
            let contents: Vec<_> = contents.collect();
            image.contents.extend(contents);
        }
        image
    }

    /// Size of the device.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.pages.len() as u64 * BLOCK_BYTES_U64
    }

    /// What an origin has.
    #[must_use]
    pub fn origin(&self, export: usize, block: u64) -> &Page {
        &self.contents(export, block).at_origin
    }

    /// What a block should read as, depending on which records count.
    #[must_use]
    pub fn expected(&self, export: usize, block: u64, cut: Cut) -> &Page {
        let contents = self.contents(export, block);
        match cut {
            Cut::BeforeLast => &contents.before_last,
            Cut::AtEnd => &contents.at_end,
        }
    }

    /// The block whose only copy a structure is: dirty, it counts, and nothing later has it.
    #[must_use]
    pub fn only_copy(&self, structure: &Structure, cut: Cut) -> Option<Data> {
        let Kind::Payload(data) = structure.kind else { return None };
        let end = match cut {
            Cut::BeforeLast => LAST,
            Cut::AtEnd => LAST + 1,
        };
        let counting = structure.sequence + 1..end;
        let is_later = |change: &Change| {
            (change.export, change.block) == (data.export, data.block)
                && counting.contains(&change.sequence)
        };
        let is_live = structure.sequence < end && !self.changes.iter().any(is_later);
        (data.dirty && is_live).then_some(data)
    }

    fn contents(&self, export: usize, block: u64) -> &Contents {
        let blocks = usize::try_from(EXPORT_BLOCKS).expect("few");
        &self.contents[export * blocks + usize::try_from(block).expect("few")]
    }

    fn contents_of(&self, export: usize, block: u64) -> Contents {
        let flushed = WATERMARKS[export] + 1;
        let page = |cut: u64| self.after(export, block, cut.max(flushed));
        let or_shared = |shared: &Arc<Page>, page: Page| {
            if **shared == page { Arc::clone(shared) } else { Arc::new(page) }
        };
        let at_origin = Arc::new(page(flushed));
        let before_last = or_shared(&at_origin, page(LAST));
        let at_end = or_shared(&before_last, page(LAST + 1));
        Contents { at_origin, before_last, at_end }
    }

    fn after(&self, export: usize, block: u64, cut: u64) -> Page {
        let is_it = |change: &&Change| {
            change.export == export && change.block == block && change.sequence < cut
        };
        match self.changes.iter().rev().find(is_it) {
            Some(change) if change.is_zero => [0; BLOCK_BYTES],
            Some(change) => content(export, block, change.sequence),
            None => content(export, block, 0),
        }
    }

    fn put(&mut self, page: usize, bytes: &[u8]) {
        for (chunk, slot) in bytes.chunks(BLOCK_BYTES).zip(&mut self.pages[page..]) {
            let mut block = Box::new([0; BLOCK_BYTES]);
            block[..chunk.len()].copy_from_slice(chunk);
            *slot = Some(block);
        }
    }

    fn add(&mut self, kind: Kind, sequence: u64, page: usize, bytes: &[u8], earlier: &[u8]) {
        self.put(page, bytes);
        let as_page = |chunk: &[u8]| chunk.try_into().expect("whole blocks");
        let earlier = earlier.chunks(BLOCK_BYTES).map(as_page).collect();
        let pages = bytes.len() / BLOCK_BYTES;
        self.structures.push(Structure { kind, sequence, page, earlier, pages });
    }

    fn superblocks(&mut self) {
        let mut superblock = Superblock::of_current_version();
        superblock.cache_uuid = OWN.uuid;
        superblock.secret = OWN.secret;
        superblock.device_bytes = U64::new(self.size_bytes());
        superblock.segment_bytes = U64::new(SEGMENT_BYTES_MIN);
        superblock.segments = U64::new(SEGMENTS);
        superblock.incarnation = U64::new(LIFE.0 - 1);
        superblock.first_sequence = U64::new(107);
        superblock.tail = U64::new(TAIL);
        let earlier = superblock.seal().to_vec();
        superblock.incarnation = U64::new(LIFE.0);
        superblock.first_sequence = U64::new(LIFE.1);
        superblock.watermarks[0] = U64::new(WATERMARKS[0]);
        let bytes = superblock.seal().to_vec();
        for offset in SUPERBLOCK_OFFSETS {
            let page = usize::try_from(offset).expect("small") / BLOCK_BYTES;
            self.add(Kind::Superblock, 0, page, &bytes, &earlier);
        }
    }

    fn export_tables(&mut self) {
        let mut table = ExportTable::new(OWN.uuid);
        let mut earlier = Vec::new();
        for (slot, (name, origin)) in EXPORTS.into_iter().enumerate() {
            earlier = table.seal();
            let uuid = [u8::try_from(slot).expect("few") + 1; 16];
            let layer = table.next_layer.get();
            let size_bytes = EXPORT_BLOCKS * BLOCK_BYTES_U64;
            let record = ExportRecord::new(uuid, name, origin, size_bytes, layer);
            table.exports[slot] = record.expect("short names");
            table.next_layer = U32::new(layer + 1);
            table.generation = U64::new(table.generation.get() + 1);
        }
        let bytes = table.seal();
        assert_eq!(bytes.len(), EXPORT_TABLE_BYTES, "a whole slot");
        for offset in EXPORT_TABLE_OFFSETS {
            let page = usize::try_from(offset).expect("small") / BLOCK_BYTES;
            self.add(Kind::ExportTable, 0, page, &bytes, &earlier);
        }
    }

    fn log(&mut self) {
        use EntryKind::{Bad, DirtyCopy, DirtyZeroCopy, Fill, Reappend, Write, Zero};
        let mut segment = Segment::new(12, 5, 90);
        self.record(&mut segment, 100, &[Part(Write, 0, 0, 4)]);
        self.record(&mut segment, 101, &[Part(Zero, 0, 4, 4)]);
        self.record(&mut segment, 102, &[Part(Write, 1, 0, 3)]);
        self.record(&mut segment, 103, &[Part(Write, 0, 8, 2), Part(Write, 0, 1, 1)]);
        self.footer(segment);
        let mut segment = Segment::new(13, 5, 90);
        self.record(&mut segment, 104, &[Part(Fill, 0, 16, 4)]);
        self.record(&mut segment, 105, &[Part(Reappend, 0, 20, 2)]);
        self.record(&mut segment, 106, &[Part(DirtyCopy, 1, 10, 2), Part(DirtyZeroCopy, 1, 12, 2)]);
        self.footer(segment);
        let mut segment = Segment::new(14, 6, 107);
        self.record(&mut segment, 107, &[Part(Write, 0, 0, 1), Part(Write, 1, 20, 4)]);
        self.record(&mut segment, 108, &[]);
        let bad = Part(Bad, BAD_BLOCK.0, BAD_BLOCK.1, 1);
        self.record(&mut segment, 109, &[Part(Write, 0, 30, 3), Part(Write, 1, 1, 1), bad]);
        self.footer(segment);
        self.open_segment();
    }

    /// The newest segment: no footer but that of an earlier use, a record that is torn, and behind
    /// it one of an earlier life that had begun the same use. In the next segment, what another
    /// cache would have there if it were this one.
    fn open_segment(&mut self) {
        use EntryKind::{Write, Zero};
        self.old_footer(50, Segment::new(3, 3, 10), Segment::new(3, 2, 5));
        let mut segment = Segment::new(15, LIFE.0, LIFE.1);
        self.record(&mut segment, 110, &[Part(Write, 0, 40, 2)]);
        self.record(&mut segment, 111, &[Part(Write, 1, 40, 4), Part(Zero, 1, 50, 3)]);
        self.record(&mut segment, 112, &[Part(Write, 0, 2, 1)]);
        let torn = segment.page(segment.at);
        self.remains(&mut segment, 113, &[Part(Write, 0, 50, 2)]);
        self.pages[torn + 2] = None;
        let mut segment = Segment::new(15, LIFE.0 - 1, 107);
        segment.at = 40;
        self.remains(&mut segment, 110, &[Part(Write, 0, 40, 2)]);
        let former = || Segment::new(16, LIFE.0, LIFE.1).of(&FORMER);
        self.remains(&mut former(), 113, &[Part(Write, 0, 3, 1)]);
        self.old_footer(113, former(), Segment::new(4, 3, 10).of(&FORMER));
    }

    /// Writes a record that counts for nothing.
    fn remains(&mut self, segment: &mut Segment, sequence: u64, parts: &[Part]) {
        let (header, changes) = (self.structures.len(), self.changes.len());
        self.record(segment, sequence, parts);
        self.structures[header].kind = Kind::Remains;
        self.structures.truncate(header + 1);
        self.changes.truncate(changes);
    }

    /// Writes a footer that counts for nothing.
    fn old_footer(&mut self, sequence: u64, segment: Segment, earlier: Segment) {
        let (page, earlier) = (segment.footer_page(), small_footer(earlier, sequence - 5));
        self.add(Kind::Remains, sequence, page, &small_footer(segment, sequence), &earlier);
    }

    /// Writes a record: header and payload.
    fn record(&mut self, segment: &mut Segment, sequence: u64, parts: &[Part]) {
        let header = header(segment, sequence, parts, segment.segment_use);
        let page = segment.page(segment.at);
        let before = earlier_header(segment, sequence);
        let kind = if segment.segment_use == 15 { Kind::OnlyHeader } else { Kind::CopiedHeader };
        self.add(kind, sequence, page, header.as_bytes(), before.as_bytes());
        let mut at = page + 1;
        for &Part(kind, export, first, count) in parts {
            for block in first..first + u64::from(count) {
                let is_zero = !kind.has_payload();
                if kind.is_client_data() {
                    self.changes.push(Change { sequence, export, block, is_zero });
                }
                if is_zero {
                    continue;
                }
                let dirty = kind.is_client_data() && version(kind, sequence) > WATERMARKS[export];
                let bytes = payload(kind, export, block, sequence);
                let data = Kind::Payload(Data { export, block, dirty });
                self.add(data, sequence, at, &bytes, &content(export, block, 1));
                at += 1;
            }
        }
        segment.end = FooterBuilder::append(&mut segment.room, segment.end, &header, segment.at);
        segment.at += u32::try_from(at - page).expect("a small record");
        segment.first = if segment.first == 0 { sequence } else { segment.first };
        segment.last = sequence;
    }

    fn footer(&mut self, mut segment: Segment) {
        let bytes = seal_footer(&mut segment);
        let old = Segment::new(segment.segment_use - SEGMENTS, 3, 10);
        let before = small_footer(old, segment.first - 60);
        self.add(Kind::Footer, segment.last, segment.footer_page(), &bytes, &before);
    }
}

/// The footer of a segment as it is now.
fn seal_footer(segment: &mut Segment) -> Vec<u8> {
    let (fields, secret) = (footer_fields(segment), &segment.life.owner.secret);
    let bytes = FooterBuilder::seal(&mut segment.room, segment.end, fields, secret);
    segment.room[..bytes].to_vec()
}

/// The footer of a segment with one record, which has no payload.
fn small_footer(mut segment: Segment, sequence: u64) -> Vec<u8> {
    let parts = [Part(EntryKind::Zero, 0, 60, 1)];
    let header = header(&segment, sequence, &parts, segment.segment_use);
    segment.end = FooterBuilder::append(&mut segment.room, segment.end, &header, 0);
    (segment.first, segment.last) = (sequence, sequence);
    seal_footer(&mut segment)
}

fn footer_blocks() -> u32 {
    u32::try_from(footer_bytes(SEGMENT_BYTES_MIN) / BLOCK_BYTES_U64).expect("small")
}

fn footer_fields(segment: &Segment) -> Footer {
    let mut fields = Footer::new_zeroed();
    fields.cache_uuid = segment.life.owner.uuid;
    fields.incarnation = U64::new(segment.life.incarnation);
    fields.first_sequence = U64::new(segment.life.first_sequence);
    fields.segment_use = U64::new(segment.segment_use);
    fields.sequence_first = U64::new(segment.first);
    fields.sequence_last = U64::new(segment.last);
    fields.durable = U64::new(segment.last);
    fields.tail = U64::new(tail(segment.last));
    fields.watermarks = WATERMARKS_BY_SLOT.map(U64::new);
    fields
}

const WATERMARKS_BY_SLOT: [u64; ringfence_cache::limits::EXPORTS_MAX] = {
    let mut all = [0; ringfence_cache::limits::EXPORTS_MAX];
    all[0] = WATERMARKS[0];
    all
};

/// The oldest sequence that counted when one was written.
const fn tail(sequence: u64) -> u64 {
    if sequence < TAIL { 10 } else { TAIL }
}

/// The sequence that a part's data has: copies keep that of the original.
fn version(kind: EntryKind, sequence: u64) -> u64 {
    if kind.is_copy() { sequence - 40 } else { sequence }
}

/// What a fill or a re-append holds is what the origin has.
fn payload(kind: EntryKind, export: usize, block: u64, sequence: u64) -> Page {
    content(export, block, if kind.is_client_data() { sequence } else { 0 })
}

fn header(segment: &Segment, sequence: u64, parts: &[Part], segment_use: u64) -> RecordHeader {
    let mut header = RecordHeader::new_zeroed();
    header.begin();
    let owner = segment.life.owner;
    header.cache_uuid = owner.uuid;
    header.incarnation = U64::new(segment.life.incarnation);
    header.nonce = U64::new(incarnation_nonce(&owner.secret, segment.life.incarnation));
    header.first_sequence = U64::new(segment.life.first_sequence);
    header.segment_use = U64::new(segment_use);
    header.device_offset = U64::new(segment.page(segment.at) as u64 * BLOCK_BYTES_U64);
    header.sequence = U64::new(sequence);
    header.durable = U64::new((sequence - 1).min(DURABLE));
    header.tail = U64::new(tail(sequence));
    header.wall_ns = U64::new(sequence * 1_000_000_000);
    header.watermarks = WATERMARKS_BY_SLOT.map(U64::new);
    header.epoch_starts = U64::new(sequence % 3);
    let mut at = 0;
    let mut sums = Vec::new();
    for &Part(kind, export, first, count) in parts {
        let layer = u32::try_from(export).expect("few") + 1;
        let mut entry = Entry::new(kind, EntryFlags::default(), layer, first, count);
        if kind.is_copy() {
            entry.version = U64::new(version(kind, sequence));
        }
        header.body[at..at + size_of::<Entry>()].copy_from_slice(entry.as_bytes());
        at += size_of::<Entry>();
        if kind.has_payload() {
            let blocks = first..first + u64::from(count);
            sums.extend(blocks.map(|block| checksum(&payload(kind, export, block, sequence))));
        }
    }
    for sum in &sums {
        header.body[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        at += 4;
    }
    header.entry_count = U16::new(u16::try_from(parts.len()).expect("few"));
    header.payload_blocks = U16::new(u16::try_from(sums.len()).expect("few"));
    header.seal();
    header
}

/// An intact header of an earlier use of the same place.
fn earlier_header(segment: &Segment, sequence: u64) -> RecordHeader {
    let mut old = Segment::new(segment.segment_use, 3, 10).of(segment.life.owner);
    old.at = segment.at;
    let parts = [Part(EntryKind::Zero, 0, 60, 1)];
    header(&old, sequence - 60, &parts, segment.segment_use - SEGMENTS)
}
