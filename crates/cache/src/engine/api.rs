//! What goes into the engine and what comes out: the whole contract between the engine and
//! whoever runs it (the ring against the kernel, the simulator against a model).
//!
//! `step(event, now)` changes the state and queues effects; the caller takes them with
//! `next_effect()` until there are none, and executes them. Completions come back as events.

use crate::units::{Buffer, ExportSlot, IoId, Ticket};

/// What a client asks for, one *step* at a time: at most [`crate::limits::STEP_BYTES_MAX`] of data.
/// A larger request is split by the caller, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill `buffer` with the content of the range.
    ///
    /// `buffer` starts on a 4 KiB boundary of the reserve and holds every block that the range
    /// touches; byte `offset` of the export lands at `buffer.offset + offset % 4096`. The bytes
    /// around the range may be overwritten with the content of the same blocks.
    Read {
        /// Where the blocks go.
        buffer: Buffer,
        /// Whether the caller takes parts of the answer as they come, by [`Effect::Pieces`].
        in_pieces: bool,
    },
    /// Store the bytes of `buffer` (exactly `length`, any alignment). The buffer must stay as it
    /// is until [`Effect::Consumed`].
    Write {
        /// Where the bytes are.
        buffer: Buffer,
        /// Answer only when durable on the cache device.
        fua: bool,
    },
    /// The range reads as zeroes from now on. Partial blocks at its edges are zeroed too.
    WriteZeroes {
        /// Answer only when durable on the cache device.
        fua: bool,
        /// The origin must keep the space allocated (`NBD_CMD_FLAG_NO_HOLE`).
        no_hole: bool,
    },
    /// The client no longer needs the range. Whole blocks read as zeroes; edges are left alone.
    Trim {
        /// Answer only when durable on the cache device.
        fua: bool,
    },
    /// Everything answered so far, on every export, becomes durable on the cache device.
    Flush,
}

/// One step of a client's request. Bounds and flags have been checked by the caller: the range
/// lies inside the export and the export takes the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The caller's slot; comes back in [`Effect::Consumed`] and [`Effect::Complete`].
    pub ticket: Ticket,
    /// The export the request is for.
    pub export: ExportSlot,
    /// What to do.
    pub command: Command,
    /// First byte in the export. Zero for a flush.
    pub offset: u64,
    /// Length in bytes: at most `STEP_BYTES_MAX` for reads and writes, `ZERO_STEP_BYTES_MAX` for
    /// zeroes and trims, zero for a flush. Zero-length requests complete at once.
    pub length: u64,
    /// Whether what is answered must outlive this process: writes, zeroes and trims complete when
    /// the device has taken their record, flushed or not. For clients that go on as if nothing had
    /// happened when the process is killed and started again.
    pub kept: bool,
}

impl Request {
    /// Whether the answer promises durability.
    #[must_use]
    pub const fn needs_flush(&self) -> bool {
        match self.command {
            Command::Write { fua, .. }
            | Command::WriteZeroes { fua, .. }
            | Command::Trim { fua } => fua,
            Command::Flush => true,
            Command::Read { .. } => false,
        }
    }
}

/// An operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Everything answered is durable on the cache device.
    Flush,
    /// Everything dirty of the export (of all, for `None`) is on its origin, the origin has been
    /// flushed, and the watermark that says so is durable. Waits for what is dirty when asked;
    /// fails where destage stands still before damage.
    Drain(Option<ExportSlot>),
    /// What is damaged and keeps an export's destage from going on is given up: destage passes
    /// over it, and the blocks stay unreadable until they are overwritten (rule 25). Answered at
    /// once; nothing happens to an export that is not damaged.
    AcceptLoss(ExportSlot),
    /// A last flush with the watermarks in it; nothing is appended afterwards.
    Stop,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client's step.
    Submit(Request),
    /// Nobody waits for a request's answer any more: its client is gone, and may have sent it again
    /// and gone on from there. A change that has not taken effect never will; it ends with an
    /// error, at once unless blocks are being read for it. Everything else goes on as before.
    Abandon {
        /// The request, which has not completed.
        ticket: Ticket,
    },
    /// An I/O has really ended, well or not.
    IoDone {
        /// Which.
        io: IoId,
        /// `Err` for any failure and for a short transfer.
        result: Result<(), IoError>,
    },
    /// An operator's request; `token` comes back in [`Effect::ControlDone`].
    Control {
        /// The caller's name for the request.
        token: u32,
        /// What to do.
        action: Control,
    },
    /// Everything that arrived together has been submitted: decide what to write now. Also the
    /// event for a passed [`deadline`](crate::Engine::deadline_ns).
    EndOfTurn,
}

/// An event that is soon to come: advice, which changes nothing but how fast it will be.
#[derive(Clone, Copy, Debug)]
pub enum Coming {
    /// [`Event::Submit`] of a request at `offset`, which need not be inside the export.
    Submit {
        /// Whose.
        export: ExportSlot,
        /// Its first byte.
        offset: u64,
    },
    /// [`Event::IoDone`].
    IoDone {
        /// Which.
        io: IoId,
    },
}

/// What the caller has to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read from the cache device; offset, length and buffer are 4 KiB-aligned.
    DeviceRead {
        /// Names the I/O in its completion.
        io: IoId,
        /// Bytes from the start of the device.
        offset: u64,
        /// Where the bytes go.
        buffer: Buffer,
    },
    /// Write to the cache device; offset, length and buffer are 4 KiB-aligned.
    DeviceWrite {
        /// Names the I/O in its completion.
        io: IoId,
        /// Bytes from the start of the device.
        offset: u64,
        /// What to write.
        buffer: Buffer,
    },
    /// Make every completed write of the cache device durable (`fdatasync`).
    DeviceFlush {
        /// Names the I/O in its completion.
        io: IoId,
    },
    /// Read from an export's origin. Offset and buffer are 4 KiB-aligned; the length is cut at the
    /// export's end.
    OriginRead {
        /// Names the I/O in its completion.
        io: IoId,
        /// Whose origin.
        export: ExportSlot,
        /// Bytes from the start of the origin.
        offset: u64,
        /// Where the bytes go.
        buffer: Buffer,
    },
    /// Write to an export's origin; aligned like [`Effect::OriginRead`].
    OriginWrite {
        /// Names the I/O in its completion.
        io: IoId,
        /// Whose origin.
        export: ExportSlot,
        /// Bytes from the start of the origin.
        offset: u64,
        /// What to write.
        buffer: Buffer,
    },
    /// Write zeroes to an export's origin.
    OriginZero {
        /// Names the I/O in its completion.
        io: IoId,
        /// Whose origin.
        export: ExportSlot,
        /// Bytes from the start of the origin, 4 KiB-aligned.
        offset: u64,
        /// Length in bytes, cut at the export's end.
        length: u64,
        /// Whether the origin may deallocate the range.
        may_punch_hole: bool,
    },
    /// Make every completed write of the origin durable.
    OriginFlush {
        /// Names the I/O in its completion.
        io: IoId,
        /// Whose origin.
        export: ExportSlot,
    },
    /// The payload of a write has been copied; its buffer is the caller's again. Comes exactly
    /// once for each write, before or together with its completion.
    Consumed {
        /// The write.
        ticket: Ticket,
    },
    /// Parts of a read are ready: [`Engine::next_piece`](crate::Engine::next_piece) gives them,
    /// and must be emptied before the next effect is taken. Only for reads that asked for it; one
    /// that has all its data at once, none of it a hole, just completes.
    Pieces {
        /// The read.
        ticket: Ticket,
    },
    /// A request has ended; its ticket is free. Of a read in pieces every block has been told of
    /// by then, or none and all of them are in its buffer.
    Complete {
        /// The request.
        ticket: Ticket,
        /// What to answer.
        result: Result<(), RequestError>,
    },
    /// An operator's request has ended.
    ControlDone {
        /// As in [`Event::Control`].
        token: u32,
        /// What to answer.
        result: Result<(), RequestError>,
    },
    /// Something an operator should know.
    Notice(Notice),
}

/// A part of a read that is ready before the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first block, counted from the first block that the read touches.
    pub first: u32,
    /// How many.
    pub blocks: u32,
    /// What they hold.
    pub content: PieceContent,
    /// Whether it is the read's last.
    pub last: bool,
}

/// What a piece holds. No block comes in two pieces, and a buffer's part that was told of stays
/// as it is until the caller gives it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceContent {
    /// What the read's buffer has there.
    Data,
    /// Zeroes; the buffer has anything.
    Zeroes,
    /// Nothing: these blocks cannot be read.
    Failed(RequestError),
}

/// Why an I/O failed, as far as the engine tells failures apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The device or origin answered with an error.
    #[error("I/O error {errno}")]
    Failed {
        /// As in `errno.h`.
        errno: i32,
    },
    /// The connection to the origin is gone; the request may or may not have taken effect.
    #[error("the connection to the origin was lost")]
    Disconnected,
    /// The origin has not answered within the export's limit. Never the end of an I/O: the
    /// request is still with the origin.
    #[error("no answer within the export's limit")]
    TimedOut,
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `EIO`: the data could not be read, or whether it was stored is unknown.
    #[error("input/output error")]
    Io,
    /// `ENOSPC`: the log is full of dirty data and the export's limit for waiting has passed.
    #[error("the cache is full of data that the origin has not taken")]
    NoSpace,
    /// `EPERM`: the export is read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// `ESHUTDOWN`: the engine is stopping.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// What an operator should know; each is logged once by the daemon and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The cache device failed a write or a flush: writes and flushes give EIO until a restart.
    Latched {
        /// What the device said.
        error: IoError,
    },
    /// An origin stopped taking requests; dirty data stays.
    OriginDown {
        /// Whose origin.
        export: ExportSlot,
        /// What it said.
        error: IoError,
    },
    /// An origin that was down answers again.
    OriginUp {
        /// Whose origin.
        export: ExportSlot,
    },
    /// A block failed its checksum.
    ChecksumMismatch {
        /// Whose block.
        export: ExportSlot,
        /// Which block of the export, in 4 KiB units.
        block: u64,
        /// Whether the origin lacks it: then it is lost; otherwise it is fetched again.
        dirty: bool,
    },
    /// Destaging stands still before a damaged dirty block.
    DestageDamaged {
        /// Whose data.
        export: ExportSlot,
        /// Which block of the export, in 4 KiB units; `None` where nobody knows.
        block: Option<u64>,
    },
    /// Neither the footer nor all headers of the oldest segment can be had: it is not reclaimed.
    SegmentDamaged {
        /// Which use of which segment.
        segment_use: u64,
    },
}
