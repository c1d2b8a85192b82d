//! A panic of the ring thread says what it was, also where an allocation would end the process.

use ringfence_uring::allocation::abort_on_ring_allocation;
use std::process::Command;
use support::{Host, READ, Setup};

mod support;

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

const MARK: &str = "RINGFENCE_TEST_PANICS";

#[test]
fn a_panic_is_not_taken_for_an_allocation() {
    if std::env::var_os(MARK).is_some() {
        return panic_on_the_ring();
    }
    // A ring that panicked leaves its socket behind.
    let folder = std::env::temp_dir().join(format!("ringfence-panics-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    // As the test harness runs it, with and without catching what is printed: both ways allocate.
    for arguments in [&["--nocapture"][..], &[]] {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["a_panic_is_not_taken_for_an_allocation", "--exact"])
            .args(arguments)
            .env(MARK, "1")
            .env("TMPDIR", &folder)
            .output()
            .expect("a second run");
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success(), "{said}");
        assert!(!said.contains("allocated memory"), "{said}");
        assert!(said.contains("out of range for slice"), "{said}");
    }
    std::fs::remove_dir_all(&folder).expect("the folder");
}

/// Reads behind what the disk in memory has: its slice panics.
fn panic_on_the_ring() {
    abort_on_ring_allocation(true);
    let host = Host::start(Setup {
        disk_bytes: vec![1 << 20],
        sizes: vec![Some(16 << 20)],
        ..Setup::default()
    });
    let mut client = host.connect();
    client.request(READ, 8 << 20, 4096, &[]);
    let _none_comes = client.simple_reply();
}
