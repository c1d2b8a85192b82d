//! What the engine is told when it is formatted and opened.

use crate::units::ExportSlot;

/// 16 random bytes that name a cache or an export for ever.
pub type Uuid = [u8; 16];

/// How a cache device is to be formatted.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Random; names this cache in every structure.
    pub uuid: Uuid,
    /// Random and never shown; the nonces of all incarnations come from it.
    pub secret: [u8; 16],
    /// Size of a segment in bytes: a power of two within `limits::SEGMENT_BYTES_MIN..=MAX`.
    pub segment_bytes: u64,
}

/// When the answer to a write is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When it is in the reserve; the origin gets it later.
    Writeback,
    /// When the origin has it.
    Writethrough,
    /// Never: writes are refused.
    ReadOnly,
}

/// The order in which writes reach the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Epoch by epoch: the origin is always a disk that could have existed.
    Strict,
    /// Newest version only, across epochs.
    Relaxed,
}

/// What an origin is known by. Never its modification time: our own destage changes that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginIdentity {
    /// Size in bytes.
    pub size_bytes: u64,
    /// The strongest name there is today, which a new export records: at most 128 bytes, shown to
    /// operators.
    pub name: String,
    /// Weaker names of the same bytes. One of them may have been the strongest once.
    pub also: Vec<String>,
}

impl OriginIdentity {
    /// Whether this is the origin that was recorded under a name.
    #[must_use]
    pub fn has_name(&self, recorded: &str) -> bool {
        self.name == recorded || self.also.iter().any(|name| name == recorded)
    }
}

/// An export that is to be served.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The export's name, 1 to 255 bytes.
    pub name: String,
    /// Random; used if the cache does not know the name yet.
    pub uuid: Uuid,
    /// What the origin is known by.
    pub origin: OriginIdentity,
    /// When writes are answered.
    pub mode: Mode,
    /// In which order they reach the origin.
    pub order: Order,
    /// Most dirty data, in bytes; at most three quarters of the log.
    pub dirty_bytes_max: Option<u64>,
    /// How long a write waits for room before `ENOSPC`, and a miss or a partial write for an
    /// origin that is away before `EIO`, in nanoseconds.
    pub wait_ns_max: u64,
    /// How long a request to the origin may take until the origin counts as down, in nanoseconds.
    pub origin_timeout_ns: u64,
}

/// When destaging starts, and what else can be tuned.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tickets go from 0 to this, exclusively.
    pub requests_max: u32,
    /// Memory for the leaves of the index: 4 KiB for 512 neighbouring blocks. `None`: enough for
    /// every block of the log at full leaves, and almost half as much again for scattered ones.
    pub index_bytes: Option<u64>,
    /// Destage once this share of the dirty limit is reached, in percent.
    pub destage_high_percent: u8,
    /// Destage data older than this, in nanoseconds, and close epochs that nobody closes.
    pub destage_age_ns: u64,
    /// Destage when no client has asked for anything for this long, in nanoseconds.
    pub destage_idle_ns: u64,
    /// Go on where durable data is damaged, losing what is named.
    pub accept_loss: bool,
    /// Admit every miss until the log has wrapped once. The simulator says no in half of its
    /// worlds, since few of them get so far.
    pub admits_first_lap: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            requests_max: 1024,
            index_bytes: None,
            destage_high_percent: 50,
            destage_age_ns: 5_000_000_000,
            destage_idle_ns: 500_000_000,
            accept_loss: false,
            admits_first_lap: true,
        }
    }
}

/// What `open` found out about an export.
#[derive(Clone, Debug)]
pub struct OpenedExport {
    /// Its slot, which requests name it by.
    pub slot: ExportSlot,
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether the cache knew it already.
    pub known: bool,
}
