//! From a write to the origin: rules 9, 14, 15, 20, 22, 23, 24, 27, 30 and 33.

use crate::bench::{Bench, EXPORT_BLOCKS};
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::format::{ENTRY_BYTES, EntryKind};
use ringfence_cache::limits::{
    SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, SEGMENTS_RESERVED, STEP_BLOCKS_MAX,
};
use ringfence_cache::{Buffer, Command, Control, Mode, Order, RequestError};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const RELAXED: (Mode, Order) = (Mode::Writeback, Order::Relaxed);
const THROUGH: (Mode, Order) = (Mode::Writethrough, Order::Strict);
const NOWHERE: Buffer = Buffer { offset: 0, length: 0 };
const WRITE: Command = Command::Write { buffer: NOWHERE, fua: false };
const TRIM: Command = Command::Trim { fua: false };
const DRAIN: Control = Control::Drain(None);
const SECOND: u64 = 1_000_000_000;
/// An origin's content where nobody wrote.
const OLD: u8 = 0xee;

/// Kind and length of each entry of each record in the first segment.
fn records(bench: &Bench) -> Vec<Vec<(u8, usize)>> {
    let mut at = SEGMENTS_OFFSET as usize;
    let mut found = Vec::new();
    while bench.disk.bytes[at + 4..at + 8] == *b"rfre" {
        let number = |offset: usize| {
            let bytes = &bench.disk.bytes[at + offset..][..2];
            usize::from(u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        let entries = (0..number(106)).map(|index| 1152 + index * ENTRY_BYTES);
        let entries = entries.map(|entry| (bench.disk.bytes[at + entry + 32], number(entry + 28)));
        found.push(entries.collect());
        at += 4096 * (1 + number(104));
    }
    found
}

fn begin_write(bench: &mut Bench, block: u64, fua: bool) {
    bench.submit(0, Command::Write { buffer: NOWHERE, fua }, block * 4096, 4096);
}

/// Fills the log with dirty data until a write is not answered; returns how many were.
fn fill(bench: &mut Bench, export: u8) -> u64 {
    for count in 0..100 {
        if bench.try_write(export, count % 7 * (1 << 20), 1 << 20).is_none() {
            return count;
        }
    }
    panic!("dirty data has no limit");
}

#[test]
fn a_step_lies_in_one_record_whatever_its_size_and_place() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write(0, 512, 1 << 20, 7).expect("written");
    bench.flush().expect("flushed");
    let records = records(&bench);
    let write = EntryKind::Write.code();
    let steps = records.iter().flatten().filter(|(kind, _)| *kind == write);
    assert_eq!(steps.collect::<Vec<_>>(), [&(write, STEP_BLOCKS_MAX)], "rule 9");
}

#[test]
fn of_two_versions_in_one_record_the_later_one_counts() {
    let mut bench = Bench::new(&[STRICT]);
    for byte in [1, 2, 3] {
        bench.begin_write_to(0, 0, 4096, byte);
    }
    bench.flush().expect("flushed");
    assert_eq!(records(&bench), [[(EntryKind::Write.code(), 1); 3]], "they share a record");
    bench.restart();
    assert_eq!(bench.read(0, 1), [Some(3)], "rule 9");
    assert_eq!(bench.control(DRAIN), Some(Ok(())));
    assert_eq!(bench.origin(0, 0), 3);
}

#[test]
fn an_answered_fua_write_is_the_last_of_its_epoch() {
    let mut bench = Bench::new(&[STRICT]);
    begin_write(&mut bench, 10, false);
    begin_write(&mut bench, 20, true);
    bench.settle();
    begin_write(&mut bench, 30, false);
    // An operator's flush makes all of it durable and ends no epoch.
    assert_eq!(bench.control(Control::Flush), Some(Ok(())));
    assert_eq!(bench.origin_log, []);
    assert_eq!(bench.control(DRAIN), Some(Ok(())));
    // Rule 14, and rule 19: the origin is flushed between the epochs.
    let [first, second] = [("write", 0, 10), ("write", 0, 20)];
    assert!(bench.origin_log[..2] == [first, second] || bench.origin_log[..2] == [second, first]);
    let rest = [("flush", 0, 0), ("write", 0, 30), ("flush", 0, 0)];
    assert_eq!(bench.origin_log[2..], rest);
}

#[test]
fn an_epoch_that_nobody_ends_is_ended_all_the_same() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write_block(10, 1);
    // A client that goes on asking, so that nothing is idle.
    for _ in 0..60 {
        bench.pass(SECOND / 10);
        bench.read_whole(10, 1).expect("read");
    }
    assert_eq!(bench.origin(0, 10), 1, "rule 14: after 5 s");
}

#[test]
fn a_log_full_of_dirty_data_keeps_what_reclaim_needs_and_goes_on() {
    let mut bench = Bench::new(&[STRICT, RELAXED]);
    bench.faults.origin_writes = true;
    let written = fill(&mut bench, 0) + fill(&mut bench, 1);
    assert!(written > 16, "{written} MiB");
    bench.turn();
    let dirty: u64 = [0, 1].map(|of| bench.counter_of(of, ExportCounter::DirtyBytes)).iter().sum();
    let segments = bench.engine_counter(Counter::SegmentsFree)
        + bench.engine_counter(Counter::SegmentsUsed)
        + bench.engine_counter(Counter::SegmentsReclaiming);
    let log_bytes = segments * SEGMENT_BYTES_MIN;
    assert!(dirty <= log_bytes / 4 * 3, "rule 15: {dirty} of {log_bytes}");
    let free = bench.engine_counter(Counter::SegmentsFree);
    assert!(free >= u64::from(SEGMENTS_RESERVED), "rule 27: {free} segments free");
    bench.faults.origin_writes = false;
    bench.pass(20 * SECOND);
    assert_eq!(bench.write(0, 0, 1 << 20, 9), Ok(()), "and it goes on");
    assert_eq!(bench.write(1, 0, 1 << 20, 9), Ok(()));
}

/// Changes scattered blocks, as many at once as there are tickets, until one is not answered.
/// Returns how many were.
fn fill_scattered(bench: &mut Bench, export: u8, command: Command) -> u64 {
    for round in 0..10_000 {
        let blocks = (0..16).map(|at| (round * 16 + at) * 7 % EXPORT_BLOCKS);
        let tickets = blocks.map(|block| bench.submit(export, command, block * 4096, 4096));
        let tickets: Vec<_> = tickets.collect();
        bench.settle();
        let answered = tickets.iter().filter(|ticket| bench.answer(**ticket).is_some()).count();
        if answered < tickets.len() {
            return round * 16 + answered as u64;
        }
    }
    panic!("dirty data has no limit");
}

#[test]
fn small_writes_that_share_a_header_are_charged_for_one() {
    let mut bench = Bench::with_segments(40, &[STRICT], EXPORT_BLOCKS, 0);
    bench.is_checked = false;
    bench.faults.origin_writes = true;
    let log_blocks = 40 * SEGMENT_BYTES_MIN / 4096;
    let written = fill_scattered(&mut bench, 0, WRITE);
    let allowed = log_blocks / 10 * 6..log_blocks / 4 * 3;
    assert!(allowed.contains(&written), "rule 15: {written} of {log_blocks}");
    // A start counts no less.
    bench.flush().expect("flushed");
    bench.restart();
    assert!(fill_scattered(&mut bench, 0, WRITE) < 64, "rule 15");
    // What leaves is no longer charged.
    let before = bench.counter(ExportCounter::DirtyBytes);
    bench.faults.origin_writes = false;
    while bench.counter(ExportCounter::DirtyBytes) > before / 2 {
        bench.pass(SECOND / 100);
    }
    bench.faults.origin_writes = true;
    let left = (before - bench.counter(ExportCounter::DirtyBytes)) / 4096;
    let again = fill_scattered(&mut bench, 0, WRITE);
    assert!(again.abs_diff(left) < left / 50, "rule 15: {again} for {left} that have left");
}

/// The second export has room, whatever the first one has filled the log with.
fn goes_on(bench: &mut Bench) {
    for round in 0..100 {
        let ticket = bench.begin_write_to(1, 0, 1 << 20, round);
        bench.idle(SECOND);
        let result = bench.answer(ticket).map(|answer| answer.result);
        assert_eq!(result, Some(Ok(())), "rule 15: {round}");
    }
}

/// Whether an export whose origin is away leaves room for another one, once it has made as many
/// small changes as it may.
fn leaves_room_after(command: Command, segments: u64) {
    let mut bench = Bench::with_segments(segments, &[STRICT, STRICT], EXPORT_BLOCKS, 0);
    bench.is_checked = false;
    bench.faults.origin_writes_of = Some(0);
    let changes = fill_scattered(&mut bench, 0, command);
    assert!(changes > 1000, "{changes}");
    bench.pass(10 * SECOND);
    goes_on(&mut bench);
}

#[test]
fn small_writes_leave_room_for_the_others() {
    [13, 26].into_iter().for_each(|segments| leaves_room_after(WRITE, segments));
}

#[test]
fn zeroes_that_fill_footers_leave_room_for_the_others() {
    [13, 26].into_iter().for_each(|segments| leaves_room_after(TRIM, segments));
}

#[test]
fn what_lies_together_in_the_log_is_read_at_once_and_written_by_block() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.origin_writes = true;
    let blocks = [40, 12, 41, 900, 13, 7, 42, 300, 12];
    for (block, byte) in blocks.into_iter().zip(1..) {
        bench.begin_write_to(0, block * 4096, 4096, byte);
    }
    bench.flush().expect("flushed");
    bench.restart();
    bench.faults.origin_writes = false;
    bench.pass(20 * SECOND);
    // What was written over within the epoch is not read: it parts the run in two.
    assert!(bench.device_reads.ends_with(&[1, 7]), "{:?}", bench.device_reads);
    let writes: Vec<_> = bench.origin_log.iter().filter(|(what, ..)| *what == "write").collect();
    let firsts: Vec<_> = writes.iter().map(|(.., first)| *first).collect();
    assert_eq!(firsts, [7, 12, 40, 300, 900], "neighbours together, in the origin's order");
    let found = [7, 12, 13, 40, 41, 42, 300, 900].map(|block| bench.origin(0, block));
    assert_eq!(found, [6, 9, 5, 1, 3, 7, 8, 4]);
}

#[test]
fn in_a_small_log_too_an_origin_that_is_away_leaves_room_for_the_others() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    let written = fill(&mut bench, 0);
    assert!(written > 8, "{written} MiB");
    goes_on(&mut bench);
}

#[test]
fn what_is_not_served_leaves_room_for_an_export_that_comes_later() {
    let mut bench = Bench::with_segments(26, &[STRICT, STRICT], 8192, 0);
    let both = bench.options.clone();
    bench.options.truncate(1);
    bench.restart();
    bench.faults.origin_writes_of = Some(0);
    let written = fill(&mut bench, 0);
    assert!(written > 8, "{written} MiB");
    bench.flush().expect("flushed");
    bench.options = both[1..].to_vec();
    bench.restart();
    goes_on(&mut bench);
}

#[test]
fn an_export_may_be_given_less() {
    let mut bench = Bench::new(&[STRICT]);
    bench.options[0].dirty_bytes_max = Some(4 << 20);
    bench.restart();
    bench.faults.origin_writes = true;
    fill(&mut bench, 0);
    let dirty = bench.counter(ExportCounter::DirtyBytes);
    assert!((1 << 20..=4 << 20).contains(&dirty), "rule 15: {dirty}");
}

#[test]
fn after_a_failed_flush_of_the_origin_all_of_it_is_written_again() {
    let mut bench = Bench::new(&[STRICT]);
    for block in [3, 40, 500] {
        bench.write_block(block, 7);
    }
    bench.flush().expect("flushed");
    bench.faults.origin_flushes = true;
    bench.pass(2 * SECOND);
    assert_eq!([3, 40, 500].map(|block| bench.origin(0, block)), [7; 3], "it was written once");
    assert!(bench.counter(ExportCounter::DirtyBytes) >= 3 * 4096, "and is no cleaner for it");
    // An origin that fails a flush may have lost whatever it was given.
    bench.origins[0].fill(OLD);
    bench.faults.origin_flushes = false;
    bench.pass(20 * SECOND);
    assert_eq!([3, 40, 500].map(|block| bench.origin(0, block)), [7; 3], "rule 20");
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0);
}

/// An origin that takes everything and keeps nothing: what is written to it again and again gives
/// no room, and it is not asked more and more often.
#[test]
fn what_is_written_again_is_no_progress() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.origin_flushes = true;
    let waiting = (0..100).find_map(|count| {
        let ticket = bench.begin_write_to(0, count % 7 * (1 << 20), 1 << 20, 7);
        bench.settle();
        bench.answer(ticket).is_none().then_some(ticket)
    });
    let waiting = waiting.expect("dirty data has a limit");
    let wait_ns = bench.options[0].wait_ns_max;
    let before = bench.counter(ExportCounter::OriginFlushes);
    for _ in 0..100 {
        bench.pass(wait_ns / 50);
    }
    let answer = bench.answer(waiting).expect("nobody waits longer than that");
    assert_eq!(answer.result, Err(RequestError::NoSpace));
    let flushes = bench.counter(ExportCounter::OriginFlushes) - before;
    assert!((2..8).contains(&flushes), "{flushes} flushes within {} s", 2 * wait_ns / SECOND);
}

/// One failure late in a long epoch, and all of it is written again, slowly: nobody who waits for
/// room is told that there is none.
#[test]
fn one_failure_is_no_standstill() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.hold_origin_zeroes = true;
    for block in 0..6 {
        bench.submit(0, Command::Trim { fua: false }, (2 * block + 1) * 4096, 4096);
    }
    let waiting = (0..100).find_map(|count| {
        let ticket = bench.begin_write_to(0, count % 7 * (1 << 20), 1 << 20, 7);
        bench.settle();
        bench.answer(ticket).is_none().then_some(ticket)
    });
    let waiting = waiting.expect("dirty data has a limit");
    for piece in 0..10 {
        bench.pass(SECOND * 6 / 10);
        assert_eq!(bench.zeroes_held(), 4096, "{piece}");
        assert_eq!(bench.answer(waiting), None, "{piece}");
        bench.faults.origin_writes = piece == 4;
        bench.take_zeroes();
        bench.faults.origin_writes = false;
    }
    bench.faults.hold_origin_zeroes = false;
    bench.take_zeroes();
    bench.faults.hold_origin_zeroes = false;
    bench.pass(SECOND);
    assert_eq!(bench.answer(waiting).map(|answer| answer.result), Some(Ok(())));
}

/// So many writes of 1 MiB an origin has between two flushes while clients wait for room: the
/// middle of all that happens in a while.
fn origin_writes_per_flush(order: (Mode, Order), write_ns: u64, flush_ns: u64) -> usize {
    let mut bench = Bench::with_segments(64, &[order], 64 * 256, 0);
    bench.is_checked = false;
    bench.faults.origin_write_ns = write_ns;
    bench.faults.origin_flush_ns = flush_ns;
    let mut steps = (0..64).cycle();
    let mut begin = |bench: &mut Bench| {
        bench.begin_write_to(0, steps.next().expect("a cycle") << 20, 1 << 20, 7)
    };
    let mut waiting = Vec::new();
    for turn in 0..1100 {
        // The log is full before the origin takes anything, and still is at the end.
        bench.faults.origin_writes = turn < 1000;
        if turn == 1000 {
            bench.skip(SECOND);
        }
        waiting.retain(|ticket| bench.answer(*ticket).is_none());
        while waiting.len() < 4 {
            waiting.push(begin(&mut bench));
        }
        bench.turn();
    }
    let is_flush = |(what, ..): &(&str, u8, u64)| *what == "flush";
    let mut writes: Vec<_> = bench.origin_log.split(is_flush).map(<[_]>::len).collect();
    writes.sort_unstable();
    assert!(bench.counter(ExportCounter::DirtyBytes) > 150 << 20, "the log stays full");
    writes[writes.len() / 2]
}

#[test]
fn while_writes_wait_the_watermark_keeps_up_unless_flushes_are_slow() {
    const MS: u64 = 1_000_000;
    for order in [STRICT, RELAXED] {
        let often = origin_writes_per_flush(order, 10 * MS, 0);
        assert!(often <= 4, "{order:?}: a batch is 4 MiB: {often} writes");
        let seldom = origin_writes_per_flush(order, 10 * MS, 5 * MS);
        assert!(
            (8..=12).contains(&seldom),
            "{order:?}: sixteen times 5 ms, and what is left of a batch: {seldom}"
        );
    }
}

/// The watermark of relaxed order passes a version whose successor is still on its way. A drain
/// that was asked for between the two is answered when the origin has the successor.
#[test]
fn what_a_round_has_passed_over_is_drained_at_its_end() {
    const MIB: u64 = 1 << 20;
    let mut bench = Bench::with_segments(64, &[RELAXED], 64 * 256, 0);
    bench.faults.origin_writes = true;
    bench.write_block(5, 1);
    bench.write(0, MIB, MIB, 2).expect("written");
    assert_eq!(bench.control(DRAIN), None, "its origin is away");
    for at in 2..20 {
        bench.write(0, at * MIB, MIB, 3).expect("written");
    }
    bench.write_block(5, 4);
    bench.flush().expect("flushed");
    let waiting = loop {
        let ticket = bench.begin_write_to(0, 20 * MIB, MIB, 5);
        bench.settle();
        if bench.answer(ticket).is_none() {
            break ticket;
        }
    };
    bench.faults.origin_writes = false;
    bench.origin_log.clear();
    bench.pass(SECOND);
    let is_answered = bench.answer(waiting).is_some_and(|answer| answer.result.is_ok());
    assert!(is_answered, "there is room again");
    let place = |wanted| bench.origin_log.iter().position(|found| *found == wanted);
    let (flushed, written) = (place(("flush", 0, 0)), place(("write", 0, 5)));
    assert!(
        flushed < written && flushed.is_some(),
        "a flush in its midst: {flushed:?} {written:?}"
    );
    assert_eq!(bench.origins_then[0][5 * 4096], 4, "at the answer");
}

/// What the watermark passes in the midst of a round is no reason to stop there, nor is what is
/// written meanwhile one to wait for.
#[test]
fn a_drain_of_a_large_round_waits_for_nobody_else() {
    const MIB: u64 = 1 << 20;
    for is_durable in [false, true] {
        let mut bench = Bench::with_segments(128, &[RELAXED], 80 * 256, 0);
        bench.is_checked = false;
        bench.config.destage_idle_ns = 3600 * SECOND;
        bench.config.destage_age_ns = 3600 * SECOND;
        bench.restart();
        bench.faults.origin_writes = true;
        // The origin is flushed after 64 MiB, and that is where the watermark is then.
        for at in 0..64 {
            bench.write(0, at * MIB, MIB, 1).expect("written");
        }
        assert_eq!(bench.control(DRAIN), None, "its origin is away");
        if is_durable {
            for at in 64..80 {
                bench.write(0, at * MIB, MIB, 2).expect("written");
            }
        }
        bench.write_block(5, 3);
        if is_durable {
            bench.flush().expect("flushed");
        }
        bench.faults.origin_writes = false;
        bench.pass(60 * SECOND);
        let drained = bench.origins_then.first().expect("it was answered");
        assert_eq!(drained[6 * 4096], 1);
        assert_eq!(drained[5 * 4096], if is_durable { 3 } else { 1 });
    }
}

#[test]
fn a_drain_ends_however_full_the_log_stays() {
    let mut bench = Bench::with_segments(64, &[RELAXED], 64 * 256, 0);
    bench.is_checked = false;
    bench.faults.origin_writes = true;
    let mut steps = (0..64).cycle();
    let mut waiting = Vec::new();
    for turn in 0..4000 {
        if turn == 1000 {
            assert_eq!(bench.control(DRAIN), None, "its origin is away");
            bench.faults.origin_writes = false;
            bench.skip(SECOND);
        }
        if !bench.origins_then.is_empty() {
            let dirty = bench.counter(ExportCounter::DirtyBytes);
            assert!(dirty > 150 << 20, "the log was full all the time: {dirty}");
            return;
        }
        waiting.retain(|ticket| bench.answer(*ticket).is_none());
        while waiting.len() < 4 {
            let step = steps.next().expect("a cycle");
            waiting.push(bench.begin_write_to(0, step << 20, 1 << 20, 7));
        }
        bench.turn();
    }
    panic!("the drain was never answered");
}

#[test]
fn a_drain_that_was_answered_is_not_taken_back_by_a_power_cut() {
    let mut bench = Bench::new(&[STRICT]);
    bench.disk.flushed = Some(bench.disk.bytes.clone());
    bench.write_block(3, 7);
    assert_eq!(bench.control(DRAIN), Some(Ok(())));
    bench.power_cut_at_answer();
    bench.turn();
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0, "rule 22");
    // Somebody edits the origin without the cache: that must not be overwritten.
    bench.origins[0][3 * 4096] = 99;
    bench.origin_log.clear();
    bench.pass(20 * SECOND);
    assert_eq!(bench.control(DRAIN), Some(Ok(())));
    assert_eq!(bench.origin(0, 3), 99);
}

#[test]
fn writethrough_is_answered_when_the_origin_has_it() {
    let mut bench = Bench::new(&[THROUGH]);
    bench.write_block(3, 7);
    assert_eq!(bench.origin(0, 3), 7, "rule 23");
    bench.flush().expect("flushed");
    assert!(bench.origin_log.iter().any(|(what, ..)| *what == "flush"), "{:?}", bench.origin_log);
    bench.restart();
    bench.turn();
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0, "the watermark was durable");
}

#[test]
fn writethrough_that_fails_is_eio_and_stays_dirty() {
    let mut bench = Bench::new(&[THROUGH]);
    bench.faults.origin_writes = true;
    assert_eq!(bench.write(0, 3 * 4096, 4096, 7), Err(RequestError::Io), "rule 23");
    assert_eq!(bench.read(3, 1), [Some(7)], "the outcome was unknown, now it shows");
    bench.turn();
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 4096);
    bench.faults.origin_writes = false;
    bench.pass(20 * SECOND);
    assert_eq!(bench.origin(0, 3), 7);
}

#[test]
fn a_trim_zeroes_whole_blocks_and_leaves_partial_edges_alone() {
    let mut bench = Bench::new(&[STRICT]);
    for block in 0..5 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.submit(0, Command::Trim { fua: false }, 2048, 3 * 4096);
    assert_eq!(bench.read(0, 5), [1, 0, 0, 4, 5].map(Some), "rule 24");
    assert_eq!(bench.control(DRAIN), Some(Ok(())));
    assert_eq!([0, 1, 2, 3].map(|block| bench.origin(0, block)), [1, 0, 0, 4]);
    assert!(bench.origin_log.contains(&("zero", 0, 1)), "{:?}", bench.origin_log);
    // All of the export: an entry, and no payload.
    let before = bench.engine_counter(Counter::DeviceWrittenBytes);
    bench.submit(0, Command::Trim { fua: true }, 0, EXPORT_BLOCKS * 4096);
    bench.settle();
    let written = bench.engine_counter(Counter::DeviceWrittenBytes) - before;
    assert!(written <= 4 * 4096, "{written} bytes for zeroes");
    assert_eq!(bench.read(4, 1), [Some(0)]);
}

#[test]
fn writes_that_wait_for_the_cache_device_do_not_send_older_ones_to_the_origin() {
    let mut bench = Bench::with_segments(64, &[STRICT], 64 * 256, 0);
    bench.write_block(0, 1);
    bench.flush().expect("flushed");
    bench.faults.hold_device_writes = true;
    let steps = (0..12).map(|step| bench.begin_write_to(0, step << 20, 1 << 20, 2));
    let last = steps.last().expect("a ticket");
    bench.settle();
    assert_eq!(bench.answer(last), None, "the memory for the log is full");
    bench.pass(SECOND / 4);
    assert_eq!(bench.origin_log, [], "nothing is old, the log is nearly empty");
    bench.release_device_writes();
    bench.settle();
    assert_eq!(bench.answer(last).map(|answer| answer.result), Some(Ok(())));
    assert_eq!(bench.origin_log, []);
    bench.pass(10 * SECOND);
    assert!(!bench.origin_log.is_empty(), "in its own time");
}

#[test]
fn writes_that_wait_for_the_cache_device_do_not_run_out_of_patience() {
    let mut bench = Bench::with_segments(64, &[STRICT], 64 * 256, 0);
    bench.faults.hold_device_writes = true;
    let steps = (0..12).map(|step| bench.begin_write_to(0, step << 20, 1 << 20, 2));
    let last = steps.last().expect("a ticket");
    let patience_ns = bench.options[0].wait_ns_max;
    bench.pass(patience_ns + SECOND);
    bench.pass(patience_ns + SECOND);
    assert_eq!(bench.answer(last), None, "the log is nearly empty");
    bench.release_device_writes();
    bench.settle();
    assert_eq!(bench.answer(last).map(|answer| answer.result), Some(Ok(())));
}

#[test]
fn what_is_being_fetched_is_not_destaged() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, 5, 2, false);
    bench.settle();
    bench.write_block(5, 7);
    bench.write_block(900, 8);
    bench.flush().expect("flushed");
    bench.pass(10 * SECOND);
    let answer = bench.answer(ticket).map(|answer| answer.result);
    assert_eq!(answer, Some(Err(RequestError::Io)), "who asked has waited long enough");
    assert_eq!(bench.origin(0, 5), OLD, "rule 30: the origin may still answer");
    bench.release_origin_reads();
    bench.pass(10 * SECOND);
    assert_eq!((bench.origin(0, 5), bench.origin(0, 900)), (7, 8));
    assert_eq!(bench.read(5, 2), [Some(7), Some(OLD)], "and the fill outranks nothing");
}

/// The head of a partial write is read at once, its tail much later; in between a client writes
/// another part of the head, the origin gets it, and it is forgotten.
#[test]
fn what_a_partial_write_has_read_counts_no_more_once_it_is_overwritten() {
    let mut bench = Bench::sized(&[STRICT], EXPORT_BLOCKS, 0);
    bench.config.index_bytes = Some(2 * 4096);
    bench.restart();
    bench.faults.hold_origin_read_of = Some(512);
    let slow = bench.begin_write_to(0, 511 * 4096 + 2048, 4096, 1);
    bench.settle();
    bench.write(0, 511 * 4096, 512, 9).expect("written");
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    // Two leaves for four: the oldest is forgotten.
    for block in [1024, 1536] {
        bench.write_block(block, 5);
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    }
    bench.release_origin_reads();
    bench.settle();
    assert_eq!(bench.answer(slow).expect("answered").result, Ok(()));
    let ticket = bench.begin_read(0, 511, 1, false);
    let block = bench.whole_block(ticket);
    assert_eq!([block[0], block[511], block[512], block[2047]], [9, 9, 0xee, 0xee]);
    assert_eq!([block[2048], block[4095]], [1, 1]);
}

/// A fetch of the block holds destage up as an origin would that does not answer (rule 30).
#[test]
fn writethrough_is_eio_as_long_as_the_origin_is_late() {
    let mut bench = Bench::new(&[THROUGH]);
    bench.faults.hold_origin_reads = true;
    bench.begin_read(0, 100, 1, false);
    let first = bench.begin_write_to(0, 100 * 4096, 4096, 1);
    bench.pass(40 * SECOND);
    assert_eq!(bench.answer(first).expect("answered").result, Err(RequestError::Io));
    assert_eq!(bench.write(0, 3 * 4096, 4096, 2), Err(RequestError::Io));
    assert_eq!(bench.flush(), Err(RequestError::Io));
    bench.release_origin_reads();
    bench.pass(10 * SECOND);
    assert_eq!(bench.write(0, 4 * 4096, 4096, 3), Ok(()));
    assert_eq!([100, 3, 4].map(|block| bench.origin(0, block)), [1, 2, 3]);
}

/// It waited for room longer than anybody waits for an origin; the origin took something all along.
#[test]
fn a_partial_write_that_waited_for_room_may_still_ask_the_origin() {
    let mut bench = Bench::new(&[STRICT]);
    bench.options[0].dirty_bytes_max = Some(1 << 20);
    bench.restart();
    bench.faults.origin_writes = true;
    bench.write(0, 0, 1 << 20, 1).expect("written");
    let waiting = bench.begin_write_to(0, 1500 * 4096 + 512, 1024, 9);
    bench.pass(SECOND);
    assert_eq!(bench.answer(waiting), None);
    bench.faults.origin_writes = false;
    bench.faults.origin_flushes = true;
    bench.pass(SECOND * 6 / 10);
    assert_eq!(bench.answer(waiting), None, "the origin took it, but not for good");
    bench.pass(SECOND * 6 / 10);
    bench.faults.origin_flushes = false;
    bench.pass(SECOND);
    assert_eq!(bench.answer(waiting).expect("answered").result, Ok(()));
}

/// Fetches for 70 windows at a time, and two reads that need five each.
#[test]
fn a_small_miss_does_not_overtake_a_large_one_that_waits() {
    let mut bench = Bench::sized(&[STRICT], 16 * 320, 0);
    bench.faults.hold_origin_reads = true;
    for read in 0..13 {
        bench.begin_read(0, read * 320 + 32, 256, false);
    }
    bench.begin_read(0, 13 * 320, 256, false);
    let large = bench.begin_read(0, 14 * 320 + 32, 256, false);
    assert_eq!(bench.engine_counter(Counter::FetchWaits), 1, "the large one waits");
    let small = bench.begin_read(0, 15 * 320, 1, false);
    assert_eq!(bench.engine_counter(Counter::FetchWaits), 2, "and the small one behind it");
    bench.release_origin_reads();
    bench.settle();
    for ticket in [large, small] {
        assert_eq!(bench.answer(ticket).expect("answered").result, Ok(()));
    }
}

#[test]
fn only_partial_writes_of_what_is_not_cached_need_the_origin() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write_block(1, 7);
    bench.faults.origin_reads = true;
    bench.write(0, 2 * 4096, 4096, 8).expect("a whole block");
    bench.write(0, 4096 + 100, 100, 9).expect("a part of a cached one");
    let command = Command::Write { buffer: NOWHERE, fua: false };
    let ticket = bench.submit(0, command, 3 * 4096 + 100, 100);
    bench.pass(SECOND);
    assert_eq!(bench.answer(ticket), None, "rule 33: it waits");
    bench.pass(2 * SECOND);
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Err(RequestError::Io)));
    bench.faults.origin_reads = false;
    assert_eq!(bench.read(2, 2), [Some(8), Some(OLD)]);
}
