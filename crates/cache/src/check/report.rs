//! What `check` found, for people and programs alike.

use crate::config::Uuid;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What an unclean stop may leave: nothing that was promised is lost.
    Note,
    /// The device does not hold what was written to it.
    Damage,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// `superblock`, `export table`, `record header`, `footer`, `payload` or `log`.
    pub structure: &'static str,
    /// Bytes from the start of the device to the first block that is not right; `None` where
    /// nobody can tell.
    pub offset_bytes: Option<u64>,
    /// The export whose data it is, if it is one's.
    pub export: Option<String>,
    /// Its first block and how many, in 4 KiB units.
    pub blocks: Option<(u64, u64)>,
    /// What is wrong.
    pub problem: String,
    /// What that means for the data.
    pub meaning: &'static str,
}

/// How one of two copies was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Intact, and as new as the other one.
    Intact,
    /// Intact, but older than the other one.
    Older,
    /// Not intact.
    Damaged,
}

/// One of two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedCopy {
    /// Bytes from the start of the device.
    pub offset_bytes: u64,
    /// How it was found.
    pub state: CopyState,
}

/// The log as recovery would accept it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckedLog {
    /// The oldest sequence that counts.
    pub tail: u64,
    /// The highest sequence that is known to have been durable.
    pub durable: u64,
    /// Where recovery would cut: the next record gets this number.
    pub next_sequence: u64,
    /// Records that count.
    pub records: u64,
    /// Blocks of payload that were read and compared with their checksums.
    pub payload_blocks: u64,
    /// Segments with records that count.
    pub segments_used: u64,
    /// Those of them without a footer, known by their headers.
    pub segments_walked: u64,
    /// Segments with records that no longer count, or are void.
    pub segments_left: u64,
    /// Records behind the cut, which do not count.
    pub records_dropped: u64,
}

/// An export that the cache knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedExport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// The highest sequence that its origin has.
    pub watermark: u64,
    /// Bytes that reads would be served from.
    pub live_bytes: u64,
    /// Bytes that the origin lacks, superseded versions included.
    pub dirty_bytes: u64,
    /// Blocks of those with a wrong checksum, by what that means: fetched again, or lost.
    pub damaged_clean_blocks: u64,
    /// Dirty blocks with a wrong checksum.
    pub damaged_dirty_blocks: u64,
}

/// Everything that `check` found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The cache's name for ever.
    pub uuid: Uuid,
    /// The format's version.
    pub version: u32,
    /// Size of the device when it was formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Number of segments.
    pub segments: u64,
    /// The life that the cache is in.
    pub incarnation: u64,
    /// Both superblocks.
    pub superblocks: [CheckedCopy; 2],
    /// Both slots of the export table.
    pub export_tables: [CheckedCopy; 2],
    /// The log.
    pub log: CheckedLog,
    /// The exports that it knows, configured or not.
    pub exports: Vec<CheckedExport>,
    /// What is not as it was written, in the order in which it was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity < Severity::Damage)
    }
}
