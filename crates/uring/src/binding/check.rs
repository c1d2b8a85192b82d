//! What `check` tells JavaScript.

use crate::format_uuid;
use napi_derive::napi;
use ringfence_cache::{CopyState, Report, Severity};

/// One of two copies of a structure.
#[napi(object, object_from_js = false)]
pub struct CheckedCopy {
    /// Bytes from the start of the device.
    pub offset_bytes: u64,
    /// `intact`, `older` or `damaged`.
    pub state: String,
}

/// The log as recovery would accept it.
#[napi(object, object_from_js = false)]
pub struct CheckedLog {
    /// The oldest sequence that counts.
    pub tail: u64,
    /// The highest sequence that is known to have been durable.
    pub durable: u64,
    /// Where recovery would cut: the next record gets this number.
    pub next_sequence: u64,
    /// Records that count.
    pub records: u64,
    /// Blocks of payload that were compared with their checksums.
    pub payload_blocks: u64,
    /// Segments with records that count.
    pub segments_used: u64,
    /// Those of them that are known by their headers, without a footer.
    pub segments_walked: u64,
    /// Segments with records that no longer count, or are void.
    pub segments_left: u64,
    /// Records behind the cut, which do not count.
    pub records_dropped: u64,
}

/// An export that the cache knows.
#[napi(object, object_from_js = false)]
pub struct CheckedExport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// What its origin is known by.
    pub origin_identity: String,
    /// The highest sequence that its origin has.
    pub watermark: u64,
    /// What the log has of it.
    pub live_bytes: u64,
    /// What its origin lacks.
    pub dirty_bytes: u64,
    /// Damaged blocks that the origin has.
    pub damaged_clean_blocks: u64,
    /// Damaged blocks that the origin lacks.
    pub damaged_dirty_blocks: u64,
}

/// Something that is not as it was written.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct CheckFinding {
    /// `damage`, or `note` for what an unclean stop may leave.
    pub severity: String,
    /// `superblock`, `export table`, `record header`, `footer`, `payload` or `log`.
    pub structure: String,
    /// Where the first block of it is, in bytes from the start of the device.
    pub offset_bytes: Option<u64>,
    /// The export whose data it is.
    pub export: Option<String>,
    /// Its first block, in 4 KiB units.
    pub first_block: Option<u64>,
    /// How many blocks.
    pub block_count: Option<u64>,
    /// What is wrong.
    pub problem: String,
    /// What that means for the data.
    pub meaning: String,
}

/// What `check` found.
#[napi(object, object_from_js = false)]
pub struct CheckReport {
    /// Whether nothing is damaged.
    pub clean: bool,
    /// Names the cache.
    pub uuid: String,
    /// The format's version.
    pub format_version: u32,
    /// Size of the device as formatted.
    pub device_bytes: u64,
    /// Size of a segment.
    pub segment_bytes: u64,
    /// Segments in the log.
    pub segments: u64,
    /// How often it has been opened.
    pub incarnation: u64,
    /// Both superblocks.
    pub superblocks: Vec<CheckedCopy>,
    /// Both slots of the export table.
    pub export_tables: Vec<CheckedCopy>,
    /// The log.
    pub log: CheckedLog,
    /// Exports the cache knows, whether configured or not.
    pub exports: Vec<CheckedExport>,
    /// What is not as it was written.
    pub findings: Vec<CheckFinding>,
}

impl From<ringfence_cache::CheckedCopy> for CheckedCopy {
    fn from(copy: ringfence_cache::CheckedCopy) -> Self {
        let state = match copy.state {
            CopyState::Intact => "intact",
            CopyState::Older => "older",
            CopyState::Damaged => "damaged",
        };
        Self { offset_bytes: copy.offset_bytes, state: state.to_owned() }
    }
}

impl From<ringfence_cache::CheckedLog> for CheckedLog {
    fn from(log: ringfence_cache::CheckedLog) -> Self {
        Self {
            tail: log.tail,
            durable: log.durable,
            next_sequence: log.next_sequence,
            records: log.records,
            payload_blocks: log.payload_blocks,
            segments_used: log.segments_used,
            segments_walked: log.segments_walked,
            segments_left: log.segments_left,
            records_dropped: log.records_dropped,
        }
    }
}

impl From<ringfence_cache::CheckedExport> for CheckedExport {
    fn from(export: ringfence_cache::CheckedExport) -> Self {
        Self {
            name: export.name,
            size_bytes: export.size_bytes,
            origin_identity: export.origin_identity,
            watermark: export.watermark,
            live_bytes: export.live_bytes,
            dirty_bytes: export.dirty_bytes,
            damaged_clean_blocks: export.damaged_clean_blocks,
            damaged_dirty_blocks: export.damaged_dirty_blocks,
        }
    }
}

impl From<ringfence_cache::Finding> for CheckFinding {
    fn from(finding: ringfence_cache::Finding) -> Self {
        let severity = match finding.severity {
            Severity::Note => "note",
            Severity::Damage => "damage",
        };
        Self {
            severity: severity.to_owned(),
            structure: finding.structure.to_owned(),
            offset_bytes: finding.offset_bytes,
            export: finding.export,
            first_block: finding.blocks.map(|(first, _)| first),
            block_count: finding.blocks.map(|(_, count)| count),
            problem: finding.problem,
            meaning: finding.meaning.to_owned(),
        }
    }
}

impl From<Report> for CheckReport {
    fn from(report: Report) -> Self {
        Self {
            clean: report.is_clean(),
            uuid: format_uuid(&report.uuid),
            format_version: report.version,
            device_bytes: report.device_bytes,
            segment_bytes: report.segment_bytes,
            segments: report.segments,
            incarnation: report.incarnation,
            superblocks: report.superblocks.map(CheckedCopy::from).into(),
            export_tables: report.export_tables.map(CheckedCopy::from).into(),
            log: report.log.into(),
            exports: report.exports.into_iter().map(CheckedExport::from).collect(),
            findings: report.findings.into_iter().map(CheckFinding::from).collect(),
        }
    }
}
