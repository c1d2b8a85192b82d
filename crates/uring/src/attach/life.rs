//! Whether a device is still what it was when it was attached.
//!
//! A number says little: somebody may detach `/dev/nbd0` and attach another disk to it while a
//! server is waited for, and the driver would take a socket for that one. `/sys/block/nbdN/pid` is
//! made when a device is attached and goes when it is detached; whoever has it open learns that it
//! has gone, also when there is a new one of the same name.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;

/// One attachment of a device, from `NBD_CMD_CONNECT` until the last who has it open lets go.
#[derive(Debug)]
pub struct Life {
    pid: OwnedFd,
}

impl Life {
    /// That of a device which is attached now.
    ///
    /// # Errors
    /// When it is not, or the system has no memory for it.
    pub fn of(index: u32) -> io::Result<Self> {
        let path = CString::new(format!("/sys/block/nbd{index}/pid"))?;
        let pid = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let life = Self { pid };
        // The kernel makes room for the text when it is first asked: not when memory is scarce.
        life.look()?;
        Ok(life)
    }

    /// Whether it goes on.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        // Who cannot be asked has not said no.
        self.look() != Err(Errno::NODEV)
    }

    fn look(&self) -> Result<(), Errno> {
        let mut text = [0; 16];
        rustix::io::pread(&self.pid, &mut text, 0).map(|_| ())
    }
}

/// Whether `index` is attached to what `backend` names.
///
/// # Errors
/// When the kernel keeps no such name with it.
pub fn is_attached_to(index: u32, backend: &str) -> io::Result<bool> {
    let kept = std::fs::read(format!("/sys/block/nbd{index}/backend"))?;
    Ok(kept.trim_ascii_end() == backend.as_bytes())
}
