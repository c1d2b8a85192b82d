//! Writes, zeroes and trims: complete partial blocks, append, number, index, answer.

use super::api::{Command, Effect, Request, RequestError};
use super::exports::Cursor;
use super::log::{NoRoom, Privilege};
use super::step::{OpState, Span};
use super::{Engine, blocks_of};
use crate::config::Mode;
use crate::counters::Counter;
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::geometry::LogAddress;
use crate::index::{Index, IndexEntry};
use crate::limits::BLOCK_BYTES_U32;
use crate::units::{BLOCK_BYTES_U64, Buffer, ExportSlot, Ticket};

/// A step as blocks: which are written, and which of them only in part.
#[derive(Clone, Copy, Debug)]
pub struct WritePlan {
    /// The blocks that carry payload, or that become zeroes.
    pub span: Span,
    /// The first block, if only a part of it is written.
    pub head: Option<u64>,
    /// The last block, if only a part of it is written and it is not the head.
    pub tail: Option<u64>,
}

impl WritePlan {
    /// Of a write or zeroes. The last block of the export counts as whole when it is written up
    /// to the export's end.
    pub fn of(request: &Request, size_bytes: u64) -> Self {
        let span = Span::of(request);
        let end = request.offset + request.length;
        let last = span.first + u64::from(span.blocks) - 1;
        let starts_inside = !request.offset.is_multiple_of(BLOCK_BYTES_U64);
        let ends_inside = !end.is_multiple_of(BLOCK_BYTES_U64) && end != size_bytes;
        let head_partial = starts_inside || (ends_inside && last == span.first);
        let head = head_partial.then_some(span.first);
        let tail = (ends_inside && last != span.first).then_some(last);
        Self { span, head, tail }
    }

    /// The blocks that are written in part.
    pub fn partial(&self) -> [Option<u64>; 2] {
        [self.head, self.tail]
    }

    /// Leaves of the index that it takes to enter the step's blocks, or their zeroes.
    fn leaves_needed(&self, index: &Index, slot: ExportSlot, is_write: bool) -> usize {
        let most = index.leaves_needed(slot, self.span.first, u64::from(self.span.blocks));
        if is_write {
            return most;
        }
        // A leaf that becomes zero as a whole needs none, unless an edge of it is payload.
        let whole = self.whole();
        let edges = self.partial().into_iter().flatten();
        let for_edges: usize = edges.map(|block| index.leaves_needed(slot, block, 1)).sum();
        (index.leaves_for_run(slot, whole.first, whole.blocks.into()) + for_edges).min(most)
    }

    /// The blocks between them.
    fn whole(&self) -> Span {
        let skip = u32::from(self.head.is_some());
        let blocks = self.span.blocks - skip - u32::from(self.tail.is_some());
        Span { first: self.span.first + u64::from(skip), blocks }
    }
}

impl Engine {
    /// A trim without its partial edges, which are left alone (rule 24).
    fn trimmed(&self, request: &Request) -> Option<Request> {
        let export = self.exports.get(request.export);
        let end = request.offset + request.length;
        let first = request.offset.next_multiple_of(BLOCK_BYTES_U64);
        let last = if end == export.size_bytes { end } else { end - end % BLOCK_BYTES_U64 };
        (first < last).then(|| Request { offset: first, length: last - first, ..*request })
    }

    /// Appends a write if it can be, or sees to what it has to wait for.
    pub(super) fn write(&mut self, ticket: Ticket) {
        if self.latched || self.ops[ticket.0 as usize].abandoned {
            self.release_merge(ticket);
            return self.finish_write(ticket, Err(RequestError::Io));
        }
        let request = self.ops[ticket.0 as usize].request();
        let request = match request.command {
            Command::Trim { .. } => match self.trimmed(&request) {
                Some(request) => request,
                None => return self.complete(ticket, Ok(())),
            },
            _ => request,
        };
        let plan = WritePlan::of(&request, self.exports.get(request.export).size_bytes);
        if self.has_room(request.export, &plan, &request).is_err() {
            return self.wait_for_room(ticket);
        }
        if !self.partial_blocks_ready(ticket, request.export, &plan) {
            return;
        }
        match request.command {
            Command::Write { buffer, .. } => self.append_write(ticket, &request, &plan, buffer),
            _ => self.append_zeroes(ticket, &request, &plan),
        }
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
    }

    /// Whether the log, the index and the export's dirty limit have room for a step.
    fn has_room(
        &mut self,
        slot: ExportSlot,
        plan: &WritePlan,
        request: &Request,
    ) -> Result<(), NoRoom> {
        let export = self.exports.get(slot);
        let most = self.log.geometry.dirty_blocks_max();
        if export.dirty.log_blocks >= export.dirty_log_blocks_max
            || !self.exports.may_grow_dirty(slot, most)
        {
            return Err(NoRoom);
        }
        let is_write = matches!(request.command, Command::Write { .. });
        let partial = plan.partial().iter().flatten().count() as u32;
        let (entries, blocks) = if is_write { (1, plan.span.blocks) } else { (3, partial) };
        self.ensure_leaves(slot, |index| plan.leaves_needed(index, slot, is_write))?;
        let room = self.ensure_room(entries, blocks, Privilege::Ordinary);
        self.exports.log_is_asked_for |= room.is_err();
        room
    }

    /// Makes sure that an export gets as many leaves of the index as are needed, and that others
    /// can have what they keep for themselves. Clean blocks are forgotten if need be: its own, or
    /// those of an export that has more than it keeps. What is forgotten may be what the step
    /// counted on: it needs more then.
    pub(super) fn ensure_leaves(
        &mut self,
        slot: ExportSlot,
        needed: impl Fn(&Index) -> usize,
    ) -> Result<(), NoRoom> {
        let (exports, all) = (&self.exports, self.index.leaves_total());
        loop {
            let needed = needed(&self.index);
            if needed == 0 {
                return Ok(());
            }
            let (mut kept, mut may_give) = (0, slot.bit());
            for other in exports.in_use().filter(|other| *other != slot) {
                let (has, keeps) = (self.index.leaves_of(other), exports.leaves_kept(other, all));
                kept += keeps.saturating_sub(has);
                may_give |= if has > keeps { other.bit() } else { 0 };
            }
            if needed + kept <= self.index.leaves_free() {
                return Ok(());
            }
            if !self.index.evict_clean_leaf(may_give, &|slot| exports.watermark_end(slot)) {
                return Err(NoRoom);
            }
        }
    }

    /// Queues a write until there is room; it starts over then.
    fn wait_for_room(&mut self, ticket: Ticket) {
        self.release_merge(ticket);
        self.counters.add(Counter::LogWaits, 1);
        let op = &mut self.ops[ticket.0 as usize];
        op.state = OpState::Waiting;
        let slot = op.request().export;
        self.links.push(&mut self.exports.get_mut(slot).room_waiters, ticket);
    }

    /// Withdraws a change that has not taken effect: its client may have sent it again and been
    /// answered, and what that client wrote since must not be written over.
    pub(super) fn abandon(&mut self, ticket: Ticket) {
        let op = &mut self.ops[ticket.0 as usize];
        if matches!(op.request().command, Command::Read { .. } | Command::Flush) {
            return;
        }
        match op.state {
            OpState::Merging => op.abandoned = true,
            OpState::Waiting => {
                let export = self.exports.get_mut(op.request().export);
                let queues = [
                    &mut export.room_waiters,
                    &mut export.fetch_waiters,
                    &mut export.merge_waiters,
                ];
                let found = queues.into_iter().any(|queue| self.links.remove(queue, ticket));
                assert!(found, "a change that waits is in a queue");
                self.finish_write(ticket, Err(RequestError::Io));
            }
            OpState::Free | OpState::Reading | OpState::Appended => {}
        }
    }

    /// Tries the writes that wait for room, the oldest of each export first. Exports take turns,
    /// write by write, so that one with many of them does not take all that there is.
    pub(super) fn run_room_waiters(&mut self) {
        self.exports.log_is_asked_for = false;
        let mut stuck = 0;
        loop {
            let waits = |slot: &ExportSlot| {
                let is_waiting = !self.exports.get(*slot).room_waiters.is_empty();
                is_waiting && stuck & slot.bit() == 0
            };
            let behind = |slot: &ExportSlot| (slot.0 < self.exports.room_turn, slot.0);
            let next = self.exports.in_use().filter(waits).min_by_key(behind);
            let Some(slot) = next else { return };
            if self.run_room_waiter(slot) {
                self.exports.room_turn = slot.0 + 1;
            } else {
                stuck |= slot.bit();
            }
        }
    }

    /// Tries the oldest write that waits for room in an export; returns whether it has left the
    /// queue.
    fn run_room_waiter(&mut self, slot: ExportSlot) -> bool {
        let mut queue = self.exports.get(slot).room_waiters;
        let ticket = self.links.pop(&mut queue).expect("a write that waits");
        self.exports.get_mut(slot).room_waiters = queue;
        if self.latched || self.stopping {
            let error = if self.latched { RequestError::Io } else { RequestError::ShuttingDown };
            self.finish_write(ticket, Err(error));
            return true;
        }
        let request = self.ops[ticket.0 as usize].request();
        let plan = WritePlan::of(&request, self.exports.get(slot).size_bytes);
        if self.has_room(slot, &plan, &request).is_ok() {
            // Its patience was for room: what the origin is asked for now gets its own time.
            let patience_ns = self.exports.get(slot).wait_ns_max;
            let until_ns = self.now.monotonic_ns.saturating_add(patience_ns);
            let op = &mut self.ops[ticket.0 as usize];
            op.deadline_ns = op.deadline_ns.max(until_ns);
            self.write(ticket);
            return true;
        }
        if self.room_wait_ended(slot, ticket) {
            self.finish_write(ticket, Err(RequestError::NoSpace));
            return true;
        }
        let mut queue = self.exports.get(slot).room_waiters;
        self.links.push_front(&mut queue, ticket);
        self.exports.get_mut(slot).room_waiters = queue;
        false
    }

    /// Whether a write has waited for its limit without an origin taking anything that would give
    /// it room.
    fn room_wait_ended(&self, slot: ExportSlot, ticket: Ticket) -> bool {
        self.room_wait_end_ns(slot, ticket).is_some_and(|end_ns| self.now.monotonic_ns >= end_ns)
    }

    /// Never while only the cache device stands in the way: one that is slow takes what it was
    /// given in the end, and one that fails latches.
    fn room_wait_end_ns(&self, slot: ExportSlot, ticket: Ticket) -> Option<u64> {
        if self.log.waits_for_device() {
            return None;
        }
        let makes_room = |&other: &ExportSlot| other == slot || self.reclaim.is_blocked_by(other);
        let progress = |other: ExportSlot| self.exports.get(other).progress_ns;
        let progress_ns = self.exports.in_use().filter(makes_room).map(progress).max();
        let wait_ns = self.exports.get(slot).wait_ns_max;
        let progress_ns = progress_ns.unwrap_or(0).max(self.device_waited_until_ns);
        let since_progress = progress_ns.saturating_add(wait_ns);
        Some(self.ops[ticket.0 as usize].deadline_ns.max(since_progress))
    }

    /// When the first of the waiting writes may give up.
    pub(super) fn room_deadline_ns(&self) -> Option<u64> {
        let deadline = |slot: ExportSlot| {
            let ticket = self.exports.get(slot).room_waiters.front()?;
            self.room_wait_end_ns(slot, ticket)
        };
        self.exports.in_use().filter_map(deadline).min()
    }

    /// Appends a write: one entry, its payload copied into the open record (rule 9).
    fn append_write(
        &mut self,
        ticket: Ticket,
        request: &Request,
        plan: &WritePlan,
        payload: Buffer,
    ) {
        let span = plan.span;
        let layer = self.exports.get(request.export).layer.0;
        let flags = EntryFlags::default();
        let entry = Entry::new(EntryKind::Write, flags, layer, span.first, span.blocks);
        let (address, frames) = self.log.append(&entry, &mut self.reserve);
        for (which, block) in plan.partial().into_iter().enumerate() {
            let Some(block) = block else { continue };
            let frame = blocks_of(frames, (block - span.first) as u32, 1);
            self.copy_partial_source(ticket, request.export, which, block, frame);
        }
        self.clear_behind_end(request.export, span, frames);
        let skip = (request.offset % BLOCK_BYTES_U64) as u32;
        self.reserve.copy(payload, frames.part(skip, payload.length));
        self.log.seal_payload(address, frames, &self.reserve);
        self.index_run(request.export, span, address);
        self.note_dirty(request.export, u64::from(span.blocks), u64::from(span.blocks));
        self.emit(Effect::Consumed { ticket });
        self.appended(ticket, request);
    }

    /// The last block of an export is zero behind its end, whatever was in the frame before.
    fn clear_behind_end(&mut self, slot: ExportSlot, span: Span, frames: Buffer) {
        let size_bytes = self.exports.get(slot).size_bytes;
        let inside = (size_bytes % BLOCK_BYTES_U64) as u32;
        let last = span.first + u64::from(span.blocks) - 1;
        if inside != 0 && last == size_bytes / BLOCK_BYTES_U64 {
            let frame = blocks_of(frames, span.blocks - 1, 1);
            self.reserve.bytes_mut(frame.part(inside, BLOCK_BYTES_U32 - inside)).fill(0);
        }
    }

    /// Enters blocks that a client wrote into the index; leaves were ensured.
    fn index_run(&mut self, slot: ExportSlot, span: Span, address: LogAddress) {
        self.drop_from_memory_tier(slot, span.first, u64::from(span.blocks));
        self.note_overwriting(slot, span.first, u64::from(span.blocks));
        for offset in 0..u64::from(span.blocks) {
            let entry = IndexEntry::stored(address.plus(offset), true);
            self.index.set(slot, span.first + offset, entry).expect("leaves were ensured");
        }
    }

    /// Appends zeroes: an entry for the whole blocks, and the partial ones at the edges.
    fn append_zeroes(&mut self, ticket: Ticket, request: &Request, plan: &WritePlan) {
        let no_hole = matches!(request.command, Command::WriteZeroes { no_hole: true, .. });
        let layer = self.exports.get(request.export).layer.0;
        let whole = plan.whole();
        if whole.blocks > 0 {
            let flags = if no_hole { EntryFlags::NO_HOLE } else { EntryFlags::default() };
            let entry = Entry::new(EntryKind::Zero, flags, layer, whole.first, whole.blocks);
            let (_, header) = self.log.open();
            self.log.append(&entry, &mut self.reserve);
            let blocks = u64::from(whole.blocks);
            self.note_overwriting(request.export, whole.first, blocks);
            self.drop_from_memory_tier(request.export, whole.first, blocks);
            self.index
                .set_run(request.export, whole.first, blocks, IndexEntry::zero(header))
                .expect("leaves were ensured");
            self.note_dirty(request.export, blocks, 0);
        }
        for (which, block) in plan.partial().into_iter().enumerate() {
            let Some(block) = block else { continue };
            let entry = Entry::new(EntryKind::Write, EntryFlags::default(), layer, block, 1);
            let (address, frame) = self.log.append(&entry, &mut self.reserve);
            self.copy_partial_source(ticket, request.export, which, block, frame);
            let start = request.offset.max(block * BLOCK_BYTES_U64) - block * BLOCK_BYTES_U64;
            let end = (request.offset + request.length).min((block + 1) * BLOCK_BYTES_U64)
                - block * BLOCK_BYTES_U64;
            self.reserve.bytes_mut(frame.part(start as u32, (end - start) as u32)).fill(0);
            let span = Span { first: block, blocks: 1 };
            self.clear_behind_end(request.export, span, frame);
            self.log.seal_payload(address, frame, &self.reserve);
            self.index_run(request.export, span, address);
            self.note_dirty(request.export, 1, 1);
        }
        self.appended(ticket, request);
    }

    /// Counts client data that the origin must get.
    fn note_dirty(&mut self, slot: ExportSlot, blocks: u64, payload_blocks: u64) {
        let (sequence, _) = self.log.open();
        let (segment_use, summary_at) = self.log.open_record_place();
        let (wall_ns, monotonic_ns) = (self.now.wall_ns, self.now.monotonic_ns);
        let export = self.exports.get_mut(slot);
        if !export.is_dirty() {
            export.oldest_dirty_wall_ns = wall_ns;
            export.dirty_since_ns = monotonic_ns;
            export.progress_ns = monotonic_ns;
            if !export.destaging {
                export.watermark_cursor = Cursor { segment_use, summary_at };
            }
        }
        export.note_entry(sequence, blocks, payload_blocks, monotonic_ns);
    }

    /// What was appended is visible: answer, now or when it is as durable as was asked.
    fn appended(&mut self, ticket: Ticket, request: &Request) {
        self.release_merge(ticket);
        self.foresight.wrote();
        let (sequence, _) = self.log.open();
        let fua = request.needs_flush();
        let writethrough = self.exports.get(request.export).mode == Mode::Writethrough;
        if !fua && !writethrough && !request.kept {
            return self.complete(ticket, Ok(()));
        }
        let op = &mut self.ops[ticket.0 as usize];
        op.state = OpState::Appended;
        op.sequence = sequence;
        if fua {
            self.exports.end_epoch(request.export, true);
        }
        if !fua && !writethrough {
            self.log.want_closed();
            return self.links.push(&mut self.written_waiters, ticket);
        }
        self.log.want_durable(sequence);
        if writethrough {
            let export = self.exports.get_mut(request.export);
            export.destage_target = export.destage_target.max(sequence);
            self.links.push(&mut export.origin_waiters, ticket);
        } else {
            self.links.push(&mut self.durable_waiters, ticket);
        }
    }
}
