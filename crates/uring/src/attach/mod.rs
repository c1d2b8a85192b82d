//! Attaching an export to a device of the kernel's nbd driver, and keeping it attached.
//!
//! This is the client's end of ringfence and has nothing to do with the ring: `ringfence attach`
//! runs it in a process of its own, on whichever machine uses the disk. It stands here because the
//! addon, the guards and the quiet threads do.
//!
//! ```text
//!  JavaScript negotiates ──Link──▶ attach ──NBD_CMD_CONNECT──▶ /dev/nbdN
//!                                     │
//!                    supervisor thread: hang-up ─▶ the same handshake ─▶ NBD_CMD_RECONFIGURE
//! ```

mod life;
mod link;
mod netlink;
mod queue;
mod sockets;
mod supervisor;

pub use link::Link;
pub use netlink::DeviceSpec;
pub use supervisor::{AttachEvent, AttachSpec, Attachment, attach};

use crate::error::RuntimeError;
use netlink::Netlink;
use std::io;

/// Detaches a device, whoever looks after it.
///
/// # Errors
/// A sentence that says why not.
pub fn detach(index: u32) -> Result<(), RuntimeError> {
    let mut netlink = Netlink::open().map_err(|error| refusal(Some(index), &error))?;
    if !netlink.is_attached(index).map_err(|error| refusal(Some(index), &error))? {
        return Err(RuntimeError::Attach { what: format!("/dev/nbd{index} is not attached") });
    }
    netlink.disconnect(index).map_err(|error| refusal(Some(index), &error))
}

/// What the driver's answer means, and what to do.
fn refusal(index: Option<u32>, error: &io::Error) -> RuntimeError {
    let device = index.map_or_else(|| "a free device".to_owned(), |n| format!("/dev/nbd{n}"));
    let what = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            "the kernel's nbd driver is not loaded: run \"modprobe nbd\" first".to_owned()
        }
        Some(libc::EPERM | libc::EACCES) => {
            format!("{device} is not ours to change: run as root or with CAP_SYS_ADMIN")
        }
        Some(libc::EBUSY) => {
            format!("{device} is attached to something else: detach it first, or name another")
        }
        Some(libc::EINVAL) => format!(
            "the nbd driver refuses {device}: it does not exist, or is attached to something \
             else; the kernel's log says more"
        ),
        _ => format!("the nbd driver refuses {device}: {error}"),
    };
    RuntimeError::Attach { what }
}
