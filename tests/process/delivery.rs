//! Last responses that the kernel has still to deliver when their connections are closed.

use std::time::Duration;

use crate::support::client::{Client, End};
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::{finished_trace, strace_works};
use crate::support::{SLACK, SOON, alone, beside_others, until};

/// More than a narrow client's kernel takes, and small.
const BYTES: usize = 7000;

fn closing_get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
}

/// A client that has taken a part of the response with which its connection ends.
fn half_served(server: &Server) -> Client {
    let mut client = Client::connect_narrow(server.port);
    client.send(closing_get(&format!("/bytes/{BYTES}")));
    client
}

fn wait_closed(server: &Server, count: u32) {
    let closed = format!("closed_total{{outcome=\"closed_after_response\"}} {count}\n");
    until("the connections to be closed", SOON, || {
        server.metrics().contains(&closed).then_some(())
    });
}

#[test]
fn a_client_with_one_request_is_let_go_before_it_has_its_response() {
    let _turn = beside_others();
    let server = Launch::new().start();
    let mut client = half_served(&server);
    wait_closed(&server, 1);
    assert_eq!(client.response().body.len(), BYTES);
    assert_eq!(client.end(), End::Closed);
    // With more behind it than the one response the kernel is not left alone.
    let mut second = Client::connect_narrow(server.port);
    assert_eq!(second.get("/plaintext").status, 200);
    second.send(closing_get(&format!("/bytes/{BYTES}")));
    let lingering = "http_connections{state=\"lingering\"} 1\n";
    until("it to linger", SOON, || server.metrics().contains(lingering).then_some(()));
    assert_eq!(second.response().body.len(), BYTES);
    assert_eq!(second.end(), End::Closed);
    wait_closed(&server, 2);
    drop((client, second));
    server.stop();
}

#[test]
fn a_shutdown_waits_for_what_the_kernel_has_to_deliver() {
    let _turn = beside_others();
    for workers in ["0", "2"] {
        let mut server = Launch::new().env("WORKERS", workers).start();
        let mut client = half_served(&server);
        wait_closed(&server, 1);
        server.signal("TERM");
        // After a second, in which nothing else was left to wait for.
        let progress = server.log.wait("shutdown_progress");
        assert_eq!(progress["responses_to_deliver"], 1, "{progress:#}");
        assert_eq!((&progress["connections"], &progress["phase"]), (&0.into(), &"draining".into()));
        assert_eq!(client.response().body.len(), BYTES);
        assert_eq!(client.end(), End::Closed);
        drop(client);
        assert_eq!(server.exit(SOON).status, 0);
        assert_eq!(server.log.events("responses_undelivered").len(), 0);
        let taken = server.log.report()["duration_seconds"].as_f64().unwrap();
        assert!(taken < 1.5 + SLACK.as_secs_f64(), "{taken} s");
    }
}

#[test]
fn a_client_that_takes_nothing_holds_a_shutdown_no_longer_than_its_budget() {
    let _turn = alone();
    let mut server = Launch::new().env("SHUTDOWN_TIMEOUT", 2).start();
    let client = half_served(&server);
    wait_closed(&server, 1);
    let signalled = server.signal("TERM");
    let undelivered = server.log.wait("responses_undelivered");
    assert_eq!(undelivered["responses"], 1, "{undelivered:#}");
    assert_eq!(server.exit(SOON).status, 3);
    assert_eq!(server.log.report()["responses_undelivered"], 1);
    let taken = signalled.elapsed();
    assert!(taken > Duration::from_secs(1), "{taken:?}");
    assert!(taken < Duration::from_secs(2) + SLACK, "{taken:?}");
    drop(client);
}

#[test]
fn a_connection_for_one_request_costs_one_call_of_each_kind_and_no_question() {
    let _turn = alone();
    if !strace_works() {
        return;
    }
    let trace = file_in("traced-closes", "trace");
    let launch = Launch::new().args(&["--workers", "1"]);
    let server = launch.through(&["strace", "-D", "-f", "-o", &trace]).start();
    for _ in 0..200 {
        let mut client = server.connect();
        client.send(closing_get("/plaintext"));
        assert_eq!(client.response().status, 200);
        assert_eq!(client.end(), End::Closed);
    }
    server.stop();
    let text = finished_trace(&trace);
    let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    let together = count("MSG_NOSIGNAL|MSG_MORE") + count("MSG_MORE|MSG_NOSIGNAL");
    // A kernel is believed once it has counted a client that waits.
    assert!((190..=200).contains(&together), "{together} responses that wait for FIN");
    assert!((190..=210).contains(&count(" shutdown(")), "{} FINs", count(" shutdown("));
    for question in ["SIOCOUTQ", "TIOCOUTQ"] {
        assert!(count(question) <= 10, "{} {question}", count(question));
    }
}
