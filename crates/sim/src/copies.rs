//! Quiet faults of what the device has two copies of: superblocks and export table. At a start, one
//! copy may be rotten, or a write of one be lost. The other one must do: this explains no loss, no
//! error and no refused start.
//!
//! Only copies that are equal are hit: where the newer of two superblocks has tail and watermarks
//! that no record has (decision 0006), there is no second copy of these.

use crate::faults::FaultKind;
use crate::random::Random;
use crate::violation::{Kind, Violation};
use crate::world::World;
use ringfence_cache::limits::{EXPORT_TABLE_BYTES, EXPORT_TABLE_OFFSETS, SUPERBLOCK_OFFSETS};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};

/// Writes of copies in a start at most: two of superblocks, two of the export table.
const WRITES_MAX: u64 = 4;
/// Where the copies are, and their length.
const COPIES: [([u64; 2], usize); 2] =
    [(SUPERBLOCK_OFFSETS, BLOCK_BYTES), (EXPORT_TABLE_OFFSETS, EXPORT_TABLE_BYTES)];

/// A fault of a copy that the next start has to cope with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyFault {
    /// One is rotten.
    Rot,
    /// The write of one will be lost: so many come before it.
    LostWrite(u64),
}

impl World {
    /// A copy may rot now, or a write of one be lost in the start that follows. The numbers are
    /// drawn from a generator of their own, which moves no other.
    pub(crate) fn draw_copy_fault(&mut self) -> Option<CopyFault> {
        let mut random = Random::new(self.random.clone().word() ^ 0xc091e5);
        let percent = self.scenario.faults.device_copy_percent;
        if !self.has_quiet_faults() || !random.percent(percent) || !self.copies_are_equal() {
            return None;
        }
        if random.percent(40) {
            return Some(CopyFault::LostWrite(random.below(WRITES_MAX)));
        }
        let (offsets, length) = random.pick(&COPIES);
        // Most of an export table is empty.
        let pages = if random.percent(50) { 1 } else { length / BLOCK_BYTES };
        let page = random.pick(&offsets) / BLOCK_BYTES_U64 + random.index(pages) as u64;
        let bit = random.index(BLOCK_BYTES * 8);
        self.tally.faults.count(FaultKind::CopyRot);
        self.trace.line(self.now_ns, || format!("bit {bit} of page {page} rots, of one copy"));
        self.device.rot(page, bit);
        Some(CopyFault::Rot)
    }

    /// A start must have written a copy anew that was rotten.
    pub(crate) fn check_copies(&self, fault: Option<CopyFault>) -> Result<(), Violation> {
        if fault != Some(CopyFault::Rot) || self.copies_are_equal() {
            return Ok(());
        }
        let detail = "a start did not write a rotten copy anew".into();
        Err(Violation::new(Kind::Contract, detail))
    }

    fn copies_are_equal(&self) -> bool {
        COPIES.iter().all(|(offsets, length)| {
            let [one, other] = offsets.map(|offset| {
                let mut copy = vec![0; *length];
                self.device.read(offset, &mut copy);
                copy
            });
            one == other
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Scenario;
    use crate::trace::Sink;
    use ringfence_cache::Engine;

    #[test]
    fn a_rotten_copy_must_be_written_anew() {
        let mut scenario = Scenario::draw(0);
        scenario.lives_differ = false;
        (scenario.faults.device_rot, scenario.faults.device_copy_percent) = (1, 100);
        let mut world = World::new(scenario, Sink::Digest);
        world.format::<Engine>().expect("a device that does not fail");
        let mut rotten = 0;
        for _ in 0..32 {
            if world.draw_copy_fault() == Some(CopyFault::Rot) {
                rotten += 1;
                assert!(world.check_copies(Some(CopyFault::Rot)).is_err());
                assert_eq!(world.draw_copy_fault(), None, "the other one is the only one now");
            }
            // A start that the engine survives writes it anew, or fails.
            drop(world.open::<Engine>(false).expect("the other copy is good"));
            world.random.word();
        }
        assert!(rotten > 0);
        assert!(world.tally.faults.of(FaultKind::CopyLost) > 0);
    }
}
