//! What goes over the boundary, in Rust's words: `daemon/native.ts` has the same in TypeScript's.

use ringfence_cache::{Mode, Order, Uuid};
use std::path::PathBuf;

/// A connection, as the ring names it; never used twice in the life of an engine. Below 2^53, so
/// that a JavaScript number holds it.
pub type ConnectionId = u64;

/// How an export is to be served.
#[derive(Clone, Debug)]
pub struct ExportSpec {
    /// The export's name, 1 to 255 bytes.
    pub name: String,
    /// Path of a block device or a file.
    pub origin_path: PathBuf,
    /// When writes are answered.
    pub mode: Mode,
    /// In which order they reach the origin.
    pub order: Order,
    /// Most dirty data in bytes; `None`: three quarters of the log.
    pub dirty_bytes_max: Option<u64>,
    /// How long a write waits for room, and a miss for an origin that is away.
    pub wait_ms: u64,
    /// How long a request to the origin may take until the origin counts as down.
    pub origin_timeout_ms: u64,
}

/// How the engine is to run.
#[derive(Clone, Debug)]
pub struct OpenSpec {
    /// The cache device, or a file that stands for one.
    pub cache_path: PathBuf,
    /// All memory of the I/O path.
    pub reserve_bytes: u64,
    /// Connections at a time; each has its windows in the reserve.
    pub connections_max: u32,
    /// How long the ring spins before it sleeps; 0 turns it off.
    pub spin_us: u32,
    /// CPU to pin the ring thread to.
    pub cpu: Option<u32>,
    /// Destage from this share of the dirty limit on, in percent.
    pub destage_high_percent: u8,
    /// Destage what has been dirty for so long.
    pub destage_age_ms: u64,
    /// Destage when no client has asked for anything for so long.
    pub destage_idle_ms: u64,
    /// Go on where durable data is damaged, losing what is named.
    pub accept_loss: bool,
    /// Memory of the index; `None`: as much as the cache device's size asks for.
    pub index_bytes: Option<u64>,
    /// Share of the reserve that keeps missed blocks for a second reader; at most 50.
    pub memory_tier_percent: u8,
    /// What is served.
    pub exports: Vec<ExportSpec>,
}

/// One protection of the I/O path, whether it holds, and how to mend it where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// `memory_locked`, `io_flusher`, `oom_score`, `direct_io`, `huge_pages`, `registered_buffers`,
    /// `device_exclusive`;
    /// `io_uring` too when probed.
    pub measure: &'static str,
    /// Whether it holds.
    pub up: bool,
    /// One sentence: why it is down and what to do; `None` when it is up.
    pub advice: Option<String>,
}

/// What an opened export turned out to be.
#[derive(Clone, Debug)]
pub struct OpenedExport {
    /// The slot that requests name it by.
    pub slot: u8,
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// Whether the cache knew it already.
    pub known: bool,
}

/// What `open` found out.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Names the cache; hexadecimal with dashes in [`format_uuid`].
    pub cache_uuid: Uuid,
    /// Size of the cache device as formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Segments in the log.
    pub segments: u32,
    /// Records found by recovery.
    pub recovered_records: u64,
    /// How long recovery took.
    pub recovery_ms: u64,
    /// Of the records that were durable and are lost, as was accepted, the first and the last.
    pub lost_records: Option<(u64, u64)>,
    /// The exports, in the order in which they were asked for.
    pub exports: Vec<OpenedExport>,
    /// What protects the I/O path here.
    pub guards: Vec<Guard>,
}

/// A UUID as people write it.
#[must_use]
pub fn format_uuid(uuid: &Uuid) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

/// A listener of the ring.
#[derive(Clone, Debug)]
pub struct Listening {
    /// Its number, which `Accepted` names.
    pub listener: u32,
    /// The address as bound: the port is the real one.
    pub address: String,
}

/// An operator's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlAction {
    /// Everything answered is durable on the cache device.
    Flush,
    /// Everything dirty is on the origin.
    Drain,
    /// What keeps an export's destage standing still is given up.
    Resolve,
    /// A last flush; nothing is appended afterwards.
    Stop,
}

/// What the ring tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A client connected; the ring reads nothing from it until asked.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// Through which listener.
        listener: u32,
        /// Who: an address, or `unix` with the peer's process.
        peer: String,
    },
    /// Exactly the bytes that `receive` asked for.
    Received {
        /// From whom.
        connection: ConnectionId,
        /// What.
        bytes: Vec<u8>,
    },
    /// The connection is gone and its id with it.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why, in words.
        reason: &'static str,
    },
    /// A `control` call has ended.
    ControlDone {
        /// As given to `control`.
        token: u32,
        /// A sentence, or `None`.
        error: Option<String>,
    },
    /// Something an operator should know.
    Notice {
        /// `latched`, `origin_down`, `origin_up`, `checksum_mismatch` or `destage_damaged`.
        notice: &'static str,
        /// Whose, if it is about one export.
        slot: Option<u8>,
        /// What exactly.
        detail: String,
    },
}

/// How to read what [`crate::Runtime::counters`] copies; see `CounterLayout` in
/// `daemon/native.ts`.
#[derive(Clone, Debug)]
pub struct CounterLayout {
    /// Of the whole engine and ring.
    pub engine: Vec<&'static str>,
    /// Of each export.
    pub export_names: Vec<&'static str>,
    /// Groups of these.
    pub exports_max: u32,
    /// The operations that requests are counted by.
    pub operations: Vec<&'static str>,
    /// Upper bounds of the duration buckets; one more follows, without a bound.
    pub duration_buckets_ns: Vec<u64>,
    /// The operations that requests to origins are counted by.
    pub origin_operations: Vec<&'static str>,
    /// Pools of the reserve.
    pub pools: Vec<&'static str>,
    /// How many values there are in all.
    pub values: usize,
}
