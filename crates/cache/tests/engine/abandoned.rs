//! Requests whose client is gone: what has not taken effect never does.

use crate::bench::Bench;
use ringfence_cache::{Buffer, Command, Control, Mode, Order, RequestError, Ticket};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const NOWHERE: Buffer = Buffer { offset: 0, length: 0 };
const SECOND: u64 = 1_000_000_000;
const STEP: u64 = 1 << 20;
/// Blocks that no test fills the log with.
const BEYOND: u64 = 7 << 20;

fn result(bench: &Bench, ticket: Ticket) -> Option<Result<(), RequestError>> {
    bench.answer(ticket).map(|answer| answer.result)
}

/// A log without room, whose origin takes nothing.
fn full() -> Bench {
    let mut bench = Bench::new(&[STRICT]);
    bench.write(0, BEYOND, STEP, 1).expect("written");
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.faults.origin_writes = true;
    let waits = (0..100).find(|count| bench.try_write(0, count % 7 * STEP, STEP).is_none());
    assert!(waits.is_some(), "dirty data has no limit");
    bench
}

#[test]
fn a_write_that_was_sent_again_does_not_land_on_what_came_after() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write_block(3, 1);
    bench.flush().expect("flushed");
    bench.restart();
    // The block is on the device alone: both writes of a part of it read it first.
    bench.faults.hold_device_reads = true;
    let before = bench.begin_write_to(0, 3 * 4096, 512, 2);
    bench.abandon(before);
    let again = bench.begin_write_to(0, 3 * 4096, 512, 2);
    assert_eq!([before, again].map(|ticket| result(&bench, ticket)), [None; 2]);
    bench.release_device_read(1);
    assert_eq!(result(&bench, again), Some(Ok(())));
    assert_eq!(bench.write(0, 3 * 4096, 512, 3), Ok(()), "the block is in memory now");
    bench.release_device_read(0);
    bench.faults.hold_device_reads = false;
    assert_eq!(bench.read(3, 1), [Some(3)], "what was answered last");
    assert_eq!(result(&bench, before), Some(Err(RequestError::Io)));
}

#[test]
fn changes_that_wait_for_room_end_at_once_and_are_not_carried_out() {
    let mut bench = full();
    let write = bench.begin_write_to(0, BEYOND, 4096, 9);
    let trim = bench.submit(0, Command::Trim { fua: false }, BEYOND + 4096, 4096);
    let zeroes = Command::WriteZeroes { fua: false, no_hole: false };
    let zeroes = bench.submit(0, zeroes, BEYOND + 8192, 4096);
    let kept = bench.begin_write_to(0, BEYOND + 12_288, 4096, 8);
    bench.settle();
    for ticket in [trim, zeroes, write] {
        assert_eq!(result(&bench, ticket), None, "it waits");
        bench.abandon(ticket);
        assert_eq!(result(&bench, ticket), Some(Err(RequestError::Io)));
    }
    bench.settle();
    assert_eq!(result(&bench, kept), None, "its client is there");
    bench.faults.origin_writes = false;
    bench.pass(SECOND);
    assert_eq!(result(&bench, kept), Some(Ok(())));
    let first = BEYOND / 4096;
    assert_eq!(bench.read(first, 5), [1, 1, 1, 8, 1].map(Some));
}

#[test]
fn whoever_waits_behind_the_last_one_is_not_forgotten() {
    let mut bench = full();
    let [first, last] = [9, 7].map(|byte| bench.begin_write_to(0, BEYOND, 4096, byte));
    bench.abandon(last);
    let behind = bench.begin_write_to(0, BEYOND + 4096, 4096, 6);
    bench.abandon(first);
    assert_eq!(result(&bench, behind), None);
    bench.faults.origin_writes = false;
    bench.pass(SECOND);
    assert_eq!(result(&bench, behind), Some(Ok(())));
    assert_eq!(bench.read(BEYOND / 4096, 2), [1, 6].map(Some));
}

#[test]
fn what_took_effect_and_what_changes_nothing_go_on() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.hold_device_writes = true;
    bench.faults.hold_origin_reads = true;
    let write = bench.submit(0, Command::Write { buffer: NOWHERE, fua: true }, 0, 4096);
    let flush = bench.submit(0, Command::Flush, 0, 0);
    let read = bench.begin_read(0, 9, 1, false);
    bench.settle();
    for ticket in [write, flush, read] {
        bench.abandon(ticket);
        bench.settle();
        assert_eq!(result(&bench, ticket), None);
    }
    bench.release_device_writes();
    bench.release_origin_reads();
    bench.settle();
    assert_eq!([write, flush, read].map(|ticket| result(&bench, ticket)), [Some(Ok(())); 3]);
}
