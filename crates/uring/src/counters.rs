//! The ring's counters, and the one place that lays out all counters for JavaScript.

use crate::allocation;
use crate::options::CounterLayout;
use ringfence_cache::ReservePlan;
use ringfence_cache::counters::{Counter, Counters, ExportCounter};
use ringfence_cache::limits::{EXPORTS_MAX, FETCH_BYTES};
use ringfence_cache::reserve::Pool;
use ringfence_cache::units::{BLOCK_BYTES_U64, ExportSlot};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Operations of clients, in the order of their counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// `NBD_CMD_READ`.
    Read,
    /// `NBD_CMD_WRITE`.
    Write,
    /// `NBD_CMD_FLUSH`.
    Flush,
    /// `NBD_CMD_TRIM`.
    Trim,
    /// `NBD_CMD_WRITE_ZEROES`.
    WriteZeroes,
}
const OPS: [&str; 5] = ["read", "write", "flush", "trim", "write_zeroes"];

/// Operations on origins, in the order of their counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum OriginOp {
    /// A miss, a merge.
    Read,
    /// Destage.
    Write,
    /// Destage of zeroes.
    WriteZeroes,
    /// The end of an epoch.
    Flush,
}
const ORIGIN_OPS: [&str; 4] = ["read", "write", "write_zeroes", "flush"];

/// Of the ring itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RingCounter {
    /// Times around the loop.
    Turns,
    /// `io_uring_enter`, direct `recv` and `sendmsg`, and `sched_yield`.
    SystemCalls,
    /// Times the ring slept.
    Sleeps,
    /// Times it gave the CPU up to the workers of its device.
    Yields,
    /// Times it spun before it would have slept, and work came.
    SpinHits,
    /// Times it spun and slept all the same.
    SpinMisses,
    /// Requests that waited for room in their connection's windows or for a ticket.
    ReceiveWaits,
    /// Connections accepted.
    ConnectionsAccepted,
    /// Notices that nobody fetched in time.
    NoticesDropped,
    /// Connections open now.
    ConnectionsOpen,
}
const RING_COUNTERS: [&str; 10] = [
    "ringTurns",
    "ringSystemCalls",
    "ringSleeps",
    "ringYields",
    "ringSpinHits",
    "ringSpinMisses",
    "receiveWaits",
    "connectionsAccepted",
    "noticesDropped",
    "connectionsOpen",
];
/// Read from elsewhere when asked for, after [`RING_COUNTERS`].
const DERIVED: [&str; 2] = ["ringAllocations", "ringPageFaults"];
/// Of each export, after the engine's.
const EXPORT_EXTRA: [&str; 1] = ["connections"];
const POOLS: [&str; 8] =
    ["receive", "merge", "fetch", "memory_tier", "log", "reclaim", "destage", "superblock"];

/// Upper bounds of the duration buckets: from a write into the reserve to a stuck disk.
const BUCKETS_NS: [u64; 19] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// One kind of request: requests, bytes, errors, the sum of durations, the buckets.
const GROUP: usize = 4 + BUCKETS_NS.len() + 1;

#[derive(Debug)]
struct Group([AtomicU64; GROUP]);

impl Group {
    fn add(&self, index: usize, more: u64) {
        // A plain load and store: the ring thread is the one writer.
        let value = self.0[index].load(Ordering::Relaxed).wrapping_add(more);
        self.0[index].store(value, Ordering::Relaxed);
    }

    fn record(&self, bytes: u64, duration_ns: u64, failed: bool) {
        self.add(0, 1);
        self.add(1, if failed { 0 } else { bytes });
        self.add(2, u64::from(failed));
        self.add(3, duration_ns);
        let bucket = BUCKETS_NS.iter().position(|bound| duration_ns <= *bound);
        self.add(4 + bucket.unwrap_or(BUCKETS_NS.len()), 1);
    }
}

/// What the ring thread counts; any thread may read.
#[derive(Debug)]
pub struct RingCounters {
    ring: [AtomicU64; RING_COUNTERS.len()],
    connections: [AtomicU64; EXPORTS_MAX],
    requests: Box<[[Group; OPS.len()]]>,
    origins: Box<[[Group; ORIGIN_OPS.len()]]>,
    /// Whose page faults are shown; 0 before the thread runs.
    thread_id: AtomicI32,
    /// Page faults of the thread before it started to serve.
    faults_before: AtomicU64,
    /// The most page faults that were seen since: those who ask write it, not the ring.
    faults_seen: AtomicU64,
}

impl Default for RingCounters {
    fn default() -> Self {
        let group = || Group([const { AtomicU64::new(0) }; _]);
        Self {
            ring: [const { AtomicU64::new(0) }; _],
            connections: [const { AtomicU64::new(0) }; _],
            requests: (0..EXPORTS_MAX).map(|_| std::array::from_fn(|_| group())).collect(),
            origins: (0..EXPORTS_MAX).map(|_| std::array::from_fn(|_| group())).collect(),
            thread_id: AtomicI32::new(0),
            faults_before: AtomicU64::new(0),
            faults_seen: AtomicU64::new(0),
        }
    }
}

impl RingCounters {
    /// Adds to a counter of the ring.
    pub fn add(&self, counter: RingCounter, more: u64) {
        let cell = &self.ring[counter as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// The value of a counter of the ring.
    #[must_use]
    pub fn get(&self, counter: RingCounter) -> u64 {
        self.ring[counter as usize].load(Ordering::Relaxed)
    }

    /// Sets a counter of the ring.
    pub fn set(&self, counter: RingCounter, value: u64) {
        self.ring[counter as usize].store(value, Ordering::Relaxed);
    }

    /// A connection of an export came.
    pub fn connected(&self, export: ExportSlot) {
        self.connections[export.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// A connection of an export went.
    pub fn disconnected(&self, export: ExportSlot) {
        self.connections[export.index()].fetch_sub(1, Ordering::Relaxed);
    }

    /// A client's request has ended.
    pub fn request(&self, export: ExportSlot, op: Op, bytes: u64, duration_ns: u64, failed: bool) {
        self.requests[export.index()][op as usize].record(bytes, duration_ns, failed);
    }

    /// A request to an origin has ended.
    pub fn origin(
        &self,
        export: ExportSlot,
        op: OriginOp,
        bytes: u64,
        duration_ns: u64,
        failed: bool,
    ) {
        self.origins[export.index()][op as usize].record(bytes, duration_ns, failed);
    }

    /// The calling thread is the ring and starts to serve: its page faults count from here.
    pub fn start_serving(&self) {
        // SAFETY: no arguments; it always succeeds.
        let thread_id = unsafe { libc::gettid() };
        // SAFETY: a zeroed `rusage` is valid, and the pointer is to it.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage
        };
        let faults = usage.ru_minflt.cast_unsigned() + usage.ru_majflt.cast_unsigned();
        self.faults_before.store(faults, Ordering::Relaxed);
        self.thread_id.store(thread_id, Ordering::Release);
    }

    /// Page faults of the ring thread since it started to serve. The kernel tells them to any
    /// thread, so that the ring need not ask; where it does not, the answer is the last one.
    #[must_use]
    pub fn page_faults(&self) -> u64 {
        let thread_id = self.thread_id.load(Ordering::Acquire);
        if thread_id == 0 {
            return 0;
        }
        let path = format!("/proc/self/task/{thread_id}/stat");
        // The thread may have ended, or the process have no descriptor left.
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        // After the name, in parentheses: the state is the first field, minflt the 8th, majflt the
        // 10th.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let mut fields = fields.split_ascii_whitespace().skip(7);
        let mut next = || fields.next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let (minor, _children, major) = (next(), next(), next());
        let faults = (minor + major).saturating_sub(self.faults_before.load(Ordering::Relaxed));
        // A counter that went back would look like a restart.
        self.faults_seen.fetch_max(faults, Ordering::Relaxed).max(faults)
    }
}

/// How all counters lie in one array; see `CounterLayout` in `daemon/native.ts`.
#[must_use]
pub fn counter_layout() -> CounterLayout {
    let engine: Vec<_> = Counter::ALL
        .iter()
        .map(|counter| counter.name())
        .chain(RING_COUNTERS)
        .chain(DERIVED)
        .collect();
    let export_names: Vec<_> =
        ExportCounter::ALL.iter().map(|counter| counter.name()).chain(EXPORT_EXTRA).collect();
    let values = engine.len()
        + EXPORTS_MAX * (export_names.len() + (OPS.len() + ORIGIN_OPS.len()) * GROUP)
        + POOLS.len() * 3;
    CounterLayout {
        engine,
        export_names,
        exports_max: EXPORTS_MAX as u32,
        operations: OPS.to_vec(),
        duration_buckets_ns: BUCKETS_NS.to_vec(),
        origin_operations: ORIGIN_OPS.to_vec(),
        pools: POOLS.to_vec(),
        values,
    }
}

/// All that is counted about one open cache.
#[derive(Clone, Debug)]
pub struct CounterSource {
    /// The engine's.
    pub engine: Arc<Counters>,
    /// The ring's.
    pub ring: Arc<RingCounters>,
    /// How the reserve is divided.
    pub plan: ReservePlan,
    /// What one connection holds of the receive pool.
    pub connection_bytes: u64,
}

impl CounterSource {
    /// Copies everything, in the order of [`counter_layout`].
    ///
    /// # Panics
    /// When `into` has another length than the layout.
    pub fn copy(&self, into: &mut [u64]) {
        let mut at = 0;
        let mut put = |value: u64| {
            into[at] = value;
            at += 1;
        };
        Counter::ALL.iter().for_each(|counter| put(self.engine.get(*counter)));
        self.ring.ring.iter().for_each(|value| put(value.load(Ordering::Relaxed)));
        put(allocation::ring_allocations());
        put(self.ring.page_faults());
        for (index, connections) in self.ring.connections.iter().enumerate() {
            let slot = ExportSlot(index as u8);
            ExportCounter::ALL
                .iter()
                .for_each(|counter| put(self.engine.get_export(slot, *counter)));
            put(connections.load(Ordering::Relaxed));
        }
        let groups = self.ring.requests.iter().flatten();
        for group in groups.chain(self.ring.origins.iter().flatten()) {
            group.0.iter().for_each(|value| put(value.load(Ordering::Relaxed)));
        }
        for (pool, used, waits) in self.pools() {
            put(pool.length);
            put(used.min(pool.length));
            put(waits);
        }
        assert_eq!(at, into.len(), "an array of the layout's length");
    }

    /// Per pool, in the order of [`POOLS`]: place, bytes in use, waits.
    fn pools(&self) -> [(Pool, u64, u64); POOLS.len()] {
        let engine = |counter| self.engine.get(counter);
        let plan = &self.plan;
        let connections = self.ring.get(RingCounter::ConnectionsOpen);
        let reclaiming = engine(Counter::SegmentsReclaiming).min(1);
        let destager_bytes = plan.destage.length / u64::from(plan.destagers);
        [
            (
                plan.receive,
                connections * self.connection_bytes,
                self.ring.get(RingCounter::ReceiveWaits),
            ),
            (
                plan.merge,
                engine(Counter::MergesUsed) * 2 * BLOCK_BYTES_U64,
                engine(Counter::MergeWaits),
            ),
            (
                plan.fetch,
                engine(Counter::FetchesUsed) * u64::from(FETCH_BYTES),
                engine(Counter::FetchWaits),
            ),
            (plan.memory_tier, engine(Counter::TierFramesUsed) * BLOCK_BYTES_U64, 0),
            // The log pool is a window onto the newest segments: it is in use from the start.
            (plan.log, plan.log.length, engine(Counter::LogWaits)),
            (plan.reclaim, reclaiming * plan.reclaim.length, 0),
            (plan.destage, engine(Counter::DestagersUsed) * destager_bytes, 0),
            (plan.superblock, engine(Counter::SuperblocksUsed) * BLOCK_BYTES_U64, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::{CounterSource, Op, OriginOp, RingCounters, counter_layout};
    use ringfence_cache::counters::{Counter, Counters};
    use ringfence_cache::units::ExportSlot;
    use ringfence_cache::{ReservePlan, ReserveShape};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn page_faults_stay_what_they_were_when_the_kernel_does_not_tell() {
        let ring = RingCounters::default();
        std::thread::scope(|scope| {
            let (serving, started) = std::sync::mpsc::channel();
            let (finish, finished) = std::sync::mpsc::channel::<()>();
            let ring = &ring;
            scope.spawn(move || {
                ring.start_serving();
                // Fresh pages: each is a fault when it is touched.
                std::hint::black_box(vec![1_u8; 4 << 20]);
                serving.send(()).expect("a listener");
                finished.recv().expect_err("nothing is sent");
            });
            started.recv().expect("the thread serves");
            assert!(ring.page_faults() > 0);
            drop(finish);
        });
        let last = ring.page_faults();
        assert!(last > 0, "the thread is gone: a counter never goes back");
        // As where no file can be opened, or /proc is not there.
        ring.thread_id.store(i32::MAX, Ordering::Release);
        assert_eq!(ring.page_faults(), last);
    }

    #[test]
    fn every_value_lies_where_the_layout_says() {
        let source = CounterSource {
            engine: Arc::new(Counters::default()),
            ring: Arc::new(RingCounters::default()),
            plan: ReservePlan::new(&ReserveShape {
                reserve_bytes: 256 << 20,
                receive_bytes: 4 << 20,
                segment_bytes: 16 << 20,
                exports: 3,
                memory_tier_bytes: 16 << 20,
            })
            .expect("a plan"),
            connection_bytes: 1 << 20,
        };
        source.engine.set(Counter::Latched, 7);
        source.ring.request(ExportSlot(1), Op::Flush, 0, 7_000, false);
        source.ring.origin(ExportSlot(2), OriginOp::Write, 4096, 1 << 60, true);
        let layout = counter_layout();
        let mut values = vec![0; layout.values];
        source.copy(&mut values);

        let latched = layout.engine.iter().position(|name| *name == "latched").expect("named");
        assert_eq!(values[latched], 7);
        let group = 4 + layout.duration_buckets_ns.len() + 1;
        let requests = layout.engine.len() + 64 * layout.export_names.len();
        let flush = requests + (layout.operations.len() + 2) * group;
        assert_eq!(values[flush..flush + 6], [1, 0, 0, 7_000, 0, 1]);
        let origins = requests + 64 * layout.operations.len() * group;
        let write = origins + (2 * layout.origin_operations.len() + 1) * group;
        assert_eq!(values[write..write + 4], [1, 0, 1, 1 << 60]);
        assert_eq!(values[write + group - 1], 1);
        let pools = values.len() - 3 * layout.pools.len();
        let bytes: u64 = values[pools..].iter().step_by(3).sum();
        assert_eq!(bytes, source.plan.total_bytes(), "every pool of the reserve is shown");
    }
}
