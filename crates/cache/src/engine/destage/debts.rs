//! What an epoch owes to the origin: versions that are damaged (rule 25).

use super::{PlanItem, ZeroItem};
use crate::units::Sequence;

/// Blocks that are remembered. Where more of an epoch is damaged, nothing but an operator ends it.
const DEBTS_MAX: usize = 256;

/// The debts of an epoch.
#[derive(Debug)]
pub struct Debts {
    blocks: Vec<u64>,
    /// More than are remembered.
    more: bool,
    /// The newest version that is owed.
    newest: Sequence,
    /// Whether the device could not read one of them.
    unreadable: bool,
}

impl Debts {
    /// None.
    pub fn new() -> Self {
        let blocks = Vec::with_capacity(DEBTS_MAX);
        Self { blocks, more: false, newest: Sequence(0), unreadable: false }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.more = false;
        self.newest = Sequence(0);
        self.unreadable = false;
    }

    /// Whether nothing is owed.
    pub const fn is_empty(&self) -> bool {
        self.blocks.is_empty() && !self.more
    }

    /// A block whose version is damaged.
    pub fn add(&mut self, block: u64, version: Sequence, unreadable: bool) {
        self.newest = self.newest.max(version);
        self.unreadable |= unreadable;
        if self.blocks.contains(&block) {
            return;
        }
        if self.blocks.len() < DEBTS_MAX {
            self.blocks.push(block);
        } else {
            self.more = true;
        }
    }

    /// Newer versions of the same epoch are intact: what they overwrite counts no more.
    pub fn pay(&mut self, batch: &[PlanItem]) {
        if !self.blocks.is_empty() {
            let pays = |block: u64| batch.iter().any(|item| item.block == block && !item.skip);
            self.blocks.retain(|block| !pays(*block));
        }
    }

    /// Newer zeroes of the same epoch do the same.
    pub fn pay_zeroes(&mut self, zero: &ZeroItem) {
        self.blocks.retain(|block| !(zero.block..zero.block + zero.blocks).contains(block));
    }

    /// A block that is owed, for operators; the newest version that is; whether it is for want of
    /// reading only.
    pub fn sum(&self) -> (Option<u64>, Sequence, bool) {
        (self.blocks.first().copied(), self.newest, self.unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::LogAddress;

    fn item(block: u64, skip: bool) -> PlanItem {
        PlanItem { block, order: 0, address: LogAddress(0), version: Sequence(9), skip }
    }

    #[test]
    fn only_what_is_intact_pays() {
        let mut debts = Debts::new();
        for block in [3, 5, 7] {
            debts.add(block, Sequence(block), false);
        }
        debts.pay(&[item(3, false), item(5, true), item(6, false)]);
        assert_eq!(debts.sum(), (Some(5), Sequence(7), false));
        debts.pay_zeroes(&ZeroItem { block: 5, blocks: 2, no_hole: false });
        assert!(!debts.is_empty());
        debts.pay_zeroes(&ZeroItem { block: 0, blocks: 8, no_hole: false });
        assert!(debts.is_empty());
    }

    #[test]
    fn more_debts_than_are_remembered_are_never_paid() {
        let mut debts = Debts::new();
        (0..=DEBTS_MAX as u64).for_each(|block| debts.add(block, Sequence(1), true));
        debts.pay_zeroes(&ZeroItem { block: 0, blocks: 1 << 20, no_hole: false });
        assert!(!debts.is_empty());
        debts.clear();
        assert!(debts.is_empty());
    }
}
