//! Reads that are answered piece by piece, as a client sees them.

mod support;

use ringfence_uring::allocation::abort_on_ring_allocation;
use std::sync::atomic::Ordering;
use support::{Client, FLUSH, Host, READ, Setup};

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

const EIO: u32 = 5;

/// A chunk of a reply, its content named by what it says.
#[derive(Debug, PartialEq, Eq)]
enum Chunk {
    Data { at: u64, bytes: Vec<u8> },
    Hole { at: u64, length: u32 },
    Failed { at: u64, error: u32 },
    Error { error: u32 },
    End,
}

fn chunk(client: &mut Client, cookie: u64) -> (Chunk, bool) {
    let (flags, kind, answered, payload) = client.chunk();
    assert_eq!(answered, cookie);
    let long = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("eight"));
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four"));
    let chunk = match kind {
        0 => Chunk::End,
        1 => Chunk::Data { at: long(0), bytes: payload[8..].to_vec() },
        2 => Chunk::Hole { at: long(0), length: word(8) },
        0x8001 => Chunk::Error { error: word(0) },
        0x8002 => Chunk::Failed { at: long(6), error: word(0) },
        other => panic!("a chunk of type {other:#x}"),
    };
    (chunk, flags & 1 == 1)
}

fn data(at: u64, bytes: &[u8]) -> Chunk {
    Chunk::Data { at, bytes: bytes.to_vec() }
}

/// A disk whose blocks are told of one by one. These tests are about bytes, so its tables may
/// allocate; the engine's own may not, as `cache.rs` shows.
fn split_host() -> (Host, Client) {
    abort_on_ring_allocation(false);
    let host = Host::start(Setup::default());
    host.switches.split.store(true, Ordering::SeqCst);
    let client = host.attach(0, true, false);
    (host, client)
}

#[test]
fn the_first_piece_comes_before_the_rest_is_there() {
    let (host, mut client) = split_host();
    assert_eq!(client.write(0, &[1; 12_288]), 0);
    host.switches.hold_rest.store(true, Ordering::SeqCst);
    let cookie = client.request(READ, 100, 12_000, &[]);
    assert_eq!(chunk(&mut client, cookie), (data(100, &[1; 3996]), false));
    // Others go on meanwhile, on this connection too.
    assert_eq!(client.plain(FLUSH, 0, 0), 0);
    host.switches.hold_rest.store(false, Ordering::SeqCst);
    assert_eq!(chunk(&mut client, cookie), (data(4096, &[1; 4096]), false));
    assert_eq!(chunk(&mut client, cookie), (data(8192, &[1; 3908]), true));
}

#[test]
fn zeroes_are_holes_and_a_bad_block_is_an_error_of_its_own() {
    let (_host, mut client) = split_host();
    assert_eq!(client.write(4096, &[0xbb; 4096]), 0);
    assert_eq!(client.write(8192, &[3; 4096]), 0);
    let cookie = client.request(READ, 10, 12_288, &[]);
    assert_eq!(chunk(&mut client, cookie), (Chunk::Hole { at: 10, length: 4086 }, false));
    assert_eq!(chunk(&mut client, cookie), (Chunk::Failed { at: 4096, error: EIO }, false));
    assert_eq!(chunk(&mut client, cookie), (data(8192, &[3; 4096]), false));
    assert_eq!(chunk(&mut client, cookie), (Chunk::Hole { at: 12_288, length: 10 }, true));
    let cookie = client.request(READ, 4200, 100, &[]);
    assert_eq!(chunk(&mut client, cookie), (Chunk::Failed { at: 4200, error: EIO }, true));
    assert_eq!(client.get(8192, 4096), Ok(vec![3; 4096]), "beside it all is well");
}

#[test]
fn reads_that_must_not_be_split_are_whole() {
    let (host, mut client) = split_host();
    assert_eq!(client.write(0, &[1; 12_288]), 0);
    let mut bytes = client.header(READ, 0, 12_288);
    // NBD_CMD_FLAG_DF.
    bytes[5] = 4;
    let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight"));
    std::io::Write::write_all(&mut client.stream, &bytes).expect("a request");
    assert_eq!(chunk(&mut client, cookie), (data(0, &[1; 12_288]), true));
    let mut simple = host.connect();
    assert_eq!(simple.get(0, 12_288), Ok(vec![1; 12_288]));
}

#[test]
fn long_reads_go_on_around_what_is_bad() {
    let (_host, mut client) = split_host();
    let content: Vec<u8> = (0..5_u32 << 20).map(|at| (at / 4096 % 100) as u8 + 1).collect();
    assert_eq!(client.write(0, &content), 0);
    assert_eq!(client.write(3 << 20, &[0xbb; 4096]), 0);
    let cookie = client.request(READ, 5, 5 << 20, &[]);
    let (mut seen, mut failed) = (0, Vec::new());
    loop {
        let (chunk, done) = chunk(&mut client, cookie);
        match chunk {
            Chunk::Data { at, bytes } => {
                seen += bytes.len();
                let there = content.get(at as usize..at as usize + bytes.len());
                assert!(at >= 5 << 20 || there == Some(&bytes), "at {at}");
            }
            Chunk::Hole { length, .. } => seen += length as usize,
            Chunk::Failed { at, error } => failed.push((at, error)),
            other => panic!("{other:?}"),
        }
        if done {
            break;
        }
    }
    assert_eq!((seen, failed), ((5 << 20) - 4096, vec![(3 << 20, EIO)]));
    assert_eq!(client.get(0, 4096), Ok(content[..4096].to_vec()), "the stream is in step");
}

#[test]
fn clients_that_die_between_two_pieces_leave_nothing_behind() {
    abort_on_ring_allocation(false);
    let host = Host::start(Setup { connections_max: 4, ..Setup::default() });
    host.switches.split.store(true, Ordering::SeqCst);
    let mut writer = host.attach(0, true, false);
    assert_eq!(writer.write(0, &vec![1; 1 << 20]), 0);
    for round in 0..50_u64 {
        host.switches.hold_rest.store(true, Ordering::SeqCst);
        let mut victim = host.attach(0, true, false);
        let cookie = victim.request(READ, 0, 1 << 20, &[]);
        assert_eq!(chunk(&mut victim, cookie), (data(0, &[1; 4096]), false));
        drop(victim);
        if round % 2 == 1 {
            // Two of them at a time.
            host.switches.hold_rest.store(false, Ordering::SeqCst);
            host.until("their ends", |host| host.reasons().len() as u64 == round + 1);
        }
    }
    assert_eq!(host.counter("connectionsOpen"), 1);
    // All frames of a window are there again.
    assert!(writer.get(0, 4 << 20).is_ok());
}
