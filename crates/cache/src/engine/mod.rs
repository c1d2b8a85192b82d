//! The engine: a state machine, `step(event, now) → effects`.
//!
//! One file per duty: [`write`](self) appends what clients write, `read` answers from log and
//! origin, `pieces` as parts of it arrive, `damage` judges bad checksums, `fetch` brings misses in,
//! `merge` completes partial blocks, `log` is the append stream, `durability` flushes, `destage`
//! carries dirty data to origins, `origin` knows which of them answer, `reclaim` makes segments
//! free.

mod api;
mod carried;
mod carry;
mod coming;
mod control;
mod damage;
mod destage;
mod device_flush;
mod durability;
mod exports;
mod fetch;
mod foresight;
mod log;
mod merge;
mod origin;
mod pieces;
mod read;
mod reclaim;
mod recovery;
mod step;
mod summary;
mod superblock;
mod tables;
mod tier;
mod write;

pub use api::{
    Coming, Command, Control, Effect, Event, IoError, Notice, Piece, PieceContent, Request,
    RequestError,
};
pub use recovery::Recovery;
pub(crate) use recovery::{Survey, survey};

use crate::config::{Config, Order};
use crate::counters::{Counter, Counters, ExportCounter};
use crate::index::Index;
use crate::limits::{BLOCK_BYTES_U32, DEVICE_IOS_MAX, EXPORTS_MAX};
use crate::policy::Admission;
use crate::quota::Quota;
use crate::reserve::{Reserve, ReservePlan};
use crate::tier::MemoryTier;
use crate::units::{BLOCK_BYTES_U64, Buffer, Now, Ticket};
use carried::CarriedTable;
use control::Waiting;
use destage::Destager;
use exports::Exports;
use fetch::{Fetch, WaitLink};
use foresight::Foresight;
use log::Log;
use merge::Merge;
use pieces::ReadProgress;
use reclaim::Reclaim;
use std::sync::Arc;
use step::Op;
use superblock::SuperblockKeeper;
use tables::{FixedQueue, IoTable, Slots, TicketLinks, TicketQueue};

/// Effects that one step may queue: a read of the largest step from a log that is scattered to
/// single blocks, several times over.
const EFFECTS_MAX: usize = 2 * DEVICE_IOS_MAX;

/// The cache of one device.
pub struct Engine {
    reserve: Reserve,
    plan: ReservePlan,
    config: Config,
    counters: Arc<Counters>,
    effects: FixedQueue<Effect>,
    log: Log,
    index: Index,
    exports: Exports,
    ops: Box<[Op]>,
    /// Per ticket: how far a read has come.
    reads: Box<[ReadProgress]>,
    /// Reads that may have something to tell at the end of the turn.
    telling: Vec<Ticket>,
    /// Per ticket: whether it is among them.
    is_telling: Box<[bool]>,
    links: TicketLinks,
    ios: IoTable,
    merges: Slots<Merge>,
    merge_quota: Quota,
    fetches: Slots<Fetch>,
    fetch_quota: Quota,
    /// Fetches that wait for a buffer, in order.
    fetch_queue: FixedQueue<u32>,
    /// Buffers that no fetch has.
    fetch_buffers: Vec<u32>,
    buffer_quota: Quota,
    /// When fetches have to be looked at.
    fetches_due_ns: u64,
    wait_links: Slots<WaitLink>,
    link_quota: Quota,
    /// Requests that wait for a sequence to become durable, in order of sequence.
    durable_waiters: TicketQueue,
    foresight: Foresight,
    /// Requests that wait until the device has taken their record.
    written_waiters: TicketQueue,
    admission: Admission,
    tier: MemoryTier,
    destagers: Box<[Destager]>,
    reclaim: Reclaim,
    carried: CarriedTable,
    superblock: SuperblockKeeper,
    controls: FixedQueue<Waiting>,
    latched: bool,
    stopping: bool,
    /// When writes last had to wait for nothing but the cache device.
    device_waited_until_ns: u64,
    last_request_ns: u64,
    now: Now,
}

impl Engine {
    /// The memory that the engine works in; connections keep their windows there too.
    pub fn reserve(&mut self) -> &mut Reserve {
        &mut self.reserve
    }

    /// The next thing to do, in order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop()
    }

    /// The counters, to be read from any thread.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// The memory beside the reserve that requests touch (index, checksums), as addresses and
    /// lengths, to be locked before serving.
    #[must_use]
    pub fn memory(&self) -> Vec<(*const u8, usize)> {
        let tier = self.tier.memory().into_iter().filter(|&(_, length)| length > 0);
        let tables = self.index.memory().chain([self.log.memory(), self.admission.memory()]);
        tables.chain(tier).collect()
    }

    /// Panics if the state contradicts itself. Slow: for tests and the simulator.
    pub fn check_invariants(&self) {
        self.log.check_invariants();
        self.index.check_invariants();
        self.check_fetch_invariants();
        self.check_tier_invariants();
        for slot in self.exports.in_use() {
            let export = self.exports.get(slot);
            assert!(
                export.is_dirty() || export.dirty.blocks == 0,
                "an export whose watermark is its newest write has nothing dirty"
            );
            assert!(
                export.has_settled()
                    || export.settled < export.watermark
                        && export.order == Order::Relaxed
                        && export.is_dirty(),
                "only a newer version that is dirty can be waited for"
            );
        }
    }

    fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    fn complete(&mut self, ticket: Ticket, result: Result<(), RequestError>) {
        self.ops[ticket.0 as usize].end();
        self.emit(Effect::Complete { ticket, result });
    }

    /// A failed write or flush of the cache device: nothing is appended any more (rule 32).
    fn latch(&mut self, error: IoError) {
        if self.latched {
            return;
        }
        self.latched = true;
        self.counters.set(Counter::Latched, 1);
        self.emit(Effect::Notice(Notice::Latched { error }));
        self.fail_waiters_of_latch();
    }

    /// Publishes what is only worth showing once per turn.
    fn publish(&mut self) {
        let counters = &self.counters;
        let free = self.log.segments_free();
        let used = self.log.next_use - self.log.oldest_use;
        let reclaiming = if self.reclaim.is_active() { self.segments_left() + 1 } else { 0 };
        counters.set(Counter::SegmentsFree, free);
        counters.set(Counter::SegmentsUsed, used);
        counters.set(Counter::SegmentsReclaiming, reclaiming);
        counters.set(Counter::MergesUsed, self.merges.used() as u64);
        let buffers_used = self.plan.fetch_buffers as usize - self.fetch_buffers.len();
        counters.set(Counter::FetchesUsed, buffers_used as u64);
        counters.set(Counter::TierFramesUsed, self.tier.used() as u64);
        let total = self.index.leaves_total();
        counters.set(Counter::LeavesUsed, (total - self.index.leaves_free()) as u64);
        counters.set(Counter::LeavesTotal, total as u64);
        let destaging = self.destagers.iter().filter(|destager| destager.is_active()).count();
        counters.set(Counter::DestagersUsed, destaging as u64);
        counters.set(Counter::SuperblocksUsed, u64::from(self.superblock.is_in_flight()));
        for slot in self.exports.in_use() {
            let export = self.exports.get(slot);
            let bytes = |blocks: u64| blocks * BLOCK_BYTES_U64;
            let oldest = if export.is_dirty() { export.oldest_dirty_wall_ns } else { 0 };
            let set = |counter, value| counters.set_export(slot, counter, value);
            set(ExportCounter::CachedBytes, bytes(self.index.cached_blocks(slot)));
            set(ExportCounter::DirtyBytes, bytes(export.dirty.blocks));
            set(ExportCounter::OldestDirtyNs, oldest);
            set(ExportCounter::OriginUp, u64::from(export.origin.is_up()));
            set(ExportCounter::OriginLate, u64::from(export.origin.late()));
            set(ExportCounter::Damaged, u64::from(export.damaged));
        }
    }
}

/// The buffer of so many whole blocks, `first` blocks into another.
fn blocks_of(buffer: Buffer, first: u32, blocks: u32) -> Buffer {
    buffer.part(first * BLOCK_BYTES_U32, blocks * BLOCK_BYTES_U32)
}

const _: () = assert!(EXPORTS_MAX <= 64);
