//! `ringfence-sim SEED` replays one world with a trace; `--worlds N` or `--minutes M` run many;
//! `--bits` damages a small cache in every place.

use ringfence_cache::Engine;
#[cfg(feature = "canary")]
use ringfence_cache::canary;
use ringfence_sim::bits;
use ringfence_sim::exhaustive::exhaust;
use ringfence_sim::failures::{self, Case};
use ringfence_sim::run::{Report, run_many, run_scenario};
use ringfence_sim::scenario::{ChosenFailure, Scenario};
use ringfence_sim::threads::processors;
use ringfence_sim::trace::Sink;
use ringfence_sim::world::Tally;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const USAGE: &str = "usage: ringfence-sim SEED [--quiet] [--digest]
       ringfence-sim --worlds N | --minutes M [--first SEED] [--quiet] [--threads N]
                     [--keep FILE] [--canary RULE]
       ringfence-sim --exhaustive LENGTH [--threads N]
       ringfence-sim --failures [--case NAME [--io N [--for-ever] [--in-recovery] [--trace]]]
                     [--threads N]
       ringfence-sim --bits [--threads N]

SEED prints everything that happens in its world; --digest leaves that out.
--quiet gives every world that can have them quiet faults of the cache device: lost and misdirected
writes, rotten bits, stale sectors. Otherwise a tenth of the worlds has them.
--canary breaks a rule of the log on purpose and ends with the first world that fails; it needs a
build with the feature `canary`.";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    seed: Option<u64>,
    trace: bool,
    /// Of one world: what came of it, and nothing else.
    digest: bool,
    /// Quiet faults wherever a world can have them.
    quiet: bool,
    worlds: Option<u64>,
    minutes: Option<u64>,
    first: Option<u64>,
    threads: Option<usize>,
    /// Fail each I/O of the cases in turn.
    failures: bool,
    /// Only of this case.
    case: Option<String>,
    /// Only this I/O.
    io: Option<u64>,
    for_ever: bool,
    in_recovery: bool,
    /// A file that failing seeds are appended to.
    keep: Option<String>,
    /// The rule to break.
    canary: Option<u8>,
    /// The length of the sequences of which every one is run.
    exhaustive: Option<u64>,
    /// Damage a small cache in every place.
    bits: bool,
}

impl Options {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(processors)
    }

    /// How worlds are drawn.
    fn draw(&self) -> fn(u64) -> Scenario {
        if self.quiet { Scenario::draw_quiet } else { Scenario::draw }
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            "--trace" => options.trace = true,
            "--digest" => options.digest = true,
            "--quiet" => options.quiet = true,
            "--bits" => options.bits = true,
            "--worlds" => options.worlds = Some(number(value()?)?),
            "--minutes" => options.minutes = Some(number(value()?)?),
            "--first" => options.first = Some(number(value()?)?),
            "--threads" => {
                options.threads = usize::try_from(number(value()?)?).ok();
            }
            "--canary" => options.canary = u8::try_from(number(value()?)?).ok(),
            "--exhaustive" => options.exhaustive = Some(number(value()?)?),
            "--failures" => options.failures = true,
            "--case" => options.case = Some(value()?),
            "--io" => options.io = Some(number(value()?)?),
            "--for-ever" => options.for_ever = true,
            "--in-recovery" => options.in_recovery = true,
            "--keep" => options.keep = Some(value()?),
            _ if options.seed.is_none() => options.seed = Some(number(argument)?),
            _ => return Err(format!("{argument} is not known")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    if std::env::args().skip(1).any(|argument| argument == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(rule) = options.canary
        && let Err(error) = break_rule(rule)
    {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    if options.failures {
        return fail_ios(&options);
    }
    if let Some(seed) = options.seed {
        return replay(options.draw()(seed), !options.digest);
    }
    if let Some(length) = options.exhaustive {
        return run_exhaustive(u32::try_from(length).unwrap_or(u32::MAX), options.threads());
    }
    if options.bits {
        return damage_everything(options.threads());
    }
    if options.worlds.is_none() && options.minutes.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    run(&options)
}

/// Breaks a rule, in a build that can.
#[cfg(feature = "canary")]
fn break_rule(rule: u8) -> Result<(), String> {
    if !canary::RULES.contains(&rule) {
        return Err(format!("there are canaries for the rules {:?}", canary::RULES));
    }
    canary::break_rule(rule);
    Ok(())
}

/// Breaks a rule, in a build that can.
#[cfg(not(feature = "canary"))]
fn break_rule(_rule: u8) -> Result<(), String> {
    Err("this build has no canaries: build it with `--features canary`".into())
}

/// Runs one world and says what came of it.
fn replay(scenario: Scenario, trace: bool) -> ExitCode {
    let sink = if trace { Sink::Print } else { Sink::Digest };
    if trace {
        println!("{scenario:#?}");
    }
    let seed = scenario.seed;
    let report = run_scenario::<Engine>(scenario, sink);
    println!(
        "seed {seed}: digest {:016x}, {}; faults: {}",
        report.digest,
        counts(&report.tally),
        report.tally.faults
    );
    match report.result {
        Ok(()) => ExitCode::SUCCESS,
        Err(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every sequence of a length and says what came of them.
fn run_exhaustive(length: u32, threads: usize) -> ExitCode {
    let start = Instant::now();
    let exhausted = exhaust(length, threads);
    for (sequence, pace, violation) in &exhausted.broken {
        println!("{sequence:?} {pace:?} failed: {violation}");
    }
    println!(
        "{} sequences of length {length}, {} crash points, {} failures in {:.1} s",
        exhausted.sequences,
        exhausted.crash_points,
        exhausted.broken.len(),
        start.elapsed().as_secs_f64(),
    );
    if exhausted.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Fails each I/O of each case in turn, or one of one, and says what came of it.
fn fail_ios(options: &Options) -> ExitCode {
    let wanted = |case: &Case| options.case.as_ref().is_none_or(|name| *name == case.to_string());
    let (mut runs, mut felt, mut broken, mut all) = (0, 0, 0, 0);
    for case in failures::cases().filter(wanted) {
        if let Some(first) = options.io {
            let Options { for_ever, in_recovery, trace, .. } = *options;
            let sink = if trace { Sink::Print } else { Sink::Digest };
            let chosen = ChosenFailure { first, for_ever, in_recovery };
            let report = case.run(Some(chosen), sink);
            println!("{case}: {:?}", report.result);
            return if report.result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        let found = failures::fail_each(case, 1, options.threads());
        let [serving, recovering] = found.ios;
        println!(
            "{case}: {serving} I/Os serving, {recovering} recovering, {} runs, {} of them changed \
             by the failure, {} broken",
            found.runs,
            found.felt,
            found.broken.len()
        );
        for (chosen, report) in &found.broken {
            println!("  {chosen:?}: {:?}", report.result);
        }
        runs += found.runs;
        felt += found.felt;
        broken += found.broken.len();
        all += 1;
    }
    println!("{all} cases, {runs} runs, {felt} of them changed by the failure, {broken} broken");
    if broken == 0 && all > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Damages a small cache in every place and says what came of it.
fn damage_everything(threads: usize) -> ExitCode {
    let mut undetected = 0;
    for scope in [bits::Scope::Whole, bits::Scope::Payload, bits::Scope::Metadata] {
        let start = Instant::now();
        let tally = bits::run(scope, threads, |undetected| println!("{undetected}"));
        let seconds = start.elapsed().as_secs_f64();
        println!("{scope:?}: {tally} in {seconds:.1} s");
        undetected += tally.undetected;
    }
    if undetected == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs many worlds and says what came of them.
fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let limit = options.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let first = options.first.unwrap_or(1);
    let end = options.worlds.map(|worlds| first + worlds);
    let threads = options.threads();
    let found = AtomicBool::new(false);
    let more = |seed| {
        end.is_none_or(|end| seed < end)
            && limit.is_none_or(|limit| start.elapsed() < limit)
            && !found.load(Ordering::Relaxed)
    };
    let ended = |report: &Report| {
        if let Err(violation) = &report.result {
            // A canary is found once; a run looks for more.
            found.store(options.canary.is_some(), Ordering::Relaxed);
            println!("seed {} failed: {violation}", report.seed);
            keep(options, report.seed);
        }
    };
    let summary = run_many(options.draw(), first, threads, &more, &ended);
    let seconds = start.elapsed().as_secs_f64();
    let tally = summary.tally;
    let per_hour = |count: u64| count as f64 * 3600.0 / seconds;
    println!(
        "{} worlds, {}, {} failures in {seconds:.1} s; per hour {:.0} worlds, {:.0} crash points, \
         {:.0} operations, {:.0} failures\n\
         faults: {}",
        summary.worlds,
        counts(&tally),
        summary.failures.len(),
        per_hour(summary.worlds),
        per_hour(tally.crash_points),
        per_hour(tally.operations),
        per_hour(summary.failures.len() as u64),
        tally.faults,
    );
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What happened in one world or many.
fn counts(tally: &Tally) -> String {
    let Tally { crash_points, points_without_loss, operations, laps, tier_hits, .. } = tally;
    format!(
        "{crash_points} crash points ({points_without_loss} without any loss), {operations} \
         operations, {laps} laps of the log, {tier_hits} hits of the memory tier"
    )
}

/// Appends a failing seed to a file, so that it is not lost when the terminal is.
fn keep(options: &Options, seed: u64) {
    use std::io::Write;
    let Some(path) = &options.keep else { return };
    let quiet = if options.quiet { " quiet" } else { "" };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{seed}{quiet}")) {
        eprintln!("{path}: {error}: seed {seed} is not kept");
    }
}
