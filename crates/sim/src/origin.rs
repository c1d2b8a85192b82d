//! A simulated origin: the values its units show, and those a power cut could leave there.
//!
//! An origin holds values, not bytes: what it is told to write is identified first, so that
//! bytes which are nobody's data are found at once.

use crate::checker::{Checker, OriginLedger};
use crate::content::Value;
use crate::random::Random;
use crate::violation::Violation;
use smallvec::{SmallVec, smallvec};

/// Names a write of an origin. Zero stands for what is durable.
type Serial = u64;

/// A value that a unit may show after a power cut.
#[derive(Clone, Copy, Debug)]
struct Possible {
    serial: Serial,
    value: Value,
}

/// A write that is not yet durable.
#[derive(Clone, Debug)]
struct PendingWrite {
    serial: Serial,
    first_unit: usize,
    values: Vec<Value>,
    /// Its place in the order of completions; `None` while in flight.
    completion: Option<u64>,
}

/// The medium of an export's origin.
#[derive(Clone, Debug)]
pub struct SimOrigin {
    /// What promise 4 demands of it so far.
    ledger: OriginLedger,
    /// When it last lost, or may have lost, something it had shown: a moment of the history.
    pub disturbed: u64,
    live: Vec<Value>,
    /// Per unit, what a power cut could leave: the durable value and those not flushed.
    possible: Vec<SmallVec<[Possible; 2]>>,
    pending: Vec<PendingWrite>,
    serials: u64,
    completions: u64,
}

impl SimOrigin {
    /// An origin whose units all show `initial`.
    #[must_use]
    pub fn new(ledger: OriginLedger, units: usize, initial: Value) -> Self {
        Self {
            ledger,
            disturbed: 0,
            live: vec![initial; units],
            possible: vec![smallvec![Possible { serial: 0, value: initial }]; units],
            pending: Vec::new(),
            serials: 0,
            completions: 0,
        }
    }

    /// What the units show now.
    #[must_use]
    pub fn live(&self) -> &[Value] {
        &self.live
    }

    /// The values that a unit could show after a power cut.
    pub fn possible(&self, unit: usize) -> impl Iterator<Item = Value> {
        self.possible[unit].iter().map(|possible| possible.value)
    }

    /// Nothing is required of it any more but that it shows what was written there.
    pub fn forget_order(&mut self) {
        self.ledger = OriginLedger::new(self.ledger.export(), self.live.len(), false);
    }

    /// Checks a write that is about to be submitted against promises 4 and 5.
    ///
    /// # Errors
    /// See [`Checker::check_origin_write`].
    pub fn check(
        &mut self,
        checker: &Checker,
        first_unit: usize,
        values: &[Value],
    ) -> Result<(), Violation> {
        let possible =
            |unit: usize| self.possible[unit].iter().map(|possible: &Possible| possible.value);
        checker.check_origin_write(&mut self.ledger, first_unit, values, possible)
    }

    /// Checks all that it may show at this moment.
    ///
    /// # Errors
    /// See [`Checker::check_origin_now`].
    pub fn check_now(&self, checker: &Checker) -> Result<(), Violation> {
        checker.check_origin_now(&self.ledger, |unit| self.possible(unit))
    }

    /// A drain of everything answered before a moment has been answered.
    ///
    /// # Errors
    /// See [`Checker::check_origin_caught_up`].
    pub fn drained(&mut self, checker: &Checker, export: u8, before: u64) -> Result<(), Violation> {
        checker.check_origin_caught_up(export, 0..before, |unit| self.possible(unit))?;
        checker.require_drained(&mut self.ledger, before);
        Ok(())
    }

    /// Takes a write. It shows once it has completed; from now on it may survive a power cut.
    pub fn submit(&mut self, first_unit: usize, values: Vec<Value>) -> u64 {
        self.serials += 1;
        let serial = self.serials;
        for (&value, unit) in values.iter().zip(first_unit..) {
            self.possible[unit].push(Possible { serial, value });
        }
        self.pending.push(PendingWrite { serial, first_unit, values, completion: None });
        serial
    }

    /// A write has ended well.
    pub fn complete(&mut self, serial: u64) {
        self.completions += 1;
        let write = self.pending.iter_mut().rfind(|write| write.serial == serial);
        let write = write.expect("a pending write");
        write.completion = Some(self.completions);
        self.live[write.first_unit..][..write.values.len()].copy_from_slice(&write.values);
    }

    /// A write has ended with an error: any part of it may have taken effect.
    pub fn fail(&mut self, serial: u64, random: &mut Random) {
        let at = self.pending.iter().rposition(|write| write.serial == serial);
        let write = self.pending.remove(at.expect("a pending write"));
        let percent = random.pick(&[0, 50, 100]);
        for (&value, unit) in write.values.iter().zip(write.first_unit..) {
            if random.percent(percent) {
                // It shows, but no flush covers it: only another write of the unit does.
                self.live[unit] = value;
            } else {
                self.possible[unit].retain(|possible| possible.serial != serial);
            }
        }
    }

    /// Per unit, whether a power cut could change what it shows.
    #[must_use]
    pub fn unflushed(&self) -> Vec<bool> {
        self.possible.iter().map(|possible| possible.len() > 1).collect()
    }

    /// Whether writes have ended well that no flush has covered yet.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        self.pending.iter().any(|write| write.completion.is_some())
    }

    /// What a flush that is submitted now will cover.
    #[must_use]
    pub fn cover(&self) -> u64 {
        self.completions
    }

    /// A flush has ended well.
    pub fn complete_flush(&mut self, cover: u64) {
        let covered = |write: &PendingWrite| write.completion.is_some_and(|at| at <= cover);
        let mut done: Vec<_> = self.pending.extract_if(.., |write| covered(write)).collect();
        done.sort_by_key(|write| write.completion);
        for write in done {
            for (&value, unit) in write.values.iter().zip(write.first_unit..) {
                let possible = &mut self.possible[unit];
                possible.retain(|other| other.serial > write.serial);
                possible.insert(0, Possible { serial: 0, value });
            }
        }
    }

    /// A flush has failed: as with many systems, some of what it should have covered will never
    /// become durable unless it is written again, and may even cease to show.
    pub fn fail_flush(&mut self, random: &mut Random, may_revert: bool) {
        let drop_percent = random.pick(&[0, 50, 100]);
        let reverts = random.percent(50) && may_revert;
        for write in self.pending.extract_if(.., |write| write.completion.is_some()) {
            for (&value, unit) in write.values.iter().zip(write.first_unit..) {
                let kept = !random.percent(drop_percent);
                let possible = &mut self.possible[unit];
                if kept {
                    possible.retain(|other| other.serial > write.serial);
                    possible.insert(0, Possible { serial: 0, value });
                } else if reverts && self.live[unit] == value {
                    possible.retain(|other| other.serial != write.serial);
                    self.live[unit] = possible.last().map_or(value, |other| other.value);
                }
            }
        }
    }

    /// The power fails: of the writes not flushed any part survives.
    pub fn power_cut(&mut self, random: &mut Random) {
        self.pending.clear();
        let newest_percent = random.pick(&[0, 50, 100]);
        for (live, possible) in self.live.iter_mut().zip(&mut self.possible) {
            let survivor = if random.percent(newest_percent) {
                possible[possible.len() - 1]
            } else {
                possible[random.index(possible.len())]
            };
            *live = survivor.value;
            *possible = smallvec![Possible { serial: 0, value: survivor.value }];
        }
    }

    /// The process that used the origin is gone, the power is not: what was in flight ends in
    /// the kernel or never left the process.
    pub fn abandon_in_flight(&mut self, random: &mut Random) {
        let in_flight: Vec<_> = self
            .pending
            .iter()
            .filter(|write| write.completion.is_none())
            .map(|write| write.serial)
            .collect();
        for serial in in_flight {
            if random.percent(50) {
                self.complete(serial);
            } else {
                self.fail(serial, random);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> SimOrigin {
        SimOrigin::new(OriginLedger::new(0, 4, true), 4, 1)
    }

    #[test]
    fn what_was_not_flushed_may_vanish() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..64 {
            let mut origin = origin();
            let serial = origin.submit(1, vec![5]);
            origin.complete(serial);
            assert_eq!(origin.live(), [1, 5, 1, 1]);
            origin.power_cut(&mut Random::new(seed));
            left.insert(origin.live()[1]);
        }
        assert_eq!(left.into_iter().collect::<Vec<_>>(), [1, 5]);
    }

    #[test]
    fn a_flush_covers_only_what_had_completed() {
        let mut origin = origin();
        let first = origin.submit(0, vec![5]);
        origin.complete(first);
        let second = origin.submit(1, vec![6]);
        let cover = origin.cover();
        origin.complete(second);
        origin.complete_flush(cover);
        assert_eq!(origin.possible(0).collect::<Vec<_>>(), [5]);
        assert_eq!(origin.possible(1).collect::<Vec<_>>(), [1, 6]);
    }
}
