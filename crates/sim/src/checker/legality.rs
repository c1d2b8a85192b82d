//! Promise 4: the origin's content, taken alone, is a disk that could have existed.
//!
//! A write submitted at moment *t* that the origin may show proves that the disk existed at *t*;
//! so everything its client knew to be durable before *t* must be there too, in every state that
//! a power cut could leave the origin in. The *horizon* is the latest such *t*. It only grows,
//! so that each write becomes required once and the check is linear.
//!
//! Zeroes do not name their write. They prove the oldest moment of those that they may stand for;
//! what is older than a required write of the same unit is none of them.
//!
//! `relaxed` order promises less: each unit shows something that was written there, and nothing
//! older than what the last drain has put there.

use super::{Checker, Resolution};
use crate::content::{GARBAGE, Value, ZEROES};
use crate::violation::{Kind, Violation};
use std::cell::Cell;
use std::ops::Range;

/// What promise 4 demands of one origin so far.
#[derive(Clone, Debug)]
pub struct OriginLedger {
    export: u8,
    strict: bool,
    horizon: u64,
    /// Per unit, the newest write that must be there; zero for none.
    required: Vec<u32>,
    /// How much of the export's flushed order is required.
    position: usize,
    /// Per unit, how many of its oldest writes of zeroes cannot be what the origin is given.
    zeroes_behind: Vec<usize>,
}

impl OriginLedger {
    /// The ledger of an export's origin of so many units.
    #[must_use]
    pub fn new(export: u8, units: usize, strict: bool) -> Self {
        Self {
            export,
            strict,
            horizon: 0,
            required: vec![0; units],
            position: 0,
            zeroes_behind: vec![0; units],
        }
    }

    /// Whose origin it is about.
    #[must_use]
    pub fn export(&self) -> u8 {
        self.export
    }
}

/// Compares the ages of an origin's values with those of writes. Neighbours mostly show the same
/// write's data, so the last answer is kept.
struct Ages<'a> {
    checker: &'a Checker,
    export: u8,
    last: Cell<(Value, u32, bool)>,
}

impl<'a> Ages<'a> {
    fn new(checker: &'a Checker, export: u8) -> Self {
        Self { checker, export, last: Cell::new((ZEROES, 0, false)) }
    }

    /// See [`Checker::origin_value_is_before`].
    fn is_before(&self, unit: usize, value: Value, id: u32) -> bool {
        let (last_value, last_id, answer) = self.last.get();
        if value == ZEROES {
            return self.checker.origin_value_is_before(self.export, unit, value, id);
        }
        if (value, id) == (last_value, last_id) {
            return answer;
        }
        let answer = self.checker.history.is_before(value, id);
        self.last.set((value, id, answer));
        answer
    }
}

impl Checker {
    /// The engine submits a write of these values to an origin. `possible` tells the values that
    /// a unit of the origin may show after a power cut, this write not included.
    ///
    /// # Errors
    /// When a value does not belong there, or some subset of the unflushed writes would make the
    /// origin a disk that never could have existed.
    pub fn check_origin_write<P: Iterator<Item = Value>>(
        &self,
        ledger: &mut OriginLedger,
        first_unit: usize,
        values: &[Value],
        possible: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        let mut unit = first_unit;
        for run in values.chunk_by(|one, other| one == other) {
            let (value, units) = (run[0], unit..unit + run.len());
            unit = units.end;
            self.check_origin_value(ledger.export, units.clone(), value)?;
            if !ledger.strict {
                continue;
            }
            if value == ZEROES {
                units.for_each(|unit| self.note_zeroes(ledger, unit));
            } else {
                ledger.horizon = ledger.horizon.max(self.history.get(value).invoked);
            }
        }
        if ledger.strict {
            let given = |unit: usize| values.get(unit.checked_sub(first_unit)?).copied();
            self.advance(ledger, |unit| possible(unit).chain(given(unit)))?;
        }
        let ages = Ages::new(self, ledger.export);
        for (&value, unit) in values.iter().zip(first_unit..) {
            let required = ledger.required[unit];
            if required != 0 && ages.is_before(unit, value, required) {
                return Err(self.illegal(ledger, unit, value, required));
            }
        }
        Ok(())
    }

    /// A unit is given zeroes, or may show them: the horizon is at least at the oldest write that
    /// they may stand for.
    fn note_zeroes(&self, ledger: &mut OriginLedger, unit: usize) {
        let zeroes = &self.exports[usize::from(ledger.export)].zeroes[unit];
        let (required, behind) = (ledger.required[unit], &mut ledger.zeroes_behind[unit]);
        // What is lost stays lost, and what is behind stays behind: each write is passed once.
        while let Some(&id) = zeroes.get(*behind) {
            let write = self.history.get(id);
            let is_behind = required != 0 && self.history.is_before(id, required);
            if !write.lost && !is_behind {
                ledger.horizon = ledger.horizon.max(write.invoked);
                return;
            }
            *behind += 1;
        }
    }

    /// Makes required what was durable before the horizon, and checks that it is there.
    fn advance<P: Iterator<Item = Value>>(
        &self,
        ledger: &mut OriginLedger,
        shown: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        let order = self.history.flushed_order(ledger.export);
        let ages = Ages::new(self, ledger.export);
        while let Some(&id) = order.get(ledger.position) {
            let write = self.history.get(id);
            if write.flushed >= ledger.horizon {
                break;
            }
            ledger.position += 1;
            for unit in write.first_unit..write.first_unit + write.units {
                let required = ledger.required[unit];
                if required != 0 && self.history.is_before(id, required) {
                    continue;
                }
                ledger.required[unit] = id;
                for value in shown(unit) {
                    if ages.is_before(unit, value, id) {
                        return Err(self.illegal(ledger, unit, value, id));
                    }
                    if value == ZEROES {
                        // Those that are not older may all be of a later epoch.
                        self.note_zeroes(ledger, unit);
                    }
                }
            }
        }
        Ok(())
    }

    /// A value that some units of an origin are given is one that its clients wrote there, and
    /// have not lost.
    fn check_origin_value(
        &self,
        export: u8,
        units: Range<usize>,
        value: Value,
    ) -> Result<(), Violation> {
        if value == ZEROES {
            let zeroes = &self.exports[usize::from(export)].zeroes;
            let nobody_wrote =
                |unit: &usize| zeroes[*unit].iter().rev().all(|id| self.history.get(*id).lost);
            let Some(unit) = units.clone().find(nobody_wrote) else { return Ok(()) };
            let place = format!("unit {unit} of the origin of export {export}");
            let detail = format!("{place} is given zeroes that nobody wrote");
            return Err(Violation::new(Kind::Garbage, detail));
        }
        let place = || format!("units {units:?} of the origin of export {export}");
        if value == GARBAGE || !self.history.names(value) {
            return Err(Violation::new(Kind::Garbage, format!("{} is given garbage", place())));
        }
        let write = self.history.get(value);
        let covered = write.covers(export, units.start) && write.covers(export, units.end - 1);
        if write.lost || !covered {
            let found = self.history.describe(value);
            return Err(Violation::new(Kind::OriginAhead, format!("{} is given {found}", place())));
        }
        Ok(())
    }

    /// Whether every write that an origin's value may stand for came before `id`.
    #[must_use]
    pub fn origin_value_is_before(&self, export: u8, unit: usize, value: Value, id: u32) -> bool {
        if value != ZEROES {
            return self.history.is_before(value, id);
        }
        // The newest first: if any did not come before, it is that.
        let mut zeroes = self.exports[usize::from(export)].zeroes[unit].iter().rev();
        zeroes.all(|&zero| self.history.get(zero).lost || self.history.is_before(zero, id))
    }

    /// After a restart: the origin shows nothing that the restart has lost.
    ///
    /// # Errors
    /// When it does.
    pub fn check_origin_after_restart(
        &self,
        resolution: &Resolution,
        export: u8,
        unit: usize,
        value: Value,
    ) -> Result<(), Violation> {
        if value != ZEROES && self.is_gone(resolution, value) {
            let found = self.history.describe(value);
            let detail = format!("unit {unit} of the origin of export {export} shows {found}");
            return Err(Violation::new(Kind::OriginAhead, detail));
        }
        Ok(())
    }

    /// Whether a value of an origin may be that of a write which the restart has lost. Zeroes do
    /// not name their write: they may where such a write was of zeroes, and the cache shows others.
    #[must_use]
    pub fn is_ahead(&self, resolution: &Resolution, export: u8, unit: usize, value: Value) -> bool {
        if value != ZEROES {
            return self.is_gone(resolution, value);
        }
        let zeroes = &self.exports[usize::from(export)].zeroes[unit];
        let is_gone = |id: &u32| self.is_gone(resolution, *id);
        !resolution.shows(export, unit, ZEROES) && zeroes.iter().any(is_gone)
    }

    fn is_gone(&self, resolution: &Resolution, id: u32) -> bool {
        self.history.get(id).lost || resolution.takes(id)
    }

    /// Checks the whole origin as it is at this moment, whatever a power cut now takes of it.
    ///
    /// # Errors
    /// When a unit may show something older than what must be there.
    pub fn check_origin_now<P: Iterator<Item = Value>>(
        &self,
        ledger: &OriginLedger,
        possible: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        let ages = Ages::new(self, ledger.export);
        for (&required, unit) in ledger.required.iter().zip(0..) {
            let older = |value: &Value| ages.is_before(unit, *value, required);
            if required != 0
                && let Some(value) = possible(unit).find(older)
            {
                return Err(self.illegal(ledger, unit, value, required));
            }
        }
        Ok(())
    }

    /// A drain was answered: what it owed must be there from now on, in any order of destage.
    pub fn require_drained(&self, ledger: &mut OriginLedger, before: u64) {
        let candidates = &self.exports[usize::from(ledger.export)].candidates;
        for (required, candidates) in ledger.required.iter_mut().zip(candidates) {
            for &id in candidates.iter().filter(|id| self.is_owed(**id, before)) {
                if *required == 0 || self.history.is_before(*required, id) {
                    *required = id;
                }
            }
        }
    }

    /// Everything submitted from a moment on and answered before another is what the origin shows,
    /// whatever fails now.
    ///
    /// # Errors
    /// When some unit may show something older.
    pub fn check_origin_caught_up<P: Iterator<Item = Value>>(
        &self,
        export: u8,
        moments: Range<u64>,
        possible: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        let is_owed = |id: &u32| {
            self.history.get(*id).invoked >= moments.start && self.is_owed(*id, moments.end)
        };
        for (candidates, unit) in self.exports[usize::from(export)].candidates.iter().zip(0..) {
            for &id in candidates.iter().filter(|id| is_owed(id)) {
                let older = |value: &Value| self.origin_value_is_before(export, unit, *value, id);
                if let Some(value) = possible(unit).find(older) {
                    let found = if value == ZEROES {
                        "zeroes".into()
                    } else {
                        self.history.describe(value)
                    };
                    return Err(Violation::new(
                        Kind::OriginBehind,
                        format!(
                            "unit {unit} of the origin of export {export} may show {found}, not {}",
                            self.history.describe(id)
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether a write was answered before a moment and no crash has taken it since.
    fn is_owed(&self, id: u32, before: u64) -> bool {
        let answered = self.history.get(id).answered;
        answered < before && (answered >= self.restarted || self.history.is_durable(id))
    }

    fn illegal(&self, ledger: &OriginLedger, unit: usize, value: Value, id: u32) -> Violation {
        let found = if value == ZEROES { "zeroes".into() } else { self.history.describe(value) };
        Violation::new(
            Kind::OriginIllegal,
            format!(
                "the origin of export {} may show {found} at unit {unit}; its client knew to be \
                 durable before {}, when something else that it shows was submitted, or it had \
                 been drained of, {}",
                ledger.export,
                ledger.horizon,
                self.history.describe(id),
            ),
        )
    }
}
