//! The production engine in many worlds: first the seeds that once failed, then a fixed number.

use ringfence_cache::Engine;
use ringfence_sim::run::{Summary, run_many, run_seed};
use ringfence_sim::trace::Sink;

/// About a minute on two processors.
const WORLDS: u64 = 200;
/// Away from the seeds that are run by hand, which count from one.
const FIRST: u64 = 1_000_000;

fn regression_seeds() -> impl Iterator<Item = u64> {
    include_str!("../seeds.txt")
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .map(|seed| seed.parse().expect("a seed at the start of each line"))
}

#[test]
fn production_engine() {
    for seed in regression_seeds() {
        let report = run_seed::<Engine>(seed, Sink::Digest);
        assert_eq!(report.result, Ok(()), "regression: replay with `ringfence-sim {seed} --trace`");
    }
    let Summary { worlds, tally, failures } = run_many::<Engine>(
        FIRST,
        2,
        |seed| seed < FIRST + WORLDS,
        |report| {
            println!("seed {} failed: {:?}", report.seed, report.result);
        },
    );
    println!("{worlds} worlds: {tally:?}");
    assert!(failures.is_empty(), "{} worlds failed", failures.len());
    assert_eq!(worlds, WORLDS);
    assert!(tally.crash_points >= 10 * WORLDS, "worlds crash: {tally:?}");
    let missing: Vec<_> = tally.faults.missing().collect();
    assert!(missing.is_empty(), "faults that never happened: {missing:?}");
    assert!(tally.laps > 10, "logs wrap: {tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_digest() {
    for seed in FIRST..FIRST + 8 {
        let [one, other] = [(); 2].map(|()| run_seed::<Engine>(seed, Sink::Digest));
        assert_eq!(one, other);
    }
}
