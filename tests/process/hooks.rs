//! Hooks and the handle in a real process: exit statuses, log lines, the report's file.

use std::time::Duration;

use serde_json::Value;

use crate::embedded::{Program, tell};
use crate::services::until;
use crate::support::server::{Server, file_in};
use crate::support::{SLACK, SOON, beside_others, let_pass, say};

/// Signals nearer to each other count as one.
const ECHO: Duration = Duration::from_millis(120);

fn wait_for_phase(server: &Server, phase: &str) {
    server
        .log
        .wait_for(phase, |line| line["event_type"] == "shutdown_phase" && line["phase"] == phase);
}

#[test]
fn each_hook_is_logged_and_reported_with_its_outcome() {
    let _turn = beside_others();
    let file = file_in("hooks", "report.json");
    let program = Program {
        timeout: 2000,
        hooks: &[
            "http_drained:works:works",
            "http_drained:fails:fails",
            "http_drained:panics:panics",
            "http_drained:hangs:hangs",
            "last:flush:logs",
        ],
        report: file.clone(),
        ..Program::default()
    };
    let (mut server, _stdin) = program.start();
    assert_eq!(server.connect().get("/plaintext").status, 200);
    let signalled = server.signal("TERM");
    let exit = server.exit(SOON);
    let took = exit.at - signalled;
    say(&format!("a hung hook, T = 2 s: gone after {took:?} (its share is 0.4 s)"));
    assert_eq!(exit.status, 4);
    assert!(took < Duration::from_millis(450) + SLACK, "gone only after {took:?}");
    let lines = server.log.events("shutdown_hook");
    let told: Vec<[&str; 4]> = lines
        .iter()
        .map(|line| {
            assert!(line["seconds"].is_number() && line["limit_seconds"].is_number(), "{line}");
            ["hook", "stage", "outcome", "level"].map(|key| line[key].as_str().unwrap())
        })
        .collect();
    let mut sorted = told.clone();
    sorted.sort_unstable();
    assert_eq!(
        sorted,
        [
            ["fails", "http_drained", "failed", "WARN"],
            ["flush", "last", "done", "INFO"],
            ["hangs", "http_drained", "overran", "WARN"],
            ["panics", "http_drained", "panicked", "WARN"],
            ["works", "http_drained", "done", "INFO"],
        ]
    );
    assert_eq!(told[4][0], "flush", "the last stage comes last");
    let error =
        |name: &str| lines.iter().find(|line| line["hook"] == name).unwrap()["error"].clone();
    assert_eq!((error("fails"), error("panics")), ("the disk is full".into(), "ouch".into()));
    assert_eq!(server.log.events("from_a_hook").len(), 1);
    let report = server.log.report();
    assert_eq!(
        (&report["exit_status"], &report["hooks"].as_array().unwrap().len()),
        (&4.into(), &5)
    );
    assert!(report["phases_seconds"]["cleaning_up"].as_f64().unwrap() > 0.3, "{report:#}");
    let written: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(written, report);
}

#[test]
fn a_report_that_cannot_be_written_is_one_warning_and_changes_no_status() {
    let _turn = beside_others();
    for (hooks, status) in [(&[][..], 0), (&["last:fails:fails"][..], 4)] {
        let report = "/nonexistent/directory/report.json".to_owned();
        let (mut server, _stdin) = Program { hooks, report, ..Program::default() }.start();
        server.signal("TERM");
        assert_eq!(server.exit(SOON).status, status);
        assert_eq!(server.log.events("report_not_written").len(), 1);
        assert_eq!(server.log.report()["exit_status"], status);
    }
}

#[test]
fn a_lost_request_outranks_a_failed_hook() {
    let _turn = beside_others();
    let program = Program { timeout: 1000, hooks: &["last:fails:fails"], ..Program::default() };
    let (mut server, _stdin) = program.start();
    let mut client = server.connect();
    client.ask("/sleep/20000");
    server.wait_in_flight(1);
    server.signal("TERM");
    assert_eq!(client.response().status, 503);
    drop(client);
    assert_eq!(server.exit(SOON).status, 3);
    assert_eq!(server.log.report()["hooks"][0]["outcome"], "failed");
}

#[test]
fn hooks_may_use_their_time_and_the_log_says_what_it_waits_for() {
    let _turn = beside_others();
    // Hooks have 2 s, the first stage four fifths of it.
    let hooks = &["http_drained:slow:takes-its-time", "last:flush:works"];
    for workers in [2, 0] {
        let (mut server, _stdin) = Program { workers, hooks, ..Program::default() }.start();
        server.signal("TERM");
        let line = server.log.wait("shutdown_progress");
        assert_eq!(
            (&line["phase"], &line["requests_in_flight"]),
            (&"cleaning_up".into(), &0.into())
        );
        assert_eq!(line["hooks_running"], "slow for 1.0 s", "{line}");
        assert_eq!(server.exit(SOON).status, 0);
        let report = server.log.report();
        assert_eq!(report["hooks"][0]["name"], "slow");
        assert!(report["hooks"][0]["seconds"].as_f64().unwrap() > 1.4, "{report:#}");
    }
}

#[test]
fn a_signal_while_a_hook_hangs_ends_the_process_at_once() {
    let _turn = beside_others();
    for (signal, status) in [("TERM", 143), ("INT", 130), ("QUIT", 131)] {
        let program = Program { hooks: &["http_drained:hangs:hangs"], ..Program::default() };
        let (mut server, _stdin) = program.start();
        server.signal("TERM");
        wait_for_phase(&server, "cleaning_up");
        let_pass(ECHO);
        let signalled = server.signal(signal);
        let exit = server.exit(SOON);
        assert_eq!(exit.status, status);
        assert!(exit.at - signalled < SLACK);
        assert_eq!(server.log.report()["hooks"][0]["outcome"], "overran");
    }
}

#[test]
fn a_hook_that_comes_too_late_is_said_to_be() {
    let _turn = beside_others();
    let program = Program { timeout: 3000, hooks: &["last:hangs:hangs"], ..Program::default() };
    let (mut server, mut stdin) = program.start();
    tell(&mut stdin, "shutdown");
    wait_for_phase(&server, "cleaning_up");
    tell(&mut stdin, "hook");
    let line = server.log.wait("hook_too_late");
    assert_eq!(line["level"], "WARN");
    assert!(line["message"].as_str().unwrap().contains("late"), "{line}");
    assert_eq!(server.exit(SOON).status, 4);
    assert_eq!(server.log.report()["hooks"].as_array().unwrap().len(), 1);
}

#[test]
fn a_shutdown_that_is_undone_says_so_and_the_next_has_the_whole_budget() {
    let _turn = beside_others();
    let program = Program { timeout: 3000, delay: 900, ..Program::default() };
    let (mut server, mut stdin) = program.start();
    let mut client = server.connect();
    client.ask("/sleep/20000");
    server.wait_in_flight(1);
    server.signal("TERM");
    wait_for_phase(&server, "lame_duck");
    let_pass(Duration::from_millis(500));
    tell(&mut stdin, "undrain");
    let line = server.log.wait("shutdown_undone");
    assert_eq!((&line["level"], &line["reason"]), (&"WARN".into(), &"SIGTERM".into()));
    // Control has said so; the workers hear of it in their next turns.
    until("the workers to go on", SOON, || {
        let response = server.connect().get("/plaintext");
        (response.header("connection") == Some("keep-alive")).then_some(())
    });
    let signalled = server.signal("HUP");
    wait_for_phase(&server, "draining");
    tell(&mut stdin, "undrain");
    let line = server.log.wait("shutdown_not_undone");
    assert_eq!((&line["level"], &line["phase"]), (&"WARN".into(), &"draining".into()));
    assert_eq!(client.response().status, 503);
    drop(client);
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 3);
    let took = exit.at - signalled;
    // 0.6 s are for hooks, half of 0.6 s for handlers that heed their token.
    assert!((2000..2100 + 500).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.log.report()["reason"], "SIGHUP");
    let begun = server.log.events("shutdown_initiated");
    let begun: Vec<&str> = begun.iter().map(|line| line["reason"].as_str().unwrap()).collect();
    assert_eq!(begun, ["SIGTERM", "SIGHUP"]);
    let phases: Vec<Value> =
        server.log.events("shutdown_phase").iter().map(|line| line["phase"].clone()).collect();
    assert_eq!(phases, ["lame_duck", "lame_duck", "draining", "cancelling", "cleaning_up"]);
}

#[test]
fn other_work_is_waited_for_said_and_counted() {
    let _turn = beside_others();
    let program = Program { timeout: 2000, ..Program::default() };
    let (mut server, mut stdin) = program.start();
    tell(&mut stdin, "work");
    tell(&mut stdin, "work");
    // Obeyed in order, so the work counts by then.
    tell(&mut stdin, "shutdown");
    assert_eq!(server.log.wait("shutdown_progress")["other_work"], 2);
    assert_eq!(server.exit(SOON).status, 3);
    let report = server.log.report();
    assert_eq!((&report["other_work"], &report["lost"]), (&2.into(), &serde_json::json!([])));

    let (mut server, mut stdin) = Program::default().start();
    tell(&mut stdin, "work");
    tell(&mut stdin, "shutdown");
    server.log.wait("shutdown_progress");
    tell(&mut stdin, "done");
    assert_eq!(server.exit(SOON).status, 0);
}

#[test]
fn force_ends_the_process_with_its_hooks_run() {
    let _turn = beside_others();
    let program = Program { hooks: &["last:flush:logs"], ..Program::default() };
    let (mut server, mut stdin) = program.start();
    let (mut blocked, mut waiting) = (server.connect(), server.connect());
    waiting.ask("/sleep/20000");
    server.wait_in_flight(1);
    blocked.ask("/block/20000");
    server.wait_in_flight(2);
    let before = std::time::Instant::now();
    tell(&mut stdin, "force");
    let exit = server.exit(SOON);
    assert_eq!(exit.status, 3);
    assert!(exit.at - before < SLACK, "gone only after {:?}", exit.at - before);
    let report = server.log.report();
    assert_eq!((&report["reason"], &report["cut_in_shutdown"]), (&"force()".into(), &2.into()));
    assert_eq!(report["hooks"][0]["outcome"], "done");
    assert_eq!(server.log.events("from_a_hook").len(), 1);
}
