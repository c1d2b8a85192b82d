//! The thread that keeps a device attached.
//!
//! ```text
//!  Watching ──connection dead──▶ Mending ──socket taken──▶ Watching
//!     │ detach, leave,             │  ▲ └─ nobody there, or not the same: again, later
//!     ▼ device gone                │  │
//!   ended ◀────────────────────────┘  └── renew: a handshake that JavaScript did anew
//! ```
//!
//! A connection is dead when the driver has shut its socket down, which the thread sees on its own
//! descriptor of it. For sockets that another process gave to the driver there is its message
//! (`LINK_DEAD`), which the kernel asks for memory to send.
//!
//! While a connection is dead, whoever uses the device waits: memory that is full of data for it
//! cannot be freed. So this thread needs no memory that it does not have (its buffers are there at
//! the start, its stack and text are locked), never waits for I/O that memory reclaim begins
//! (`PR_SET_IO_FLUSHER`), and asks JavaScript for nothing unless the server has changed.

use super::life::{Life, is_attached_to};
use super::link::{
    Link, RECEIVE_BYTES_MAX, ReplayError, Transcript, allow_stalls, hand_over, was_taken,
};
use super::netlink::{DeviceSpec, Listener, Netlink, SOCKETS_MAX};
use super::queue::Queue;
use super::refusal;
use super::sockets::Sockets;
use crate::error::RuntimeError;
use crate::options::Guard;
use crate::signal::{Signal, spawn_quiet};
use crate::thread::{lock_stack, lock_text};
use crate::{allocation, guards};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a device is looked at that nobody tells anything of: somebody else may detach it.
const WATCH: Duration = Duration::from_secs(1);
/// Between two attempts to connect, doubling from the first to the last.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// The driver tells of a death shortly before it notes it down, and would not take a socket yet.
const PREMATURE: Duration = Duration::from_millis(50);
const PREMATURE_MAX: u32 = 4;
/// Attempts to restore more connections than the server takes.
const FURTHER_MAX: u32 = 6;
/// What JavaScript has not fetched yet; beyond that the oldest is dropped.
const EVENTS_MAX: usize = 256;
const COMMANDS_MAX: usize = 8;
const STACK_BYTES: usize = 1 << 20;
/// How long the supervisor of an earlier life of the device has to notice its end.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// The device.
    pub device: DeviceSpec,
    /// Sockets of the device; each is a connection to the server.
    pub connections: u32,
    /// The device is attached to this export already, and left alone by whoever did it.
    pub take_over: bool,
}

/// What happened to an attached device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachEvent {
    /// A connection broke; requests wait.
    Dead,
    /// The server cannot be reached, for this reason (errno); attempts go on.
    Away(i32),
    /// The server answers something else than before: JavaScript has to look.
    Unlike,
    /// A connection was replaced.
    Restored,
    /// No connection for as long as requests wait: they fail from now on. Attempts go on.
    Failing,
    /// Somebody else detached the device.
    Gone,
}

enum Command {
    Detach,
    Leave,
    Renew(Link),
}

/// What the thread and its owner have in common.
struct Shared {
    events: Mutex<VecDeque<AttachEvent>>,
    commands: Mutex<VecDeque<Command>>,
    signal: Signal,
}

impl Shared {
    fn tell(&self, event: AttachEvent) {
        let mut events = lock(&self.events);
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// The oldest event that was not fetched yet. One at a time, so that whoever collects them asks
    /// for memory without the lock: memory may be what waits for the thread that mends connections,
    /// and that thread takes the lock to tell of what it does.
    fn told(&self) -> Option<AttachEvent> {
        lock(&self.events).pop_front()
    }

    fn command(&self, command: Command) {
        lock(&self.commands).push_back(command);
        self.signal.ring();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device that is attached and looked after.
pub struct Attachment {
    index: u32,
    guards: Vec<Guard>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<io::Result<()>>>>,
    /// Nobody else looks after this device while this is bound.
    _lock: UnixListener,
}

impl Attachment {
    /// The device's number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// What protects the thread.
    #[must_use]
    pub fn guards(&self) -> &[Guard] {
        &self.guards
    }

    /// What happened since the last call.
    #[must_use]
    pub fn drain_events(&self) -> Vec<AttachEvent> {
        std::iter::from_fn(|| self.shared.told()).collect()
    }

    /// Replaces a dead connection by one that was negotiated anew, and repeats that handshake from
    /// now on.
    pub fn renew(&self, link: Link) {
        self.shared.command(Command::Renew(link));
    }

    /// Detaches the device and ends the thread.
    ///
    /// # Errors
    /// A sentence, when the driver refuses.
    pub fn detach(&self) -> Result<(), RuntimeError> {
        self.end(Command::Detach)
    }

    /// Ends the thread and leaves the device as it is, for the next who takes it over.
    ///
    /// # Errors
    /// None that can happen while the driver works.
    pub fn leave(&self) -> Result<(), RuntimeError> {
        self.end(Command::Leave)
    }

    fn end(&self, command: Command) -> Result<(), RuntimeError> {
        let Some(thread) = lock(&self.thread).take() else { return Ok(()) };
        self.shared.command(command);
        let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread failed")));
        ended.map_err(|error| refusal(Some(self.index), &error))
    }
}

/// Attaches a device over a connection whose handshake is done, or takes over one that is attached,
/// and keeps it attached until it is told otherwise. Connections beyond the first repeat its
/// handshake.
///
/// # Errors
/// A sentence that says what to do.
pub fn attach(link: Link, spec: AttachSpec) -> Result<Attachment, RuntimeError> {
    let given = spec.device.index;
    if spec.connections == 0 || spec.connections as usize > SOCKETS_MAX {
        return Err(RuntimeError::Argument { what: "a device has 1 to 16 connections" });
    }
    if spec.device.resend_seconds == 0 {
        return Err(RuntimeError::Argument { what: "requests wait at least a second" });
    }
    let early_lock = given.map(lock_device).transpose()?;
    let refused = |error: io::Error| refusal(given, &error);
    let mut guards = vec![guards::oom_score()];
    let shared = Arc::new(Shared {
        events: Mutex::new(VecDeque::with_capacity(EVENTS_MAX)),
        commands: Mutex::new(VecDeque::with_capacity(COMMANDS_MAX)),
        signal: Signal::new().map_err(refused)?,
    });
    let (ready, started) = mpsc::sync_channel(1);
    let thread_shared = shared.clone();
    let body = move || {
        let flusher = guards::io_flusher();
        let locked = lock_stack() & lock_text();
        let (opened, all_locked) = allocation::locking(|| open(link, spec, thread_shared));
        let mut supervisor = match opened {
            Ok(supervisor) => supervisor,
            Err(error) => {
                let _nobody_waits = ready.send(Err(error));
                return Ok(());
            }
        };
        let guards = vec![flusher, memory_locked(locked && all_locked)];
        let _nobody_waits = ready.send(Ok((supervisor.driver.index, guards)));
        allocation::watch_this_thread();
        let ended = supervisor.run();
        allocation::unwatch_this_thread();
        ended
    };
    let thread = spawn_quiet("ringfence-attach", STACK_BYTES, body).map_err(refused)?;
    let (index, more) = started.recv().map_err(|_| RuntimeError::Stopped)??;
    guards.extend(more);
    let lock = early_lock.map_or_else(|| lock_device(index), Ok).inspect_err(|_| {
        // The thread would go on with nobody to tell it to end.
        lock(&shared.commands).push_back(Command::Detach);
        shared.signal.ring();
    })?;
    Ok(Attachment { index, guards, shared, thread: Mutex::new(Some(thread)), _lock: lock })
}

/// A name that one process has at a time, and that dies with it.
fn lock_device(index: u32) -> Result<UnixListener, RuntimeError> {
    let began = Instant::now();
    loop {
        let bound = SocketAddr::from_abstract_name(format!("ringfence-attach-nbd{index}"))
            .and_then(|name| UnixListener::bind_addr(&name));
        match bound {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if began.elapsed() >= LOCK_PATIENCE {
                    let what = format!(
                        "/dev/nbd{index} is looked after by another \"ringfence attach\": stop \
                         that first, or name another device"
                    );
                    return Err(RuntimeError::Attach { what });
                }
                std::thread::sleep(PREMATURE);
            }
            other => return other.map_err(|error| refusal(Some(index), &error)),
        }
    }
}

fn memory_locked(locked: bool) -> Guard {
    let advice = "the thread that mends connections is not locked in memory: set \
                  LimitMEMLOCK=infinity in the unit, raise `ulimit -l`, or run with CAP_IPC_LOCK";
    guards::guard("memory_locked", (!locked).then(|| advice.to_owned()))
}

/// Everything that the thread will need, and the device itself.
fn open(
    link: Link,
    spec: AttachSpec,
    shared: Arc<Shared>,
) -> Result<Supervisor<KernelDriver>, RuntimeError> {
    let given = spec.device.index;
    let refused = |error: io::Error| refusal(given, &error);
    let mut netlink = Netlink::open().map_err(refused)?;
    // Before the device exists, so that no death is missed.
    let listener = netlink.listen().map_err(refused)?;
    let Link { socket, transcript } = link;
    let mut scratch = vec![0; RECEIVE_BYTES_MAX].into_boxed_slice();
    let mut sockets = Sockets::new();
    let index = match given {
        Some(index) if spec.take_over => index,
        _ => {
            sockets.add(socket);
            connect_further(&mut sockets, &transcript, &mut scratch, spec.connections)?;
            let raw: Vec<RawFd> = sockets.living().iter().map(AsRawFd::as_raw_fd).collect();
            let index = netlink.connect(&spec.device, &raw).map_err(refused)?;
            // One that keeps the driver's timeout is given up early, and works until then.
            let _given_up_early = sockets.living().iter().try_for_each(allow_stalls);
            index
        }
    };
    let (life, queue) = match life_and_queue(index, &spec) {
        Ok(both) => both,
        Err(error) => {
            if !spec.take_over {
                // Nobody would mend it.
                let _first_error_counts = netlink.disconnect(index);
            }
            return Err(refused(error));
        }
    };
    let connections = spec.connections;
    let mending = spec.take_over.then(|| Mending::new(Instant::now()));
    let mut driver = KernelDriver {
        netlink,
        listener,
        index,
        life,
        queue,
        spec: spec.device,
        sockets,
        connections,
        shared,
    };
    let mut settled = driver.be_patient();
    if !spec.take_over {
        // There are no requests yet that could wait.
        settled = settled.and_then(|()| driver.queue.set_look());
        settled = settled.and_then(|()| driver.queue.shorten_requests());
    }
    if let Err(error) = settled {
        if !spec.take_over {
            // Nobody would mend it.
            let _first_error_counts = driver.detach();
        }
        return Err(refused(error));
    }
    let shared = driver.shared.clone();
    let dead_timeout = Duration::from_secs(u64::from(driver.spec.dead_timeout_seconds));
    Ok(Supervisor { driver, shared, transcript, scratch, connections, dead_timeout, mending })
}

fn life_and_queue(index: u32, spec: &AttachSpec) -> io::Result<(Life, Queue)> {
    let life = Life::of(index)?;
    // Since it was chosen, another may have got its number.
    if spec.take_over && !is_attached_to(index, &spec.device.backend)? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok((life, Queue::of(index, spec.device.resend_seconds)?))
}

fn connect_further(
    sockets: &mut Sockets,
    transcript: &Transcript,
    scratch: &mut [u8],
    connections: u32,
) -> Result<(), RuntimeError> {
    for _ in 1..connections {
        let again = transcript.replay(scratch).map_err(|error| RuntimeError::Attach {
            what: match error {
                ReplayError::Away(error) => format!("a second connection broke: {error}"),
                ReplayError::Unlike => "a second connection found another export".to_owned(),
            },
        })?;
        sockets.add(again);
    }
    for socket in sockets.living() {
        hand_over(socket).map_err(|error| refusal(None, &error))?;
    }
    Ok(())
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, Default)]
struct Woken {
    asked: bool,
    died: bool,
}

/// The kernel, as far as the loop needs it.
trait Driver {
    /// Waits for a command or a death, no longer than `limit`.
    fn wait(&mut self, limit: Duration) -> Woken;
    /// Whether the device is still attached.
    fn is_attached(&mut self) -> bool;
    /// Offers a connection in place of a dead one; false when none was dead.
    fn give(&mut self, socket: OwnedFd) -> io::Result<bool>;
    /// Connections that are known to work.
    fn living(&self) -> u32;
    /// Connections that are known to be dead and have not been replaced.
    fn owed(&self) -> u32;
    /// Lets requests fail that nobody will answer.
    fn fail_requests(&mut self);
    /// Detaches the device.
    fn detach(&mut self) -> io::Result<()>;
}

struct KernelDriver {
    netlink: Netlink,
    listener: Listener,
    index: u32,
    life: Life,
    queue: Queue,
    spec: DeviceSpec,
    sockets: Sockets,
    connections: u32,
    shared: Arc<Shared>,
}

impl KernelDriver {
    /// Before the driver is told anything of the device: its number may be another's by now.
    fn check_life(&self) -> io::Result<()> {
        if self.life.goes_on() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ENODEV)) }
    }

    /// Slow answers are waited for; what was on its way over a connection that has been replaced
    /// is sent again soon.
    fn be_patient(&mut self) -> io::Result<()> {
        self.netlink.limit_requests(self.index, &self.spec, false)?;
        self.queue.set_look_soon();
        Ok(())
    }
}

impl Driver for KernelDriver {
    fn wait(&mut self, limit: Duration) -> Woken {
        // SAFETY: both descriptors are open as long as their owners, which outlive the call.
        let (listener, signal) = unsafe {
            let signal = BorrowedFd::borrow_raw(self.shared.signal.raw());
            (BorrowedFd::borrow_raw(self.listener.raw()), signal)
        };
        let Ok(heard) = self.sockets.wait([listener, signal], limit) else {
            return Woken::default();
        };
        let [told, asked] = heard.readable;
        if asked {
            self.shared.signal.wait();
        }
        // While all of them are known to live, what is told is of one that was replaced since.
        let told = told && self.listener.heard_of(self.index);
        Woken { asked, died: heard.died || (told && self.living() < self.connections) }
    }

    fn is_attached(&mut self) -> bool {
        self.life.goes_on()
    }

    fn give(&mut self, socket: OwnedFd) -> io::Result<bool> {
        hand_over(&socket)?;
        self.check_life()?;
        self.netlink.reconfigure(self.index, &self.spec, socket.as_raw_fd())?;
        let taken = was_taken(&socket);
        if taken {
            let settled = allow_stalls(&socket);
            self.sockets.add(socket);
            settled?;
        }
        self.be_patient()?;
        Ok(taken)
    }

    fn living(&self) -> u32 {
        self.sockets.living().len() as u32
    }

    fn owed(&self) -> u32 {
        self.sockets.owed()
    }

    fn fail_requests(&mut self) {
        // Where it is refused they wait on, which loses nothing.
        let _refused = self
            .check_life()
            .and_then(|()| self.netlink.limit_requests(self.index, &self.spec, true));
    }

    fn detach(&mut self) -> io::Result<()> {
        // What has gone is detached.
        if self.life.goes_on() { self.netlink.disconnect(self.index) } else { Ok(()) }
    }
}

/// A connection is being replaced.
#[derive(Clone, Copy, Debug)]
struct Mending {
    began: Instant,
    next: Instant,
    pause: Duration,
    restored: u32,
    premature: u32,
    /// Attempts in vain since something was restored.
    further: u32,
    /// What was told already, so that it is told once.
    told_away: bool,
    told_failing: bool,
}

impl Mending {
    fn new(now: Instant) -> Self {
        Self {
            began: now,
            next: now,
            pause: RETRY_MIN,
            restored: 0,
            premature: 0,
            further: 0,
            told_away: false,
            told_failing: false,
        }
    }

    fn again_later(&mut self) {
        self.next = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }
}

struct Supervisor<D> {
    driver: D,
    shared: Arc<Shared>,
    transcript: Transcript,
    scratch: Box<[u8]>,
    connections: u32,
    dead_timeout: Duration,
    mending: Option<Mending>,
}

impl<D: Driver> Supervisor<D> {
    /// Until it is told to end, or the device is detached by others.
    fn run(&mut self) -> io::Result<()> {
        let mut looked = Instant::now();
        loop {
            let now = Instant::now();
            let due = self.mending.map_or(WATCH, |mending| mending.next.duration_since(now));
            let woken = self.driver.wait(due.min(WATCH));
            if woken.asked
                && let Some(ended) = self.obey()
            {
                return ended;
            }
            // Detaching shuts all sockets down, too.
            if woken.died || looked.elapsed() >= WATCH {
                looked = Instant::now();
                if !self.driver.is_attached() {
                    self.shared.tell(AttachEvent::Gone);
                    return Ok(());
                }
            }
            if woken.died {
                self.connection_died();
            }
            if self.mending.is_some_and(|mending| mending.next <= Instant::now()) {
                self.mend();
            }
        }
    }

    /// Does what was commanded; how the thread ends, if that was it.
    fn obey(&mut self) -> Option<io::Result<()>> {
        loop {
            let command = lock(&self.shared.commands).pop_front()?;
            match command {
                Command::Detach => return Some(self.driver.detach()),
                Command::Leave => return Some(Ok(())),
                Command::Renew(Link { socket, transcript }) => {
                    self.transcript = transcript;
                    let mut mending = self.mending.unwrap_or_else(|| Mending::new(Instant::now()));
                    self.offer(socket, &mut mending);
                }
            }
        }
    }

    fn connection_died(&mut self) {
        match &mut self.mending {
            Some(mending) => (mending.restored, mending.further) = (0, 0),
            None => {
                self.shared.tell(AttachEvent::Dead);
                self.mending = Some(Mending::new(Instant::now()));
            }
        }
    }

    /// One attempt to replace a dead connection.
    fn mend(&mut self) {
        let Some(mut mending) = self.mending else { return };
        match self.transcript.replay(&mut self.scratch) {
            Ok(socket) => self.offer(socket, &mut mending),
            Err(error) => self.failed(error, &mut mending),
        }
    }

    fn offer(&mut self, socket: OwnedFd, mending: &mut Mending) {
        match self.driver.give(socket) {
            Ok(true) => {
                self.shared.tell(AttachEvent::Restored);
                mending.restored += 1;
                mending.next = Instant::now();
                mending.pause = RETRY_MIN;
                let more = self.driver.living() < self.connections;
                self.mending = more.then_some(*mending);
            }
            // None is dead, or not yet.
            Ok(false) => {
                mending.premature += 1;
                mending.next = Instant::now() + PREMATURE;
                let early = mending.premature < PREMATURE_MAX;
                if self.driver.owed() > 0 {
                    if !early {
                        mending.again_later();
                    }
                    self.mending = Some(*mending);
                } else {
                    self.mending = (mending.restored == 0 && early).then_some(*mending);
                }
            }
            // It is detached, and if it is not gone, then only because somebody has it open.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => {
                self.mending = None;
            }
            Err(error) => self.failed(ReplayError::Away(error), mending),
        }
    }

    /// Requests go over those that live, and the server may have no room for more.
    fn failed_further(&mut self, mending: &mut Mending) {
        mending.further += 1;
        mending.again_later();
        self.mending = (mending.further < FURTHER_MAX).then_some(*mending);
    }

    fn failed(&mut self, error: ReplayError, mending: &mut Mending) {
        if self.driver.living() > 0 && matches!(error, ReplayError::Away(_)) {
            return self.failed_further(mending);
        }
        match error {
            ReplayError::Away(error) => {
                if !std::mem::replace(&mut mending.told_away, true) {
                    self.shared.tell(AttachEvent::Away(errno_of(&error)));
                }
            }
            ReplayError::Unlike => self.shared.tell(AttachEvent::Unlike),
        }
        if mending.began.elapsed() >= self.dead_timeout
            && !std::mem::replace(&mut mending.told_failing, true)
        {
            self.shared.tell(AttachEvent::Failing);
            self.driver.fail_requests();
        }
        mending.again_later();
        self.mending = Some(*mending);
    }
}

/// The number of an error of the system. Waiting too long for a connection has none.
fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::TimedOut => libc::ETIMEDOUT,
        io::ErrorKind::InvalidInput => libc::EINVAL,
        _ => libc::ECONNRESET,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
