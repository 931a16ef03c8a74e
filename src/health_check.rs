//! Asks a server how it is: what `ebbtide health-check` does, so that an image without any other
//! program can be checked.
//!
//! One request over a plain blocking socket, in a process that does nothing else. A thread of its
//! own makes it: nothing that the asked one does or leaves undone, a look-up of its name included,
//! takes longer than the asking one waits. HTTP/1.0 is spoken, so that the answer ends with the
//! connection.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use http::Uri;

use crate::server::{Address, HealthOn};

/// Whom to ask, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    place: Place,
    /// With the query, in the form that a request line has.
    path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Host and port; an IPv6 host in brackets.
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Target {
    /// Where a server of such a configuration tells of its health: on `admin_listen`, else, if it
    /// does there, on the first address of `listen`. `None` when that is nowhere, or wherever
    /// another process or the kernel has put it.
    pub fn of(admin: Option<&Address>, listen: &[Address], health_on: HealthOn) -> Option<Target> {
        let public = if health_on == HealthOn::Public { listen } else { &[] };
        let place = admin.into_iter().chain(public).find_map(|address| match address {
            Address::Tcp(address) if address.port() != 0 => {
                let address = reachable(*address);
                Some(Place::Tcp(address.ip().to_string(), address.port()))
            }
            Address::Unix(path) => Some(Place::Unix(path.clone())),
            Address::Tcp(_) | Address::Inherited => None,
        })?;
        Some(Target { place, path: READINESS.to_owned() })
    }

    /// The same with all that the server tells of its readiness.
    #[must_use]
    pub fn in_detail(mut self) -> Target {
        if self.path == READINESS {
            self.path.push_str("?verbose");
        }
        self
    }
}

/// An address that a listener has, as a client on the same machine may use it.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// Why a text is no [`Target`]. Displays as the end of a sentence that has named the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetError;

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected http://HOST, http://HOST:PORT/PATH or unix:/PATH-OF-THE-SOCKET")
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    /// Reads `http://HOST`, with a port (80) and a path (`/readyz`) if they are given, or
    /// `unix:/PATH` of a socket.
    ///
    /// # Errors
    /// For anything else: user names, fragments and `https` have no place here.
    fn from_str(text: &str) -> Result<Target, TargetError> {
        if text.starts_with("unix:") {
            let Ok(Address::Unix(path)) = text.parse() else { return Err(TargetError) };
            return Ok(Target { place: Place::Unix(path), path: READINESS.to_owned() });
        }
        let uri: Uri = text.parse().map_err(|_| TargetError)?;
        let authority = uri.authority().ok_or(TargetError)?;
        let is_plain = uri.scheme_str() == Some("http") && !authority.as_str().contains('@');
        // A port that is no number is none to the parser.
        let is_whole = authority.port().is_some() || authority.as_str() == authority.host();
        if !is_plain || !is_whole || authority.host().is_empty() || text.contains('#') {
            return Err(TargetError);
        }
        let port = authority.port_u16().unwrap_or(HTTP_PORT);
        let has_path = uri.path() != "/" || uri.query().is_some() || text.ends_with('/');
        let path =
            uri.path_and_query().filter(|_| has_path).map_or(READINESS, |path| path.as_str());
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Target { place: Place::Tcp(host, port), path: path.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(..) => write!(f, "http://{}{}", self.place, self.path),
            Place::Unix(_) => write!(f, "{} {}", self.place, self.path),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status of its response.
    pub status: u16,
    /// The response's body; what is no UTF-8 is replaced. Whatever the other side wrote: not fit
    /// for a terminal as it is.
    pub text: String,
}

impl Answer {
    /// Whether it says that the server is well: 2xx.
    pub fn is_healthy(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// How long the server has been there, if it tells.
    fn up(&self) -> Option<Duration> {
        let line = self.text.lines().find_map(|line| line.strip_prefix("[+] up "));
        let seconds: f64 = line?.strip_suffix(" s")?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<&str> = self.text.lines().filter(|line| !line.is_empty()).collect();
        write!(f, "{} {}", self.status, lines.join("; "))
    }
}

/// Asks once.
///
/// # Errors
/// When there is no answer `within` that time, no connection, or no HTTP response on it.
pub fn ask(target: &Target, within: Duration) -> io::Result<Answer> {
    let (sender, receiver) = sync_channel(1);
    let target = target.clone();
    std::thread::Builder::new().name("ebbtide-ask".to_owned()).spawn(move || {
        // Nobody may be waiting any more.
        let _late = sender.try_send(exchange(&target));
    })?;
    receiver.recv_timeout(within).unwrap_or_else(|_| {
        let why = format!("no answer within {} s", within.as_secs_f64());
        Err(io::Error::new(ErrorKind::TimedOut, why))
    })
}

/// The end of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Since the first question.
    pub after: Duration,
    /// Whether another server answers in its place.
    pub is_succeeded: bool,
}

/// Asks until the server is not there any more: nobody listens, or the one that answers has begun
/// after the first question. `None` when neither has come to pass `within` that time. `tell` hears
/// what each question led to, of an answer the first line.
///
/// A successor is known by its readiness, which only an ebbtide tells; of a URL with another path
/// nothing but the silence is known. When two servers share a port either may answer, so it is the
/// one's own admin listener that should be asked.
pub fn wait_until_gone(
    target: &Target,
    within: Duration,
    mut tell: impl FnMut(&io::Result<Answer>),
) -> Option<Gone> {
    let target = target.clone().in_detail();
    let start = now();
    let mut is_first = true;
    loop {
        let asked = now();
        let waited = asked.duration_since(start);
        let left = within.checked_sub(waited).filter(|left| !left.is_zero())?;
        let mut answer = ask(&target, left.min(ASKING_MAX));
        let after = now().duration_since(start);
        if answer.as_ref().is_err_and(means_gone) {
            tell(&answer);
            return Some(Gone { after, is_succeeded: false });
        }
        if let Ok(answer) = &mut answer {
            if answer.up().is_some_and(|up| up < waited) {
                return Some(Gone { after, is_succeeded: true });
            }
            // The others hold numbers that change with each question.
            answer.text.truncate(answer.text.find('\n').unwrap_or(answer.text.len()));
        }
        // That the last question found no time for its answer says nothing that is new.
        let is_cut_short = left < ASKING_MAX && answer.as_ref().is_err_and(is_late);
        if is_first || !is_cut_short {
            tell(&answer);
        }
        is_first = false;
        std::thread::park_timeout(ASKED_AGAIN_AFTER);
    }
}

/// Whether nobody listens there any more. Silence, or a connection that ends without an answer, is
/// still somebody.
fn means_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound)
}

fn is_late(error: &io::Error) -> bool {
    error.kind() == ErrorKind::TimedOut
}

#[allow(clippy::disallowed_methods, reason = "this process runs no reactor")]
fn now() -> Instant {
    Instant::now()
}

fn exchange(target: &Target) -> io::Result<Answer> {
    let host = match &target.place {
        Place::Tcp(..) => target.place.to_string(),
        Place::Unix(_) => "localhost".to_owned(),
    };
    let path = &target.path;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: {AGENT}\r\n\r\n");
    match &target.place {
        Place::Tcp(host, port) => talk(TcpStream::connect((host.as_str(), *port))?, &request),
        Place::Unix(path) => talk(UnixStream::connect(path)?, &request),
    }
}

fn talk(mut stream: impl Read + Write, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    let end = stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response);
    // What came before a reset counts, if it is a response.
    match (read(&response), end) {
        (Some(answer), _) => Ok(answer),
        (None, Err(error)) => Err(error),
        (None, Ok(0)) => {
            Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection was closed unanswered"))
        }
        (None, Ok(_)) => Err(io::Error::new(ErrorKind::InvalidData, "no HTTP response came")),
    }
}

fn read(response: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(response);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.get(..3)?;
    Some(Answer { status: status.parse().ok()?, text: body.to_owned() })
}

/// What is asked for unless the URL says something else.
const READINESS: &str = "/readyz";

const HTTP_PORT: u16 = 80;

const AGENT: &str = concat!("ebbtide-health-check/", env!("CARGO_PKG_VERSION"));

/// More of an answer is not read.
const RESPONSE_BYTES_MAX: u64 = 64 << 10;

/// How long one of the questions waits for its answer that are asked until nobody is there.
const ASKING_MAX: Duration = Duration::from_secs(1);

/// The time between two of them.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Option<String> {
        text.parse().map(|target: Target| target.to_string()).ok()
    }

    #[test]
    fn a_url_without_a_path_asks_for_readiness() {
        let same = |url: &str| assert_eq!(shown(url).as_deref(), Some(url));
        same("http://127.0.0.1:9464/readyz");
        same("http://[::1]:9464/livez");
        same("http://localhost:80/");
        same("http://localhost:8080/a?b=c");
        assert_eq!(shown("http://localhost").as_deref(), Some("http://localhost:80/readyz"));
        assert_eq!(shown("http://10.0.0.1:81").as_deref(), Some("http://10.0.0.1:81/readyz"));
        assert_eq!(shown("unix:/run/a.sock").as_deref(), Some("unix:/run/a.sock /readyz"));
    }

    #[test]
    fn what_is_no_url_to_ask_is_refused() {
        for text in [
            "",
            "127.0.0.1:9464",
            "localhost",
            "/readyz",
            "https://localhost/",
            "ftp://localhost/",
            "http://",
            "http:///readyz",
            "http://localhost:port/",
            "http://localhost:70000/",
            "http://user@localhost/",
            "http://localhost/#top",
            "http://localhost/a b",
            "http://localhost/\r\nX: y",
            "unix:",
            "unix:relative.sock",
            "systemd",
        ] {
            assert_eq!(shown(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_configuration_says_where_to_ask() {
        let asked = |admin: &str, listen: &str, health_on: HealthOn| {
            let admin: Option<Address> = (admin != "off").then(|| admin.parse().expect("good"));
            let listen: Vec<Address> =
                listen.split(',').map(|address| address.parse().expect("good")).collect();
            Target::of(admin.as_ref(), &listen, health_on).map(|target| target.to_string())
        };
        let some = |url: &str| Some(url.to_owned());
        let admin = some("http://127.0.0.1:9464/readyz");
        assert_eq!(asked("127.0.0.1:9464", "127.0.0.1:8080", HealthOn::Public), admin);
        assert_eq!(asked("0.0.0.0:9464", "0.0.0.0:8080", HealthOn::AdminOnly), admin);
        assert_eq!(
            asked("[::]:9464", "[::]:1", HealthOn::Public),
            some("http://[::1]:9464/readyz")
        );
        assert_eq!(asked("unix:/a", "[::]:1", HealthOn::Public), some("unix:/a /readyz"));
        let public = some("http://127.0.0.1:8080/readyz");
        assert_eq!(asked("off", "systemd,0.0.0.0:8080", HealthOn::Public), public);
        assert_eq!(asked("off", "127.0.0.1:8080", HealthOn::AdminOnly), None);
        assert_eq!(asked("off", "systemd", HealthOn::Public), None);
        assert_eq!(asked("127.0.0.1:0", "127.0.0.1:0", HealthOn::Public), None);
    }

    #[test]
    fn an_answer_is_a_status_and_a_text() {
        let answer = |text: &str| read(text.as_bytes()).map(|answer| (answer.status, answer.text));
        let ready = answer("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n");
        assert_eq!(ready, Some((200, "ready\n".to_owned())));
        assert_eq!(answer("HTTP/1.0 503 \r\n\r\n"), Some((503, String::new())));
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/2 200\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert_eq!(answer(text), None, "{text:?}");
        }
        let up = |text: &str| Answer { status: 200, text: text.to_owned() }.up();
        let told = "ready\n[+] phase running\n[+] up 12.345 s\n[+] connections 0 open\n";
        assert_eq!(up(told), Some(Duration::from_millis(12_345)));
        for text in ["ready\n", "[+] up s", "[+] up -1 s", "[+] up inf s", "[+] up 1"] {
            assert_eq!(up(text), None, "{text:?}");
        }
        assert!(Answer { status: 204, text: String::new() }.is_healthy());
        assert!(!Answer { status: 302, text: String::new() }.is_healthy());
    }
}
