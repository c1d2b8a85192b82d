//! What is on the device, each structure declared once, with its size asserted beside it.
//!
//! Little-endian; checksum first; reserved bytes are zero and checked. `docs/format.md` draws it.

mod export_table;
mod footer;
mod record;
mod superblock;

pub use export_table::{ExportRecord, ExportTable, ORIGIN_NAME_BYTES_MAX};
pub use footer::{Footer, FooterBuilder, SUMMARY_OFFSET, SummaryReader, SummaryRecord};
pub use record::{
    BODY_BYTES, ENTRY_BYTES, Entry, EntryFlags, EntryKind, HeaderExpectation, RecordHeader,
    body_bytes,
};
pub use superblock::Superblock;

use crate::config::Uuid;

/// The version of the format that this code writes.
pub const FORMAT_VERSION: u32 = 1;
/// Incompatible features that this code understands: none yet.
pub const FEATURES_INCOMPATIBLE: u64 = 0;

/// CRC32C, which the catalogue of such sums calls CRC-32/ISCSI: over everything after a structure's
/// own checksum field, or over a block.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Whether all bytes are zero, as reserved ones are. By the block, which compares much faster than
/// byte by byte, and is done to 64 KiB at each start.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROES.len()).all(|chunk| *chunk == ZEROES[..chunk.len()])
}

/// The nonce of an incarnation: no client can know it, so no payload can pass for a header where
/// recovery walks over what an earlier use of a segment left behind (rule 2).
///
/// Derived from a secret instead of drawn anew, so that the records of every incarnation that is
/// still in the log can be told without keeping a list (decision 0002).
#[must_use]
pub fn incarnation_nonce(secret: &Uuid, incarnation: u64) -> u64 {
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let mix = |mut value: u64| {
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    };
    let inner = mix(half(&secret[..8]).wrapping_add(incarnation));
    mix(inner ^ half(&secret[8..])).wrapping_add(inner)
}

/// Why a structure is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The checksum is wrong: damage, or something else altogether.
    #[error("checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What the structure says.
        found: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// Not this kind of structure.
    #[error("no magic number")]
    Magic,
    /// A field contradicts where the structure was found.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What it should hold.
        expected: u64,
    },
    /// A field out of its bounds.
    #[error("{field} is {found}, beyond its bounds")]
    Bounds {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u64,
    },
    /// Made for another cache.
    #[error("it belongs to another cache")]
    OtherCache,
}

/// Fails unless `found` is `expected`.
fn expect_field(field: &'static str, found: u64, expected: u64) -> Result<(), Mismatch> {
    if found == expected { Ok(()) } else { Err(Mismatch::Field { field, found, expected }) }
}

/// Fails unless the structure's first four bytes are the checksum of the rest.
fn expect_checksum(bytes: &[u8]) -> Result<(), Mismatch> {
    let found = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let expected = checksum(&bytes[4..]);
    if found == expected { Ok(()) } else { Err(Mismatch::Checksum { found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::checksum;

    /// Vectors of RFC 3720, B.4, and the catalogue's check value: what is on devices must stay
    /// readable, whoever computes the sum.
    #[test]
    fn the_checksum_is_crc32c() {
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(checksum(&rising), 0x46dd_794e);
    }

    /// The same bit by bit, for all lengths and offsets around those at which a fast way changes.
    #[test]
    fn the_fast_ways_agree_with_the_definition() {
        let slow = |bytes: &[u8]| {
            !bytes.iter().fold(u32::MAX, |sum, byte| {
                (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                    (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
                })
            })
        };
        let bytes: Vec<u8> =
            (0..70_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for length in (0..600).chain([1023, 4092, 4096, 4097, 65_532, 65_536]) {
            for offset in [0, 1, 4, 63] {
                let part = &bytes[offset..offset + length];
                assert_eq!(checksum(part), slow(part), "{length} bytes from {offset}");
            }
        }
    }
}
