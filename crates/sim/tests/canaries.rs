//! The simulator finds each rule of the log that is broken on purpose. Needs the feature `canary`,
//! which no other build has: `cargo test -p ringfence-sim --features canary --test canaries`.

use ringfence_cache::canary;
use ringfence_sim::run::{Report, run_many};
use ringfence_sim::threads::processors;
use std::sync::atomic::{AtomicBool, Ordering};

/// Worlds of consecutive seeds, which take two processors about two minutes.
const WORLDS: u64 = 400;
/// The same for all rules, and nobody's choice.
const FIRST: u64 = 5_000;

/// Runs worlds until one fails. Returns how many it took and what was found.
fn find(rule: u8) -> Option<(u64, String)> {
    canary::break_rule(rule);
    let found = AtomicBool::new(false);
    let more = |seed| seed < FIRST + WORLDS && !found.load(Ordering::Relaxed);
    let ended = |report: &Report| {
        found.fetch_or(report.result.is_err(), Ordering::Relaxed);
    };
    let summary = run_many(FIRST, processors(), &more, &ended);
    canary::break_rule(0);
    let violation = summary.failures.first()?.result.clone().err()?;
    Some((summary.worlds, violation.to_string()))
}

#[test]
fn each_broken_rule_is_found() {
    let mut missed = Vec::new();
    for rule in canary::RULES {
        match find(rule) {
            Some((worlds, violation)) => println!("rule {rule}: {worlds} worlds: {violation}"),
            None => missed.push(rule),
        }
    }
    assert!(missed.is_empty(), "rules broken and not found in {WORLDS} worlds: {missed:?}");
}
