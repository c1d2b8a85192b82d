//! Quotas: slots of a fixed number that exports share without one of them being able to hold the
//! last that another needs.
//!
//! Every export owns some, and takes more from a common part, of which it gets at most half while
//! there are other exports. An origin that hangs holds what it has for as long as it hangs, so
//! this is decided when slots are taken, not when somebody misses them.

use crate::limits::EXPORTS_MAX;
use crate::units::ExportSlot;

/// Who holds how many slots of one kind.
#[derive(Debug)]
pub struct Quota {
    own: u32,
    shared: u32,
    /// Of the shared ones, for one export.
    shared_each: u32,
    shared_used: u32,
    held: [u32; EXPORTS_MAX],
}

impl Quota {
    /// `own` slots for each of so many exports, and `shared` ones for whoever comes first.
    #[must_use]
    pub fn new(own: usize, shared: usize, exports: usize) -> Self {
        let number = |value: usize| u32::try_from(value).expect("a small table");
        let shared_each = if exports > 1 { shared / 2 } else { shared };
        Self {
            own: number(own),
            shared: number(shared),
            shared_each: number(shared_each),
            shared_used: 0,
            held: [0; EXPORTS_MAX],
        }
    }

    /// Slots that must exist so that everybody gets what the quota says.
    #[must_use]
    pub const fn slots(own: usize, shared: usize, exports: usize) -> usize {
        own * exports + shared
    }

    /// Slots that an export can take now.
    #[must_use]
    pub fn room(&self, export: ExportSlot) -> usize {
        let held = self.held(export);
        let own = self.own.saturating_sub(held);
        let borrowed = held.saturating_sub(self.own);
        (own + (self.shared - self.shared_used).min(self.shared_each - borrowed)) as usize
    }

    /// Slots that an export holds.
    #[must_use]
    pub fn held(&self, export: ExportSlot) -> u32 {
        self.held[export.index()]
    }

    /// An export takes a slot.
    ///
    /// # Panics
    /// When it has no room left.
    pub fn take(&mut self, export: ExportSlot) {
        assert!(self.room(export) > 0, "a slot beyond the quota of {export:?}");
        self.held[export.index()] += 1;
        self.shared_used += u32::from(self.held(export) > self.own);
    }

    /// An export gives a slot back.
    ///
    /// # Panics
    /// When it holds none.
    pub fn give_back(&mut self, export: ExportSlot) {
        let held = self.held(export);
        assert!(held > 0, "a slot that {export:?} does not hold");
        self.shared_used -= u32::from(held > self.own);
        self.held[export.index()] = held - 1;
    }

    /// Panics if the parts do not make up the whole.
    pub fn check_invariants(&self, in_use: usize) {
        let borrowed: u32 = self.held.iter().map(|held| held.saturating_sub(self.own)).sum();
        assert_eq!(borrowed, self.shared_used, "what is borrowed is counted");
        assert!(self.shared_used <= self.shared, "no more is borrowed than there is");
        let held: u32 = self.held.iter().sum();
        assert_eq!(held as usize, in_use, "every slot in use is somebody's");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_export_leaves_half_of_what_is_shared_and_everybodys_own() {
        let mut quota = Quota::new(2, 8, 3);
        let (greedy, other) = (ExportSlot(0), ExportSlot(5));
        assert_eq!(quota.room(greedy), 6);
        (0..6).for_each(|_| quota.take(greedy));
        assert_eq!(quota.room(greedy), 0);
        assert_eq!(quota.room(other), 6);
        quota.give_back(greedy);
        assert_eq!(quota.room(greedy), 1);
        assert_eq!(Quota::new(1, 8, 1).room(greedy), 9, "alone it has everything");
    }

    proptest! {
        #[test]
        fn whatever_others_hold_an_export_can_take_its_own(
            steps in prop::collection::vec((0u8..5, any::<bool>()), 1..200),
        ) {
            let (own, shared, exports) = (2, 7, 5);
            let mut quota = Quota::new(own, shared, exports);
            let mut in_use = 0;
            for (export, takes) in steps {
                let export = ExportSlot(export);
                if takes && quota.room(export) > 0 {
                    quota.take(export);
                    in_use += 1;
                } else if !takes && quota.held(export) > 0 {
                    quota.give_back(export);
                    in_use -= 1;
                }
                quota.check_invariants(in_use);
                prop_assert!(in_use <= Quota::slots(own, shared, exports));
                for export in (0..5).map(ExportSlot) {
                    let own_left = own.saturating_sub(quota.held(export) as usize);
                    prop_assert!(quota.room(export) >= own_left);
                }
            }
        }
    }
}
