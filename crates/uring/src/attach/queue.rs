//! What the block layer is told of an attached device: files of its queue in sysfs.
//!
//! Linux 6.11 to 6.18 stop a queue while one of its settings is written, and let the requests that
//! are on their way end first. Those may be waiting for a connection that the supervisor has yet to
//! give, so where there may be any, another thread does the waiting.

use crate::signal::{Signal, spawn_quiet};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A server may answer a longer read in parts, and the kernel's driver has no way to learn that a
/// later part failed: it would ask for all of it again, for ever.
const REQUEST_KIB_MAX: u32 = ringfence_cache::limits::STEP_BYTES_MAX / 1024;
const REQUEST_KIB_MAX_TEXT: &[u8] = b"1024";
const _: () = assert!(REQUEST_KIB_MAX == 1024, "the text says the same");
const STACK_BYTES: usize = 64 << 10;

/// The settings of a device's queue.
#[derive(Debug)]
pub struct Queue {
    look: Arc<Look>,
    /// The longest request, in KiB.
    request: CString,
}

/// How often the driver looks at requests without an answer.
#[derive(Debug)]
struct Look {
    path: CString,
    milliseconds: String,
    asked: Signal,
    is_over: AtomicBool,
}

impl Queue {
    /// The queue of a device whose requests are looked at after `look_seconds`.
    ///
    /// # Errors
    /// When the system has no descriptor or no thread to give.
    pub fn of(index: u32, look_seconds: u32) -> io::Result<Self> {
        Self::at(&format!("/sys/block/nbd{index}/queue"), look_seconds)
    }

    fn at(folder: &str, look_seconds: u32) -> io::Result<Self> {
        let path = |name| CString::new(format!("{folder}/{name}")).expect("a path without zeroes");
        let look = Arc::new(Look {
            path: path("io_timeout"),
            milliseconds: format!("{look_seconds}000"),
            asked: Signal::new()?,
            is_over: AtomicBool::new(false),
        });
        let body = {
            let look = look.clone();
            move || look.write_when_asked()
        };
        // Nobody waits for its end: it may be waiting for requests that nobody will answer.
        let _detached = spawn_quiet("ringfence-queue", STACK_BYTES, body)?;
        Ok(Self { look, request: path("max_sectors_kb") })
    }

    /// Says how often requests are looked at. May wait for those that are on their way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_look(&self) -> io::Result<()> {
        self.look.write()
    }

    /// The same soon, without waiting. What is refused leaves the driver's own 30 s.
    pub fn set_look_soon(&self) {
        self.look.asked.ring();
    }

    /// Cuts requests to the length that a server answers whole. May wait for those on their way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn shorten_requests(&self) -> io::Result<()> {
        let mut text = [0; 16];
        let file = open_setting(&self.request, OFlags::RDONLY)?;
        let length = rustix::io::read(&file, &mut text)?;
        let most = str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok());
        // What is shorter was somebody's wish, or an older kernel's.
        if most.is_none_or(|kib: u32| kib > REQUEST_KIB_MAX) {
            write_setting(&self.request, REQUEST_KIB_MAX_TEXT)?;
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.look.is_over.store(true, Ordering::Release);
        self.look.asked.ring();
    }
}

impl Look {
    fn write(&self) -> io::Result<()> {
        write_setting(&self.path, self.milliseconds.as_bytes())
    }

    fn write_when_asked(&self) {
        loop {
            self.asked.wait();
            if self.is_over.load(Ordering::Acquire) {
                return;
            }
            let _the_driver_looks_less_often = self.write();
        }
    }
}

fn open_setting(path: &CString, access: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path.as_c_str(), access | OFlags::CLOEXEC, Mode::empty())?)
}

fn write_setting(path: &CString, text: &[u8]) -> io::Result<()> {
    rustix::io::write(&open_setting(path, OFlags::WRONLY)?, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Queue;
    use rustix::fs::{CWD, FileType, Mode};
    use std::io::Read;
    use std::path::{Path, PathBuf};

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ringfence-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn queue(folder: &Path) -> Queue {
        Queue::at(folder.to_str().expect("UTF-8"), 10).expect("a thread")
    }

    /// A reply of several steps cannot say that one of the later ones failed.
    #[test]
    fn the_kernel_sends_no_request_longer_than_a_step() {
        let folder = folder("queue");
        let queue = queue(&folder);
        let request = folder.join("max_sectors_kb");
        for (before, after) in [("1280\n", "1024"), ("128\n", "128\n"), ("1024\n", "1024\n")] {
            std::fs::write(&request, before).expect("a file");
            queue.shorten_requests().expect("it is written");
            let now = std::fs::read_to_string(&request).expect("text");
            assert_eq!(now.trim(), after.trim(), "{before}");
        }
        std::fs::remove_dir_all(&folder).expect("ours");
    }

    /// Like a queue that is stopped, a pipe without a reader lets whoever opens it wait.
    #[test]
    fn whoever_mends_does_not_wait_for_requests() {
        let folder = folder("stopped-queue");
        let look = folder.join("io_timeout");
        rustix::fs::mknodat(CWD, &look, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
        let mut said = String::new();
        {
            let queue = queue(&folder);
            queue.set_look_soon();
            let mut reader = std::fs::File::open(&look).expect("its reader");
            reader.read_to_string(&mut said).expect("text");
            queue.set_look_soon();
        }
        assert_eq!(said, "10000");
        std::fs::remove_dir_all(&folder).expect("ours");
    }
}
