//! The io_uring of the ring thread, and what is registered with it.

use io_uring::IoUring;
use std::io;

/// Completions that may wait: all device I/Os at once, and two operations per connection. More
/// than that the kernel would have to allocate for.
const COMPLETIONS: u32 = 8192;

/// A ring for the calling thread alone.
///
/// # Errors
/// As `io_uring_setup`: see [`crate::guards::uring_advice`].
pub fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(COMPLETIONS.max(entries))
        .dontfork()
        .build(entries)
}
