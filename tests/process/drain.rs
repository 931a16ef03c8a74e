//! What becomes of connections when the signal comes: under load, idle, and with a successor.

use std::process::Command;
use std::time::Duration;

use crate::support::client::{Client, End};
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::{Beside, Wrk, strace_works, tool};
use crate::support::{SLACK, SOON, alone, beside_others, say, until};

/// Starts wrk against a server and waits until that many requests are answered: it is at full load.
fn load(server: &Server, command: &mut Command, options: [&str; 2], answered: u32) -> Beside {
    let url = server.url("/plaintext");
    let wrk = Beside::start(command.arg("-t2").args(options).arg(&url));
    let name = "http_requests_finished_total{outcome=\"answered\"}";
    until("wrk to be at work", SOON, || {
        let metrics = server.metrics();
        let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        (count.unwrap_or(0) > answered).then_some(())
    });
    wrk
}

/// Waits for the server's end and holds the report against what was promised.
fn assert_nothing_lost(server: &mut Server) {
    let exit = server.exit(SOON);
    let report = server.log.report();
    assert_eq!(exit.status, 0, "{report:#}");
    assert_eq!(report["late_bytes"], 0, "{report:#}");
    for lost in ["refused", "cut", "abandoned"] {
        assert_eq!(report["requests"]["finished"][lost], 0, "{report:#}");
    }
    for outcome in ["reset", "cut", "timed_out", "shed", "rejected"] {
        assert_eq!(report["connections"]["closed"][outcome], 0, "{report:#}");
    }
    let answered = report["requests"]["finished"]["answered"].as_u64().unwrap();
    let open = &report["active_connections_at_shutdown"];
    say(&format!(
        "SIGTERM under wrk: {answered} answered, {open} connections open, in {} s",
        report["duration_seconds"]
    ));
}

#[test]
fn a_shutdown_under_load_loses_no_request() {
    let _turn = alone();
    let long = std::env::var_os("EBBTIDE_LONG").is_some_and(|value| value == "1");
    for _ in 0..if long { 10 } else { 3 } {
        let Some(mut wrk) = tool("wrk") else { return };
        let mut server = Launch::new().start();
        let running = load(&server, &mut wrk, ["-c64", "-d3s"], 20_000);
        server.signal("TERM");
        assert_nothing_lost(&mut server);
        let said = Wrk::read(&running.finish());
        say(&format!("wrk says: {said:?}"));
        // `write` counts attempts to connect after the end: see the next test.
        assert_eq!((said.read, said.timeout, said.non_2xx), (0, 0, 0), "{said:?}");
    }
}

/// wrk 4.1 does not look at `SO_ERROR` when a connect that did not block is done: a refused
/// connection is noticed by the first write and counted under `write`, none under `connect`. The
/// system calls show that there is no other kind among them.
#[test]
fn all_that_wrk_counts_as_write_errors_are_refused_connections() {
    let _turn = alone();
    if tool("wrk").is_none() || !strace_works() {
        return;
    }
    let mut server = Launch::new().start();
    let trace = file_in("wrk-traced", "trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=write,sendto,connect", "-o", &trace, "wrk"]);
    let running = load(&server, &mut strace, ["-c64", "-d3s"], 2_000);
    server.signal("TERM");
    assert_nothing_lost(&mut server);
    let said = Wrk::read(&running.finish());
    let trace = std::fs::read_to_string(&trace).unwrap();
    let failed: Vec<&str> = trace
        .lines()
        .filter(|line| line.contains("write(") || line.contains("write resumed"))
        .filter(|line| line.contains(" = -1 ") && !line.contains("EAGAIN"))
        .collect();
    let refused = failed.iter().filter(|line| line.contains("ECONNREFUSED")).count();
    say(&format!("wrk traced: {said:?}; writes that failed: {}, all refused", failed.len()));
    assert_eq!(refused, failed.len(), "{failed:?}");
    assert_eq!(said.write, refused as u64, "wrk counted something else, too");
    assert_eq!((said.read, said.timeout, said.non_2xx), (0, 0, 0), "{said:?}");
}

#[test]
fn idle_connections_get_one_more_request_or_a_clean_end() {
    let _turn = beside_others();
    // In the moment after a request and long after one a connection is kept in different ways.
    let mut server = Launch::new().env("SHUTDOWN_IDLE_WINDOW", 1).start();
    let mut clients: Vec<Client> = (0..20).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/plaintext").status, 200);
    }
    let hibernating = "http_connections{state=\"hibernating\"} 20";
    until("all to hibernate", SOON, || server.metrics().contains(hibernating).then_some(()));
    let mut fresh = server.connect();
    assert_eq!(fresh.get("/plaintext").status, 200);
    clients.push(fresh);

    let signalled = server.signal("TERM");
    server.log.wait_for("draining", |line| line["phase"] == "draining");
    let (active, silent) = clients.split_at_mut(10);
    for client in active {
        let response = client.get("/plaintext");
        assert_eq!(response.status, 200);
        assert!(response.announces_close(), "{}", response.head);
        assert_eq!(client.end(), End::Closed);
    }
    for client in silent {
        assert_eq!(client.end(), End::Closed);
    }
    let ended = signalled.elapsed();
    assert!(
        ended >= Duration::from_millis(900),
        "ended after {ended:?}: before the window was over"
    );
    assert!(ended < Duration::from_secs(1) + SLACK, "ended only after {ended:?}");
    drop(clients);
    assert_eq!(server.exit(SOON).status, 0);
    let report = server.log.report();
    assert_eq!(report["connections"]["closed"]["closed_idle"], 11);
    assert_eq!(report["connections"]["closed"]["closed_after_response"], 10);
}

#[test]
fn pipelined_requests_that_have_arrived_are_all_served() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    let mut client = server.connect();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send(get("/sleep/500") + &get("/bytes/1") + &get("/bytes/2") + &get("/bytes/3"));
    server.wait_in_flight(1);
    server.signal("TERM");
    assert_eq!(client.response().text(), "slept 500 ms\n");
    for length in 1..=3 {
        let response = client.response();
        assert_eq!((response.status, response.body.len()), (200, length));
    }
    // The last one may or may not announce; one more request is in order if it did not.
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
    assert_eq!(server.log.report()["requests"]["finished"]["answered"], 4);
}

#[test]
fn half_a_head_is_completed_and_served() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    let mut client = server.connect();
    client.send("GET /plaintext HTTP/1.1\r\nHos");
    let reading = "http_connections{state=\"reading_head\"} 1";
    until("the half to arrive", SOON, || server.metrics().contains(reading).then_some(()));
    server.signal("TERM");
    server.log.wait_for("draining", |line| line["phase"] == "draining");
    client.send("t: localhost\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (200, "Hello, World!"));
    assert!(response.announces_close(), "{}", response.head);
    assert_eq!(client.end(), End::Closed);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
}

#[test]
fn new_connections_are_refused_once_the_listeners_are_retired() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    let mut client = server.connect();
    client.ask("/sleep/3000");
    server.wait_in_flight(1);
    server.signal("TERM");
    // In between an attempt may be reset: it was in the queue when the listener was closed.
    until("connections to be refused", SOON, || {
        let error = std::net::TcpStream::connect(("127.0.0.1", server.port)).err()?;
        (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    });
    // The request in flight does not suffer from it.
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
}

#[test]
fn a_successor_takes_over_without_a_lost_request() {
    let _turn = alone();
    let Some(mut wrk) = tool("wrk") else { return };
    let mut old = Launch::new().env("REUSE_PORT", true).start();
    let running = load(&old, &mut wrk, ["-c16", "-d4s"], 20_000);
    let address = format!("127.0.0.1:{}", old.port);
    let new = Launch::new().env("REUSE_PORT", true).listen(address).start();
    old.signal("TERM");
    assert_nothing_lost(&mut old);
    let said = Wrk::read(&running.finish());
    say(&format!("rolling pair: wrk says {said:?}"));
    assert_eq!(said, Wrk { requests: said.requests, ..Wrk::default() });
    let report = new.stop();
    assert!(report["requests"]["finished"]["answered"].as_u64().unwrap() > 0, "{report:#}");
}
