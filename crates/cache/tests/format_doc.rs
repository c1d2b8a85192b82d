//! `docs/format.md` against the types: whoever reads the page can read a device.

use ringfence_cache::format::{
    BODY_BYTES, ENTRY_BYTES, Entry, EntryFlags, EntryKind, ExportRecord, ExportTable,
    FORMAT_VERSION, Footer, RecordHeader, SUMMARY_OFFSET, SummaryRecord, Superblock,
};
use ringfence_cache::limits::{
    EXPORT_TABLE_OFFSETS, EXPORTS_MAX, SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS, footer_bytes,
};
use std::mem::offset_of;

const PAGE: &str = include_str!("../../../docs/format.md");

/// Fields of a type that make up one row of a table, in order.
struct Row {
    /// What the row's description starts with.
    label: String,
    /// Offset and size of each field; empty where the fields are private.
    fields: Vec<(usize, usize)>,
}

/// A row whose fields the crate keeps to itself: its place follows from its neighbours.
fn private(label: impl Into<String>) -> Row {
    Row { label: label.into(), fields: Vec::new() }
}

fn size_behind<T, U>(_field: fn(&T) -> &U) -> usize {
    size_of::<U>()
}

macro_rules! row {
    ($label:literal, $structure:ty, $($field:ident),+) => {
        Row {
            label: $label.to_owned(),
            fields: vec![$((
                offset_of!($structure, $field),
                size_behind(|value: &$structure| &value.$field),
            )),+],
        }
    };
}

/// A table's row: offset, size (none for `…`) and description.
struct Written {
    offset: usize,
    size: Option<usize>,
    text: String,
}

/// The text below a heading that starts so, up to the next heading.
fn section(heading: &str) -> &'static str {
    let start = PAGE.find(heading).unwrap_or_else(|| panic!("{heading} is missing"));
    let rest = &PAGE[start + heading.len()..];
    &rest[..rest.find("\n#").unwrap_or(rest.len())]
}

fn table(heading: &str) -> Vec<Written> {
    let cells = |line: &'static str| -> Option<Written> {
        let mut cells = line.strip_prefix('|')?.splitn(3, '|').map(str::trim);
        let offset = cells.next()?.parse().ok()?;
        let size = cells.next()?.parse().ok();
        let text = cells.next()?.trim_end_matches('|').trim().to_owned();
        Some(Written { offset, size, text })
    };
    section(heading).lines().filter_map(cells).collect()
}

/// Compares a table with a type, row by row. Returns where the table ends.
fn compare(heading: &str, rows: &[Row]) -> usize {
    let written = table(heading);
    assert_eq!(written.len(), rows.len(), "{heading}: rows");
    let mut end = 0;
    for (found, row) in written.iter().zip(rows) {
        let name = format!("{heading}, \"{}\"", found.text);
        assert!(found.text.starts_with(&row.label), "{name}: expected \"{}\"", row.label);
        assert_eq!(found.offset, end, "{name}: a gap or an overlap");
        end += found.size.unwrap_or(0);
        let mut at = found.offset;
        for &(offset, size) in &row.fields {
            assert_eq!(offset, at, "{name}: where the field is");
            at += size;
        }
        if let (Some(size), false) = (found.size, row.fields.is_empty()) {
            assert_eq!(at - found.offset, size, "{name}: the field's size");
        }
    }
    end
}

/// The number in front of " bytes" in a heading, such as `Superblock (4096 bytes, two copies)`.
fn bytes_in_heading(name: &str) -> usize {
    let heading = format!("### {name} (");
    let start = PAGE.find(&heading).unwrap_or_else(|| panic!("{heading} is missing"));
    let rest = &PAGE[start + heading.len()..];
    let (number, _) = rest.split_once(" bytes").expect("a size in the heading");
    number.parse().unwrap_or_else(|_| panic!("{heading}{number}: no number"))
}

#[test]
fn the_superblock_is_as_written() {
    let end = compare(
        "### Superblock",
        &[
            private("checksum"),
            private(format!("version: {FORMAT_VERSION}")),
            private("magic `ringfenc`"),
            row!(
                "features",
                Superblock,
                features_compatible,
                features_read_only,
                features_incompatible
            ),
            row!("cache UUID", Superblock, cache_uuid),
            row!("secret", Superblock, secret),
            row!("size of the device", Superblock, device_bytes),
            row!("size of a segment", Superblock, segment_bytes),
            row!("number of segments", Superblock, segments),
            row!("incarnation", Superblock, incarnation),
            row!("first sequence", Superblock, first_sequence),
            row!("tail", Superblock, tail),
            row!("watermarks", Superblock, watermarks),
            row!("revision", Superblock, revision),
            row!("accepted losses", Superblock, accepted_losses),
            row!("the first use", Superblock, first_use),
            row!("durable", Superblock, durable),
            private("reserved"),
        ],
    );
    assert_eq!(end, size_of::<Superblock>());
    assert_eq!(bytes_in_heading("Superblock"), size_of::<Superblock>());
}

#[test]
fn a_record_header_is_as_written() {
    let end = compare(
        "### Record header",
        &[
            private("checksum"),
            private("magic `rfre`"),
            row!("cache UUID", RecordHeader, cache_uuid),
            row!("incarnation", RecordHeader, incarnation),
            row!("nonce", RecordHeader, nonce),
            row!("first sequence", RecordHeader, first_sequence),
            row!("use of the segment", RecordHeader, segment_use),
            row!("own offset", RecordHeader, device_offset),
            row!("sequence", RecordHeader, sequence),
            row!("durable", RecordHeader, durable),
            row!("tail", RecordHeader, tail),
            row!("wall-clock time", RecordHeader, wall_ns),
            row!("epoch starts", RecordHeader, epoch_starts),
            row!("payload blocks", RecordHeader, payload_blocks),
            row!("entries", RecordHeader, entry_count),
            private("reserved"),
            row!("epochs", RecordHeader, epochs),
            row!("watermarks", RecordHeader, watermarks),
            row!("entries of 40 bytes, then one CRC32C", RecordHeader, body),
        ],
    );
    assert_eq!(end, size_of::<RecordHeader>());
    assert_eq!(end, offset_of!(RecordHeader, body) + BODY_BYTES);
    assert_eq!(bytes_in_heading("Record header"), size_of::<RecordHeader>());
}

#[test]
fn an_entry_is_as_written() {
    let (superseded, no_hole) = (EntryFlags::SUPERSEDED.0, EntryFlags::NO_HOLE.0);
    let index_only = EntryFlags::INDEX_ONLY.0;
    let flags =
        format!("flags: {superseded} superseded copy, {no_hole} no hole, {index_only} index only");
    let end = compare(
        "### Entry",
        &[
            row!("first block", Entry, block),
            row!("version", Entry, version),
            row!("epoch", Entry, epoch),
            row!("layer", Entry, layer),
            row!("number of blocks", Entry, count),
            private("kind"),
            private(flags),
            row!("ordinal", Entry, ordinal),
            private("reserved"),
        ],
    );
    assert_eq!(end, size_of::<Entry>());
    assert_eq!(end, ENTRY_BYTES);
    assert_eq!(bytes_in_heading("Entry"), size_of::<Entry>());
}

#[test]
fn a_footer_is_as_written() {
    let end = compare(
        "### Footer",
        &[
            private("checksum of this header"),
            private("magic `rffo`"),
            row!("cache UUID", Footer, cache_uuid),
            row!("incarnation", Footer, incarnation),
            private("nonce"),
            row!("first sequence", Footer, first_sequence),
            row!("use of the segment", Footer, segment_use),
            row!("first and last sequence", Footer, sequence_first, sequence_last),
            row!("durable", Footer, durable),
            row!("tail", Footer, tail),
            row!("bytes of summary", Footer, summary_bytes),
            private("checksum of the summary"),
            private("reserved"),
            row!("epochs", Footer, epochs),
            row!("watermarks", Footer, watermarks),
            private("summary: per record 40 bytes"),
        ],
    );
    assert_eq!(end, size_of::<Footer>());
    assert_eq!(end, SUMMARY_OFFSET);
    assert_eq!(size_of::<SummaryRecord>(), 40);
    assert!(PAGE.contains("fixed end of a segment, a 64th of it"));
    assert_eq!(footer_bytes(16 << 20), (16 << 20) / 64);
}

#[test]
fn the_export_table_is_as_written() {
    let (table, record) = (size_of::<ExportTable>(), size_of::<ExportRecord>());
    let header = offset_of!(ExportTable, exports);
    assert_eq!(bytes_in_heading("Export table"), table);
    let text = section("### Export table");
    assert!(text.contains(&format!("A header of {header} bytes")), "{text}");
    assert!(text.contains(&format!("{EXPORTS_MAX} records of {record} bytes")), "{text}");
    assert_eq!(header + EXPORTS_MAX * record, table);
}

#[test]
fn the_fixed_places_are_as_written() {
    let kib = |offset: u64| if offset == 0 { "0".into() } else { format!("{} KiB", offset >> 10) };
    let [first, second] = SUPERBLOCK_OFFSETS.map(kib);
    let superblocks = format!("two copies, at {first} and {second})");
    assert!(PAGE.contains(&superblocks), "{superblocks}");
    let [first, second] = EXPORT_TABLE_OFFSETS.map(kib);
    let tables = format!("two slots, at {first} and {second})");
    assert!(PAGE.contains(&tables), "{tables}");
    let ruler = PAGE.lines().find(|line| line.starts_with(" device ")).expect("a ruler");
    let mark = |offset: u64| match offset {
        0 => "0".to_owned(),
        offset if offset.is_multiple_of(1 << 20) => format!("{}M", offset >> 20),
        offset => format!("{}K", offset >> 10),
    };
    let places = [&SUPERBLOCK_OFFSETS[..], &EXPORT_TABLE_OFFSETS, &[SEGMENTS_OFFSET]].concat();
    let marks: Vec<_> = places.into_iter().map(mark).collect();
    assert_eq!(ruler.split_whitespace().skip(1).collect::<Vec<_>>(), marks);
}

#[test]
fn the_kinds_of_entries_are_as_written() {
    let kinds = [
        (EntryKind::Write, "write"),
        (EntryKind::Zero, "zero"),
        (EntryKind::Fill, "fill"),
        (EntryKind::Reappend, "re-append"),
        (EntryKind::DirtyCopy, "dirty copy"),
        (EntryKind::DirtyZeroCopy, "dirty zero copy"),
        (EntryKind::Bad, "bad"),
    ];
    let list: Vec<_> = kinds.map(|(kind, name)| format!("{} {name}", kind.code())).into();
    let sentence = format!("Kinds: {}.", list.join(", "));
    assert!(PAGE.contains(&sentence), "{sentence}");
}
