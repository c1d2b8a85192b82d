//! FLUSH: what is on its way to the device before it comes, and that nothing else is durable.

use crate::bench::Bench;
use ringfence_cache::counters::Counter;
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_RESERVED, footer_bytes};
use ringfence_cache::{Control, Mode, Order};

const SEGMENT_BLOCKS: u64 = (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) / 4096;

fn records(bench: &mut Bench) -> u64 {
    bench.engine_counter(Counter::Records)
}

fn flushes(bench: &mut Bench) -> u64 {
    bench.engine_counter(Counter::DeviceFlushes)
}

/// Writes so many blocks and flushes. Returns how many records were written before the FLUSH came.
fn cycle(bench: &mut Bench, writes: u64, byte: u8) -> u64 {
    let before = records(bench);
    let flushed = flushes(bench);
    (0..writes).for_each(|block| bench.write_block(block, byte));
    let early = records(bench) - before;
    assert_eq!(flushes(bench), flushed, "the device is flushed when a client asks for it");
    bench.flush().expect("flushed");
    assert_eq!(records(bench), before + early.max(1), "no record for the FLUSH alone");
    assert_eq!(flushes(bench), flushed + 1, "a record that is written is not durable");
    early
}

#[test]
fn the_write_before_a_flush_that_is_foreseen_does_not_wait_for_it() {
    for writes in [1, 4] {
        let mut bench = Bench::new(&[(Mode::Writeback, Order::Strict)]);
        assert_eq!(cycle(&mut bench, writes, 1), 0, "nothing is known yet");
        assert_eq!(cycle(&mut bench, writes, 2), 0);
        for byte in 3..20 {
            assert_eq!(cycle(&mut bench, writes, byte), 1);
        }
        bench.restart();
        assert!(bench.read(0, writes).iter().all(|found| *found == Some(19)));
    }
}

#[test]
fn writes_without_flushes_share_their_records() {
    let mut bench = Bench::new(&[(Mode::Writeback, Order::Strict)]);
    (0..3).for_each(|byte| {
        cycle(&mut bench, 1, byte);
    });
    let before = records(&mut bench);
    (0..60).for_each(|block| bench.write_block(block, 9));
    assert_eq!(records(&mut bench), before + 1, "one was foreseen in vain");
}

/// A log of 64 segments whose images fill six of them, and nobody who flushes.
fn unflushed() -> Bench {
    const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
    let mut bench = Bench::with_segments(64, &[STRICT], 64 * SEGMENT_BLOCKS, 0);
    bench.is_checked = false;
    bench.more_reserve_bytes = 4 * SEGMENT_BYTES_MIN;
    bench.restart();
    bench.turn();
    bench
}

/// Writes from block `first` on until so many more segments are used; returns where it ended.
fn use_segments(bench: &mut Bench, first: u64, segments: u64) -> u64 {
    let used = |bench: &mut Bench| {
        let left = bench.engine_counter(Counter::SegmentsReclaimed);
        bench.engine_counter(Counter::SegmentsUsed) + left
    };
    let (end, mut block) = (used(bench) + segments, first);
    while used(bench) < end {
        bench.write(0, block * 4096, 64 * 4096, 3).expect("written");
        block += 64;
    }
    block
}

#[test]
fn a_flush_does_for_the_footers_of_two_segments() {
    let mut bench = unflushed();
    let before = flushes(&mut bench);
    use_segments(&mut bench, 0, 21);
    let flushed = flushes(&mut bench) - before;
    // Some of them end an epoch (rule 14).
    assert!((9..=14).contains(&flushed), "{flushed} flushes for 21 segments");
}

#[test]
fn a_flush_does_for_the_segments_that_reclaim_leaves_behind() {
    const FREE_WANTED: u64 = SEGMENTS_RESERVED as u64 + 2 + 64 / 16;
    let mut bench = unflushed();
    let mut block = 0;
    while bench.engine_counter(Counter::SegmentsFree) > FREE_WANTED + 1 {
        block = use_segments(&mut bench, block, 1);
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    }
    let reclaimed = bench.engine_counter(Counter::SegmentsReclaimed);
    let before = flushes(&mut bench);
    use_segments(&mut bench, 0, 24);
    let flushed = flushes(&mut bench) - before;
    let reclaimed = bench.engine_counter(Counter::SegmentsReclaimed) - reclaimed;
    assert!(reclaimed >= 20, "{reclaimed} of 24 segments");
    // One for each of them, and those of the footers, would be 32 and more.
    assert!(flushed <= 22, "{flushed} flushes for 24 segments");
}

/// A record from before is on the device, which is no reason to flush while the one that a client
/// waits for is still on its way.
#[test]
fn no_flush_comes_before_what_is_waited_for_is_written() {
    let mut bench = Bench::new(&[(Mode::Writeback, Order::Strict)]);
    bench.write_block(0, 1);
    bench.pass(10_000_000);
    let before = flushes(&mut bench);
    bench.faults.hold_device_writes = true;
    bench.write_block(1, 2);
    let ticket = bench.submit(0, ringfence_cache::Command::Flush, 0, 0);
    bench.settle();
    assert_eq!(flushes(&mut bench), before, "the record is on its way");
    assert!(bench.answer(ticket).is_none());
    bench.faults.hold_device_writes = false;
    bench.release_device_writes();
    bench.settle();
    assert_eq!(flushes(&mut bench), before + 1);
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
}
