//! Servers of a few lines, good and bad.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A connection as a bad server sees it.
pub struct Peer {
    pub stream: TcpStream,
    reader: BufReader<TcpStream>,
}

/// A request, with its body whole.
pub struct Asked {
    pub path: String,
    /// Its `X-Request-Id`.
    #[allow(dead_code, reason = "not every user of this module keeps books")]
    pub id: String,
    pub body: Vec<u8>,
}

/// Accepts for ever, on threads that end with the process. Each connection is left to `serve`.
pub fn start(listener: TcpListener, serve: fn(&mut Peer)) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                serve(&mut Peer::new(stream));
            });
        }
    });
    address
}

impl Peer {
    /// On an accepted connection.
    pub fn new(stream: TcpStream) -> Peer {
        let reader = BufReader::new(stream.try_clone().unwrap());
        Peer { stream, reader }
    }

    /// The next request; `None` when the client is gone.
    pub fn request(&mut self) -> Option<Asked> {
        let path = self.line()?.split(' ').nth(1)?.to_owned();
        let (mut length, mut is_chunked, mut id) = (0, false, String::new());
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            is_chunked |= line == "transfer-encoding: chunked";
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            } else if let Some(value) = line.strip_prefix("x-request-id: ") {
                value.clone_into(&mut id);
            }
        }
        let mut body = Vec::new();
        if is_chunked {
            loop {
                let size = usize::from_str_radix(&self.line()?, 16).unwrap();
                body.extend(self.bytes(size)?);
                self.line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            body = self.bytes(length)?;
        }
        Some(Asked { path, id, body })
    }

    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).ok()?;
        (count > 0).then(|| line.trim_end().to_owned())
    }

    fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Sends what it is given. A client that is gone need not hear it.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _sent = self.stream.write_all(bytes.as_ref());
    }

    /// Sends as well; whether the client is still there.
    #[allow(dead_code, reason = "not every user of this module has that much to say")]
    pub fn is_heard(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Answers as the routes promise, with a few more header fields.
    pub fn answer(&mut self, asked: &Asked, fields: &str) {
        let number = |text: &str| text.split('/').nth(2).and_then(|part| part.parse().ok());
        let body = match asked.path.split('/').nth(1) {
            Some("plaintext") => b"Hello, World!".to_vec(),
            Some("echo") => asked.body.clone(),
            Some("upload") => format!("{{\"bytes\":{}}}", asked.body.len()).into_bytes(),
            Some("bytes") => vec![0; number(&asked.path).unwrap()],
            Some("stream") => (0..number(&asked.path).unwrap())
                .flat_map(|n| format!("chunk {n}\n").into_bytes())
                .collect(),
            _ => panic!("{}", asked.path),
        };
        let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), &body].concat());
    }

    /// Has the connection end in a reset, whatever was or was not read.
    #[allow(dead_code, reason = "not every user of this module is that bad")]
    pub fn reset(&mut self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// The same once the client's kernel has had the time to hand over what was sent.
    #[allow(dead_code, reason = "not every user of this module is that bad")]
    pub fn reset_when_read(&mut self) {
        std::thread::park_timeout(Duration::from_millis(100));
        self.reset();
    }
}

/// Answers everything as it should.
#[allow(dead_code, reason = "not every user of this module has a use for the good")]
pub fn well(peer: &mut Peer) {
    while let Some(asked) = peer.request() {
        peer.answer(&asked, "");
    }
}
