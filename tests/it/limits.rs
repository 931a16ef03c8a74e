//! Limits, each at its value and one past it.

use std::time::Duration;

use ebbtide::{ConnectionOutcome, Limits, Options, Request, RequestOutcome, Router, get, post};

use super::client::{Client, chunked_upload, request, upload};
use super::support::{Gate, PATIENCE, Served, app, ms, now, options, pattern, spawn};

/// What one request with these bytes is answered. A connection whose close is not announced must
/// go on, and one that sent no request must be closed.
fn status_of(served: &Served, bytes: impl AsRef<[u8]>) -> u16 {
    let mut client = served.client();
    client.send(bytes);
    let answer = client.read_response();
    if answer.announces_close() {
        client.expect_end();
    } else {
        assert!(!matches!(answer.status, 400 | 408 | 414 | 431), "{answer:?}");
        client.get("/livez").expect(200, "ok\n");
    }
    answer.status
}

#[test]
fn the_default_limits_are_on() {
    let limits = Limits::default();
    assert_eq!(limits.head_bytes_max, 32 * 1024);
    assert_eq!(limits.header_fields_max, 100);
    assert_eq!(limits.request_line_bytes_max, 8 * 1024);
    assert_eq!(limits.body_bytes_max, 1024 * 1024);
    assert_eq!(limits.head_timeout, Duration::from_secs(10));
    assert_eq!(limits.first_byte_timeout, Duration::from_secs(10));
    assert_eq!(limits.body_stall_timeout, Duration::from_secs(20));
    assert_eq!(limits.body_rate_min, 500);
    assert_eq!(limits.keep_alive_timeout, Duration::from_secs(75));
    assert_eq!(limits.write_stall_timeout, Duration::from_secs(30));
    assert_eq!(limits.request_timeout, Duration::from_secs(30));
}

/// A head of exactly `size` bytes.
fn head_of(size: usize) -> String {
    let frame = "GET /hello HTTP/1.1\r\nHost: x\r\nX-Pad: \r\n\r\n".len();
    format!("GET /hello HTTP/1.1\r\nHost: x\r\nX-Pad: {}\r\n\r\n", "p".repeat(size - frame))
}

#[test]
fn a_head_may_be_as_large_as_its_limit() {
    let served = Served::start(app(&Gate::default()));
    assert_eq!(status_of(&served, head_of(32 * 1024)), 200);
    assert_eq!(status_of(&served, head_of(32 * 1024 + 1)), 431);
    assert_eq!(status_of(&served, head_of(320 * 1024)), 431);
    // Without an end.
    assert_eq!(status_of(&served, &head_of(40_000)[..=32 * 1024]), 431);
    for bytes_max in [100, 1000, 8192, 100_000] {
        let limits = Limits { head_bytes_max: bytes_max, ..Limits::default() };
        let served = Served::limited(limits, app(&Gate::default()));
        assert_eq!(status_of(&served, head_of(bytes_max)), 200, "{bytes_max}");
        assert_eq!(status_of(&served, head_of(bytes_max + 1)), 431, "{bytes_max}");
    }
}

#[test]
fn a_later_head_has_the_same_limit() {
    let served = Served::start(app(&Gate::default()));
    for (size, status) in [(32 * 1024, 200), (32 * 1024 + 1, 431)] {
        let mut client = served.client();
        client.get("/hello").expect(200, "hello");
        client.send(head_of(size));
        assert_eq!(client.read_response().status, status);
        // And within one segment.
        let mut client = served.client();
        client.send(request("/hello") + &head_of(size));
        client.read_response().expect(200, "hello");
        assert_eq!(client.read_response().status, status);
    }
}

/// A head with exactly `count` header fields.
fn fields_of(count: usize) -> String {
    let more: Vec<String> = (1..count).map(|n| format!("X-{n}: {n}\r\n")).collect();
    format!("GET /hello HTTP/1.1\r\nHost: x\r\n{}\r\n", more.concat())
}

#[test]
fn a_head_may_have_as_many_fields_as_its_limit() {
    let served = Served::start(app(&Gate::default()));
    assert_eq!(status_of(&served, fields_of(100)), 200);
    assert_eq!(status_of(&served, fields_of(101)), 431);
    for fields_max in [1, 7, 150] {
        let limits = Limits { header_fields_max: fields_max, ..Limits::default() };
        let served = Served::limited(limits, app(&Gate::default()));
        assert_eq!(status_of(&served, fields_of(fields_max)), 200, "{fields_max}");
        assert_eq!(status_of(&served, fields_of(fields_max + 1)), 431, "{fields_max}");
    }
}

/// A request line of exactly `size` bytes (RFC 9112, 3: without its line end), then `line_end`.
fn line_of(size: usize, line_end: &str) -> String {
    let query = "q".repeat(size - "GET /hello? HTTP/1.1".len());
    format!("GET /hello?{query} HTTP/1.1{line_end}Host: x\r\n\r\n")
}

#[test]
fn a_request_line_may_be_as_long_as_its_limit() {
    let served = Served::start(app(&Gate::default()));
    for line_end in ["\r\n", "\n"] {
        assert_eq!(status_of(&served, line_of(8 * 1024, line_end)), 200, "{line_end:?}");
        assert_eq!(status_of(&served, line_of(8 * 1024 + 1, line_end)), 414, "{line_end:?}");
    }
}

#[test]
fn a_request_line_without_an_end_is_too_long_at_its_limit() {
    let served = Served::start(app(&Gate::default()));
    let line = format!("GET /{}", "a".repeat(8 * 1024));
    assert_eq!(status_of(&served, line), 414);
}

#[test]
fn a_body_may_be_as_large_as_its_limit() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    for (size, status) in [(1000, 200), (1001, 413), (100_000, 413)] {
        let body = pattern(size);
        for path in ["/echo", "/count"] {
            assert_eq!(status_of(&served, upload(path, &body)), status, "{size} by length");
            for chunk in [1, 100, 999, 1000] {
                let chunks: Vec<&[u8]> = body.chunks(chunk).collect();
                let bytes = chunked_upload(path, &chunks);
                assert_eq!(status_of(&served, bytes), status, "{size} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_body_over_its_limit_is_413_whatever_the_handler_answers() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let ignoring = post(async |mut request: Request| {
        while let Some(Ok(_)) = request.body_mut().chunk().await {}
        "all is well"
    });
    let served = Served::limited(limits, Router::new().route("/", ignoring));
    let body = pattern(1001);
    assert_eq!(status_of(&served, upload("/", &body)), 413);
    assert_eq!(status_of(&served, chunked_upload("/", &[&body])), 413);
    assert_eq!(status_of(&served, upload("/", &body[..1000])), 200);
}

#[test]
fn a_route_may_have_its_own_body_limit() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let length = async |mut request: Request| request.bytes().await.map(|b| b.len().to_string());
    let router = Router::new()
        .route("/small", post(length).body_bytes_max(10))
        .route("/large", post(length).body_bytes_max(5000))
        .route("/usual", post(length));
    let served = Served::limited(limits, router);
    for (path, limit) in [("/small", 10), ("/large", 5000), ("/usual", 1000)] {
        for (size, status) in [(limit, 200), (limit + 1, 413)] {
            let body = pattern(size);
            assert_eq!(status_of(&served, upload(path, &body)), status, "{path} {size}");
            let chunks: Vec<&[u8]> = body.chunks(7).collect();
            let bytes = chunked_upload(path, &chunks);
            assert_eq!(status_of(&served, bytes), status, "{path} {size} in chunks");
        }
    }
}

#[test]
fn a_413_can_be_read_while_the_client_is_still_sending() {
    const FLOOD: usize = 50_000_000;
    let served = Served::start(app(&Gate::default()));
    let heads = [
        format!("Content-Length: {FLOOD}\r\n\r\n"),
        format!("Transfer-Encoding: chunked\r\n\r\n{FLOOD:x}\r\n"),
    ];
    for head in heads {
        for path in ["/echo", "/count"] {
            let mut client = served.client();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{head}"));
            let mut writer = client.another();
            let sending = spawn("flood", move || {
                let piece = vec![b'x'; 100_000];
                (0..FLOOD / piece.len()).take_while(|_| writer.try_send(&piece).is_ok()).count()
            });
            let answer = client.read_response();
            answer.expect(413, "Payload Too Large");
            assert!(answer.announces_close());
            sending.join().expect("the writer does not panic");
        }
    }
    served.client().get("/hello").expect(200, "hello");
    let report = served.stop();
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 5);
}

#[test]
fn connections_over_the_limit_are_told_to_come_back() {
    let options = Options { max_connections: Some(2), ..options() };
    let served = Served::with(options, app(&Gate::default()));
    let mut first = served.client();
    let mut second = served.client();
    first.get("/hello").expect(200, "hello");
    second.get("/hello").expect(200, "hello");
    for _ in 0..3 {
        let mut third = served.client();
        third.read_response().expect_refusal();
        third.expect_end();
    }
    served.until("the third is gone", |counts| counts.open() == 2);
    first.get("/hello").expect(200, "hello");
    drop(first);
    served.until("the first is gone", |counts| counts.open() == 1);
    let mut fourth = served.client();
    fourth.get("/hello").expect(200, "hello");
    second.get("/hello").expect(200, "hello");
    drop((second, fourth));
    assert_eq!(served.stop().counts.closed_as(ConnectionOutcome::Shed), 3);
}

#[test]
fn requests_over_the_limit_in_flight_are_refused() {
    let gate = Gate::default();
    let limits = Limits { in_flight_max: 2, ..Limits::default() };
    let served = Served::limited(limits, app(&gate));
    let mut waiting: Vec<Client> = (0..2).map(|_| served.client()).collect();
    for client in &mut waiting {
        client.send(request("/wait"));
    }
    gate.until_arrived(2);
    let mut third = served.client();
    third.get("/hello").expect_refusal();
    third.expect_end();
    served.until_finished(RequestOutcome::Refused, 1);
    gate.open();
    for client in &mut waiting {
        client.read_response().expect(200, "waited");
    }
    served.until_finished(RequestOutcome::Answered, 2);
    served.client().get("/hello").expect(200, "hello");
    drop((waiting, third));
    let report = served.stop();
    assert_eq!(report.exit_status, 0, "what was refused before the shutdown is not its doing");
    assert_eq!((report.refused, report.lost.len()), (0, 0), "{:?}", report.lost);
}

#[test]
fn a_response_that_is_refused_does_not_wait_for_the_body() {
    let gate = Gate::default();
    let limits = Limits { in_flight_max: 1, ..Limits::default() };
    let served = Served::limited(limits, app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut second = served.client();
    let began = now();
    second.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbeginning");
    second.read_response().expect_refusal();
    assert!(now() - began < ms(500).min(PATIENCE));
    gate.open();
    waiting.read_response().expect(200, "waited");
}

#[test]
fn a_slow_route_shows_that_the_limit_counts_requests_and_not_connections() {
    let limits = Limits { in_flight_max: 1, ..Limits::default() };
    let served = Served::limited(limits, Router::new().route("/", get(|_: Request| "fine")));
    let mut clients: Vec<Client> = (0..20).map(|_| served.client()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            client.get("/").expect(200, "fine");
        }
    }
}
