//! The public interface: talking to a ring from another thread.

use crate::counters::CounterSource;
use crate::error::RuntimeError;
use crate::net::{self, SocketFile};
use crate::options::{ConnectionId, ControlAction, Listening, Opened, RuntimeEvent};
use crate::queue::{Consumer, Producer};
use crate::ring::Ending;
use crate::shared::{
    CONTROLS_MAX, Command, HANDSHAKE_BYTES_MAX, LISTENERS_MAX, RingEvent, STOP_TOKEN, Shared,
    slot_of,
};
use ringfence_cache::units::ExportSlot;
use ringfence_cache::{Control, Notice};
use ringfence_wire::ExportLimits;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long requests in flight may take at the end, against a client that has stalled.
const SHUTDOWN_LIMIT_MS: u64 = 10_000;
/// How long closing the origins may take after that.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// The threads of a ring.
pub(crate) struct Threads {
    pub ring: JoinHandle<()>,
    pub bell: JoinHandle<()>,
    pub stop_bell: Arc<AtomicBool>,
    pub outcome: mpsc::Receiver<Ending>,
}

/// What only one caller at a time may touch.
struct Caller {
    commands: Producer<Command>,
    events: Consumer<RingEvent>,
    /// By slot: the connection that the callers know of, or 0.
    live: Box<[ConnectionId]>,
    /// The listeners: of those that have one, the socket's file.
    listeners: Vec<Option<SocketFile>>,
}

/// An open engine with its ring thread. Its methods may be called from any thread.
pub struct Runtime {
    opened: Opened,
    exports: Box<[Option<ExportLimits>]>,
    shared: Arc<Shared>,
    caller: Mutex<Caller>,
    source: CounterSource,
    threads: Mutex<Option<Threads>>,
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    pub(crate) fn new(
        opened: Opened,
        exports: Box<[Option<ExportLimits>]>,
        shared: Arc<Shared>,
        (commands, events): (Producer<Command>, Consumer<RingEvent>),
        source: CounterSource,
        threads: Threads,
    ) -> Self {
        let live = vec![0; shared.slots()].into_boxed_slice();
        let caller = Caller { commands, events, live, listeners: Vec::new() };
        Self {
            opened,
            exports,
            shared,
            caller: Mutex::new(caller),
            source,
            threads: Mutex::new(Some(threads)),
            stopped: AtomicBool::new(false),
        }
    }

    /// What `open` found out.
    #[must_use]
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// Binds and listens on `unix:PATH` or `HOST:PORT` (port 0: any).
    ///
    /// # Errors
    /// [`RuntimeError::Listen`] when the address is busy or makes no sense.
    pub fn listen(&self, address: &str) -> Result<Listening, RuntimeError> {
        self.check_running()?;
        let mut caller = lock(&self.caller);
        if caller.listeners.len() == LISTENERS_MAX {
            return Err(RuntimeError::Argument { what: "at most 16 addresses can be listened on" });
        }
        let bound = net::listen(address)?;
        let listener = caller.listeners.len() as u32;
        let net::Listener { fd, address, tcp, file } = bound;
        caller.listeners.push(file);
        let fd = fd.into_raw_fd();
        self.put(&mut caller, Command::Listen { fd, listener, tcp });
        Ok(Listening { listener, address })
    }

    /// Asks for exactly `length` bytes of a handshake. One at a time per connection.
    ///
    /// # Errors
    /// When `length` is 0 or above 64 KiB, or the ring has stopped.
    pub fn receive(
        &self,
        connection: ConnectionId,
        length: u32,
        deadline_ms: u64,
    ) -> Result<(), RuntimeError> {
        if length == 0 || length > HANDSHAKE_BYTES_MAX {
            return Err(RuntimeError::Argument { what: "1 to 65536 bytes can be received" });
        }
        let limit_ns = deadline_ms.saturating_mul(1_000_000);
        let deadline_ns = crate::clock::monotonic_ns().saturating_add(limit_ns);
        self.command(Command::Receive { connection, length, deadline_ns })
    }

    /// Sends handshake bytes; they are copied. A connection that is gone takes them silently.
    ///
    /// # Errors
    /// When more than 64 KiB would wait.
    pub fn send(&self, connection: ConnectionId, bytes: &[u8]) -> Result<(), RuntimeError> {
        self.check_running()?;
        let mut caller = lock(&self.caller);
        let slot = slot_of(connection);
        if caller.live.get(slot) != Some(&connection) {
            return Ok(());
        }
        if !self.shared.put(slot, bytes) {
            return Err(RuntimeError::Argument {
                what: "more than 65536 bytes wait to be sent to a client",
            });
        }
        self.put(&mut caller, Command::Send { connection });
        Ok(())
    }

    /// The last call of a handshake: bytes sent so far go out, then the transmission phase begins.
    ///
    /// # Errors
    /// When there is no such export, or the ring has stopped.
    pub fn begin_transmission(
        &self,
        connection: ConnectionId,
        slot: u8,
        structured_replies: bool,
        read_only: bool,
    ) -> Result<(), RuntimeError> {
        let export = self.export(slot)?;
        // From here on the lane is the reply window: nothing may be put into it any more.
        let mut caller = lock(&self.caller);
        self.check_running()?;
        if let Some(live) = caller.live.get_mut(slot_of(connection))
            && *live == connection
        {
            *live = 0;
        }
        let begin = Command::Begin { connection, export, structured_replies, read_only };
        self.put(&mut caller, begin);
        Ok(())
    }

    /// Sends what is waiting, then closes.
    ///
    /// # Errors
    /// When the ring has stopped.
    pub fn close(&self, connection: ConnectionId) -> Result<(), RuntimeError> {
        self.command(Command::Close { connection })
    }

    /// Starts an operator's action; [`RuntimeEvent::ControlDone`] with the token tells its end.
    ///
    /// # Errors
    /// When there is no such export, too many actions are under way, or the ring has stopped.
    pub fn control(
        &self,
        token: u32,
        action: ControlAction,
        slot: Option<u8>,
    ) -> Result<(), RuntimeError> {
        let export = slot.map(|slot| self.export(slot)).transpose()?;
        if token == STOP_TOKEN {
            return Err(RuntimeError::Argument { what: "this token is the ring's own" });
        }
        let action = match action {
            ControlAction::Flush => Control::Flush,
            ControlAction::Drain => Control::Drain(export),
            ControlAction::Resolve => {
                let missing = RuntimeError::Argument { what: "one export at a time is resolved" };
                Control::AcceptLoss(export.ok_or(missing)?)
            }
            ControlAction::Stop => Control::Stop,
        };
        self.check_running()?;
        if self.shared.controls.fetch_add(1, Ordering::Relaxed) >= CONTROLS_MAX {
            self.shared.controls.fetch_sub(1, Ordering::Relaxed);
            return Err(RuntimeError::Argument { what: "64 actions are under way already" });
        }
        self.command(Command::Control { token, action })
    }

    /// Appends all events since the last call.
    pub fn drain_events(&self, into: &mut Vec<RuntimeEvent>) {
        let mut caller = lock(&self.caller);
        while let Some(event) = caller.events.pop() {
            let told = match event {
                RingEvent::Accepted { connection, listener, peer } => {
                    caller.live[slot_of(connection)] = connection;
                    RuntimeEvent::Accepted { connection, listener, peer: peer.to_string() }
                }
                RingEvent::Received { connection, length } => {
                    let bytes = self.shared.received(slot_of(connection), length);
                    RuntimeEvent::Received { connection, bytes }
                }
                RingEvent::Closed { connection, reason } => {
                    caller.live[slot_of(connection)] = 0;
                    self.put(&mut caller, Command::Release { connection });
                    RuntimeEvent::Closed { connection, reason }
                }
                RingEvent::ControlDone { token, result } => RuntimeEvent::ControlDone {
                    token,
                    error: result.err().map(|error| error.to_string()),
                },
                RingEvent::Notice(notice) => tell(notice),
            };
            into.push(told);
        }
    }

    /// Copies all counters, as [`crate::counter_layout`] describes.
    ///
    /// # Panics
    /// When `into` is not [`crate::CounterLayout::values`] long.
    pub fn counters(&self, into: &mut [u64]) {
        self.source.copy(into);
    }

    /// Stops accepting, lets requests finish (10 s at most), flushes the log, joins the threads.
    /// Blocks; a second call returns at once.
    ///
    /// # Errors
    /// When the last flush failed: what was not flushed before may be lost.
    pub fn shutdown(&self) -> Result<(), RuntimeError> {
        self.shutdown_within(SHUTDOWN_LIMIT_MS)
    }

    /// The same with another limit for requests in flight, for an exit that cannot wait.
    ///
    /// # Errors
    /// As [`Runtime::shutdown`].
    pub fn shutdown_within(&self, limit_ms: u64) -> Result<(), RuntimeError> {
        let Some(threads) = lock(&self.threads).take() else { return Ok(()) };
        {
            let mut caller = lock(&self.caller);
            let limit_ns = limit_ms.saturating_mul(1_000_000);
            self.put(&mut caller, Command::Stop { limit_ns });
            self.stopped.store(true, Ordering::Release);
        }
        // Neither thread runs code of the caller's but the bell, which returns at once.
        let outcome = threads.outcome.recv();
        // What an origin that hangs still has, or that it cannot be closed, keeps the kernel from
        // ending the thread, and later the process; nothing of ours needs either.
        let stuck = outcome.as_ref().is_ok_and(|ending| ending.stuck);
        let closed = || threads.outcome.recv_timeout(CLOSE_LIMIT);
        if !stuck && !matches!(closed(), Err(mpsc::RecvTimeoutError::Timeout)) {
            let _it_ended_well = threads.ring.join();
        }
        threads.stop_bell.store(true, Ordering::Release);
        self.shared.event_signal.ring();
        let _it_ended_well = threads.bell.join();
        lock(&self.caller).listeners.iter().flatten().for_each(SocketFile::remove);
        match outcome {
            Ok(Ending { flushed: Ok(()), .. }) => Ok(()),
            Ok(Ending { flushed: Err(what), .. }) => Err(RuntimeError::Shutdown { what }),
            Err(_) => Err(RuntimeError::Stopped),
        }
    }

    fn export(&self, slot: u8) -> Result<ExportSlot, RuntimeError> {
        match self.exports.get(usize::from(slot)) {
            Some(Some(_)) => Ok(ExportSlot(slot)),
            _ => Err(RuntimeError::Argument { what: "there is no such export" }),
        }
    }

    fn check_running(&self) -> Result<(), RuntimeError> {
        if self.stopped.load(Ordering::Acquire) { Err(RuntimeError::Stopped) } else { Ok(()) }
    }

    fn command(&self, command: Command) -> Result<(), RuntimeError> {
        let mut caller = lock(&self.caller);
        self.check_running()?;
        self.put(&mut caller, command);
        Ok(())
    }

    /// Puts a command and wakes the ring if it sleeps.
    fn put(&self, caller: &mut Caller, mut command: Command) {
        // After the ring's end nobody takes anything: what is left to say is said to nobody.
        while !self.stopped.load(Ordering::Acquire) {
            match caller.commands.push(command) {
                Ok(()) => break,
                Err(back) => {
                    command = back;
                    self.shared.command_signal.ring();
                    std::thread::yield_now();
                }
            }
        }
        // Pairs with the fence before the ring sleeps: either it sees the command, or this sees
        // that it sleeps.
        fence(Ordering::SeqCst);
        if self.shared.sleeping.load(Ordering::Relaxed) {
            self.shared.command_signal.ring();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Dropped without a shutdown: the threads must not outlive what they share. One second, as
        // for any exit that nobody waits for.
        let _nobody_to_tell = self.shutdown_within(1_000);
    }
}

/// A notice in words.
fn tell(notice: Notice) -> RuntimeEvent {
    let (notice, slot, detail) = match notice {
        Notice::Latched { error } => ("latched", None, error.to_string()),
        Notice::OriginDown { export, error } => ("origin_down", Some(export), error.to_string()),
        Notice::OriginUp { export } => ("origin_up", Some(export), String::new()),
        Notice::ChecksumMismatch { export, block, dirty } => {
            let kind = if dirty { "dirty" } else { "clean" };
            ("checksum_mismatch", Some(export), format!("{kind} block {block}"))
        }
        Notice::DestageDamaged { export, block } => {
            let what = block.map_or("a segment".into(), |block| format!("block {block}"));
            ("destage_damaged", Some(export), what)
        }
        Notice::SegmentDamaged { segment_use } => {
            ("segment_damaged", None, format!("segment use {segment_use}"))
        }
    };
    RuntimeEvent::Notice { notice, slot: slot.map(|slot| slot.0), detail }
}
