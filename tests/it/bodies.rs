//! Response bodies: whole, streamed, with and without a length, to readers that are in no hurry.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ebbtide::{Body, ConnectionState, Request, RequestOutcome, Router, get};
use http_body::{Frame, SizeHint};

use super::client::{Client, request, upload};
use super::support::{Gate, STREAMED, Served, app, ms, pattern};

#[test]
fn chunks_arrive_as_they_are_made() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    gate.let_one();
    let head = "HTTP/1.1 200 OK\r\n";
    assert_eq!(client.read_bytes(head.len()), head.as_bytes());
    let mut seen = Vec::new();
    for n in 0..4 {
        // The next chunk is not even begun before this one is here.
        let wanted = format!("chunk {n};");
        while !contains(&seen, wanted.as_bytes()) {
            let more = client.read_bytes(1);
            assert!(!more.is_empty(), "the stream ended before chunk {n}");
            seen.extend(more);
        }
        gate.let_one();
    }
    let end = client.read_bytes("\r\n0\r\n\r\n".len());
    assert_eq!(end, b"\r\n0\r\n\r\n");
    client.get("/hello").expect(200, "hello");
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn a_head_does_not_wait_for_the_first_chunk() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    assert_eq!(client.read_bytes(15), b"HTTP/1.1 200 OK");
    gate.open();
}

#[test]
fn a_stream_of_unknown_length_is_chunked() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    let answer = client.get("/stream");
    assert!(answer.is_chunked() && answer.header("content-length").is_none());
    answer.expect(200, STREAMED);
    client.get("/hello").expect(200, "hello");
}

#[test]
fn a_stream_to_http_1_0_ends_with_the_connection() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate));
    for ask in ["", "Connection: keep-alive\r\n"] {
        let mut client = served.client();
        client.send(format!("GET /stream HTTP/1.0\r\n{ask}\r\n"));
        let answer = client.read_response();
        assert_eq!(answer.header("transfer-encoding"), None, "1.0 knows no chunks");
        answer.expect(200, STREAMED);
        client.expect_end();
    }
}

/// Frames of 10 bytes, with a length.
struct Tens(u64);

impl http_body::Body for Tens {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Tens>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"0123456789")))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0 * 10)
    }
}

#[test]
fn a_stream_that_knows_its_length_announces_it() {
    let tens = |request: Request| {
        Body::new(Tens(request.param("n").and_then(|n| n.parse().ok()).expect("a number")))
    };
    let served = Served::start(Router::new().route("/tens/{n}", get(tens)));
    let mut client = served.client();
    for n in [0, 1, 3, 20_000] {
        let answer = client.get(&format!("/tens/{n}"));
        assert_eq!(answer.header("content-length"), Some(&*(n * 10).to_string()));
        assert!(!answer.is_chunked());
        assert_eq!(answer.body, b"0123456789".repeat(n));
    }
}

const SIZES: [usize; 6] =
    [64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 70_000, 256 * 1024 + 1, 5 << 20];

#[test]
fn a_reader_that_begins_late_gets_the_whole_response() {
    let served = Served::start(app(&Gate::default()));
    for size in SIZES {
        let mut client = Client::with_small_window(served.address());
        client.send(request(&format!("/bytes/{size}")));
        served.until("the request is begun", |counts| counts.begun > 0);
        if size == 5 << 20 {
            served.until_in_state(ConnectionState::Streaming, 1);
        }
        let answer = client.read_response();
        assert_eq!(answer.header("content-length"), Some(&*size.to_string()));
        assert!(answer.body == pattern(size), "{size} bytes are those that were sent");
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn a_reader_that_reads_little_at_a_time_gets_the_whole_response() {
    let served = Served::start(app(&Gate::default()));
    for size in SIZES {
        let mut client = Client::with_small_window(served.address());
        client.send(format!("GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let mut got = Vec::new();
        loop {
            let piece = client.read_bytes(1021);
            if piece.is_empty() {
                break;
            }
            got.extend(piece);
        }
        assert!(got.ends_with(&pattern(size)), "{size} bytes and then the end");
    }
}

#[test]
fn a_large_stream_of_small_chunks_arrives_whole() {
    let small = |_: Request| {
        Body::unfold(0u32, |n| async move {
            (n < 50_000).then(|| (Bytes::from(format!("{n:08}")), n + 1))
        })
    };
    let served = Served::start(Router::new().route("/", get(small)));
    let answer = served.client().get("/");
    let expected: Vec<String> = (0..50_000).map(|n| format!("{n:08}")).collect();
    assert!(answer.body == expected.concat().as_bytes(), "{} bytes", answer.body.len());
}

#[test]
fn a_client_that_half_closes_still_gets_its_response() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    for request in [
        request("/hello").into_bytes(),
        request("/bytes/3000000").into_bytes(),
        upload("/echo", "body"),
    ] {
        let mut client = served.client();
        client.send(&request);
        client.half_close();
        assert_eq!(client.read_response().status, 200);
        client.expect_end();
    }
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    client.half_close();
    client.expect_silence(ms(50));
    gate.open();
    client.read_response().expect(200, "waited");
    client.expect_end();
    served.until_finished(RequestOutcome::Answered, 4);
}

#[test]
fn pipelined_requests_before_a_half_close_are_all_answered() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send(request("/hello").repeat(20));
    client.half_close();
    for _ in 0..20 {
        client.read_response().expect(200, "hello");
    }
    client.expect_end();
}

#[test]
fn a_stream_that_fails_is_seen_to_be_cut_short() {
    let made = |_: Request| {
        Body::try_unfold(0, |n| async move {
            ebbtide::sleep(ms(1)).await;
            if n < 3 { Ok(Some((Bytes::from_static(b"piece"), n + 1))) } else { Err("it broke") }
        })
    };
    let router = Router::new()
        .route("/foreign", get(|_: Request| Body::new(Failing { left: 3 })))
        .route("/made", get(made));
    let served = Served::start(router);
    for (count, path) in (1..).zip(["/foreign", "/made"]) {
        let mut client = served.client();
        client.send(request(path));
        let rest = client.try_read_response().expect_err("no whole response");
        assert!(!rest.bytes.ends_with(b"0\r\n\r\n"), "no final chunk: {rest:?}");
        served.until_finished(RequestOutcome::Cut, count);
    }
}

/// A body whose last frame is an error.
struct Failing {
    left: u32,
}

impl http_body::Body for Failing {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Failing>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return Poll::Ready(Some(Err(std::io::Error::other("the source broke"))));
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"piece")))))
    }
}
