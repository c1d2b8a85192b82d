//! Origins that refuse: whose request it was gets the error, and nobody else notices.

use ringfence_cache::{Mode, Order};
use ringfence_uring::allocation::abort_on_ring_allocation;
use ringfence_uring::{ExportSpec, OpenSpec};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use support::{FLUSH, Host, READ, WRITE, pattern};

mod support;

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

const MIB: u64 = 1 << 20;
const ORIGIN_BYTES: u64 = 16 * MIB;
const EIO: u32 = 5;
const SICK: u8 = 0;
const WELL: u8 = 1;

fn export(name: &str, origin_path: PathBuf, mode: Mode) -> ExportSpec {
    ExportSpec {
        name: name.to_owned(),
        origin_path,
        mode,
        order: Order::Strict,
        dirty_bytes_max: None,
        wait_ms: 300,
        origin_timeout_ms: 5_000,
    }
}

/// An export "sick" over memory that can be made to refuse, and "well" over a file.
fn open(name: &str, sick: &impl AsRawFd) -> (Host, PathBuf) {
    abort_on_ring_allocation(true);
    // Not the temporary directory: that may be memory, which does not take `O_DIRECT`.
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("ringfence-origins-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a directory");
    let (cache, well) = (folder.join("cache"), folder.join("well"));
    for (path, bytes) in [(&cache, 53 * MIB), (&well, ORIGIN_BYTES)] {
        std::fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
    }
    ringfence_uring::format(&cache, 4 * MIB).expect("formatted");
    let shown = PathBuf::from(format!("/proc/self/fd/{}", sick.as_raw_fd()));
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
        exports: vec![
            export("sick", shown, Mode::Writethrough),
            export("well", well, Mode::Writeback),
        ],
    };
    (Host::over(|bell| ringfence_uring::open(&spec, bell).expect("an open cache")), folder)
}

#[test]
fn an_origins_errors_reach_the_clients_whose_requests_failed_and_nobody_else() {
    let sick = memfd_create("sick", MemfdFlags::ALLOW_SEALING).expect("memory");
    ftruncate(&sick, ORIGIN_BYTES).expect("a size");
    let (host, folder) = open("errors", &sick);
    std::thread::scope(|scope| {
        let mut other = host.attach(WELL, true, false);
        let bystander = scope.spawn(move || {
            for round in 0..60_u8 {
                let offset = u64::from(round % 16) * MIB;
                let data = pattern(offset, 300_000, round);
                assert_eq!(other.write(offset, &data), 0);
                assert!(other.get(offset, 300_000) == Ok(data), "round {round}");
                assert_eq!(other.plain(FLUSH, 0, 0), 0);
            }
        });
        let mut simple = host.attach(SICK, false, false);
        let mut chunked = host.attach(SICK, true, false);
        let kept = pattern(0, 100_000, 1);
        assert_eq!(simple.write(0, &kept), 0);

        // Shorter than it was: reads behind its end bring nothing.
        ftruncate(&sick, MIB).expect("a size");
        let ill = simple.request(READ, 8 * MIB, 4096, &[]);
        let cached = simple.request(READ, 0, 100_000, &[]);
        let mut answers = Vec::new();
        for _ in 0..2 {
            let (error, cookie) = simple.simple_reply();
            if error == 0 {
                assert!(simple.read(100_000) == kept, "what is cached is not disturbed");
            }
            answers.push((cookie, error));
        }
        answers.sort_unstable();
        assert_eq!(answers, [(ill, EIO), (cached, 0)]);
        assert_eq!(chunked.get(9 * MIB, 70_000), Err(EIO));
        assert!(chunked.get(0, 100_000) == Ok(kept.clone()), "the stream is in step");
        ftruncate(&sick, ORIGIN_BYTES).expect("a size");
        // It is asked again after a pause, which may be longer than a request waits.
        let back = (0..20).find_map(|_| chunked.get(9 * MIB, 70_000).ok());
        assert!(back == Some(vec![0; 70_000]), "the origin is back");

        // Sealed: writes are refused, with another errno than clients are told.
        fcntl_add_seals(&sick, SealFlags::WRITE).expect("a seal");
        let first = simple.request(WRITE, 2 * MIB, 4096, &[7; 4096]);
        let second = simple.request(WRITE, 3 * MIB + 100, 9000, &[8; 9000]);
        let mut answers = [simple.simple_reply(), simple.simple_reply()];
        answers.sort_unstable_by_key(|(_, cookie)| *cookie);
        assert_eq!(answers, [(EIO, first), (EIO, second)]);
        assert!(simple.get(0, 100_000) == Ok(kept), "reads go on");
        bystander.join().expect("the other export never noticed");
    });
    assert_eq!(host.counter("ringAllocations"), 0);
    drop(host);
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn full_tables_make_requests_wait_and_never_allocate() {
    let sick = memfd_create("slow", MemfdFlags::empty()).expect("memory");
    ftruncate(&sick, ORIGIN_BYTES).expect("a size");
    let (host, folder) = open("full", &sick);
    // On every connection more requests than it may have, all of them before any answer is read:
    // misses of both origins, writes, zeroes, flushes, and reads of what is being written.
    std::thread::scope(|scope| {
        for number in 0..4_u8 {
            let mut client = host.attach(number % 2, number < 2, false);
            scope.spawn(move || {
                let mut answers = client.second_handle();
                let rounds = 400_u64;
                let asked = std::thread::spawn(move || {
                    for round in 0..rounds {
                        let at = (round * 37 + u64::from(number) * 11) % 250 * 65_536;
                        match round % 5 {
                            0 | 1 => client.request(READ, at, 65_536, &[]),
                            2 => client.request(WRITE, at + 100, 50_000, &[number; 50_000]),
                            3 => client.request(support::WRITE_ZEROES, at, 131_072, &[]),
                            _ => client.request(FLUSH, 0, 0, &[]),
                        };
                    }
                    client.second_handle()
                });
                let reads = |cookie: u64| (cookie - 0x1001) % 5 < 2;
                for _ in 0..rounds {
                    if number >= 2 {
                        let (error, cookie) = answers.simple_reply();
                        assert_eq!(error, 0);
                        if reads(cookie) {
                            answers.read(65_536);
                        }
                    } else {
                        answers.any_reply();
                    }
                }
                asked.join().expect("all was sent");
            });
        }
    });
    assert_eq!(host.counter("ringAllocations"), 0);
    drop(host);
    std::fs::remove_dir_all(folder).expect("ours");
}
