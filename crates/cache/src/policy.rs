//! Which missed blocks enter the log: the admission policy, behind one question.
//!
//! Until the log has wrapped once everything is admitted. Afterwards a range enters when it is
//! missed again while the ghost list remembers it, so that one pass over an origin does not push
//! out what is used.

use crate::units::ExportSlot;

/// Ranges that the ghost list remembers.
const GHOSTS: usize = 1 << 16;

/// Remembers what was missed lately.
#[derive(Debug)]
pub struct Admission {
    ghosts: Box<[u64]>,
    log_has_wrapped: bool,
}

impl Admission {
    /// A policy that admits everything until told that the log has wrapped.
    pub fn new(log_has_wrapped: bool) -> Self {
        Self { ghosts: vec![0; GHOSTS].into(), log_has_wrapped }
    }

    /// The log has wrapped: from now on a first miss is only remembered.
    pub fn log_wrapped(&mut self) {
        self.log_has_wrapped = true;
    }

    /// Whether a range that was just fetched should enter the log. `window` names the range.
    pub fn admits(&mut self, export: ExportSlot, window: u64) -> bool {
        if !self.log_has_wrapped {
            return true;
        }
        let key = (window << 8 | u64::from(export.0)) + 1;
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        let ghost = &mut self.ghosts[hash as usize % GHOSTS];
        if *ghost == key {
            *ghost = 0;
            true
        } else {
            *ghost = key;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_log_wrapped_a_range_enters_on_its_second_miss() {
        let mut admission = Admission::new(false);
        assert!(admission.admits(ExportSlot(1), 7));
        admission.log_wrapped();
        assert!(!admission.admits(ExportSlot(1), 7));
        assert!(!admission.admits(ExportSlot(2), 7), "another export is another range");
        assert!(admission.admits(ExportSlot(1), 7));
        assert!(!admission.admits(ExportSlot(1), 7), "the ghost is gone");
    }
}
