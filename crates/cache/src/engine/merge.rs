//! Partial blocks: a write that covers a part of a block is merged with what the block holds. Only
//! where the cache does not have that is the origin needed (rule 33).

use super::Engine;
use super::api::{Effect, IoError, RequestError};
use super::damage::Verdict;
use super::fetch::{LinkTarget, window_of};
use super::step::OpState;
use super::tables::IoOwner;
use super::write::WritePlan;
use crate::counters::Counter;
use crate::geometry::LogAddress;
use crate::index::{IndexEntry, Place};
use crate::limits::BLOCK_BYTES_U32;
use crate::units::{Buffer, ExportSlot, Ticket};

/// The blocks that one write is waiting for: its first and its last.
#[derive(Debug)]
pub struct Merge {
    ticket: Ticket,
    blocks: [Option<MergeBlock>; 2],
}

#[derive(Clone, Copy, Debug)]
struct MergeBlock {
    block: u64,
    /// The index entry when the block was asked for: what was read counts only while it stands.
    seen: IndexEntry,
    ready: bool,
    /// Whether it was overwritten since: the entry may look the same once more, after that was
    /// destaged and forgotten.
    overwritten: bool,
    /// Whether it was damaged the first time that it was read.
    again: bool,
}

/// Where the present content of a block is.
enum Source {
    Zeroes,
    Frame(Buffer),
    /// In the log, but not in memory.
    Device(LogAddress),
    Origin,
    /// Nowhere: it was damaged (rule 25).
    Lost,
}

impl Engine {
    fn merge_frame(&self, merge: u32, which: usize) -> Buffer {
        self.plan.merge.piece(merge as usize * 2 + which, BLOCK_BYTES_U32)
    }

    fn partial_source(&self, ticket: Ticket, slot: ExportSlot, which: usize, block: u64) -> Source {
        let entry = self.index.get(slot, block);
        if let Some(merge) = self.ops[ticket.0 as usize].merge
            && let Some(read) = &self.merges.get(merge).blocks[which]
            && read.ready
            && !read.overwritten
            && read.block == block
            && read.seen.same_content(entry)
        {
            return Source::Frame(self.merge_frame(merge, which));
        }
        match entry.place() {
            Place::Zero(_) => Source::Zeroes,
            Place::Missing => {
                self.in_memory_tier(slot, block).map_or(Source::Origin, Source::Frame)
            }
            Place::Bad(_) => Source::Lost,
            Place::Stored(address) => {
                self.resident(address).map_or(Source::Device(address), Source::Frame)
            }
        }
    }

    /// Copies the present content of a partial block into its new frame.
    pub(super) fn copy_partial_source(
        &mut self,
        ticket: Ticket,
        slot: ExportSlot,
        which: usize,
        block: u64,
        frame: Buffer,
    ) {
        match self.partial_source(ticket, slot, which, block) {
            Source::Zeroes => self.reserve.bytes_mut(frame).fill(0),
            Source::Frame(source) => self.reserve.copy(source, frame),
            Source::Device(_) | Source::Origin | Source::Lost => {
                unreachable!("partial blocks were made ready")
            }
        }
    }

    /// Whether the present content of all partial blocks is at hand. If not, it is being read, or
    /// the write waits for the means to; it starts over afterwards.
    pub(super) fn partial_blocks_ready(
        &mut self,
        ticket: Ticket,
        slot: ExportSlot,
        plan: &WritePlan,
    ) -> bool {
        let (mut device, mut origin) = (0, 0);
        for (which, block) in plan.partial().into_iter().enumerate() {
            let Some(block) = block else { continue };
            match self.partial_source(ticket, slot, which, block) {
                Source::Device(_) => device += 1,
                Source::Origin => origin += 1,
                Source::Zeroes | Source::Frame(_) => {}
                Source::Lost => {
                    // A part cannot make the whole good.
                    self.release_merge(ticket);
                    self.finish_write(ticket, Err(RequestError::Io));
                    return false;
                }
            }
        }
        if device + origin == 0 {
            return true;
        }
        if self.ops[ticket.0 as usize].merge.is_none() {
            if self.merge_quota.room(slot) == 0 {
                self.counters.add(Counter::MergeWaits, 1);
                self.links.push(&mut self.exports.get_mut(slot).merge_waiters, ticket);
                return false;
            }
            self.merge_quota.take(slot);
            let merge = self.merges.take(Merge { ticket, blocks: [None; 2] });
            self.ops[ticket.0 as usize].merge = Some(merge);
        }
        // Who needs the origin does not overtake those who wait for a free fetch already.
        let has_turn = origin == 0 || self.exports.get(slot).fetch_waiters.is_empty();
        if !has_turn || !self.can_fetch(slot, origin, origin, device + origin) {
            self.release_merge(ticket);
            self.counters.add(Counter::FetchWaits, 1);
            self.links.push(&mut self.exports.get_mut(slot).fetch_waiters, ticket);
            return false;
        }
        self.read_partial_blocks(ticket, slot, plan);
        false
    }

    fn read_partial_blocks(&mut self, ticket: Ticket, slot: ExportSlot, plan: &WritePlan) {
        let merge = self.ops[ticket.0 as usize].merge.expect("a merge slot was taken");
        self.ops[ticket.0 as usize].state = OpState::Merging;
        let mut sources = [None, None];
        for (which, block) in plan.partial().into_iter().enumerate() {
            let Some(block) = block else { continue };
            let source = self.partial_source(ticket, slot, which, block);
            if matches!(source, Source::Zeroes | Source::Frame(_) | Source::Lost) {
                continue;
            }
            self.ops[ticket.0 as usize].pending += 1;
            let seen = self.index.get(slot, block);
            self.merges.get_mut(merge).blocks[which] =
                Some(MergeBlock { block, seen, ready: false, overwritten: false, again: false });
            sources[which] = Some((block, source));
        }
        // Reads of the device first: a fetch takes others that are queued along, and with them the
        // I/O slots that were counted.
        for (which, source) in sources.iter().enumerate() {
            if let Some((_, Source::Device(address))) = source {
                let owner = IoOwner::MergeRead { merge, which: which as u8 };
                self.device_read(owner, *address, self.merge_frame(merge, which));
            }
        }
        for (which, source) in sources.into_iter().enumerate() {
            if let Some((block, Source::Origin)) = source {
                let (window, bit) = window_of(block);
                let target = LinkTarget::Merge { which: which as u8 };
                self.wait_for_window(ticket, slot, window, bit, target);
            }
        }
    }

    /// Reads blocks of one segment, which stays pinned until the read has ended.
    pub(super) fn device_read(&mut self, owner: IoOwner, address: LogAddress, buffer: Buffer) {
        let segment = self.log.geometry.segment(self.log.geometry.segment_use(address));
        self.log.segments[segment].pins += 1;
        self.counters.add(Counter::DeviceReadBytes, u64::from(buffer.length));
        let io = self.ios.start(owner);
        let offset = self.log.geometry.device_offset(address);
        self.emit(Effect::DeviceRead { io, offset, buffer });
    }

    /// The read has ended: the segment may be reused as far as this read is concerned.
    pub(super) fn unpin(&mut self, address: LogAddress) {
        let segment = self.log.geometry.segment(self.log.geometry.segment_use(address));
        self.log.segments[segment].pins -= 1;
    }

    pub(super) fn merge_read_done(&mut self, merge: u32, which: u8, result: Result<(), IoError>) {
        let ticket = self.merges.get(merge).ticket;
        let slot = self.ops[ticket.0 as usize].request().export;
        let frame = self.merge_frame(merge, usize::from(which));
        let read = self.merges.get(merge).blocks[usize::from(which)].expect("a block was asked");
        let Place::Stored(address) = read.seen.place() else {
            unreachable!("only stored blocks are read from the device");
        };
        self.unpin(address);
        let Some(damage) = self.damage_of(address, frame, result) else {
            self.merge_block_ready(merge, which);
            return self.merge_piece_done(ticket);
        };
        match self.judge_damage(slot, read.block, address, damage, read.again) {
            Verdict::StartOver => {}
            Verdict::LookAgain => {
                let block = self.merges.get_mut(merge).blocks[usize::from(which)].as_mut();
                block.expect("a block was asked").again = true;
                return self.device_read(IoOwner::MergeRead { merge, which }, address, frame);
            }
            Verdict::Lost => self.ops[ticket.0 as usize].error = Some(RequestError::Io),
        }
        self.merge_piece_done(ticket);
    }

    /// A block that a partial write waits for is in its frame.
    pub(super) fn merge_block_ready(&mut self, merge: u32, which: u8) {
        let block = self.merges.get_mut(merge).blocks[usize::from(which)].as_mut();
        block.expect("a block was asked").ready = true;
    }

    /// Blocks were overwritten: what partial writes have read of them, or are reading, is old.
    pub(super) fn void_merges(&mut self, slot: ExportSlot, first: u64, blocks: u64) {
        if self.merges.used() == 0 {
            return;
        }
        let overwritten = first..first + blocks;
        for merge in self.merges.iter_mut() {
            if self.ops[merge.ticket.0 as usize].request().export != slot {
                continue;
            }
            let read = merge.blocks.iter_mut().flatten();
            read.filter(|read| overwritten.contains(&read.block))
                .for_each(|read| read.overwritten = true);
        }
    }

    /// One of the blocks that a partial write waits for has come, or will not.
    pub(super) fn merge_piece_done(&mut self, ticket: Ticket) {
        let op = &mut self.ops[ticket.0 as usize];
        op.pending -= 1;
        if op.pending > 0 {
            return;
        }
        op.state = OpState::Waiting;
        match op.error {
            Some(error) => {
                self.release_merge(ticket);
                self.finish_write(ticket, Err(error));
            }
            None => self.write(ticket),
        }
    }

    /// The frame for a fetched block of a partial write.
    pub(super) fn merge_target(&self, ticket: Ticket, which: u8) -> (u32, Buffer) {
        let merge = self.ops[ticket.0 as usize].merge.expect("a merge slot was taken");
        (merge, self.merge_frame(merge, usize::from(which)))
    }

    /// Gives a write's merge slot back, if it has one. What it read counts no longer: between now
    /// and the next try the block could be written, destaged and forgotten.
    pub(super) fn release_merge(&mut self, ticket: Ticket) {
        if let Some(merge) = self.ops[ticket.0 as usize].merge.take() {
            self.merges.give_back(merge);
            self.merge_quota.give_back(self.ops[ticket.0 as usize].request().export);
        }
    }
}
