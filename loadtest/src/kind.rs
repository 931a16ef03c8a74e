//! The kinds of client, and what each of them asks for.

use std::time::Duration;

/// A kind of client. All but [`Kind::Fresh`] keep their connections alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A small GET on a kept connection.
    Get,
    /// A small POST on a kept connection, which is echoed; every other body goes in chunks.
    Post,
    /// A GET on a connection of its own, which the client closes afterwards.
    Fresh,
    /// A user with a connection of its own who pauses for 0.1 to 1.5 s between two GETs.
    Paused,
    /// Four GETs sent at once, their answers of different lengths.
    Pipelined,
    /// A large response read in pieces, with a pause before each.
    SlowReader,
    /// A large body sent in pieces, with a pause before each; every other one goes in chunks.
    SlowUploader,
    /// A response that is made over some time.
    Streaming,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 8] = [
        Kind::Get,
        Kind::Post,
        Kind::Fresh,
        Kind::Paused,
        Kind::Pipelined,
        Kind::SlowReader,
        Kind::SlowUploader,
        Kind::Streaming,
    ];

    /// Its name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Post => "post",
            Kind::Fresh => "fresh",
            Kind::Paused => "paused",
            Kind::Pipelined => "pipelined",
            Kind::SlowReader => "slow_reader",
            Kind::SlowUploader => "slow_uploader",
            Kind::Streaming => "streaming",
        }
    }

    /// Whether its requests take long because of what they are: their latency says nothing.
    pub fn is_slow(self) -> bool {
        matches!(self, Kind::SlowReader | Kind::SlowUploader | Kind::Streaming)
    }

    /// How many requests it sends at once.
    pub fn batch(self) -> u32 {
        if self == Kind::Pipelined { PIPELINED } else { 1 }
    }

    /// The request number `id`, to a server with these routes.
    pub fn ask(self, routes: &Routes, id: u64) -> Ask {
        match self {
            Kind::Get | Kind::Fresh | Kind::Paused => {
                Ask::get(routes.text, id, Body::Exactly(routes.text_body.as_bytes().to_vec()))
            }
            Kind::Post => {
                let body = format!("request {id}, ").repeat(1 + usize::from(id.to_le_bytes()[0]));
                Ask::post(routes.echo, id, body.as_bytes(), Body::Exactly(body.clone().into()))
            }
            Kind::Pipelined => {
                let length = 1 + id % 4_096;
                Ask::get(&format!("{}{length}", routes.bytes), id, Body::Zeros(length))
            }
            Kind::SlowReader => {
                Ask::get(&format!("{}{LARGE}", routes.bytes), id, Body::Zeros(LARGE))
            }
            Kind::SlowUploader => {
                let body = vec![b'u'; UPLOAD];
                let answer = format!("{{\"bytes\":{UPLOAD}}}");
                Ask::post(routes.upload, id, &body, Body::Exactly(answer.into()))
            }
            Kind::Streaming => {
                let path = format!("{}{STREAM_CHUNKS}/{STREAM_PAUSE_MS}", routes.stream);
                let chunks = (0..STREAM_CHUNKS).map(|n| format!("chunk {n}\n"));
                Ask::get(&path, id, Body::Exactly(chunks.collect::<String>().into()))
            }
        }
    }
}

/// The paths that the kinds use, so that servers can be told apart by where they have them.
#[derive(Clone, Copy, Debug)]
pub struct Routes {
    /// GET answers `text_body`.
    pub text: &'static str,
    /// What it answers.
    pub text_body: &'static str,
    /// POST sends the body back.
    pub echo: &'static str,
    /// GET with a number behind it answers so many zero bytes.
    pub bytes: &'static str,
    /// POST answers `{"bytes":<length of the body>}`.
    pub upload: &'static str,
    /// GET with `<n>/<ms>` behind it answers the lines `chunk 0` to `chunk <n - 1>`, with a pause
    /// before each but the first.
    pub stream: &'static str,
}

/// A request as its bytes, and what the answer has to be.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// The body of the expected response, whose status is 200.
    pub body: Body,
}

/// The body that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// These bytes.
    Exactly(Vec<u8>),
    /// So many zero bytes.
    Zeros(u64),
}

impl Body {
    /// Whether these bytes are it.
    pub fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Body::Exactly(expected) => expected == bytes,
            Body::Zeros(length) => {
                bytes.len() as u64 == *length && bytes.iter().all(|byte| *byte == 0)
            }
        }
    }
}

impl Ask {
    fn get(path: &str, id: u64, body: Body) -> Ask {
        Ask { bytes: head("GET", path, id, "").into_bytes(), body }
    }

    /// With a length for even numbers, in chunks for odd ones.
    fn post(path: &str, id: u64, content: &[u8], body: Body) -> Ask {
        let mut bytes;
        if id.is_multiple_of(2) {
            let length = format!("Content-Length: {}\r\n", content.len());
            bytes = head("POST", path, id, &length).into_bytes();
            bytes.extend_from_slice(content);
        } else {
            bytes = head("POST", path, id, "Transfer-Encoding: chunked\r\n").into_bytes();
            for chunk in content.chunks(CHUNK) {
                bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
        }
        Ask { bytes, body }
    }
}

fn head(method: &str, path: &str, id: u64, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: loadtest\r\nX-Request-Id: lt-{id}\r\n{fields}\r\n")
}

/// The number in an `X-Request-Id` of ours.
pub(crate) fn id_in(text: &str) -> Option<u64> {
    text.strip_prefix("lt-")?.parse().ok()
}

/// Requests of one pipelined batch.
pub(crate) const PIPELINED: u32 = 4;

/// Bytes of the response that a slow reader asks for.
const LARGE: u64 = 1 << 20;

/// Bytes that a slow uploader sends.
const UPLOAD: usize = 256 * 1024;

/// Bytes of a chunk of a request's body.
const CHUNK: usize = 4_000;

/// A streamed response: so many lines, one each so many milliseconds.
const STREAM_CHUNKS: u32 = 20;
const STREAM_PAUSE_MS: u32 = 40;

/// A slow reader takes so many bytes, then pauses: 0.8 s for its whole response.
pub(crate) const READ_PIECE: usize = 16 * 1024;
pub(crate) const READ_PAUSE: Duration = Duration::from_micros(12_500);

/// A slow uploader sends so many bytes, then pauses: 0.8 s for its whole body.
pub(crate) const WRITE_PIECE: usize = 16 * 1024;
pub(crate) const WRITE_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: Routes = Routes {
        text: "/t",
        text_body: "text",
        echo: "/e",
        bytes: "/b/",
        upload: "/u",
        stream: "/s/",
    };

    #[test]
    fn bodies_have_a_length_or_chunks_in_turn() {
        let even = String::from_utf8(Kind::Post.ask(&ROUTES, 4).bytes).unwrap();
        assert!(even.contains("Content-Length: 55\r\n\r\nrequest 4, "), "{even}");
        let odd = String::from_utf8(Kind::Post.ask(&ROUTES, 5).bytes).unwrap();
        assert!(odd.contains("chunked\r\n\r\n42\r\nrequest 5, "), "{odd}");
        assert!(odd.ends_with("\r\n0\r\n\r\n"), "{odd}");
    }

    #[test]
    fn pipelined_answers_differ_so_that_a_lost_one_shows() {
        let bodies: Vec<_> = (8..12).map(|id| Kind::Pipelined.ask(&ROUTES, id).body).collect();
        assert_eq!(bodies, [9, 10, 11, 12].map(Body::Zeros));
    }

    #[test]
    fn a_body_is_compared_by_content_and_length() {
        assert!(Body::Zeros(3).is(&[0; 3]) && !Body::Zeros(3).is(&[0; 2]));
        assert!(!Body::Zeros(3).is(&[0, 1, 0]));
        assert!(!Body::Exactly(b"a".into()).is(b"b"));
    }
}
