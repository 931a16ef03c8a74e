//! The report of a real shutdown: where it is written, and how `ebbtide report` draws it.

use std::process::Command;

use crate::support::server::{Launch, file_in};
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
