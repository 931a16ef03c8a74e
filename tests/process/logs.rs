//! What is logged: lines that machines and terminals can take, whatever clients send.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SOON, beside_others, until};

/// Requests whose every part would like to reach a log, or a terminal that shows it.
const HOSTILE: &[&[u8]] = &[
    b"GET /%0a%1b[31m HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /plaintext?%0d%0a{\"level\":\"INFO\"} HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\"},{\"level\":\"ERROR\" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\\n\\u001b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\x1b[2J\x07 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /caf\xc3\xa9/\xe2\x80\xae/\xf0\x9f\x8c\x8a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /\xff\xfe\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x1b[31mb\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: caf\xc3\xa9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: \"},{\"a\":\"b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\xfe\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: well-formed.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: \xe2\x80\xa8\xc2\x9b31m\r\nReferer: \"\\\"\r\n\r\n",
    b"G\x1b[31mT / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PROPF!ND / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://\x1b[31m/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \x1b[31m\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /panic HTTP/1.1\r\nHost: x\r\nX-Request-Id: \x7f\r\n\r\n",
    b"GET /panic HTTP/1.1\r\nHost: x\r\n\r\n",
];

/// Sends all of it, each on a connection of its own that ends with it.
fn harass(server: &Server) {
    for bytes in HOSTILE {
        let mut client = server.connect();
        client.send(bytes);
        if bytes.ends_with(b"\r\n\r\n") {
            let status = client.response().status;
            assert!([200, 400, 404, 405, 500].contains(&status), "{status} for {bytes:?}");
        }
    }
    assert_eq!(server.connect().get("/plaintext").status, 200);
}

fn assert_no_raw_control(line: &str) {
    let raw = line
        .chars()
        .find(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}'));
    assert_eq!(raw, None, "in {line:?}");
}

#[test]
fn every_line_is_json_whatever_clients_send() {
    let _turn = beside_others();
    let launch = Launch::new().env("LOG_FORMAT", "json").env("ACCESS_LOG", true);
    let mut server = launch.env("LOG_LEVEL", "trace").start();
    harass(&server);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    let lines = server.log.all();
    for line in &lines {
        assert_no_raw_control(line);
        let parsed: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        for field in ["timestamp", "level", "message", "event_type"] {
            assert!(parsed[field].is_string(), "no {field} in {line}");
        }
        let timestamp = parsed["timestamp"].as_str().unwrap();
        assert_eq!((timestamp.len(), timestamp.ends_with('Z')), (24, true), "{line}");
        let order = ["{\"timestamp\":", "\"level\":", "\"message\":", "\"event_type\":"];
        let places: Vec<Option<usize>> = order.iter().map(|name| line.find(name)).collect();
        assert!(places.is_sorted() && places[0] == Some(0), "the order of fields in {line}");
    }
    // It was about something: what was asked for is there, and the panics are.
    assert!(lines.iter().any(|line| line.contains("/%0a%1b[31m")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("well-formed.1")), "{lines:#?}");
    assert!(!server.log.events("handler_panicked").is_empty(), "{lines:#?}");
    assert_eq!(server.log.report()["exit_status"], 0);
}

#[test]
fn text_lines_hold_no_raw_control_bytes() {
    let _turn = beside_others();
    let launch = Launch::new().env("LOG_FORMAT", "text").env("ACCESS_LOG", true);
    let mut server = launch.env("LOG_LEVEL", "trace").start();
    harass(&server);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    let lines = server.log.all();
    for line in &lines {
        assert_no_raw_control(line);
    }
    assert!(lines.iter().any(|line| line.contains("/%0a%1b[31m")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("event_type=shutdown_report")), "{lines:#?}");
}

#[test]
fn the_access_log_is_off_unless_wanted() {
    let _turn = beside_others();
    let mut server = Launch::new().start();
    assert_eq!(server.connect().get("/plaintext").status, 200);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    assert!(server.log.all().iter().all(|line| !line.contains("/plaintext")));
}

#[test]
fn request_ids_are_kept_when_well_formed_and_made_otherwise() {
    let _turn = beside_others();
    let mut server = Launch::new().env("ACCESS_LOG", true).start();
    let mut client = server.connect();
    client.send("GET /plaintext HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-123\r\n\r\n");
    assert_eq!(client.response().header("x-request-id"), Some("abc-123"));
    client.send("GET /json HTTP/1.1\r\nHost: x\r\nX-Request-Id: \"no\" id\r\n\r\n");
    assert_ne!(client.response().header("x-request-id"), Some("\"no\" id"));
    drop(client);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    let lines = server.log.all();
    assert!(lines.iter().any(|line| line.contains("\"abc-123\"")), "{lines:#?}");
    assert!(lines.iter().all(|line| !line.contains("no\\\" id")), "{lines:#?}");
}

#[test]
fn a_blocked_worker_is_named_with_its_route() {
    let _turn = beside_others();
    // Whatever the moment in which it begins: who looks once a second must not miss it.
    let mut blocked = Vec::new();
    for _ in 0..4 {
        let server = Launch::new().env("WORKERS", 1).start();
        let begun = Instant::now();
        blocked.push((server, begun));
    }
    let mut clients = Vec::new();
    for (turn, (server, begun)) in (0u32..).zip(&blocked) {
        let due = *begun + turn * Duration::from_millis(250);
        until("the moment to begin", SOON, || (Instant::now() >= due).then_some(()));
        let mut client = server.connect();
        client.ask("/block/1500");
        clients.push(client);
    }
    for ((server, _), mut client) in blocked.into_iter().zip(clients) {
        assert_eq!(client.response().status, 200);
        // What is quick is not named.
        assert_eq!(client.get("/plaintext").status, 200);
        drop(client);
        let log = server.log.clone();
        server.stop();
        let named = log.events("worker_blocked");
        assert_eq!(named.len(), 1, "{named:?}");
        let line = &named[0];
        assert_eq!(line["route"], "/block/{ms}", "{line}");
        assert_eq!((&line["method"], &line["path"]), (&"GET".into(), &"/block/1500".into()));
        assert_eq!(line["level"], "WARN");
        assert!(line["seconds"].as_f64().unwrap() >= 1.0, "{line}");
    }
}

#[test]
fn the_progress_of_a_shutdown_is_logged_each_second() {
    let _turn = beside_others();
    let mut server = Launch::new().env("SHUTDOWN_TIMEOUT", 10).start();
    let mut client: Client = server.connect();
    client.ask("/sleep/3500");
    server.wait_in_flight(1);
    server.signal("TERM");
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
    let progress = server.log.events("shutdown_progress");
    assert_eq!(progress.len(), 3, "{progress:?}");
    for (line, second) in progress.iter().zip(1..) {
        assert_eq!((&line["requests_in_flight"], &line["connections"]), (&1.into(), &1.into()));
        let elapsed = line["elapsed_seconds"].as_f64().unwrap();
        assert!((elapsed - f64::from(second)).abs() < 0.4, "{line}");
        let oldest = line["oldest"].as_str().unwrap();
        assert!(oldest.starts_with("GET /sleep/3500 from 127.0.0.1:"), "{line}");
    }
    let order: Vec<String> = server.log.all();
    let place = |event: &str| order.iter().position(|line| line.contains(event));
    assert!(place("shutdown_initiated") < place("shutdown_phase"));
    assert!(place("shutdown_phase") < place("shutdown_progress"));
    assert!(place("shutdown_progress") < place("shutdown_report"));
}
