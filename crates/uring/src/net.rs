//! Addresses: parsing, binding, listening. Done by the caller's thread; the ring only accepts.

use crate::error::RuntimeError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clients that may wait to be accepted.
const UNIX_BACKLOG: i32 = 128;

/// A socket that listens, and its address as bound.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub fd: OwnedFd,
    /// `unix:PATH` or `HOST:PORT`.
    pub address: String,
    /// Whether connections are TCP's.
    pub tcp: bool,
    /// What was made in the filesystem, if anything.
    pub file: Option<SocketFile>,
}

/// A socket's file, as it was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    mark: FileMark,
}

/// What tells a file from another one that takes its place, also where that gets its inode.
type FileMark = (u64, u64, i64, i64);

fn mark_of(path: &Path) -> io::Result<FileMark> {
    let meta = std::fs::symlink_metadata(path)?;
    Ok((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec()))
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), mark: mark_of(path)? })
    }

    /// Removes the file, unless another process has put its own there: once nobody listens any
    /// more, whoever starts next may do so at once.
    pub fn remove(&self) {
        if mark_of(&self.path).is_ok_and(|mark| mark == self.mark) {
            let _gone_already = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds and listens on `unix:PATH` or `HOST:PORT`.
///
/// # Errors
/// [`RuntimeError::Listen`].
pub fn listen(address: &str) -> Result<Listener, RuntimeError> {
    let fail = |reason: String| RuntimeError::Listen { address: address.to_owned(), reason };
    if let Some(path) = address.strip_prefix("unix:") {
        let path = Path::new(path);
        let listener = listen_unix(path).map_err(|error| fail(explain(&error)))?;
        let file = SocketFile::of(path).map_err(|error| fail(explain(&error)))?;
        let address = address.to_owned();
        return Ok(Listener { fd: listener.into(), address, tcp: false, file: Some(file) });
    }
    if !address.contains(':') {
        return Err(fail("an address is unix:PATH or HOST:PORT".to_owned()));
    }
    let addresses = address.to_socket_addrs().map_err(|error| fail(error.to_string()))?;
    let addresses: Vec<SocketAddr> = addresses.collect();
    let listener =
        TcpListener::bind(addresses.as_slice()).map_err(|error| fail(explain(&error)))?;
    let bound = listener.local_addr().map_err(|error| fail(error.to_string()))?;
    Ok(Listener { fd: listener.into(), address: bound.to_string(), tcp: true, file: None })
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "the address is in use: stop the program that has it, or choose another".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "this machine does not have that address".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied: run this as root, or choose an address that you may use".to_owned()
        }
        io::ErrorKind::NotFound => {
            "the socket's directory does not exist: make it, or choose another path".to_owned()
        }
        _ => error.to_string(),
    }
}

/// `SO_PASSRIGHTS` of Linux 6.16, which the bindings do not have yet.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel refuse descriptors that clients send along, on this socket and those that it
/// accepts. The ring has no use for them, and the kernel would close them on the ring's thread:
/// whatever the client has made that close wait for, all others would wait for, too.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.16.
fn refuse_descriptors(socket: &OwnedFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: the option's value is an integer, at the place and of the size that are named.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size_of_val(&off) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A listening socket whose clients can send bytes and nothing else, where the kernel knows how.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Before anybody can connect: an accepted socket is as the listening one was then.
    let _older_kernels_pass_them = refuse_descriptors(&socket);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, UNIX_BACKLOG)?;
    Ok(socket.into())
}

/// A socket file that nobody answers on is left over from a process that was killed.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match bind_unix(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket =
                std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
            let refused = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !(is_socket && refused) {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            bind_unix(path)
        }
        bound => bound,
    }
}

/// Who is at the other end, fixed in size so that the ring can pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over the network.
    Tcp(SocketAddr),
    /// A process of this machine; 0 when it is not told.
    Unix {
        /// Its process id.
        pid: i32,
    },
}

impl std::fmt::Display for Peer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "{address}"),
            Self::Unix { pid } => write!(formatter, "unix (process {pid})"),
        }
    }
}

/// An idle connection to a machine that is gone is noticed after about a minute.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Makes the kernel ask from time to time whether the other end of a TCP connection is still
/// there: who only waits for it would never know.
///
/// # Errors
/// What the system says.
pub fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
    Ok(())
}

/// Bytes sent over TCP that the other machine has not confirmed and still may; 0 where that is not
/// told.
#[must_use]
pub fn unconfirmed_bytes(socket: &OwnedFd) -> u32 {
    // The kernel goes on counting them behind a connection that has broken.
    let mut broken = [PollFd::new(socket, PollFlags::empty())];
    if !matches!(poll(&mut broken, Some(&Timespec::default())), Ok(0)) {
        return 0;
    }
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, to the place that it is given. It does not wait.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if result == 0 { bytes.cast_unsigned() } else { 0 }
}

/// Small replies go out at once, a client that is gone gives its place back, and the other end is
/// asked for its name. No allocation: the
/// standard library's calls here only use the stack.
#[must_use]
pub fn greet(fd: RawFd, tcp: bool) -> Peer {
    if tcp {
        // SAFETY: the descriptor is open, and stays so: `ManuallyDrop` never closes it.
        let stream = unsafe {
            use std::os::fd::FromRawFd;
            std::mem::ManuallyDrop::new(TcpStream::from_raw_fd(fd))
        };
        let _only_slower = stream.set_nodelay(true);
        let _stays_until_the_next_reply = keep_alive(&*stream);
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        return Peer::Tcp(stream.peer_addr().unwrap_or(nowhere));
    }
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `credentials` is a place of `length` bytes.
    unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    Peer::Unix { pid: credentials.pid }
}

#[cfg(test)]
mod tests {
    use super::{KEEPALIVE_IDLE, Listener, greet, listen, refuse_descriptors};
    use rustix::io::Errno;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn a_tcp_client_that_is_gone_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let _client = TcpStream::connect(address).expect("connected");
        let (served, from) = listener.accept().expect("accepted");
        assert_eq!(greet(served.as_raw_fd(), true).to_string(), from.to_string());
        assert!(sockopt::socket_keepalive(&served).expect("an option"));
        assert_eq!(sockopt::tcp_keepidle(&served).expect("an option"), KEEPALIVE_IDLE);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_busy_one_is_not() {
        let path = std::env::temp_dir().join(format!("ringfence-net-{}", std::process::id()));
        let address = format!("unix:{}", path.display());
        let first = listen(&address).expect("the first");
        let busy = listen(&address).expect_err("it is served");
        assert!(busy.to_string().contains("in use"), "{busy}");
        let Listener { fd, file, .. } = first;
        drop(fd);
        // Older kernels tell the times of files in steps of some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let second = listen(&address).expect("the file is stale now");
        file.expect("a Unix socket has one").remove();
        assert!(path.exists(), "it belongs to the second by now");
        second.file.expect("a Unix socket has one").remove();
        assert!(!path.exists());
    }

    /// The kernel would close them on the ring's thread, and that may wait for hours.
    #[test]
    fn descriptors_that_a_client_sends_are_refused() {
        let path = std::env::temp_dir().join(format!("ringfence-rights-{}", std::process::id()));
        let listener = listen(&format!("unix:{}", path.display())).expect("a socket");
        let client = UnixStream::connect(&path).expect("connected");
        let served = rustix::net::accept(&listener.fd).expect("accepted");
        let handed = [listener.fd.as_fd()];
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut room);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&handed)));
        let bytes = [IoSlice::new(b"IHAVEOPT")];
        let sent = sendmsg(&client, &bytes, &mut ancillary, SendFlags::NOSIGNAL);
        // The option came with Linux 6.16.
        let known = refuse_descriptors(&served).is_ok();
        assert_eq!(sent, if known { Err(Errno::PERM) } else { Ok(8) });
        assert_eq!(rustix::io::write(&client, b"IHAVEOPT"), Ok(8), "bytes alone are welcome");
        listener.file.expect("a Unix socket has one").remove();
    }

    #[test]
    fn port_0_becomes_a_real_one_and_rubbish_is_refused() {
        let listener = listen("127.0.0.1:0").expect("any port");
        assert!(!listener.address.ends_with(":0"), "{}", listener.address);
        let busy = listen(&listener.address).expect_err("it is taken");
        assert!(busy.to_string().contains("in use"), "{busy}");
        listen("nowhere").expect_err("no port");
    }
}
