//! When to spin before sleeping: a wake-up across CPUs costs about 15 us, which is most of a
//! request's time when only one is in flight.

/// Averages move by a sixteenth: they follow a change of load within a few dozen turns.
const WEIGHT: u64 = 16;
/// Turns that carry more requests than this on average have company in the queue: whoever waits
/// there does not wait for the wake-up, and batches are cheaper than spinning.
const REQUESTS_PER_TURN_MAX: u64 = 2;
/// Connections that are tried directly; with more of them a system call each is too many.
pub const CONNECTIONS_MAX: usize = 4;

/// The policy. Pure: told what happened, asked what to do.
#[derive(Debug)]
pub struct Spin {
    limit_ns: u64,
    /// Average time without work, in nanoseconds.
    gap_ns: u64,
    /// Average requests per turn that had any, times [`WEIGHT`].
    requests: u64,
}

impl Spin {
    /// Spins for at most `limit_ns`; 0 turns it off, and so does a single CPU.
    #[must_use]
    pub fn new(limit_ns: u64, cpus: usize) -> Self {
        let limit_ns = if cpus >= 2 { limit_ns } else { 0 };
        Self { limit_ns, gap_ns: u64::MAX / WEIGHT, requests: WEIGHT }
    }

    /// Whether it is worth it now, and for how long.
    #[must_use]
    pub fn limit_ns(&self) -> Option<u64> {
        let few = self.requests <= REQUESTS_PER_TURN_MAX * WEIGHT;
        (self.limit_ns > 0 && few && self.gap_ns < self.limit_ns).then_some(self.limit_ns)
    }

    /// There was nothing to do for `gap_ns`.
    pub fn idle(&mut self, gap_ns: u64) {
        // A long sleep says only that it was long: it must not take a thousand turns to forget.
        let gap_ns = gap_ns.min(self.limit_ns * 4);
        self.gap_ns = self.gap_ns.min(self.limit_ns * 4);
        self.gap_ns = (self.gap_ns * (WEIGHT - 1) + gap_ns) / WEIGHT;
    }

    /// A turn took `requests` requests.
    pub fn turn(&mut self, requests: u64) {
        if requests > 0 {
            self.requests = (self.requests * (WEIGHT - 1) + requests * WEIGHT) / WEIGHT;
        }
    }
}

/// CPUs that this process may use: the standard library asks for its affinity and its control
/// group's quota.
#[must_use]
pub fn cpus_allowed() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::Spin;

    #[test]
    fn short_gaps_turn_it_on_and_long_ones_off() {
        let mut spin = Spin::new(50_000, 2);
        assert_eq!(spin.limit_ns(), None, "nothing is known yet");
        (0..200).for_each(|_| spin.idle(10_000));
        assert_eq!(spin.limit_ns(), Some(50_000));
        (0..20).for_each(|_| spin.idle(10_000_000));
        assert_eq!(spin.limit_ns(), None);
    }

    #[test]
    fn one_cpu_zero_or_deep_queues_keep_it_off() {
        for mut spin in [Spin::new(50_000, 1), Spin::new(0, 8)] {
            (0..200).for_each(|_| spin.idle(10_000));
            assert_eq!(spin.limit_ns(), None);
        }
        let mut spin = Spin::new(50_000, 2);
        (0..200).for_each(|_| spin.idle(10_000));
        (0..200).for_each(|_| spin.turn(16));
        assert_eq!(spin.limit_ns(), None);
    }
}
