//! Damage in one place at a time: every bit of 64 KiB of metadata flipped, every structure zeroed,
//! swapped and aged, payload flipped. All bits of all structures: `npm run sim -- --bits`.

use ringfence_sim::bits::{BLOCK_BITS, Image, Scope, Tally, Undetected, run, run_undamaged};
use ringfence_sim::threads::processors;
use std::io::Write;

fn run_all(scope: Scope) -> Tally {
    // Written past the capture of the test harness, so that it is seen when it is found.
    let say = |undetected: &Undetected| {
        writeln!(std::io::stderr(), "{undetected}").expect("standard error");
    };
    let tally = run(scope, processors(), say);
    println!("{scope:?}: {tally}");
    assert_eq!(tally.undetected, 0, "of {} trials", tally.trials);
    tally
}

#[test]
fn the_image_as_it_is_is_clean() {
    let report = run_undamaged().expect("everything reads as it should");
    assert!(report.is_clean(), "{report:#?}");
    // The record that was not written whole is noted, and so is the one that another cache left
    // where the next segment begins: it passes for a header of this one that was damaged.
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    assert_eq!(report.log.next_sequence, 113);
    assert_eq!(report.log.durable, 111);
    let sizes = report.exports.iter().map(|one| (one.live_bytes >> 12, one.dirty_bytes >> 12));
    assert_eq!(sizes.collect::<Vec<_>>(), [(17, 7), (13, 19)]);
}

#[test]
fn every_bit_of_64_kib_of_metadata() {
    let tally = run_all(Scope::Metadata64KiB);
    assert_eq!(tally.trials, 16 * BLOCK_BITS as u64);
    assert!(tally.healed > 0 && tally.refused > 0 && tally.cut > 0, "{tally:?}");
}

#[test]
fn every_structure_zeroed_swapped_and_aged() {
    let tally = run_all(Scope::Whole);
    assert_eq!(tally.trials, 3 * Image::new().structures.len() as u64, "{tally:?}");
}

#[test]
fn payload_of_all_kinds() {
    let tally = run_all(Scope::Payload);
    assert!(tally.fetched > 0 && tally.failed_blocks > 0 && tally.cut > 0, "{tally:?}");
}
