//! Fail each I/O in turn: one scenario is run counting its I/Os, then again for each of them with
//! that one failing, once and for ever; and the same for the operations of its restarts.

use crate::core::Core;
use crate::run::{Report, run_scenario};
use crate::scenario::{ChosenFailure, Faults, Probing, Scenario};
use crate::trace::Sink;

/// The scenario of a seed, short, and with no failure but the chosen one.
#[must_use]
pub fn scenario(seed: u64) -> Scenario {
    let mut scenario = Scenario::draw(seed);
    scenario.faults = Faults { verify_percent: 100, kill_percent: 50, ..Faults::default() };
    scenario.probing = Probing::default();
    scenario.churns = false;
    scenario.lives = 2;
    scenario.steps_max = 400;
    scenario.batch_max = scenario.batch_max.min(4);
    scenario.mix.bytes_max = scenario.mix.bytes_max.min(64 << 10);
    scenario.mix.flush = scenario.mix.flush.max(2);
    for export in &mut scenario.exports {
        // Waiting for an origin that never works again ends.
        export.options.wait_ns_max = 2_000_000_000;
    }
    scenario
}

/// What came of a scenario with each of its I/Os failing.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// Runs with a failure in them.
    pub runs: u64,
    /// Those in which the failure made any difference to what happened.
    pub felt: u64,
    /// Those that broke a promise, with what failed.
    pub broken: Vec<(ChosenFailure, Report)>,
}

/// Runs the scenario of a seed with every `stride`th of its I/Os failing.
#[must_use]
pub fn fail_each<C: Core>(seed: u64, stride: usize) -> Failures {
    let base = run_scenario::<C>(scenario(seed), Sink::Digest);
    let mut failures = Failures::default();
    let counts = [(false, base.tally.ios), (true, base.tally.recovery_ios)];
    for (in_recovery, count) in counts {
        for first in (1..=count).step_by(stride) {
            for for_ever in [false, true] {
                let chosen = ChosenFailure { first, for_ever, in_recovery };
                let report = run_chosen::<C>(seed, chosen, Sink::Digest);
                failures.runs += 1;
                failures.felt += u64::from(report.digest != base.digest);
                if report.result.is_err() {
                    failures.broken.push((chosen, report));
                }
            }
        }
    }
    failures
}

/// Runs the scenario of a seed with one chosen failure.
#[must_use]
pub fn run_chosen<C: Core>(seed: u64, chosen: ChosenFailure, sink: Sink) -> Report {
    run_scenario::<C>(Scenario { chosen_failure: Some(chosen), ..scenario(seed) }, sink)
}
