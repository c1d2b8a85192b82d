//! Opening a cache: rules 1, 5, 6, 7, 13, 16 and 36, and what is refused.

use crate::bench::{Bench, Disk, EXPORT_BLOCKS};
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::format::Superblock;
use ringfence_cache::limits::{
    EXPORT_TABLE_OFFSETS, EXPORTS_MAX, SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS,
    footer_bytes,
};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Command, Control, ExportOptions, ExportSlot, FormatOptions, Mode, OpenError, Order, ReadPiece,
    RequestError, Severity, Storage, StorageError, check,
};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
/// Blocks that a leaf of the index maps.
const LEAF_BLOCKS: u64 = 512;
const STEP: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write(u64),
    Flush,
}

/// A disk that notes what is done to it, and fails for ever from some change on.
struct Watched {
    disk: Disk,
    done: Vec<Operation>,
    /// The blocks that were read, each as often as it was.
    blocks_read: Vec<u64>,
    changes_left: usize,
    /// Whether it knows, as a sparse file does, where there are only zeroes.
    knows_zeroes: bool,
    /// Where it cannot be read.
    unreadable: Option<u64>,
}

impl Watched {
    fn new(disk: &Disk) -> Self {
        Self {
            disk: disk.clone(),
            done: Vec::new(),
            blocks_read: Vec::new(),
            changes_left: usize::MAX,
            knows_zeroes: false,
            unreadable: None,
        }
    }

    fn change(&mut self, operation: Operation) -> Result<(), StorageError> {
        let source = std::io::Error::other("the power is gone");
        let failed = StorageError { operation: "write", offset: 0, source };
        self.changes_left = self.changes_left.checked_sub(1).ok_or(failed)?;
        self.done.push(operation);
        Ok(())
    }

    fn changes(&self) -> usize {
        self.done.iter().filter(|operation| **operation != Operation::Read).count()
    }
}

impl Storage for Watched {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        self.done.push(Operation::Read);
        for piece in pieces.iter() {
            let first = piece.offset / BLOCK_BYTES_U64;
            self.blocks_read.extend((first..).take(piece.into.len() / BLOCK_BYTES));
        }
        if let Some(bad) = self.unreadable {
            let touches = |piece: &ReadPiece<'_>| {
                (piece.offset..piece.offset + piece.into.len() as u64).contains(&bad)
            };
            if pieces.iter().any(touches) {
                let source = std::io::Error::other("a bad sector");
                return Err(StorageError { operation: "read", offset: bad, source });
            }
        }
        self.disk.read(pieces)
    }

    fn data_from(&mut self, offset: u64) -> u64 {
        if !self.knows_zeroes {
            return offset;
        }
        let blocks = self.disk.bytes[offset as usize..].chunks_exact(BLOCK_BYTES);
        let zeroes = blocks.take_while(|block| block.iter().all(|byte| *byte == 0)).count();
        offset + (zeroes * BLOCK_BYTES) as u64
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.change(Operation::Write(offset))?;
        self.disk.write(offset, bytes)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.change(Operation::Flush)
    }
}

/// Blocks 0 to 7, dirty, of bytes 1 to 8.
fn dirty() -> Bench {
    let mut bench = Bench::new(&[STRICT]);
    for block in 0..8 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    bench
}

#[test]
fn a_flush_comes_first_and_footers_last_behind_one_superblock_after_the_other() {
    let mut bench = dirty();
    let mut watched = Watched::new(&bench.disk);
    bench.open_on(&mut watched).expect("an open cache");
    assert_eq!(watched.done[0], Operation::Flush, "rule 1");
    let [first, second] = SUPERBLOCK_OFFSETS.map(Operation::Write);
    let footer =
        Operation::Write(SEGMENTS_OFFSET + SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN));
    let last = &watched.done[watched.done.len() - 6..];
    let flush = Operation::Flush;
    let orders = [
        [first, flush, second, flush, footer, flush],
        [second, flush, first, flush, footer, flush],
    ];
    assert!(orders.iter().any(|order| order == last), "rule 5: {last:?}");
}

/// The newest superblock is the only one with the last tail and watermarks where there was no room
/// for a record that carries them.
#[test]
fn the_newest_superblock_stays_until_the_other_one_is_written() {
    let bench = dirty();
    for newest in 0..2 {
        let mut disk = bench.disk.clone();
        // The other copy is of an earlier life.
        let other = SUPERBLOCK_OFFSETS[1 - newest] as usize;
        disk.bytes[other..other + BLOCK_BYTES].fill(0);
        let mut watched = Watched::new(&disk);
        let mut bench = dirty();
        bench.open_on(&mut watched).expect("an open cache");
        let at = |copy: usize| {
            let write = Operation::Write(SUPERBLOCK_OFFSETS[copy]);
            watched.done.iter().position(|operation| *operation == write)
        };
        assert!(at(1 - newest) < at(newest), "{:?}", watched.done);
    }
}

/// Seven steps of 257 blocks fill two segments and a third of another one.
#[test]
fn after_a_start_all_segments_have_footers_and_the_next_reads_none_of_their_records() {
    let mut bench = Bench::new(&[STRICT]);
    for step in 0..7 {
        bench.write(0, step * STEP, STEP, 1).expect("written");
    }
    bench.flush().expect("flushed");
    let footer_at = SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN);
    // Of the segments with records, by segment: how many blocks of records were read.
    let record_blocks = |watched: &Watched| {
        let mut blocks = [0; 3];
        for block in &watched.blocks_read {
            let Some(offset) = (block * BLOCK_BYTES_U64).checked_sub(SEGMENTS_OFFSET) else {
                continue;
            };
            let (segment, at) = (offset / SEGMENT_BYTES_MIN, offset % SEGMENT_BYTES_MIN);
            if segment < 3 && at < footer_at {
                blocks[segment as usize] += 1;
            }
        }
        blocks
    };
    let mut first = Watched::new(&bench.disk);
    bench.open_on(&mut first).expect("an open cache");
    assert!(record_blocks(&first)[2] > 257, "the last one is walked: {:?}", record_blocks(&first));
    for _ in 0..2 {
        let mut later = Watched::new(&first.disk);
        bench.open_on(&mut later).expect("an open cache");
        assert_eq!(record_blocks(&later), [1; 3], "the first block of each");
        first = later;
    }
}

#[test]
fn a_start_that_is_cut_short_anywhere_is_a_crash_like_any_other() {
    let mut bench = dirty();
    let expected: Vec<_> = (1..=8).map(Some).collect();
    let mut whole = Watched::new(&bench.disk);
    bench.open_on(&mut whole).expect("an open cache");
    assert!(whole.changes() >= 6, "a footer and the superblocks: {:?}", whole.done);
    for cut in 0..whole.changes() {
        let mut bench = dirty();
        let mut watched = Watched { changes_left: cut, ..Watched::new(&bench.disk) };
        let failed = bench.open_on(&mut watched).expect_err("the power is gone");
        assert!(matches!(failed, OpenError::Storage(_)), "{failed:?}");
        let damage = check(&mut watched).expect("a cache").findings;
        let damage = damage.iter().filter(|finding| finding.severity == Severity::Damage);
        assert_eq!(damage.count(), 0, "after {cut} changes");
        bench.disk = watched.disk;
        bench.restart();
        assert_eq!(bench.read(0, 8), expected, "rule 7, after {cut} changes");
    }
}

#[test]
fn a_format_that_is_cut_short_anywhere_leaves_no_cache_or_a_new_one() {
    let bench = dirty();
    let options = FormatOptions {
        uuid: [9; 16],
        secret: *b"another sixteen!",
        segment_bytes: SEGMENT_BYTES_MIN,
    };
    let mut whole = Watched::new(&bench.disk);
    ringfence_cache::format(&mut whole, &options).expect("formatted");
    assert!(whole.changes() > 4, "{:?}", whole.done);
    for cut in 1..=whole.changes() {
        let mut watched = Watched { changes_left: cut, ..Watched::new(&bench.disk) };
        let whole_now = ringfence_cache::format(&mut watched, &options).is_ok();
        assert_eq!(whole_now, cut == whole.changes());
        match ringfence_cache::describe(&mut watched.disk) {
            Ok(found) if found.uuid == [9; 16] => assert!(found.exports.is_empty()),
            // One superblock is gone, and the other is as good as it was.
            Ok(found) => assert!(cut == 1 && found.exports[0].dirty_bytes == 8 * 4096),
            Err(refused) => assert!(matches!(refused, OpenError::NotFormatted), "{refused}"),
        }
    }
}

#[test]
fn a_clean_stop_leaves_nothing_that_a_kill_does_not() {
    let mut bench = dirty();
    let killed = bench.disk.clone();
    assert_eq!(bench.control(Control::Stop), Some(Ok(())));
    // Rule 7: there is no other way in, so nothing may depend on how it ended.
    for disk in [killed, bench.disk.clone()] {
        bench.disk = disk;
        bench.restart();
        bench.turn();
        assert_eq!(bench.counter(ExportCounter::DirtyBytes), 8 * 4096);
        assert_eq!(bench.read(0, 8), (1..=8).map(Some).collect::<Vec<_>>());
    }
}

#[test]
fn leaves_that_run_out_cost_clean_blocks_and_never_dirty_ones() {
    let mut bench = Bench::new(&[STRICT]);
    for leaf in 0..4 {
        bench.write_block(leaf * LEAF_BLOCKS, 0x10 + leaf as u8);
    }
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    for leaf in 1..3 {
        bench.write_block(leaf * LEAF_BLOCKS, 0x20 + leaf as u8);
    }
    bench.flush().expect("flushed");
    bench.config.index_bytes = Some(2 * 4096);
    bench.restart();
    bench.turn();
    assert_eq!(bench.engine_counter(Counter::LeavesTotal), 2);
    // Rule 6: the dirty ones are there without an origin, the others only with one.
    bench.faults.origin_reads = true;
    assert_eq!(bench.read(LEAF_BLOCKS, 1), [Some(0x21)]);
    assert_eq!(bench.read(2 * LEAF_BLOCKS, 1), [Some(0x22)]);
    bench.config.index_bytes = Some(4096);
    let mut disk = bench.disk.clone();
    let refused = bench.open_on(&mut disk).expect_err("one leaf for two");
    assert!(matches!(refused, OpenError::IndexTooSmall { leaves: 1 }), "{refused:?}");
    bench.config.index_bytes = None;
    bench.faults.origin_reads = false;
    bench.restart();
    assert_eq!(bench.read(LEAF_BLOCKS, 1), [Some(0x21)], "a refusal loses nothing");
    assert_eq!(bench.read(3 * LEAF_BLOCKS, 1), [Some(0x13)]);
}

/// Of 80 leaves 70 are dirty, and stay so.
#[test]
fn a_clean_leaf_is_found_wherever_it_is() {
    let mut bench = Bench::sized(&[STRICT, STRICT], 80 * LEAF_BLOCKS, 0);
    bench.config.index_bytes = Some(80 * BLOCK_BYTES_U64);
    bench.restart();
    bench.faults.origin_writes_of = Some(1);
    for leaf in 0..70 {
        bench.write(1, leaf * LEAF_BLOCKS * BLOCK_BYTES_U64, 4096, 1).expect("written");
    }
    for leaf in 0..10 {
        bench.write_block(leaf * LEAF_BLOCKS, 2);
    }
    assert_eq!(bench.control(Control::Drain(Some(ExportSlot(0)))), Some(Ok(())));
    // Nothing else happens that would make the engine look again.
    let another = bench.begin_write_to(0, 10 * LEAF_BLOCKS * BLOCK_BYTES_U64, 4096, 3);
    assert_eq!(bench.answer(another).map(|answer| answer.result), Some(Ok(())));
}

#[test]
fn an_export_whose_origin_is_away_leaves_the_others_a_part_of_the_index() {
    let mut bench = Bench::sized(&[STRICT, STRICT], 20 * LEAF_BLOCKS, 0);
    bench.config.index_bytes = Some(16 * BLOCK_BYTES_U64);
    bench.restart();
    bench.faults.origin_writes_of = Some(1);
    let write = |bench: &mut Bench, export, leaf| {
        let ticket = bench.begin_write_to(export, leaf * LEAF_BLOCKS * BLOCK_BYTES_U64, 4096, 1);
        bench.pass(5_000_000_000);
        bench.answer(ticket).expect("answered").result
    };
    let taken = (0..20).take_while(|leaf| write(&mut bench, 1, *leaf).is_ok()).count();
    assert_eq!(taken, 14, "all but what the other one keeps");
    assert_eq!(write(&mut bench, 1, 15), Err(RequestError::NoSpace));
    for leaf in [0, 7, 13] {
        assert_eq!(write(&mut bench, 0, leaf), Ok(()));
    }
}

#[test]
fn what_has_a_second_copy_need_not_be_readable() {
    let mut bench = dirty();
    for offset in SUPERBLOCK_OFFSETS.into_iter().chain(EXPORT_TABLE_OFFSETS) {
        let mut watched = Watched { unreadable: Some(offset), ..Watched::new(&bench.disk) };
        let report = check(&mut watched).expect("a cache");
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert_eq!(report.findings[0].offset_bytes, Some(offset));
        bench.open_on(&mut watched).expect("the other copy is good");
        assert_eq!(bench.read(0, 8), (1..=8).map(Some).collect::<Vec<_>>());
    }
}

#[test]
fn a_format_leaves_nothing_that_other_programs_would_recognise() {
    let mut disk = Bench::new(&[STRICT]).disk;
    disk.bytes.fill(0x55);
    let options = FormatOptions {
        uuid: [8; 16],
        secret: *b"sixteen secrets!",
        segment_bytes: SEGMENT_BYTES_MIN,
    };
    // Not a whole number of segments, nor of blocks.
    disk.bytes.resize(disk.bytes.len() + (1 << 20) + 512, 0x55);
    ringfence_cache::format(&mut disk, &options).expect("formatted");
    let (start, end) = (&disk.bytes[..SEGMENTS_OFFSET as usize], disk.bytes.len() / 4096 * 4096);
    assert!(start.chunks(64).all(|bytes| bytes != [0x55; 64]));
    assert!(disk.bytes[end - (1 << 20)..end].iter().all(|byte| *byte == 0));
}

#[test]
fn a_cache_that_others_may_only_read_is_not_written_to() {
    let mut bench = dirty();
    for offset in SUPERBLOCK_OFFSETS {
        let block = &mut bench.disk.bytes[offset as usize..][..BLOCK_BYTES];
        let mut superblock = Superblock::parse(block).expect("intact");
        superblock.features_read_only = 1.into();
        block.copy_from_slice(superblock.seal());
    }
    let mut watched = Watched::new(&bench.disk);
    let refused = bench.open_on(&mut watched).expect_err("a feature of later versions");
    assert!(matches!(refused, OpenError::Newer { .. }), "{refused:?}");
    assert!(watched.done.iter().all(|done| !matches!(done, Operation::Write(_))));
    assert_eq!(check(&mut watched).expect("it may be read").findings, []);
}

#[test]
fn an_origin_does_not_get_another_name_while_it_lacks_something() {
    let mut bench = dirty();
    let mut renamed = bench.options[0].clone();
    (renamed.name, renamed.uuid) = ("renamed".to_owned(), [9; 16]);
    let known = std::mem::replace(&mut bench.options, vec![renamed.clone()]);
    let mut watched = Watched::new(&bench.disk);
    let refused = bench.open_on(&mut watched).expect_err("owed").to_string();
    assert!(refused.contains("holds data of export export-0 that this origin"), "{refused}");
    assert!(watched.done.iter().all(|done| !matches!(done, Operation::Write(_))));
    // The same origin, of which a stronger name is known by now.
    bench.options[0].origin.name = "a stronger name".to_owned();
    bench.options[0].origin.also = vec!["origin-0".to_owned()];
    let refused = bench.open_on(&mut Watched::new(&bench.disk)).expect_err("owed").to_string();
    assert!(refused.contains("holds data of export export-0 that this origin"), "{refused}");
    bench.options = known;
    bench.restart();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.options = vec![renamed];
    bench.restart();
}

/// Life after life one origin under two names in turn: slots 0 and 1.
#[test]
fn an_export_that_gets_its_name_back_shows_nothing_of_before() {
    let mut bench = dirty();
    let known = bench.options[0].clone();
    let renamed = ExportOptions { name: "renamed".to_owned(), uuid: [9; 16], ..known.clone() };
    bench.origins.push(Vec::new());
    for (slot, options, byte) in [(1, &renamed, 50), (0, &known, 60), (1, &renamed, 70)] {
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
        bench.origins.swap(0, 1);
        bench.options = vec![options.clone()];
        bench.restart();
        let read = |bench: &mut Bench| {
            let ticket = bench.begin_read(slot, 0, 8, false);
            assert_eq!(bench.now_or_never(ticket).result, Ok(()));
            bench.bytes_of(ticket)
        };
        let origin = (0..8).map(|block| bench.origin(slot, block)).collect::<Vec<_>>();
        assert_eq!(read(&mut bench), origin);
        let fetched = bench.counter_of(slot, ExportCounter::MissBytes);
        bench.write(slot, 3 * BLOCK_BYTES_U64, BLOCK_BYTES_U64, byte).expect("written");
        assert_eq!(bench.control(Control::Flush), Some(Ok(())));
        // Further starts under the same name forget nothing.
        bench.restart();
        bench.restart();
        let mut expected = origin;
        expected[3] = byte;
        assert_eq!(read(&mut bench), expected);
        assert_eq!((fetched, bench.counter_of(slot, ExportCounter::MissBytes)), (8 * 4096, 0));
        assert_eq!(check(&mut Watched::new(&bench.disk)).expect("a cache").findings, []);
    }
}

/// A start under another name was cut short, and then the log lost its end: numbers that were void
/// are used again.
#[test]
fn a_name_that_was_not_given_makes_nothing_void_that_comes_later() {
    let mut bench = dirty();
    let known = bench.options[0].clone();
    let before = bench.disk.clone();
    for block in 10..15 {
        bench.write_block(block, 9);
        bench.flush().expect("flushed");
    }
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.options =
        vec![ExportOptions { name: "renamed".to_owned(), uuid: [9; 16], ..known.clone() }];
    // The flush of the start, and both slots of the table, each with its flush.
    let mut cut = Watched { changes_left: 5, ..Watched::new(&bench.disk) };
    bench.open_on(&mut cut).expect_err("the power is gone");
    let tables = EXPORT_TABLE_OFFSETS[0] as usize..SEGMENTS_OFFSET as usize;
    bench.disk = before;
    bench.disk.bytes[tables.clone()].copy_from_slice(&cut.disk.bytes[tables]);
    bench.options = vec![known];
    bench.restart();
    bench.write_block(3, 60);
    bench.flush().expect("flushed");
    bench.restart();
    assert_eq!(bench.read(3, 1), [Some(60)]);
}

/// Zeroes take no room in the log, nor in the index.
#[test]
fn an_export_that_gets_its_name_back_shows_no_zeroes_of_before() {
    let mut bench = Bench::new(&[STRICT]);
    let known = bench.options[0].clone();
    let renamed = ExportOptions { name: "renamed".to_owned(), uuid: [9; 16], ..known.clone() };
    bench.submit(0, Command::Trim { fua: true }, 0, EXPORT_BLOCKS * BLOCK_BYTES_U64);
    bench.settle();
    bench.origins.push(Vec::new());
    for (slot, options) in [(1, renamed), (0, known)] {
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
        bench.origins.swap(0, 1);
        bench.options = vec![options];
        bench.restart();
        if slot == 1 {
            bench.write(slot, 0, BLOCK_BYTES_U64, 7).expect("written");
        }
    }
    assert_eq!(bench.read_whole(0, 2), Ok(vec![7, 0]));
}

#[test]
fn an_export_whose_origin_lacks_something_is_not_made_read_only() {
    let mut bench = dirty();
    let mut watched = Watched::new(&bench.disk);
    bench.options[0].mode = Mode::ReadOnly;
    let refused = bench.open_on(&mut watched).expect_err("dirty").to_string();
    assert!(refused.contains("serve it writable and drain it first"), "{refused}");
    assert!(watched.done.iter().all(|done| !matches!(done, Operation::Write(_))));
    bench.options[0].mode = Mode::Writeback;
    bench.restart();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.options[0].mode = Mode::ReadOnly;
    bench.restart();
    assert_eq!(bench.read(0, 8), (1..=8).map(Some).collect::<Vec<_>>());
}

/// Two leaves, both clean: the one that makes room is the one that the step counted on.
#[test]
fn a_step_survives_that_its_own_leaf_makes_room() {
    let zeroes = Command::WriteZeroes { fua: false, no_hole: false };
    for from_the_start in [true, false] {
        for command in [None, Some(zeroes)] {
            let mut bench = Bench::new(&[STRICT]);
            let two_leaves = Some(2 * BLOCK_BYTES_U64);
            if from_the_start {
                bench.config.index_bytes = two_leaves;
                bench.restart();
            }
            bench.write_block(0, 1);
            bench.write_block(2 * LEAF_BLOCKS, 2);
            assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
            let (first, blocks) = (LEAF_BLOCKS - 100, 200);
            match command {
                Some(command) => {
                    bench.submit(0, command, first * BLOCK_BYTES_U64, blocks * BLOCK_BYTES_U64);
                }
                None => bench
                    .write(0, first * BLOCK_BYTES_U64, blocks * BLOCK_BYTES_U64, 3)
                    .expect("written"),
            }
            bench.flush().expect("flushed");
            bench.config.index_bytes = two_leaves;
            bench.restart();
            let expected = Some(if command.is_none() { 3 } else { 0 });
            assert_eq!(bench.read(first, blocks), vec![expected; blocks as usize]);
            assert_eq!(bench.read(0, 1), [Some(1)]);
        }
    }
}

#[test]
fn what_an_export_has_destaged_says_nothing_of_another() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    for export in 0..2 {
        bench.write(export, 0, 4096, 7 + export).expect("written");
    }
    bench.faults.origin_writes_of = Some(1);
    bench.pass(2_000_000_000);
    bench.flush().expect("flushed");
    bench.restart();
    bench.turn();
    // Rule 13.
    assert_eq!(bench.counter_of(0, ExportCounter::DirtyBytes), 0);
    assert_eq!(bench.counter_of(1, ExportCounter::DirtyBytes), 4096);
    bench.faults.origin_writes_of = None;
    bench.origin_log.clear();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.origin_log, [("write", 1, 0), ("flush", 1, 0)]);
}

#[test]
fn an_export_that_is_not_configured_keeps_what_is_dirty_through_laps() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    bench.write(0, 0, 4096, 7).expect("written");
    bench.write(1, 0, 4096, 8).expect("written");
    bench.flush().expect("flushed");
    let both = bench.options.clone();
    bench.options.remove(0);
    bench.restart();
    bench.turn();
    assert_eq!(bench.counter_of(0, ExportCounter::DirtyBytes), 4096, "rule 16: counted");
    for at in 0..80 {
        bench.write(1, at % 7 * 256 * 4096, 1 << 20, 100).expect("written");
        bench.pass(1_000_000_000);
    }
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) > 13, "the log has wrapped");
    bench.flush().expect("flushed");
    bench.options = both;
    bench.faults.origin_writes_of = None;
    bench.restart();
    assert_eq!(bench.read(0, 1), [Some(7)]);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.origin(0, 0), 7);
}

#[test]
fn a_device_that_shrank_is_refused_before_any_write_and_a_larger_one_is_not() {
    let mut bench = dirty();
    let mut watched = Watched::new(&bench.disk);
    watched.disk.bytes.truncate(bench.disk.bytes.len() - 4096);
    let refused = bench.open_on(&mut watched).expect_err("a smaller device");
    assert!(matches!(refused, OpenError::Shrunk { .. }), "{refused:?}");
    assert!(watched.done.iter().all(|done| !matches!(done, Operation::Write(_))), "rule 36");
    let mut larger = Watched::new(&bench.disk);
    larger.disk.bytes.resize(bench.disk.bytes.len() + (8 << 20), 0x55);
    bench.open_on(&mut larger).expect("its excess is ignored");
    assert!(larger.disk.bytes[bench.disk.bytes.len()..].iter().all(|byte| *byte == 0x55));
}

#[test]
fn exports_that_the_cache_cannot_take_are_refused_before_any_write() {
    let mut bench = dirty();
    let known = bench.options[0].clone();
    let other = |index: usize| {
        let mut option = known.clone();
        option.name = format!("other-{index}");
        option.uuid = [100 + index as u8; 16];
        option
    };
    let mut empty = other(0);
    empty.origin.size_bytes = 0;
    let mut grown = known.clone();
    grown.origin.size_bytes += 4096;
    let mut foreign = known.clone();
    foreign.origin.name = "another one".to_owned();
    let many: Vec<_> = (0..EXPORTS_MAX).map(other).collect();
    for (options, message) in [
        (vec![empty], "its origin is empty"),
        (vec![grown], "the cache knows it with 8388608"),
        (vec![foreign], "its origin is another one, but the cache holds data of origin-0"),
        (many, "the cache knows 64 exports already"),
    ] {
        let mut watched = Watched::new(&bench.disk);
        bench.options = options;
        let refused = bench.open_on(&mut watched).expect_err(message).to_string();
        assert!(refused.contains(message), "{refused}");
        assert!(watched.done.iter().all(|done| !matches!(done, Operation::Write(_))));
    }
    bench.options = vec![known];
    bench.restart();
    assert_eq!(bench.read(0, 1), [Some(1)]);
    const { assert!(EXPORT_BLOCKS * 4096 == 8_388_608) };
}

/// What names an origin has depends on the kernel too, which may be a later one.
#[test]
fn an_origin_is_recognised_by_any_of_its_names() {
    let mut bench = dirty();
    let origin = &mut bench.options[0].origin;
    (origin.name, origin.also) = ("a stronger name".to_owned(), vec!["origin-0".to_owned()]);
    bench.restart();
    assert_eq!(bench.read(0, 1), [Some(1)]);
    // The one that was recorded is the one that counts.
    bench.options[0].origin.also.clear();
    let refused = bench.open_on(&mut Watched::new(&bench.disk)).expect_err("another origin");
    assert!(refused.to_string().contains("holds data of origin-0"), "{refused}");
}

/// The segment in use holds one record of eight blocks; the next one was never used.
#[test]
fn what_a_device_knows_to_be_zeroes_is_not_searched() {
    let mut bench = dirty();
    let segment_blocks = (SEGMENT_BYTES_MIN / BLOCK_BYTES_U64) as usize;
    // Before the start, which writes a footer.
    let [all, some] = [false, true].map(|knows_zeroes| {
        let mut watched = Watched { knows_zeroes, ..Watched::new(&bench.disk) };
        assert_eq!(check(&mut watched).expect("a cache").findings, []);
        watched.blocks_read.len()
    });
    assert!(all - some > 3 * segment_blocks / 2, "check: {some} blocks instead of {all}");
    let [all, some] = [false, true].map(|knows_zeroes| {
        let mut watched = Watched { knows_zeroes, ..Watched::new(&bench.disk) };
        bench.open_on(&mut watched).expect("an open cache");
        assert_eq!(bench.read(7, 1), [Some(8)]);
        watched.blocks_read.len()
    });
    assert!(all - some > 3 * segment_blocks / 2, "start: {some} blocks instead of {all}");
}

/// Three records of 257 blocks in the segment in use. The last one is read whole, since nothing
/// says that it was durable; of the others only the header is wanted.
#[test]
fn records_known_to_be_durable_are_walked_over_and_not_read() {
    let mut bench = Bench::new(&[STRICT]);
    for step in 0..3 {
        bench.write(0, step * STEP, STEP, 1).expect("written");
        bench.flush().expect("flushed");
    }
    let mut watched = Watched { knows_zeroes: true, ..Watched::new(&bench.disk) };
    bench.open_on(&mut watched).expect("an open cache");
    let first = SEGMENTS_OFFSET / BLOCK_BYTES_U64;
    let records = first..first + 2 * 257;
    let read = watched.blocks_read.iter().filter(|block| records.contains(block)).count();
    assert!(read < 64, "{read} blocks of two records");
}
