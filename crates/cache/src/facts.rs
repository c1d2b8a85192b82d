//! What headers and footers say of the whole log: which lives it had, and what they knew.

use crate::canary;
use crate::format::Superblock;
use crate::limits::EXPORTS_MAX;
use std::collections::BTreeMap;
use zerocopy::little_endian::U64;

/// Which use of a segment, in which life: what wrote a header or a footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The life.
    pub incarnation: u64,
    /// The use.
    pub segment_use: u64,
}

/// Where a life began: what earlier ones have from there on it has not accepted.
#[derive(Clone, Copy, Debug)]
struct Start {
    sequence: u64,
    /// As far as is known: no later than this.
    segment_use: u64,
}

/// What counts in the whole log.
#[derive(Clone, Debug)]
pub struct LogFacts {
    /// The oldest sequence that counts (rule 2: the largest found).
    pub tail: u64,
    /// The highest sequence that is known to have been durable (rule 4).
    pub durable: u64,
    /// Per export: the highest sequence that its origin has (rule 13).
    pub watermarks: [u64; EXPORTS_MAX],
    /// Records behind the end of a walk: they count for nothing but what they say of others.
    pub strays: u64,
    /// By incarnation.
    starts: BTreeMap<u64, Start>,
}

impl LogFacts {
    /// What a superblock says.
    #[must_use]
    pub fn new(superblock: &Superblock) -> Self {
        let mut facts = Self {
            tail: superblock.tail.get(),
            durable: superblock.durable.get(),
            watermarks: superblock.watermarks.map(U64::get),
            strays: 0,
            starts: BTreeMap::new(),
        };
        let first_use = match superblock.first_use.get() {
            0 => u64::MAX,
            first => first,
        };
        let incarnation = superblock.incarnation.get();
        let writer = Writer { incarnation, segment_use: first_use };
        facts.note_life(writer, superblock.first_sequence.get());
        facts
    }

    /// There was a life with this first sequence, and it had this use of a segment. What the newest
    /// one found below was read after a flush (rule 1), so all of that was durable.
    pub fn note_life(&mut self, writer: Writer, first_sequence: u64) {
        let Writer { incarnation, segment_use } = writer;
        let start = Start { sequence: first_sequence, segment_use };
        let start = self.starts.entry(incarnation).or_insert(start);
        start.segment_use = start.segment_use.min(segment_use);
    }

    /// The newest life and its first sequence.
    #[must_use]
    pub fn newest_life(&self) -> (u64, u64) {
        let newest = self.starts.last_key_value().expect("at least the superblock's");
        (*newest.0, newest.1.sequence)
    }

    /// The newest life: the superblock's, or one that the log has records of, should the device
    /// have lost what that life's start wrote to both superblocks.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.newest_life().0
    }

    /// A record is void from this sequence on (rule 3): a later incarnation started there. All of
    /// them are if it started with this use of a segment, or an earlier one.
    #[must_use]
    pub fn void_from(&self, writer: Writer) -> u64 {
        if canary::breaks(3) {
            return u64::MAX;
        }
        let later = self.starts.range(writer.incarnation + 1..).map(|(_, start)| start);
        let void_from = |start: &Start| {
            if writer.segment_use >= start.segment_use { 0 } else { start.sequence }
        };
        later.map(void_from).min().unwrap_or(u64::MAX)
    }

    /// All lives are known: what the newest one accepted was durable.
    pub fn accept_lives(&mut self) {
        self.durable = self.durable.max(self.newest_life().1.saturating_sub(1));
    }

    /// The first use that the newest life may have had, if that is known.
    #[must_use]
    pub fn first_use(&self) -> Option<u64> {
        let (_, newest) = self.starts.last_key_value().expect("at least the superblock's");
        (newest.segment_use < u64::MAX).then_some(newest.segment_use)
    }

    /// What a record says counts, unless the record is void, or that which it speaks of.
    pub fn note(
        &mut self,
        (writer, sequence): (Writer, u64),
        tail: u64,
        durable: u64,
        watermarks: &[U64; EXPORTS_MAX],
    ) {
        let void_from = self.void_from(writer);
        if sequence >= void_from {
            return;
        }
        if tail <= void_from {
            self.tail = if canary::breaks(2) { tail } else { self.tail.max(tail) };
        }
        if durable < void_from {
            self.durable = self.durable.max(durable);
        }
        for (known, found) in self.watermarks.iter_mut().zip(watermarks) {
            if found.get() < void_from {
                *known = (*known).max(found.get());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LogFacts, Writer};
    use crate::format::Superblock;
    use crate::limits::EXPORTS_MAX;
    use zerocopy::little_endian::U64;

    fn writer(incarnation: u64, segment_use: u64) -> Writer {
        Writer { incarnation, segment_use }
    }

    fn superblock() -> Superblock {
        let mut superblock = Superblock::of_current_version();
        superblock.incarnation = U64::new(7);
        superblock.first_sequence = U64::new(100);
        superblock.first_use = U64::new(20);
        superblock
    }

    #[test]
    fn a_later_life_makes_void_what_it_has_not_accepted() {
        let mut facts = LogFacts::new(&superblock());
        facts.note_life(writer(5, 12), 60);
        assert_eq!(facts.void_from(writer(5, 19)), 100);
        assert_eq!(facts.void_from(writer(5, 20)), 0, "the newest life began with this use");
        assert_eq!(facts.void_from(writer(4, 11)), 60);
        assert_eq!(facts.void_from(writer(4, 12)), 0);
        assert_eq!(facts.void_from(writer(7, 20)), u64::MAX);
        facts.note_life(writer(7, 23), 100);
        assert_eq!(facts.void_from(writer(5, 20)), 0, "it may have had earlier ones");
    }

    #[test]
    fn an_older_superblock_does_not_say_where_its_life_began() {
        let mut superblock = superblock();
        superblock.first_use = U64::ZERO;
        let mut facts = LogFacts::new(&superblock);
        assert_eq!(facts.void_from(writer(5, 30)), 100);
        facts.note_life(writer(7, 30), 100);
        assert_eq!(facts.void_from(writer(5, 30)), 0);
    }

    #[test]
    fn what_is_void_says_nothing() {
        let mut facts = LogFacts::new(&superblock());
        let watermarks = [U64::new(90); EXPORTS_MAX];
        for void in [(writer(5, 19), 100), (writer(5, 20), 50)] {
            facts.note(void, 80, 120, &watermarks);
        }
        facts.note((writer(5, 19), 99), 101, 100, &[U64::new(100); EXPORTS_MAX]);
        assert_eq!((facts.tail, facts.durable, facts.watermarks[0]), (0, 0, 0));
        facts.note((writer(5, 19), 99), 80, 95, &watermarks);
        assert_eq!((facts.tail, facts.durable, facts.watermarks[0]), (80, 95, 90));
        facts.accept_lives();
        assert_eq!(facts.durable, 99, "what the newest life found");
    }

    /// Tail and watermarks of a superblock may be newer than every record that is left.
    #[test]
    fn a_superblock_says_what_was_durable() {
        let mut superblock = superblock();
        superblock.durable = U64::new(130);
        let mut facts = LogFacts::new(&superblock);
        facts.accept_lives();
        assert_eq!(facts.durable, 130);
    }
}
