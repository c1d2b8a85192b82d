//! FLUSH: what is on its way to the device before it comes, and that nothing else is durable.

use crate::bench::Bench;
use ringfence_cache::counters::Counter;
use ringfence_cache::{Mode, Order};

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
