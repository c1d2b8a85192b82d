//! The table of carried entries: dirty data that reclaim copied forward while its origin was away.
//!
//! Copies lie anywhere in the log, but destage needs them in order of version. Originals are
//! carried in the order of the tail, which is the order of versions, so appending keeps the table
//! sorted; a copy that is carried again keeps its place and gets a new address (decision 0007).

use crate::geometry::LogAddress;
use crate::units::{ExportSlot, Sequence};

/// Entries that can be carried at a time, of all exports. When the table is full, reclaim waits
/// for the origin as if nothing could be carried.
pub const CARRIED_MAX: usize = 1 << 17;

/// What orders carried entries: export, version, place in the original record, block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CarriedKey {
    /// Whose data.
    pub export: ExportSlot,
    /// The sequence that wrote it.
    pub version: Sequence,
    /// Which entry of that record it was.
    pub ordinal: u16,
    /// Its first block.
    pub block: u64,
}

impl CarriedKey {
    /// The last that any entry of a version can have.
    pub const fn last_of(export: ExportSlot, version: Sequence) -> Self {
        Self { export, version, ordinal: u16::MAX, block: u64::MAX }
    }
}

/// A run of blocks that was carried.
#[derive(Clone, Copy, Debug)]
pub struct Carried {
    /// Its place in the order.
    pub key: CarriedKey,
    /// Number of blocks.
    pub count: u32,
    /// Zeroes, without payload.
    pub is_zero: bool,
    /// Zeroes that must stay allocated.
    pub no_hole: bool,
    /// The epoch of the original.
    pub epoch: u64,
    /// Where its payload is now.
    pub address: LogAddress,
}

impl Carried {
    /// The block behind it.
    fn end(&self) -> u64 {
        self.key.block + u64::from(self.count)
    }

    /// Its blocks from one to before another.
    fn part(&self, start: u64, end: u64) -> Self {
        let skipped = if self.is_zero { 0 } else { start - self.key.block };
        Self {
            key: CarriedKey { block: start, ..self.key },
            count: u32::try_from(end - start).expect("a part"),
            address: self.address.plus(skipped),
            ..*self
        }
    }
}

/// All carried entries, sorted.
#[derive(Debug)]
pub struct CarriedTable {
    entries: Vec<Carried>,
}

impl CarriedTable {
    /// From what recovery found, in any order; the copy that lies last in the log counts.
    pub fn new(mut found: Vec<Carried>) -> Self {
        // Of each original in the order of the log; originals in order, so that little moves.
        let original = |key: CarriedKey| CarriedKey { block: 0, ..key };
        found.sort_by_key(|carried| (original(carried.key), carried.address));
        let mut table = Self { entries: Vec::with_capacity(CARRIED_MAX.max(2 * found.len())) };
        for carried in found {
            table.insert(carried);
        }
        table
    }

    /// Whether so many more entries fit.
    pub fn has_room(&self, more: usize) -> bool {
        self.entries.len() + more <= self.entries.capacity()
    }

    /// Enters a copy, in place of older copies of the same blocks. A copy that is carried again may
    /// be cut into other runs, not all of which need follow: what it does not cover stays. Adds
    /// two entries at most.
    pub fn insert(&mut self, carried: Carried) {
        assert!(self.has_room(2), "the table of carried entries is full");
        if let Ok(at) = self.entries.binary_search_by_key(&carried.key, |entry| entry.key)
            && self.entries[at].count == carried.count
        {
            // Mostly all of what was carried is carried again, and nothing moves.
            self.entries[at] = carried;
            return;
        }
        let (start, end) = (carried.key.block, carried.end());
        let of_original = CarriedKey { block: 0, ..carried.key };
        let mut at = self.entries.partition_point(|entry| entry.key < of_original);
        while let Some(&old) = self.entries.get(at)
            && (CarriedKey { block: 0, ..old.key }) == of_original
            && old.key.block < end
        {
            if old.end() <= start {
                at += 1;
                continue;
            }
            self.entries.remove(at);
            if old.end() > end {
                self.entries.insert(at, old.part(end, old.end()));
            }
            if old.key.block < start {
                self.entries.insert(at, old.part(old.key.block, start));
                at += 1;
            }
        }
        self.entries.insert(at, carried);
    }

    /// Where the copy of a block is, if there is one.
    pub fn copy_of(&self, key: CarriedKey) -> Option<LogAddress> {
        let at = self.entries.partition_point(|entry| entry.key <= key).checked_sub(1)?;
        let entry = self.entries[at];
        let same = CarriedKey { block: key.block, ..entry.key } == key;
        (same && key.block < entry.end()).then(|| entry.part(key.block, key.block + 1).address)
    }

    /// The entry of the same export that comes before a key.
    pub fn before(&self, key: CarriedKey) -> Option<&Carried> {
        let at = self.entries.partition_point(|entry| entry.key < key).checked_sub(1)?;
        Some(&self.entries[at]).filter(|entry| entry.key.export == key.export)
    }

    /// The first entry of an export behind a key, or its first of all.
    pub fn after(&self, export: ExportSlot, key: Option<CarriedKey>) -> Option<&Carried> {
        let at = match key {
            Some(key) => self.entries.partition_point(|entry| entry.key <= key),
            None => self.entries.partition_point(|entry| entry.key.export < export),
        };
        self.entries.get(at).filter(|entry| entry.key.export == export)
    }

    /// Forgets what an export's origin has.
    pub fn forget(&mut self, export: ExportSlot, watermark: Sequence) {
        if self.entries.is_empty() {
            return;
        }
        self.entries.retain(|entry| entry.key.export != export || entry.key.version > watermark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(version: u64, ordinal: u16, address: u64) -> Carried {
        let key = CarriedKey {
            export: ExportSlot(1),
            version: Sequence(version),
            ordinal,
            block: version,
        };
        let address = LogAddress(address);
        Carried { key, count: 1, is_zero: false, no_hole: false, epoch: 1, address }
    }

    fn run(block: u64, count: u32, address: u64) -> Carried {
        let key = CarriedKey { export: ExportSlot(1), version: Sequence(9), ordinal: 0, block };
        Carried { key, count, address: LogAddress(address), ..carried(9, 0, 0) }
    }

    fn runs(table: &CarriedTable) -> Vec<(u64, u32, u64)> {
        table.entries.iter().map(|one| (one.key.block, one.count, one.address.0)).collect()
    }

    #[test]
    fn what_was_not_carried_again_stays_where_it_was() {
        let mut table = CarriedTable::new(vec![run(5, 10, 100)]);
        table.insert(run(5, 4, 200));
        assert_eq!(runs(&table), [(5, 4, 200), (9, 6, 104)]);
        // A power cut leaves both copies.
        let found = vec![run(5, 4, 200), run(5, 10, 100)];
        assert_eq!(runs(&CarriedTable::new(found)), [(5, 4, 200), (9, 6, 104)]);
        table.insert(run(9, 6, 204));
        assert_eq!(runs(&table), [(5, 4, 200), (9, 6, 204)]);
        table.insert(run(7, 3, 300));
        assert_eq!(runs(&table), [(5, 2, 200), (7, 3, 300), (10, 5, 205)]);
        let copies = [4, 6, 9, 14, 15].map(|block| table.copy_of(run(block, 1, 0).key));
        assert_eq!(copies.map(|copy| copy.map_or(0, |at| at.0)), [0, 201, 302, 209, 0]);
        table.insert(run(5, 10, 400));
        assert_eq!(runs(&table), [(5, 10, 400)]);
    }

    /// An origin that is away has everything carried once per lap of the log, an entry at a time.
    #[test]
    fn what_is_carried_again_as_it_was_keeps_its_place() {
        let all = || (0..CARRIED_MAX as u64 - 2).map(|version| carried(version, 0, version));
        let mut table = CarriedTable::new(all().collect());
        let before = table.entries.as_ptr();
        for again in all() {
            table.insert(Carried { address: again.address.plus(1 << 20), ..again });
        }
        let expected = all().map(|one| (one.key.block, 1, one.address.0 + (1 << 20)));
        assert_eq!(runs(&table), expected.collect::<Vec<_>>());
        assert_eq!(table.entries.as_ptr(), before, "no allocation");
    }

    #[test]
    fn copies_come_in_order_of_version_wherever_they_lie() {
        let mut table = CarriedTable::new(vec![carried(7, 0, 10), carried(3, 1, 30)]);
        table.insert(carried(3, 0, 20));
        table.insert(carried(7, 0, 90));
        let key = |version, ordinal| carried(version, ordinal, 0).key;
        assert_eq!(table.before(key(7, 0)).map(|entry| entry.key.ordinal), Some(1));
        assert!(table.before(key(3, 0)).is_none());
        let mut found = Vec::new();
        let mut key = None;
        while let Some(entry) = table.after(ExportSlot(1), key) {
            found.push((entry.key.version.0, entry.key.ordinal, entry.address.0));
            key = Some(entry.key);
        }
        assert_eq!(found, [(3, 0, 20), (3, 1, 30), (7, 0, 90)]);
        table.forget(ExportSlot(1), Sequence(3));
        assert_eq!(table.after(ExportSlot(1), None).map(|entry| entry.key.version.0), Some(7));
        assert!(table.after(ExportSlot(2), None).is_none());
    }
}
