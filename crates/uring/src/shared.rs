//! What the ring thread and its callers share: two queues, two signals, handshake bytes.

use crate::counters::RingCounters;
use crate::memory::Mapping;
use crate::net::Peer;
use crate::options::ConnectionId;
use crate::queue::{Consumer, Producer, queue};
use crate::signal::Signal;
use crate::window::{CONNECTION_BYTES, RECEIVE_BYTES};
use ringfence_cache::units::ExportSlot;
use ringfence_cache::{Control, Notice, RequestError};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Handshake bytes that may wait in each direction of a connection.
pub const HANDSHAKE_BYTES_MAX: u32 = 64 << 10;
/// Operators' requests at a time.
pub const CONTROLS_MAX: u32 = 64;
/// Notices that wait for JavaScript; what comes on top is counted and dropped.
const NOTICES_MAX: usize = 256;
/// Commands on their way to the ring. It always takes them, so a full queue is a short wait.
const COMMANDS_MAX: usize = 4096;
/// Events that carry a resource, per connection: accepted, received, closed.
const EVENTS_PER_CONNECTION: usize = 3;
/// Listeners at a time.
pub const LISTENERS_MAX: usize = 16;

/// The token of the stop that ends the ring; operators' tokens stay below.
pub const STOP_TOKEN: u32 = u32::MAX;

/// What the ring is asked to do.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Accept connections; the ring owns the descriptor now.
    Listen {
        /// The listening socket.
        fd: RawFd,
        /// Its number.
        listener: u32,
        /// Whether it is TCP's.
        tcp: bool,
    },
    /// Receive exactly so many handshake bytes.
    Receive {
        /// From whom.
        connection: ConnectionId,
        /// How many.
        length: u32,
        /// Until when.
        deadline_ns: u64,
    },
    /// Handshake bytes have been put into the lane.
    Send {
        /// To whom.
        connection: ConnectionId,
    },
    /// The handshake is over.
    Begin {
        /// Whose.
        connection: ConnectionId,
        /// What it attached to.
        export: ExportSlot,
        /// Whether reads are answered in chunks.
        structured_replies: bool,
        /// Whether writes are refused.
        read_only: bool,
    },
    /// Send what is waiting, then close.
    Close {
        /// Whom.
        connection: ConnectionId,
    },
    /// Nobody refers to a closed connection any more: its slot may be used again.
    Release {
        /// Which.
        connection: ConnectionId,
    },
    /// An operator's request.
    Control {
        /// Its name.
        token: u32,
        /// What to do.
        action: Control,
    },
    /// Finish and end.
    Stop {
        /// How long requests in flight may take, and the last flush after them.
        limit_ns: u64,
    },
}

/// What the ring tells, fixed in size.
#[derive(Clone, Copy, Debug)]
pub enum RingEvent {
    /// A client connected.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// Through which listener.
        listener: u32,
        /// Who.
        peer: Peer,
    },
    /// Handshake bytes lie in the connection's lane.
    Received {
        /// From whom.
        connection: ConnectionId,
        /// How many.
        length: u32,
    },
    /// A connection is gone.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why.
        reason: &'static str,
    },
    /// An operator's request has ended.
    ControlDone {
        /// Its name.
        token: u32,
        /// How.
        result: Result<(), RequestError>,
    },
    /// Something an operator should know.
    Notice(Notice),
}

/// Handshake bytes to a client, a ring of [`HANDSHAKE_BYTES_MAX`] in its reply window: the caller
/// puts, the ring thread takes.
#[derive(Debug, Default)]
pub struct Lane {
    put: AtomicU64,
    taken: AtomicU64,
}

/// Everything that both sides refer to.
pub struct Shared {
    /// Rung after commands were put.
    pub command_signal: Signal,
    /// Rung after events were put.
    pub event_signal: Signal,
    /// One per connection slot.
    lanes: Box<[Lane]>,
    /// The reserve's memory.
    pub mapping: Arc<Mapping>,
    /// Where the receive pool starts in it.
    receive_pool_offset: u64,
    /// What the ring counts.
    pub counters: Arc<RingCounters>,
    /// Operators' requests in flight.
    pub controls: AtomicU32,
    /// Whether the ring waits for its completions: whoever puts a command must ring then.
    pub sleeping: AtomicBool,
}

/// The ends of the queues.
pub struct Ends {
    /// The caller's.
    pub commands_in: Producer<Command>,
    /// The ring's.
    pub commands_out: Consumer<Command>,
    /// The ring's.
    pub events_in: Producer<RingEvent>,
    /// The caller's.
    pub events_out: Consumer<RingEvent>,
}

impl Shared {
    /// For `connections` slots with their windows at the start of the receive pool.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new(
        connections: u32,
        mapping: Arc<Mapping>,
        receive_pool_offset: u64,
        counters: Arc<RingCounters>,
    ) -> io::Result<(Arc<Self>, Ends)> {
        let shared = Arc::new(Self {
            command_signal: Signal::new()?,
            event_signal: Signal::new()?,
            lanes: (0..connections).map(|_| Lane::default()).collect(),
            mapping,
            receive_pool_offset,
            counters,
            controls: AtomicU32::new(0),
            sleeping: AtomicBool::new(false),
        });
        let events = connections as usize * EVENTS_PER_CONNECTION;
        let (commands_in, commands_out) = queue(COMMANDS_MAX);
        let (events_in, events_out) = queue(events + CONTROLS_MAX as usize + 1 + NOTICES_MAX);
        Ok((shared, Ends { commands_in, commands_out, events_in, events_out }))
    }

    /// Connections at a time.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.lanes.len()
    }

    /// Places of the event queue that notices must leave to events that carry a resource.
    #[must_use]
    pub fn events_reserved(&self) -> usize {
        self.lanes.len() * EVENTS_PER_CONNECTION + CONTROLS_MAX as usize + 1
    }

    fn base(&self, slot: usize) -> *mut u8 {
        assert!(slot < self.lanes.len(), "a connection's slot");
        let offset = self.receive_pool_offset as usize + slot * CONNECTION_BYTES as usize;
        // SAFETY: the receive pool holds the windows of all slots.
        unsafe { self.mapping.base().as_ptr().add(offset) }
    }

    /// Copies the handshake bytes that a [`RingEvent::Received`] announced.
    #[must_use]
    pub fn received(&self, slot: usize, length: u32) -> Vec<u8> {
        assert!(length <= HANDSHAKE_BYTES_MAX, "no longer than what may be asked for");
        // SAFETY: the ring received this many bytes at the window's start, and leaves them alone
        // until it is asked for more or the event after this one was taken.
        unsafe { std::slice::from_raw_parts(self.base(slot), length as usize) }.to_vec()
    }

    /// Puts handshake bytes for the ring to send. Returns whether there was room.
    #[must_use]
    pub fn put(&self, slot: usize, bytes: &[u8]) -> bool {
        let lane = &self.lanes[slot];
        let put = lane.put.load(Ordering::Relaxed);
        let waiting = put - lane.taken.load(Ordering::Acquire);
        if waiting + bytes.len() as u64 > u64::from(HANDSHAKE_BYTES_MAX) {
            return false;
        }
        let at = (put % u64::from(HANDSHAKE_BYTES_MAX)) as usize;
        let first = bytes.len().min(HANDSHAKE_BYTES_MAX as usize - at);
        // SAFETY: the lane is the first 64 KiB of the reply window, which nobody else uses before
        // the transmission phase; the ring does not read beyond `put`.
        unsafe {
            let lane = self.base(slot).add(RECEIVE_BYTES as usize);
            lane.add(at).copy_from_nonoverlapping(bytes.as_ptr(), first);
            lane.copy_from_nonoverlapping(bytes[first..].as_ptr(), bytes.len() - first);
        }
        self.lanes[slot].put.store(put + bytes.len() as u64, Ordering::Release);
        true
    }

    /// What there is to send, in one piece: address and length, which is 0 for nothing.
    #[must_use]
    pub fn to_send(&self, slot: usize) -> (*const u8, u32) {
        let lane = &self.lanes[slot];
        let taken = lane.taken.load(Ordering::Relaxed);
        let waiting = lane.put.load(Ordering::Acquire) - taken;
        let at = (taken % u64::from(HANDSHAKE_BYTES_MAX)) as u32;
        let length = waiting.min(u64::from(HANDSHAKE_BYTES_MAX - at)) as u32;
        // SAFETY: inside the lane.
        let address = unsafe { self.base(slot).add((RECEIVE_BYTES + at) as usize) };
        (address.cast_const(), length)
    }

    /// `length` bytes were sent.
    pub fn sent(&self, slot: usize, length: u32) {
        self.lanes[slot].taken.fetch_add(u64::from(length), Ordering::Release);
    }

    /// Nothing waits: a new connection has the slot. Its caller does not know it yet.
    pub fn reset(&self, slot: usize) {
        self.lanes[slot].taken.store(0, Ordering::Relaxed);
        self.lanes[slot].put.store(0, Ordering::Release);
    }
}

/// The slot that a connection's name holds.
#[must_use]
pub const fn slot_of(connection: ConnectionId) -> usize {
    (connection & 0xffff) as usize
}

/// The name of the `generation`th connection of a slot.
#[must_use]
pub const fn name_of(slot: u16, generation: u64) -> ConnectionId {
    (generation << 16) | slot as u64
}
