//! What a cache holds, read without changing anything.

use crate::config::Uuid;
use crate::error::OpenError;
use crate::format::{Entry, EntryFlags, SummaryReader};
use crate::geometry::Geometry;
use crate::layout;
use crate::reserve::Pool;
use crate::scan::Scanner;
use crate::storage::Storage;
use crate::units::BLOCK_BYTES_U64;

/// A cache, as `format`, `doctor` and `status` show it.
#[derive(Clone, Debug)]
pub struct Description {
    /// The cache's name for ever.
    pub uuid: Uuid,
    /// The format's version.
    pub version: u32,
    /// Size of the device when it was formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// The life that the cache is in.
    pub incarnation: u64,
    /// The exports that it knows, configured or not.
    pub exports: Vec<DescribedExport>,
}

/// An export that a cache knows.
#[derive(Clone, Debug)]
pub struct DescribedExport {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// Bytes that the origin lacks, superseded versions included.
    pub dirty_bytes: u64,
}

/// Reads what a device holds.
///
/// # Errors
/// When it holds no cache, or one that this version does not understand.
pub fn describe(storage: &mut dyn Storage) -> Result<Description, OpenError> {
    let (superblock, _) = layout::read_superblock(storage)?;
    let table = layout::read_export_table(storage, &superblock.cache_uuid)?.table;
    let (segments, segment_bytes) = (superblock.segments.get(), superblock.segment_bytes.get());
    // No log pool: nothing is resident where nobody serves.
    let no_pool = Pool { offset: 0, length: 0 };
    let geometry = Geometry::new(segment_bytes, segments, no_pool, 1);
    let mut scanner = Scanner::new(storage, &superblock, geometry);
    let (mut found, facts) = scanner.scan();
    let slots: Vec<usize> =
        (0..table.exports.len()).filter(|&slot| !table.exports[slot].is_free()).collect();
    let mut dirty_blocks = vec![0u64; table.exports.len()];
    for segment in &mut found {
        let void_from = facts.void_from(segment.writer());
        let summary = scanner.summary(segment);
        let mut reader = SummaryReader::new(&summary);
        while let Some((record, entries, _)) = reader.next() {
            let sequence = record.sequence.get();
            if sequence < facts.tail || sequence >= void_from {
                continue;
            }
            let counts = |entry: &&Entry| {
                entry.kind().is_client_data() && !entry.flags().contains(EntryFlags::INDEX_ONLY)
            };
            for entry in entries.iter().filter(counts) {
                let version = if entry.kind().is_copy() { entry.version.get() } else { sequence };
                let owner = slots.iter().find(|&&slot| table.exports[slot].layer == entry.layer);
                if let Some(&slot) = owner.filter(|&&slot| version > facts.watermarks[slot]) {
                    dirty_blocks[slot] += u64::from(entry.count.get());
                }
            }
        }
    }
    if let Some(error) = scanner.take_any_error() {
        // What is dirty may be more than was found.
        return Err(error.into());
    }
    let exports = slots
        .into_iter()
        .map(|slot| DescribedExport {
            name: table.exports[slot].name(),
            size_bytes: table.exports[slot].size_bytes.get(),
            origin_identity: table.exports[slot].origin(),
            dirty_bytes: dirty_blocks[slot] * BLOCK_BYTES_U64,
        })
        .collect();
    Ok(Description {
        uuid: superblock.cache_uuid,
        version: superblock.version(),
        device_bytes: superblock.device_bytes.get(),
        segment_bytes,
        segments,
        incarnation: facts.incarnation(),
        exports,
    })
}
