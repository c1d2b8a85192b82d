//! The one thread that moves bytes: it owns the sockets, the devices and the reserve.
//!
//! A turn: take commands and completions, parse what was received, hand the device's reads over,
//! let the engine decide what to write (`EndOfTurn`), hand the rest to the kernel with one system
//! call, and wait.

mod commands;
mod finish;
mod ios;
mod kernel;
mod listeners;
mod long;
mod pieces;
mod stop;
mod transmit;
mod wait;

pub use ios::{Ios, OriginTarget};
pub use kernel::{Kernel, file};
pub use listeners::Listeners;

use crate::clock::Clock;
use crate::connection::{Connection, State};
use crate::core::Core;
use crate::counters::RingCounter;
use crate::options::Guard;
use crate::queue::{Consumer, Producer};
use crate::shared::{Command, RingEvent, Shared};
use crate::spin::Spin;
use crate::tickets::Tickets;
use crate::yielding::Yielding;
use kernel::{Completion, Tag};
use ringfence_cache::{Effect, Event, Now};
use ringfence_wire::ExportLimits;
use std::sync::Arc;
use stop::Stopping;

/// Completions taken between two looks at anything else.
const HARVEST: usize = 256;

/// What the ring is made of; built on its own thread, before the thread promises not to allocate.
pub struct Parts<C> {
    /// The engine.
    pub core: C,
    /// Its io_uring.
    pub kernel: Kernel,
    /// Shared with the callers.
    pub shared: Arc<Shared>,
    /// From the callers.
    pub commands: Consumer<Command>,
    /// To the callers.
    pub events: Producer<RingEvent>,
    /// Connections at a time.
    pub connections_max: u32,
    /// Where their windows start in the reserve.
    pub receive_pool_offset: u64,
    /// Tickets of the engine.
    pub requests_max: u32,
    /// Devices and origins.
    pub ios: Ios,
    /// By export slot: what requests are judged against.
    pub exports: Box<[Option<ExportLimits>]>,
    /// When to spin.
    pub spin: Spin,
}

/// How a ring ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// How the last flush went.
    pub flushed: Result<(), &'static str>,
    /// Whether the kernel still has requests: their thread cannot end before they do.
    pub stuck: bool,
}

/// The loop's state.
pub struct Ring<C> {
    core: C,
    kernel: Kernel,
    /// Where completions are taken to.
    harvest: Box<[Completion]>,
    clock: Clock,
    now: Now,
    shared: Arc<Shared>,
    commands: Consumer<Command>,
    events: Producer<RingEvent>,
    events_waiting: bool,
    connections: Box<[Connection]>,
    listeners: Listeners,
    tickets: Tickets,
    ios: Ios,
    exports: Box<[Option<ExportLimits>]>,
    /// Connections with something to parse.
    runnable: Vec<u16>,
    /// Those of them that have their turn now.
    serving: Vec<u16>,
    /// Connections with something to send or receive.
    touched: Vec<u16>,
    /// Connections that wait for a ticket.
    starved: Vec<u16>,
    /// Connections that ended with requests in the engine.
    abandoning: Vec<u16>,
    /// Connections that are tried directly before the ring sleeps.
    spinning: Vec<u16>,
    spin: Spin,
    yielding: Yielding,
    /// The earliest deadline of a handshake, or something earlier.
    handshake_deadline_ns: Option<u64>,
    requests_in_turn: u64,
    stopping: Option<Stopping>,
    wake_value: Box<u64>,
}

impl<C: Core> Ring<C> {
    /// Puts the parts together. Allocates all that the ring will ever need.
    pub fn new(parts: Parts<C>) -> Self {
        let count = parts.connections_max as usize;
        assert!(count <= usize::from(u16::MAX), "a slot is 16 bits of a connection's name");
        let connection = |slot| Connection::new(slot, parts.receive_pool_offset);
        let mut clock = Clock::new();
        let now = clock.now();
        Self {
            core: parts.core,
            kernel: parts.kernel,
            harvest: [Completion { tag: Tag::Wake, index: 0, result: 0 }; HARVEST].into(),
            clock,
            now,
            shared: parts.shared,
            commands: parts.commands,
            events: parts.events,
            events_waiting: false,
            connections: (0..count as u16).map(connection).collect(),
            listeners: Listeners::new(count),
            tickets: Tickets::new(parts.requests_max, parts.exports.iter().flatten().count()),
            ios: parts.ios,
            exports: parts.exports,
            runnable: Vec::with_capacity(count),
            serving: Vec::with_capacity(count),
            touched: Vec::with_capacity(count),
            starved: Vec::with_capacity(count),
            abandoning: Vec::with_capacity(count),
            spinning: Vec::with_capacity(count),
            spin: parts.spin,
            yielding: Yielding::new(),
            handshake_deadline_ns: None,
            requests_in_turn: 0,
            stopping: None,
            wake_value: Box::new(0),
        }
    }

    /// Whether the kernel keeps the reserve's pages at hand.
    #[must_use]
    pub fn buffers_guard(&self) -> Guard {
        self.kernel.buffers_guard()
    }

    /// Runs until it was told to stop and has.
    pub fn run(&mut self) -> Ending {
        self.arm_wake();
        loop {
            self.turn();
            if let Some(outcome) = self.ended() {
                self.end_wake();
                self.kernel.close_files(outcome.stuck);
                return outcome;
            }
            self.wait();
        }
    }

    fn turn(&mut self) {
        self.now = self.clock.now();
        self.shared.counters.add(RingCounter::Turns, 1);
        self.requests_in_turn = 0;
        self.take_commands();
        self.take_completions();
        self.expire_handshakes();
        // Before a request is taken that may be one of them, sent again.
        self.abandon_requests();
        self.serve_runnable();
        self.hand_over_reads();
        if self.spin.limit_ns().is_some() {
            // Answers are sent at once: the client can go on while the engine looks around.
            self.serve_touched();
        }
        self.now = self.clock.now();
        self.feed(Event::EndOfTurn);
        self.serve_touched();
        self.advance_stop();
        // What was queued by stopping, or freed by it.
        self.serve_touched();
        self.spin.turn(self.requests_in_turn, self.now.monotonic_ns);
        if std::mem::take(&mut self.events_waiting) {
            self.shared.event_signal.ring();
        }
    }

    fn take_completions(&mut self) {
        let mut harvest = std::mem::take(&mut self.harvest);
        loop {
            let count = self.kernel.harvest(&mut harvest);
            let batch = &harvest[..count];
            for (position, completion) in batch.iter().enumerate() {
                if let Some(Completion { tag: Tag::Io, index, .. }) = batch.get(position + 1) {
                    self.prefetch_io(*index);
                }
                let (index, result) = (completion.index, completion.result);
                match completion.tag {
                    Tag::Wake => self.arm_wake(),
                    Tag::Accept => self.accepted(index, result),
                    Tag::Receive => self.received(index as u16, result),
                    Tag::Send => self.sent(index as u16, result),
                    Tag::Io => self.io_completed(index, result),
                }
            }
            if count < HARVEST {
                break;
            }
        }
        self.harvest = harvest;
    }

    /// One event into the engine, and everything that it wants done.
    fn feed(&mut self, event: Event) {
        self.core.step(event, self.now);
        while let Some(effect) = self.core.next_effect() {
            match effect {
                Effect::Consumed { ticket } => self.payload_consumed(ticket),
                Effect::Pieces { ticket } => self.pieces_ready(ticket),
                Effect::Complete { ticket, result } => self.step_completed(ticket, result),
                Effect::ControlDone { token, result } => self.control_done(token, result),
                Effect::Notice(notice) => {
                    if self.events.free() > self.shared.events_reserved() {
                        self.tell(RingEvent::Notice(notice));
                    } else {
                        self.shared.counters.add(RingCounter::NoticesDropped, 1);
                    }
                }
                io => self.start_io(io),
            }
        }
    }

    /// An event for the callers. There is room: the queue holds what each connection and each
    /// operator's request can have outstanding.
    fn tell(&mut self, event: RingEvent) {
        assert!(self.events.push(event).is_ok(), "the event queue has room for every resource");
        self.events_waiting = true;
    }

    /// The connection has something to parse, as far as it is not blocked.
    fn make_runnable(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        if !connection.runnable {
            connection.runnable = true;
            self.runnable.push(slot);
        }
    }

    /// The connection may have something to send, to receive, or to end.
    fn touch(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        if !connection.touched {
            connection.touched = true;
            self.touched.push(slot);
        }
    }

    /// Something that the connection's parser waited for has come back.
    fn unblock(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        if std::mem::take(&mut connection.blocked) {
            self.make_runnable(slot);
        }
        self.touch(slot);
    }

    /// Every connection that was runnable when the turn began, once; one that has more to do is
    /// in the next turn's list, behind those that came before it.
    fn serve_runnable(&mut self) {
        std::mem::swap(&mut self.runnable, &mut self.serving);
        for position in 0..self.serving.len() {
            let slot = self.serving[position];
            self.connections[usize::from(slot)].runnable = false;
            self.serve(slot);
        }
        self.serving.clear();
    }

    fn serve_touched(&mut self) {
        while let Some(slot) = self.touched.pop() {
            self.connections[usize::from(slot)].touched = false;
            match self.connections[usize::from(slot)].state {
                State::Handshake => self.advance_handshake(slot),
                State::Transmission => self.advance_transmission(slot),
                State::Closing => self.finish_closing(slot),
                State::Free | State::Closed => {}
            }
        }
    }
}
