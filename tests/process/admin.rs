//! The admin listener: health, metrics, and that both outlive the listeners of clients.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::tools::{raise_descriptors, tool};
use crate::support::{SOON, beside_others, until};

/// The status of a GET on a connection of its own.
fn status(port: u16, path: &str) -> u16 {
    Client::connect(port).get(path).status
}

#[test]
fn health_is_told_on_both_listeners_and_metrics_on_one() {
    let _turn = beside_others();
    let server = Launch::new().start();
    for path in ["/livez", "/readyz", "/healthz", "/readyz?verbose"] {
        assert_eq!(status(server.admin, path), 200, "{path}");
        assert_eq!(status(server.port, path), 200, "{path}");
    }
    assert_eq!(status(server.admin, "/metrics"), 200);
    assert_eq!(status(server.port, "/metrics"), 404);
    server.stop();

    let private = Launch::new().env("HEALTH_ON_PUBLIC", false).start();
    assert_eq!(status(private.port, "/livez"), 404);
    assert_eq!(status(private.admin, "/livez"), 200);
    private.stop();
}

#[test]
fn not_ready_while_still_accepting_and_then_draining() {
    let _turn = beside_others();
    let launch = Launch::new().env("SHUTDOWN_TIMEOUT", 9).env("SHUTDOWN_DELAY", 1);
    let mut server = launch.start();
    let mut slow = server.connect();
    slow.ask("/sleep/4000");
    server.wait_in_flight(1);
    server.signal("TERM");
    server.log.wait_for("lame duck", |line| line["phase"] == "lame_duck");
    for path in ["/readyz", "/healthz"] {
        assert_eq!(status(server.admin, path), 503, "{path}");
        assert_eq!(status(server.port, path), 503, "{path}");
    }
    // Alive it is, and new connections are served; each learns of the close.
    assert_eq!(status(server.admin, "/livez"), 200);
    let response = server.connect().get("/plaintext");
    assert_eq!(response.status, 200);
    assert!(response.announces_close(), "{}", response.head);

    server.log.wait_for("draining", |line| line["phase"] == "draining");
    until("the listeners to be retired", SOON, || {
        std::net::TcpStream::connect(("127.0.0.1", server.port)).err()
    });
    // The admin listener answers on.
    assert_eq!(status(server.admin, "/readyz"), 503);
    assert_eq!(status(server.admin, "/livez"), 200);
    let metrics = server.metrics();
    let lines = [
        "shutdown_phase{phase=\"draining\"} 1",
        "active_connections_at_shutdown 1",
        "forced_shutdown_total 0",
    ];
    for line in lines {
        assert!(metrics.contains(&format!("\n{line}\n")), "no {line} in {metrics}");
    }
    assert!(server.metric("shutdown_duration_seconds") > 0.0);
    assert_eq!(slow.response().status, 200);
    drop(slow);
    assert_eq!(server.exit(SOON).status, 0);
}

/// Some of everything that is counted.
fn exercise(server: &Server) {
    let mut client = server.connect();
    for path in ["/", "/plaintext", "/json", "/nothing", "/bytes/100000", "/stream/3/1"] {
        client.get(path);
    }
    client.send("POST /plaintext HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status, 405);
    let mut broken = server.connect();
    broken.send("nonsense\r\n\r\n");
    assert_eq!(broken.response().status, 400);
    assert_eq!(status(server.port, "/panic"), 500);
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics() {
    let _turn = beside_others();
    let Some(mut promtool) = tool("promtool") else { return };
    let server = Launch::new().start();
    exercise(&server);
    // The numbers of the hot path are merged from time to time.
    let text = until("the panic to be counted", SOON, || {
        let text = server.metrics();
        text.contains("code=\"500\"").then_some(text)
    });
    let mut check = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    server.stop();
}

#[test]
fn every_metric_of_the_contract_is_there() {
    let _turn = beside_others();
    let server = Launch::new().start();
    exercise(&server);
    let text = until("the panic to be counted", SOON, || {
        let text = server.metrics();
        text.contains("code=\"500\"").then_some(text)
    });
    for name in [
        "http_requests_total",
        "http_request_duration_seconds",
        "http_requests_in_flight",
        "http_requests_finished_total",
        "http_rejected_total",
        "http_connections",
        "http_connections_accepted_total",
        "http_connections_closed_total",
        "http_late_bytes_total",
        "reactor_turn_seconds",
        "shutdown_phase",
        "log_lines_dropped_total",
        "build_info",
        "process_cpu_seconds_total",
        "shutdown_duration_seconds",
        "active_connections_at_shutdown",
        "forced_shutdown_total",
    ] {
        assert!(text.contains(&format!("\n# TYPE {name} ")), "no {name} in {text}");
    }
    assert!(text.contains("http_rejected_total{code=\"400\"} 1\n"), "{text}");
    server.stop();
}

#[test]
fn the_admin_listener_can_be_off() {
    let _turn = beside_others();
    let mut server = Launch::bare().env("LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "off").start();
    assert_eq!(server.admin, 0);
    assert_eq!(status(server.port, "/readyz"), 200);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
}

#[test]
fn of_a_crowd_the_oldest_are_listed_and_the_others_counted() {
    let _turn = beside_others();
    assert!(raise_descriptors() >= 4096, "this test needs 4096 descriptors");
    let server = Launch::new().start();
    let crowd: Vec<Client> = (0..1100).map(|_| server.connect()).collect();
    let told: Value = until("all to be accepted", SOON, || {
        let answer = Client::connect(server.admin).get("/connections");
        let told: Value = serde_json::from_str(&answer.text()).unwrap();
        (told["open"] == 1100).then_some(told)
    });
    assert_eq!((&told["more"], &told["states"]["new"]), (&100.into(), &1100.into()));
    let rows = told["connections"].as_array().unwrap();
    assert_eq!(rows.len(), 1000);
    let ages = rows.iter().map(|row| row["since_seconds"].as_f64().unwrap());
    assert!(ages.is_sorted_by(|older, younger| older >= younger), "{told}");
    drop(crowd);
    server.stop();
}
