//! Generic netlink as the kernel's nbd driver speaks it (`linux/nbd-netlink.h`): requests with
//! their acknowledgement, and the multicast group in which it tells of dead connections.
//!
//! Messages are built and read in place, in memory that is there before the first one: whoever
//! repairs a connection must not allocate, because the memory may be what waits for it.

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// `NBD_CMD_*`.
mod command {
    pub const CONNECT: u8 = 1;
    pub const DISCONNECT: u8 = 2;
    pub const RECONFIGURE: u8 = 3;
    pub const LINK_DEAD: u8 = 4;
    pub const STATUS: u8 = 5;
}

/// `NBD_ATTR_*`, and what is nested in them.
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const TIMEOUT: u16 = 4;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    pub const DEVICE_LIST: u16 = 9;
    pub const BACKEND_IDENTIFIER: u16 = 10;
    pub const SOCKET_ITEM: u16 = 1;
    pub const SOCKET_FD: u16 = 1;
    pub const DEVICE_ITEM: u16 = 1;
    pub const DEVICE_INDEX: u16 = 1;
    pub const DEVICE_CONNECTED: u16 = 2;
}

/// Bytes of a message's header (`nlmsghdr`), and of it and the generic one (`genlmsghdr`).
const HEADER_BYTES: usize = 16;
const HEADERS_BYTES: usize = HEADER_BYTES + 4;
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The largest request: an identifier (a few hundred bytes) and [`SOCKETS_MAX`] sockets.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Larger than any answer: the list of groups of a family, or the state of one device.
const ANSWER_BYTES_MAX: usize = 16 << 10;
/// The timeout that a device has while it is given a socket, and again when what waits for a server
/// that is away may fail. Never zero: see [`super::link::was_taken`]. It is no longer than that
/// because what the driver sends before it is lifted is looked at only when it is over.
const TIMEOUT_SECONDS: u64 = 60;
/// Sockets of one device.
pub const SOCKETS_MAX: usize = 16;
const FAMILY: &[u8] = b"nbd\0";
const GROUP: &[u8] = b"nbd_mc_group\0";

/// How a device is to behave.
///
/// A timeout of the driver does three things: it limits how long a socket may take nothing, it
/// gives up requests without an answer, and it is how often the driver looks at them. None is
/// wanted as it is: it only marks the sockets that the driver takes. Then they are freed of it
/// ([`super::link::allow_stalls`]), and requests too ([`Netlink::limit_requests`]);
/// `queue/io_timeout` says how often to look.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// The device's number; null lets the kernel choose.
    pub index: Option<u32>,
    /// What the device is attached to, in words; the kernel keeps it and compares it.
    pub backend: String,
    /// Size of the export.
    pub size_bytes: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// The server's transmission flags.
    pub server_flags: u16,
    /// How long what was on its way over a broken connection waits before it is sent again.
    pub resend_seconds: u32,
    /// How long requests wait for a connection before they fail.
    pub dead_timeout_seconds: u32,
}

/// A generic netlink socket and what the kernel calls the nbd family.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    family: u16,
    group: u32,
    sequence: u32,
    request: Request,
    answer: Box<[u8]>,
}

impl Netlink {
    /// Opens a socket and asks for the family.
    ///
    /// # Errors
    /// `ENOENT` where the nbd driver is not loaded; what the system says otherwise.
    pub fn open() -> io::Result<Self> {
        let mut opened = Self {
            fd: socket()?,
            family: libc::GENL_ID_CTRL as u16,
            group: 0,
            sequence: 0,
            request: Request::new(),
            answer: vec![0; ANSWER_BYTES_MAX].into_boxed_slice(),
        };
        opened.begin(libc::CTRL_CMD_GETFAMILY as u8);
        opened.request.bytes(libc::CTRL_ATTR_FAMILY_NAME as u16, FAMILY);
        let mut found = (None, None);
        opened.ask(|message| {
            for (kind, value) in attributes(message) {
                if kind == libc::CTRL_ATTR_FAMILY_ID as u16 {
                    found.0 = u16_of(value);
                } else if kind == libc::CTRL_ATTR_MCAST_GROUPS as u16 {
                    found.1 = group_of(value);
                }
            }
        })?;
        let (Some(family), Some(group)) = found else { return Err(no_driver()) };
        Ok(Self { family, group, ..opened })
    }

    /// A second socket, which hears of dead connections from now on.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen(&self) -> io::Result<Listener> {
        let fd = socket()?;
        // SAFETY: the option's value is a number of four bytes that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const self.group).cast(),
                size_of::<u32>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        let buffer = vec![0; ANSWER_BYTES_MAX].into_boxed_slice();
        Ok(Listener { fd, family: self.family, buffer })
    }

    /// Attaches a device over `sockets`; returns its number.
    ///
    /// # Errors
    /// `EBUSY` where the device is attached already; what the driver says otherwise.
    pub fn connect(&mut self, spec: &DeviceSpec, sockets: &[RawFd]) -> io::Result<u32> {
        assert!(sockets.len() <= SOCKETS_MAX, "more sockets than a device takes");
        self.begin(command::CONNECT);
        if let Some(index) = spec.index {
            self.request.u32(attribute::INDEX, index);
        }
        self.request.u64(attribute::SIZE_BYTES, spec.size_bytes);
        self.request.u64(attribute::BLOCK_SIZE_BYTES, u64::from(spec.block_bytes));
        self.request.u64(attribute::SERVER_FLAGS, u64::from(spec.server_flags));
        self.timeouts(spec);
        self.request.text(attribute::BACKEND_IDENTIFIER, &spec.backend);
        self.sockets(sockets);
        let mut index = spec.index;
        self.ask(|message| {
            let found = attributes(message).find(|(kind, _)| *kind == attribute::INDEX);
            index = found.and_then(|(_, value)| u32_of(value)).or(index);
        })?;
        index.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Gives the device `socket` in place of a dead one. The driver does not say whether there was
    /// one; see [`super::link::was_taken`].
    ///
    /// # Errors
    /// `EINVAL` where the device is attached to something else; what the driver says otherwise.
    pub fn reconfigure(&mut self, index: u32, spec: &DeviceSpec, socket: RawFd) -> io::Result<()> {
        self.begin(command::RECONFIGURE);
        self.request.u32(attribute::INDEX, index);
        self.timeouts(spec);
        self.request.text(attribute::BACKEND_IDENTIFIER, &spec.backend);
        self.sockets(&[socket]);
        self.ask(|_| ())
    }

    /// Whether requests that are not answered are given up, with their connection, after a while.
    /// If not, the driver only looks at them from time to time, and sends those again whose
    /// connection has been replaced: a slow answer is waited for.
    ///
    /// # Errors
    /// What the driver says.
    pub fn limit_requests(
        &mut self,
        index: u32,
        spec: &DeviceSpec,
        limited: bool,
    ) -> io::Result<()> {
        self.begin(command::RECONFIGURE);
        self.request.u32(attribute::INDEX, index);
        let seconds = if limited { TIMEOUT_SECONDS } else { 0 };
        self.request.u64(attribute::TIMEOUT, seconds);
        self.request.text(attribute::BACKEND_IDENTIFIER, &spec.backend);
        self.ask(|_| ())
    }

    /// Detaches a device: its requests fail, its server is told goodbye.
    ///
    /// # Errors
    /// What the driver says.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        self.begin(command::DISCONNECT);
        self.request.u32(attribute::INDEX, index);
        self.ask(|_| ())
    }

    /// Whether a device is attached, with or without a living connection.
    ///
    /// # Errors
    /// What the driver says.
    pub fn is_attached(&mut self, index: u32) -> io::Result<bool> {
        self.begin(command::STATUS);
        self.request.u32(attribute::INDEX, index);
        let mut attached = false;
        self.ask(|message| attached |= says_attached(message, index))?;
        Ok(attached)
    }

    fn begin(&mut self, command: u8) {
        self.sequence = self.sequence.wrapping_add(1);
        self.request.begin(self.family, command, self.sequence);
    }

    fn timeouts(&mut self, spec: &DeviceSpec) {
        self.request.u64(attribute::TIMEOUT, TIMEOUT_SECONDS);
        let dead = u64::from(spec.dead_timeout_seconds);
        self.request.u64(attribute::DEAD_CONN_TIMEOUT, dead);
    }

    fn sockets(&mut self, sockets: &[RawFd]) {
        let list = self.request.open(attribute::SOCKETS);
        for socket in sockets {
            let item = self.request.open(attribute::SOCKET_ITEM);
            self.request.u32(attribute::SOCKET_FD, socket.cast_unsigned());
            self.request.close(item);
        }
        self.request.close(list);
    }

    /// Sends the request and gives the payloads of its answers to `take`, until it is acknowledged.
    fn ask(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        send(&self.fd, self.request.finish())?;
        loop {
            let length = receive(&self.fd, &mut self.answer)?;
            for message in messages(&self.answer[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    return match i32_of(message.body).unwrap_or(-libc::EPROTO) {
                        0 => Ok(()),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                if message.kind == self.family {
                    take(message.body.get(HEADERS_BYTES - HEADER_BYTES..).unwrap_or_default());
                }
            }
        }
    }
}

/// Hears of dead connections.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    family: u16,
    buffer: Box<[u8]>,
}

impl Listener {
    /// For `poll`.
    #[must_use]
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Takes what has arrived: whether a connection of the device died. What was lost because it
    /// came too fast counts as a death: looking once too often does no harm.
    pub fn heard_of(&mut self, index: u32) -> bool {
        let length = match receive(&self.fd, &mut self.buffer) {
            Ok(length) => length,
            Err(error) => return error.raw_os_error() == Some(libc::ENOBUFS),
        };
        messages(&self.buffer[..length])
            .any(|message| message.kind == self.family && tells_of(message.body, index))
    }
}

fn tells_of(body: &[u8], index: u32) -> bool {
    let payload = body.get(HEADERS_BYTES - HEADER_BYTES..).unwrap_or_default();
    body.first() == Some(&command::LINK_DEAD)
        && attributes(payload)
            .any(|(kind, value)| kind == attribute::INDEX && u32_of(value) == Some(index))
}

fn says_attached(message: &[u8], index: u32) -> bool {
    let of = |wanted: u16| move |(kind, _): &(u16, &[u8])| *kind == wanted;
    attributes(message)
        .filter(of(attribute::DEVICE_LIST))
        .flat_map(|(_, list)| attributes(list).filter(of(attribute::DEVICE_ITEM)))
        .any(|(_, item)| {
            let value = |kind| attributes(item).find(of(kind)).map(|(_, value)| value);
            value(attribute::DEVICE_INDEX).and_then(u32_of) == Some(index)
                && value(attribute::DEVICE_CONNECTED).and_then(<[u8]>::first) == Some(&1)
        })
}

fn group_of(groups: &[u8]) -> Option<u32> {
    attributes(groups).find_map(|(_, group)| {
        let value = |wanted: libc::c_int| {
            attributes(group).find(|(kind, _)| i32::from(*kind) == wanted).map(|(_, value)| value)
        };
        (value(libc::CTRL_ATTR_MCAST_GRP_NAME) == Some(GROUP))
            .then(|| value(libc::CTRL_ATTR_MCAST_GRP_ID).and_then(u32_of))
            .flatten()
    })
}

fn no_driver() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOENT)
}

fn socket() -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, 0))?;
    Ok(fd)
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // A message goes whole or not at all.
    let sent = retry(|| rustix::net::send(fd, bytes, rustix::net::SendFlags::NOSIGNAL))?;
    assert_eq!(sent, bytes.len(), "netlink keeps messages whole");
    Ok(())
}

fn receive(fd: &OwnedFd, into: &mut [u8]) -> io::Result<usize> {
    let (length, _) = retry(|| rustix::net::recv(fd, &mut *into, rustix::net::RecvFlags::empty()))?;
    Ok(length)
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// A request that is being built: attributes are padded to four bytes, nested ones patched.
#[derive(Debug)]
struct Request {
    memory: Box<[u8]>,
    length: usize,
}

impl Request {
    fn new() -> Self {
        Self { memory: vec![0; REQUEST_BYTES_MAX].into_boxed_slice(), length: 0 }
    }

    fn begin(&mut self, family: u16, command: u8, sequence: u32) {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        self.length = 0;
        self.push(&0_u32.to_ne_bytes());
        self.push(&family.to_ne_bytes());
        self.push(&flags.to_ne_bytes());
        self.push(&sequence.to_ne_bytes());
        self.push(&0_u32.to_ne_bytes());
        // The family's version is 1.
        self.push(&[command, 1, 0, 0]);
    }

    fn finish(&mut self) -> &[u8] {
        let length = self.length as u32;
        self.memory[..4].copy_from_slice(&length.to_ne_bytes());
        &self.memory[..self.length]
    }

    fn push(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        self.memory[self.length..end].copy_from_slice(bytes);
        self.length = end;
    }

    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len()) as u16;
        self.push(&length.to_ne_bytes());
        self.push(&kind.to_ne_bytes());
        self.push(value);
        self.push(&[0; 3][..self.length.next_multiple_of(4) - self.length]);
    }

    fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    fn text(&mut self, kind: u16, value: &str) {
        let length = (ATTRIBUTE_HEADER_BYTES + value.len() + 1) as u16;
        self.push(&length.to_ne_bytes());
        self.push(&kind.to_ne_bytes());
        self.push(value.as_bytes());
        // The final zero, and what pads it.
        self.push(&[0; 4][..(self.length + 1).next_multiple_of(4) - self.length]);
    }

    /// Begins a nested attribute; the returned place closes it.
    fn open(&mut self, kind: u16) -> usize {
        let at = self.length;
        self.push(&0_u16.to_ne_bytes());
        self.push(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        at
    }

    fn close(&mut self, at: usize) {
        let length = (self.length - at) as u16;
        self.memory[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
}

/// The messages of a datagram. The kernel is trusted; a length that cannot be still ends it.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32_of(bytes)? as usize;
        let whole = bytes.get(..length).filter(|whole| whole.len() >= HEADER_BYTES)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let (kind, sequence) = (u16_of(&whole[4..])?, u32_of(&whole[8..])?);
        Some(Message { kind, sequence, body: &whole[HEADER_BYTES..] })
    })
}

/// The attributes in `bytes`: kind without its flags, and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_of(bytes)?);
        let whole = bytes.get(..length).filter(|whole| whole.len() >= ATTRIBUTE_HEADER_BYTES)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16_of(&whole[2..])? & libc::NLA_TYPE_MASK as u16;
        Some((kind, &whole[ATTRIBUTE_HEADER_BYTES..]))
    })
}

fn u16_of(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn i32_of(bytes: &[u8]) -> Option<i32> {
    bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::{
        Request, attribute, attributes, command, messages, says_attached, tells_of, u32_of,
    };

    fn request(command: u8, build: impl FnOnce(&mut Request)) -> Vec<u8> {
        let mut request = Request::new();
        request.begin(27, command, 9);
        build(&mut request);
        request.finish().to_vec()
    }

    #[test]
    fn what_is_built_reads_back_and_is_aligned() {
        let bytes = request(command::CONNECT, |request| {
            request.u32(attribute::INDEX, 3);
            request.text(attribute::BACKEND_IDENTIFIER, "nbd://host/disk");
            let list = request.open(attribute::SOCKETS);
            for socket in [7, 8] {
                let item = request.open(attribute::SOCKET_ITEM);
                request.u32(attribute::SOCKET_FD, socket);
                request.close(item);
            }
            request.close(list);
            request.u64(attribute::SIZE_BYTES, 1 << 40);
        });
        assert_eq!(bytes.len() % 4, 0);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].sequence), (27, 9));
        assert_eq!(all[0].body[..2], [command::CONNECT, 1]);
        let found: Vec<_> = attributes(&all[0].body[4..]).collect();
        let kinds: Vec<_> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 10, 7, 2]);
        assert_eq!(found[1].1, b"nbd://host/disk\0");
        let sockets: Vec<_> = attributes(found[2].1)
            .map(|(_, item)| u32_of(attributes(item).next().expect("a socket").1))
            .collect();
        assert_eq!(sockets, [Some(7), Some(8)]);
        assert_eq!(found[3].1, (1_u64 << 40).to_ne_bytes());
    }

    #[test]
    fn a_text_ends_in_zero_whatever_its_length() {
        for length in 0..9 {
            let bytes = request(command::CONNECT, |request| {
                request.text(attribute::BACKEND_IDENTIFIER, &"x".repeat(length));
                request.u32(attribute::INDEX, 5);
            });
            let all: Vec<_> = attributes(&bytes[20..]).collect();
            assert_eq!(all[0].1.len(), length + 1);
            assert_eq!(all[0].1.last(), Some(&0));
            assert_eq!(all[1], (attribute::INDEX, &5_u32.to_ne_bytes()[..]));
        }
    }

    #[test]
    fn deaths_of_other_devices_and_other_messages_are_none_of_ours() {
        let of = |command, index| {
            let bytes = request(command, |request| request.u32(attribute::INDEX, index));
            tells_of(&bytes[16..], 3)
        };
        assert!(of(command::LINK_DEAD, 3));
        assert!(!of(command::LINK_DEAD, 4));
        assert!(!of(command::STATUS, 3));
        assert!(!tells_of(&[], 3));
    }

    #[test]
    fn the_status_of_a_device_is_its_own() {
        let bytes = request(command::STATUS, |request| {
            let list = request.open(attribute::DEVICE_LIST);
            for (index, connected) in [(0, 0), (1, 1)] {
                let item = request.open(attribute::DEVICE_ITEM);
                request.u32(attribute::DEVICE_INDEX, index);
                request.bytes(attribute::DEVICE_CONNECTED, &[connected]);
                request.close(item);
            }
            request.close(list);
        });
        assert!(!says_attached(&bytes[20..], 0));
        assert!(says_attached(&bytes[20..], 1));
        assert!(!says_attached(&bytes[20..], 2));
    }

    #[test]
    fn lengths_that_cannot_be_end_the_reading() {
        for rubbish in [&[0_u8; 40][..], &[255; 40], &[1, 0, 0, 0, 9], &[]] {
            assert_eq!(messages(rubbish).count(), 0);
            assert_eq!(attributes(rubbish).count(), 0);
        }
    }
}
