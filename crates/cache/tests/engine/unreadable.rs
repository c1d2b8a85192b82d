//! Blocks of the cache device that cannot be read while a cache is opened: rule 4, decision 0013.

use crate::bench::{Bench, Disk};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, footer_bytes};
use ringfence_cache::units::{BLOCK_BYTES, BLOCK_BYTES_U64};
use ringfence_cache::{
    Control, Mode, OpenError, Order, ReadPiece, Recovery, Severity, Storage, StorageError, check,
    describe,
};
use std::ops::Range;

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const MIB: u64 = 1 << 20;
const RECORD_BYTES: u64 = 257 * BLOCK_BYTES_U64;

/// A disk of which some blocks cannot be read, or that fails so many reads.
struct Failing {
    disk: Disk,
    /// Bytes from the start.
    unreadable: Vec<u64>,
    /// Which reads of log blocks fail, counted from zero.
    failing_reads: Range<usize>,
    reads: usize,
}

impl Failing {
    fn at(bench: &Bench, unreadable: &[u64]) -> Self {
        let unreadable = unreadable.to_vec();
        Self { disk: bench.disk.clone(), unreadable, failing_reads: 0..0, reads: 0 }
    }
}

impl Storage for Failing {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read(&mut self, pieces: &mut [ReadPiece<'_>]) -> Result<(), StorageError> {
        let error = |offset| {
            let source = std::io::Error::from_raw_os_error(5);
            Err(StorageError { operation: "read", offset, source })
        };
        if let Some(first) = pieces.first().filter(|first| first.offset >= SEGMENTS_OFFSET) {
            self.reads += 1;
            if self.failing_reads.contains(&(self.reads - 1)) {
                return error(first.offset);
            }
        }
        let of = |piece: &ReadPiece<'_>| piece.offset..piece.offset + piece.into.len() as u64;
        let bad = |at: &&u64| pieces.iter().any(|piece| of(piece).contains(at));
        if let Some(&at) = self.unreadable.iter().find(bad) {
            return error(at);
        }
        self.disk.read(pieces)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let written = offset..offset + bytes.len() as u64;
        // What is written anew can be read.
        self.unreadable.retain(|at| !written.contains(at));
        self.disk.write(offset, bytes)
    }

    fn flush(&mut self) -> Result<(), StorageError> {
        self.disk.flush()
    }
}

/// Opens the cache with a failing disk, and leaves the disk as it was.
fn open(bench: &mut Bench, failing: &mut Failing) -> Result<Recovery, OpenError> {
    let opened = bench.open_on(failing);
    if opened.is_ok() {
        bench.disk = failing.disk.clone();
    }
    opened
}

fn accept(bench: &mut Bench, failing: &mut Failing) -> Recovery {
    bench.config.accept_loss = true;
    let recovery = open(bench, failing).expect("the loss is accepted");
    bench.config.accept_loss = false;
    recovery
}

fn segment(number: u64) -> u64 {
    SEGMENTS_OFFSET + number * SEGMENT_BYTES_MIN
}

fn footer(number: u64) -> u64 {
    segment(number) + SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)
}

/// So many steps of 257 blocks of bytes 1, 2 …, each flushed: three in a segment.
fn steps(count: u64) -> Bench {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.origin_writes = true;
    for step in 0..count {
        bench.write(0, step * MIB, MIB, step as u8 + 1).expect("written");
        bench.flush().expect("flushed");
    }
    bench
}

fn content(bench: &mut Bench, steps: u64) -> Vec<Option<u8>> {
    (0..steps).map(|step| bench.read(step * 256 + 255, 1)[0]).collect()
}

fn all(steps: u8) -> Vec<Option<u8>> {
    (1..=steps).map(Some).collect()
}

#[test]
fn a_segment_is_known_by_its_footer_or_by_its_headers() {
    let mut bench = steps(7);
    // All three segments have footers now.
    bench.restart();
    for number in 0..3 {
        let mut places = vec![segment(number), footer(number)];
        if number < 2 {
            // The second block of the summary, and the second header.
            places.extend([footer(number) + BLOCK_BYTES_U64, segment(number) + RECORD_BYTES]);
        }
        for at in places {
            let mut failing = Failing::at(&bench, &[at]);
            let report = check(&mut failing).expect("a report");
            let named = report.findings.iter().find(|found| found.severity == Severity::Damage);
            let named = named.unwrap_or_else(|| panic!("{at}: {:?}", report.findings));
            assert!(named.problem.contains("cannot be read"), "{named:?}");
            let footer_is_bad = at >= footer(number);
            let recovery = bench.open_on(&mut failing).expect("there is a second copy");
            assert_eq!((recovery.lost, recovery.records), (None, 7), "{at}");
            assert_eq!(content(&mut bench, 7), all(7));
            assert_eq!(failing.unreadable.is_empty(), footer_is_bad, "a footer is written anew");
        }
    }
}

#[test]
fn a_read_that_fails_once_changes_nothing() {
    let mut bench = steps(7);
    let mut whole = Failing::at(&bench, &[]);
    bench.open_on(&mut whole).expect("an open cache");
    assert!(whole.reads > 5, "{}", whole.reads);
    for read in 0..whole.reads {
        let mut failing = Failing::at(&bench, &[]);
        failing.failing_reads = read..read + 1;
        let recovery = bench.open_on(&mut failing).expect("read again");
        assert_eq!((recovery.lost, recovery.records), (None, 7));
        assert_eq!(content(&mut bench, 7), all(7));
        assert!(failing.disk.bytes == whole.disk.bytes, "read {read}");
    }
}

#[test]
fn what_has_no_second_copy_is_damage_and_is_named() {
    let mut bench = steps(7);
    bench.restart();
    let both = [segment(1), footer(1)];
    let mut failing = Failing::at(&bench, &both);
    let before = failing.disk.bytes.clone();
    match open(&mut bench, &mut failing) {
        Err(OpenError::DurableDamaged { first: 4, last: 6, unreadable: true }) => {}
        other => panic!("{other:?}"),
    }
    assert!(failing.disk.bytes == before, "nothing was written");
    let report = check(&mut failing).expect("a report");
    assert!(report.findings.iter().any(|found| found.problem.contains("records 4 to 6")));
    let recovery = accept(&mut bench, &mut failing);
    assert_eq!(recovery.lost, Some((4, 6)));
    let expected = [1, 2, 3, 0xee, 0xee, 0xee, 7].map(Some);
    assert_eq!(content(&mut bench, 7), expected);
}

/// Where the next record would be, or the payload of the last: nobody knows whether it was flushed.
#[test]
fn what_cannot_be_read_is_not_the_end_of_the_log() {
    for (written, at, left) in [
        // The last record's header, its payload, and where a next one would be.
        (5, segment(1) + RECORD_BYTES, 4),
        (5, segment(1) + RECORD_BYTES + 9 * BLOCK_BYTES_U64, 4),
        (5, segment(1) + 2 * RECORD_BYTES, 5),
        (5, segment(2), 5),
        // The only record of the newest segment, and of the log.
        (4, segment(1), 3),
        (1, segment(0), 0),
    ] {
        let mut bench = steps(written);
        let mut failing = Failing::at(&bench, &[at]);
        let before = failing.disk.bytes.clone();
        match open(&mut bench, &mut failing) {
            Err(OpenError::EndUnreadable(error)) => assert_eq!(error.offset, at),
            other => panic!("{written}, {at}: {other:?}"),
        }
        assert!(failing.disk.bytes == before, "nothing was written");
        let report = check(&mut failing).expect("a report");
        let named = report.findings.iter().find(|found| found.offset_bytes == Some(at));
        let named = named.unwrap_or_else(|| panic!("{at}: {:?}", report.findings));
        assert_eq!((named.severity, named.structure), (Severity::Damage, "log"), "{named:?}");
        assert!(describe(&mut failing).is_err(), "dirty data is not told too low");

        failing.unreadable.clear();
        let recovery = bench.open_on(&mut failing).expect("it was not for long");
        assert_eq!((recovery.lost, recovery.records), (None, written));

        let mut failing = Failing::at(&bench, &[at]);
        let recovery = accept(&mut bench, &mut failing);
        assert_eq!(recovery.records, left, "{written}, {at}");
        let mut expected = all(written as u8);
        expected[left as usize..].fill(Some(0xee));
        assert_eq!(content(&mut bench, written), expected);
        // The new life is behind it.
        bench.write(0, 0, MIB, 99).expect("written");
        bench.flush().expect("flushed");
        let recovery = bench.try_restart().expect("what was accepted is not asked for again");
        assert_eq!(recovery.lost, None);
        assert_eq!(bench.read(0, 1), [Some(99)]);
    }
}

/// The device goes away in the midst of a start, for some reads or for all: whatever was read by
/// then, nothing that was flushed is cut off.
#[test]
fn a_device_that_goes_away_during_a_start_does_not_end_the_log() {
    for (written, reads) in [(1, 1), (1, 20), (1, 60), (3, 20), (5, 20), (5, usize::MAX / 2)] {
        let mut bench = steps(written);
        for first in 0.. {
            let mut failing = Failing::at(&bench, &[]);
            failing.failing_reads = first..first + reads;
            let opened = bench.open_on(&mut failing);
            match opened {
                Ok(recovery) => assert_eq!(recovery.records, written, "{reads} from {first} on"),
                Err(_) => {
                    assert!(failing.disk.bytes == bench.disk.bytes, "{reads} from {first} on");
                }
            }
            if failing.reads <= first {
                assert!(first > 1, "nothing has failed");
                break;
            }
        }
        bench.try_restart().expect("it is back");
        assert_eq!(content(&mut bench, written), all(written as u8));
    }
}

#[test]
fn a_header_that_a_later_one_knows_to_be_durable_is_damage() {
    let mut bench = steps(5);
    let mut failing = Failing::at(&bench, &[segment(0) + RECORD_BYTES]);
    // Its segment has a footer, which cannot be read either.
    failing.unreadable.push(footer(0));
    match open(&mut bench, &mut failing) {
        Err(OpenError::DurableDamaged { first: 2, unreadable: true, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(accept(&mut bench, &mut failing).lost, Some((2, 3)));
    let expected = [1, 0xee, 0xee, 4, 5].map(Some);
    assert_eq!(content(&mut bench, 5), expected);
}

#[test]
fn what_lies_behind_the_end_or_in_payload_known_to_be_durable_need_not_be_readable() {
    let mut bench = steps(5);
    for at in [
        segment(0) + 9 * BLOCK_BYTES_U64,
        segment(1) + 9 * BLOCK_BYTES_U64,
        segment(1) + 2 * RECORD_BYTES + BLOCK_BYTES_U64,
        segment(2) + 7 * BLOCK_BYTES_U64,
        segment(5),
        footer(1),
        footer(2),
    ] {
        let mut failing = Failing::at(&bench, &[at]);
        let recovery = bench.open_on(&mut failing).expect("an open cache");
        assert_eq!((recovery.lost, recovery.records), (None, 5), "{at}");
    }
    // What was torn ends the log, whatever else of it cannot be read.
    let last = segment(1) + RECORD_BYTES;
    bench.disk.bytes[last as usize + 5 * BLOCK_BYTES] ^= 1;
    let mut failing = Failing::at(&bench, &[last + 9 * BLOCK_BYTES_U64]);
    assert_eq!(bench.open_on(&mut failing).expect("an open cache").records, 4);
}

/// A part of the device is away for a while. The log is cut in front of it, and the numbers there
/// are used again: what is back later is void, and so is what it says.
#[test]
fn what_was_away_says_nothing_once_it_is_back() {
    let mut bench = steps(7);
    bench.faults.origin_writes = false;
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.faults.origin_writes = true;
    let away: Vec<u64> = (segment(1)..segment(3)).step_by(BLOCK_BYTES).collect();
    let mut failing = Failing::at(&bench, &away);
    let refused = open(&mut bench, &mut failing).expect_err("the end is away");
    assert!(matches!(refused, OpenError::EndUnreadable(_)), "{refused}");
    assert_eq!(accept(&mut bench, &mut failing).records, 3);
    bench.write(0, 0, MIB, 9).expect("written");
    bench.flush().expect("flushed");
    let recovery = bench.try_restart().expect("nothing of the newest life is missing");
    assert_eq!((recovery.lost, recovery.records), (None, 4));
    assert_eq!(bench.read(255, 1), [Some(9)]);
    bench.faults.origin_writes = false;
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.origin(0, 255), 9, "no watermark of the void records counts");
}
