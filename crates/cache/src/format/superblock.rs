//! The superblock: which cache this is, its shape, and the life it is in.

use super::{Mismatch, checksum, expect_checksum, is_zero};
use crate::config::Uuid;
use crate::limits::{ACCEPTED_LOSSES_MAX, EXPORTS_MAX};
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
    /// What an operator has accepted as lost, oldest first; unused ones are zero.
    pub accepted_losses: [Loss; ACCEPTED_LOSSES_MAX],
    /// The first use of a segment that this incarnation may have had; what earlier ones have of it
    /// and of later uses is void. Zero where that is not known.
    pub first_use: U64,
    /// The highest sequence that was known to be durable, which tail and watermarks rely on.
    pub durable: U64,
    reserved: [u8; SUPERBLOCK_RESERVED],
}

const SUPERBLOCK_RESERVED: usize =
    BLOCK_BYTES - 144 - 8 * EXPORTS_MAX - size_of::<Loss>() * ACCEPTED_LOSSES_MAX;

/// Records that were durable and are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Loss {
    /// The first sequence.
    pub first: U64,
    /// The last sequence; zero in a loss that is none.
    pub last: U64,
}

const _: () = {
    assert!(size_of::<Superblock>() == BLOCK_BYTES);
    assert!(std::mem::offset_of!(Superblock, magic) == 8);
    assert!(std::mem::offset_of!(Superblock, cache_uuid) == 40);
    assert!(std::mem::offset_of!(Superblock, watermarks) == 120);
    assert!(std::mem::offset_of!(Superblock, accepted_losses) == 640);
    assert!(std::mem::offset_of!(Superblock, first_use) == 768);
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

    /// Whether the loss of a sequence was accepted at an earlier start.
    #[must_use]
    pub fn accepts_loss_of(&self, sequence: u64) -> bool {
        self.skip_accepted(sequence) > sequence
    }

    /// The first sequence from one on whose loss was not accepted.
    #[must_use]
    pub fn skip_accepted(&self, from: u64) -> u64 {
        let accepting = |next: u64| {
            let mut losses = self.accepted_losses.iter().filter(|loss| loss.last.get() > 0);
            losses.find(|loss| (loss.first.get()..=loss.last.get()).contains(&next))
        };
        let mut next = from;
        while let Some(loss) = accepting(next) {
            next = loss.last.get() + 1;
        }
        next
    }

    /// Notes what was accepted as lost, and forgets what the tail has passed. Of more than there is
    /// room for the newest stay: the others would have to be accepted again.
    pub fn accept_losses(&mut self, losses: &[(u64, u64)], tail: u64) {
        let known = self.accepted_losses.into_iter().filter(|loss| loss.last.get() >= tail.max(1));
        let new =
            losses.iter().map(|&(first, last)| Loss { first: first.into(), last: last.into() });
        let all: Vec<Loss> = known.chain(new).collect();
        self.accepted_losses = [Loss::new_zeroed(); ACCEPTED_LOSSES_MAX];
        let newest = &all[all.len().saturating_sub(ACCEPTED_LOSSES_MAX)..];
        self.accepted_losses[..newest.len()].copy_from_slice(newest);
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
    fn accepted_losses_stay_until_the_tail_has_passed() {
        let mut block = Superblock::of_current_version();
        let accepted = |block: &Superblock, sequences: &[u64]| -> Vec<u64> {
            let accepted = sequences.iter().filter(|sequence| block.accepts_loss_of(**sequence));
            accepted.copied().collect()
        };
        assert_eq!(accepted(&block, &[0, 1]), [], "nothing was accepted yet");
        block.accept_losses(&[(3, 5), (9, 9)], 1);
        block.accept_losses(&[(20, 30)], 4);
        let around = [2, 3, 4, 5, 6, 8, 9, 10, 19, 20, 30, 31];
        assert_eq!(accepted(&block, &around), [3, 4, 5, 9, 20, 30]);
        assert_eq!([2, 3, 5, 6, 9, 20].map(|from| block.skip_accepted(from)), [2, 6, 6, 6, 10, 31]);
        block.accept_losses(&[], 6);
        assert_eq!(accepted(&block, &around), [9, 20, 30]);
        let many: Vec<_> = (10..20).map(|at| (at * 10, at * 10 + 1)).collect();
        block.accept_losses(&many, 6);
        assert_eq!(accepted(&block, &[9, 110, 120, 121, 190, 191]), [120, 121, 190, 191]);
    }

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
