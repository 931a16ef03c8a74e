//! How listening sockets are made.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::address::Address;
use super::error::StartError;
use crate::reactor::listener::Listener;
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
    /// Every worker has a socket of its own (`SO_REUSEPORT`: the kernel spreads connections over
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
        let listener = match &address {
            Address::Tcp(_) => Listener::tcp(self.socket.into(), registrar, key),
            Address::Unix(path) => {
                let fd = OwnedFd::from(self.socket);
                Listener::unix(fd.into(), path.clone(), registrar, key)
            }
        };
        listener.map_err(fail)
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
    let bound = |socket| Bound { socket, address: Address::Unix(path.to_owned()) };
    let mut all = Vec::new();
    for _ in 1..workers {
        all.push(bound(socket.try_clone()?));
    }
    all.push(bound(socket));
    Ok(all)
}

/// connect(2) to a file that is no socket is refused as well: such a file is somebody's data.
fn is_socket(path: &std::path::Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Connections that may wait to be accepted. The kernel cuts it down to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
