//! Reads: a snapshot of the index, split into pieces: in memory, on the device, zero, missing.

use super::api::{Command, Effect, IoError, Notice, RequestError};
use super::fetch::{LinkTarget, WINDOW_BLOCKS, window_of};
use super::step::{OpState, Span};
use super::tables::IoOwner;
use super::{Engine, blocks_of};
use crate::counters::{Counter, ExportCounter};
use crate::geometry::LogAddress;
use crate::index::{IndexEntry, Place};
use crate::limits::STEP_BLOCKS_MAX;
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64, Buffer, ExportSlot, Ticket};

/// Windows that a step touches at most.
const WINDOWS_MAX: usize = STEP_BLOCKS_MAX.div_ceil(WINDOW_BLOCKS as usize) + 1;

/// The blocks of a step that are not in the cache, by window.
type MissingWindows = [u64; WINDOWS_MAX];

/// Neighbouring blocks of a step that are read from the device together.
#[derive(Clone, Copy)]
struct DeviceRun {
    first: u32,
    blocks: u32,
    address: LogAddress,
}

impl Engine {
    /// The blocks of a read and the buffer that they go to.
    pub(super) fn read_target(&self, ticket: Ticket) -> (Span, Buffer) {
        let request = self.ops[ticket.0 as usize].request();
        let Command::Read { buffer } = request.command else { unreachable!("a read") };
        (Span::of(&request), buffer)
    }

    /// Answers a read, or starts all the I/O that it needs in one go (rule 29).
    pub(super) fn read(&mut self, ticket: Ticket) {
        let slot = self.ops[ticket.0 as usize].request().export;
        let (span, buffer) = self.read_target(ticket);
        if !self.read_can_start(slot, span) {
            self.counters.add(Counter::FetchWaits, 1);
            self.links.push(&mut self.fetch_waiters, ticket);
            return;
        }
        self.ops[ticket.0 as usize].state = OpState::Reading;
        // One piece more than there is, so that nothing ends before all has started.
        self.ops[ticket.0 as usize].pending = 1;
        let mut missing: MissingWindows = [0; WINDOWS_MAX];
        let mut run: Option<DeviceRun> = None;
        let mut hit_blocks = 0;
        for offset in 0..span.blocks {
            let block = span.first + u64::from(offset);
            match self.index.get(slot, block).place() {
                Place::Zero(_) => {
                    hit_blocks += 1;
                    self.reserve.bytes_mut(blocks_of(buffer, offset, 1)).fill(0);
                }
                Place::Missing => note_missing(&mut missing, span, block),
                Place::Stored(address) => {
                    hit_blocks += 1;
                    self.index.mark_hit(slot, block);
                    if let Some(frame) = self.log.resident(address) {
                        self.reserve.copy(frame, blocks_of(buffer, offset, 1));
                    } else {
                        run = self.extend_run(ticket, buffer, run, offset, address);
                    }
                }
            }
        }
        if let Some(run) = run {
            self.start_run(ticket, buffer, run);
        }
        self.counters.add_export(slot, ExportCounter::HitBytes, hit_blocks * BLOCK_BYTES_U64);
        self.start_fetches(ticket, slot, span, &missing);
        self.read_piece_done(ticket);
    }

    /// Whether all the slots are free that a read needs.
    fn read_can_start(&self, slot: ExportSlot, span: Span) -> bool {
        let mut missing: MissingWindows = [0; WINDOWS_MAX];
        let mut runs = 0;
        let mut next = None;
        for offset in 0..span.blocks {
            let block = span.first + u64::from(offset);
            match self.index.get(slot, block).place() {
                Place::Missing => note_missing(&mut missing, span, block),
                Place::Stored(address) if self.log.resident(address).is_none() => {
                    runs += usize::from(next != Some(address));
                    next = Some(address.plus(1));
                    continue;
                }
                Place::Stored(_) | Place::Zero(_) => {}
            }
            next = None;
        }
        let (mut fetches, mut links) = (0, 0);
        for (index, &wanted) in missing.iter().enumerate().filter(|(_, wanted)| **wanted != 0) {
            let window = span.first / WINDOW_BLOCKS + index as u64;
            let (joined, rest) = self.fetches_joined(slot, window, wanted);
            links += joined + usize::from(rest);
            fetches += usize::from(rest);
        }
        runs + fetches == 0 && links == 0 || self.can_fetch(fetches, links, runs + fetches)
    }

    /// How many fetches in flight have some of these blocks, and whether a new one is needed.
    fn fetches_joined(&self, slot: ExportSlot, window: u64, wanted: u64) -> (usize, bool) {
        let mut rest = wanted;
        let mut joined = 0;
        while let Some(fetch) = self.fetch_of(slot, window, rest) {
            rest &= !self.fetch_wanted(fetch);
            joined += 1;
        }
        (joined, rest != 0)
    }

    /// Adds a block to the run before it, or starts that run and begins a new one.
    fn extend_run(
        &mut self,
        ticket: Ticket,
        buffer: Buffer,
        run: Option<DeviceRun>,
        offset: u32,
        address: LogAddress,
    ) -> Option<DeviceRun> {
        if let Some(mut run) = run {
            let follows = run.first + run.blocks == offset
                && run.address.plus(u64::from(run.blocks)) == address;
            let same_segment = self.log.geometry.segment_use(run.address)
                == self.log.geometry.segment_use(address);
            if follows && same_segment {
                run.blocks += 1;
                return Some(run);
            }
            self.start_run(ticket, buffer, run);
        }
        Some(DeviceRun { first: offset, blocks: 1, address })
    }

    fn start_run(&mut self, ticket: Ticket, buffer: Buffer, run: DeviceRun) {
        self.ops[ticket.0 as usize].pending += 1;
        let DeviceRun { first, blocks, address } = run;
        let owner = IoOwner::ReadRun { ticket, first, blocks, address: address.0 };
        self.device_read(owner, address, blocks_of(buffer, first, blocks));
    }

    fn start_fetches(
        &mut self,
        ticket: Ticket,
        slot: ExportSlot,
        span: Span,
        missing: &MissingWindows,
    ) {
        for (index, &wanted) in missing.iter().enumerate().filter(|(_, wanted)| **wanted != 0) {
            let window = span.first / WINDOW_BLOCKS + index as u64;
            let count = self.wait_for_window(ticket, slot, window, wanted, LinkTarget::Reply);
            self.ops[ticket.0 as usize].pending += count;
        }
    }

    pub(super) fn read_run_done(
        &mut self,
        ticket: Ticket,
        first: u32,
        blocks: u32,
        address: LogAddress,
        result: Result<(), IoError>,
    ) {
        self.unpin(address);
        let slot = self.ops[ticket.0 as usize].request().export;
        let (span, buffer) = self.read_target(ticket);
        for offset in 0..blocks {
            let address = address.plus(u64::from(offset));
            let frame = blocks_of(buffer, first + offset, 1);
            debug_assert_eq!(frame.length as usize, BLOCK_BYTES);
            if result.is_ok() && self.log.verify(address, self.reserve.bytes(frame)) {
                continue;
            }
            let block = span.first + u64::from(first + offset);
            let forgotten = self.forget_bad_block(slot, block, address);
            let op = &mut self.ops[ticket.0 as usize];
            match forgotten {
                Ok(()) => op.restart = true,
                Err(error) => op.error = Some(error),
            }
        }
        self.read_piece_done(ticket);
    }

    /// A block at `address` could not be read. Clean: it is forgotten, and fetched again by
    /// whoever starts over. Dirty: it is lost, and said so. If a newer version has come meanwhile,
    /// starting over is enough (rule 31).
    pub(super) fn forget_bad_block(
        &mut self,
        slot: ExportSlot,
        block: u64,
        address: LogAddress,
    ) -> Result<(), RequestError> {
        let entry = self.index.get(slot, block);
        if entry.place() != Place::Stored(address) {
            return Ok(());
        }
        let dirty = entry.is_dirty(self.exports.watermark_end(slot));
        self.emit(Effect::Notice(Notice::ChecksumMismatch { export: slot, block, dirty }));
        if dirty {
            self.counters.add_export(slot, ExportCounter::ChecksumErrorsDirty, 1);
            return Err(RequestError::Io);
        }
        self.counters.add_export(slot, ExportCounter::ChecksumErrorsClean, 1);
        self.index.set(slot, block, IndexEntry::MISSING).expect("its leaf is there");
        Ok(())
    }

    /// One piece of a read has come, or will not.
    pub(super) fn read_piece_done(&mut self, ticket: Ticket) {
        let op = &mut self.ops[ticket.0 as usize];
        op.pending -= 1;
        if op.pending > 0 {
            return;
        }
        match op.error {
            Some(error) => self.complete(ticket, Err(error)),
            None if op.restart => self.run(ticket),
            None => self.complete(ticket, Ok(())),
        }
    }
}

fn note_missing(missing: &mut MissingWindows, span: Span, block: u64) {
    let (window, bit) = window_of(block);
    missing[(window - span.first / WINDOW_BLOCKS) as usize] |= bit;
}
