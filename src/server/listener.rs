//! How listening sockets are made.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::address::Address;
use super::error::StartError;
use super::inherited::{self, InheritedListeners};
use crate::reactor::listener::Listener;
use crate::reactor::origin::{Group, Origin, SocketFile};
use crate::reactor::turn::{Key, Registrar};

/// A socket that is bound and, if it is ours, not yet listening: the address is taken, clients are
/// still refused.
#[derive(Debug)]
pub struct Bound {
    /// Before `socket`, as in [`Listener`].
    origin: Origin,
    socket: Socket,
    address: Address,
}

/// The sockets of a server.
#[derive(Debug, Default)]
pub struct AllBound {
    /// For each worker its own.
    pub own: Vec<Vec<Bound>>,
    /// Those with one queue for all workers.
    pub dealt: Vec<Bound>,
    /// Where they are bound, in the order of the configuration: with the ports that the kernel
    /// chose for port 0.
    pub addresses: Vec<Address>,
}

/// Whether a second server of the same user may share the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// Another listener on the address is an error.
    Alone,
    /// `reuse_port = true`: a successor takes over while this one drains.
    Shared,
}

impl AllBound {
    /// Binds to each of `addresses`.
    ///
    /// Of TCP every worker has a socket of its own (`SO_REUSEPORT`: the kernel spreads connections
    /// over them by a hash). That option would also let another process of the same user bind the
    /// port unnoticed, so unless that is wanted a probe without the option must succeed first. A
    /// unix socket has one queue, and so has an inherited one.
    ///
    /// # Errors
    /// [`StartError::Listen`], which names the address.
    pub fn bind(
        addresses: &[Address],
        workers: usize,
        port_use: PortUse,
        inherited: InheritedListeners,
    ) -> Result<AllBound, StartError> {
        let own = (0..workers).map(|_| Vec::new()).collect();
        let mut all = AllBound { own, ..AllBound::default() };
        let mut inherited = Some(inherited.into_sockets());
        for address in addresses {
            let bound = match address {
                Address::Tcp(tcp) => bind_tcp(*tcp, workers, port_use),
                Address::Unix(path) => bind_unix(path).map(|bound| vec![bound]),
                Address::Inherited => bind_inherited(inherited.take().unwrap_or_default()),
            };
            let bound =
                bound.map_err(|source| StartError::Listen { address: address.clone(), source })?;
            if let Address::Tcp(_) = address {
                all.addresses.extend(bound.last().map(|bound| bound.address.clone()));
                all.own.iter_mut().zip(bound).for_each(|(worker, bound)| worker.push(bound));
            } else {
                all.addresses.extend(bound.iter().map(|bound| bound.address.clone()));
                all.dealt.extend(bound);
            }
        }
        Ok(all)
    }

    /// Everything for one endpoint that accepts by itself.
    pub fn into_one(mut self) -> Vec<Bound> {
        self.own.drain(..).flatten().chain(self.dealt).collect()
    }
}

impl Bound {
    /// Starts to listen.
    ///
    /// # Errors
    /// Those of `listen(2)`: with `EADDRINUSE` another process was faster.
    pub fn listen(self, registrar: &Registrar, key: Key) -> Result<Listener, StartError> {
        let Bound { origin, socket, address } = self;
        let listener = || {
            if !matches!(origin, Origin::Inherited) {
                socket.listen(BACKLOG)?;
            }
            if socket.domain()? == Domain::UNIX {
                let socket = OwnedFd::from(socket);
                Listener::unix(socket.into(), origin, registrar, key)
            } else {
                Listener::tcp(socket.into(), origin, registrar, key)
            }
        };
        listener().map_err(|source| StartError::Listen { address, source })
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
    let group = Group::of(workers);
    let mut bound = Vec::new();
    for _ in 0..workers {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        // From the second worker on port 0 has become the port of the first.
        address = local_address(&socket, address);
        let origin = match port_use {
            PortUse::Alone => Origin::Alone,
            PortUse::Shared => Origin::Shared(Arc::clone(&group)),
        };
        bound.push(Bound { origin, socket, address: Address::Tcp(address) });
    }
    Ok(bound)
}

fn bind_inherited(sockets: Vec<Socket>) -> io::Result<Vec<Bound>> {
    if sockets.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no socket was passed on to this process: expected LISTEN_FDS with their number, \
             and LISTEN_PID with the process id",
        ));
    }
    let bound = |socket| {
        let address = inherited::address(&socket);
        Bound { origin: Origin::Inherited, socket, address }
    };
    Ok(sockets.into_iter().map(bound).collect())
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

fn bind_unix(path: &Path) -> io::Result<Bound> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.bind(&address) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_socket(path) => {
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
    let origin = Origin::File(SocketFile::bound(path.to_owned())?);
    Ok(Bound { origin, socket, address: Address::Unix(path.to_owned()) })
}

/// connect(2) to a file that is no socket is refused as well: such a file is somebody's data.
fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Connections that may wait to be accepted. The kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
