//! The export table: names, sizes, origins and layers, outside the log, in two slots.

use super::{Mismatch, checksum, expect_checksum, is_zero};
use crate::config::Uuid;
use crate::limits::{EXPORT_TABLE_BYTES, EXPORTS_MAX};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 8] = *b"rfexport";
const NAME_BYTES_MAX: usize = 256;
/// Longest description of an origin's identity.
pub const ORIGIN_NAME_BYTES_MAX: usize = 128;

/// One export, known by the cache whether it is configured now or not (rule 16).
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExportRecord {
    /// Names the export for ever; all zero: the slot is free.
    pub uuid: Uuid,
    /// Size in bytes.
    pub size_bytes: U64,
    /// A sequence below which all entries of its layer are void.
    pub void_before: U64,
    /// Data up to here was written in relaxed order.
    pub relaxed_up_to: U64,
    /// The layer that owns its blocks.
    pub layer: U32,
    name_bytes: U16,
    origin_bytes: U16,
    name: [u8; NAME_BYTES_MAX],
    origin: [u8; ORIGIN_NAME_BYTES_MAX],
    reserved: [u8; 80],
}

const _: () = assert!(size_of::<ExportRecord>() == 512);

/// The whole table, one of two slots at `limits::EXPORT_TABLE_OFFSETS`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ExportTable {
    checksum: U32,
    /// The layer id that the next new export gets; ids are never used twice.
    pub next_layer: U32,
    magic: [u8; 8],
    /// The cache that it belongs to.
    pub cache_uuid: Uuid,
    /// The higher one of two intact slots counts.
    pub generation: U64,
    reserved: [u8; 472],
    /// One record per slot.
    pub exports: [ExportRecord; EXPORTS_MAX],
}

const _: () = {
    assert!(size_of::<ExportTable>() == 512 + 512 * EXPORTS_MAX);
    assert!(size_of::<ExportTable>() <= EXPORT_TABLE_BYTES);
    assert!(std::mem::offset_of!(ExportTable, exports) == 512);
};

impl ExportRecord {
    /// Whether the slot holds no export.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.uuid == [0; 16]
    }

    /// The export's name.
    #[must_use]
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.name[..usize::from(self.name_bytes.get())]).into_owned()
    }

    /// What the origin is known by.
    #[must_use]
    pub fn origin(&self) -> String {
        String::from_utf8_lossy(&self.origin[..usize::from(self.origin_bytes.get())]).into_owned()
    }

    /// A record for a new export; `None` when a text is too long.
    #[must_use]
    pub fn new(uuid: Uuid, name: &str, origin: &str, size_bytes: u64, layer: u32) -> Option<Self> {
        let mut record = Self::new_zeroed();
        record.name.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        record.origin.get_mut(..origin.len())?.copy_from_slice(origin.as_bytes());
        record.name_bytes = U16::new(u16::try_from(name.len()).ok()?);
        record.origin_bytes = U16::new(u16::try_from(origin.len()).ok()?);
        record.uuid = uuid;
        record.size_bytes = U64::new(size_bytes);
        record.layer = U32::new(layer);
        Some(record)
    }

    fn is_sound(&self) -> bool {
        usize::from(self.name_bytes.get()) <= NAME_BYTES_MAX
            && usize::from(self.origin_bytes.get()) <= ORIGIN_NAME_BYTES_MAX
            && is_zero(&self.reserved)
    }
}

impl ExportTable {
    /// An empty table.
    #[must_use]
    pub fn new(cache_uuid: Uuid) -> Box<Self> {
        let mut table = Self::new_box_zeroed().expect("memory for the export table");
        table.magic = MAGIC;
        table.cache_uuid = cache_uuid;
        table.next_layer = U32::new(1);
        table
    }

    /// Sets the checksum and gives the bytes to write, padded to the slot's size.
    #[must_use]
    pub fn seal(&mut self) -> Vec<u8> {
        self.checksum = U32::new(checksum(&self.as_bytes()[4..]));
        let mut bytes = self.as_bytes().to_vec();
        bytes.resize(EXPORT_TABLE_BYTES, 0);
        bytes
    }

    /// Reads one slot.
    ///
    /// # Errors
    /// When it is not intact or not this cache's.
    pub fn parse(slot: &[u8], cache_uuid: &Uuid) -> Result<Box<Self>, Mismatch> {
        let bytes = &slot[..size_of::<Self>()];
        if bytes[8..16] != MAGIC {
            return Err(Mismatch::Magic);
        }
        expect_checksum(bytes)?;
        let mut table = Self::new_box_zeroed().expect("memory for the export table");
        table.as_mut_bytes().copy_from_slice(bytes);
        if table.cache_uuid != *cache_uuid {
            return Err(Mismatch::OtherCache);
        }
        let sound = table.exports.iter().all(ExportRecord::is_sound)
            && is_zero(&table.reserved)
            && is_zero(&slot[size_of::<Self>()..]);
        if sound { Ok(table) } else { Err(Mismatch::Bounds { field: "reserved", found: 1 }) }
    }
}
