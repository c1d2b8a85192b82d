//! Runs worlds: one, or many on all processors, and says what came of them.

use crate::core::Core;
use crate::scenario::Scenario;
use crate::threads::on_threads;
use crate::trace::Sink;
use crate::violation::{Kind, Violation};
use crate::world::{Tally, World};
use ringfence_cache::Engine;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What came of one world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first thing that must hold and does not.
    pub result: Result<(), Violation>,
    /// What happened, in numbers.
    pub tally: Tally,
    /// The same for the same seed and the same engine.
    pub digest: u64,
}

thread_local! {
    /// The message of the last panic of this thread.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the messages of panics for the report instead of printing them.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IN_WORLD.get() {
                PANIC.with_borrow_mut(|text| *text = info.to_string());
            } else {
                print(info);
            }
        }));
    });
}

thread_local! {
    static IN_WORLD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs the world of a seed.
#[must_use]
pub fn run_seed(seed: u64, sink: Sink) -> Report {
    run_scenario::<Engine>(Scenario::draw(seed), sink)
}

/// Runs the world of a scenario, with any engine.
#[must_use]
pub fn run_scenario<C: Core>(scenario: Scenario, sink: Sink) -> Report {
    keep_panics();
    let seed = scenario.seed;
    let mut world = World::new(scenario, sink);
    IN_WORLD.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| world.run::<C>()));
    IN_WORLD.set(false);
    let result = result
        .unwrap_or_else(|_| Err(Violation::new(Kind::Panic, PANIC.with_borrow(String::clone))));
    Report { seed, result, tally: world.tally, digest: world.trace.digest() }
}

/// What came of many worlds.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many.
    pub worlds: u64,
    /// What happened in all of them.
    pub tally: Tally,
    /// Those that failed.
    pub failures: Vec<Report>,
}

/// Runs the worlds that `draw` makes of consecutive seeds on so many threads, from `first` on,
/// until `more` says no. Each report is handed to `ended` at once.
pub fn run_many(
    draw: fn(u64) -> Scenario,
    first: u64,
    threads: usize,
    more: &(dyn Fn(u64) -> bool + Sync),
    ended: &(dyn Fn(&Report) + Sync),
) -> Summary {
    let next = AtomicU64::new(first);
    let over = AtomicBool::new(false);
    let work = || {
        let mut summary = Summary::default();
        while !over.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !more(seed) {
                over.store(true, Ordering::Relaxed);
                break;
            }
            let report = run_scenario::<Engine>(draw(seed), Sink::Digest);
            summary.worlds += 1;
            summary.tally.add(&report.tally);
            ended(&report);
            if report.result.is_err() {
                summary.failures.push(report);
            }
        }
        summary
    };
    let mut all = Summary::default();
    for summary in on_threads(threads, work) {
        all.worlds += summary.worlds;
        all.tally.add(&summary.tally);
        all.failures.extend(summary.failures);
    }
    all.failures.sort_by_key(|report| report.seed);
    all
}
