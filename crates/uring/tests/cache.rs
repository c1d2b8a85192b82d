//! The whole native side over files: engine, ring, cache and origin, opened and opened again.

use ringfence_cache::{Mode, Order};
use ringfence_uring::allocation::abort_on_ring_allocation;
use ringfence_uring::{ControlAction, ExportSpec, Guard, OpenSpec, RuntimeError, RuntimeEvent};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::{FLUSH, Host, TRIM, WRITE_ZEROES, pattern};

mod support;

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

const SEGMENT_BYTES: u64 = 4 << 20;
/// Not a multiple of 4096: the last block cannot be written with `O_DIRECT`.
const ORIGIN_BYTES: u64 = (24 << 20) + 1234;

struct Files {
    directory: PathBuf,
}

impl Files {
    fn new(name: &str) -> Self {
        let name = format!("ringfence-cache-{name}-{}", std::process::id());
        // Not the temporary directory: that may be memory, which does not take `O_DIRECT`.
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&directory).expect("a directory");
        let files = Self { directory };
        let sized = |path: &Path, bytes| {
            std::fs::File::create(path).and_then(|file| file.set_len(bytes)).expect("a file");
        };
        sized(&files.cache(), (1 << 20) + 13 * SEGMENT_BYTES);
        sized(&files.origin(), ORIGIN_BYTES);
        files
    }

    fn cache(&self) -> PathBuf {
        self.directory.join("cache")
    }

    fn origin(&self) -> PathBuf {
        self.directory.join("origin")
    }

    fn export(&self, mode: Mode) -> ExportSpec {
        ExportSpec {
            name: "disk".to_owned(),
            origin_path: self.origin(),
            mode,
            order: Order::Strict,
            dirty_bytes_max: None,
            wait_ms: 5_000,
            origin_timeout_ms: 2_000,
        }
    }

    fn spec(&self, exports: Vec<ExportSpec>) -> OpenSpec {
        OpenSpec {
            cache_path: self.cache(),
            reserve_bytes: 96 << 20,
            connections_max: 4,
            spin_us: 50,
            cpu: None,
            destage_high_percent: 50,
            destage_age_ms: 5_000,
            destage_idle_ms: 500,
            accept_loss: false,
            index_bytes: None,
            memory_tier_percent: 10,
            exports,
        }
    }

    fn open(&self, mode: Mode) -> Host {
        abort_on_ring_allocation(true);
        let spec = self.spec(vec![self.export(mode)]);
        Host::over(|bell| ringfence_uring::open(&spec, bell).expect("an open cache"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _leftovers = std::fs::remove_dir_all(&self.directory);
    }
}

fn control(host: &Host, token: u32, action: ControlAction) {
    host.runtime.control(token, action, None).expect("taken");
    let done = RuntimeEvent::ControlDone { token, error: None };
    host.until("its end", |host| host.other.lock().expect("no panic").contains(&done));
}

#[test]
fn what_was_flushed_is_there_after_a_restart_and_on_the_origin_after_a_drain() {
    let files = Files::new("restart");
    let described = ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    assert_eq!(described.segments, 13);
    let data = pattern(0, 5 << 20, 1);
    {
        let host = files.open(Mode::Writeback);
        assert!(!host.runtime.opened().exports[0].known);
        let mut client = host.attach(0, true, false);
        assert_eq!(client.write(0, &data), 0);
        assert_eq!(client.write(ORIGIN_BYTES - 3000, &[7; 3000]), 0, "the ragged end");
        assert_eq!(client.write(700, &[9; 100]), 0, "a part of a block");
        assert_eq!(client.plain(TRIM, 1 << 20, 1 << 20), 0);
        assert_eq!(client.plain(WRITE_ZEROES, (3 << 20) + 5, 10_000), 0);
        assert_eq!(client.plain(FLUSH, 0, 0), 0);
        host.runtime.shutdown().expect("an orderly end");
    }
    let mut expected = data;
    expected[700..800].fill(9);
    expected[1 << 20..2 << 20].fill(0);
    expected[(3 << 20) + 5..][..10_000].fill(0);
    {
        let host = files.open(Mode::Writeback);
        let opened = host.runtime.opened();
        assert!(opened.exports[0].known && opened.recovered_records > 0, "{opened:?}");
        let mut client = host.connect();
        assert!(client.get(0, 5 << 20).expect("data") == expected);
        assert!(host.counter("ringYields") > 0, "the device's reads were handed over first");
        assert_eq!(client.get(ORIGIN_BYTES - 3000, 3000), Ok(vec![7; 3000]));
        assert_eq!(client.get(10 << 20, 4096), Ok(vec![0; 4096]), "a miss");
        control(&host, 1, ControlAction::Drain);
        assert_eq!(host.counter("ringAllocations"), 0);
        assert_eq!(host.runtime.opened().cache_uuid, described.uuid);
    }
    let origin = std::fs::read(files.origin()).expect("the origin");
    assert_eq!(origin.len() as u64, ORIGIN_BYTES, "an origin never grows (rule 35)");
    assert!(origin[..5 << 20] == expected);
    assert!(origin[origin.len() - 3000..] == [7; 3000]);
    let described = ringfence_uring::describe(&files.cache()).expect("readable").expect("a cache");
    assert_eq!(described.exports[0].dirty_bytes, 0);
}

#[test]
fn data_of_several_times_the_log_passes_through() {
    let files = Files::new("wrap");
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    let host = files.open(Mode::Writeback);
    let mut client = host.attach(0, true, false);
    let step = 1 << 20;
    for round in 0..8_u8 {
        for index in 0..24_u64 {
            let data = pattern(index * step, step as usize, round);
            assert_eq!(client.write(index * step, &data), 0);
        }
        for index in 0..24_u64 {
            let data = client.get(index * step, step as u32).expect("data");
            assert!(data == pattern(index * step, step as usize, round), "{round}: {index}");
        }
    }
    control(&host, 1, ControlAction::Drain);
    control(&host, 2, ControlAction::Stop);
    host.runtime.shutdown().expect("an orderly end after an operator's stop");
    let origin = std::fs::read(files.origin()).expect("the origin");
    assert!(origin[..24 << 20] == pattern(0, 24 << 20, 7));
    assert!(host.counter("segmentsReclaimed") > 13, "the log has wrapped");
}

#[test]
fn several_clients_at_once_never_see_half_a_write() {
    let files = Files::new("tear");
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    let host = files.open(Mode::Writeback);
    std::thread::scope(|scope| {
        for salt in 1..3_u8 {
            let mut client = host.connect();
            scope.spawn(move || {
                for round in 0..100_u8 {
                    let byte = (salt - 1) * 100 + round;
                    assert_eq!(client.write(4096 * 3 + 100, &vec![byte; 50_000]), 0);
                }
            });
        }
        let mut client = host.attach(0, true, false);
        scope.spawn(move || {
            for _ in 0..300 {
                let data = client.get(4096 * 3 + 100, 50_000).expect("data");
                assert!(data.iter().all(|byte| *byte == data[0]), "one write or another");
            }
        });
    });
}

#[test]
fn a_read_only_export_refuses_writes_and_serves_its_origin() {
    let files = Files::new("readonly");
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    let content = pattern(0, ORIGIN_BYTES as usize, 3);
    std::fs::write(files.origin(), &content).expect("an origin");
    let host = files.open(Mode::ReadOnly);
    let mut client = host.connect();
    assert_eq!(client.write(0, &[0; 512]), 1);
    for (offset, length) in [(0, 1 << 20), (5000, 777), (ORIGIN_BYTES - 5000, 5000)] {
        let data = client.get(offset, length).unwrap_or_else(|e| panic!("{e} at {offset}"));
        assert!(data == content[offset as usize..][..length as usize], "at {offset}");
    }
}

#[test]
fn what_cannot_be_opened_is_refused_in_one_clear_sentence() {
    let files = Files::new("refused");
    let refused = |spec: &OpenSpec| match ringfence_uring::open(spec, Box::new(|| ())) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    let spec = files.spec(vec![files.export(Mode::Writeback)]);
    let text = refused(&spec);
    assert!(text.contains("ringfence format"), "{text}");
    assert!(ringfence_uring::describe(&files.cache()).expect("readable").is_none());
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");

    let missing = OpenSpec { cache_path: files.directory.join("none"), ..spec.clone() };
    let text = refused(&missing);
    assert!(text.contains("none") && text.contains("No such file"), "{text}");
    let twice = files.spec(vec![
        files.export(Mode::Writeback),
        ExportSpec { name: "other".to_owned(), ..files.export(Mode::ReadOnly) },
    ]);
    let text = refused(&twice);
    assert!(text.contains("origin of export disk"), "{text}");
    let small = OpenSpec { reserve_bytes: 1 << 20, ..spec.clone() };
    let text = refused(&small);
    assert!(text.contains("too small"), "{text}");
    for cpu in [1023, u32::MAX] {
        let text = refused(&OpenSpec { cpu: Some(cpu), ..spec.clone() });
        assert!(text.contains("CPU of --cpu"), "{text}");
    }

    let host = files.open(Mode::Writeback);
    let text = refused(&spec);
    assert!(text.contains("in use"), "{text}");
    let busy = ringfence_uring::format(&files.cache(), SEGMENT_BYTES);
    assert!(matches!(busy, Err(RuntimeError::Busy { .. })), "{busy:?}");
    let described = ringfence_uring::describe(&files.cache()).expect("a look is allowed");
    assert_eq!(described.expect("a cache").exports[0].name, "disk");
    host.runtime.shutdown().expect("an orderly end");

    std::fs::File::options()
        .write(true)
        .open(files.origin())
        .and_then(|origin| origin.set_len(1 << 20))
        .expect("a shorter origin");
    let text = refused(&spec);
    assert!(text.contains("1048576") && text.contains(&ORIGIN_BYTES.to_string()), "{text}");
}

#[test]
fn guards_and_probe_say_what_to_do_where_they_are_down() {
    let files = Files::new("guards");
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    let host = files.open(Mode::Writeback);
    let opened = &host.runtime.opened().guards;
    let probed = ringfence_uring::probe(2 << 20, 4096, None);
    for guard in opened.iter().chain(&probed) {
        assert_eq!(guard.up, guard.advice.is_none(), "{guard:?}");
    }
    let mut names: Vec<_> = opened.iter().map(|guard| guard.measure).collect();
    names.sort_unstable();
    let all = [
        "device_exclusive",
        "direct_io",
        "huge_pages",
        "io_flusher",
        "memory_locked",
        "oom_score",
        "registered_buffers",
    ];
    assert_eq!(names, all);
    assert!(probed.iter().any(|guard| guard.measure == "io_uring" && guard.up), "{probed:?}");
    host.runtime.shutdown().expect("an orderly end");
    let of_cache = |path: &Path| {
        let probed = ringfence_uring::probe(2 << 20, 4096, Some(path));
        let asked = |guard: &Guard| ["direct_io", "device_exclusive"].contains(&guard.measure);
        probed.into_iter().filter(asked).collect::<Vec<_>>()
    };
    assert!(of_cache(&files.cache()).iter().all(|guard| guard.up));
    for guard in of_cache(Path::new("/nowhere/cache")) {
        let advice = guard.advice.expect("it is not there");
        assert!(advice.starts_with("/nowhere/cache cannot be opened"), "{advice}");
    }
}

#[test]
fn reads_do_not_wait_for_a_held_bell() {
    // A stopped JavaScript thread: the bell never returns, and attached clients do not notice.
    let files = Files::new("bell");
    ringfence_uring::format(&files.cache(), SEGMENT_BYTES).expect("formatted");
    let host = Arc::new(files.open(Mode::Writeback));
    let mut client = host.connect();
    host.deaf.store(true, Ordering::SeqCst);
    for _ in 0..2_000 {
        assert_eq!(client.write(0, &[1; 4096]), 0);
    }
    host.deaf.store(false, Ordering::SeqCst);
}
