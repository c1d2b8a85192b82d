//! Where memory may not be locked the ring serves all the same, and says so.

use ringfence_cache::{Mode, Order};
use ringfence_uring::allocation::abort_on_ring_allocation;
use ringfence_uring::{ExportSpec, OpenSpec};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::path::PathBuf;
use support::{FLUSH, Host, pattern};

mod support;

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

const MIB: u64 = 1 << 20;

/// For the calling thread and those that it starts, and, for the limit, the whole process: this
/// file has one test.
fn forbid_locking(beyond: u64) {
    let mut own = capabilities(None).expect("a thread has capabilities");
    own.effective.remove(CapabilitySet::IPC_LOCK);
    own.permitted.remove(CapabilitySet::IPC_LOCK);
    own.inheritable.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, own).expect("less is always allowed");
    let little = Rlimit { current: Some(beyond), maximum: Some(beyond) };
    setrlimit(Resource::Memlock, little).expect("less is always allowed");
}

#[test]
fn without_locked_memory_it_serves_and_says_so() {
    // Enough for the io_uring alone, as services have it by default.
    forbid_locking(8 * MIB);
    for (bytes, up) in [(4 * MIB, true), (9 * MIB, false), (u64::MAX, false)] {
        let probed = ringfence_uring::probe(2 * MIB, bytes - 2 * MIB, None);
        let locked = probed.iter().find(|guard| guard.measure == "memory_locked").expect("a guard");
        assert_eq!(locked.up, up, "{bytes} bytes: {locked:?}");
    }
    abort_on_ring_allocation(true);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("ringfence-unlocked-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a directory");
    let (cache, origin) = (folder.join("cache"), folder.join("origin"));
    for (path, bytes) in [(&cache, 53 * MIB), (&origin, 16 * MIB)] {
        std::fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
    }
    ringfence_uring::format(&cache, 4 * MIB).expect("formatted");
    let spec = OpenSpec {
        cache_path: cache,
        reserve_bytes: 96 * MIB,
        connections_max: 4,
        spin_us: 0,
        cpu: None,
        destage_high_percent: 50,
        destage_age_ms: 5_000,
        destage_idle_ms: 500,
        accept_loss: false,
        index_bytes: None,
        memory_tier_percent: 10,
        exports: vec![ExportSpec {
            name: "disk".to_owned(),
            origin_path: origin,
            mode: Mode::Writeback,
            order: Order::Strict,
            dirty_bytes_max: None,
            wait_ms: 5_000,
            origin_timeout_ms: 5_000,
        }],
    };
    let host = Host::over(|bell| ringfence_uring::open(&spec, bell).expect("an open cache"));
    let guards = &host.runtime.opened().guards;
    let locked = guards.iter().find(|guard| guard.measure == "memory_locked").expect("a guard");
    assert!(!locked.up, "{locked:?}");
    let advice = locked.advice.as_deref().expect("words");
    assert!(advice.contains("not") && advice.contains("LimitMEMLOCK=infinity"), "{advice}");
    let mut client = host.connect();
    let data = pattern(100, 3_000_000, 5);
    assert_eq!(client.write(100, &data), 0);
    assert_eq!(client.plain(FLUSH, 0, 0), 0);
    assert!(client.get(100, 3_000_000) == Ok(data), "through buffers that are not registered");
    assert_eq!(client.get(8 * MIB, 4096), Ok(vec![0; 4096]), "a miss");
    assert_eq!(host.counter("ringAllocations"), 0);
    host.runtime.shutdown().expect("an orderly end");
    drop((client, host));

    forbid_locking(65_536);
    let refused = ringfence_uring::open(&spec, Box::new(|| ())).err().expect("no io_uring");
    assert!(refused.to_string().contains("LimitMEMLOCK=infinity"), "{refused}");
    std::fs::remove_dir_all(folder).expect("ours");
}
