//! Segments whose footer comes wrong, or not at all, while the cache is served: rules 4 and 25.

use crate::bench::Bench;
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::limits::{SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, footer_bytes};
use ringfence_cache::units::BLOCK_BYTES;
use ringfence_cache::{Control, Mode, Notice, Order};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const MIB: u64 = 1 << 20;
const RECORD_BYTES: usize = 257 * BLOCK_BYTES;
const SEGMENT: usize = SEGMENTS_OFFSET as usize;
const FOOTER: usize = SEGMENT + (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) as usize;
/// Somewhere in the footer's second block, which holds a part of its summary.
const IN_SUMMARY: usize = FOOTER + BLOCK_BYTES + 100;

#[derive(Clone, Copy, Debug)]
enum Fault {
    FailsOnce,
    FooterUnreadable,
    FooterDamaged,
    FooterOfAnother,
    FooterOfSameUse,
}

const HEALED: [Fault; 5] = [
    Fault::FailsOnce,
    Fault::FooterUnreadable,
    Fault::FooterDamaged,
    Fault::FooterOfAnother,
    Fault::FooterOfSameUse,
];

impl Fault {
    fn apply(self, bench: &mut Bench) {
        match self {
            Self::FailsOnce => bench.faults.failing_reads = 1,
            Self::FooterUnreadable => bench.faults.unreadable = vec![FOOTER],
            Self::FooterDamaged => bench.disk.bytes[IN_SUMMARY] ^= 4,
            Self::FooterOfAnother => {
                let other = FOOTER + SEGMENT_BYTES_MIN as usize;
                let length = footer_bytes(SEGMENT_BYTES_MIN) as usize;
                bench.disk.bytes.copy_within(other..other + length, FOOTER);
            }
            // What an earlier life had written there was accepted as lost.
            Self::FooterOfSameUse => {
                let other = dirty_from([6, 5, 4, 3, 2, 1, 0]);
                let length = footer_bytes(SEGMENT_BYTES_MIN) as usize;
                let footer = &other.disk.bytes[FOOTER..FOOTER + length];
                bench.disk.bytes[FOOTER..FOOTER + length].copy_from_slice(footer);
            }
        }
    }
}

/// Seven steps of bytes 1, 2 …, an epoch each, three in a segment, on the device only.
fn dirty() -> Bench {
    dirty_from([0, 1, 2, 3, 4, 5, 6])
}

/// The same, in another order.
fn dirty_from(steps: [u64; 7]) -> Bench {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    for step in steps {
        bench.write(0, step * MIB, MIB, step as u8 + 1).expect("written");
        bench.flush().expect("flushed");
    }
    bench.restart();
    bench.faults.origin_writes_of = None;
    bench
}

/// The same, of which the origin has everything.
fn clean() -> Bench {
    let mut bench = dirty();
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench
}

fn on_origin(bench: &Bench) -> Vec<u8> {
    (0..7).map(|step| bench.origin(0, step * 256 + 255)).collect()
}

fn content(bench: &mut Bench) -> Vec<Option<u8>> {
    (0..7).map(|step| bench.read(step * 256 + 255, 1)[0]).collect()
}

fn has_damaged_segment(bench: &Bench) -> bool {
    bench.notices.iter().any(|notice| matches!(notice, Notice::SegmentDamaged { .. }))
}

/// The second export writes until a condition holds.
fn write_until(bench: &mut Bench, holds: impl Fn(&mut Bench) -> bool) {
    for at in 0..40 {
        if holds(bench) {
            return;
        }
        bench.write(1, at % 7 * MIB, MIB, 100).expect("written");
        bench.pass(1_000_000_000);
    }
    panic!("it never holds");
}

#[test]
fn destage_goes_on_without_the_footer() {
    for fault in HEALED {
        let mut bench = dirty();
        fault.apply(&mut bench);
        assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())), "{fault:?}");
        assert_eq!(on_origin(&bench), [1, 2, 3, 4, 5, 6, 7], "{fault:?}");
        assert_eq!(bench.notices, [], "{fault:?}");
    }
}

#[test]
fn reclaim_goes_on_without_the_footer() {
    for fault in HEALED {
        let mut bench = clean();
        // Out of what the start left.
        write_until(&mut bench, |bench| bench.engine_counter(Counter::SegmentsFree) <= 6);
        assert_eq!(bench.engine_counter(Counter::SegmentsReclaimed), 0);
        fault.apply(&mut bench);
        write_until(&mut bench, |bench| bench.engine_counter(Counter::SegmentsReclaimed) > 0);
        assert_eq!(bench.engine_counter(Counter::Latched), 0, "{fault:?}");
        assert_eq!(bench.notices, [], "{fault:?}");
        bench.faults.unreadable.clear();
        assert_eq!(content(&mut bench), [1, 2, 3, 4, 5, 6, 7].map(Some), "{fault:?}");
    }
}

#[test]
fn destage_waits_for_a_segment_that_cannot_be_read_and_says_so() {
    for header in [SEGMENT, SEGMENT + RECORD_BYTES] {
        let mut bench = dirty();
        bench.faults.unreadable = vec![FOOTER, header];
        assert_eq!(bench.control(Control::Drain(None)), None, "it is tried again");
        assert_eq!(on_origin(&bench), [0xee; 7]);
        bench.pass(60_000_000_000);
        assert_eq!(bench.counter(ExportCounter::Damaged), 1);
        let damaged = |notice: &&Notice| matches!(notice, Notice::DestageDamaged { .. });
        assert_eq!(bench.notices.iter().filter(damaged).count(), 1, "said once");
        let errors = bench.engine_counter(Counter::SummaryErrors);
        assert!((10..=14).contains(&errors), "every five seconds: {errors}");
        // Nobody else notices.
        bench.write(1, 0, 4096, 9).expect("written");
        bench.flush().expect("flushed");
        bench.pass(10_000_000_000);
        assert_eq!(bench.origin(1, 0), 9);

        bench.faults.unreadable.clear();
        bench.pass(10_000_000_000);
        assert_eq!(on_origin(&bench), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(bench.counter(ExportCounter::Damaged), 0);
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_not_reclaimed_and_stops_nothing_else() {
    let mut bench = clean();
    bench.faults.unreadable = vec![FOOTER, SEGMENT + RECORD_BYTES];
    write_until(&mut bench, |bench| has_damaged_segment(bench));
    assert_eq!(bench.engine_counter(Counter::Latched), 0);
    assert_eq!(bench.engine_counter(Counter::SegmentsReclaimed), 0);
    bench.write(1, 0, 4096, 9).expect("there is room yet");
    bench.flush().expect("flushed");
    assert_eq!(content(&mut bench), [1, 2, 3, 4, 5, 6, 7].map(Some));
    bench.pass(60_000_000_000);
    let errors = bench.engine_counter(Counter::SummaryErrors);
    assert!((10..=20).contains(&errors), "every five seconds: {errors}");
    assert_eq!(bench.origin(1, 0), 9);

    bench.faults.unreadable.clear();
    bench.pass(6_000_000_000);
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) > 0);
    // A stop does not wait for it.
    bench.faults.unreadable = vec![FOOTER, SEGMENT + RECORD_BYTES];
    assert_eq!(bench.control(Control::Stop), Some(Ok(())));
}

/// Clean segments are left behind together; one that cannot be read keeps nobody else's room.
#[test]
fn a_segment_that_cannot_be_read_does_not_keep_those_before_it() {
    const NEXT: usize = SEGMENT_BYTES_MIN as usize;
    let mut bench = clean();
    bench.faults.unreadable = vec![FOOTER + NEXT, SEGMENT + NEXT + RECORD_BYTES];
    write_until(&mut bench, |bench| has_damaged_segment(bench));
    assert_eq!(bench.engine_counter(Counter::SegmentsReclaimed), 1);
    assert_eq!(content(&mut bench), [1, 2, 3, 4, 5, 6, 7].map(Some));
    bench.faults.unreadable.clear();
    bench.pass(6_000_000_000);
    assert!(bench.engine_counter(Counter::SegmentsReclaimed) > 1);
}
