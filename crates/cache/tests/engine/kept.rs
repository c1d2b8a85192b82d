//! Requests whose answer must outlive the process.

use crate::bench::Bench;
use ringfence_cache::{Buffer, Command, Mode, Order, RequestError};

const NOWHERE: Buffer = Buffer { offset: 0, length: 0 };
const WRITE: Command = Command::Write { buffer: NOWHERE, fua: false };

fn bench(kept: bool) -> Bench {
    let mut bench = Bench::new(&[(Mode::Writeback, Order::Strict)]);
    bench.kept = kept;
    bench
}

#[test]
fn what_is_answered_survives_a_kill_at_once() {
    for (command, byte) in [
        (WRITE, 0),
        (Command::WriteZeroes { fua: false, no_hole: false }, 0),
        (Command::Trim { fua: false }, 0),
    ] {
        let mut bench = bench(true);
        let ticket = bench.submit(0, command, 4096, 8192);
        assert_eq!(bench.answer(ticket), None, "the device does not have it yet");
        bench.turn();
        assert_eq!(bench.answer(ticket).expect("answered").result, Ok(()));
        bench.restart();
        assert_eq!(bench.read_whole(1, 2), Ok(vec![byte; 2]), "{command:?}");
    }
}

#[test]
fn others_are_answered_from_memory() {
    let mut bench = bench(false);
    let ticket = bench.submit(0, WRITE, 4096, 8192);
    assert_eq!(bench.answer(ticket).expect("answered").result, Ok(()));
    bench.restart();
    assert_eq!(bench.read_whole(1, 2), Ok(vec![0xee; 2]), "as before the write");
}

#[test]
fn a_device_that_fails_fails_them() {
    let mut bench = bench(true);
    bench.faults.device_writes = true;
    let ticket = bench.submit(0, WRITE, 4096, 4096);
    bench.settle();
    assert_eq!(bench.answer(ticket).expect("answered").result, Err(RequestError::Io));
}
