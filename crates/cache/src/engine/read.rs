//! Reads: a snapshot of the index, split into pieces: in memory, on the device, zero, missing.

use super::api::{Command, IoError, RequestError};
use super::damage::{Damage, Verdict};
use super::fetch::{LinkTarget, WINDOW_BLOCKS, window_of};
use super::pieces::{HOLE_BLOCKS_MIN, ReadProgress};
use super::step::{OpState, Span};
use super::tables::IoOwner;
use super::{Engine, blocks_of};
use crate::counters::{Counter, ExportCounter};
use crate::geometry::LogAddress;
use crate::index::Place;
use crate::limits::{FETCHES_PER_EXPORT, STEP_BLOCKS_MAX};
use crate::units::{BLOCK_BYTES, BLOCK_BYTES_U64, Buffer, ExportSlot, Ticket};

/// Windows that a step touches at most.
const WINDOWS_MAX: usize = STEP_BLOCKS_MAX.div_ceil(WINDOW_BLOCKS as usize) + 1;

const _: () = assert!(WINDOWS_MAX == FETCHES_PER_EXPORT);

/// The blocks of a step that are not in the cache, by window.
type MissingWindows = [u64; WINDOWS_MAX];

/// Neighbouring blocks of a step that are read from the device together.
#[derive(Clone, Copy)]
struct DeviceRun {
    first: u32,
    blocks: u32,
    address: LogAddress,
}

/// Neighbouring blocks of a step that are zeroes.
#[derive(Clone, Copy)]
struct ZeroRun {
    first: u32,
    blocks: u32,
}

impl Engine {
    /// The blocks of a read and the buffer that they go to.
    pub(super) fn read_target(&self, ticket: Ticket) -> (Span, Buffer) {
        let request = self.ops[ticket.0 as usize].request();
        let Command::Read { buffer, .. } = request.command else { unreachable!("a read") };
        (Span::of(&request), buffer)
    }

    /// How far a read has come.
    fn progress(&mut self, ticket: Ticket) -> &mut ReadProgress {
        &mut self.reads[ticket.0 as usize]
    }

    /// Answers a read, or starts all the I/O that it needs in one go (rule 29).
    pub(super) fn read(&mut self, ticket: Ticket) {
        let slot = self.ops[ticket.0 as usize].request().export;
        let (span, buffer) = self.read_target(ticket);
        if !self.read_can_start(slot, span) {
            self.counters.add(Counter::FetchWaits, 1);
            self.links.push(&mut self.exports.get_mut(slot).fetch_waiters, ticket);
            return;
        }
        self.begin_progress(ticket, span);
        let mut missing: MissingWindows = [0; WINDOWS_MAX];
        let mut run: Option<DeviceRun> = None;
        let mut zeroes: Option<ZeroRun> = None;
        let (mut hit_blocks, mut tier_blocks) = (0, 0);
        for offset in 0..span.blocks {
            let block = span.first + u64::from(offset);
            let place = self.index.get(slot, block).place();
            hit_blocks += u64::from(matches!(place, Place::Stored(_) | Place::Zero(_)));
            match place {
                Place::Zero(_) => {
                    let run = zeroes.get_or_insert(ZeroRun { first: offset, blocks: 0 });
                    run.blocks += 1;
                    continue;
                }
                Place::Missing => match self.in_memory_tier(slot, block) {
                    Some(frame) => {
                        tier_blocks += 1;
                        self.reserve.copy(frame, blocks_of(buffer, offset, 1));
                    }
                    None => {
                        note_missing(&mut missing, span, block);
                        self.progress(ticket).expect(offset, 1);
                    }
                },
                Place::Stored(address) => {
                    self.index.mark_hit(slot, block);
                    if let Some(frame) = self.resident(address) {
                        self.reserve.copy(frame, blocks_of(buffer, offset, 1));
                    } else {
                        run = self.extend_run(ticket, buffer, run, offset, address);
                    }
                }
                Place::Bad(_) => self.progress(ticket).fail(offset, 1, RequestError::Io),
            }
            self.end_zeroes(ticket, buffer, zeroes.take());
        }
        self.end_zeroes(ticket, buffer, zeroes);
        if let Some(run) = run {
            self.start_run(ticket, buffer, run);
        }
        let all_blocks = hit_blocks + tier_blocks;
        self.counters.add_export(slot, ExportCounter::HitBytes, all_blocks * BLOCK_BYTES_U64);
        self.start_fetches(ticket, slot, span, &missing);
        if tier_blocks > 0 {
            self.counters.add(Counter::TierHits, tier_blocks);
            self.promote_from_memory_tier(slot, span);
        }
        self.read_piece_done(ticket);
    }

    /// Everything counts as there until the walk of the index says otherwise.
    fn begin_progress(&mut self, ticket: Ticket, span: Span) {
        let op = &mut self.ops[ticket.0 as usize];
        let Command::Read { in_pieces, .. } = op.request().command else { unreachable!("a read") };
        op.state = OpState::Reading;
        // One piece more than there is, so that nothing ends before all has started.
        op.pending = 1;
        op.device_pending = 0;
        *self.progress(ticket) = ReadProgress::new(span.blocks, in_pieces);
    }

    /// A run of zeroes is over: few are filled in, many can be told without data.
    fn end_zeroes(&mut self, ticket: Ticket, buffer: Buffer, run: Option<ZeroRun>) {
        let Some(ZeroRun { first, blocks }) = run else { return };
        let progress = self.progress(ticket);
        if progress.in_pieces() && blocks >= HOLE_BLOCKS_MIN {
            progress.note_zeroes(first, blocks);
        } else {
            self.reserve.bytes_mut(blocks_of(buffer, first, blocks)).fill(0);
        }
    }

    /// Whether all the slots are free that a read needs.
    fn read_can_start(&self, slot: ExportSlot, span: Span) -> bool {
        let mut missing: MissingWindows = [0; WINDOWS_MAX];
        let mut runs = 0;
        let mut next = None;
        for offset in 0..span.blocks {
            let block = span.first + u64::from(offset);
            match self.index.get(slot, block).place() {
                Place::Missing if self.in_memory_tier(slot, block).is_some() => {}
                Place::Missing => note_missing(&mut missing, span, block),
                Place::Stored(address) if self.resident(address).is_none() => {
                    runs += usize::from(next != Some(address));
                    next = Some(address.plus(1));
                    continue;
                }
                Place::Stored(_) | Place::Zero(_) | Place::Bad(_) => {}
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
        // Who needs the origin does not overtake those who wait for a free fetch already.
        let has_turn = fetches == 0 || self.exports.get(slot).fetch_waiters.is_empty();
        runs + fetches == 0 && links == 0
            || has_turn && self.can_fetch(slot, fetches, links, runs + fetches)
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
        let DeviceRun { first, blocks, .. } = run;
        self.progress(ticket).expect(first, blocks);
        self.start_device_part(ticket, buffer, run, false);
    }

    fn start_device_part(&mut self, ticket: Ticket, buffer: Buffer, run: DeviceRun, again: bool) {
        let DeviceRun { first, blocks, address } = run;
        self.ops[ticket.0 as usize].pending += 1;
        self.ops[ticket.0 as usize].device_pending += 1;
        let owner = IoOwner::ReadRun { ticket, first, blocks, address: address.0, again };
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

    /// Blocks of a read have come from the device, or not.
    pub(super) fn read_run_done(
        &mut self,
        ticket: Ticket,
        run: (u32, u32, LogAddress),
        again: bool,
        result: Result<(), IoError>,
    ) {
        let (first, blocks, address) = run;
        self.unpin(address);
        self.ops[ticket.0 as usize].device_pending -= 1;
        let (_, buffer) = self.read_target(ticket);
        for offset in 0..blocks {
            let address = address.plus(u64::from(offset));
            let frame = blocks_of(buffer, first + offset, 1);
            debug_assert_eq!(frame.length as usize, BLOCK_BYTES);
            match self.damage_of(address, frame, result) {
                None => self.progress(ticket).arrived(first + offset, 1),
                Some(damage) => {
                    self.read_block_damaged(ticket, first + offset, address, damage, again)
                }
            }
        }
        self.read_piece_done(ticket);
    }

    /// A block of a read is not what was appended.
    fn read_block_damaged(
        &mut self,
        ticket: Ticket,
        offset: u32,
        address: LogAddress,
        damage: Damage,
        again: bool,
    ) {
        let slot = self.ops[ticket.0 as usize].request().export;
        let (span, buffer) = self.read_target(ticket);
        let block = span.first + u64::from(offset);
        match self.judge_damage(slot, block, address, damage, again) {
            Verdict::StartOver => self.ops[ticket.0 as usize].restart = true,
            Verdict::LookAgain => {
                let run = DeviceRun { first: offset, blocks: 1, address };
                self.start_device_part(ticket, buffer, run, true);
            }
            Verdict::Lost => self.progress(ticket).fail(offset, 1, RequestError::Io),
        }
    }

    /// Blocks of a window have come from the origin, or will not.
    pub(super) fn read_window_done(
        &mut self,
        ticket: Ticket,
        window: u64,
        mut blocks: u64,
        error: Option<RequestError>,
    ) {
        let (span, _) = self.read_target(ticket);
        while blocks != 0 {
            let block = window * WINDOW_BLOCKS + u64::from(blocks.trailing_zeros());
            let offset = u32::try_from(block - span.first).expect("inside a step");
            match error {
                None => self.progress(ticket).arrived(offset, 1),
                Some(error) => self.progress(ticket).fail(offset, 1, error),
            }
            blocks &= blocks - 1;
        }
        self.read_piece_done(ticket);
    }

    /// One piece of a read has come, or will not.
    fn read_piece_done(&mut self, ticket: Ticket) {
        let op = &mut self.ops[ticket.0 as usize];
        op.pending -= 1;
        if op.pending > 0 {
            self.note_partial_read(ticket);
        } else if op.restart {
            // Nothing was told of yet: pieces wait for what comes from the device.
            self.run(ticket);
        } else {
            self.finish_read(ticket);
        }
    }
}

fn note_missing(missing: &mut MissingWindows, span: Span, block: u64) {
    let (window, bit) = window_of(block);
    missing[(window - span.first / WINDOW_BLOCKS) as usize] |= bit;
}
