//! `ringfence-sim SEED [--trace]` replays one world; `--worlds N` or `--minutes M` run many.

use ringfence_cache::Engine;
use ringfence_sim::run::{Report, run_many, run_seed};
use ringfence_sim::trace::Sink;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: ringfence-sim SEED [--trace]
       ringfence-sim --worlds N | --minutes M [--first SEED] [--threads N] [--keep FILE]";

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    seed: Option<u64>,
    trace: bool,
    worlds: Option<u64>,
    minutes: Option<u64>,
    first: Option<u64>,
    threads: Option<usize>,
    /// A file that failing seeds are appended to.
    keep: Option<String>,
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            "--trace" => options.trace = true,
            "--worlds" => options.worlds = Some(number(value()?)?),
            "--minutes" => options.minutes = Some(number(value()?)?),
            "--first" => options.first = Some(number(value()?)?),
            "--threads" => {
                options.threads = usize::try_from(number(value()?)?).ok();
            }
            "--keep" => options.keep = Some(value()?),
            _ if options.seed.is_none() => options.seed = Some(number(argument)?),
            _ => return Err(format!("{argument} is not known")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = options.seed {
        return replay(seed, options.trace);
    }
    if options.worlds.is_none() && options.minutes.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    run(&options)
}

/// Runs one world and says what came of it.
fn replay(seed: u64, trace: bool) -> ExitCode {
    let sink = if trace { Sink::Print } else { Sink::Digest };
    if trace {
        println!("{:#?}", ringfence_sim::scenario::Scenario::draw(seed));
    }
    let report = run_seed::<Engine>(seed, sink);
    println!("seed {seed}: digest {:016x}, {:?}", report.digest, report.tally);
    match report.result {
        Ok(()) => ExitCode::SUCCESS,
        Err(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
    }
}

/// Runs many worlds and says what came of them.
fn run(options: &Options) -> ExitCode {
    let start = Instant::now();
    let limit = options.minutes.map(|minutes| Duration::from_secs(minutes * 60));
    let first = options.first.unwrap_or(1);
    let end = options.worlds.map(|worlds| first + worlds);
    let threads = options
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    let more = |seed| {
        end.is_none_or(|end| seed < end) && limit.is_none_or(|limit| start.elapsed() < limit)
    };
    let failed = |report: &Report| {
        if let Err(violation) = &report.result {
            println!("seed {} failed: {violation}", report.seed);
            keep(options.keep.as_deref(), report.seed);
        }
    };
    let summary = run_many::<Engine>(first, threads, more, failed);
    let seconds = start.elapsed().as_secs_f64();
    let tally = summary.tally;
    println!(
        "{} worlds, {} crash points, {} operations, {} laps of the log, {} failures in \
         {seconds:.1} s: {:.0} crash points per hour\nfaults: {}",
        summary.worlds,
        tally.crash_points,
        tally.operations,
        tally.laps,
        summary.failures.len(),
        tally.crash_points as f64 * 3600.0 / seconds,
        tally.faults,
    );
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Appends a failing seed to a file, so that it is not lost when the terminal is.
fn keep(path: Option<&str>, seed: u64) {
    use std::io::Write;
    let Some(path) = path else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{seed}")) {
        eprintln!("{path}: {error}: seed {seed} is not kept");
    }
}
