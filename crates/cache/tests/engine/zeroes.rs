//! Zeroes on their way to an origin: rules 20 and 24.

use crate::bench::Bench;
use ringfence_cache::counters::ExportCounter;
use ringfence_cache::{Command, Control, Mode, Notice, Order};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const SECOND: u64 = 1_000_000_000;
/// 80 MiB of zeroes, and a little more on both sides.
const FIRST: u64 = 100;
const BLOCKS: u64 = 80 << 8;
const EXPORT_BLOCKS: u64 = FIRST + BLOCKS + 100;
/// What a slow origin zeroes in a second.
const BYTES_PER_SECOND: u64 = 2 << 20;

/// An export whose dirty data is one long run of zeroes.
fn trimmed() -> Bench {
    let mut bench = Bench::sized(&[STRICT], EXPORT_BLOCKS, 0);
    let trim = Command::Trim { fua: false };
    let ticket = bench.submit(0, trim, FIRST * 4096, BLOCKS * 4096);
    bench.settle();
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    bench
}

#[test]
fn an_origin_that_takes_long_for_many_zeroes_is_not_away() {
    let mut bench = trimmed();
    bench.faults.hold_origin_zeroes = true;
    assert_eq!(bench.control(Control::Drain(None)), None);
    let mut zeroed = 0;
    while bench.zeroes_held() > 0 {
        let bytes = bench.zeroes_held();
        bench.pass(bytes * SECOND / BYTES_PER_SECOND);
        bench.take_zeroes();
        bench.settle();
        zeroed += bytes;
        assert!(zeroed <= BLOCKS * 4096, "no byte is zeroed twice");
        assert_eq!(bench.counter(ExportCounter::DestagedBytes), zeroed, "it is seen to go on");
    }
    assert_eq!(zeroed, BLOCKS * 4096);
    assert!(!bench.notices.iter().any(|notice| matches!(notice, Notice::OriginDown { .. })));
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    let zeroes = (FIRST..FIRST + BLOCKS).all(|block| bench.origin(0, block) == 0);
    assert!(zeroes && bench.origin(0, FIRST - 1) != 0 && bench.origin(0, FIRST + BLOCKS) != 0);
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 0);
}

#[test]
fn zeroes_are_cut_where_an_origin_can_deallocate_both_sides() {
    let mut bench = trimmed();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    let expected = [("zero", 0, FIRST), ("zero", 0, 8192), ("zero", 0, 16384), ("flush", 0, 0)];
    assert_eq!(bench.origin_log, expected);
}

#[test]
fn after_a_piece_that_failed_all_zeroes_are_written_again() {
    let mut bench = trimmed();
    bench.faults.hold_origin_zeroes = true;
    assert_eq!(bench.control(Control::Drain(None)), None);
    bench.take_zeroes();
    bench.settle();
    bench.faults.origin_writes = true;
    bench.take_zeroes();
    bench.faults.origin_writes = false;
    bench.settle();
    assert_eq!(bench.zeroes_held(), 0, "nothing follows what failed");
    // Who failed once may have lost what it took before.
    bench.origins[0].fill(7);
    bench.faults.hold_origin_zeroes = false;
    bench.pass(SECOND);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert!((FIRST..FIRST + BLOCKS).all(|block| bench.origin(0, block) == 0), "rule 20");
}

#[test]
fn a_stop_does_not_wait_for_the_rest_of_the_zeroes() {
    let mut bench = trimmed();
    bench.faults.hold_origin_zeroes = true;
    assert_eq!(bench.control(Control::Drain(None)), None);
    bench.control(Control::Stop);
    bench.take_zeroes();
    bench.settle();
    assert_eq!(bench.zeroes_held(), 0);
    bench.faults.hold_origin_zeroes = false;
    bench.restart();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert!((FIRST..FIRST + BLOCKS).all(|block| bench.origin(0, block) == 0));
}
