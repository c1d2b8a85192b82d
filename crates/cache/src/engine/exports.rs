//! The exports: their epochs, watermarks, dirty accounts and the state of their origins.

use super::origin::OriginState;
use super::tables::TicketQueue;
use crate::config::{Mode, Order};
use crate::geometry::LogAddress;
use crate::index::LEAF_BLOCKS;
use crate::limits::EXPORTS_MAX;
use crate::units::{BLOCK_BYTES_U64, ExportSlot, LayerId, Sequence};

/// A place in the log between two records: which segment's summary, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The use of the segment.
    pub segment_use: u64,
    /// Bytes into its summary.
    pub summary_at: usize,
}

/// Dirty data: what the origin lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyAccount {
    /// Blocks, zeroes and superseded versions included.
    pub blocks: u64,
    /// Blocks of log that it takes, see [`charge`].
    pub log_blocks: u64,
}

/// Blocks of log that an entry takes at most: its payload, and the header if it is its export's
/// first in the record. Zeroes have no payload, but use up the footer, which has 64 bytes per block
/// of its segment: an entry takes 40 of them.
fn charge(payload_blocks: u64, is_first: bool) -> u64 {
    payload_blocks.max(1) + u64::from(is_first)
}

impl DirtyAccount {
    /// Adds an entry, which may be the first of its record.
    pub fn add(&mut self, blocks: u64, payload_blocks: u64, is_first: bool) {
        self.blocks += blocks;
        self.log_blocks += charge(payload_blocks, is_first);
    }

    /// Takes away what has reached the origin.
    pub fn subtract(&mut self, other: Self) {
        // A crash between carrying an entry and freeing its segment leaves it in the log twice, so
        // the account can be high, and what is taken from it low; it is set to zero when all is
        // clean.
        self.blocks = self.blocks.saturating_sub(other.blocks);
        self.log_blocks = self.log_blocks.saturating_sub(other.log_blocks);
    }
}

/// One export that is being served, or whose dirty data is kept (rule 16).
#[derive(Debug)]
pub struct Export {
    /// The layer that owns its blocks.
    pub layer: LayerId,
    /// Whether it is configured: it has an origin and takes requests.
    pub configured: bool,
    /// Size in bytes.
    pub size_bytes: u64,
    /// When writes are answered.
    pub mode: Mode,
    /// In which order they reach the origin.
    pub order: Order,
    /// Most log blocks of dirty data.
    pub dirty_log_blocks_max: u64,
    /// How long a request waits for room or for an origin that is away.
    pub wait_ns_max: u64,
    /// The epoch of what is appended now.
    pub epoch: u64,
    /// Whether the epoch has anything in it yet.
    epoch_has_entries: bool,
    /// Whether the epoch ends with the open record.
    epoch_ends: bool,
    /// Whether the epoch began after the last closed record.
    epoch_started: bool,
    /// When the epoch's first entry was appended.
    epoch_since_ns: u64,
    /// Log blocks of dirty data in the epoch.
    epoch_log_blocks: u64,
    /// The newest dirty record of the epochs that have ended.
    pub newest_ended: Sequence,
    /// The origin has everything up to here, flushed; but in the midst of a round in relaxed order
    /// a block may still wait for a newer version, which is dirty and durable.
    pub watermark: Sequence,
    /// The same where nothing waits: in strict order the watermark, in relaxed order as it was at
    /// the end of a round.
    pub settled: Sequence,
    /// The log address behind the watermark's record: client data from here on is dirty.
    pub watermark_end: LogAddress,
    /// The first record that carries the watermark, once it is closed.
    watermark_record: Option<Sequence>,
    /// The place behind the watermark's record, to start over from.
    pub watermark_cursor: Cursor,
    /// Counts epochs as the tail passes them: what tells the epochs of carried entries apart.
    pub carry_epoch: u64,
    /// The newest record with data that the origin must get.
    pub newest_dirty: Sequence,
    /// What the origin lacks.
    pub dirty: DirtyAccount,
    /// When the oldest of it was written: for operators.
    pub oldest_dirty_wall_ns: u64,
    /// When it became dirty: for the age trigger.
    pub dirty_since_ns: u64,
    /// Destage until the watermark reaches this.
    pub destage_target: Sequence,
    /// Whether destage stands still before damage (rule 25).
    pub damaged: bool,
    /// Whether destage tries again by itself: the device may read later what it cannot read now.
    pub tries_again: bool,
    /// When.
    pub damage_retry_at_ns: u64,
    /// The newest version that destage stands still before.
    pub damaged_up_to: Sequence,
    /// An operator has accepted the loss of what is damaged up to this version.
    pub loss_accepted: Sequence,
    /// Whether a destager works on it.
    pub destaging: bool,
    /// Everything up to here was written to the origin, flushed or not.
    pub origin_written: Sequence,
    /// What is known of its origin.
    pub origin: OriginState,
    /// Whether its destager waits for an answer that is overdue: then dirty data may be carried
    /// although the destager is at work on it.
    pub destage_late: bool,
    /// Whether that happened: the destager starts over as soon as it has its answer.
    pub destage_void: bool,
    /// When destage last made progress: what is written again and again is none.
    pub progress_ns: u64,
    /// The most that the origin has taken in one go since the watermark rose, in bytes.
    pub furthest_bytes: u64,
    /// How much of that it had taken when it failed for the last time.
    pub failed_at_bytes: Option<u64>,
    /// Reads and partial writes that wait for a free fetch, wait or I/O slot.
    pub fetch_waiters: TicketQueue,
    /// Partial writes that wait for a free merge slot.
    pub merge_waiters: TicketQueue,
    /// Writes that wait for room in the log.
    pub room_waiters: TicketQueue,
    /// Writethrough requests that wait for the origin, in order of sequence.
    pub origin_waiters: TicketQueue,
}

/// The engine ends an epoch that takes this part of what may be dirty.
const EPOCH_SHARE: u64 = 8;
/// One part in so many of what may be dirty in all is divided among the exports, for each alone.
const DIRTY_SHARED: u64 = 4;

impl Export {
    /// Whether it takes writes.
    fn is_writer(&self) -> bool {
        self.configured && self.mode != Mode::ReadOnly
    }

    /// Size in blocks; the last one may be partial.
    pub const fn size_blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES_U64)
    }

    /// Whether the origin lacks anything.
    pub fn is_dirty(&self) -> bool {
        self.newest_dirty > self.watermark
    }

    /// Whether the watermark would survive a power cut.
    pub fn watermark_is_durable(&self, durable: Sequence) -> bool {
        self.watermark_record.is_some_and(|record| record <= durable)
    }

    /// The first record that carries the watermark, if one does.
    pub const fn watermark_record(&self) -> Option<Sequence> {
        self.watermark_record
    }

    /// Whether nothing up to the watermark waits for a newer version to reach the origin.
    pub fn has_settled(&self) -> bool {
        self.settled == self.watermark
    }

    /// Whether destage still owes the origin what it is asked for.
    pub fn is_destage_wanted(&self) -> bool {
        self.destage_target > self.settled
    }

    /// The origin has everything up to `sequence`, flushed, or a newer version to come.
    pub fn advance_watermark(&mut self, sequence: Sequence, end: LogAddress, cursor: Cursor) {
        assert!(sequence >= self.watermark, "a watermark only rises");
        if sequence > self.watermark {
            self.watermark = sequence;
            self.watermark_record = None;
        }
        if sequence >= self.damaged_up_to {
            self.damaged = false;
        }
        // Where everything was clean, it lies behind what the watermark has passed since.
        self.watermark_end = self.watermark_end.max(end);
        self.watermark_cursor = cursor;
        if self.order == Order::Strict || !self.is_dirty() {
            self.settled = self.watermark;
        }
        if !self.is_dirty() {
            self.dirty = DirtyAccount::default();
        }
    }

    /// Whether nobody can say when the origin will take its data: dirty data may be carried.
    pub const fn is_away(&self) -> bool {
        self.origin.is_away() || !self.configured || self.damaged
    }

    /// Whether destage stands still before damage until an operator or an overwriting client
    /// says otherwise.
    pub const fn stands_still(&self) -> bool {
        self.damaged && !self.tries_again
    }

    /// Notes an entry of client data in the open record.
    pub fn note_entry(
        &mut self,
        sequence: Sequence,
        blocks: u64,
        payload_blocks: u64,
        now_ns: u64,
    ) {
        if !self.epoch_has_entries {
            self.epoch_since_ns = now_ns;
        }
        let is_first = sequence != self.newest_dirty;
        self.newest_dirty = sequence;
        self.epoch_has_entries = true;
        self.dirty.add(blocks, payload_blocks, is_first);
        self.epoch_log_blocks += charge(payload_blocks, is_first);
    }

    /// Whether the epoch is as large as one may be that no client ends (rule 14).
    pub const fn epoch_is_large(&self) -> bool {
        self.epoch_log_blocks >= self.dirty_log_blocks_max / EPOCH_SHARE
    }

    /// When the epoch is as old as one may be that no client ends (rule 14); nothing if there is
    /// none to end.
    pub fn epoch_deadline_ns(&self, age_ns: u64) -> Option<u64> {
        let can_end = self.epoch_has_entries && !self.epoch_ends;
        can_end.then(|| self.epoch_since_ns.saturating_add(age_ns))
    }

    /// Destage passes over what is damaged so far, and goes on.
    pub fn accept_loss(&mut self) {
        if self.damaged {
            self.loss_accepted = self.loss_accepted.max(self.damaged_up_to);
            self.damaged = false;
        }
    }
}

impl Export {
    /// An export with nothing dirty, before recovery has seen the log.
    pub fn new(layer: LayerId, size_bytes: u64) -> Self {
        let start = Cursor { segment_use: 0, summary_at: 0 };
        Self {
            layer,
            configured: false,
            size_bytes,
            mode: Mode::ReadOnly,
            order: Order::Strict,
            dirty_log_blocks_max: 0,
            wait_ns_max: 0,
            epoch: 1,
            epoch_has_entries: false,
            epoch_ends: false,
            epoch_started: false,
            epoch_since_ns: 0,
            epoch_log_blocks: 0,
            newest_ended: Sequence(0),
            watermark: Sequence(0),
            settled: Sequence(0),
            watermark_end: LogAddress(0),
            watermark_record: Some(Sequence(0)),
            watermark_cursor: start,
            carry_epoch: 0,
            newest_dirty: Sequence(0),
            dirty: DirtyAccount::default(),
            oldest_dirty_wall_ns: 0,
            dirty_since_ns: 0,
            destage_target: Sequence(0),
            damaged: false,
            tries_again: false,
            damage_retry_at_ns: 0,
            damaged_up_to: Sequence(0),
            loss_accepted: Sequence(0),
            destaging: false,
            origin_written: Sequence(0),
            origin: OriginState::new(),
            destage_late: false,
            destage_void: false,
            progress_ns: 0,
            furthest_bytes: 0,
            failed_at_bytes: None,
            fetch_waiters: TicketQueue::default(),
            merge_waiters: TicketQueue::default(),
            room_waiters: TicketQueue::default(),
            origin_waiters: TicketQueue::default(),
        }
    }
}

/// All exports, by slot.
#[derive(Debug)]
pub struct Exports {
    slots: Box<[Option<Export>; EXPORTS_MAX]>,
    in_use: Vec<ExportSlot>,
    /// The slot whose writes are tried first when there is room again.
    pub room_turn: u8,
    /// Whether a write waits for room in the log itself, which all exports share.
    pub log_is_asked_for: bool,
}

impl Exports {
    /// From a list of slots.
    pub fn new(list: Vec<(ExportSlot, Export)>) -> Self {
        let mut slots = Box::new([const { None }; EXPORTS_MAX]);
        let mut in_use = Vec::with_capacity(EXPORTS_MAX);
        for (slot, export) in list {
            slots[slot.index()] = Some(export);
            in_use.push(slot);
        }
        Self { slots, in_use, room_turn: 0, log_is_asked_for: false }
    }

    /// The slots in use, in their order. Each turn asks several times, so it takes a step for each
    /// of them and not for each that there could be.
    pub fn in_use(&self) -> impl Iterator<Item = ExportSlot> + use<> {
        let mut bits = self.in_use.iter().fold(0u64, |bits, slot| bits | slot.bit());
        std::iter::from_fn(move || {
            let slot = (bits != 0).then(|| ExportSlot(bits.trailing_zeros() as u8));
            bits &= bits.wrapping_sub(1);
            slot
        })
    }

    /// The export in a slot.
    pub fn get(&self, slot: ExportSlot) -> &Export {
        self.slots[slot.index()].as_ref().expect("an export in the slot")
    }

    /// The export in a slot, to change it.
    pub fn get_mut(&mut self, slot: ExportSlot) -> &mut Export {
        self.slots[slot.index()].as_mut().expect("an export in the slot")
    }

    /// The slot of a layer.
    pub fn slot_of(&self, layer: u32) -> Option<ExportSlot> {
        self.in_use.iter().copied().find(|&slot| self.get(slot).layer.0 == layer)
    }

    /// The address behind an export's watermark.
    pub fn watermark_end(&self, slot: ExportSlot) -> LogAddress {
        self.get(slot).watermark_end
    }

    /// Everything in use, to change it.
    fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Export)> {
        self.slots
            .iter_mut()
            .enumerate()
            .filter_map(|(slot, export)| Some((slot, export.as_mut()?)))
    }

    /// Whether an export may have more dirty data when all together may have so many log blocks.
    /// Each keeps a part of that to itself, so that one whose origin is away leaves room for the
    /// others (rule 15). Below its part it may grow whatever the others have: they may have filled
    /// theirs in a life in which nothing was kept for it. Then only segments are the limit.
    pub fn may_grow_dirty(&self, slot: ExportSlot, most: u64) -> bool {
        let writers = |&&slot: &&ExportSlot| self.get(slot).is_writer();
        let writers = self.in_use.iter().filter(writers).count() as u64;
        let own = most / (DIRTY_SHARED * writers.max(1));
        if self.get(slot).dirty.log_blocks < own {
            return true;
        }
        let taken = |&each: &ExportSlot| {
            let export = self.get(each);
            let kept = if each != slot && export.is_writer() { own } else { 0 };
            export.dirty.log_blocks.max(kept)
        };
        self.in_use.iter().map(taken).sum::<u64>() < most
    }

    /// Leaves of the index, of so many in all, that an export keeps for itself as long as it is
    /// served, so that one whose origin is away leaves room for the others (rule 15).
    pub fn leaves_kept(&self, slot: ExportSlot, all: usize) -> usize {
        let served = self.in_use.iter().filter(|slot| self.get(**slot).configured).count();
        let export = self.get(slot);
        let whole = export.size_blocks().div_ceil(LEAF_BLOCKS) as usize;
        let share = all / (DIRTY_SHARED as usize * served.max(1));
        if export.configured { share.min(whole) } else { 0 }
    }

    /// Per slot: the epoch that entries belong to now.
    pub fn epochs(&self) -> [u64; EXPORTS_MAX] {
        self.slots.each_ref().map(|export| export.as_ref().map_or(0, |export| export.epoch))
    }

    /// Per slot: the highest sequence that the origin has.
    pub fn watermarks(&self) -> [u64; EXPORTS_MAX] {
        self.slots.each_ref().map(|export| export.as_ref().map_or(0, |export| export.watermark.0))
    }

    /// The export's epoch ends: with the open record if there is one, otherwise here. Entries that
    /// join the open record before it is closed were asked for before the flush was answered, so
    /// they may belong to the epoch that it ends (decision 0003).
    pub fn end_epoch(&mut self, slot: ExportSlot, record_is_open: bool) {
        let export = self.get_mut(slot);
        if !export.epoch_has_entries {
            return;
        }
        if record_is_open {
            export.epoch_ends = true;
        } else {
            export.begin_epoch();
        }
    }

    /// The tail passes a record that begins epochs.
    pub fn count_carry_epochs(&mut self, epoch_starts: u64) {
        for (slot, export) in self.iter_mut() {
            export.carry_epoch += epoch_starts >> slot & 1;
        }
    }

    /// The exports whose epoch began with the record that is being closed, a bit each.
    pub fn take_epoch_starts(&mut self) -> u64 {
        self.iter_mut().fold(0, |bits, (slot, export)| {
            bits | u64::from(std::mem::take(&mut export.epoch_started)) << slot
        })
    }

    /// Watermarks were made durable outside the log.
    pub fn watermarks_persisted(&mut self, watermarks: &[u64; EXPORTS_MAX]) {
        for (slot, export) in self.iter_mut() {
            if export.watermark.0 == watermarks[slot] {
                export.watermark_record.get_or_insert(Sequence(0));
            }
        }
    }

    /// A record was closed: it carries the watermarks, and epochs that end with it have ended.
    pub fn record_closed(&mut self, sequence: Sequence) {
        for (_, export) in self.iter_mut() {
            export.watermark_record.get_or_insert(sequence);
            if export.epoch_ends {
                export.begin_epoch();
            }
        }
    }
}

impl Export {
    /// After recovery: a restart ends the epoch, since what survived has been flushed.
    pub fn resume(&mut self, epoch: u64, now_ns: u64) {
        self.epoch = epoch;
        self.begin_epoch();
        // The superblock of this life carries the watermark.
        self.watermark_record = Some(Sequence(0));
        self.dirty_since_ns = now_ns;
        self.progress_ns = now_ns;
    }

    /// The origin has taken so much since the watermark rose.
    pub fn note_progress(&mut self, written_bytes: u64, now_ns: u64) {
        let is_further = written_bytes > self.furthest_bytes;
        if is_further {
            self.furthest_bytes = written_bytes;
            self.origin.note_progress();
        }
        // Before damage each try begins at the watermark.
        if is_further || !(self.origin.stops_destage() || self.damaged) {
            self.progress_ns = now_ns;
        }
    }

    /// Destage failed. Once may be chance; what is written again after that is no progress until
    /// it comes further.
    pub fn note_destage_failed(&mut self) {
        if self.failed_at_bytes.is_some_and(|bytes| self.furthest_bytes <= bytes) {
            self.origin.note_standstill();
        } else {
            self.failed_at_bytes = Some(self.furthest_bytes);
        }
    }

    /// The watermark has risen.
    pub fn note_watermark_risen(&mut self, now_ns: u64) {
        self.furthest_bytes = 0;
        self.failed_at_bytes = None;
        self.dirty_since_ns = now_ns;
        self.progress_ns = now_ns;
        self.origin.note_progress();
    }

    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.newest_ended = self.newest_dirty;
        self.epoch_log_blocks = 0;
        self.epoch_has_entries = false;
        self.epoch_ends = false;
        self.epoch_started = true;
    }
}
