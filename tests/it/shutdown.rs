//! The drain, by the state in which the signal finds a connection: working, or in the middle of a
//! head.

use ebbtide::{ConnectionOutcome, ConnectionState, Phase, RequestOutcome, Signal};

use super::client::{Client, chunked_upload, request, upload};
use super::support::{Gate, SLACK, STREAMED, Served, app, ms, now, pattern};

#[test]
fn a_server_with_nothing_to_do_stops_at_once() {
    let served = Served::start(app(&Gate::default()));
    served.client().get("/hello").expect(200, "hello");
    served.until("the client is gone", |counts| counts.open() == 0);
    assert!(!served.handle.is_shutting_down());
    assert!(served.handle.finished_within(ms(1)).is_none());
    assert_eq!(served.phase(), Phase::Running);
    let began = now();
    served.begin_shutdown();
    assert!(served.handle.is_shutting_down());
    let handle = served.handle.clone();
    let report = served.report();
    assert!(now() - began < SLACK, "it took {:?}", now() - began);
    assert_eq!(report.exit_status, 0);
    assert_eq!((report.refused, report.cut, report.lost.len()), (0, 0, 0));
    assert_eq!(report.active_connections_at_shutdown, 0);
    assert!(report.duration() < SLACK && report.budget_left + SLACK > report.budget);
    assert_eq!(handle.snapshot().phase, Phase::Stopped);
    // Too late for anything.
    handle.shutdown();
    handle.signal_handler(Signal::Terminate);
    assert_eq!(handle.finished_within(ms(1)), Some(report));
}

#[test]
fn a_request_in_flight_is_answered_and_announces_the_close() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    answer.expect(200, "waited");
    assert!(answer.announces_close());
    client.expect_end();
    let began = now();
    drop(client);
    let report = served.report();
    assert!(now() - began < SLACK, "it is gone as soon as its last client is");
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.active_connections_at_shutdown, 1);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 1);
    assert_eq!(report.counts.closed_as(ConnectionOutcome::ClosedAfterResponse), 1);
    assert!(report.phases.iter().all(|(phase, _)| *phase != Phase::Cancelling));
}

#[test]
fn an_upload_in_progress_is_finished_and_answered() {
    let served = Served::start(app(&Gate::default()));
    let body = pattern(200_000);
    let mut by_length = served.client();
    let bytes = upload("/echo", &body);
    by_length.send(&bytes[..100_000]);
    let mut chunked = served.client();
    let chunks: Vec<&[u8]> = body.chunks(1000).collect();
    let chunked_bytes = chunked_upload("/echo", &chunks);
    chunked.send(&chunked_bytes[..100_000]);
    served.until_in_state(ConnectionState::Handling, 2);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    by_length.send(&bytes[100_000..]);
    let answer = by_length.read_response();
    assert!(answer.body == body && answer.announces_close());
    by_length.expect_end();
    chunked.send(&chunked_bytes[100_000..]);
    assert!(chunked.read_response().body == body);
    drop((by_length, chunked));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn an_upload_in_chunks_that_was_read_to_its_end_announces_the_close() {
    let gate = Gate::default();
    let late = gate.clone();
    let router = app(&gate).route(
        "/late",
        ebbtide::post(move |mut request: ebbtide::Request| {
            let late = late.clone();
            async move {
                let bytes = request.bytes().await.map(|bytes| bytes.len());
                late.pass().await;
                format!("{:?}", bytes.ok())
            }
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    client.send(chunked_upload("/late", &[b"bo", b"dy"]));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    answer.expect(200, "Some(4)");
    assert!(answer.announces_close(), "nothing is behind it: {answer:?}");
    client.expect_end();
}

#[test]
fn a_half_read_first_head_is_completed_answered_and_closed() {
    let served = Served::start(app(&Gate::default()));
    let text = request("/hello");
    let mut clients: Vec<(usize, Client)> =
        [1, 20, text.len() - 1].into_iter().map(|cut| (cut, served.client())).collect();
    for (cut, client) in &mut clients {
        client.send(&text[..*cut]);
    }
    served.until_in_state(ConnectionState::ReadingHead, 3);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    for (cut, client) in &mut clients {
        client.send(&text[*cut..]);
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close());
        client.expect_end();
    }
    drop(clients);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_half_read_later_head_is_completed_answered_and_closed() {
    let served = Served::start(app(&Gate::default()));
    let text = request("/hello");
    let mut warm = served.client();
    warm.get("/hello").expect(200, "hello");
    let mut with_it = served.client();
    with_it.send([text.as_bytes(), &text.as_bytes()[..7]].concat());
    with_it.read_response().expect(200, "hello");
    let mut after_chunks = served.client();
    after_chunks.send([&chunked_upload("/echo", &[b"body"])[..], &text.as_bytes()[..7]].concat());
    after_chunks.read_response().expect(200, "body");
    warm.send(&text[..7]);
    served.until_in_state(ConnectionState::ReadingHead, 3);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    let mut clients = [warm, with_it, after_chunks];
    for client in &mut clients {
        client.send(&text[7..]);
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close());
        client.expect_end();
    }
    drop(clients);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn pipelined_requests_in_hand_are_all_answered_and_only_the_last_announces_the_close() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send([request("/wait"), request("/hello").repeat(30), request("/bytes/9")].concat());
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let first = client.read_response();
    first.expect(200, "waited");
    assert!(!first.announces_close(), "what is behind it would be lost");
    for _ in 0..30 {
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(!answer.announces_close());
    }
    let last = client.read_response();
    assert_eq!(last.body, pattern(9));
    assert!(last.announces_close());
    client.expect_end();
    drop(client);
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 32);
}

#[test]
fn pipelined_uploads_in_hand_are_all_answered() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    let mut all = request("/wait").into_bytes();
    for n in 0..10 {
        let body = format!("body {n}");
        all.extend(match n % 3 {
            0 => upload("/echo", &body),
            _ => chunked_upload("/echo", &[body.as_bytes()]),
        });
    }
    client.send(all);
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    client.read_response().expect(200, "waited");
    for n in 0..10 {
        client.read_response().expect(200, &format!("body {n}"));
    }
    drop(client);
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 11);
}

#[test]
fn half_a_request_behind_the_one_in_progress_is_completed_and_answered() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    let next = request("/hello");
    client.send(request("/wait") + &next[..9]);
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    answer.expect(200, "waited");
    assert!(!answer.announces_close(), "a next request has begun");
    client.send(&next[9..]);
    let answer = client.read_response();
    answer.expect(200, "hello");
    assert!(answer.announces_close());
    client.expect_end();
}

#[test]
fn a_stream_finishes_and_its_connection_takes_one_more_request() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(2);
    assert!(client.hears_within(ms(5000)));
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    assert!(!answer.announces_close(), "its head came before the shutdown");
    answer.expect(200, STREAMED);
    // It was not told of the close and may rightly go on.
    let answer = client.get("/hello");
    answer.expect(200, "hello");
    assert!(answer.announces_close());
    client.expect_end();
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_stream_that_begins_in_the_drain_announces_the_close_and_finishes() {
    let gate = Gate::default();
    let slow = gate.clone();
    let router = app(&gate).route(
        "/late-stream",
        ebbtide::get(move |_: ebbtide::Request| {
            let slow = slow.clone();
            async move {
                slow.pass().await;
                super::support::gated_stream(slow)
            }
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    client.send(request("/late-stream"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    assert!(answer.announces_close());
    answer.expect(200, STREAMED);
    client.expect_end();
}

#[test]
fn a_slow_reader_gets_all_of_its_response() {
    let served = Served::start(app(&Gate::default()));
    let size = 5 << 20;
    let mut keep_alive = Client::with_small_window(served.address());
    keep_alive.send(request(&format!("/bytes/{size}")));
    let mut closing = Client::with_small_window(served.address());
    let path = format!("/bytes/{size}");
    closing.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    served.until_in_state(ConnectionState::Streaming, 2);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    for client in [&mut keep_alive, &mut closing] {
        assert!(client.read_response().body == pattern(size));
    }
    drop((keep_alive, closing));
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 2);
}

#[test]
fn a_half_closed_client_gets_its_response_in_the_drain() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    client.half_close();
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    client.read_response().expect(200, "waited");
    client.expect_end();
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn what_a_client_sends_too_late_is_counted() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    assert!(client.read_response().announces_close());
    client.expect_end();
    let late = request("/hello");
    client.send(&late);
    served.until("it is counted", |counts| counts.late_bytes == late.len() as u64);
    drop(client);
    let report = served.report();
    assert_eq!(report.counts.late_bytes, late.len() as u64);
    assert_eq!((report.exit_status, report.counts.begun), (0, 1));
}
