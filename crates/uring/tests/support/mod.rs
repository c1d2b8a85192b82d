//! A ring over a disk in memory, a negotiation of four bytes, and a client that speaks raw NBD.

#![allow(dead_code, reason = "each test binary uses its own part")]

use ringfence_cache::{
    Coming, Command, Effect, Event, IoError, Notice, Now, Piece, PieceContent, Request,
    RequestError, Reserve, Ticket,
};
use ringfence_uring::core::Core;
use ringfence_uring::{CoreSpec, Runtime, RuntimeEvent, start_core};
use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, mpsc};
use std::time::Duration;

/// No reply for so long means that there will be none: only ever the end of a failing test.
pub const PATIENCE: Duration = Duration::from_secs(20);
static HOSTS: AtomicU32 = AtomicU32::new(0);
static SHOW_PANICS: Once = Once::new();

/// A ring's panic ends the process, and with it what the test harness has caught of its message.
fn show_panics_of_rings() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some("ringfence-ring") {
            let stderr = std::fs::File::options().append(true).open("/dev/stderr");
            let _shown = stderr.and_then(|mut stderr| writeln!(stderr, "{info}"));
        }
        before(info);
    }));
}

/// What a test may do to the disk while it runs.
#[derive(Debug, Default)]
pub struct Switches {
    /// Writes are neither consumed nor completed while this is set.
    pub hold_writes: AtomicBool,
    /// Reads of anything from this offset on fail; 0 for none.
    pub reads_fail_from: AtomicU64,
    /// Of reads in pieces all but the first block waits while this is set.
    pub hold_rest: AtomicBool,
    /// Reads in pieces tell of each block by itself; those of 0xbb cannot be read, and those of
    /// zeroes are holes.
    pub split: AtomicBool,
    /// Steps submitted so far.
    pub steps: AtomicU64,
    /// Where the request is that was last said to come.
    pub coming_offset: AtomicU64,
}

/// A disk in memory with the engine's contract.
pub struct RamDisk {
    reserve: Reserve,
    exports: Vec<Vec<u8>>,
    effects: VecDeque<Effect>,
    held: VecDeque<Request>,
    /// Reads of which the rest is yet to be told.
    rests: VecDeque<(Ticket, Result<(), RequestError>)>,
    pieces: HashMap<Ticket, VecDeque<Piece>>,
    switches: Arc<Switches>,
    deadline_ns: Option<u64>,
}

impl RamDisk {
    fn execute(&mut self, request: Request) {
        let Request { ticket, export, command, offset, length, .. } = request;
        let disk = &mut self.exports[export.index()];
        let range = offset as usize..(offset + length) as usize;
        let mut result = Ok(());
        match command {
            Command::Read { buffer, in_pieces } => {
                let fail_from = self.switches.reads_fail_from.load(Ordering::SeqCst);
                if fail_from > 0 && offset + length > fail_from {
                    result = Err(RequestError::Io);
                } else {
                    let into = buffer.part((offset % 4096) as u32, length as u32);
                    self.reserve.bytes_mut(into).copy_from_slice(&disk[range]);
                    if in_pieces && self.switches.split.load(Ordering::SeqCst) {
                        return self.tell_blocks(&request);
                    }
                }
            }
            Command::Write { buffer, .. } => {
                assert_eq!(u64::from(buffer.length), length, "exactly the payload");
                disk[range].copy_from_slice(self.reserve.bytes(buffer));
                self.effects.push_back(Effect::Consumed { ticket });
            }
            Command::WriteZeroes { .. } | Command::Trim { .. } => {
                // Larger exports than their memory exist for these alone.
                let end = range.end.min(disk.len());
                disk[range.start.min(end)..end].fill(0);
            }
            Command::Flush => {}
        }
        self.effects.push_back(Effect::Complete { ticket, result });
    }
}

impl RamDisk {
    /// Tells of the first block of a read, and of the others when they are not held.
    fn tell_blocks(&mut self, request: &Request) {
        let disk = &self.exports[request.export.index()];
        let first = request.offset / 4096;
        let last = (request.offset + request.length - 1) / 4096;
        let mut result = Ok(());
        for block in first..=last {
            let content = match disk[block as usize * 4096] {
                0xbb => PieceContent::Failed(RequestError::Io),
                0 => PieceContent::Zeroes,
                _ => PieceContent::Data,
            };
            if matches!(content, PieceContent::Failed(_)) {
                result = Err(RequestError::Io);
            }
            let number = (block - first) as u32;
            let piece = Piece { first: number, blocks: 1, content, last: block == last };
            self.pieces.entry(request.ticket).or_default().push_back(piece);
        }
        self.effects.push_back(Effect::Pieces { ticket: request.ticket });
        self.rests.push_back((request.ticket, result));
    }

    fn tell_rests(&mut self) {
        for (ticket, result) in self.rests.drain(..) {
            self.effects.push_back(Effect::Pieces { ticket });
            self.effects.push_back(Effect::Complete { ticket, result });
        }
    }
}

impl Core for RamDisk {
    fn reserve(&mut self) -> &mut Reserve {
        &mut self.reserve
    }

    fn prefetch(&self, coming: Coming) {
        if let Coming::Submit { offset, .. } = coming {
            self.switches.coming_offset.store(offset, Ordering::SeqCst);
        }
    }

    fn step(&mut self, event: Event, now: Now) {
        let hold = self.switches.hold_writes.load(Ordering::SeqCst);
        match event {
            Event::Submit(request) => {
                self.switches.steps.fetch_add(1, Ordering::SeqCst);
                if hold && matches!(request.command, Command::Write { .. }) {
                    self.held.push_back(request);
                } else {
                    self.execute(request);
                }
            }
            Event::Abandon { ticket } => {
                let held = self.held.iter().position(|request| request.ticket == ticket);
                if let Some(at) = held {
                    self.held.remove(at);
                    let result = Err(RequestError::Io);
                    self.effects.push_back(Effect::Consumed { ticket });
                    self.effects.push_back(Effect::Complete { ticket, result });
                }
            }
            Event::EndOfTurn => {
                if !hold {
                    while let Some(request) = self.held.pop_front() {
                        self.execute(request);
                    }
                }
                if !self.switches.hold_rest.load(Ordering::SeqCst) {
                    self.tell_rests();
                }
                let poll_ns = now.monotonic_ns + 1_000_000;
                let waits = !self.held.is_empty() || !self.rests.is_empty();
                self.deadline_ns = waits.then_some(poll_ns);
            }
            Event::Control { token, .. } => {
                self.effects.push_back(Effect::ControlDone { token, result: Ok(()) });
                let error = IoError::Failed { errno: 5 };
                self.effects.push_back(Effect::Notice(Notice::Latched { error }));
            }
            Event::IoDone { .. } => unreachable!("a disk in memory asks for no I/O"),
        }
    }

    fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn next_piece(&mut self, ticket: Ticket) -> Option<Piece> {
        let pieces = self.pieces.get_mut(&ticket)?;
        let is_first = pieces.front().is_some_and(|piece| piece.first == 0);
        let held = self.switches.hold_rest.load(Ordering::SeqCst) && !is_first;
        if held { None } else { pieces.pop_front() }
    }

    fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }
}

/// How a host is set up.
pub struct Setup {
    /// Connections at a time.
    pub connections_max: u32,
    /// How long the ring spins.
    pub spin_us: u32,
    /// Memory of each export, its size unless `sizes` says otherwise.
    pub disk_bytes: Vec<usize>,
    /// Sizes that are larger than the memory: for trims and zeroes only.
    pub sizes: Vec<Option<u64>>,
    /// Exports that refuse writes.
    pub read_only: Vec<bool>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            connections_max: 8,
            spin_us: 0,
            disk_bytes: vec![16 << 20],
            sizes: vec![None],
            read_only: vec![false],
        }
    }
}

/// A running ring, and the thread that negotiates for it.
pub struct Host {
    pub runtime: Arc<Runtime>,
    pub switches: Arc<Switches>,
    pub path: PathBuf,
    /// Every connection's end, as told.
    pub closed: Arc<Mutex<Vec<&'static str>>>,
    /// Nobody negotiates, drains or hears anything while this is set.
    pub deaf: Arc<AtomicBool>,
    /// Whatever else was told.
    pub other: Arc<Mutex<Vec<RuntimeEvent>>>,
}

impl Host {
    pub fn start(setup: Setup) -> Self {
        let switches = Arc::new(Switches::default());
        let sizes = setup.disk_bytes.iter().zip(&setup.sizes);
        let exports = sizes
            .zip(&setup.read_only)
            .map(|((memory, size), read_only)| (size.unwrap_or(*memory as u64), *read_only))
            .collect();
        let spec = CoreSpec {
            reserve_bytes: (96 << 20) + u64::from(setup.connections_max) * (4 << 20),
            connections_max: setup.connections_max,
            spin_us: setup.spin_us,
            spin_always: true,
            exports,
        };
        let disk_switches = switches.clone();
        let build = |reserve| RamDisk {
            reserve,
            exports: setup.disk_bytes.iter().map(|bytes| vec![0; *bytes]).collect(),
            effects: VecDeque::with_capacity(4096),
            held: VecDeque::with_capacity(4096),
            rests: VecDeque::with_capacity(4096),
            pieces: HashMap::with_capacity(4096),
            switches: disk_switches,
            deadline_ns: None,
        };
        let mut host = Self::over(|bell| start_core(&spec, build, bell).expect("a ring"));
        host.switches = switches;
        host
    }

    /// A host over whatever `start` starts.
    pub fn over(start: impl FnOnce(Box<dyn Fn() + Send>) -> Runtime) -> Self {
        SHOW_PANICS.call_once(show_panics_of_rings);
        let (ring, rung) = mpsc::channel();
        let bell = Box::new(move || {
            let _nobody_listens = ring.send(());
        });
        let runtime = Arc::new(start(bell));
        let number = HOSTS.fetch_add(1, Ordering::SeqCst);
        let name = format!("ringfence-ring-{}-{number}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        runtime.listen(&format!("unix:{}", path.display())).expect("a socket");
        let host = Self {
            runtime,
            switches: Arc::default(),
            path,
            closed: Arc::default(),
            other: Arc::default(),
            deaf: Arc::default(),
        };
        host.negotiate(rung);
        host
    }

    /// A handshake: the client sends `[slot, structured, read only, how many more bytes]` and so
    /// many more, and gets them back.
    fn negotiate(&self, rung: mpsc::Receiver<()>) {
        let runtime = Arc::downgrade(&self.runtime);
        let (closed, other) = (self.closed.clone(), self.other.clone());
        let deaf = self.deaf.clone();
        std::thread::spawn(move || {
            let mut events = Vec::new();
            let mut greetings = HashMap::new();
            while rung.recv().is_ok() {
                while deaf.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let Some(runtime) = runtime.upgrade() else { return };
                runtime.drain_events(&mut events);
                for event in events.drain(..) {
                    match event {
                        RuntimeEvent::Accepted { connection, .. } => {
                            let _stopping = runtime.receive(connection, 4, 1_000);
                        }
                        RuntimeEvent::Received { connection, bytes } => {
                            let greeting: &mut Vec<u8> = greetings.entry(connection).or_default();
                            greeting.extend(bytes);
                            let more = 4 + usize::from(greeting[3]);
                            if greeting.len() < more {
                                let left = (more - greeting.len()) as u32;
                                let _stopping = runtime.receive(connection, left, 1_000);
                                continue;
                            }
                            let _stopping = runtime.send(connection, greeting);
                            let [slot, structured, read_only, ..] = greeting[..] else { return };
                            let began = runtime.begin_transmission(
                                connection,
                                slot,
                                structured == 1,
                                read_only == 1,
                            );
                            if began.is_err() {
                                let _stopping = runtime.close(connection);
                            }
                        }
                        RuntimeEvent::Closed { connection, reason } => {
                            greetings.remove(&connection);
                            closed.lock().expect("no panic").push(reason);
                        }
                        event => other.lock().expect("no panic").push(event),
                    }
                }
            }
        });
    }

    pub fn connect(&self) -> Client {
        self.attach(0, false, false)
    }

    pub fn attach(&self, slot: u8, structured: bool, read_only: bool) -> Client {
        let mut client = Client::open(self);
        client.greet(slot, structured, read_only);
        client
    }

    /// Waits until `condition` holds.
    pub fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let began = std::time::Instant::now();
        while !condition(self) {
            assert!(began.elapsed() < PATIENCE, "{what}: not seen; ended: {:?}", self.reasons());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn counter(&self, name: &str) -> u64 {
        let layout = ringfence_uring::counter_layout();
        let index = layout.engine.iter().position(|other| *other == name).expect("a counter");
        let mut values = vec![0; layout.values];
        self.runtime.counters(&mut values);
        values[index]
    }

    /// Requests of all clients of the first export that were answered, and errors among them.
    pub fn answered(&self, op: &str) -> (u64, u64) {
        let layout = ringfence_uring::counter_layout();
        let op = layout.operations.iter().position(|other| *other == op).expect("an operation");
        let exports = layout.exports_max as usize;
        // Requests, bytes, errors, the sum of durations, the buckets and what is above them.
        let group = 4 + layout.duration_buckets_ns.len() + 1;
        let at = layout.engine.len() + exports * layout.export_names.len() + op * group;
        let mut values = vec![0; layout.values];
        self.runtime.counters(&mut values);
        (values[at], values[at + 2])
    }

    pub fn reasons(&self) -> Vec<&'static str> {
        self.closed.lock().expect("no panic").clone()
    }
}

/// A client on a socket.
pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    cookie: u64,
}

/// Commands by their numbers.
pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;

impl Client {
    /// Connects, and does not say anything.
    pub fn open(host: &Host) -> Self {
        Self::at(&host.path)
    }

    /// The same at an address of one's own.
    pub fn at(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, structured: false, cookie: 0x1000 }
    }

    /// Negotiates.
    pub fn greet(&mut self, slot: u8, structured: bool, read_only: bool) {
        let greeting =
            [slot, u8::from(structured), u8::from(read_only), 5, b'h', b'e', b'l', b'l', b'o'];
        // The greeting and what follows it in one piece: the ring must leave the rest alone.
        self.stream.write_all(&greeting).expect("a greeting");
        assert_eq!(self.read(9), greeting, "the greeting comes back");
        self.structured = structured;
    }

    /// The same connection, for a thread that only reads.
    pub fn second_handle(&self) -> Self {
        let stream = self.stream.try_clone().expect("a second handle");
        Self { stream, structured: self.structured, cookie: self.cookie }
    }

    pub fn header(&mut self, command: u16, offset: u64, length: u32) -> Vec<u8> {
        self.cookie += 1;
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend(0_u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    pub fn request(&mut self, command: u16, offset: u64, length: u32, payload: &[u8]) -> u64 {
        let mut bytes = self.header(command, offset, length);
        bytes.extend(payload);
        self.stream.write_all(&bytes).expect("a request");
        self.cookie
    }

    pub fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).expect("bytes of a reply");
        bytes
    }

    /// A simple reply's error and cookie.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        let bytes = self.read(16);
        assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes(), "a simple reply");
        let error = u32::from_be_bytes(bytes[4..8].try_into().expect("four"));
        (error, u64::from_be_bytes(bytes[8..16].try_into().expect("eight")))
    }

    /// Takes whatever comes up to the end of one answer, simple or in chunks, without an error.
    pub fn any_reply(&mut self) {
        loop {
            let head = self.read(16);
            if head[..4] == 0x6744_6698_u32.to_be_bytes() {
                assert_eq!(head[4..8], [0; 4], "no error");
                return;
            }
            assert_eq!(head[..4], 0x668e_33ef_u32.to_be_bytes(), "a chunk");
            assert_eq!(head[6] & 0x80, 0, "no error");
            let length = u32::from_be_bytes(self.read(4).try_into().expect("four"));
            self.read(length as usize);
            if head[5] & 1 == 1 {
                return;
            }
        }
    }

    /// A chunk: flags, type, cookie, payload.
    pub fn chunk(&mut self) -> (u16, u16, u64, Vec<u8>) {
        let bytes = self.read(20);
        assert_eq!(bytes[..4], 0x668e_33ef_u32.to_be_bytes(), "a chunk");
        let number = |at: usize| u16::from_be_bytes(bytes[at..at + 2].try_into().expect("two"));
        let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight"));
        let length = u32::from_be_bytes(bytes[16..20].try_into().expect("four"));
        (number(4), number(6), cookie, self.read(length as usize))
    }

    /// Writes, and returns the error.
    pub fn write(&mut self, offset: u64, payload: &[u8]) -> u32 {
        let cookie = self.request(WRITE, offset, payload.len() as u32, payload);
        let (error, answered) = self.simple_reply();
        assert_eq!(answered, cookie);
        error
    }

    /// Any command without data in either direction, and its error.
    pub fn plain(&mut self, command: u16, offset: u64, length: u32) -> u32 {
        let cookie = self.request(command, offset, length, &[]);
        let (error, answered) = self.simple_reply();
        assert_eq!(answered, cookie);
        error
    }

    /// Reads, and returns the data or the error.
    pub fn get(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
        let cookie = self.request(READ, offset, length, &[]);
        if !self.structured {
            let (error, answered) = self.simple_reply();
            assert_eq!(answered, cookie);
            return if error == 0 { Ok(self.read(length as usize)) } else { Err(error) };
        }
        let mut data = vec![0; length as usize];
        let mut seen = 0;
        let mut failed = None;
        loop {
            let (flags, kind, answered, payload) = self.chunk();
            assert_eq!(answered, cookie);
            match kind {
                0 => {}
                1 => {
                    let at = u64::from_be_bytes(payload[..8].try_into().expect("eight"));
                    let at = (at - offset) as usize;
                    data[at..at + payload.len() - 8].copy_from_slice(&payload[8..]);
                    seen += payload.len() - 8;
                }
                2 => {
                    seen += u32::from_be_bytes(payload[8..].try_into().expect("four")) as usize;
                }
                0x8001 | 0x8002 => {
                    failed = Some(u32::from_be_bytes(payload[..4].try_into().expect("four")));
                }
                other => panic!("a chunk of type {other:#x}"),
            }
            if flags & 1 == 1 {
                assert!(failed.is_some() || seen == data.len(), "every byte was sent");
                return failed.map_or(Ok(data), Err);
            }
        }
    }

    /// Whether the server has closed the connection, after anything that it may still have sent.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Bytes that tell where they belong.
pub fn pattern(offset: u64, length: usize, salt: u8) -> Vec<u8> {
    let byte = |at: u64| (at ^ (at >> 8) ^ (at >> 16)) as u8 ^ salt;
    (offset..offset + length as u64).map(byte).collect()
}
