//! The memory tier: where a missed block waits in the reserve for its second reader.
//!
//! A ring of frames, written one after the other: what is overwritten was the oldest. A table of
//! twice as many places finds a block's frame (open addressing, linear probing). A block is here
//! only while the index says that it is missing: then it is what the origin holds, since nothing
//! of it can be dirty.

use crate::limits::EXPORTS_MAX;
use crate::units::ExportSlot;

const EMPTY: u32 = u32::MAX;

/// A block of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TierKey {
    /// Whose.
    pub export: ExportSlot,
    /// Which block.
    pub block: u64,
}

/// Frames of the tier, by block and by age.
#[derive(Debug)]
pub struct MemoryTier {
    /// By frame: what it holds.
    keys: Box<[Option<TierKey>]>,
    /// Frames, by the hash of what they hold.
    places: Box<[u32]>,
    /// The frame that is written next.
    hand: usize,
    used: usize,
}

impl MemoryTier {
    /// An empty tier of so many frames.
    #[must_use]
    pub fn new(frames: usize) -> Self {
        let places = (2 * frames).next_power_of_two();
        Self {
            keys: vec![None; frames].into(),
            places: vec![EMPTY; places].into(),
            hand: 0,
            used: 0,
        }
    }

    /// Frames in all.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.keys.len()
    }

    /// Frames that hold a block.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// What the frames hold.
    pub fn keys(&self) -> impl Iterator<Item = TierKey> {
        self.keys.iter().flatten().copied()
    }

    /// The memory that requests touch, to be locked.
    pub fn memory(&self) -> [(*const u8, usize); 2] {
        [
            (self.keys.as_ptr().cast(), size_of_val(&*self.keys)),
            (self.places.as_ptr().cast(), size_of_val(&*self.places)),
        ]
    }

    fn home(&self, key: TierKey) -> usize {
        const { assert!(EXPORTS_MAX <= 1 << 6) };
        let word = key.block << 6 | u64::from(key.export.0);
        let hash = word.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as usize & (self.places.len() - 1)
    }

    fn place_of(&self, key: TierKey) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        let mut place = self.home(key);
        while self.places[place] != EMPTY {
            if self.keys[self.places[place] as usize] == Some(key) {
                return Some(place);
            }
            place = (place + 1) & (self.places.len() - 1);
        }
        None
    }

    /// The frame of a block.
    #[must_use]
    pub fn find(&self, key: TierKey) -> Option<usize> {
        self.place_of(key).map(|place| self.places[place] as usize)
    }

    /// Takes a frame for a block that is not here: the oldest one. Returns the frame, and what had
    /// to go for it.
    pub fn insert(&mut self, key: TierKey) -> (usize, Option<TierKey>) {
        debug_assert!(self.find(key).is_none(), "a block is in one frame");
        let frame = self.hand;
        self.hand = (self.hand + 1) % self.keys.len();
        let old = self.keys[frame];
        if let Some(old) = old {
            self.remove(old);
        }
        let mut place = self.home(key);
        while self.places[place] != EMPTY {
            place = (place + 1) & (self.places.len() - 1);
        }
        self.places[place] = u32::try_from(frame).expect("fewer than 2^32 frames");
        self.keys[frame] = Some(key);
        self.used += 1;
        (frame, old)
    }

    /// Forgets a block, if it is here.
    pub fn remove(&mut self, key: TierKey) {
        let Some(mut gap) = self.place_of(key) else { return };
        self.keys[self.places[gap] as usize] = None;
        self.used -= 1;
        // What follows moves up, or it would not be found behind the gap.
        let mask = self.places.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let frame = self.places[place];
            if frame == EMPTY {
                break;
            }
            let home = self.home(self.keys[frame as usize].expect("a frame in the table"));
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(gap) & mask {
                self.places[gap] = frame;
                gap = place;
            }
        }
        self.places[gap] = EMPTY;
    }

    /// Forgets a run of blocks of an export, in time that the smaller of run and tier bounds.
    pub fn remove_run(&mut self, export: ExportSlot, first: u64, blocks: u64) {
        if blocks <= self.keys.len() as u64 {
            for block in first..first + blocks {
                if self.used == 0 {
                    return;
                }
                self.remove(TierKey { export, block });
            }
            return;
        }
        for frame in 0..self.keys.len() {
            if let Some(key) = self.keys[frame]
                && key.export == export
                && (first..first + blocks).contains(&key.block)
            {
                self.remove(key);
            }
        }
    }

    /// Panics if table and frames contradict each other.
    pub fn check_invariants(&self) {
        let held = self.keys.iter().flatten().count();
        assert_eq!(held, self.used, "frames in use are counted");
        let entered = self.places.iter().filter(|frame| **frame != EMPTY).count();
        assert_eq!(entered, self.used, "every block has one place");
        for (frame, key) in self.keys.iter().enumerate() {
            if let Some(key) = key {
                assert_eq!(self.find(*key), Some(frame), "every block is found");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn it_holds_the_newest_that_were_not_removed(
            steps in prop::collection::vec((0u8..4, 0u64..40, 1u64..30), 1..300),
        ) {
            let mut tier = MemoryTier::new(8);
            // By age: the frame's turn, and what it holds.
            let mut model: VecDeque<Option<TierKey>> = VecDeque::from(vec![None; 8]);
            for (kind, block, blocks) in steps {
                let key = TierKey { export: ExportSlot(kind % 2), block };
                if kind < 3 && tier.find(key).is_none() {
                    let (_, old) = tier.insert(key);
                    prop_assert_eq!(old, model.pop_front().flatten());
                    model.push_back(Some(key));
                } else {
                    tier.remove_run(key.export, block, blocks);
                    for held in &mut model {
                        let gone = |held: TierKey| held.export == key.export
                            && (block..block + blocks).contains(&held.block);
                        if held.is_some_and(gone) {
                            *held = None;
                        }
                    }
                }
                tier.check_invariants();
                let found: Vec<_> = tier.keys().collect();
                prop_assert_eq!(found.len(), model.iter().flatten().count());
                for key in model.iter().flatten() {
                    prop_assert!(tier.find(*key).is_some());
                }
            }
        }
    }
}
