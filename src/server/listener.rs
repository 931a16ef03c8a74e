//! Listening sockets: how they are made, what accepting from them takes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::address::Address;
use super::error::StartError;
use crate::reactor::socket::{Peer, Stream};
use crate::reactor::turn::{Key, Registrar};

/// A socket that is bound and not yet listening: the address is ours, clients are still refused.
#[derive(Debug)]
pub struct Bound {
    socket: Socket,
    address: Address,
}

/// Whether a second server of the same user may share the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// Another listener on the address is an error.
    Alone,
    /// `reuse_port = true`: a successor takes over while this one drains.
    Shared,
}

impl Bound {
    /// Binds one socket per worker to each of `addresses`.
    ///
    /// Every worker has a socket of its own (SO_REUSEPORT: the kernel spreads connections over
    /// them by a hash). That option would also let another process of the same user bind the port
    /// unnoticed, so unless that is wanted a probe without the option must succeed first. For a
    /// unix socket the workers share one queue.
    ///
    /// # Errors
    /// [`StartError::Listen`], which names the address.
    pub fn all(
        addresses: &[Address],
        workers: usize,
        port_use: PortUse,
    ) -> Result<Vec<Vec<Bound>>, StartError> {
        let mut per_worker: Vec<Vec<Bound>> = (0..workers).map(|_| Vec::new()).collect();
        for address in addresses {
            let sockets = match address {
                Address::Tcp(tcp) => bind_tcp(*tcp, workers, port_use),
                Address::Unix(path) => bind_unix(path, workers),
            };
            let sockets = sockets
                .map_err(|source| StartError::Listen { address: address.clone(), source })?;
            for (worker, bound) in per_worker.iter_mut().zip(sockets) {
                worker.push(bound);
            }
        }
        Ok(per_worker)
    }

    /// Where it is bound: with the port that the kernel chose for port 0.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// Those of `listen(2)`: with `EADDRINUSE` another process was faster.
    pub fn listen(self, registrar: &Registrar, key: Key) -> Result<Listener, StartError> {
        let address = self.address;
        let fail = |source| StartError::Listen { address: address.clone(), source };
        // A unix socket shared by all workers is set listening by the first; the rest confirm it.
        self.socket.listen(BACKLOG).map_err(fail)?;
        let mut inner = match address {
            Address::Tcp(_) => Inner::Tcp(mio::net::TcpListener::from_std(self.socket.into())),
            Address::Unix(_) => {
                let fd = OwnedFd::from(self.socket);
                Inner::Unix(mio::net::UnixListener::from_std(fd.into()))
            }
        };
        let watched = match &mut inner {
            Inner::Tcp(tcp) => registrar.watch(tcp, key),
            Inner::Unix(unix) => registrar.watch(unix, key),
        };
        watched.map_err(fail)?;
        // The queue may have filled before epoll knew of the socket.
        Ok(Listener { inner, ready: true, paused_until: None, complained: None, address })
    }
}

fn bind_tcp(address: SocketAddr, workers: usize, port_use: PortUse) -> io::Result<Vec<Bound>> {
    let mut address = address;
    if port_use == PortUse::Alone {
        let probe = tcp_socket(address)?;
        probe.bind(&address.into())?;
        // Closed at once: it was not listening, so nothing is lost with it.
        address = local_address(&probe, address);
    }
    let mut bound = Vec::new();
    for _ in 0..workers {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        // From the second worker on port 0 has become the port of the first.
        address = local_address(&socket, address);
        bound.push(Bound { socket, address: Address::Tcp(address) });
    }
    Ok(bound)
}

fn local_address(socket: &Socket, fallback: SocketAddr) -> SocketAddr {
    socket.local_addr().ok().and_then(|bound| bound.as_socket()).unwrap_or(fallback)
}

/// A TCP socket with the options that accepted connections inherit (`tcp(7)`; measured for these).
fn tcp_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 as well, whatever the system's default is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

fn bind_unix(path: &std::path::Path, workers: usize) -> io::Result<Vec<Bound>> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.bind(&address) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A file left behind by a server that is gone answers nobody.
            let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            match probe.connect(&address) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    socket.bind(&address)?;
                }
                _ => return Err(error),
            }
        }
        Err(error) => return Err(error),
    }
    let bound = |socket| Bound { socket, address: Address::Unix(path.to_owned()) };
    let mut all = Vec::new();
    for _ in 1..workers {
        all.push(bound(socket.try_clone()?));
    }
    all.push(bound(socket));
    Ok(all)
}

/// A listening socket of one worker.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
    /// Whether the queue may hold connections: set by events, cleared when accept would block.
    /// Edge-triggered, so an accept that failed for want of descriptors leaves it set.
    ready: bool,
    /// Descriptors or memory ran out: not before then.
    paused_until: Option<Instant>,
    /// When that was last logged.
    complained: Option<Instant>,
    address: Address,
}

#[derive(Debug)]
enum Inner {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

/// What one attempt to accept brought.
#[derive(Debug)]
pub enum Accepted {
    Connection(Stream, Peer),
    /// The queue is empty.
    Nothing,
    /// The connection was gone before it was accepted; there may be more.
    Gone,
    /// Descriptors or memory ran out. The listener pauses.
    Exhausted,
}

impl Listener {
    pub fn announce(&mut self) {
        self.ready = true;
    }

    /// Whether an accept may bring something at `now`.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready && self.paused_until.is_none_or(|until| now >= until)
    }

    /// When a pause ends, if there is one.
    pub fn deadline(&self) -> Option<Instant> {
        self.paused_until.filter(|_| self.ready)
    }

    /// A descriptor was freed.
    pub fn resume(&mut self) {
        self.paused_until = None;
    }

    /// Leaves the queue alone for a while.
    pub fn pause(&mut self, now: Instant) {
        self.paused_until = Some(now + EXHAUSTED_PAUSE);
    }

    /// Accepts one connection.
    pub fn accept(&mut self, now: Instant) -> Accepted {
        let result = match &self.inner {
            Inner::Tcp(tcp) => {
                tcp.accept().map(|(stream, peer)| (Stream::Tcp(stream), Peer::from(peer)))
            }
            Inner::Unix(unix) => {
                unix.accept().map(|(stream, _)| (Stream::Unix(stream), Peer::Local))
            }
        };
        match result {
            Ok((stream, peer)) => Accepted::Connection(stream, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ready = false;
                Accepted::Nothing
            }
            Err(error) if is_exhausted(&error) => {
                self.pause(now);
                if self.complained.is_none_or(|at| now >= at + COMPLAINT_INTERVAL) {
                    self.complained = Some(now);
                    log::warn!(
                        event_type = "accept_exhausted", address:% = self.address;
                        "cannot accept: {error}"
                    );
                }
                Accepted::Exhausted
            }
            // ECONNABORTED, EPROTO and the network errors that accept(2) passes on concern the one
            // connection; EINTR nothing at all.
            Err(_) => Accepted::Gone,
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            // Every worker tries, the first succeeds.
            let _removed = std::fs::remove_file(path);
        }
    }
}

/// Connections that may wait to be accepted. The kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a listener rests when descriptors run out, unless one is freed before.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How often that is logged at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);
