//! The fixed structures at the start of a device: superblocks and export table, read and written
//! before anything is served.

use crate::config::{ExportOptions, FormatOptions, Uuid};
use crate::error::{FormatError, OpenError};
use crate::format::{
    ExportRecord, ExportTable, FEATURES_INCOMPATIBLE, FORMAT_VERSION, ORIGIN_NAME_BYTES_MAX,
    Superblock,
};
use crate::limits::{
    EXPORT_TABLE_BYTES, EXPORT_TABLE_OFFSETS, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MIN,
    SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS,
};
use crate::storage::Storage;
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
    let mut table = ExportTable::new(options.uuid);
    for (generation, offset) in EXPORT_TABLE_OFFSETS.into_iter().enumerate() {
        table.generation = U64::new(generation as u64 + 1);
        storage.write(offset, &table.seal())?;
    }
    storage.flush()?;
    let mut superblock = Superblock::of_current_version();
    superblock.cache_uuid = options.uuid;
    superblock.secret = options.secret;
    superblock.device_bytes = U64::new(size_bytes);
    superblock.segment_bytes = U64::new(segment_bytes);
    superblock.segments = U64::new(segments);
    superblock.first_sequence = U64::new(1);
    superblock.tail = U64::new(1);
    write_superblocks(storage, &mut superblock)?;
    Ok(())
}

/// Writes and flushes both superblocks, one after the other (rule 5).
pub fn write_superblocks(
    storage: &mut dyn Storage,
    superblock: &mut Superblock,
) -> Result<(), crate::storage::StorageError> {
    for offset in SUPERBLOCK_OFFSETS {
        storage.write(offset, superblock.seal())?;
        storage.flush()?;
    }
    Ok(())
}

/// Reads both superblocks and returns the newer intact one.
///
/// # Errors
/// When there is none, or it is of a newer version, or the device is smaller than formatted.
pub fn read_superblock(storage: &mut dyn Storage) -> Result<Superblock, OpenError> {
    let mut found: Option<Superblock> = None;
    let mut damaged = false;
    for offset in SUPERBLOCK_OFFSETS {
        if storage.size_bytes() < offset + BLOCK_BYTES as u64 {
            continue;
        }
        let mut block = [0; BLOCK_BYTES];
        storage.read_at(offset, &mut block)?;
        match Superblock::parse(&block) {
            Ok(superblock) => {
                let newer = found.as_ref().is_none_or(|f| f.age() < superblock.age());
                if newer {
                    found = Some(superblock);
                }
            }
            Err(_) => damaged |= Superblock::has_magic(&block),
        }
    }
    let Some(superblock) = found else {
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
    Ok(superblock)
}

/// Reads both slots of the export table and returns the newer intact one.
///
/// # Errors
/// When neither is intact.
pub fn read_export_table(
    storage: &mut dyn Storage,
    cache_uuid: &Uuid,
) -> Result<Box<ExportTable>, OpenError> {
    let mut found: Option<Box<ExportTable>> = None;
    let mut slot = vec![0; EXPORT_TABLE_BYTES];
    for offset in EXPORT_TABLE_OFFSETS {
        storage.read_at(offset, &mut slot)?;
        if let Ok(table) = ExportTable::parse(&slot, cache_uuid)
            && found.as_ref().is_none_or(|f| f.generation < table.generation)
        {
            found = Some(table);
        }
    }
    found.ok_or(OpenError::ExportTableDamaged)
}

/// Writes the export table into the older slot and flushes.
///
/// # Errors
/// When the device fails.
pub fn write_export_table(
    storage: &mut dyn Storage,
    table: &mut ExportTable,
) -> Result<(), crate::storage::StorageError> {
    let generation = table.generation.get() + 1;
    table.generation = U64::new(generation);
    let slot = EXPORT_TABLE_OFFSETS[(generation as usize + 1) % 2];
    storage.write(slot, &table.seal())?;
    storage.flush()
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
        if record.origin() != origin.name {
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
