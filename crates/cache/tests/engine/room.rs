//! Who gets room in the log, and what reclaim keeps: rules 15 and 27.

use crate::bench::Bench;
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_RESERVED, footer_bytes};
use ringfence_cache::{Control, Mode, Order, Ticket};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const STEP_BYTES: u64 = 1 << 20;
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

/// Looking a whole segment through at once would leave clients unserved for that long.
#[test]
fn no_turn_forgets_a_whole_segment() {
    let mut bench = Bench::with_segments(16, &[STRICT], 16 * SEGMENT_BLOCKS, 0);
    bench.is_checked = false;
    let (mut most, mut block) = (0, 0);
    while bench.engine_counter(Counter::SegmentsReclaimed) < 4 {
        bench.begin_write_to(0, block * 4096, 64 * 4096, 3);
        block += 64;
        // What the origin has is clean, and nobody has hit it.
        bench.skip(1_000_000_000);
        for _ in 0..40 {
            let before = bench.counter(ExportCounter::CachedBytes);
            bench.turn();
            let after = bench.counter(ExportCounter::CachedBytes);
            most = most.max(before.saturating_sub(after) / 4096);
        }
    }
    // Where destage has just got further, reclaim looks a second time in the same turn.
    assert!((1..=512).contains(&most), "{most} blocks of {SEGMENT_BLOCKS} in one turn");
}

fn is_answered(bench: &Bench, ticket: Ticket) -> bool {
    bench.answer(ticket).is_some_and(|answer| answer.result.is_ok())
}

/// How many writes of an export that always has some waiting are answered before the one write of
/// another: the most of many tries.
fn overtakers(crowd: u8, other: u8) -> usize {
    let mut bench = Bench::sized(&[STRICT, STRICT], 256 * 7, 0);
    bench.is_checked = false;
    let mut most = 0;
    let mut waiting: Vec<Ticket> = Vec::new();
    let mut one: Option<(Ticket, usize)> = None;
    for turn in 0..3000 {
        let before = waiting.len();
        waiting.retain(|ticket| !is_answered(&bench, *ticket));
        let answered = before - waiting.len();
        while waiting.len() < 4 {
            waiting.push(bench.begin_write_to(crowd, turn % 7 * STEP_BYTES, STEP_BYTES, 1));
        }
        one = one.map(|(ticket, overtaken)| (ticket, overtaken + answered));
        if let Some((ticket, overtaken)) = one {
            most = most.max(overtaken);
            if overtaken > 8 {
                return most;
            }
            one = one.filter(|_| !is_answered(&bench, ticket));
        }
        if one.is_none() && turn % 10 == 0 {
            one = Some((bench.begin_write_to(other, turn % 7 * STEP_BYTES, STEP_BYTES, 2), 0));
        }
        bench.turn();
    }
    most
}

#[test]
fn whoever_waits_for_room_gets_it_in_turn() {
    let most = [(0, 1), (1, 0)].map(|(crowd, other)| overtakers(crowd, other));
    assert!(most.iter().all(|&overtakers| overtakers <= 6), "{most:?}");
}
