//! Whether to look for work for a while before sleeping.
//!
//! A wake-up across CPUs costs about 15 us, which is most of a request's time when only one is in
//! flight; who spins is awake already. But a spinning ring keeps a CPU: a client that is bound to
//! the same one gets nothing done meanwhile, and a client that the scheduler would have put beside
//! the ring, where wake-ups are cheap, is kept away. Nothing of that shows from inside, so each way
//! is tried for a few hundred requests now and then and timed, and the faster one stays.
//!
//! ```text
//!  Steady ──`interval` requests──▶ Settling ──▶ Trying ──▶ Steady
//!  one way, timed                  the other    timed      the faster way
//! ```

/// Averages move by a sixteenth: they follow a change of load within a few dozen turns.
const WEIGHT: u64 = 16;
/// Turns that carry more requests than this on average have company in the queue: whoever waits
/// there does not wait for the wake-up, and batches are cheaper than spinning.
const REQUESTS_PER_TURN_MAX: u64 = 2;
/// With more requests than this in flight on average when there is nothing to do, it is a device
/// that is waited for and not a client, and its queue hides the wake-up.
const IN_FLIGHT_MAX: u64 = 2;
/// Connections that are tried directly; with more of them a system call each is too many.
pub const CONNECTIONS_MAX: usize = 4;
/// Requests after a change of way that are not timed: the scheduler may move threads.
const SETTLING_REQUESTS: u64 = 128;
/// Requests that are timed together.
const TIMED_REQUESTS: u64 = 256;
/// Requests between two trials, doubled for each trial in vain: at the longest a trial is half a
/// per cent of them, and a change is noticed within a second or two.
const INTERVAL_MIN: u64 = 2048;
const INTERVAL_MAX: u64 = 65_536;
/// A pause this long is the client's, or another process's: it says nothing about the way.
const PAUSE_NS: u64 = 1_000_000;

/// Where the search for the faster way is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The better way as far as it is known, for so many more requests.
    Steady { left: u64 },
    /// The other way, not timed yet.
    Settling,
    /// The other way, timed.
    Trying,
}

/// The policy. Pure: told what happened, asked what to do.
#[derive(Debug)]
pub struct Spin {
    limit_ns: u64,
    /// Average time without work, in nanoseconds.
    gap_ns: u64,
    /// Average requests per turn that had any, times [`WEIGHT`].
    requests: u64,
    /// Average requests in flight when there was nothing to do, times [`WEIGHT`].
    in_flight: u64,
    /// The way in use: spinning, or sleeping at once.
    spinning: bool,
    /// Whether the other way is tried.
    tries: bool,
    phase: Phase,
    /// Requests from the end of a trial to the next one.
    interval: u64,
    /// What is being timed: requests, and how long they took.
    timed_requests: u64,
    timed_ns: u64,
    /// How long [`TIMED_REQUESTS`] took lately in the better way.
    steady_ns: Option<u64>,
    last_turn_ns: u64,
}

impl Spin {
    /// Spins for at most `limit_ns`; 0 turns it off.
    #[must_use]
    pub fn new(limit_ns: u64) -> Self {
        Self {
            limit_ns,
            gap_ns: u64::MAX / WEIGHT,
            requests: WEIGHT,
            in_flight: 0,
            spinning: false,
            tries: limit_ns > 0,
            phase: Phase::Steady { left: 0 },
            interval: INTERVAL_MIN,
            timed_requests: 0,
            timed_ns: 0,
            steady_ns: None,
            last_turn_ns: 0,
        }
    }

    /// Spins without asking whether it pays: for tests of what the ring does then.
    #[must_use]
    pub fn always(limit_ns: u64) -> Self {
        Self { spinning: true, tries: false, ..Self::new(limit_ns) }
    }

    /// Whether to spin now, and for how long.
    #[must_use]
    pub fn limit_ns(&self) -> Option<u64> {
        (self.spinning && self.is_worth_a_trial()).then_some(self.limit_ns)
    }

    /// Whether spinning could be of use. Gaps are measured with the wake-up in them, so they may
    /// be longer than the time to spin.
    fn is_worth_a_trial(&self) -> bool {
        let few = self.requests <= REQUESTS_PER_TURN_MAX * WEIGHT
            && self.in_flight <= IN_FLIGHT_MAX * WEIGHT;
        few && self.gap_ns < self.limit_ns * 2
    }

    /// There was nothing to do for `gap_ns`, while so many requests were in flight.
    pub fn idle(&mut self, gap_ns: u64, in_flight: u64) {
        self.in_flight = (self.in_flight * (WEIGHT - 1) + in_flight * WEIGHT) / WEIGHT;
        // A long sleep says only that it was long: it must not take a thousand turns to forget.
        let gap_ns = gap_ns.min(self.limit_ns * 4);
        self.gap_ns = self.gap_ns.min(self.limit_ns * 4);
        self.gap_ns = (self.gap_ns * (WEIGHT - 1) + gap_ns) / WEIGHT;
    }

    /// A turn took `requests` requests, at `now_ns`.
    pub fn turn(&mut self, requests: u64, now_ns: u64) {
        if requests > 0 {
            self.requests = (self.requests * (WEIGHT - 1) + requests * WEIGHT) / WEIGHT;
        }
        let since_ns = now_ns.saturating_sub(self.last_turn_ns);
        self.last_turn_ns = now_ns;
        if self.tries && since_ns < PAUSE_NS && self.is_worth_a_trial() {
            self.timed_requests += requests;
            self.timed_ns += since_ns;
            self.advance(requests);
        }
    }

    fn advance(&mut self, requests: u64) {
        match self.phase {
            Phase::Steady { left } => {
                let left = left.saturating_sub(requests);
                self.phase = Phase::Steady { left };
                if self.timed_requests < TIMED_REQUESTS {
                    return;
                }
                let slower = self.steady_ns.is_some_and(|before| self.timed() > before * 3 / 2);
                self.steady_ns = Some(self.timed());
                self.start_timing();
                if slower && self.interval > INTERVAL_MIN {
                    // Something has changed: the next trial is not put off any longer.
                    self.interval = INTERVAL_MIN;
                    self.phase = Phase::Steady { left: left.min(INTERVAL_MIN) };
                } else if left == 0 {
                    self.spinning = !self.spinning;
                    self.phase = Phase::Settling;
                }
            }
            Phase::Settling => {
                let too_long = self.timed_ns > self.allowed_ns();
                if too_long || self.timed_requests >= SETTLING_REQUESTS {
                    self.start_timing();
                    self.phase = Phase::Trying;
                }
            }
            // Ends early when it has lost already, so that a bad way costs little.
            Phase::Trying if self.timed_ns > self.allowed_ns() => self.decide(false),
            Phase::Trying if self.timed_requests >= TIMED_REQUESTS => {
                self.decide(self.timed() <= self.allowed_ns());
            }
            Phase::Trying => {}
        }
    }

    /// How long [`TIMED_REQUESTS`] may take on trial. Spinning costs CPU time that sleeping does
    /// not: it must be faster by an eighth, where sleeping may be slower by a sixteenth.
    fn allowed_ns(&self) -> u64 {
        let steady_ns = self.steady_ns.expect("a trial follows a timed stretch");
        if self.spinning { steady_ns / 8 * 7 } else { steady_ns / 16 * 17 }
    }

    fn decide(&mut self, better: bool) {
        if better {
            self.interval = INTERVAL_MIN;
            self.steady_ns = Some(self.timed());
        } else {
            self.spinning = !self.spinning;
            self.interval = (self.interval * 2).min(INTERVAL_MAX);
        }
        self.phase = Phase::Steady { left: self.interval };
        self.start_timing();
    }

    fn timed(&self) -> u64 {
        self.timed_ns * TIMED_REQUESTS / self.timed_requests.max(1)
    }

    fn start_timing(&mut self) {
        self.timed_requests = 0;
        self.timed_ns = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{INTERVAL_MAX, Spin};

    /// One request at a time for a while; returns how many of them were served by spinning.
    fn serve(
        spin: &mut Spin,
        now_ns: &mut u64,
        requests: u64,
        (sleeping_ns, spinning_ns): (u64, u64),
    ) -> u64 {
        let mut spun = 0;
        for _ in 0..requests {
            let spins = spin.limit_ns().is_some();
            let took_ns = if spins { spinning_ns } else { sleeping_ns };
            spun += u64::from(spins);
            *now_ns += took_ns;
            spin.idle(took_ns / 2, 0);
            spin.turn(1, *now_ns);
        }
        spun
    }

    #[test]
    fn the_faster_way_is_found_and_kept() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        assert_eq!(spin.limit_ns(), None, "nothing is known yet");
        serve(&mut spin, &mut now_ns, 4000, (70_000, 30_000));
        assert_eq!(spin.limit_ns(), Some(50_000));
        let spun = serve(&mut spin, &mut now_ns, 1_000_000, (70_000, 30_000));
        assert!(spun > 980_000, "spinning was the faster way for {spun} requests only");
    }

    #[test]
    fn a_client_on_the_same_cpu_is_left_alone() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        serve(&mut spin, &mut now_ns, 10_000, (12_000, 62_000));
        let (requests, start_ns) = (1_000_000, now_ns);
        let spun = serve(&mut spin, &mut now_ns, requests, (12_000, 62_000));
        assert!(spun < requests / 500, "trials took {spun} requests");
        assert!(spun > 0, "the other way is tried again now and then");
        let slower = (now_ns - start_ns) as f64 / (requests * 12_000) as f64;
        assert!(slower < 1.02, "trials made everything {slower} times slower");
    }

    #[test]
    fn a_gain_that_is_too_small_is_not_worth_a_cpu() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        let spun = serve(&mut spin, &mut now_ns, 1_000_000, (30_000, 29_000));
        assert!(spun < 20_000, "{spun}");
    }

    #[test]
    fn a_change_is_noticed() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        serve(&mut spin, &mut now_ns, 500_000, (70_000, 30_000));
        assert!(spin.limit_ns().is_some());
        // The client has moved to the ring's CPU.
        serve(&mut spin, &mut now_ns, 2 * INTERVAL_MAX, (12_000, 62_000));
        assert_eq!(spin.limit_ns(), None);
        // And away again.
        serve(&mut spin, &mut now_ns, 2 * INTERVAL_MAX, (70_000, 30_000));
        assert!(spin.limit_ns().is_some());
    }

    #[test]
    fn pauses_say_nothing() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        for _ in 0..10_000 {
            serve(&mut spin, &mut now_ns, 16, (70_000, 30_000));
            now_ns += 5_000_000;
            spin.turn(0, now_ns);
        }
        assert!(spin.limit_ns().is_some());
    }

    #[test]
    fn long_gaps_deep_queues_or_zero_keep_it_off() {
        let (mut spin, mut now_ns) = (Spin::new(0), 0);
        assert_eq!(serve(&mut spin, &mut now_ns, 100_000, (70_000, 30_000)), 0);
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        assert_eq!(serve(&mut spin, &mut now_ns, 100_000, (300_000, 1)), 0, "long gaps");
        serve(&mut spin, &mut now_ns, 10_000, (70_000, 30_000));
        assert!(spin.limit_ns().is_some());
        (0..200).for_each(|_| spin.turn(16, now_ns));
        assert_eq!(spin.limit_ns(), None, "a deep queue");
    }

    /// Reads from a device come back one by one, and so do the client's next requests: turns are
    /// small although many requests are in flight.
    #[test]
    fn a_device_that_is_waited_for_keeps_it_off() {
        let (mut spin, mut now_ns) = (Spin::new(50_000), 0);
        serve(&mut spin, &mut now_ns, 10_000, (70_000, 30_000));
        assert!(spin.limit_ns().is_some());
        for _ in 0..10_000 {
            now_ns += if spin.limit_ns().is_some() { 30_000 } else { 70_000 };
            spin.idle(10_000, 31);
            spin.turn(1, now_ns);
        }
        assert_eq!(spin.limit_ns(), None, "a device with a deep queue");
        serve(&mut spin, &mut now_ns, 10_000, (70_000, 30_000));
        assert!(spin.limit_ns().is_some(), "one request at a time again");
    }
}
