//! The command as a process: what it does with servers that nobody can test, and its exit status.

mod bad;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A script in a directory of its own that stands for the server.
struct Scene {
    directory: PathBuf,
}

impl Scene {
    fn new(name: &str, script: &str) -> Scene {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(directory.join("out")).unwrap();
        let path = directory.join("server");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Scene { directory }
    }

    /// A server of ours, in another process, that behaves in the way of that name.
    fn serving(name: &str, before: &str, way: &str) -> Scene {
        let own = std::env::current_exe().unwrap();
        let run = format!("exec {} --exact stands_in_for_a_server --nocapture", own.display());
        Scene::new(name, &format!("{before}\nexport STAND_IN={way}\n{run}"))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let limits = ["--start-timeout", "2", "--stop-timeout", "0.5", "--request-timeout", "1"];
        command.args(arguments).args(limits).arg("--binary").arg(self.directory.join("server"));
        command.arg("--out").arg(self.directory.join("out"));
        command
    }

    fn result(&self, name: &str) -> Value {
        let path = self.directory.join("out").join(name);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }
}

const ONE: [&str; 7] = ["restarts", "--ways", "stop_start", "--times", "1", "--pause", "0.3"];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Not a test: run by the scripts of the tests below, it serves until it is killed.
#[test]
fn stands_in_for_a_server() {
    let Some(way) = std::env::var_os("STAND_IN") else { return };
    let listener = TcpListener::bind(std::env::var("LISTEN").unwrap()).unwrap();
    let serve: fn(&mut bad::Peer) = match way.to_str().unwrap() {
        "well" => bad::well,
        "garbage" => |peer| {
            peer.request();
            peer.send("What?\r\n\r\n");
        },
        "flood" => |peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\n\r\n");
            while peer.is_heard("x".repeat(65_536)) {}
        },
        "drip" => |peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            while peer.is_heard("x") {
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
        },
        "forgetful" => |peer| {
            for _ in 0..12 {
                let Some(asked) = peer.request() else { return };
                peer.answer(&asked, "");
            }
            peer.request();
        },
        way => panic!("{way}"),
    };
    bad::start(listener, serve);
    eprintln!("{{\"event_type\":\"server_started\"}}");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_server_that_never_starts_ends_the_run_with_a_line_and_status_3() {
    let scene = Scene::new("never_starts", "echo 'thinking about it' >&2; exec sleep 30");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let line = "NOT FINISHED: the server never started: it does not say that it serves; its last \
                lines: thinking about it";
    assert!(text(&output).contains(line), "{}", text(&output));
    let fault = scene.result("restarts-ebbtide.json")["ways"][0]["fault"].clone();
    assert!(fault.as_str().unwrap().contains("never started"), "{fault}");
}

#[test]
fn a_server_that_ends_at_once_is_not_waited_for() {
    let scene = Scene::new("ends_at_once", "echo 'no such thing' >&2; exit 1");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("it ended; its last lines: no such thing"), "{}", text(&output));
}

#[test]
fn a_log_line_without_end_ends_the_run_with_a_line_and_status_3() {
    let scene = Scene::new("endless_line", "exec tr '\\0' x </dev/zero >&2");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let line =
        "NOT FINISHED: the server never started: its log has a line without end, of 1024 KiB";
    assert!(text(&output).contains(line), "{}", text(&output));
}

#[test]
fn a_server_that_floods_or_drips_ends_the_run_with_status_3() {
    for (way, expected) in [
        ("flood", "the server answers garbage: get: a response without end"),
        ("drip", "the server answers garbage: get: no whole answer within 5 s"),
    ] {
        let output = Scene::serving(way, "", way).run(&ONE);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

#[test]
fn a_server_that_is_not_there_is_said_not_to_be() {
    let scene = Scene::new("not_there", "");
    fs::remove_file(scene.directory.join("server")).unwrap();
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("cannot start"), "{}", text(&output));
}

#[test]
fn a_server_that_never_stops_is_killed_and_what_was_taken_is_written() {
    // An ignored signal stays ignored in what the shell becomes.
    let scene = Scene::serving("never_stops", "trap '' TERM", "well");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("NOT FINISHED: the server never stopped"), "{}", text(&output));
    let way = scene.result("restarts-ebbtide.json")["ways"][0].clone();
    assert!(way["requests"]["ok"].as_u64().unwrap() > 50, "{way:#}");
    assert!(fs::read_to_string(scene.directory.join("out/restarts-ebbtide.svg")).is_ok());
}

#[test]
fn a_server_that_answers_garbage_ends_the_run_with_status_3() {
    let scene = Scene::serving("garbage", "", "garbage");
    for arguments in [&ONE[..], &["drain", "--pause", "0.3"]] {
        let output = scene.run(arguments);
        assert_eq!(output.status.code(), Some(3), "{}", text(&output));
        assert!(text(&output).contains("the server answers garbage"), "{}", text(&output));
    }
}

#[test]
fn losses_and_a_missing_report_are_status_1_and_named() {
    let scene = Scene::serving("forgetful", "", "forgetful");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let way = scene.result("restarts-ebbtide.json")["ways"][0].clone();
    let losses = way["losses"].as_array().unwrap();
    assert!(losses.iter().any(|loss| loss["outcome"] == "stale_eof"), "{way:#}");
    // Those in the gap of the closing listener are listed with them and counted apart.
    let counted = losses.iter().filter(|loss| loss["is_gap"] == false).count();
    assert_eq!(counted as u64, way["lost"].as_u64().unwrap());
    assert!(text(&output).contains("lost: get "), "{}", text(&output));
    assert!(text(&output).contains("unequal: stop_start 1: "), "{}", text(&output));
}

#[test]
fn an_interrupted_run_leaves_no_server_and_writes_what_it_has() {
    let pids = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interrupted.pid");
    let scene = Scene::serving("interrupted", &format!("echo $$ >{}", pids.display()), "well");
    let many = ["restarts", "--ways", "stop_start", "--times", "1000", "--pause", "0.1"];
    let mut child =
        scene.command(&many).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("stop_start 1/1000: stopped in"), "{line}");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("NOT FINISHED: interrupted by a signal"), "{}", text(&output));
    assert!(scene.result("restarts-ebbtide.json")["ways"][0]["restarts"][0].is_object());
    let last = fs::read_to_string(pids).unwrap();
    assert!(!Path::new("/proc").join(last.trim()).exists(), "server {last} is left behind");
}

#[test]
fn a_command_line_that_makes_no_sense_is_status_2() {
    for arguments in [&["restart"][..], &["restarts", "--ways", "magic"], &["drain", "--rate", "0"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    }
}
