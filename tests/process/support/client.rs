//! A client of plain bytes: what it sends is what the test wrote.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::SOON;

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: Socket,
    /// Bytes that were read and belong to no response yet.
    rest: Vec<u8>,
}

/// One response, with its head as it came.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// With a FIN, after no more bytes.
    Closed,
    Reset,
    /// More bytes came.
    Bytes(Vec<u8>),
}

impl Client {
    pub fn connect(port: u16) -> Client {
        let address = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let client = Client::over(Domain::IPV4, &address);
        client.stream.set_tcp_nodelay(true).unwrap();
        client
    }

    pub fn connect_unix(path: &Path) -> Client {
        Client::over(Domain::UNIX, &SockAddr::unix(path).unwrap())
    }

    /// One whose kernel takes 2 KiB or so as long as it reads nothing.
    pub fn connect_narrow(port: u16) -> Client {
        let address = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let stream = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        stream.set_recv_buffer_size(1).unwrap();
        Client::on(stream, &address)
    }

    fn over(domain: Domain, address: &SockAddr) -> Client {
        Client::on(Socket::new(domain, Type::STREAM, None).unwrap(), address)
    }

    fn on(stream: Socket, address: &SockAddr) -> Client {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        stream.connect(address).unwrap();
        Client { stream, rest: Vec::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a GET and does not wait for its response.
    pub fn ask(&mut self, path: &str) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.ask(path);
        self.response()
    }

    /// The next response.
    pub fn response(&mut self) -> Response {
        let end = loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.read_more(), "closed within a head: {:?}", lossy(&self.rest));
        };
        let head = String::from_utf8(self.take(end)).unwrap();
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut response =
            Response { status: status.expect("a status line"), head, body: Vec::new() };
        response.body = if response.header("transfer-encoding") == Some("chunked") {
            self.chunks()
        } else if let Some(length) = response.header("content-length") {
            self.exactly(length.parse().unwrap())
        } else {
            Vec::new()
        };
        response
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(at) = find(&self.rest, b"\r\n") {
                    break self.take(at + 2);
                }
                assert!(self.read_more(), "closed within a chunked body");
            };
            let size = usize::from_str_radix(lossy(&line).trim(), 16).unwrap();
            body.extend_from_slice(&self.exactly(size));
            assert_eq!(self.exactly(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.rest.len() < length {
            assert!(self.read_more(), "closed {} bytes before the end", length - self.rest.len());
        }
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let tail = self.rest.split_off(length);
        std::mem::replace(&mut self.rest, tail)
    }

    /// Whether bytes came before the end.
    fn read_more(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        let count = self.read(&mut buffer).unwrap();
        self.rest.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// A read with a timeout is interrupted when the process is stopped and continued, even without
    /// a signal handler (`signal(7)`).
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// What comes after the last response that was read.
    pub fn end(&mut self) -> End {
        if !self.rest.is_empty() {
            return End::Bytes(std::mem::take(&mut self.rest));
        }
        let mut buffer = [0; 1024];
        match self.read(&mut buffer) {
            Ok(0) => End::Closed,
            Ok(count) => End::Bytes(buffer[..count].to_vec()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => End::Reset,
            Err(error) => panic!("neither bytes nor an end: {error}"),
        }
    }
}

impl Response {
    /// The value of the first field of that name, which is written in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        lossy(&self.body)
    }

    pub fn announces_close(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
