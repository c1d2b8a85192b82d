//! Flushes of the cache device: which records they cover, and when the next one is due.

use crate::canary;
use crate::geometry::LogAddress;
use crate::units::Sequence;

/// A record and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEnd {
    /// Its number.
    pub sequence: Sequence,
    /// The first address behind it.
    pub address: LogAddress,
}

/// What is durable and what is to become so. One flush at a time.
#[derive(Debug)]
pub struct DeviceFlush {
    durable: RecordEnd,
    /// What the flush in flight covers.
    in_flight: Option<RecordEnd>,
    /// The highest sequence that is to become durable.
    wanted: Sequence,
    /// The lowest that was asked for and that no flush covers, done or in flight.
    wanted_first: Sequence,
}

impl DeviceFlush {
    /// Nothing is wanted beyond what is durable.
    pub const fn new(durable: RecordEnd) -> Self {
        let wanted = durable.sequence;
        Self { durable, in_flight: None, wanted, wanted_first: wanted }
    }

    /// The last record that a finished flush covers.
    pub const fn durable(&self) -> RecordEnd {
        self.durable
    }

    /// The highest sequence that is to become durable.
    pub const fn wanted(&self) -> Sequence {
        self.wanted
    }

    /// Asks for everything up to a sequence to become durable.
    pub fn want(&mut self, sequence: Sequence) {
        let covered = self.in_flight.unwrap_or(self.durable).sequence;
        if sequence <= covered {
            return;
        }
        let first = if self.wanted > covered { self.wanted_first } else { sequence };
        self.wanted_first = first.min(sequence);
        self.wanted = self.wanted.max(sequence);
    }

    /// Whether to flush now, with everything up to `written` on the device: the first that is
    /// waited for is, and no flush is in flight. One that came sooner would do nobody any good.
    pub fn start(&mut self, written: RecordEnd) -> bool {
        let is_waited_for =
            self.wanted > self.durable.sequence && written.sequence >= self.wanted_first;
        if self.in_flight.is_some() || !is_waited_for {
            return false;
        }
        self.in_flight = Some(written);
        // Of those that it does not cover only the highest is known.
        self.wanted_first = self.wanted;
        true
    }

    /// The flush has ended well: it covers only writes whose end was seen before it was submitted
    /// (rule 11), not all that is `written` now.
    pub fn done(&mut self, written: RecordEnd) {
        let covered = self.in_flight.take().expect("a flush in flight");
        self.durable = if canary::breaks(11) { written } else { covered };
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceFlush, RecordEnd};
    use crate::geometry::LogAddress;
    use crate::units::Sequence;

    fn end(sequence: u64) -> RecordEnd {
        RecordEnd { sequence: Sequence(sequence), address: LogAddress(sequence * 10) }
    }

    #[test]
    fn a_flush_waits_for_the_first_that_is_wanted() {
        let mut flush = DeviceFlush::new(end(4));
        assert!(!flush.start(end(6)), "nobody waits");
        flush.want(Sequence(9));
        flush.want(Sequence(7));
        assert!(!flush.start(end(6)), "of no use");
        assert!(flush.start(end(8)));
        assert!(!flush.start(end(9)), "one at a time");
        flush.done(end(9));
        assert_eq!(flush.durable(), end(8), "rule 11");
        assert!(!flush.start(end(8)), "the rest is not written");
        assert!(flush.start(end(9)));
        flush.done(end(9));
        assert!(!flush.start(end(10)), "all that was wanted is durable");
    }

    #[test]
    fn what_the_flush_in_flight_covers_needs_no_other() {
        let mut flush = DeviceFlush::new(end(0));
        flush.want(Sequence(2));
        assert!(flush.start(end(5)));
        flush.want(Sequence(5));
        flush.done(end(7));
        assert!(!flush.start(end(7)));
        flush.want(Sequence(6));
        assert!(flush.start(end(7)));
        flush.want(Sequence(8));
        flush.done(end(7));
        assert_eq!((flush.durable(), flush.wanted()), (end(7), Sequence(8)));
        assert!(!flush.start(end(7)));
        assert!(flush.start(end(8)));
    }
}
