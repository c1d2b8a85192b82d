//! Planning: which blocks of the log go to the origin next.

use super::{Destager, Done, Phase, PlanItem, Position, ZeroItem};
use crate::canary;
use crate::config::{Mode, Order};
use crate::engine::api::IoError;
use crate::engine::carried::{Carried, CarriedKey, CarriedTable};
use crate::engine::damage::DAMAGE_RETRY_NS;
use crate::engine::exports::{Cursor, Export};
use crate::engine::log::Log;
use crate::engine::summary::Loaded;
use crate::engine::tables::IoOwner;
use crate::engine::{Engine, blocks_of};
use crate::format::{Entry, EntryFlags, EntryKind, SUMMARY_OFFSET, SummaryReader, SummaryRecord};
use crate::geometry::LogAddress;
use crate::index::{Index, Place};
use crate::units::{Buffer, Sequence};

impl Destager {
    /// Whether something of the current epoch was planned, or is owed.
    fn epoch_has_begun(&self) -> bool {
        self.unflushed_blocks > 0 || !self.plan.is_empty() || !self.debts.is_empty()
    }

    /// Adds an entry that was carried to the batch.
    pub(super) fn plan_carried_entry(&mut self, next: &Carried) {
        let blocks = u64::from(next.count);
        if next.is_zero {
            self.zero = Some(ZeroItem { block: next.key.block, blocks, no_hole: next.no_hole });
            self.pass(next.key.version, blocks, 0);
        } else {
            for offset in 0..blocks {
                let order = u32::try_from(self.plan.len()).expect("a small batch");
                let (block, address) = (next.key.block + offset, next.address.plus(offset));
                let version = next.key.version;
                self.plan.push(PlanItem { block, order, address, version, skip: false });
            }
            self.pass(next.key.version, blocks, blocks);
        }
        self.carried = Some((next.key, next.epoch));
    }
}

impl Engine {
    /// Collects the next batch: what the log holds of this export behind the position, up to the
    /// end of the epoch (strict), of what is durable (rule 17), or of the staging room.
    pub(super) fn plan_batch(&mut self, index: usize) {
        if self.stopping {
            // Nothing needs draining: what the origin lacks stays dirty.
            return self.release_destager(index);
        }
        if self.ios.free() == 0 {
            // A summary that cannot be asked for now is not the end of the round.
            return;
        }
        self.destagers[index].plan.clear();
        self.destagers[index].zero = None;
        self.destagers[index].next = 0;
        self.destagers[index].epoch_ended = false;
        self.destagers[index].round_is_over = false;
        // What was carried is older than anything that was not (rule 28).
        if !self.plan_carried(index) {
            while self.plan_record(index) {}
        }
        let destager = &mut self.destagers[index];
        if destager.phase == Phase::LoadingSummary {
            return;
        }
        if destager.zero.is_some() {
            destager.phase = Phase::Zeroing;
            self.destage_waits_anew(index);
        } else if !destager.plan.is_empty() {
            keep_newest(&mut destager.plan);
            // What lies together on the device is read together.
            destager.plan.sort_unstable_by_key(|item| item.address);
            destager.phase = Phase::Reading;
        } else if !destager.debts.is_empty() {
            self.stop_in_debt(index);
        } else {
            destager.round_is_over = true;
            if destager.unflushed_blocks > 0 || destager.lost_in > self.log.durable() {
                self.flush_origin(index);
            } else {
                self.finish_epoch(index);
            }
        }
    }

    /// Collects the next batch from what reclaim carried forward, in order of version. Returns
    /// whether there is anything carried that comes before what the log holds in order.
    pub(super) fn plan_carried(&mut self, index: usize) -> bool {
        let slot = self.destagers[index].export;
        let tail = self.log.tail();
        loop {
            let destager = &mut self.destagers[index];
            let export = self.exports.get(slot);
            let last = destager.carried;
            let has_writes = destager.epoch_has_begun();
            // What was planned from the log before the tail moved past it is not planned again: it
            // would come after what has overwritten it.
            let planned = CarriedKey::last_of(slot, destager.done.sequence);
            let key = last.map_or(planned, |(key, _)| key.max(planned));
            // From the tail on originals are in the log, and in order.
            let next = self.carried.after(slot, Some(key));
            let Some(next) = next.filter(|next| next.key.version < tail).copied() else {
                // What follows was not carried: another epoch, for all that is known. A round goes
                // on to its end, whatever the tail has passed meanwhile.
                destager.epoch_ended =
                    export.order == Order::Strict && last.is_some() && has_writes;
                return destager.epoch_ended;
            };
            // What was taken from the log is in the table, too, as long as the origin does not have
            // it for good.
            let before = last.or_else(|| {
                let before = self.carried.before(next.key)?;
                Some((before.key, before.epoch))
            });
            // Entries of one record are of one epoch, also where they were carried at two times.
            let ends_epoch = before
                .is_none_or(|(key, epoch)| key.version != next.key.version && epoch != next.epoch);
            if export.order == Order::Strict && ends_epoch && has_writes {
                destager.epoch_ended = true;
                return true;
            }
            let is_full = destager.plan.len() + next.count as usize > destager.batch_blocks;
            if !destager.plan.is_empty() && (next.is_zero || is_full) {
                return true;
            }
            destager.plan_carried_entry(&next);
            let after = self.carried.after(slot, Some(next.key));
            if after.is_none_or(|after| after.key.version > next.key.version) {
                destager.done = Done {
                    sequence: next.key.version,
                    end: export.watermark_end,
                    cursor: export.watermark_cursor,
                    wall_ns: export.oldest_dirty_wall_ns,
                    passed: destager.passed,
                };
            }
            if next.is_zero {
                return true;
            }
        }
    }

    /// The summary of a segment, from the log pool or the destager's own room.
    pub(super) fn destage_summary(&self, index: usize, segment_use: u64) -> Option<Buffer> {
        if let Some(buffer) = self.log.resident_summary(segment_use) {
            return Some(buffer);
        }
        let (loaded, length) = self.destagers[index].summary?;
        (loaded == segment_use)
            .then(|| self.summary_room(index).part(SUMMARY_OFFSET as u32, length))
    }

    pub(super) fn summary_room(&self, index: usize) -> Buffer {
        let room = self.log.geometry.footer_bytes();
        let offset = self.plan.destage.offset
            + index as u64 * (u64::from(room) + u64::from(self.plan.destage_batch_bytes));
        Buffer { offset, length: room }
    }

    pub(super) fn staging(&self, index: usize) -> Buffer {
        let room = self.summary_room(index);
        let offset = room.offset + u64::from(room.length);
        Buffer { offset, length: self.plan.destage_batch_bytes }
    }

    /// Plans one record, or a part of it. Returns whether to go on with the next.
    pub(super) fn plan_record(&mut self, index: usize) -> bool {
        let oldest_use = self.log.oldest_use;
        let position = &mut self.destagers[index].position;
        if position.cursor.segment_use < oldest_use {
            let cursor = Cursor { segment_use: oldest_use, summary_at: 0 };
            *position = Position { cursor, entry: 0, block: 0 };
        }
        let Cursor { segment_use, summary_at } = position.cursor;
        if segment_use >= self.log.next_use {
            return false;
        }
        if segment_use < self.log.open_use() && !self.log.has_summary(segment_use) {
            // Lost, and accepted as lost.
            let cursor = Cursor { segment_use: segment_use + 1, summary_at: 0 };
            self.destagers[index].position = Position { cursor, entry: 0, block: 0 };
            return true;
        }
        let Some(buffer) = self.destage_summary(index, segment_use) else {
            if self.destagers[index].plan.is_empty() {
                self.load_destage_summary(index, segment_use);
            }
            return false;
        };
        let mut reader = SummaryReader::at(self.reserve.bytes(buffer), summary_at);
        let Some((record, entries, _)) = reader.next() else {
            if segment_use >= self.log.open_use() {
                return false;
            }
            let cursor = Cursor { segment_use: segment_use + 1, summary_at: 0 };
            self.destagers[index].position = Position { cursor, entry: 0, block: 0 };
            return true;
        };
        let sequence = Sequence(record.sequence.get());
        let destager = &mut self.destagers[index];
        let export = self.exports.get(destager.export);
        if sequence <= destager.done.sequence {
            // It was planned already, from the log or as copies that the tail has passed since.
            let cursor = Cursor { segment_use, summary_at: reader.position() };
            destager.position = Position { cursor, entry: 0, block: 0 };
            return true;
        }
        let header = self.log.geometry.address(segment_use, record.offset_blocks.get());
        let is_over = export.order == Order::Relaxed && header >= destager.horizon;
        if sequence > self.log.durable() && !canary::breaks(17) || is_over {
            return false;
        }
        // Where records are lost, and accepted as lost, an epoch may have begun.
        let is_behind_loss = sequence > destager.done.sequence.next();
        let starts_epoch = record.epoch_starts.get() & destager.export.bit() != 0 || is_behind_loss;
        let at_start = destager.position.entry == 0 && destager.position.block == 0;
        let begins_next = starts_epoch && at_start && destager.epoch_has_begun();
        if export.order == Order::Strict && begins_next {
            destager.epoch_ended = true;
            return false;
        }
        let whole = (&self.index, &self.log, &self.carried);
        let finished = plan_entries(destager, export, whole, record, entries);
        if finished {
            let offset = record.offset_blocks.get() + 1 + u32::from(record.payload_blocks.get());
            let cursor = Cursor { segment_use, summary_at: reader.position() };
            destager.position = Position { cursor, entry: 0, block: 0 };
            destager.done = Done {
                sequence,
                end: self.log.geometry.address(segment_use, offset),
                cursor,
                wall_ns: record.wall_ns.get(),
                passed: destager.passed,
            };
        }
        finished && destager.zero.is_none()
    }

    fn load_destage_summary(&mut self, index: usize, segment_use: u64) {
        if self.ios.free() == 0 {
            return;
        }
        self.destagers[index].summary = None;
        self.destagers[index].phase = Phase::LoadingSummary;
        let owner = IoOwner::DestageSummary { destager: index as u8 };
        // Nothing is planned now, so nothing is staged.
        let (room, frame) = (self.summary_room(index), blocks_of(self.staging(index), 0, 1));
        let load = self.load_summary(owner, segment_use, room, frame);
        self.destagers[index].loading = Some(load);
    }

    pub(in crate::engine) fn destage_summary_done(
        &mut self,
        destager: u8,
        result: Result<(), IoError>,
    ) {
        let index = usize::from(destager);
        let mut load = self.destagers[index].loading.take().expect("a summary is being loaded");
        match self.summary_piece_done(&mut load, result) {
            Loaded::Whole(length) => {
                self.destagers[index].summary = Some((load.segment_use, length));
                self.destagers[index].phase = Phase::Planning;
            }
            Loaded::Reading => self.destagers[index].loading = Some(load),
            Loaded::Failed => {
                // Without its summary nobody knows what the segment holds for the origin. It may
                // be readable later.
                let slot = self.destagers[index].export;
                let export = self.exports.get_mut(slot);
                export.tries_again = true;
                export.damage_retry_at_ns = self.now.monotonic_ns + DAMAGE_RETRY_NS;
                self.stop_damaged(index, None, Sequence(0));
            }
        }
    }
}

/// Adds the dirty blocks of a record's entries to the plan, from the position on. Returns whether
/// the record is finished; if not, the position says where to go on.
fn plan_entries(
    destager: &mut Destager,
    export: &Export,
    (index, log, carried): (&Index, &Log, &CarriedTable),
    record: &SummaryRecord,
    entries: &[Entry],
) -> bool {
    let segment_use = destager.position.cursor.segment_use;
    let version = Sequence(record.sequence.get());
    let mut payload = u64::from(record.offset_blocks.get()) + 1;
    for (number, entry) in entries.iter().enumerate() {
        let first_payload = payload;
        payload += u64::from(entry.payload_blocks());
        if number < destager.position.entry || !is_dirty_entry(export, record, entry) {
            continue;
        }
        destager.position.entry = number;
        if !entry.kind().has_payload() {
            if !destager.plan.is_empty() {
                return false;
            }
            destager.zero = Some(ZeroItem {
                block: entry.block.get(),
                blocks: u64::from(entry.count.get()),
                no_hole: entry.flags().contains(EntryFlags::NO_HOLE),
            });
            destager.pass(version, u64::from(entry.count.get()), 0);
            destager.position.entry = number + 1;
            return number + 1 == entries.len();
        }
        while destager.position.block < entry.count.get() {
            if destager.plan.len() == destager.batch_blocks {
                return false;
            }
            let offset = u64::from(destager.position.block);
            let block = entry.block.get() + offset;
            let base = log.geometry.address(segment_use, 0);
            let address = base.plus(first_payload + offset);
            destager.position.block += 1;
            // A writethrough answer stands for this very version on the origin (rule 23).
            if (export.order == Order::Relaxed || canary::breaks(18))
                && export.mode != Mode::Writethrough
                && is_superseded(destager, index, block, address)
            {
                continue;
            }
            let order = u32::try_from(destager.plan.len()).expect("a small batch");
            let ordinal = u16::try_from(number).expect("fewer entries than a header holds");
            let key = CarriedKey { export: destager.export, version, ordinal, block };
            // A copy is what reads are answered from. If the original was damaged when it was
            // made, it is the copy that has to be found so, since it is what counts.
            let address = carried.copy_of(key).unwrap_or(address);
            destager.plan.push(PlanItem { block, order, address, version, skip: false });
        }
        let count = u64::from(entry.count.get());
        destager.pass(version, count, count);
        destager.position.block = 0;
        destager.position.entry = number + 1;
    }
    true
}

/// Rule 12: client data above the watermark.
fn is_dirty_entry(export: &Export, record: &SummaryRecord, entry: &Entry) -> bool {
    // Copies are destaged from the table of carried entries.
    entry.layer.get() == export.layer.0
        && matches!(entry.kind(), EntryKind::Write | EntryKind::Zero)
        && record.sequence.get() > export.watermark.0
}

/// Whether the round writes a newer version of a block, which is durable then: this one may be
/// passed over (rule 17).
fn is_superseded(destager: &Destager, index: &Index, block: u64, address: LogAddress) -> bool {
    match index.get(destager.export, block).place() {
        Place::Stored(newer) | Place::Zero(newer) => newer > address && newer < destager.horizon,
        Place::Missing | Place::Bad(_) => false,
    }
}

/// Keeps the newest version of each block of a batch, sorted by block (rule 18: within an epoch).
fn keep_newest(plan: &mut Vec<PlanItem>) {
    plan.sort_unstable_by_key(|item| (item.block, item.order));
    let mut kept = 0;
    for at in 0..plan.len() {
        let is_last = plan.get(at + 1).is_none_or(|next| next.block != plan[at].block);
        if is_last {
            plan[kept] = plan[at];
            kept += 1;
        }
    }
    plan.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub(super) fn a_batch_keeps_the_newest_version_of_each_block() {
        let item = |block, order| PlanItem {
            block,
            order,
            address: LogAddress(u64::from(order)),
            version: Sequence(u64::from(order)),
            skip: false,
        };
        let mut plan = vec![item(5, 0), item(3, 1), item(5, 2), item(4, 3), item(3, 4)];
        keep_newest(&mut plan);
        let found: Vec<_> = plan.iter().map(|item| (item.block, item.order)).collect();
        assert_eq!(found, [(3, 4), (4, 3), (5, 2)]);
    }
}
