//! Dirty data that reclaim carries forward while its origin is away: rules 27 and 28.

use crate::bench::Bench;
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::limits::{EXPORT_TABLE_OFFSETS, SEGMENT_BYTES_MIN};
use ringfence_cache::{Buffer, Command, Control, ExportSlot, Mode, Order, Ticket};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const RELAXED: (Mode, Order) = (Mode::Writeback, Order::Relaxed);
const TRIM: Command = Command::Trim { fua: false };
const SECOND: u64 = 1_000_000_000;
const MIB: u64 = 1 << 20;
/// Runs of zeroes, each of which takes an entry of its own when it is carried.
const RUNS: u64 = 10_000;
/// Where the superblocks are.
const SUPERBLOCKS_BYTES: usize = EXPORT_TABLE_OFFSETS[0] as usize;

/// Another export, whose origin is up, writes until it gets no answer. Returns how many turns of
/// the engine were due at once after another.
fn fill_with_other(bench: &mut Bench) -> usize {
    let mut at_once = 0;
    for at in 0..100 {
        let nowhere = Buffer { offset: 0, length: 0 };
        let command = Command::Write { buffer: nowhere, fua: false };
        let ticket = bench.submit(1, command, at % 7 * MIB, MIB);
        for _ in 0..40 {
            bench.turn();
            at_once += usize::from(bench.is_turn_due());
        }
        if bench.answer(ticket).is_none() {
            return at_once;
        }
    }
    panic!("there is room without end");
}

/// The other export takes all the room, and waits for more, while the cache device takes nothing.
/// Returns what it waits with.
fn fill_until_other_waits(bench: &mut Bench) -> Ticket {
    for at in 0..100 {
        bench.faults.hold_device_writes = true;
        let ticket = bench.begin_write_to(1, at % 7 * MIB, MIB, 9);
        bench.turn();
        if bench.answer(ticket).is_none() {
            return ticket;
        }
        bench.release_device_writes();
        bench.settle();
    }
    panic!("there is room without end");
}

/// An export has zeroes in many runs, and its origin is away.
fn zeroes_in_runs() -> Bench {
    let mut bench = Bench::with_segments(26, &[STRICT, STRICT], 2 * RUNS + 1, 0);
    bench.is_checked = false;
    bench.more_reserve_bytes = SEGMENT_BYTES_MIN;
    bench.restart();
    bench.faults.origin_writes_of = Some(0);
    bench.submit(0, TRIM, 0, (2 * RUNS + 1) * 4096);
    for run in 0..RUNS {
        let ticket = bench.submit(0, TRIM, (2 * run + 1) * 4096, 4096);
        assert!(bench.answer(ticket).is_some(), "run {run}");
        if run % 64 == 0 {
            bench.turn();
        }
    }
    bench.flush().expect("flushed");
    bench.pass(SECOND);
    bench
}

/// The origin is back before the copies of its data are durable: from then on it has the data, and
/// a copy that rots is no loss.
#[test]
fn copies_are_clean_as_soon_as_the_origin_has_their_data() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    bench.write(0, 0, MIB, 5).expect("written");
    bench.flush().expect("flushed");
    bench.pass(SECOND);
    let waiting = fill_until_other_waits(&mut bench);
    for _ in 0..40 {
        bench.turn();
    }
    bench.faults.origin_writes_of = None;
    bench.pass(10 * SECOND);
    assert_eq!(bench.origin(0, 0), 5, "the origin has it");
    bench.faults.hold_device_writes = false;
    bench.release_device_writes();
    bench.pass(SECOND);
    assert!(bench.answer(waiting).is_some(), "there is room again");
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) > 0, "the copies are what is left");
    // What is in memory cannot rot.
    for at in 0..8 {
        bench.write(1, at % 7 * MIB, MIB, 9).expect("written");
        bench.pass(SECOND);
    }
    bench.disk.damage(5);
    assert_eq!(bench.read(0, 256), [Some(5); 256]);
    assert_eq!(bench.counter(ExportCounter::ChecksumErrorsDirty), 0);
}

#[test]
fn zeroes_are_carried_a_part_in_each_turn() {
    let mut bench = zeroes_in_runs();
    assert!(fill_with_other(&mut bench) > 0, "all zeroes in one turn");
}

#[test]
fn zeroes_in_many_runs_leave_a_segment_for_the_record_with_the_tail() {
    let mut bench = zeroes_in_runs();
    let superblocks = bench.disk.bytes[..SUPERBLOCKS_BYTES].to_vec();
    fill_with_other(&mut bench);
    bench.pass(SECOND);
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) == 0, "as much as it frees");
    assert!(bench.disk.bytes.starts_with(&superblocks), "what is the last resort was needed");
    bench.engine().check_invariants();
    bench.faults.origin_writes_of = None;
    while bench.counter(ExportCounter::DirtyBytes) > 0 {
        bench.pass(SECOND);
    }
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0);
    assert!((0..2 * RUNS).all(|block| bench.origin(0, block) == 0));
    bench.write(1, 0, MIB, 9).expect("and it goes on");
}

/// What a round passes over, because a newer version lies further on in it, is on the origin only
/// at its end, which is no nearer where the round before it was of copies.
#[test]
fn a_relaxed_round_behind_copies_goes_to_its_end() {
    let mut bench = Bench::new(&[RELAXED, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    bench.write_block(0, 5);
    bench.flush().expect("flushed");
    let mut at = 0;
    while bench.engine_counter(Counter::SegmentsReclaimed) == 0 {
        bench.write(1, at % 7 * MIB, MIB, 9).expect("written");
        bench.pass(SECOND);
        at += 1;
        assert!(at < 100, "nothing is carried");
    }
    bench.write_block(1, 6);
    bench.write_block(2, 7);
    assert_eq!(bench.control(Control::Drain(None)), None, "its origin is away");
    // Zeroes are a batch of their own.
    bench.submit(0, TRIM, 3 * 4096, 4096);
    bench.flush().expect("flushed");
    bench.write_block(1, 8);
    bench.flush().expect("flushed");
    bench.faults.origin_writes_of = None;
    bench.pass(10 * SECOND);
    assert_eq!([0, 1].map(|block| bench.origin(0, block)), [5, 8]);
    let drained: Vec<u8> = bench.origins_then[0].iter().step_by(4096).take(2).copied().collect();
    assert_eq!(drained, [5, 8], "at the answer");
}

/// The same where the copies become durable, and the tail passes their originals, in the midst of
/// the round.
#[test]
fn a_relaxed_round_goes_to_its_end_whatever_the_tail_passes() {
    let mut bench = Bench::new(&[RELAXED, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    for (block, byte) in [(1, 6), (2, 7)] {
        bench.write_block(block, byte);
    }
    bench.submit(0, TRIM, 3 * 4096, 4096);
    bench.flush().expect("flushed");
    bench.write_block(4, 5);
    bench.flush().expect("flushed");
    assert_eq!(bench.control(Control::Drain(None)), None, "its origin is away");
    // What supersedes the first block lies in the next segment.
    for at in 0..4 {
        bench.write(1, at * MIB, MIB, 9).expect("written");
    }
    bench.write_block(1, 8);
    bench.flush().expect("flushed");
    bench.pass(SECOND);
    fill_until_other_waits(&mut bench);
    bench.settle();
    bench.faults.origin_writes_of = None;
    bench.faults.hold_origin_zeroes = true;
    bench.pass(10 * SECOND);
    assert_eq!(bench.zeroes_held(), 4096, "in the midst of the round");
    let reclaimed = bench.engine_counter(Counter::SegmentsReclaimed);
    bench.release_device_writes();
    bench.settle();
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) > reclaimed, "the tail has moved");
    bench.take_zeroes();
    bench.faults.hold_origin_zeroes = false;
    bench.pass(10 * SECOND);
    assert_eq!(bench.origin(0, 1), 8);
    assert_eq!(bench.origins_then[0][4096], 8, "at the answer");
}

/// The origin is back before the tail has passed the original of a copy, and the original rots.
#[test]
fn a_copy_stands_for_an_original_that_rots() {
    for order in [STRICT, RELAXED] {
        let mut bench = Bench::new(&[order, STRICT]);
        bench.faults.origin_writes_of = Some(0);
        bench.write_block(2, 7);
        bench.flush().expect("flushed");
        bench.pass(SECOND);
        fill_until_other_waits(&mut bench);
        bench.settle();
        assert!(bench.holds_write_of(7), "the copy is on its way");
        bench.disk.damage(7);
        bench.faults.origin_writes_of = None;
        bench.pass(10 * SECOND);
        assert_eq!(bench.origin(0, 2), 7, "{order:?}");
        assert_eq!(bench.counter(ExportCounter::ChecksumErrorsDirty), 0);
    }
}

/// The same where a neighbour was damaged already when it was carried: what is lost is said to be,
/// and it is nothing else.
#[test]
fn a_damaged_copy_stands_for_its_original_and_for_nothing_else() {
    for order in [STRICT, RELAXED] {
        let mut bench = Bench::new(&[order, STRICT]);
        for (block, byte) in [(1, 6), (2, 7)] {
            bench.write_block(block, byte);
        }
        bench.faults.origin_writes_of = Some(0);
        bench.flush().expect("flushed");
        // What is in memory cannot rot.
        bench.restart();
        bench.disk.damage(6);
        bench.pass(SECOND);
        fill_until_other_waits(&mut bench);
        bench.settle();
        assert!(bench.holds_write_of(7), "the copies are on their way");
        bench.disk.damage(7);
        bench.faults.origin_writes_of = None;
        bench.pass(10 * SECOND);
        if order == STRICT {
            assert_eq!(bench.control(Control::AcceptLoss(ExportSlot(0))), Some(Ok(())));
        }
        bench.faults.hold_device_writes = false;
        bench.release_device_writes();
        bench.pass(10 * SECOND);
        assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0, "{order:?}");
        assert_eq!(bench.origin(0, 2), 7, "{order:?}");
        assert_eq!(bench.read(1, 2), [None, Some(7)], "{order:?}");
        bench.restart();
        assert_eq!(bench.read(1, 2), [None, Some(7)], "{order:?}");
    }
}

/// Whoever waits for the room gets it once what is in the way can be read, though nothing else
/// happens then.
#[test]
fn what_is_to_be_carried_and_cannot_be_read_is_tried_again() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.options[1].wait_ns_max = 20 * SECOND;
    bench.write_block(2, 7);
    bench.faults.origin_writes_of = Some(0);
    bench.flush().expect("flushed");
    // Its export is not served any more.
    let absent = bench.options.remove(0);
    bench.restart();
    bench.faults.unreadable = bench.disk.blocks_of(7);
    let waiting = (0..100).find_map(|at| {
        let ticket = bench.begin_write_to(1, at % 7 * MIB, MIB, 9);
        bench.idle(SECOND);
        bench.answer(ticket).is_none().then_some(ticket)
    });
    let waiting = waiting.expect("what cannot be read is in the way");
    bench.idle(6 * SECOND);
    bench.faults.unreadable.clear();
    bench.idle(10 * SECOND);
    assert!(bench.answer(waiting).is_some_and(|answer| answer.result.is_ok()));
    bench.options.insert(0, absent);
    bench.faults.origin_writes_of = None;
    bench.restart();
    assert_eq!(bench.read(2, 1), [Some(7)]);
}

/// Each start begins a segment. Where starts have taken all but one of them, copies go to the one
/// that is open.
#[test]
fn starts_that_use_the_room_up_do_not_keep_others_from_it() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    for block in 0..32 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    bench.pass(SECOND);
    for block in 0.. {
        assert!(block < 31, "starts take no room");
        bench.restart();
        // What is said of a damaged block may use what is kept from clients.
        bench.disk.damage(block + 1);
        assert_eq!(bench.read(u64::from(block), 1), [None]);
        bench.flush().expect("flushed");
        if bench.engine_counter(Counter::SegmentsFree) == 1 {
            break;
        }
    }
    assert_eq!(bench.engine_counter(Counter::SegmentsReclaimed), 0, "nobody waited for room");
    let ticket = bench.begin_write_to(1, 0, 4096, 99);
    bench.pass(SECOND);
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    assert!(bench.engine_counter(Counter::SegmentsFree) > 4, "what was nearly empty is free");
    bench.flush().expect("flushed");
    bench.restart();
    assert_eq!(bench.read(0, 1), [None]);
    assert_eq!(bench.read(31, 1), [Some(32)]);
}
