//! Where a listener stands: a TCP address, the path of a unix socket, or wherever another process
//! has put it.
//!
//! The text forms are those of the key `listen`: `127.0.0.1:8080`, `[::]:8080`, `unix:/path`,
//! `systemd`. What [`Address`] displays it also parses, to an equal value. Names are never looked
//! up: a server whose start depends on a resolver can come up on another interface than yesterday,
//! or not at all, so a host name is refused with a sentence that says what to write instead.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// An address a listener can be bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port; port 0 asks the kernel for any free one.
    Tcp(SocketAddr),
    /// A unix stream socket. A parsed path is absolute, at most 107 bytes of UTF-8 (what
    /// `sockaddr_un` holds), without commas (they part the addresses of a list) and without
    /// control characters.
    Unix(PathBuf),
    /// Wherever the sockets listen that another process has bound and passed on: `systemd`. See
    /// [`inherited_listeners`](crate::inherited_listeners).
    Inherited,
}

impl Address {
    /// Whether two listeners can not both have their address because it is the same one. Port 0 is
    /// a different port each time it is bound.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match self {
            Self::Tcp(address) => self == other && address.port() != 0,
            Self::Unix(_) | Self::Inherited => self == other,
        }
    }
}

impl fmt::Display for Address {
    /// The form [`FromStr`] reads. A path that is not UTF-8, which only a program can make, is
    /// shown with replacement characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
            Self::Inherited => f.write_str(INHERITED),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads one address, with nothing around it.
    ///
    /// # Errors
    /// [`AddressError`] says what is wrong with the text and which forms there are.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix(UNIX_PREFIX) {
            return unix(path);
        }
        if text == INHERITED {
            return Ok(Self::Inherited);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        Err(diagnose(text))
    }
}

/// Why a text is not an [`Address`]. Displays as the rest of a sentence that has named the text:
/// `expected ...`, with the reason before it where one can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// A name where the IP address belongs, such as `localhost:8080`.
    HostName,
    /// An IPv6 address without brackets, so that its port can not be told from its last group.
    NoBrackets,
    /// An IP address alone.
    NoPort,
    /// A port, or what stands for one, that is not a number from 0 to 65535.
    Port,
    /// The path after `unix:` is not absolute, or has a comma or a control character in it.
    UnixPath,
    /// The path after `unix:` does not fit into the kernel's `sockaddr_un`.
    UnixPathLength,
    /// None of the forms.
    Form,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self {
            Self::HostName => {
                return f.write_str(
                    "a host name is not looked up: expected an IP address such as 127.0.0.1:8080",
                );
            }
            Self::UnixPathLength => {
                return write!(
                    f,
                    "the path is too long: expected at most {UNIX_PATH_BYTES_MAX} bytes after unix:"
                );
            }
            Self::NoBrackets => "an IPv6 address before a port stands in brackets: ",
            Self::NoPort => "the port is missing: ",
            Self::Port => "the port is not a number from 0 to 65535: ",
            Self::UnixPath => "the path is not absolute and free of commas and control bytes: ",
            Self::Form => "",
        };
        write!(f, "{reason}expected 127.0.0.1:8080, [::]:8080 or unix:/path")
    }
}

impl std::error::Error for AddressError {}

fn unix(path: &str) -> Result<Address, AddressError> {
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(AddressError::UnixPathLength);
    }
    if !path.starts_with('/') || path.contains(|c: char| c == ',' || c.is_control()) {
        return Err(AddressError::UnixPath);
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

/// The most helpful thing to say of a text that no parser took.
fn diagnose(text: &str) -> AddressError {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        // `::1:8080` is an address of its own, yet whoever wrote it most likely meant a port.
        let is_bare_v6 = ip.is_ipv6() && bare == text;
        return if is_bare_v6 { AddressError::NoBrackets } else { AddressError::NoPort };
    }
    let Some((host, port)) = text.rsplit_once(':') else { return AddressError::Form };
    if host.parse::<Ipv6Addr>().is_ok() {
        AddressError::NoBrackets
    } else if looks_like_a_name(host) {
        AddressError::HostName
    } else if port.parse::<u16>().is_err() {
        AddressError::Port
    } else {
        AddressError::Form
    }
}

/// Letters make a name; digits and dots alone are an IP address gone wrong.
fn looks_like_a_name(host: &str) -> bool {
    host.contains(|c: char| c.is_ascii_alphabetic())
        && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

const UNIX_PREFIX: &str = "unix:";

const INHERITED: &str = "systemd";

/// The kernel's `sun_path` holds 108 bytes, the last of them NUL (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_displayed_parses_to_the_same_address() {
        for text in [
            "127.0.0.1:8080",
            "0.0.0.0:0",
            "[::]:8080",
            "[::1]:65535",
            "[fe80::1%2]:80",
            "unix:/run/ebbtide.sock",
            "unix:/run/with space:and=signs",
            "systemd",
        ] {
            let address: Address = text.parse().expect("a good address");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        let longest = format!("unix:/{}", "x".repeat(UNIX_PATH_BYTES_MAX - 1));
        assert!(longest.parse::<Address>().is_ok());
        let too_long = format!("{longest}x");
        for (text, error) in [
            ("localhost:8080", AddressError::HostName),
            ("localhost", AddressError::Form),
            ("my-host.example:http", AddressError::HostName),
            ("Systemd", AddressError::Form),
            ("::1:8080", AddressError::NoBrackets),
            ("2001:db8:0:0:0:0:0:1:8080", AddressError::NoBrackets),
            ("127.0.0.1", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("127.0.0.1:99999", AddressError::Port),
            ("127.0.0.1:", AddressError::Port),
            ("unix:run/socket", AddressError::UnixPath),
            ("unix:", AddressError::UnixPath),
            ("unix:/a,b", AddressError::UnixPath),
            ("unix:/a\0b", AddressError::UnixPath),
            (&too_long, AddressError::UnixPathLength),
            ("", AddressError::Form),
            ("8080", AddressError::Form),
            (":8080", AddressError::Form),
            ("*:8080", AddressError::Form),
            (" 127.0.0.1:8080", AddressError::Form),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_host_name_is_answered_with_the_form_to_use() {
        let error = "localhost:8080".parse::<Address>().expect_err("a name");
        assert_eq!(
            error.to_string(),
            "a host name is not looked up: expected an IP address such as 127.0.0.1:8080"
        );
    }

    #[test]
    fn any_free_port_is_never_the_same_place_twice() {
        let same = |a: &str, b: &str| {
            let parse = |text: &str| text.parse::<Address>().expect("good");
            parse(a).is_same_place(&parse(b))
        };
        assert!(same("127.0.0.1:8080", "127.0.0.1:8080"));
        assert!(!same("127.0.0.1:0", "127.0.0.1:0"));
        assert!(!same("127.0.0.1:8080", "127.0.0.2:8080"));
        assert!(same("unix:/a", "unix:/a"));
        assert!(same("systemd", "systemd"));
    }
}
