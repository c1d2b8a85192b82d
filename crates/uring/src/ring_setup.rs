//! The io_uring of the ring thread, and what is registered with it.

use crate::memory::Mapping;
use io_uring::IoUring;
use std::io;

/// A ring for the calling thread alone. `completions` is how many may wait to be harvested: beyond
/// that the kernel would have to allocate.
///
/// # Errors
/// As `io_uring_setup`: see [`crate::guards::uring_advice`].
pub fn build(entries: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions.next_power_of_two())
        .dontfork()
        .build(entries)
}

/// Lets the kernel keep the reserve's pages at hand for I/O.
///
/// # Errors
/// Mostly for want of memory that may be locked.
///
/// # Safety
/// The mapping must outlive the ring.
pub unsafe fn register_buffers(ring: &IoUring, mapping: &Mapping) -> io::Result<()> {
    // SAFETY: the pieces lie in the mapping, which outlives the ring.
    unsafe { ring.submitter().register_buffers(&mapping.pieces()) }
}
