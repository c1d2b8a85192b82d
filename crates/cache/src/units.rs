//! The newtypes that keep one kind of number from being taken for another.

/// Bytes in a block, a frame and a sector of the log: the one unit of all device I/O.
pub const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] for arithmetic on byte offsets.
pub const BLOCK_BYTES_U64: u64 = BLOCK_BYTES as u64;

/// An export, as its slot in the export table (0 to 63).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportSlot(pub u8);

impl ExportSlot {
    /// The slot as an array index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The slot's bit in a 64-bit set of exports.
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

/// The owner of a set of blocks. Never used twice in the life of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u32);

/// The number of a record: the order in which writes became visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The sequence before this one; zero stays zero.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A request of a client, as its slot in the table of whoever submits requests.
///
/// The engine keeps its own state for a ticket at the same index, so a ticket must be below
/// [`crate::Config::requests_max`] and is free again after [`crate::Effect::Complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u32);

/// An I/O that the engine asked for and whose end it wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoId(pub u32);

/// A range of the reserve, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First byte, counted from the start of the reserve.
    pub offset: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Buffer {
    /// The part of this buffer that starts `skip` bytes in and is `length` bytes long.
    ///
    /// # Panics
    /// When the part does not lie inside the buffer.
    #[must_use]
    pub fn part(self, skip: u32, length: u32) -> Self {
        let end = u64::from(skip) + u64::from(length);
        assert!(end <= u64::from(self.length), "part outside its buffer");
        Self { offset: self.offset + u64::from(skip), length }
    }
}

/// The time, as the caller's clock tells it. The engine has no clock of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Nanoseconds of a clock that never steps (`CLOCK_MONOTONIC`).
    pub monotonic_ns: u64,
    /// Nanoseconds since the Unix epoch; only ever shown, never relied on.
    pub wall_ns: u64,
}
