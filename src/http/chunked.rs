//! Where a chunked body ends (RFC 9112, 7.1). Pure.
//!
//! hyper decodes the body; this only follows its framing, so that hyper is handed nothing behind it
//! and the bytes of a next request stay in our hands. It is as strict as hyper: what it does not
//! understand it calls broken, and hyper, which then gets whatever comes, ends the connection.

/// How far into a chunked body the bytes so far lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunked(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a chunk's size; whether it has a digit yet.
    Size {
        size: u64,
        started: bool,
    },
    /// Behind the size, up to the end of its line.
    Extension {
        size: u64,
    },
    /// Between CR and LF of that line.
    SizeEnd {
        size: u64,
    },
    /// So many bytes of data are left.
    Data(u64),
    DataCr,
    DataLf,
    /// At the beginning of a line behind the last chunk.
    TrailerStart,
    Trailer,
    TrailerEnd,
    /// Between CR and LF of the empty line.
    LastLf,
    Done,
    Broken,
}

impl Chunked {
    /// At the beginning of a body.
    pub fn new() -> Chunked {
        Chunked(State::Size { size: 0, started: false })
    }

    /// Takes the bytes that come next. Returns how many of them belong to the body.
    pub fn take(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            match self.0 {
                State::Done => return at,
                State::Broken => return bytes.len(),
                State::Data(left) => {
                    let here = left.min((bytes.len() - at) as u64);
                    at += usize::try_from(here).expect("no more than there are bytes");
                    self.0 = if left == here { State::DataCr } else { State::Data(left - here) };
                }
                state => {
                    self.0 = after(state, bytes[at]);
                    at += 1;
                }
            }
        }
        at
    }

    /// Whether this is no chunked body.
    pub fn is_broken(&self) -> bool {
        self.0 == State::Broken
    }

    /// Whether the last byte taken was the body's last.
    pub fn is_done(&self) -> bool {
        self.0 == State::Done
    }
}

/// The state behind one byte of framing.
#[allow(clippy::match_same_arms, reason = "one arm per step of the grammar, in its order")]
fn after(state: State, byte: u8) -> State {
    match (state, byte) {
        (State::Size { size, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
            let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
            match size.checked_mul(16).and_then(|size| size.checked_add(digit)) {
                Some(size) => State::Size { size, started: true },
                None => State::Broken,
            }
        }
        (State::Size { size, started: true } | State::Extension { size }, b'\r') => {
            State::SizeEnd { size }
        }
        (State::Size { size, started: true }, b';' | b' ' | b'\t') => State::Extension { size },
        (State::Extension { .. }, b'\n') => State::Broken,
        (State::Extension { size }, _) => State::Extension { size },
        (State::SizeEnd { size: 0 }, b'\n') => State::TrailerStart,
        (State::SizeEnd { size }, b'\n') => State::Data(size),
        (State::DataCr, b'\r') => State::DataLf,
        (State::DataLf, b'\n') => State::Size { size: 0, started: false },
        (State::TrailerStart, b'\r') => State::LastLf,
        (State::TrailerStart | State::Trailer, byte) if byte != b'\r' && byte != b'\n' => {
            State::Trailer
        }
        (State::Trailer, b'\r') => State::TrailerEnd,
        (State::TrailerEnd, b'\n') => State::TrailerStart,
        (State::LastLf, b'\n') => State::Done,
        _ => State::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the bytes belong to the body, fed in pieces of `size`; `None` when it is not
    /// over.
    fn length(bytes: &[u8], size: usize) -> Option<usize> {
        let mut body = Chunked::new();
        let mut taken = 0;
        for piece in bytes.chunks(size) {
            taken += body.take(piece);
            if body.is_done() {
                return Some(taken);
            }
        }
        None
    }

    #[test]
    fn bodies_end_where_they_end_however_they_are_cut() {
        let bodies: [&[u8]; 5] = [
            b"0\r\n\r\n",
            b"3\r\nabc\r\n0\r\n\r\n",
            b"a;name=\"value\"\r\n0123456789\r\n000\r\n\r\n",
            b"1\r\n\r\r\n0\r\nTrailer: value\r\nOther: x\r\n\r\n",
            b"2 \r\n\r\n\r\nF\r\n0\r\n\r\n0\r\n\r\nGET /\r\n0\r\n\r\n",
        ];
        for body in bodies {
            let mut bytes = body.to_vec();
            bytes.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
            for size in 1..=bytes.len() {
                assert_eq!(length(&bytes, size), Some(body.len()), "{}", body.escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_no_chunked_body_has_no_end() {
        let bodies: [&[u8]; 6] = [
            b"\r\n0\r\n\r\n",
            b"3\nabc\r\n0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"ffffffffffffffff0\r\n0\r\n\r\n",
            b"0x1\r\na\r\n0\r\n\r\n",
            b"0\r\n\n",
        ];
        for body in bodies {
            assert_eq!(length(body, 1), None, "{}", body.escape_ascii());
        }
    }
}
