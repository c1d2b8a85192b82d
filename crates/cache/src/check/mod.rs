//! `check`: everything a cache holds is read and compared, and nothing is ever written.
//!
//! What counts and what does not is decided by the code that recovery decides it with
//! ([`crate::scan`] and `survey`); this module only compares copies, verifies payload and says
//! what a difference means for the data.

mod records;
mod report;

pub use report::{CheckedCopy, CheckedExport, CheckedLog, CopyState, Finding, Report, Severity};

use crate::engine::{Survey, survey};
use crate::error::OpenError;
use crate::facts::LogFacts;
use crate::format::{ExportTable, Superblock};
use crate::geometry::Geometry;
use crate::layout;
use crate::limits::{EXPORT_TABLE_OFFSETS, SUPERBLOCK_OFFSETS};
use crate::reserve::Pool;
use crate::scan::{FoundSegment, Scanner};
use crate::storage::{ReadPiece, Storage, StorageError};
use crate::units::{BLOCK_BYTES_U64, ExportSlot};
use records::RecordCheck;

/// A device that cannot be written to, whatever is called.
struct ReadOnly<'a>(&'a mut dyn Storage);

impl Storage for ReadOnly<'_> {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        self.0.read(pieces)
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        self.0.data_from(offset)
    }

    fn write(&mut self, offset: u64, _bytes: &[u8]) -> Result<(), StorageError> {
        unreachable!("a check does not write, at {offset}")
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        unreachable!("a check does not flush")
    }
}

/// Reads everything that a cache holds and says what is not as it was written.
///
/// # Errors
/// When the device cannot be read, holds no cache, or one that nothing can be told of: both
/// superblocks or both slots of the export table are damaged.
pub fn check(storage: &mut dyn Storage) -> Result<Report, OpenError> {
    let storage = &mut ReadOnly(storage);
    let (superblock, _) = layout::read_superblock(storage)?;
    let table = layout::read_export_table(storage, &superblock.cache_uuid)?.table;
    let segment_bytes = superblock.segment_bytes.get();
    // No log pool: nothing is resident where nobody serves.
    let no_pool = Pool { offset: 0, length: 0 };
    let geometry = Geometry::new(segment_bytes, superblock.segments.get(), no_pool, 1);
    let mut findings = Vec::new();
    let mut scanner = Scanner::new(storage, &superblock, geometry);
    let (mut found, facts) = scanner.scan();
    let survey = survey(&mut scanner, &table, &mut found, &facts)?;
    let life_has_records = found.iter().any(|s| s.incarnation == superblock.incarnation.get());
    let mut superblocks =
        check_superblocks(scanner.storage, &superblock, life_has_records, &mut findings)?;
    note_lost_superblocks(&superblock, &facts, &mut superblocks, &mut findings);
    let export_tables = check_export_tables(scanner.storage, &superblock, &table, &mut findings)?;
    note_losses(&survey, &found, geometry, &mut findings);
    let counting = found.iter().filter(|segment| segment.accepted.is_some());
    let newest_writer = counting.map(|segment| segment.incarnation).max().unwrap_or(0);
    let life = (&facts, newest_writer);
    let mut records = RecordCheck::new(&mut scanner, &table, &survey, life, &mut findings);
    for segment in &mut found {
        records.segment(segment);
    }
    records.end_of_log(&found);
    let (log, damaged) = (records.log, records.damaged);
    let exports = exports(&table, &survey, &facts, &damaged);
    Ok(Report {
        uuid: superblock.cache_uuid,
        version: superblock.version(),
        device_bytes: superblock.device_bytes.get(),
        segment_bytes,
        segments: superblock.segments.get(),
        incarnation: facts.incarnation(),
        superblocks,
        export_tables,
        log,
        exports,
        findings,
    })
}

/// Compares the two superblocks. An older copy is what a power cut in the midst of a start or of
/// a write of the superblock leaves, unless this life has gone on since (rule 5).
fn check_superblocks(
    storage: &mut dyn Storage,
    newest: &Superblock,
    life_has_records: bool,
    findings: &mut Vec<Finding>,
) -> Result<[CheckedCopy; 2], OpenError> {
    let copies = layout::read_superblocks(storage)?;
    let mut checked = SUPERBLOCK_OFFSETS
        .map(|offset_bytes| CheckedCopy { offset_bytes, state: CopyState::Intact });
    for (block, copy) in copies.iter().zip(&mut checked) {
        let parsed = block.as_ref().map(|block| Superblock::parse(block));
        let mut finding = Finding {
            severity: Severity::Damage,
            structure: "superblock",
            offset_bytes: Some(copy.offset_bytes),
            export: None,
            blocks: None,
            problem: String::new(),
            meaning: "the other copy is good: nothing is lost, and the next start writes it anew",
        };
        match parsed {
            Some(Ok(one)) if one.age() == newest.age() && one.cache_uuid == newest.cache_uuid => {
                continue;
            }
            Some(Ok(one)) if one.cache_uuid != newest.cache_uuid => {
                copy.state = CopyState::Damaged;
                finding.problem = "it belongs to another cache".into();
            }
            Some(Ok(one)) => {
                copy.state = CopyState::Older;
                let [(life, revision), (newest_life, newest_revision)] = [one.age(), newest.age()];
                finding.problem = format!(
                    "life {life}, revision {revision}, while the other copy has life \
                     {newest_life}, revision {newest_revision}"
                );
                let in_turn = life == newest_life && revision + 1 == newest_revision;
                let interrupted = life + 1 == newest_life && !life_has_records;
                if in_turn {
                    // While serving, the copies are written in turn (decision 0006).
                    continue;
                }
                if interrupted {
                    finding.severity = Severity::Note;
                }
            }
            Some(Err(mismatch)) => {
                copy.state = CopyState::Damaged;
                finding.problem = mismatch.to_string();
            }
            None => copy.state = CopyState::Damaged,
        }
        findings.push(finding);
    }
    Ok(checked)
}

/// Names that neither superblock has what the start of the newest life wrote to both.
fn note_lost_superblocks(
    superblock: &Superblock,
    facts: &LogFacts,
    checked: &mut [CheckedCopy; 2],
    findings: &mut Vec<Finding>,
) {
    let (life, newest_life) = (superblock.incarnation.get(), facts.incarnation());
    if life == newest_life {
        return;
    }
    for copy in checked.iter_mut().filter(|copy| copy.state == CopyState::Intact) {
        copy.state = CopyState::Older;
        findings.push(Finding {
            severity: Severity::Damage,
            structure: "superblock",
            offset_bytes: Some(copy.offset_bytes),
            export: None,
            blocks: None,
            problem: format!("life {life}, while the log has records of life {newest_life}"),
            meaning: "the log says what it lacks: nothing is lost, and the next start writes it anew",
        });
    }
}

/// Compares the two slots of the export table. They differ only while one is being written.
fn check_export_tables(
    storage: &mut dyn Storage,
    superblock: &Superblock,
    newest: &ExportTable,
    findings: &mut Vec<Finding>,
) -> Result<[CheckedCopy; 2], OpenError> {
    let mut checked = EXPORT_TABLE_OFFSETS
        .map(|offset_bytes| CheckedCopy { offset_bytes, state: CopyState::Intact });
    for copy in &mut checked {
        let slot = layout::read_export_slot(storage, copy.offset_bytes, &superblock.cache_uuid);
        let (severity, state, problem) = match slot {
            Ok(Ok(table)) if table.generation == newest.generation => continue,
            Ok(Ok(table)) => {
                let (old, new) = (table.generation, newest.generation);
                let problem = format!("generation {old}, while the other slot has {new}");
                // Before slots were written in pairs this was how they stood.
                (Severity::Note, CopyState::Older, problem)
            }
            Ok(Err(mismatch)) => (Severity::Damage, CopyState::Damaged, mismatch.to_string()),
            Err(error) => (Severity::Damage, CopyState::Damaged, error.to_string()),
        };
        copy.state = state;
        findings.push(Finding {
            severity,
            structure: "export table",
            offset_bytes: Some(copy.offset_bytes),
            export: None,
            blocks: None,
            problem,
            meaning: "the other slot is good: nothing is lost, and the next start writes it anew",
        });
    }
    Ok(checked)
}

/// Names what was durable and is not there.
fn note_losses(
    survey: &Survey,
    found: &[FoundSegment],
    geometry: Geometry,
    findings: &mut Vec<Finding>,
) {
    for &(first, last) in &survey.losses {
        let before = found.iter().find(|segment| {
            segment.accepted.as_ref().is_some_and(|range| *range.end() + 1 == first)
        });
        let after = found.iter().find(|segment| segment.accepted.is_some());
        let (segment_use, at) = match before {
            Some(FoundSegment { walked: Some(walked), segment_use, .. })
                if walked.end_blocks < geometry.payload_blocks =>
            {
                (*segment_use, walked.end_blocks)
            }
            Some(segment) => (segment.segment_use + 1, 0),
            None => (after.map_or(survey.next_use, |after| after.segment_use.saturating_sub(1)), 0),
        };
        let offset_bytes = Some(geometry.device_offset(geometry.address(segment_use, at)));
        findings.push(Finding {
            severity: Severity::Damage,
            structure: "log",
            offset_bytes,
            export: None,
            blocks: None,
            problem: format!("records {first} to {last} were durable and cannot be read"),
            meaning: "serve refuses to start; with --accept-loss it goes on without them and \
                      what follows them in their segment, and what they overwrote may show again",
        });
    }
    for &offset in &survey.ends_unreadable {
        findings.push(Finding {
            severity: Severity::Damage,
            structure: "log",
            offset_bytes: Some(offset),
            export: None,
            blocks: None,
            problem: "the end of the log cannot be read".into(),
            meaning: "serve refuses to start; with --accept-loss it goes on without what may \
                      follow there",
        });
    }
}

fn exports(
    table: &ExportTable,
    survey: &Survey,
    facts: &LogFacts,
    damaged: &[[u64; 2]],
) -> Vec<CheckedExport> {
    let records = table.exports.iter().enumerate().filter(|(_, record)| !record.is_free());
    let exports = records.map(|(index, record)| {
        let slot = ExportSlot(u8::try_from(index).expect("at most 64 exports"));
        CheckedExport {
            name: record.name(),
            size_bytes: record.size_bytes.get(),
            origin_identity: record.origin(),
            watermark: facts.watermarks[index],
            live_bytes: survey.index.cached_blocks(slot) * BLOCK_BYTES_U64,
            dirty_bytes: survey.exports.get(slot).dirty.blocks * BLOCK_BYTES_U64,
            damaged_clean_blocks: damaged[index][0],
            damaged_dirty_blocks: damaged[index][1],
        }
    });
    exports.collect()
}
