//! The loop over a driver of our making, and real sockets.

use super::{
    AttachEvent, Command, Driver, Link, Mending, RECEIVE_BYTES_MAX, RETRY_MIN, Shared, Signal,
    Supervisor, Woken, errno_of, lock,
};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A server that greets, and answers whatever it is asked in the same way.
struct Server {
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `connections` connections, then is gone.
    fn start(name: &str, answer: &'static [u8; 4], connections: usize) -> Self {
        let path = std::env::temp_dir().join(format!("ringfence-{name}-{}", std::process::id()));
        let _stale = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let thread = std::thread::spawn(move || {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().expect("a client");
                stream.write_all(b"HELLO").expect("the greeting");
                let mut question = [0; 3];
                if stream.read_exact(&mut question).is_ok() {
                    let _gone = stream.write_all(answer);
                }
            }
        });
        Self { path, thread: Some(thread) }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    fn link(&self) -> Link {
        let mut link = Link::open(&self.address()).expect("a connection");
        assert_eq!(link.exchange(b"", 5).expect("the greeting"), b"HELLO");
        link.exchange(b"go?", 4).expect("an answer");
        link
    }

    fn end(&mut self) {
        self.thread.take().expect("once").join().expect("no panic");
        std::fs::remove_file(&self.path).expect("ours");
    }
}

/// A driver with so many dead connections; what it says to whom asks is in `script`.
struct Fake {
    script: VecDeque<Woken>,
    dead: Arc<AtomicU32>,
    living: u32,
    /// Offers that it takes for premature.
    unready: u32,
    /// What it answers to offers from then on.
    refuses: Option<i32>,
    attached: bool,
    failing: bool,
}

impl Driver for Fake {
    fn wait(&mut self, limit: Duration) -> Woken {
        self.script.pop_front().unwrap_or_else(|| {
            std::thread::sleep(limit);
            Woken::default()
        })
    }

    fn is_attached(&mut self) -> bool {
        self.attached
    }

    fn give(&mut self, _socket: OwnedFd) -> io::Result<bool> {
        if self.unready > 0 {
            self.unready -= 1;
            return Ok(false);
        }
        if let Some(errno) = self.refuses {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let taken = self.dead.load(Ordering::SeqCst) > 0;
        if taken {
            self.dead.fetch_sub(1, Ordering::SeqCst);
            self.living += 1;
        }
        Ok(taken)
    }

    fn living(&self) -> u32 {
        self.living
    }

    fn owed(&self) -> u32 {
        self.dead.load(Ordering::SeqCst)
    }

    fn fail_requests(&mut self) {
        self.failing = true;
    }

    fn detach(&mut self) -> io::Result<()> {
        self.attached = false;
        Ok(())
    }
}

const DIED: Woken = Woken { asked: false, died: true };
const QUIET: Woken = Woken { asked: false, died: false };
const ASKED: Woken = Woken { asked: true, died: false };

fn supervisor(link: Link, script: &[Woken], dead: u32, connections: u32) -> Supervisor<Fake> {
    let shared = Arc::new(Shared {
        events: Mutex::new(VecDeque::with_capacity(16)),
        commands: Mutex::new(VecDeque::with_capacity(4)),
        signal: Signal::new().expect("an eventfd"),
    });
    let driver = Fake {
        script: script.iter().copied().collect(),
        dead: Arc::new(AtomicU32::new(dead)),
        living: connections.saturating_sub(dead),
        unready: 0,
        refuses: None,
        attached: true,
        failing: false,
    };
    Supervisor {
        driver,
        shared,
        transcript: link.transcript,
        scratch: vec![0; RECEIVE_BYTES_MAX].into_boxed_slice(),
        connections,
        dead_timeout: Duration::ZERO,
        mending: None,
    }
}

/// What JavaScript has been told.
fn told(supervisor: &Supervisor<Fake>) -> Vec<AttachEvent> {
    lock(&supervisor.shared.events).iter().copied().collect()
}

/// Replaces dead connections until there is nothing left to do.
fn mend_to_the_end(supervisor: &mut Supervisor<Fake>) {
    while let Some(mending) = supervisor.mending {
        std::thread::sleep(mending.next.saturating_duration_since(Instant::now()));
        supervisor.mend();
    }
}

/// Runs until the script is over, then detaches.
fn run(mut supervisor: Supervisor<Fake>) -> Vec<AttachEvent> {
    supervisor.driver.script.push_back(ASKED);
    lock(&supervisor.shared.commands).push_back(Command::Detach);
    supervisor.run().expect("an orderly end");
    assert!(!supervisor.driver.attached, "the device is detached");
    told(&supervisor)
}

#[test]
fn a_dead_connection_is_replaced_by_the_same_handshake() {
    let mut server = Server::start("same", b"yes!", 2);
    let link = server.link();
    let events = run(supervisor(link, &[QUIET, DIED], 1, 1));
    assert_eq!(events, [AttachEvent::Dead, AttachEvent::Restored]);
    server.end();
}

#[test]
fn every_dead_connection_is_replaced() {
    let mut server = Server::start("every", b"yes!", 4);
    let link = server.link();
    let events = run(supervisor(link, &[DIED, QUIET, QUIET, QUIET], 3, 3));
    let restored = events.iter().filter(|event| **event == AttachEvent::Restored).count();
    assert_eq!((events[0], restored), (AttachEvent::Dead, 3));
    server.end();
}

#[test]
fn a_server_that_answers_something_else_is_not_handed_over() {
    let mut before = Server::start("unlike", b"yes!", 1);
    let link = before.link();
    before.end();
    let mut after = Server::start("unlike", b"no!!", 1);
    let supervisor = supervisor(link, &[DIED], 1, 1);
    let dead = supervisor.driver.dead.clone();
    let events = run(supervisor);
    assert_eq!(events, [AttachEvent::Dead, AttachEvent::Unlike, AttachEvent::Failing]);
    assert_eq!(dead.load(Ordering::SeqCst), 1, "the device still waits");
    after.end();
}

#[test]
fn what_javascript_negotiates_anew_is_handed_over_and_repeated_from_then_on() {
    let mut before = Server::start("renew", b"yes!", 1);
    let link = before.link();
    before.end();
    let mut after = Server::start("renew", b"no!!", 3);
    let mut supervisor = supervisor(link, &[], 2, 1);
    supervisor.connection_died();
    supervisor.mend();
    lock(&supervisor.shared.commands).push_back(Command::Renew(after.link()));
    assert!(supervisor.driver.failing, "what waits may fail");
    assert!(supervisor.obey().is_none(), "the thread goes on");
    supervisor.connection_died();
    supervisor.mend();
    let events = told(&supervisor);
    let expected = [AttachEvent::Dead, AttachEvent::Unlike, AttachEvent::Failing];
    assert_eq!(events[..3], expected);
    assert_eq!(events[3..], [AttachEvent::Restored, AttachEvent::Dead, AttachEvent::Restored]);
    after.end();
}

#[test]
fn a_server_that_is_away_is_tried_again_and_told_of_once() {
    let mut server = Server::start("away", b"yes!", 1);
    let link = server.link();
    server.end();
    let supervisor = supervisor(link, &[DIED], 1, 1);
    let shared = supervisor.shared.clone();
    let dead = supervisor.driver.dead.clone();
    let path = server.path.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(RETRY_MIN * 3);
        let mut back = Server::start("away", b"yes!", 1);
        assert_eq!(back.path, path);
        while dead.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(RETRY_MIN);
        }
        lock(&shared.commands).push_back(Command::Detach);
        back.end();
    });
    let events = run_until_commanded(supervisor);
    let away = events.iter().filter(|event| matches!(event, AttachEvent::Away(_))).count();
    assert_eq!(away, 1, "{events:?}");
    assert_eq!(events.last(), Some(&AttachEvent::Restored), "{events:?}");
    later.join().expect("no panic");
}

#[test]
fn no_failure_is_told_as_a_success() {
    // As the standard library says that connecting took too long: without a number.
    assert_eq!(errno_of(&io::Error::from(io::ErrorKind::TimedOut)), libc::ETIMEDOUT);
    assert_eq!(errno_of(&io::Error::other("of nobody's making")), libc::ECONNRESET);
    assert_eq!(errno_of(&io::Error::from_raw_os_error(libc::EPIPE)), libc::EPIPE);
}

/// Turns the loop by hand until a command is there, whatever the driver says.
fn run_until_commanded(mut supervisor: Supervisor<Fake>) -> Vec<AttachEvent> {
    loop {
        let woken = supervisor.driver.script.pop_front().unwrap_or(QUIET);
        if woken.died {
            supervisor.connection_died();
        }
        if supervisor.mending.is_some_and(|mending| mending.next <= Instant::now()) {
            supervisor.mend();
        }
        if supervisor.obey().is_some() {
            return told(&supervisor);
        }
    }
}

#[test]
fn a_death_that_is_not_noted_yet_is_tried_again_and_a_false_alarm_ends() {
    let mut server = Server::start("alarm", b"yes!", 1 + super::PREMATURE_MAX as usize);
    let link = server.link();
    let mut supervisor = supervisor(link, &[], 0, 1);
    supervisor.mending = Some(Mending::new(Instant::now()));
    while supervisor.mending.is_some() {
        supervisor.mend();
    }
    assert!(lock(&supervisor.shared.events).is_empty(), "nothing happened");
    server.end();
}

#[test]
fn a_server_without_room_for_all_connections_is_not_said_to_be_away() {
    // The first connection, and one that takes the place of a dead one.
    let mut server = Server::start("room", b"yes!", 2);
    let link = server.link();
    let mut supervisor = supervisor(link, &[], 1, 3);
    supervisor.connection_died();
    supervisor.mend();
    server.end();
    mend_to_the_end(&mut supervisor);
    let events = told(&supervisor);
    assert_eq!(events, [AttachEvent::Dead, AttachEvent::Restored]);
    assert!(!supervisor.driver.failing, "requests go on over the others");
}

#[test]
fn a_device_that_somebody_else_detached_ends_the_thread() {
    let mut server = Server::start("gone", b"yes!", 1);
    let link = server.link();
    let mut supervisor = supervisor(link, &[], 0, 1);
    supervisor.driver.attached = false;
    supervisor.run().expect("an orderly end");
    let events = told(&supervisor);
    assert_eq!(events, [AttachEvent::Gone]);
    server.end();
}

/// The driver may need a while to note what the socket shows at once.
#[test]
fn a_connection_that_is_known_to_be_dead_is_not_given_up() {
    let offers = super::PREMATURE_MAX + 2;
    let mut server = Server::start("owed", b"yes!", 2 + offers as usize);
    let link = server.link();
    let mut supervisor = supervisor(link, &[], 1, 1);
    supervisor.driver.unready = offers;
    supervisor.connection_died();
    mend_to_the_end(&mut supervisor);
    let events = told(&supervisor);
    assert_eq!(events, [AttachEvent::Dead, AttachEvent::Restored]);
    server.end();
}

/// The server has room for one connection less than before it went away.
#[test]
fn requests_over_living_connections_are_not_said_to_fail() {
    let mut server = Server::start("living", b"yes!", 1);
    let link = server.link();
    server.end();
    let mut supervisor = supervisor(link, &[], 1, 2);
    supervisor.connection_died();
    mend_to_the_end(&mut supervisor);
    let events = told(&supervisor);
    assert_eq!(events, [AttachEvent::Dead]);
    assert!(!supervisor.driver.failing, "the other one serves them");
}

#[test]
fn one_death_of_several_takes_one_connection() {
    let mut server = Server::start("one", b"yes!", 2);
    let link = server.link();
    let mut supervisor = supervisor(link, &[], 1, 4);
    supervisor.connection_died();
    supervisor.mend();
    assert!(supervisor.mending.is_none(), "all four are known to live");
    let events = told(&supervisor);
    assert_eq!(events, [AttachEvent::Dead, AttachEvent::Restored]);
    server.end();
}

/// Detached by force, but still open somewhere: its sockets are shut down, and it takes no others.
/// Or gone, and its number another's.
#[test]
fn a_device_that_takes_no_socket_any_more_is_left_alone() {
    for errno in [libc::EINVAL, libc::ENODEV] {
        let mut server = Server::start(&format!("bound-{errno}"), b"yes!", 2);
        let link = server.link();
        let mut supervisor = supervisor(link, &[], 1, 1);
        supervisor.driver.refuses = Some(errno);
        supervisor.connection_died();
        supervisor.mend();
        assert!(supervisor.mending.is_none(), "until it is gone");
        let events = told(&supervisor);
        assert_eq!(events, [AttachEvent::Dead]);
        server.end();
    }
}
