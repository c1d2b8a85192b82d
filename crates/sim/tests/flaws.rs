//! The simulator finds what it is there to find: a toy engine without a flaw passes, and each
//! flaw that is built into it is found.

mod toy;

use ringfence_cache::{Mode, Order};
use ringfence_sim::run::{Report, run_scenario};
use ringfence_sim::scenario::{Faults, Scenario};
use ringfence_sim::stop::Stops;
use ringfence_sim::trace::Sink;
use ringfence_sim::violation::Kind;
use toy::{BUILT_IN, Toy, flaw};

/// A world that the toy can live in: one small export, nothing fails but power and process.
fn scenario(seed: u64) -> Scenario {
    let mut scenario = Scenario::draw(seed);
    scenario.exports.truncate(1);
    scenario.lives_differ = false;
    scenario.moods_change = false;
    scenario.formatted_before = seed.is_multiple_of(2);
    scenario.stops = Stops::Orderly;
    let options = &mut scenario.exports[0].options;
    options.origin.size_bytes = options.origin.size_bytes.min(128 << 10);
    options.mode = Mode::Writeback;
    options.order = Order::Strict;
    scenario.mix.bytes_max = scenario.mix.bytes_max.min(options.origin.size_bytes);
    scenario.mix.flush = scenario.mix.flush.max(2);
    scenario.steps_max = scenario.steps_max.min(400);
    scenario.faults = Faults {
        device_read_error: 0,
        device_read_rot: 0,
        device_write_error: 0,
        device_flush_error: 0,
        device_lost_write: 0,
        device_misdirected_write: 0,
        device_rot: 0,
        device_stale: 0,
        origin_error: 0,
        origin_flush_error: 0,
        origin_stall: 0,
        origin_outage: 0,
        disconnect: 0,
        flood: 0,
        ..scenario.faults
    };
    scenario
}

fn run(flaw: u8, seed: u64) -> Report {
    run_with_stops(flaw, seed, Stops::Orderly)
}

fn run_with_stops(flaw: u8, seed: u64, stops: Stops) -> Report {
    BUILT_IN.set(flaw);
    let mut scenario = scenario(seed);
    scenario.stops = stops;
    if stops == Stops::Rough {
        scenario.faults.stop_percent = 40;
    }
    run_scenario::<Toy>(scenario, Sink::Digest)
}

#[test]
fn an_engine_without_a_flaw_passes() {
    let mut crash_points = 0;
    for seed in 0..100 {
        let report = run(flaw::NONE, seed);
        assert_eq!(report.result, Ok(()), "seed {seed}");
        crash_points += report.tally.crash_points;
    }
    assert!(crash_points > 500, "{crash_points} crash points");
}

#[test]
fn the_same_seed_gives_the_same_digest() {
    for seed in 0..10 {
        assert_eq!(run(flaw::NONE, seed), run(flaw::NONE, seed));
    }
    assert_ne!(run(flaw::NONE, 1).digest, run(flaw::NONE, 2).digest);
}

/// Runs worlds until one fails, and checks how.
fn find(flaw: u8, kinds: &[Kind]) {
    let failure = (0..100).find_map(|seed| run(flaw, seed).result.err());
    let violation = failure.expect("the flaw is found");
    assert!(kinds.contains(&violation.kind), "{violation}");
}

#[test]
fn a_flush_answered_too_early_is_found() {
    find(flaw::EARLY_FLUSH, &[Kind::Lost]);
}

#[test]
fn a_torn_snapshot_is_found() {
    find(flaw::NO_CHECKSUM, &[Kind::Lost, Kind::LogOrder, Kind::Torn, Kind::Garbage]);
}

#[test]
fn a_stale_read_is_found() {
    find(flaw::STALE_READ, &[Kind::Stale, Kind::Torn]);
}

#[test]
fn a_torn_write_is_found() {
    // Lost: a half of what was to outlive the process.
    find(flaw::TORN_WRITE, &[Kind::Torn, Kind::Stale, Kind::Lost]);
}

#[test]
fn another_blocks_data_is_found() {
    find(flaw::WRONG_BLOCK, &[Kind::Garbage]);
}

#[test]
fn a_missing_origin_flush_is_found() {
    find(flaw::NO_ORIGIN_FLUSH, &[Kind::OriginIllegal, Kind::OriginBehind]);
}

#[test]
fn destaging_what_is_not_durable_is_found() {
    find(flaw::EAGER_DESTAGE, &[Kind::OriginAhead, Kind::OriginIllegal]);
}

#[test]
fn a_missing_first_flush_is_found() {
    find(flaw::NO_FIRST_FLUSH, &[Kind::Lost]);
}

#[test]
fn a_buffer_used_after_it_was_given_back_is_found() {
    find(flaw::LATE_COPY, &[Kind::Garbage, Kind::Stale]);
}

#[test]
fn memory_that_changes_while_it_is_written_is_found() {
    find(flaw::CHANGE_IN_FLIGHT, &[Kind::Contract]);
}

#[test]
fn a_drain_answered_too_early_is_found() {
    find(flaw::EARLY_DRAIN, &[Kind::OriginBehind]);
}

#[test]
fn what_another_cache_left_is_found() {
    find(flaw::BELIEVES_FORMER, &[Kind::Garbage]);
}

#[test]
fn an_answer_that_dies_with_the_process_is_found() {
    find(flaw::EARLY_KEPT, &[Kind::Lost]);
}

#[test]
fn a_forgotten_request_is_found() {
    find(flaw::FORGETS, &[Kind::Stuck]);
}

#[test]
fn a_stop_that_a_power_cut_must_not_meet_is_found() {
    let run =
        |flaw, stops| (0..100).find_map(|seed| run_with_stops(flaw, seed, stops).result.err());
    assert_eq!(run(flaw::NONE, Stops::Rough), None);
    assert_eq!(run(flaw::UNSAFE_STOP, Stops::Orderly), None, "where stops come to their end");
    let violation = run(flaw::UNSAFE_STOP, Stops::Rough).expect("the flaw is found");
    assert_eq!(violation.kind, Kind::Lost, "{violation}");
}
