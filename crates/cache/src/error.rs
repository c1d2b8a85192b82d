//! Why a cache cannot be formatted or opened: one clear sentence each, with what to do.

use crate::reserve::ReserveTooSmall;
use crate::storage::StorageError;

/// Why a device could not be formatted.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// Too small for the smallest log.
    #[error(
        "the device has {size_bytes} bytes; a cache with segments of {segment_bytes} bytes needs \
         at least {needed_bytes}: use a larger device or smaller segments"
    )]
    TooSmall {
        /// What it has.
        size_bytes: u64,
        /// What was asked for.
        segment_bytes: u64,
        /// What it would need.
        needed_bytes: u64,
    },
    /// Not a power of two, or out of range.
    #[error(
        "a segment of {segment_bytes} bytes is not possible: use a power of two from 4 MiB to 256 MiB"
    )]
    SegmentSize {
        /// What was asked for.
        segment_bytes: u64,
    },
    /// The device failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why a cache could not be opened. Nothing has been written in any of these cases.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No superblock.
    #[error(
        "the device holds no ringfence cache: name the right device, or make this one a cache with \
         `ringfence format`, which destroys what is on it"
    )]
    NotFormatted,
    /// A superblock that is not understood.
    #[error(
        "the cache was formatted by a newer ringfence (format {version}, features {features:#x}): use that version"
    )]
    Newer {
        /// The format's version.
        version: u32,
        /// The incompatible features that are not known.
        features: u64,
    },
    /// Both superblocks are damaged.
    #[error(
        "both superblocks are damaged: the device was overwritten; restore it, or format it anew and lose the cache"
    )]
    SuperblocksDamaged,
    /// Both slots of the export table are damaged.
    #[error(
        "both copies of the export table are damaged: the device was overwritten; restore it, or format it anew and lose the cache"
    )]
    ExportTableDamaged,
    /// The log has data of an export that the table does not know yet.
    #[error(
        "the export table is older than the log, which has data of an export that is not in it \
         (layer {layer}): the device lost a write; restore it, or format it anew and lose the cache"
    )]
    ExportTableOld {
        /// The layer that is not known.
        layer: u32,
    },
    /// The device shrank.
    #[error(
        "the device has {size_bytes} bytes but was formatted with {formatted_bytes}: it is not \
         the whole device; name the right one, or give it back its size"
    )]
    Shrunk {
        /// What it has now.
        size_bytes: u64,
        /// What it had.
        formatted_bytes: u64,
    },
    /// Durable data is damaged.
    #[error(
        "the log is damaged: records {first} to {last} were durable and cannot be read; start with \
         --accept-loss to go on without them and what follows them in their segment"
    )]
    DurableDamaged {
        /// First sequence that is missing or damaged.
        first: u64,
        /// The highest sequence that had been durable.
        last: u64,
        /// Whether the device failed to read anything: what is missing may be there.
        unreadable: bool,
    },
    /// Where the log ends, or goes on, cannot be read.
    #[error(
        "the end of the log cannot be read, so flushed data may follow there ({0}): start again \
         when the device can read it, or with --accept-loss to go on without it"
    )]
    EndUnreadable(#[source] StorageError),
    /// Another size than the data belongs to.
    #[error(
        "export {name}: the origin has {size_bytes} bytes, the cache knows it with {known_bytes}: \
         name the right origin, or give it back its size"
    )]
    OriginSize {
        /// The export.
        name: String,
        /// What the origin has.
        size_bytes: u64,
        /// What the cache knows.
        known_bytes: u64,
    },
    /// Another origin than the data belongs to.
    #[error(
        "export {name}: its origin is {found}, but the cache holds data of {known}: name the right \
         origin; under another name it would be a new export"
    )]
    OriginIdentity {
        /// The export.
        name: String,
        /// What was given.
        found: String,
        /// What the cache knows.
        known: String,
    },
    /// Nobody would write to the origin what it lacks.
    #[error(
        "export {name} cannot be read-only: the cache holds data that its origin does not have \
         yet; serve it writable and drain it first"
    )]
    ReadOnlyDirty {
        /// The export.
        name: String,
    },
    /// Another export's data was never written to this origin.
    #[error(
        "export {name}: the cache holds data of export {owed} that this origin does not have yet; \
         serve it under that name and drain it first"
    )]
    OriginOwed {
        /// The export.
        name: String,
        /// Whose data it is.
        owed: String,
    },
    /// More dirty data than the index can map.
    #[error(
        "the index of {leaves} leaves (4 KiB each) cannot map what is dirty: start with a larger \
         --index than {} MiB", leaves / 256
    )]
    IndexTooSmall {
        /// Leaves that it has.
        leaves: u32,
    },
    /// No slot is left.
    #[error(
        "the cache knows {} exports already, served or not, and can learn no other: use one of \
         their names with its origin, or another cache",
        crate::limits::EXPORTS_MAX
    )]
    TooManyExports,
    /// A name or identity that does not fit.
    #[error("export {name}: {reason}")]
    ExportInvalid {
        /// The export.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The reserve cannot hold its pools.
    #[error(transparent)]
    Reserve(#[from] ReserveTooSmall),
    /// The device failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl OpenError {
    /// Whether an operator has to change or decide something first: trying again is in vain.
    /// Otherwise the device failed, which may pass.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::NotFormatted
            | Self::Newer { .. }
            | Self::SuperblocksDamaged
            | Self::ExportTableDamaged
            | Self::ExportTableOld { .. }
            | Self::Shrunk { .. }
            | Self::OriginSize { .. }
            | Self::OriginIdentity { .. }
            | Self::ReadOnlyDirty { .. }
            | Self::OriginOwed { .. }
            | Self::IndexTooSmall { .. }
            | Self::TooManyExports
            | Self::ExportInvalid { .. }
            | Self::Reserve(_) => true,
            // What could not be read may be readable the next time.
            Self::DurableDamaged { unreadable, .. } => !*unreadable,
            Self::Storage(_) | Self::EndUnreadable(_) => false,
        }
    }
}
