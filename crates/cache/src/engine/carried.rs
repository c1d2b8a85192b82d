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

/// All carried entries, sorted.
#[derive(Debug)]
pub struct CarriedTable {
    entries: Vec<Carried>,
}

impl CarriedTable {
    /// From what recovery found, in any order; the copy that lies last in the log counts.
    pub fn new(mut found: Vec<Carried>) -> Self {
        found.sort_by_key(|carried| (carried.key, std::cmp::Reverse(carried.address)));
        found.dedup_by_key(|carried| carried.key);
        let mut entries = Vec::with_capacity(CARRIED_MAX.max(found.len()));
        entries.append(&mut found);
        Self { entries }
    }

    /// Whether so many more entries fit.
    pub fn has_room(&self, more: usize) -> bool {
        self.entries.len() + more <= self.entries.capacity()
    }

    /// Enters a copy, in place of an older one of the same run.
    pub fn insert(&mut self, carried: Carried) {
        match self.entries.binary_search_by_key(&carried.key, |entry| entry.key) {
            Ok(at) => self.entries[at] = carried,
            Err(at) => {
                assert!(self.has_room(1), "the table of carried entries is full");
                self.entries.insert(at, carried);
            }
        }
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

    #[test]
    fn copies_come_in_order_of_version_wherever_they_lie() {
        let mut table = CarriedTable::new(vec![carried(7, 0, 10), carried(3, 1, 30)]);
        table.insert(carried(3, 0, 20));
        table.insert(carried(7, 0, 90));
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
