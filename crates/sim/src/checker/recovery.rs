//! Promise 1: what a restart may show, and that what survives is a prefix of what was written.

use super::Checker;
use crate::content::{UNREADABLE, Value, ZEROES};
use crate::violation::{Kind, Violation};

/// The values of all units of all exports, as read after a restart.
pub type Contents = Vec<Vec<Value>>;

/// What a restart decided: per export and unit, the write that survived.
#[derive(Clone, Debug)]
pub struct Resolution {
    survivors: Vec<Vec<Option<u32>>>,
    lost: Vec<u32>,
}

impl Checker {
    /// Power or process is gone: what was not durable may or may not come back, and no request
    /// is in flight any more.
    pub fn crash(&mut self) {
        self.restarted = self.history.end_life();
        self.reads_in_flight.clear();
        for registers in &mut self.exports {
            for (candidates, undecided) in registers.candidates.iter().zip(&mut registers.undecided)
            {
                *undecided |= candidates.len() > 1;
            }
        }
    }

    /// Checks everything that was read after a restart, before any new write.
    ///
    /// # Errors
    /// When something durable is gone, something is torn, or the survivors are no prefix.
    pub fn check_recovered(&self, contents: &Contents) -> Result<Resolution, Violation> {
        let mut survivors = Vec::with_capacity(contents.len());
        let mut lost = Vec::new();
        for (values, export) in contents.iter().zip(0..) {
            let mut of_export = Vec::with_capacity(values.len());
            for (unit, &value) in values.iter().enumerate() {
                of_export.push(self.check_survivor(export, unit, value, &mut lost)?);
            }
            survivors.push(of_export);
        }
        lost.sort_unstable();
        lost.dedup();
        let mut resolution = Resolution { survivors, lost };
        self.attribute_zeroes(contents, &mut resolution)?;
        self.check_prefix(&resolution)?;
        Ok(resolution)
    }

    /// Checks one unit. Returns the write it shows, and collects the newer ones that are gone.
    fn check_survivor(
        &self,
        export: u8,
        unit: usize,
        value: Value,
        lost: &mut Vec<u32>,
    ) -> Result<Option<u32>, Violation> {
        if value == UNREADABLE {
            return Ok(None);
        }
        self.check_candidate(export, unit, value).map_err(|violation| match violation.kind {
            // Whatever is no longer a candidate has been covered by something durable.
            Kind::Stale => Violation { kind: Kind::Lost, ..violation },
            _ => violation,
        })?;
        let candidates = &self.exports[usize::from(export)].candidates[unit];
        for &other in candidates {
            if !self.value_is_before(export, unit, value, other) {
                continue;
            }
            if self.history.is_durable(other) {
                return Err(Violation::new(
                    Kind::Lost,
                    format!(
                        "after a restart unit {unit} of export {export} shows {}, but durable was {}",
                        if value == ZEROES {
                            "zeroes".into()
                        } else {
                            self.history.describe(value)
                        },
                        self.history.describe(other),
                    ),
                ));
            }
            lost.push(other);
        }
        // Whose zeroes they are is decided once it is known which writes are gone.
        Ok((value != ZEROES).then_some(value))
    }

    /// Zeroes come from the newest write of zeroes that is not gone as a whole.
    fn attribute_zeroes(
        &self,
        contents: &Contents,
        resolution: &mut Resolution,
    ) -> Result<(), Violation> {
        let Resolution { survivors, lost } = resolution;
        for ((values, survivors), export) in contents.iter().zip(survivors).zip(0..) {
            for (unit, survivor) in survivors.iter_mut().enumerate() {
                if values[unit] != ZEROES {
                    continue;
                }
                let mut zeroes = self.zero_candidates(export, unit);
                *survivor = zeroes.clone().filter(|id| lost.binary_search(id).is_err()).last();
                if let (None, Some(zero)) = (&survivor, zeroes.next()) {
                    return Err(Violation::new(
                        Kind::Torn,
                        format!(
                            "after a restart unit {unit} of export {export} shows a part of {}, \
                             the rest of which is gone",
                            self.history.describe(zero),
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// No write that survived was submitted after one of the same life that is gone had taken
    /// effect, and none survived in part.
    fn check_prefix(&self, resolution: &Resolution) -> Result<(), Violation> {
        let life_of = |id| self.history.life_of(self.history.get(id).invoked);
        let mut newest: Vec<u32> = vec![0; self.history.life_of(self.history.now()) + 1];
        for &id in resolution.survivors.iter().flatten().flatten() {
            let life = life_of(id);
            let older = self.history.get(newest[life]).invoked < self.history.get(id).invoked;
            if older && !self.history.get(id).zeroes {
                newest[life] = id;
            }
        }
        for &gone in &resolution.lost {
            let newest = newest[life_of(gone)];
            if newest != 0 && self.history.is_before(gone, newest) {
                return Err(Violation::new(
                    Kind::LogOrder,
                    format!(
                        "a crash took {} but left {}",
                        self.history.describe(gone),
                        self.history.describe(newest)
                    ),
                ));
            }
        }
        for (of_export, export) in resolution.survivors.iter().zip(0..) {
            let mut previous = None;
            for survivor in of_export.iter().flatten().copied() {
                if previous != Some(survivor) && !self.history.get(survivor).zeroes {
                    self.check_survivor_whole(export, of_export, survivor)?;
                }
                previous = Some(survivor);
            }
        }
        Ok(())
    }

    fn check_survivor_whole(
        &self,
        export: u8,
        survivors: &[Option<u32>],
        writer: u32,
    ) -> Result<(), Violation> {
        let write = self.history.get(writer);
        let covered = survivors.iter().enumerate().skip(write.first_unit).take(write.units);
        for (unit, other) in covered {
            let Some(other) = *other else { continue };
            if other != writer && self.history.is_before(other, writer) {
                return Err(Violation::new(
                    Kind::Torn,
                    format!(
                        "after a restart export {export} shows a part of {}, but unit {unit} \
                         still shows {}",
                        self.history.describe(writer),
                        self.history.describe(other),
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Makes a checked restart the new beginning.
    pub fn resolve(&mut self, resolution: &Resolution) {
        for &id in &resolution.lost {
            self.history.lose(id);
        }
        for (of_export, export) in resolution.survivors.iter().zip(0..) {
            for (unit, survivor) in of_export.iter().enumerate() {
                let Some(id) = *survivor else { continue };
                self.history.recover(id);
                let registers: &mut super::Registers = &mut self.exports[export];
                registers.candidates[unit].clear();
                registers.candidates[unit].push(id);
                registers.undecided[unit] = false;
            }
        }
    }
}
