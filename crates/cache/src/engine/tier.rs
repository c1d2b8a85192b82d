//! The engine's side of the memory tier: blocks come from fetches, serve reads and partial writes,
//! go into the log when they are hit, and are dropped as soon as anything else is known of them.

use super::fetch::{WINDOW_BLOCKS, window_of};
use super::log::Privilege;
use super::step::Span;
use super::{Engine, blocks_of};
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::index::{Index, IndexEntry, LEAF_BLOCKS, Place};
use crate::limits::{BLOCK_BYTES_U32, SEGMENTS_RESERVED};
use crate::tier::TierKey;
use crate::units::{Buffer, ExportSlot};

impl Engine {
    fn tier_frame(&self, frame: usize) -> Buffer {
        self.plan.memory_tier.piece(frame, BLOCK_BYTES_U32)
    }

    /// The content of a missing block, if the memory tier has it.
    pub(super) fn in_memory_tier(&self, export: ExportSlot, block: u64) -> Option<Buffer> {
        self.tier.find(TierKey { export, block }).map(|frame| self.tier_frame(frame))
    }

    /// A block that was fetched and not admitted waits for a second reader; the oldest makes room
    /// for it and is remembered.
    pub(super) fn keep_in_memory_tier(&mut self, export: ExportSlot, block: u64, content: Buffer) {
        let key = TierKey { export, block };
        if self.tier.frames() == 0 {
            let (window, bit) = window_of(block);
            return self.admission.remember(export, window, bit);
        }
        let found = self.tier.find(key);
        let frame = found.unwrap_or_else(|| {
            let (frame, old) = self.tier.insert(key);
            if let Some(old) = old {
                let (window, bit) = window_of(old.block);
                self.admission.remember(old.export, window, bit);
            }
            frame
        });
        self.reserve.copy(content, self.tier_frame(frame));
    }

    /// Blocks were written, zeroed or trimmed: what the tier holds of them is old (promise 2).
    pub(super) fn drop_from_memory_tier(&mut self, export: ExportSlot, first: u64, blocks: u64) {
        self.tier.remove_run(export, first, blocks);
    }

    /// Blocks of a read that the tier had enter the log, as far as there is room to spare. Check
    /// and numbering are one step: they are missing from the index now (rule 10).
    pub(super) fn promote_from_memory_tier(&mut self, export: ExportSlot, span: Span) {
        let end = span.first + u64::from(span.blocks);
        let mut block = span.first;
        while block < end {
            // A run stays in its window, and so in one leaf: making room for another leaf could
            // push out the one that it counts on.
            let most = end.min((block / WINDOW_BLOCKS + 1) * WINDOW_BLOCKS);
            let is_here = |block: &u64| self.in_memory_tier(export, *block).is_some();
            let blocks = (block..most).take_while(is_here).count() as u32;
            if blocks > 0 && !self.append_from_memory_tier(export, block, blocks) {
                return;
            }
            block += u64::from(blocks.max(1));
        }
    }

    fn append_from_memory_tier(&mut self, export: ExportSlot, first: u64, blocks: u32) -> bool {
        let needed = |index: &Index| index.leaves_needed(export, first, u64::from(blocks));
        if self.latched
            || self.stopping
            || !self.has_room_to_spare(export)
            || self.ensure_leaves(export, needed).is_err()
            || self.ensure_room(1, blocks, Privilege::Ordinary).is_err()
        {
            return false;
        }
        let layer = self.exports.get(export).layer.0;
        let entry = Entry::new(EntryKind::Fill, EntryFlags::default(), layer, first, blocks);
        let (address, frames) = self.log.append(&entry, &mut self.reserve);
        for offset in 0..blocks {
            let content = self.in_memory_tier(export, first + u64::from(offset)).expect("a run");
            self.reserve.copy(content, blocks_of(frames, offset, 1));
        }
        self.log.seal_payload(address, frames, &self.reserve);
        self.drop_from_memory_tier(export, first, u64::from(blocks));
        for offset in 0..u64::from(blocks) {
            let entry = IndexEntry::stored(address.plus(offset), false);
            self.index.set(export, first + offset, entry).expect("leaves were ensured");
        }
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
        true
    }

    /// Whether the log has room for what nobody waits for.
    pub(super) fn has_room_to_spare(&self, export: ExportSlot) -> bool {
        self.log.segments_free() > u64::from(SEGMENTS_RESERVED) + 1
            && self.exports.get(export).room_waiters.is_empty()
    }

    /// Panics if the tier holds a block that the index knows of.
    pub(super) fn check_tier_invariants(&self) {
        self.tier.check_invariants();
        for TierKey { export, block } in self.tier.keys() {
            let place = self.index.get(export, block).place();
            assert!(place == Place::Missing, "block {block} is in the memory tier and {place:?}");
        }
    }
}

const _: () = assert!(LEAF_BLOCKS.is_multiple_of(WINDOW_BLOCKS), "a window is in one leaf");
