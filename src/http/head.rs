//! Where a request head ends, and whether it may go on growing. Pure.
//!
//! hyper is only ever given complete heads; until then the bytes stay ours. That keeps a slow
//! client at the price of its bytes, shows at any time whether bytes of a next request are in hand,
//! and makes every verdict independent of how the bytes were cut into packets: it is the verdict of
//! the first byte at which some rule is broken, whether that byte came alone or with all the
//! others.
//!
//! The end of a head is found the way `httparse` (hyper's parser) finds it: leading empty lines are
//! skipped (RFC 9112, 2.2), a line ends with LF or CRLF, the head ends with an empty line. What is
//! complete is judged by hyper; what is incomplete is parsed here as well, so that garbage is
//! answered at once and not when its head deadline runs out.

use crate::ledger::RejectedCode;

/// What a head may measure.
#[allow(clippy::struct_field_names, reason = "each is a limit: unit before bound")]
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes up to and including the empty line.
    pub bytes_max: usize,
    /// Bytes of the request line.
    pub line_bytes_max: usize,
    pub fields_max: usize,
}

/// What some received bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The beginning of a head, or nothing at all.
    Partial,
    /// A head of this many bytes, perhaps with more behind it.
    Complete(usize),
    Rejected(RejectedCode),
}

/// Judges `bytes`, which begin where a head is expected.
pub fn examine(bytes: &[u8], limits: &HeadLimits) -> Head {
    let is_small = bytes.len() <= limits.line_bytes_max.min(limits.bytes_max);
    if is_small
        && bytes.first().is_some_and(|byte| !matches!(byte, b'\r' | b'\n'))
        && let Some(size) = end_of_lines(bytes)
    {
        // No part of it can be larger than the whole, and that is within each limit.
        return Head::Complete(size);
    }
    let Some(start) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
        return if bytes.len() > limits.bytes_max {
            Head::Rejected(RejectedCode::FieldsTooLarge)
        } else {
            Head::Partial
        };
    };
    let mut ends = memchr::memchr_iter(b'\n', &bytes[start..]).map(|at| start + at);
    let first = ends.next();
    let line_end = first.unwrap_or(bytes.len());
    // RFC 9112, 3: the request line ends before its CRLF. A CR at the limit may be that of the
    // CRLF.
    let line = &bytes[start..line_end];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() > limits.line_bytes_max {
        // What had arrived when the line became too long.
        let within = start + limits.line_bytes_max;
        let judged = &bytes[..within + usize::from(bytes[within] == b'\r')];
        return Head::Rejected(fault(judged, limits).unwrap_or(RejectedCode::UriTooLong));
    }
    let mut end = first;
    while let Some(at) = end {
        let size = match &bytes[at + 1..] {
            [b'\n', ..] => at + 2,
            [b'\r', b'\n', ..] => at + 3,
            _ => {
                end = ends.next();
                continue;
            }
        };
        if size > limits.bytes_max {
            break;
        }
        return Head::Complete(size);
    }
    if bytes.len() > limits.bytes_max {
        let judged = &bytes[..limits.bytes_max];
        return Head::Rejected(fault(judged, limits).unwrap_or(RejectedCode::FieldsTooLarge));
    }
    match fault(bytes, limits) {
        Some(code) => Head::Rejected(code),
        None => Head::Partial,
    }
}

/// Whether `bytes` are at least a head, or more than may be: they begin like a line and end with an
/// empty one. Most requests come so, each by itself, and whoever parses them finds the end anyway.
pub fn is_closed(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|byte| !matches!(byte, b'\r' | b'\n')) && bytes.ends_with(b"\r\n\r\n")
}

/// How many bytes there are up to and including the first empty line behind another one. The lines
/// of most heads are too short for a search for LF to pay, so windows are looked at as a whole.
fn end_of_lines(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(window) = bytes[at..].first_chunk() {
        if holds_end(window) {
            return end_within(window).map(|size| at + size);
        }
        at += STRIDE;
    }
    match bytes.last_chunk() {
        // It begins within what was looked at. All of it is seen but for two LF at the very end.
        Some(window) if holds_end(window) => {
            end_within(window).map(|size| bytes.len() - window.len() + size)
        }
        Some(_) => bytes.ends_with(b"\n\n").then_some(bytes.len()),
        None => (0..bytes.len()).find_map(|at| end_at(&bytes[at..]).map(|size| at + size)),
    }
}

/// A window: the last line but one is looked for at each of its first [`STRIDE`] bytes.
type Window = [u8; STRIDE + 2];
const STRIDE: usize = 16;

/// Whether a head ends in the window.
#[allow(clippy::needless_bitwise_bool, reason = "without a branch it becomes vector instructions")]
fn holds_end(window: &Window) -> bool {
    (0..STRIDE).fold(false, |found, i| {
        let [first, second, third] = [window[i], window[i + 1], window[i + 2]];
        let is_empty = (second == b'\n') | ((second == b'\r') & (third == b'\n'));
        found | ((first == b'\n') & is_empty)
    })
}

/// Where it ends in the window.
fn end_within(window: &Window) -> Option<usize> {
    let (first, _) = window.split_first_chunk().expect("a window is longer than its stride");
    // The high bit of each byte that is LF, and perhaps of some behind such a byte.
    let without = u128::from_le_bytes(*first) ^ (ONES * u128::from(b'\n'));
    let mut found = without.wrapping_sub(ONES) & !without & (ONES << 7);
    while found != 0 {
        let at = found.trailing_zeros() as usize / 8;
        if let Some(size) = end_at(&window[at..]) {
            return Some(at + size);
        }
        found &= found - 1;
    }
    None
}

/// One in each byte.
const ONES: u128 = u128::MAX / 0xff;

/// The size of an empty line and the LF before it, if `bytes` begin with these.
fn end_at(bytes: &[u8]) -> Option<usize> {
    match bytes {
        [b'\n', b'\n', ..] => Some(2),
        [b'\n', b'\r', b'\n', ..] => Some(3),
        _ => None,
    }
}

/// What is already wrong with the beginning of a head.
fn fault(bytes: &[u8], limits: &HeadLimits) -> Option<RejectedCode> {
    let mut fields = vec![httparse::EMPTY_HEADER; limits.fields_max];
    match httparse::Request::new(&mut fields).parse(bytes) {
        Ok(_) => None,
        Err(httparse::Error::TooManyHeaders) => Some(RejectedCode::FieldsTooLarge),
        Err(_) => Some(RejectedCode::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes_max: 256, line_bytes_max: 64, fields_max: 4 };

    /// What the client is told: a complete head is parsed by hyper, with the same parser.
    fn verdict(bytes: &[u8]) -> Head {
        match examine(bytes, &LIMITS) {
            Head::Complete(size) => {
                fault(&bytes[..size], &LIMITS).map_or(Head::Complete(size), Head::Rejected)
            }
            other => other,
        }
    }

    /// The verdict when the bytes arrive in pieces that end at `cuts`.
    fn in_pieces(bytes: &[u8], cuts: &[usize]) -> Head {
        let pieces = cuts.iter().map(|&cut| verdict(&bytes[..cut.min(bytes.len())]));
        pieces
            .chain([verdict(bytes)])
            .find(|found| *found != Head::Partial)
            .unwrap_or(Head::Partial)
    }

    #[test]
    fn ends_are_found() {
        let cases: [(&[u8], Head); 8] = [
            (b"", Head::Partial),
            (b"\r\n\r\n", Head::Partial),
            (b"GET / HTTP/1.1\r\n", Head::Partial),
            (b"GET / HTTP/1.1\r\n\r\n", Head::Complete(18)),
            (b"\r\nGET / HTTP/1.1\nA: b\n\nrest", Head::Complete(23)),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET", Head::Complete(24)),
            (b"\x16\x03\x01", Head::Rejected(RejectedCode::BadRequest)),
            (b"GET / HTTP/1.1\r\n A: b", Head::Rejected(RejectedCode::BadRequest)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(examine(bytes, &LIMITS), expected, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn ends_are_found_wherever_they_are() {
        let limits = HeadLimits { line_bytes_max: 256, ..LIMITS };
        for before in 1..60 {
            for end in ["\n\n", "\n\r\n", "\r\n\r\n", "\r\n\n"] {
                for behind in 0..40 {
                    let bytes = ["a".repeat(before), end.to_owned(), "b".repeat(behind)].concat();
                    let size = before + end.len();
                    assert_eq!(
                        examine(bytes.as_bytes(), &limits),
                        Head::Complete(size),
                        "{bytes:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_break_one_past_it() {
        let line = |n: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(n));
        let fits = LIMITS.line_bytes_max - "GET / HTTP/1.1".len();
        assert!(matches!(examine(line(fits).as_bytes(), &LIMITS), Head::Complete(_)));
        assert_eq!(
            examine(line(fits + 1).as_bytes(), &LIMITS),
            Head::Rejected(RejectedCode::UriTooLong)
        );
        let head = |n: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(n));
        let fits = LIMITS.bytes_max - head(0).len();
        assert_eq!(examine(head(fits).as_bytes(), &LIMITS), Head::Complete(LIMITS.bytes_max));
        assert_eq!(
            examine(head(fits + 1).as_bytes(), &LIMITS),
            Head::Rejected(RejectedCode::FieldsTooLarge)
        );
        let fields = format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(5));
        assert_eq!(
            examine(fields.as_bytes(), &LIMITS),
            Head::Rejected(RejectedCode::FieldsTooLarge)
        );
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_the_cuts(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("GET / HTTP/1.1\r\n".to_owned()), Just("\r\n".to_owned()),
                    Just("\n".to_owned()), Just("Host: x\r\n".to_owned()),
                    Just("A: b\n".to_owned()), Just("GET /\u{0} HTTP/1.1\r\n".to_owned()),
                    Just("bad header\r\n".to_owned()), "[a-z]{1,90}".prop_map(|s| s),
                    "[a-z]{1,90}: [a-z]{1,90}\r\n".prop_map(|s| s),
                ],
                0..8,
            ),
            mut cuts in proptest::collection::vec(0usize..600, 0..6),
        ) {
            let bytes = parts.concat().into_bytes();
            cuts.sort_unstable();
            let whole = verdict(&bytes);
            prop_assert_eq!(in_pieces(&bytes, &cuts), whole);
            let every: Vec<usize> = (0..bytes.len()).collect();
            prop_assert_eq!(in_pieces(&bytes, &every), whole);
        }
    }
}
