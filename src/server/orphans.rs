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
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::address::Address;
use super::listed::{self, State};

/// See the module's essay.
#[derive(Debug)]
pub struct Orphans {
    /// At which connections are accepted.
    ports: Vec<u16>,
    /// Both addresses of those that were always there; `None` before the first look.
    there: Option<HashSet<String>>,
    /// Of those the ones that are not waited for any more.
    given_up: usize,
    /// When to look again; `Some` while there are some.
    next: Option<Instant>,
    pause: Duration,
}

impl Orphans {
    /// Those of connections to `addresses`. `None`: they could not be seen.
    pub fn at(addresses: &[Address]) -> Option<Orphans> {
        let port = |address: &Address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Inherited => None,
        };
        let ports = addresses.iter().filter_map(port).collect();
        let orphans =
            || Orphans { ports, there: None, given_up: 0, next: None, pause: FIRST_PAUSE };
        listed::can_be_read().then(orphans)
    }

    /// Whether all of them are delivered, or given up. Looks, when it is time to.
    pub fn are_gone(&mut self, now: Instant) -> bool {
        if self.next.is_none_or(|at| now >= at) {
            self.look();
            self.next = (self.left() > 0).then(|| now + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        self.left() == 0
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// How many are waited for.
    pub fn left(&self) -> usize {
        self.there.as_ref().map_or(0, HashSet::len)
    }

    /// How many are, or may be, undelivered for good.
    pub fn undelivered(&self) -> usize {
        self.left() + self.given_up
    }

    fn look(&mut self) {
        let (mut waiting, mut given_up) = (HashSet::new(), 0);
        listed::each(|listed| {
            let is_orphan = listed.state == State::Finishing && listed.inode == 0;
            if is_orphan && listed.port().is_some_and(|port| self.ports.contains(&port)) {
                let both = format!("{} {}", listed.local, listed.remote);
                if self.there.as_ref().is_none_or(|there| there.contains(&both)) {
                    if listed.retransmits < RETRANSMITS_MAX {
                        waiting.insert(both);
                    } else {
                        given_up += 1;
                    }
                }
            }
            ControlFlow::Continue(())
        });
        self.given_up += given_up;
        self.there = Some(waiting);
    }
}

/// Before the second look. Most are gone in a round trip.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(160);

/// What was sent again so often has been on its way for 25 s (200 ms, and twice as long each time:
/// `TCP_RTO_MIN`): about as long as a client may take nothing of a response.
const RETRANSMITS_MAX: u32 = 7;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A client that has not taken all of what is on its way.
    fn slow_client(listener: &TcpListener) -> TcpStream {
        let address = listener.local_addr().expect("it is bound");
        let client = TcpStream::connect(address).expect("it listens");
        let (mut accepted, _) = listener.accept().expect("it was connected to");
        accepted.set_nonblocking(true).expect("it is a socket");
        while accepted.write(&[b'x'; 16384]).is_ok() {}
        client
    }

    #[test]
    fn those_that_were_there_first_are_waited_for_and_no_others() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addresses = [Address::Tcp(listener.local_addr().expect("it is bound"))];
        let mut orphans = Orphans::at(&addresses).expect("the list can be read");
        let mut now = crate::reactor::turn::clock();
        let mut first = slow_client(&listener);
        assert!(!orphans.are_gone(now));
        let _of_a_successor = slow_client(&listener);
        assert_eq!(orphans.left(), 1);
        now = orphans.deadline().expect("there is one");
        assert!(!orphans.are_gone(now));
        assert_eq!(orphans.left(), 1, "who comes later does not count");
        first.read_to_end(&mut Vec::new()).expect("the kernel delivers it");
        drop(first);
        let ends = crate::reactor::turn::clock() + Duration::from_secs(5);
        while !orphans.are_gone(now) {
            assert!(crate::reactor::turn::clock() < ends, "it is not delivered");
            now = orphans.deadline().expect("there is one");
        }
        assert_eq!((orphans.undelivered(), orphans.deadline()), (0, None));
    }

    #[test]
    fn where_there_are_none_it_is_over_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addresses = [Address::Tcp(listener.local_addr().expect("it is bound"))];
        let mut orphans = Orphans::at(&addresses).expect("the list can be read");
        assert!(orphans.are_gone(crate::reactor::turn::clock()));
        assert_eq!(orphans.deadline(), None);
    }
}
