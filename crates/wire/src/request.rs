//! Requests as a server sees them: decoded, then judged once.

use crate::command::{Command, CommandFlags};
use crate::errors::{ErrorCode, Violation};
use crate::layout::{CompactRequest, REQUEST_BYTES, REQUEST_MAGIC};
use crate::limits::{PAYLOAD_BYTES_MAX, UNFRAGMENTED_BYTES_MAX};
use crate::reply::{Reply, ReplyStyle};

/// The client's name for a request; it comes back in the reply and means nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cookie(pub u64);

/// What requests are judged against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportLimits {
    /// Size of the export in bytes.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A request header as it came, not judged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The flags as they came.
    pub flag_bits: u16,
    /// What is asked for.
    pub command: Command,
    /// The client's name for the request.
    pub cookie: Cookie,
    /// First byte in the export.
    pub offset: u64,
    /// Length in bytes. Extended headers have 64 bits here.
    pub length: u64,
}

/// A request that may be served as it stands: the range lies in the export, the export takes the
/// command, the flags belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client's name for the request.
    pub cookie: Cookie,
    /// What to do.
    pub operation: Operation,
}

/// What a judged request wants done. A length of zero succeeds and does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Send back `length` bytes from `offset`.
    Read {
        /// First byte in the export.
        offset: u64,
        /// At most [`PAYLOAD_BYTES_MAX`]; at most [`UNFRAGMENTED_BYTES_MAX`] with `dont_fragment`.
        length: u32,
        /// Answer in one chunk.
        dont_fragment: bool,
    },
    /// Store the `length` bytes that follow the header.
    Write {
        /// First byte in the export.
        offset: u64,
        /// At most [`PAYLOAD_BYTES_MAX`].
        length: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Finish what is outstanding, then close; there is no reply.
    Disconnect,
    /// Make everything answered so far durable.
    Flush,
    /// The range is no longer needed.
    Trim {
        /// First byte in the export.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Durable before it is answered.
        fua: bool,
    },
    /// The range reads as zeroes.
    WriteZeroes {
        /// First byte in the export.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Durable before it is answered.
        fua: bool,
        /// Keep the space allocated.
        no_hole: bool,
    },
}

/// A request that is answered with an error; the stream stays in step once the payload has been
/// read and thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The client's name for the request.
    pub cookie: Cookie,
    /// What was asked for.
    pub command: Command,
    /// What to answer.
    pub error: ErrorCode,
    /// Bytes of payload that follow the header and must be consumed: not zero for WRITE alone.
    pub payload_bytes: u32,
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Answer with an error.
    Answer(Refusal),
    /// Drop the connection.
    Disconnect(Violation),
}

impl RequestHeader {
    /// Takes a compact header apart.
    ///
    /// # Errors
    /// [`Violation::BadMagic`] when it is no request.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self, Violation> {
        let wire: CompactRequest = zerocopy::transmute!(*bytes);
        if wire.magic.get() != REQUEST_MAGIC {
            return Err(Violation::BadMagic { found: wire.magic.get() });
        }
        Ok(Self {
            flag_bits: wire.flags.get(),
            command: Command::from_code(wire.command.get()),
            cookie: Cookie(wire.cookie.get()),
            offset: wire.offset.get(),
            length: u64::from(wire.length.get()),
        })
    }

    /// Refuses the request with `error`; a disconnection where the payload is too large to be
    /// consumed.
    fn refuse(&self, error: ErrorCode) -> Result<Request, Rejection> {
        let payload_bytes = match self.command {
            Command::Write => self.length,
            _ => 0,
        };
        match u32::try_from(payload_bytes) {
            Ok(payload_bytes) if payload_bytes <= PAYLOAD_BYTES_MAX => {
                let Self { cookie, command, .. } = *self;
                Err(Rejection::Answer(Refusal { cookie, command, error, payload_bytes }))
            }
            _ => Err(Rejection::Disconnect(Violation::OversizeWrite { length: payload_bytes })),
        }
    }

    /// Judges the request, once and for all: flags, then permission, then bounds, then size.
    ///
    /// # Errors
    /// What to answer, or that the connection must be dropped.
    pub fn validate(&self, limits: ExportLimits, style: ReplyStyle) -> Result<Request, Rejection> {
        let Self { cookie, command, offset, length, .. } = *self;
        let structured = style == ReplyStyle::Structured;
        if command == Command::Disconnect {
            return Ok(Request { cookie, operation: Operation::Disconnect });
        }
        let Some(flags) = CommandFlags::check(self.flag_bits, command, structured) else {
            return self.refuse(ErrorCode::Invalid);
        };
        let changes = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && limits.read_only {
            return self.refuse(ErrorCode::NotPermitted);
        }
        let inside = offset.checked_add(length).is_some_and(|end| end <= limits.size_bytes);
        let past_end = match command {
            Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
            _ => ErrorCode::Invalid,
        };
        let operation = match command {
            Command::Flush if offset == 0 && length == 0 => Operation::Flush,
            Command::Read | Command::Write | Command::Trim | Command::WriteZeroes if !inside => {
                return self.refuse(past_end);
            }
            Command::Read => {
                let dont_fragment = flags.dont_fragment();
                let most = if dont_fragment { UNFRAGMENTED_BYTES_MAX } else { PAYLOAD_BYTES_MAX };
                match u32::try_from(length) {
                    Ok(length) if length <= most => {
                        Operation::Read { offset, length, dont_fragment }
                    }
                    _ => return self.refuse(ErrorCode::Overflow),
                }
            }
            Command::Write => match u32::try_from(length) {
                Ok(length) if length <= PAYLOAD_BYTES_MAX => {
                    Operation::Write { offset, length, fua: flags.fua() }
                }
                _ => return Err(Rejection::Disconnect(Violation::OversizeWrite { length })),
            },
            Command::Trim => Operation::Trim { offset, length, fua: flags.fua() },
            Command::WriteZeroes => {
                let (fua, no_hole) = (flags.fua(), flags.no_hole());
                Operation::WriteZeroes { offset, length, fua, no_hole }
            }
            _ => return self.refuse(ErrorCode::Invalid),
        };
        Ok(Request { cookie, operation })
    }
}

impl Operation {
    /// The command on the wire.
    #[must_use]
    pub const fn command(self) -> Command {
        match self {
            Self::Read { .. } => Command::Read,
            Self::Write { .. } => Command::Write,
            Self::Disconnect => Command::Disconnect,
            Self::Flush => Command::Flush,
            Self::Trim { .. } => Command::Trim,
            Self::WriteZeroes { .. } => Command::WriteZeroes,
        }
    }
}

impl Request {
    /// The whole reply, when it carries no data: any command but READ, and a READ that failed or
    /// is empty.
    ///
    /// # Panics
    /// For a READ of more than nothing that succeeded: its data must be sent.
    #[must_use]
    pub fn reply(&self, style: ReplyStyle, result: Result<(), ErrorCode>) -> Reply {
        assert!(
            !matches!(self.operation, Operation::Read { length: 1.., .. }) || result.is_err(),
            "a read is answered with its data"
        );
        Reply::new(style, self.operation.command(), self.cookie, result)
    }
}

impl Refusal {
    /// The whole reply.
    #[must_use]
    pub fn reply(&self, style: ReplyStyle) -> Reply {
        Reply::new(style, self.command, self.cookie, Err(self.error))
    }
}
