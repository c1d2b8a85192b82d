//! The log, record by record: headers against footers, payload against checksums.

use super::report::{CheckedLog, Finding, Severity};
use crate::engine::Survey;
use crate::facts::LogFacts;
use crate::format::{
    Entry, ExportTable, Footer, RecordHeader, SUMMARY_OFFSET, SummaryReader, SummaryRecord,
    checksum, incarnation_nonce, is_zero,
};
use crate::geometry::LogAddress;
use crate::index::Place;
use crate::limits::{EXPORTS_MAX, SEGMENTS_WITHOUT_FOOTER_MAX};
use crate::scan::{FoundSegment, Scanner};
use crate::units::{BLOCK_BYTES, ExportSlot};
use zerocopy::little_endian::U32;

/// Blocks that are read at a time: more than the largest record.
const CHUNK_BLOCKS: u32 = 2048;

/// What damage means where the log ends.
const END_OF_LOG: &str = "the log ends here: what a power cut left unfinished; had it been \
                          flushed, it would be lost";

/// What a bad block means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The origin has it.
    FetchedAgain,
    /// Nobody refers to it any more.
    Unused,
    /// The only copy.
    Lost,
    /// A version that was overwritten since; the origin lacks it.
    OldVersion,
}

impl Fate {
    const fn meaning(self) -> &'static str {
        match self {
            Self::FetchedAgain => "clean: it is fetched again from the origin, nothing is lost",
            Self::Unused => "no longer used: nothing is lost",
            Self::Lost => {
                "dirty: lost; reads get EIO until it is overwritten, and strict destage stops here"
            }
            Self::OldVersion => {
                "dirty, but overwritten since: reads are right, strict destage stops here"
            }
        }
    }
}

/// The block behind the last record of a summary.
fn end_of_records(summary: &[u8]) -> u32 {
    let mut reader = SummaryReader::new(summary);
    let mut end = 0;
    while let Some((record, _, _)) = reader.next() {
        end = record.offset_blocks.get() + 1 + u32::from(record.payload_blocks.get());
    }
    end
}

/// Goes over the segments of a log.
pub(super) struct RecordCheck<'a, 'b> {
    scanner: &'a mut Scanner<'b>,
    table: &'a ExportTable,
    survey: &'a Survey,
    facts: &'a LogFacts,
    /// The newest life that has records that count.
    newest_writer: u64,
    findings: &'a mut Vec<Finding>,
    /// What the log is like so far.
    pub log: CheckedLog,
    /// Per export: bad blocks that are clean, and that are dirty.
    pub damaged: [[u64; 2]; EXPORTS_MAX],
    chunk: Vec<u8>,
}

impl<'a, 'b> RecordCheck<'a, 'b> {
    pub fn new(
        scanner: &'a mut Scanner<'b>,
        table: &'a ExportTable,
        survey: &'a Survey,
        (facts, newest_writer): (&'a LogFacts, u64),
        findings: &'a mut Vec<Finding>,
    ) -> Self {
        let log = CheckedLog {
            tail: facts.tail,
            durable: facts.durable,
            next_sequence: survey.next_sequence,
            records: survey.records,
            records_dropped: facts.strays,
            ..CheckedLog::default()
        };
        let damaged = [[0; 2]; EXPORTS_MAX];
        let chunk = Vec::new();
        Self { scanner, table, survey, facts, newest_writer, findings, log, damaged, chunk }
    }

    fn offset(&self, segment_use: u64, at: u32) -> u64 {
        self.scanner.geometry.device_offset(self.scanner.geometry.address(segment_use, at))
    }

    fn find(
        &mut self,
        severity: Severity,
        structure: &'static str,
        offset_bytes: u64,
        problem: String,
        meaning: &'static str,
    ) {
        self.findings.push(Finding {
            severity,
            structure,
            offset_bytes: Some(offset_bytes),
            export: None,
            blocks: None,
            problem,
            meaning,
        });
    }

    /// Checks one segment.
    pub fn segment(&mut self, segment: &mut FoundSegment) {
        let Some(accepted) = segment.accepted.clone() else {
            self.log.segments_left += 1;
            return;
        };
        self.log.segments_used += 1;
        let footer = self.scanner.read_footer(segment.segment_use);
        if segment.walked.is_some() {
            self.log.segments_walked += 1;
            self.missing_footer(segment, &footer);
        } else {
            self.footer_padding(segment.segment_use, &footer);
        }
        let summary = self.scanner.summary(segment);
        let end_blocks = end_of_records(&summary);
        let mut reader = SummaryReader::new(&summary);
        let mut chunk = 0..0;
        while let Some((record, entries, sums)) = reader.next() {
            if !accepted.contains(&record.sequence.get()) {
                let is_dropped = record.sequence.get() >= self.survey.next_sequence;
                self.log.records_dropped += u64::from(is_dropped);
                continue;
            }
            let at = record.offset_blocks.get();
            let end = at + 1 + u32::from(record.payload_blocks.get());
            if at < chunk.start || end > chunk.end {
                let last = end_blocks.min(at + CHUNK_BLOCKS);
                self.chunk.resize((last - at) as usize * BLOCK_BYTES, 0);
                let offset = self.offset(segment.segment_use, at);
                self.scanner.read_at(offset, &mut self.chunk);
                chunk = at..last;
            }
            let start = (at - chunk.start) as usize * BLOCK_BYTES;
            let length = (end - at) as usize * BLOCK_BYTES;
            let chunk_bytes = std::mem::take(&mut self.chunk);
            self.record(segment, record, entries, sums, &chunk_bytes[start..start + length]);
            self.chunk = chunk_bytes;
        }
    }

    /// A segment that was walked has no footer that is intact and of this use. That may be so for
    /// the newest few of this life (rule 8). A start gives one to all others; where no record shows
    /// that the last start came to its end, it may have been cut short before or while it did.
    fn missing_footer(&mut self, segment: &FoundSegment, footer: &[u8]) {
        let offset = self.offset(segment.segment_use, self.scanner.geometry.payload_blocks);
        let superblock = self.scanner.superblock;
        let newest = self.survey.next_use.saturating_sub(1);
        let is_new = segment.segment_use + SEGMENTS_WITHOUT_FOOTER_MAX as u64 >= newest;
        let may_lack = is_new && segment.incarnation == self.facts.incarnation();
        let may_be_cut = is_new && segment.incarnation == self.newest_writer;
        let blocks = (0..footer.len() as u64).step_by(BLOCK_BYTES);
        let is_unreadable = blocks.clone().any(|at| self.scanner.is_unreadable(offset + at));
        let resembles = is_unreadable
            || segment.has_footer()
            || Footer::resembles(footer, &superblock.cache_uuid, segment.segment_use);
        let severity = match (may_lack, resembles) {
            (true, false) => return,
            (true, true) => Severity::Note,
            _ if may_be_cut && !is_unreadable => Severity::Note,
            _ => Severity::Damage,
        };
        let problem = match (is_unreadable, resembles) {
            (true, _) => "its footer cannot be read",
            (false, true) => "its footer is damaged",
            (false, false) => "its footer is not there",
        };
        let problem = format!("segment use {}: {problem}", segment.segment_use);
        let meaning =
            "the record headers are good: nothing is lost, and the next start writes it anew";
        self.find(severity, "footer", offset, problem, meaning);
    }

    fn footer_padding(&mut self, segment_use: u64, footer: &[u8]) {
        let Some(length) = Footer::summary_length(footer) else { return };
        let end = SUMMARY_OFFSET + length;
        let padded = end.next_multiple_of(BLOCK_BYTES).min(footer.len());
        if is_zero(&footer[end..padded]) {
            return;
        }
        let block = u32::try_from(end / BLOCK_BYTES).expect("a small footer");
        let offset = self.offset(segment_use, self.scanner.geometry.payload_blocks + block);
        let problem = format!("segment use {segment_use}: its padding is not zero");
        self.find(Severity::Damage, "footer", offset, problem, "nothing is lost");
    }

    fn record(
        &mut self,
        segment: &FoundSegment,
        record: &SummaryRecord,
        entries: &[Entry],
        sums: &[U32],
        bytes: &[u8],
    ) {
        let (at, sequence) = (record.offset_blocks.get(), record.sequence.get());
        let (header, payload) = bytes.split_at(BLOCK_BYTES);
        let is_same = self
            .scanner
            .header_in(segment.segment_use % self.scanner.geometry.segments, at, header)
            .is_some_and(|header| header.checksum() == record.header_checksum.get());
        if !is_same {
            let offset = self.offset(segment.segment_use, at);
            let problem = if self.scanner.is_unreadable(offset) {
                format!("record {sequence} cannot be read")
            } else {
                format!("record {sequence} is not the one that the footer names")
            };
            let meaning = "the footer's copy is good: nothing is lost";
            self.find(Severity::Damage, "record header", offset, problem, meaning);
        }
        self.log.payload_blocks += sums.len() as u64;
        let first = self.offset(segment.segment_use, at + 1);
        let unreadable: Vec<bool> = (0..sums.len() as u64)
            .map(|index| self.scanner.is_unreadable(first + index * BLOCK_BYTES as u64))
            .collect();
        let bad = |index: usize| {
            let start = index * BLOCK_BYTES;
            unreadable[index] || sums[index].get() != checksum(&payload[start..start + BLOCK_BYTES])
        };
        if !(0..sums.len()).any(bad) {
            return;
        }
        let header = self.scanner.geometry.address(segment.segment_use, at);
        let mut index = 0;
        for entry in entries.iter().filter(|entry| entry.kind().has_payload()) {
            for offset in 0..u64::from(entry.count.get()) {
                if bad(index) {
                    let address = header.plus(1 + index as u64);
                    self.bad_block(sequence, entry, entry.block.get() + offset, address);
                }
                index += 1;
            }
        }
    }

    fn bad_block(&mut self, sequence: u64, entry: &Entry, block: u64, address: LogAddress) {
        let layer = entry.layer.get();
        let slot = self.survey.exports.slot_of(layer);
        let (fate, export) = match slot {
            None => (Fate::Unused, None),
            Some(slot) => {
                let fate = self.fate(sequence, entry, slot, block, address);
                (fate, Some(self.table.exports[slot.index()].name()))
            }
        };
        if let (Some(slot), Fate::FetchedAgain) = (slot, fate) {
            self.damaged[slot.index()][0] += 1;
        }
        if let (Some(slot), Fate::Lost | Fate::OldVersion) = (slot, fate) {
            self.damaged[slot.index()][1] += 1;
        }
        let offset = self.scanner.geometry.device_offset(address);
        let meaning = fate.meaning();
        let problem = if self.scanner.is_unreadable(offset) {
            "it cannot be read"
        } else {
            "the checksum is wrong"
        };
        if let Some(last) = self.findings.last_mut()
            && last.structure == "payload"
            && (last.meaning, &last.export) == (meaning, &export)
            && let (Some((first, count)), Some(start)) = (last.blocks, last.offset_bytes)
            && first + count == block
            && start + count * BLOCK_BYTES as u64 == offset
        {
            last.blocks = Some((first, count + 1));
            return;
        }
        self.findings.push(Finding {
            severity: Severity::Damage,
            structure: "payload",
            offset_bytes: Some(offset),
            export,
            blocks: Some((block, 1)),
            problem: format!("record {sequence}: {problem}"),
            meaning,
        });
    }

    fn fate(
        &self,
        sequence: u64,
        entry: &Entry,
        slot: ExportSlot,
        block: u64,
        address: LogAddress,
    ) -> Fate {
        let kind = entry.kind();
        let version = if kind.is_copy() { entry.version.get() } else { sequence };
        let is_dirty = kind.is_client_data() && version > self.facts.watermarks[slot.index()];
        let size_blocks = self.survey.exports.get(slot).size_blocks();
        let is_live = block < size_blocks
            && self.survey.index.get(slot, block).place() == Place::Stored(address);
        match (is_dirty, is_live) {
            (true, true) => Fate::Lost,
            (true, false) => Fate::OldVersion,
            (false, true) => Fate::FetchedAgain,
            (false, false) => Fate::Unused,
        }
    }

    /// Looks at where the next record would be: at the end of what was accepted, and at the start
    /// of the next segment.
    pub fn end_of_log(&mut self, found: &[FoundSegment]) {
        let geometry = self.scanner.geometry;
        let last = found.iter().rev().find(|segment| segment.accepted.is_some());
        let mut places = vec![geometry.address(self.survey.next_use, 0)];
        if last.is_some_and(|segment| segment.walked.is_some()) {
            places.push(self.survey.end);
        }
        for address in places {
            let offset = geometry.device_offset(address);
            let at = u32::try_from(address.0 % u64::from(geometry.segment_blocks)).expect("small");
            if at >= geometry.payload_blocks {
                continue;
            }
            if self.findings.iter().any(|found| found.offset_bytes == Some(offset)) {
                // Named as damage: what is there is no end of the log.
                continue;
            }
            let mut block = vec![0; BLOCK_BYTES];
            self.scanner.read_at(offset, &mut block);
            self.end_block(geometry.segment_use(address), at, offset, &block);
        }
    }

    fn end_block(&mut self, segment_use: u64, at: u32, offset: u64, block: &[u8]) {
        let superblock = self.scanner.superblock;
        let segment = segment_use % self.scanner.geometry.segments;
        if let Some(header) = self.scanner.header_in(segment, at, block).cloned() {
            let is_next = header.incarnation.get() == self.facts.incarnation()
                && header.segment_use.get() == segment_use;
            if is_next {
                self.unwritten_payload(&header, offset);
            }
            return;
        }
        let incarnation = self.facts.incarnation();
        let nonce = incarnation_nonce(&superblock.secret, incarnation);
        if RecordHeader::resembles(block, &superblock.cache_uuid, offset, nonce) {
            let problem = "a record header was not written whole".into();
            self.find(Severity::Note, "record header", offset, problem, END_OF_LOG);
        }
    }

    /// Names the first block of a record at the end that is not what its header says.
    fn unwritten_payload(&mut self, header: &RecordHeader, offset: u64) {
        let sums = header.payload_checksums();
        let mut payload = vec![0; sums.len() * BLOCK_BYTES];
        self.scanner.read_at(offset + BLOCK_BYTES as u64, &mut payload);
        let mut blocks = sums.iter().zip(payload.chunks_exact(BLOCK_BYTES));
        let Some(bad) = blocks.position(|(sum, block)| sum.get() != checksum(block)) else {
            return;
        };
        let problem = format!("record {} was not written whole", header.sequence);
        let offset = offset + (1 + bad as u64) * BLOCK_BYTES as u64;
        if !self.scanner.is_unreadable(offset) {
            // Else it was named as what it is.
            self.find(Severity::Note, "payload", offset, problem, END_OF_LOG);
        }
    }
}
