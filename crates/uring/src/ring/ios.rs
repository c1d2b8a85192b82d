//! The engine's I/Os: on the cache device and on the origins, until they have really ended.

use super::Ring;
use super::kernel::{Tag, file};
use crate::clock::monotonic_ns;
use crate::core::Core;
use crate::counters::{OriginOp, RingCounter};
use crate::memory::Mapping;
use io_uring::{opcode, squeue, types};
use ringfence_cache::limits::{DEVICE_IOS_MAX, EXPORTS_MAX};
use ringfence_cache::quota::Quota;
use ringfence_cache::units::ExportSlot;
use ringfence_cache::{Buffer, Coming, Effect, Event, IoError, IoId};
use std::sync::Arc;

/// Origin requests of one export that are with the kernel whatever other origins do.
const ORIGIN_IOS_PER_EXPORT: usize = 1;
/// Origin requests with the kernel beyond those; more wait here.
const ORIGIN_IOS_SHARED: usize = 48;
const NO_FLAGS: squeue::Flags = squeue::Flags::empty();
/// What a list of I/Os ends with.
const NO_IO: u32 = u32::MAX;
/// Zeroes written at a time where an origin cannot be told to make them.
const ZERO_BYTES: u32 = 1 << 20;

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    DeviceRead,
    DeviceWrite,
    DeviceFlush,
    Origin { export: ExportSlot, op: OriginOp, may_punch_hole: bool },
}

#[derive(Clone, Copy, Debug)]
struct Io {
    id: IoId,
    kind: Kind,
    offset: u64,
    buffer: Buffer,
    length: u64,
    /// Bytes that are transferred already.
    done: u64,
    /// Zeroes that are written, because the origin cannot be told to make them.
    written_zeroes: bool,
    started_ns: u64,
}

/// How an origin makes zeroes: the first that it takes, found out once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum ZeroMethod {
    Punch,
    Range,
    Write,
}

/// An origin as the ring uses it.
#[derive(Clone, Copy, Debug)]
pub struct OriginTarget {
    /// Its size: nothing is read or written beyond it.
    size_bytes: u64,
    /// Where the last block ends that `O_DIRECT` can write.
    whole_blocks_end: u64,
    punch: ZeroMethod,
    keep: ZeroMethod,
    /// How its reads and writes are submitted.
    flags: squeue::Flags,
}

impl OriginTarget {
    /// An origin of this size, whose whole blocks end there.
    #[must_use]
    pub const fn new(size_bytes: u64, whole_blocks_end: u64, is_file: bool) -> Self {
        // A filesystem may block whoever submits, whatever it was told (FUSE does, once its queue
        // is full): the kernel's workers may wait for it, the ring may not. Block devices say when
        // they would block.
        let flags = if is_file { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        let (punch, keep) = (ZeroMethod::Punch, ZeroMethod::Range);
        Self { size_bytes, whole_blocks_end, punch, keep, flags }
    }
}

/// Origin I/Os of one export that wait for their turn, linked through [`Ios::next`].
#[derive(Clone, Copy, Debug)]
struct Waiting {
    first: u32,
    last: u32,
}

/// The most origin requests that are with the kernel at once. It has more workers, so that origins
/// that hang cannot keep the cache device's flushes from running.
#[must_use]
pub fn origin_ios_max(exports: usize) -> usize {
    Quota::slots(ORIGIN_IOS_PER_EXPORT, ORIGIN_IOS_SHARED, exports)
}

/// The table of I/Os.
pub struct Ios {
    table: Box<[Option<Io>]>,
    free: Vec<u32>,
    /// By export slot.
    waiting: Box<[Waiting]>,
    /// By I/O: the one that waits behind it.
    next: Box<[u32]>,
    /// The export whose turn it is among those that wait.
    turn: usize,
    quota: Quota,
    /// Reads of the cache device that were pushed since the last were handed over.
    reads_pushed: u32,
    /// By export slot.
    targets: Box<[Option<OriginTarget>]>,
    zeroes: Arc<Mapping>,
}

impl Ios {
    /// The kernel may read the zeroes for an origin even after the end: they stay mapped until the
    /// process ends.
    pub fn leave_zeroes_mapped(&self) {
        std::mem::forget(self.zeroes.clone());
    }

    /// For these origins, by export slot.
    #[must_use]
    pub fn new(targets: Box<[Option<OriginTarget>]>, zeroes: Arc<Mapping>) -> Self {
        let count = DEVICE_IOS_MAX as u32;
        let exports = targets.iter().flatten().count();
        Self {
            table: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
            waiting: vec![Waiting { first: NO_IO, last: NO_IO }; EXPORTS_MAX].into(),
            next: vec![NO_IO; DEVICE_IOS_MAX].into(),
            turn: 0,
            quota: Quota::new(ORIGIN_IOS_PER_EXPORT, ORIGIN_IOS_SHARED, exports),
            reads_pushed: 0,
            targets,
            zeroes,
        }
    }

    /// The memory that zeroes are written from.
    ///
    /// # Errors
    /// When there is none.
    pub fn zeroes() -> Result<Arc<Mapping>, crate::RuntimeError> {
        Mapping::new(u64::from(ZERO_BYTES)).map(Arc::new)
    }

    /// I/Os that have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.table.len() - self.free.len()
    }

    fn push_waiting(&mut self, export: ExportSlot, index: u32) {
        let list = &mut self.waiting[export.index()];
        self.next[index as usize] = NO_IO;
        if list.first == NO_IO {
            list.first = index;
        } else {
            self.next[list.last as usize] = index;
        }
        list.last = index;
    }

    /// The next origin I/O whose export may have one more with the kernel; exports take turns.
    fn pop_waiting(&mut self) -> Option<u32> {
        for step in 0..EXPORTS_MAX {
            let slot = (self.turn + step) % EXPORTS_MAX;
            let export = ExportSlot(slot as u8);
            let index = self.waiting[slot].first;
            if index != NO_IO && self.quota.room(export) > 0 {
                self.waiting[slot].first = self.next[index as usize];
                self.quota.take(export);
                self.turn = slot + 1;
                return Some(index);
            }
        }
        None
    }

    fn io(&mut self, index: u32) -> &mut Io {
        self.table[index as usize].as_mut().expect("an I/O in flight")
    }
}

impl<C: Core> Ring<C> {
    /// Starts the I/O that an effect asks for.
    pub(super) fn start_io(&mut self, effect: Effect) {
        let nothing = Buffer { offset: 0, length: 0 };
        let origin = |export, op| Kind::Origin { export, op, may_punch_hole: false };
        let (id, kind, offset, buffer, length) = match effect {
            Effect::DeviceRead { io, offset, buffer } => {
                (io, Kind::DeviceRead, offset, buffer, u64::from(buffer.length))
            }
            Effect::DeviceWrite { io, offset, buffer } => {
                (io, Kind::DeviceWrite, offset, buffer, u64::from(buffer.length))
            }
            Effect::DeviceFlush { io } => (io, Kind::DeviceFlush, 0, nothing, 0),
            Effect::OriginRead { io, export, offset, buffer } => {
                (io, origin(export, OriginOp::Read), offset, buffer, u64::from(buffer.length))
            }
            Effect::OriginWrite { io, export, offset, buffer } => {
                (io, origin(export, OriginOp::Write), offset, buffer, u64::from(buffer.length))
            }
            Effect::OriginZero { io, export, offset, length, may_punch_hole } => {
                let op = OriginOp::WriteZeroes;
                (io, Kind::Origin { export, op, may_punch_hole }, offset, nothing, length)
            }
            Effect::OriginFlush { io, export } => {
                (io, origin(export, OriginOp::Flush), 0, nothing, 0)
            }
            other => unreachable!("{other:?} is no I/O"),
        };
        let started_ns = self.now.monotonic_ns;
        let length = self.cut_at_end(kind, offset, buffer, length);
        let index = self.ios.free.pop().expect("no more I/Os than DEVICE_IOS_MAX");
        let io =
            Io { id, kind, offset, buffer, length, done: 0, written_zeroes: false, started_ns };
        self.ios.table[index as usize] = Some(io);
        if let Kind::Origin { export, .. } = kind {
            self.ios.push_waiting(export, index);
            self.start_origin_ios();
        } else {
            self.push_io(index);
        }
    }

    /// The last block of an origin is read and written only up to its size (rule 35): what is
    /// left of it reads as zeroes.
    fn cut_at_end(&mut self, kind: Kind, offset: u64, buffer: Buffer, length: u64) -> u64 {
        let Kind::Origin { export, op, .. } = kind else { return length };
        let target = self.ios.targets[export.index()].expect("an export with an origin");
        let cut = length.min(target.size_bytes.saturating_sub(offset));
        if op == OriginOp::Read && cut < length {
            let rest = buffer.part(cut as u32, (length - cut) as u32);
            self.core.reserve().bytes_mut(rest).fill(0);
        }
        cut
    }

    fn start_origin_ios(&mut self) {
        while let Some(index) = self.ios.pop_waiting() {
            // What it has waited for others' origins is not this one's time.
            self.ios.io(index).started_ns = self.now.monotonic_ns;
            self.push_io(index);
        }
    }

    /// Hands an I/O, or what is left of it, to the kernel.
    fn push_io(&mut self, index: u32) {
        let io = *self.ios.io(index);
        let offset = io.offset + io.done;
        let rest = |io: &Io| {
            let done = u32::try_from(io.done).expect("a transfer of less than 4 GiB");
            io.buffer.part(done, (io.length - io.done) as u32)
        };
        match io.kind {
            Kind::DeviceRead => {
                self.ios.reads_pushed += 1;
                self.kernel.push_read(index, file::CACHE, offset, rest(&io), NO_FLAGS)
            }
            Kind::DeviceWrite => {
                self.kernel.push_write(index, file::CACHE, offset, rest(&io), NO_FLAGS)
            }
            Kind::DeviceFlush => self.kernel.push_flush(index, file::CACHE),
            Kind::Origin { export, op, may_punch_hole } => {
                let direct = file::ORIGINS + u32::from(export.0);
                match op {
                    OriginOp::Read | OriginOp::Write => {
                        let (place, length) = self.origin_part(export, offset, io.length - io.done);
                        let part = rest(&io).part(0, length as u32);
                        let target = self.ios.targets[export.index()];
                        let flags = target.expect("an export with an origin").flags;
                        if op == OriginOp::Read {
                            self.kernel.push_read(index, place, offset, part, flags);
                        } else {
                            self.kernel.push_write(index, place, offset, part, flags);
                        }
                    }
                    OriginOp::Flush => self.kernel.push_flush(index, direct),
                    OriginOp::WriteZeroes => self.push_zeroes(index, &io, export, may_punch_hole),
                }
            }
        }
    }

    /// The descriptor for a byte of an origin, and how much of `length` it can take in one go:
    /// whole blocks directly, the rest through the page cache (rule 35).
    fn origin_part(&self, export: ExportSlot, offset: u64, length: u64) -> (u32, u64) {
        let target = self.ios.targets[export.index()].expect("an export with an origin");
        if offset < target.whole_blocks_end {
            let length = length.min(target.whole_blocks_end - offset);
            (file::ORIGINS + u32::from(export.0), length)
        } else {
            (file::TAILS + u32::from(export.0), length)
        }
    }

    fn push_zeroes(&mut self, index: u32, io: &Io, export: ExportSlot, may_punch_hole: bool) {
        let target = self.ios.targets[export.index()].expect("an export with an origin");
        let method = if may_punch_hole { target.punch } else { target.keep };
        let (offset, length) = (io.offset + io.done, io.length - io.done);
        let mode = match method {
            ZeroMethod::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            ZeroMethod::Range => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            ZeroMethod::Write => {
                let length = length.min(u64::from(ZERO_BYTES));
                let (place, length) = self.origin_part(export, offset, length);
                let zeroes = self.ios.zeroes.base().as_ptr();
                self.ios.io(index).written_zeroes = true;
                let entry = opcode::Write::new(types::Fixed(place), zeroes, length as u32)
                    .offset(offset)
                    .build()
                    .flags(target.flags);
                self.kernel.push(Tag::Io, index, entry);
                return;
            }
        };
        let place = types::Fixed(file::ORIGINS + u32::from(export.0));
        let entry = opcode::Fallocate::new(place, length).offset(offset).mode(mode).build();
        self.kernel.push(Tag::Io, index, entry);
    }

    /// Has the device begin what is to be read before anything is sent or received. That is done
    /// within the system call, and the kernel holds reads back until the whole call has ended.
    pub(super) fn hand_over_reads(&mut self) {
        let reads = std::mem::take(&mut self.ios.reads_pushed);
        if reads == 0 {
            return;
        }
        self.kernel.submit();
        let now_ns = monotonic_ns();
        if self.yielding.handed_over(reads, now_ns) {
            self.shared.counters.add(RingCounter::SystemCalls, 1);
            self.shared.counters.add(RingCounter::Yields, 1);
            // Not libc's: its page may not be in memory, and this program's own is locked there.
            rustix::thread::sched_yield();
            self.yielding.yielded(now_ns, monotonic_ns());
        }
    }

    /// An I/O is done and is soon to be looked at.
    pub(super) fn prefetch_io(&mut self, index: u32) {
        let io = self.ios.io(index).id;
        self.core.prefetch(Coming::IoDone { io });
    }

    /// The kernel is done with an I/O, or with a part of it.
    pub(super) fn io_completed(&mut self, index: u32, result: i32) {
        let io = *self.ios.io(index);
        let outcome = match result {
            ..0 => match -result {
                libc::EINTR | libc::EAGAIN => return self.push_io(index),
                errno if self.weaken_zeroes(&io, errno) => return self.push_io(index),
                errno => Err(IoError::Failed { errno }),
            },
            _ => match self.progress(index, result.cast_unsigned()) {
                Progress::Ended => Ok(()),
                Progress::Short => Err(IoError::Failed { errno: libc::EIO }),
                Progress::More => return self.push_io(index),
            },
        };
        self.ios.table[index as usize] = None;
        self.ios.free.push(index);
        if let Kind::Origin { export, op, .. } = io.kind {
            self.ios.quota.give_back(export);
            let duration_ns = self.now.monotonic_ns.saturating_sub(io.started_ns);
            let failed = outcome.is_err();
            self.shared.counters.origin(export, op, io.length, duration_ns, failed);
            self.start_origin_ios();
        }
        self.feed(Event::IoDone { io: io.id, result: outcome });
    }

    fn progress(&mut self, index: u32, bytes: u32) -> Progress {
        let io = self.ios.io(index);
        let transfers = match io.kind {
            Kind::DeviceFlush | Kind::Origin { op: OriginOp::Flush, .. } => false,
            Kind::Origin { op: OriginOp::WriteZeroes, .. } => io.written_zeroes,
            _ => true,
        };
        if !transfers {
            return Progress::Ended;
        }
        io.done += u64::from(bytes);
        match io.done {
            done if done == io.length => Progress::Ended,
            _ if bytes == 0 => Progress::Short,
            _ => Progress::More,
        }
    }

    /// An origin that does not know how to make zeroes is asked in a simpler way from now on.
    fn weaken_zeroes(&mut self, io: &Io, errno: i32) -> bool {
        let Kind::Origin { export, op: OriginOp::WriteZeroes, may_punch_hole } = io.kind else {
            return false;
        };
        let target = self.ios.targets[export.index()].as_mut().expect("an export with an origin");
        let method = if may_punch_hole { &mut target.punch } else { &mut target.keep };
        let unknown = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::ENODEV];
        if *method == ZeroMethod::Write || !unknown.contains(&errno) {
            return false;
        }
        *method = if *method == ZeroMethod::Punch { ZeroMethod::Range } else { ZeroMethod::Write };
        true
    }
}

/// How far an I/O has come.
enum Progress {
    Ended,
    More,
    /// The device or file ends before the I/O does.
    Short,
}
