//! Why something cannot be opened or served: one clear sentence each, with what to do.

use ringfence_cache::{FormatError, OpenError, StorageError};
use std::io;
use std::path::PathBuf;

/// What [`crate::Runtime`] and the functions beside it can fail with.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The path cannot be opened.
    #[error("{role} {path} cannot be opened: {source}")]
    Path {
        /// `cache device` or `origin`.
        role: &'static str,
        /// What was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither a block device nor a file.
    #[error("{role} {path} is neither a block device nor a regular file: name one of these")]
    Kind {
        /// `cache device` or `origin`.
        role: &'static str,
        /// What was named.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error(
        "{role} {path} is in use: another ringfence serves it, or it is mounted or held by another \
         program; stop that first"
    )]
    Busy {
        /// `cache device` or `origin`.
        role: &'static str,
        /// What was named.
        path: PathBuf,
    },
    /// A block device that nothing is attached to yet, such as one of the kernel's nbd driver.
    #[error("{role} {path} has no bytes yet: attach what it is to stand for")]
    Empty {
        /// `cache device` or `origin`.
        role: &'static str,
        /// What was named.
        path: PathBuf,
    },
    /// The logical blocks are too large.
    #[error(
        "{role} {path} has logical blocks of {block_bytes} bytes, and at most 4096 are possible: \
         use another one"
    )]
    BlockSize {
        /// `cache device` or `origin`.
        role: &'static str,
        /// What was named.
        path: PathBuf,
        /// What it has.
        block_bytes: u32,
    },
    /// An origin that is the cache device, or is served already.
    #[error("export {export}: its origin {path} is {what}: each export needs an origin of its own")]
    OriginTaken {
        /// The export.
        export: String,
        /// What was named.
        path: PathBuf,
        /// What else it is.
        what: String,
    },
    /// The cache cannot be opened.
    #[error("cache device {path}: {source}")]
    Open {
        /// What was named.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The device cannot be formatted.
    #[error("cache device {path}: {source}")]
    Format {
        /// What was named.
        path: PathBuf,
        /// Why.
        source: FormatError,
    },
    /// The device failed before the cache was open.
    #[error("cache device {path}: {source}")]
    Storage {
        /// What was named.
        path: PathBuf,
        /// Why.
        source: StorageError,
    },
    /// No memory for the reserve.
    #[error("a reserve of {bytes} bytes cannot be mapped: {source}; choose a smaller --reserve")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// No ring.
    #[error("{advice}")]
    Uring {
        /// Why, and what to do.
        advice: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// What was given.
        address: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The server cannot be connected to.
    #[error("{address} cannot be reached: {source}")]
    Connect {
        /// What was given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The device cannot be attached or detached.
    #[error("{what}")]
    Attach {
        /// Why, and what to do.
        what: String,
    },
    /// An argument that is out of range.
    #[error("{what}")]
    Argument {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The CPU does not exist, or is not this process's to use.
    #[error(
        "the ring thread cannot run on the CPU of --cpu, {cpu}: {source}; name one that this \
         process may use"
    )]
    Cpu {
        /// What was given.
        cpu: u32,
        /// What the system said.
        source: io::Error,
    },
    /// Something of the system that is not about a path.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The end was not orderly.
    #[error("{what}")]
    Shutdown {
        /// What went wrong.
        what: &'static str,
    },
    /// The ring has stopped.
    #[error("the ring has stopped")]
    Stopped,
}

impl RuntimeError {
    /// Whether an operator has to change or decide something first: trying again is in vain.
    /// Otherwise it may work later, for a device may still appear or be given back.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.is_refusal(),
            Self::Format { source, .. } => !matches!(source, FormatError::Storage(_)),
            Self::Kind { .. }
            | Self::BlockSize { .. }
            | Self::OriginTaken { .. }
            | Self::Argument { .. }
            | Self::Cpu { .. } => true,
            Self::Path { .. }
            | Self::Busy { .. }
            | Self::Empty { .. }
            | Self::Storage { .. }
            | Self::Memory { .. }
            | Self::Uring { .. }
            | Self::Listen { .. }
            | Self::Connect { .. }
            | Self::Attach { .. }
            | Self::System { .. }
            | Self::Shutdown { .. }
            | Self::Stopped => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RuntimeError;
    use ringfence_cache::reserve::ReserveTooSmall;
    use ringfence_cache::{OpenError, StorageError};
    use std::io;
    use std::path::PathBuf;

    fn opening(source: OpenError) -> RuntimeError {
        RuntimeError::Open { path: PathBuf::from("/dev/cache"), source }
    }

    #[test]
    fn what_only_an_operator_can_mend_is_a_refusal() {
        let (role, path) = ("origin", PathBuf::from("/dev/disk"));
        let name = || "disk".to_owned();
        let einval = || io::Error::from_raw_os_error(libc::EINVAL);
        for refusal in [
            RuntimeError::Kind { role, path: path.clone() },
            RuntimeError::BlockSize { role, path: path.clone(), block_bytes: 8192 },
            RuntimeError::OriginTaken { export: name(), path, what: "the cache device".into() },
            RuntimeError::Argument { what: "1 to 4096 connections are possible" },
            RuntimeError::Cpu { cpu: 8191, source: einval() },
            opening(OpenError::NotFormatted),
            opening(OpenError::Newer { version: 9, features: 0 }),
            opening(OpenError::SuperblocksDamaged),
            opening(OpenError::ExportTableDamaged),
            opening(OpenError::ExportTableOld { layer: 3 }),
            opening(OpenError::Shrunk { size_bytes: 1, formatted_bytes: 2 }),
            opening(OpenError::DurableDamaged { first: 1, last: 2, unreadable: false }),
            opening(OpenError::OriginSize { name: name(), size_bytes: 1, known_bytes: 2 }),
            opening(OpenError::OriginIdentity {
                name: name(),
                found: "a".into(),
                known: "b".into(),
            }),
            opening(OpenError::ReadOnlyDirty { name: name() }),
            opening(OpenError::OriginOwed { name: name(), owed: "other".into() }),
            opening(OpenError::IndexTooSmall { leaves: 1 }),
            opening(OpenError::TooManyExports),
            opening(OpenError::ExportInvalid { name: name(), reason: "is wrong" }),
            opening(OpenError::Reserve(ReserveTooSmall { given_bytes: 1, needed_bytes: 2 })),
        ] {
            assert!(refusal.is_refusal(), "{refusal}");
        }
    }

    #[test]
    fn what_may_pass_is_no_refusal() {
        let (role, path) = ("origin", PathBuf::from("/dev/disk"));
        let eio = || io::Error::from_raw_os_error(libc::EIO);
        let storage = || StorageError { operation: "read", offset: 0, source: eio() };
        for failure in [
            RuntimeError::Path { role, path: path.clone(), source: eio() },
            RuntimeError::Busy { role, path: path.clone() },
            RuntimeError::Empty { role, path: path.clone() },
            RuntimeError::Storage { path, source: storage() },
            RuntimeError::Memory { bytes: 1, source: eio() },
            RuntimeError::Uring { advice: "no io_uring".into() },
            RuntimeError::System { what: "the ring thread cannot be started", source: eio() },
            RuntimeError::Stopped,
            opening(OpenError::Storage(storage())),
            opening(OpenError::EndUnreadable(storage())),
            opening(OpenError::DurableDamaged { first: 1, last: 2, unreadable: true }),
        ] {
            assert!(!failure.is_refusal(), "{failure}");
        }
    }
}
