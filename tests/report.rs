//! How a report is drawn: the pictures are in `tests/report/`, and `UPDATE=1` draws them again.

use std::fs;
use std::path::Path;

use ebbtide::internal::report::draw::{Style, draw};
use ebbtide::internal::report::read::read;
use serde_json::{Value, json};

fn drawn(report: &Value, style: Style) -> String {
    draw(&read(report.to_string().as_bytes()).expect("a report"), style)
}

/// Compares with the picture of that name.
fn check(name: &str, report: &Value) {
    let text = drawn(report, Style::Plain);
    assert_fits(&text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report").join(name);
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        fs::write(&path, &text).expect("the picture can be written");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "tests/report/{name}: run `UPDATE=1 cargo test --test report`");
}

/// At most 80 columns, and nothing that a terminal obeys.
fn assert_fits(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.ends_with(' '), "{line:?}");
    }
}

/// A shutdown that lost nothing.
fn report() -> Value {
    json!({
        "version": 1,
        "reason": "SIGTERM",
        "started_at": "2026-11-22T16:46:02.433Z",
        "ended_at": "2026-11-22T16:46:02.939Z",
        "duration_seconds": 0.506_123,
        "phases": [
            { "name": "draining", "start_seconds": 0.0, "seconds": 0.506 },
            { "name": "cleaning_up", "start_seconds": 0.506, "seconds": 0.000_123 },
        ],
        "phases_seconds": { "draining": 0.506, "cleaning_up": 0.000_123 },
        "budget_seconds": 30.0,
        "budget_left_seconds": 29.493_877,
        "active_connections_at_shutdown": 64,
        "refused_in_shutdown": 0,
        "cut_in_shutdown": 0,
        "requests": {
            "begun": 43_853,
            "in_flight": 0,
            "finished": { "answered": 43_851, "refused": 0, "cut": 0, "abandoned": 2 },
            "rejected": { "400": 0, "408": 3, "414": 0, "431": 1 },
        },
        "connections": {
            "opened": 70,
            "open": 0,
            "closed": {
                "client_closed": 2, "closed_after_response": 64, "closed_idle": 0, "timed_out": 0,
                "rejected": 4, "shed": 0, "reset": 0, "cut": 0,
            },
        },
        "late_bytes": 0,
        "lost": [],
        "lost_unnamed": 0,
        "slowest": [],
        "exit_status": 0,
    })
}

fn line(outcome: &str, path: &str, age: f64, ended: f64, waited_for: &str) -> Value {
    json!({
        "outcome": outcome, "method": "GET", "path": path, "peer": "127.0.0.1:47512",
        "route": "", "age_seconds": age, "ended_seconds": ended, "waited_for": waited_for,
    })
}

/// As [`report`], with what went wrong in it.
fn lossy() -> Value {
    let mut report = report();
    report["duration_seconds"] = 24.75.into();
    report["budget_left_seconds"] = 5.25.into();
    report["phases"] = json!([
        { "name": "lame_duck", "start_seconds": 0.0, "seconds": 5.0 },
        { "name": "draining", "start_seconds": 5.0, "seconds": 17.5 },
        { "name": "cancelling", "start_seconds": 22.5, "seconds": 1.0 },
        { "name": "cleaning_up", "start_seconds": 23.5, "seconds": 1.25 },
    ]);
    report["slowest"] = json!([
        line("answered", "/reports/yearly", 21.5, 20.0, "its handler"),
        line("abandoned", "/bytes/200000000", 12.0, 16.25, "the client to take the response"),
        line("answered", "/tiny", 0.02, 6.0, "the request body"),
    ]);
    report["lost"] = (0..23)
        .map(|n| line("refused", &format!("/sleep/{n}"), 24.0 + f64::from(n), 23.0, "its handler"))
        .collect();
    report["lost_unnamed"] = 100.into();
    report["refused_in_shutdown"] = 123.into();
    report["requests"]["finished"]["refused"] = 123.into();
    report["requests"]["begun"] = 43_976.into();
    report["exit_status"] = 3.into();
    report["late_bytes"] = 517.into();
    report
}

fn hook(name: &str, stage: &str, outcome: &str, seconds: f64, error: Option<&str>) -> Value {
    let mut hook = json!({
        "name": name, "stage": stage, "outcome": outcome, "seconds": seconds, "limit_seconds": 1.0,
    });
    if let Some(error) = error {
        hook["error"] = error.into();
    }
    hook
}

#[test]
fn a_shutdown_that_lost_nothing_is_drawn() {
    check("drained.txt", &report());
}

#[test]
fn what_was_slow_and_what_was_lost_is_drawn() {
    check("lossy.txt", &lossy());
}

#[test]
fn hooks_are_drawn_where_their_stage_began() {
    let mut report = lossy();
    report["exit_status"] = 4.into();
    report["lost"] = json!([]);
    report["lost_unnamed"] = 0.into();
    report["slowest"] = json!([]);
    report["hooks"] = json!([
        hook("flush_queue", "http_drained", "done", 0.25, None),
        hook("close_sessions_of_everyone", "http_drained", "overran", 1.0, None),
        hook("close_database", "last", "failed", 0.125, Some("3 connections would not close")),
        hook("leave", "last", "panicked", 0.0, Some("index out of bounds")),
    ]);
    report["other_work"] = 2.into();
    check("hooks.txt", &report);
}

#[test]
fn nothing_that_a_terminal_obeys_is_drawn_and_nothing_is_too_wide() {
    let mut report = lossy();
    let hostile = "\u{1b}[2J\u{9b}31m\u{202e}\r\n\u{7}".repeat(9) + &"漢".repeat(100);
    report["reason"] = hostile.clone().into();
    report["started_at"] = hostile.clone().into();
    report["phases"][0]["name"] = hostile.clone().into();
    report["phases"][1]["start_seconds"] = 1e9.into();
    report["phases"][2]["seconds"] = 1e9.into();
    report["slowest"][0]["path"] = hostile.clone().into();
    report["slowest"][1]["age_seconds"] = 1e9.into();
    report["slowest"][2]["ended_seconds"] = 1e9.into();
    report["hooks"] = json!([hook(&hostile, &hostile, &hostile, 1e9, Some(&hostile))]);
    report["lost"] = json!([line("cut", "/", 0.0, 0.0, &hostile)]);
    report["lost_unnamed"] = u64::MAX.into();
    report["requests"]["finished"][&hostile] = u64::MAX.into();
    report["requests"]["begun"] = u64::MAX.into();
    report["requests"]["in_flight"] = u64::MAX.into();
    report["requests"]["rejected"][&hostile] = u64::MAX.into();
    report["connections"]["closed"]["cut"] = u64::MAX.into();
    report["connections"]["open"] = u64::MAX.into();
    report["refused_in_shutdown"] = u64::MAX.into();
    report["cut_in_shutdown"] = u64::MAX.into();
    report["late_bytes"] = u64::MAX.into();
    report["exit_status"] = 200.into();
    check("hostile.txt", &report);
}

#[test]
fn a_shutdown_of_no_time_at_all_is_drawn() {
    let mut report = report();
    report["duration_seconds"] = 0.0.into();
    report["phases"] = json!([{ "name": "draining", "start_seconds": 0.0, "seconds": 0.0 }]);
    check("instant.txt", &report);
    report["phases"] = json!([]);
    assert_fits(&drawn(&report, Style::Plain));
}

#[test]
fn any_duration_has_an_axis_that_fits() {
    let mut report = report();
    for exponent in -7..=8 {
        for factor in [1.0, 1.9, 2.0, 4.999, 5.0, 9.99] {
            let seconds = factor * 10_f64.powi(exponent);
            report["duration_seconds"] = seconds.into();
            report["phases"][0]["seconds"] = seconds.into();
            let text = drawn(&report, Style::Plain);
            assert_fits(&text);
            let axis = text.lines().skip_while(|line| *line != "Phases").nth(1).unwrap_or_default();
            let ticks = axis.matches(" s").count();
            assert!(ticks >= 2 && axis.trim_start().starts_with('0'), "{seconds}: {axis:?}");
        }
    }
}

#[test]
fn colours_change_nothing_but_colours() {
    let coloured = drawn(&lossy(), Style::Colour);
    assert!(coloured.contains("\u{1b}[1;31m  exit status 3"), "{coloured}");
    let plain = ["\u{1b}[1;31m", "\u{1b}[1m", "\u{1b}[0m"]
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(plain, drawn(&lossy(), Style::Plain));
}

#[test]
fn the_last_report_of_a_log_is_taken() {
    let mut last = report();
    last["reason"] = "the last".into();
    let line = |report: &Value| json!({ "event_type": "shutdown_report", "report": report });
    let log = format!(
        "no JSON\n{}\n{}\n{}\n{}\n",
        line(&report()),
        line(&last),
        json!({ "event_type": "request", "path": "/shutdown_report" }),
        "{\"event_type\":\"shutdown_report\",\"report\":{\"cut of",
    );
    let text = draw(&read(log.as_bytes()).expect("a report"), Style::Plain);
    assert!(text.starts_with("Shutdown by the last at "), "{text}");
    let only = line(&report()).to_string();
    assert_eq!(draw(&read(only.as_bytes()).expect("a report"), Style::Plain), {
        drawn(&report(), Style::Plain)
    });
    let pretty = serde_json::to_string_pretty(&report()).expect("JSON");
    assert_eq!(draw(&read(pretty.as_bytes()).expect("a report"), Style::Plain), {
        drawn(&report(), Style::Plain)
    });
}
