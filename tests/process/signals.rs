//! What each signal does, and what a second and a third one do.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SLACK, SOON, beside_others, let_pass};

/// Signals nearer to each other count as one.
const ECHO: Duration = Duration::from_millis(100);

/// A server with one long request in flight.
fn busy_server() -> (Server, Client) {
    let server = Launch::new().start();
    let mut client = server.connect();
    client.ask("/sleep/60000");
    server.wait_in_flight(1);
    (server, client)
}

fn wait_for_phase(server: &Server, phase: &str) {
    server
        .log
        .wait_for(phase, |line| line["event_type"] == "shutdown_phase" && line["phase"] == phase);
}

#[test]
fn term_int_and_hup_begin_a_shutdown() {
    let _turn = beside_others();
    for signal in ["TERM", "INT", "HUP"] {
        let mut server = Launch::new().start();
        assert_eq!(server.connect().get("/plaintext").status, 200);
        let before = server.log.so_far().len();
        server.signal(signal);
        assert_eq!(server.exit(SOON).status, 0, "SIG{signal}");
        let first: Value = serde_json::from_str(&server.log.all()[before]).unwrap();
        let message = format!("Received SIG{signal}, initiating graceful shutdown...");
        assert_eq!(first["message"], message.as_str());
        assert_eq!(first["event_type"], "shutdown_initiated");
        assert_eq!(server.log.report()["reason"], format!("SIG{signal}"));
    }
}

#[test]
fn a_hangup_during_a_shutdown_is_only_logged() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    let mut client = server.connect();
    client.ask("/sleep/1500");
    server.wait_in_flight(1);
    server.signal("TERM");
    wait_for_phase(&server, "draining");
    let_pass(ECHO + ECHO / 5);
    server.signal("HUP");
    server.log.wait_for("word of the SIGHUP", |line| line["signal"] == "SIGHUP");
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
    let phases = server.log.events("shutdown_phase");
    assert!(phases.iter().all(|line| line["phase"] != "cancelling"), "{phases:?}");
}

#[test]
fn a_second_signal_cancels_and_a_third_ends_at_once() {
    let _turn = beside_others();
    for (first, more, status) in
        [("TERM", "TERM", 143), ("HUP", "TERM", 143), ("INT", "INT", 130), ("TERM", "INT", 130)]
    {
        let (mut server, _client) = busy_server();
        server.signal(first);
        wait_for_phase(&server, "draining");
        let_pass(ECHO + ECHO / 5);
        server.signal(more);
        wait_for_phase(&server, "cancelling");
        let_pass(ECHO + ECHO / 5);
        let third = server.signal(more);
        let exit = server.exit(SOON);
        assert_eq!(exit.status, status, "{first} {more} {more}");
        assert!(exit.at - third < SLACK, "{first} {more} {more}: not at once");
    }
}

#[test]
fn a_second_signal_leads_to_503_and_status_3() {
    let _turn = beside_others();
    let (mut server, mut client) = busy_server();
    server.signal("TERM");
    wait_for_phase(&server, "draining");
    let_pass(ECHO + ECHO / 5);
    let second = server.signal("TERM");
    let response = client.response();
    assert_eq!(response.status, 503);
    assert!(response.header("retry-after").is_some(), "{}", response.head);
    drop(client);
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 3);
    assert!(exit.at - second < Duration::from_secs(2) + SLACK, "cancelling takes 2 s at most");
    let report = server.log.report();
    assert_eq!(report["requests"]["finished"]["refused"], 1);
    assert_eq!(report["lost"][0]["path"], "/sleep/60000");
}

#[test]
fn two_signals_within_100_ms_count_as_one() {
    let _turn = beside_others();
    // On a slow machine the second one may come too late to prove anything: then once more.
    for _attempt in 0..10 {
        let mut server = Launch::new().start();
        let mut client = server.connect();
        client.ask("/sleep/700");
        server.wait_in_flight(1);
        let first = server.signal("TERM");
        server.log.wait("shutdown_initiated");
        server.signal("TERM");
        // Said when it was taken in, so it was taken in before this instant.
        server.log.wait("shutdown_signal");
        if first.elapsed() >= ECHO {
            continue;
        }
        let response = client.response();
        assert_eq!(response.status, 200, "the second signal cancelled the request");
        drop(client);
        assert_eq!(server.exit(SOON).status, 0);
        return;
    }
    panic!("ten times the two signals were more than 100 ms apart");
}

#[test]
fn quit_ends_at_once() {
    let _turn = beside_others();
    let (mut server, _client) = busy_server();
    let signalled = server.signal("QUIT");
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 131);
    assert!(exit.at - signalled < SLACK, "not at once");
}

#[test]
fn usr1_logs_a_snapshot_and_serving_goes_on() {
    let _turn = beside_others();
    let (server, _client) = busy_server();
    let mut other = server.connect();
    assert_eq!(other.get("/plaintext").status, 200);
    server.signal("USR1");
    let snapshot = server.log.wait("snapshot");
    assert_eq!(snapshot["phase"], "running");
    assert_eq!(snapshot["connections"], 2);
    assert_eq!(snapshot["requests_in_flight"], 1);
    let oldest = snapshot["oldest_requests"].as_str().unwrap();
    assert!(oldest.starts_with("GET /sleep/60000 from 127.0.0.1:"), "{oldest}");
    assert!(snapshot["connection_states"].as_str().unwrap().contains("handling=1"), "{snapshot}");
    assert_eq!(other.get("/plaintext").status, 200);
    assert_eq!(server.connect().get("/plaintext").status, 200);
}

#[test]
fn sigint_does_not_wait_for_idle_clients() {
    let _turn = beside_others();
    let launch = Launch::new().env("SHUTDOWN_TIMEOUT", 15).env("SHUTDOWN_DELAY", 5);
    let mut server = launch.env("SHUTDOWN_IDLE_WINDOW", 5).start();
    let mut idle = server.connect();
    assert_eq!(idle.get("/plaintext").status, 200);
    let signalled: Instant = server.signal("INT");
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 0);
    let took = exit.at - signalled;
    assert!(took < Duration::from_secs(3), "{took:?}, as if there were a delay and a window");
}
