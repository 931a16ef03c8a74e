//! The report of a real shutdown: where it is written, and how `ebbtide report` draws it.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::server::{Ended, Launch, file_in};
use crate::support::tools::stdout;
use crate::support::{SOON, beside_others};

#[test]
fn a_report_that_cannot_be_written_is_one_warning_and_the_same_status() {
    let _turn = beside_others();
    let pipe = file_in("report-pipe", "nobody-reads.json");
    stdout(Command::new("mkfifo").arg(&pipe));
    let directory = env!("CARGO_TARGET_TMPDIR");
    for (path, timeout, status) in
        [("/nonexistent/report.json", 5, 0), (directory, 5, 0), (&pipe, 5, 0), (&pipe, 1, 3)]
    {
        let launch = Launch::new().env("SHUTDOWN_REPORT_PATH", path);
        let mut server = launch.env("SHUTDOWN_TIMEOUT", timeout).start();
        let mut client = server.connect();
        if status == 3 {
            client.ask("/sleep/60000");
            server.wait_in_flight(1);
        }
        let asked = server.signal("TERM");
        let held = (status == 3).then_some(client);
        let exit = server.exit(SOON);
        drop(held);
        assert_eq!(exit.status, status, "{path}");
        let took = exit.at.duration_since(asked).as_secs_f64();
        assert!(took < f64::from(timeout) + 0.5, "{path}: {took} s");
        let warnings = server.log.events("report_not_written");
        assert_eq!(warnings.len(), 1, "{path}: {warnings:?}");
        assert_eq!((&warnings[0]["level"], &warnings[0]["path"]), (&"WARN".into(), &path.into()));
        assert_eq!(server.log.report()["exit_status"], status, "{path}");
    }
}

/// `ebbtide report FILE`, in an environment that no server would start in.
fn report(file: &str) -> Ended {
    Launch::bare().env("SHUTDOWN_TIMEOUT", "soon").args(&["report", file]).finish()
}

#[test]
fn the_report_of_a_shutdown_is_drawn_from_its_file_and_from_the_log() {
    let _turn = beside_others();
    let file = file_in("report-drawn", "report.json");
    let launch = Launch::new().env("SHUTDOWN_REPORT_PATH", &file).env("SHUTDOWN_TIMEOUT", 2);
    let mut server = launch.env("ACCESS_LOG", true).start();
    assert_eq!(server.connect().get("/plaintext").status, 200);
    let mut slow = server.connect();
    slow.ask("/sleep/500?token=secret");
    let mut stuck = server.connect();
    stuck.ask("/sleep/60000");
    server.wait_in_flight(2);
    server.signal("TERM");
    assert_eq!(slow.response().status, 200);
    drop(slow);
    assert_eq!(stuck.response().status, 503);
    drop(stuck);
    assert_eq!(server.exit(SOON).status, 3);

    let drawn = report(&file);
    assert_eq!((drawn.status, &*drawn.stderr), (0, ""));
    for part in [
        "Shutdown by SIGTERM at 20",
        "of a budget of 2.000 s",
        "  exit status 3: the shutdown refused or cut at least one request or connection\n",
        "\n  draining           ███████",
        "\nSlowest requests\n  answered           ◂█",
        "    GET /sleep/500 from 127.0.0.1:",
        "  3 begun = 2 answered + 1 refused + 0 cut + 0 abandoned\n",
        "\nLost requests\n  refused            ◂█",
        "    GET /sleep/60000 from 127.0.0.1:",
        ", waited for its handler\n",
    ] {
        assert!(drawn.stdout.contains(part), "no {part:?} in\n{}", drawn.stdout);
    }
    for line in drawn.stdout.lines() {
        assert!(line.chars().count() <= 80 && !line.contains(char::is_control), "{line:?}");
    }

    let log = file_in("report-log", "log.json");
    fs::write(&log, server.log.all().join("\n")).unwrap();
    assert_eq!(report(&log).stdout, drawn.stdout);
    let mut from_stdin = Launch::bare().args(&["report", "-"]).command();
    let from_stdin = from_stdin.stdin(File::open(&log).unwrap()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&from_stdin.stdout), drawn.stdout);
}

#[test]
fn what_is_no_report_is_named_in_one_line() {
    let _turn = beside_others();
    let file = |name: &str, text: &str| {
        let path = file_in(&format!("no-report-{name}"), name);
        fs::write(&path, text).unwrap();
        path
    };
    let directory = env!("CARGO_TARGET_TMPDIR").to_owned();
    for (path, why) in [
        ("/nonexistent/report.json".to_owned(), "No such file or directory"),
        (directory, "Is a directory"),
        (file("empty", ""), "it is empty"),
        (file("text", "what is this?\n"), "neither a report nor a log of JSON lines"),
        (file("log", "{\"event_type\":\"x\"}\n{}\n"), "a log without the report of a shutdown"),
        (file("other", "{\"a\":1}"), "no report of a shutdown: it has no version"),
        (file("newer", "{\"version\":2}"), "a report of version 2; this is read: version 1"),
        (file("older", "{\"phases_seconds\":{}}"), "a report of an older version; this is read"),
        (file("torn", "{\"version\":1}"), "no report of a shutdown: missing field `reason`"),
        ("/nonexistent/\u{1b}[2J\u{9b}\n".to_owned(), "No such file or directory"),
    ] {
        let ended = report(&path);
        assert_eq!((ended.status, &*ended.stdout), (1, ""), "{path:?}: {}", ended.stderr);
        let shown = path.replace('\u{1b}', "\\u001b").replace('\u{9b}', "\\u009b");
        let shown = format!("ebbtide: {}: {why}", shown.replace('\n', "\\u000a"));
        assert!(ended.stderr.starts_with(&shown), "{:?} instead of {shown:?}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{:?}", ended.stderr);
    }
    let usage = Launch::bare().args(&["report"]).finish();
    assert_eq!((usage.status, &*usage.stdout), (2, ""), "{}", usage.stderr);
    assert!(usage.stderr.contains("<FILE>"), "{}", usage.stderr);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let _turn = beside_others();
    let server = Launch::new().start();
    let whole: Value = server.stop();
    let path = file_in("report-pager", "report.json");
    fs::write(&path, whole.to_string()).unwrap();
    let mut command = Launch::bare().args(&["report", &path]).command();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}
