//! Responses taken apart as strictly as RFC 9112 allows: what does not keep to it is garbage.
//!
//! No I/O: bytes are pushed, whole responses come out. A response is whole only when its framing
//! says so, so that whatever ends a connection before is seen as what it is.

use std::fmt;

use crate::kind::{Body, id_in};

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// 200 and the like; never an interim one.
    pub status: u16,
    /// Whether the connection must not be used again.
    pub closes: Closes,
    /// Its `X-Request-Id`, if there is one.
    pub request_id: Option<String>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Response {
    /// Why this is not the answer that the request of that number was to get.
    pub fn fault(&self, expected: &Body, id: u64) -> Option<String> {
        if self.status != 200 {
            return Some(format!("status {}", self.status));
        }
        if let Some(stranger) = self.request_id.as_deref().filter(|of| id_in(of) != Some(id)) {
            return Some(format!("the answer to {stranger}"));
        }
        let is_it = expected.is(&self.body);
        (!is_it).then(|| format!("another body, of {} bytes", self.body.len()))
    }
}

/// Whether a response announces the end of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closes {
    /// It does not.
    No,
    /// It does.
    Yes,
}

/// What is no HTTP response, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage(pub String);

impl fmt::Display for Garbage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects bytes until they are responses.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// The response whose head is complete, and how its body is framed.
    begun: Option<(Response, Framing)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// So many bytes.
    Length(usize),
    /// At a chunk's size line.
    Chunked,
    /// So many bytes of a chunk and its CRLF are missing.
    Chunk(usize),
    /// After the last chunk: trailers up to an empty line.
    Trailers,
    /// To the end of the connection.
    UntilEnd,
}

impl Reader {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether bytes of a response have come that is not whole.
    pub fn has_begun(&self) -> bool {
        self.begun.is_some() || !self.bytes.is_empty()
    }

    /// How much of the response is here, for a complaint.
    pub fn progress(&self) -> String {
        match &self.begun {
            Some((response, _)) => format!("{} bytes of its body", response.body.len()),
            None => format!("{} bytes of its head", self.bytes.len()),
        }
    }

    /// The status of the next response and whether it announces the close, once its head is whole:
    /// an interim one as well.
    ///
    /// # Errors
    /// [`Garbage`] for what is no head.
    pub fn begin(&mut self) -> Result<Option<(u16, Closes)>, Garbage> {
        if self.begun.is_none() && !self.head()? {
            return Ok(None);
        }
        Ok(self.begun.as_ref().map(|(response, _)| (response.status, response.closes)))
    }

    /// The next whole response.
    ///
    /// # Errors
    /// [`Garbage`] for what is none.
    pub fn take(&mut self) -> Result<Option<Response>, Garbage> {
        let held = self.begun.as_ref().map_or(0, |(response, _)| response.body.len());
        if held.max(self.bytes.len()) > BODY_MAX {
            return Err(Garbage(format!("a response without end: {}", self.progress())));
        }
        loop {
            if self.begun.is_none() && !self.head()? {
                return Ok(None);
            }
            if !self.body()? {
                return Ok(None);
            }
            // An interim response is followed by the one that counts.
            if let Some((response, _)) = self.begun.take()
                && response.status >= 200
            {
                return Ok(Some(response));
            }
        }
    }

    /// The connection has ended: the response that lasts until then, if one does.
    pub fn end(&mut self) -> Option<Response> {
        let is_it = self.begun.as_ref().is_some_and(|(_, framing)| *framing == Framing::UntilEnd);
        if is_it { self.begun.take().map(|(response, _)| response) } else { None }
    }

    /// Whether a head has come to its end.
    fn head(&mut self) -> Result<bool, Garbage> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut fields);
        let length = match head.parse(&self.bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.bytes.len() < HEAD_MAX => return Ok(false),
            Ok(httparse::Status::Partial) => {
                return Err(garbage("a head without end", &self.bytes));
            }
            Err(error) => return Err(garbage(&format!("no head ({error})"), &self.bytes)),
        };
        let begun = begin(&head).map_err(|what| garbage(&what, &self.bytes))?;
        self.begun = Some(begun);
        self.bytes.drain(..length);
        Ok(true)
    }

    /// Whether the body has come to its end.
    fn body(&mut self) -> Result<bool, Garbage> {
        let Some((response, framing)) = &mut self.begun else { return Ok(false) };
        loop {
            match framing {
                Framing::Length(left) => {
                    let count = self.bytes.len().min(*left);
                    response.body.extend(self.bytes.drain(..count));
                    *left -= count;
                    return Ok(*left == 0);
                }
                Framing::UntilEnd => {
                    response.body.append(&mut self.bytes);
                    return Ok(false);
                }
                Framing::Chunk(left) if *left > 2 => {
                    let count = self.bytes.len().min(*left - 2);
                    response.body.extend(self.bytes.drain(..count));
                    *left -= count;
                    if *left > 2 {
                        return Ok(false);
                    }
                }
                Framing::Chunk(_) => match self.bytes.get(..2) {
                    Some(b"\r\n") => {
                        self.bytes.drain(..2);
                        *framing = Framing::Chunked;
                    }
                    Some(_) => return Err(garbage("a chunk without CRLF behind it", &self.bytes)),
                    None => return Ok(false),
                },
                Framing::Chunked => {
                    let Some(line) = line(&self.bytes)? else { return Ok(false) };
                    let size = chunk_size(line).ok_or_else(|| garbage("no chunk size", line))?;
                    let length = line.len() + 2;
                    self.bytes.drain(..length);
                    *framing = if size == 0 { Framing::Trailers } else { Framing::Chunk(size + 2) };
                }
                Framing::Trailers => {
                    let Some(line) = line(&self.bytes)? else { return Ok(false) };
                    let length = line.len() + 2;
                    self.bytes.drain(..length);
                    if length == 2 {
                        return Ok(true);
                    }
                }
            }
        }
    }
}

/// What a head says of its response.
fn begin(head: &httparse::Response<'_, '_>) -> Result<(Response, Framing), String> {
    let status = head.code.unwrap_or(0);
    let version = head.version.unwrap_or(0);
    let all = |name: &str| -> Vec<String> {
        let of_name = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
        of_name.map(|field| String::from_utf8_lossy(field.value).trim().to_owned()).collect()
    };
    let connection = all("connection").join(",").to_ascii_lowercase();
    let says = |word: &str| connection.split(',').any(|option| option.trim() == word);
    let is_last = says("close") || (version == 0 && !says("keep-alive"));
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    let mut framing = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Framing::UntilEnd,
        ([length], []) => Framing::Length(number(length)?),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunked,
        _ => return Err(format!("lengths {lengths:?} with transfer codings {codings:?}")),
    };
    if status < 200 || status == 204 || status == 304 {
        framing = Framing::Length(0);
    }
    let closes = is_last || framing == Framing::UntilEnd;
    let response = Response {
        status,
        closes: if closes { Closes::Yes } else { Closes::No },
        request_id: all("x-request-id").pop(),
        body: Vec::new(),
    };
    Ok((response, framing))
}

/// Digits and nothing else: `parse` alone would take a sign.
fn number(text: &str) -> Result<usize, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_number);
    number.ok_or_else(|| format!("Content-Length {text:?}"))
}

fn chunk_size(line: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(line).ok()?;
    // Extensions are nobody's business.
    let digits = text.split(';').next()?.trim_end();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    usize::from_str_radix(digits, 16).ok().filter(|size| is_number && *size <= CHUNK_MAX)
}

/// The bytes up to the next CRLF, once it is there.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Garbage> {
    match bytes.windows(2).position(|two| two == b"\r\n") {
        Some(end) => Ok(Some(&bytes[..end])),
        None if bytes.len() > LINE_MAX => Err(garbage("a line without end", bytes)),
        None => Ok(None),
    }
}

fn garbage(what: &str, bytes: &[u8]) -> Garbage {
    let shown = &bytes[..bytes.len().min(SHOWN_MAX)];
    Garbage(format!("{what}: \"{}\"", shown.escape_ascii()))
}

/// More than any answer that is asked for.
const BODY_MAX: usize = 16 << 20;

const FIELDS_MAX: usize = 64;
const HEAD_MAX: usize = 64 * 1024;
const LINE_MAX: usize = 4096;
const CHUNK_MAX: usize = 1 << 30;
const SHOWN_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<Response>, Garbage> {
        let mut whole = Reader::default();
        whole.push(bytes);
        let mut responses = Vec::new();
        while let Some(response) = whole.take()? {
            responses.push(response);
        }
        // Byte by byte it must come to the same.
        let (mut slow, mut again) = (Reader::default(), Vec::new());
        for byte in bytes {
            slow.push(&[*byte]);
            while let Some(response) = slow.take()? {
                again.push(response);
            }
        }
        assert_eq!(responses, again);
        Ok(responses)
    }

    #[test]
    fn responses_follow_each_other_by_length_and_by_chunks() {
        let responses = read(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Request-Id: lt-4\r\n\r\nabc\
              HTTP/1.1 100 Continue\r\n\r\n\
              HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\n\
              Trailer: 1\r\n\r\n\
              HTTP/1.1 503 No\r\nConnection: Close\r\ncontent-length: 0\r\n\r\n",
        )
        .unwrap();
        let bodies: Vec<_> = responses.iter().map(|response| response.body.as_slice()).collect();
        assert_eq!(bodies, [&b"abc"[..], b"abc", b""]);
        assert_eq!(responses[0].request_id.as_deref(), Some("lt-4"));
        let closes: Vec<_> = responses.iter().map(|response| response.closes).collect();
        assert_eq!(closes, [Closes::No, Closes::No, Closes::Yes]);
        assert_eq!(responses[2].status, 503);
    }

    #[test]
    fn what_keeps_to_no_framing_is_garbage() {
        for bytes in [
            &b"HELO\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
        ] {
            let mut reader = Reader::default();
            reader.push(bytes);
            assert!(reader.take().is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_response_without_framing_lasts_until_the_end_and_closes() {
        let mut reader = Reader::default();
        reader.push(b"HTTP/1.0 200 OK\r\n\r\nall of it");
        assert_eq!(reader.take(), Ok(None));
        let response = reader.end().unwrap();
        assert_eq!((response.body.as_slice(), response.closes), (&b"all of it"[..], Closes::Yes));
    }

    #[test]
    fn a_response_that_is_not_whole_is_seen_to_have_begun() {
        for bytes in [&b"H"[..], b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"] {
            let mut reader = Reader::default();
            reader.push(bytes);
            assert_eq!(reader.take(), Ok(None));
            assert!(reader.has_begun() && reader.end().is_none());
        }
    }
}
