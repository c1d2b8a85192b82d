//! Device writes that were reported as done, flushed, and are not there: decision 0013.

use crate::bench::Bench;
use ringfence_cache::counters::{Counter, ExportCounter};
use ringfence_cache::format::Superblock;
use ringfence_cache::limits::{
    SEGMENT_BYTES_MIN, SEGMENTS_OFFSET, SUPERBLOCK_OFFSETS, WRITE_BLOCKS_MAX, footer_bytes,
};
use ringfence_cache::units::BLOCK_BYTES;
use ringfence_cache::{Control, CopyState, Mode, OpenError, Order, check};

const STRICT: (Mode, Order) = (Mode::Writeback, Order::Strict);
const MIB: u64 = 1 << 20;

/// A block, flushed; then more, so that it is together as much as one device write may carry; then
/// two more blocks, each flushed. All of it in the first segment, whose offset is returned.
fn written() -> (Bench, usize) {
    let mut bench = Bench::new(&[STRICT]);
    let start = bench.disk.bytes.clone();
    bench.write_block(0, 1);
    bench.flush().expect("flushed");
    bench.write(0, MIB, MIB, 2).expect("written");
    bench.write(0, 2 * MIB, MIB - 4 * BLOCK_BYTES as u64, 3).expect("written");
    bench.flush().expect("flushed");
    for block in 1..3 {
        bench.write_block(block, 4);
        bench.flush().expect("flushed");
    }
    assert!(start[SEGMENTS_OFFSET as usize..].iter().all(|byte| *byte == 0), "a first lap");
    (bench, SEGMENTS_OFFSET as usize)
}

/// The write of so many blocks from an offset on is lost: the device shows what was there before.
fn lose(bench: &mut Bench, offset: usize, blocks: usize) {
    bench.disk.bytes[offset..][..blocks * BLOCK_BYTES].fill(0);
}

fn is_refused(bench: &mut Bench, first_lost: u64) {
    match bench.try_restart() {
        Err(OpenError::DurableDamaged { first, unreadable: false, .. }) => {
            assert_eq!(first, first_lost);
        }
        Err(other) => panic!("{other}"),
        Ok(recovery) => panic!("flushed data is gone without a word: {recovery:?}"),
    }
    bench.config.accept_loss = true;
    let recovery = bench.try_restart().expect("an open cache");
    assert_eq!(recovery.lost.map(|(first, _)| first), Some(first_lost));
    bench.config.accept_loss = false;
}

#[test]
fn a_long_write_lost_in_the_midst_of_a_segment_is_not_taken_for_its_end() {
    let (mut bench, start) = written();
    // The first block and its header stay.
    lose(&mut bench, start + 2 * BLOCK_BYTES, WRITE_BLOCKS_MAX as usize - 2);
    is_refused(&mut bench, 2);
    assert_eq!(bench.read(0, 1), [Some(1)], "what came before is there");
    assert_eq!(bench.read(256, 1), [Some(0xee)], "what was lost is the origin's");
}

/// A start that accepts a loss and is cut short has accepted nothing before a superblock says so.
#[test]
fn a_loss_is_accepted_as_soon_as_a_superblock_says_so() {
    let newest_life = |bench: &Bench| {
        let copies = SUPERBLOCK_OFFSETS.map(|offset| {
            let block = bench.disk.bytes[offset as usize..][..BLOCK_BYTES].try_into();
            Superblock::parse(block.expect("a block")).expect("intact").incarnation.get()
        });
        copies.into_iter().max()
    };
    for cut in 0.. {
        let (mut bench, start) = written();
        let life = newest_life(&bench);
        lose(&mut bench, start + 2 * BLOCK_BYTES, WRITE_BLOCKS_MAX as usize - 2);
        bench.config.accept_loss = true;
        bench.disk.changes_left = Some(cut);
        let is_whole = bench.try_restart().is_ok();
        bench.disk.changes_left = None;
        bench.config.accept_loss = false;
        let is_accepted = newest_life(&bench) > life;
        match bench.try_restart() {
            Err(OpenError::DurableDamaged { first: 2, .. }) => assert!(!is_accepted, "{cut}"),
            Err(other) => panic!("{other}"),
            Ok(_) => assert!(is_accepted, "gone without a word, after {cut} changes"),
        }
        if is_whole {
            assert!(is_accepted && cut > 5, "{cut}");
            return;
        }
    }
}

/// What was accepted as lost does not move the tail either, should it come back: the originals of
/// what it had carried count.
#[test]
fn what_was_accepted_as_lost_says_nothing_of_the_tail() {
    let mut bench = Bench::new(&[STRICT, STRICT]);
    bench.faults.origin_writes_of = Some(0);
    // Nearly a segment: the last of the copies are in one that has no footer yet.
    for byte in [5, 6, 7] {
        bench.write(0, u64::from(byte - 5) * MIB, MIB, byte).expect("written");
    }
    bench.flush().expect("flushed");
    let mut at = 0;
    while bench.engine_counter(Counter::SegmentsReclaimed) == 0 {
        bench.write(1, at % 56 * MIB / 8, MIB / 8, 9).expect("written");
        bench.pass(1_000_000_000);
        at += 1;
    }
    let copy = *bench.disk.blocks_of(7).last().expect("a copy");
    let is_header = |at: &usize| bench.disk.bytes[at + 4..].starts_with(b"rfre");
    let header = (0..copy).rev().filter(|at| at % BLOCK_BYTES == 0).find(is_header);
    let header = header.expect("a record with the copy");
    let kept = bench.disk.bytes[header..][..BLOCK_BYTES].to_vec();
    lose(&mut bench, header, 1);
    bench.config.accept_loss = true;
    // The flush of the start, and both superblocks, each with its flush; but no footer.
    bench.disk.changes_left = Some(5);
    assert!(bench.try_restart().is_err());
    bench.disk.changes_left = None;
    bench.config.accept_loss = false;
    bench.disk.bytes[header..][..BLOCK_BYTES].copy_from_slice(&kept);
    let recovery = bench.try_restart().expect("an open cache");
    assert_eq!(recovery.lost, None);
    assert_eq!(bench.read(767, 1), [Some(7)]);
}

/// Behind an accepted loss the log ends like any other: what a power cut took, and nobody knew to
/// be durable, is not a part of that loss.
#[test]
fn a_power_cut_behind_an_accepted_loss_is_no_further_one() {
    let (mut bench, start) = written();
    lose(&mut bench, start + 2 * BLOCK_BYTES, WRITE_BLOCKS_MAX as usize - 2);
    is_refused(&mut bench, 2);
    // A segment and the beginning of the next one, none of it flushed: the first one is lost.
    bench.kept = true;
    bench.faults.hold_device_writes = true;
    for _ in 0..4 {
        bench.begin_write_to(0, 2 * MIB, MIB, 70);
    }
    bench.begin_write_to(0, 5 * 4096, 4096, 71);
    bench.turn();
    bench.release_device_writes();
    let first = bench.disk.blocks_of(70)[0] - SEGMENTS_OFFSET as usize;
    let segment = first / SEGMENT_BYTES_MIN as usize * SEGMENT_BYTES_MIN as usize;
    lose(&mut bench, SEGMENTS_OFFSET as usize + segment, SEGMENT_BYTES_MIN as usize / BLOCK_BYTES);
    let recovery = bench.try_restart().expect("nothing durable is gone since");
    assert_eq!(recovery.lost, None);
    assert_eq!(bench.read(5, 1), [Some(0xee)], "cut before the first of them");
    assert_eq!(bench.read(0, 1), [Some(1)]);
}

/// A record, flushed; then three segments that are not, of which a power cut took the first header;
/// then a life of eight records in that segment, each flushed. Where the first of the three lies.
fn cut_in_front_of_two_segments() -> (Bench, usize) {
    let mut bench = Bench::new(&[STRICT]);
    bench.more_reserve_bytes = 2 * SEGMENT_BYTES_MIN;
    bench.write_block(0, 1);
    bench.flush().expect("flushed");
    bench.restart();
    bench.faults.hold_device_writes = true;
    for step in 0..7 {
        bench.begin_write_to(0, step * MIB, MIB, 2);
        bench.turn();
    }
    bench.take_device_writes();
    let first = SEGMENTS_OFFSET as usize + SEGMENT_BYTES_MIN as usize;
    lose(&mut bench, first, 1);
    let third = first + 2 * SEGMENT_BYTES_MIN as usize;
    assert!(bench.disk.blocks_of(2).iter().any(|block| *block > third));
    let recovery = bench.try_restart().expect("nothing was flushed");
    assert_eq!((recovery.lost, recovery.records), (None, 1));
    for _ in 0..8 {
        bench.write_block(0, 3);
        bench.flush().expect("flushed");
    }
    assert_eq!(bench.try_restart().expect("an open cache").records, 9);
    (bench, first)
}

/// Of what was lost, only the first record is known to have been durable, and the one behind it is
/// torn: the numbers between the two are used again, by records that nobody has lost.
#[test]
fn no_more_is_accepted_as_lost_than_is_not_used_again() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write(0, 0, MIB, 1).expect("written");
    bench.flush().expect("flushed");
    bench.faults.hold_device_writes = true;
    for step in 1..4 {
        bench.begin_write_to(0, step * MIB, MIB, 2);
        bench.turn();
    }
    bench.take_device_writes();
    let (first, segment) = (SEGMENTS_OFFSET as usize, SEGMENT_BYTES_MIN as usize);
    lose(&mut bench, first, segment / BLOCK_BYTES);
    lose(&mut bench, first + segment + 256 * BLOCK_BYTES, 1);
    is_refused(&mut bench, 1);
    for block in 0..2 {
        bench.write_block(block, 9);
        bench.flush().expect("flushed");
    }
    let recovery = bench.try_restart().expect("nothing has been lost since");
    assert_eq!((recovery.lost, recovery.records), (None, 2));
    assert_eq!(bench.read(0, 2), [Some(9); 2]);
}

/// What a power cut left behind the end is void, and lies further on than a later life has come.
#[test]
fn what_is_void_does_not_keep_a_later_life_from_being_searched() {
    let (mut bench, first) = cut_in_front_of_two_segments();
    for byte in 4..7 {
        bench.write_block(0, byte);
        bench.flush().expect("flushed");
    }
    lose(&mut bench, first + SEGMENT_BYTES_MIN as usize + 2 * BLOCK_BYTES, 2);
    is_refused(&mut bench, 11);
}

/// Of the life that cut the log nothing is left, and the newest one has written nothing: what was
/// void stays so.
#[test]
fn what_is_void_does_not_come_back_with_the_life_that_made_it_so() {
    let (mut bench, first) = cut_in_front_of_two_segments();
    let footer = (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) as usize;
    lose(&mut bench, first, 1);
    lose(&mut bench, first + footer, 1);
    is_refused(&mut bench, 2);
    assert_eq!(bench.read(0, 1), [Some(1)]);
    let rest: Vec<_> = (1..8).map(|step| bench.read(step * 256 - 1, 1)[0]).collect();
    assert_eq!(rest, [Some(0xee); 7], "what the power cut had left of a life before");
}

#[test]
fn the_longest_write_lost_at_the_start_of_the_newest_segment_is_not_taken_for_its_end() {
    let (mut bench, start) = written();
    lose(&mut bench, start, WRITE_BLOCKS_MAX as usize);
    is_refused(&mut bench, 1);
}

/// Two lost writes of 257 blocks: what is left of the life lies behind what one write carries.
#[test]
fn what_is_left_of_a_life_may_lie_anywhere_in_its_first_segment() {
    let mut bench = Bench::new(&[STRICT]);
    for step in 0..3 {
        bench.write(0, step * MIB, MIB, 1).expect("written");
        bench.flush().expect("flushed");
    }
    lose(&mut bench, SEGMENTS_OFFSET as usize, 2 * 257);
    is_refused(&mut bench, 1);
}

/// Three records of 257 blocks in each of two segments, each flushed. The last of the first segment
/// rots before it has a footer, and of the second only the last is left to say that it was durable.
#[test]
fn the_end_of_the_next_segment_may_be_all_that_knows() {
    let mut bench = Bench::new(&[STRICT]);
    for step in 0..6 {
        bench.write(0, step * MIB, MIB, 1).expect("written");
        bench.flush().expect("flushed");
    }
    let (segment, record) = (SEGMENTS_OFFSET as usize, 257 * BLOCK_BYTES);
    let footer = segment + (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) as usize;
    lose(&mut bench, segment + 2 * record, 257);
    lose(&mut bench, footer, footer_bytes(SEGMENT_BYTES_MIN) as usize / BLOCK_BYTES);
    lose(&mut bench, segment + SEGMENT_BYTES_MIN as usize, 2 * 257);
    is_refused(&mut bench, 3);
}

#[test]
fn the_last_write_lost_is_known_to_no_later_record() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write_block(0, 1);
    bench.flush().expect("flushed");
    bench.write_block(1, 2);
    bench.flush().expect("flushed");
    lose(&mut bench, SEGMENTS_OFFSET as usize + 2 * BLOCK_BYTES, 2);
    let recovery = bench.try_restart().expect("an open cache");
    assert_eq!(recovery.lost, None);
    assert_eq!(bench.read(0, 2), [Some(1), Some(0xee)]);
}

#[test]
fn a_loss_is_accepted_once_and_no_other_with_it() {
    for first_lost in [1, 2] {
        let (mut bench, start) = written();
        let from = if first_lost == 1 { start } else { start + 2 * BLOCK_BYTES };
        lose(&mut bench, from, WRITE_BLOCKS_MAX as usize - 2);
        is_refused(&mut bench, first_lost);
        for round in 5..8 {
            bench.write_block(3, round);
            bench.flush().expect("flushed");
            let recovery = bench.try_restart().expect("what was accepted stays accepted");
            assert_eq!(recovery.lost, None);
            assert_eq!(bench.read(3, 1), [Some(round)]);
        }
        for round in 8..10 {
            bench.write_block(3, round);
            bench.flush().expect("flushed");
        }
        let block = bench.disk.blocks_of(8)[0];
        lose(&mut bench, block - BLOCK_BYTES, 1);
        assert!(matches!(bench.try_restart(), Err(OpenError::DurableDamaged { .. })));
    }
}

/// A life takes a record for the end of the log, and writes its own with the same number. That one
/// is lost: the other must not come back in its place.
#[test]
fn what_a_lost_life_had_cut_off_stays_void() {
    let mut bench = Bench::new(&[STRICT]);
    bench.write_block(0, 1);
    bench.pass(10_000_000);
    let block = bench.disk.blocks_of(1)[0];
    bench.disk.bytes[block] ^= 1;
    bench.restart();
    bench.disk.bytes[block] ^= 1;
    assert_eq!(bench.read(0, 1), [Some(0xee)], "it was not written whole");
    for block in 1..4 {
        bench.write_block(block, 2);
        bench.flush().expect("flushed");
    }
    lose(&mut bench, (SEGMENTS_OFFSET + SEGMENT_BYTES_MIN) as usize, 2);
    is_refused(&mut bench, 1);
    for _ in 0..2 {
        assert_eq!(bench.read(0, 4), [Some(0xee); 4]);
        assert_eq!(bench.try_restart().expect("an open cache").lost, None);
    }
}

/// Three segments of dirty data, and of the one in the middle nothing is known.
#[test]
fn destage_goes_on_behind_a_segment_whose_loss_was_accepted() {
    let mut bench = Bench::new(&[STRICT]);
    bench.faults.origin_writes = true;
    for step in 0..8 {
        bench.write(0, step * MIB, MIB, step as u8 + 1).expect("written");
        bench.flush().expect("flushed");
    }
    let middle = (SEGMENTS_OFFSET + SEGMENT_BYTES_MIN) as usize;
    lose(&mut bench, middle, SEGMENT_BYTES_MIN as usize / BLOCK_BYTES);
    is_refused(&mut bench, 4);
    bench.faults.origin_writes = false;
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    let steps: Vec<_> = (0..8).map(|step| bench.origin(0, step * 256)).collect();
    assert_eq!(steps, [1, 2, 3, 0xee, 0xee, 0xee, 7, 8]);
}

/// The device loses what a start, or several, wrote to both superblocks: the lives that followed
/// are known from their records.
#[test]
fn lives_that_both_superblocks_lack_are_known_from_the_log() {
    for lives in 1..=3u8 {
        let mut bench = Bench::new(&[STRICT]);
        bench.write_block(0, 1);
        bench.flush().expect("flushed");
        let superblocks = SUPERBLOCK_OFFSETS.map(|offset| {
            let offset = offset as usize;
            (offset, bench.disk.bytes[offset..][..BLOCK_BYTES].to_vec())
        });
        let first_life = bench.try_restart().expect("an open cache").incarnation;
        for life in 1..=lives {
            bench.write_block(u64::from(life), life + 1);
            bench.flush().expect("flushed");
            if life < lives {
                bench.restart();
            }
        }
        for (offset, bytes) in superblocks {
            bench.disk.bytes[offset..][..BLOCK_BYTES].copy_from_slice(&bytes);
        }
        let report = check(&mut bench.disk).expect("a cache");
        let lacking = report.findings.iter().filter(|f| f.structure == "superblock");
        assert_eq!(lacking.count(), 2, "{:?}", report.findings);
        assert!(report.superblocks.iter().all(|copy| copy.state == CopyState::Older));

        let recovery = bench.try_restart().expect("an open cache");
        assert_eq!(recovery.incarnation, first_life + u64::from(lives), "a life of its own");
        let all: Vec<_> = (1..=lives + 1).map(Some).collect();
        assert_eq!(bench.read(0, all.len() as u64), all);
        assert_eq!(check(&mut bench.disk).expect("a cache").findings, [], "written anew");
    }
}

/// Two epochs of an export whose origin is away: the first one's blocks are 1, the second one's 2.
/// The record that began the second, the last of the first segment, is lost, and so is the
/// segment's footer.
fn epoch_begun_in_what_is_lost(exports: &[(Mode, Order)]) -> Bench {
    let mut bench = Bench::new(exports);
    bench.faults.origin_writes_of = Some(0);
    for step in 0..2 {
        bench.write(0, step * MIB, MIB, 1).expect("written");
    }
    bench.flush().expect("flushed");
    for step in 2..5 {
        bench.write(0, step * MIB, MIB, 2).expect("written");
    }
    bench.flush().expect("flushed");
    let record = 257 * BLOCK_BYTES;
    let segment = SEGMENTS_OFFSET as usize;
    let footer = segment + (SEGMENT_BYTES_MIN - footer_bytes(SEGMENT_BYTES_MIN)) as usize;
    lose(&mut bench, segment + 2 * record, 257);
    lose(&mut bench, footer, footer_bytes(SEGMENT_BYTES_MIN) as usize / BLOCK_BYTES);
    is_refused(&mut bench, 3);
    bench
}

/// Whether the first export's origin was flushed between the last of its blocks that are 1 and the
/// first that is 2.
fn keeps_epochs(bench: &Bench) -> bool {
    let of_first = bench.origin_log.iter().filter(|(_, export, _)| *export == 0);
    let log: Vec<_> = of_first.map(|&(what, _, block)| (what, block)).collect();
    let second = log.iter().position(|&(what, block)| what == "write" && block >= 512);
    let second = second.expect("the second epoch reaches the origin");
    let first = log.iter().rposition(|&(what, block)| what == "write" && block < 512);
    let first = first.expect("the first epoch reaches the origin");
    first < second && log[first..second].iter().any(|&(what, _)| what == "flush")
}

#[test]
fn an_epoch_may_have_begun_in_records_whose_loss_was_accepted() {
    let mut bench = epoch_begun_in_what_is_lost(&[STRICT]);
    bench.faults.origin_writes_of = None;
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    let steps: Vec<_> = (0..5).map(|step| bench.origin(0, step * 256)).collect();
    assert_eq!(steps, [1, 1, 0xee, 2, 2]);
    assert!(keeps_epochs(&bench), "{:?}", bench.origin_log);
}

/// The same where both epochs have been carried away from the tail meanwhile.
#[test]
fn so_it_may_where_what_is_left_was_carried() {
    let mut bench = epoch_begun_in_what_is_lost(&[STRICT, STRICT]);
    for step in 0.. {
        assert!(step < 100, "nothing is carried");
        let ticket = bench.begin_write_to(1, step % 7 * MIB, MIB, 9);
        while bench.answer(ticket).is_none() {
            bench.pass(10_000_000);
        }
        assert_eq!(bench.now_or_never(ticket).result, Ok(()), "it waits for no more than room");
        if bench.engine_counter(Counter::SegmentsReclaimed) >= 2 {
            break;
        }
    }
    assert_eq!(bench.counter(ExportCounter::DirtyBytes), 4 * MIB, "carried, and not destaged");
    bench.faults.origin_writes_of = None;
    bench.pass(10_000_000_000);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    assert!(keeps_epochs(&bench), "{:?}", bench.origin_log);
}
