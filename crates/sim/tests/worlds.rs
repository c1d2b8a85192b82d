//! The production engine in many worlds: first the seeds that once failed, then a fixed number.

use ringfence_cache::Engine;
use ringfence_sim::run::{Summary, run_many, run_scenario, run_seed};
use ringfence_sim::scenario::Scenario;
use ringfence_sim::threads::processors;
use ringfence_sim::trace::Sink;
use std::sync::atomic::{AtomicU64, Ordering};

/// With the exhaustive sequences, more than 200,000. Those with a loss that damage explains, or
/// with something that cannot be read, do not count.
const POINTS_WITHOUT_LOSS_MIN: u64 = 175_000;
/// More than are needed for that many.
const WORLDS_MAX: u64 = 2_000;
/// Away from the seeds that are run by hand, which count from one.
const FIRST: u64 = 1_000_000;

/// The worlds that once failed, with the arguments that replay each.
fn regressions() -> impl Iterator<Item = (Scenario, String)> {
    let lines = include_str!("../seeds.txt").lines();
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let mut words = line.split_whitespace();
        let seed = words.next().and_then(|seed| seed.parse().ok());
        let seed = seed.expect("a seed at the start of each line");
        match words.next() {
            Some("quiet") => (Scenario::draw_quiet(seed), format!("{seed} --quiet")),
            _ => (Scenario::draw(seed), format!("{seed}")),
        }
    })
}

#[test]
fn production_engine() {
    for (scenario, replay) in regressions() {
        let report = run_scenario::<Engine>(scenario, Sink::Digest);
        assert_eq!(report.result, Ok(()), "regression: replay with `npm run sim -- {replay}`");
    }
    let points = AtomicU64::new(0);
    let Summary { worlds, tally, failures } = run_many(
        Scenario::draw,
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
    assert!(tally.kept_answers > 1_000, "answers outlive the process: {tally:?}");
    assert!(tally.tier_hits > 100, "the memory tier is read: {tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_digest() {
    for seed in FIRST..FIRST + 8 {
        let [one, other] = [(); 2].map(|()| run_seed(seed, Sink::Digest));
        assert_eq!(one, other);
    }
}
