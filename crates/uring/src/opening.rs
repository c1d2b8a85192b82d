//! Opening a cache: device, origins, memory, recovery, and then the ring. Also formatting.

use crate::allocation;
use crate::device::{Access, Device, Kind, Role};
use crate::error::RuntimeError;
use crate::guards;
use crate::memory::Mapping;
use crate::options::{ExportSpec, Guard, OpenSpec, Opened, OpenedExport};
use crate::origin::{self, Origin};
use crate::runtime::Runtime;
use crate::spin::Spin;
use crate::storage::DirectStorage;
use crate::thread::{REQUESTS_MAX, Start, start};
use crate::window::CONNECTION_BYTES;
use ringfence_cache::format::{FORMAT_VERSION, Superblock};
use ringfence_cache::limits::{EXPORTS_MAX, SUPERBLOCK_OFFSETS};
use ringfence_cache::units::BLOCK_BYTES;
use ringfence_cache::{
    Config, Description, Engine, ExportOptions, FormatOptions, Mode, OpenError, ReservePlan,
    ReserveShape, Storage, Uuid,
};
use ringfence_wire::ExportLimits;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Connections that a reserve is divided for at most: a slot is 16 bits of a connection's name.
const CONNECTIONS_MAX: u32 = 4096;
/// Zeroes that are written at a time when a file is prepared.
const ZERO_CHUNK_BYTES: usize = 8 << 20;

/// Opens a cache and starts its ring. Blocks: memory is touched and locked, the log recovered.
///
/// `bell` is called, from a thread of its own, when events wait for [`Runtime::drain_events`].
///
/// # Errors
/// See [`RuntimeError`].
pub fn open(
    spec: &OpenSpec,
    bell: Box<dyn Fn() + Send + 'static>,
) -> Result<Runtime, RuntimeError> {
    if spec.connections_max == 0 || spec.connections_max > CONNECTIONS_MAX {
        return Err(RuntimeError::Argument { what: "1 to 4096 connections are possible" });
    }
    let cache = Device::open(&spec.cache_path, Role::Cache, Access::Exclusive)?;
    let origins = origin::open_all(&spec.exports, &cache)?;
    let mut guards = vec![guards::oom_score(), guards::guard("device_exclusive", None)];
    guards.push(direct_io_guard(&cache, &origins));
    let fail = |source| RuntimeError::Open { path: spec.cache_path.clone(), source };

    let mut storage = DirectStorage::new(cache)?;
    let superblock = read_superblock(&mut storage).map_err(fail)?;
    let segment_bytes = superblock.segment_bytes.get();
    let receive_bytes = u64::from(spec.connections_max) * CONNECTION_BYTES;
    let plan = ReservePlan::new(&ReserveShape {
        reserve_bytes: spec.reserve_bytes,
        receive_bytes,
        segment_bytes,
        exports: spec.exports.len(),
        memory_tier_bytes: spec.reserve_bytes / 100 * u64::from(spec.memory_tier_percent),
    })
    .map_err(|error| fail(OpenError::Reserve(error)))?;
    let mapping = Arc::new(Mapping::new(plan.total_bytes())?);
    let locked = mapping.lock();
    guards.push(mapping.huge_pages_guard());

    let options = spec.exports.iter().zip(&origins).map(|(spec, origin)| export(spec, origin));
    let options = options.collect::<Result<Vec<_>, _>>()?;
    let config = config_of(spec);
    let began = Instant::now();
    let now = crate::clock::Clock::new().now();
    let reserve = mapping.reserve(plan.total_bytes());
    let (result, tables_locked) =
        allocation::locking(|| Engine::open(&mut storage, reserve, plan, &options, config, now));
    let (engine, recovery) = result.map_err(fail)?;
    let recovery_ms = began.elapsed().as_millis() as u64;
    guards.push(guards::memory_locked(locked, tables_locked & lock_index(&engine)));

    let mut exports = vec![None; EXPORTS_MAX].into_boxed_slice();
    let mut opened_exports = Vec::with_capacity(origins.len());
    let mut slotted = Vec::with_capacity(origins.len());
    for ((spec, origin), found) in spec.exports.iter().zip(origins).zip(recovery.exports) {
        assert_eq!(spec.name, found.name, "the engine keeps the order of the exports");
        let (size_bytes, read_only) = (found.size_bytes, spec.mode == Mode::ReadOnly);
        exports[found.slot.index()] = Some(ExportLimits { size_bytes, read_only });
        opened_exports.push(OpenedExport {
            slot: found.slot.0,
            name: found.name,
            size_bytes,
            origin_identity: origin.identity().name,
            known: found.known,
        });
        slotted.push((found.slot, origin));
    }
    let opened = Opened {
        cache_uuid: recovery.cache_uuid,
        device_bytes: superblock.device_bytes.get(),
        segment_bytes,
        segments: segments(superblock.segments.get()),
        recovered_records: recovery.records,
        recovery_ms,
        lost_records: recovery.lost,
        exports: opened_exports,
        guards,
    };
    start(
        Start {
            opened,
            engine_counters: engine.counters(),
            core: engine,
            mapping,
            plan,
            connections_max: spec.connections_max,
            spin: Spin::new(u64::from(spec.spin_us) * 1000),
            cpu: spec.cpu,
            cache: Some(storage.into_device()),
            origins: slotted,
            exports,
        },
        bell,
    )
}

/// What the engine is told of how it is to run.
fn config_of(spec: &OpenSpec) -> Config {
    let ns = |ms: u64| ms.saturating_mul(1_000_000);
    Config {
        requests_max: REQUESTS_MAX,
        destage_high_percent: spec.destage_high_percent,
        destage_age_ns: ns(spec.destage_age_ms),
        destage_idle_ns: ns(spec.destage_idle_ms),
        index_bytes: spec.index_bytes,
        accept_loss: spec.accept_loss,
        admits_first_lap: true,
    }
}

/// An intact superblock, for the sizes that the reserve is divided by. Everything else, and
/// every reason to refuse, is the engine's to find.
fn read_superblock(storage: &mut DirectStorage) -> Result<Superblock, OpenError> {
    for offset in SUPERBLOCK_OFFSETS {
        let mut block = [0; BLOCK_BYTES];
        if storage.size_bytes() >= offset + BLOCK_BYTES as u64 {
            let intact = storage.read_at(offset, &mut block).is_ok();
            if intact
                && let Ok(superblock) = Superblock::parse(&block)
                && superblock.version() == FORMAT_VERSION
            {
                return Ok(superblock);
            }
        }
    }
    // Nothing intact: the cache itself knows best how to say it.
    Err(ringfence_cache::describe(storage).err().unwrap_or(OpenError::SuperblocksDamaged))
}

/// Segments of a log, as JavaScript counts them.
pub(crate) fn segments(count: u64) -> u32 {
    u32::try_from(count).expect("a device of less than 2^32 segments")
}

fn direct_io_guard(cache: &Device, origins: &[Origin]) -> Guard {
    let devices = origins.iter().map(|origin| &origin.device).chain([cache]);
    let indirect: Vec<_> = devices
        .filter(|device| !device.direct)
        .map(|device| device.path.display().to_string())
        .collect();
    guards::direct_io(&indirect)
}

fn export(spec: &ExportSpec, origin: &Origin) -> Result<ExportOptions, RuntimeError> {
    Ok(ExportOptions {
        name: spec.name.clone(),
        uuid: random()?,
        origin: origin.identity(),
        mode: spec.mode,
        order: spec.order,
        dirty_bytes_max: spec.dirty_bytes_max,
        wait_ns_max: spec.wait_ms.saturating_mul(1_000_000),
        origin_timeout_ns: spec.origin_timeout_ms.saturating_mul(1_000_000),
    })
}

/// Locks what requests touch beside the reserve. Returns whether that worked.
fn lock_index(engine: &Engine) -> bool {
    let mut all = true;
    for (address, length) in engine.memory() {
        let start = address as usize / 4096 * 4096;
        let length = (address as usize + length).next_multiple_of(4096) - start;
        // SAFETY: the engine's memory, which it keeps as long as it lives; locking changes no
        // content. Pages at the edges are shared with others, which does no harm.
        all &= unsafe { libc::mlock(start as *const libc::c_void, length) } == 0;
    }
    all
}

/// Random bytes from the kernel.
fn random() -> Result<Uuid, RuntimeError> {
    let mut bytes = [0; 16];
    // SAFETY: sixteen writable bytes; so few are never cut short.
    let length = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if length == bytes.len() as isize {
        return Ok(bytes);
    }
    let source = std::io::Error::last_os_error();
    Err(RuntimeError::System { what: "the kernel has no random numbers", source })
}

/// Formats a device or file; destroys what is on it. Blocks.
///
/// # Errors
/// See [`RuntimeError`].
pub fn format(path: &Path, segment_bytes: u64) -> Result<Description, RuntimeError> {
    let device = Device::open(path, Role::Cache, Access::Exclusive)?;
    let allocates = device.kind == Kind::File || device.is_loop();
    let mut storage = DirectStorage::new(device)?;
    let options = FormatOptions { uuid: random()?, secret: random()?, segment_bytes };
    let fail = |source| RuntimeError::Format { path: path.to_owned(), source };
    ringfence_cache::format(&mut storage, &options).map_err(fail)?;
    if allocates {
        // A write of the log must not find the filesystem full, nor wait for it to allocate (rule
        // 36). Only now that the size is known to do, and formatted again afterwards, so that an
        // interrupted format leaves no cache.
        write_zeroes(&mut storage)
            .map_err(|source| RuntimeError::Storage { path: path.to_owned(), source })?;
        ringfence_cache::format(&mut storage, &options).map_err(fail)?;
    }
    describe_storage(path, &mut storage)?.ok_or(RuntimeError::Stopped)
}

fn write_zeroes(storage: &mut DirectStorage) -> Result<(), ringfence_cache::StorageError> {
    let zeroes = vec![0; ZERO_CHUNK_BYTES];
    let size_bytes = storage.size_bytes() / 4096 * 4096;
    let mut offset = 0;
    while offset < size_bytes {
        let length = (size_bytes - offset).min(ZERO_CHUNK_BYTES as u64) as usize;
        storage.write(offset, &zeroes[..length])?;
        offset += length as u64;
    }
    storage.flush()
}

/// Reads what a cache holds without changing it; `None` when the device holds no cache. Blocks.
///
/// # Errors
/// See [`RuntimeError`].
pub fn describe(path: &Path) -> Result<Option<Description>, RuntimeError> {
    let device = Device::open(path, Role::Cache, Access::Look)?;
    describe_storage(path, &mut DirectStorage::new(device)?)
}

/// Reads everything that a cache holds and compares it; nothing is written. Blocks.
///
/// # Errors
/// See [`RuntimeError`]: also when somebody serves it.
pub fn check(path: &Path) -> Result<ringfence_cache::Report, RuntimeError> {
    // Shared: a daemon that started now would change what is being read.
    let device = Device::open(path, Role::Cache, Access::Shared)?;
    let mut storage = DirectStorage::new(device)?;
    ringfence_cache::check(&mut storage)
        .map_err(|source| RuntimeError::Open { path: path.to_owned(), source })
}

fn describe_storage(
    path: &Path,
    storage: &mut DirectStorage,
) -> Result<Option<Description>, RuntimeError> {
    match ringfence_cache::describe(storage) {
        Ok(found) => Ok(Some(found)),
        Err(OpenError::NotFormatted) => Ok(None),
        Err(source) => Err(RuntimeError::Open { path: path.to_owned(), source }),
    }
}
