//! What does not start, and how it says so; and the commands that serve nothing.

use std::net::TcpListener;

use serde_json::Value;

use crate::support::beside_others;
use crate::support::client::Client;
use crate::support::server::{Ended, Launch, file_in};

/// That it ended as bad configuration does: status 78 and one line on stderr with these parts.
fn assert_refused(ended: &Ended, parts: &[&str]) {
    assert_eq!(ended.status, 78, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    assert_eq!(ended.stderr.matches('\n').count(), 1, "{ended:?}");
    assert!(ended.stderr.ends_with('\n'), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part:?} is not in {:?}", ended.stderr);
    }
}

#[test]
fn bad_values_end_with_78_and_one_line_before_anything_is_bound() {
    let _turn = beside_others();
    // Binding this address would fail with status 1: the refusal must come first.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let launch = || Launch::new().listen(taken.local_addr().unwrap());
    for (name, value, parts) in [
        ("SHUTDOWN_TIMEOUT", "soon", ["\"soon\"", "a duration such as", "from 100ms to 24h"]),
        ("SHUTDOWN_TIMEOUT", "0", ["\"0\"", "a duration such as", "from 100ms to 24h"]),
        ("SHUTDOWN_TIMEOUT", "-5", ["\"-5\"", "a duration such as", "from 100ms to 24h"]),
        ("SHUTDOWN_WAIT_FOR_CONNECTIONS", "maybe", ["\"maybe\"", "true", "false"]),
        ("SHUTDOWN_FORCE_AFTER_TIMEOUT", "1", ["\"1\"", "true", "false"]),
        ("LOG_LEVEL", "bogus", ["\"bogus\"", "expected one of", "off, error, warn, info, debug"]),
        ("LOG_FORMAT", "xml", ["\"xml\"", "expected one of", "auto, json, text"]),
        ("WORKERS", "many", ["\"many\"", "\"auto\" or", "0 to 1024"]),
        ("MAX_CONNECTIONS", "0", ["\"0\"", "expected", "1 to 1000000"]),
        ("HEAD_BYTES_MAX", "12 parsecs", ["\"12 parsecs\"", "a size such as", "from 1KiB to"]),
        ("PORT", "70000", ["\"70000\"", "expected a port", "65535"]),
        ("ADMIN_LISTEN", "nowhere", ["\"nowhere\"", "expected", "127.0.0.1:"]),
        ("LISTEN", "localhost:80", ["\"localhost:80\"", "expected", "127.0.0.1:8080"]),
        ("WORKERS", "a\nb\u{1b}[31m", ["a\\nb\\u{1b}[31m", "expected", "0 to 1024"]),
    ] {
        let ended = launch().env(name, value).finish();
        assert_refused(&ended, &parts);
        assert!(ended.stderr.contains(&format!("variable {name}")), "{ended:?}");
    }
    let ended = launch().args(&["--keep-alive-timeout", "later"]).finish();
    assert_refused(&ended, &["flag --keep-alive-timeout", "\"later\"", "a duration such as"]);
}

#[test]
fn values_that_contradict_each_other_end_with_78() {
    let _turn = beside_others();
    let launch = Launch::new().env("SHUTDOWN_TIMEOUT", 9).env("SHUTDOWN_DELAY", 4);
    let parts = ["SHUTDOWN_DELAY", "\"4s\"", "SHUTDOWN_TIMEOUT", "\"9s\"", "at most a third"];
    assert_refused(&launch.finish(), &parts);
}

#[test]
fn bad_files_end_with_78_and_their_line() {
    let _turn = beside_others();
    let file = file_in("bad-files", "settings.toml");
    for (text, parts) in [
        ("\nworkers = 'many'\n", ["line 2", "workers = 'many'", "0 to 1024"]),
        ("shutdown_timeuot = 5\n", ["line 1", "\"shutdown_timeuot\"", "\"shutdown_timeout\""]),
        ("[server]\nworkers = 1\n", ["line 1", "\"server\"", "expected one flat list"]),
        ("workers = \n", ["line 1", "workers =", "not TOML"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let ended = Launch::new().env("EBBTIDE_CONFIG", &file).finish();
        assert_refused(&ended, &parts);
        assert!(ended.stderr.contains(&file), "{ended:?}");
    }
    let ended = Launch::new().args(&["--config", "/no/such/file"]).finish();
    assert_refused(&ended, &["/no/such/file", "flag --config", "can not be read"]);
}

#[test]
fn check_config_says_what_serving_would_say() {
    let _turn = beside_others();
    let ended = Launch::new().args(&["check-config"]).finish();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let ended = Launch::new().args(&["check-config"]).env("LOG_LEVEL", "bogus").finish();
    assert_refused(&ended, &["variable LOG_LEVEL", "\"bogus\"", "expected one of"]);
}

#[test]
fn print_config_shows_values_and_where_they_came_from() {
    let _turn = beside_others();
    let file = file_in("print-config", "settings.toml");
    std::fs::write(&file, "workers = 3\nshutdown_timeout = 5\n").unwrap();
    let ended = Launch::bare()
        .env("EBBTIDE_CONFIG", &file)
        .env("SHUTDOWN_TIMEOUT", "6s")
        .env("PORT", 8123)
        .args(&["print-config", "--max-connections", "77"])
        .finish();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let line = |key: &str| {
        let found = ended.stdout.lines().find(|line| line.starts_with(&format!("{key} = ")));
        found.unwrap_or_else(|| panic!("no {key} in {}", ended.stdout))
    };
    for (key, value, source) in [
        ("workers", "3", "line 1"),
        ("shutdown_timeout", "\"6s\"", "SHUTDOWN_TIMEOUT"),
        ("max_connections", "77", "--max-connections"),
        ("listen", "\"127.0.0.1:8123\"", "PORT"),
        ("shutdown_delay", "\"0s\"", "default"),
        ("shutdown_wait_for_connections", "true", "default"),
    ] {
        let line = line(key);
        assert!(line.starts_with(&format!("{key} = {value}")), "{line}");
        assert!(line.contains(source), "{line}");
    }
    // What it prints is a configuration.
    let copy = file_in("print-config-copy", "settings.toml");
    std::fs::write(&copy, &ended.stdout).unwrap();
    let ended = Launch::bare().args(&["check-config", "--config", &copy]).finish();
    assert_eq!(ended.status, 0, "{ended:?}");
}

#[test]
fn help_and_version_are_answers() {
    let _turn = beside_others();
    let ended = Launch::new().args(&["--version"]).finish();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    assert_eq!(ended.stdout, format!("ebbtide {}\n", env!("CARGO_PKG_VERSION")));
    let ended = Launch::new().args(&["--help"]).finish();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    for word in ["check-config", "print-config", "--shutdown-timeout", "SHUTDOWN_TIMEOUT"] {
        assert!(ended.stdout.contains(word), "{word} is not in the help");
    }
    let ended = Launch::new().args(&["--no-such-flag"]).finish();
    assert_eq!((ended.status, ended.stdout.as_str()), (2, ""), "{ended:?}");
}

#[test]
fn log_levels_work_in_either_case() {
    let _turn = beside_others();
    for level in ["DEBUG", "debug", "Info"] {
        Launch::new().env("LOG_LEVEL", level).start().stop();
    }
    // Nothing below the level is said.
    let quiet = Launch::new().env("LOG_LEVEL", "error").args(&["check-config"]).finish();
    assert_eq!((quiet.status, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn the_port_variable_changes_the_port_alone() {
    let _turn = beside_others();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let server = Launch::new().listen("127.0.0.1:1").env("PORT", port).start();
    assert_eq!(server.port, port);
    assert_eq!(Client::connect(port).get("/plaintext").status, 200);
    server.stop();
}

/// That it could not start: status 1, one JSON line on stderr that names the address.
fn assert_not_started(ended: &Ended, address: &str) {
    assert_eq!(ended.status, 1, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    assert_eq!(ended.stderr.matches('\n').count(), 1, "{ended:?}");
    let line: Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(line["level"], "ERROR", "{ended:?}");
    let message = line["message"].as_str().unwrap();
    assert!(message.contains(address) && message.contains("in use"), "{message}");
}

#[test]
fn a_port_in_use_by_another_program_ends_with_1_and_the_address() {
    let _turn = beside_others();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_not_started(&Launch::new().listen(&address).finish(), &address);
    assert_not_started(&Launch::new().env("ADMIN_LISTEN", &address).finish(), &address);
    for workers in ["0", "1", "4"] {
        let launch = Launch::new().listen(&address).env("WORKERS", workers);
        assert_not_started(&launch.finish(), &address);
    }
    let launch = Launch::new().listen(&address).env("REUSE_PORT", true);
    assert_not_started(&launch.finish(), &address);
}

#[test]
fn a_port_in_use_by_another_ebbtide_ends_with_1_and_the_address() {
    let _turn = beside_others();
    for reuse_port in [false, true] {
        let first = Launch::new().env("REUSE_PORT", reuse_port).start();
        let address = format!("127.0.0.1:{}", first.port);
        assert_not_started(&Launch::new().listen(&address).finish(), &address);
        let admin = format!("127.0.0.1:{}", first.admin);
        assert_not_started(&Launch::new().env("ADMIN_LISTEN", &admin).finish(), &admin);
        // The first one has noticed nothing.
        assert_eq!(first.connect().get("/plaintext").status, 200);
        first.stop();
    }
}
