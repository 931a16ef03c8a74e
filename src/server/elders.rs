//! Which older servers listen at addresses that this one shares with them (`reuse_port = true`).
//!
//! The kernel numbers the sockets of a port, and connections can be steered by number only. An
//! older server's come first: while there is one, this server does not know its own numbers, and
//! must not steer anything away when it retires (it may be the new one that is taken back). Once
//! there is none it *leads*: it takes back what the older one did to have its connections go here,
//! and will do the same for its own successor.
//!
//! The [kernel's list](super::listed) begins with sockets that listen, so a look costs little
//! however many connections there are. Where it can not be read nobody is older.

use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use super::address::Address;
use super::listed::{self, State};

/// See the module's essay.
#[derive(Debug, Default)]
pub struct Elders {
    /// The addresses that are shared, as the kernel writes them.
    places: Vec<String>,
    /// The inodes of the older sockets there.
    inodes: Vec<u64>,
}

impl Elders {
    /// Those who listen at `addresses` now, before we do.
    pub fn at(addresses: &[Address]) -> Elders {
        let place = |address: &Address| match address {
            Address::Tcp(address) => Some(place(*address)),
            Address::Unix(_) | Address::Inherited => None,
        };
        let places: Vec<String> = addresses.iter().filter_map(place).collect();
        Elders { inodes: listening_at(&places), places }
    }

    /// Whether the last of them is gone. Looks, unless that is known.
    pub fn are_gone(&mut self) -> bool {
        if !self.inodes.is_empty() {
            let there = listening_at(&self.places);
            self.inodes.retain(|inode| there.contains(inode));
        }
        self.inodes.is_empty()
    }
}

/// The inodes of the sockets that listen at one of `places`.
fn listening_at(places: &[String]) -> Vec<u64> {
    let mut inodes = Vec::new();
    let read = listed::each(|listed| {
        // Those that listen come first; then it may be thousands.
        if listed.state != State::Listens {
            return ControlFlow::Break(());
        }
        if places.iter().any(|ours| ours == listed.local) {
            inodes.push(listed.inode);
        }
        ControlFlow::Continue(())
    });
    if let Err(error) = read {
        log::debug!(event_type = "sockets_not_read"; "cannot read who listens: {error}");
    }
    inodes
}

/// An address as the kernel writes it: the IP in words of 32 bits as they lie in memory.
pub(super) fn place(address: SocketAddr) -> String {
    use std::fmt::Write;

    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut text = String::new();
    for word in octets.as_chunks::<4>().0 {
        write!(text, "{:08X}", u32::from_ne_bytes(*word)).expect("a string takes what it is given");
    }
    write!(text, ":{:04X}", address.port()).expect("as above");
    text
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn who_was_there_before_is_older_until_it_is_gone() {
        for any in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            is_older_until_it_is_gone(any);
        }
        assert!(Elders::at(&[]).are_gone());
    }

    fn is_older_until_it_is_gone(any: &str) {
        let older = TcpListener::bind(any).expect("a port");
        let address = Address::Tcp(older.local_addr().expect("it is bound"));
        let mut elders = Elders::at(std::slice::from_ref(&address));
        assert!(!elders.are_gone());
        drop(older);
        assert!(elders.are_gone());
        let _younger = TcpListener::bind(address.to_string()).expect("it is free");
        assert!(elders.are_gone(), "who comes later is not older");
    }
}
