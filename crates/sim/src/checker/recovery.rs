//! Promise 1: what a restart may show, and that what survives is a prefix of what was written.

use super::{Checker, NEVER, Writes, prune};
use crate::content::{UNREADABLE, Value, ZEROES};
use crate::violation::{Kind, Violation};
use smallvec::smallvec;
use std::ops::Range;
use std::rc::Rc;

/// The values of all units of all exports, as read after a restart.
pub type Contents = Vec<Vec<Value>>;

/// What a restart decided: per export and unit, the writes whose data it shows. Zeroes may come
/// from several.
#[derive(Clone, Debug)]
pub struct Resolution {
    contents: Contents,
    lost: Vec<u32>,
}

impl Resolution {
    /// Whether the crash took a write.
    #[must_use]
    pub fn takes(&self, id: u32) -> bool {
        self.lost.binary_search(&id).is_ok()
    }

    /// Whether a unit was read, and shows a value.
    #[must_use]
    pub fn shows(&self, export: u8, unit: usize, value: Value) -> bool {
        self.contents[usize::from(export)].get(unit) == Some(&value)
    }
}

/// What damage that a start found took from the log. The origin may have hidden that: what it
/// shows, not flushed, the next power cut can take.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The moment of the start: what was submitted later is not gone.
    pub found: u64,
    /// What clients knew to be durable before this moment is not gone, either,
    pub until: u64,
    /// unless the only copy of it was in these units of some export.
    pub carried: Rc<[Range<u64>]>,
    /// Per export and unit, whether an origin may still hide it. `None` at the start that found it.
    hidden: Option<Rc<[Vec<bool>]>>,
}

impl Loss {
    /// A loss that a start has found just now.
    #[must_use]
    pub fn new(found: u64, until: u64, carried: Rc<[Range<u64>]>) -> Self {
        Self { found, until, carried, hidden: None }
    }

    /// From the next start on it is only what these units had lost that may come out.
    pub fn hide(&mut self, units: &Rc<[Vec<bool>]>) {
        self.hidden.get_or_insert_with(|| units.clone());
    }

    fn may_be_hidden(&self, export: u8, unit: usize) -> bool {
        self.hidden.as_ref().is_none_or(|hidden| hidden[usize::from(export)][unit])
    }

    fn had_carried(&self, unit: usize) -> bool {
        self.carried.iter().any(|units| units.contains(&(unit as u64)))
    }
}

impl Checker {
    /// The power is gone: what was not durable may or may not come back, and no request is in
    /// flight any more.
    pub fn crash(&mut self) {
        self.end_life();
        self.history.lose_power();
    }

    /// The process is gone, and nothing else: what was answered to clients that outlive it comes
    /// back, unless [`Checker::lose_power`] comes first. Returns how much that is.
    pub fn kill(&mut self) -> u64 {
        self.end_life();
        // Not before: a power cut during the start may bring back what this covers.
        self.history.outlive_process()
    }

    /// The power has failed before a start was over.
    pub fn lose_power(&mut self) {
        self.history.lose_power();
    }

    fn end_life(&mut self) {
        self.restarted = self.history.end_life();
        self.reads_in_flight.clear();
        for registers in &mut self.exports {
            let units = registers.candidates.iter_mut().zip(&mut registers.undecided);
            for (candidates, undecided) in units {
                prune(&self.history, candidates, NEVER);
                *undecided |= candidates.len() > 1;
            }
        }
    }

    /// Checks everything that was read after a restart, before any new write.
    ///
    /// # Errors
    /// When something durable is gone, something is torn, or the survivors are no prefix.
    pub fn check_recovered(&self, contents: Contents) -> Result<Resolution, Violation> {
        // Marked, not listed: a write is lost at each of its units.
        let mut gone = vec![false; self.history.len()];
        for (values, export) in contents.iter().zip(0..) {
            let candidates = &self.exports[usize::from(export)].candidates;
            let mut previous = None;
            for (unit, &value) in values.iter().enumerate() {
                // Where neighbours had the same writes and show the same, all is said.
                let same = Some((value, &candidates[unit][..]));
                if previous != same {
                    self.check_survivor(export, unit, value, &mut gone)?;
                    previous = same;
                }
            }
        }
        let lost = (0..).zip(&gone).filter(|(_, gone)| **gone).map(|(id, _)| id).collect();
        let resolution = Resolution { contents, lost };
        self.check_prefix(&resolution)?;
        for (values, export) in resolution.contents.iter().zip(0..) {
            self.check_survivors_whole(&resolution, export, values)?;
        }
        Ok(resolution)
    }

    /// Checks one unit, and collects the writes newer than what it shows: they are gone.
    fn check_survivor(
        &self,
        export: u8,
        unit: usize,
        value: Value,
        gone: &mut [bool],
    ) -> Result<(), Violation> {
        if value == UNREADABLE {
            return Ok(());
        }
        self.check_candidate(export, unit, value).map_err(|violation| match violation.kind {
            // Whatever is no longer a candidate has been covered by something durable.
            Kind::Stale => Violation { kind: Kind::Lost, ..violation },
            _ => violation,
        })?;
        let candidates = &self.exports[usize::from(export)].candidates[unit];
        if candidates.len() == 1 {
            // There is nothing that the crash could have taken.
            return Ok(());
        }
        for &other in candidates.iter() {
            if other == value || !self.value_is_before(export, unit, value, other) {
                continue;
            }
            if self.history.is_durable(other) {
                return Err(Violation::new(
                    Kind::Lost,
                    format!(
                        "after a restart unit {unit} of export {export} shows {}, but durable \
                         was {}",
                        if value == ZEROES {
                            "zeroes".into()
                        } else {
                            self.history.describe(value)
                        },
                        self.history.describe(other),
                    ),
                ));
            }
            gone[other as usize] = true;
        }
        Ok(())
    }

    /// The writes that may have left a value at a unit.
    fn survivors(&self, resolution: &Resolution, export: u8, unit: usize, value: Value) -> Writes {
        match value {
            UNREADABLE => Writes::new(),
            ZEROES => self.zero_survivors(resolution, export, unit).collect(),
            id => smallvec![id],
        }
    }

    /// The writes of zeroes that the crash has not taken, of those a unit may show.
    fn zero_survivors(
        &self,
        resolution: &Resolution,
        export: u8,
        unit: usize,
    ) -> impl DoubleEndedIterator<Item = u32> {
        self.zero_candidates(export, unit).filter(|id| !resolution.takes(*id))
    }

    /// No write that survived was submitted after one of the same life that is gone had taken
    /// effect, and none survived in part.
    fn check_prefix(&self, resolution: &Resolution) -> Result<(), Violation> {
        let life_of = |id| self.history.life_of(self.history.get(id).invoked);
        let mut newest: Vec<u32> = vec![0; self.history.life_of(self.history.now()) + 1];
        let mut previous = ZEROES;
        for &id in resolution.contents.iter().flatten() {
            if id == previous || id == UNREADABLE || id == ZEROES {
                continue;
            }
            previous = id;
            let life = life_of(id);
            if self.history.get(newest[life]).invoked < self.history.get(id).invoked {
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
        Ok(())
    }

    /// No write survived in part.
    fn check_survivors_whole(
        &self,
        resolution: &Resolution,
        export: u8,
        values: &[Value],
    ) -> Result<(), Violation> {
        let mut previous = UNREADABLE;
        for (unit, &value) in values.iter().enumerate() {
            if value == ZEROES && self.zero_survivors(resolution, export, unit).next().is_none() {
                let detail = format!(
                    "after a restart unit {unit} of export {export} shows zeroes of a write that \
                     is gone elsewhere"
                );
                return Err(Violation::new(Kind::Torn, detail));
            }
            if value == previous || value == ZEROES || value == UNREADABLE {
                continue;
            }
            previous = value;
            let write = self.history.get(value);
            let covered = values.iter().enumerate().skip(write.first_unit).take(write.units);
            for (other_unit, &other) in covered {
                if other != value && self.survivor_is_before(resolution, export, other_unit, value)
                {
                    return Err(Violation::new(
                        Kind::Torn,
                        format!(
                            "after a restart export {export} shows a part of {}, but unit \
                             {other_unit} still shows {}",
                            self.history.describe(value),
                            if other == ZEROES {
                                "zeroes".into()
                            } else {
                                self.history.describe(other)
                            },
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Checks a restart after losses that damage explains: nothing else is gone, and every unit
    /// shows something that was written there and that no earlier crash has taken. Returns whether
    /// they explain that anything is.
    ///
    /// # Errors
    /// When something is gone that was in none of them, or shows what belongs elsewhere.
    pub fn check_excused(&self, contents: &Contents, losses: &[Loss]) -> Result<bool, Violation> {
        let mut explains = false;
        let durable = self.known_as_durable();
        for (values, export) in contents.iter().zip(0u8..) {
            for (unit, &value) in values.iter().enumerate() {
                if value == UNREADABLE {
                    continue;
                }
                let mut newer = durable[usize::from(export)][unit]
                    .iter()
                    .filter(|id| self.origin_value_is_before(export, unit, value, **id));
                let took = |id: u32| losses.iter().any(|loss| self.took(loss, id, unit));
                let missing = newer.find(|id| {
                    let is_taken = took(**id);
                    explains |= is_taken;
                    !is_taken
                });
                // What an earlier restart has shown is gone, too, where nobody knows which of two
                // concurrent writes was the later one.
                explains |= self.check_candidate(export, unit, value).is_err()
                    && self.exports[usize::from(export)].candidates[unit]
                        .iter()
                        .any(|id| took(*id));
                let (kind, what) = match (&self.writers(export, unit, value)[..], missing) {
                    ([], _) => (Kind::Garbage, "shows what was never written there".into()),
                    (ids, _) if ids.iter().all(|id| self.history.get(*id).lost) => {
                        let taken = self.history.describe(ids[0]);
                        (Kind::Stale, format!("shows {taken}"))
                    }
                    (_, Some(id)) => (Kind::Lost, format!("lacks {}", self.history.describe(*id))),
                    (_, None) => continue,
                };
                let place = format!("after a restart with damage unit {unit} of export {export}");
                return Err(Violation::new(kind, format!("{place} {what}")));
            }
        }
        Ok(explains)
    }

    /// All writes of a unit that a value may stand for, lost ones included.
    fn writers(&self, export: u8, unit: usize, value: Value) -> Writes {
        match value {
            ZEROES => self.exports[usize::from(export)].zeroes[unit].clone(),
            id if self.history.names(id) && self.history.get(id).covers(export, unit) => {
                smallvec![id]
            }
            _ => Writes::new(),
        }
    }

    /// What a start shows behind a loss that was checked, as a beginning for more lives: nothing
    /// newer may come back. `None` where the log was not cut as any other crash could have cut it:
    /// something cannot be read, a write is gone in part, or an earlier one, of whatever life, or a
    /// read of what is left would show two writes a part of each other.
    pub fn outlive(&mut self, contents: Contents) -> Option<Resolution> {
        for (values, registers) in contents.iter().zip(&mut self.exports) {
            for (unit, &value) in values.iter().enumerate() {
                let candidates = &mut registers.candidates[unit];
                // What had been covered by something durable is a candidate again.
                match value {
                    UNREADABLE => return None,
                    ZEROES => {
                        let zeroes = registers.zeroes[unit].iter().copied();
                        let more = zeroes.filter(|id| !candidates.contains(id));
                        candidates.insert_many(0, more.collect::<Writes>());
                    }
                    id if candidates.contains(&id) => {}
                    id => candidates.insert(0, id),
                }
            }
        }
        let starts = self.starts_of_runs(&contents);
        let mut resolution = Resolution { contents, lost: Vec::new() };
        loop {
            // A write of zeroes that is gone leaves its zeroes to older ones: more may be gone.
            let ids = (1..).take(self.history.len() - 1);
            let lost: Vec<u32> =
                ids.filter(|id| self.is_gone_behind(&resolution, &starts, *id)).collect();
            if lost == resolution.lost {
                break;
            }
            resolution.lost = lost;
        }
        self.check_prefix(&resolution).ok()?;
        let shown = resolution.contents.iter().flatten().filter(|id| **id != ZEROES);
        let newest = shown.max_by_key(|id| self.history.get(**id).invoked);
        if newest.is_some_and(|newest| {
            resolution.lost.iter().any(|&id| self.history.is_before(id, *newest))
        }) {
            return None;
        }
        let mut beginning = self.clone();
        beginning.resolve(&resolution);
        for (values, export) in resolution.contents.iter().zip(0..) {
            self.check_survivors_whole(&resolution, export, values).ok()?;
            let token = beginning.submit_read();
            beginning.answer_read(token, export, 0, values).ok()?;
        }
        Some(resolution)
    }

    /// Per export, the units that show something else than the one before, or where it may stand
    /// for other writes.
    fn starts_of_runs(&self, contents: &Contents) -> Vec<Vec<usize>> {
        let starts = contents.iter().zip(&self.exports).map(|(values, registers)| {
            let shown = |unit: usize| (values[unit], &registers.candidates[unit]);
            (1..values.len()).filter(|&unit| shown(unit) != shown(unit - 1)).collect()
        });
        starts.collect()
    }

    /// Whether some unit of a write shows what came before it.
    fn is_gone_behind(&self, resolution: &Resolution, starts: &[Vec<usize>], id: u32) -> bool {
        let write = self.history.get(id);
        let values = &resolution.contents[usize::from(write.export)];
        if write.lost || write.first_unit >= values.len() {
            return false;
        }
        let starts = &starts[usize::from(write.export)];
        let behind = starts.partition_point(|unit| *unit <= write.first_unit);
        let end = write.first_unit + write.units;
        let inside = starts[behind..].iter().copied().take_while(|unit| *unit < end);
        std::iter::once(write.first_unit)
            .chain(inside)
            .any(|unit| self.survivor_is_before(resolution, write.export, unit, id))
    }

    /// Whether every write that what a unit shows may stand for came before `id`.
    fn survivor_is_before(
        &self,
        resolution: &Resolution,
        export: u8,
        unit: usize,
        id: u32,
    ) -> bool {
        match resolution.contents[usize::from(export)][unit] {
            UNREADABLE => false,
            // The newest first, as in `value_is_before`.
            ZEROES => self
                .zero_survivors(resolution, export, unit)
                .rev()
                .all(|zeroes| self.history.was_before(zeroes, id)),
            shown => shown != id && self.history.was_before(shown, id),
        }
    }

    /// Whether a loss may have taken a write from a unit.
    fn took(&self, loss: &Loss, id: u32, unit: usize) -> bool {
        self.history.get(id).invoked < loss.found
            && loss.may_be_hidden(self.history.get(id).export, unit)
            && (loss.had_carried(unit) || !self.history.was_durable(id, loss.until))
    }

    /// Per export and unit: the writes that clients know to be durable and that no crash has taken.
    fn known_as_durable(&self) -> Vec<Vec<Vec<u32>>> {
        let units =
            self.exports.iter().map(|registers| vec![Vec::new(); registers.undecided.len()]);
        let mut durable: Vec<_> = units.collect();
        for id in (1..).take(self.history.len() - 1) {
            let write = self.history.get(id);
            if !write.lost && self.history.was_durable(id, NEVER) {
                let units = &mut durable[usize::from(write.export)];
                for unit in &mut units[write.first_unit..write.first_unit + write.units] {
                    unit.push(id);
                }
            }
        }
        durable
    }

    /// Makes a checked restart the new beginning.
    pub fn resolve(&mut self, resolution: &Resolution) {
        for (values, export) in resolution.contents.iter().zip(0u8..) {
            for (unit, &value) in values.iter().enumerate() {
                let survivors = self.survivors(resolution, export, unit, value);
                if survivors.is_empty() {
                    continue;
                }
                for &id in survivors.iter() {
                    // Whatever took effect did so before the restart.
                    self.history.seen(id, self.restarted);
                }
                if let [id] = survivors[..] {
                    self.history.recover(id);
                }
                let registers = &mut self.exports[usize::from(export)];
                registers.candidates[unit] = survivors;
                registers.undecided[unit] = false;
            }
        }
        for &id in &resolution.lost {
            self.history.lose(id);
        }
    }
}
