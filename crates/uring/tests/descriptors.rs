//! A process that has no descriptors left. In a binary of its own: the limit is the process's.

mod support;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use support::{Host, Setup};

#[cfg(not(feature = "napi"))]
#[global_allocator]
static ALLOCATOR: ringfence_uring::allocation::CountingAllocator =
    ringfence_uring::allocation::CountingAllocator;

fn limit_descriptors(count: Option<u64>) {
    let now = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = rustix::process::Rlimit { current: count.or(now.maximum), maximum: now.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("a limit");
}

#[test]
fn clients_are_accepted_once_there_are_descriptors_again() {
    ringfence_uring::allocation::abort_on_ring_allocation(true);
    let host = Host::start(Setup::default());
    let mut served = host.connect();
    // The accept that waits already has the limit of before: it takes the first.
    let [first, second] = [(); 2].map(|()| {
        rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket")
    });
    let next = std::fs::File::open("/dev/null").expect("a descriptor");
    let free = next.as_raw_fd().cast_unsigned();
    drop(next);
    limit_descriptors(Some(u64::from(free)));
    let address = SocketAddrUnix::new(&host.path).expect("an address");
    let accepted = host.counter("connectionsAccepted") + 1;
    rustix::net::connect(&first, &address).expect("connected");
    host.until("the first", |host| host.counter("connectionsAccepted") == accepted);
    rustix::net::connect(&second, &address).expect("in the backlog");
    let turns = host.counter("ringTurns");
    for round in 0..100 {
        assert_eq!(served.get(0, 4096).expect("who is connected is served").len(), 4096);
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(host.counter("connectionsAccepted"), accepted, "round {round}");
    }
    let turned = host.counter("ringTurns") - turns;
    assert!(turned < 1000, "{turned} turns: the ring does not try again and again");
    limit_descriptors(None);
    host.until("a rest", |host| host.counter("connectionsAccepted") > accepted);
    let mut second = UnixStream::from(second);
    second.write_all(&[0; 4]).expect("a greeting");
    let mut greeting = [1; 4];
    second.read_exact(&mut greeting).expect("its answer");
    assert_eq!(greeting, [0; 4]);
    assert_eq!(host.counter("ringAllocations"), 0);
}
