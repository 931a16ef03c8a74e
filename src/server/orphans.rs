//! Connections that are closed while the kernel has their last response still to deliver.
//!
//! A client that asks for the close with its only request is answered, sent FIN and let go at once,
//! so that response and FIN are one packet, and nobody asks whether it has them. The kernel sees to
//! that: until everything is acknowledged such a socket is an *orphan* (`tcp(7)`,
//! `tcp_max_orphans`). It does so whether the process lives or not, but the network of a container
//! ends with its last process, orphans and all. So a shutdown is not over before they are gone.
//!
//! Invariants:
//! 1. The first look comes when no worker leaves anything to the kernel any more: all of ours are
//!    among what it finds.
//! 2. Only those that the first look found count. A successor on the same port has some as well,
//!    and always new ones.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::address::Address;
use super::elders::place;
use super::listed::{self, Listed, State};

/// See the module's essay.
#[derive(Debug)]
pub struct Orphans {
    /// Where connections are accepted: an address, or the port of all addresses.
    places: Vec<Place>,
    /// Both addresses of those that were always there; `None` before the first look.
    there: Option<HashSet<String>>,
    /// Of those the ones that are not waited for any more.
    given_up: usize,
    /// When to look again; `Some` while they hold the end.
    next: Option<Instant>,
    pause: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Port(u16),
    /// As the kernel writes it.
    Address(String),
}

impl Place {
    fn of(address: SocketAddr) -> Place {
        if address.ip().is_unspecified() {
            Place::Port(address.port())
        } else {
            Place::Address(place(address))
        }
    }

    fn has(&self, listed: &Listed<'_>) -> bool {
        match self {
            Place::Port(port) => listed.port() == Some(*port),
            Place::Address(address) => listed.local == address,
        }
    }
}

impl Orphans {
    /// Those of connections to `addresses`. `None`: they could not be seen.
    pub fn at(addresses: &[Address]) -> Option<Orphans> {
        let place = |address: &Address| match address {
            Address::Tcp(address) => Some(Place::of(*address)),
            Address::Unix(_) | Address::Inherited => None,
        };
        let places = addresses.iter().filter_map(place).collect();
        let pause = FIRST_PAUSE;
        let orphans = Orphans { places, there: None, given_up: 0, next: None, pause };
        listed::can_be_read().then_some(orphans)
    }

    /// Whether they hold the end at `now`. Looks, when it is time to. With nothing to hold
    /// (`waits`), they do not.
    pub fn hold(&mut self, waits: Waits, now: Instant) -> bool {
        if waits == Waits::No {
            self.next = None;
            return false;
        }
        if self.next.is_none_or(|at| now >= at) {
            let is_over = self.look().is_ok_and(|left| left == 0);
            self.next = (!is_over).then(|| now + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        self.next.is_some()
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// How many are waited for.
    pub fn left(&self) -> usize {
        self.there.as_ref().map_or(0, HashSet::len)
    }

    /// How many are, or may be, undelivered, now that nobody waits any more. Looks once more.
    pub fn undelivered(mut self) -> usize {
        if let Err(error) = self.look() {
            log::warn!(event_type = "sockets_not_read"; "cannot read what is delivered: {error}");
        }
        self.left() + self.given_up
    }

    /// How many there are now of those that were there.
    fn look(&mut self) -> io::Result<usize> {
        let (mut waiting, mut given_up) = (HashSet::new(), 0);
        let mut look = |listed: Listed<'_>| {
            // A FIN alone is no response.
            let is_owing =
                listed.state == State::Finishing && listed.inode == 0 && listed.unacknowledged > 1;
            if is_owing && self.places.iter().any(|place| place.has(&listed)) {
                let both = format!("{} {}", listed.local, listed.remote);
                if self.there.as_ref().is_none_or(|there| there.contains(&both)) {
                    if listed.attempts < ATTEMPTS_MAX {
                        waiting.insert(both);
                    } else {
                        given_up += 1;
                    }
                }
            }
            ControlFlow::Continue(())
        };
        if !listed::has_no_orphan() {
            listed::each(&mut look)?;
        }
        self.given_up += given_up;
        let left = waiting.len();
        self.there = Some(waiting);
        Ok(left)
    }
}

/// Whether the end waits for nothing but them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    Yes,
    No,
}

/// Before the second look. Most are gone in a round trip.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// What was sent again so often, or asked for, has been on its way for 25 s (200 ms, and twice as
/// long each time: `TCP_RTO_MIN`): about as long as a client may take nothing of a response.
const ATTEMPTS_MAX: u32 = 7;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A client that has not taken all of what is on its way.
    fn slow_client(listener: &TcpListener) -> TcpStream {
        let port = listener.local_addr().expect("it is bound").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        let (mut accepted, _) = listener.accept().expect("it was connected to");
        accepted.set_nonblocking(true).expect("it is a socket");
        while accepted.write(&[b'x'; 16384]).is_ok() {}
        client
    }

    fn clock() -> Instant {
        crate::reactor::turn::clock()
    }

    #[test]
    fn those_that_were_there_first_are_waited_for_and_no_others() {
        for any in ["127.0.0.1:0", "[::]:0"] {
            let listener = TcpListener::bind(any).expect("a port");
            let addresses = [Address::Tcp(listener.local_addr().expect("it is bound"))];
            let mut orphans = Orphans::at(&addresses).expect("the list can be read");
            let mut now = clock();
            let mut first = slow_client(&listener);
            assert!(orphans.hold(Waits::Yes, now));
            let _of_a_successor = slow_client(&listener);
            assert_eq!(orphans.left(), 1);
            now = orphans.deadline().expect("there is one");
            assert!(orphans.hold(Waits::Yes, now));
            assert_eq!(orphans.left(), 1, "who comes later does not count");
            first.read_to_end(&mut Vec::new()).expect("the kernel delivers it");
            drop(first);
            let ends = clock() + Duration::from_secs(5);
            while orphans.hold(Waits::Yes, now) {
                assert!(clock() < ends, "it is not delivered");
                now = orphans.deadline().expect("there is one");
            }
            assert_eq!((orphans.deadline(), orphans.undelivered()), (None, 0));
        }
    }

    /// Somebody may add other work after a look: who waits for that looks no further, and does not
    /// come back to a deadline that is over.
    #[test]
    fn while_the_end_waits_for_something_else_there_is_nothing_to_come_back_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addresses = [Address::Tcp(listener.local_addr().expect("it is bound"))];
        let mut orphans = Orphans::at(&addresses).expect("the list can be read");
        let client = slow_client(&listener);
        assert!(orphans.hold(Waits::Yes, clock()));
        assert!(!orphans.hold(Waits::No, clock()));
        assert_eq!(orphans.deadline(), None);
        assert!(orphans.hold(Waits::Yes, clock()));
        assert_eq!(orphans.undelivered(), 1);
        drop(client);
    }

    #[test]
    fn where_there_are_none_it_is_over_at_once_and_a_fin_alone_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut orphans = Orphans::at(&[Address::Tcp(address)]).expect("the list can be read");
        let _client = TcpStream::connect(address).expect("it listens");
        drop(listener.accept().expect("it was connected to"));
        assert!(!orphans.hold(Waits::Yes, clock()));
        assert_eq!((orphans.deadline(), orphans.undelivered()), (None, 0));
    }

    #[test]
    fn what_nobody_has_looked_at_is_counted_at_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let orphans = Orphans::at(&[Address::Tcp(address)]).expect("the list can be read");
        let client = slow_client(&listener);
        assert_eq!(orphans.undelivered(), 1);
        drop(client);
    }
}
