//! The drain and what the server has not looked at yet: kernel buffers and accept queues. A handler
//! that blocks its worker keeps the server from looking.

use std::net::SocketAddr;

use ebbtide::{ConnectionState, Options, Phase, Policy, RequestOutcome, Workers};

use super::client::{Client, chunked_upload, request, upload};
use super::support::{Gate, Served, app, ms, options, pattern, wait_until};

fn two_workers() -> Options {
    Options { workers: Workers::Count(2), ..options() }
}

/// Blocks every worker of `served`. The clients' answers come when the gate is opened.
pub fn block_all(served: &Served, gate: &Gate, workers: usize) -> Vec<Client> {
    let mut blocking: Vec<Client> = Vec::new();
    for _ in 0..200 {
        let before = gate.arrived();
        if before == workers {
            return blocking;
        }
        // The kernel chooses the worker: one that is blocked already leaves this one waiting.
        let mut client = served.client();
        client.send(request("/block"));
        blocking.push(client);
        let _maybe_queued = gate.arrives_within(before + 1, ms(50));
    }
    panic!("the kernel never chose one of the {workers} workers");
}

#[test]
fn requests_in_kernel_buffers_are_answered() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let mut hibernating = served.client();
    hibernating.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 2);
    idle.get("/hello").expect(200, "hello");
    let mut fresh = served.client();
    let mut half = served.client();
    half.send(&request("/hello")[..9]);
    served.until_in_state(ConnectionState::ReadingHead, 1);
    served.until("all are accepted", |counts| counts.open() == 4);
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    idle.send(request("/hello"));
    hibernating.send(request("/hello"));
    fresh.send(request("/hello"));
    half.send(&request("/hello")[9..]);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    blocking.read_response().expect(200, "blocked");
    let mut clients = [idle, hibernating, fresh, half];
    for client in &mut clients {
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close());
        client.expect_end();
    }
    drop((clients, blocking));
    let report = served.report();
    assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
}

#[test]
fn requests_in_kernel_buffers_are_answered_even_without_windows() {
    let gate = Gate::default();
    let policy = Policy { idle_window: ms(0), first_byte_grace: ms(0), ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let mut fresh = served.client();
    served.until("both are accepted", |counts| counts.open() == 2);
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    idle.send(request("/hello"));
    fresh.send(request("/hello"));
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    blocking.read_response().expect(200, "blocked");
    for mut client in [idle, fresh] {
        client.read_response().expect(200, "hello");
    }
}

#[test]
fn connections_in_the_accept_queue_are_answered() {
    let gate = Gate::default();
    let served = Served::with(two_workers(), app(&gate));
    let blocking = block_all(&served, &gate, 2);
    let mut queued: Vec<Client> = (0..100).map(|_| served.client()).collect();
    for client in &mut queued {
        client.send(request("/hello"));
    }
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    for client in &mut queued {
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close());
        client.expect_end();
    }
    for mut client in blocking {
        client.read_response().expect(200, "blocked");
    }
    drop(queued);
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.begun, report.counts.finished_as(RequestOutcome::Answered));
}

#[test]
fn connections_in_the_accept_queue_may_send_their_request_a_little_later() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    let mut queued: Vec<Client> = (0..50).map(|_| served.client()).collect();
    for client in &mut queued[..25] {
        client.send("GET /hel");
    }
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    blocking.read_response().expect(200, "blocked");
    for (n, client) in queued.iter_mut().enumerate() {
        let sent = if n < 25 { 8 } else { 0 };
        client.send(&request("/hello")[sent..]);
    }
    for client in &mut queued {
        client.read_response().expect(200, "hello");
    }
    drop((queued, blocking));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn new_connections_are_refused_once_the_queue_is_swept() {
    let gate = Gate::default();
    let served = Served::with(two_workers(), app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_retired();
    assert_eq!(served.phase(), Phase::Draining);
    waiting.expect_silence(ms(20));
    assert!(Client::try_connect(served.address()).is_err(), "and they stay refused");
    gate.open();
    waiting.read_response().expect(200, "waited");
}

#[test]
fn the_address_is_free_once_the_listeners_are_retired() {
    let gate = Gate::default();
    let served = Served::with(two_workers(), app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_retired();
    let listen = vec![served.addresses()[0].clone()];
    let successor = Served::with(Options { listen, ..options() }, app(&Gate::default()));
    successor.client().get("/hello").expect(200, "hello");
    gate.open();
    waiting.read_response().expect(200, "waited");
    drop(waiting);
    assert_eq!(served.report().exit_status, 0);
    successor.client().get("/hello").expect(200, "hello");
}

#[test]
fn a_storm_of_clients_that_reconnect_loses_nothing_that_was_accepted() {
    let served = Served::with(two_workers(), app(&Gate::default()));
    let address = served.address();
    let storm: Vec<_> = (0..8)
        .map(|_| super::support::spawn("storm", move || ask_until_refused(address)))
        .collect();
    wait_until("the storm blows", || served.counts().begun > 500);
    served.begin_shutdown();
    let answered: u64 = storm.into_iter().map(|client| client.join().expect("no panic")).sum();
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), answered);
    assert_eq!(report.counts.begun, answered, "both sides count the same");
}

/// Connects anew for each request until that is refused. Returns how many were answered.
fn ask_until_refused(address: SocketAddr) -> u64 {
    let mut answered = 0;
    // The first may come before the server listens.
    let mut next = Some(Client::connect(address));
    while let Some(mut client) = next {
        // What arrives between the last look into the queue and its end is reset by the kernel.
        if client.try_send(request("/hello")).is_ok()
            && let Ok(answer) = client.try_read_response()
        {
            answer.expect(200, "hello");
            answered += 1;
        }
        next = Client::try_connect(address).ok();
    }
    answered
}

#[test]
fn a_storm_of_clients_that_keep_their_connections_loses_nothing_at_all() {
    for round in 0..3 {
        let served = Served::with(two_workers(), app(&Gate::default()));
        let address = served.address();
        let storm: Vec<_> = (0..12)
            .map(|n| super::support::spawn("storm", move || ask_until_told(address, n + round)))
            .collect();
        wait_until("the storm blows", || served.counts().begun > 1000);
        served.begin_shutdown();
        let answered: u64 = storm.into_iter().map(|client| client.join().expect("no panic")).sum();
        let report = served.report();
        assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), answered);
        assert_eq!(report.counts.begun, answered, "both sides count the same");
    }
}

/// Asks for this and that on one connection until a response announces the close: whatever was sent
/// before must be answered. Returns how many requests were.
fn ask_until_told(address: SocketAddr, first: usize) -> u64 {
    let mut client = Client::connect(address);
    let body = pattern(20_000);
    let chunks: Vec<&[u8]> = body.chunks(3000).collect();
    let mut answered = 0;
    for n in first.. {
        let (bytes, count) = match n % 5 {
            0 => (request("/hello").into_bytes(), 1),
            1 => (upload("/count", &body), 1),
            2 => (chunked_upload("/count", &chunks), 1),
            3 => (request("/hello").repeat(4).into_bytes(), 4),
            _ => (request("/bytes/100000").into_bytes(), 1),
        };
        client.send(bytes);
        for left in (0..count).rev() {
            let answer = client.read_response();
            assert_eq!(answer.status, 200);
            answered += 1;
            if answer.announces_close() {
                assert_eq!(left, 0, "what is behind it would be lost");
                client.expect_end();
                return answered;
            }
        }
    }
    answered
}
