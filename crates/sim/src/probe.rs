//! Crashes that are tried on clones of the world, so that one world has thousands of them: at one
//! moment, many subsets of the unflushed writes survive, one after the other, and from each the
//! engine recovers and everything is read.

use crate::core::Core;
use crate::life::Life;
use crate::violation::{Kind, Violation};
use crate::world::{End, World};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, footer_bytes};

/// Turns during which the writing of a structure is worth more attention than usual.
const ATTENTION_TURNS: u32 = 16;
/// A write is lost, kept, or torn in more than one way: with few writes unflushed, more crashes
/// than this per write would only repeat themselves.
const OUTCOMES_PER_WRITE: u64 = 4;
/// Unflushed writes of which every subset is tried in exhaustive worlds.
const SUBSETS_MAX: usize = 6;

impl World {
    /// Notes a write that opens a segment, ends one, or changes a superblock.
    pub(crate) fn note_structure(&mut self, offset: u64) {
        let in_segment = offset.checked_sub(SEGMENTS_OFFSET).map(|at| at % SEGMENT_BYTES_MIN);
        let footer_at = SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN);
        if in_segment.is_none_or(|at| at == 0 || at == footer_at) {
            self.attention = ATTENTION_TURNS;
        }
    }

    /// Crashes are tried more often for a while.
    pub(crate) fn pay_attention(&mut self) {
        self.attention = ATTENTION_TURNS;
    }

    /// Tries crashes if chance wants it.
    pub(crate) fn probe_if_due<C: Core>(&mut self) -> Result<(), Violation> {
        if self.probe_is_due() { self.probe::<C>() } else { Ok(()) }
    }

    fn probe_is_due(&mut self) -> bool {
        let probing = self.scenario.probing;
        if self.tally.crash_points >= probing.points_max {
            return false;
        }
        let noticed = self.attention > 0;
        self.attention = self.attention.saturating_sub(1);
        self.random.chance(if noticed { probing.structure_turns } else { probing.turns })
    }

    /// Tries crashes at this very moment, each on a clone of the world.
    fn probe<C: Core>(&mut self) -> Result<(), Violation> {
        let writes = u32::try_from(self.device.pending_writes()).unwrap_or(u32::MAX);
        let outcomes = OUTCOMES_PER_WRITE.saturating_pow(writes);
        let mut fallen = self.clone();
        fallen.random = self.random.fork();
        // Where a kill must leave more than a power cut, it is tried as often.
        let kills_percent = if self.scenario.simple_clients == 0 { 15 } else { 50 };
        let end = if fallen.random.percent(kills_percent) { End::Kill } else { End::PowerCut };
        fallen.crash_around(end)?;
        for _ in 0..self.scenario.probing.crashes.min(outcomes) {
            self.trace.line(self.now_ns, || format!("---- probe: {end:?}"));
            let mut world = fallen.clone();
            world.random = fallen.random.fork();
            world.crash_device(end);
            match world.try_restart::<C>() {
                Err(violation) if violation.kind == Kind::Explained => {}
                result => result?,
            }
            self.trace.mix(world.trace.digest());
            fallen.tally = world.tally;
        }
        self.trace.line(self.now_ns, || "---- probes end".into());
        self.tally = fallen.tally;
        Ok(())
    }

    /// Where every crash is tried: does so if anything has changed that a crash could show.
    pub(crate) fn exhaust_if_due<C: Core>(&mut self) -> Result<(), Violation> {
        if !self.exhausting {
            return Ok(());
        }
        let (writes, newest) = (self.device.pending_writes(), self.device.writes_submitted());
        let state = Some((writes, newest, self.checker.history.now()));
        if self.exhausted == state {
            return Ok(());
        }
        self.exhausted = state;
        let mut fallen = self.clone();
        fallen.exhausting = false;
        fallen.crash_everywhere::<C>()?;
        self.tally = fallen.tally;
        if self.scenario.simple_clients == 0 { Ok(()) } else { self.exhaust_kills::<C>() }
    }

    /// The power fails, with every subset of the unflushed device writes surviving, one after the
    /// other; each time the cache is opened and everything read.
    fn crash_everywhere<C: Core>(&mut self) -> Result<(), Violation> {
        self.crash_around(End::PowerCut)?;
        for survivors in subsets(self.device.pending_writes()) {
            let mut world = self.clone();
            world.device.power_cut_keeping(survivors);
            let mut life: Life<C> = world.open(false)?;
            world.check_restart(&mut life)?;
            self.tally = world.tally;
        }
        Ok(())
    }

    /// Where every crash is tried, and a killed process is about to come back: cuts its recovery
    /// after each of its writes and flushes.
    pub(crate) fn exhaust_recovery<C: Core>(&mut self) -> Result<(), Violation> {
        if !self.exhausting {
            return Ok(());
        }
        let mut tried = None;
        for cut_after in 0.. {
            let mut fallen = self.clone();
            fallen.exhausting = false;
            if !fallen.is_cut_while_opening::<C>(cut_after)? {
                break;
            }
            // Between a write and the flush behind it nothing changes.
            let state = (fallen.device.pending_writes(), fallen.device.writes_submitted());
            if tried.replace(state) != Some(state) {
                fallen.crash_everywhere::<C>()?;
            }
            self.tally = fallen.tally;
        }
        Ok(())
    }

    /// Kills the process at this very moment, with none and all of what is in flight ending: what
    /// was answered to a client that outlives it must be there.
    fn exhaust_kills<C: Core>(&mut self) -> Result<(), Violation> {
        let mut killed = self.clone();
        killed.exhausting = false;
        killed.crash_around(End::Kill)?;
        for ends in [false, true] {
            let mut world = killed.clone();
            world.device.abandon_all(|| ends);
            let mut life: Life<C> = world.open(false)?;
            world.check_restart(&mut life)?;
            killed.tally = world.tally;
        }
        self.tally = killed.tally;
        Ok(())
    }

    /// Restarts and reads everything; sometimes goes on from there.
    fn try_restart<C: Core>(&mut self) -> Result<(), Violation> {
        let cuts = self.random.percent(10);
        let mut life: Life<C> = self.open(cuts)?;
        let restart = self.check_restart(&mut life)?;
        match self.random.below(32) {
            // What was served after the restart must outlive the next cut (rule 1).
            0..3 => {
                self.begin(restart)?;
                drop(life);
                self.crash(End::PowerCut)?;
                let mut life: Life<C> = self.open(false)?;
                self.check_restart(&mut life).map(drop)
            }
            // What is left must reach the origins as it would have without the crash.
            3 => {
                self.begin(restart)?;
                self.finish(life)
            }
            _ => Ok(()),
        }
    }
}

/// Every subset of so many writes, as bits, oldest first. Of more than [`SUBSETS_MAX`], every
/// subset of the newest with all older ones, and all the older ones up to any of them.
fn subsets(writes: usize) -> impl Iterator<Item = u64> {
    let writes = writes.min(u64::BITS as usize - 1);
    let older = writes.saturating_sub(SUBSETS_MAX);
    let prefixes = (0..older).map(|length| (1 << length) - 1);
    let of_newest =
        (0..1 << (writes - older)).map(move |newest| newest << older | ((1 << older) - 1));
    prefixes.chain(of_newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_subsets_of_few_writes_and_prefixes_of_many() {
        assert_eq!(subsets(0).collect::<Vec<_>>(), [0]);
        assert_eq!(subsets(2).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(subsets(6).count(), 64);
        let of_eight: Vec<_> = subsets(8).collect();
        assert_eq!(of_eight.len(), 2 + 64);
        assert_eq!((of_eight[0], of_eight[1], of_eight[2]), (0, 1, 3));
        assert_eq!(of_eight.last(), Some(&0xff));
    }
}
