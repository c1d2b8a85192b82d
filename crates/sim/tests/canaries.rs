//! The simulator finds each rule of the log that is broken on purpose. Needs the feature `canary`,
//! which no other build has: `cargo test -p ringfence-sim --features canary --test canaries`.

use ringfence_cache::canary;
use ringfence_sim::run::{Report, run_many};
use ringfence_sim::scenario::Scenario;
use ringfence_sim::threads::processors;
use std::sync::atomic::{AtomicBool, Ordering};

/// Worlds of consecutive seeds in which each broken rule must be found. Wanted is that it is found
/// in two minutes; a number of worlds that take less stands for that, whatever the machine does.
/// With no rule broken none of them may fail: one false alarm would find every rule.
const WORLDS: u64 = 100;
/// What stands for no rule.
const NONE: u8 = 0;
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
    let summary = run_many(Scenario::draw, FIRST, processors(), &more, &ended);
    canary::break_rule(NONE);
    let violation = summary.failures.first()?.result.clone().err()?;
    Some((summary.worlds, violation.to_string()))
}

// One test, since a rule is broken in all engines of the process.
#[test]
fn each_broken_rule_is_found_and_nothing_else() {
    assert_eq!(find(NONE), None, "no rule is broken");
    let mut missed = Vec::new();
    for rule in canary::RULES {
        match find(rule) {
            Some((worlds, violation)) => println!("rule {rule}: {worlds} worlds: {violation}"),
            None => missed.push(rule),
        }
    }
    assert!(missed.is_empty(), "rules broken and not found in {WORLDS} worlds: {missed:?}");
}
