//! The production engine in many worlds: first the seeds that once failed, then a fixed number.

use ringfence_sim::run::{Summary, run_many, run_seed};
use ringfence_sim::threads::processors;
use ringfence_sim::trace::Sink;
use std::sync::atomic::{AtomicU64, Ordering};

/// With the exhaustive sequences, more than 200,000. Those with a loss that damage explains, or with
/// something that cannot be read, do not count.
const POINTS_WITHOUT_LOSS_MIN: u64 = 175_000;
/// More than are needed for that many.
const WORLDS_MAX: u64 = 2_000;
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
        let report = run_seed(seed, Sink::Digest);
        assert_eq!(report.result, Ok(()), "regression: replay with `npm run sim -- {seed}`");
    }
    let points = AtomicU64::new(0);
    let Summary { worlds, tally, failures } = run_many(
        FIRST,
        processors(),
        &|seed| {
            let enough = points.load(Ordering::Relaxed) >= POINTS_WITHOUT_LOSS_MIN;
            !enough && seed < FIRST + WORLDS_MAX
        },
        &|report| {
            points.fetch_add(report.tally.points_without_loss, Ordering::Relaxed);
            if let Err(violation) = &report.result {
                println!("seed {} failed: {violation}", report.seed);
            }
        },
    );
    println!("{worlds} worlds: {tally:?}");
    assert!(failures.is_empty(), "{} worlds failed", failures.len());
    assert!(tally.points_without_loss >= POINTS_WITHOUT_LOSS_MIN, "worlds crash: {tally:?}");
    let missing: Vec<_> = tally.faults.missing().collect();
    assert!(missing.is_empty(), "faults that never happened: {missing:?}");
    assert!(tally.laps > 10, "logs wrap: {tally:?}");
    assert!(tally.tier_hits > 100, "the memory tier is read: {tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_digest() {
    for seed in FIRST..FIRST + 8 {
        let [one, other] = [(); 2].map(|()| run_seed(seed, Sink::Digest));
        assert_eq!(one, other);
    }
}
