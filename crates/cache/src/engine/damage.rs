//! Damaged blocks (rules 25 and 31): clean ones are forgotten and fetched again, dirty ones are
//! lost and said so, until somebody overwrites them.
//!
//! A dirty block with a wrong checksum is read once more before it is given up: what the device
//! or its bus got wrong once is not lost. Then a `bad` entry takes its place in log and index. It
//! outlives restarts and reclaim, and the watermark: what the origin has there is older than what
//! a client was told is stored, so it must never be shown in its place (promise 6). What the
//! device fails to read gives EIO, too, but stays as it is: it may be readable later.

use super::Engine;
use super::api::{Effect, IoError, Notice};
use super::log::Privilege;
use crate::counters::ExportCounter;
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::geometry::LogAddress;
use crate::index::{IndexEntry, Place};
use crate::units::{Buffer, ExportSlot, Sequence};

/// After how long destage and reclaim try again what the device could not read.
pub const DAMAGE_RETRY_NS: u64 = 5_000_000_000;

/// What is wrong with a block that was read from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The device could not read it.
    Unreadable,
    /// Its checksum is wrong.
    Checksum,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was clean, and is forgotten; or it is not the block that counts any more.
    StartOver,
    /// It is dirty: read it once more, alone.
    LookAgain,
    /// It is dirty and gone.
    Lost,
}

impl Engine {
    /// What is wrong with a block that was read into a frame, if anything.
    pub(super) fn damage_of(
        &self,
        address: LogAddress,
        frame: Buffer,
        result: Result<(), IoError>,
    ) -> Option<Damage> {
        if result.is_err() {
            return Some(Damage::Unreadable);
        }
        let intact = self.log.verify(address, self.reserve.bytes(frame));
        (!intact).then_some(Damage::Checksum)
    }

    /// The frame that holds a block, while its image is in the log pool. A damaged block that was
    /// carried is in none: it is taken from the device, where its damage is found and judged.
    pub(super) fn resident(&self, address: LogAddress) -> Option<Buffer> {
        let frame = self.log.resident(address)?;
        let trusted = !self.log.may_be_damaged_copy(address)
            || self.log.verify(address, self.reserve.bytes(frame));
        trusted.then_some(frame)
    }

    /// Decides about a damaged block at `address`, which was read for the second time if `again`.
    pub(super) fn judge_damage(
        &mut self,
        slot: ExportSlot,
        block: u64,
        address: LogAddress,
        damage: Damage,
        again: bool,
    ) -> Verdict {
        let entry = self.index.get(slot, block);
        if entry.place() != Place::Stored(address) {
            return Verdict::StartOver;
        }
        let dirty = entry.is_dirty(self.exports.watermark_end(slot));
        if dirty && !again && self.ios.free() > 0 {
            return Verdict::LookAgain;
        }
        self.note_damage(slot, block, dirty);
        if !dirty {
            self.index.set(slot, block, IndexEntry::MISSING).expect("its leaf is there");
            return Verdict::StartOver;
        }
        if damage == Damage::Checksum && again {
            self.record_bad(slot, block);
        }
        Verdict::Lost
    }

    /// Counts and tells of a damaged block.
    pub(super) fn note_damage(&mut self, slot: ExportSlot, block: u64, dirty: bool) {
        let counter = if dirty {
            ExportCounter::ChecksumErrorsDirty
        } else {
            ExportCounter::ChecksumErrorsClean
        };
        self.counters.add_export(slot, counter, 1);
        self.emit(Effect::Notice(Notice::ChecksumMismatch { export: slot, block, dirty }));
    }

    /// Puts a `bad` entry in the place of the current version of a block. Returns the record that
    /// it is in; `None` where nothing can be appended now: then the damage will be found again.
    pub(super) fn record_bad(&mut self, slot: ExportSlot, block: u64) -> Option<Sequence> {
        // Without payload it may use what is kept for such records (rule 27).
        let refused = self.latched || self.stopping;
        if refused || self.ensure_room(1, 0, Privilege::Reserved).is_err() {
            return None;
        }
        let layer = self.exports.get(slot).layer.0;
        let entry = Entry::new(EntryKind::Bad, EntryFlags::default(), layer, block, 1);
        let (sequence, header) = self.log.open();
        self.log.append(&entry, &mut self.reserve);
        self.index.set(slot, block, IndexEntry::bad(header)).expect("its leaf is there");
        Some(sequence)
    }

    /// Reclaim passes a `bad` entry: what it still says is said again at the head of the log.
    /// Returns whether there was room for all of it.
    pub(super) fn carry_bad(
        &mut self,
        slot: ExportSlot,
        entry: &Entry,
        header: LogAddress,
    ) -> bool {
        let (first, count) = (entry.block.get(), u64::from(entry.count.get()));
        for block in first..first + count {
            if self.index.get(slot, block).place() != Place::Bad(header) {
                continue;
            }
            let Some(sequence) = self.record_bad(slot, block) else { return false };
            self.reclaim.copies = sequence;
        }
        true
    }

    /// Blocks are about to be overwritten: what was read of them before counts no more. Where
    /// destage stands still for one of them, it looks again: so may the version that is damaged.
    pub(super) fn note_overwriting(&mut self, slot: ExportSlot, first: u64, blocks: u64) {
        self.void_merges(slot, first, blocks);
        if !self.exports.get(slot).damaged {
            return;
        }
        let is_bad = |block| matches!(self.index.get(slot, block).place(), Place::Bad(_));
        if (first..first + blocks).any(is_bad) {
            self.exports.get_mut(slot).damaged = false;
        }
    }
}
