//! Fail each I/O in turn: a scenario is run counting its I/Os, then again for each of them with
//! that one failing, once and for ever; and the same for the operations of its restarts.
//!
//! A scenario is a workload in a setting. All of them together are every workload in every
//! setting; the broad ones are each workload and each setting at least once.

use crate::run::{Report, run_scenario};
use crate::scenario::{ChosenFailure, ExportScenario, Faults, Mix, Probing, Scenario};
use crate::stop::Stops;
use crate::threads::on_threads;
use crate::trace::Sink;
use ringfence_cache::units::BLOCK_BYTES_U64;
use ringfence_cache::{Config, Engine, Mode, Order};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Whole blocks, a flush now and then.
    Writes,
    /// Whole blocks, half of them with FUA.
    FuaWrites,
    /// Pieces of blocks.
    SubBlockWrites,
    /// Trims among writes.
    Trims,
    /// Zeroes among writes, of pieces of blocks too.
    Zeroes,
    /// Reads of what nobody wrote.
    Misses,
    /// Steps of up to 1 MiB.
    LargeSteps,
    /// All on the same few blocks.
    HotBlocks,
    /// Everything.
    Mixed,
    /// As much as fills the log, so that it is reclaimed.
    Laps,
}

/// What they ask it of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// One export, writeback, epochs in order.
    Strict,
    /// One export, writeback, epochs in any order.
    Relaxed,
    /// One export, writethrough.
    Writethrough,
    /// Two exports, strict and relaxed.
    TwoExports,
    /// One export whose origin loses its power with the cache, written to as soon as possible.
    EagerDestage,
}

/// A workload in a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What clients ask for.
    pub workload: Workload,
    /// What they ask it of.
    pub setting: Setting,
}

const WORKLOADS: [Workload; 10] = [
    Workload::Writes,
    Workload::FuaWrites,
    Workload::SubBlockWrites,
    Workload::Trims,
    Workload::Zeroes,
    Workload::Misses,
    Workload::LargeSteps,
    Workload::HotBlocks,
    Workload::Mixed,
    Workload::Laps,
];

const SETTINGS: [Setting; 5] = [
    Setting::Strict,
    Setting::Relaxed,
    Setting::Writethrough,
    Setting::TwoExports,
    Setting::EagerDestage,
];

/// The cases of every test run.
pub const BROAD: [Case; 5] = [
    Case { workload: Workload::Mixed, setting: Setting::Strict },
    Case { workload: Workload::SubBlockWrites, setting: Setting::Relaxed },
    Case { workload: Workload::Trims, setting: Setting::Writethrough },
    Case { workload: Workload::Misses, setting: Setting::TwoExports },
    Case { workload: Workload::FuaWrites, setting: Setting::EagerDestage },
];

/// All cases.
pub fn cases() -> impl Iterator<Item = Case> {
    let of = |workload| SETTINGS.into_iter().map(move |setting| Case { workload, setting });
    WORKLOADS.into_iter().flat_map(of)
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}-{:?}", self.workload, self.setting)
    }
}

impl Workload {
    fn mix(self) -> Mix {
        let writes = Mix {
            read: 20,
            write: 60,
            flush: 15,
            trim: 0,
            zeroes: 0,
            fua_percent: 0,
            aligned_percent: 100,
            hot_percent: 0,
            bytes_max: 64 << 10,
            pause_ns_max: 5_000_000,
        };
        match self {
            Self::Writes => writes,
            Self::FuaWrites => Mix { fua_percent: 50, flush: 0, ..writes },
            Self::SubBlockWrites => Mix { aligned_percent: 0, bytes_max: 8 << 10, ..writes },
            Self::Trims => Mix { trim: 40, ..writes },
            Self::Zeroes => Mix { zeroes: 40, aligned_percent: 50, ..writes },
            Self::Misses => Mix { read: 150, write: 15, ..writes },
            Self::LargeSteps => Mix { bytes_max: 1 << 20, ..writes },
            Self::HotBlocks => Mix { hot_percent: 100, aligned_percent: 50, ..writes },
            Self::Mixed => {
                Mix { trim: 10, zeroes: 10, fua_percent: 10, aligned_percent: 70, ..writes }
            }
            Self::Laps => Mix { read: 5, write: 200, flush: 1, bytes_max: 1 << 20, ..writes },
        }
    }

    /// Events of the engine in each of the lives.
    fn steps(self) -> u64 {
        if self == Self::Laps { 1_500 } else { 400 }
    }
}

impl Setting {
    fn apply(self, scenario: &mut Scenario) {
        let one = scenario.exports[0].clone();
        let export = |index: u8, mode, order| {
            let mut export = one.clone();
            export.options.name = format!("export-{index}");
            export.options.uuid = [index + 1; 16];
            export.options.origin.name = format!("origin-{index}");
            export.options.origin.size_bytes = 256 * BLOCK_BYTES_U64 - 512;
            export.options.mode = mode;
            export.options.order = order;
            export.options.dirty_bytes_max = None;
            // Waiting for an origin that never works again ends.
            export.options.wait_ns_max = 2_000_000_000;
            ExportScenario { starts_empty: false, shares_power: false, ..export }
        };
        scenario.exports = match self {
            Self::Strict => vec![export(0, Mode::Writeback, Order::Strict)],
            Self::Relaxed => vec![export(0, Mode::Writeback, Order::Relaxed)],
            Self::Writethrough => vec![export(0, Mode::Writethrough, Order::Strict)],
            Self::TwoExports => vec![
                export(0, Mode::Writeback, Order::Strict),
                export(1, Mode::Writeback, Order::Relaxed),
            ],
            Self::EagerDestage => {
                scenario.config.destage_high_percent = 1;
                scenario.config.destage_idle_ns = 100_000;
                let eager = export(0, Mode::Writeback, Order::Strict);
                vec![ExportScenario { shares_power: true, ..eager }]
            }
        };
    }
}

impl Case {
    /// Its world, with no failure but the chosen one.
    #[must_use]
    pub fn scenario(self) -> Scenario {
        let seed = 100 * self.workload as u64 + self.setting as u64;
        let mut scenario = Scenario::draw(seed);
        scenario.unit_bytes = 512;
        scenario.extra_log_segments = 0;
        scenario.config = Config {
            requests_max: crate::scenario::REQUESTS_MAX,
            destage_age_ns: 1_000_000_000,
            destage_idle_ns: 50_000_000,
            ..Config::default()
        };
        self.setting.apply(&mut scenario);
        scenario.mix = self.workload.mix();
        scenario.faults =
            Faults { verify_percent: 100, kill_percent: 40, stop_percent: 20, ..Faults::default() };
        scenario.probing = Probing::default();
        scenario.lives_differ = false;
        scenario.moods_change = false;
        scenario.stops = Stops::Failing;
        // Each life has all its steps.
        scenario.churns = true;
        scenario.lives = 2;
        scenario.steps_max = self.workload.steps();
        (scenario.clients, scenario.batch_max) = (2, 4);
        // One of each kind.
        scenario.simple_clients = 0b10;
        (scenario.device_ns, scenario.origin_ns, scenario.turn_ns) = (50_000, 500_000, 1_000);
        scenario
    }

    /// Runs it with one chosen failure, or none.
    #[must_use]
    pub fn run(self, chosen: Option<ChosenFailure>, sink: Sink) -> Report {
        run_scenario::<Engine>(Scenario { chosen_failure: chosen, ..self.scenario() }, sink)
    }
}

/// What came of a case with each of its I/Os failing.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// I/Os while serving, and operations of restarts.
    pub ios: [u64; 2],
    /// Those of the first that a stop asked for.
    pub stop_ios: u64,
    /// Runs with a failure in them.
    pub runs: u64,
    /// Those in which the failure made any difference to what happened.
    pub felt: u64,
    /// Those that broke a promise, with what failed; of a run without a failure, nothing.
    pub broken: Vec<(Option<ChosenFailure>, Report)>,
}

/// Runs a case with every `stride`th of its I/Os failing, once and for ever, on so many threads.
#[must_use]
pub fn fail_each(case: Case, stride: usize, threads: usize) -> Failures {
    let base = case.run(None, Sink::Digest);
    let ios = [base.tally.ios, base.tally.recovery_ios];
    let chosen: Vec<_> = choose(ios, stride).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut mine = Failures::default();
        while let Some(&chosen) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            let report = case.run(Some(chosen), Sink::Digest);
            mine.runs += 1;
            mine.felt += u64::from(report.digest != base.digest);
            if report.result.is_err() {
                mine.broken.push((Some(chosen), report));
            }
        }
        mine
    };
    let stop_ios = base.tally.stop_ios;
    let mut failures = Failures { ios, stop_ios, ..Failures::default() };
    for some in on_threads(threads, work) {
        failures.runs += some.runs;
        failures.felt += some.felt;
        failures.broken.extend(some.broken);
    }
    if base.result.is_err() {
        failures.broken.push((None, base));
    }
    let place = |chosen: ChosenFailure| (chosen.in_recovery, chosen.first, chosen.for_ever);
    failures.broken.sort_by_key(|(chosen, _)| chosen.map(place));
    failures
}

/// Every `stride`th of so many I/Os serving and operations of restarts, once and for ever.
fn choose(ios: [u64; 2], stride: usize) -> impl Iterator<Item = ChosenFailure> {
    [false, true].into_iter().zip(ios).flat_map(move |(in_recovery, count)| {
        (1..=count).step_by(stride).flat_map(move |first| {
            let fail = move |for_ever| ChosenFailure { first, for_ever, in_recovery };
            [false, true].map(fail)
        })
    })
}
