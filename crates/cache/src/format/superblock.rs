//! The superblock: which cache this is, its shape, and the life it is in.

use super::{Mismatch, checksum, expect_checksum, is_zero};
use crate::config::Uuid;
use crate::limits::EXPORTS_MAX;
use crate::units::BLOCK_BYTES;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

const MAGIC: [u8; 8] = *b"ringfenc";

/// One of two copies at `limits::SUPERBLOCK_OFFSETS`.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Superblock {
    checksum: U32,
    version: U32,
    magic: [u8; 8],
    /// Features that an older ringfence may ignore.
    pub features_compatible: U64,
    /// Features that an older ringfence may read but not write.
    pub features_read_only: U64,
    /// Features that an older ringfence must refuse.
    pub features_incompatible: U64,
    /// Names the cache.
    pub cache_uuid: Uuid,
    /// The source of all nonces; never shown.
    pub secret: Uuid,
    /// Size of the device when it was formatted.
    pub device_bytes: U64,
    /// Size of a segment.
    pub segment_bytes: U64,
    /// Number of segments.
    pub segments: U64,
    /// Counts the lives of the cache: one per start.
    pub incarnation: U64,
    /// The first sequence of this incarnation; what earlier ones numbered from here on is void.
    pub first_sequence: U64,
    /// The oldest sequence that counts.
    pub tail: U64,
    /// Per export: the highest sequence that its origin has.
    pub watermarks: [U64; EXPORTS_MAX],
    /// Counts the writes within an incarnation: the higher one of two intact copies counts.
    pub revision: U64,
    reserved: [u8; SUPERBLOCK_RESERVED],
}

const SUPERBLOCK_RESERVED: usize = BLOCK_BYTES - 128 - 8 * EXPORTS_MAX;

const _: () = {
    assert!(size_of::<Superblock>() == BLOCK_BYTES);
    assert!(std::mem::offset_of!(Superblock, magic) == 8);
    assert!(std::mem::offset_of!(Superblock, cache_uuid) == 40);
    assert!(std::mem::offset_of!(Superblock, watermarks) == 120);
};

impl Superblock {
    /// A superblock of the current version, all else zero.
    #[must_use]
    pub fn of_current_version() -> Self {
        let mut block = Self::new_zeroed();
        block.magic = MAGIC;
        block.version = U32::new(super::FORMAT_VERSION);
        block
    }

    /// The format's version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.get()
    }

    /// Sets the checksum and gives the bytes to write.
    pub fn seal(&mut self) -> &[u8] {
        self.checksum = U32::new(checksum(&self.as_bytes()[4..]));
        self.as_bytes()
    }

    /// Which of two intact copies is the newer one.
    #[must_use]
    pub fn age(&self) -> (u64, u64) {
        (self.incarnation.get(), self.revision.get())
    }

    /// Whether the bytes start like a superblock of any version, damaged or not.
    #[must_use]
    pub fn has_magic(block: &[u8]) -> bool {
        block[8..16] == MAGIC
    }

    /// Reads a superblock.
    ///
    /// # Errors
    /// When the bytes are not an intact superblock. A newer version is intact.
    pub fn parse(block: &[u8]) -> Result<Self, Mismatch> {
        if !Self::has_magic(block) {
            return Err(Mismatch::Magic);
        }
        expect_checksum(block)?;
        let parsed = Self::read_from_bytes(block).expect("a block long");
        if parsed.version() == super::FORMAT_VERSION && !is_zero(&parsed.reserved) {
            return Err(Mismatch::Bounds { field: "reserved", found: 1 });
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_superblock_is_seen() {
        let mut block = Superblock::of_current_version();
        block.cache_uuid = [7; 16];
        let bytes = block.seal().to_vec();
        assert!(Superblock::parse(&bytes).is_ok());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Superblock::parse(&flipped).is_err(), "bit {bit}");
        }
    }
}
