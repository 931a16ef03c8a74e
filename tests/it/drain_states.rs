//! The drain, by the state in which the signal finds a connection: what is half sent, half taken or
//! not looked at yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ebbtide::{
    AtDeadline, Body, ConnectionState, InFlight, Options, Phase, Policy, Request, RequestOutcome,
    Router, Signal, Workers, get, post,
};

use super::client::{Client, End, chunked_upload, request, upload};
use super::support::{
    Gate, SIGNAL_ECHO, SLACK, STREAMED, Served, app, assert_took, ms, now, options, pace, pattern,
    wait_until,
};

/// Draining lasts 1.2 s; cancelling 0.4 s, after half of which requests are refused.
fn two_seconds() -> Policy {
    Policy { timeout: ms(2000), ..Policy::default() }
}

const EXPECTING: &str = "HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";
const INTERIM: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[test]
fn a_client_that_waits_for_100_continue_may_send_its_body_in_the_drain() {
    let gate = Gate::default();
    let late = gate.clone();
    let router = app(&gate).route(
        "/late-echo",
        post(move |mut request: Request| {
            let late = late.clone();
            async move {
                late.pass().await;
                request.bytes().await.map(Body::from)
            }
        }),
    );
    let served = Served::start(router);
    // One has been told to go on, the other will be.
    let mut told = served.client();
    told.send(format!("POST /echo {EXPECTING}"));
    assert_eq!(told.read_bytes(INTERIM.len()), INTERIM);
    let mut untold = served.client();
    untold.send(format!("POST /late-echo {EXPECTING}"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    untold.expect_silence(ms(100));
    gate.open();
    assert_eq!(untold.read_bytes(INTERIM.len()), INTERIM);
    for mut client in [told, untold] {
        client.send("body");
        let answer = client.read_response();
        assert!(answer.expect(200, "body").announces_close());
        client.expect_end();
    }
    let report = served.report();
    assert_eq!((report.exit_status, report.refused, report.cut), (0, 0, 0));
}

#[test]
fn a_client_that_was_told_to_continue_and_does_not_is_refused_at_the_end() {
    let served = Served::ending(two_seconds(), app(&Gate::default()));
    let mut client = served.client();
    client.send(format!("POST /echo {EXPECTING}"));
    assert_eq!(client.read_bytes(INTERIM.len()), INTERIM);
    let began = now();
    served.begin_shutdown();
    client.read_response().expect_refusal();
    assert_took(began, ms(1400));
    client.expect_end();
    drop(client);
    let report = served.report();
    assert_eq!((report.exit_status, report.refused, report.cut), (3, 1, 0));
    assert_eq!(report.lost[0].waited_for, "the request body");
}

#[test]
fn uploads_that_dribble_through_the_drain_are_answered() {
    let served = Served::start(app(&Gate::default()));
    let body = pattern(5000);
    let chunks: Vec<&[u8]> = body.chunks(100).collect();
    let whole = [upload("/echo", &body), chunked_upload("/echo", &chunks)];
    let mut clients = [served.client(), served.client()];
    for (client, whole) in clients.iter_mut().zip(&whole) {
        client.send(&whole[..200]);
    }
    served.until_in_state(ConnectionState::Handling, 2);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    for step in 0..10 {
        for (client, whole) in clients.iter_mut().zip(&whole) {
            let rest = &whole[200..];
            let piece = rest.len().div_ceil(10);
            client.send(&rest[piece * step..rest.len().min(piece * (step + 1))]);
        }
        pace(ms(20));
    }
    for mut client in clients {
        assert!(client.read_response().body == body);
    }
    assert_eq!(served.report().exit_status, 0);
}

/// Ignores its body and answers with `n` bytes.
fn deaf(gate: &Gate) -> Router {
    let bytes = |request: Request| {
        let count = request.param("n").and_then(|n| n.parse().ok()).expect("a number");
        Body::from(pattern(count))
    };
    app(gate).route("/deaf/{n}", post(bytes).body_bytes_max(u64::MAX))
}

#[test]
fn a_slow_reader_whose_request_is_not_read_to_its_end_gets_its_whole_response() {
    // Smaller and larger than what the kernel takes for a client that reads nothing.
    for size in [2 << 20, 8 << 20] {
        let served = Served::start(deaf(&Gate::default()));
        // What is unread at a close makes the kernel reset the socket and drop its send queue.
        let path = format!("/deaf/{size}");
        let mut by_length = Client::with_small_window(served.address());
        by_length.send(&upload(&path, pattern(4_000_000))[..300_000]);
        let mut chunked = Client::with_small_window(served.address());
        chunked.send(&chunked_upload(&path, &[&pattern(4_000_000)])[..300_000]);
        served.until("both are begun", |counts| counts.begun == 2);
        served.begin_shutdown();
        served.until_phase(Phase::Draining);
        for mut client in [by_length, chunked] {
            // Slowly: it takes some, pauses, and takes some more.
            for _ in 0..10 {
                assert!(client.hears_within(ms(5000)));
                pace(ms(20));
            }
            let answer = client.read_response();
            assert!(answer.body == pattern(size), "all of it, as it was");
        }
        let report = served.report();
        assert_eq!((report.exit_status, report.cut, report.refused), (0, 0, 0));
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 2);
    }
}

#[test]
fn a_slow_reader_with_further_requests_in_the_kernel_gets_all_answers() {
    for size in [2 << 20, 8 << 20] {
        let served = Served::start(app(&Gate::default()));
        let mut client = Client::with_small_window(served.address());
        client.send(request(&format!("/bytes/{size}")));
        served.until("it is begun", |counts| counts.begun == 1);
        client.send(request("/hello").repeat(50));
        if size == 2 << 20 {
            served.until("the kernel has taken them", |counts| counts.begun == 51);
        }
        served.begin_shutdown();
        served.until_phase(Phase::Draining);
        let answer = client.read_response();
        assert!(answer.body == pattern(size) && !answer.announces_close());
        for _ in 0..49 {
            assert!(!client.read_response().expect(200, "hello").announces_close());
        }
        client.read_response().expect(200, "hello");
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 51);
    }
}

#[test]
fn three_requests_of_one_segment_are_answered_whenever_the_signal_comes() {
    // While the first waits, while none was looked at, and with the first half answered.
    for workers in [1, 0] {
        let gate = Gate::default();
        let workers = Workers::Count(workers);
        let served = Served::with(Options { workers, ..options() }, app(&gate));
        let mut waiting = served.client();
        waiting.send(request("/wait") + &request("/bytes/3") + &request("/hello"));
        gate.until_arrived(1);
        let mut streaming = served.client();
        streaming.send(request("/stream") + &request("/bytes/3") + &request("/hello"));
        gate.until_arrived(2);
        let mut unseen = served.client();
        served.until("it is accepted", |counts| counts.opened == 3);
        let mut blocking = served.client();
        blocking.send(request("/block"));
        gate.until_arrived(3);
        unseen.send(request("/hello") + &request("/bytes/3") + &request("/hello"));
        served.handle.shutdown();
        if workers != Workers::Count(0) {
            // Whose control is not blocked.
            served.until_phase(Phase::Draining);
        }
        gate.open();
        blocking.read_response().expect(200, "blocked");
        for (client, first) in
            [(&mut waiting, "waited"), (&mut streaming, STREAMED), (&mut unseen, "hello")]
        {
            client.read_response().expect(200, first);
            assert_eq!(client.read_response().body, pattern(3));
            let last = client.read_response();
            assert!(last.expect(200, "hello").announces_close(), "{first}: {last:?}");
            client.expect_end();
        }
        drop((waiting, streaming, unseen, blocking));
        let report = served.report();
        assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 10);
    }
}

#[test]
fn a_request_that_arrived_behind_one_in_progress_is_answered() {
    // It came in a segment of its own, before the signal: nobody has looked at it yet.
    for (second, is_half_closed) in [
        (request("/hello"), false),
        (request("/hello"), true),
        (request("/hello")[..9].to_owned(), false),
    ] {
        let gate = Gate::default();
        let served = Served::start(app(&gate));
        let mut client = served.client();
        client.send(request("/wait"));
        gate.until_arrived(1);
        client.send(&second);
        if is_half_closed {
            client.half_close();
        }
        // A round trip on another connection: what was sent before it has been announced.
        served.client().get("/hello").expect(200, "hello");
        served.begin_shutdown();
        served.until_phase(Phase::Draining);
        gate.open();
        client.read_response().expect(200, "waited");
        if second.len() == 9 {
            client.send(&request("/hello")[9..]);
        }
        client.read_response().expect(200, "hello");
        client.expect_end();
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
    }
}

#[test]
fn a_request_that_arrives_in_the_drain_behind_one_in_progress_is_answered() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    client.send(request("/hello"));
    // A turn of the worker later it has been announced.
    client.expect_silence(ms(50));
    gate.open();
    client.read_response().expect(200, "waited");
    client.read_response().expect(200, "hello");
    client.expect_end();
    drop(client);
    assert_eq!(served.report().counts.late_bytes, 0);
}

#[test]
fn a_stream_announced_or_not_is_finished_with_what_is_behind_it() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut before = served.client();
    before.send(request("/stream"));
    gate.until_arrived(1);
    let mut half = served.client();
    half.send(request("/stream") + &request("/hello")[..20]);
    gate.until_arrived(2);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = before.read_response();
    assert!(!answer.expect(200, STREAMED).announces_close(), "its head was sent before");
    let answer = before.get("/stream");
    assert!(answer.expect(200, STREAMED).announces_close(), "begun in the drain");
    before.expect_end();
    half.read_response().expect(200, STREAMED);
    half.send(&request("/hello")[20..]);
    assert!(half.read_response().expect(200, "hello").announces_close());
    half.expect_end();
    drop((before, half));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn bytes_after_the_fin_are_counted_wherever_they_come() {
    let gate = Gate::default();
    let policy = Policy { idle_window: ms(300), ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut after_stream = served.client();
    let mut after_answer = served.client();
    after_answer.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    after_stream.send(request("/stream"));
    gate.open();
    let mut sent = 0;
    for client in [&mut after_stream, &mut after_answer] {
        assert!(client.read_response().announces_close());
        client.expect_end();
        // In two parts, half a request among them.
        for late in [&request("/hello")[..], &request("/hello")[..7]] {
            client.send(late);
            sent += late.len() as u64;
        }
    }
    served.until("they are counted", |counts| counts.late_bytes == sent);
    drop((after_stream, after_answer));
    let report = served.report();
    assert_eq!((report.counts.late_bytes, report.counts.begun, report.exit_status), (sent, 2, 0));
}

#[test]
fn a_hibernating_connection_with_half_a_head_in_the_kernel_is_answered() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    client.send(&request("/hello")[..15]);
    // Without patience for idle clients: only what has arrived counts.
    served.handle.signal_handler(Signal::Interrupt);
    served.handle.wait_for_shutdown();
    gate.open();
    blocking.read_response().expect(200, "blocked");
    client.expect_silence(ms(200));
    client.send(&request("/hello")[15..]);
    assert!(client.read_response().expect(200, "hello").announces_close());
    client.expect_end();
    drop((client, blocking));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn without_waiting_heads_that_have_arrived_are_begun_and_have_half_of_cancelling() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(6000), in_flight: InFlight::Cancel, ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut hibernating = served.client();
    hibernating.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    let (mut fresh, mut half, mut silent) = (served.client(), served.client(), served.client());
    half.send(&request("/hello")[..9]);
    served.until_in_state(ConnectionState::ReadingHead, 1);
    served.until("all are accepted", |counts| counts.open() == 4);
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    hibernating.send(request("/wait"));
    fresh.send(request("/wait"));
    let mut queued = served.client();
    queued.send(request("/wait"));
    let began = now();
    served.begin_shutdown();
    assert_eq!(served.phase(), Phase::Cancelling);
    gate.let_one();
    blocking.read_response().expect(200, "blocked");
    assert_eq!(half.read_response().status, 408);
    silent.expect_end();
    // Begun, although the token had fired by then.
    gate.until_arrived(4);
    gate.open();
    for client in [&mut hibernating, &mut fresh, &mut queued] {
        assert!(client.read_response().expect(200, "waited").announces_close());
    }
    drop((hibernating, fresh, half, silent, queued, blocking));
    let report = served.report();
    assert!(now() - began < ms(600) + SLACK);
    assert_eq!((report.exit_status, report.refused, report.cut), (0, 0, 0));
    let phases: Vec<Phase> = report.phases.iter().map(|(phase, _)| *phase).collect();
    assert!(!phases.contains(&Phase::LameDuck), "{phases:?}");
}

#[test]
fn without_waiting_a_lame_duck_comes_first_all_the_same() {
    let gate = Gate::default();
    let policy = Policy {
        timeout: ms(3000),
        delay: ms(500),
        in_flight: InFlight::Cancel,
        ..Policy::default()
    };
    let served = Served::ending(policy, app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    let began = now();
    served.begin_shutdown();
    assert_eq!(served.phase(), Phase::LameDuck);
    assert!(served.client().get("/hello").expect(200, "hello").announces_close());
    client.read_response().expect_refusal();
    // Half of a fifth of the budget after the delay.
    assert_took(began, ms(800));
}

#[test]
fn without_force_nobody_is_told_refused_or_cut_however_long_it_takes() {
    let gate = Gate::default();
    let (held, token) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let seen = Arc::clone(&token);
    let router = app(&gate).route(
        "/watch",
        get(move |request: Request| {
            let (held, seen) = (held.clone(), Arc::clone(&seen));
            async move {
                held.pass().await;
                let fired = request.shutdown().is_cancelled() || request.cancelled().is_cancelled();
                seen.store(fired, Ordering::Relaxed);
                "watched"
            }
        }),
    );
    let policy = Policy { timeout: ms(500), at_deadline: AtDeadline::WaitOn, ..Policy::default() };
    let served = Served::ending(policy, router);
    let (mut client, mut reader) = (served.client(), Client::with_small_window(served.address()));
    client.send(request("/watch"));
    reader.send(request("/bytes/5000000"));
    gate.until_arrived(1);
    served.until_in_state(ConnectionState::Streaming, 1);
    served.begin_shutdown();
    client.expect_silence(ms(1200));
    assert_eq!(served.phase(), Phase::Draining);
    assert!(!served.handle.cancellation().is_cancelled());
    gate.open();
    client.read_response().expect(200, "watched");
    assert!(reader.read_response().body == pattern(5_000_000));
    drop((client, reader));
    let report = served.report();
    assert_eq!((report.exit_status, report.refused, report.cut), (0, 0, 0));
    assert!(!token.load(Ordering::Relaxed), "no token");
}

#[test]
fn without_force_each_further_signal_is_a_step() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(500), at_deadline: AtDeadline::WaitOn, ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(2);
    served.begin_shutdown();
    assert!(client.hears_within(ms(5000)));
    wait_until("the budget is over", || served.handle.snapshot().phase == Phase::Draining);
    pace(ms(800));
    assert_eq!(served.phase(), Phase::Draining);
    let began = now();
    served.handle.signal_handler(Signal::Terminate);
    let rest = client.try_read_response().expect_err("it is cut after all");
    assert_took(began, ms(100));
    assert_eq!(rest.end, End::Reset);
    assert_eq!(served.report().exit_status, 3);

    let served = Served::ending(
        Policy { timeout: ms(3000), at_deadline: AtDeadline::WaitOn, ..Policy::default() },
        app(&Gate::default()),
    );
    let mut client = served.client();
    client.send(request("/wait"));
    served.until_in_state(ConnectionState::Handling, 1);
    for _ in 0..2 {
        served.signal(Signal::Terminate);
        client.expect_silence(SIGNAL_ECHO + ms(50));
    }
    served.handle.signal_handler(Signal::Terminate);
    assert_eq!(served.report().exit_status, 128 + 15);
}
