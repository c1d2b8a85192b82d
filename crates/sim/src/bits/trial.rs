//! One trial: the image with some of its blocks replaced, checked, recovered and read.

use super::image::{BAD_BLOCK, Cut, EXPORT_BLOCKS, EXPORTS, Image, Page};
use crate::memory::Memory;
use crate::request::RECEIVE_BYTES;
use ringfence_cache::limits::SEGMENT_BYTES_MIN;
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Buffer, Command, Config, Effect, Engine, Event, ExportOptions, ExportSlot, IoId, Mode, Now,
    OpenError, Order, OriginIdentity, ReadPiece, Report, Request, RequestError, ReservePlan,
    ReserveShape, Storage, StorageError, Ticket, check,
};
use std::collections::{BTreeMap, VecDeque};

/// The image, and what has been written over it.
pub struct Overlay<'a> {
    image: &'a Image,
    /// Blocks that differ from the image.
    pub pages: BTreeMap<usize, Box<Page>>,
}

impl<'a> Overlay<'a> {
    /// The image with some blocks replaced.
    pub fn new(image: &'a Image, damage: impl IntoIterator<Item = (usize, Page)>) -> Self {
        let pages = damage.into_iter().map(|(page, bytes)| (page, Box::new(bytes))).collect();
        Self { image, pages }
    }

    fn read_blocks(&self, offset: u64, into: &mut [u8]) {
        let first = usize::try_from(offset).expect("a small device") / BLOCK_BYTES;
        let (chunks, _) = into.as_chunks_mut::<BLOCK_BYTES>();
        let last = first + chunks.len();
        for (chunk, page) in chunks.iter_mut().zip(&self.image.pages[first..]) {
            match page {
                Some(page) => *chunk = **page,
                None => chunk.fill(0),
            }
        }
        for (&page, bytes) in self.pages.range(first..last) {
            chunks[page - first] = **bytes;
        }
    }
}

impl Storage for Overlay<'_> {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        for piece in pieces {
            self.read_blocks(piece.offset, piece.into);
        }
        Ok(())
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        let first = usize::try_from(offset).expect("a small device") / BLOCK_BYTES;
        let of_image = self.image.pages[first..].iter().position(Option::is_some);
        let of_image = of_image.map_or(self.image.pages.len(), |at| first + at);
        let over_it = self.pages.range(first..).next().map(|(page, _)| *page);
        (over_it.map_or(of_image, |page| page.min(of_image)) * BLOCK_BYTES) as u64
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let first = usize::try_from(offset).expect("a small device") / BLOCK_BYTES;
        let (chunks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        self.pages.extend((first..).zip(chunks.iter().map(|chunk| Box::new(*chunk))));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Whether a block reads as it should, or why it cannot be read.
pub type ReadBlock = Result<Seen, RequestError>;

/// Whether what was read is right, depending on which records count.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    before_last: bool,
    at_end: bool,
}

impl Seen {
    fn new(image: &Image, export: usize, block: u64, bytes: &[u8]) -> Self {
        let [before_last, at_end] =
            [Cut::BeforeLast, Cut::AtEnd].map(|cut| image.expected(export, block, cut));
        let is_before_last = bytes == before_last;
        let is_the_same = std::ptr::eq(before_last, at_end);
        let is_at_end = if is_the_same { is_before_last } else { bytes == at_end };
        Self { before_last: is_before_last, at_end: is_at_end }
    }

    /// Whether it is what the records that count say.
    #[must_use]
    pub const fn is_right(self, cut: Cut) -> bool {
        match cut {
            Cut::BeforeLast => self.before_last,
            Cut::AtEnd => self.at_end,
        }
    }
}

/// What came of a trial.
pub struct Outcome {
    /// What `check` said before anything was written.
    pub checked: Result<Report, OpenError>,
    /// What the blocks of all exports read as, if the cache could be opened.
    pub read: Result<Vec<Vec<ReadBlock>>, OpenError>,
    /// What `check` says after recovery, if it was asked.
    pub rechecked: Option<Result<Report, OpenError>>,
}

/// Runs trials, with memory that is used again and again.
#[derive(Default)]
pub struct Trials {
    memory: Memory,
}

impl Trials {
    /// Checks, recovers and reads the device, and checks it again if that is asked for.
    #[must_use]
    pub fn run(&self, mut device: Overlay<'_>, recheck: bool) -> Outcome {
        let checked = check(&mut device);
        let plan = plan();
        let mut memory = self.memory.lease(plan.total_bytes());
        // SAFETY: the engine that owns the reserve is dropped before the lease, which was declared
        // first.
        let reserve = unsafe { memory.reserve() };
        let config = Config { requests_max: 1, ..Config::default() };
        let opened = Engine::open(&mut device, reserve, plan, &exports(), config, NOW);
        let engine = match opened {
            Ok((engine, _)) => engine,
            Err(error) => return Outcome { checked, read: Err(error), rechecked: None },
        };
        let rechecked = recheck.then(|| check(&mut device));
        let mut reader = Reader { engine, device, plan, done: VecDeque::new(), answer: None };
        let slots = (0..EXPORTS.len()).map(|export| reader.read_export(export));
        Outcome { checked, read: Ok(slots.collect()), rechecked }
    }
}

/// Blocks that are read together; the one that cannot be read lies behind them.
const TOGETHER_BLOCKS: u64 = 56;
const _: () = assert!(BAD_BLOCK.1 >= TOGETHER_BLOCKS && BAD_BLOCK.1 < EXPORT_BLOCKS);

const NOW: Now = Now { monotonic_ns: 1_000_000_000, wall_ns: 1_700_000_000_000_000_000 };

fn plan() -> ReservePlan {
    let shape = ReserveShape {
        reserve_bytes: 0,
        memory_tier_bytes: 0,
        receive_bytes: u64::from(RECEIVE_BYTES),
        segment_bytes: SEGMENT_BYTES_MIN,
        exports: EXPORTS.len(),
    };
    let least = ReservePlan::new(&shape);
    let reserve_bytes = least.expect_err("no reserve is too small").needed_bytes;
    ReservePlan::new(&ReserveShape { reserve_bytes, ..shape }).expect("enough for the least")
}

fn exports() -> Vec<ExportOptions> {
    let options = EXPORTS.iter().map(|(name, origin)| ExportOptions {
        name: (*name).to_owned(),
        uuid: [9; 16],
        origin: OriginIdentity {
            size_bytes: EXPORT_BLOCKS * BLOCK_BYTES_U64,
            name: (*origin).to_owned(),
            also: Vec::new(),
        },
        mode: Mode::Writeback,
        order: Order::Strict,
        dirty_bytes_max: None,
        wait_ns_max: 1_000_000_000,
        origin_timeout_ns: 1_000_000_000,
    });
    options.collect()
}

/// An engine that is only read from, and its devices.
struct Reader<'a> {
    engine: Engine,
    device: Overlay<'a>,
    plan: ReservePlan,
    done: VecDeque<IoId>,
    answer: Option<Result<(), RequestError>>,
}

impl Reader<'_> {
    /// All blocks of an export: most together, and one by one where that fails.
    fn read_export(&mut self, export: usize) -> Vec<ReadBlock> {
        let mut blocks = self.read(export, 0, TOGETHER_BLOCKS).unwrap_or_default();
        for block in blocks.len() as u64..EXPORT_BLOCKS {
            match self.read(export, block, 1) {
                Ok(one) => blocks.extend(one),
                Err(error) => blocks.push(Err(error)),
            }
        }
        blocks
    }

    fn read(
        &mut self,
        export: usize,
        first: u64,
        count: u64,
    ) -> Result<Vec<ReadBlock>, RequestError> {
        let length = count * BLOCK_BYTES_U64;
        let buffer = self.plan.receive.piece(0, u32::try_from(length).expect("a step"));
        self.step(Event::Submit(Request {
            ticket: Ticket(0),
            export: ExportSlot(u8::try_from(export).expect("few")),
            command: Command::Read { buffer, in_pieces: false },
            offset: first * BLOCK_BYTES_U64,
            length,
            kept: false,
        }));
        self.step(Event::EndOfTurn);
        while self.answer.is_none() {
            let io = self.done.pop_front().expect("a read that waits for nothing");
            self.step(Event::IoDone { io, result: Ok(()) });
            if self.done.is_empty() {
                self.step(Event::EndOfTurn);
            }
        }
        let result = self.answer.take().expect("an answer");
        while let Some(io) = self.done.pop_front() {
            self.step(Event::IoDone { io, result: Ok(()) });
        }
        result?;
        let blocks = self.engine.reserve().bytes(buffer).chunks(BLOCK_BYTES).zip(first..);
        let image = self.device.image;
        Ok(blocks.map(|(bytes, block)| Ok(Seen::new(image, export, block, bytes))).collect())
    }

    fn step(&mut self, event: Event) {
        self.engine.step(event, NOW);
        while let Some(effect) = self.engine.next_effect() {
            self.execute(effect);
        }
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::DeviceRead { io, offset, buffer } => {
                self.device.read_blocks(offset, self.engine.reserve().bytes_mut(buffer));
                self.done.push_back(io);
            }
            Effect::DeviceWrite { io, offset, buffer } => {
                let bytes = self.engine.reserve().bytes(buffer);
                self.device.write(offset, bytes).expect("a device that does not fail");
                self.done.push_back(io);
            }
            Effect::OriginRead { io, export, offset, buffer } => {
                self.read_origin(export, offset, buffer);
                self.done.push_back(io);
            }
            Effect::DeviceFlush { io }
            | Effect::OriginWrite { io, .. }
            | Effect::OriginZero { io, .. }
            | Effect::OriginFlush { io, .. } => self.done.push_back(io),
            Effect::Complete { result, .. } => self.answer = Some(result),
            Effect::Consumed { .. }
            | Effect::Pieces { .. }
            | Effect::ControlDone { .. }
            | Effect::Notice(_) => {}
        }
    }

    fn read_origin(&mut self, export: ExportSlot, offset: u64, buffer: Buffer) {
        let image = self.device.image;
        let bytes = self.engine.reserve().bytes_mut(buffer);
        let (blocks, _) = bytes.as_chunks_mut::<BLOCK_BYTES>();
        for (block, number) in blocks.iter_mut().zip(offset / BLOCK_BYTES_U64..) {
            *block = *image.origin(export.index(), number);
        }
    }
}
