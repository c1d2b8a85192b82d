//! Which missed blocks enter the log: the admission policy, behind two questions.
//!
//! Until the log has wrapped once everything is admitted. Afterwards a block goes into the memory
//! tier first, and enters the log when it is hit there, or missed again while the ghost list
//! remembers that it was there: so one pass over an origin does not push out what is used.

use crate::units::ExportSlot;

/// Windows of 64 blocks that the ghost list remembers something of, at most.
const GHOSTS_MAX: u64 = 1 << 16;

/// Blocks of a window that were missed lately, a bit each.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    key: u64,
    blocks: u64,
}

/// Remembers what was missed lately.
#[derive(Debug)]
pub struct Admission {
    ghosts: Box<[Ghost]>,
    log_has_wrapped: bool,
}

impl Admission {
    /// A policy that admits everything until told that the log has wrapped.
    /// It remembers as many windows as the log has blocks: a miss that was admitted later than that
    /// would have left the log again.
    pub fn new(log_has_wrapped: bool, log_blocks: u64) -> Self {
        let ghosts = log_blocks.next_power_of_two().min(GHOSTS_MAX) as usize;
        Self { ghosts: vec![Ghost::default(); ghosts].into(), log_has_wrapped }
    }

    /// The log has wrapped: from now on a first miss is only remembered.
    pub fn log_wrapped(&mut self) {
        self.log_has_wrapped = true;
    }

    /// The memory that requests touch, to be locked.
    pub fn memory(&self) -> (*const u8, usize) {
        (self.ghosts.as_ptr().cast(), size_of_val(&*self.ghosts))
    }

    /// Which of some blocks of a window, just fetched, should enter the log at once.
    pub fn admitted(&mut self, export: ExportSlot, window: u64, blocks: u64) -> u64 {
        if !self.log_has_wrapped {
            return blocks;
        }
        let (key, ghost) = self.ghost(export, window);
        if ghost.key != key {
            return 0;
        }
        let known = ghost.blocks & blocks;
        ghost.blocks &= !blocks;
        known
    }

    /// These blocks of a window were missed, and nobody asked for them again while they were at
    /// hand.
    pub fn remember(&mut self, export: ExportSlot, window: u64, blocks: u64) {
        let (key, ghost) = self.ghost(export, window);
        if ghost.key != key {
            *ghost = Ghost { key, blocks: 0 };
        }
        ghost.blocks |= blocks;
    }

    fn ghost(&mut self, export: ExportSlot, window: u64) -> (u64, &mut Ghost) {
        let key = (window << 8 | u64::from(export.0)) + 1;
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        (key, &mut self.ghosts[hash as usize % self.ghosts.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_log_wrapped_a_block_enters_when_it_is_remembered() {
        let mut admission = Admission::new(false, 1 << 12);
        assert_eq!(admission.admitted(ExportSlot(1), 7, 0b11), 0b11);
        admission.log_wrapped();
        assert_eq!(admission.admitted(ExportSlot(1), 7, 0b11), 0);
        admission.remember(ExportSlot(1), 7, 0b01);
        assert_eq!(admission.admitted(ExportSlot(2), 7, 0b11), 0, "another export");
        assert_eq!(admission.admitted(ExportSlot(1), 7, 0b11), 0b01);
        assert_eq!(admission.admitted(ExportSlot(1), 7, 0b11), 0, "the ghost is gone");
    }
}
