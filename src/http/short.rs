//! The short way: an ordinary request is read and a small response written without hyper. Pure.
//!
//! hyper keeps books of bodies, upgrades, trailers and versions, which most requests need none of:
//! reading and writing such a one through it is two thirds of all that the server does for it. So
//! what [`read`] knows to be ordinary is handed to the application at once, and what [`write`]
//! knows to be small goes out as hyper would write it, byte for byte. All else is hyper's, and so
//! is everything while the server is shut down. Who judges what is a well-formed head is the same
//! on both ways: hyper's parser.

use std::mem::MaybeUninit;

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, TRAILER, TRANSFER_ENCODING};
use http::{Method, StatusCode, Version};

use super::date::DateEnd;
use super::frame::HYPER_READ_BYTES;
use super::limits::DIRECT_BYTES_MIN;
use super::message::Response;
use super::service::{is_known_host, well_formed_id};
use super::site::Site;

/// An ordinary request: of a path, HTTP/1.1, all there, nothing that hyper or the gate would act on
/// but what is here.
pub(super) struct Short<'a> {
    pub method: Method,
    /// Path and query.
    pub target: &'a str,
    path_bytes: usize,
    /// All of its head.
    pub head: &'a [u8],
    /// All of its body; empty when there is none.
    pub body: &'a [u8],
    /// Whether the client asks for the connection to be closed.
    pub closes: Closes,
    /// The id that it brings.
    pub id: Option<&'a str>,
}

impl<'a> Short<'a> {
    pub fn path(&self) -> &'a str {
        &self.target[..self.path_bytes]
    }

    /// Its bytes, head and body.
    pub fn size(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Whether a client asked for the connection to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closes {
    Yes,
    No,
}

/// Header fields that a request on the short way may have.
pub(super) const FIELDS_MAX: usize = 32;

/// Reads the request that `bytes` begin with. `None`: it is hyper's, or not all there.
pub(super) fn read<'a>(bytes: &'a [u8], site: &Site) -> Option<Short<'a>> {
    let limits = &site.limits;
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let fields = &mut fields[..FIELDS_MAX.min(limits.header_fields_max)];
    let mut request = httparse::Request::new(&mut []);
    let Ok(httparse::Status::Complete(head_bytes)) =
        request.parse_with_uninit_headers(bytes, fields)
    else {
        return None;
    };
    // No part of it can be larger than the whole, and that is within each limit.
    if head_bytes > limits.head_bytes_max.min(limits.request_line_bytes_max) {
        return None;
    }
    let (head, behind) = bytes.split_at(head_bytes);
    if request.version != Some(1) {
        return None;
    }
    let method = match request.method? {
        "GET" => Method::GET,
        "POST" => Method::POST,
        "PUT" => Method::PUT,
        "PATCH" => Method::PATCH,
        "DELETE" => Method::DELETE,
        _ => return None,
    };
    let target = request.path?;
    let path_bytes = path_bytes(target)?;
    let (mut closes, mut id, mut length) = (Closes::No, None, None);
    let (mut has_host, mut has_id) = (false, false);
    for field in request.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("host") {
            if std::mem::replace(&mut has_host, true) || !is_known_host(site, field.value) {
                return None;
            }
        } else if is("connection") {
            if field.value.eq_ignore_ascii_case(b"close") {
                closes = Closes::Yes;
            } else if !field.value.eq_ignore_ascii_case(b"keep-alive") {
                return None;
            }
        } else if is("x-request-id") {
            if !std::mem::replace(&mut has_id, true) {
                id = well_formed_id(field.value);
            }
        } else if is("content-length") {
            if length.replace(body_bytes(field.value)?).is_some() {
                return None;
            }
        } else if HYPERS.into_iter().any(is) {
            return None;
        }
    }
    let length = length.unwrap_or(0);
    if length as u64 > HYPER_READ_BYTES {
        // hyper closes the connection when nobody reads that much.
        return None;
    }
    let body = behind.get(..length)?;
    has_host.then_some(Short { method, target, path_bytes, head, body, closes, id })
}

/// What else hyper acts on: codings, 100-continue, upgrades and trailers.
const HYPERS: [&str; 4] = ["transfer-encoding", "expect", "upgrade", "te"];

/// A `Content-Length` (RFC 9110, 8.6) that no two readers read differently: digits, not many.
fn body_bytes(value: &[u8]) -> Option<usize> {
    let is_plain = (1..=LENGTH_DIGITS_MAX).contains(&value.len());
    if !is_plain || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |length, digit| length * 10 + usize::from(digit - b'0')))
}

/// Of more than an input buffer holds, so that no sum overflows.
const LENGTH_DIGITS_MAX: usize = 8;

/// How much of `target` its path is. `None`: whoever parses URIs had better look at it.
fn path_bytes(target: &str) -> Option<usize> {
    if target.len() > TARGET_BYTES_MAX {
        return None;
    }
    let bytes = target.as_bytes();
    if !bytes.starts_with(b"/") {
        return None;
    }
    let path = bytes.iter().position(|byte| !PATH_BYTES[usize::from(*byte)]);
    let Some(path) = path else { return Some(bytes.len()) };
    let query = bytes[path..].strip_prefix(b"?")?;
    let is_plain = |byte: &u8| PATH_BYTES[usize::from(*byte)] || *byte == b'?';
    query.iter().all(is_plain).then_some(path)
}

/// Longer ones are rare.
const TARGET_BYTES_MAX: usize = 4096;

/// What a path may consist of (RFC 3986, 3.3), by byte; percent signs are not looked behind.
static PATH_BYTES: [bool; 256] = {
    let mut bytes = [false; 256];
    let allowed = b"/-._~%!$&'()*+,;=:@";
    let mut at = 0;
    while at < allowed.len() {
        bytes[allowed[at] as usize] = true;
        at += 1;
    }
    let mut byte: u8 = 0;
    while byte < 128 {
        bytes[byte as usize] |= byte.is_ascii_alphanumeric();
        byte += 1;
    }
    bytes
};

/// What stands in for a head that came the short way when its response is hyper's after all: hyper
/// is to learn nothing from it but that GET asks, and whether the connection closes.
pub(super) fn stand_in(closes: Closes) -> &'static [u8] {
    if closes == Closes::Yes {
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    } else {
        b"GET / HTTP/1.1\r\n\r\n"
    }
}

/// Appends a response as hyper would write it with `lines` behind its status line. Writes nothing
/// and says so when it is not small and plain, or longer than `room`.
pub(super) fn write(
    response: &Response,
    closes: Closes,
    lines: &[u8],
    end: &DateEnd,
    (output, room): (&mut Vec<u8>, usize),
) -> bool {
    let sheet = response.sheet();
    let Some(body) = sheet.body.whole() else { return false };
    let mut length = MOST_BYTES + lines.len() + body.len();
    for (name, value) in &sheet.headers {
        if FRAMING.contains(name) {
            return false;
        }
        length += name.as_str().len() + value.len() + SEPARATORS_BYTES;
    }
    let is_plain = sheet.version == Version::HTTP_11 && sheet.extensions.is_empty();
    if !is_plain || body.len() >= DIRECT_BYTES_MIN || length > room {
        return false;
    }
    if sheet.status == StatusCode::OK {
        output.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        let is_bodiless = matches!(sheet.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let Some(reason) = sheet.status.canonical_reason() else { return false };
        if is_bodiless || sheet.status.is_informational() {
            return false;
        }
        for part in ["HTTP/1.1 ", sheet.status.as_str(), " ", reason, "\r\n"] {
            output.extend_from_slice(part.as_bytes());
        }
    }
    output.extend_from_slice(lines);
    for (name, value) in &sheet.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            output.extend_from_slice(part);
        }
    }
    if closes == Closes::Yes {
        output.extend_from_slice(b"connection: close\r\n");
    }
    output.extend_from_slice(b"content-length: ");
    output.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
    output.extend_from_slice(end);
    output.extend_from_slice(body);
    true
}

/// The fields of a response that hyper acts on.
const FRAMING: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, DATE, TRAILER, TRANSFER_ENCODING];

/// More than a head takes without its lines and fields.
const MOST_BYTES: usize = 256;

/// Of a field: colon, space, line end.
const SEPARATORS_BYTES: usize = 4;
