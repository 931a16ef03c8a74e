//! How long a shutdown takes, against what is promised: measured from the signal to the exit.

use std::time::Duration;

use serde_json::Value;

use crate::embedded::Program;
use crate::support::client::{Client, End};
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::raise_descriptors;
use crate::support::{SLACK, SOON, alone, beside_others, let_pass, say, until};
use crate::timing::stuck;

/// What a number of runs took: the median and the worst are said, and the worst is returned.
fn said(what: &str, promised: &str, mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    let runs = took.len();
    say(&format!("{what}: median {median:?}, worst of {runs} {worst:?} (promised: {promised})"));
    worst
}

/// From the signal to the exit.
fn ended(server: &mut Server, status: i32) -> Duration {
    let signalled = server.signal("TERM");
    let exit = server.exit(SOON);
    assert_eq!(exit.status, status, "{}", server.log.so_far().join("\n"));
    exit.at - signalled
}

#[test]
fn with_nothing_open_it_takes_at_most_a_moment() {
    let _turn = alone();
    for workers in ["auto", "0"] {
        let took = (0..20).map(|_| {
            let mut server = Launch::new().env("WORKERS", workers).start();
            assert_eq!(server.connect().get("/plaintext").status, 200);
            until("the client to be gone", SOON, || {
                let gone = "http_connections{state=\"idle\"} 0";
                server.metrics().contains(gone).then_some(())
            });
            ended(&mut server, 0)
        });
        let what = format!("nothing open, workers {workers}");
        let worst = said(&what, "30 ms", took.collect());
        assert!(worst < Duration::from_millis(30) + SLACK);
    }
}

#[test]
fn one_request_of_two_seconds_takes_at_most_that() {
    let _turn = alone();
    let took = (0..3).map(|_| {
        let mut server = Launch::new().start();
        let mut client = server.connect();
        client.ask("/sleep/2000");
        server.wait_in_flight(1);
        let signalled = server.signal("TERM");
        let response = client.response();
        assert!(response.status == 200 && response.announces_close());
        drop(client);
        let exit = server.exit(SOON);
        assert_eq!(exit.status, 0);
        exit.at - signalled
    });
    let worst = said("one request of 2 s", "2.05 s", took.collect());
    assert!(worst < Duration::from_millis(2050) + SLACK);
}

#[test]
fn with_5000_silent_connections_it_takes_at_most_the_idle_window() {
    const COUNT: usize = 5000;
    let _turn = alone();
    if raise_descriptors() < 2 * COUNT + 200 {
        say("SKIPPED: not enough descriptors for 5,000 connections");
        return;
    }
    for window in [1, 5] {
        let mut server = Launch::new().env("SHUTDOWN_IDLE_WINDOW", window).start();
        let mut clients: Vec<Client> = (0..COUNT).map(|_| server.connect()).collect();
        for client in &mut clients {
            assert_eq!(client.get("/plaintext").status, 200);
        }
        until("all to hibernate", SOON, || {
            let all = format!("http_connections{{state=\"hibernating\"}} {COUNT}\n");
            server.metrics().contains(&all).then_some(())
        });
        let took = ended(&mut server, 0);
        let promised = Duration::from_secs(window) + Duration::from_millis(100);
        said(
            &format!("5,000 idle connections, window {window} s"),
            &format!("{promised:?}"),
            vec![took],
        );
        assert!(took + Duration::from_millis(200) > Duration::from_secs(window), "{took:?}");
        assert!(took < promised + SLACK, "{took:?}");
        for client in &mut clients {
            assert_eq!(client.end(), End::Closed, "not one was reset");
        }
        let report = server.log.report();
        assert_eq!(report["connections"]["closed"]["closed_idle"], COUNT, "{report:#}");
    }
}

/// Stuck in every way at once: requests that wait, streams, a worker that is blocked, a hook that
/// hangs, and a log that nobody reads.
fn end_of_a_stuck_program(run: usize) -> Duration {
    let file = file_in(&format!("stuck-{run}"), "report.json");
    let program = Program {
        timeout: 2000,
        hooks: &["http_drained:hangs:hangs", "last:hangs too:hangs"],
        report: file.clone(),
        ..Program::default()
    };
    let (mut server, reader) = stuck(program.command());
    let mut clients: Vec<Client> = (0..10).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.ask("/sleep/600000");
    }
    server.wait_in_flight(10);
    let mut blocking = server.connect();
    blocking.ask("/block/600000");
    server.wait_in_flight(11);
    let took = ended(&mut server, 3);
    let report: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let lost = report["lost"].as_array().unwrap();
    assert_eq!(lost.len(), 11, "each is named: {report:#}");
    assert!(lost.iter().any(|lost| lost["path"] == "/block/600000" && lost["outcome"] == "cut"));
    assert!(report["hooks"].as_array().unwrap().iter().all(|hook| hook["outcome"] == "overran"));
    drop((clients, reader));
    took
}

#[test]
fn stuck_in_every_way_it_takes_at_most_its_budget() {
    let _turn = alone();
    let took = (0..20).map(end_of_a_stuck_program).collect();
    let worst = said("stuck in every way, T = 2 s", "2.05 s, 2.2 s at worst", took);
    assert!(worst < Duration::from_millis(2050) + SLACK);
}

#[test]
fn without_force_it_says_every_five_seconds_what_it_waits_for() {
    let _turn = beside_others();
    let mut server =
        Launch::new().env("SHUTDOWN_TIMEOUT", 1).env("SHUTDOWN_FORCE_AFTER_TIMEOUT", false).start();
    let mut client = server.connect();
    client.ask("/sleep/13500");
    server.wait_in_flight(1);
    let signalled = server.signal("TERM");
    assert_eq!(client.response().status, 200);
    let answered = signalled.elapsed();
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
    let lines = server.log.events("shutdown_progress");
    let at: Vec<f64> = lines.iter().map(|line| line["elapsed_seconds"].as_f64().unwrap()).collect();
    assert!(answered > Duration::from_secs(12), "{answered:?}");
    // The first within the budget's time or shortly after, the others five seconds apart.
    assert!((2..=4).contains(&at.len()), "{at:?}");
    assert!(at[0] < 2.0, "{at:?}");
    for pair in at.windows(2).filter(|pair| pair[0] > 1.5) {
        assert!((4.9..5.5).contains(&(pair[1] - pair[0])), "{at:?}");
    }
    for line in &lines {
        let oldest = line["oldest"].as_str().unwrap();
        assert!(oldest.starts_with("GET /sleep/13500 from 127.0.0.1:"), "{line}");
        assert_eq!(line["phase"], "draining");
    }
}

#[test]
fn without_force_a_repeated_signal_escalates() {
    let _turn = beside_others();
    let mut server =
        Launch::new().env("SHUTDOWN_TIMEOUT", 1).env("SHUTDOWN_FORCE_AFTER_TIMEOUT", false).start();
    let mut client = server.connect();
    client.ask("/sleep/20000");
    server.wait_in_flight(1);
    server.signal("TERM");
    let_pass(Duration::from_millis(1500));
    assert!(server.metrics().contains("shutdown_phase{phase=\"draining\"} 1\n"));
    let signalled = server.signal("TERM");
    // Half of a fifth of the budget.
    assert_eq!(client.response().status, 503);
    drop(client);
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 3);
    assert!(exit.at - signalled < Duration::from_millis(200) + SLACK);
}
