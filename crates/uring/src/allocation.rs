//! Proof that the ring thread does not allocate: a global allocator that counts what it does.
//!
//! The addon (and the tests that want to know) install [`CountingAllocator`]; where it is not
//! installed the count stays 0 and says nothing.

use crate::memory::HUGE_PAGE_BYTES;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

thread_local! {
    /// Whether this thread promised not to allocate. No destructor, so that reading it is free of
    /// allocation itself.
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    /// Whether what this thread allocates belongs to the I/O path and must never be paged.
    static LOCKING: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ABORT: AtomicBool = AtomicBool::new(false);
static LOCK_FAILED: AtomicBool = AtomicBool::new(false);

/// From here on memory is locked by itself: smaller pieces share pages that are in use already.
const LOCKED_BYTES_MIN: usize = PAGE_BYTES;
const PAGE_BYTES: usize = 4096;

/// The system's allocator, watched.
#[derive(Debug)]
pub struct CountingAllocator;

// SAFETY: every call goes to the system's allocator unchanged; counting and locking touch neither
// the layout nor what the memory holds.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the same as ours.
        let pointer = unsafe { System.alloc(layout) };
        lock(pointer, layout.size());
        pointer
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        let pointer = unsafe { System.alloc_zeroed(layout) };
        lock(pointer, layout.size());
        pointer
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        let pointer = unsafe { System.realloc(pointer, layout, size) };
        lock(pointer, size);
        pointer
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(pointer, layout) };
    }
}

fn count() {
    // A thread whose locals are gone is ending; it is not the ring. A panic allocates for its
    // message, which must come out: the process ends of it anyway.
    if WATCHED.try_with(Cell::get).unwrap_or(false) && !std::thread::panicking() {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        if ABORT.load(Ordering::Relaxed) {
            WATCHED.with(|watched| watched.set(false));
            panic!("the ring thread allocated memory");
        }
    }
}

fn lock(pointer: *mut u8, size: usize) {
    if size < LOCKED_BYTES_MIN || pointer.is_null() || !LOCKING.try_with(Cell::get).unwrap_or(false)
    {
        return;
    }
    let start = pointer as usize / PAGE_BYTES * PAGE_BYTES;
    let length = (pointer as usize + size).next_multiple_of(PAGE_BYTES) - start;
    if length >= HUGE_PAGE_BYTES {
        // SAFETY: as for locking. Advice that is not taken changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
    }
    // SAFETY: the pages hold memory that was just allocated; locking changes no content.
    let result = unsafe { libc::mlock(start as *const libc::c_void, length) };
    if result != 0 {
        LOCK_FAILED.store(true, Ordering::Relaxed);
    }
}

/// From now on each allocation by the calling thread is counted.
pub fn watch_this_thread() {
    WATCHED.with(|watched| watched.set(true));
}

/// The calling thread ends its service: what it frees and builds while it leaves is not counted.
pub fn unwatch_this_thread() {
    WATCHED.with(|watched| watched.set(false));
}

/// Runs `build`; memory that it allocates by the page is touched and locked, so that the ring
/// thread never waits for it. What is as large as a huge page lies on huge pages where the kernel
/// has some: tables are looked up all over. Returns whether all of it could be. Does nothing where
/// [`CountingAllocator`] is not installed.
pub fn locking<T>(build: impl FnOnce() -> T) -> (T, bool) {
    LOCK_FAILED.store(false, Ordering::Relaxed);
    LOCKING.with(|locking| locking.set(true));
    let built = build();
    LOCKING.with(|locking| locking.set(false));
    (built, !LOCK_FAILED.load(Ordering::Relaxed))
}

/// Allocations by the ring thread since it started to serve.
#[must_use]
pub fn ring_allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Whether an allocation by the ring thread ends the process: for tests.
pub fn abort_on_ring_allocation(abort: bool) {
    ABORT.store(abort, Ordering::Relaxed);
}
