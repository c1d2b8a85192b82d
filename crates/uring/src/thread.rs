//! Starting the ring thread and the bell thread, and their end.

use crate::allocation;
use crate::core::Core;
use crate::counters::{CounterSource, RingCounters};
use crate::device::{Device, Kind};
use crate::error::RuntimeError;
use crate::guards;
use crate::memory::Mapping;
use crate::options::{Guard, Opened};
use crate::origin::Origin;
use crate::queue::{Consumer, Producer};
use crate::ring::{Ending, Ios, Kernel, OriginTarget, Parts, Ring, file};
use crate::runtime::Runtime;
use crate::shared::{Command, RingEvent, Shared};
use crate::signal::spawn_quiet;
use crate::spin::Spin;
use crate::window::CONNECTION_BYTES;
use ringfence_cache::counters::Counters;
use ringfence_cache::limits::EXPORTS_MAX;
use ringfence_cache::units::ExportSlot;
use ringfence_cache::{Reserve, ReservePlan, ReserveShape};
use ringfence_wire::ExportLimits;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

/// Requests in flight, of all connections together: half of them may change data, half may not.
pub const REQUESTS_MAX: u32 = 2048;
/// The ring thread's stack; most of it is for what the engine does at its end.
const STACK_BYTES: usize = 1 << 20;
/// As much of it as is touched and locked before the first request.
const STACK_LOCKED_BYTES: usize = 256 << 10;

/// What a ring is started with.
pub struct Start<C> {
    /// What was found out so far.
    pub opened: Opened,
    /// The engine.
    pub core: C,
    /// Its counters.
    pub engine_counters: Arc<Counters>,
    /// The reserve's memory.
    pub mapping: Arc<Mapping>,
    /// How it is divided.
    pub plan: ReservePlan,
    /// Connections at a time.
    pub connections_max: u32,
    /// When to spin.
    pub spin: Spin,
    /// Where to run.
    pub cpu: Option<u32>,
    /// The cache device.
    pub cache: Option<Device>,
    /// By export slot.
    pub origins: Vec<(ExportSlot, Origin)>,
    /// By export slot: what requests are judged against.
    pub exports: Box<[Option<ExportLimits>]>,
}

/// For [`start_core`].
#[derive(Clone, Debug)]
pub struct CoreSpec {
    /// All memory.
    pub reserve_bytes: u64,
    /// Connections at a time.
    pub connections_max: u32,
    /// How long to spin.
    pub spin_us: u32,
    /// Whether to spin without asking whether it pays.
    pub spin_always: bool,
    /// By slot: size in bytes, and whether writes are refused.
    pub exports: Vec<(u64, bool)>,
}

/// Starts a ring over another core than the engine, without devices: for tests and measurements
/// of the ring itself.
///
/// # Errors
/// See [`RuntimeError`].
pub fn start_core<C: Core + Send + 'static>(
    spec: &CoreSpec,
    build: impl FnOnce(Reserve) -> C,
    bell: Box<dyn Fn() + Send + 'static>,
) -> Result<Runtime, RuntimeError> {
    let receive_bytes = u64::from(spec.connections_max) * CONNECTION_BYTES;
    let segment_bytes = ringfence_cache::limits::SEGMENT_BYTES_MIN;
    let plan = ReservePlan::new(&ReserveShape {
        reserve_bytes: spec.reserve_bytes,
        receive_bytes,
        segment_bytes,
        exports: spec.exports.len(),
        memory_tier_bytes: 0,
    })
    .map_err(|_| RuntimeError::Argument { what: "the reserve is too small" })?;
    let mapping = Arc::new(Mapping::new(plan.total_bytes())?);
    let mut exports = vec![None; EXPORTS_MAX].into_boxed_slice();
    for (slot, (size_bytes, read_only)) in spec.exports.iter().enumerate() {
        exports[slot] = Some(ExportLimits { size_bytes: *size_bytes, read_only: *read_only });
    }
    let opened = Opened {
        cache_uuid: [0; 16],
        device_bytes: 0,
        segment_bytes,
        segments: 0,
        recovered_records: 0,
        recovery_ms: 0,
        lost_records: None,
        exports: Vec::new(),
        guards: Vec::new(),
    };
    let spin_ns = u64::from(spec.spin_us) * 1000;
    let (core, _locked) = allocation::locking(|| build(mapping.reserve(plan.total_bytes())));
    start(
        Start {
            opened,
            core,
            engine_counters: Arc::new(Counters::default()),
            mapping,
            plan,
            connections_max: spec.connections_max,
            spin: if spec.spin_always { Spin::always(spin_ns) } else { Spin::new(spin_ns) },
            cpu: None,
            cache: None,
            origins: Vec::new(),
            exports,
        },
        bell,
    )
}

/// What the ring thread found before it serves.
struct Found {
    guards: [Guard; 2],
    /// Whether all that the thread will need is locked in memory.
    locked: bool,
}

/// Starts the ring thread and the bell thread.
///
/// # Errors
/// When there is no io_uring, or no thread.
pub fn start<C: Core + Send + 'static>(
    mut start: Start<C>,
    bell: Box<dyn Fn() + Send + 'static>,
) -> Result<Runtime, RuntimeError> {
    let counters = Arc::new(RingCounters::default());
    let system = |what| move |source| RuntimeError::System { what, source };
    let (shared, ends) = Shared::new(
        start.connections_max,
        start.mapping.clone(),
        start.plan.receive.offset,
        counters.clone(),
    )
    .map_err(system("the queues to the ring cannot be made"))?;
    let source = CounterSource {
        engine: start.engine_counters.clone(),
        ring: counters,
        plan: start.plan,
        connection_bytes: CONNECTION_BYTES,
    };
    let mut opened = start.opened.clone();
    let exports = start.exports.clone();
    let (ready, started) = mpsc::sync_channel(1);
    let (finished, outcome) = mpsc::sync_channel(1);
    start.opened.exports.clear();
    let ring_shared = shared.clone();
    let (commands, events) = (ends.commands_out, ends.events_in);
    let body = move || {
        let run = AssertUnwindSafe(|| run(start, ring_shared, commands, events, &ready));
        match catch_unwind(run) {
            Ok((ending, origins)) => {
                let _nobody_waits = finished.send(ending);
                // A file is not closed before its filesystem has said so, which may hang. What is
                // told of by the other end of `finished` is that this is over.
                drop(origins);
                drop(finished);
            }
            Err(_) => {
                // The panic's message is out already. Nothing that the ring held can be trusted.
                eprintln!("ringfence: the ring thread failed: the process ends, as if killed");
                std::process::abort();
            }
        }
    };
    let ring = spawn_quiet("ringfence-ring", STACK_BYTES, body)
        .map_err(system("the ring thread cannot be started"))?;
    match started.recv() {
        Ok(Ok(Found { guards: found, locked })) => {
            opened.guards.extend(found);
            if !locked {
                guards::note_ring_unlocked(&mut opened.guards);
            }
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(RuntimeError::Stopped),
    }
    let stop_bell = Arc::new(AtomicBool::new(false));
    let (bell_shared, bell_stop) = (shared.clone(), stop_bell.clone());
    let ring_bell = move || {
        loop {
            bell_shared.event_signal.wait();
            let is_last = bell_stop.load(Ordering::Acquire);
            // The last time, too: the ring may have told something just before it ended.
            bell();
            if is_last {
                return;
            }
        }
    };
    let bell = spawn_quiet("ringfence-bell", STACK_BYTES, ring_bell)
        .map_err(system("the bell thread cannot be started"))?;
    Ok(Runtime::new(opened, exports, shared, (ends.commands_in, ends.events_out), source, {
        crate::runtime::Threads { ring, bell, stop_bell, outcome }
    }))
}

/// The ring thread's life, but for its origins: they are still open.
fn run<C: Core>(
    mut start: Start<C>,
    shared: Arc<Shared>,
    commands: Consumer<Command>,
    events: Producer<RingEvent>,
    ready: &mpsc::SyncSender<Result<Found, RuntimeError>>,
) -> (Ending, Vec<(ExportSlot, Origin)>) {
    // Before the ring exists, so that the kernel's workers for it inherit it.
    let flusher = guards::io_flusher();
    if let Some(cpu) = start.cpu
        && let Err(source) = pin(cpu)
    {
        // Whoever is told may open the same devices again at once.
        drop(start);
        let _nobody_waits = ready.send(Err(RuntimeError::Cpu { cpu, source }));
        return (Ending { flushed: Ok(()), stuck: false }, Vec::new());
    }
    let own_locked = lock_stack() & lock_text();
    // Devices stay open, and with that locked, as long as the ring.
    let devices = (start.cache.take(), std::mem::take(&mut start.origins));
    let counters = shared.counters.clone();
    let (built, tables_locked) =
        allocation::locking(|| build(start, &devices, shared, commands, events));
    let mut ring = match built {
        Ok(ring) => ring,
        Err(error) => {
            let _nobody_waits = ready.send(Err(error));
            return (Ending { flushed: Ok(()), stuck: false }, devices.1);
        }
    };
    let guards = [flusher, ring.buffers_guard()];
    let _nobody_waits = ready.send(Ok(Found { guards, locked: own_locked & tables_locked }));
    counters.start_serving();
    allocation::watch_this_thread();
    let result = ring.run();
    allocation::unwatch_this_thread();
    drop(ring);
    let (cache, origins) = devices;
    drop(cache);
    (result, origins)
}

/// All that the loop will ever need.
fn build<C: Core>(
    start: Start<C>,
    (cache, origins): &(Option<Device>, Vec<(ExportSlot, Origin)>),
    shared: Arc<Shared>,
    commands: Consumer<Command>,
    events: Producer<RingEvent>,
) -> Result<Ring<C>, RuntimeError> {
    let kernel = set_up(&shared, start.connections_max, cache.as_ref(), origins)?;
    let mut targets = vec![None; EXPORTS_MAX].into_boxed_slice();
    for (slot, origin) in origins {
        targets[slot.index()] = Some(OriginTarget::new(
            origin.device.size_bytes,
            origin.whole_blocks_end(),
            origin.device.kind == Kind::File,
        ));
    }
    Ok(Ring::new(Parts {
        core: start.core,
        kernel,
        shared,
        commands,
        events,
        connections_max: start.connections_max,
        receive_pool_offset: start.plan.receive.offset,
        requests_max: REQUESTS_MAX,
        ios: Ios::new(targets, Ios::zeroes()?),
        exports: start.exports,
        spin: start.spin,
    }))
}

/// The io_uring with the devices in its table of files.
fn set_up(
    shared: &Shared,
    connections_max: u32,
    cache: Option<&Device>,
    origins: &[(ExportSlot, Origin)],
) -> Result<Kernel, RuntimeError> {
    let uring = |error: io::Error| RuntimeError::Uring { advice: guards::uring_advice(&error) };
    let kernel = {
        let (mapping, counters) = (shared.mapping.clone(), shared.counters.clone());
        Kernel::new(mapping, connections_max, origins.len(), counters).map_err(uring)?
    };
    if let Some(cache) = cache {
        kernel.set_file(file::CACHE, cache.fd.as_raw_fd()).map_err(uring)?;
    }
    kernel.set_file(file::WAKE, shared.command_signal.raw()).map_err(uring)?;
    for (slot, origin) in origins {
        let place = u32::from(slot.0);
        kernel.set_file(file::ORIGINS + place, origin.device.fd.as_raw_fd()).map_err(uring)?;
        if let Some(tail) = &origin.tail {
            kernel.set_file(file::TAILS + place, tail.as_raw_fd()).map_err(uring)?;
        }
    }
    Ok(kernel)
}

/// Runs the calling thread on one CPU.
///
/// # Errors
/// Where that CPU does not exist, or is not this process's to use.
fn pin(cpu: u32) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    if (cpu as usize) >= rustix::thread::CpuSet::MAX_CPU {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    set.set(cpu as usize);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Touches and locks the stack that the loop will use: a page fault there would be an allocation.
/// Whether it could be locked.
#[inline(never)]
pub fn lock_stack() -> bool {
    let mut stack = [0_u8; STACK_LOCKED_BYTES];
    for at in (0..stack.len()).step_by(4096) {
        // SAFETY: inside the array. Volatile, or the compiler would leave it out.
        unsafe { stack.as_mut_ptr().add(at).write_volatile(1) };
    }
    // SAFETY: the pages are the calling thread's stack; locking changes no content.
    unsafe { libc::mlock(stack.as_ptr().cast(), stack.len()) == 0 }
}

/// Locks the program's own text: a page of it that was dropped would have to be read from a disk
/// that may be ours. Whether it could be locked.
pub fn lock_text() -> bool {
    let here = lock_text as fn() -> bool as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let range = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        rest.starts_with("r-x").then_some((start, end))
    };
    let text = maps.lines().filter_map(range).find(|(start, end)| (*start..*end).contains(&here));
    text.is_some_and(|(start, end)| {
        // SAFETY: the mapping that this function runs from; locking changes no content.
        unsafe { libc::mlock(start as *const libc::c_void, end - start) == 0 }
    })
}
