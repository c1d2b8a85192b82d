//! Damaged blocks: rules 25 and 31, promise 6.

use crate::bench::{Bench, EXPORT_BLOCKS};
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::{Command, Control, ExportSlot, Mode, Notice, Order, RequestError};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const RELAXED: (Mode, Order) = (Mode::Writeback, Order::Relaxed);
const ACCEPT: Control = Control::AcceptLoss(ExportSlot(0));

/// Blocks 0 to 7, dirty, of bytes 1 to 8, on the device only.
fn dirty(export: (Mode, Order)) -> Bench {
    let mut bench = Bench::new(&[export]);
    for block in 0..8 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    bench.restart();
    bench
}

/// Another export, whose origin is up, writes until it needs the oldest segment.
fn reclaim_oldest_segment(bench: &mut Bench) {
    for at in 0..100 {
        if bench.engine_counter(Counter::SegmentsReclaimed) > 0 {
            return;
        }
        bench.write(1, at % 7 * 256 * 4096, 1 << 20, 100).expect("written");
    }
    panic!("the oldest segment is not reclaimed");
}

fn damaged_notices(bench: &Bench) -> usize {
    let damaged = |notice: &&Notice| matches!(notice, Notice::DestageDamaged { .. });
    bench.notices.iter().filter(damaged).count()
}

#[test]
fn a_bad_dirty_block_is_lost_and_no_other() {
    let mut bench = dirty(STRICT);
    bench.disk.damage(4);
    let expected = [1, 2, 3, 0, 5, 6, 7, 8].map(|byte| (byte != 0).then_some(byte));
    assert_eq!(bench.read(0, 8), expected);
    assert_eq!(bench.read_whole(0, 8), Err(RequestError::Io), "simple replies have one result");
    assert_eq!(bench.read_whole(0, 3), Ok(vec![1, 2, 3]), "a request beside it");
    assert_eq!(bench.read_whole(4, 4), Ok(vec![5, 6, 7, 8]));
    assert_eq!(bench.counter(ExportCounter::ChecksumErrorsDirty), 1, "counted once");
}

#[test]
fn a_bad_block_stays_bad_until_it_is_overwritten_whatever_restarts() {
    let mut bench = dirty(STRICT);
    bench.disk.damage(4);
    assert_eq!(bench.read(3, 1), [None]);
    bench.flush().expect("flushed");
    bench.restart();
    // Even an intact block in the old place is not the answer: it was said to be lost.
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    assert_eq!(bench.write(0, 3 * 4096 + 5, 9, 9), Err(RequestError::Io), "a part is not enough");
    assert_eq!(bench.read(3, 1), [None]);
    bench.write_block(3, 44);
    assert_eq!(bench.read(2, 3), [Some(3), Some(44), Some(5)]);
    bench.flush().expect("flushed");
    bench.restart();
    assert_eq!(bench.read(3, 1), [Some(44)]);
}

#[test]
fn zeroes_and_trims_overwrite_a_bad_block_too() {
    for command in
        [Command::Trim { fua: false }, Command::WriteZeroes { fua: false, no_hole: true }]
    {
        let mut bench = dirty(STRICT);
        bench.disk.damage(4);
        assert_eq!(bench.read(3, 1), [None]);
        bench.submit(0, command, 3 * 4096, 4096);
        assert_eq!(bench.read(2, 3), [Some(3), Some(0), Some(5)]);
    }
}

#[test]
fn a_wrong_bit_that_does_not_come_twice_loses_nothing() {
    let mut bench = dirty(STRICT);
    bench.faults.rot_reads = 1;
    assert_eq!(bench.read_whole(0, 8), Ok(vec![1, 2, 3, 4, 5, 6, 7, 8]));
    bench.faults.rot_reads = 1;
    bench.write(0, 5, 10, 77).expect("merged with what is read again");
    assert_eq!(bench.read_whole(0, 1), Ok(vec![1]));
    bench.restart();
    bench.faults.rot_reads = 1;
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.notices, []);
}

#[test]
fn what_cannot_be_read_now_may_be_read_later() {
    let mut bench = dirty(STRICT);
    let at = bench.disk.blocks_of(4)[0];
    bench.faults.unreadable = vec![at];
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)], "exactly that block");
    assert_eq!(bench.control(Control::Drain(None)), None, "destage tries again and again");
    assert_eq!(bench.origin(0, 3), 0xee);
    assert_eq!(bench.counter(ExportCounter::Damaged), 1);
    bench.faults.unreadable.clear();
    assert_eq!(bench.read(2, 3), [Some(3), Some(4), Some(5)]);
    bench.pass(6_000_000_000);
    assert_eq!(bench.origin(0, 3), 4);
    assert_eq!(bench.counter(ExportCounter::Damaged), 0);
}

/// What may be readable later is not tried again once the cache stops, however long that takes.
#[test]
fn a_stop_does_not_wait_for_what_may_be_readable_later() {
    let mut bench = dirty(STRICT);
    bench.restart();
    bench.faults.unreadable = bench.disk.blocks_of(4);
    bench.pass(1_000_000_000);
    assert_eq!(bench.counter(ExportCounter::Damaged), 1);
    bench.faults.hold_device_writes = true;
    bench.write_block(20, 20);
    assert_eq!(bench.control(Control::Stop), None, "its last record is on its way");
    bench.idle(60_000_000_000);
    bench.faults.hold_device_writes = false;
    bench.release_device_writes();
    bench.idle(1_000_000_000);
}

/// What may be readable later keeps destage trying. What the origin is given again with each try
/// is no progress that a write could wait for.
#[test]
fn what_is_written_again_beside_damage_is_no_progress() {
    let mut bench = dirty(STRICT);
    // Longer than between two tries.
    let wait_ns = 20_000_000_000;
    bench.options[0].wait_ns_max = wait_ns;
    bench.restart();
    bench.faults.unreadable = bench.disk.blocks_of(4);
    let waiting = (0..100).find_map(|count| {
        let ticket = bench.begin_write_to(0, count % 7 * (1 << 20), 1 << 20, 7);
        bench.settle();
        bench.answer(ticket).is_none().then_some(ticket)
    });
    let waiting = waiting.expect("dirty data has a limit");
    let before = bench.counter(ExportCounter::OriginWrites);
    for _ in 0..100 {
        bench.pass(wait_ns / 50);
    }
    assert!(bench.counter(ExportCounter::OriginWrites) > before, "it tries");
    let answer = bench.answer(waiting).expect("nobody waits longer than that");
    assert_eq!(answer.result, Err(RequestError::NoSpace));
}

#[test]
fn a_bad_clean_block_is_fetched_again_and_nobody_knows() {
    let mut bench = dirty(STRICT);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.restart();
    bench.disk.damage(4);
    assert_eq!(bench.read(0, 8), [1, 2, 3, 4, 5, 6, 7, 8].map(Some));
    assert_eq!(bench.counter(ExportCounter::ChecksumErrorsClean), 1);
}

#[test]
fn strict_destage_stands_still_before_damage_until_the_loss_is_accepted() {
    let mut bench = dirty(STRICT);
    bench.write_block(20, 20);
    bench.flush().expect("flushed");
    bench.write_block(30, 30);
    bench.flush().expect("flushed");
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)));
    assert_eq!(bench.counter(ExportCounter::Damaged), 1);
    assert_eq!(damaged_notices(&bench), 1);
    // A part of the damaged epoch is a legal disk, anything of a later one is not.
    assert_eq!(bench.origin(0, 3), 0xee);
    assert_eq!((bench.origin(0, 20), bench.origin(0, 30)), (0xee, 0xee));
    bench.pass(60_000_000_000);
    assert_eq!(bench.origin(0, 20), 0xee, "it stands still");

    assert_eq!(bench.control(ACCEPT), Some(Ok(())));
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.counter(ExportCounter::Damaged), 0);
    assert_eq!((bench.origin(0, 2), bench.origin(0, 3)), (3, 0xee));
    assert_eq!((bench.origin(0, 20), bench.origin(0, 30)), (20, 30));
    // The origin has something older there: a client must never be shown it.
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    bench.restart();
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    bench.write_block(3, 99);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!(bench.origin(0, 3), 99);
}

#[test]
fn accepting_covers_what_was_found_and_nothing_newer() {
    let mut bench = dirty(STRICT);
    bench.write_block(20, 20);
    bench.flush().expect("flushed");
    bench.restart();
    bench.disk.damage(4);
    bench.disk.damage(20);
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)));
    assert_eq!(bench.control(ACCEPT), Some(Ok(())));
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)), "the next epoch");
    assert_eq!(damaged_notices(&bench), 2);
    assert_eq!(bench.origin(0, 7), 8, "the first one is there");
    assert_eq!(bench.control(ACCEPT), Some(Ok(())));
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
}

#[test]
fn accepting_the_loss_of_an_export_that_is_not_damaged_changes_nothing() {
    let mut bench = dirty(STRICT);
    assert_eq!(bench.control(ACCEPT), Some(Ok(())));
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)));
}

#[test]
fn relaxed_destage_passes_over_damage_and_the_block_stays_lost() {
    let mut bench = dirty(RELAXED);
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!((bench.origin(0, 2), bench.origin(0, 3), bench.origin(0, 4)), (3, 0xee, 5));
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    bench.restart();
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
}

#[test]
fn a_newer_version_of_the_same_epoch_pays_the_debt() {
    // A log in which an epoch of more than a batch is not ended by itself (rule 14).
    let mut bench = Bench::with_segments(20, &[STRICT], EXPORT_BLOCKS, 0);
    bench.write_block(3, 4);
    // More than a batch lies between them.
    for at in 0..4 {
        bench.write(0, (256 + at * 256) * 4096, 1 << 20, 50).expect("written");
    }
    bench.write_block(3, 5);
    bench.flush().expect("flushed");
    bench.write_block(9, 9);
    bench.flush().expect("flushed");
    bench.restart();
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!((bench.origin(0, 3), bench.origin(0, 9)), (5, 9));
    assert_eq!(damaged_notices(&bench), 0);
}

#[test]
fn a_writethrough_write_whose_data_is_damaged_before_the_origin_has_it_fails() {
    for order in [Order::Strict, Order::Relaxed] {
        let mut bench = Bench::with_segments(20, &[(Mode::Writethrough, order)], EXPORT_BLOCKS, 0);
        // While a block is fetched, nothing overwrites it on the origin (rule 30).
        bench.faults.hold_origin_reads = true;
        bench.begin_read(0, 100, 1, false);
        let first = bench.begin_write_to(0, 100 * 4096, 4096, 1);
        bench.pass(10_000_000);
        let damaged = bench.begin_write_to(0, 3 * 4096, 4096, 4);
        bench.settle();
        // More than the memory of the newest segments.
        for at in 0..12 {
            bench.begin_write_to(0, (256 + at % 6 * 256) * 4096, 1 << 20, 50);
            bench.settle();
        }
        bench.disk.damage(4);
        bench.release_origin_reads();
        bench.settle();
        assert_eq!(bench.answer(first).expect("answered").result, Ok(()), "{order:?}");
        let result = bench.answer(damaged).expect("answered").result;
        assert_eq!((result, bench.origin(0, 3)), (Err(RequestError::Io), 0xee), "{order:?}");
        // Strict order cannot go on, relaxed order passes over what is lost; both answer.
        let expected = if order == Order::Strict { Err(RequestError::Io) } else { Ok(()) };
        assert_eq!(bench.write(0, 9 * 4096, 4096, 9), expected, "{order:?}");
        assert_eq!(bench.flush(), expected, "{order:?}");
    }
}

#[test]
fn a_newer_version_of_a_later_epoch_does_not() {
    let mut bench = dirty(STRICT);
    bench.write_block(30, 30);
    bench.flush().expect("flushed");
    bench.write_block(3, 5);
    bench.flush().expect("flushed");
    bench.restart();
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Err(RequestError::Io)));
    assert_eq!((bench.origin(0, 3), bench.origin(0, 30)), (0xee, 0xee));
    assert_eq!(bench.read(3, 1), [Some(5)], "clients read the newer one");
    assert_eq!(bench.control(ACCEPT), Some(Ok(())));
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert_eq!((bench.origin(0, 3), bench.origin(0, 30)), (5, 30));
    assert_eq!(bench.read(3, 1), [Some(5)]);
}

#[test]
fn a_bad_entry_outlives_the_segment_it_is_in() {
    let mut bench = dirty(RELAXED);
    bench.disk.damage(4);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    // Three laps of the log.
    for lap in 0..3_u8 {
        for at in 0..52 {
            bench.write(0, (256 + at % 7 * 256) * 4096, 1 << 20, lap + 100).expect("written");
            bench.pass(1_000_000_000);
        }
    }
    let wrapped = bench.engine_counter(Counter::SegmentsReclaimed);
    assert!(wrapped > 26, "{wrapped} segments reclaimed");
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    bench.flush().expect("flushed");
    bench.restart();
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
}

#[test]
fn a_damaged_block_that_reclaim_carried_is_not_served_from_memory() {
    let mut bench = Bench::new(&[RELAXED, RELAXED]);
    for block in 0..8 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    bench.restart();
    bench.faults.origin_writes_of = Some(0);
    bench.pass(1_000_000_000);
    // From here on nobody reads it before reclaim does: the origin is away, and no time passes.
    bench.disk.damage(4);
    reclaim_oldest_segment(&mut bench);
    assert_eq!(bench.counter(ExportCounter::ChecksumErrorsDirty), 0, "nobody has looked yet");
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
    bench.faults.origin_writes_of = None;
    bench.pass(10_000_000_000);
    assert_eq!((bench.origin(0, 2), bench.origin(0, 3), bench.origin(0, 4)), (3, 0xee, 5));
}

/// All dirty data of an export was carried; its origin returns and takes it, and nothing is written
/// since.
#[test]
fn a_carried_copy_that_the_origin_has_is_clean() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    for block in 0..8 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    bench.faults.origin_writes_of = Some(0);
    reclaim_oldest_segment(&mut bench);
    bench.faults.origin_writes_of = None;
    assert_eq!(bench.control(Control::Drain(None)), None);
    bench.pass(10_000_000_000);
    assert_eq!(bench.origin(0, 3), 4);
    // Out of the memory of the newest segments.
    for at in 0..16 {
        bench.write(1, at % 7 * 256 * 4096, 1 << 20, 101).expect("written");
    }
    bench.disk.damage(4);
    assert_eq!(bench.read(2, 3), [Some(3), Some(4), Some(5)], "fetched again");
}

/// A start looks for the first record that was not written whole: a copy of damaged data must not
/// look like one.
#[test]
fn a_damaged_block_that_was_carried_does_not_end_the_log() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    for block in 0..8 {
        bench.write_block(block, block as u8 + 1);
    }
    bench.flush().expect("flushed");
    let before = bench.try_restart().expect("an open cache").records;
    bench.faults.origin_writes_of = Some(0);
    bench.pass(1_000_000_000);
    bench.disk.damage(4);
    // Until reclaim has copied it, and nothing says yet that the copy is durable.
    bench.faults.hold_device_writes = true;
    while !bench.holds_write_of(5) {
        bench.release_device_writes();
        bench.faults.hold_device_writes = true;
        bench.begin_write_to(1, 0, 1 << 20, 100);
        bench.turn();
    }
    assert_eq!(bench.engine_counter(Counter::SegmentsReclaimed), 0);
    let written = bench.engine_counter(Counter::Records);
    assert_eq!(bench.kill_once_written().records, before + written);
    assert_eq!(bench.read(2, 3), [Some(3), None, Some(5)]);
}
