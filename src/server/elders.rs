//! Which older servers listen on ports that this one shares with them (`reuse_port = true`).
//!
//! The kernel numbers the sockets of a port, and connections can be steered by number only. An
//! older server's come first: while there is one, this server does not know its own numbers, and
//! must not steer anything away when it retires (it may be the new one that is taken back). Once
//! there is none it *leads*: it takes back what the older one did to have its connections go here,
//! and will do the same for its own successor.
//!
//! The kernel's list of listening sockets, `/proc/net/tcp`, is public and begins with them, so a
//! look costs little however many connections there are. Where it can not be read nobody is older.

use std::fs::File;
use std::io::{BufRead, BufReader};

use super::address::Address;

/// See the module's essay.
#[derive(Debug, Default)]
pub struct Elders {
    /// The ports that are shared.
    ports: Vec<u16>,
    /// The inodes of the older sockets on these ports.
    inodes: Vec<u64>,
}

impl Elders {
    /// Those who listen on the ports of `addresses` now, before we do.
    pub fn at(addresses: &[Address]) -> Elders {
        let port = |address: &Address| match address {
            Address::Tcp(address) => Some(address.port()),
            Address::Unix(_) | Address::Inherited => None,
        };
        let ports: Vec<u16> = addresses.iter().filter_map(port).collect();
        Elders { inodes: listening_on(&ports), ports }
    }

    /// Whether the last of them is gone. Looks, unless that is known.
    pub fn are_gone(&mut self) -> bool {
        if !self.inodes.is_empty() {
            let there = listening_on(&self.ports);
            self.inodes.retain(|inode| there.contains(inode));
        }
        self.inodes.is_empty()
    }
}

/// The inodes of the sockets that listen on one of `ports`, whatever their addresses.
fn listening_on(ports: &[u16]) -> Vec<u64> {
    let files =
        ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|at| File::open(at).ok());
    let lines = files.flat_map(|file| {
        let lines = BufReader::new(file).lines().skip(1).map_while(Result::ok);
        // Those that listen come first; then it may be thousands.
        lines.map_while(|line| listener(&line))
    });
    lines.filter(|(port, _)| ports.contains(port)).map(|(_, inode)| inode).collect()
}

/// Port and inode of a socket that listens, of its line in `/proc/net/tcp` (`proc(5)`).
fn listener(line: &str) -> Option<(u16, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    if state != LISTEN {
        return None;
    }
    Some((u16::from_str_radix(port, 16).ok()?, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_line_tells_port_and_inode_of_a_socket_that_listens() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                    1000        0 48321 1 0000000000000000 100 0 0 10 0";
        assert_eq!(listener(line), Some((8080, 48321)));
        assert_eq!(listener(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener(""), None);
    }

    #[test]
    fn who_was_there_before_is_older_until_it_is_gone() {
        let older = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::Tcp(older.local_addr().expect("it is bound"));
        let mut elders = Elders::at(std::slice::from_ref(&address));
        assert!(!elders.are_gone());
        drop(older);
        assert!(elders.are_gone());
        let _younger = TcpListener::bind(address.to_string()).expect("it is free");
        assert!(elders.are_gone(), "who comes later is not older");
        assert!(Elders::at(&[]).are_gone());
    }
}
