//! The production engine with each I/O of some scenarios failing in turn, once and for ever, while
//! it serves and while it recovers: no panic, nothing lost, the documented error.

use ringfence_sim::failures::{BROAD, Case, Failures, Setting, Workload, cases, fail_each};
use ringfence_sim::scenario::ChosenFailure;
use ringfence_sim::threads::processors;
use ringfence_sim::trace::Sink;

/// Each I/O; `ringfence-sim --failures` does so in all cases.
const STRIDE: usize = 1;

/// Failures that once broke a promise.
const REGRESSIONS: [(Case, ChosenFailure); 2] = [
    // A writethrough write was answered whose data the cache device could not give to the origin.
    (
        Case { workload: Workload::Laps, setting: Setting::Writethrough },
        ChosenFailure { first: 620, for_ever: true, in_recovery: false },
    ),
    // The device went away right after the newest segment's first header had been read.
    (
        Case { workload: Workload::Trims, setting: Setting::EagerDestage },
        ChosenFailure { first: 22, for_ever: true, in_recovery: true },
    ),
];

#[test]
fn what_once_failed() {
    for (case, chosen) in REGRESSIONS {
        let report = case.run(Some(chosen), Sink::Digest);
        assert_eq!(report.result, Ok(()), "{case}, {chosen:?}");
        let usual = case.run(None, Sink::Digest);
        assert_ne!(report.digest, usual.digest, "{case}, {chosen:?} changes nothing");
    }
}

#[test]
fn each_io_fails_in_turn() {
    let (mut runs, mut felt) = (0, 0);
    for case in BROAD {
        let failures = fail_each(case, STRIDE, processors());
        let Failures { ios, stop_ios, .. } = failures;
        println!("{case}: {ios:?} I/Os, {stop_ios} of them stopping, {} runs", failures.runs);
        runs += failures.runs;
        felt += failures.felt;
        for (chosen, report) in &failures.broken {
            println!("{case}, {chosen:?}: {:?}", report.result);
        }
        assert!(failures.broken.is_empty(), "{} runs failed", failures.broken.len());
        let [serving, recovering] = failures.ios;
        assert!(serving > 50 && recovering > 10, "{case}: {:?} I/Os", failures.ios);
        assert!(failures.stop_ios > 1, "{case}: {} I/Os of a stop", failures.stop_ios);
    }
    println!("{runs} runs, {felt} of them changed by the failure");
    assert!(felt > runs / 10 * 8, "{runs} runs, {felt} changed");
    assert_eq!(cases().count(), 50);
}
