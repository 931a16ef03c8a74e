//! The ledger: every request and every connection ends in exactly one way, and it is the right one.

use ebbtide::{ConnectionOutcome, ConnectionState, Limits, RequestOutcome, Router, get};

use super::client::{Client, request, upload};
use super::support::{Gate, Served, app, ms, pattern};

#[test]
fn a_response_that_the_kernel_took_is_answered() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for path in ["/hello", "/unknown", "/bytes/1000000"] {
        client.get(path);
    }
    client.send(upload("/echo", "body"));
    client.read_response().expect(200, "body");
    served.until_finished(RequestOutcome::Answered, 4);
    let counts = served.counts();
    assert_eq!((counts.begun, counts.in_flight), (4, 0));
}

#[test]
fn a_response_is_not_answered_before_its_last_byte_is_taken() {
    let served = Served::start(app(&Gate::default()));
    let mut client = Client::with_small_window(served.address());
    client.send(request("/bytes/20000000"));
    served.until_in_state(ConnectionState::Streaming, 1);
    let half = client.read_bytes(1_000_000);
    assert_eq!(half.len(), 1_000_000);
    let counts = served.counts();
    assert_eq!((counts.in_flight, counts.finished), (1, [0; 4]));
    while client.read_bytes(1_000_000).len() == 1_000_000 && served.counts().in_flight == 1 {}
    served.until_finished(RequestOutcome::Answered, 1);
}

#[test]
fn a_client_that_resets_while_the_handler_waits_has_abandoned_its_request() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    for count in 1..=3 {
        let mut client = served.client();
        client.send(request("/wait"));
        gate.until_arrived(usize::try_from(count).expect("small"));
        client.reset();
        served.until_finished(RequestOutcome::Abandoned, count);
        assert_eq!(served.counts().in_flight, 0);
    }
    let counts = served.stop().counts;
    assert_eq!(counts.closed_as(ConnectionOutcome::Reset), 3);
}

#[test]
fn a_client_that_resets_in_the_middle_of_a_response_has_abandoned_its_request() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut streaming = served.client();
    streaming.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(2);
    assert!(streaming.hears_within(ms(5000)));
    streaming.reset();
    served.until_finished(RequestOutcome::Abandoned, 1);
    let mut slow = Client::with_small_window(served.address());
    slow.send(request("/bytes/20000000"));
    served.until_in_state(ConnectionState::Streaming, 1);
    slow.reset();
    served.until_finished(RequestOutcome::Abandoned, 2);
}

#[test]
fn a_client_that_resets_in_the_middle_of_its_upload_has_abandoned_its_request() {
    let served = Served::start(app(&Gate::default()));
    for (count, head) in (1..).zip(["Content-Length: 100", "Transfer-Encoding: chunked"]) {
        let mut client = served.client();
        client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n"));
        client.send("14\r\nbeginning");
        served.until_in_state(ConnectionState::Handling, 1);
        client.reset();
        served.until_finished(RequestOutcome::Abandoned, count);
    }
}

#[test]
fn pipelined_requests_of_a_client_that_resets_end_too() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send([request("/hello"), request("/wait"), request("/hello")].concat());
    gate.until_arrived(1);
    client.read_response().expect(200, "hello");
    client.reset();
    served.until_finished(RequestOutcome::Abandoned, 1);
    served.until_finished(RequestOutcome::Answered, 1);
    assert_eq!(served.counts().begun, 2, "the third was never begun");
}

#[test]
fn an_overloaded_server_has_refused_the_request() {
    let gate = Gate::default();
    let limits = Limits { in_flight_max: 1, ..Limits::default() };
    let served = Served::limited(limits, app(&gate));
    let mut first = served.client();
    first.send(request("/wait"));
    gate.until_arrived(1);
    served.client().get("/hello").expect_refusal();
    served.until_finished(RequestOutcome::Refused, 1);
    gate.open();
    first.read_response().expect(200, "waited");
    served.until_finished(RequestOutcome::Answered, 1);
}

#[test]
fn a_response_that_nobody_takes_is_cut() {
    let limits = Limits { write_stall_timeout: ms(300), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = Client::with_small_window(served.address());
    client.send(request("/bytes/20000000"));
    served.until_finished(RequestOutcome::Cut, 1);
    assert_eq!(served.counts().in_flight, 0);
    drop(client);
    let report = served.stop();
    assert_eq!(report.exit_status, 0, "what was cut before the shutdown is not its doing");
    assert_eq!((report.cut, report.lost.len()), (0, 0), "{:?}", report.lost);
}

#[test]
fn what_never_was_a_request_is_counted_apart() {
    let limits = Limits {
        head_timeout: ms(200),
        request_line_bytes_max: 100,
        head_bytes_max: 1000,
        ..Limits::default()
    };
    let served = Served::limited(limits, app(&Gate::default()));
    let long_line = request(&format!("/{}", "a".repeat(200)));
    let large = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(2000));
    let cases = [
        ("nonsense\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET", 408),
        (long_line.as_str(), 414),
        (large.as_str(), 431),
    ];
    for (bytes, status) in cases {
        let mut client = served.client();
        client.send(bytes);
        assert_eq!(client.read_response().status, status, "{bytes}");
    }
    let counts = served.stop().counts;
    assert_eq!(counts.rejected, [2, 1, 1, 1], "400, 408, 414, 431");
    assert_eq!(counts.begun, 0);
    assert_eq!(counts.closed_as(ConnectionOutcome::Rejected), 4);
    assert_eq!(counts.closed_as(ConnectionOutcome::TimedOut), 1);
}

#[test]
fn connections_end_as_they_ended() {
    let served = Served::start(app(&Gate::default()));
    let closed = |outcome, count| {
        served.until(&format!("{outcome:?}"), |counts| counts.closed_as(outcome) == count);
    };
    // Before, between and after requests.
    drop(served.client());
    closed(ConnectionOutcome::ClientClosed, 1);
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    drop(client);
    closed(ConnectionOutcome::ClientClosed, 2);
    let mut client = served.client();
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    client.read_response().expect(200, "hello");
    drop(client);
    closed(ConnectionOutcome::ClosedAfterResponse, 1);
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    client.reset();
    closed(ConnectionOutcome::Reset, 1);
    let report = served.stop();
    assert_eq!(report.counts.opened, 4);
    assert_eq!(report.counts.closed.iter().sum::<u64>(), 4);
}

#[test]
fn a_connection_is_always_in_one_state() {
    let gate = Gate::default();
    let served = Served::start(app(&gate).route("/late", get(|_: ebbtide::Request| "late")));
    let mut client = served.client();
    served.until_in_state(ConnectionState::New, 1);
    client.send("GET /wait HTTP/1.1\r\n");
    served.until_in_state(ConnectionState::ReadingHead, 1);
    client.send("Host: x\r\n\r\n");
    served.until_in_state(ConnectionState::Handling, 1);
    gate.let_one();
    client.read_response().expect(200, "waited");
    served.until_in_state(ConnectionState::Idle, 1);
    client.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(3);
    served.until_in_state(ConnectionState::Streaming, 1);
    gate.open();
    client.read_response();
    served.until_in_state(ConnectionState::Hibernating, 1);
    client.send("nonsense\r\n\r\n");
    assert_eq!(client.read_response().status, 400);
    served.until_in_state(ConnectionState::Lingering, 1);
    drop(client);
    served.until("it is gone", |counts| counts.open() == 0);
}

#[test]
fn the_books_balance_through_a_storm() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate));
    for n in 0..200 {
        let mut client = served.client();
        client.send(match n % 5 {
            0 => request("/hello").repeat(3).into_bytes(),
            1 => upload("/echo", pattern(10_000)),
            2 => b"nonsense\r\n\r\n".to_vec(),
            3 => request("/bytes/2000000").into_bytes(),
            _ => b"GET /hel".to_vec(),
        });
        match n % 3 {
            0 => client.reset(),
            1 => drop(client),
            _ => {
                client.half_close();
                client.read_to_end();
            }
        }
    }
    served.until("all are gone", |counts| counts.open() == 0 && counts.in_flight == 0);
    let counts = served.stop().counts;
    assert!(counts.opened <= 200, "a reset may come before the accept: {counts:?}");
    assert_eq!(counts.begun, counts.finished.iter().sum::<u64>());
}

#[test]
fn a_route_may_be_asked_from_many_threads_at_once() {
    let served = Served::start(Router::new().route("/", get(|_: ebbtide::Request| "fine")));
    let address = served.address();
    let threads: Vec<_> = (0..8)
        .map(|_| {
            super::support::spawn("asking", move || {
                let mut client = Client::connect(address);
                (0..200).for_each(|_| drop(client.get("/").expect(200, "fine").clone()));
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert_eq!(served.stop().counts.finished_as(RequestOutcome::Answered), 1600);
}
