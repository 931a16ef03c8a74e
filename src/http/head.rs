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

/// How many bytes there are up to and including the first empty line behind another one. Looks at
/// eight bytes at once: the lines of most heads are too short for a vector search to pay.
fn end_of_lines(bytes: &[u8]) -> Option<usize> {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        // The high bit of each byte that is LF, and of none below the first such byte.
        let without = u64::from_le_bytes(*word) ^ LINE_FEEDS;
        let mut found = without.wrapping_sub(ONES) & !without & HIGH_BITS;
        while found != 0 {
            let at = index * 8 + found.trailing_zeros() as usize / 8;
            if let Some(size) = end_at(bytes, at) {
                return Some(size);
            }
            found &= found - 1;
        }
    }
    (bytes.len() - rest.len()..bytes.len()).find_map(|at| end_at(bytes, at))
}

/// The end of a head whose last line but one ends `at`, if it does.
fn end_at(bytes: &[u8], at: usize) -> Option<usize> {
    match &bytes[at..] {
        [b'\n', b'\n', ..] => Some(at + 2),
        [b'\n', b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = ONES << 7;
const LINE_FEEDS: u64 = ONES * b'\n' as u64;

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
