//! The fixed structures at the start of a device: superblocks and export table, read and written
//! before anything is served.

use crate::config::{ExportOptions, FormatOptions, Uuid};
use crate::error::{FormatError, OpenError};
use crate::format::{
    ExportRecord, ExportTable, FEATURES_INCOMPATIBLE, FORMAT_VERSION, Mismatch,
    ORIGIN_NAME_BYTES_MAX, Superblock,
};
use crate::limits::{
    EXPORT_TABLE_BYTES, EXPORT_TABLE_OFFSETS, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MIN,
    SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS,
};
use crate::storage::{Storage, StorageError};
use crate::units::{BLOCK_BYTES, ExportSlot};
use zerocopy::little_endian::{U32, U64};

/// Formats a device: an empty cache, in its first incarnation. Destroys what was on it.
///
/// # Errors
/// See [`FormatError`]; what can be checked is checked before anything is written.
pub fn format(storage: &mut dyn Storage, options: &FormatOptions) -> Result<(), FormatError> {
    let (size_bytes, segment_bytes) = (storage.size_bytes(), options.segment_bytes);
    let in_range = (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes);
    if !in_range || !segment_bytes.is_power_of_two() {
        return Err(FormatError::SegmentSize { segment_bytes });
    }
    let segments = size_bytes.saturating_sub(SEGMENTS_OFFSET) / segment_bytes;
    if segments < u64::from(SEGMENTS_MIN) {
        let needed_bytes = SEGMENTS_OFFSET + u64::from(SEGMENTS_MIN) * segment_bytes;
        return Err(FormatError::TooSmall { size_bytes, segment_bytes, needed_bytes });
    }
    // The old superblocks go first: a format that is interrupted leaves no cache, not half of two.
    for offset in SUPERBLOCK_OFFSETS {
        storage.write(offset, &[0; BLOCK_BYTES])?;
    }
    storage.flush()?;
    erase_foreign_signatures(storage)?;
    write_export_table(storage, &mut ExportTable::new(options.uuid), 0)?;
    let mut superblock = Superblock::of_current_version();
    superblock.cache_uuid = options.uuid;
    superblock.secret = options.secret;
    superblock.device_bytes = U64::new(size_bytes);
    superblock.segment_bytes = U64::new(segment_bytes);
    superblock.segments = U64::new(segments);
    superblock.first_sequence = U64::new(1);
    superblock.tail = U64::new(1);
    write_superblocks(storage, &mut superblock, 1)?;
    Ok(())
}

/// What other programs recognise lies at the start of a device, or at its end: an array, a volume
/// or another cache that was there would be found again at the next boot, and take it.
fn erase_foreign_signatures(storage: &mut dyn Storage) -> Result<(), StorageError> {
    let zeroes = vec![0; SEGMENTS_OFFSET as usize];
    storage.write(0, &zeroes)?;
    let blocks_end = storage.size_bytes() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    storage.write(blocks_end - SEGMENTS_OFFSET, &zeroes)
}

/// Writes and flushes both superblocks, one after the other (rule 5), first the copy that is not
/// the newest: that one may be the only one with the last tail and the last watermarks.
///
/// # Errors
/// When the device fails.
pub fn write_superblocks(
    storage: &mut dyn Storage,
    superblock: &mut Superblock,
    newest_in: usize,
) -> Result<(), StorageError> {
    for copy in [1 - newest_in, newest_in] {
        storage.write(SUPERBLOCK_OFFSETS[copy], superblock.seal())?;
        storage.flush()?;
    }
    Ok(())
}

/// Reads both superblocks, intact or not; `None` where the device ends before it, zeroes where it
/// cannot be read: then the other copy decides.
///
/// # Errors
/// When the device can read neither.
pub fn read_superblocks(
    storage: &mut dyn Storage,
) -> Result<[Option<[u8; BLOCK_BYTES]>; 2], StorageError> {
    let mut copies = [None; 2];
    let (mut read, mut failed) = (0, None);
    for (offset, copy) in SUPERBLOCK_OFFSETS.into_iter().zip(&mut copies) {
        if storage.size_bytes() < offset + BLOCK_BYTES as u64 {
            continue;
        }
        let block = copy.insert([0; BLOCK_BYTES]);
        match storage.read_at(offset, block) {
            Ok(()) => read += 1,
            Err(error) => {
                block.fill(0);
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if read == 0 => Err(error),
        _ => Ok(copies),
    }
}

/// Reads both superblocks and returns the newer intact one, and which copy it is.
///
/// # Errors
/// When there is none, or it is of a newer version, or the device is smaller than formatted.
pub fn read_superblock(storage: &mut dyn Storage) -> Result<(Superblock, usize), OpenError> {
    let copies = read_superblocks(storage)?;
    let blocks = copies.iter().zip(0..).filter_map(|(block, copy)| Some((block.as_ref()?, copy)));
    let intact = blocks.filter_map(|(block, copy)| Some((Superblock::parse(block).ok()?, copy)));
    // Of two that are equal either will do.
    let found = intact.max_by_key(|(superblock, _)| superblock.age());
    let damaged = copies.iter().flatten().any(|block| Superblock::has_magic(block));
    let Some((superblock, copy)) = found else {
        return Err(if damaged { OpenError::SuperblocksDamaged } else { OpenError::NotFormatted });
    };
    let features = superblock.features_incompatible.get() & !FEATURES_INCOMPATIBLE;
    if superblock.version() != FORMAT_VERSION || features != 0 {
        return Err(OpenError::Newer { version: superblock.version(), features });
    }
    let (size_bytes, formatted_bytes) = (storage.size_bytes(), superblock.device_bytes.get());
    if size_bytes < formatted_bytes {
        return Err(OpenError::Shrunk { size_bytes, formatted_bytes });
    }
    Ok((superblock, copy))
}

/// An export table, and how it was found.
pub struct FoundTable {
    /// The intact one of the higher generation.
    pub table: Box<ExportTable>,
    /// The slot that it is in.
    pub slot: usize,
    /// Whether the other slot holds it, too.
    pub copies_agree: bool,
}

/// Reads one slot of the export table.
///
/// # Errors
/// The inner one when the slot is not intact.
pub fn read_export_slot(
    storage: &mut dyn Storage,
    offset: u64,
    cache_uuid: &Uuid,
) -> Result<Result<Box<ExportTable>, Mismatch>, StorageError> {
    let mut slot = vec![0; EXPORT_TABLE_BYTES];
    storage.read_at(offset, &mut slot)?;
    Ok(ExportTable::parse(&slot, cache_uuid))
}

/// Reads both slots of the export table and returns the newer intact one.
///
/// # Errors
/// When neither is intact, or one cannot be read and the other is not intact.
pub fn read_export_table(
    storage: &mut dyn Storage,
    cache_uuid: &Uuid,
) -> Result<FoundTable, OpenError> {
    let (mut found, mut failed) = (Vec::new(), None);
    for (slot, offset) in EXPORT_TABLE_OFFSETS.into_iter().enumerate() {
        match read_export_slot(storage, offset, cache_uuid) {
            Ok(Ok(table)) => found.push((slot, table)),
            Ok(Err(_)) => {}
            Err(error) => failed = Some(error),
        }
    }
    if let (true, Some(error)) = (found.is_empty(), failed) {
        return Err(error.into());
    }
    let copies_agree =
        matches!(&found[..], [(_, one), (_, other)] if one.generation == other.generation);
    let newest = found.into_iter().max_by_key(|(_, table)| table.generation);
    let (slot, table) = newest.ok_or(OpenError::ExportTableDamaged)?;
    Ok(FoundTable { table, slot, copies_agree })
}

/// Writes the export table into both slots, first the one that does not hold the newest. In one
/// alone it would not do: damage there would bring back a table that lacks an export, and its
/// layer would be given away again.
///
/// # Errors
/// When the device fails.
pub fn write_export_table(
    storage: &mut dyn Storage,
    table: &mut ExportTable,
    newest_in: usize,
) -> Result<(), StorageError> {
    table.generation = U64::new(table.generation.get() + 1);
    let bytes = table.seal();
    for slot in [1 - newest_in, newest_in] {
        storage.write(EXPORT_TABLE_OFFSETS[slot], &bytes)?;
        storage.flush()?;
    }
    Ok(())
}

/// Finds the slot of an export by its name, or gives it one. Returns the slot and whether the
/// cache knew it.
///
/// # Errors
/// When the name is known with another origin, or no slot is left.
pub fn register_export(
    table: &mut ExportTable,
    options: &ExportOptions,
) -> Result<(ExportSlot, bool), OpenError> {
    let invalid = |reason| OpenError::ExportInvalid { name: options.name.clone(), reason };
    if options.name.is_empty() || options.name.len() > 255 {
        return Err(invalid("a name has 1 to 255 bytes"));
    }
    let (name, origin) = (&options.name, &options.origin);
    let known = table.exports.iter().position(|r| !r.is_free() && r.name() == *name);
    if let Some(slot) = known {
        let record = &table.exports[slot];
        let known_bytes = record.size_bytes.get();
        if known_bytes != origin.size_bytes {
            let (name, size_bytes) = (name.clone(), origin.size_bytes);
            return Err(OpenError::OriginSize { name, size_bytes, known_bytes });
        }
        if !origin.has_name(&record.origin()) {
            let (found, known) = (origin.name.clone(), record.origin());
            return Err(OpenError::OriginIdentity { name: name.clone(), found, known });
        }
        return Ok((ExportSlot(slot as u8), true));
    }
    if origin.size_bytes == 0 {
        return Err(invalid("its origin is empty: an export has at least one byte"));
    }
    if origin.name.len() > ORIGIN_NAME_BYTES_MAX {
        return Err(invalid("the origin's identity is longer than 128 bytes"));
    }
    let free = table.exports.iter().position(ExportRecord::is_free);
    let slot = free.ok_or(OpenError::TooManyExports)?;
    let layer = table.next_layer.get();
    table.exports[slot] =
        ExportRecord::new(options.uuid, name, &origin.name, origin.size_bytes, layer)
            .ok_or_else(|| invalid("its name or its origin's identity is too long"))?;
    table.next_layer = U32::new(layer + 1);
    Ok((ExportSlot(slot as u8), false))
}
