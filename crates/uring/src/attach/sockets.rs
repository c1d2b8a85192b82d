//! The sockets that the driver has from this process: each is a connection of the device.
//!
//! The driver shuts a socket down when it gives a connection up, for whatever reason, and so does
//! a server that ends. On the descriptor that is kept here that shows as a hang-up, and to see it
//! the kernel needs no memory.

use super::netlink::SOCKETS_MAX;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Those that live, and how many have died since and were not replaced.
#[derive(Debug)]
pub struct Sockets {
    living: Vec<OwnedFd>,
    owed: u32,
}

/// What a wait ended with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Each of the other two descriptors can be read.
    pub readable: [bool; 2],
    /// A connection died.
    pub died: bool,
}

impl Sockets {
    /// Room for all that a device can have. The last allocation.
    #[must_use]
    pub fn new() -> Self {
        Self { living: Vec::with_capacity(SOCKETS_MAX), owed: 0 }
    }

    /// The driver has one more, in place of a dead one if there was any.
    pub fn add(&mut self, socket: OwnedFd) {
        self.owed = self.owed.saturating_sub(1);
        // The driver may have given up one that still looks alive here; it has no more than that.
        if self.living.len() < SOCKETS_MAX {
            self.living.push(socket);
        }
    }

    /// Those that live.
    #[must_use]
    pub fn living(&self) -> &[OwnedFd] {
        &self.living
    }

    /// Connections that died and were not replaced.
    #[must_use]
    pub const fn owed(&self) -> u32 {
        self.owed
    }

    /// Waits until one hangs up or one of two other descriptors can be read, no longer than
    /// `limit`. One that hung up is given back.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&mut self, others: [BorrowedFd<'_>; 2], limit: Duration) -> io::Result<Heard> {
        let mut fds: [PollFd<'_>; 2 + SOCKETS_MAX] = std::array::from_fn(|place| {
            if let Some(other) = others.get(place) {
                return PollFd::from_borrowed_fd(*other, PollFlags::IN);
            }
            // A hang-up is told unasked; what arrives is the driver's. Places without a socket
            // are not looked at.
            let socket = self.living.get(place - others.len()).map(AsFd::as_fd);
            PollFd::from_borrowed_fd(socket.unwrap_or(others[0]), PollFlags::empty())
        });
        let timeout = Timespec::try_from(limit).unwrap_or_default();
        rustix::event::poll(&mut fds[..others.len() + self.living.len()], Some(&timeout))?;
        let [first, second, hung_up @ ..] = fds.map(|fd| !fd.revents().is_empty());
        let before = self.living.len();
        let mut places = hung_up.iter();
        self.living.retain(|_| places.next() == Some(&false));
        let dead = before - self.living.len();
        self.owed += dead as u32;
        Ok(Heard { readable: [first, second], died: dead > 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::{Heard, Sockets};
    use crate::attach::netlink::SOCKETS_MAX;
    use crate::signal::Signal;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);
    const DIED: Heard = Heard { readable: [false; 2], died: true };

    fn wait(sockets: &mut Sockets, limit: Duration) -> Heard {
        let quiet = Signal::new().expect("an eventfd");
        // SAFETY: it is open until the end of the function.
        let quiet = unsafe { BorrowedFd::borrow_raw(quiet.raw()) };
        sockets.wait([quiet, quiet], limit).expect("a wait")
    }

    fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("a server");
        (client, listener.accept().expect("a client").0)
    }

    /// What is done to the driver's own reference of the socket, or by the server.
    #[test]
    fn whatever_ends_a_connection_is_heard_and_what_arrives_on_one_is_not() {
        let mut sockets = Sockets::new();
        let (unix, mut unix_server) = UnixStream::pair().expect("a pair");
        let (tcp, mut tcp_server) = tcp_pair();
        let (driver_unix, driver_tcp) = (unix.try_clone().expect("a reference"), tcp.try_clone());
        let driver_tcp = driver_tcp.expect("a reference");
        sockets.add(OwnedFd::from(unix));
        sockets.add(OwnedFd::from(tcp));
        unix_server.write_all(b"an answer").expect("sent");
        tcp_server.write_all(b"an answer").expect("sent");
        assert_eq!(wait(&mut sockets, Duration::ZERO), Heard::default());
        assert_eq!((sockets.living().len(), sockets.owed()), (2, 0));

        driver_tcp.shutdown(Shutdown::Both).expect("shut down");
        assert_eq!(wait(&mut sockets, LONG), DIED);
        assert_eq!((sockets.living().len(), sockets.owed()), (1, 1));
        driver_unix.shutdown(Shutdown::Both).expect("shut down");
        assert_eq!(wait(&mut sockets, LONG), DIED);
        assert_eq!((sockets.living().len(), sockets.owed()), (0, 2));

        let (other, other_server) = UnixStream::pair().expect("a pair");
        sockets.add(OwnedFd::from(other));
        assert_eq!((sockets.living().len(), sockets.owed()), (1, 1));
        drop(other_server);
        assert_eq!(wait(&mut sockets, LONG), DIED);
        assert_eq!((sockets.living().len(), sockets.owed()), (0, 2));
    }

    #[test]
    fn those_that_died_are_told_from_those_that_live() {
        let mut sockets = Sockets::new();
        let mut servers: Vec<_> = (0..SOCKETS_MAX)
            .map(|_| {
                let (socket, server) = UnixStream::pair().expect("a pair");
                sockets.add(OwnedFd::from(socket));
                Some(server)
            })
            .collect();
        for dead in [0, 7, SOCKETS_MAX - 1] {
            servers[dead] = None;
        }
        assert_eq!(wait(&mut sockets, LONG), DIED);
        assert_eq!((sockets.living().len(), sockets.owed()), (SOCKETS_MAX - 3, 3));
        assert_eq!(wait(&mut sockets, Duration::ZERO), Heard::default(), "the others live");
    }

    #[test]
    fn a_command_is_heard_beside_them() {
        let mut sockets = Sockets::new();
        let (socket, _server) = UnixStream::pair().expect("a pair");
        sockets.add(OwnedFd::from(socket));
        let (quiet, rung) = (Signal::new().expect("an eventfd"), Signal::new().expect("another"));
        rung.ring();
        // SAFETY: both are open until the end of the function.
        let others =
            unsafe { [BorrowedFd::borrow_raw(quiet.raw()), BorrowedFd::borrow_raw(rung.raw())] };
        let heard = sockets.wait(others, LONG).expect("a wait");
        assert_eq!(heard, Heard { readable: [false, true], died: false });
    }
}
