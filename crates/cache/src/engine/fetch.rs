//! Misses: one origin read per missing range, however many clients wait for it.
//!
//! The unit is a *window* of 64 blocks; a fetch wants some of its blocks and reads from the first
//! to the last of them. While it is in flight it is also the claim on these blocks: destage does
//! not write what is being fetched (rule 30), so what arrives is what the origin held all along.

use super::api::{Effect, IoError, RequestError};
use super::log::Privilege;
use super::tables::IoOwner;
use super::{Engine, blocks_of};
use crate::counters::ExportCounter;
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::index::{IndexEntry, Place};
use crate::limits::{BLOCK_BYTES_U32, FETCH_BYTES, SEGMENTS_RESERVED};
use crate::units::{BLOCK_BYTES_U64, Buffer, ExportSlot, Ticket};

/// Blocks of a window: a bit of a 64-bit set each.
pub const WINDOW_BLOCKS: u64 = 64;

const NO_LINK: u32 = u32::MAX;

/// The window of a block, and its bit in it.
pub const fn window_of(block: u64) -> (u64, u64) {
    (block / WINDOW_BLOCKS, 1 << (block % WINDOW_BLOCKS))
}

/// A range on its way from an origin.
#[derive(Debug)]
pub struct Fetch {
    export: ExportSlot,
    window: u64,
    /// The blocks that were missing when it was issued.
    wanted: u64,
    /// The first of those who wait for it.
    waiters: u32,
    /// When to ask again, if the origin failed.
    retry_at_ns: Option<u64>,
}

/// Someone who waits for a fetch.
#[derive(Clone, Copy, Debug)]
pub struct WaitLink {
    ticket: Ticket,
    /// The blocks that it wants of the window.
    wanted: u64,
    target: LinkTarget,
    next: u32,
}

/// Where fetched blocks go.
#[derive(Clone, Copy, Debug)]
pub enum LinkTarget {
    /// Into the buffer of a read.
    Reply,
    /// Into a frame of a partial write.
    Merge {
        /// The first or the last block.
        which: u8,
    },
}

impl Engine {
    /// Whether so many fetches, links and I/Os can start now.
    pub(super) fn can_fetch(&self, fetches: usize, links: usize, ios: usize) -> bool {
        self.fetches.free() >= fetches && self.wait_links.free() >= links && self.ios.free() >= ios
    }

    /// The fetches in flight that have some of these blocks.
    pub(super) fn fetch_of(&self, slot: ExportSlot, window: u64, wanted: u64) -> Option<u32> {
        self.fetches
            .iter()
            .find(|(_, f)| f.export == slot && f.window == window && f.wanted & wanted != 0)
            .map(|(fetch, _)| fetch)
    }

    /// The blocks that a fetch is for.
    pub(super) fn fetch_wanted(&self, fetch: u32) -> u64 {
        self.fetches.get(fetch).wanted
    }

    /// Whether a run of blocks is being fetched: then destage must wait (rule 30).
    pub(super) fn is_being_fetched(&self, slot: ExportSlot, first: u64, blocks: u64) -> bool {
        let end = first + blocks;
        self.fetches.iter().any(|(_, fetch)| {
            let start = fetch.window * WINDOW_BLOCKS;
            fetch.export == slot
                && start < end
                && first < start + WINDOW_BLOCKS
                && (0..WINDOW_BLOCKS).any(|bit| {
                    fetch.wanted >> bit & 1 == 1 && (first..end).contains(&(start + bit))
                })
        })
    }

    /// Makes a request wait for blocks of a window: joins fetches in flight, and starts one for
    /// what none of them has. Returns how many fetches it waits for.
    pub(super) fn wait_for_window(
        &mut self,
        ticket: Ticket,
        slot: ExportSlot,
        window: u64,
        wanted: u64,
        target: LinkTarget,
    ) -> u32 {
        let mut rest = wanted;
        let mut count = 0;
        while rest != 0 {
            let (fetch, is_new) = match self.fetch_of(slot, window, rest) {
                Some(fetch) => (fetch, false),
                None => (self.new_fetch(slot, window, rest), true),
            };
            let part = rest & self.fetches.get(fetch).wanted;
            let next = self.fetches.get(fetch).waiters;
            let link = self.wait_links.take(WaitLink { ticket, wanted: part, target, next });
            self.fetches.get_mut(fetch).waiters = link;
            if is_new {
                self.issue_fetch(fetch);
            }
            rest &= !part;
            count += 1;
        }
        count
    }

    fn new_fetch(&mut self, export: ExportSlot, window: u64, wanted: u64) -> u32 {
        self.fetches.take(Fetch { export, window, wanted, waiters: NO_LINK, retry_at_ns: None })
    }

    fn fetch_buffer(&self, fetch: u32) -> Buffer {
        self.plan.fetch.piece(fetch as usize, FETCH_BYTES)
    }

    fn issue_fetch(&mut self, fetch: u32) {
        let Fetch { export, window, wanted, .. } = *self.fetches.get(fetch);
        self.fetches.get_mut(fetch).retry_at_ns = None;
        let first = wanted.trailing_zeros();
        let blocks = 64 - wanted.leading_zeros() - first;
        let offset = (window * WINDOW_BLOCKS + u64::from(first)) * BLOCK_BYTES_U64;
        let buffer = blocks_of(self.fetch_buffer(fetch), first, blocks);
        self.counters.add_export(export, ExportCounter::OriginReads, 1);
        let io = self.ios.start(IoOwner::Fetch { fetch });
        self.emit(Effect::OriginRead { io, export, offset, buffer });
    }

    pub(super) fn fetch_done(&mut self, fetch: u32, result: Result<(), IoError>) {
        let export = self.fetches.get(fetch).export;
        match result {
            Ok(()) => {
                self.origin_answered(export);
                self.clear_fetched_behind_end(fetch);
                self.deliver(fetch, None);
                self.admit_fetched(fetch);
                self.fetches.give_back(fetch);
            }
            Err(error) => {
                self.origin_failed(export, error);
                let retry_at_ns = self.exports.get(export).retry_at_ns;
                self.fetches.get_mut(fetch).retry_at_ns = Some(retry_at_ns);
            }
        }
    }

    /// What lies behind the end of an export reads as zeroes.
    fn clear_fetched_behind_end(&mut self, fetch: u32) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let start = window * WINDOW_BLOCKS * BLOCK_BYTES_U64;
        let inside = self.exports.get(export).size_bytes - start;
        let buffer = self.fetch_buffer(fetch);
        if inside < u64::from(buffer.length) {
            let inside = inside as u32;
            self.reserve.bytes_mut(buffer.part(inside, buffer.length - inside)).fill(0);
        }
    }

    /// Gives all who wait what they wait for, or the error.
    fn deliver(&mut self, fetch: u32, error: Option<RequestError>) {
        loop {
            let link = self.fetches.get(fetch).waiters;
            if link == NO_LINK {
                return;
            }
            let waiter = self.wait_links.give_back(link);
            self.fetches.get_mut(fetch).waiters = waiter.next;
            self.deliver_to(fetch, &waiter, error);
        }
    }

    fn deliver_to(&mut self, fetch: u32, waiter: &WaitLink, error: Option<RequestError>) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let buffer = self.fetch_buffer(fetch);
        let op = &mut self.ops[waiter.ticket.0 as usize];
        op.error = op.error.or(error);
        match waiter.target {
            LinkTarget::Merge { which } => {
                if error.is_none() {
                    let (merge, frame) = self.merge_target(waiter.ticket, which);
                    let from = blocks_of(buffer, waiter.wanted.trailing_zeros(), 1);
                    self.reserve.copy(from, frame);
                    self.merge_block_ready(merge, which);
                }
                self.merge_piece_done(waiter.ticket);
            }
            LinkTarget::Reply => {
                if error.is_none() {
                    self.copy_to_reply(waiter, window, buffer);
                    let bytes = u64::from(waiter.wanted.count_ones()) * BLOCK_BYTES_U64;
                    self.counters.add_export(export, ExportCounter::MissBytes, bytes);
                }
                self.read_window_done(waiter.ticket, window, waiter.wanted, error);
            }
        }
    }

    fn copy_to_reply(&mut self, waiter: &WaitLink, window: u64, buffer: Buffer) {
        let (span, reply) = self.read_target(waiter.ticket);
        let mut rest = waiter.wanted;
        while rest != 0 {
            let first = rest.trailing_zeros();
            let blocks = (rest >> first).trailing_ones();
            let at = window * WINDOW_BLOCKS + u64::from(first) - span.first;
            let to = blocks_of(reply, u32::try_from(at).expect("inside a step"), blocks);
            self.reserve.copy(blocks_of(buffer, first, blocks), to);
            rest &= u64::MAX.checked_shl(first + blocks).unwrap_or(0);
        }
    }

    /// Lets fetched blocks into the log, if the policy admits them and there is room to spare.
    fn admit_fetched(&mut self, fetch: u32) {
        let Fetch { export, window, mut wanted, .. } = *self.fetches.get(fetch);
        if self.latched || self.stopping || !self.admission.admits(export, window) {
            return;
        }
        // Check and numbering are one step, block by block (rule 10).
        for bit in 0..WINDOW_BLOCKS {
            let is_missing = |engine: &Self| {
                let block = window * WINDOW_BLOCKS + bit;
                engine.index.get(export, block).place() == Place::Missing
            };
            if wanted >> bit & 1 == 1 && !is_missing(self) {
                wanted &= !(1 << bit);
            }
        }
        while wanted != 0 {
            let first = wanted.trailing_zeros();
            let blocks = (wanted >> first).trailing_ones();
            self.append_fill(fetch, first, blocks);
            wanted &= u64::MAX.checked_shl(first + blocks).unwrap_or(0);
        }
    }

    fn append_fill(&mut self, fetch: u32, first: u32, blocks: u32) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let block = window * WINDOW_BLOCKS + u64::from(first);
        let leaves = self.index.leaves_needed(export, block, u64::from(blocks));
        if self.log.segments_free() <= u64::from(SEGMENTS_RESERVED) + 1
            || !self.exports.get(export).room_waiters.is_empty()
            || self.ensure_leaves(leaves).is_err()
            || self.ensure_room(1, blocks, Privilege::Ordinary).is_err()
        {
            return;
        }
        let layer = self.exports.get(export).layer.0;
        let entry = Entry::new(EntryKind::Fill, EntryFlags::default(), layer, block, blocks);
        let (address, frames) = self.log.append(&entry, &mut self.reserve);
        self.reserve.copy(blocks_of(self.fetch_buffer(fetch), first, blocks), frames);
        self.log.seal_payload(address, frames, &self.reserve);
        for offset in 0..u64::from(blocks) {
            let entry = IndexEntry::stored(address.plus(offset), false);
            self.index.set(export, block + offset, entry).expect("leaves were ensured");
        }
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
    }

    /// Asks failed origins again, and lets go those who have waited for their limit.
    pub(super) fn run_fetch_retries(&mut self) {
        for fetch in 0..crate::limits::FETCHES_MAX as u32 {
            let Some(retry_at_ns) = self.fetches.find(fetch).and_then(|f| f.retry_at_ns) else {
                continue;
            };
            self.drop_expired_waiters(fetch);
            if self.fetches.get(fetch).waiters == NO_LINK {
                self.fetches.give_back(fetch);
            } else if self.now.monotonic_ns >= retry_at_ns && self.ios.free() > 0 {
                self.issue_fetch(fetch);
            }
        }
    }

    fn drop_expired_waiters(&mut self, fetch: u32) {
        let mut link = std::mem::replace(&mut self.fetches.get_mut(fetch).waiters, NO_LINK);
        while link != NO_LINK {
            let waiter = self.wait_links.give_back(link);
            link = waiter.next;
            if self.now.monotonic_ns >= self.ops[waiter.ticket.0 as usize].deadline_ns {
                self.deliver_to(fetch, &waiter, Some(RequestError::Io));
            } else {
                let next = self.fetches.get(fetch).waiters;
                let kept = self.wait_links.take(WaitLink { next, ..waiter });
                self.fetches.get_mut(fetch).waiters = kept;
            }
        }
    }

    /// When the next retry, or the end of somebody's patience, is due.
    pub(super) fn fetch_deadline_ns(&self) -> Option<u64> {
        let due = |fetch: &Fetch| {
            let mut due = fetch.retry_at_ns?;
            let mut link = fetch.waiters;
            while link != NO_LINK {
                let waiter = self.wait_links.get(link);
                due = due.min(self.ops[waiter.ticket.0 as usize].deadline_ns);
                link = waiter.next;
            }
            Some(due)
        };
        self.fetches.iter().filter_map(|(_, fetch)| due(fetch)).min()
    }

    /// Starts over what waited for a free merge, fetch or I/O slot.
    pub(super) fn run_fetch_waiters(&mut self) {
        let mut queue = std::mem::take(&mut self.fetch_waiters);
        while let Some(ticket) = self.links.pop(&mut queue) {
            self.run(ticket);
            if !self.fetch_waiters.is_empty() {
                break;
            }
        }
        // Whoever could not go on stays in front of those who were not tried.
        while let Some(ticket) = self.links.pop(&mut queue) {
            self.links.push(&mut self.fetch_waiters, ticket);
        }
        while self.merges.free() > 0 {
            let Some(ticket) = self.links.pop(&mut self.merge_waiters) else { break };
            self.run(ticket);
        }
    }
}

const _: () = assert!(FETCH_BYTES == WINDOW_BLOCKS as u32 * BLOCK_BYTES_U32);
