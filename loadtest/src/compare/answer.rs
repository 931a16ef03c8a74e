//! A request, and an answer to it: whether the servers do equal work.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::ebbtide::ROUTES;

/// Whether a request asks for the close of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The connection is to be kept.
    Keep,
    /// It is to be closed.
    Close,
}

/// The request, as wrk sends it.
pub fn request(to: SocketAddr, asks: Asks) -> Vec<u8> {
    let close = if asks == Asks::Close { "Connection: close\r\n" } else { "" };
    format!("GET {} HTTP/1.1\r\nHost: {to}\r\n{close}\r\n", ROUTES.text).into_bytes()
}

/// What is of interest in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Header fields.
    pub fields: usize,
    /// Bytes in all.
    pub bytes: usize,
}

/// The answer that begins here; `None` while it is not whole.
///
/// # Errors
/// Why it is not the one that all give.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer>, String> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("it answers no HTTP: {error}")),
    };
    if head.code != Some(200) {
        return Err(format!("it answers {}", head.code.unwrap_or_default()));
    }
    let field = |name: &str| {
        let found = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        found.and_then(|field| std::str::from_utf8(field.value).ok())
    };
    if field("date").is_none() {
        return Err("its answer has no date".to_owned());
    }
    if !field("content-type").is_some_and(|value| value.starts_with("text/plain")) {
        return Err("its answer is no text/plain".to_owned());
    }
    let body = ROUTES.text_body.as_bytes();
    if field("content-length").and_then(|value| value.parse().ok()) != Some(body.len()) {
        return Err(format!("its answer says no content-length of {}", body.len()));
    }
    match bytes.get(length..length + body.len()) {
        None => Ok(None),
        Some(found) if found == body => {
            Ok(Some(Answer { fields: head.headers.len(), bytes: length + body.len() }))
        }
        Some(_) => Err("its answer has another body".to_owned()),
    }
}

/// Sends a request on a connection and reads the answer.
///
/// # Errors
/// When there is none within [`PATIENCE`], or another one.
pub fn exchange(stream: &mut TcpStream, request: &[u8]) -> io::Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::Error::other("it closes the connection without an answer"));
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(answer) = parse(&bytes).map_err(io::Error::other)? {
            return Ok(answer);
        }
    }
}

/// Whether a connection has ended: it was to be closed.
///
/// # Errors
/// When it does not within [`PATIENCE`].
pub fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0; 16]) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(io::Error::other("it does not close a connection that is to be closed")),
    }
}

/// More fields than any of the servers has.
const FIELDS_MAX: usize = 32;

/// For an answer that takes microseconds.
pub const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\n\
        Content-Length: 13\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nHello, World!";

    #[test]
    fn an_answer_is_whole_at_its_last_byte() {
        let answer = Answer { fields: 3, bytes: GOOD.len() };
        assert_eq!(parse(GOOD.as_bytes()), Ok(Some(answer)));
        assert_eq!(parse(GOOD.repeat(2).as_bytes()), Ok(Some(answer)), "another one behind it");
        for length in 0..GOOD.len() {
            assert_eq!(parse(&GOOD.as_bytes()[..length]), Ok(None), "{length}");
        }
    }

    #[test]
    fn less_work_than_the_others_do_is_refused() {
        for (from, to, expected) in [
            ("200 OK", "404 Not Found", "it answers 404"),
            ("date:", "age:", "its answer has no date"),
            ("text/plain", "text/html", "its answer is no text/plain"),
            ("h: 13", "h: 12", "its answer says no content-length of 13"),
            ("Hello", "Hallo", "its answer has another body"),
        ] {
            assert_eq!(parse(GOOD.replace(from, to).as_bytes()), Err(expected.to_owned()));
        }
        assert!(parse(b"What?\r\n\r\n").is_err());
    }
}
