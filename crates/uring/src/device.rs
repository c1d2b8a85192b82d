//! Opening block devices and files: without the page cache, and nobody else beside us.

use crate::error::RuntimeError;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// udev takes a device's lock for an instant whenever somebody closed it after writing; and the
/// kernel may let go of what a ring had open an instant after that ring is gone.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// What the device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the log.
    Cache,
    /// It holds an export's data.
    Origin,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Cache => "cache device",
            Self::Origin => "origin",
        }
    }
}

/// What is going to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write; nobody else may write.
    Exclusive,
    /// Read; nobody may take it exclusively meanwhile.
    Shared,
    /// A look at what is there, whoever has it.
    Look,
}

/// Block device or file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A block device.
    Block,
    /// A regular file.
    File,
}

/// Where bytes really are: two devices with a key in common are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A file.
    Inode {
        /// Its filesystem's device number.
        device: u64,
        /// Its inode.
        inode: u64,
    },
    /// A block device.
    Device {
        /// Its number.
        number: u64,
    },
}

/// An open block device or file.
#[derive(Debug)]
pub struct Device {
    /// The descriptor: `O_DIRECT` if `direct`.
    pub fd: OwnedFd,
    /// As named.
    pub path: PathBuf,
    /// Block device or file.
    pub kind: Kind,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether the page cache is out of the way.
    pub direct: bool,
    /// Itself, and the file behind a loop device.
    pub keys: [Option<Key>; 2],
}

impl Device {
    /// Opens a path.
    ///
    /// # Errors
    /// When it is not there, of another kind, in use, or has blocks above 4 KiB; and where it is a
    /// block device without any bytes, but for a look.
    pub fn open(path: &Path, role: Role, access: Access) -> Result<Self, RuntimeError> {
        let fail = |error: Errno| match error {
            Errno::BUSY => RuntimeError::Busy { role: role.name(), path: path.to_owned() },
            _ => RuntimeError::Path {
                role: role.name(),
                path: path.to_owned(),
                source: error.into(),
            },
        };
        let meta = rustix::fs::stat(path).map_err(fail)?;
        let kind = match FileType::from_raw_mode(meta.st_mode) {
            FileType::BlockDevice => Kind::Block,
            FileType::RegularFile => Kind::File,
            _ => return Err(RuntimeError::Kind { role: role.name(), path: path.to_owned() }),
        };
        let mut flags = OFlags::CLOEXEC;
        flags |= if access == Access::Exclusive { OFlags::RDWR } else { OFlags::RDONLY };
        if access == Access::Exclusive && kind == Kind::Block {
            flags |= OFlags::EXCL;
        }
        let (fd, direct) = match open(path, flags | OFlags::DIRECT, Mode::empty()) {
            Ok(fd) => (fd, true),
            Err(Errno::INVAL) => (open(path, flags, Mode::empty()).map_err(fail)?, false),
            Err(error) => return Err(fail(error)),
        };
        let meta = fstat(&fd).map_err(fail)?;
        let mut device = Self {
            path: path.to_owned(),
            kind,
            size_bytes: u64::try_from(meta.st_size).unwrap_or(0),
            direct,
            keys: [Some(Key::Inode { device: meta.st_dev, inode: meta.st_ino }), None],
            fd,
        };
        if kind == Kind::Block {
            device.keys = [Some(Key::Device { number: meta.st_rdev }), device.loop_backing()];
            device.measure(role)?;
            // It may still come: not to be taken for one that is not formatted, or of another size.
            if device.size_bytes == 0 && access != Access::Look {
                return Err(RuntimeError::Empty { role: role.name(), path: path.to_owned() });
            }
        }
        device.lock(role, access)?;
        Ok(device)
    }

    /// Whether some bytes of the two are the same.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.keys.iter().flatten().any(|key| other.keys.iter().flatten().any(|more| key == more))
    }

    /// Whether this is a loop device: its file allocates as it is written.
    #[must_use]
    pub fn is_loop(&self) -> bool {
        self.keys[1].is_some()
    }

    /// A second descriptor without `O_DIRECT`, for the bytes that do not fill a block.
    ///
    /// # Errors
    /// When the path has gone meanwhile.
    pub fn buffered(&self, writable: bool) -> Result<OwnedFd, RuntimeError> {
        let flags = if writable { OFlags::RDWR } else { OFlags::RDONLY };
        // Through /proc: the very same file, even if the path names another one by now.
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        open(path, flags | OFlags::CLOEXEC, Mode::empty()).map_err(|error| RuntimeError::Path {
            role: Role::Origin.name(),
            path: self.path.clone(),
            source: error.into(),
        })
    }

    fn measure(&mut self, role: Role) -> Result<(), RuntimeError> {
        let fail = || RuntimeError::Path {
            role: role.name(),
            path: self.path.clone(),
            source: io::Error::last_os_error(),
        };
        let fd = self.fd.as_raw_fd();
        let mut size_bytes = 0_u64;
        // SAFETY: `BLKGETSIZE64` stores a `u64`, and there is room for one.
        if unsafe { libc::ioctl(fd, BLKGETSIZE64, &raw mut size_bytes) } != 0 {
            return Err(fail());
        }
        let mut block_bytes: libc::c_int = 0;
        // SAFETY: `BLKSSZGET` stores an `int`, and there is room for one.
        if unsafe { libc::ioctl(fd, libc::BLKSSZGET, &raw mut block_bytes) } != 0 {
            return Err(fail());
        }
        let block_bytes = u32::try_from(block_bytes).unwrap_or(u32::MAX);
        if block_bytes > 4096 {
            let (role, path) = (role.name(), self.path.clone());
            return Err(RuntimeError::BlockSize { role, path, block_bytes });
        }
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn lock(&self, role: Role, access: Access) -> Result<(), RuntimeError> {
        let operation = match access {
            Access::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Access::Shared => FlockOperation::NonBlockingLockShared,
            Access::Look => return Ok(()),
        };
        for attempt in 1..=LOCK_ATTEMPTS {
            match rustix::fs::flock(self.fd.as_fd(), operation) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => {
                    let (role, path) = (role.name(), self.path.clone());
                    return Err(RuntimeError::Path { role, path, source: error.into() });
                }
            }
        }
        Err(RuntimeError::Busy { role: role.name(), path: self.path.clone() })
    }

    /// The file behind a loop device.
    fn loop_backing(&self) -> Option<Key> {
        const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
        /// `struct loop_info64` of `linux/loop.h`: the first two fields, and room for the rest.
        #[repr(C)]
        struct LoopInfo {
            device: u64,
            inode: u64,
            rest: [u64; 27],
        }
        const { assert!(size_of::<LoopInfo>() == 232) };
        let mut info = LoopInfo { device: 0, inode: 0, rest: [0; 27] };
        // SAFETY: the call stores 232 bytes, and there is room for them; other devices refuse it.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
        (result == 0).then_some(Key::Inode { device: info.device, inode: info.inode })
    }
}

/// `_IOR(0x12, 114, size_t)`, which libc does not have.
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

#[cfg(test)]
mod tests {
    use super::{Access, Device, Role};
    use crate::error::RuntimeError;

    #[test]
    fn a_file_is_given_to_one_alone_and_looked_at_by_any() {
        let path = std::env::temp_dir().join(format!("ringfence-lock-{}", std::process::id()));
        std::fs::write(&path, [0; 8192]).expect("a file");
        let first = Device::open(&path, Role::Cache, Access::Exclusive).expect("the first");
        let second = Device::open(&path, Role::Cache, Access::Exclusive);
        assert!(matches!(second, Err(RuntimeError::Busy { .. })), "{second:?}");
        let look = Device::open(&path, Role::Cache, Access::Look).expect("a look");
        assert!(first.same_as(&look));
        assert_eq!(first.size_bytes, 8192);
        drop(first);
        Device::open(&path, Role::Origin, Access::Exclusive).expect("it is free again");
        std::fs::remove_file(&path).expect("ours");
    }

    #[test]
    fn a_directory_is_refused() {
        let opened = Device::open(&std::env::temp_dir(), Role::Origin, Access::Shared);
        assert!(matches!(opened, Err(RuntimeError::Kind { .. })), "{opened:?}");
    }
}
