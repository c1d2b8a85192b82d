//! An engine over a device and origins in memory: I/Os end at once unless a test holds or fails
//! them, and time passes only when a test says so.

use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, STEP_BYTES_MAX};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Buffer, Command, Config, Control, Effect, Engine, Event, ExportOptions, ExportSlot,
    FormatOptions, IoError, IoId, Mode, Notice, Now, OpenError, Order, OriginIdentity, Piece,
    ReadPiece, Recovery, Request, RequestError, Reserve, ReservePlan, ReserveShape, Storage,
    StorageError, Ticket,
};
use std::collections::BTreeMap;

pub const EXPORT_BLOCKS: u64 = 2048;
pub const TIER_BLOCKS: u64 = 64;
/// A small log, unless a test needs a larger one.
const SEGMENTS: u64 = 13;
const TICKETS: u32 = 16;
const WINDOW_BYTES: u32 = STEP_BYTES_MAX + 2 * BLOCK_BYTES as u32;
const EIO: IoError = IoError::Failed { errno: 5 };

/// A device in memory.
#[derive(Clone, Default)]
pub struct Disk {
    pub bytes: Vec<u8>,
    /// What a power cut leaves, where a test asks for it: all that was flushed and nothing else.
    pub flushed: Option<Vec<u8>>,
    /// How many more writes and flushes it takes, if that is limited.
    pub changes_left: Option<u64>,
}

impl Storage for Disk {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        for piece in pieces {
            let at = piece.offset as usize;
            piece.into.copy_from_slice(&self.bytes[at..at + piece.into.len()]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.change()?;
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.change()?;
        if let Some(flushed) = &mut self.flushed {
            flushed.clone_from(&self.bytes);
        }
        Ok(())
    }
}

impl Disk {
    fn change(&mut self) -> Result<(), StorageError> {
        let Some(left) = &mut self.changes_left else { return Ok(()) };
        let source = std::io::Error::other("the power is gone");
        let failed = StorageError { operation: "write", offset: 0, source };
        *left = left.checked_sub(1).ok_or(failed)?;
        Ok(())
    }

    /// Where the blocks lie that hold nothing but this byte.
    pub fn blocks_of(&self, byte: u8) -> Vec<usize> {
        let start = SEGMENTS_OFFSET as usize;
        let blocks = self.bytes[start..].chunks_exact(BLOCK_BYTES).enumerate();
        blocks
            .filter(|(_, block)| block.iter().all(|found| *found == byte))
            .map(|(at, _)| start + at * BLOCK_BYTES)
            .collect()
    }

    /// Damages every block that holds nothing but this byte.
    pub fn damage(&mut self, byte: u8) {
        let found = self.blocks_of(byte);
        assert!(!found.is_empty(), "no block of {byte}");
        for at in found {
            self.bytes[at + 7] ^= 0x10;
        }
    }
}

/// What fails, or waits.
#[derive(Default)]
pub struct Faults {
    /// Origin reads do not end.
    pub hold_origin_reads: bool,
    /// The origin read of this block does not end.
    pub hold_origin_read_of: Option<u64>,
    /// Zeroes do not reach an origin before they are released.
    pub hold_origin_zeroes: bool,
    /// Writes of the cache device wait to be released.
    pub hold_device_writes: bool,
    /// Origin reads fail.
    pub origin_reads: bool,
    /// Origin writes and flushes fail.
    pub origin_writes: bool,
    /// Flushes of origins fail.
    pub origin_flushes: bool,
    /// Writes and flushes of this origin alone fail.
    pub origin_writes_of: Option<u8>,
    /// How long each write of an origin takes, and each flush.
    pub origin_write_ns: u64,
    pub origin_flush_ns: u64,
    /// Writes and flushes of the cache device fail.
    pub device_writes: bool,
    /// Reads of the cache device fail that touch one of these blocks of it.
    pub unreadable: Vec<usize>,
    /// So many reads of the cache device come back with a wrong bit.
    pub rot_reads: u32,
    /// So many reads of the cache device fail.
    pub failing_reads: u32,
    /// Reads of the cache device do not end before they are released.
    pub hold_device_reads: bool,
}

/// A read's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub result: Result<(), RequestError>,
    pub pieces: Vec<Piece>,
}

pub struct Bench {
    pub disk: Disk,
    pub origins: Vec<Vec<u8>>,
    pub faults: Faults,
    pub notices: Vec<Notice>,
    /// What origins were told to do: `write`, `zero` or `flush`, the export, the first block.
    pub origin_log: Vec<(&'static str, u8, u64)>,
    /// How many blocks each read of the cache device was of.
    pub device_reads: Vec<usize>,
    /// What the origins had when the last control was answered.
    pub origins_then: Vec<Vec<u8>>,
    /// Whether requests ask that what is answered outlives the process.
    pub kept: bool,
    /// Whether invariants are checked after every step.
    pub is_checked: bool,
    /// What the engine is opened with.
    pub options: Vec<ExportOptions>,
    pub config: Config,
    /// Reserve beyond the least.
    pub more_reserve_bytes: u64,
    engine: Option<Engine>,
    plan: ReservePlan,
    tier_blocks: u64,
    now_ns: u64,
    held: Vec<Effect>,
    answers: BTreeMap<u32, Answer>,
    told: BTreeMap<u32, Vec<(Piece, Vec<u8>)>>,
    spans: BTreeMap<u32, Buffer>,
    controls: BTreeMap<u32, Result<(), RequestError>>,
    /// What a power cut had left when the last control was answered.
    flushed_then: Option<Vec<u8>>,
    next_ticket: u32,
    /// Whether the engine was told of something since its last turn.
    has_arrived: bool,
}

/// The smallest reserve for so many exports, and `more_bytes` for images of segments.
fn plan_for(exports: usize, tier_blocks: u64, more_bytes: u64) -> ReservePlan {
    let shape = ReserveShape {
        reserve_bytes: 0,
        receive_bytes: u64::from(TICKETS) * u64::from(WINDOW_BYTES),
        segment_bytes: SEGMENT_BYTES_MIN,
        exports,
        memory_tier_bytes: tier_blocks * BLOCK_BYTES_U64,
    };
    let least = ReservePlan::new(&shape);
    let needed = least.expect_err("no reserve is too small").needed_bytes;
    let reserve_bytes = needed + shape.memory_tier_bytes + more_bytes;
    ReservePlan::new(&ReserveShape { reserve_bytes, ..shape }).expect("the least")
}

impl Bench {
    /// Small exports and a small memory tier.
    pub fn new(exports: &[(Mode, Order)]) -> Self {
        Self::sized(exports, EXPORT_BLOCKS, TIER_BLOCKS)
    }

    /// Exports and a memory tier of so many blocks.
    pub fn sized(exports: &[(Mode, Order)], export_blocks: u64, tier_blocks: u64) -> Self {
        Self::with_segments(SEGMENTS, exports, export_blocks, tier_blocks)
    }

    /// The same on a device of so many segments.
    pub fn with_segments(
        segments: u64,
        exports: &[(Mode, Order)],
        export_blocks: u64,
        tier_blocks: u64,
    ) -> Self {
        let device_bytes = SEGMENTS_OFFSET + segments * SEGMENT_BYTES_MIN;
        let mut disk = Disk { bytes: vec![0; device_bytes as usize], ..Disk::default() };
        let options = FormatOptions {
            uuid: [7; 16],
            secret: *b"sixteen secrets!",
            segment_bytes: SEGMENT_BYTES_MIN,
        };
        ringfence_cache::format(&mut disk, &options).expect("formatted");
        let size_bytes = export_blocks * BLOCK_BYTES_U64;
        let export = |(index, &(mode, order)): (usize, &(Mode, Order))| ExportOptions {
            name: format!("export-{index}"),
            uuid: [index as u8 + 1; 16],
            origin: OriginIdentity {
                size_bytes,
                name: format!("origin-{index}"),
                also: Vec::new(),
            },
            mode,
            order,
            dirty_bytes_max: None,
            wait_ns_max: 2_000_000_000,
            origin_timeout_ns: 30_000_000_000,
        };
        let options: Vec<_> = exports.iter().enumerate().map(export).collect();
        let mut bench = Self {
            disk,
            origins: vec![vec![0xee; size_bytes as usize]; options.len()],
            faults: Faults::default(),
            notices: Vec::new(),
            origin_log: Vec::new(),
            device_reads: Vec::new(),
            origins_then: Vec::new(),
            kept: false,
            is_checked: true,
            options,
            engine: None,
            plan: plan_for(exports.len(), tier_blocks, 0),
            more_reserve_bytes: 0,
            tier_blocks,
            now_ns: 1_000_000_000,
            held: Vec::new(),
            answers: BTreeMap::new(),
            told: BTreeMap::new(),
            spans: BTreeMap::new(),
            controls: BTreeMap::new(),
            flushed_then: None,
            next_ticket: 0,
            has_arrived: false,
            config: Config { requests_max: TICKETS, ..Config::default() },
        };
        bench.restart();
        bench
    }

    fn now(&self) -> Now {
        Now { monotonic_ns: self.now_ns, wall_ns: self.now_ns }
    }

    /// Opens the cache on `storage` with the options and the configuration as they are now.
    pub fn open_on(&mut self, storage: &mut dyn Storage) -> Result<Recovery, OpenError> {
        self.engine = None;
        self.held.clear();
        self.plan = plan_for(self.options.len(), self.tier_blocks, self.more_reserve_bytes);
        let reserve = Reserve::allocate(self.plan.total_bytes());
        let (config, now) = (self.config.clone(), self.now());
        let (engine, recovery) =
            Engine::open(storage, reserve, self.plan, &self.options, config, now)?;
        self.engine = Some(engine);
        Ok(recovery)
    }

    /// The process is killed and comes back; what was handed to the device has reached it.
    pub fn restart(&mut self) {
        self.try_restart().expect("an open cache");
    }

    /// The same, where recovery may refuse.
    pub fn try_restart(&mut self) -> Result<Recovery, OpenError> {
        let mut disk = std::mem::take(&mut self.disk);
        let opened = self.open_on(&mut disk);
        self.disk = disk;
        opened
    }

    /// The power fails in the moment in which the last control was answered; the device has what
    /// was flushed until then and nothing else.
    pub fn power_cut_at_answer(&mut self) {
        self.disk.bytes = self.flushed_then.take().expect("a disk that keeps what was flushed");
        self.restart();
    }

    pub fn engine(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("an open engine")
    }

    pub fn counter(&mut self, counter: ExportCounter) -> u64 {
        self.engine().counters().get_export(ExportSlot(0), counter)
    }

    pub fn counter_of(&mut self, export: u8, counter: ExportCounter) -> u64 {
        self.engine().counters().get_export(ExportSlot(export), counter)
    }

    pub fn engine_counter(&mut self, counter: Counter) -> u64 {
        self.engine().counters().get(counter)
    }

    fn step(&mut self, event: Event) {
        let now = self.now();
        self.has_arrived = !matches!(event, Event::EndOfTurn);
        self.engine().step(event, now);
        let mut done = Vec::new();
        while let Some(effect) = self.engine().next_effect() {
            self.execute(effect, &mut done);
        }
        if self.is_checked {
            self.engine().check_invariants();
        }
        self.end_ios(done);
    }

    fn execute(&mut self, effect: Effect, done: &mut Vec<(IoId, Result<(), IoError>)>) {
        match effect {
            Effect::DeviceRead { io, offset, buffer } => {
                if self.faults.hold_device_reads {
                    return self.held.push(effect);
                }
                done.push((io, self.device_read(offset as usize, buffer)));
            }
            Effect::DeviceWrite { io, offset, buffer } => {
                if self.faults.hold_device_writes {
                    return self.held.push(effect);
                }
                let engine = self.engine.as_mut().expect("open");
                let bytes = engine.reserve().bytes(buffer);
                let result = if self.faults.device_writes { Err(EIO) } else { Ok(()) };
                if result.is_ok() {
                    self.disk.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                }
                done.push((io, result));
            }
            Effect::DeviceFlush { io } => {
                let result = if self.faults.device_writes { Err(EIO) } else { Ok(()) };
                if result.is_ok() {
                    self.disk.flush().expect("a disk in memory");
                }
                done.push((io, result));
            }
            Effect::OriginRead { io, export, offset, buffer } => {
                let held = self.faults.hold_origin_read_of.is_some_and(|block| {
                    let bytes = offset..offset + u64::from(buffer.length);
                    bytes.contains(&(block * BLOCK_BYTES_U64))
                });
                if self.faults.hold_origin_reads || held {
                    return self.held.push(effect);
                }
                let failed = self.faults.origin_reads;
                let origin = &self.origins[export.index()];
                let engine = self.engine.as_mut().expect("open");
                let bytes = engine.reserve().bytes_mut(buffer);
                let inside = bytes.len().min(origin.len() - offset as usize);
                bytes[..inside].copy_from_slice(&origin[offset as usize..][..inside]);
                done.push((io, if failed { Err(EIO) } else { Ok(()) }));
            }
            Effect::OriginWrite { io, export, offset, buffer } => {
                let engine = self.engine.as_mut().expect("open");
                let bytes = engine.reserve().bytes(buffer).to_vec();
                self.now_ns += self.faults.origin_write_ns;
                done.push((io, self.origin_change("write", export, offset, bytes)));
            }
            Effect::OriginZero { io, export, offset, length, .. } => {
                if self.faults.hold_origin_zeroes {
                    return self.held.push(effect);
                }
                let bytes = vec![0; length as usize];
                done.push((io, self.origin_change("zero", export, offset, bytes)));
            }
            Effect::OriginFlush { io, export } => {
                self.now_ns += self.faults.origin_flush_ns;
                done.push((io, self.origin_change("flush", export, 0, Vec::new())));
            }
            Effect::Consumed { .. } => {}
            Effect::Pieces { ticket } => self.take_pieces(ticket),
            Effect::Complete { ticket, result } => self.complete(ticket, result),
            Effect::ControlDone { token, result } => {
                self.controls.insert(token, result);
                self.origins_then.clone_from(&self.origins);
                self.flushed_then.clone_from(&self.disk.flushed);
            }
            Effect::Notice(notice) => self.notices.push(notice),
        }
    }

    fn device_read(&mut self, offset: usize, buffer: Buffer) -> Result<(), IoError> {
        let engine = self.engine.as_mut().expect("open");
        let bytes = engine.reserve().bytes_mut(buffer);
        let range = offset..offset + bytes.len();
        self.device_reads.push(bytes.len() / BLOCK_BYTES);
        let fails = self.faults.failing_reads > 0;
        self.faults.failing_reads -= u32::from(fails);
        if fails || self.faults.unreadable.iter().any(|at| range.contains(at)) {
            bytes.fill(0xdd);
            return Err(EIO);
        }
        bytes.copy_from_slice(&self.disk.bytes[range]);
        if self.faults.rot_reads > 0 {
            self.faults.rot_reads -= 1;
            bytes[9] ^= 4;
        }
        Ok(())
    }

    fn origin_change(
        &mut self,
        what: &'static str,
        export: ExportSlot,
        offset: u64,
        bytes: Vec<u8>,
    ) -> Result<(), IoError> {
        let fails = self.faults.origin_writes
            || self.faults.origin_writes_of == Some(export.0)
            || self.faults.origin_flushes && what == "flush";
        if fails {
            return Err(EIO);
        }
        self.origin_log.push((what, export.0, offset / BLOCK_BYTES_U64));
        self.origins[export.index()][offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn take_pieces(&mut self, ticket: Ticket) {
        let span = self.spans[&ticket.0];
        while let Some(piece) = self.engine().next_piece(ticket) {
            let part = span.part(piece.first * 4096, piece.blocks * 4096);
            let bytes = self.engine().reserve().bytes(part).to_vec();
            self.told.entry(ticket.0).or_default().push((piece, bytes));
        }
    }

    fn complete(&mut self, ticket: Ticket, result: Result<(), RequestError>) {
        let pieces = self.told.get(&ticket.0).into_iter().flatten();
        let mut all = Vec::new();
        for (piece, bytes) in pieces {
            let part = self.spans[&ticket.0].part(piece.first * 4096, piece.blocks * 4096);
            let engine = self.engine.as_mut().expect("open");
            assert_eq!(engine.reserve().bytes(part), bytes, "what was told of stays as it is");
            all.push(*piece);
        }
        self.answers.insert(ticket.0, Answer { result, pieces: all });
    }

    /// One turn.
    pub fn turn(&mut self) {
        self.step(Event::EndOfTurn);
    }

    /// Whether the next turn is due without anything to wait for.
    pub fn is_turn_due(&mut self) -> bool {
        let now_ns = self.now_ns;
        self.engine().deadline_ns().is_some_and(|due_ns| due_ns <= now_ns)
    }

    /// Turns until nothing more happens by itself now.
    pub fn settle(&mut self) {
        (0..40).for_each(|_| self.turn());
    }

    /// Lets time pass.
    pub fn pass(&mut self, ns: u64) {
        for _ in 0..10 {
            self.now_ns += ns / 10;
            self.settle();
        }
    }

    /// Lets time pass in which there is no turn.
    pub fn skip(&mut self, ns: u64) {
        self.now_ns += ns;
    }

    /// Lets time pass as the ring does, without a turn that nobody asks for: the next one comes
    /// when something has arrived, or when it is due.
    pub fn idle(&mut self, ns: u64) {
        let until_ns = self.now_ns + ns;
        for _ in 0..100_000 {
            if self.has_arrived || self.is_turn_due() {
                self.turn();
                continue;
            }
            let due_ns = self.engine().deadline_ns().unwrap_or(u64::MAX);
            self.now_ns = due_ns.min(until_ns);
            if due_ns > until_ns {
                return;
            }
        }
        panic!("it spins");
    }

    /// The origin answers what it was asked.
    pub fn release_origin_reads(&mut self) {
        self.faults.hold_origin_reads = false;
        self.faults.hold_origin_read_of = None;
        self.release_held();
    }

    /// The zeroes that the origin has not taken yet, in bytes.
    pub fn zeroes_held(&self) -> u64 {
        let length = |effect: &Effect| match effect {
            Effect::OriginZero { length, .. } => *length,
            _ => 0,
        };
        self.held.iter().map(length).sum()
    }

    /// The origin takes the zeroes that it was given, and none that come after them.
    pub fn take_zeroes(&mut self) {
        self.faults.hold_origin_zeroes = false;
        let done = self.execute_held();
        self.faults.hold_origin_zeroes = true;
        self.end_ios(done);
    }

    /// The cache device takes what it was given.
    pub fn release_device_writes(&mut self) {
        self.faults.hold_device_writes = false;
        self.release_held();
    }

    /// Whether a write that waits has a block that holds nothing but this byte.
    pub fn holds_write_of(&mut self, byte: u8) -> bool {
        let engine = self.engine.as_mut().expect("open");
        self.held.iter().any(|effect| match effect {
            Effect::DeviceWrite { buffer, .. } => {
                let mut blocks = engine.reserve().bytes(*buffer).chunks_exact(BLOCK_BYTES);
                blocks.any(|block| block.iter().all(|found| *found == byte))
            }
            _ => false,
        })
    }

    /// The cache device takes what it was given, and the process is killed before it hears of it.
    pub fn kill_once_written(&mut self) -> Recovery {
        self.take_device_writes();
        self.try_restart().expect("an open cache")
    }

    /// The cache device takes what it was given, and says nothing.
    pub fn take_device_writes(&mut self) {
        self.faults.hold_device_writes = false;
        let _nobody_hears = self.execute_held();
    }

    fn release_held(&mut self) {
        let done = self.execute_held();
        self.end_ios(done);
    }

    fn execute_held(&mut self) -> Vec<(IoId, Result<(), IoError>)> {
        let mut done = Vec::new();
        for effect in std::mem::take(&mut self.held) {
            self.execute(effect, &mut done);
        }
        done
    }

    fn end_ios(&mut self, done: Vec<(IoId, Result<(), IoError>)>) {
        for (io, result) in done {
            self.step(Event::IoDone { io, result });
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket = (self.next_ticket + 1) % TICKETS;
        Ticket(self.next_ticket)
    }

    /// One of the reads that the cache device was asked for ends: the oldest is 0.
    pub fn release_device_read(&mut self, which: usize) {
        let Effect::DeviceRead { io, offset, buffer } = self.held.remove(which) else {
            panic!("something else is held");
        };
        let result = self.device_read(offset as usize, buffer);
        self.step(Event::IoDone { io, result });
    }

    /// The client that sent a request is gone.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.step(Event::Abandon { ticket });
    }

    pub fn submit(&mut self, export: u8, command: Command, offset: u64, length: u64) -> Ticket {
        let ticket = self.ticket();
        self.answers.remove(&ticket.0);
        self.told.remove(&ticket.0);
        let window = self.plan.receive.piece(ticket.0 as usize, WINDOW_BYTES);
        let command = match command {
            Command::Read { in_pieces, .. } => {
                let blocks = (offset % 4096 + length).div_ceil(4096);
                let buffer = window.part(0, blocks as u32 * 4096);
                self.engine().reserve().bytes_mut(buffer).fill(0xaa);
                self.spans.insert(ticket.0, buffer);
                Command::Read { buffer, in_pieces }
            }
            Command::Write { fua, .. } => {
                Command::Write { buffer: window.part(0, length as u32), fua }
            }
            other => other,
        };
        let export = ExportSlot(export);
        self.step(Event::Submit(Request {
            ticket,
            export,
            command,
            offset,
            length,
            kept: self.kept,
        }));
        ticket
    }

    pub fn answer(&self, ticket: Ticket) -> Option<Answer> {
        self.answers.get(&ticket.0).cloned()
    }

    /// What was told of a read so far.
    pub fn told(&self, ticket: Ticket) -> Vec<Piece> {
        let pieces = self.told.get(&ticket.0).into_iter().flatten();
        pieces.map(|(piece, _)| *piece).collect()
    }

    /// The answer that a request has once everything has settled.
    pub fn now_or_never(&mut self, ticket: Ticket) -> Answer {
        self.settle();
        self.answer(ticket).unwrap_or_else(|| panic!("{ticket:?} is not answered"))
    }

    /// Writes bytes that are all the same.
    pub fn write(
        &mut self,
        export: u8,
        offset: u64,
        length: u64,
        byte: u8,
    ) -> Result<(), RequestError> {
        let ticket = self.begin_write_to(export, offset, length, byte);
        self.now_or_never(ticket).result
    }

    /// Begins to write bytes that are all the same.
    pub fn begin_write_to(&mut self, export: u8, offset: u64, length: u64, byte: u8) -> Ticket {
        let nowhere = Buffer { offset: 0, length: 0 };
        let ticket = self.next_ticket + 1;
        let window = self.plan.receive.piece((ticket % TICKETS) as usize, WINDOW_BYTES);
        self.engine().reserve().bytes_mut(window.part(0, length as u32)).fill(byte);
        self.submit(export, Command::Write { buffer: nowhere, fua: false }, offset, length)
    }

    /// Writes whatever lies there; returns the answer, if there is one.
    pub fn try_write(&mut self, export: u8, offset: u64, length: u64) -> Option<Answer> {
        let command = Command::Write { buffer: Buffer { offset: 0, length: 0 }, fua: false };
        let ticket = self.submit(export, command, offset, length);
        self.settle();
        self.answer(ticket)
    }

    /// Writes one block.
    pub fn write_block(&mut self, block: u64, byte: u8) {
        self.write(0, block * 4096, 4096, byte).expect("written");
    }

    pub fn flush(&mut self) -> Result<(), RequestError> {
        let ticket = self.submit(0, Command::Flush, 0, 0);
        self.now_or_never(ticket).result
    }

    pub fn begin_read(&mut self, export: u8, block: u64, blocks: u64, in_pieces: bool) -> Ticket {
        let buffer = Buffer { offset: 0, length: 0 };
        let command = Command::Read { buffer, in_pieces };
        self.submit(export, command, block * 4096, blocks * 4096)
    }

    /// The first byte of each block that a finished read has in its buffer.
    pub fn bytes_of(&mut self, ticket: Ticket) -> Vec<u8> {
        let buffer = self.spans[&ticket.0];
        let bytes = self.engine().reserve().bytes(buffer);
        bytes.chunks_exact(4096).map(|block| block[0]).collect()
    }

    /// The first block that a finished read has in its buffer.
    pub fn whole_block(&mut self, ticket: Ticket) -> Vec<u8> {
        let buffer = self.spans[&ticket.0].part(0, BLOCK_BYTES as u32);
        self.engine().reserve().bytes(buffer).to_vec()
    }

    /// Reads in pieces: the first byte of each block, `None` where it cannot be read.
    pub fn read(&mut self, block: u64, blocks: u64) -> Vec<Option<u8>> {
        let ticket = self.begin_read(0, block, blocks, true);
        let answer = self.now_or_never(ticket);
        let mut found: Vec<_> = self.bytes_of(ticket).into_iter().map(Some).collect();
        for piece in &answer.pieces {
            for at in piece.first..piece.first + piece.blocks {
                match piece.content {
                    ringfence_cache::PieceContent::Failed(_) => found[at as usize] = None,
                    ringfence_cache::PieceContent::Zeroes => found[at as usize] = Some(0),
                    ringfence_cache::PieceContent::Data => {}
                }
            }
        }
        assert_eq!(answer.result.is_err(), found.contains(&None), "{answer:?}");
        found
    }

    /// Reads whole: simple replies, or chunks that must not be split.
    pub fn read_whole(&mut self, block: u64, blocks: u64) -> Result<Vec<u8>, RequestError> {
        let ticket = self.begin_read(0, block, blocks, false);
        let answer = self.now_or_never(ticket);
        assert_eq!(answer.pieces, []);
        answer.result.map(|()| self.bytes_of(ticket))
    }

    pub fn control(&mut self, action: Control) -> Option<Result<(), RequestError>> {
        self.controls.remove(&1);
        self.step(Event::Control { token: 1, action });
        self.settle();
        self.controls.remove(&1)
    }

    /// The first byte of a block of an origin.
    pub fn origin(&self, export: u8, block: u64) -> u8 {
        self.origins[usize::from(export)][block as usize * BLOCK_BYTES]
    }
}
