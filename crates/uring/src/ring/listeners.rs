//! Accepting, and the life of a connection around its two phases.

use super::Ring;
use crate::connection::State;
use crate::core::Core;
use crate::counters::RingCounter;
use crate::net;
use crate::shared::{LISTENERS_MAX, RingEvent};
use ringfence_cache::Event;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// How long accepting rests where it would fail again at once: there are no descriptors left, say.
const ACCEPT_REST_NS: u64 = 100_000_000;

struct Listener {
    fd: OwnedFd,
    tcp: bool,
    /// An accept is with the kernel.
    armed: bool,
    /// Accepted while all slots were taken: it waits for one.
    waiting: Option<OwnedFd>,
}

/// The listeners, and the slots that are free for what they accept.
pub struct Listeners {
    listeners: [Option<Listener>; LISTENERS_MAX],
    free: Vec<u16>,
    /// The listener whose turn it is when a slot becomes free.
    turn: usize,
}

impl Listeners {
    /// None, and `connections` free slots.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        let free = (0..connections as u16).rev().collect();
        Self { listeners: [const { None }; _], free, turn: 0 }
    }

    /// Whether some accept is with the kernel.
    #[must_use]
    pub fn any_armed(&self) -> bool {
        self.listeners.iter().flatten().any(|listener| listener.armed)
    }
}

impl<C: Core> Ring<C> {
    /// A new listener.
    pub(super) fn listen(&mut self, fd: RawFd, index: u32, tcp: bool) {
        // SAFETY: whoever sent the command gave the descriptor away.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        if self.stopping.is_some() {
            return;
        }
        let listener = Listener { fd, tcp, armed: false, waiting: None };
        self.listeners.listeners[index as usize] = Some(listener);
        self.accept_more();
    }

    /// Every idle listener accepts again, while there are slots; those that wait get theirs. They
    /// take turns: one that always has somebody waiting would get every slot.
    pub(super) fn accept_more(&mut self) {
        let first = self.listeners.turn;
        for step in 0..LISTENERS_MAX {
            let index = (first + step) % LISTENERS_MAX;
            if self.stopping.is_some() || self.listeners.free.is_empty() {
                return;
            }
            let Some(listener) = &mut self.listeners.listeners[index] else { continue };
            if let Some(fd) = listener.waiting.take() {
                let tcp = listener.tcp;
                self.open_connection(index as u32, fd, tcp);
            }
            let Some(listener) = &mut self.listeners.listeners[index] else { continue };
            if !listener.armed {
                listener.armed = true;
                self.kernel.push_accept(index as u32, listener.fd.as_raw_fd());
            }
        }
    }

    /// The kernel accepted something, or failed to.
    pub(super) fn accepted(&mut self, index: u32, result: i32) {
        let Some(listener) = &mut self.listeners.listeners[index as usize] else { return };
        listener.armed = false;
        let tcp = listener.tcp;
        if result < 0 {
            if self.stopping.is_some() {
                return;
            }
            if is_of_one_client(-result) {
                self.accept_more();
            } else {
                // Trying again at once would only burn the CPU.
                self.wake_by(self.now.monotonic_ns + ACCEPT_REST_NS);
            }
            return;
        }
        // SAFETY: a descriptor that was just accepted, and that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        if self.stopping.is_some() {
            return;
        }
        if self.listeners.free.is_empty() {
            listener.waiting = Some(fd);
            return;
        }
        self.open_connection(index, fd, tcp);
        self.accept_more();
    }

    fn open_connection(&mut self, index: u32, fd: OwnedFd, tcp: bool) {
        let slot = self.listeners.free.pop().expect("a free slot");
        self.listeners.turn = index as usize + 1;
        let peer = net::greet(fd.as_raw_fd(), tcp);
        self.shared.reset(usize::from(slot));
        let connection = &mut self.connections[usize::from(slot)];
        connection.accept(fd, tcp);
        let id = connection.id();
        self.shared.counters.add(RingCounter::ConnectionsAccepted, 1);
        self.count_open(1);
        self.tell(RingEvent::Accepted { connection: id, listener: index, peer });
    }

    fn count_open(&self, more: i64) {
        let open = self.shared.counters.get(RingCounter::ConnectionsOpen);
        self.shared.counters.set(RingCounter::ConnectionsOpen, open.wrapping_add_signed(more));
    }

    /// The connection is over: whatever is in flight ends first, nothing more is begun.
    pub(super) fn begin_closing(&mut self, slot: u16, reason: &'static str) {
        let connection = &mut self.connections[usize::from(slot)];
        if !matches!(connection.state, State::Handshake | State::Transmission) {
            return;
        }
        if connection.state == State::Transmission {
            self.shared.counters.disconnected(connection.export);
        }
        if connection.in_flight > 0 && !connection.leaving {
            self.abandoning.push(slot);
        }
        connection.state = State::Closing;
        connection.reason = reason;
        // SAFETY: the descriptor is open. Receives and sends that are in flight end by this; what
        // was sent before still reaches the peer.
        unsafe { libc::shutdown(connection.socket(), libc::SHUT_RDWR) };
        self.touch(slot);
    }

    /// Tells the engine which requests nobody waits for any more: a write that waits for room would
    /// keep its connection's slot and window, and might be carried out after its client has sent it
    /// again. What a client asked for before it said goodbye is carried out.
    pub(super) fn abandon_requests(&mut self) {
        while let Some(slot) = self.abandoning.pop() {
            if self.connections[usize::from(slot)].state != State::Closing {
                continue;
            }
            for ticket in self.tickets.all() {
                if self.tickets.is_of(ticket, slot) {
                    self.feed(Event::Abandon { ticket });
                }
            }
        }
    }

    /// Closes the socket once neither kernel nor engine has anything of the connection.
    pub(super) fn finish_closing(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        if connection.is_busy() {
            return;
        }
        let (id, reason) = (connection.id(), connection.reason);
        connection.clear();
        self.spinning.retain(|spinning| *spinning != slot);
        self.count_open(-1);
        self.tell(RingEvent::Closed { connection: id, reason });
    }

    /// Nobody refers to the closed connection any more.
    pub(super) fn release(&mut self, slot: u16) {
        let connection = &mut self.connections[usize::from(slot)];
        assert_eq!(connection.state, State::Closed, "only what was closed is released");
        connection.state = State::Free;
        self.listeners.free.push(slot);
        self.accept_more();
    }

    /// Stops accepting.
    pub(super) fn close_listeners(&mut self) {
        for listener in self.listeners.listeners.iter_mut().flatten() {
            listener.waiting = None;
            // SAFETY: the descriptor is open. An accept in flight ends by this.
            unsafe { libc::shutdown(listener.fd.as_raw_fd(), libc::SHUT_RDWR) };
        }
    }
}

/// Whether an error of `accept` is that of the client that it would have been, who is gone: the
/// next one is another's. All other errors, such as a lack of descriptors or memory, stay.
const fn is_of_one_client(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EINTR
            | libc::EAGAIN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET
            | libc::EOPNOTSUPP
    )
}
