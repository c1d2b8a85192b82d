//! The ring thread's io_uring: what is registered, what is pushed, what is harvested.

use crate::clock::monotonic_ns;
use crate::counters::{RingCounter, RingCounters};
use crate::memory::Mapping;
use crate::options::Guard;
use crate::{guards, ring_setup};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};
use ringfence_cache::Buffer;
use ringfence_cache::limits::DEVICE_IOS_MAX;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

/// Submissions between two system calls.
const ENTRIES: u32 = 1024;
/// Kernel threads for what cannot be done without blocking, beyond those that origin requests may
/// keep busy: the cache device's flushes find one free.
const WORKERS_SPARE: u32 = 16;

/// Places in the table of registered files. Only what stays to the end is there: up to Linux 6.12
/// the kernel lets go of a file that was taken out no sooner than every request that was begun
/// before, on whichever place, has ended, and some never do. Sockets therefore go by their
/// descriptors.
pub mod file {
    use ringfence_cache::limits::EXPORTS_MAX;

    /// The cache device.
    pub const CACHE: u32 = 0;
    /// The eventfd of commands.
    pub const WAKE: u32 = 1;
    /// The first origin.
    pub const ORIGINS: u32 = 2;
    /// The first origin's buffered descriptor.
    pub const TAILS: u32 = ORIGINS + EXPORTS_MAX as u32;
    /// All places.
    pub const COUNT: u32 = TAILS + EXPORTS_MAX as u32;
}

/// Whose completion it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// Commands wait.
    Wake,
    /// A listener has a connection.
    Accept,
    /// A connection received.
    Receive,
    /// A connection sent.
    Send,
    /// A device or origin I/O.
    Io,
}

const TAGS: [Tag; 5] = [Tag::Wake, Tag::Accept, Tag::Receive, Tag::Send, Tag::Io];

/// A completion, taken from the queue.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Whose.
    pub tag: Tag,
    /// Which of them.
    pub index: u32,
    /// Bytes or a negative errno.
    pub result: i32,
}

/// The io_uring of the calling thread.
pub struct Kernel {
    uring: IoUring,
    mapping: Arc<Mapping>,
    fixed_buffers: bool,
    registered: io::Result<()>,
    counters: Arc<RingCounters>,
}

impl Kernel {
    /// Sets it up for `connections` sockets and the origins of so many `exports`, and registers the
    /// reserve where that is allowed.
    ///
    /// # Errors
    /// As `io_uring_setup`.
    pub fn new(
        mapping: Arc<Mapping>,
        connections: u32,
        exports: usize,
        counters: Arc<RingCounters>,
    ) -> io::Result<Self> {
        let workers = super::ios::origin_ios_max(exports) as u32 + WORKERS_SPARE;
        // Every device I/O, a receive and a send per connection, and what there is one of.
        let completions = DEVICE_IOS_MAX as u32 + 2 * connections + ENTRIES;
        let uring = ring_setup::build(ENTRIES, completions)?;
        let submitter = uring.submitter();
        submitter.register_files_sparse(file::COUNT)?;
        // Each of the kernel's two kinds of workers must do for all origins: reads and writes of
        // files go to the "unbounded" ones (the kernel has not looked the place in the table up yet
        // and does not see a regular file), flushes, zeroes and what block devices make wait to
        // the "bounded" ones.
        submitter.register_iowq_max_workers(&mut [workers, workers])?;
        // SAFETY: the mapping outlives the ring: `self` keeps it.
        let registered = unsafe { ring_setup::register_buffers(&uring, &mapping) };
        Ok(Self { uring, mapping, fixed_buffers: registered.is_ok(), registered, counters })
    }

    /// Whether the kernel keeps the reserve's pages at hand.
    #[must_use]
    pub fn buffers_guard(&self) -> Guard {
        guards::registered_buffers(self.registered.as_ref().err())
    }

    /// Empties the table of files: what it holds would stay open, and locked, until the kernel gets
    /// around to taking the ring apart. Older kernels (6.1) take the whole table back only when no
    /// request uses any of it; if one is `stuck` there, the devices are taken out one by one.
    pub fn close_files(&self, stuck: bool) {
        if stuck {
            for place in (file::CACHE..file::COUNT).filter(|place| *place != file::WAKE) {
                let _empty_already = self.set_file(place, -1);
            }
        } else {
            let _empty_already = self.uring.submitter().unregister_files();
        }
    }

    /// Puts a descriptor into the table of files; -1 empties the place.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn set_file(&self, place: u32, fd: RawFd) -> io::Result<()> {
        self.uring.submitter().register_files_update(place, &[fd]).map(|_| ())
    }

    /// The address of a buffer.
    #[must_use]
    pub fn address(&self, buffer: Buffer) -> *mut u8 {
        // SAFETY: the engine and the windows hand out buffers inside the reserve only, and the
        // reserve is the mapping's start.
        unsafe { self.mapping.base().as_ptr().add(buffer.offset as usize) }
    }

    /// Pushes an entry; it is submitted with the next system call at the latest.
    pub fn push(&mut self, tag: Tag, index: u32, entry: squeue::Entry) {
        let entry = entry.user_data((tag as u64) << 32 | u64::from(index));
        loop {
            // SAFETY: what an entry points to lives in the reserve, in boxes made at start, or in
            // a mapping of its own, and stays untouched until its completion is harvested.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Reads a buffer of the reserve from a file.
    pub fn push_read(
        &mut self,
        index: u32,
        place: u32,
        offset: u64,
        buffer: Buffer,
        flags: squeue::Flags,
    ) {
        let (address, length) = (self.address(buffer), buffer.length);
        let entry = match self.piece_of(buffer) {
            Some(piece) => opcode::ReadFixed::new(types::Fixed(place), address, length, piece)
                .offset(offset)
                .build(),
            None => opcode::Read::new(types::Fixed(place), address, length).offset(offset).build(),
        };
        self.push(Tag::Io, index, entry.flags(flags));
    }

    /// Writes a buffer of the reserve to a file.
    pub fn push_write(
        &mut self,
        index: u32,
        place: u32,
        offset: u64,
        buffer: Buffer,
        flags: squeue::Flags,
    ) {
        let (address, length) = (self.address(buffer), buffer.length);
        let entry = match self.piece_of(buffer) {
            Some(piece) => opcode::WriteFixed::new(types::Fixed(place), address, length, piece)
                .offset(offset)
                .build(),
            None => opcode::Write::new(types::Fixed(place), address, length).offset(offset).build(),
        };
        self.push(Tag::Io, index, entry.flags(flags));
    }

    fn piece_of(&self, buffer: Buffer) -> Option<u16> {
        if self.fixed_buffers { Mapping::piece_of(buffer.offset, buffer.length) } else { None }
    }

    /// Makes a file's writes durable.
    pub fn push_flush(&mut self, index: u32, place: u32) {
        let entry =
            opcode::Fsync::new(types::Fixed(place)).flags(types::FsyncFlags::DATASYNC).build();
        self.push(Tag::Io, index, entry);
    }

    /// Receives into a buffer of the reserve.
    pub fn push_receive(&mut self, index: u32, socket: RawFd, buffer: Buffer) {
        let entry = opcode::Recv::new(types::Fd(socket), self.address(buffer), buffer.length);
        self.push(Tag::Receive, index, entry.build());
    }

    /// Sends a message that stays as it is until its completion.
    pub fn push_message(&mut self, index: u32, socket: RawFd, message: *const libc::msghdr) {
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned();
        let entry = opcode::SendMsg::new(types::Fd(socket), message).flags(flags);
        self.push(Tag::Send, index, entry.build());
    }

    /// Sends handshake bytes, which stay as they are until the completion.
    pub fn push_send(&mut self, index: u32, socket: RawFd, bytes: *const u8, length: u32) {
        let entry = opcode::Send::new(types::Fd(socket), bytes, length).flags(libc::MSG_NOSIGNAL);
        self.push(Tag::Send, index, entry.build());
    }

    /// Accepts one connection.
    pub fn push_accept(&mut self, index: u32, socket: RawFd) {
        let nobody = std::ptr::null_mut();
        let entry = opcode::Accept::new(types::Fd(socket), nobody, std::ptr::null_mut())
            .flags(libc::SOCK_CLOEXEC)
            .build();
        self.push(Tag::Accept, index, entry);
    }

    /// Submits what was pushed and collects what has ended, without waiting. No system call when
    /// there is neither.
    pub fn submit(&mut self) {
        let queue = self.uring.submission();
        if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
            return;
        }
        drop(queue);
        self.counters.add(RingCounter::SystemCalls, 1);
        Self::check(self.uring.submitter().submit());
    }

    /// Submits what was pushed and waits for a completion, or until `deadline_ns`.
    pub fn wait(&mut self, deadline_ns: Option<u64>) {
        self.counters.add(RingCounter::SystemCalls, 1);
        let Some(deadline_ns) = deadline_ns else {
            Self::check(self.uring.submitter().submit_and_wait(1));
            return;
        };
        let left_ns = deadline_ns.saturating_sub(monotonic_ns());
        if left_ns == 0 {
            Self::check(self.uring.submitter().submit());
            return;
        }
        let time =
            Timespec::new().sec(left_ns / 1_000_000_000).nsec((left_ns % 1_000_000_000) as u32);
        let arguments = SubmitArgs::new().timespec(&time);
        Self::check(self.uring.submitter().submit_with_args(1, &arguments));
    }

    fn check(result: io::Result<usize>) {
        if let Err(error) = result {
            let harmless = [libc::EINTR, libc::ETIME, libc::EBUSY, libc::EAGAIN];
            let code = error.raw_os_error().unwrap_or(0);
            assert!(harmless.contains(&code), "io_uring_enter failed: {error}");
        }
    }

    /// Whether completions wait, or would after a system call.
    #[must_use]
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty() || self.uring.submission().taskrun()
    }

    /// Takes completions, as many as there are and fit.
    pub fn harvest(&mut self, into: &mut [Completion]) -> usize {
        let mut count = 0;
        let mut queue = self.uring.completion();
        while count < into.len() {
            let Some(entry) = queue.next() else { break };
            let data = entry.user_data();
            into[count] = Completion {
                tag: TAGS[(data >> 32) as usize],
                index: data as u32,
                result: entry.result(),
            };
            count += 1;
        }
        count
    }
}
