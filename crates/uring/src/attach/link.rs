//! One connection to a server, up to the end of its handshake, and the same again.
//!
//! JavaScript negotiates the first connection; what was sent and what came is kept. A later one
//! repeats it byte for byte: the server must answer exactly as it did, which proves that it is the
//! same export with the same size and the same abilities, and needs neither JavaScript nor memory.

use crate::error::RuntimeError;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long connecting, and each answer of a handshake, may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// The most that is received in one piece of a handshake: a name of 4 KiB and a few fields.
pub const RECEIVE_BYTES_MAX: usize = 16 << 10;
/// The most exchanges that are kept: far more than any negotiation has.
const EXCHANGES_MAX: usize = 1024;
/// How long a server that is there may take nothing before its connection is given up. A server
/// whose log is full reads nothing for as long as its origin needs; what would be given up is
/// begun again and might be carried out twice. But a sender that waits for ever cannot be detached.
const STALL_MAX: Duration = Duration::from_secs(60 * 60);

/// Where a server is, names resolved.
#[derive(Clone, Debug)]
enum Place {
    Unix(SocketAddrUnix),
    Tcp(Vec<SocketAddr>),
}

#[derive(Debug)]
struct Exchange {
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// What a handshake consisted of.
#[derive(Debug)]
pub struct Transcript {
    place: Place,
    exchanges: Vec<Exchange>,
}

/// A connection whose handshake is going on, or over.
#[derive(Debug)]
pub struct Link {
    /// The socket.
    pub socket: OwnedFd,
    /// What was said on it so far.
    pub transcript: Transcript,
}

/// Why a handshake could not be repeated.
#[derive(Debug)]
pub enum ReplayError {
    /// Nobody answers, or the connection broke.
    Away(io::Error),
    /// The server answers something else than before.
    Unlike,
}

impl Link {
    /// Connects to `unix:PATH` or `HOST:PORT`.
    ///
    /// # Errors
    /// A sentence with the address.
    pub fn open(address: &str) -> Result<Self, RuntimeError> {
        let fail = |source| RuntimeError::Connect { address: address.to_owned(), source };
        let place = Place::of(address).map_err(fail)?;
        let socket = place.connect().map_err(fail)?;
        Ok(Self { socket, transcript: Transcript { place, exchanges: Vec::new() } })
    }

    /// Sends `bytes`, then receives exactly `length` bytes.
    ///
    /// # Errors
    /// When the connection breaks or the server takes too long.
    pub fn exchange(&mut self, bytes: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let exchanges = &mut self.transcript.exchanges;
        if length > RECEIVE_BYTES_MAX || exchanges.len() >= EXCHANGES_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        send_all(&self.socket, bytes)?;
        let mut received = vec![0; length];
        receive_exact(&self.socket, &mut received)?;
        exchanges.push(Exchange { sent: bytes.to_vec(), received: received.clone() });
        Ok(received)
    }
}

impl Transcript {
    /// A new connection on which the same was said, ready for its transmission phase. Does not
    /// allocate; `scratch` has [`RECEIVE_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// See [`ReplayError`].
    pub fn replay(&self, scratch: &mut [u8]) -> Result<OwnedFd, ReplayError> {
        let socket = self.place.connect().map_err(ReplayError::Away)?;
        for Exchange { sent, received } in &self.exchanges {
            send_all(&socket, sent).map_err(ReplayError::Away)?;
            let answer = &mut scratch[..received.len()];
            receive_exact(&socket, answer).map_err(ReplayError::Away)?;
            if answer != received.as_slice() {
                return Err(ReplayError::Unlike);
            }
        }
        Ok(socket)
    }
}

impl Place {
    fn of(address: &str) -> io::Result<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(Self::Unix(SocketAddrUnix::new(path)?));
        }
        Ok(Self::Tcp(address.to_socket_addrs()?.collect()))
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let socket = match self {
            Self::Unix(path) => connect_unix(path)?,
            Self::Tcp(addresses) => connect_tcp(addresses)?,
        };
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(HANDSHAKE_LIMIT))?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, Some(HANDSHAKE_LIMIT))?;
        Ok(socket)
    }
}

fn connect_unix(path: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A listener whose queue is full makes connecting wait.
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(HANDSHAKE_LIMIT))?;
    rustix::net::connect(&socket, path)?;
    Ok(socket)
}

fn connect_tcp(addresses: &[SocketAddr]) -> io::Result<OwnedFd> {
    let mut last = io::Error::from_raw_os_error(libc::EADDRNOTAVAIL);
    for address in addresses {
        match TcpStream::connect_timeout(address, HANDSHAKE_LIMIT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let socket = OwnedFd::from(stream);
                // No TCP_USER_TIMEOUT beside it: that also ends a connection to a server that
                // has no room for more, though its machine acknowledges every probe.
                crate::net::keep_alive(&socket)?;
                return Ok(socket);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes the limits of the handshake off a socket that goes to the kernel, whose own reads of it
/// would end by them.
///
/// # Errors
/// What the system says.
pub fn hand_over(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Recv, None)?;
    sockopt::set_socket_timeout(socket, Timeout::Send, None)?;
    Ok(())
}

/// Whether the driver took a socket that went through [`hand_over`]. It does not say, but it gives
/// each socket that it takes the device's timeout, which is never zero.
#[must_use]
pub fn was_taken(socket: &OwnedFd) -> bool {
    !matches!(sockopt::socket_timeout(socket, Timeout::Send), Ok(None))
}

/// Lets a server make the driver wait on a socket that the driver has taken, and given its own
/// timeout.
///
/// # Errors
/// What the system says.
pub fn allow_stalls(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(socket, Timeout::Send, Some(STALL_MAX))?;
    Ok(())
}

fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn receive_exact(socket: &OwnedFd, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        match rustix::net::recv(socket, &mut *into, RecvFlags::empty()) {
            Ok((0, _)) => return Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            Ok((length, _)) => into = &mut into[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Link, STALL_MAX, allow_stalls, hand_over, was_taken};
    use rustix::net::sockopt::{self, Timeout};
    use std::net::TcpListener;
    use std::time::Duration;

    #[test]
    fn a_server_that_reads_nothing_for_minutes_keeps_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let socket = Link::open(&address).expect("a connection").socket;
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(0), "none of TCP");
        assert_eq!(sockopt::socket_keepalive(&socket), Ok(true), "a machine that is gone shows");
        hand_over(&socket).expect("no limits");
        assert!(!was_taken(&socket));
        // The driver.
        let own = Some(Duration::from_secs(60));
        sockopt::set_socket_timeout(&socket, Timeout::Send, own).expect("its timeout");
        assert!(was_taken(&socket));
        allow_stalls(&socket).expect("a longer one");
        assert_eq!(sockopt::socket_timeout(&socket, Timeout::Send), Ok(Some(STALL_MAX)));
    }
}
