//! Deadlines, made short. Each begins where the limit says, and nothing that the client dribbles
//! extends it.

use bytes::Bytes;
use ebbtide::{
    Body, ConnectionOutcome, ConnectionState, Limits, Request, RequestOutcome, Router, get, post,
};

use super::client::{Client, End, request, upload};
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now, pace, pattern};

#[test]
fn a_client_that_says_nothing_is_told_408() {
    let limits = Limits { first_byte_timeout: ms(400), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    served.client().get("/hello").expect(200, "hello");
    let began = now();
    let mut client = served.client();
    let answer = client.read_response();
    assert_took(began, ms(400));
    assert_eq!(answer.status, 408);
    assert!(answer.announces_close());
    client.expect_end();
    served.until("it timed out", |counts| counts.closed_as(ConnectionOutcome::TimedOut) == 1);
}

/// Sends a byte every 50 ms until there is an answer.
fn dribble(client: &mut Client, byte: u8) {
    while !client.hears_within(ms(50)) {
        client.send([byte]);
    }
}

#[test]
fn a_head_has_one_deadline_however_it_dribbles() {
    let limits = Limits { head_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    let began = now();
    client.send("GET /hello HTTP/1.1\r\nX-Slow: ");
    dribble(&mut client, b'x');
    assert_took(began, ms(500));
    let answer = client.read_response();
    assert_eq!(answer.status, 408);
    assert!(answer.announces_close());
    client.expect_end();
}

#[test]
fn empty_lines_before_a_head_are_part_of_it() {
    let limits = Limits { head_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    let began = now();
    client.send("\r\n");
    dribble(&mut client, b'\n');
    assert_took(began, ms(500));
    assert_eq!(client.read_response().status, 408);
}

#[test]
fn the_head_of_a_later_request_has_the_same_deadline() {
    let limits = Limits { head_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    let began = now();
    client.send("G");
    dribble(&mut client, b'G');
    assert_took(began, ms(500));
    assert_eq!(client.read_response().status, 408);
    client.expect_end();
    // Also when its beginning came with the request before.
    let mut client = served.client();
    let began = now();
    client.send(request("/hello") + "GET /hel");
    client.read_response().expect(200, "hello");
    assert_eq!(client.read_response().status, 408);
    assert_took(began, ms(500));
}

#[test]
fn a_head_may_take_its_time_within_the_deadline() {
    let limits =
        Limits { first_byte_timeout: ms(300), head_timeout: ms(5000), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.send("GET /hello HTTP/1.1\r\n");
    // Longer than the first byte may take.
    client.expect_silence(ms(600));
    client.send("Host: x\r\n\r\n");
    client.read_response().expect(200, "hello");
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let limits = Limits { keep_alive_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    client.expect_silence(ms(200));
    let began = now();
    client.get("/hello").expect(200, "hello");
    client.expect_end();
    assert_took(began, ms(500));
    served.until("it is closed", |counts| counts.closed_as(ConnectionOutcome::ClosedIdle) == 1);
}

#[test]
fn a_body_that_stalls_is_told_408() {
    let limits = Limits { body_stall_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let heads = ["Content-Length: 100\r\n\r\nfour", "Transfer-Encoding: chunked\r\n\r\n64\r\nfour"];
    for head in heads {
        for path in ["/echo", "/count"] {
            let mut client = served.client();
            let began = now();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: x\r\n{head}"));
            let answer = client.read_response();
            assert_took(began, ms(500));
            assert_eq!(answer.status, 408);
            assert!(answer.announces_close());
            client.expect_end();
        }
    }
}

#[test]
fn a_body_that_never_comes_after_100_continue_is_told_408() {
    let limits = Limits { body_stall_timeout: ms(400), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    );
    assert_eq!(client.read_response().status, 100);
    assert_eq!(client.read_response().status, 408);
}

#[test]
fn a_body_that_moves_is_ruled_by_its_own_limits_alone() {
    let limits =
        Limits { body_stall_timeout: ms(1200), request_timeout: ms(1200), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.send("POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n");
    let began = now();
    for _ in 0..20 {
        assert!(!client.hears_within(ms(100)), "the upload goes on");
        client.send("x");
    }
    client.read_response().expect(200, "20");
    assert!(now() - began >= ms(2000), "longer than either limit");
}

#[test]
fn a_handler_that_does_not_want_the_body_yet_lets_it_wait() {
    let gate = Gate::default();
    let late = gate.clone();
    let limits = Limits { body_stall_timeout: ms(300), ..Limits::default() };
    let router = Router::new().route(
        "/",
        post(move |mut request: Request| {
            let late = late.clone();
            async move {
                late.pass().await;
                request.bytes().await.map(|bytes| bytes.len().to_string())
            }
        }),
    );
    let served = Served::limited(limits, router);
    let mut client = served.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nfour");
    gate.until_arrived(1);
    client.expect_silence(ms(800));
    gate.open();
    client.send("more");
    client.read_response().expect(200, "8");
}

#[test]
fn a_body_must_keep_its_rate_once_ten_seconds_have_passed() {
    let served = Served::start(app(&Gate::default()));
    let slow = served.client();
    let steady = served.client();
    let at_rate = |mut client: Client, bytes: usize| {
        move || {
            let began = now();
            client.send("POST /count HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n");
            while now() - began < ms(12_000) && !client.hears_within(ms(100)) {
                client.send(vec![b'x'; bytes]);
            }
            (now() - began, client)
        }
    };
    // 100 and 1000 bytes per second; the limit is 500.
    let slow = super::support::spawn("slow", at_rate(slow, 10));
    let steady = super::support::spawn("steady", at_rate(steady, 100));
    let (took, mut client) = slow.join().expect("no panic");
    assert!((ms(10_000)..ms(10_000) + SLACK).contains(&took), "it was cut after {took:?}");
    let answer = client.read_response();
    assert_eq!(answer.status, 408);
    assert!(answer.announces_close());
    let (took, mut client) = steady.join().expect("no panic");
    assert!(took >= ms(12_000), "a steady client is left alone, not cut after {took:?}");
    client.expect_silence(ms(10));
}

#[test]
fn a_client_that_takes_nothing_is_reset() {
    let limits = Limits { write_stall_timeout: ms(600), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()).route("/endless", get(endless)));
    for path in ["/bytes/20000000", "/endless"] {
        let before = served.counts().finished_as(RequestOutcome::Cut);
        let mut client = Client::with_small_window(served.address());
        let began = now();
        client.send(request(path));
        served.until_finished(RequestOutcome::Cut, before + 1);
        assert_took(began, ms(600));
        let rest = client.read_to_end();
        assert_eq!(rest.end, End::Reset, "a plain close would leave the kernel with the queue");
        assert!(rest.bytes.len() < 20_000_000);
    }
    let counts = served.stop().counts;
    assert_eq!(counts.closed_as(ConnectionOutcome::TimedOut), 2);
}

fn endless(_: Request) -> Body {
    Body::unfold(
        Bytes::from(pattern(64 * 1024)),
        |chunk| async move { Some((chunk.clone(), chunk)) },
    )
}

#[test]
fn a_client_that_takes_little_but_goes_on_is_not_reset() {
    let limits = Limits { write_stall_timeout: ms(1000), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = Client::with_small_window(served.address());
    let size = 6_000_000;
    client.send(format!("GET /bytes/{size} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    served.until_in_state(ConnectionState::Streaming, 1);
    let began = now();
    let mut got = Vec::new();
    while now() - began < ms(2500) {
        // Far less than the send buffer holds: the kernel tells of free space in coarse steps.
        got.extend(client.read_bytes(100_000));
        pace(ms(100));
    }
    let rest = client.read_to_end();
    got.extend(rest.bytes);
    assert!(got.ends_with(&pattern(size)), "{:?} after {} bytes", rest.end, got.len());
}

#[test]
fn a_handler_that_takes_too_long_is_answered_for() {
    let gate = Gate::default();
    let limits = Limits { request_timeout: ms(500), ..Limits::default() };
    let served = Served::limited(limits, app(&gate));
    let mut client = served.client();
    let began = now();
    client.send(request("/wait"));
    let answer = client.read_response();
    assert_took(began, ms(500));
    answer.expect_refusal();
    client.expect_end();
    served.until("nothing is in flight", |counts| counts.in_flight == 0);
    // Its future is gone: opening the gate wakes nobody.
    gate.open();
    served.client().get("/wait").expect(200, "waited");
}

#[test]
fn the_request_time_begins_anew_with_the_end_of_the_body() {
    let gate = Gate::default();
    let late = gate.clone();
    let limits = Limits { request_timeout: ms(700), ..Limits::default() };
    let router = Router::new().route(
        "/",
        post(move |mut request: Request| {
            let late = late.clone();
            async move {
                let bytes = request.bytes().await;
                late.pass().await;
                bytes.map(|bytes| bytes.len().to_string())
            }
        }),
    );
    let served = Served::limited(limits, router);
    let mut client = served.client();
    let bytes = upload("/", "four");
    client.send(&bytes[..bytes.len() - 1]);
    client.expect_silence(ms(500));
    let began = now();
    client.send("r");
    client.read_response().expect_refusal();
    assert_took(began, ms(700));
}

#[test]
fn a_stream_may_pause_longer_than_a_handler_may_take() {
    let gate = Gate::default();
    let limits = Limits {
        request_timeout: ms(300),
        write_stall_timeout: ms(300),
        body_stall_timeout: ms(300),
        keep_alive_timeout: ms(300),
        ..Limits::default()
    };
    let served = Served::limited(limits, app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(2);
    assert!(client.hears_within(ms(5000)));
    served.until("it is streaming", |c| c.in_state(ConnectionState::Streaming) == 1);
    let began = now();
    while now() - began < ms(1000) {
        assert_eq!(served.counts().in_state(ConnectionState::Streaming), 1, "it goes on");
        pace(ms(50));
    }
    gate.open();
    client.read_response().expect(200, super::support::STREAMED);
}
