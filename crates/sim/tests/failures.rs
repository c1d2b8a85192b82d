//! The production engine with each I/O of a scenario failing in turn, once and for ever, while
//! it serves and while it recovers: no panic, nothing lost, the documented error.

use ringfence_cache::Engine;
use ringfence_sim::failures::fail_each;

/// Scenarios; the stride keeps each to some hundred runs.
const SCENARIOS: std::ops::Range<u64> = 0..5;
const STRIDE: usize = 3;

#[test]
fn each_io_fails_in_turn() {
    let (mut runs, mut felt) = (0, 0);
    for seed in SCENARIOS {
        let failures = fail_each::<Engine>(seed, STRIDE);
        runs += failures.runs;
        felt += failures.felt;
        for (chosen, report) in &failures.broken {
            println!("scenario {seed}, {chosen:?}: {:?}", report.result);
        }
        assert!(failures.broken.is_empty(), "{} runs failed", failures.broken.len());
    }
    println!("{runs} runs, {felt} of them changed by the failure");
    assert!(runs > 200 && felt > runs / 2, "{runs} runs, {felt} changed");
}
