//! The checker: every unit of every export is a register whose writes carry unique identities.
//!
//! It sees what clients see (submissions and answers, from all connections together) and what
//! origins are told to write. `reads` checks promises 2 and 3, `recovery` promise 1 and that the
//! log is a prefix, `legality` promise 4. Each check is linear in what was read or written, up
//! to the number of writes that run at the same time or wait for the same flush.

pub mod history;
mod legality;
mod reads;
mod recovery;
#[cfg(test)]
mod tests;

pub use history::{History, NEVER};
pub use legality::OriginLedger;
pub use recovery::{Contents, Loss, Resolution};

use crate::content::{Value, ZEROES};
use smallvec::{SmallVec, smallvec};

/// Mostly one or two writes, which need no memory of their own: there are thousands of such lists,
/// and they are copied whenever a crash is tried.
type Writes = SmallVec<[u32; 2]>;

/// The registers of one export.
#[derive(Clone, Debug)]
struct Registers {
    /// Per unit, the writes that a read may still show, in order of submission. What a crash can
    /// bring back stays here until something durable covers it.
    candidates: Vec<Writes>,
    /// Per unit, all writes of zeroes, since zeroes do not name their write.
    zeroes: Vec<Writes>,
    /// Per unit, whether a crash left several candidates and no read has decided since.
    undecided: Vec<bool>,
}

/// A read that has been submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadToken {
    invoked: u64,
}

/// What clients were told, and whether the engine may have told it.
#[derive(Clone, Debug)]
pub struct Checker {
    /// All writes.
    pub history: History,
    exports: Vec<Registers>,
    /// The moments at which the reads in flight were submitted.
    reads_in_flight: Vec<u64>,
    /// The moment of the last restart: what was settled before it was decided by the crash.
    restarted: u64,
}

impl Checker {
    /// A checker for exports of these sizes (in units), with whether they start as zeroes.
    #[must_use]
    pub fn new(exports: &[(usize, bool)]) -> Self {
        let mut history = History::new(exports.len());
        let registers = exports
            .iter()
            .zip(0..)
            .map(|(&(units, zeroes), export)| {
                let initial = history.initial(export, units, zeroes);
                let zero_writes: Writes = zeroes.then_some(initial).into_iter().collect();
                Registers {
                    candidates: vec![smallvec![initial]; units],
                    zeroes: vec![zero_writes; units],
                    undecided: vec![false; units],
                }
            })
            .collect();
        Self { history, exports: registers, reads_in_flight: Vec::new(), restarted: 0 }
    }

    /// How many units an export has.
    #[must_use]
    pub fn units(&self, export: u8) -> usize {
        self.exports[usize::from(export)].candidates.len()
    }

    /// A client submits a write of data or of zeroes. Returns its number.
    pub fn submit_write(
        &mut self,
        export: u8,
        first_unit: usize,
        units: usize,
        zeroes: bool,
        fua: bool,
    ) -> u32 {
        let id = self.history.submit(export, first_unit, units, zeroes, fua);
        let oldest_read = self.reads_in_flight.iter().min().copied().unwrap_or(NEVER);
        let registers = &mut self.exports[usize::from(export)];
        for unit in first_unit..first_unit + units {
            let candidates = &mut registers.candidates[unit];
            candidates.push(id);
            if candidates.len() >= 8 && candidates.len().is_power_of_two() {
                prune(&self.history, candidates, oldest_read);
            }
            if zeroes {
                registers.zeroes[unit].push(id);
            }
        }
        id
    }

    /// The write was answered well.
    pub fn answer_write(&mut self, id: u32) {
        self.history.answer(id);
    }

    /// A flush is submitted. Returns its moment, for [`Checker::answer_flush`].
    pub fn submit_flush(&mut self) -> u64 {
        self.history.tick()
    }

    /// A flush of an export's client (`None`: of the operator) was answered well.
    pub fn answer_flush(&mut self, export: Option<u8>, submitted: u64) {
        self.history.flushed(export, submitted);
    }

    /// The writes of zeroes that zeroes at a unit may come from: those among its candidates.
    fn zero_candidates(&self, export: u8, unit: usize) -> impl DoubleEndedIterator<Item = u32> {
        self.exports[usize::from(export)].candidates[unit]
            .iter()
            .copied()
            .filter(|id| self.history.get(*id).zeroes && !self.history.get(*id).lost)
    }

    /// The one write that a value stands for, if there is exactly one it can be.
    fn writer(&self, export: u8, unit: usize, value: Value) -> Option<u32> {
        if value != ZEROES {
            return Some(value);
        }
        let mut zeroes = self.zero_candidates(export, unit);
        let first = zeroes.next()?;
        zeroes.next().is_none().then_some(first)
    }

    /// Whether every write that a value may stand for came before `id`.
    fn value_is_before(&self, export: u8, unit: usize, value: Value, id: u32) -> bool {
        if value == ZEROES {
            // The newest first: if any did not come before, it is that.
            let mut zeroes = self.zero_candidates(export, unit).rev();
            zeroes.all(|zero| self.history.was_before(zero, id))
        } else {
            self.history.was_before(value, id)
        }
    }
}

/// Forgets candidates that neither a read nor a crash can bring back. The durable one submitted
/// last stands for all durable ones: what any of them covers, it covers, as far as time tells.
fn prune(history: &History, candidates: &mut Writes, oldest_read: u64) {
    if candidates.len() == 1 {
        return;
    }
    let covering = |id: &u32| history.is_durable(*id) && history.get(*id).settled < oldest_read;
    let durable = candidates.iter().copied().filter(covering);
    let Some(newest) = durable.max_by_key(|id| history.get(*id).invoked) else { return };
    candidates.retain(|older| !history.is_before(*older, newest));
}
