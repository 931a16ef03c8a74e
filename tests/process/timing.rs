//! How long a shutdown takes: no longer than the request in flight, and never longer than the
//! budget, whatever handlers do and whoever does not read the log.

use std::fs::OpenOptions;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::{Client, End};
use crate::support::server::{Launch, Server, assert_balanced, file_in};
use crate::support::{SLACK, SOON, beside_others, say};

const BUDGET: Duration = Duration::from_secs(2);

#[test]
fn a_request_in_flight_is_answered_and_then_the_process_is_gone() {
    let _turn = beside_others();
    for workers in ["auto", "1", "0"] {
        let mut server = Launch::new().env("WORKERS", workers).start();
        let mut client = server.connect();
        client.ask("/sleep/700");
        server.wait_in_flight(1);
        server.signal("TERM");
        let response = client.response();
        let answered = Instant::now();
        assert_eq!((response.status, response.text().as_str()), (200, "slept 700 ms\n"));
        assert!(response.announces_close(), "{}", response.head);
        assert_eq!(client.end(), End::Closed);
        drop(client);
        let exit = server.exit(SOON);
        let after = exit.at - answered;
        say(&format!("workers {workers}: gone {after:?} after the answer (promised: 50 ms)"));
        assert_eq!(exit.status, 0);
        assert!(after < Duration::from_millis(50) + SLACK, "gone only after {after:?}");
        let report = server.log.report();
        assert_eq!(report["requests"]["finished"]["answered"], 1);
        assert_eq!(report["lost"], serde_json::json!([]));
    }
}

/// Sends SIGTERM, waits for the end, and holds it against the budget.
fn end_within_budget(server: &mut Server, what: &str) {
    let signalled = server.signal("TERM");
    let exit = server.exit(SOON);
    let took = exit.at - signalled;
    say(&format!("{what}: gone after {took:?} (promised: 2.05 s, 2.2 s at worst)"));
    assert_eq!(exit.status, 3, "a request was lost");
    assert!(took < BUDGET + SLACK, "{what}: gone only after {took:?}");
}

/// The one lost request of a report: which outcome it had.
fn only_lost<'a>(report: &'a Value, path: &str, route: &str) -> &'a str {
    let lost = report["lost"].as_array().unwrap();
    assert_eq!(lost.len(), 1, "{report:#}");
    assert_eq!((&lost[0]["method"], &lost[0]["path"]), (&"GET".into(), &path.into()));
    assert_eq!(lost[0]["route"], route, "{report:#}");
    assert!(lost[0]["age_seconds"].as_f64().unwrap() > 0.1, "{report:#}");
    assert!(lost[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{report:#}");
    assert_eq!(report["exit_status"], 3);
    lost[0]["outcome"].as_str().unwrap()
}

#[test]
fn a_handler_that_takes_too_long_is_refused_within_the_budget() {
    let _turn = beside_others();
    for workers in ["auto", "0"] {
        let launch = Launch::new().env("SHUTDOWN_TIMEOUT", 2).env("WORKERS", workers);
        let mut server = launch.start();
        let mut client = server.connect();
        client.ask("/sleep/60000");
        server.wait_in_flight(1);
        end_within_budget(&mut server, &format!("/sleep/60000, workers {workers}"));
        let response = client.response();
        assert_eq!(response.status, 503);
        assert!(response.header("retry-after").is_some(), "{}", response.head);
        assert!(response.announces_close(), "{}", response.head);
        assert_eq!(client.end(), End::Closed);
        let report = server.log.report();
        assert_eq!(only_lost(&report, "/sleep/60000", "/sleep/{ms}"), "refused");
    }
}

#[test]
fn a_handler_that_blocks_its_thread_does_not_hold_the_exit() {
    let _turn = beside_others();
    for workers in ["auto", "1"] {
        let launch = Launch::new().env("SHUTDOWN_TIMEOUT", 2).env("WORKERS", workers);
        let mut server = launch.start();
        let mut client = server.connect();
        client.ask("/block/60000");
        server.wait_in_flight(1);
        end_within_budget(&mut server, &format!("/block/60000, workers {workers}"));
        // The kernel ended the connection with the process; how is the kernel's business.
        assert!(matches!(client.end(), End::Closed | End::Reset));
        let last = server.log.all().pop().unwrap();
        let report = &serde_json::from_str::<Value>(&last).unwrap()["report"];
        assert_eq!(only_lost(report, "/block/60000", "/block/{ms}"), "cut");
        assert_eq!(report["requests"]["finished"]["cut"], 1);
    }
}

/// A server whose stderr is a pipe that is full and that nobody reads any more. The reader is to be
/// kept: without it, writing would fail at once.
pub fn stuck(mut command: Command) -> (Server, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let child = command.stdout(Stdio::null()).stderr(writer.try_clone().unwrap()).spawn().unwrap();
    // Only the process is to hold the other end of its stderr.
    drop(command);
    // Reads the first line and nothing more.
    let mut first = Vec::new();
    let mut byte = [0];
    while first.last() != Some(&b'\n') {
        (&reader).read_exact(&mut byte).expect("the server's first line");
        first.push(byte[0]);
    }
    let server = Server::new(child, std::io::Cursor::new(first));
    fill(&writer);
    (server, reader)
}

/// Fills a pipe to the last byte, through a descriptor of its own so that only this one does not
/// block.
fn fill(writer: &PipeWriter) {
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut end = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    for size in [4096, 1] {
        let error = loop {
            if let Err(error) = end.write_all(&vec![b'x'; size]) {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_the_exit() {
    let _turn = beside_others();
    for (kind, route, outcome) in
        [("sleep", "/sleep/{ms}", "refused"), ("block", "/block/{ms}", "cut")]
    {
        let file = file_in(&format!("stuck-{kind}"), "report.json");
        let launch = Launch::new()
            .env("SHUTDOWN_TIMEOUT", 2)
            .env("ACCESS_LOG", true)
            .env("SHUTDOWN_REPORT_PATH", &file);
        let (mut server, reader) = stuck(launch.command());
        // Serving goes on although each of these wants to be logged.
        let mut client = server.connect();
        for _ in 0..1000 {
            assert_eq!(client.get("/plaintext").status, 200);
        }
        let path = format!("/{kind}/60000");
        client.ask(&path);
        server.wait_in_flight(1);
        end_within_budget(&mut server, &format!("stuck stderr and {path}"));
        let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(only_lost(&report, &path, route), outcome);
        assert_eq!(report["requests"]["finished"]["answered"], 1000);
        drop(reader);
    }
}

#[test]
fn a_log_that_nobody_reads_loses_lines_and_says_how_many() {
    let _turn = beside_others();
    let launch = Launch::new().env("ACCESS_LOG", true).env("WORKERS", 1);
    let (mut server, reader) = stuck(launch.command());
    assert!(server.metrics().contains("\nlog_lines_dropped_total 0\n"));
    let mut client = server.connect();
    let batch = "GET /plaintext HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
    // More than any queue of lines should hold.
    for _ in 0..300 {
        client.send(&batch);
        for _ in 0..100 {
            assert_eq!(client.response().status, 200);
        }
    }
    let dropped = server.metric("log_lines_dropped_total");
    say(&format!("stuck stderr: {dropped} of 30000 lines of the access log dropped and counted"));
    assert!((1.0..30000.0).contains(&dropped), "{dropped} lines dropped");
    drop(client);
    let signalled = server.signal("TERM");
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 0);
    assert!(exit.at - signalled < Duration::from_secs(5) + SLACK, "held by the log");
    drop(reader);
}

#[test]
fn without_force_the_server_waits_beyond_the_budget() {
    let _turn = beside_others();
    let mut server =
        Launch::new().env("SHUTDOWN_TIMEOUT", 1).env("SHUTDOWN_FORCE_AFTER_TIMEOUT", false).start();
    let mut client = server.connect();
    client.ask("/sleep/2000");
    server.wait_in_flight(1);
    let signalled = server.signal("TERM");
    assert_eq!(client.response().status, 200);
    drop(client);
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 0);
    assert!(exit.at - signalled > Duration::from_millis(1500), "gone before the request was done");
    assert_eq!(server.log.report()["requests"]["finished"]["answered"], 1);
}

#[test]
fn without_waiting_requests_in_flight_are_cancelled_at_once() {
    let _turn = beside_others();
    let mut server = Launch::new()
        .env("SHUTDOWN_TIMEOUT", 10)
        .env("SHUTDOWN_WAIT_FOR_CONNECTIONS", false)
        .start();
    let mut client = server.connect();
    client.ask("/sleep/60000");
    server.wait_in_flight(1);
    let signalled = server.signal("TERM");
    // Half of the 2 s that cancelling has.
    assert_eq!(client.response().status, 503);
    drop(client);
    let exit = server.exit(SOON);
    let took = exit.at - signalled;
    assert_eq!(exit.status, 3);
    assert!(took < Duration::from_secs(2) + SLACK, "gone only after {took:?}");
    let report = server.log.report();
    assert_eq!(only_lost(&report, "/sleep/60000", "/sleep/{ms}"), "refused");
    assert_balanced(&report);
}

#[test]
fn an_empty_server_is_gone_at_once() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    // A client that came and went leaves nothing to wait for.
    assert_eq!(Client::connect(server.port).get("/plaintext").status, 200);
    let signalled = server.signal("TERM");
    let exit = server.exit(SOON);
    let took = exit.at - signalled;
    say(&format!("empty server: gone after {took:?}"));
    assert_eq!(exit.status, 0);
    assert!(took < Duration::from_millis(50) + SLACK, "gone only after {took:?}");
}
