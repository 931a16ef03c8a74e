//! The kernel's list of TCP sockets, `/proc/net/tcp` and `/proc/net/tcp6` (`proc(5)`): public, and
//! of the network that the process is in. Sockets that listen come first.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Its own address, as the kernel writes it: the IP in words of 32 bits as they lie in memory,
    /// a colon and the port, all in hexadecimal digits.
    pub local: &'a str,
    /// The address of the other end.
    pub remote: &'a str,
    pub state: State,
    /// Bytes, with a FIN for one, that the other end has not acknowledged.
    pub unacknowledged: u64,
    /// How often the oldest of them was sent again, or the other end was asked in vain whether it
    /// takes any.
    pub attempts: u32,
    /// Of its file; 0 when it has none any more.
    pub inode: u64,
}

/// What of its state is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Listens,
    /// FIN was sent or waits behind other bytes, and not all of it is acknowledged (`FIN_WAIT1`,
    /// `CLOSING`, `LAST_ACK`).
    Finishing,
    Other,
}

impl Listed<'_> {
    /// The port of its own address.
    pub fn port(&self) -> Option<u16> {
        u16::from_str_radix(self.local.rsplit_once(':')?.1, 16).ok()
    }

    fn read(line: &str) -> Option<Listed<'_>> {
        let mut fields = line.split_ascii_whitespace();
        let (local, remote) = (fields.nth(1)?, fields.next()?);
        // As the kernel numbers them (`include/net/tcp_states.h`).
        let state = match fields.next()? {
            "0A" => State::Listens,
            "04" | "09" | "0B" => State::Finishing,
            _ => State::Other,
        };
        let (unacknowledged, _unread) = fields.next()?.split_once(':')?;
        let unacknowledged = u64::from_str_radix(unacknowledged, 16).ok()?;
        let retransmits = u32::from_str_radix(fields.nth(1)?, 16).ok()?;
        let probes: u32 = fields.nth(1)?.parse().ok()?;
        let (attempts, inode) = (retransmits.max(probes), fields.next()?.parse().ok()?);
        Some(Listed { local, remote, state, unacknowledged, attempts, inode })
    }
}

/// Whether there is a list for us to read.
pub fn can_be_read() -> bool {
    File::open(FILES[0]).is_ok()
}

/// Shows each of the sockets over IPv4 to `look`, as long as that wants to go on, then each of
/// those over IPv6, if there is such a list.
///
/// # Errors
/// When a list cannot be opened or not be read to its end.
pub fn each(mut look: impl FnMut(Listed<'_>) -> ControlFlow<()>) -> io::Result<()> {
    for at in FILES {
        let file = match File::open(at) {
            Err(error) if at != FILES[0] && error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let mut lines = BufReader::with_capacity(READ_BYTES, file);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            let listed = Listed::read(&line);
            // The heading is none.
            if listed.is_some_and(|listed| look(listed).is_break()) {
                break;
            }
            line.clear();
        }
    }
    Ok(())
}

/// Whether the kernel says in few words that no socket is without a file, of whatever network. The
/// list of all may have a hundred thousand lines of such as are only waited out.
pub fn has_no_orphan() -> bool {
    let summary = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    summary.lines().any(|line| line.starts_with("TCP:") && line.contains(" orphan 0 "))
}

const FILES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// There may be thousands, of 150 bytes each, and each read looks for its place anew.
const READ_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_line_tells_addresses_state_retransmits_and_inode() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  \
                    1000        0 48321 1 0000000000000000 100 0 0 10 0";
        let listens = Listed::read(line).expect("a line of the kernel's");
        assert_eq!((listens.local, listens.state), ("0100007F:1F90", State::Listens));
        assert_eq!((listens.port(), listens.inode), (Some(8080), 48321));
        let orphan = "  12: 0100007F:1F90 0100007F:C35A 04 000005A1:00000000 01:00000063 0000000B  \
                      0        0 0 3 0000000000000000 1600 4 0 1 -1";
        let orphan = Listed::read(orphan).expect("another");
        assert_eq!((orphan.remote, orphan.state), ("0100007F:C35A", State::Finishing));
        assert_eq!((orphan.unacknowledged, orphan.attempts, orphan.inode), (0x5A1, 11, 0));
        let probed = Listed::read(PROBED).expect("another");
        assert_eq!((probed.attempts, probed.inode), (5, 0));
        let heading = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt";
        assert_eq!(Listed::read(heading), None);
        assert_eq!(Listed::read(""), None);
    }

    const PROBED: &str = "  13: 0100007F:1F90 0100007F:C35B 04 000005A1:00000000 04:00000063 \
                          00000000     0        5 0 3 0000000000000000 1600 4 0 1 -1";

    /// What the list says of the end of a connection that `port` accepted.
    fn state_at(port: u16) -> Option<(State, u64)> {
        let mut found = None;
        each(|listed| {
            if listed.port() == Some(port) && listed.state != State::Listens {
                found = Some((listed.state, listed.inode));
            }
            ControlFlow::Continue(())
        })
        .expect("the list can be read");
        found
    }

    /// Sends as much as the kernel takes while the client takes nothing: how many bytes.
    fn fill(stream: &mut TcpStream) -> usize {
        stream.set_nonblocking(true).expect("it is a socket");
        std::iter::from_fn(|| stream.write(&[b'x'; 16384]).ok()).sum()
    }

    #[test]
    fn a_socket_that_was_closed_before_its_client_took_everything_is_listed_without_a_file() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let mut client = TcpStream::connect(address).expect("it listens");
        let (mut accepted, _) = listener.accept().expect("it was connected to");
        let sent = fill(&mut accepted);
        assert!(matches!(state_at(address.port()), Some((State::Other, 1..))));
        drop(accepted);
        assert_eq!(state_at(address.port()), Some((State::Finishing, 0)));
        let mut all = Vec::new();
        client.read_to_end(&mut all).expect("the kernel delivers it");
        assert_eq!(all.len(), sent);
        drop(client);
        let ends = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while matches!(state_at(address.port()), Some((State::Finishing, _))) {
            assert!(std::time::Instant::now() < ends, "it is not delivered");
            std::thread::yield_now();
        }
    }
}
