//! Promises 2 and 3: what a read may show.

use super::{Checker, History, ReadToken};
use crate::content::{GARBAGE, Value, ZEROES};
use crate::violation::{Kind, Violation};

/// What a read showed, and where.
struct Shown<'a> {
    export: u8,
    first_unit: usize,
    values: &'a [Value],
    invoked: u64,
}

impl Shown<'_> {
    fn units(&self) -> impl Iterator<Item = (usize, Value)> {
        (self.first_unit..).zip(self.values.iter().copied())
    }
}

impl Checker {
    /// A client submits a read.
    pub fn submit_read(&mut self) -> ReadToken {
        let invoked = self.history.tick();
        self.reads_in_flight.push(invoked);
        ReadToken { invoked }
    }

    /// A read has ended without data.
    pub fn fail_read(&mut self, token: ReadToken) {
        let at = self.reads_in_flight.iter().position(|invoked| *invoked == token.invoked);
        self.reads_in_flight.swap_remove(at.expect("a read in flight"));
    }

    /// A read was answered with these values of consecutive units.
    ///
    /// # Errors
    /// When no order of all writes explains them.
    pub fn answer_read(
        &mut self,
        token: ReadToken,
        export: u8,
        first_unit: usize,
        values: &[Value],
    ) -> Result<(), Violation> {
        self.fail_read(token);
        self.answer_part(token, export, first_unit, values)
    }

    /// A part of a read was answered with these values; the rest could not be read.
    ///
    /// # Errors
    /// As [`Checker::answer_read`].
    pub fn answer_part(
        &mut self,
        token: ReadToken,
        export: u8,
        first_unit: usize,
        values: &[Value],
    ) -> Result<(), Violation> {
        let now = self.history.tick();
        let shown = Shown { export, first_unit, values, invoked: token.invoked };
        let mut seen: Vec<u32> = Vec::new();
        for (unit, value) in shown.units() {
            if unit > first_unit && self.is_like_previous(&shown, unit) {
                continue;
            }
            self.check_candidate(export, unit, value)?;
            self.check_fresh(&shown, unit, value)?;
            if let Some(writer) = self.writer(export, unit, value)
                && seen.last() != Some(&writer)
            {
                seen.push(writer);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        for &writer in &seen {
            self.check_whole(&shown, writer)?;
        }
        for &writer in &seen {
            self.history.seen(writer, now);
        }
        for (unit, value) in shown.units() {
            self.decide(export, unit, value);
        }
        Ok(())
    }

    /// Whether a unit shows what the one before it shows, of the same candidates: then it is as
    /// right as that one, and orders the same writes.
    fn is_like_previous(&self, shown: &Shown<'_>, unit: usize) -> bool {
        let candidates = &self.exports[usize::from(shown.export)].candidates;
        let at = unit - shown.first_unit;
        shown.values[at] == shown.values[at - 1] && candidates[unit] == candidates[unit - 1]
    }

    /// The value is one that the unit may have at all.
    pub(super) fn check_candidate(
        &self,
        export: u8,
        unit: usize,
        value: Value,
    ) -> Result<(), Violation> {
        let candidates = &self.exports[usize::from(export)].candidates[unit];
        let known = match value {
            ZEROES => self.zero_candidates(export, unit).next().is_some(),
            _ => candidates.contains(&value),
        };
        if known {
            return Ok(());
        }
        let expected: Vec<_> = candidates.iter().map(|id| self.history.describe(*id)).collect();
        let expected = expected.join(", ");
        let place = format!("unit {unit} of export {export}");
        Err(if value == ZEROES {
            Violation::new(Kind::Stale, format!("{place} shows zeroes; expected {expected}"))
        } else if value == GARBAGE || !self.history.names(value) {
            Violation::new(Kind::Garbage, format!("{place} shows garbage; expected {expected}"))
        } else {
            let found = self.history.describe(value);
            Violation::new(Kind::Stale, format!("{place} shows {found}; expected {expected}"))
        })
    }

    /// Whether a write had certainly taken effect before a read of this life was submitted.
    fn precedes(&self, id: u32, invoked: u64) -> bool {
        let write = self.history.get(id);
        // What was settled before the last restart counts only if no crash could take it.
        write.settled < invoked && (write.settled >= self.restarted || self.history.is_durable(id))
    }

    /// Nothing that took effect before the read was submitted is newer than what it shows; and
    /// what ran at the same time as the shown write, but is older than the read, came before it.
    fn check_fresh(
        &mut self,
        shown: &Shown<'_>,
        unit: usize,
        value: Value,
    ) -> Result<(), Violation> {
        let writer = self.writer(shown.export, unit, value);
        let mut newly_ordered = Vec::new();
        for &other in self.exports[usize::from(shown.export)].candidates[unit].iter() {
            if Some(other) == writer || !self.precedes(other, shown.invoked) {
                continue;
            }
            if self.value_is_before(shown.export, unit, value, other) {
                return Err(Violation::new(
                    Kind::Stale,
                    format!(
                        "unit {unit} of export {} shows {} to a read submitted at {}, after {}",
                        shown.export,
                        writer.map_or("zeroes".into(), |id| self.history.describe(id)),
                        shown.invoked,
                        self.history.describe(other),
                    ),
                ));
            }
            if let Some(writer) = writer
                && !self.history.is_before(other, writer)
            {
                newly_ordered.push((other, writer));
            }
        }
        for (first, second) in newly_ordered {
            self.history.order(first, second);
        }
        Ok(())
    }

    /// Where the read shows something else than `writer` inside the writer's range, that must be
    /// newer: the writer took effect as a whole.
    fn check_whole(&mut self, shown: &Shown<'_>, writer: u32) -> Result<(), Violation> {
        let write = self.history.get(writer);
        let first = write.first_unit.max(shown.first_unit);
        let end = (write.first_unit + write.units).min(shown.first_unit + shown.values.len());
        let mut previous = writer;
        for unit in first..end {
            let value = shown.values[unit - shown.first_unit];
            let other = self.writer(shown.export, unit, value);
            if other == Some(previous) || other == Some(writer) {
                continue;
            }
            previous = other.unwrap_or(previous);
            let torn = match other {
                Some(other) => !self.history.order(writer, other),
                None => self.value_is_before(shown.export, unit, value, writer),
            };
            if torn {
                return Err(Violation::new(
                    Kind::Torn,
                    format!(
                        "a read shows a part of {}, but unit {unit} still shows {}",
                        self.history.describe(writer),
                        other.map_or("zeroes".into(), |id| self.history.describe(id)),
                    ),
                ));
            }
        }
        Ok(())
    }

    /// After a crash the first read that shows an older life's write decides what the crash left
    /// there. A write of this life decides nothing: the next crash may take it, too.
    fn decide(&mut self, export: u8, unit: usize, value: Value) {
        let restarted = self.restarted;
        let old = |history: &History, id: u32| history.get(id).invoked < restarted;
        if !self.exports[usize::from(export)].undecided[unit] {
            return;
        }
        let Some(writer) = self.writer(export, unit, value) else { return };
        if old(&self.history, writer) {
            self.history.recover(writer);
            let registers = &mut self.exports[usize::from(export)];
            registers.candidates[unit].retain(|&mut id| id == writer || !old(&self.history, id));
            registers.undecided[unit] = false;
        }
    }
}
