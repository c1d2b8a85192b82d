//! What JavaScript is told: plain objects, `bigint` for sizes, and one union for events.

use crate::{format_uuid, options};
use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;

/// One protection of the I/O path, whether it holds, and how to mend it where it does not.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct Guard {
    /// `memory_locked`, `io_flusher`, `oom_score`, `direct_io`, `huge_pages`, `registered_buffers`,
    /// `device_exclusive`.
    pub measure: String,
    /// Whether it holds.
    pub up: bool,
    /// One sentence: why it is down and what to do; null when it is up.
    pub advice: Option<String>,
}

/// What an opened export turned out to be.
#[napi(object, object_from_js = false)]
pub struct NativeOpenedExport {
    /// The slot that calls name it by.
    pub slot: u32,
    /// What clients ask for.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// Whether the cache knew it already.
    pub known: bool,
}

/// Records that were durable and are lost.
#[napi(object, object_from_js = false)]
pub struct LostRecords {
    /// The first of them.
    pub first: u64,
    /// The last of them; some between may be there.
    pub last: u64,
}

/// What `open` found out.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct NativeOpened {
    /// Names the cache.
    pub cache_uuid: String,
    /// Size of the cache device as formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Segments in the log.
    pub segments: u32,
    /// Records found by recovery.
    pub recovered_records: u64,
    /// How long recovery took.
    pub recovery_ms: f64,
    /// What was lost, as `acceptLoss` allows; null where nothing was.
    pub lost_records: Option<LostRecords>,
    /// The exports, in the order in which they were asked for.
    pub exports: Vec<NativeOpenedExport>,
    /// What protects the I/O path here.
    pub guards: Vec<Guard>,
}

/// Names of the counters, in the order of their values.
#[napi(object, object_from_js = false)]
pub struct CounterLayout {
    /// Of the whole engine and ring.
    pub engine: Vec<String>,
    /// Of each export: `exportsMax` groups of these follow the engine's.
    pub export_names: Vec<String>,
    /// Groups of exports' counters.
    pub exports_max: u32,
    /// The operations that requests are counted by.
    pub operations: Vec<String>,
    /// Upper bounds of the duration buckets; one more follows, without a bound.
    pub duration_buckets_ns: Vec<u64>,
    /// The operations that requests to origins are counted by.
    pub origin_operations: Vec<String>,
    /// Pools of the reserve.
    pub pools: Vec<String>,
}

/// A listener of the ring.
#[napi(object, object_from_js = false)]
pub struct Listening {
    /// Its number, which `accepted` names.
    pub listener: u32,
    /// The address as bound: the port is the real one.
    pub address: String,
}

/// An export that a cache knows.
#[napi(object, object_from_js = false)]
pub struct DescribedExport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// What its origin lacks.
    pub dirty_bytes: u64,
}

/// What a superblock says.
#[napi(object, object_from_js = false)]
pub struct CacheDescription {
    /// Names the cache.
    pub uuid: String,
    /// The format's version.
    pub format_version: u32,
    /// Size of the device as formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Segments in the log.
    pub segments: u32,
    /// How often it has been opened.
    pub incarnation: u64,
    /// Exports the cache knows, whether configured or not.
    pub exports: Vec<DescribedExport>,
}

/// What the ring tells JavaScript.
#[napi(
    discriminant = "type",
    discriminant_case = "camelCase",
    object_from_js = false,
    use_nullable = true
)]
pub enum NativeEvent {
    /// A client connected; the ring reads nothing from it until asked.
    Accepted {
        /// The new connection.
        connection: i64,
        /// Through which listener.
        listener: u32,
        /// Who.
        peer: String,
    },
    /// Exactly the bytes that `receive` asked for.
    Received {
        /// From whom.
        connection: i64,
        /// What.
        bytes: Uint8Array,
    },
    /// The connection is gone and its id with it.
    Closed {
        /// Which.
        connection: i64,
        /// Why, in words.
        reason: String,
    },
    /// A `control` call has ended.
    ControlDone {
        /// As given to `control`.
        token: u32,
        /// A sentence, or null.
        error: Option<String>,
    },
    /// Something an operator should know.
    Notice {
        /// `latched`, `origin_down`, `origin_up`, `checksum_mismatch` or `destage_damaged`.
        notice: String,
        /// Whose, if it is about one export.
        slot: Option<u32>,
        /// What exactly.
        detail: String,
    },
}

/// A connection's number for JavaScript.
///
/// # Panics
/// When the ring has handed out 2^53 connections.
fn connection_number(connection: crate::ConnectionId) -> i64 {
    i64::try_from(connection).expect("the ring keeps connection numbers below 2^53")
}

fn names(names: Vec<&'static str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

impl From<options::Guard> for Guard {
    fn from(guard: options::Guard) -> Self {
        Self { measure: guard.measure.to_owned(), up: guard.up, advice: guard.advice }
    }
}

impl From<&options::Opened> for NativeOpened {
    fn from(opened: &options::Opened) -> Self {
        Self {
            cache_uuid: format_uuid(&opened.cache_uuid),
            device_bytes: opened.device_bytes,
            segment_bytes: opened.segment_bytes,
            segments: opened.segments,
            recovered_records: opened.recovered_records,
            // Exact for the next 285,000 years.
            recovery_ms: opened.recovery_ms as f64,
            lost_records: opened.lost_records.map(|(first, last)| LostRecords { first, last }),
            exports: opened.exports.iter().map(NativeOpenedExport::from).collect(),
            guards: opened.guards.iter().cloned().map(Guard::from).collect(),
        }
    }
}

impl From<&options::OpenedExport> for NativeOpenedExport {
    fn from(export: &options::OpenedExport) -> Self {
        Self {
            slot: export.slot.into(),
            name: export.name.clone(),
            size_bytes: export.size_bytes,
            origin_identity: export.origin_identity.clone(),
            known: export.known,
        }
    }
}

impl From<options::CounterLayout> for CounterLayout {
    fn from(layout: options::CounterLayout) -> Self {
        Self {
            engine: names(layout.engine),
            export_names: names(layout.export_names),
            exports_max: layout.exports_max,
            operations: names(layout.operations),
            duration_buckets_ns: layout.duration_buckets_ns,
            origin_operations: names(layout.origin_operations),
            pools: names(layout.pools),
        }
    }
}

impl From<options::Listening> for Listening {
    fn from(listening: options::Listening) -> Self {
        Self { listener: listening.listener, address: listening.address }
    }
}

impl From<ringfence_cache::Description> for CacheDescription {
    fn from(cache: ringfence_cache::Description) -> Self {
        Self {
            uuid: format_uuid(&cache.uuid),
            format_version: cache.version,
            device_bytes: cache.device_bytes,
            segment_bytes: cache.segment_bytes,
            segments: crate::opening::segments(cache.segments),
            incarnation: cache.incarnation,
            exports: cache.exports.into_iter().map(DescribedExport::from).collect(),
        }
    }
}

impl From<ringfence_cache::DescribedExport> for DescribedExport {
    fn from(export: ringfence_cache::DescribedExport) -> Self {
        Self {
            name: export.name,
            size_bytes: export.size_bytes,
            origin_identity: export.origin_identity,
            dirty_bytes: export.dirty_bytes,
        }
    }
}

impl From<options::RuntimeEvent> for NativeEvent {
    fn from(event: options::RuntimeEvent) -> Self {
        use options::RuntimeEvent as Event;
        match event {
            Event::Accepted { connection, listener, peer } => {
                Self::Accepted { connection: connection_number(connection), listener, peer }
            }
            Event::Received { connection, bytes } => {
                Self::Received { connection: connection_number(connection), bytes: bytes.into() }
            }
            Event::Closed { connection, reason } => Self::Closed {
                connection: connection_number(connection),
                reason: reason.to_owned(),
            },
            Event::ControlDone { token, error } => Self::ControlDone { token, error },
            Event::Notice { notice, slot, detail } => {
                Self::Notice { notice: notice.to_owned(), slot: slot.map(u32::from), detail }
            }
        }
    }
}
