//! Waking a thread, and threads that are left alone by signals.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread::JoinHandle;

/// An eventfd: one thread rings, another waits in a read (its own or the ring's).
#[derive(Debug)]
pub struct Signal {
    fd: OwnedFd,
}

impl Signal {
    /// A silent one.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are involved; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to nobody else.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Rings. Ringing twice before anybody listens is ringing once.
    pub fn ring(&self) {
        let one = 1_u64;
        // SAFETY: eight readable bytes. The write can only fail by blocking after 2^64 - 2 rings.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Waits until somebody rang.
    pub fn wait(&self) {
        let mut count = 0_u64;
        // SAFETY: eight writable bytes. An interrupted read is a ring too many, which is harmless.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), 8) };
    }

    /// The descriptor.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Spawns a thread with all signals blocked: they belong to Node's main thread.
///
/// # Errors
/// When the system has no thread to give.
pub fn spawn_quiet<T: Send + 'static>(
    name: &str,
    stack_bytes: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    // SAFETY: both sets are valid places; a zeroed set is what `sigfillset` initialises. The
    // mask is inherited by the new thread and then put back.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let spawned =
            std::thread::Builder::new().name(name.to_owned()).stack_size(stack_bytes).spawn(body);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        spawned
    }
}
