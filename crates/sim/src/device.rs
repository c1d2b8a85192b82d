//! The simulated cache device: what it shows, what would survive a power cut, and what it was
//! told to write in between.
//!
//! Pages are shared between the images and with clones of the device, so that a crash can be
//! tried on a clone without copying the device.

use crate::random::Random;
use ringfence_cache::limits::SEGMENTS_OFFSET;
use ringfence_cache::units::BLOCK_BYTES;
use ringfence_cache::{ReadPiece, Storage, StorageError};
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

/// The smallest piece that survives a power cut as a whole.
pub const SECTOR_BYTES: usize = 512;
/// Pages of which it is kept what they held before, at most.
const EARLIER_MAX: usize = 1024;
const SECTORS_PER_PAGE: usize = BLOCK_BYTES / SECTOR_BYTES;

type Page = [u8; BLOCK_BYTES];

/// Pages that clones of an image share as one, so that cloning costs little.
const CHUNK_PAGES: usize = 128;
type Chunk = [Option<Rc<Page>>; CHUNK_PAGES];

/// Names a write until it has been flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteSerial(u64);

/// How many writes had completed when a flush was submitted: those it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushCover(u64);

/// What a power cut left of the writes that no flush had covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survival {
    /// How many there were.
    pub all: usize,
    /// How many survived, at least in part.
    pub survived: usize,
    /// How many may have survived in part only.
    pub torn: usize,
}

impl fmt::Display for Survival {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { all, survived, torn } = self;
        write!(formatter, "{survived} of {all} device writes survive, {torn} of them torn")
    }
}

/// The content of the device as one party sees it. Pages never written read as zeroes.
#[derive(Clone, Debug)]
struct Image {
    chunks: Vec<Option<Rc<Chunk>>>,
    pages: usize,
}

impl Image {
    fn new(pages: usize) -> Self {
        Self { chunks: vec![None; pages.div_ceil(CHUNK_PAGES)], pages }
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        for (block, index) in into.chunks_exact_mut(BLOCK_BYTES).zip(page_index(offset)..) {
            assert!(index < self.pages, "a read past the end");
            let chunk = self.chunks[index / CHUNK_PAGES].as_ref();
            match chunk.and_then(|chunk| chunk[index % CHUNK_PAGES].as_ref()) {
                Some(page) => block.copy_from_slice(&page[..]),
                None => block.fill(0),
            }
        }
    }

    fn page(&self, index: usize) -> Option<&Rc<Page>> {
        self.chunks[index / CHUNK_PAGES].as_ref()?[index % CHUNK_PAGES].as_ref()
    }

    /// The first page from one on that was ever written; the number of pages if there is none.
    fn written_from(&self, index: usize) -> usize {
        let mut index = index;
        while index < self.pages {
            match &self.chunks[index / CHUNK_PAGES] {
                Some(chunk) if chunk[index % CHUNK_PAGES].is_some() => return index,
                Some(_) => index += 1,
                None => index = (index / CHUNK_PAGES + 1) * CHUNK_PAGES,
            }
        }
        self.pages
    }

    fn slot_mut(&mut self, index: usize) -> &mut Option<Rc<Page>> {
        let chunk = &mut self.chunks[index / CHUNK_PAGES];
        let chunk = chunk.get_or_insert_with(|| Rc::new([const { None }; CHUNK_PAGES]));
        &mut Rc::make_mut(chunk)[index % CHUNK_PAGES]
    }

    fn page_mut(&mut self, index: usize) -> &mut Page {
        Rc::make_mut(self.slot_mut(index).get_or_insert_with(|| Rc::new([0; BLOCK_BYTES])))
    }

    fn write(&mut self, write: &PendingWrite) {
        for (page, index) in write.pages.iter().zip(page_index(write.offset)..) {
            *self.slot_mut(index) = Some(page.clone());
        }
    }

    fn write_sector(&mut self, write: &PendingWrite, sector: usize) {
        let from = &write.pages[sector / SECTORS_PER_PAGE];
        let start = sector % SECTORS_PER_PAGE * SECTOR_BYTES;
        let index = page_index(write.offset) + sector / SECTORS_PER_PAGE;
        self.page_mut(index)[start..start + SECTOR_BYTES]
            .copy_from_slice(&from[start..start + SECTOR_BYTES]);
    }
}

fn page_index(offset: u64) -> usize {
    assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "unaligned device offset {offset}");
    usize::try_from(offset).expect("a small device") / BLOCK_BYTES
}

/// A write that a power cut may still undo.
#[derive(Clone, Debug)]
struct PendingWrite {
    serial: WriteSerial,
    offset: u64,
    pages: Rc<[Rc<Page>]>,
    /// Its place in the order of completions; `None` while in flight.
    completion: Option<u64>,
    /// Whether it is reported as done and never happens.
    lost: bool,
}

impl PendingWrite {
    fn sectors(&self) -> usize {
        self.pages.len() * SECTORS_PER_PAGE
    }
}

/// A block device with a volatile write cache.
#[derive(Clone, Debug)]
pub struct SimDevice {
    durable: Image,
    live: Image,
    pending: Vec<PendingWrite>,
    serials: u64,
    completions: u64,
    /// What writes have replaced, newest last, if it is kept: the page and what it held.
    earlier: Option<VecDeque<(usize, Option<Rc<Page>>)>>,
}

impl SimDevice {
    /// A device that reads as zeroes.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let image = Image::new(page_index(size_bytes));
        let live = image.clone();
        Self {
            durable: image,
            live,
            pending: Vec::new(),
            serials: 0,
            completions: 0,
            earlier: None,
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        (self.live.pages * BLOCK_BYTES) as u64
    }

    /// Fills `into` with what the device shows at `offset`.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        self.live.read(offset, into);
    }

    /// Takes a write. It shows once it has completed; from now on it may survive a power cut.
    pub fn submit_write(&mut self, offset: u64, bytes: &[u8]) -> WriteSerial {
        let (pages, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        assert!(rest.is_empty(), "unaligned device write of {} bytes", bytes.len());
        assert!(page_index(offset) + pages.len() <= self.live.pages, "a write past the end");
        self.serials += 1;
        let serial = WriteSerial(self.serials);
        let pages = pages.iter().map(|page| Rc::new(*page)).collect();
        self.pending.push(PendingWrite { serial, offset, pages, completion: None, lost: false });
        serial
    }

    /// Takes a write that will be reported as done, will never show, and survives nothing.
    pub fn submit_lost_write(&mut self, offset: u64, bytes: &[u8]) -> WriteSerial {
        let serial = self.submit_write(offset, bytes);
        self.pending.last_mut().expect("it was just submitted").lost = true;
        serial
    }

    /// From now on keeps some of what writes replace, so that it can come back.
    pub fn keep_earlier(&mut self) {
        self.earlier = Some(VecDeque::new());
    }

    /// A page of which it is known what it held before.
    pub fn draw_earlier(&self, random: &mut Random) -> Option<u64> {
        let earlier = self.earlier.as_ref().filter(|earlier| !earlier.is_empty())?;
        Some(earlier[random.index(earlier.len())].0 as u64)
    }

    /// A page, or a sector of it, shows what it held before.
    pub fn show_earlier(&mut self, page: u64, whole: bool, random: &mut Random) {
        let index = usize::try_from(page).expect("a small device");
        let earlier = self.earlier.iter().flatten();
        let Some(old) = earlier.rev().find(|(of, _)| *of == index).map(|(_, old)| old.clone())
        else {
            return;
        };
        let start = random.index(SECTORS_PER_PAGE) * SECTOR_BYTES;
        let range = if whole { 0..BLOCK_BYTES } else { start..start + SECTOR_BYTES };
        self.change_page(index, &|page| {
            let shown = &mut page[range.clone()];
            match &old {
                Some(old) => shown.copy_from_slice(&old[range.clone()]),
                None => shown.fill(0),
            }
        });
    }

    /// Changes a page wherever the device has it: a flush does not mend what its cache holds.
    fn change_page(&mut self, index: usize, change: &dyn Fn(&mut Page)) {
        for image in [&mut self.live, &mut self.durable] {
            change(image.page_mut(index));
        }
        for write in self.pending.iter_mut().filter(|write| write.completion.is_some()) {
            let at = index.checked_sub(page_index(write.offset));
            if let Some(at) = at.filter(|at| *at < write.pages.len()) {
                change(Rc::make_mut(&mut Rc::make_mut(&mut write.pages)[at]));
            }
        }
    }

    /// A bit of a page changes by itself.
    pub fn rot(&mut self, page: u64, bit: usize) {
        let index = usize::try_from(page).expect("a small device");
        self.change_page(index, &|page| page[bit / 8] ^= 1 << (bit % 8));
    }

    /// What a page shows, if it was ever written.
    #[must_use]
    pub fn page(&self, page: u64) -> Option<&[u8; BLOCK_BYTES]> {
        self.live.page(usize::try_from(page).expect("a small device")).map(Rc::as_ref)
    }

    /// What a page shows, and what it would show after a power cut or a write in flight.
    #[must_use]
    pub fn contents_of(&self, page: u64) -> Vec<Rc<Page>> {
        let index = usize::try_from(page).expect("a small device");
        let images = [&self.live, &self.durable].into_iter().filter_map(|image| image.page(index));
        let pending = self.pending.iter().filter_map(|write| {
            index.checked_sub(page_index(write.offset)).and_then(|at| write.pages.get(at))
        });
        images.chain(pending).cloned().collect()
    }

    /// Whether a write in flight still equals the memory it was submitted from.
    #[must_use]
    pub fn in_flight_equals(&self, serial: WriteSerial, bytes: &[u8]) -> bool {
        let write = self.pending.iter().rfind(|write| write.serial == serial);
        write.is_some_and(|write| {
            let (pages, _) = bytes.as_chunks::<BLOCK_BYTES>();
            pages.iter().zip(write.pages.iter()).all(|(now, then)| *now == **then)
        })
    }

    /// A write has ended well.
    pub fn complete_write(&mut self, serial: WriteSerial) {
        let at = self.position(serial);
        self.completions += 1;
        if self.pending[at].lost {
            self.pending.remove(at);
            return;
        }
        self.pending[at].completion = Some(self.completions);
        self.remember(at);
        self.live.write(&self.pending[at]);
    }

    /// Keeps what a write is about to replace.
    fn remember(&mut self, at: usize) {
        let Some(earlier) = &mut self.earlier else { return };
        let write = &self.pending[at];
        for index in (page_index(write.offset)..).take(write.pages.len()) {
            earlier.push_back((index, self.live.page(index).cloned()));
        }
        let excess = earlier.len().saturating_sub(EARLIER_MAX);
        earlier.drain(..excess);
    }

    /// A write has ended with an error: any of its sectors may have reached the device.
    pub fn fail_write(&mut self, serial: WriteSerial, random: &mut Random) {
        let at = self.position(serial);
        let write = self.pending.remove(at);
        for sector in 0..if write.lost { 0 } else { write.sectors() } {
            if random.percent(50) {
                self.live.write_sector(&write, sector);
                self.durable.write_sector(&write, sector);
            }
        }
    }

    /// What a flush that is submitted now will cover.
    #[must_use]
    pub fn cover(&self) -> FlushCover {
        FlushCover(self.completions)
    }

    /// A flush has ended well.
    pub fn complete_flush(&mut self, cover: FlushCover) {
        let covered = |write: &PendingWrite| write.completion.is_some_and(|at| at <= cover.0);
        let mut done: Vec<_> = self.pending.extract_if(.., |write| covered(write)).collect();
        done.sort_by_key(|write| write.completion);
        for write in &done {
            self.durable.write(write);
        }
    }

    /// The power fails: of the writes not flushed any subset survives, in any order, torn at
    /// [`SECTOR_BYTES`].
    pub fn power_cut(&mut self, random: &mut Random) -> Survival {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain(|write| !write.lost);
        let mut left = Survival { all: pending.len(), ..Survival::default() };
        let survive_percent = random.pick(&[0, 10, 50, 50, 90, 100]);
        let torn_percent = random.pick(&[0, 0, 10, 50]);
        // A prefix is what a disk without reordering leaves: as likely as anything else.
        let prefix = random.percent(25).then(|| random.index(left.all + 1));
        if prefix.is_none() && random.percent(50) {
            random.shuffle(&mut pending);
        }
        for (index, write) in pending.iter().enumerate() {
            let survives = match prefix {
                Some(length) => index < length,
                None => random.percent(survive_percent),
            };
            let torn = prefix == Some(index) || survives && random.percent(torn_percent);
            if torn {
                tear(&mut self.durable, write, random);
            } else if survives {
                self.durable.write(write);
            }
            left.survived += usize::from(survives || torn);
            left.torn += usize::from(torn);
        }
        self.live = self.durable.clone();
        left
    }

    /// How many writes there have been.
    #[must_use]
    pub fn writes_submitted(&self) -> u64 {
        self.serials
    }

    /// Whether a power cut could undo a write now.
    #[must_use]
    pub fn is_pending(&self, serial: WriteSerial) -> bool {
        self.pending.iter().any(|write| write.serial == serial)
    }

    /// How many writes a power cut could undo now.
    #[must_use]
    pub fn pending_writes(&self) -> usize {
        self.pending.len()
    }

    /// The power fails, and exactly the pending writes whose bits are set survive.
    pub fn power_cut_keeping(&mut self, survivors: u64) {
        for (index, write) in std::mem::take(&mut self.pending).iter().enumerate() {
            if survivors >> index & 1 == 1 {
                self.durable.write(write);
            }
        }
        self.live = self.durable.clone();
    }

    /// The process that used the device is gone, the power is not: what was in flight ends in
    /// the kernel or never left the process.
    pub fn abandon_in_flight(&mut self, random: &mut Random) {
        self.abandon_all(|| random.percent(70));
    }

    /// The same, with the word on each write in flight whether it ends.
    pub fn abandon_all(&mut self, mut ends: impl FnMut() -> bool) {
        let in_flight: Vec<_> = self
            .pending
            .iter()
            .filter(|write| write.completion.is_none())
            .map(|write| write.serial)
            .collect();
        for serial in in_flight {
            if ends() {
                self.complete_write(serial);
            } else {
                let at = self.position(serial);
                self.pending.remove(at);
            }
        }
    }

    fn position(&self, serial: WriteSerial) -> usize {
        self.pending.iter().rposition(|write| write.serial == serial).expect("a pending write")
    }
}

/// Lets only some sectors of a write survive.
fn tear(image: &mut Image, write: &PendingWrite, random: &mut Random) {
    let sectors = write.sectors();
    if random.percent(50) {
        for sector in 0..random.index(sectors + 1) {
            image.write_sector(write, sector);
        }
    } else {
        let percent = random.pick(&[10, 50, 90]);
        for sector in 0..sectors {
            if random.percent(percent) {
                image.write_sector(write, sector);
            }
        }
    }
}

/// Unwinds from a blocking operation of the device when the power fails in it.
#[derive(Debug)]
pub struct PowerCut;

/// The device as `format` and recovery use it. Where a cut is due, it unwinds with [`PowerCut`],
/// so that no error path of the code under test stands between the cut and the restart.
#[derive(Debug)]
pub struct BlockingDevice<'a> {
    device: &'a mut SimDevice,
    /// Writes and flushes until the power fails. Reads change nothing: a cut in one of them is the
    /// cut in what follows.
    cut_after: Option<u64>,
    /// Operations that fail, counted from zero.
    failing: Range<u64>,
    /// Writes of superblocks and export table until one is lost, if one is to be.
    lost_after: Option<u64>,
    has_lost: bool,
    /// Operations so far.
    operations: u64,
    /// Those of them that change the device.
    changes: u64,
}

impl<'a> BlockingDevice<'a> {
    /// The device, with the power failing in the write or flush after `cut_after` others.
    pub fn new(device: &'a mut SimDevice, cut_after: Option<u64>) -> Self {
        let (failing, lost_after, has_lost) = (0..0, None, false);
        Self { device, cut_after, failing, lost_after, has_lost, operations: 0, changes: 0 }
    }

    /// Lets some operations fail, counted from zero.
    pub fn fail(&mut self, operations: Range<u64>) {
        self.failing = operations;
    }

    /// Lets one write of a superblock or of the export table be lost, after so many others.
    pub fn lose(&mut self, after: u64) {
        self.lost_after = Some(after);
    }

    /// Whether one was.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        self.has_lost
    }

    /// Whether a write is the one that is lost.
    fn loses(&mut self, offset: u64) -> bool {
        let Some(after) = self.lost_after.filter(|_| offset < SEGMENTS_OFFSET) else {
            return false;
        };
        self.lost_after = after.checked_sub(1);
        self.has_lost |= after == 0;
        after == 0
    }

    /// How many operations there were.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Counts an operation: it may be the one in which the power fails, or fail itself.
    fn count(&mut self, operation: &'static str, offset: u64) -> Result<(), StorageError> {
        let number = self.operations;
        self.operations += 1;
        self.changes += u64::from(operation != "read");
        if self.cut_after.is_some_and(|after| self.changes > after) {
            std::panic::resume_unwind(Box::new(PowerCut));
        }
        if self.failing.contains(&number) {
            let source = std::io::Error::from_raw_os_error(5);
            return Err(StorageError { operation, offset, source });
        }
        Ok(())
    }
}

impl Storage for BlockingDevice<'_> {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        self.count("read", pieces.first().map_or(0, |piece| piece.offset))?;
        for piece in pieces {
            self.device.read(piece.offset, piece.into);
        }
        Ok(())
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        (self.device.live.written_from(page_index(offset)) * BLOCK_BYTES) as u64
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let serial = if self.loses(offset) {
            self.device.submit_lost_write(offset, bytes)
        } else {
            self.device.submit_write(offset, bytes)
        };
        if let Err(error) = self.count("write", offset) {
            self.device.fail_write(serial, &mut Random::new(self.operations));
            return Err(error);
        }
        self.device.complete_write(serial);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.count("flush", 0)?;
        let cover = self.device.cover();
        self.device.complete_flush(cover);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(device: &SimDevice, offset: u64) -> u8 {
        let mut block = [0; BLOCK_BYTES];
        device.read(offset, &mut block);
        block[0]
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_was_submitted() {
        let mut losses = 0;
        for seed in 0..64 {
            let mut device = SimDevice::new(1 << 20);
            let first = device.submit_write(0, &[1; BLOCK_BYTES]);
            device.complete_write(first);
            let second = device.submit_write(4096, &[2; BLOCK_BYTES]);
            let cover = device.cover();
            device.complete_write(second);
            device.complete_flush(cover);
            assert_eq!(shown(&device, 4096), 2);
            device.power_cut(&mut Random::new(seed));
            assert_eq!(shown(&device, 0), 1, "flushed");
            losses += usize::from(shown(&device, 4096) != 2);
        }
        assert!((1..64).contains(&losses), "an unflushed write may vanish and may survive");
    }

    #[test]
    fn a_power_cut_tears_writes_at_sectors() {
        let torn = (0..256).any(|seed| {
            let mut device = SimDevice::new(1 << 20);
            let serial = device.submit_write(8192, &[7; 2 * BLOCK_BYTES]);
            device.complete_write(serial);
            device.power_cut(&mut Random::new(seed));
            let mut bytes = [0; 2 * BLOCK_BYTES];
            device.read(8192, &mut bytes);
            let sectors: Vec<_> = bytes.chunks(SECTOR_BYTES).map(|sector| sector[0]).collect();
            assert!(bytes.chunks(SECTOR_BYTES).all(|sector| sector == [sector[0]; SECTOR_BYTES]));
            sectors.contains(&0) && sectors.contains(&7)
        });
        assert!(torn);
    }

    #[test]
    fn a_flush_does_not_mend_what_rotted_in_the_write_cache() {
        let mut device = SimDevice::new(1 << 20);
        let serial = device.submit_write(4096, &[6; BLOCK_BYTES]);
        device.complete_write(serial);
        device.rot(1, 0);
        assert_eq!(shown(&device, 4096), 7);
        device.complete_flush(device.cover());
        device.power_cut(&mut Random::new(1));
        assert_eq!(shown(&device, 4096), 7);
    }

    #[test]
    fn a_start_loses_one_write_of_a_copy() {
        for after in 0..4 {
            let mut device = SimDevice::new(4 << 20);
            let mut storage = BlockingDevice::new(&mut device, None);
            storage.lose(after);
            for offset in [SEGMENTS_OFFSET, 0, 4096, 8192] {
                storage.write(offset, &[1; BLOCK_BYTES]).expect("a device that does not fail");
            }
            storage.flush().expect("a device that does not fail");
            assert_eq!(storage.has_lost(), after < 3);
            device.power_cut(&mut Random::new(after));
            assert_eq!(shown(&device, SEGMENTS_OFFSET), 1, "the log loses nothing");
            let lost = (0..3).filter(|page| shown(&device, page * 4096) == 0);
            assert!(lost.eq((0..3).filter(|page| *page == after)));
        }
    }

    #[test]
    fn a_clone_keeps_its_own_content() {
        let mut device = SimDevice::new(1 << 20);
        let clone = device.clone();
        let serial = device.submit_write(0, &[1; BLOCK_BYTES]);
        device.complete_write(serial);
        assert_eq!((shown(&device, 0), shown(&clone, 0)), (1, 0));
    }
}
