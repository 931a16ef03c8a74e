//! The drain and clients that owe nothing: idle, hibernating, or without a first byte.

use ebbtide::{ConnectionOutcome, ConnectionState, Phase, Policy, Signal};

use super::client::{Client, request};
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now};

fn policy() -> Policy {
    Policy { first_byte_grace: ms(400), idle_window: ms(800), ..Policy::default() }
}

/// A client whose connection is idle, or has been for so long that it hibernates.
fn resting(served: &Served, state: ConnectionState) -> Client {
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(state, 1);
    client
}

const RESTING: [ConnectionState; 2] = [ConnectionState::Idle, ConnectionState::Hibernating];

#[test]
fn the_defaults_are_those_promised() {
    let policy = Policy::default();
    assert_eq!(policy.timeout, ms(30_000));
    assert_eq!(policy.delay, ms(0));
    assert_eq!(policy.first_byte_grace, ms(1000));
    assert_eq!(policy.idle_window, ms(5000));
    assert_eq!(policy.in_flight, ebbtide::InFlight::Wait);
    assert_eq!(policy.at_deadline, ebbtide::AtDeadline::Cut);
}

#[test]
fn an_idle_connection_has_one_more_request_answered_and_closed() {
    for state in RESTING {
        let served = Served::ending(policy(), app(&Gate::default()));
        let mut client = resting(&served, state);
        served.begin_shutdown();
        served.until_phase(Phase::Draining);
        client.expect_silence(ms(200));
        let answer = client.get("/hello");
        answer.expect(200, "hello");
        assert!(answer.announces_close(), "{}", state.name());
        client.expect_end();
        drop(client);
        let report = served.report();
        assert_eq!(report.exit_status, 0);
        assert!(report.duration() < ms(800), "the rest of the window is not waited for");
    }
}

#[test]
fn a_silent_idle_connection_is_closed_at_the_end_of_the_window() {
    for state in RESTING {
        let served = Served::ending(policy(), app(&Gate::default()));
        let mut client = resting(&served, state);
        let began = now();
        served.begin_shutdown();
        client.expect_end();
        assert_took(began, ms(800));
        // Nobody waits for its FIN: it is silent, and has ours.
        let report = served.report();
        assert_took(began, ms(800));
        assert_eq!(report.exit_status, 0);
        assert_eq!(report.counts.closed_as(ConnectionOutcome::ClosedIdle), 1);
    }
}

#[test]
fn a_connection_without_a_byte_has_its_first_request_answered_and_closed() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut client = served.client();
    served.until_in_state(ConnectionState::New, 1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    client.expect_silence(ms(100));
    let answer = client.get("/hello");
    answer.expect(200, "hello");
    assert!(answer.announces_close());
    client.expect_end();
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_connection_without_a_byte_is_closed_after_its_grace() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut client = served.client();
    served.until_in_state(ConnectionState::New, 1);
    let began = now();
    served.begin_shutdown();
    client.expect_end();
    assert_took(began, ms(400));
    let report = served.report();
    assert_took(began, ms(400));
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.closed_as(ConnectionOutcome::ClosedIdle), 1);
}

#[test]
fn a_grace_does_not_reach_beyond_the_usual_deadlines() {
    let limits = ebbtide::Limits {
        first_byte_timeout: ms(500),
        keep_alive_timeout: ms(500),
        ..ebbtide::Limits::default()
    };
    let shutdown =
        Policy { first_byte_grace: ms(5000), idle_window: ms(5000), ..Policy::default() };
    let options = ebbtide::Options { limits, shutdown, ..super::support::options() };
    let served = Served::with(options, app(&Gate::default()));
    let idle = resting(&served, ConnectionState::Idle);
    let silent = served.client();
    served.until("both are there", |counts| counts.open() == 2);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert!(now() - began < ms(500) + SLACK, "it took {:?}", now() - began);
    assert_eq!(report.exit_status, 0);
    drop((idle, silent));
}

#[test]
fn a_client_that_leaves_is_not_waited_for() {
    let served = Served::start(app(&Gate::default()));
    let idle = resting(&served, ConnectionState::Idle);
    let silent = served.client();
    served.until("both are there", |counts| counts.open() == 2);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    let began = now();
    drop((idle, silent));
    assert_eq!(served.report().exit_status, 0);
    assert!(now() - began < SLACK);
}

#[test]
fn a_head_that_begins_within_the_window_is_completed_after_it() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut client = resting(&served, ConnectionState::Idle);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    client.send(&request("/hello")[..5]);
    client.expect_silence(ms(1200));
    client.send(&request("/hello")[5..]);
    let answer = client.read_response();
    answer.expect(200, "hello");
    assert!(answer.announces_close());
    client.expect_end();
}

#[test]
fn an_interrupt_does_not_wait_for_idle_clients() {
    for state in RESTING {
        let served = Served::start(app(&Gate::default()));
        let mut idle = resting(&served, state);
        let mut silent = served.client();
        served.until("both are there", |counts| counts.open() == 2);
        let began = now();
        served.signal(Signal::Interrupt);
        idle.expect_end();
        silent.expect_end();
        let report = served.report();
        assert!(now() - began < SLACK, "it took {:?}", now() - began);
        assert_eq!((report.exit_status, &*report.reason), (0, "SIGINT"));
    }
}

#[test]
fn an_interrupt_waits_for_requests_and_heads() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut half = served.client();
    half.send(&request("/hello")[..9]);
    served.until_in_state(ConnectionState::ReadingHead, 1);
    served.signal(Signal::Interrupt);
    waiting.expect_silence(ms(300));
    half.send(&request("/hello")[9..]);
    half.read_response().expect(200, "hello");
    gate.open();
    waiting.read_response().expect(200, "waited");
    drop((waiting, half));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_crowd_of_idle_clients_is_closed_with_a_little_jitter() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut clients: Vec<Client> = (0..200).map(|_| served.client()).collect();
    for client in &mut clients {
        client.get("/hello").expect(200, "hello");
    }
    let began = now();
    served.begin_shutdown();
    for client in &mut clients {
        client.expect_end();
    }
    let took = now() - began;
    // The last of them at its end.
    assert!((ms(600)..ms(900) + SLACK).contains(&took), "it took {took:?}");
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.closed_as(ConnectionOutcome::ClosedIdle), 200);
}

#[test]
fn a_crowd_of_idle_clients_has_one_more_request_each() {
    let served = Served::start(app(&Gate::default()));
    let mut clients: Vec<Client> = (0..300).map(|_| served.client()).collect();
    for client in &mut clients {
        client.get("/hello").expect(200, "hello");
    }
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    for client in &mut clients {
        client.send(request("/hello"));
    }
    for client in &mut clients {
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close());
        client.expect_end();
    }
    drop(clients);
    let report = served.report();
    assert_eq!((report.exit_status, report.counts.late_bytes), (0, 0));
    assert_eq!(report.counts.begun, 600);
}
