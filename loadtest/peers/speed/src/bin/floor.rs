//! The floor: what the kernel costs, and next to nothing above it.
//!
//! A loop over epoll that reads, counts the blank lines, and writes as many times the same
//! response, whose date it renews each second. It looks at nothing that a client says, keeps no
//! deadline and counts nothing: no server, but what no server can be faster than.

use std::io::{self, ErrorKind, Read, Write};
use std::net;
use std::time::{Instant, SystemTime};

use memchr::memmem;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use speed::{CONNECTION, KEEP_ALIVE, Options, PLAINTEXT, TEXT_TYPE};

fn main() -> io::Result<()> {
    Options::from_args()?.run(work)
}

/// A client, and what is on its way to and from it.
struct Client {
    stream: TcpStream,
    /// How many bytes of a blank line came last.
    matched: usize,
    /// What the socket did not take.
    unsent: Vec<u8>,
}

/// Whether a client is there after it was served.
#[derive(PartialEq)]
enum Fate {
    Kept,
    Gone,
}

fn work(options: Options, listener: net::TcpListener) -> io::Result<()> {
    let mut listener = TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut answers = Answers::new(options.closes);
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        answers.renew();
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let at = free.pop().unwrap_or(clients.len());
                    let both = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, Token(at), both)?;
                    let client = Client { stream, matched: 0, unsent: Vec::new() };
                    if at == clients.len() {
                        clients.push(Some(client));
                    } else {
                        clients[at] = Some(client);
                    }
                }
                continue;
            }
            let at = event.token().0;
            let Some(client) = &mut clients[at] else { continue };
            let served = client.serve(&mut buffer, &answers, options.closes);
            if served.unwrap_or(Fate::Gone) == Fate::Gone {
                clients[at] = None;
                free.push(at);
            }
        }
    }
}

impl Client {
    fn serve(&mut self, buffer: &mut [u8], answers: &Answers, closes: bool) -> io::Result<Fate> {
        if !self.unsent.is_empty() {
            let rest = std::mem::take(&mut self.unsent);
            self.write(&rest)?;
        }
        // Nobody who does not read is answered.
        while self.unsent.is_empty() {
            let count = match self.stream.read(buffer) {
                Ok(0) => return Ok(Fate::Gone),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Fate::Kept),
                Err(error) => return Err(error),
            };
            let mut requests = self.count(&buffer[..count]);
            if closes && requests > 0 {
                self.write(answers.of(1))?;
                return Ok(Fate::Gone);
            }
            while requests > 0 {
                let now = requests.min(BATCH);
                self.write(answers.of(now))?;
                requests -= now;
            }
            if count < buffer.len() {
                break;
            }
        }
        Ok(Fate::Kept)
    }

    /// How many blank lines end in what came.
    fn count(&mut self, bytes: &[u8]) -> usize {
        let mut count = 0;
        let mut rest = bytes;
        // One that has begun before.
        while self.matched > 0 && !rest.is_empty() {
            if rest[0] == BLANK_LINE[self.matched] {
                self.matched += 1;
                rest = &rest[1..];
            } else {
                self.matched = 0;
            }
            if self.matched == BLANK_LINE.len() {
                self.matched = 0;
                count += 1;
            }
        }
        let mut end = 0;
        for at in memmem::find_iter(rest, BLANK_LINE) {
            count += 1;
            end = at + BLANK_LINE.len();
        }
        let tail = &rest[end..];
        let begun = (1..BLANK_LINE.len()).rev().find(|len| tail.ends_with(&BLANK_LINE[..*len]));
        self.matched = begun.unwrap_or(self.matched);
        count
    }

    /// Keeps what the socket does not take.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        match self.stream.write(bytes) {
            Ok(count) => self.unsent.extend_from_slice(&bytes[count..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.unsent.extend(bytes),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The response so many times, as it is for a second.
struct Answers {
    closes: bool,
    bytes: Vec<u8>,
    each: usize,
    made: Instant,
}

impl Answers {
    fn new(closes: bool) -> Answers {
        let mut answers = Answers { closes, bytes: Vec::new(), each: 0, made: Instant::now() };
        answers.make();
        answers
    }

    fn renew(&mut self) {
        if self.made.elapsed().as_secs() > 0 {
            self.make();
        }
    }

    fn make(&mut self) {
        let date = httpdate::fmt_http_date(SystemTime::now());
        let connection = if self.closes {
            "connection: close\r\n".to_owned()
        } else {
            format!("connection: {CONNECTION}\r\nkeep-alive: {KEEP_ALIVE}\r\n")
        };
        let response = format!(
            "HTTP/1.1 200 OK\r\n{connection}content-type: {TEXT_TYPE}\r\n\
             content-length: {}\r\ndate: {date}\r\n\r\n{PLAINTEXT}",
            PLAINTEXT.len()
        );
        self.each = response.len();
        self.bytes = response.repeat(BATCH).into_bytes();
        self.made = Instant::now();
    }

    fn of(&self, count: usize) -> &[u8] {
        &self.bytes[..count * self.each]
    }
}

const LISTENER: Token = Token(usize::MAX);

const BLANK_LINE: &[u8] = b"\r\n\r\n";

const READ_BYTES: usize = 16 * 1024;

/// Responses in one write at most.
const BATCH: usize = 64;
