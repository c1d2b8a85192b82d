//! What protects the I/O path: applied where allowed, verified, and in words where it is not.

use crate::memory::{self, Mapping};
use crate::options::Guard;
use crate::ring_setup;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

const PR_SET_IO_FLUSHER: libc::c_int = 57;
const PR_GET_IO_FLUSHER: libc::c_int = 58;

/// A guard from what was found.
#[must_use]
pub fn guard(measure: &'static str, advice: Option<String>) -> Guard {
    Guard { measure, up: advice.is_none(), advice }
}

/// Memory reclaim never waits for I/O on behalf of the calling thread and of those it starts, so
/// that it cannot wait for itself. Applied, then read back.
#[must_use]
pub fn io_flusher() -> Guard {
    // SAFETY: plain numbers; the call changes two flags of this thread or fails.
    let set = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    let error = io::Error::last_os_error();
    // SAFETY: as above; it only reads.
    let up = set == 0 && unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) } == 1;
    guard(
        "io_flusher",
        (!up).then(|| {
            format!(
                "the I/O threads may wait for their own writes when memory is short ({error}): \
                 run as root or with CAP_SYS_RESOURCE"
            )
        }),
    )
}

/// The kernel's killer passes us by. Applied, then read back.
#[must_use]
pub fn oom_score() -> Guard {
    const PATH: &str = "/proc/self/oom_score_adj";
    let written = std::fs::write(PATH, "-1000");
    let up = std::fs::read_to_string(PATH).is_ok_and(|score| score.trim() == "-1000");
    guard(
        "oom_score",
        (!up).then(|| {
            let reason = written.err().map_or_else(|| "it did not stay".into(), |e| e.to_string());
            format!(
                "the process may be killed when memory is short ({reason}): run as root or with \
                 CAP_SYS_RESOURCE, or set OOMScoreAdjust=-1000 in its unit"
            )
        }),
    )
}

/// The reserve and the index stay in memory.
#[must_use]
pub fn memory_locked(result: Result<(), io::Error>, index_locked: bool) -> Guard {
    let advice = match result {
        Err(error) => Some(format!(
            "the reserve is not locked in memory ({error}): set LimitMEMLOCK=infinity in the \
             unit, raise `ulimit -l`, or run with CAP_IPC_LOCK"
        )),
        Ok(()) if !index_locked => Some(
            "the reserve is locked in memory but the index is not: set LimitMEMLOCK=infinity in \
             the unit, raise `ulimit -l`, or run with CAP_IPC_LOCK"
                .to_owned(),
        ),
        Ok(()) => None,
    };
    guard("memory_locked", advice)
}

/// What the ring thread has of its own, stack, code and tables, belongs to what is locked.
pub fn note_ring_unlocked(guards: &mut [Guard]) {
    let locked = guards.iter_mut().find(|guard| guard.measure == "memory_locked" && guard.up);
    if let Some(found) = locked {
        let advice = "reserve and index are locked in memory but the ring thread's stack, code or \
                      tables are not: set LimitMEMLOCK=infinity in the unit, raise `ulimit -l`, or \
                      run with CAP_IPC_LOCK";
        *found = guard(found.measure, Some(advice.to_owned()));
    }
}

/// The kernel knows the reserve's pages, and need not look them up for each I/O.
#[must_use]
pub fn registered_buffers(refused: Option<&io::Error>) -> Guard {
    guard(
        "registered_buffers",
        refused.map(|error| {
            format!(
                "the kernel does not keep the reserve's pages at hand and looks them up for each \
                 I/O ({error}): set LimitMEMLOCK=infinity in the unit, or raise `ulimit -l`"
            )
        }),
    )
}

/// Nothing of the I/O path goes through the page cache.
#[must_use]
pub fn direct_io(indirect: &[String]) -> Guard {
    guard(
        "direct_io",
        (!indirect.is_empty()).then(|| {
            format!(
                "{} cannot be opened with O_DIRECT and goes through the page cache: use a block \
                 device, or a file on ext4 or xfs",
                indirect.join(", ")
            )
        }),
    )
}

/// Why there is no io_uring, and what to do.
#[must_use]
pub fn uring_advice(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring: Linux 6.1 or later is needed".to_owned(),
        Some(libc::EPERM | libc::EACCES) => "io_uring is not permitted: set \
             kernel.io_uring_disabled=0, or allow io_uring_setup in the container's seccomp profile"
            .to_owned(),
        Some(libc::EINVAL) => {
            "the kernel's io_uring is too old: Linux 6.1 or later is needed".to_owned()
        }
        Some(libc::ENOMEM) => "no memory could be locked for io_uring: set LimitMEMLOCK=infinity \
             in the unit, or raise `ulimit -l`"
            .to_owned(),
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

/// What would hold here for a daemon with so many bytes of reserve and of index, and with this
/// cache device, if one is named. Nothing of the user's is opened for writing but a cache file.
#[must_use]
pub fn probe(reserve_bytes: u64, index_bytes: u64, cache: Option<&Path>) -> Vec<Guard> {
    let mapping = Mapping::new(reserve_bytes);
    let huge_pages = match &mapping {
        Ok(mapping) => mapping.huge_pages_guard(),
        Err(error) => guard("huge_pages", Some(format!("{error}"))),
    };
    // On a thread of its own, as the ring does it: the caller's flags stay as they are.
    let flusher = std::thread::spawn(io_flusher).join().unwrap_or_else(|_| {
        guard("io_flusher", Some("the thread that asked for it failed".to_owned()))
    });
    let built = ring_setup::build(8, 16);
    let uring = built.as_ref().err().map(uring_advice);
    let registered = match (&built, &mapping) {
        // SAFETY: the ring is dropped before the mapping, below.
        (Ok(ring), Ok(mapping)) => unsafe { ring_setup::register_buffers(ring, mapping) },
        // Both say elsewhere what is wrong.
        _ => Ok(()),
    };
    drop(built);
    drop(mapping);
    vec![
        guard("io_uring", uring),
        memory_locked(memory::try_lock(reserve_bytes.saturating_add(index_bytes)), true),
        flusher,
        oom_score_probe(),
        cache.map_or_else(direct_io_probe, direct_io_of),
        huge_pages,
        registered_buffers(registered.as_ref().err()),
        cache.map_or_else(device_exclusive_probe, device_exclusive_of),
    ]
}

/// Whether the score could be set, leaving it as it is.
fn oom_score_probe() -> Guard {
    let before = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let guard = oom_score();
    // Raising it back needs no privilege.
    if std::fs::write("/proc/self/oom_score_adj", before.trim()).is_err() {
        return guard;
    }
    guard
}

/// Whether files can be opened past the page cache here.
fn direct_io_probe() -> Guard {
    let path = std::env::temp_dir().join(format!("ringfence-probe-{}", std::process::id()));
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR);
    let _gone_already = std::fs::remove_file(&path);
    let name = || format!("a file in {}", std::env::temp_dir().display());
    direct_io(&opened.err().map(|_| name()).into_iter().collect::<Vec<_>>())
}

/// Whether this device or file can be read past the page cache.
fn direct_io_of(cache: &Path) -> Guard {
    let name = cache.display();
    // Without waiting, should it be a pipe.
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(cache, flags, Mode::empty()) {
        Ok(_) => guard("direct_io", None),
        Err(Errno::INVAL) => direct_io(&[name.to_string()]),
        Err(error) => guard("direct_io", Some(format!("{name} cannot be opened: {error}"))),
    }
}

/// Whether block devices can be opened at all, so that they can be held exclusively.
fn device_exclusive_probe() -> Guard {
    // SAFETY: no arguments; it always succeeds.
    let root = unsafe { libc::geteuid() } == 0;
    guard("device_exclusive", (!root).then(|| "block devices".to_owned() + NOT_PERMITTED))
}

/// Behind the name of what may not be opened.
const NOT_PERMITTED: &str = " may not open for this user: run as root, or add the user to the \
                             group that owns the device";

/// Whether this device can be held exclusively. A device is opened for reading only: closing it
/// after writing would make others look at it anew.
fn device_exclusive_of(cache: &Path) -> Guard {
    let is_device = std::fs::metadata(cache).is_ok_and(|meta| meta.file_type().is_block_device());
    let access = if is_device { OFlags::RDONLY | OFlags::EXCL } else { OFlags::RDWR };
    let opened =
        rustix::fs::open(cache, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let name = cache.display();
    let advice = match opened {
        Ok(_) => None,
        Err(Errno::BUSY) => Some(format!("{name} is held by another program: stop that first")),
        Err(Errno::ACCESS | Errno::PERM) => Some(format!("{name}{NOT_PERMITTED}")),
        Err(error) => Some(format!("{name} cannot be opened: {error}")),
    };
    guard("device_exclusive", advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_ring_uses_counts_as_memory_to_be_locked() {
        let mut guards = [guard("oom_score", None), memory_locked(Ok(()), true)];
        note_ring_unlocked(&mut guards);
        let said: Vec<_> = guards.iter().map(|one| one.advice.as_deref()).collect();
        assert_eq!(said[0], None);
        assert!(said[1].is_some_and(|advice| advice.contains("stack")), "{said:?}");
        let refused = Err(io::Error::from_raw_os_error(libc::ENOMEM));
        let mut guards = [memory_locked(refused, false)];
        let before = guards[0].advice.clone();
        note_ring_unlocked(&mut guards);
        assert_eq!(guards[0].advice, before, "the reserve is what matters more");
    }
}
