//! Listening sockets as the kernel lists them: which port is free, and when a listener is closed.
//!
//! `/proc/net/tcp` has the listening sockets first, so the rows in question are at its head and
//! reading it costs microseconds, however many connections there are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// The inodes of the sockets that listen on a port.
///
/// # Errors
/// When `/proc` is not there.
pub fn inodes(port: u16) -> io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for line in BufReader::with_capacity(4096, File::open("/proc/self/net/tcp")?).lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace();
        let (local, state) = (words.nth(1), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        let local = local.and_then(|local| local.rsplit_once(':'));
        if local.is_some_and(|(_, of)| u16::from_str_radix(of, 16) == Ok(port)) {
            found.extend(words.nth(5).and_then(|inode| inode.parse::<u64>().ok()));
        }
    }
    Ok(found)
}

/// `TCP_LISTEN` in hexadecimal.
const LISTEN: &str = "0A";

/// A listener on a port of loopback that nobody uses, and that no connection gets as its own.
///
/// The kernel gives clients ports from `ip_local_port_range`. One of them, free while a server is
/// replaced, could become the source port of a connect to itself, which TCP allows to succeed.
///
/// # Errors
/// When there is none.
pub fn listener() -> io::Result<TcpListener> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let below: u16 = range.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(32768);
    let span = u32::from(below.saturating_sub(PORT_MIN)).max(1);
    // A free one is given back before the server takes it: nobody else is to be given the same.
    let before = ASKED.fetch_add(1, Ordering::Relaxed);
    let first = std::process::id().wrapping_mul(37).wrapping_add(before.wrapping_mul(PORTS_TRIED));
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for attempt in 0..PORTS_TRIED {
        let offset = u16::try_from(first.wrapping_add(attempt * 101) % span).unwrap_or(0);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, PORT_MIN + offset)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The address of a port that was free a moment ago.
///
/// # Errors
/// As [`listener`].
pub fn free_address() -> io::Result<SocketAddr> {
    listener()?.local_addr()
}

const PORT_MIN: u16 = 12_000;

const PORTS_TRIED: u32 = 100;

/// How often a port was asked for.
static ASKED: AtomicU32 = AtomicU32::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_who_ask_for_a_free_port_get_two() {
        assert_ne!(free_address().unwrap(), free_address().unwrap());
    }

    #[test]
    fn a_listener_is_listed_until_it_is_closed() {
        let listener = listener().unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(inodes(port).unwrap().len(), 1);
        drop(listener);
        assert!(inodes(port).unwrap().is_empty());
    }
}
