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
#[non_exhaustive]
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
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic { found } => write!(formatter, "bad magic number {found:#010x}"),
            Self::OversizeWrite { length } => write!(
                formatter,
                "a write of {length} bytes: at most {} are served",
                crate::limits::PAYLOAD_BYTES_MAX
            ),
        }
    }
}

impl core::error::Error for Violation {}
