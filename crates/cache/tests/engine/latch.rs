//! A failed cache device: rule 32.

use crate::bench::Bench;
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::{Control, Mode, Order, RequestError};

/// Two epochs that are durable, a third that is not, and a device that takes nothing more.
fn latched(order: Order) -> Bench {
    let mut bench = Bench::new(&[(Mode::Writeback, order)]);
    for block in 0..4 {
        bench.write_block(block, 1);
    }
    bench.flush().expect("flushed");
    bench.write_block(2, 2);
    bench.write_block(10, 2);
    bench.flush().expect("flushed");
    bench.write_block(20, 3);
    bench.faults.device_writes = true;
    assert_eq!(bench.flush(), Err(RequestError::Io));
    assert_eq!(bench.engine_counter(Counter::Latched), 1);
    bench
}

fn content(bench: &mut Bench) -> [u8; 4] {
    [1, 2, 10, 20].map(|block| bench.read_whole(block, 1).expect("served")[0])
}

#[test]
fn nothing_is_taken_and_everything_is_served() {
    let mut bench = latched(Order::Strict);
    assert_eq!(bench.write(0, 0, 4096, 9), Err(RequestError::Io));
    assert_eq!(bench.flush(), Err(RequestError::Io));
    assert_eq!(content(&mut bench), [1, 2, 2, 3], "frames of failed records too");
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)));
}

#[test]
fn strict_destage_goes_on_for_one_epoch() {
    let mut bench = latched(Order::Strict);
    bench.pass(60_000_000_000);
    assert_eq!([0, 1, 2, 3].map(|block| bench.origin(0, block)), [1; 4]);
    let beyond = [10, 20].map(|block| bench.origin(0, block));
    assert_eq!(beyond, [0xee; 2], "its watermark cannot become durable (rule 19)");
    assert!(bench.origin_log.last().is_some_and(|(what, ..)| *what == "flush"));
    assert_eq!(bench.engine().deadline_ns(), None, "there is nothing more to wait for");
    assert_eq!(content(&mut bench), [1, 2, 2, 3]);

    bench.faults.device_writes = false;
    bench.restart();
    bench.turn();
    assert!(bench.counter(ExportCounter::DirtyBytes) >= 6 * 4096, "all of it is dirty once more");
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!([1, 2, 10].map(|block| bench.origin(0, block)), [1, 2, 2]);
}

#[test]
fn relaxed_destage_goes_on_to_what_was_durable_and_no_further() {
    let mut bench = latched(Order::Relaxed);
    bench.pass(60_000_000_000);
    assert_eq!([1, 2, 10, 20].map(|block| bench.origin(0, block)), [1, 2, 2, 0xee]);
    assert_eq!(bench.engine().deadline_ns(), None);
}

/// It is more than a round, and nobody asks for anything meanwhile.
#[test]
fn relaxed_destage_goes_on_round_after_round() {
    const MIB: u64 = 1 << 20;
    let mut bench = Bench::new(&[(Mode::Writeback, Order::Relaxed)]);
    bench.faults.origin_writes = true;
    for step in 0..18 {
        bench.write(0, step % 7 * MIB, MIB, step as u8 + 1).expect("written");
    }
    bench.flush().expect("flushed");
    bench.faults.device_writes = true;
    bench.write_block(20, 99);
    assert_eq!(bench.flush(), Err(RequestError::Io));
    bench.faults.origin_writes = false;
    bench.idle(60_000_000_000);
    let newest = (11..18).map(|step| (step % 7 * 256 + 100, step as u8 + 1));
    for (block, byte) in newest {
        assert_eq!(bench.origin(0, block), byte, "block {block}");
    }
    assert_eq!(bench.engine().deadline_ns(), None);
}

#[test]
fn an_origin_that_is_away_is_waited_for() {
    let mut bench = latched(Order::Strict);
    bench.faults.origin_writes = true;
    bench.pass(60_000_000_000);
    assert_eq!(bench.origin(0, 1), 0xee);
    assert!(bench.engine().deadline_ns().is_some(), "it is tried again");
    bench.faults.origin_writes = false;
    bench.pass(60_000_000_000);
    assert_eq!(bench.origin(0, 1), 1);
}
