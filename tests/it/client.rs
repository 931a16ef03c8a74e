//! A client that sends exactly the bytes it is told and takes responses apart by hand.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::support::{PATIENCE, now, pace};

/// One connection. Nothing waits for ever: reads and writes fail after [`PATIENCE`].
pub struct Client {
    socket: Socket,
    /// Received and not yet taken.
    held: Vec<u8>,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    /// As sent, in order; names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// All bytes up to the end of a connection.
#[derive(Debug)]
pub struct Rest {
    pub bytes: Vec<u8>,
    pub end: End,
}

/// How the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

/// Whether a response may have a body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Get,
    Head,
}

impl Client {
    /// Connects. A server that is bound and not yet listening is waited for.
    pub fn connect(address: SocketAddr) -> Client {
        Client::patiently(|| Client::try_connect(address))
    }

    /// # Errors
    /// Those of `connect(2)`.
    pub fn try_connect(address: SocketAddr) -> io::Result<Client> {
        Client::over(
            Socket::new(Domain::for_address(address), Type::STREAM, None)?,
            &address.into(),
        )
    }

    /// Connects with a receive buffer as small as the kernel allows.
    pub fn with_small_window(address: SocketAddr) -> Client {
        Client::patiently(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            socket.set_recv_buffer_size(4096)?;
            Client::over(socket, &address.into())
        })
    }

    pub fn connect_unix(path: &Path) -> Client {
        Client::patiently(|| Client::try_connect_unix(path))
    }

    /// # Errors
    /// Those of `connect(2)`.
    pub fn try_connect_unix(path: &Path) -> io::Result<Client> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        Client::over(socket, &SockAddr::unix(path)?)
    }

    fn patiently(connect: impl Fn() -> io::Result<Client>) -> Client {
        let end = now() + PATIENCE;
        loop {
            match connect() {
                Ok(client) => return client,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && now() < end => {
                    pace(Duration::from_millis(1));
                }
                Err(error) => panic!("cannot connect: {error}"),
            }
        }
    }

    fn over(socket: Socket, address: &SockAddr) -> io::Result<Client> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        if !address.is_unix() {
            // Each write is a segment of its own.
            socket.set_tcp_nodelay(true)?;
        }
        socket.connect(address)?;
        Ok(Client { socket, held: Vec::new() })
    }

    /// Sends exactly these bytes.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the server takes what is sent");
    }

    /// # Errors
    /// Those of `send(2)`: the server has closed.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.socket.write_all(bytes.as_ref())
    }

    /// A request and its response.
    pub fn get(&mut self, path: &str) -> Answer {
        self.send(request(path));
        self.read_response()
    }

    /// The next response.
    pub fn read_response(&mut self) -> Answer {
        self.try_read_response().unwrap_or_else(|rest| panic!("no whole response: {rest:?}"))
    }

    /// The next response, to a HEAD request.
    pub fn read_response_to_head(&mut self) -> Answer {
        self.read(Of::Head).unwrap_or_else(|rest| panic!("no whole response: {rest:?}"))
    }

    /// # Errors
    /// What there was when the server ended the connection before the end of a response.
    pub fn try_read_response(&mut self) -> Result<Answer, Rest> {
        self.read(Of::Get)
    }

    fn read(&mut self, of: Of) -> Result<Answer, Rest> {
        let mut end = None;
        loop {
            if let Some((answer, size)) = parse(&self.held, of, end) {
                self.held.drain(..size);
                return Ok(answer);
            }
            if let Some(end) = end {
                return Err(Rest { bytes: std::mem::take(&mut self.held), end });
            }
            end = self.receive();
        }
    }

    /// Reads until this many bytes have come or the server has ended the connection.
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.held.len() < count && self.receive().is_none() {}
        self.held.drain(..count.min(self.held.len())).collect()
    }

    /// Everything up to the end.
    pub fn read_to_end(&mut self) -> Rest {
        loop {
            if let Some(end) = self.receive() {
                return Rest { bytes: std::mem::take(&mut self.held), end };
            }
        }
    }

    /// Asserts that the server closes without another byte.
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end();
        assert!(
            rest.bytes.is_empty() && rest.end == End::Closed,
            "a plain close was expected: {rest:?}"
        );
    }

    /// Asserts that the server says nothing for so long.
    pub fn expect_silence(&mut self, pause: Duration) {
        let came = self.receive_within(pause);
        assert!(matches!(came, Came::Nothing), "silence was expected: {:?}", self.held_text());
    }

    /// Waits so long for the beginning of a response. Paces what the client sends meanwhile.
    pub fn hears_within(&mut self, pause: Duration) -> bool {
        !self.held.is_empty() || !matches!(self.receive_within(pause), Came::Nothing)
    }

    fn receive_within(&mut self, pause: Duration) -> Came {
        let began: Instant = now();
        self.socket.set_read_timeout(Some(pause)).expect("a timeout can be set");
        let mut buffer = [0; 4096];
        let read = self.socket.read(&mut buffer);
        self.socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        match read {
            Ok(0) => Came::End,
            Ok(count) => {
                self.held.extend_from_slice(&buffer[..count]);
                Came::Bytes
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                debug_assert!(now() >= began, "the clock is monotonic");
                Came::Nothing
            }
            Err(_) => Came::End,
        }
    }

    /// Reads once. `Some` at the end of the connection.
    fn receive(&mut self) -> Option<End> {
        let mut buffer = vec![0; 64 * 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => Some(End::Closed),
            Ok(count) => {
                self.held.extend_from_slice(&buffer[..count]);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Some(End::Reset),
            Err(error) => panic!("nothing came: {error}; held is {:?}", self.held_text()),
        }
    }

    fn held_text(&self) -> String {
        self.held.escape_ascii().to_string()
    }

    /// Says that nothing more will be sent.
    pub fn half_close(&self) {
        self.try_half_close().expect("an open socket");
    }

    /// # Errors
    /// Those of `shutdown(2)`: the server has closed.
    pub fn try_half_close(&self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)
    }

    /// Ends the connection as a crash would.
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("an open socket");
    }

    /// The same connection, for another thread.
    pub fn another(&self) -> Client {
        let socket = self.socket.try_clone().expect("a descriptor is free");
        Client { socket, held: Vec::new() }
    }
}

enum Came {
    Bytes,
    Nothing,
    End,
}

impl Answer {
    /// The value of a header that is there once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    pub fn announces_close(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    pub fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// The headers without the date.
    pub fn timeless_headers(&self) -> Vec<(String, String)> {
        self.headers.iter().filter(|(name, _)| name != "date").cloned().collect()
    }

    /// Asserts status and text.
    pub fn expect(&self, status: u16, text: &str) -> &Answer {
        assert_eq!((self.status, self.text()), (status, text), "{self:?}");
        self
    }

    /// Asserts 503 with `Retry-After` and the announcement of the close.
    pub fn expect_refusal(&self) -> &Answer {
        assert_eq!(self.status, 503, "{self:?}");
        let pause = self.header("retry-after").and_then(|value| value.parse::<u32>().ok());
        assert!(pause.is_some(), "503 says when to come back: {self:?}");
        assert!(self.announces_close(), "503 announces the close: {self:?}");
        self
    }
}

/// The response at the beginning of `bytes` and its size, when it is whole. `end` is there when no
/// more bytes will come.
fn parse(bytes: &[u8], of: Of, end: Option<End>) -> Option<(Answer, usize)> {
    let head_size = find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_size - 4]).expect("heads are text");
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let mut parts = status_line.splitn(3, ' ');
    let version = parts.next().unwrap_or_default().to_owned();
    let status = parts.next().and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {status_line:?}"));
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no header: {line:?}")))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut answer = Answer { version, status, headers, body: Vec::new() };
    let rest = &bytes[head_size..];
    if of == Of::Head || status < 200 || status == 204 || status == 304 {
        return Some((answer, head_size));
    }
    let length = answer.header("content-length").map(|length| length.parse().expect("a number"));
    let (body, size) = match length {
        _ if answer.is_chunked() => {
            assert!(length.is_none(), "two lengths: {answer:?}");
            unchunk(rest)?
        }
        Some(length) => (rest.get(..length)?.to_vec(), length),
        None if end == Some(End::Closed) => (rest.to_vec(), rest.len()),
        None => return None,
    };
    answer.body = body;
    Some((answer, head_size + size))
}

/// A chunked body and its size on the wire, when it is whole. Without extensions and trailers.
fn unchunk(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let digits = std::str::from_utf8(&bytes[at..at + line]).expect("a chunk size is text");
        let size = usize::from_str_radix(digits, 16).expect("a chunk size is hexadecimal");
        at += line + 2;
        body.extend_from_slice(bytes.get(at..at + size)?);
        at += size;
        assert_eq!(bytes.get(at..at + 2)?, b"\r\n", "a chunk ends with CRLF");
        at += 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A GET request.
pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: ebbtide.test\r\n\r\n")
}

/// A POST request with its length.
pub fn upload(path: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: ebbtide.test\r\nContent-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A POST request in chunks. Empty ones are left out: the first would be the end.
pub fn chunked_upload(path: &str, chunks: &[&[u8]]) -> Vec<u8> {
    let head = "HTTP/1.1\r\nHost: ebbtide.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut bytes = format!("POST {path} {head}").into_bytes();
    for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
