//! Promise 4: the origin's content, taken alone, is a disk that could have existed.
//!
//! A write submitted at moment *t* that the origin may show proves that the disk existed at *t*;
//! so everything its client knew to be durable before *t* must be there too, in every state that
//! a power cut could leave the origin in. The *horizon* is the latest such *t*. It only grows,
//! so that each write becomes required once and the check is linear.
//!
//! `relaxed` order promises less: each unit shows something that was written there, and nothing
//! older than what the last drain has put there.

use super::{Checker, Resolution};
use crate::content::{GARBAGE, Value, ZEROES};
use crate::violation::{Kind, Violation};

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
}

impl OriginLedger {
    /// The ledger of an export's origin of so many units.
    #[must_use]
    pub fn new(export: u8, units: usize, strict: bool) -> Self {
        Self { export, strict, horizon: 0, required: vec![0; units], position: 0 }
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
        let mut horizon = ledger.horizon;
        for (&value, unit) in values.iter().zip(first_unit..) {
            self.check_origin_value(ledger.export, unit, value)?;
            if value != ZEROES {
                horizon = horizon.max(self.history.get(value).invoked);
            }
        }
        if ledger.strict {
            ledger.horizon = horizon;
            self.advance(ledger, possible)?;
        }
        for (&value, unit) in values.iter().zip(first_unit..) {
            let required = ledger.required[unit];
            if required != 0 && self.origin_value_is_before(ledger.export, unit, value, required) {
                return Err(self.illegal(ledger, unit, value, required));
            }
        }
        Ok(())
    }

    /// Makes required what was durable before the horizon, and checks that it is there.
    fn advance<P: Iterator<Item = Value>>(
        &self,
        ledger: &mut OriginLedger,
        possible: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        let order = self.history.flushed_order(ledger.export);
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
                let older =
                    |value: &Value| self.origin_value_is_before(ledger.export, unit, *value, id);
                if let Some(value) = possible(unit).find(older) {
                    return Err(self.illegal(ledger, unit, value, id));
                }
            }
        }
        Ok(())
    }

    /// A value that an origin is given is one that its clients wrote there, and have not lost.
    fn check_origin_value(&self, export: u8, unit: usize, value: Value) -> Result<(), Violation> {
        let place = format!("unit {unit} of the origin of export {export}");
        if value == ZEROES {
            let zeroes = &self.exports[usize::from(export)].zeroes[unit];
            if zeroes.iter().any(|id| !self.history.get(*id).lost) {
                return Ok(());
            }
            let detail = format!("{place} is given zeroes that nobody wrote");
            return Err(Violation::new(Kind::Garbage, detail));
        }
        if value == GARBAGE || !self.history.names(value) {
            return Err(Violation::new(Kind::Garbage, format!("{place} is given garbage")));
        }
        let write = self.history.get(value);
        if write.lost || !write.covers(export, unit) {
            let found = self.history.describe(value);
            return Err(Violation::new(Kind::OriginAhead, format!("{place} is given {found}")));
        }
        Ok(())
    }

    /// Whether every write that an origin's value may stand for came before `id`.
    #[must_use]
    pub fn origin_value_is_before(&self, export: u8, unit: usize, value: Value, id: u32) -> bool {
        if value != ZEROES {
            return self.history.is_before(value, id);
        }
        let zeroes = &self.exports[usize::from(export)].zeroes[unit];
        zeroes.iter().all(|&zero| self.history.get(zero).lost || self.history.is_before(zero, id))
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
        if value != ZEROES && (self.history.get(value).lost || resolution.takes(value)) {
            let found = self.history.describe(value);
            let detail = format!("unit {unit} of the origin of export {export} shows {found}");
            return Err(Violation::new(Kind::OriginAhead, detail));
        }
        Ok(())
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
        for (&required, unit) in ledger.required.iter().zip(0..) {
            let older =
                |value: &Value| self.origin_value_is_before(ledger.export, unit, *value, required);
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

    /// Everything answered before a moment is what the origin shows, whatever fails now.
    ///
    /// # Errors
    /// When some unit may show something older.
    pub fn check_origin_caught_up<P: Iterator<Item = Value>>(
        &self,
        export: u8,
        before: u64,
        possible: impl Fn(usize) -> P,
    ) -> Result<(), Violation> {
        for (candidates, unit) in self.exports[usize::from(export)].candidates.iter().zip(0..) {
            for &id in candidates.iter().filter(|id| self.is_owed(**id, before)) {
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
