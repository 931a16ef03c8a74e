//! A handler that panics costs its own request and nothing else.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ebbtide::{Body, Limits, Request, RequestOutcome, Response, Router, get, post};
use http_body::{Frame, SizeHint};

use super::client::{Client, Rest, chunked_upload, request, upload};
use super::support::{Gate, Served, app, ms};

/// Panics when dropped.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "stepped on a mine");
    }
}

fn panicking(gate: &Gate) -> Router {
    let gate = gate.clone();
    app(&gate)
        .route("/plain", get(|_: Request| -> Response { panic!("in a plain handler") }))
        .route("/value", get(|_: Request| -> Response { std::panic::panic_any(7) }))
        .route("/early", get(async |_: Request| -> Response { panic!("before an await") }))
        .route(
            "/later",
            get(async |_: Request| -> Response {
                ebbtide::sleep(ms(2)).await;
                panic!("after an await")
            }),
        )
        .route(
            "/upload",
            post(async |mut request: Request| -> Response {
                let _read = request.body_mut().chunk().await;
                panic!("with the body half read")
            }),
        )
        .route(
            "/local",
            get(async |_: Request| {
                let _mine = Mine;
                ebbtide::sleep(ms(2)).await;
                "its own value is dropped badly"
            }),
        )
        .route(
            "/mined",
            get(move |_: Request| {
                let gate = gate.clone();
                async move {
                    let _mine = Mine;
                    gate.pass().await;
                    "never"
                }
            }),
        )
}

/// A server of one worker with another connection at rest and a third one waiting for an answer,
/// both of which must live through what the test does.
struct Neighbours {
    served: Served,
    gate: Gate,
    idle: Client,
    waiting: Client,
}

impl Neighbours {
    fn of(router: Router, gate: Gate) -> Neighbours {
        let served = Served::start(router);
        let mut idle = served.client();
        idle.get("/hello").expect(200, "hello");
        let mut waiting = served.client();
        waiting.send(request("/wait"));
        gate.until_arrived(1);
        Neighbours { served, gate, idle, waiting }
    }

    fn are_fine(mut self) {
        self.idle.get("/hello").expect(200, "hello");
        self.gate.open();
        self.waiting.read_response().expect(200, "waited");
        self.waiting.get("/hello").expect(200, "hello");
        drop((self.idle, self.waiting));
        assert_eq!(self.served.stop().exit_status, 0);
    }
}

#[test]
fn a_panicking_handler_is_answered_500_and_close() {
    let gate = Gate::default();
    let neighbours = Neighbours::of(panicking(&gate), gate);
    let paths = ["/plain", "/value", "/early", "/later", "/local"];
    for path in paths {
        let mut client = neighbours.served.client();
        let answer = client.get(path);
        assert_eq!(answer.status, 500, "{path}: {answer:?}");
        assert!(answer.announces_close(), "{path}: {answer:?}");
        assert!(!answer.text().contains("await"), "what it said stays here: {answer:?}");
        client.expect_end();
    }
    // Answered: the hello, and every panic.
    neighbours.served.until_finished(RequestOutcome::Answered, 1 + paths.len() as u64);
    neighbours.are_fine();
}

#[test]
fn a_handler_that_panics_with_the_body_half_read_is_answered_500() {
    let gate = Gate::default();
    let neighbours = Neighbours::of(panicking(&gate), gate);
    let body = vec![b'x'; 100_000];
    let pieces: Vec<&[u8]> = body.chunks(1000).collect();
    for bytes in [upload("/upload", &body), chunked_upload("/upload", &pieces)] {
        let mut client = neighbours.served.client();
        let _cut_short = client.try_send(bytes);
        let answer = client.read_response();
        assert_eq!(answer.status, 500);
        assert!(answer.announces_close());
    }
    neighbours.are_fine();
}

#[test]
fn requests_before_and_behind_a_panicking_one_are_answered() {
    let gate = Gate::default();
    let neighbours = Neighbours::of(panicking(&gate), gate);
    let mut client = neighbours.served.client();
    let begun = neighbours.served.counts().begun;
    client.send([request("/hello"), request("/plain"), request("/hello")].concat());
    client.read_response().expect(200, "hello");
    let panicked = client.read_response();
    assert_eq!(panicked.status, 500);
    assert!(!panicked.announces_close(), "one more is in hand: {panicked:?}");
    client.read_response().expect(200, "hello");
    assert_eq!(neighbours.served.counts().begun, begun + 3);
    drop(client);
    neighbours.are_fine();
}

/// Panics at its `left`th frame.
struct Bomb {
    left: u32,
    length: Option<u64>,
}

impl http_body::Body for Bomb {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Bomb>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        assert!(self.left > 0, "the body blows up");
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"piece;")))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// Panics after a chunk and a pause.
fn late_bomb(_: Request) -> Body {
    Body::unfold(0, |n| async move {
        ebbtide::sleep(ms(5)).await;
        assert!(n < 2, "the stream blows up");
        Some((Bytes::from_static(b"piece;"), n + 1))
    })
}

fn expect_truncated(client: &mut Client, what: &str) {
    match client.try_read_response() {
        Ok(answer) => assert_eq!(answer.status, 500, "{what}: {answer:?}"),
        Err(Rest { bytes, .. }) => {
            assert!(!bytes.ends_with(b"0\r\n\r\n"), "{what}: no final chunk");
        }
    }
}

#[test]
fn a_panicking_body_never_looks_complete() {
    let gate = Gate::default();
    let router = panicking(&gate)
        .route("/first", get(|_: Request| Body::new(Bomb { left: 0, length: None })))
        .route("/second", get(|_: Request| Body::new(Bomb { left: 2, length: None })))
        .route("/sized", get(|_: Request| Body::new(Bomb { left: 2, length: Some(100) })))
        .route("/late", get(late_bomb));
    let neighbours = Neighbours::of(router, gate);
    for path in ["/first", "/second", "/sized", "/late"] {
        let mut client = neighbours.served.client();
        client.send(request(path));
        expect_truncated(&mut client, path);
    }
    neighbours.served.until("nothing is left of them", |counts| counts.in_flight == 1);
    neighbours.are_fine();
}

#[test]
fn a_stream_that_panics_late_has_sent_what_it_had() {
    let served = Served::start(Router::new().route("/late", get(late_bomb)));
    let mut client = served.client();
    client.send(request("/late"));
    let rest = client.try_read_response().expect_err("no whole response");
    let text = String::from_utf8_lossy(&rest.bytes);
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert_eq!(text.matches("piece;").count(), 2, "{text}");
    assert!(!text.ends_with("0\r\n\r\n"), "{text}");
}

#[test]
fn a_future_that_panics_when_dropped_does_no_harm() {
    let gate = Gate::default();
    let neighbours = Neighbours::of(panicking(&gate), gate.clone());
    for count in 2..5 {
        let mut client = neighbours.served.client();
        client.send(request("/mined"));
        gate.until_arrived(count);
        client.reset();
        neighbours.served.until("it is given up", |counts| counts.in_flight == 1);
    }
    neighbours.served.until_finished(RequestOutcome::Abandoned, 3);
    neighbours.are_fine();
}

#[test]
fn a_future_that_panics_when_its_time_is_up_does_no_harm() {
    let gate = Gate::default();
    let limits = Limits { request_timeout: ms(200), ..Limits::default() };
    let served = Served::limited(limits, panicking(&gate));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let mut client = served.client();
    let answer = client.get("/mined");
    assert!(matches!(answer.status, 500 | 503), "{answer:?}");
    assert!(answer.announces_close());
    client.expect_end();
    idle.get("/hello").expect(200, "hello");
}

#[test]
fn a_stream_that_panics_when_dropped_does_no_harm() {
    let gate = Gate::default();
    let held = gate.clone();
    let router = app(&gate).route(
        "/mined",
        get(move |_: Request| {
            let gate = held.clone();
            Body::unfold(Mine, move |mine| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    Some((Bytes::from_static(b"piece"), mine))
                }
            })
        }),
    );
    let neighbours = Neighbours::of(router, gate.clone());
    let mut client = neighbours.served.client();
    client.send(request("/mined"));
    gate.until_arrived(2);
    client.reset();
    neighbours.served.until("it is given up", |counts| counts.in_flight == 1);
    neighbours.are_fine();
}

#[test]
fn a_hundred_panics_leave_nothing_behind() {
    let served = Served::start(panicking(&Gate::default()));
    for _ in 0..50 {
        assert_eq!(served.client().get("/plain").status, 500);
        assert_eq!(served.client().get("/later").status, 500);
    }
    served.client().get("/hello").expect(200, "hello");
    let report = served.stop();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 101);
}
