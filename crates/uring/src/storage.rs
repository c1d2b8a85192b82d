//! The cache device before the ring runs: blocking for whoever calls, batched underneath.

use crate::device::{Device, Kind};
use crate::error::RuntimeError;
use crate::memory::Mapping;
use io_uring::{IoUring, opcode, types};
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{ReadPiece, Storage, StorageError};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsRawFd;

/// One read: large enough to be efficient, small enough that many fit a fast device's queues.
const SLOT_BYTES: usize = 256 << 10;
/// Reads in flight at once.
const SLOTS: usize = 32;

/// A device that is read and written with its own aligned memory.
pub struct DirectStorage {
    device: Device,
    uring: IoUring,
    bounce: Mapping,
}

/// A part of a piece that is being read.
#[derive(Clone, Copy)]
struct Part {
    piece: usize,
    skip: usize,
    length: usize,
}

impl DirectStorage {
    /// Takes over an open device.
    ///
    /// # Errors
    /// When there is no io_uring or no memory.
    pub fn new(device: Device) -> Result<Self, RuntimeError> {
        let uring = IoUring::builder()
            .dontfork()
            .build(SLOTS as u32)
            .map_err(|error| RuntimeError::Uring { advice: crate::guards::uring_advice(&error) })?;
        let bounce = Mapping::new((SLOTS * SLOT_BYTES) as u64)?;
        Ok(Self { device, uring, bounce })
    }

    /// The device, when recovery is over.
    #[must_use]
    pub fn into_device(self) -> Device {
        self.device
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        assert!(slot < SLOTS, "a slot of the bounce memory");
        // SAFETY: inside the mapping, which holds `SLOTS` slots.
        unsafe { self.bounce.base().add(slot * SLOT_BYTES).as_ptr() }
    }

    fn start(&mut self, slot: usize, part: Part, offset: u64) {
        let entry = opcode::Read::new(
            types::Fd(self.device.fd.as_raw_fd()),
            self.slot(slot),
            part.length as u32,
        )
        .offset(offset)
        .build()
        .user_data(slot as u64);
        // SAFETY: the slot is free, and stays untouched until its completion is seen; `read`
        // does not return before that.
        unsafe { self.uring.submission().push(&entry) }.expect("a queue as long as its slots");
    }
}

/// Walks over the parts of all pieces, in order.
fn next_part(pieces: &[ReadPiece<'_>], at: &mut (usize, usize)) -> Option<Part> {
    while let Some(piece) = pieces.get(at.0) {
        if at.1 < piece.into.len() {
            let length = (piece.into.len() - at.1).min(SLOT_BYTES);
            let part = Part { piece: at.0, skip: at.1, length };
            at.1 += length;
            return Some(part);
        }
        *at = (at.0 + 1, 0);
    }
    None
}

impl Storage for DirectStorage {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        let mut at = (0, 0);
        let mut parts: [Option<Part>; SLOTS] = [None; SLOTS];
        let mut failed = None;
        loop {
            for (slot, in_flight) in parts.iter_mut().enumerate() {
                if in_flight.is_none()
                    && failed.is_none()
                    && let Some(part) = next_part(pieces, &mut at)
                {
                    self.start(slot, part, pieces[part.piece].offset + part.skip as u64);
                    *in_flight = Some(part);
                }
            }
            if parts.iter().all(Option::is_none) {
                return failed.map_or(Ok(()), Err);
            }
            let waited = self.uring.submit_and_wait(1);
            // A signal, or a lack of memory that may pass.
            let harmless = [libc::EINTR, libc::EBUSY, libc::EAGAIN];
            if let Err(source) = waited
                && !source.raw_os_error().is_some_and(|errno| harmless.contains(&errno))
            {
                // Reads may still be in flight into the bounce memory: nothing here is sound now.
                panic!("the ring of the cache device failed: {source}");
            }
            loop {
                let Some(done) = self.uring.completion().next() else { break };
                let slot = done.user_data() as usize;
                let part = parts[slot].take().expect("a part in flight");
                let offset = pieces[part.piece].offset + part.skip as u64;
                if [-libc::EINTR, -libc::EAGAIN].contains(&done.result()) {
                    self.start(slot, part, offset);
                    parts[slot] = Some(part);
                } else if done.result() == part.length as i32 {
                    // SAFETY: the read has ended, so the slot is ours again; it is this long.
                    let bytes = unsafe { std::slice::from_raw_parts(self.slot(slot), part.length) };
                    pieces[part.piece].into[part.skip..][..part.length].copy_from_slice(bytes);
                } else {
                    let source = match done.result() {
                        error @ ..0 => io::Error::from_raw_os_error(-error),
                        _ => io::ErrorKind::UnexpectedEof.into(),
                    };
                    failed.get_or_insert(StorageError { operation: "read", offset, source });
                }
            }
        }
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        // A filesystem knows what of a file was never written. What lies in the page cache, some
        // have overlooked: it is not there where files are written past it.
        if self.device.kind != Kind::File || !self.device.direct {
            return offset;
        }
        match seek(&self.device.fd, SeekFrom::Data(offset)) {
            Ok(data) => data - data % BLOCK_BYTES_U64,
            Err(Errno::NXIO) => self.device.size_bytes,
            Err(_) => offset,
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        for (index, chunk) in bytes.chunks(SLOTS * SLOT_BYTES).enumerate() {
            let start = offset + (index * SLOTS * SLOT_BYTES) as u64;
            let bounce = self.slot(0);
            // SAFETY: the bounce memory is as long as the longest chunk, and idle: `read` leaves
            // nothing in flight.
            unsafe { bounce.copy_from_nonoverlapping(chunk.as_ptr(), chunk.len()) };
            let mut done = 0;
            while done < chunk.len() {
                let at = start + done as u64;
                // SAFETY: `done` is inside the bounce memory, and so are the bytes after it.
                let result = unsafe {
                    libc::pwrite64(
                        self.device.fd.as_raw_fd(),
                        bounce.add(done).cast(),
                        chunk.len() - done,
                        at.cast_signed(),
                    )
                };
                if result > 0 {
                    done += result.cast_unsigned();
                    continue;
                }
                let source = match result {
                    0 => io::ErrorKind::WriteZero.into(),
                    _ => io::Error::last_os_error(),
                };
                if source.kind() != io::ErrorKind::Interrupted {
                    return Err(StorageError { operation: "write", offset: at, source });
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        // SAFETY: the descriptor is open.
        if unsafe { libc::fdatasync(self.device.fd.as_raw_fd()) } == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(StorageError { operation: "flush", offset: 0, source })
    }
}

#[cfg(test)]
mod tests {
    use super::DirectStorage;
    use crate::device::{Access, Device, Role};
    use ringfence_cache::{ReadPiece, Storage};

    #[test]
    fn many_pieces_come_back_as_they_were_written() {
        let path = std::env::temp_dir().join(format!("ringfence-storage-{}", std::process::id()));
        let size = 24 << 20;
        std::fs::File::create(&path).and_then(|file| file.set_len(size)).expect("a file");
        let device = Device::open(&path, Role::Cache, Access::Exclusive).expect("opened");
        let mut storage = DirectStorage::new(device).expect("storage");
        let pattern: Vec<u8> = (0..size as usize).map(|at| (at / 4096 % 251) as u8).collect();
        storage.write(0, &pattern).expect("written");
        storage.flush().expect("flushed");
        let mut into: Vec<Vec<u8>> = (1..60).map(|blocks| vec![0; blocks * 4096]).collect();
        let mut pieces: Vec<_> = into
            .iter_mut()
            .enumerate()
            .map(|(index, into)| ReadPiece { offset: (index * 97 * 4096) as u64, into })
            .collect();
        storage.read(&mut pieces).expect("read");
        for piece in pieces {
            let offset = piece.offset as usize;
            assert!(piece.into == &pattern[offset..offset + piece.into.len()], "at {offset}");
        }
        let mut beyond = vec![0; 8192];
        let past = storage.read_at(size - 4096, &mut beyond).expect_err("past the end");
        assert_eq!(past.operation, "read");
        std::fs::remove_file(&path).expect("ours");
    }

    #[test]
    fn a_file_knows_what_of_it_was_never_written() {
        let path = std::env::temp_dir().join(format!("ringfence-sparse-{}", std::process::id()));
        let (size, written) = (24 << 20, 8 << 20);
        std::fs::File::create(&path).and_then(|file| file.set_len(size)).expect("a file");
        let device = Device::open(&path, Role::Cache, Access::Exclusive).expect("opened");
        let knows = device.direct;
        let mut storage = DirectStorage::new(device).expect("storage");
        storage.write(written, &[1; 4096]).expect("written");
        let answers = [0, written, size - 4096].map(|offset| storage.data_from(offset));
        let expected = if knows { [written, written, size] } else { [0, written, size - 4096] };
        assert_eq!(answers, expected);
        std::fs::remove_file(&path).expect("ours");
    }
}
