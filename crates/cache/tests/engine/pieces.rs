//! Reads in pieces (rule 29): what is there goes out before what is not.

use crate::bench::Bench;
use ringfence_cache::{Command, Control, Mode, Order, Piece, PieceContent, RequestError};

fn bench() -> Bench {
    Bench::new(&[(Mode::Writeback, Order::Strict)])
}

fn piece(first: u32, blocks: u32, content: PieceContent, last: bool) -> Piece {
    Piece { first, blocks, content, last }
}

#[test]
fn what_is_cached_is_told_before_the_origin_answers() {
    let mut bench = bench();
    bench.write(0, 64 * 4096, 64 * 4096, 1).expect("written");
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, 0, 128, true);
    assert_eq!(bench.told(ticket), [], "not before the end of the turn");
    bench.turn();
    let data = PieceContent::Data;
    assert_eq!(bench.told(ticket), [piece(64, 64, data, false)]);
    assert_eq!(bench.answer(ticket), None);
    bench.release_origin_reads();
    let told = [piece(64, 64, data, false), piece(0, 64, data, true)];
    let answer = bench.answer(ticket).expect("answered");
    assert_eq!((answer.result, &answer.pieces[..]), (Ok(()), &told[..]));
    let bytes = bench.bytes_of(ticket);
    assert!(bytes[..64].iter().all(|byte| *byte == 0xee) && bytes[64..].iter().all(|b| *b == 1));
}

#[test]
fn a_read_that_is_not_in_pieces_is_whole() {
    let mut bench = bench();
    bench.write(0, 64 * 4096, 64 * 4096, 1).expect("written");
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, 0, 128, false);
    bench.settle();
    assert_eq!((bench.told(ticket), bench.answer(ticket)), (vec![], None));
    bench.release_origin_reads();
    assert_eq!(bench.answer(ticket).expect("answered").pieces, []);
}

#[test]
fn what_is_there_at_once_is_not_taken_apart() {
    let mut bench = bench();
    bench.write(0, 0, 1 << 20, 1).expect("written");
    let ticket = bench.begin_read(0, 0, 256, true);
    assert_eq!(bench.answer(ticket).expect("answered").pieces, []);
    bench.flush().expect("flushed");
    bench.restart();
    let ticket = bench.begin_read(0, 0, 256, true);
    assert_eq!(bench.answer(ticket).expect("read from the device").pieces, []);
    let ticket = bench.begin_read(0, 1000, 256, true);
    assert_eq!(bench.answer(ticket).expect("fetched").pieces.len(), 0, "all windows in one turn");
}

#[test]
fn many_zeroes_are_a_hole_and_few_are_data() {
    let mut bench = bench();
    bench.write(0, 0, 64 * 4096, 1).expect("written");
    bench.submit(0, Command::Trim { fua: false }, 4096, 15 * 4096);
    bench.submit(0, Command::Trim { fua: false }, 32 * 4096, 16 * 4096);
    let ticket = bench.begin_read(0, 0, 64, true);
    let expected = [
        piece(0, 32, PieceContent::Data, false),
        piece(32, 16, PieceContent::Zeroes, false),
        piece(48, 16, PieceContent::Data, true),
    ];
    assert_eq!(bench.answer(ticket).expect("answered").pieces, expected);
    assert_eq!(bench.bytes_of(ticket)[1..16], [0; 15]);
    let whole = bench.read_whole(0, 64).expect("data");
    assert_eq!(whole[32..48], [0; 16]);
}

#[test]
fn an_origin_that_fails_costs_its_own_blocks_only() {
    let mut bench = bench();
    bench.write(0, 64 * 4096, 64 * 4096, 1).expect("written");
    bench.faults.origin_reads = true;
    let ticket = bench.begin_read(0, 60, 10, true);
    bench.pass(10_000_000_000);
    let failed = PieceContent::Failed(RequestError::Io);
    let told = [piece(4, 6, PieceContent::Data, false), piece(0, 4, failed, true)];
    let answer = bench.answer(ticket).expect("its patience has ended");
    assert_eq!((answer.result, &answer.pieces[..]), (Err(RequestError::Io), &told[..]));
}

#[test]
fn pieces_of_a_read_are_one_snapshot() {
    let mut bench = bench();
    bench.write(0, 64 * 4096, 64 * 4096, 1).expect("written");
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, 0, 128, true);
    bench.turn();
    // One step over all of it: a reader sees all of it or nothing.
    bench.write(0, 0, 128 * 4096, 2).expect("written");
    bench.release_origin_reads();
    let bytes = bench.bytes_of(ticket);
    assert!(bytes.iter().all(|byte| *byte != 2), "{bytes:?}");
    assert_eq!(bench.read_whole(0, 128).expect("data"), [2; 128]);
}

#[test]
fn a_damaged_clean_block_starts_over_before_anything_was_told() {
    let mut bench = bench();
    bench.write(0, 64 * 4096, 4 * 4096, 1).expect("written");
    bench.write_block(66, 7);
    assert_eq!(bench.control(Control::Drain(None)), Some(Ok(())));
    bench.restart();
    bench.disk.damage(7);
    bench.faults.hold_origin_reads = true;
    let ticket = bench.begin_read(0, 60, 8, true);
    bench.turn();
    assert_eq!(bench.told(ticket), [], "the new snapshot may differ from this one");
    bench.release_origin_reads();
    assert_eq!(bench.answer(ticket).expect("answered").result, Ok(()));
    assert_eq!(bench.bytes_of(ticket), [0xee, 0xee, 0xee, 0xee, 1, 1, 7, 1]);
}
