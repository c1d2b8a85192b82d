//! A small engine that keeps the promises by writing everything anew at each flush, and that can
//! be told to break one of them: what the simulator is tested with.
//!
//! It keeps one export of at most 1 MiB in memory. A flush writes its whole content, with a
//! header, to one of two places on the device, then flushes the device, then answers, then
//! writes the same content to the origin and flushes that. Requests whose answers outlive the
//! process do the same, but are answered before the device is flushed.

use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Buffer, Command, Config, Control, Effect, Event, ExportOptions, ExportSlot, FormatOptions,
    IoId, Now, OpenError, OpenedExport, Request, RequestError, Reserve, ReservePlan, Storage,
    Ticket,
};
use ringfence_sim::core::Core;
use std::cell::Cell;
use std::collections::VecDeque;

/// Ways to break a promise.
pub mod flaw {
    /// None.
    pub const NONE: u8 = 0;
    /// A flush is answered before the device was flushed.
    pub const EARLY_FLUSH: u8 = 1;
    /// A snapshot is believed without its checksum.
    pub const NO_CHECKSUM: u8 = 2;
    /// A read returns what the last flush saw.
    pub const STALE_READ: u8 = 3;
    /// A write becomes visible in two halves.
    pub const TORN_WRITE: u8 = 4;
    /// A block is stored at the place of its neighbour.
    pub const WRONG_BLOCK: u8 = 5;
    /// The next snapshot goes to the origin before the last one is durable there.
    pub const NO_ORIGIN_FLUSH: u8 = 6;
    /// The origin is given what is not durable in the cache.
    pub const EAGER_DESTAGE: u8 = 7;
    /// Recovery does not flush the device first (rule 1).
    pub const NO_FIRST_FLUSH: u8 = 8;
    /// The payload is copied after its buffer was given back.
    pub const LATE_COPY: u8 = 9;
    /// Memory changes while it is being written.
    pub const CHANGE_IN_FLIGHT: u8 = 10;
    /// A drain is answered too early.
    pub const EARLY_DRAIN: u8 = 11;
    /// A request is forgotten.
    pub const FORGETS: u8 = 12;
    /// What another cache left on the device is believed.
    pub const BELIEVES_FORMER: u8 = 13;
    /// A stop overwrites the last snapshot instead of the one before it.
    pub const UNSAFE_STOP: u8 = 14;
    /// What must outlive the process is answered while only the process has it.
    pub const EARLY_KEPT: u8 = 15;
}

thread_local! {
    /// The flaw, one of [`flaw`], of the toys that this thread opens.
    pub static BUILT_IN: Cell<u8> = const { Cell::new(flaw::NONE) };
}

const PLACES: [u64; 2] = [1 << 20, 8 << 20];
const HEADER_BYTES: usize = BLOCK_BYTES;

/// What the toy is doing about a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Idle,
    Loading,
    WritingDevice,
    FlushingDevice,
    WritingOrigin,
    FlushingOrigin,
}

/// The engine.
pub struct Toy {
    flaw: u8,
    reserve: Reserve,
    plan: ReservePlan,
    data: Vec<u8>,
    /// What the last flush saw.
    snapshot: Vec<u8>,
    loaded: bool,
    job: Job,
    generation: u64,
    effects: VecDeque<Effect>,
    /// Requests that wait for the content.
    early: Vec<Request>,
    /// Tickets and tokens that wait for the next job, and for the one that runs.
    next: (Vec<Ticket>, Vec<u32>),
    running: (Vec<Ticket>, Vec<u32>),
    /// Tickets that wait for the next device write, and for the one that runs.
    next_kept: Vec<Ticket>,
    running_kept: Vec<Ticket>,
    late: Option<(Buffer, usize)>,
    half: Option<(usize, Vec<u8>)>,
    ios: u32,
    counted: u64,
    stopping: bool,
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0x1234_5678_9abc_def0, |sum: u64, word| {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        (sum ^ u64::from_le_bytes(padded)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(31)
    })
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"))
}

impl Toy {
    fn io(&mut self) -> IoId {
        self.ios += 1;
        IoId(self.ios)
    }

    fn padded(&self) -> usize {
        self.data.len().next_multiple_of(BLOCK_BYTES)
    }

    fn staging(&self) -> Buffer {
        let length = u32::try_from(HEADER_BYTES + self.padded()).expect("small");
        Buffer { offset: self.plan.log.offset, length }
    }

    fn payload(&self) -> Buffer {
        let length = u32::try_from(self.padded()).expect("small");
        self.staging().part(u32::try_from(HEADER_BYTES).expect("small"), length)
    }

    fn begin_job(&mut self) {
        let (tickets, tokens) = &self.next;
        let wanted = !(tickets.is_empty() && tokens.is_empty() && self.next_kept.is_empty());
        if self.job != Job::Idle || !self.loaded || !wanted {
            return;
        }
        self.running = std::mem::take(&mut self.next);
        // The place is that of every second one.
        let unsafe_stop = self.flaw == flaw::UNSAFE_STOP && self.stopping;
        self.generation += if unsafe_stop { 2 } else { 1 };
        self.running_kept = std::mem::take(&mut self.next_kept);
        self.snapshot.clone_from(&self.data);
        let mut image = vec![0; HEADER_BYTES];
        image.extend_from_slice(&self.snapshot);
        image.resize(self.staging().length as usize, 0);
        image[8..16].copy_from_slice(&self.generation.to_le_bytes());
        let sum = checksum(&image[8..]);
        image[..8].copy_from_slice(&sum.to_le_bytes());
        let buffer = self.staging();
        self.reserve.bytes_mut(buffer).copy_from_slice(&image);
        let io = self.io();
        let offset = PLACES[usize::from(self.generation % 2 == 1)];
        self.effects.push_back(Effect::DeviceWrite { io, offset, buffer });
        self.job = Job::WritingDevice;
        if self.flaw == flaw::EARLY_FLUSH {
            self.answer_tickets();
        }
    }

    fn answer_tickets(&mut self) {
        let tickets = std::mem::take(&mut self.running.0);
        self.answer(tickets);
    }

    fn answer(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            self.effects.push_back(Effect::Complete { ticket, result: Ok(()) });
        }
    }

    fn answer_tokens(&mut self) {
        for token in std::mem::take(&mut self.running.1) {
            self.effects.push_back(Effect::ControlDone { token, result: Ok(()) });
        }
    }

    fn advance_job(&mut self) {
        let export = ExportSlot(0);
        match self.job {
            Job::Idle => unreachable!("an I/O without a job"),
            Job::Loading => {
                let length = u32::try_from(self.data.len()).expect("small");
                let bytes = self.payload().part(0, length);
                self.data.copy_from_slice(self.reserve.bytes(bytes));
                self.snapshot.clone_from(&self.data);
                self.loaded = true;
                self.job = Job::Idle;
                for request in std::mem::take(&mut self.early) {
                    self.serve(request);
                }
            }
            Job::WritingDevice => {
                let tickets = std::mem::take(&mut self.running_kept);
                self.answer(tickets);
                let io = self.io();
                self.effects.push_back(Effect::DeviceFlush { io });
                self.job = Job::FlushingDevice;
            }
            Job::FlushingDevice => {
                self.answer_tickets();
                if self.flaw == flaw::EARLY_DRAIN {
                    self.answer_tokens();
                }
                if self.flaw == flaw::EAGER_DESTAGE {
                    let buffer = self.payload().part(0, u32::try_from(self.data.len()).unwrap());
                    self.reserve.bytes_mut(buffer).copy_from_slice(&self.data);
                }
                let io = self.io();
                let buffer = self.payload();
                self.effects.push_back(Effect::OriginWrite { io, export, offset: 0, buffer });
                self.job = Job::WritingOrigin;
            }
            Job::WritingOrigin if self.flaw == flaw::NO_ORIGIN_FLUSH => {
                self.answer_tokens();
                self.job = Job::Idle;
            }
            Job::WritingOrigin => {
                let io = self.io();
                self.effects.push_back(Effect::OriginFlush { io, export });
                self.job = Job::FlushingOrigin;
            }
            Job::FlushingOrigin => {
                self.answer_tokens();
                self.job = Job::Idle;
            }
        }
    }

    fn serve(&mut self, request: Request) {
        if !self.loaded {
            self.early.push(request);
            return;
        }
        if let Some((at, bytes)) = self.half.take() {
            self.data[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        if let Some((buffer, at)) = self.late.take() {
            let bytes = self.reserve.bytes(buffer);
            self.data[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let Request { ticket, offset, length, command, kept, .. } = request;
        let kept = kept && self.flaw != flaw::EARLY_KEPT;
        let (start, end) = (offset as usize, (offset + length) as usize);
        let fua = match command {
            Command::Read { buffer, .. } => {
                self.read(buffer, start, end);
                false
            }
            Command::Write { buffer, fua } => {
                self.write(buffer, start, end);
                self.effects.push_back(Effect::Consumed { ticket });
                fua
            }
            Command::WriteZeroes { fua, .. } => {
                self.data[start..end].fill(0);
                fua
            }
            Command::Trim { fua } => {
                let first = start.next_multiple_of(BLOCK_BYTES);
                let last = end - end % BLOCK_BYTES;
                self.data[first..last.max(first)].fill(0);
                fua
            }
            Command::Flush => true,
        };
        self.counted += 1;
        if self.flaw == flaw::FORGETS && self.counted == 100 {
            return;
        }
        let is_read = matches!(command, Command::Read { .. });
        if fua {
            self.next.0.push(ticket);
            self.begin_job();
        } else if kept && !is_read {
            self.next_kept.push(ticket);
            self.begin_job();
        } else {
            self.effects.push_back(Effect::Complete { ticket, result: Ok(()) });
        }
    }

    /// What a client that has gone asked for, and has not happened yet, never does.
    fn abandon(&mut self, ticket: Ticket) {
        let is_change =
            |request: &Request| !matches!(request.command, Command::Read { .. } | Command::Flush);
        let withdrawn = |request: &mut Request| request.ticket == ticket && is_change(request);
        for request in self.early.extract_if(.., withdrawn) {
            if matches!(request.command, Command::Write { .. }) {
                self.effects.push_back(Effect::Consumed { ticket });
            }
            self.effects.push_back(Effect::Complete { ticket, result: Err(RequestError::Io) });
        }
    }

    fn read(&mut self, buffer: Buffer, start: usize, end: usize) {
        let skip = start % BLOCK_BYTES;
        let into = self.reserve.bytes_mut(buffer);
        let stale = self.flaw == flaw::STALE_READ && start.is_multiple_of(5);
        let from = if stale { &self.snapshot } else { &self.data };
        into[skip..skip + end - start].copy_from_slice(&from[start..end]);
    }

    fn write(&mut self, buffer: Buffer, start: usize, end: usize) {
        if self.flaw == flaw::LATE_COPY {
            self.late = Some((buffer, start));
            return;
        }
        let bytes = self.reserve.bytes(buffer).to_vec();
        let start = if self.flaw == flaw::WRONG_BLOCK && end + BLOCK_BYTES <= self.data.len() {
            start + BLOCK_BYTES
        } else {
            start
        };
        if self.flaw == flaw::TORN_WRITE && bytes.len() > BLOCK_BYTES {
            let (first, second) = bytes.split_at(BLOCK_BYTES);
            self.data[start..start + BLOCK_BYTES].copy_from_slice(first);
            self.half = Some((start + BLOCK_BYTES, second.to_vec()));
            return;
        }
        self.data[start..start + bytes.len()].copy_from_slice(&bytes);
        if self.flaw == flaw::CHANGE_IN_FLIGHT && self.job == Job::WritingDevice {
            let at = u32::try_from(start).expect("small");
            let target = self.payload().part(at, u32::try_from(bytes.len()).expect("small"));
            self.reserve.bytes_mut(target).copy_from_slice(&bytes);
        }
    }
}

impl Core for Toy {
    fn format(storage: &mut dyn Storage, _: &FormatOptions) -> Result<(), String> {
        if BUILT_IN.get() == flaw::BELIEVES_FORMER {
            return Ok(());
        }
        let erased = PLACES.iter().try_for_each(|place| storage.write(*place, &[0; HEADER_BYTES]));
        erased.and_then(|()| storage.flush()).map_err(|error| error.to_string())
    }

    fn open(
        storage: &mut dyn Storage,
        reserve: Reserve,
        plan: ReservePlan,
        exports: &[ExportOptions],
        _: Config,
        _: Now,
    ) -> Result<(Self, Vec<OpenedExport>), OpenError> {
        let flaw = BUILT_IN.get();
        if flaw != flaw::NO_FIRST_FLUSH {
            storage.flush()?;
        }
        let size_bytes = exports[0].origin.size_bytes;
        let padded = size_bytes.next_multiple_of(BLOCK_BYTES_U64) as usize;
        let mut newest: Option<(u64, Vec<u8>)> = None;
        for place in PLACES {
            let mut image = vec![0; HEADER_BYTES + padded];
            storage.read_at(place, &mut image)?;
            let valid = flaw == flaw::NO_CHECKSUM || word(&image, 0) == checksum(&image[8..]);
            let generation = word(&image, 1);
            let newer = newest.as_ref().is_none_or(|(other, _)| generation > *other);
            if valid && generation > 0 && newer {
                newest = Some((generation, image));
            }
        }
        let mut data = vec![0; size_bytes as usize];
        let (loaded, generation) = match newest {
            Some((generation, image)) => {
                data.copy_from_slice(&image[HEADER_BYTES..][..size_bytes as usize]);
                (true, generation)
            }
            None => (false, 0),
        };
        let opened = OpenedExport {
            slot: ExportSlot(0),
            name: exports[0].name.clone(),
            size_bytes,
            known: loaded,
        };
        let mut toy = Self {
            flaw,
            reserve,
            plan,
            snapshot: data.clone(),
            data,
            loaded,
            job: Job::Idle,
            generation,
            effects: VecDeque::new(),
            early: Vec::new(),
            next: Default::default(),
            running: Default::default(),
            next_kept: Vec::new(),
            running_kept: Vec::new(),
            late: None,
            half: None,
            ios: 0,
            counted: 0,
            stopping: false,
        };
        let (io, buffer, export) = (toy.io(), toy.payload(), ExportSlot(0));
        toy.effects.push_back(if loaded {
            // The origin may lack a part of what was recovered.
            toy.job = Job::WritingOrigin;
            let bytes = buffer.part(0, u32::try_from(toy.data.len()).expect("small"));
            toy.reserve.bytes_mut(bytes).copy_from_slice(&toy.data);
            Effect::OriginWrite { io, export, offset: 0, buffer }
        } else {
            toy.job = Job::Loading;
            Effect::OriginRead { io, export, offset: 0, buffer }
        });
        Ok((toy, vec![opened]))
    }

    fn reserve(&mut self) -> &mut Reserve {
        &mut self.reserve
    }

    fn step(&mut self, event: Event, _: Now) {
        match event {
            Event::Submit(request) => self.serve(request),
            Event::IoDone { result, .. } => {
                assert_eq!(result, Ok(()), "the toy knows no errors");
                self.advance_job();
                self.begin_job();
            }
            Event::Control {
                token,
                action: Control::Flush | Control::Drain(_) | Control::Stop,
            } => {
                self.stopping |= matches!(event, Event::Control { action: Control::Stop, .. });
                self.next.1.push(token);
                self.begin_job();
            }
            Event::Abandon { ticket } => self.abandon(ticket),
            Event::Control { .. } | Event::EndOfTurn => {}
        }
    }

    fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn deadline_ns(&self) -> Option<u64> {
        None
    }

    fn check_invariants(&self) {}
}
