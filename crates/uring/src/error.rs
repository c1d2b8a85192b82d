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
