//! What the ring knows of a connection.

use crate::counters::Op;
use crate::net;
use crate::options::ConnectionId;
use crate::replies::Replies;
use crate::shared::name_of;
use crate::window::{CONNECTION_BYTES, RECEIVE_BYTES, REPLY_BYTES, ReceiveWindow, ReplyWindow};
use ringfence_cache::Buffer;
use ringfence_cache::units::ExportSlot;
use ringfence_wire::{Command, Cookie, ErrorCode, ExportLimits, ReplyStyle};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// ```text
///  Free ──accept──▶ Handshake ──begin──▶ Transmission
///    ▲                  │                     │
///    │                  └───────┬─────────────┘
/// release                    anything that ends it
///    │                          ▼
///  Closed ◀──nothing in flight── Closing
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody's.
    Free,
    /// Bytes go to and from JavaScript.
    Handshake,
    /// Requests go to the engine.
    Transmission,
    /// The socket is shut down; the kernel or the engine still has something of it.
    Closing,
    /// The socket is closed; JavaScript has not heard of it yet.
    Closed,
}

/// A request of more than one step. One at a time per connection.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    /// What it is.
    pub op: Op,
    /// The client's name for it.
    pub cookie: Cookie,
    /// First byte of the next step.
    pub offset: u64,
    /// Bytes that no step has taken.
    pub remaining: u64,
    /// Bytes in all.
    pub total: u64,
    /// Steps in the engine.
    pub outstanding: u32,
    /// The first error.
    pub failed: Option<ErrorCode>,
    /// Durable before it is answered.
    pub fua: bool,
    /// Keep zeroes allocated.
    pub no_hole: bool,
    /// Whether a simple reply's header went out: an error can no longer be told.
    pub answered: bool,
    /// Whether the rest is not begun, after an error.
    pub cut: bool,
    /// Whether the last chunk was pushed.
    pub ended: bool,
    /// When it was decoded.
    pub started_ns: u64,
}

impl Long {
    /// Whether the only step in the engine is the last one of all.
    #[must_use]
    pub const fn is_last_step(&self) -> bool {
        self.remaining == 0 && self.outstanding == 1
    }
}

/// What is asked for when the handshake's last bytes are out.
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    /// What it attached to.
    pub export: ExportSlot,
    /// Bounds and permission.
    pub limits: ExportLimits,
    /// How reads are answered.
    pub style: ReplyStyle,
}

/// The handshake's part of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handshake {
    /// Bytes that JavaScript waits for; 0 for none.
    pub wanted: u32,
    /// Those that are there.
    pub got: u32,
    /// When waiting ends.
    pub deadline_ns: Option<u64>,
    /// A send is with the kernel.
    pub sending: bool,
    /// Close when everything is sent.
    pub close: bool,
    /// Begin the transmission phase when everything is sent.
    pub begin: Option<Begin>,
}

/// A connection's slot.
pub struct Connection {
    /// Where it is in its life.
    pub state: State,
    /// Connections that had this slot.
    generation: u64,
    slot: u16,
    /// The socket.
    pub fd: Option<OwnedFd>,
    /// Whether the socket is TCP's.
    pub tcp: bool,
    /// What has been received.
    pub window: ReceiveWindow,
    /// Frames of reads.
    pub frames: ReplyWindow,
    /// Replies on their way.
    pub replies: Replies,
    /// A receive is with the kernel.
    pub receiving: bool,
    /// Waits in the list of those that are tried directly.
    pub spinning: bool,
    /// The handshake's part.
    pub handshake: Handshake,
    /// What it is attached to.
    pub export: ExportSlot,
    /// Bounds and permission.
    pub limits: ExportLimits,
    /// How reads are answered.
    pub style: ReplyStyle,
    /// Steps in the engine.
    pub in_flight: u32,
    /// Payload of a refused write that has yet to be thrown away.
    pub discard: u32,
    /// A request of several steps.
    pub long: Option<Long>,
    /// Unread bytes needed before parsing can go on.
    pub wanted: u32,
    /// Parsing waits for a completion of its own or for a ticket.
    pub blocked: bool,
    /// In the list of those that wait for a ticket.
    pub starved: bool,
    /// It said goodbye.
    pub leaving: bool,
    /// In the list of those with something to parse.
    pub runnable: bool,
    /// In the list of those with something to send or receive.
    pub touched: bool,
    /// Why it was closed.
    pub reason: &'static str,
}

impl Connection {
    /// A free slot with its windows. Allocates: at start only.
    #[must_use]
    pub fn new(slot: u16, pool_offset: u64) -> Self {
        let offset = pool_offset + u64::from(slot) * CONNECTION_BYTES;
        let receive = Buffer { offset, length: RECEIVE_BYTES };
        let reply = Buffer { offset: offset + u64::from(RECEIVE_BYTES), length: REPLY_BYTES };
        Self {
            state: State::Free,
            generation: 0,
            slot,
            fd: None,
            tcp: false,
            window: ReceiveWindow::new(receive),
            frames: ReplyWindow::new(reply),
            replies: Replies::new(),
            receiving: false,
            spinning: false,
            handshake: Handshake::default(),
            export: ExportSlot(0),
            limits: ExportLimits { size_bytes: 0, read_only: true },
            style: ReplyStyle::Simple,
            in_flight: 0,
            discard: 0,
            long: None,
            wanted: 0,
            blocked: false,
            starved: false,
            leaving: false,
            runnable: false,
            touched: false,
            reason: "",
        }
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> ConnectionId {
        name_of(self.slot, self.generation)
    }

    /// Its socket. It is closed only when nothing is in flight (`clear`), so no request that was
    /// pushed with it finds another file under its number.
    #[must_use]
    pub fn socket(&self) -> RawFd {
        self.fd.as_ref().expect("an open connection has a socket").as_raw_fd()
    }

    /// A new client has the slot.
    pub fn accept(&mut self, fd: OwnedFd, tcp: bool) {
        assert_eq!(self.state, State::Free, "a free slot");
        self.state = State::Handshake;
        self.generation += 1;
        self.fd = Some(fd);
        self.tcp = tcp;
        self.handshake = Handshake::default();
    }

    /// The handshake is over.
    pub fn begin(&mut self, begin: Begin) {
        self.state = State::Transmission;
        self.export = begin.export;
        self.limits = begin.limits;
        self.style = begin.style;
    }

    /// Whether the kernel or the engine still has something of it.
    #[must_use]
    pub const fn is_busy(&self) -> bool {
        self.receiving || self.handshake.sending || self.replies.in_flight() || self.in_flight > 0
    }

    /// Whether everything asked for has been answered, and the answers are out.
    #[must_use]
    pub const fn is_quiet(&self) -> bool {
        self.is_answered() && self.long.is_none()
    }

    /// Whether nothing of it is on its way. A long write of which the rest has not been received
    /// may be left.
    #[must_use]
    pub const fn is_answered(&self) -> bool {
        self.in_flight == 0 && self.replies.is_empty()
    }

    /// Whether its client may lack something that the kernel has taken.
    #[must_use]
    pub fn may_deliver(&self) -> bool {
        self.tcp && self.state == State::Transmission
    }

    /// Whether the kernel would lose answers by closing now. TCP resets a connection that is closed
    /// while its client still sends, and then drops what the client's machine does not have yet.
    #[must_use]
    pub fn is_delivering(&self) -> bool {
        self.tcp && self.fd.as_ref().is_some_and(|socket| net::unconfirmed_bytes(socket) > 0)
    }

    /// Gives everything back; the name stays taken until it is released.
    pub fn clear(&mut self) {
        assert!(!self.is_busy(), "something is in flight");
        self.state = State::Closed;
        self.fd = None;
        self.window.clear();
        self.frames.clear();
        self.replies.clear();
        self.discard = 0;
        self.long = None;
        self.wanted = 0;
        self.blocked = false;
        self.leaving = false;
        self.spinning = false;
    }
}

/// The command of an operation.
#[must_use]
pub const fn command_of(op: Op) -> Command {
    match op {
        Op::Read => Command::Read,
        Op::Write => Command::Write,
        Op::Flush => Command::Flush,
        Op::Trim => Command::Trim,
        Op::WriteZeroes => Command::WriteZeroes,
    }
}
