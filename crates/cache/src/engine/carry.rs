//! Carrying dirty data forward: what reclaim does with dirty entries at the tail whose origin is
//! away while others need room (rule 28).
//!
//! A copy keeps version and epoch of its original. If a newer version of the block exists it is
//! marked superseded: strict destage still needs it, but it must never enter the index.

use super::carried::{Carried, CarriedKey};
use super::log::Privilege;
use super::reclaim::{Again, BATCH_BLOCKS, Cursor, Survivor};
use super::{Engine, blocks_of};
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::geometry::LogAddress;
use crate::index::{IndexEntry, Place, Run};
use crate::units::{ExportSlot, Sequence};

/// Segments that it takes: the one that copies go to, which may be open already, and a free one for
/// the record with the new tail. However many copies follow, that is left ([`Privilege::Carried`]).
const SEGMENTS_MIN: u64 = 2;

impl Engine {
    /// Whether an export's dirty data may be carried: its origin is away, its destager is idle or
    /// stuck in the origin, and somebody else waits for the room.
    fn may_carry(&self, slot: ExportSlot) -> bool {
        let export = self.exports.get(slot);
        let others_wait = self.exports.in_use().filter(|&other| other != slot).any(|other| {
            let other = self.exports.get(other);
            !other.room_waiters.is_empty() && !other.is_away()
        });
        let copies_fit = self.log.segment_takes(BATCH_BLOCKS as u32);
        export.is_away()
            && (!export.destaging || export.destage_late)
            && others_wait
            && self.log.segments_free() + u64::from(copies_fit) >= SEGMENTS_MIN
            && self.carried.has_room(2 * BATCH_BLOCKS)
    }

    /// What a destager that is stuck in its origin has planned is no longer where it was.
    fn note_carried(&mut self, slot: ExportSlot) {
        let export = self.exports.get_mut(slot);
        export.destage_void |= export.destaging;
    }

    /// Carries a dirty entry at the tail, or a part of it. Returns whether it is finished; if not,
    /// reclaim goes on when its payload has been read, or waits for the origin.
    pub(super) fn carry_entry(
        &mut self,
        slot: ExportSlot,
        version: u64,
        header: LogAddress,
        entry: &Entry,
        budget: &mut u64,
    ) -> bool {
        if !self.may_carry(slot) {
            self.reclaim_blocked_by(slot);
            return false;
        }
        let kind = entry.kind();
        let ordinal = match kind {
            EntryKind::DirtyCopy | EntryKind::DirtyZeroCopy => entry.ordinal.get(),
            _ => {
                u16::try_from(self.reclaim.cursor.entry).expect("fewer entries than a header holds")
            }
        };
        let epoch = match kind {
            EntryKind::DirtyCopy | EntryKind::DirtyZeroCopy => entry.epoch.get(),
            _ => self.exports.get(slot).carry_epoch,
        };
        if !kind.has_payload() {
            return self.carry_zeroes(slot, version, header, entry, (ordinal, epoch), budget);
        }
        let is_carrying = |survivor: &Survivor| survivor.dirty.is_some();
        if !self.reclaim.survivors.first().is_none_or(is_carrying) {
            // Clean survivors are in the staging room: they go first.
            self.read_survivors();
            return false;
        }
        while self.reclaim.cursor.block < u64::from(entry.count.get()) {
            if self.reclaim.survivors.len() == BATCH_BLOCKS {
                self.read_survivors();
                return false;
            }
            let Cursor { payload_before, block: offset, .. } = self.reclaim.cursor;
            let block = entry.block.get() + offset;
            self.reclaim.cursor.block += 1;
            // Counted only: no turn ends between dirty survivors and their reading.
            *budget = budget.saturating_sub(1);
            let survivor = Survivor {
                export: slot,
                block,
                address: header.plus(1 + payload_before + offset),
                version,
                intact: true,
                unread: false,
                dirty: Some((ordinal, epoch)),
            };
            let key = CarriedKey { export: slot, version: Sequence(version), ordinal, block };
            // Where what had superseded it was lost, and accepted as lost, it counts again.
            if self.is_current(&survivor) || !self.was_carried(key) {
                self.reclaim.survivors.push(survivor);
            }
        }
        if self.reclaim.survivors.is_empty() {
            return true;
        }
        // One entry at a time: what follows may be somebody else's, or clean.
        self.read_survivors();
        self.reclaim.cursor.pass(entry);
        false
    }

    /// Whether there is a copy of a block elsewhere: from before this segment was looked at again.
    fn was_carried(&self, key: CarriedKey) -> bool {
        let copy = self.carried.copy_of(key);
        copy.is_some_and(|copy| self.log.geometry.segment_use(copy) > self.reclaim.segment_use())
    }

    /// Appends the dirty blocks that were read, run by run.
    pub(super) fn append_carried(&mut self) {
        if self.reclaim.survivors.iter().any(|survivor| survivor.unread) {
            // There is no other copy: what could not be read now is not given up.
            return self.rewind_reclaim(&Again::Unread);
        }
        let mut first = 0;
        while first < self.reclaim.survivors.len() {
            let survivor = self.reclaim.survivors[first];
            let run = self.carried_run(first);
            // While it was read the origin may have come back and taken it.
            let is_dirty = survivor.version > self.exports.get(survivor.export).watermark.0;
            if !is_dirty || !self.may_carry(survivor.export) {
                return self.rewind_reclaim(&Again::Changed);
            }
            if self.ensure_room(1, run, Privilege::Carried).is_err() {
                return self.rewind_reclaim(&Again::NoRoom);
            }
            self.append_carried_run(first, run);
            first += run as usize;
        }
        self.reclaim.survivors.clear();
    }

    /// How many survivors from `first` on make one entry: neighbours of the same original, all
    /// current or all superseded, all intact or all damaged.
    fn carried_run(&self, first: usize) -> u32 {
        let start = self.reclaim.survivors[first];
        let is_current = self.is_current(&start);
        let follows = |(survivor, at): &(&Survivor, u64)| {
            survivor.block == start.block + at
                && survivor.version == start.version
                && survivor.dirty == start.dirty
                && survivor.intact == start.intact
                && self.is_current(survivor) == is_current
        };
        let run = self.reclaim.survivors[first..].iter().zip(0..).take_while(follows).count();
        u32::try_from(run).expect("a batch")
    }

    fn is_current(&self, survivor: &Survivor) -> bool {
        let Survivor { export, block, address, .. } = *survivor;
        self.index.get(export, block).place() == Place::Stored(address)
    }

    fn append_carried_run(&mut self, first: usize, run: u32) {
        let survivor = self.reclaim.survivors[first];
        let Survivor { export, block, version, .. } = survivor;
        let (ordinal, epoch) = survivor.dirty.expect("a dirty block");
        let is_current = self.is_current(&survivor);
        let superseded = if is_current { EntryFlags::default() } else { EntryFlags::SUPERSEDED };
        let damaged = if survivor.intact { EntryFlags::default() } else { EntryFlags::DAMAGED };
        let flags = superseded.and(damaged);
        let layer = self.exports.get(export).layer.0;
        let mut entry = Entry::new(EntryKind::DirtyCopy, flags, layer, block, run);
        entry.version = version.into();
        entry.epoch = epoch.into();
        entry.ordinal = ordinal.into();
        let (address, frames) = self.log.append(&entry, &mut self.reserve);
        self.reserve.copy(blocks_of(self.reclaim_staging(), first as u32, run), frames);
        for offset in 0..u64::from(run) {
            // A block that was damaged stays damaged: its checksum goes with it (rule 25).
            let original = self.reclaim.survivors[first + offset as usize].address;
            self.log.keep_checksum(original, address.plus(offset));
            if !survivor.intact {
                self.log.note_damaged_copy(address.plus(offset));
            }
            if is_current {
                let entry = IndexEntry::stored(address.plus(offset), true);
                self.index.set(export, block + offset, entry).expect("its leaf is there");
            }
        }
        let version = Sequence(version);
        self.note_carried(export);
        let key = CarriedKey { export, version, ordinal, block };
        let (is_zero, no_hole) = (false, false);
        self.carried.insert(Carried { key, count: run, is_zero, no_hole, epoch, address });
        self.reclaim.copies = self.log.open().0;
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
    }

    /// Carries zeroes: the whole entry for destage, and what is still current for the index.
    fn carry_zeroes(
        &mut self,
        slot: ExportSlot,
        version: u64,
        header: LogAddress,
        entry: &Entry,
        (ordinal, epoch): (u16, u64),
        budget: &mut u64,
    ) -> bool {
        *budget = budget.saturating_sub(1);
        let (first, count) = (entry.block.get(), entry.count.get());
        let no_hole = entry.flags().contains(EntryFlags::NO_HOLE);
        let hole = if no_hole { EntryFlags::NO_HOLE } else { EntryFlags::default() };
        let mut copy = Entry::new(EntryKind::DirtyZeroCopy, hole, entry.layer.get(), first, count);
        copy.version = version.into();
        copy.epoch = epoch.into();
        copy.ordinal = ordinal.into();
        let key = CarriedKey { export: slot, version: Sequence(version), ordinal, block: first };
        if !entry.flags().contains(EntryFlags::INDEX_ONLY) && !self.was_carried(key) {
            if self.ensure_room(1, 0, Privilege::Carried).is_err() {
                self.rewind_reclaim(&Again::NoRoom);
                return false;
            }
            let flags = hole.and(EntryFlags::SUPERSEDED);
            let (address, _) = self.log.append(&copy.with_flags(flags), &mut self.reserve);
            self.reclaim.copies = self.log.open().0;
            self.note_carried(slot);
            self.carried.insert(Carried { key, count, is_zero: true, no_hole, epoch, address });
        }
        if entry.flags().contains(EntryFlags::SUPERSEDED) {
            return true;
        }
        let copy = copy.with_flags(EntryFlags::INDEX_ONLY);
        self.carry_current_zeroes(slot, header, &copy, budget)
    }

    /// Appends an entry for each run of zeroes that no newer version has superseded, as far as the
    /// budget goes. Runs are not cut: leaves that stand for zeroes as a whole change as a whole.
    fn carry_current_zeroes(
        &mut self,
        slot: ExportSlot,
        header: LogAddress,
        copy: &Entry,
        budget: &mut u64,
    ) -> bool {
        let (first, count) = (copy.block.get(), u64::from(copy.count.get()));
        let old = IndexEntry::zero(header);
        while self.reclaim.cursor.block < count {
            if *budget == 0 {
                return false;
            }
            let block = first + self.reclaim.cursor.block;
            let Run { is_wanted, blocks, looked_at } =
                self.index.run_of(slot, block, first + count, old);
            if is_wanted {
                if self.ensure_room(1, 0, Privilege::Carried).is_err() {
                    self.rewind_reclaim(&Again::NoRoom);
                    return false;
                }
                let (_, new_header) = self.log.open();
                let mut part = *copy;
                part.block = block.into();
                part.count = u32::try_from(blocks).expect("within an entry").into();
                self.log.append(&part, &mut self.reserve);
                self.reclaim.copies = self.log.open().0;
                self.index.replace_in_run(slot, block, blocks, old, IndexEntry::zero(new_header));
            }
            *budget = budget.saturating_sub(looked_at);
            self.reclaim.cursor.block += blocks;
        }
        true
    }
}
