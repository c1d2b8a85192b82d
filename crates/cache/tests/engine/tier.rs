//! The memory tier: what it serves, what it must not, and what it is worth.

use crate::bench::{Bench, EXPORT_BLOCKS, TIER_BLOCKS};
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::{Command, Mode, Order};

const WRITEBACK: [(Mode, Order); 1] = [(Mode::Writeback, Order::Strict)];
/// Content of an origin, of a write.
const OLD: u8 = 0xee;
const NEW: u8 = 0x11;
/// A block of which nothing is known.
const FRESH: u64 = 1000;

/// A log that has wrapped: what is missed from now on is not admitted at once.
fn wrapped() -> Bench {
    let mut bench = Bench::new(&WRITEBACK);
    let mut byte = 0;
    while bench.engine_counter(Counter::SegmentsReclaimed) == 0 {
        byte = (byte + 1) % 100;
        bench.write(0, 0, 256 * 4096, byte).expect("written");
        bench.pass(100_000_000);
    }
    bench.flush().expect("flushed");
    bench
}

fn missed(bench: &mut Bench) -> u64 {
    bench.counter(ExportCounter::MissBytes) / 4096
}

fn tier_hits(bench: &mut Bench) -> u64 {
    bench.engine_counter(Counter::TierHits)
}

/// A wrapped log, and in the tier some blocks that were missed once.
fn with_blocks_in_tier(blocks: u64) -> Bench {
    let mut bench = wrapped();
    assert_eq!(bench.read_whole(FRESH, blocks), Ok(vec![OLD; blocks as usize]));
    bench.turn();
    assert_eq!(bench.engine_counter(Counter::TierFramesUsed), blocks);
    bench
}

#[test]
fn the_second_reader_is_served_and_what_it_read_enters_the_log() {
    let mut bench = with_blocks_in_tier(8);
    let (before, cached) = (missed(&mut bench), bench.counter(ExportCounter::CachedBytes));
    assert_eq!(bench.read(FRESH, 4), vec![Some(OLD); 4]);
    assert_eq!(tier_hits(&mut bench), 4);
    assert_eq!(bench.engine_counter(Counter::TierFramesUsed), 4);
    assert_eq!(bench.counter(ExportCounter::CachedBytes), cached + 4 * 4096);
    assert_eq!(bench.read_whole(FRESH, 4), Ok(vec![OLD; 4]));
    assert_eq!(tier_hits(&mut bench), 4, "now the log has them");
    assert_eq!(missed(&mut bench), before);
}

#[test]
fn a_write_a_zero_and_a_trim_drop_what_the_tier_has() {
    let mut bench = with_blocks_in_tier(8);
    bench.write(0, FRESH * 4096, 4096, NEW).expect("written");
    let zero = Command::WriteZeroes { no_hole: false, fua: false };
    for (command, block) in [(zero, FRESH + 1), (Command::Trim { fua: false }, FRESH + 2)] {
        let ticket = bench.submit(0, command, block * 4096, 4096);
        bench.settle();
        assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    }
    assert_eq!(bench.engine_counter(Counter::TierFramesUsed), 5);
    assert_eq!(bench.read(FRESH, 4), [NEW, 0, 0, OLD].map(Some));
    assert_eq!(tier_hits(&mut bench), 1);
}

#[test]
fn a_partial_write_is_merged_with_what_the_tier_has() {
    let mut bench = with_blocks_in_tier(1);
    bench.faults.origin_reads = true;
    bench.write(0, FRESH * 4096 + 512, 512, NEW).expect("no origin is needed");
    let ticket = bench.begin_read(0, FRESH, 1, false);
    bench.settle();
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    let block = bench.whole_block(ticket);
    assert!(block[..512].iter().chain(&block[1024..]).all(|byte| *byte == OLD));
    assert!(block[512..1024].iter().all(|byte| *byte == NEW));
    assert_eq!(bench.engine_counter(Counter::TierFramesUsed), 0);
}

#[test]
fn a_read_in_pieces_tells_of_tier_blocks_before_the_origin_answers() {
    let mut bench = with_blocks_in_tier(2);
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, FRESH, 4, true);
    bench.settle();
    let told: Vec<_> = bench.told(ticket).iter().map(|piece| (piece.first, piece.blocks)).collect();
    assert_eq!(told, [(0, 2)]);
    bench.release_origin_reads();
    bench.settle();
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    assert_eq!(bench.bytes_of(ticket), [OLD; 4]);
}

#[test]
fn a_write_while_the_origin_is_asked_keeps_its_block_out_of_the_tier() {
    let mut bench = wrapped();
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, FRESH, 2, false);
    bench.settle();
    bench.write_block(FRESH, NEW);
    bench.release_origin_reads();
    bench.settle();
    assert_eq!(bench.answer(ticket).map(|answer| answer.result), Some(Ok(())));
    assert_eq!(bench.engine_counter(Counter::TierFramesUsed), 1, "rule 10");
    assert_eq!(bench.read_whole(FRESH, 2), Ok(vec![NEW, OLD]));
}

#[test]
fn what_the_tier_gave_up_is_remembered_and_admitted_at_its_next_miss() {
    let mut bench = with_blocks_in_tier(1);
    bench.read_whole(FRESH + 64, TIER_BLOCKS).expect("read");
    let cached = bench.counter(ExportCounter::CachedBytes);
    bench.read_whole(FRESH, 1).expect("read");
    assert_eq!(tier_hits(&mut bench), 0);
    assert_eq!(bench.counter(ExportCounter::CachedBytes), cached + 4096);
    const { assert!(FRESH + 64 + TIER_BLOCKS < EXPORT_BLOCKS) };
}

/// SplitMix64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

const TRACE_BLOCKS: u64 = 32_768;
const TRACE_READS: u64 = 160_000;
const SCAN_BLOCKS: u64 = 64;

#[derive(Debug)]
struct Cost {
    /// Of the single blocks that are read by popularity, how many the cache did not have.
    miss_ratio: f64,
    /// Bytes written to the cache device per byte read.
    written_ratio: f64,
}

/// Reads of single blocks, the k-th most popular as often as 1/k (Zipf), and beside them one pass
/// after the other over the export, about as many blocks again. The second half counts.
fn cost_of_trace(tier_blocks: u64) -> Cost {
    let mut bench = Bench::sized(&WRITEBACK, TRACE_BLOCKS, tier_blocks);
    bench.is_checked = false;
    let mut numbers = Numbers(7);
    let (mut scanned, mut misses, mut written) = (0, 0, 0);
    for read in 0..TRACE_READS {
        if read == TRACE_READS / 2 {
            misses = 0;
            written = bench.engine_counter(Counter::DeviceWrittenBytes);
        }
        if numbers.next().is_multiple_of(SCAN_BLOCKS) {
            read_now(&mut bench, scanned, SCAN_BLOCKS);
            scanned = (scanned + SCAN_BLOCKS) % TRACE_BLOCKS;
        }
        let rank = (TRACE_BLOCKS as f64).powf(numbers.fraction()) as u64 - 1;
        let before = missed(&mut bench);
        read_now(&mut bench, rank * 20_011 % TRACE_BLOCKS, 1);
        misses += missed(&mut bench) - before;
    }
    written = bench.engine_counter(Counter::DeviceWrittenBytes) - written;
    let reads = TRACE_READS / 2;
    let miss_ratio = misses as f64 / reads as f64;
    Cost { miss_ratio, written_ratio: written as f64 / (2 * reads * 4096) as f64 }
}

fn read_now(bench: &mut Bench, block: u64, blocks: u64) {
    let ticket = bench.begin_read(0, block, blocks, false);
    while bench.answer(ticket).is_none() {
        bench.turn();
    }
    bench.turn();
}

#[test]
fn with_a_tier_fewer_reads_miss() {
    let costs = [0, 512, 2048].map(cost_of_trace);
    for (blocks, cost) in [0, 512, 2048].into_iter().zip(&costs) {
        println!("tier of {blocks} blocks: {cost:.3?}");
    }
    let [none, small, large] = &costs;
    assert!(none.miss_ratio < 1.0, "the log has hits of its own");
    assert!(small.miss_ratio < none.miss_ratio && large.miss_ratio < small.miss_ratio);
    assert!(large.written_ratio < 1.05 * none.written_ratio, "and the device is not worn for it");
}
