//! Commands and their flags.

/// What a request asks for. A command that nobody knows keeps its number, so that it can be
/// answered and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `NBD_CMD_READ`.
    Read,
    /// `NBD_CMD_WRITE`: the only one that is followed by a payload.
    Write,
    /// `NBD_CMD_DISC`: the client leaves; there is no reply.
    Disconnect,
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim,
    /// `NBD_CMD_CACHE`.
    Cache,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes,
    /// `NBD_CMD_BLOCK_STATUS`.
    BlockStatus,
    /// Any other number, `NBD_CMD_RESIZE` among them: it was never finished.
    Unknown(u16),
}

impl Command {
    /// The command with this number.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            0 => Self::Read,
            1 => Self::Write,
            2 => Self::Disconnect,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(code) => code,
        }
    }

    /// Flags that may stand on this command, given whether the client negotiated structured
    /// replies (`NBD_FLAG_SEND_DF` is only advertised with those). FUA may stand on every command,
    /// since it is always advertised.
    const fn flags_allowed(self, structured_replies: bool) -> u16 {
        CommandFlags::FUA
            | match self {
                Self::Read if structured_replies => CommandFlags::DF,
                Self::WriteZeroes => CommandFlags::NO_HOLE,
                _ => 0,
            }
    }
}

/// Command flags that have been checked against what their command allows: they can only be made
/// by [`CommandFlags::check`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(u16);

impl CommandFlags {
    /// `NBD_CMD_FLAG_FUA`: durable before it is answered.
    pub const FUA: u16 = 1 << 0;
    /// `NBD_CMD_FLAG_NO_HOLE`: keep the space allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// `NBD_CMD_FLAG_DF`: answer in one chunk.
    pub const DF: u16 = 1 << 2;
    /// `NBD_CMD_FLAG_REQ_ONE`: one extent.
    pub const REQ_ONE: u16 = 1 << 3;
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail unless it is fast. Not advertised yet.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length is the payload's. Only with extended headers.
    pub const PAYLOAD_LEN: u16 = 1 << 5;

    /// The flags, or nothing when one of them is unknown or does not belong on the command.
    #[must_use]
    pub const fn check(bits: u16, command: Command, structured_replies: bool) -> Option<Self> {
        let forbidden = bits & !command.flags_allowed(structured_replies);
        if forbidden == 0 { Some(Self(bits)) } else { None }
    }

    /// Whether the request must be durable before it is answered.
    #[must_use]
    pub const fn fua(self) -> bool {
        self.0 & Self::FUA != 0
    }

    /// Whether zeroes must keep their space allocated.
    #[must_use]
    pub const fn no_hole(self) -> bool {
        self.0 & Self::NO_HOLE != 0
    }

    /// Whether a read must be answered in one chunk.
    #[must_use]
    pub const fn dont_fragment(self) -> bool {
        self.0 & Self::DF != 0
    }

    /// The bits on the wire.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }
}
