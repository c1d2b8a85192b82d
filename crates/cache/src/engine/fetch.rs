//! Misses: one origin read per missing range, however many clients wait for it.
//!
//! The unit is a *window* of 64 blocks; a fetch wants some of its blocks and reads from the first
//! to the last of them. From the moment it is asked for until the origin's request has really
//! ended it is also the claim on these blocks: destage does not write what is being fetched (rule
//! 30), so what arrives is what the origin held all along.
//!
//! ```text
//!            buffer free           answered
//!   Queued ──────────────▶ InFlight ────────▶ (done)
//!      ▲ retry due            │ failed
//!      └──────── Resting ◀────┘
//! ```
//!
//! Who waits is told `EIO` when its patience ends, whatever the fetch is doing. A fetch that
//! nobody waits for any more goes, unless the origin still has its request.

use super::api::{Command, Effect, IoError, RequestError};
use super::log::Privilege;
use super::origin::{BACKOFF_NS_MAX, BACKOFF_NS_MIN};
use super::tables::{IoOwner, TicketQueue};
use super::{Engine, blocks_of};
use crate::canary;
use crate::counters::ExportCounter;
use crate::format::{Entry, EntryFlags, EntryKind};
use crate::index::{Index, IndexEntry, Place};
use crate::limits::{BLOCK_BYTES_U32, FETCH_BYTES};
use crate::units::{BLOCK_BYTES_U64, Buffer, ExportSlot, Ticket};

/// Blocks of a window: a bit of a 64-bit set each.
pub const WINDOW_BLOCKS: u64 = 64;

const NO_LINK: u32 = u32::MAX;

/// The window of a block, and its bit in it.
pub const fn window_of(block: u64) -> (u64, u64) {
    (block / WINDOW_BLOCKS, 1 << (block % WINDOW_BLOCKS))
}

/// What a fetch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchState {
    /// Waits for a buffer, in `fetch_queue`.
    Queued,
    /// The origin has a request for it.
    InFlight {
        /// Where the blocks will be.
        buffer: u32,
        /// Since when.
        since_ns: u64,
        /// Whether the origin is overdue with it.
        late: bool,
    },
    /// The origin failed; it is asked again.
    Resting {
        /// When.
        retry_at_ns: u64,
    },
}

/// A range that is claimed for fetching.
#[derive(Debug)]
pub struct Fetch {
    export: ExportSlot,
    window: u64,
    /// The blocks that were missing when it was asked for.
    wanted: u64,
    /// The first of those who wait for it.
    waiters: u32,
    state: FetchState,
    /// How long it rests after the next failure.
    backoff_ns: u64,
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
    /// Whether an export can have so many more fetches, waits and I/Os now.
    pub(super) fn can_fetch(
        &self,
        slot: ExportSlot,
        fetches: usize,
        links: usize,
        ios: usize,
    ) -> bool {
        self.fetch_quota.room(slot) >= fetches
            && self.link_quota.room(slot) >= links
            && self.ios.free() >= ios
    }

    /// A fetch that has some of these blocks.
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

    /// Makes a request wait for blocks of a window: joins fetches that have them, and asks for
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
            let fetch = self
                .fetch_of(slot, window, rest)
                .unwrap_or_else(|| self.new_fetch(slot, window, rest));
            let part = rest & self.fetches.get(fetch).wanted;
            self.add_wait_link(fetch, WaitLink { ticket, wanted: part, target, next: NO_LINK });
            self.wake_fetches_at(self.ops[ticket.0 as usize].deadline_ns);
            rest &= !part;
            count += 1;
        }
        self.issue_fetches();
        count
    }

    fn new_fetch(&mut self, export: ExportSlot, window: u64, wanted: u64) -> u32 {
        self.fetch_quota.take(export);
        let fetch = self.fetches.take(Fetch {
            export,
            window,
            wanted,
            waiters: NO_LINK,
            state: FetchState::Queued,
            backoff_ns: BACKOFF_NS_MIN,
        });
        self.fetch_queue.push(fetch);
        fetch
    }

    fn add_wait_link(&mut self, fetch: u32, link: WaitLink) {
        let fetch = self.fetches.get_mut(fetch);
        self.link_quota.take(fetch.export);
        fetch.waiters = self.wait_links.take(WaitLink { next: fetch.waiters, ..link });
    }

    /// Takes the first of those who wait for a fetch.
    fn take_wait_link(&mut self, fetch: u32) -> Option<WaitLink> {
        let fetch = self.fetches.get_mut(fetch);
        if fetch.waiters == NO_LINK {
            return None;
        }
        let link = self.wait_links.give_back(fetch.waiters);
        fetch.waiters = link.next;
        self.link_quota.give_back(fetch.export);
        Some(link)
    }

    fn drop_fetch(&mut self, fetch: u32) {
        let Fetch { export, waiters, .. } = self.fetches.give_back(fetch);
        assert!(waiters == NO_LINK, "a fetch ends when nobody waits for it");
        self.fetch_quota.give_back(export);
    }

    fn fetch_buffer(&self, buffer: u32) -> Buffer {
        self.plan.fetch.piece(buffer as usize, FETCH_BYTES)
    }

    /// Hands queued fetches to their origins, in order, as far as there are buffers.
    pub(super) fn issue_fetches(&mut self) {
        for _ in 0..self.fetch_queue.len() {
            let fetch = self.fetch_queue.pop().expect("counted");
            if self.ios.free() > 0 && self.may_fetch_now(self.fetches.get(fetch).export) {
                self.issue_fetch(fetch);
            } else {
                self.fetch_queue.push(fetch);
            }
        }
    }

    /// Whether an export gets another buffer: one whose origin does not answer gets only its own,
    /// to find out when it does.
    fn may_fetch_now(&mut self, slot: ExportSlot) -> bool {
        let export = self.exports.get(slot);
        if !export.origin.is_mute() {
            return self.buffer_quota.room(slot) > 0;
        }
        let retry_at_ns = export.origin.retry_at_ns;
        if self.now.monotonic_ns < retry_at_ns {
            self.wake_fetches_at(retry_at_ns);
            return false;
        }
        self.buffer_quota.held(slot) == 0
    }

    fn issue_fetch(&mut self, fetch: u32) {
        let Fetch { export, window, wanted, .. } = *self.fetches.get(fetch);
        let buffer = self.fetch_buffers.pop().expect("a buffer within the quota");
        self.buffer_quota.take(export);
        let since_ns = self.now.monotonic_ns;
        self.fetches.get_mut(fetch).state = FetchState::InFlight { buffer, since_ns, late: false };
        self.wake_fetches_at(since_ns.saturating_add(self.exports.get(export).origin.timeout_ns));
        let first = wanted.trailing_zeros();
        let blocks = 64 - wanted.leading_zeros() - first;
        let offset = (window * WINDOW_BLOCKS + u64::from(first)) * BLOCK_BYTES_U64;
        let buffer = blocks_of(self.fetch_buffer(buffer), first, blocks);
        self.counters.add_export(export, ExportCounter::OriginReads, 1);
        let io = self.ios.start(IoOwner::Fetch { fetch });
        self.emit(Effect::OriginRead { io, export, offset, buffer });
    }

    pub(super) fn fetch_done(&mut self, fetch: u32, result: Result<(), IoError>) {
        let Fetch { export, state, backoff_ns, .. } = *self.fetches.get(fetch);
        let FetchState::InFlight { buffer, late, .. } = state else {
            unreachable!("only what is in flight ends")
        };
        if late {
            self.origin_no_longer_late(export);
        }
        match result {
            Ok(()) => {
                self.origin_answered(export);
                let content = self.fetch_buffer(buffer);
                self.clear_fetched_behind_end(fetch, content);
                self.deliver(fetch, content);
                self.admit_fetched(fetch, content);
                self.drop_fetch(fetch);
            }
            Err(error) => {
                self.origin_failed(export, error);
                let retry_at_ns = self.now.monotonic_ns + backoff_ns;
                let resting = self.fetches.get_mut(fetch);
                resting.state = FetchState::Resting { retry_at_ns };
                resting.backoff_ns = (backoff_ns * 2).min(BACKOFF_NS_MAX);
                self.wake_fetches_at(retry_at_ns);
            }
        }
        self.fetch_buffers.push(buffer);
        self.buffer_quota.give_back(export);
    }

    /// What lies behind the end of an export reads as zeroes.
    fn clear_fetched_behind_end(&mut self, fetch: u32, content: Buffer) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let start = window * WINDOW_BLOCKS * BLOCK_BYTES_U64;
        let inside = self.exports.get(export).size_bytes - start;
        if inside < u64::from(content.length) {
            let inside = inside as u32;
            self.reserve.bytes_mut(content.part(inside, content.length - inside)).fill(0);
        }
    }

    /// Gives all who wait what they wait for.
    fn deliver(&mut self, fetch: u32, content: Buffer) {
        while let Some(waiter) = self.take_wait_link(fetch) {
            self.deliver_to(fetch, &waiter, Some(content));
        }
    }

    /// Gives one who waits its blocks, or without content an error.
    fn deliver_to(&mut self, fetch: u32, waiter: &WaitLink, content: Option<Buffer>) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let error = content.is_none().then_some(RequestError::Io);
        let op = &mut self.ops[waiter.ticket.0 as usize];
        op.error = op.error.or(error);
        match waiter.target {
            LinkTarget::Merge { which } => {
                if let Some(content) = content {
                    let (merge, frame) = self.merge_target(waiter.ticket, which);
                    let from = blocks_of(content, waiter.wanted.trailing_zeros(), 1);
                    self.reserve.copy(from, frame);
                    self.merge_block_ready(merge, which);
                }
                self.merge_piece_done(waiter.ticket);
            }
            LinkTarget::Reply => {
                if let Some(content) = content {
                    self.copy_to_reply(waiter, window, content);
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
    fn admit_fetched(&mut self, fetch: u32, content: Buffer) {
        let Fetch { export, window, mut wanted, .. } = *self.fetches.get(fetch);
        if self.latched || self.stopping {
            return;
        }
        // Check and numbering are one step, block by block (rule 10).
        for bit in 0..WINDOW_BLOCKS {
            let is_missing = |engine: &Self| {
                let block = window * WINDOW_BLOCKS + bit;
                engine.index.get(export, block).place() == Place::Missing
            };
            if wanted >> bit & 1 == 1 && !is_missing(self) && !canary::breaks(10) {
                wanted &= !(1 << bit);
            }
        }
        let mut admitted = self.admission.admitted(export, window, wanted);
        for bit in (0..WINDOW_BLOCKS).filter(|bit| (wanted & !admitted) >> bit & 1 == 1) {
            let from = blocks_of(content, bit as u32, 1);
            self.keep_in_memory_tier(export, window * WINDOW_BLOCKS + bit, from);
        }
        while admitted != 0 {
            let first = admitted.trailing_zeros();
            let blocks = (admitted >> first).trailing_ones();
            self.append_fill(fetch, content, first, blocks);
            admitted &= u64::MAX.checked_shl(first + blocks).unwrap_or(0);
        }
    }

    fn append_fill(&mut self, fetch: u32, content: Buffer, first: u32, blocks: u32) {
        let Fetch { export, window, .. } = *self.fetches.get(fetch);
        let block = window * WINDOW_BLOCKS + u64::from(first);
        let needed = |index: &Index| index.leaves_needed(export, block, u64::from(blocks));
        if !self.has_room_to_spare(export)
            || self.ensure_leaves(export, needed).is_err()
            || self.ensure_room(1, blocks, Privilege::Ordinary).is_err()
        {
            return;
        }
        let layer = self.exports.get(export).layer.0;
        let entry = Entry::new(EntryKind::Fill, EntryFlags::default(), layer, block, blocks);
        let (address, frames) = self.log.append(&entry, &mut self.reserve);
        self.reserve.copy(blocks_of(content, first, blocks), frames);
        self.log.seal_payload(address, frames, &self.reserve);
        self.drop_from_memory_tier(export, block, u64::from(blocks));
        for offset in 0..u64::from(blocks) {
            let entry = IndexEntry::stored(address.plus(offset), false);
            self.index.set(export, block + offset, entry).expect("leaves were ensured");
        }
        self.log.close_if_full(&mut self.reserve, &mut self.exports, self.now);
    }

    /// Something about fetches is due then, whatever else happens.
    fn wake_fetches_at(&mut self, at_ns: u64) {
        self.fetches_due_ns = self.fetches_due_ns.min(at_ns);
    }

    /// When the next retry, or the end of somebody's patience, is due.
    pub(super) fn fetch_deadline_ns(&self) -> Option<u64> {
        let front = |slot: ExportSlot| {
            let export = self.exports.get(slot);
            let fronts = [export.fetch_waiters.front(), export.merge_waiters.front()];
            fronts.into_iter().flatten().map(|t| self.ops[t.0 as usize].deadline_ns).min()
        };
        let waiting = self.exports.in_use().filter_map(front).min().unwrap_or(u64::MAX);
        let due = self.fetches_due_ns.min(waiting);
        (due != u64::MAX).then_some(due)
    }

    /// Asks failed origins again, notices those that are overdue, and lets go those who have
    /// waited for their limit.
    pub(super) fn run_fetches(&mut self) {
        if self.now.monotonic_ns >= self.fetches_due_ns {
            self.fetches_due_ns = u64::MAX;
            for fetch in 0..self.fetches.capacity() {
                if self.fetches.find(fetch).is_some() {
                    self.look_at_fetch(fetch);
                }
            }
        }
        if self.fetch_queue.len() > 0 {
            self.issue_fetches();
        }
    }

    fn look_at_fetch(&mut self, fetch: u32) {
        self.drop_expired_waiters(fetch);
        let now_ns = self.now.monotonic_ns;
        let Fetch { export, waiters, state, .. } = *self.fetches.get(fetch);
        match state {
            FetchState::Queued if waiters == NO_LINK => {
                self.fetch_queue.remove(|&queued| queued == fetch);
                self.drop_fetch(fetch);
            }
            FetchState::Resting { .. } if waiters == NO_LINK => self.drop_fetch(fetch),
            FetchState::Resting { retry_at_ns } if now_ns >= retry_at_ns => {
                self.fetches.get_mut(fetch).state = FetchState::Queued;
                self.fetch_queue.push(fetch);
            }
            FetchState::Resting { retry_at_ns } => self.wake_fetches_at(retry_at_ns),
            FetchState::InFlight { buffer, since_ns, late: false } => {
                let late_at_ns =
                    since_ns.saturating_add(self.exports.get(export).origin.timeout_ns);
                if now_ns < late_at_ns {
                    return self.wake_fetches_at(late_at_ns);
                }
                let state = FetchState::InFlight { buffer, since_ns, late: true };
                self.fetches.get_mut(fetch).state = state;
                self.origin_is_late(export);
            }
            FetchState::Queued | FetchState::InFlight { late: true, .. } => {}
        }
    }

    /// The error of those whose patience has ended; the others go on waiting.
    fn drop_expired_waiters(&mut self, fetch: u32) {
        let mut link = std::mem::replace(&mut self.fetches.get_mut(fetch).waiters, NO_LINK);
        while link != NO_LINK {
            let waiter = *self.wait_links.get(link);
            let deadline_ns = self.ops[waiter.ticket.0 as usize].deadline_ns;
            if self.now.monotonic_ns >= deadline_ns {
                self.wait_links.give_back(link);
                self.link_quota.give_back(self.fetches.get(fetch).export);
                self.deliver_to(fetch, &waiter, None);
            } else {
                self.wait_links.get_mut(link).next = self.fetches.get(fetch).waiters;
                self.fetches.get_mut(fetch).waiters = link;
                self.wake_fetches_at(deadline_ns);
            }
            link = waiter.next;
        }
    }

    /// Starts over what waited for a free merge, fetch or I/O slot.
    pub(super) fn run_fetch_waiters(&mut self) {
        // They had their turn for room in the log when they came.
        let asked_for = std::mem::take(&mut self.exports.log_is_asked_for);
        for slot in self.exports.in_use() {
            let mut queue = std::mem::take(&mut self.exports.get_mut(slot).fetch_waiters);
            self.fail_expired(&mut queue);
            while let Some(ticket) = self.links.pop(&mut queue) {
                self.run(ticket);
                if !self.exports.get(slot).fetch_waiters.is_empty() {
                    break;
                }
            }
            // Whoever could not go on stays in front of those who were not tried.
            let export = self.exports.get_mut(slot);
            while let Some(ticket) = self.links.pop(&mut queue) {
                self.links.push(&mut export.fetch_waiters, ticket);
            }
            let mut queue = std::mem::take(&mut export.merge_waiters);
            self.fail_expired(&mut queue);
            self.exports.get_mut(slot).merge_waiters = queue;
            while self.merge_quota.room(slot) > 0 {
                let Some(ticket) = self.links.pop(&mut self.exports.get_mut(slot).merge_waiters)
                else {
                    break;
                };
                self.run(ticket);
            }
        }
        self.exports.log_is_asked_for |= asked_for;
    }

    /// Ends those at the front of a queue whose patience has ended: the origin is away, or too
    /// slow for all that is asked of it.
    fn fail_expired(&mut self, queue: &mut TicketQueue) {
        while let Some(ticket) = queue.front() {
            if self.now.monotonic_ns < self.ops[ticket.0 as usize].deadline_ns {
                return;
            }
            self.links.pop(queue);
            match self.ops[ticket.0 as usize].request().command {
                Command::Read { .. } => self.complete(ticket, Err(RequestError::Io)),
                _ => self.finish_write(ticket, Err(RequestError::Io)),
            }
        }
    }

    /// Panics if fetches, buffers and quotas contradict one another.
    pub(super) fn check_fetch_invariants(&self) {
        self.fetch_quota.check_invariants(self.fetches.used());
        self.link_quota.check_invariants(self.wait_links.used());
        self.merge_quota.check_invariants(self.merges.used());
        let in_flight =
            |(_, fetch): &(u32, &Fetch)| matches!(fetch.state, FetchState::InFlight { .. });
        let buffers_used = self.fetches.iter().filter(in_flight).count();
        self.buffer_quota.check_invariants(buffers_used);
        let buffers = self.plan.fetch_buffers as usize;
        assert_eq!(buffers_used + self.fetch_buffers.len(), buffers, "no buffer is lost");
        let queued = |(_, fetch): &(u32, &Fetch)| fetch.state == FetchState::Queued;
        let queued = self.fetches.iter().filter(queued).count();
        assert_eq!(queued, self.fetch_queue.len(), "what is queued is in the queue, once");
    }
}

const _: () = assert!(FETCH_BYTES == WINDOW_BLOCKS as u32 * BLOCK_BYTES_U32);
