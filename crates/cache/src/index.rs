//! The index: layer and block number → where the block is now.
//!
//! A page table: per export a directory with one entry per 2 MiB, and leaves of 512 entries from
//! an arena of fixed size. A directory entry is either a leaf or stands for 512 equal blocks, so
//! that a trimmed disk costs nothing.

use crate::geometry::LogAddress;
use crate::prefetch::prefetch;
use crate::units::ExportSlot;

/// Blocks that a leaf maps: 2 MiB in 4 KiB of memory.
pub const LEAF_BLOCKS: u64 = 512;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not in the cache: the origin has it.
    Missing,
    /// In the log, at this address.
    Stored(LogAddress),
    /// Zeroes, by an entry of the record whose header is at this address.
    Zero(LogAddress),
    /// Lost: what a client wrote was damaged, as an entry of the record whose header is at this
    /// address says (rule 25).
    Bad(LogAddress),
}

/// An index entry: a place and two bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry(u64);

const ADDRESS_BITS: u32 = 52;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;
const CLIENT_BIT: u64 = 1 << 52;
const HIT_BIT: u64 = 1 << 53;
const KIND_SHIFT: u32 = 60;
const KIND_STORED: u64 = 1;
const KIND_ZERO: u64 = 2;
const KIND_LEAF: u64 = 3;
const KIND_BAD: u64 = 4;

impl IndexEntry {
    /// Not in the cache.
    pub const MISSING: Self = Self(0);

    /// A block in the log. `client`: the origin lacks it until the watermark passes the address.
    #[must_use]
    pub fn stored(address: LogAddress, client: bool) -> Self {
        Self::pack(KIND_STORED, address.0, client)
    }

    /// A block of zeroes, by an entry of the record at `header`.
    #[must_use]
    pub fn zero(header: LogAddress) -> Self {
        Self::pack(KIND_ZERO, header.0, true)
    }

    /// A block that was damaged, by an entry of the record at `header`.
    #[must_use]
    pub fn bad(header: LogAddress) -> Self {
        Self::pack(KIND_BAD, header.0, true)
    }

    fn leaf(leaf: u32) -> Self {
        Self::pack(KIND_LEAF, u64::from(leaf), false)
    }

    fn pack(kind: u64, value: u64, client: bool) -> Self {
        assert!(value <= ADDRESS_MASK, "a log address of {ADDRESS_BITS} bits");
        Self(kind << KIND_SHIFT | value | if client { CLIENT_BIT } else { 0 })
    }

    const fn kind(self) -> u64 {
        self.0 >> KIND_SHIFT
    }

    const fn value(self) -> u64 {
        self.0 & ADDRESS_MASK
    }

    fn as_leaf(self) -> Option<usize> {
        (self.kind() == KIND_LEAF).then_some(self.value() as usize)
    }

    /// Where the block is.
    #[must_use]
    pub fn place(self) -> Place {
        match self.kind() {
            0 => Place::Missing,
            KIND_STORED => Place::Stored(LogAddress(self.value())),
            KIND_ZERO => Place::Zero(LogAddress(self.value())),
            KIND_BAD => Place::Bad(LogAddress(self.value())),
            kind => unreachable!("kind {kind} of an index entry"),
        }
    }

    /// Whether a client wrote it (rule 12): then it is dirty above the watermark.
    #[must_use]
    pub const fn is_client_data(self) -> bool {
        self.0 & CLIENT_BIT != 0
    }

    /// Whether it was read since it was appended.
    #[must_use]
    pub const fn is_hit(self) -> bool {
        self.0 & HIT_BIT != 0
    }

    /// Whether both stand for the same content, hit or not.
    #[must_use]
    pub const fn same_content(self, other: Self) -> bool {
        self.0 & !HIT_BIT == other.0 & !HIT_BIT
    }

    /// Whether the origin lacks the block: a client wrote it above the watermark's address. What
    /// was lost it lacks for ever: it is never evicted (rule 25).
    #[must_use]
    pub const fn is_dirty(self, watermark_end: LogAddress) -> bool {
        self.is_client_data() && (self.value() >= watermark_end.0 || self.kind() == KIND_BAD)
    }

    /// Where it is, if a client wrote it.
    fn client_address(self) -> Option<LogAddress> {
        self.is_client_data().then_some(LogAddress(self.value()))
    }

    const fn is_missing(self) -> bool {
        self.kind() == 0
    }
}

impl std::fmt::Debug for IndexEntry {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.as_leaf() {
            Some(leaf) => write!(formatter, "Leaf({leaf})"),
            None => write!(formatter, "{:?}", self.place()),
        }
    }
}

type Leaf = [IndexEntry; LEAF_BLOCKS as usize];

/// No leaf is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeavesExhausted;

/// Blocks that follow each other: all with the same content, or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whether they have the content that was asked for.
    pub is_wanted: bool,
    /// How many.
    pub blocks: u64,
    /// Entries that were looked at: what it has cost.
    pub looked_at: u64,
}

/// What a leaf is used for.
#[derive(Clone, Copy, Debug)]
struct LeafOwner {
    export: ExportSlot,
    directory_index: u32,
    /// Entries that are not missing.
    used: u16,
    /// The highest address of client data that it has had: if that is clean, all of it is.
    newest: Option<LogAddress>,
}

/// The page tables of all exports over one arena of leaves.
pub struct Index {
    directories: Vec<Box<[IndexEntry]>>,
    leaves: Box<[Leaf]>,
    owners: Box<[Option<LeafOwner>]>,
    free: Vec<u32>,
    /// Blocks in the log, per export.
    cached_blocks: Box<[u64]>,
    /// Leaves in use, per export.
    leaves_of: Box<[usize]>,
    eviction_hand: usize,
}

impl Index {
    /// An empty index: `export_blocks[slot]` blocks per export (0: no export in the slot).
    #[must_use]
    pub fn new(export_blocks: &[u64], leaves: u32) -> Self {
        let directory = |&blocks: &u64| {
            vec![IndexEntry::MISSING; blocks.div_ceil(LEAF_BLOCKS) as usize].into_boxed_slice()
        };
        Self {
            directories: export_blocks.iter().map(directory).collect(),
            leaves: vec![[IndexEntry::MISSING; LEAF_BLOCKS as usize]; leaves as usize].into(),
            owners: vec![None; leaves as usize].into(),
            free: (0..leaves).rev().collect(),
            cached_blocks: vec![0; export_blocks.len()].into(),
            leaves_of: vec![0; export_blocks.len()].into(),
            eviction_hand: 0,
        }
    }

    /// The memory that the index reads on the I/O path, to be locked: addresses and lengths.
    pub fn memory(&self) -> impl Iterator<Item = (*const u8, usize)> {
        let directories =
            self.directories.iter().map(|list| (list.as_ptr().cast(), size_of_val(&**list)));
        let arena = [
            (self.leaves.as_ptr().cast(), size_of_val(&*self.leaves)),
            (self.owners.as_ptr().cast(), size_of_val(&*self.owners)),
        ];
        directories.chain(arena).filter(|&(_, length)| length > 0)
    }

    /// Leaves that are not in use.
    #[must_use]
    pub fn leaves_free(&self) -> usize {
        self.free.len()
    }

    /// Leaves in all.
    #[must_use]
    pub fn leaves_total(&self) -> usize {
        self.leaves.len()
    }

    /// Leaves that an export has.
    #[must_use]
    pub fn leaves_of(&self, export: ExportSlot) -> usize {
        self.leaves_of[export.index()]
    }

    /// Blocks of an export that are in the log.
    #[must_use]
    pub fn cached_blocks(&self, export: ExportSlot) -> u64 {
        self.cached_blocks[export.index()]
    }

    /// The entry of a block.
    #[must_use]
    pub fn get(&self, export: ExportSlot, block: u64) -> IndexEntry {
        let entry = self.directories[export.index()][(block / LEAF_BLOCKS) as usize];
        match entry.as_leaf() {
            Some(leaf) => self.leaves[leaf][(block % LEAF_BLOCKS) as usize],
            None => entry,
        }
    }

    /// Has the entry of a block fetched from memory.
    pub fn prefetch(&self, export: ExportSlot, block: u64) {
        let entry = self.directories[export.index()].get((block / LEAF_BLOCKS) as usize);
        if let Some(leaf) = entry.and_then(|entry| entry.as_leaf()) {
            prefetch(&self.leaves[leaf][(block % LEAF_BLOCKS) as usize]);
        }
    }

    /// Notes that a block was read.
    pub fn mark_hit(&mut self, export: ExportSlot, block: u64) {
        let entry = self.directories[export.index()][(block / LEAF_BLOCKS) as usize];
        if let Some(leaf) = entry.as_leaf() {
            self.leaves[leaf][(block % LEAF_BLOCKS) as usize].0 |= HIT_BIT;
        }
    }

    /// Leaves that [`Index::set`] calls for a range would take at most.
    #[must_use]
    pub fn leaves_needed(&self, export: ExportSlot, first: u64, blocks: u64) -> usize {
        if blocks == 0 {
            return 0;
        }
        let range = (first / LEAF_BLOCKS) as usize..=((first + blocks - 1) / LEAF_BLOCKS) as usize;
        let directory = &self.directories[export.index()];
        directory[range].iter().filter(|entry| entry.as_leaf().is_none()).count()
    }

    /// Sets the entry of a block.
    ///
    /// # Errors
    /// When it would need a leaf and none is free; nothing has changed then.
    pub fn set(
        &mut self,
        export: ExportSlot,
        block: u64,
        entry: IndexEntry,
    ) -> Result<(), LeavesExhausted> {
        let directory_index = (block / LEAF_BLOCKS) as usize;
        let shared = self.directories[export.index()][directory_index];
        let leaf = match shared.as_leaf() {
            Some(leaf) => leaf,
            None if shared.same_content(entry) => return Ok(()),
            None => self.split(export, directory_index, shared)?,
        };
        let place = &mut self.leaves[leaf][(block % LEAF_BLOCKS) as usize];
        let old = std::mem::replace(place, entry);
        let cached = &mut self.cached_blocks[export.index()];
        *cached += u64::from(entry.kind() == KIND_STORED);
        *cached -= u64::from(old.kind() == KIND_STORED);
        let owner = self.owners[leaf].as_mut().expect("a leaf in use has an owner");
        owner.used += u16::from(!entry.is_missing());
        owner.used -= u16::from(!old.is_missing());
        owner.newest = owner.newest.max(entry.client_address());
        if owner.used == 0 {
            self.release(leaf, IndexEntry::MISSING);
        }
        Ok(())
    }

    /// Takes a leaf for a directory entry that stood for 512 equal blocks.
    fn split(
        &mut self,
        export: ExportSlot,
        directory_index: usize,
        shared: IndexEntry,
    ) -> Result<usize, LeavesExhausted> {
        let leaf = self.free.pop().ok_or(LeavesExhausted)?;
        self.leaves[leaf as usize].fill(shared);
        self.leaves_of[export.index()] += 1;
        self.owners[leaf as usize] = Some(LeafOwner {
            export,
            directory_index: u32::try_from(directory_index).expect("a directory below 2^32"),
            used: if shared.is_missing() { 0 } else { LEAF_BLOCKS as u16 },
            newest: shared.client_address(),
        });
        self.directories[export.index()][directory_index] = IndexEntry::leaf(leaf);
        Ok(leaf as usize)
    }

    /// Gives a leaf back; its directory entry stands for 512 equal blocks from now on.
    fn release(&mut self, leaf: usize, shared: IndexEntry) {
        let owner = self.owners[leaf].take().expect("a leaf in use has an owner");
        self.directories[owner.export.index()][owner.directory_index as usize] = shared;
        self.leaves_of[owner.export.index()] -= 1;
        self.free.push(u32::try_from(leaf).expect("a leaf number"));
    }

    /// Sets a run of blocks to the same entry; whole leaves become one directory entry.
    ///
    /// # Errors
    /// When the edges would need leaves and too few are free; nothing has changed then.
    pub fn set_run(
        &mut self,
        export: ExportSlot,
        first: u64,
        blocks: u64,
        entry: IndexEntry,
    ) -> Result<(), LeavesExhausted> {
        if self.leaves_for_run(export, first, blocks) > self.free.len() {
            return Err(LeavesExhausted);
        }
        let end = first + blocks;
        let mut block = first;
        while block < end {
            let next = ((block / LEAF_BLOCKS + 1) * LEAF_BLOCKS).min(end);
            if next - block == LEAF_BLOCKS {
                self.set_whole(export, block / LEAF_BLOCKS, entry);
            } else {
                for each in block..next {
                    self.set(export, each, entry).expect("leaves were counted");
                }
            }
            block = next;
        }
        Ok(())
    }

    /// Leaves that [`Index::set_run`] takes: at most the two at the edges.
    #[must_use]
    pub fn leaves_for_run(&self, export: ExportSlot, first: u64, blocks: u64) -> usize {
        let end = first + blocks;
        let is_shared = |block: u64| {
            self.directories[export.index()][(block / LEAF_BLOCKS) as usize].as_leaf().is_none()
        };
        let partial = |from: u64, to: u64| from < to && to - from < LEAF_BLOCKS && is_shared(from);
        let head_end = end.min(first.next_multiple_of(LEAF_BLOCKS));
        let tail_start = (end / LEAF_BLOCKS * LEAF_BLOCKS).max(head_end);
        usize::from(partial(first, head_end)) + usize::from(partial(tail_start, end))
    }

    fn set_whole(&mut self, export: ExportSlot, directory_index: u64, entry: IndexEntry) {
        debug_assert!(entry.kind() != KIND_STORED, "512 blocks do not share a log address");
        let old = self.directories[export.index()][directory_index as usize];
        if let Some(leaf) = old.as_leaf() {
            let stored = self.leaves[leaf].iter().filter(|e| e.kind() == KIND_STORED).count();
            self.cached_blocks[export.index()] -= stored as u64;
            self.release(leaf, entry);
        } else {
            self.directories[export.index()][directory_index as usize] = entry;
        }
    }

    /// How many blocks from `first` to before `end`, at least one, have a content, or have not.
    #[must_use]
    pub fn run_of(&self, export: ExportSlot, first: u64, end: u64, wanted: IndexEntry) -> Run {
        let is_wanted = self.get(export, first).same_content(wanted);
        let (mut block, mut looked_at) = (first, 0);
        while block < end && self.get(export, block).same_content(wanted) == is_wanted {
            let shared = self.directories[export.index()][(block / LEAF_BLOCKS) as usize];
            let is_leaf = shared.as_leaf().is_some();
            block = if is_leaf { block + 1 } else { (block / LEAF_BLOCKS + 1) * LEAF_BLOCKS };
            looked_at += 1;
        }
        Run { is_wanted, blocks: block.min(end) - first, looked_at }
    }

    /// Replaces `old` by `new` wherever it stands in a run; used by reclaim on zeroes.
    pub fn replace_in_run(
        &mut self,
        export: ExportSlot,
        first: u64,
        blocks: u64,
        old: IndexEntry,
        new: IndexEntry,
    ) -> bool {
        let end = first + blocks;
        let mut found = false;
        let mut block = first;
        while block < end {
            let next = ((block / LEAF_BLOCKS + 1) * LEAF_BLOCKS).min(end);
            let shared = self.directories[export.index()][(block / LEAF_BLOCKS) as usize];
            if shared.as_leaf().is_some() {
                for each in block..next {
                    if self.get(export, each).same_content(old) {
                        found = true;
                        self.set(export, each, new).expect("the leaf is there");
                    }
                }
            } else if shared.same_content(old) && next - block == LEAF_BLOCKS {
                // A part of a shared leaf belongs to a larger run of the same record as well, which
                // was set after it: that one replaces the whole.
                found = true;
                self.set_whole(export, block / LEAF_BLOCKS, new);
            }
            block = next;
        }
        found
    }

    /// Frees one leaf that holds only clean blocks of some exports (a bit each), if there is one.
    /// Clean blocks may be forgotten at any time, the origin has them; dirty ones never (rule 6).
    pub fn evict_clean_leaf(
        &mut self,
        whose: u64,
        watermark_ends: &dyn Fn(ExportSlot) -> LogAddress,
    ) -> bool {
        for _ in 0..self.leaves.len() {
            let leaf = self.eviction_hand;
            self.eviction_hand = (self.eviction_hand + 1) % self.leaves.len();
            let Some(owner) = self.owners[leaf] else { continue };
            if whose & owner.export.bit() == 0 {
                continue;
            }
            let end = watermark_ends(owner.export);
            let may_be_dirty = owner.newest.is_some_and(|newest| newest >= end);
            if may_be_dirty || self.leaves[leaf].iter().any(|entry| entry.is_dirty(end)) {
                continue;
            }
            let stored = self.leaves[leaf].iter().filter(|e| e.kind() == KIND_STORED).count();
            self.cached_blocks[owner.export.index()] -= stored as u64;
            self.release(leaf, IndexEntry::MISSING);
            return true;
        }
        false
    }

    /// Every block of an export that is not missing.
    #[cfg(test)]
    pub fn entries(&self, export: ExportSlot) -> impl Iterator<Item = (u64, IndexEntry)> {
        let blocks = self.directories[export.index()].len() as u64 * LEAF_BLOCKS;
        (0..blocks)
            .map(move |block| (block, self.get(export, block)))
            .filter(|(_, entry)| !entry.is_missing())
    }

    /// Panics if the counts contradict the entries.
    pub fn check_invariants(&self) {
        let used = self.owners.iter().filter(|owner| owner.is_some()).count();
        assert_eq!(used + self.free.len(), self.leaves.len(), "every leaf is used or free");
        assert_eq!(self.leaves_of.iter().sum::<usize>(), used, "leaves by export");
        for (leaf, owner) in self.owners.iter().enumerate() {
            let Some(owner) = owner else { continue };
            let count = self.leaves[leaf].iter().filter(|entry| !entry.is_missing()).count();
            assert_eq!(usize::from(owner.used), count, "entries of leaf {leaf}");
            let newest = self.leaves[leaf].iter().map(|entry| entry.client_address()).max();
            assert!(newest.flatten() <= owner.newest, "client data of leaf {leaf}");
            let entry = self.directories[owner.export.index()][owner.directory_index as usize];
            assert_eq!(entry.as_leaf(), Some(leaf), "leaf {leaf} is where its owner says");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const EXPORT: ExportSlot = ExportSlot(0);

    #[test]
    fn whatever_a_client_asks_for_can_be_prefetched() {
        let mut index = Index::new(&[LEAF_BLOCKS, 0], 1);
        index.set(EXPORT, 7, IndexEntry::zero(LogAddress(1))).expect("a leaf");
        for block in [0, 7, LEAF_BLOCKS, u64::MAX / 4096] {
            index.prefetch(EXPORT, block);
            index.prefetch(ExportSlot(1), block);
        }
    }

    /// Two entries of zeroes in one record: the smaller one is replaced with the larger.
    #[test]
    fn a_part_of_a_shared_leaf_does_not_take_the_rest_with_it() {
        let mut index = Index::new(&[LEAF_BLOCKS], 1);
        let (old, new) = (IndexEntry::zero(LogAddress(1)), IndexEntry::zero(LogAddress(9)));
        index.set_run(EXPORT, 0, LEAF_BLOCKS, old).expect("no leaf is needed");
        index.replace_in_run(EXPORT, 10, 10, old, new);
        assert!(index.get(EXPORT, 0).same_content(old) && index.get(EXPORT, 15).same_content(old));
        assert!(index.replace_in_run(EXPORT, 0, LEAF_BLOCKS, old, new));
        assert!(index.get(EXPORT, 0).same_content(new) && index.get(EXPORT, 15).same_content(new));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_map(
            steps in prop::collection::vec((0u64..2048, 1u64..1600, 0u8..3), 1..60),
        ) {
            let mut index = Index::new(&[2048], 4);
            let mut model = BTreeMap::new();
            for (number, (first, blocks, kind)) in steps.into_iter().enumerate() {
                let address = LogAddress(number as u64 + 1);
                let blocks = blocks.min(2048 - first);
                match kind {
                    0 => {
                        let entry = IndexEntry::stored(address, true);
                        index.set(EXPORT, first, entry).expect("four leaves suffice");
                        model.insert(first, entry);
                    }
                    1 => {
                        let entry = IndexEntry::zero(address);
                        index.set_run(EXPORT, first, blocks, entry).expect("four leaves suffice");
                        model.extend((first..first + blocks).map(|block| (block, entry)));
                    }
                    _ => {
                        let missing = IndexEntry::MISSING;
                        index.set_run(EXPORT, first, blocks, missing).expect("enough leaves");
                        model.retain(|block, _| !(first..first + blocks).contains(block));
                    }
                }
                index.check_invariants();
            }
            let found: BTreeMap<_, _> = index.entries(EXPORT).collect();
            let stored = model.values().filter(|e| matches!(e.place(), Place::Stored(_))).count();
            prop_assert_eq!(index.cached_blocks(EXPORT), stored as u64);
            prop_assert_eq!(found, model);
        }
    }

    #[test]
    fn leaves_run_out_without_a_trace() {
        let mut index = Index::new(&[2048], 1);
        index.set(EXPORT, 0, IndexEntry::stored(LogAddress(1), true)).expect("a leaf");
        let more = IndexEntry::stored(LogAddress(2), true);
        assert_eq!(index.set(EXPORT, 600, more), Err(LeavesExhausted));
        assert_eq!(index.get(EXPORT, 600), IndexEntry::MISSING);
        assert!(!index.evict_clean_leaf(u64::MAX, &|_| LogAddress(0)), "a dirty leaf stays");
        assert!(index.evict_clean_leaf(u64::MAX, &|_| LogAddress(2)), "a clean leaf goes");
        index.set(EXPORT, 600, more).expect("the leaf is free again");
    }

    #[test]
    fn a_leaf_that_no_client_wrote_to_goes_before_anything_was_destaged() {
        let mut index = Index::new(&[2048], 2);
        index.set(EXPORT, 0, IndexEntry::stored(LogAddress(1), true)).expect("a leaf");
        index.set(EXPORT, 600, IndexEntry::stored(LogAddress(2), false)).expect("a leaf");
        assert!(index.evict_clean_leaf(u64::MAX, &|_| LogAddress(0)), "what was filled goes");
        assert!(!index.evict_clean_leaf(u64::MAX, &|_| LogAddress(0)), "what a client wrote stays");
    }

    #[test]
    fn a_zeroed_leaf_is_one_entry() {
        let mut index = Index::new(&[1 << 20], 2);
        index.set_run(EXPORT, 100, (1 << 20) - 200, IndexEntry::zero(LogAddress(9))).expect("two");
        assert_eq!(index.leaves_free(), 0);
        assert_eq!(index.get(EXPORT, 99).place(), Place::Missing);
        assert_eq!(index.get(EXPORT, 5000).place(), Place::Zero(LogAddress(9)));
        let zero = IndexEntry::zero(LogAddress(9));
        let other = Run { is_wanted: false, blocks: 90, looked_at: 90 };
        assert_eq!(index.run_of(EXPORT, 10, 1 << 20, zero), other);
        let leaves_between = (1 << 20) / LEAF_BLOCKS - 2;
        let looked_at = 2 * (LEAF_BLOCKS - 100) + leaves_between;
        let all = Run { is_wanted: true, blocks: (1 << 20) - 200, looked_at };
        assert_eq!(index.run_of(EXPORT, 100, 1 << 20, zero), all);
        let part = Run { is_wanted: true, blocks: 900, looked_at: 2 };
        assert_eq!(index.run_of(EXPORT, 600, 1500, zero), part);
    }
}
