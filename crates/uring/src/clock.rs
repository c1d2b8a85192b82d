//! The one clock of the ring. The engine has none of its own.

use ringfence_cache::Now;

/// How long the difference between the two clocks is trusted: the wall clock is only ever shown.
const WALL_AGE_NS_MAX: u64 = 1_000_000_000;

/// Reads the monotonic clock, and now and then the wall clock beside it.
#[derive(Debug)]
pub struct Clock {
    wall_ahead_ns: u64,
    wall_read_at_ns: u64,
}

impl Clock {
    /// A clock that has just been read.
    #[must_use]
    pub fn new() -> Self {
        let mut clock = Self { wall_ahead_ns: 0, wall_read_at_ns: 0 };
        clock.read_wall(monotonic_ns());
        clock
    }

    /// The time.
    #[must_use]
    pub fn now(&mut self) -> Now {
        let monotonic_ns = monotonic_ns();
        if monotonic_ns.wrapping_sub(self.wall_read_at_ns) > WALL_AGE_NS_MAX {
            self.read_wall(monotonic_ns);
        }
        Now { monotonic_ns, wall_ns: monotonic_ns.wrapping_add(self.wall_ahead_ns) }
    }

    fn read_wall(&mut self, monotonic_ns: u64) {
        self.wall_ahead_ns = read(libc::CLOCK_REALTIME).wrapping_sub(monotonic_ns);
        self.wall_read_at_ns = monotonic_ns;
    }
}

/// Nanoseconds of a clock that never steps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}
