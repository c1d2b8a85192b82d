//! When to give the CPU to the kernel's workers that carry out reads of the cache device.
//!
//! Behind a loop device each request is done by a thread of the kernel. While a client sends its
//! requests one by one, the ring finds the next one whenever it looks and never sleeps, and the
//! scheduler, which owes the ring as much time as the worker, lets the worker wait: up to 90 us
//! were seen in which the disk had nothing to do. Yielding ends that.
//!
//! Who yields to a busy process does not get the CPU back before that has had its slice, though.
//! So each yield is timed, and after a long one there are none for a while (decision 0027).

/// Reads that are handed over between two yields: a yield is a system call, and a worker that is
/// woken for a single read soon sleeps again.
const READS_PER_YIELD: u32 = 4;
/// Workers have handed a full queue on sooner than that, and a slice of time is several times as
/// long.
const LONG_NS: u64 = 500_000;
/// How long there are no yields after a long one, doubled each time they have begun again in vain:
/// at the longest a slice of 3 ms each time is a thousandth.
const PAUSE_MIN_NS: u64 = 50_000_000;
const PAUSE_MAX_NS: u64 = 3_200_000_000;

/// The policy. Pure: told what happened, asked what to do.
#[derive(Debug)]
pub struct Yielding {
    /// Reads handed over since the last yield.
    reads: u32,
    pause_ns: u64,
    /// When the last pause ends.
    resumes_at_ns: u64,
}

impl Yielding {
    /// Nothing has been handed over yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { reads: 0, pause_ns: PAUSE_MIN_NS, resumes_at_ns: 0 }
    }

    /// So many more reads are with the kernel. Returns whether to yield now.
    #[must_use]
    pub fn handed_over(&mut self, reads: u32, now_ns: u64) -> bool {
        self.reads = self.reads.saturating_add(reads);
        if self.reads < READS_PER_YIELD || now_ns < self.resumes_at_ns {
            return false;
        }
        self.reads = 0;
        true
    }

    /// A yield lasted from `from_ns` to `to_ns`.
    pub fn yielded(&mut self, from_ns: u64, to_ns: u64) {
        if to_ns.saturating_sub(from_ns) < LONG_NS {
            return;
        }
        let soon = from_ns < self.resumes_at_ns.saturating_add(self.pause_ns);
        self.pause_ns = if soon { (self.pause_ns * 2).min(PAUSE_MAX_NS) } else { PAUSE_MIN_NS };
        self.resumes_at_ns = to_ns + self.pause_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::{LONG_NS, PAUSE_MAX_NS, PAUSE_MIN_NS, READS_PER_YIELD, Yielding};

    const SECOND_NS: u64 = 1_000_000_000;

    /// Reads by fours for so long, where each yield lasts `yield_ns`; returns the yields.
    fn read(yielding: &mut Yielding, now_ns: &mut u64, for_ns: u64, yield_ns: u64) -> u64 {
        let (mut yields, end_ns) = (0, *now_ns + for_ns);
        while *now_ns < end_ns {
            *now_ns += 20_000;
            if yielding.handed_over(READS_PER_YIELD, *now_ns) {
                yielding.yielded(*now_ns, *now_ns + yield_ns);
                *now_ns += yield_ns;
                yields += 1;
            }
        }
        yields
    }

    #[test]
    fn a_few_reads_share_a_yield() {
        let mut yielding = Yielding::new();
        let due = (0..40).filter(|now_ns| yielding.handed_over(1, *now_ns)).count();
        assert_eq!(due, 10);
        assert!(yielding.handed_over(100, 41));
        assert!(!yielding.handed_over(READS_PER_YIELD - 1, 42), "a yield is for all before it");
    }

    #[test]
    fn short_yields_go_on() {
        let (mut yielding, mut now_ns) = (Yielding::new(), 0);
        let yields = read(&mut yielding, &mut now_ns, SECOND_NS, 80_000);
        assert_eq!(yields, 10_000, "one for each four reads");
    }

    #[test]
    fn a_busy_process_costs_next_to_nothing() {
        let (mut yielding, mut now_ns) = (Yielding::new(), 0);
        read(&mut yielding, &mut now_ns, 60 * SECOND_NS, 3_000_000);
        let yields = read(&mut yielding, &mut now_ns, 60 * SECOND_NS, 3_000_000);
        assert!((15..=20).contains(&yields), "{yields} long yields in a minute");
    }

    #[test]
    fn they_begin_again_when_the_process_has_gone() {
        let (mut yielding, mut now_ns) = (Yielding::new(), 0);
        read(&mut yielding, &mut now_ns, 60 * SECOND_NS, 3_000_000);
        read(&mut yielding, &mut now_ns, PAUSE_MAX_NS, 10_000);
        let yields = read(&mut yielding, &mut now_ns, SECOND_NS, 10_000);
        assert!(yields > 30_000, "{yields}");
        // One long yield after such a time is not held against what was long before it.
        now_ns += 2 * PAUSE_MAX_NS;
        assert!(yielding.handed_over(READS_PER_YIELD, now_ns));
        yielding.yielded(now_ns, now_ns + LONG_NS);
        assert!(!yielding.handed_over(READS_PER_YIELD, now_ns + LONG_NS));
        assert!(yielding.handed_over(READS_PER_YIELD, now_ns + LONG_NS + PAUSE_MIN_NS));
    }
}
