//! The cache device as `format`, `open` and `check` see it: blocking, before anything is served.

use crate::units::BLOCK_BYTES_U64;

/// A device error, with where it happened.
#[derive(Debug, thiserror::Error)]
#[error("{operation} at byte {offset} failed: {source}")]
pub struct StorageError {
    /// `read`, `write` or `flush`.
    pub operation: &'static str,
    /// Bytes from the start of the device.
    pub offset: u64,
    /// What the system said.
    pub source: std::io::Error,
}

/// One piece of a batch of reads.
#[derive(Debug)]
pub struct ReadPiece<'a> {
    /// Bytes from the start of the device, a multiple of 4096.
    pub offset: u64,
    /// Where the bytes go; a multiple of 4096 long.
    pub into: &'a mut [u8],
}

/// A device that is read and written before the ring runs: by `format`, recovery and `check`.
///
/// Offsets and lengths are multiples of 4096. Buffers need not be aligned in memory.
pub trait Storage {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Reads all pieces, in any order, with as much concurrency as the device likes.
    ///
    /// # Errors
    /// The first piece that could not be read.
    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError>;

    /// Where the next block lies, from `offset` on, that may hold anything but zeroes; the end of
    /// the device if there is none. A device that does not know answers `offset`.
    fn data_from(&mut self, offset: u64) -> u64 {
        offset
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// When the device did not take all of them.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError>;

    /// Makes every finished write durable (`fdatasync`).
    ///
    /// # Errors
    /// When the device failed; a flush that failed once is never retried into success.
    fn flush(&mut self) -> Result<(), StorageError>;

    /// Reads one range.
    ///
    /// # Errors
    /// As [`Storage::read`].
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        debug_assert!(offset.is_multiple_of(BLOCK_BYTES_U64));
        self.read(&mut [ReadPiece { offset, into }])
    }
}
