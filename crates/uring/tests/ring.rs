//! The ring over a disk in memory, driven by raw sockets.

mod support;

use ringfence_uring::RuntimeError;
use ringfence_uring::allocation::abort_on_ring_allocation;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Client, DISC, FLUSH, Host, READ, Setup, TRIM, WRITE, WRITE_ZEROES, pattern};

// The addon brings its own.
#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

/// Every host of this file runs with it: an allocation by a ring thread ends the test process.
fn host(setup: Setup) -> Host {
    abort_on_ring_allocation(true);
    Host::start(setup)
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

#[test]
fn what_was_written_is_read_by_every_connection_in_both_styles() {
    let host = host(Setup::default());
    let mut simple = host.connect();
    let mut chunked = host.attach(0, true, false);
    for (offset, length) in
        [(0, 4096), (4096, 512), (8191, 2), (12_345, 70_001), (1 << 20, 1 << 20)]
    {
        let data = pattern(offset, length, 7);
        assert_eq!(simple.write(offset, &data), 0);
        assert!(chunked.get(offset, length as u32) == Ok(data.clone()), "at {offset}");
        assert!(simple.get(offset, length as u32) == Ok(data), "at {offset}");
    }
    assert_eq!(simple.plain(FLUSH, 0, 0), 0);
    assert_eq!(simple.plain(TRIM, 0, 4096), 0);
    assert_eq!(chunked.get(0, 4096), Ok(vec![0; 4096]));
}

#[test]
fn requests_of_many_steps_arrive_whole() {
    let host = host(Setup::default());
    let mut simple = host.connect();
    let mut chunked = host.attach(0, true, false);
    let (offset, length) = (4096 + 513, 9 << 20);
    let data = pattern(offset, length, 1);
    assert_eq!(simple.write(offset, &data), 0);
    assert!(chunked.get(offset, length as u32) == Ok(data.clone()));
    assert!(simple.get(offset, length as u32) == Ok(data));
    assert_eq!(simple.get(0, 4096).expect("the stream is in step").len(), 4096);
}

#[test]
fn long_reads_with_simple_replies_are_not_mixed_with_others() {
    let host = host(Setup::default());
    let mut client = host.connect();
    let data = pattern(0, 5 << 20, 3);
    assert_eq!(client.write(0, &data), 0);
    let long = client.request(READ, 0, 5 << 20, &[]);
    let short = client.request(READ, 4096, 4096, &[]);
    assert_eq!(client.simple_reply(), (0, long));
    assert!(client.read(5 << 20) == data);
    assert_eq!(client.simple_reply(), (0, short));
    assert!(client.read(4096) == data[4096..8192]);
}

#[test]
fn a_long_read_that_fails_late_never_shows_wrong_data() {
    let host = host(Setup::default());
    host.switches.reads_fail_from.store(2 << 20, Ordering::SeqCst);
    let mut chunked = host.attach(0, true, false);
    assert_eq!(chunked.get(0, 4 << 20), Err(EIO));
    assert_eq!(chunked.get(0, 4096), Ok(vec![0; 4096]), "the stream is in step");
    let mut simple = host.connect();
    assert_eq!(simple.get(3 << 20, 2 << 20), Err(EIO), "its first step fails: that can be told");
    simple.request(READ, 0, 4 << 20, &[]);
    assert_eq!(simple.simple_reply().0, 0);
    assert!(simple.is_closed(), "what cannot be told ends the connection");
}

#[test]
fn refused_requests_keep_the_stream_in_step() {
    let host = host(Setup::default());
    let size = 16_u64 << 20;
    let mut client = host.connect();
    assert_eq!(client.write(size - 100, &[1; 4096]), ENOSPC);
    assert_eq!(client.write(size, &vec![1; 3 << 20]), ENOSPC);
    assert_eq!(client.get(size - 1, 2), Err(EINVAL));
    assert_eq!(client.get(0, 65 << 20), Err(EINVAL), "past the end comes first");
    assert_eq!(client.plain(77, 0, 0), EINVAL);
    assert_eq!(client.plain(FLUSH, 0, 1), EINVAL);
    assert_eq!(client.plain(TRIM, size, 4096), EINVAL);
    assert_eq!(client.plain(TRIM, 0, 0), 0, "zero length succeeds");
    assert_eq!(client.get(0, 0), Ok(vec![]));
    assert_eq!(client.write(0, &[]), 0);
    assert_eq!(client.get(0, 4096), Ok(vec![0; 4096]), "nothing was written");
    let mut chunked = host.attach(0, true, false);
    assert_eq!(chunked.get(size, 1), Err(EINVAL), "early errors are chunks too");
    // Each of them was answered, so each counts.
    assert_eq!(host.answered("read"), (5, 3));
    assert_eq!(host.answered("write"), (3, 2));
    assert_eq!(host.answered("trim"), (2, 1));
    assert_eq!(host.answered("flush"), (1, 1));
}

#[test]
fn a_read_only_connection_refuses_and_consumes_payload() {
    let setup = Setup {
        disk_bytes: vec![1 << 20, 1 << 20],
        sizes: vec![None, None],
        read_only: vec![false, true],
        ..Setup::default()
    };
    let host = host(setup);
    for mut client in [host.attach(0, false, true), host.attach(1, false, false)] {
        assert_eq!(client.write(0, &pattern(0, 300_000, 0)), EPERM);
        assert_eq!(client.plain(TRIM, 0, 4096), EPERM);
        assert_eq!(client.plain(WRITE_ZEROES, 0, 4096), EPERM);
        assert_eq!(client.get(0, 4096), Ok(vec![0; 4096]));
    }
}

#[test]
fn long_zeroes_and_trims_go_in_steps() {
    let setup = Setup { sizes: vec![Some(8 << 30)], ..Setup::default() };
    let host = host(setup);
    let mut client = host.connect();
    assert_eq!(client.write(0, &[9; 8192]), 0);
    let before = host.switches.steps.load(Ordering::SeqCst);
    assert_eq!(client.plain(WRITE_ZEROES, 4096, u32::MAX), 0);
    assert_eq!(host.switches.steps.load(Ordering::SeqCst) - before, 4);
    assert_eq!(client.plain(TRIM, 0, 3 << 30), 0);
    assert_eq!(client.get(0, 8192), Ok(vec![0; 8192]));
    let mut chunked = host.attach(0, true, false);
    let oversize = chunked.get(0, 65 << 20);
    assert_eq!(oversize, Err(EOVERFLOW), "a read that is too large");
}

#[test]
fn deep_queues_are_answered_completely() {
    let host = host(Setup::default());
    let mut client = host.connect();
    let mut reader = client.second_handle();
    let count = 3_000_u64;
    let replies = std::thread::spawn(move || {
        let mut answered = std::collections::HashSet::new();
        for _ in 0..count {
            let (error, cookie) = reader.simple_reply();
            assert_eq!(error, 0);
            assert!(answered.insert(cookie), "answered twice");
        }
    });
    for index in 0..count {
        let offset = index % 1000 * 4096;
        client.request(WRITE, offset, 4096, &pattern(offset, 4096, 5));
    }
    replies.join().expect("all replies");
    assert!(client.get(0, 4_096_000) == Ok(pattern(0, 4_096_000, 5)));
}

#[test]
fn the_engine_is_told_of_the_next_request_unless_payload_lies_before_it() {
    let host = host(Setup::default());
    let mut client = host.connect();
    let send = |first: &[u8], mut second: Vec<u8>, client: &mut Client| {
        second.splice(0..0, first.iter().copied());
        client.stream.write_all(&second).expect("both at once");
        let errors = [client.simple_reply().0, client.simple_reply().0];
        (errors, host.switches.coming_offset.load(Ordering::SeqCst))
    };
    let (flush, trim) = (client.header(FLUSH, 0, 0), client.header(TRIM, 8192, 4096));
    assert_eq!(send(&flush, trim, &mut client), ([0, 0], 8192));
    let beyond = u64::MAX - 4095;
    let (flush, trim) = (client.header(FLUSH, 0, 0), client.header(TRIM, beyond, 4096));
    assert_eq!(send(&flush, trim, &mut client), ([0, EINVAL], beyond));
    let (mut write, trim) = (client.header(WRITE, 0, 4096), client.header(TRIM, 12_288, 4096));
    write.extend(pattern(0, 4096, 3));
    assert_eq!(send(&write, trim, &mut client), ([0, 0], beyond), "as before");
}

#[test]
fn rubbish_ends_its_connection_and_no_other() {
    let host = host(Setup::default());
    let mut good = host.connect();
    for rubbish in [&[0xff; 28][..], b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let mut bad = host.connect();
        bad.stream.write_all(rubbish).expect("rubbish");
        assert!(bad.is_closed());
        assert_eq!(good.write(0, &[1; 4096]), 0);
    }
    let mut oversize = host.connect();
    oversize.request(WRITE, 0, 65 << 20, &[]);
    assert!(oversize.is_closed(), "64 MiB is the most that is consumed");
    host.until("three ends", |host| host.reasons().len() == 3);
}

#[test]
fn clients_that_die_in_mid_payload_leave_nothing_behind() {
    let host = host(Setup { connections_max: 4, ..Setup::default() });
    let mut steady = host.connect();
    for round in 0..300_usize {
        let mut victim = host.connect();
        let header = victim.header(WRITE, 0, 100_000);
        victim.stream.write_all(&header).expect("a header");
        victim.stream.write_all(&vec![0xee; round * 300]).expect("a part of the payload");
        for _ in 0..round % 7 {
            let mut bytes = victim.header(READ, 1 << 20, 1 << 20);
            bytes.truncate(28 - round % 2);
            // Inside the payload these are not requests: only noise before the end.
            let _gone = victim.stream.write_all(&bytes);
        }
        drop(victim);
        if round % 50 == 0 {
            assert_eq!(steady.get(0, 100_000), Ok(vec![0; 100_000]), "no partial write");
        }
    }
    host.until("all ends", |host| host.reasons().len() == 300);
    assert_eq!(host.counter("connectionsOpen"), 1);
}

#[test]
fn clients_that_die_with_replies_outstanding_leave_nothing_behind() {
    let host = host(Setup { connections_max: 4, ..Setup::default() });
    for round in 0..200_u64 {
        let mut victim = host.attach(0, round % 2 == 0, false);
        for index in 0..20 {
            victim.request(READ, index << 19, 512 << 10, &[]);
        }
        drop(victim);
    }
    host.until("all ends", |host| host.reasons().len() == 200);
    let mut next = host.connect();
    assert_eq!(next.get(0, 4096), Ok(vec![0; 4096]));
    assert_eq!(host.counter("connectionsOpen"), 1);
}

#[test]
fn writes_that_wait_go_with_their_client() {
    let host = host(Setup { connections_max: 1, ..Setup::default() });
    let mut victim = host.connect();
    assert_eq!(victim.write(0, &[1; 4096]), 0);
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    for _ in 0..5 {
        victim.request(WRITE, 0, 4096, &[2; 4096]);
    }
    host.until("all of them", |host| host.switches.steps.load(Ordering::SeqCst) == 6);
    drop(victim);
    // The only slot is free again, though nothing that was written is taken.
    let mut next = host.connect();
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    assert_eq!(next.write(4096, &[3; 4096]), 0);
    assert_eq!(next.get(0, 4096), Ok(vec![1; 4096]), "they are not carried out");
}

#[test]
fn what_was_asked_for_before_a_goodbye_is_carried_out() {
    let host = host(Setup::default());
    let mut client = host.connect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    client.request(WRITE, 0, 4096, &[8; 4096]);
    client.request(DISC, 0, 0, &[]);
    host.until("the write", |host| host.switches.steps.load(Ordering::SeqCst) == 1);
    drop(client);
    let mut other = host.connect();
    assert_eq!(other.get(0, 4096), Ok(vec![0; 4096]));
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    host.until("its end", |host| host.reasons().len() == 1);
    assert_eq!(other.get(0, 4096), Ok(vec![8; 4096]));
}

#[test]
fn a_client_that_never_reads_holds_up_nobody() {
    let host = host(Setup::default());
    let mut stalled = host.connect();
    stalled.stream.set_nonblocking(true).expect("nonblocking");
    // Requests until its window, its replies and the socket's buffers are full.
    let mut sent = 0;
    'full: loop {
        let bytes = stalled.header(READ, 0, 1 << 20);
        let mut at = 0;
        let mut patience = 0;
        while at < bytes.len() {
            match stalled.stream.write(&bytes[at..]) {
                Ok(length) => at += length,
                Err(_) if patience == 200 => break 'full,
                Err(_) => {
                    patience += 1;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        sent += 1;
        assert!(sent < 1_000_000, "its socket is read for ever");
    }
    let mut half = host.connect();
    let header = half.header(WRITE, 0, 4096);
    half.stream.write_all(&header[..20]).expect("half a header");
    let mut other = host.connect();
    for round in 0..200_u64 {
        let data = pattern(round * 4096, 65_536, 9);
        assert_eq!(other.write(round * 4096, &data), 0);
        assert!(other.get(round * 4096, 65_536) == Ok(data));
    }
}

#[test]
fn payload_that_the_engine_does_not_take_stops_its_connection_only() {
    let host = host(Setup::default());
    let mut writer = host.connect();
    let mut reader = host.connect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    let sender = std::thread::spawn(move || {
        let cookies: Vec<_> = (0..64_u64)
            .map(|index| {
                writer.request(WRITE, index << 17, 1 << 17, &pattern(index << 17, 1 << 17, 2))
            })
            .collect();
        for cookie in cookies {
            assert_eq!(writer.simple_reply(), (0, cookie));
        }
        writer
    });
    host.until("a window full of payload", |host| host.switches.steps.load(Ordering::SeqCst) >= 8);
    for _ in 0..100 {
        assert_eq!(reader.get(0, 4096), Ok(vec![0; 4096]));
    }
    assert!(host.switches.steps.load(Ordering::SeqCst) < 64 + 100, "the socket is not read");
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    sender.join().expect("all answered");
    assert!(reader.get(0, 8 << 20) == Ok(pattern(0, 8 << 20, 2)));
}

#[test]
fn payload_that_comes_back_while_the_ring_spins_makes_room() {
    let host = host(Setup { spin_us: 5_000, ..Setup::default() });
    let mut client = host.connect();
    for _ in 0..300 {
        assert_eq!(client.write(0, &[1; 4096]), 0);
    }
    assert!(host.counter("ringSpinHits") > 0, "it spins");
    for round in 0..20 {
        host.switches.hold_writes.store(true, Ordering::SeqCst);
        let before = host.switches.steps.load(Ordering::SeqCst);
        let large = client.request(WRITE, 0, 1 << 20, &pattern(0, 1 << 20, round));
        let small = client.request(WRITE, 0, 20_000, &pattern(0, 20_000, round));
        // The window is almost full, held, and ends with a part of a header.
        let next = client.header(FLUSH, 0, 0);
        client.stream.write_all(&next[..10]).expect("a part");
        host.until("both writes", |host| host.switches.steps.load(Ordering::SeqCst) == before + 2);
        std::thread::sleep(Duration::from_millis(3));
        host.switches.hold_writes.store(false, Ordering::SeqCst);
        assert_eq!(client.simple_reply(), (0, large));
        assert_eq!(client.simple_reply(), (0, small));
        client.stream.write_all(&next[10..]).expect("the rest");
        assert_eq!(client.simple_reply().0, 0);
    }
}

#[test]
fn replies_that_a_full_socket_cuts_short_arrive_whole() {
    let host = host(Setup { spin_us: 5_000, ..Setup::default() });
    let (mut simple, mut chunked) = (host.connect(), host.attach(0, true, false));
    let data = pattern(0, 16 << 20, 5);
    assert_eq!(simple.write(0, &data), 0);
    for round in 0..20_u64 {
        for _ in 0..100 {
            assert_eq!(simple.get(0, 512), Ok(data[..512].to_vec()));
        }
        assert!(host.counter("ringSpinHits") > 0, "it spins");
        // Far more than a socket holds: the first reply goes out directly as far as it can, the
        // rest and the others follow while the client makes room.
        let wanted: Vec<_> = (0..4).map(|step| (round * 100 + step) << 12).collect();
        let length = (1 << 20) - 4096 * round as u32;
        let cookies: Vec<_> =
            wanted.iter().map(|offset| simple.request(READ, *offset, length, &[])).collect();
        assert_eq!(chunked.get(4096, 4096), Ok(data[4096..8192].to_vec()), "nobody is held up");
        for (offset, cookie) in wanted.iter().zip(cookies) {
            assert_eq!(simple.simple_reply(), (0, cookie));
            let (from, to) = (*offset as usize, *offset as usize + length as usize);
            assert!(simple.read(length as usize) == data[from..to], "at {offset}");
        }
    }
}

#[test]
fn a_client_that_dies_while_it_is_answered_directly_leaves_nothing_behind() {
    let host = host(Setup { spin_us: 5_000, connections_max: 2, ..Setup::default() });
    for round in 0..50 {
        let mut victim = host.connect();
        for _ in 0..50 {
            assert_eq!(victim.write(0, &[1; 4096]), 0);
        }
        victim.request(READ, 0, 1 << 20, &[]);
        drop(victim);
        host.until("its end", |host| host.reasons().len() == round + 1);
    }
    assert!(host.counter("ringSpinHits") > 0, "it spins");
    assert_eq!(host.connect().get(0, 4096), Ok([vec![1; 4096]].concat()));
}

#[test]
fn many_connections_share_the_ring() {
    for spin_us in [0, 50] {
        let host = host(Setup { connections_max: 32, spin_us, ..Setup::default() });
        std::thread::scope(|scope| {
            for id in 0..32_u64 {
                let mut client = host.attach(0, id % 2 == 0, false);
                scope.spawn(move || {
                    let base = id << 19;
                    for round in 0..100_u64 {
                        let length = 1 + (round as usize * 977 + id as usize) % 60_000;
                        let data = pattern(base + round, length, id as u8);
                        assert_eq!(client.write(base + round, &data), 0);
                        assert!(client.get(base + round, length as u32) == Ok(data));
                    }
                });
            }
        });
    }
}

#[test]
fn more_requests_than_tickets_wait_and_are_all_answered() {
    let host = host(Setup { connections_max: 12, ..Setup::default() });
    let mut clients: Vec<_> = (0..12).map(|_| host.connect()).collect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    for client in &mut clients {
        for index in 0..120_u64 {
            client.request(WRITE, index * 512, 512, &pattern(index * 512, 512, 4));
        }
    }
    host.until("all tickets taken", |host| host.switches.steps.load(Ordering::SeqCst) == 1024);
    let _gone_while_waiting = clients.pop();
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    for client in &mut clients {
        for _ in 0..120 {
            assert_eq!(client.simple_reply().0, 0);
        }
        assert!(client.get(0, 61_440) == Ok(pattern(0, 61_440, 4)));
    }
}

#[test]
fn reads_go_on_beside_as_many_waiting_writes_as_there_can_be() {
    let host = host(Setup { connections_max: 10, ..Setup::default() });
    let mut reader = host.connect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    let mut writers: Vec<_> = (0..9).map(|_| host.connect()).collect();
    for writer in &mut writers {
        for _ in 0..127 {
            writer.request(WRITE, 4096, 512, &[3; 512]);
        }
    }
    host.until("all that are taken", |host| host.switches.steps.load(Ordering::SeqCst) == 1024);
    // The writes are held until these two have their answers.
    assert_eq!(reader.get(0, 4096), Ok(vec![0; 4096]));
    assert_eq!(reader.plain(FLUSH, 0, 0), 0);
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    for writer in &mut writers {
        (0..127).for_each(|_| assert_eq!(writer.simple_reply().0, 0));
    }
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let host = host(Setup { connections_max: 2, ..Setup::default() });
    let first = host.connect();
    let _second = host.connect();
    let mut third = Client::open(&host);
    third.stream.write_all(&[0, 0, 0, 0]).expect("a greeting");
    assert_eq!(host.counter("connectionsOpen"), 2);
    drop(first);
    assert_eq!(third.read(4), [0, 0, 0, 0], "it has a slot now");
    assert_eq!(third.write(0, &[1; 512]), 0);
}

#[test]
fn a_listener_with_a_queue_does_not_keep_the_places_from_another() {
    let host = host(Setup { connections_max: 1, ..Setup::default() });
    let path = host.path.with_extension("second");
    let address = format!("unix:{}", path.display());
    host.runtime.listen(&address).expect("a second listener");
    let enough = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !enough.load(Ordering::SeqCst) {
                    Client::at(&host.path).greet(0, false, false);
                }
            });
        }
        host.until("a queue", |host| host.counter("connectionsAccepted") > 10);
        // The first of these makes one of the queue wait in the ring instead of in the kernel.
        let few = || (0..4).for_each(|_| Client::at(&path).greet(0, false, false));
        let served = scope.spawn(few).join();
        enough.store(true, Ordering::SeqCst);
        served
    });
    assert!(served.is_ok(), "clients of the other listener");
}

#[test]
fn a_handshake_that_stalls_is_ended_by_its_deadline() {
    let host = host(Setup::default());
    let mut silent = Client::open(&host);
    silent.stream.write_all(&[0, 0]).expect("half a greeting");
    assert!(silent.is_closed());
    host.until("its end", |host| host.reasons() == ["the handshake took too long"]);
    let mut nowhere = Client::open(&host);
    nowhere.stream.write_all(&[63, 0, 0, 0]).expect("a greeting");
    assert_eq!(nowhere.read(4), [63, 0, 0, 0], "what was sent before the end arrives");
    assert!(nowhere.is_closed(), "there is no such export");
}

#[test]
fn bytes_right_behind_the_handshake_are_not_lost() {
    let host = host(Setup::default());
    let mut client = Client::open(&host);
    let mut bytes = vec![0, 0, 0, 0];
    bytes.extend(client.header(WRITE, 0, 4096));
    bytes.extend([3; 4096]);
    bytes.extend(client.header(READ, 0, 4096));
    client.stream.write_all(&bytes).expect("everything at once");
    assert_eq!(client.read(4), [0; 4]);
    assert_eq!(client.simple_reply().0, 0);
    assert_eq!(client.simple_reply().0, 0);
    assert_eq!(client.read(4096), [3; 4096]);
}

#[test]
fn a_goodbye_is_answered_after_what_is_outstanding() {
    let host = host(Setup::default());
    let mut client = host.connect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    let cookie = client.request(WRITE, 0, 4096, &[8; 4096]);
    client.request(DISC, 0, 0, &[]);
    host.until("the write", |host| host.switches.steps.load(Ordering::SeqCst) == 1);
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    assert_eq!(client.simple_reply(), (0, cookie));
    assert!(client.is_closed());
    host.until("its end", |host| host.reasons() == ["the client disconnected"]);
}

#[test]
fn tcp_serves_as_well_and_several_listeners_at_once() {
    let host = host(Setup::default());
    let listening = host.runtime.listen("127.0.0.1:0").expect("a port");
    assert_eq!(listening.listener, 1);
    let mut stream = std::net::TcpStream::connect(&listening.address).expect("a connection");
    stream.write_all(&[0, 0, 0, 0]).expect("a greeting");
    let mut greeting = [1; 4];
    std::io::Read::read_exact(&mut stream, &mut greeting).expect("the greeting");
    let mut unix = host.connect();
    let mut request = unix.header(WRITE, 0, 512);
    request.extend([5; 512]);
    stream.write_all(&request).expect("a write");
    let mut reply = [0; 16];
    std::io::Read::read_exact(&mut stream, &mut reply).expect("a reply");
    assert_eq!(unix.get(0, 512), Ok(vec![5; 512]));
}

/// A listener that only fails does not keep the ring awake, and the others go on.
#[test]
fn a_listener_that_fails_again_and_again_is_left_alone_for_a_while() {
    let host = host(Setup::default());
    let listening = host.runtime.listen("127.0.0.1:0").expect("a port");
    let is_listener = |fd: &BorrowedFd<'_>| {
        let address = rustix::net::getsockname(fd).ok().and_then(|any| any.try_into().ok());
        address.is_some_and(|address: SocketAddr| address.to_string() == listening.address)
    };
    let folder = std::fs::read_dir("/proc/self/fd").expect("descriptors");
    let names = folder.map(|entry| entry.expect("a descriptor").file_name());
    let numbers: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    // SAFETY: only looked at; the listener's stays open as long as its runtime.
    let mut descriptors = numbers.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) });
    let listener = descriptors.find(is_listener).expect("the listener");
    rustix::net::shutdown(listener, rustix::net::Shutdown::Both).expect("it accepts no more");
    let turns = host.counter("ringTurns");
    std::thread::sleep(Duration::from_millis(300));
    let turned = host.counter("ringTurns") - turns;
    assert!(turned < 100, "{turned} turns: the ring tries again and again");
    assert_eq!(host.connect().write(0, &[1; 512]), 0);
}

#[test]
fn the_end_finishes_what_has_arrived_and_refuses_nothing() {
    let host = host(Setup::default());
    let mut idle = host.connect();
    let mut busy = host.connect();
    host.switches.hold_writes.store(true, Ordering::SeqCst);
    let first = busy.request(WRITE, 0, 4096, &[8; 4096]);
    host.until("the write", |host| host.switches.steps.load(Ordering::SeqCst) == 1);
    let runtime = host.runtime.clone();
    let ending = std::thread::spawn(move || runtime.shutdown());
    assert!(idle.is_closed(), "who has nothing in flight goes first");
    // The ring has been receiving since before the end began: this arrives, and is served. A
    // kernel's client would take ESHUTDOWN for an I/O error.
    let second = busy.request(WRITE, 4096, 4096, &[9; 4096]);
    host.until("the second", |host| host.switches.steps.load(Ordering::SeqCst) == 2);
    // Nothing is received any more: this stays without an answer, and may be sent again elsewhere.
    busy.request(WRITE, 8192, 4096, &[9; 4096]);
    host.switches.hold_writes.store(false, Ordering::SeqCst);
    let mut answers = [busy.simple_reply(), busy.simple_reply()];
    answers.sort_unstable_by_key(|(_, cookie)| *cookie);
    assert_eq!(answers, [(0, first), (0, second)]);
    assert!(busy.is_closed());
    ending.join().expect("no panic").expect("an orderly end");
    host.runtime.shutdown().expect("a second call does nothing");
    assert!(matches!(host.runtime.listen("127.0.0.1:0"), Err(RuntimeError::Stopped)));
    assert!(!host.path.exists(), "the socket's file is gone");
}

/// A TCP client of whose answers little arrives before it is read.
fn slow_tcp_client(host: &Host) -> std::net::TcpStream {
    let address: SocketAddr =
        host.runtime.listen("127.0.0.1:0").expect("a port").address.parse().expect("an address");
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    );
    let socket = socket.expect("a socket");
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).expect("a small buffer");
    rustix::net::connect(&socket, &address).expect("a connection");
    let mut stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(support::PATIENCE)).expect("a timeout");
    stream.write_all(&[0, 0, 0, 0]).expect("a greeting");
    std::io::Read::read_exact(&mut stream, &mut [0; 4]).expect("the greeting");
    stream
}

/// Who waits for no client that can still be helped does not wait.
const END_LIMIT: Duration = Duration::from_secs(20);

/// TCP resets a connection that is closed with requests in it, and drops what it has not sent.
#[test]
fn the_end_loses_no_answer_that_is_still_on_its_way() {
    const READS: usize = 8;
    const LENGTH: usize = 64 << 10;
    let host = host(Setup::default());
    let mut stream = slow_tcp_client(&host);
    let mut unix = host.connect();
    let request = unix.header(READ, 0, LENGTH as u32);
    for _ in 0..READS {
        stream.write_all(&request).expect("a read");
    }
    host.until("the reads", |host| host.answered("read").0 == READS as u64);
    // Nobody wakes the ring by chance: it has to notice by itself.
    host.deaf.store(true, Ordering::SeqCst);
    let (runtime, began) = (host.runtime.clone(), Instant::now());
    let limit_ms = END_LIMIT.as_millis() as u64;
    let ending = std::thread::spawn(move || runtime.shutdown_within(limit_ms));
    assert!(unix.is_closed(), "the end has begun");
    stream.write_all(&request).expect("what the ring was receiving when the end began");
    host.until("one more", |host| host.answered("read").0 == READS as u64 + 1);
    stream.write_all(&request).expect("what nobody receives any more");
    // Long enough to close the connection for who does not wait.
    std::thread::sleep(Duration::from_millis(100));
    let mut replies = vec![0; (READS + 1) * (16 + LENGTH)];
    std::io::Read::read_exact(&mut stream, &mut replies).expect("all answers");
    ending.join().expect("no panic").expect("an orderly end");
    assert!(began.elapsed() < END_LIMIT, "it ends with the last answer");
    host.deaf.store(false, Ordering::SeqCst);
    host.until("both ends", |host| host.reasons() == ["the server is stopping"; 2]);
}

/// The kernel counts what it sent to a client that is gone as unconfirmed for ever.
#[test]
fn the_end_does_not_wait_for_who_is_gone() {
    let host = host(Setup::default());
    let mut stream = slow_tcp_client(&host);
    let mut unix = host.connect();
    let request = unix.header(READ, 0, 512 << 10);
    stream.write_all(&request).expect("a read");
    host.until("the read", |host| host.answered("read").0 == 1);
    let (runtime, began) = (host.runtime.clone(), Instant::now());
    let limit_ms = END_LIMIT.as_millis() as u64;
    let ending = std::thread::spawn(move || runtime.shutdown_within(limit_ms));
    assert!(unix.is_closed(), "the end has begun");
    stream.write_all(&request).expect("what the ring was receiving when the end began");
    host.until("one more", |host| host.answered("read").0 == 2);
    // With answers that it has not read: the connection is reset.
    drop(stream);
    ending.join().expect("no panic").expect("an orderly end");
    assert!(began.elapsed() < END_LIMIT, "nobody is there to be waited for");
}

#[test]
fn a_write_that_has_not_arrived_whole_does_not_hold_up_the_end() {
    let host = host(Setup::default());
    let mut client = host.connect();
    let mut reader = host.connect();
    let half = client.header(WRITE, 0, 4 << 20);
    client.stream.write_all(&half).expect("a header");
    client.stream.write_all(&pattern(0, 2 << 20, 3)).expect("half of the payload");
    host.until("what arrived", |host| host.switches.steps.load(Ordering::SeqCst) == 2);
    assert_eq!(reader.get(0, 4096), Ok(pattern(0, 4096, 3)));
    host.runtime.shutdown_within(60_000).expect("an orderly end");
    host.until("both ends", |host| host.reasons() == ["the server is stopping"; 2]);
}

#[test]
fn a_stalled_client_holds_up_the_end_only_to_the_limit() {
    let host = host(Setup::default());
    let mut stalled = host.connect();
    for _ in 0..20 {
        stalled.request(READ, 0, 1 << 20, &[]);
    }
    host.until("some reads", |host| host.switches.steps.load(Ordering::SeqCst) > 0);
    let began = Instant::now();
    host.runtime.shutdown_within(100).expect("an orderly end all the same");
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(100), "it waits for the client: {waited:?}");
    assert!(waited < Duration::from_secs(10), "that is the limit of who names none: {waited:?}");
}

#[test]
fn operators_are_answered_and_notices_arrive() {
    use ringfence_uring::{ControlAction, RuntimeEvent};
    let host = host(Setup::default());
    host.runtime.control(7, ControlAction::Flush, None).expect("taken");
    assert!(host.runtime.control(8, ControlAction::Drain, Some(9)).is_err(), "no such export");
    let done = RuntimeEvent::ControlDone { token: 7, error: None };
    host.until("its end", |host| {
        let other = host.other.lock().expect("no panic");
        let latched = |event: &RuntimeEvent| {
            matches!(event, RuntimeEvent::Notice { notice: "latched", slot: None, .. })
        };
        other.contains(&done) && other.iter().any(latched)
    });
}

#[test]
fn serving_neither_allocates_nor_faults() {
    let host = host(Setup { spin_us: 20, ..Setup::default() });
    let mut clients: Vec<_> = (0..8).map(|id| host.attach(0, id % 2 == 0, false)).collect();
    let mut round = |salt: u8| {
        for client in &mut clients {
            for (offset, length) in [(0, 4096), (5000, 100_000), (1 << 20, 3 << 20)] {
                let data = pattern(offset, length, salt);
                assert_eq!(client.write(offset, &data), 0);
                assert!(client.get(offset, length as u32) == Ok(data));
            }
        }
    };
    round(1);
    let before = host.counter("ringPageFaults");
    (2..20).for_each(&mut round);
    assert_eq!(host.counter("ringPageFaults"), before, "memory is there before it is used");
    assert_eq!(host.counter("ringAllocations"), 0);
    assert!(host.counter("ringTurns") > 0, "the counters are alive");
}
