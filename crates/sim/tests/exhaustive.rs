//! The production engine with every short sequence of operations, and every crash in it.

use ringfence_sim::exhaustive::{OPERATIONS, exhaust};
use ringfence_sim::threads::processors;

/// `ringfence-sim --exhaustive 4` goes one further; it takes ten times as long.
const LENGTH_MAX: u32 = 3;
/// With the random worlds, more than 200,000.
const CRASH_POINTS_MIN: u64 = 60_000;

#[test]
fn every_short_sequence_survives_every_crash() {
    let mut total = 0;
    for length in 1..=LENGTH_MAX {
        let exhausted = exhaust(length, processors());
        for (sequence, pace, violation) in &exhausted.broken {
            println!("{sequence:?} {pace:?}: {violation}");
        }
        let (sequences, crash_points) = (exhausted.sequences, exhausted.crash_points);
        let cuts = exhausted.cuts_in_recovery;
        println!(
            "length {length}: {sequences} sequences, {crash_points} crash points, {cuts} cuts in \
             recovery"
        );
        assert!(exhausted.broken.is_empty(), "{} sequences failed", exhausted.broken.len());
        assert_eq!(sequences, (OPERATIONS.len() as u64).pow(length));
        assert_eq!(exhausted.points_without_loss, crash_points, "nothing excuses a loss here");
        assert!(crash_points > 10 * sequences, "unflushed writes were left out");
        // One sequence of ten ends with a restart, at both paces: two writes or more, each flushed.
        assert!(cuts >= 2 * 4 * sequences / 10, "recoveries were left out: {cuts} cuts");
        total += crash_points;
    }
    assert!(total > CRASH_POINTS_MIN, "{total} crash points");
}
