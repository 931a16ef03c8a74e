//! A non-blocking stream and what is known of its readiness.
//!
//! Epoll announces changes, once. So a socket remembers: *readable* stays set until a read comes
//! back short or would block; a short read means drained (`epoll(7)`, "Possible pitfalls"), which
//! saves the read that would only say so. *Read-closed* is sticky: when data and FIN arrive
//! together epoll says so once, and after a short read nothing would announce the end of stream
//! again. *Broken* (ERR or HUP: the peer reset the connection, or both directions are closed) is
//! sticky as well.

use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::ops::BitOr;
use std::os::fd::{AsFd, BorrowedFd};

use mio::net::{TcpStream, UnixStream};
use rustix::net::{RecvFlags, SendFlags};

/// A byte stream that never blocks, as the kernel (or a simulation) offers it.
pub trait Transport: Read + Write {
    /// Sends FIN once the send queue is empty.
    ///
    /// # Errors
    /// `ENOTCONN` when the peer is gone already.
    fn shutdown_write(&self) -> io::Result<()>;

    /// Bytes, and our FIN, that the peer has not acknowledged; `None` when that cannot be known.
    fn unacknowledged(&self) -> Option<usize>;

    /// Makes the coming close send RST and drop the send queue (`SO_LINGER` 0).
    fn reset_on_close(&self);

    /// As `write`, of the last bytes before FIN: they may wait for it and leave in one packet.
    ///
    /// # Errors
    /// As those.
    fn write_last(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write(buf)
    }

    /// Whether the kernel goes on delivering what was sent after the close, and lists it until
    /// that is done.
    fn is_listed(&self) -> bool {
        false
    }
}

/// The streams clients connect with.
#[derive(Debug)]
pub enum Stream {
    /// From a TCP listener.
    Tcp(TcpStream),
    /// From a unix listener.
    Unix(UnixStream),
}

#[cfg(test)]
impl Stream {
    /// Two ends of one connection.
    pub(crate) fn pair() -> io::Result<(Stream, Stream)> {
        UnixStream::pair().map(|(one, other)| (Stream::Unix(one), Stream::Unix(other)))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(tcp) => tcp.as_fd(),
            Stream::Unix(unix) => unix.as_fd(),
        }
    }
}

/// Both directions go past the C library, whose calls are points of cancellation: around each of
/// them it marks the thread with two locked instructions.
impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (count, _) = rustix::net::recv(self, buf, RecvFlags::empty())?;
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self, buf, SendFlags::NOSIGNAL)?)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.write_vectored(bufs),
            Stream::Unix(unix) => unix.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Stream {
    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.shutdown(Shutdown::Write),
            Stream::Unix(unix) => unix.shutdown(Shutdown::Write),
        }
    }

    fn unacknowledged(&self) -> Option<usize> {
        match self {
            Stream::Tcp(tcp) => crate::os::unacknowledged(tcp),
            // A unix stream has no acknowledgements: what was written is in the peer's queue.
            Stream::Unix(_) => Some(0),
        }
    }

    fn reset_on_close(&self) {
        if let Stream::Tcp(tcp) = self {
            // It can only fail on a socket that is gone, which is what is wanted.
            let _gone = socket2::SockRef::from(tcp).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    fn write_last(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => {
                Ok(rustix::net::send(tcp, buf, SendFlags::NOSIGNAL | SendFlags::MORE)?)
            }
            Stream::Unix(_) => self.write(buf),
        }
    }

    fn is_listed(&self) -> bool {
        matches!(self, Stream::Tcp(_))
    }
}

impl mio::event::Source for Stream {
    fn register(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.register(registry, token, interests),
            Stream::Unix(unix) => unix.register(registry, token, interests),
        }
    }

    fn reregister(
        &mut self,
        registry: &mio::Registry,
        token: mio::Token,
        interests: mio::Interest,
    ) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.reregister(registry, token, interests),
            Stream::Unix(unix) => unix.reregister(registry, token, interests),
        }
    }

    fn deregister(&mut self, registry: &mio::Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(tcp) => tcp.deregister(registry),
            Stream::Unix(unix) => unix.deregister(registry),
        }
    }
}

/// What is known of a stream without asking the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness(u8);

impl Readiness {
    /// Nothing is known.
    pub const NONE: Readiness = Readiness(0);
    /// A read may find something.
    pub const READABLE: Readiness = Readiness(1);
    /// A write may be taken.
    pub const WRITABLE: Readiness = Readiness(2);
    /// The peer has finished sending; stays once it is set.
    pub const READ_CLOSED: Readiness = Readiness(4);
    /// Closed in both directions, or an error is pending.
    pub const BROKEN: Readiness = Readiness(8);

    /// What an event says. An end of stream or an error is found by reading, so both also count
    /// as readable.
    pub fn of(event: &mio::event::Event) -> Readiness {
        let mut bits = Readiness::NONE;
        if event.is_readable() {
            bits = bits | Readiness::READABLE;
        }
        if event.is_writable() {
            bits = bits | Readiness::WRITABLE;
        }
        if event.is_read_closed() {
            bits = bits | Readiness::READ_CLOSED | Readiness::READABLE;
        }
        if event.is_error() || (event.is_read_closed() && event.is_write_closed()) {
            bits = bits | Readiness::BROKEN | Readiness::READABLE | Readiness::WRITABLE;
        }
        bits
    }

    /// Whether all of `bits` are set.
    pub fn has(self, bits: Readiness) -> bool {
        self.0 & bits.0 == bits.0
    }

    fn without(self, bits: Readiness) -> Readiness {
        Readiness(self.0 & !bits.0)
    }
}

impl BitOr for Readiness {
    type Output = Readiness;

    fn bitor(self, other: Readiness) -> Readiness {
        Readiness(self.0 | other.0)
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing now; readiness will be announced.
    Nothing,
    /// The peer has finished sending.
    End,
}

/// A transport with its readiness.
#[derive(Debug)]
pub struct Socket<T> {
    transport: T,
    readiness: Readiness,
}

impl<T: Transport> Socket<T> {
    /// A fresh socket: nothing is known to be readable, and the send buffer is empty.
    pub fn new(transport: T) -> Socket<T> {
        Socket { transport, readiness: Readiness::WRITABLE }
    }

    /// Adds what an event announced.
    pub fn announce(&mut self, readiness: Readiness) {
        self.readiness = self.readiness | readiness;
    }

    /// Whether a read may bring something.
    pub fn is_readable(&self) -> bool {
        self.readiness.has(Readiness::READABLE)
    }

    /// Whether a write has filled the send buffer, and no room was announced since.
    pub fn is_full(&self) -> bool {
        !self.readiness.has(Readiness::WRITABLE)
    }

    /// Whether the peer's FIN was announced (there may be bytes before it).
    pub fn is_read_closed(&self) -> bool {
        self.readiness.has(Readiness::READ_CLOSED)
    }

    /// Whether the peer reset the connection, or both directions are closed.
    pub fn is_broken(&self) -> bool {
        self.readiness.has(Readiness::BROKEN)
    }

    /// Reads once, unless nothing can be there. `buf` must not be empty.
    ///
    /// # Errors
    /// Those of `recv(2)` other than `EAGAIN` and `EINTR`; the socket is broken then.
    #[inline]
    pub fn receive(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        debug_assert!(!buf.is_empty(), "an empty read would look like the end of stream");
        if !self.is_readable() {
            return Ok(Received::Nothing);
        }
        loop {
            match self.transport.read(buf) {
                Ok(0) => {
                    self.readiness = self.readiness | Readiness::READ_CLOSED;
                    return Ok(Received::End);
                }
                Ok(n) => {
                    if n < buf.len() && !self.is_read_closed() {
                        self.readiness = self.readiness.without(Readiness::READABLE);
                    }
                    return Ok(Received::Bytes(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness = self.readiness.without(Readiness::READABLE);
                    return Ok(Received::Nothing);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readiness = self.readiness | Readiness::BROKEN;
                    return Err(error);
                }
            }
        }
    }

    /// Writes once, unless the send buffer is known to be full. `None` when it is full.
    ///
    /// # Errors
    /// Those of `send(2)` other than `EAGAIN` and `EINTR`; the socket is broken then.
    #[inline]
    pub fn send(&mut self, buf: &[u8]) -> io::Result<Option<usize>> {
        self.send_by(buf.len(), |transport| transport.write(buf))
    }

    /// As [`send`](Socket::send), of the last bytes before FIN, which has to follow.
    ///
    /// # Errors
    /// As those.
    #[inline]
    pub fn send_last(&mut self, buf: &[u8]) -> io::Result<Option<usize>> {
        self.send_by(buf.len(), |transport| transport.write_last(buf))
    }

    /// As [`send`](Socket::send), of two pieces.
    ///
    /// # Errors
    /// As those.
    pub fn send_both(&mut self, bufs: [&[u8]; 2]) -> io::Result<Option<usize>> {
        let slices = bufs.map(IoSlice::new);
        let size = bufs[0].len() + bufs[1].len();
        self.send_by(size, |transport| transport.write_vectored(&slices))
    }

    #[inline]
    fn send_by(
        &mut self,
        offered: usize,
        write: impl Fn(&mut T) -> io::Result<usize>,
    ) -> io::Result<Option<usize>> {
        if !self.readiness.has(Readiness::WRITABLE) {
            return Ok(None);
        }
        loop {
            match write(&mut self.transport) {
                Ok(n) => {
                    if n < offered {
                        self.readiness = self.readiness.without(Readiness::WRITABLE);
                    }
                    return Ok(Some(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness = self.readiness.without(Readiness::WRITABLE);
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.readiness = self.readiness | Readiness::BROKEN;
                    return Err(error);
                }
            }
        }
    }

    /// Makes the next read ask the kernel, announced or not.
    pub fn recheck(&mut self) {
        self.readiness = self.readiness | Readiness::READABLE;
    }

    /// The stream itself, for questions that are not about reading and writing.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// The stream itself, to be given to a reactor.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }
}

/// Who is at the other end, in 18 bytes: a slot keeps it for as long as its connection lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// An IPv6 address, or an IPv4 address mapped into one. All zeros for a unix socket.
    ip: [u8; 16],
    /// 0 for a unix socket, whose clients have no address.
    port: u16,
}

impl Peer {
    /// A client on a unix socket.
    pub const LOCAL: Peer = Peer { ip: [0; 16], port: 0 };

    /// The address, without an IPv6 scope. An IPv4 client of a dual-stack listener has its IPv4
    /// address.
    pub fn address(self) -> Option<SocketAddr> {
        if self == Peer::LOCAL {
            return None;
        }
        let ip = Ipv6Addr::from(self.ip);
        Some(SocketAddr::new(IpAddr::V6(ip).to_canonical(), self.port))
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        let ip = match address {
            SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
            SocketAddr::V6(v6) => *v6.ip(),
        };
        Peer { ip: ip.octets(), port: address.port() }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.address() {
            Some(address) => address.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

const _: () = assert!(size_of::<Peer>() == 18, "every idle connection pays for it");

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Answers each call with the next of its lines; counts the calls.
    #[derive(Default)]
    struct Scripted {
        reads: VecDeque<io::Result<usize>>,
        writes: VecDeque<io::Result<usize>>,
        calls: usize,
    }

    impl Read for Scripted {
        fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
            self.calls += 1;
            self.reads.pop_front().expect("a read that was not expected")
        }
    }

    impl Write for Scripted {
        fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            self.writes.pop_front().expect("a write that was not expected")
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Scripted {
        fn shutdown_write(&self) -> io::Result<()> {
            Ok(())
        }

        fn unacknowledged(&self) -> Option<usize> {
            None
        }

        fn reset_on_close(&self) {}
    }

    fn reading(reads: impl IntoIterator<Item = io::Result<usize>>) -> Socket<Scripted> {
        let reads = reads.into_iter().collect();
        Socket::new(Scripted { reads, ..Scripted::default() })
    }

    fn would_block() -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    #[test]
    fn nothing_is_read_before_it_is_announced() {
        let mut socket = reading([]);
        assert_eq!(socket.receive(&mut [0; 8]).expect("no call"), Received::Nothing);
        assert_eq!(socket.transport().calls, 0);
    }

    #[test]
    fn a_short_read_means_drained_and_a_full_one_does_not() {
        let mut socket = reading([Ok(8), Ok(3)]);
        socket.announce(Readiness::READABLE);
        assert_eq!(socket.receive(&mut [0; 8]).expect("8 bytes"), Received::Bytes(8));
        assert!(socket.is_readable());
        assert_eq!(socket.receive(&mut [0; 8]).expect("3 bytes"), Received::Bytes(3));
        assert!(!socket.is_readable());
        assert_eq!(socket.receive(&mut [0; 8]).expect("no call"), Received::Nothing);
        assert_eq!(socket.transport().calls, 2);
    }

    #[test]
    fn an_end_that_came_with_the_data_is_found_after_a_short_read() {
        let mut socket = reading([Ok(3), Ok(0), Ok(0)]);
        socket.announce(Readiness::READABLE | Readiness::READ_CLOSED);
        assert_eq!(socket.receive(&mut [0; 8]).expect("3 bytes"), Received::Bytes(3));
        assert_eq!(socket.receive(&mut [0; 8]).expect("the end"), Received::End);
        assert_eq!(socket.receive(&mut [0; 8]).expect("still the end"), Received::End);
    }

    #[test]
    fn interrupts_are_retried_and_errors_break_the_socket() {
        let mut socket = reading([
            Err(io::ErrorKind::Interrupted.into()),
            would_block(),
            Err(io::ErrorKind::ConnectionReset.into()),
        ]);
        socket.announce(Readiness::READABLE);
        assert_eq!(socket.receive(&mut [0; 8]).expect("blocked"), Received::Nothing);
        socket.announce(Readiness::READABLE);
        socket.receive(&mut [0; 8]).expect_err("reset by the peer");
        assert!(socket.is_broken());
    }

    #[test]
    fn a_full_send_buffer_is_not_written_to_until_it_is_announced() {
        let writes = VecDeque::from([Ok(4), would_block(), Ok(6)]);
        let mut socket = Socket::new(Scripted { writes, ..Scripted::default() });
        let piece = [0; 6];
        assert_eq!(socket.send(&piece).expect("4 of 6"), Some(4));
        assert_eq!(socket.send(&piece).expect("no call"), None);
        socket.announce(Readiness::WRITABLE);
        assert_eq!(socket.send(&piece).expect("blocked"), None);
        assert_eq!(socket.send(&piece).expect("no call"), None);
        socket.announce(Readiness::WRITABLE);
        assert_eq!(socket.send(&piece).expect("all"), Some(6));
        assert_eq!(socket.transport().calls, 3);
    }
}
