//! What a start writes once it knows what the log holds: who is void, the new life, and the footers
//! that are missing.

use super::Rebuild;
use crate::config::ExportOptions;
use crate::error::OpenError;
use crate::facts::LogFacts;
use crate::format::{ExportTable, Footer, FooterBuilder, SUMMARY_OFFSET, Superblock};
use crate::scan::FoundSegment;
use crate::storage::Storage;
use zerocopy::FromZeros;
use zerocopy::little_endian::U64;

impl Rebuild {
    /// The superblock of the life that begins.
    pub(super) fn begin_life(&self, superblock: &mut Superblock, facts: &LogFacts) {
        superblock.incarnation = U64::new(facts.incarnation() + 1);
        superblock.revision = U64::ZERO;
        superblock.first_sequence = U64::new(self.expected);
        superblock.first_use = U64::new(self.next_use);
        superblock.durable = U64::new(self.expected.saturating_sub(1));
        superblock.tail = U64::new(facts.tail.min(self.expected));
        superblock.watermarks = facts.watermarks.map(U64::new);
        superblock.accept_losses(&self.losses, facts.tail);
    }

    /// Origins that are about to be written to, but were cached under another name before: what the
    /// cache holds of them under that name must not come back with it. Whether there was any.
    pub(super) fn void_other_names(
        &self,
        table: &mut ExportTable,
        options: &[ExportOptions],
    ) -> bool {
        let mut voids = false;
        // A start that was cut short may have made void what will only be written now.
        for record in &mut table.exports {
            voids |= record.void_before.get() > self.expected;
            record.void_before = record.void_before.get().min(self.expected).into();
        }
        for (opened, option) in self.recovery.exports.iter().zip(options) {
            for slot in self.exports.in_use().filter(|slot| *slot != opened.slot) {
                let other = &mut table.exports[slot.index()];
                // Not what the index has: it may have been too small for all of it.
                let has_entries = self.has_entries & slot.bit() != 0;
                if has_entries && option.origin.has_name(&other.origin()) {
                    other.void_before = U64::new(self.expected);
                    voids = true;
                }
            }
        }
        voids
    }

    /// Gives every segment without a footer one, so that from now on only the newest segments are
    /// ever walked. What they say was read after a flush (rule 8).
    pub(super) fn write_missing_footers(
        &self,
        storage: &mut dyn Storage,
        superblock: &Superblock,
        found: &[FoundSegment],
        facts: &LogFacts,
    ) -> Result<(), OpenError> {
        for segment in found.iter().filter(|segment| segment.sequence_last > 0) {
            let Some(walked) = &segment.walked else { continue };
            if walked.summary.is_empty() {
                continue;
            }
            let mut room = vec![0; self.geometry.footer_bytes() as usize];
            let end = SUMMARY_OFFSET + walked.summary.len();
            room[SUMMARY_OFFSET..end].copy_from_slice(&walked.summary);
            let mut fields = Footer::new_zeroed();
            fields.cache_uuid = superblock.cache_uuid;
            fields.incarnation = U64::new(segment.incarnation);
            fields.first_sequence = U64::new(segment.first_sequence);
            fields.segment_use = U64::new(segment.segment_use);
            fields.sequence_first = U64::new(segment.sequence_first);
            fields.sequence_last = U64::new(segment.sequence_last);
            fields.durable = U64::new(segment.sequence_last);
            fields.tail = U64::new(facts.tail);
            fields.epochs = segment.epochs.map(U64::new);
            fields.watermarks = facts.watermarks.map(U64::new);
            let bytes = FooterBuilder::seal(&mut room, end, fields, &superblock.secret);
            let address = self.geometry.address(segment.segment_use, self.geometry.payload_blocks);
            storage.write(self.geometry.device_offset(address), &room[..bytes])?;
        }
        storage.flush()?;
        Ok(())
    }
}
