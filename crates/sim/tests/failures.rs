//! The production engine with each I/O of some scenarios failing in turn, once and for ever, while
//! it serves and while it recovers: no panic, nothing lost, the documented error.

use ringfence_sim::failures::{BROAD, cases, fail_each};
use ringfence_sim::threads::processors;

/// Every so many I/Os; `ringfence-sim --failures` fails each, in all cases.
const STRIDE: usize = 8;

#[test]
fn each_io_fails_in_turn() {
    let (mut runs, mut felt) = (0, 0);
    for case in BROAD {
        let failures = fail_each(case, STRIDE, processors());
        println!("{case}: {:?} I/Os, {} runs", failures.ios, failures.runs);
        runs += failures.runs;
        felt += failures.felt;
        for (chosen, report) in &failures.broken {
            println!("{case}, {chosen:?}: {:?}", report.result);
        }
        assert!(failures.broken.is_empty(), "{} runs failed", failures.broken.len());
        let [serving, recovering] = failures.ios;
        assert!(serving > 50 && recovering > 10, "{case}: {:?} I/Os", failures.ios);
    }
    println!("{runs} runs, {felt} of them changed by the failure");
    assert!(felt > runs / 10 * 9, "{runs} runs, {felt} changed");
    assert_eq!(cases().count(), 50);
}
