//! Quiet faults of the cache device: writes that are lost or land elsewhere, bits that rot, sectors
//! that show what was there before. And what each of them explains, which is not much.
//!
//! Every record that the engine writes is noted with the moment of it, so that damage is known by
//! the sequences and the client blocks that it hits. A client error is explained only at such a
//! block. Flushed data may be gone only from a record on that was hit: one that the start named
//! when it refused, or one behind which no header on the device says that it was durable; and only
//! what its client came to know as durable after that record was written, or what had been carried
//! there or later, so that it is nowhere else. That holds at later starts, too: the origin may hide
//! the loss until its own power fails.

use crate::checker::{Loss, Resolution};
use crate::content::{self, Value};
use crate::device::WriteSerial;
use crate::faults::FaultKind;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::format::{EntryKind, HeaderExpectation, RecordHeader, Superblock};
use ringfence_cache::limits::{
    SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS, footer_bytes,
};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use zerocopy::FromBytes;

/// Damages of one world, so that something is left to be read.
const EVENTS_MAX: u32 = 6;
const LOG_PAGE: u64 = SEGMENTS_OFFSET / BLOCK_BYTES_U64;
const SEGMENT_PAGES: u64 = SEGMENT_BYTES_MIN / BLOCK_BYTES_U64;

/// A record as it was last written to a place.
#[derive(Clone, Debug)]
struct Written {
    /// When; a later record with its number makes it void.
    at: u64,
    pages: u64,
    sequence: u64,
    /// Which block of its export each page behind the header has.
    blocks: Rc<[u64]>,
}

/// When a record was written, and what went with it.
#[derive(Clone, Debug)]
struct Moment {
    at: u64,
    segment_use: u64,
    /// Blocks whose dirty data was copied there from the tail; of which export is not said.
    carried: Rc<[Range<u64>]>,
}

/// What was damaged so far.
#[derive(Clone, Debug, Default)]
pub struct Damage {
    events: u32,
    /// Blocks of exports with data in something that was damaged.
    blocks: BTreeSet<(u8, u64)>,
    /// Records that were damaged.
    sequences: BTreeSet<u64>,
    /// Records by the first page of the place they were written to.
    records: BTreeMap<u64, Written>,
    /// By sequence.
    moments: BTreeMap<u64, Moment>,
    /// Writes that land elsewhere, until they have been flushed, and the pages where they do.
    misdirected: Vec<(WriteSerial, Range<u64>)>,
}

impl Damage {
    /// Whether anything was.
    #[must_use]
    pub fn any(&self) -> bool {
        self.events > 0
    }

    /// Whether a range of an export has data in what was.
    #[must_use]
    pub fn touches(&self, export: u8, offset: u64, length: u64) -> bool {
        let first = offset / BLOCK_BYTES_U64;
        let end = (offset + length).div_ceil(BLOCK_BYTES_U64);
        self.blocks.range((export, first)..(export, end)).next().is_some()
    }

    /// Whether a record was.
    #[must_use]
    pub fn hit(&self, sequence: u64) -> bool {
        self.sequences.contains(&sequence)
    }

    /// Forgets the records that the newest superblock makes void: their damage explains no later
    /// loss.
    fn forget_void(&mut self, superblock: &Superblock) {
        let next = superblock.first_sequence.get();
        let is_void = |of: u64| of >= next || superblock.accepts_loss_of(of);
        self.sequences.retain(|sequence| !is_void(*sequence));
        self.moments.retain(|sequence, _| !is_void(*sequence));
    }

    /// Notes the records that a device write carries.
    fn note_records(&mut self, offset: u64, bytes: &[u8], moment: u64) {
        let mut at = 0;
        while at < bytes.len() {
            let place = offset + at as u64;
            let header = RecordHeader::ref_from_bytes(&bytes[at..at + BLOCK_BYTES]);
            let Some(header) = header.ok().filter(|header| header.device_offset.get() == place)
            else {
                return;
            };
            let (first, sequence) = (place / BLOCK_BYTES_U64, header.sequence.get());
            let pages = 1 + u64::from(header.payload_blocks.get());
            let entries = header.entries().iter();
            let range = |first: u64, blocks: u32| first..first + u64::from(blocks);
            let payload = entries.clone().map(|e| range(e.block.get(), e.payload_blocks()));
            let blocks = payload.flatten().collect();
            let is_carried = |kind| matches!(kind, EntryKind::DirtyCopy | EntryKind::DirtyZeroCopy);
            let carried = entries.filter(|entry| is_carried(entry.kind()));
            let carried = carried.map(|e| range(e.block.get(), e.count.get())).collect();
            let segment_use = header.segment_use.get();
            self.records
                .retain(|start, old| *start + old.pages <= first || *start >= first + pages);
            self.records.insert(first, Written { at: moment, pages, sequence, blocks });
            self.moments.insert(sequence, Moment { at: moment, segment_use, carried });
            at += usize::try_from(pages).expect("a record") * BLOCK_BYTES;
        }
    }

    /// Notes that whatever record lies at a page is damaged. If the page has payload, the number of
    /// the block in its export.
    fn note_page(&mut self, page: u64) -> Option<u64> {
        let (start, record) = self.records.range(..=page).next_back()?;
        let at = page - start;
        let is_void = self.moments.get(&record.sequence).is_none_or(|known| known.at != record.at);
        if at >= record.pages || is_void {
            return None;
        }
        self.sequences.insert(record.sequence);
        let payload = usize::try_from(at).expect("a record").checked_sub(1)?;
        record.blocks.get(payload).copied()
    }

    /// What may be gone with a record and everything behind it. A block has so many units.
    fn loss_from(&self, first: u64, found: u64, block_units: u64) -> Option<Loss> {
        let until = self.moments.get(&first)?.at;
        let carried = self.moments.range(first..).flat_map(|(_, record)| record.carried.iter());
        let carried = carried.map(|blocks| blocks.start * block_units..blocks.end * block_units);
        Some(Loss::new(found, until, carried.collect()))
    }
}

impl World {
    /// Whether the device has quiet faults in this world.
    pub(crate) fn has_quiet_faults(&self) -> bool {
        self.scenario.faults.quiet_device() > 0
    }

    /// The device takes a write, or only says so.
    pub(crate) fn device_takes(
        &mut self,
        offset: u64,
        bytes: &[u8],
        may_fail: bool,
    ) -> WriteSerial {
        if !self.has_quiet_faults() {
            return self.device.submit_write(offset, bytes);
        }
        let moment = self.checker.history.now();
        self.damage.note_records(offset, bytes, moment);
        self.note_threatened(offset / BLOCK_BYTES_U64, bytes);
        let faults = self.scenario.faults;
        let pages = (bytes.len() / BLOCK_BYTES) as u64;
        let in_log = offset >= SEGMENTS_OFFSET;
        let may = may_fail && in_log && self.damage.events < EVENTS_MAX;
        if may && self.random.chance(faults.device_lost_write) {
            self.count_damage(FaultKind::LostWrite, || format!("the write at {offset} is lost"));
            self.note_damage(offset / BLOCK_BYTES_U64, bytes);
            return self.device.submit_lost_write(offset, bytes);
        }
        if may && self.random.chance(faults.device_misdirected_write) {
            let log_pages = self.device.size_bytes() / BLOCK_BYTES_U64 - LOG_PAGE;
            let wrong = (LOG_PAGE + self.random.below(log_pages - pages + 1)) * BLOCK_BYTES_U64;
            self.count_damage(FaultKind::MisdirectedWrite, || {
                format!("the write at {offset} lands at {wrong}")
            });
            self.note_damage(offset / BLOCK_BYTES_U64, bytes);
            let landing = wrong / BLOCK_BYTES_U64..wrong / BLOCK_BYTES_U64 + pages;
            landing.clone().for_each(|page| self.note_content(page));
            let serial = self.device.submit_write(wrong, bytes);
            self.damage.misdirected.push((serial, landing));
            return serial;
        }
        self.device.submit_write(offset, bytes)
    }

    /// Time passes for the medium: a bit may rot, or a sector show what was there before.
    pub(crate) fn age_medium(&mut self) {
        let faults = self.scenario.faults;
        if !self.has_quiet_faults() || self.damage.events >= EVENTS_MAX {
            return;
        }
        if self.random.chance(faults.device_rot) && !self.damage.records.is_empty() {
            // The newest record is the one that may be known to no other.
            let newest = self.random.percent(50);
            let at = self.random.index(self.damage.records.len());
            let mut records = self.damage.records.iter();
            let drawn = if newest {
                records.max_by_key(|(_, record)| record.sequence)
            } else {
                records.nth(at)
            };
            let (&first, &Written { pages, .. }) = drawn.expect("a record");
            // The header as often as everything behind it.
            let header = self.random.percent(50);
            let page = if header { first } else { first + self.random.below(pages) };
            let bit = self.random.index(BLOCK_BYTES * 8);
            self.count_damage(FaultKind::RotAtRest, || format!("bit {bit} of page {page} rots"));
            self.note_content(page);
            self.device.rot(page, bit);
        }
        if self.random.chance(faults.device_stale) {
            let whole = self.random.percent(50);
            let Some(page) = self.device.draw_earlier(&mut self.random) else { return };
            if page < LOG_PAGE {
                return;
            }
            self.count_damage(FaultKind::StaleSector, || {
                format!("page {page} shows what was there before, whole: {whole}")
            });
            self.note_content(page);
            self.device.show_earlier(page, whole, &mut self.random);
        }
    }

    fn count_damage(&mut self, kind: FaultKind, text: impl FnOnce() -> String) {
        self.tally.faults.count(kind);
        self.damage.events += 1;
        self.trace.line(self.now_ns, text);
    }

    /// Notes what is on a page, or will be once the writes in flight have ended.
    fn note_content(&mut self, page: u64) {
        for bytes in self.device.contents_of(page) {
            self.note_damage(page, &bytes[..]);
        }
    }

    /// Notes what of a write an earlier one that lands elsewhere may replace: until that one is
    /// flushed, completions and a power cut may put it last.
    fn note_threatened(&mut self, first: u64, bytes: &[u8]) {
        let end = first + (bytes.len() / BLOCK_BYTES) as u64;
        let device = &self.device;
        self.damage.misdirected.retain(|(serial, _)| device.is_pending(*serial));
        let landings = self.damage.misdirected.iter().map(|(_, landing)| landing);
        let common = landings.map(|landing| first.max(landing.start)..end.min(landing.end));
        for pages in common.filter(|pages| !pages.is_empty()).collect::<Vec<_>>() {
            let [start, end] =
                [pages.start, pages.end].map(|page| (page - first) as usize * BLOCK_BYTES);
            self.note_damage(pages.start, &bytes[start..end]);
        }
    }

    /// Notes that bytes, from a page on, are damaged.
    fn note_damage(&mut self, first_page: u64, bytes: &[u8]) {
        for (block, page) in bytes.chunks_exact(BLOCK_BYTES).zip(first_page..) {
            let number = self.damage.note_page(page);
            if let Some((export, offset)) = self.owner_of(block) {
                self.damage.blocks.insert((export, offset / BLOCK_BYTES_U64));
            } else if let Some(number) = number {
                // Payload of nothing but zeroes: it does not name its export.
                let exports = 0..self.content_limits().0;
                self.damage.blocks.extend(exports.map(|export| (export, number)));
            }
        }
    }

    /// Whose data a block is: the export, and the offset in it.
    fn owner_of(&self, block: &[u8]) -> Option<(u8, u64)> {
        let (exports, cells) = self.content_limits();
        let (export, offset, write) = content::owner(block, exports, cells)?;
        let unit = usize::try_from(offset / self.scenario.unit_bytes).ok()?;
        let history = &self.checker.history;
        (history.names(write) && history.get(write).covers(export, unit))
            .then_some((export, offset))
    }

    /// Notes what of flushed data may be gone since the last restart, if damage explains that.
    pub(crate) fn note_loss(&mut self) {
        self.is_loss_new = false;
        if !self.damage.any() {
            return;
        }
        if let Some(loss) = self.find_loss() {
            self.is_loss_new = true;
            self.losses.push(loss);
            // How far they are behind is lost as well, or where an epoch ended.
            self.origins.iter_mut().for_each(|origin| origin.forget_order());
        }
        if let Some(superblock) = self.superblock() {
            self.damage.forget_void(&superblock);
        }
    }

    fn find_loss(&mut self) -> Option<Loss> {
        let (found, block_units) =
            (self.checker.history.now(), BLOCK_BYTES_U64 / self.scenario.unit_bytes);
        if let Some(first) = self.accepted_loss {
            return self.damage.loss_from(first, found, block_units);
        }
        let superblock = self.superblock()?;
        let cut = superblock.first_sequence.get();
        let segment_use = self.damage.moments.get(&cut)?.segment_use;
        let (known, hit) = (self.known_durable(&superblock, segment_use), self.damage.hit(cut));
        self.trace.line(self.now_ns, || {
            format!("the log is cut at {cut} (damaged: {hit}); durable up to {known} is known")
        });
        if hit && known < cut { self.damage.loss_from(cut, found, block_units) } else { None }
    }

    /// The newest superblock on the device.
    fn superblock(&self) -> Option<Superblock> {
        let copies = SUPERBLOCK_OFFSETS.into_iter().filter_map(|offset| {
            let mut block = [0; BLOCK_BYTES];
            self.device.read(offset, &mut block);
            Superblock::parse(&block).ok()
        });
        copies.max_by_key(|copy| (copy.incarnation.get(), copy.revision.get()))
    }

    /// The highest sequence that an intact header of the last life says was durable. Every block of
    /// the log is looked at, so that recovery's own search is judged by another; what lies behind
    /// a segment of which nothing is left does not count (decision 0013).
    fn known_durable(&self, superblock: &Superblock, cut_use: u64) -> u64 {
        let mut by_use = BTreeMap::new();
        let payload_pages = SEGMENT_PAGES - footer_bytes(SEGMENT_BYTES_MIN) / BLOCK_BYTES_U64;
        for page in LOG_PAGE..self.device.size_bytes() / BLOCK_BYTES_U64 {
            let in_segment = (page - LOG_PAGE) % SEGMENT_PAGES;
            let shown = self.device.page(page).filter(|_| in_segment < payload_pages);
            let Some(block) = shown else { continue };
            let expectation = HeaderExpectation {
                cache_uuid: &superblock.cache_uuid,
                secret: &superblock.secret,
                device_offset: page * BLOCK_BYTES_U64,
                payload_blocks_max: (payload_pages - in_segment - 1) as usize,
            };
            if let Ok(header) = RecordHeader::parse(block, &expectation)
                && header.incarnation.get() + 1 == superblock.incarnation.get()
            {
                let durable = by_use.entry(header.segment_use.get()).or_insert(0);
                *durable = header.durable.get().max(*durable);
            }
        }
        let unseen = (cut_use..).find(|of| !by_use.contains_key(of)).unwrap_or(u64::MAX);
        by_use.range(..unseen).map(|(_, durable)| *durable).max().unwrap_or(0)
    }

    /// What was found after a restart breaks a promise: unless damage explains it, that is so. What
    /// is explained mostly ends the world all the same, since origins may have what the cache has
    /// lost: see [`World::outlive`].
    pub(crate) fn explain(&mut self, violation: Violation) -> Violation {
        let is_loss = matches!(
            violation.kind,
            Kind::Lost | Kind::Stale | Kind::LogOrder | Kind::Torn | Kind::OriginAhead
        );
        if !is_loss || self.losses.is_empty() {
            return violation;
        }
        // What the origin was given from a log without its end is no disk that existed.
        let is_of_origin = violation.kind == Kind::OriginAhead && self.is_loss_new;
        match self.checker.check_excused(&self.contents, &self.losses) {
            Err(worse) if !is_of_origin => return worse,
            // An older loss explains nothing by itself: something of it has to be missing now.
            Ok(false) if !self.is_loss_new => return violation,
            _ => {}
        }
        let named = self.accepted_loss.is_some();
        let kind = if named { FaultKind::LossNamed } else { FaultKind::LossUnknowable };
        self.tally.faults.count(kind);
        let detail = format!("damage explains it: {}", violation.detail);
        self.trace.line(self.now_ns, || detail.clone());
        Violation::new(Kind::Explained, detail)
    }

    /// A start was checked: from now on losses explain only what origins have not flushed, or what
    /// nobody but the cache has any more: it was read from an origin that has lost it since.
    pub(crate) fn narrow_losses(&mut self, resolution: &Resolution) {
        if self.losses.is_empty() {
            return;
        }
        let hidden = self.origins.iter().zip(0..).map(|(origin, export)| {
            let lacks = |(unit, &value): (usize, &Value)| !resolution.shows(export, unit, value);
            let lacks = origin.live().iter().enumerate().map(lacks);
            origin.unflushed().into_iter().zip(lacks).map(|(one, other)| one || other).collect()
        });
        let hidden: Rc<[Vec<bool>]> = hidden.collect();
        if hidden.iter().flatten().any(|is_hidden| *is_hidden) {
            self.losses.iter_mut().for_each(|loss| loss.hide(&hidden));
        } else {
            self.losses.clear();
        }
    }

    /// Goes on behind a loss that was explained, if what is left could be the work of a crash, and
    /// no origin shows more, or may yet show less.
    pub(crate) fn outlive(&mut self) -> Option<Resolution> {
        let contents = std::mem::take(&mut self.contents);
        let resolution = self.checker.outlive(contents)?;
        let may_change = self.origins.iter().zip(0..).any(|(origin, export)| {
            let mut units = 0..origin.live().len();
            units.any(|unit| {
                let mut possible = origin.possible(unit);
                // What it has not flushed a power cut may take, in part: nothing else has it now.
                possible.any(|value| {
                    value != origin.live()[unit]
                        || self.checker.is_ahead(&resolution, export, unit, value)
                })
            })
        });
        if may_change {
            return None;
        }
        self.tally.faults.count(FaultKind::LossOutlived);
        self.trace.line(self.now_ns, || "the world goes on behind it".into());
        Some(resolution)
    }
}
