//! A request's head, as handlers ask for it.

use std::cell::OnceCell;

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Uri};

use super::short::{FIELDS_MAX, Short};
use super::spare;

/// A request's head: as hyper parsed it, or as it was sent. The latter is made into the former when
/// a handler asks for more than the method and the path.
#[derive(Default)]
pub(super) struct RequestHead {
    parts: OnceCell<Parts>,
    /// A head that came the [short way](super::short), which has proved that it can be parsed;
    /// empty when hyper parsed it. The room of both is kept for the next.
    sent: Vec<u8>,
    method: Method,
    /// Its path and query.
    target: String,
    /// How much of it the path is.
    path_bytes: usize,
}

impl RequestHead {
    /// Puts a head that hyper parsed in its place.
    pub fn set_parsed(&mut self, parts: Parts) {
        self.parts = OnceCell::from(parts);
    }

    /// Puts a head that came the short way in its place.
    pub fn set_sent(&mut self, request: &Short<'_>) {
        self.sent.extend_from_slice(request.head);
        self.method.clone_from(&request.method);
        self.target.push_str(request.target);
        self.path_bytes = request.path().len();
    }

    /// Forgets the head; its header map goes to the next response that is made on the thread.
    pub fn clear(&mut self) {
        self.sent.clear();
        self.target.clear();
        if let Some(parts) = self.parts.take() {
            spare::keep_headers(parts.headers);
        }
    }

    /// Bytes that it has room for.
    pub fn room(&self) -> usize {
        self.sent.capacity() + self.target.capacity()
    }

    fn is_sent(&self) -> bool {
        !self.sent.is_empty()
    }

    pub fn method(&self) -> &Method {
        if self.is_sent() { &self.method } else { &self.parts().method }
    }

    pub fn path(&self) -> &str {
        if self.is_sent() { &self.target[..self.path_bytes] } else { self.parts().uri.path() }
    }

    pub fn query(&self) -> Option<&str> {
        if self.is_sent() {
            self.target.get(self.path_bytes + 1..)
        } else {
            self.parts().uri.query()
        }
    }

    /// The value of the first field of that name, when it is text.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        match self.parts.get() {
            Some(parts) => parts.headers.get(name)?.to_str().ok(),
            None => text(value_of(&self.sent, name)?),
        }
    }

    pub fn parts(&self) -> &Parts {
        self.parts.get_or_init(|| parse(&self.sent, self.method.clone()))
    }

    pub fn into_parts(self) -> Parts {
        let RequestHead { parts, sent, method, .. } = self;
        parts.into_inner().unwrap_or_else(|| parse(&sent, method))
    }
}

/// The value of the first field of that name in a head that can be parsed: it has no folded lines
/// and no space before a colon.
fn value_of<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if !name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
        return None;
    }
    let mut lines = memchr::memchr_iter(b'\n', head);
    let mut at = lines.next()? + 1;
    for end in lines {
        let line = &head[at..end];
        at = end + 1;
        if let Some((field, value)) = line.split_at_checked(name.len())
            && let Some(value) = value.strip_prefix(b":")
            && field.eq_ignore_ascii_case(name.as_bytes())
        {
            return Some(value.trim_ascii());
        }
    }
    None
}

/// As `HeaderValue::to_str`.
fn text(value: &[u8]) -> Option<&str> {
    let is_text = value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    if is_text { str::from_utf8(value).ok() } else { None }
}

/// What hyper would have made of a head that came the short way.
fn parse(head: &[u8], method: Method) -> Parts {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.method = method;
    let shared = spare::share(head);
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(&shared);
    debug_assert!(parsed.is_ok_and(|status| status.is_complete()), "{NOT_SHORT}");
    let target = request.path.expect(NOT_SHORT);
    parts.uri = Uri::from_maybe_shared(shared.slice_ref(target.as_bytes())).expect(NOT_SHORT);
    spare::take_headers(&mut parts.headers);
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).expect(NOT_SHORT);
        let value = HeaderValue::from_maybe_shared(shared.slice_ref(field.value));
        parts.headers.append(name, value.expect(NOT_SHORT));
    }
    parts
}

const NOT_SHORT: &str = "a head that came the short way was parsed before";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_as_the_parser_finds_them() {
        let head =
            b"GET / HTTP/1.1\r\nHost: x:1\r\naccept:\r\nX-A: \t a b\t \r\nX-AB:c\nx-a: second\r\n\
                     X-Odd: \xe9\r\n\r\n";
        let parts = parse(head, Method::GET);
        for name in [
            "host", "Host", "HOST:", "accept", "x-a", "X-AB", "x-abc", "x-odd", "x", "", ":",
            "Host: x",
        ] {
            let parsed = parts.headers.get(name).map(HeaderValue::as_bytes);
            assert_eq!(value_of(head, name), parsed, "{name:?}");
            let parsed = parts.headers.get(name).and_then(|value| value.to_str().ok());
            assert_eq!(value_of(head, name).and_then(text), parsed, "{name:?}");
        }
    }
}
