//! Error values of the protocol, and the ways a peer can break it.

use core::fmt;

/// An error value of the protocol. Its numbers are Linux's, by definition and on every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// `NBD_EPERM`: the export is read-only.
    NotPermitted = 1,
    /// `NBD_EIO`: the data could not be read or stored.
    Io = 5,
    /// `NBD_ENOMEM`: avoided; memory is reserved at start.
    NoMemory = 12,
    /// `NBD_EINVAL`: the request makes no sense.
    Invalid = 22,
    /// `NBD_ENOSPC`: a write past the end, or no room left.
    NoSpace = 28,
    /// `NBD_EOVERFLOW`: a read larger than can be answered.
    Overflow = 75,
    /// `NBD_ENOTSUP`: zeroes that would not be fast, and nothing else.
    NotSupported = 95,
    /// `NBD_ESHUTDOWN`: the server is stopping.
    Shutdown = 108,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NotPermitted,
        Self::Io,
        Self::NoMemory,
        Self::Invalid,
        Self::NoSpace,
        Self::Overflow,
        Self::NotSupported,
        Self::Shutdown,
    ];

    /// The number on the wire; never zero.
    #[must_use]
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// What a peer's error value means. An unexpected one counts as `NBD_EINVAL`, as the
    /// specification asks; zero, which is success, is nothing.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::NotPermitted,
            5 => Self::Io,
            12 => Self::NoMemory,
            28 => Self::NoSpace,
            75 => Self::Overflow,
            95 => Self::NotSupported,
            108 => Self::Shutdown,
            _ => Self::Invalid,
        })
    }

    /// What to answer for a Linux errno. Whatever the protocol has no value for is `NBD_EIO`:
    /// `EOVERFLOW` and `ENOTSUP` too, since those have one narrow meaning each.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        const EPERM: i32 = 1;
        const ENOMEM: i32 = 12;
        const EINVAL: i32 = 22;
        const EFBIG: i32 = 27;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        const ESHUTDOWN: i32 = 108;
        const EDQUOT: i32 = 122;
        match errno {
            EPERM | EROFS => Self::NotPermitted,
            ENOMEM => Self::NoMemory,
            EINVAL => Self::Invalid,
            EFBIG | ENOSPC | EDQUOT => Self::NoSpace,
            ESHUTDOWN => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

/// How a peer broke the protocol. The stream can no longer be trusted to be in step, so the
/// connection is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A header does not begin with a magic number that may stand there.
    BadMagic {
        /// What it begins with.
        found: u32,
    },
    /// A WRITE with more payload than is worth reading only to refuse it.
    OversizeWrite {
        /// Bytes of payload that the client announced.
        length: u64,
    },
    /// A chunk of a kind that was never defined, and that does not say it is an error.
    UnknownChunk {
        /// Its type.
        kind: u16,
    },
    /// A chunk whose length does not suit its type.
    ChunkLength {
        /// Its type.
        kind: u16,
        /// Its length.
        length: u32,
    },
    /// A chunk that says nothing and does not end its reply.
    NoneNotDone,
    /// A simple reply to a READ after structured replies were negotiated.
    SimpleReplyToRead,
    /// A chunk after the one that was marked as the last, or after a simple reply.
    AfterDone,
    /// A reply that reports an error with the value of success.
    ErrorWithoutCode,
    /// An error message that is longer than its chunk, or than a string may be.
    MessageLength {
        /// Bytes that the message claims.
        length: u16,
    },
    /// Content that was not asked for.
    OutsideRequest {
        /// Where it starts.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// The same content twice.
    Overlap {
        /// Where the second one starts.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// More than one content chunk where fragments were forbidden.
    Fragmented,
    /// Content in more separate pieces than anybody who answers in order leaves open.
    TooManyPieces,
    /// A reply that claims success without all of the content.
    MissingContent {
        /// Bytes that were asked for.
        expected: u32,
        /// Bytes that came.
        found: u32,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadMagic { found } => write!(formatter, "bad magic number {found:#010x}"),
            Self::OversizeWrite { length } => {
                let most = crate::limits::PAYLOAD_BYTES_MAX;
                write!(formatter, "a write of {length} bytes: at most {most} are served")
            }
            Self::UnknownChunk { kind } => write!(formatter, "unknown chunk type {kind}"),
            Self::ChunkLength { kind, length } => {
                write!(formatter, "a chunk of type {kind} with a length of {length} bytes")
            }
            Self::NoneNotDone => formatter.write_str("an empty chunk that does not end its reply"),
            Self::SimpleReplyToRead => {
                formatter.write_str("a simple reply to a read with structured replies negotiated")
            }
            Self::AfterDone => formatter.write_str("a chunk after the end of its reply"),
            Self::ErrorWithoutCode => formatter.write_str("an error chunk without an error"),
            Self::MessageLength { length } => {
                write!(formatter, "an error message of {length} bytes does not fit its chunk")
            }
            Self::OutsideRequest { offset, length } => {
                write!(formatter, "{length} bytes at {offset} were not asked for")
            }
            Self::Overlap { offset, length } => {
                write!(formatter, "{length} bytes at {offset} came twice")
            }
            Self::Fragmented => formatter.write_str("fragments where they were forbidden"),
            Self::TooManyPieces => formatter.write_str("content in too many separate pieces"),
            Self::MissingContent { expected, found } => {
                write!(formatter, "success with {found} of {expected} bytes")
            }
        }
    }
}

impl core::error::Error for Violation {}
