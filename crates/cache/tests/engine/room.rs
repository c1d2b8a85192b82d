//! Who gets room in the log, and what reclaim keeps: rules 15 and 27.

use crate::bench::Bench;
use ringfence_cache::counters::Counter;
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_RESERVED, footer_bytes};
use ringfence_cache::{Control, Mode, Order};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const SEGMENT_BLOCKS: u64 = (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) / 4096;

/// A log of clean blocks, all of which were hit, that lacks one segment of where reclaim rests.
#[test]
fn where_all_blocks_were_hit_reclaim_still_makes_room() {
    const SEGMENTS: u64 = 32;
    const FREE_WANTED: u64 = SEGMENTS_RESERVED as u64 + 2 + SEGMENTS / 16;
    let mut bench = Bench::with_segments(SEGMENTS, &[STRICT], SEGMENTS * SEGMENT_BLOCKS, 0);
    bench.is_checked = false;
    bench.turn();
    let mut blocks = 0;
    let mut write = |bench: &mut Bench| {
        for _ in 0..4 {
            bench.write(0, blocks * 4096, 64 * 4096, 3).expect("written");
            blocks += 64;
        }
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
        blocks
    };
    let mut written = 0;
    while bench.engine_counter(Counter::SegmentsFree) > FREE_WANTED {
        written = write(&mut bench);
    }
    for first in (0..written).step_by(64) {
        bench.read_whole(first, 64).expect("cached");
    }
    while bench.engine_counter(Counter::SegmentsReclaimed) == 0 {
        write(&mut bench);
    }
    (0..10).for_each(|_| bench.settle());
    let reclaimed = bench.engine_counter(Counter::SegmentsReclaimed);
    let copied = bench.engine_counter(Counter::BlocksReappended);
    assert!(bench.engine_counter(Counter::SegmentsFree) >= FREE_WANTED);
    assert!(copied > 0, "what was hit is worth keeping");
    assert!(copied <= reclaimed * SEGMENT_BLOCKS * 3 / 4, "{copied} of {reclaimed} segments");
    assert!(reclaimed <= 6, "one segment is not worth a lap of copies: {reclaimed}");
}
