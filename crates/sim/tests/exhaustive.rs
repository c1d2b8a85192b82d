//! The production engine with every sequence of three operations, and every crash after it.

use ringfence_cache::Engine;
use ringfence_sim::exhaustive::{OPERATIONS, exhaust};

const LENGTH: u32 = 4;

#[test]
fn every_short_sequence_survives_every_crash() {
    let exhausted = exhaust::<Engine>(LENGTH);
    for (sequence, violation) in &exhausted.broken {
        println!("{sequence:?}: {violation}");
    }
    println!("{} sequences, {} crash points", exhausted.sequences, exhausted.crash_points);
    assert!(exhausted.broken.is_empty(), "{} sequences failed", exhausted.broken.len());
    assert_eq!(exhausted.sequences, (OPERATIONS.len() as u64).pow(LENGTH));
    assert!(exhausted.crash_points > exhausted.sequences, "unflushed writes were left out");
}
