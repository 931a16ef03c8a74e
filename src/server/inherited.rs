//! Listening sockets that the process which started this one has bound, and keeps.
//!
//! A service manager holds them while servers come and go: what is queued while none accepts is
//! accepted by the next. How they are passed on is systemd's protocol (`sd_listen_fds(3)`), which
//! `systemd-socket-activate` and others speak as well: descriptors from 3 on, their number in
//! `LISTEN_FDS`, the process they are for in `LISTEN_PID`.

use std::fmt;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use socket2::{Domain, SockRef, Socket, Type};

use super::address::Address;
use super::error::StartError;
use crate::os::{self, Adopting};

/// Listening sockets of another process that are shared with this one, for the item `systemd` of
/// [`Options::listen`](crate::Options::listen); see [`Server::bind_inheriting`].
///
/// [`Server::bind_inheriting`]: crate::Server::bind_inheriting
#[derive(Debug, Default)]
pub struct InheritedListeners {
    sockets: Vec<Socket>,
}

/// Takes the listening sockets that were passed on to this process; none when `LISTEN_FDS` does not
/// say so, or when `LISTEN_PID` names another process.
///
/// Once in the life of a process, and first of all in `main`: a descriptor that was announced but
/// is closed could otherwise be one that something else in this process has opened since.
///
/// # Errors
/// [`StartError::Listen`] names the descriptor that is no TCP or unix stream socket that listens;
/// also when the variables make no sense, and from the second call on.
pub fn inherited_listeners() -> Result<InheritedListeners, StartError> {
    take_passed().map_err(|source| StartError::Listen { address: Address::Inherited, source })
}

fn take_passed() -> io::Result<InheritedListeners> {
    let passed = sd_notify::listen_fds().map_err(|error| {
        // It stops at the first that is closed, without saying which.
        if os::is_bad_descriptor(&error) {
            let closed = (FIRST_PASSED..RawFd::MAX).find(|fd| !os::is_open(*fd));
            unfit(closed.unwrap_or(RawFd::MAX), Unfit::Closed)
        } else {
            io::Error::new(error.kind(), format!("{error} in the environment"))
        }
    })?;
    if passed.len() == 0 {
        return Ok(InheritedListeners::default());
    }
    let adopted = os::adopt(passed, |fd| check(&SockRef::from(&fd)));
    let adopted = adopted.map_err(|error| match error {
        Adopting::Again => io::Error::other("the inherited sockets were taken before"),
        Adopting::Closed(fd) => unfit(fd, Unfit::Closed),
        Adopting::Unfit(fd, why) => unfit(fd, why),
    })?;
    let sockets = adopted.into_iter().map(|(fd, socket)| {
        prepare(socket).map_err(|error| io::Error::new(error.kind(), name(fd, &error)))
    });
    Ok(InheritedListeners { sockets: sockets.collect::<io::Result<_>>()? })
}

impl InheritedListeners {
    /// Sockets that came in another way: over a unix socket, or by a clone within the process. Each
    /// has an owner elsewhere that goes on listening.
    ///
    /// # Errors
    /// [`StartError::Listen`], when one is no TCP or unix stream socket that listens.
    pub fn of(
        sockets: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<InheritedListeners, StartError> {
        let prepare_one = |socket: OwnedFd| {
            check(&SockRef::from(&socket)).map_err(|why| {
                io::Error::new(io::ErrorKind::InvalidInput, format!("a socket {why}"))
            })?;
            prepare(socket)
        };
        let prepared = sockets.into_iter().map(prepare_one).collect::<io::Result<_>>();
        let fail = |source| StartError::Listen { address: Address::Inherited, source };
        Ok(InheritedListeners { sockets: prepared.map_err(fail)? })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    pub(super) fn into_sockets(self) -> Vec<Socket> {
        self.sockets
    }
}

/// Where a socket listens; [`Address::Inherited`] when that has no text: an abstract unix address.
pub(super) fn address(socket: &Socket) -> Address {
    let Ok(address) = socket.local_addr() else { return Address::Inherited };
    let path = || address.as_pathname().map(|path| Address::Unix(path.to_owned()));
    address.as_socket().map(Address::Tcp).or_else(path).unwrap_or(Address::Inherited)
}

/// Why a descriptor can not be accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    Closed,
    NoSocket,
    NoStream,
    NotListening,
    Family,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unfit::Closed => "is not open",
            Unfit::NoSocket => "is no socket",
            Unfit::NoStream => "is no stream socket",
            Unfit::NotListening => "does not listen",
            Unfit::Family => "is neither a TCP nor a unix socket",
        })
    }
}

fn check(socket: &SockRef<'_>) -> Result<(), Unfit> {
    let kind = socket.r#type().map_err(|_| Unfit::NoSocket)?;
    if kind != Type::STREAM {
        return Err(Unfit::NoStream);
    }
    let domain = socket.domain().map_err(|_| Unfit::NoSocket)?;
    if ![Domain::IPV4, Domain::IPV6, Domain::UNIX].contains(&domain) {
        return Err(Unfit::Family);
    }
    // SO_ACCEPTCONN, `socket(7)`.
    if socket.is_listener().is_ok_and(|listens| listens) {
        Ok(())
    } else {
        Err(Unfit::NotListening)
    }
}

/// Sets what the sockets that we make ourselves have from the start.
fn prepare(socket: OwnedFd) -> io::Result<Socket> {
    let socket = Socket::from(socket);
    socket.set_cloexec(true)?;
    // Of the open file description: those who share it get it as well. Whoever passes a socket on
    // has left accepting to others.
    socket.set_nonblocking(true)?;
    if socket.domain()? != Domain::UNIX {
        socket.set_tcp_nodelay(true)?;
        socket.set_keepalive(true)?;
    }
    Ok(socket)
}

fn unfit(fd: RawFd, why: Unfit) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("descriptor {fd} of LISTEN_FDS {why}"))
}

fn name(fd: RawFd, error: &io::Error) -> String {
    format!("descriptor {fd} of LISTEN_FDS: {error}")
}

/// `SD_LISTEN_FDS_START`.
const FIRST_PASSED: RawFd = 3;
