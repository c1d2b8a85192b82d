//! What the cache device held before it was formatted: another cache, with lives, records and
//! footers of its own. Formatting leaves its log where it is, and none of it may ever be believed.
//!
//! It has the exports of the world, so that its layers, lives, segment uses and sequences are those
//! of the cache that comes after it. Its data is that of exports that no world has: wherever any of
//! it shows, it is garbage.

use crate::content;
use crate::core::Core;
use crate::device::{BlockingDevice, FlushCover, SimDevice, WriteSerial};
use crate::faults::FaultKind;
use crate::memory::Lease;
use crate::random::Random;
use crate::request::RECEIVE_BYTES;
use crate::violation::{Kind, Violation};
use crate::world::{Opened, World};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, STEP_BYTES_MAX};
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{
    Buffer, Command, Effect, Event, ExportSlot, FormatOptions, IoId, Now, OpenError, Request,
    ReservePlan, Ticket,
};

/// Requests in flight at most.
const REQUESTS: u32 = 8;
/// Turns of a life at most, so that it ends where nothing is written any more.
const TURNS_MAX: u32 = 50_000;
/// What its exports are called in its data: no world has so many.
const FIRST_EXPORT: u8 = 200;
/// The number of its first write, which counts down: no world has so many, either.
const FIRST_WRITE: u32 = u32::MAX / 2;

impl World {
    /// Lets another cache live on the device, mostly until its log is full.
    pub(crate) fn live_before<C: Core>(&mut self) -> Result<(), Violation> {
        let mut random = Random::new(self.scenario.seed ^ 0xf0a3_e21f);
        let refused = |error: String| Violation::new(Kind::OpenRefused, error);
        let secret = random.word().to_le_bytes().repeat(2).try_into().expect("16 bytes");
        let options = FormatOptions { uuid: [6; 16], secret, segment_bytes: SEGMENT_BYTES_MIN };
        C::format(&mut BlockingDevice::new(&mut self.device, None), &options).map_err(refused)?;
        let lives = random.between(1, 4);
        let bytes = self.scenario.device_bytes * random.pick(&[25, 100, 100, 200]) / 100;
        let mut written = 0;
        for _ in 0..lives {
            let options: Vec<_> =
                self.scenario.exports.iter().map(|export| export.options.clone()).collect();
            let opened = self.try_open::<C>(&options, None, 0..0, None).expect("no power cut");
            let opened = opened.map_err(|error: OpenError| refused(error.to_string()))?;
            written += Former::new(opened, &mut self.device, &mut random).live(bytes / lives);
            self.device.power_cut(&mut random);
        }
        self.tally.faults.count(FaultKind::FormattedAgain);
        self.trace.line(self.now_ns, || format!("another cache has written {written} bytes"));
        Ok(())
    }
}

/// An I/O in flight.
#[derive(Clone, Copy)]
enum Work {
    Write(WriteSerial),
    Flush(FlushCover),
    Other,
}

/// One life of the other cache. Nothing fails, and nobody looks at what it answers.
struct Former<'a, C> {
    core: C,
    plan: ReservePlan,
    exports: Vec<(ExportSlot, u64)>,
    device: &'a mut SimDevice,
    random: &'a mut Random,
    now_ns: u64,
    ios: Vec<(IoId, Work)>,
    tickets: Vec<u32>,
    writes: u32,
    device_bytes: u64,
    /// Where the engine's reserve is; after `core`, so that it is dropped later.
    _memory: Lease,
}

impl<'a, C: Core> Former<'a, C> {
    fn new(opened: Opened<C>, device: &'a mut SimDevice, random: &'a mut Random) -> Self {
        let Opened { core, plan, memory, exports } = opened;
        Self {
            core,
            plan,
            exports: exports.into_iter().map(|one| (one.slot, one.size_bytes)).collect(),
            device,
            random,
            now_ns: 1_000_000_000,
            ios: Vec::new(),
            tickets: (0..REQUESTS).collect(),
            writes: 0,
            device_bytes: 0,
            _memory: memory,
        }
    }

    /// Lives until the device was given so many bytes. Returns how many it was given.
    fn live(mut self, bytes: u64) -> u64 {
        for _ in 0..TURNS_MAX {
            if self.device_bytes >= bytes {
                break;
            }
            if let Some(ticket) = self.tickets.pop() {
                self.submit(ticket);
            }
            self.step(Event::EndOfTurn);
            if self.ios.is_empty() && self.tickets.is_empty() {
                let Some(deadline_ns) = self.core.deadline_ns() else { break };
                self.now_ns = self.now_ns.max(deadline_ns);
            }
            if !self.ios.is_empty() {
                let at = self.random.index(self.ios.len());
                let (io, work) = self.ios.swap_remove(at);
                match work {
                    Work::Write(serial) => self.device.complete_write(serial),
                    Work::Flush(cover) => self.device.complete_flush(cover),
                    Work::Other => {}
                }
                self.step(Event::IoDone { io, result: Ok(()) });
            }
            self.now_ns += 10_000;
        }
        self.device_bytes
    }

    fn submit(&mut self, ticket: u32) {
        let (export, size_bytes) = self.exports[self.random.index(self.exports.len())];
        let blocks = size_bytes.div_ceil(BLOCK_BYTES_U64);
        let longest = (u64::from(STEP_BYTES_MAX) / BLOCK_BYTES_U64).min(blocks);
        let length = self.random.magnitude(1, longest);
        let first = self.random.below(blocks - length + 1);
        let (offset, end) = (first * BLOCK_BYTES_U64, (first + length) * BLOCK_BYTES_U64);
        let length = end.min(size_bytes) - offset;
        let whole = u32::try_from(end - offset).expect("a step");
        let buffer = self.plan.receive.piece(ticket as usize, RECEIVE_BYTES).part(0, whole);
        let fua = self.random.percent(5);
        let command = match self.random.below(20) {
            0 => Command::Read { buffer, in_pieces: false },
            1 => Command::WriteZeroes { fua, no_hole: false },
            2 => Command::Flush,
            _ => {
                let buffer = buffer.part(0, u32::try_from(length).expect("a step"));
                self.fill(export, offset, buffer);
                Command::Write { buffer, fua }
            }
        };
        let (offset, length) = if command == Command::Flush { (0, 0) } else { (offset, length) };
        let ticket = Ticket(ticket);
        let request = Request { ticket, export, command, offset, length, kept: false };
        self.step(Event::Submit(request));
    }

    /// Fills a buffer with data that no world has.
    fn fill(&mut self, export: ExportSlot, offset: u64, buffer: Buffer) {
        self.writes += 1;
        let bytes = self.core.reserve().bytes_mut(buffer);
        content::fill(bytes, FIRST_EXPORT + export.0, offset, FIRST_WRITE - self.writes);
    }

    fn step(&mut self, event: Event) {
        self.core.step(event, Now { monotonic_ns: self.now_ns, wall_ns: self.now_ns });
        while let Some(effect) = self.core.next_effect() {
            self.execute(effect);
        }
    }

    fn execute(&mut self, effect: Effect) {
        let (io, work) = match effect {
            Effect::DeviceRead { io, offset, buffer } => {
                self.device.read(offset, self.core.reserve().bytes_mut(buffer));
                (io, Work::Other)
            }
            Effect::DeviceWrite { io, offset, buffer } => {
                self.device_bytes += u64::from(buffer.length);
                let serial = self.device.submit_write(offset, self.core.reserve().bytes(buffer));
                (io, Work::Write(serial))
            }
            Effect::DeviceFlush { io } => (io, Work::Flush(self.device.cover())),
            Effect::OriginRead { io, export, offset, buffer } => {
                self.fill(export, offset, buffer);
                (io, Work::Other)
            }
            Effect::OriginWrite { io, .. }
            | Effect::OriginZero { io, .. }
            | Effect::OriginFlush { io, .. } => (io, Work::Other),
            Effect::Complete { ticket, .. } => return self.tickets.push(ticket.0),
            Effect::Consumed { .. }
            | Effect::Pieces { .. }
            | Effect::ControlDone { .. }
            | Effect::Notice(_) => return,
        };
        self.ios.push((io, work));
    }
}
