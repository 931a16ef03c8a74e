//! The command as a process: what it does with servers that nobody can test, and its exit status.

mod bad;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

/// A script in a directory of its own that stands for the server.
struct Scene {
    directory: PathBuf,
}

impl Scene {
    fn new(name: &str, script: &str) -> Scene {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of an earlier run, when there was one.
        let _removed = fs::remove_dir_all(&directory);
        for inside in ["out", "tmp"] {
            fs::create_dir_all(directory.join(inside)).unwrap();
        }
        let scene = Scene { directory };
        scene.program("server", script);
        scene
    }

    /// A server of ours, in another process, that behaves in the way of that name.
    fn serving(name: &str, before: &str, way: &str) -> Scene {
        Scene::new(name, &serving(before, way))
    }

    /// One more script; returns its path.
    fn program(&self, name: &str, script: &str) -> String {
        let path = self.directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        command.arg("--binary").arg(self.directory.join("server"));
        command.arg("--out").arg(self.directory.join("out"));
        command
    }

    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let limits = ["--start-timeout", "2", "--stop-timeout", "0.5", "--request-timeout", "1"];
        command.args(arguments).args(limits).env("TMPDIR", self.directory.join("tmp"));
        command
    }

    /// What is left in the directory for temporary files.
    fn left_behind(&self) -> usize {
        fs::read_dir(self.directory.join("tmp")).unwrap().count()
    }

    fn result(&self, name: &str) -> Value {
        let path = self.directory.join("out").join(name);
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }
}

/// A script that becomes a server of ours.
fn serving(before: &str, way: &str) -> String {
    let own = std::env::current_exe().unwrap();
    let run = format!("exec {} --exact stands_in_for_a_server --nocapture", own.display());
    format!("{before}\nexport STAND_IN={way}\n{run}")
}

/// The beginning of a script: has a number of its own in `$n` each time it is started.
const COUNTED: &str = "n=$(($(cat \"$0.n\" 2>/dev/null) + 1)); echo $n >\"$0.n\"";

/// What says that a server serves.
const SERVES: &str = "echo '{\"event_type\":\"server_started\"}' >&2";

const ONE: [&str; 7] = ["restarts", "--ways", "stop_start", "--times", "1", "--pause", "0.3"];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Not a test: run by the scripts of the tests below, it serves until it is killed.
#[test]
fn stands_in_for_a_server() {
    let Some(way) = std::env::var_os("STAND_IN") else { return };
    let listener = listener(&std::env::var("LISTEN").unwrap());
    let serve: fn(&mut bad::Peer) = match way.to_str().unwrap() {
        "well" => bad::well,
        "books" => |peer| {
            while let Some(asked) = peer.request() {
                let line = "{\"event_type\":\"request\",\"outcome\":\"answered\",\"request_id\":";
                {
                    let mut begun = BEGUN.lock().unwrap();
                    *begun += 1;
                    eprintln!("{line}\"{}\"}}", asked.id);
                }
                peer.answer(&asked, "");
            }
        },
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
                std::thread::park_timeout(Duration::from_millis(50));
            }
        },
        "forgetful" => |peer| {
            for _ in 0..12 {
                let Some(asked) = peer.request() else { return };
                peer.answer(&asked, "");
            }
            peer.request();
        },
        "last_fin" => |peer| {
            while let Some(asked) = peer.request() {
                let is_last = IS_STOPPING.load(Ordering::SeqCst);
                peer.answer(&asked, if is_last { "Connection: close\r\n" } else { "" });
                if is_last {
                    return;
                }
            }
        },
        way => panic!("{way}"),
    };
    if way == "books" {
        report_at_the_end();
    }
    if way == "last_fin" {
        close_one_unanswered_at_the_end(&listener);
    }
    bad::start(listener, serve);
    eprintln!("{{\"event_type\":\"server_started\"}}");
    loop {
        std::thread::park();
    }
}

fn listener(address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(std::env::var_os("REUSE_PORT").is_some()).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1_024).unwrap();
    socket.into()
}

/// Whether the server that closes a last connection was told to end.
static IS_STOPPING: AtomicBool = AtomicBool::new(false);

/// Has the process, when it is told to end, read the request of one more connection and close it
/// without an answer, then its listener, then end when the others were answered.
fn close_one_unanswered_at_the_end(listener: &TcpListener) {
    let listener = listener.try_clone().unwrap();
    let mut signals = Signals::new([SIGTERM]).unwrap();
    std::thread::spawn(move || {
        signals.forever().next();
        IS_STOPPING.store(true, Ordering::SeqCst);
        // The last instance has no load any more.
        let patience = Some(Duration::from_millis(150));
        socket2::SockRef::from(&listener).set_read_timeout(patience).unwrap();
        // The other thread that accepts takes some of them.
        while let Ok((stream, _)) = listener.accept() {
            let mut peer = bad::Peer::new(stream);
            let asked = peer.request();
            if asked.is_some_and(|asked| asked.path == "/plaintext") {
                break;
            }
        }
        // Closes it for the thread that accepts as well.
        socket2::SockRef::from(&listener).shutdown(std::net::Shutdown::Both).unwrap();
        std::thread::park_timeout(Duration::from_millis(200));
        std::process::exit(0);
    });
}

/// Requests of the server that keeps books, each with its line in the log while this is locked.
static BEGUN: Mutex<u64> = Mutex::new(0);

/// Has a report written when the process is told to end, with one request that there never was.
fn report_at_the_end() {
    let mut signals = Signals::new([SIGTERM]).unwrap();
    std::thread::spawn(move || {
        signals.forever().next();
        // Until the end of the process: the report says no less than the log.
        let begun = BEGUN.lock().unwrap();
        let answered = *begun;
        let report = json!({
            "requests": {
                "begun": answered + 1, "in_flight": 0,
                "finished": {"answered": answered, "refused": 0, "cut": 0, "abandoned": 0},
                "rejected": {"400": 0, "408": 0, "414": 0, "431": 0}
            },
            "connections": {"opened": 0, "open": 0, "closed": {
                "client_closed": 0, "closed_after_response": 0, "closed_idle": 0, "timed_out": 0,
                "rejected": 0, "shed": 0, "reset": 0, "cut": 0
            }},
            "late_bytes": 0
        });
        let path = std::env::var("SHUTDOWN_REPORT_PATH").unwrap();
        fs::write(path, report.to_string()).unwrap();
        std::process::exit(0);
    });
}

#[test]
fn a_server_that_never_starts_ends_the_run_with_a_line_and_status_3() {
    let scene = Scene::new("never_starts", "echo 'thinking about it' >&2; exec sleep 30");
    let output = scene.run(&ONE);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let line = "NOT FINISHED: ebbtide: the server never started: it does not say that it serves; \
                its last lines: thinking about it";
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
    let line = "NOT FINISHED: ebbtide: the server never started: its log has a line without end, \
                of 1024 KiB";
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
    assert!(
        text(&output).contains("NOT FINISHED: ebbtide: the server never stopped"),
        "{}",
        text(&output)
    );
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
fn a_first_request_closed_without_an_answer_is_lost_however_soon_the_listener_closes() {
    let scene = Scene::new("last_fin", "");
    let peer = scene.program("server", &serving("export LISTEN=$1", "last_fin"));
    let mut command = scene.bare(&ONE);
    command.arg("--out").arg(scene.directory.join("out")).args(["--peer", &peer]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let named = "reset_before_response (closed without an answer), request 1 of its connection";
    let is_named = |line: &str| line.starts_with("lost: ") && line.contains(named);
    assert!(text(&output).lines().any(is_named), "{}", text(&output));
    let losses = scene.result("restarts-server.json")["ways"][0]["losses"].clone();
    let losses = losses.as_array().unwrap();
    let mut closed = losses.iter().filter(|loss| loss["detail"] == "closed without an answer");
    assert!(closed.all(|loss| loss["is_gap"] == false), "{losses:#?}");
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
    assert!(
        text(&output).contains("NOT FINISHED: ebbtide: interrupted by a signal"),
        "{}",
        text(&output)
    );
    assert!(scene.result("restarts-ebbtide.json")["ways"][0]["restarts"][0].is_object());
    let last = fs::read_to_string(pids).unwrap();
    assert!(!Path::new("/proc").join(last.trim()).exists(), "server {last} is left behind");
}

#[test]
fn a_server_behind_a_wrapper_is_not_left_behind() {
    let scene = Scene::new("wrapped", "");
    let inner = scene.program("inner", &serving("export LISTEN=$1", "well"));
    let pids = scene.directory.join("pids");
    // The shell ends at the signal, and the server knows nothing of it.
    let script = format!("{inner} \"$@\" & echo $! >>{}\nwait", pids.display());
    let peer = scene.program("wrapper", &script);
    let mut command = scene.bare(&ONE);
    command.arg("--out").arg(scene.directory.join("out")).args(["--peer", &peer]);
    let output = command.output().unwrap();
    assert!(text(&output).contains("wrapper: "), "{}", text(&output));
    let pids = fs::read_to_string(pids).unwrap();
    assert!(!pids.is_empty(), "{}", text(&output));
    // Whoever takes in orphans may take a moment to reap them.
    let deadline = Instant::now() + Duration::from_secs(10);
    for pid in pids.lines() {
        while is_running(pid) {
            assert!(Instant::now() < deadline, "server {pid} is left behind: {}", text(&output));
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Whether there is such a process and it has not ended.
fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

#[test]
fn what_a_restart_brought_is_written_before_the_next_one() {
    let scene = Scene::serving("written_early", "", "well");
    let many = ["restarts", "--ways", "stop_start", "--times", "1000", "--pause", "0.1"];
    let mut child =
        scene.command(&many).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let path = scene.directory.join("out/restarts-ebbtide.json");
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut seen = BTreeSet::new();
    // Whenever one looks, what is there is whole.
    while seen.len() < 3 {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{seen:?}");
        if let Ok(text) = fs::read_to_string(&path) {
            let result: Value = serde_json::from_str(&text).unwrap();
            seen.insert(result["ways"][0]["restarts"].as_array().unwrap().len());
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    assert!(scene.directory.join("out/restarts-ebbtide.svg").exists());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(scene.left_behind(), 0);
}

#[test]
fn ledgers_of_instances_that_ended_are_compared_when_a_later_one_never_starts() {
    let before = format!("{COUNTED}; if [ $n = 3 ]; then echo 'not today' >&2; exit 1; fi");
    let scene = Scene::serving("third_never_starts", &before, "books");
    let many = ["restarts", "--ways", "stop_start", "--times", "5", "--pause", "0.2"];
    let output = scene.run(&many);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let way = scene.result("restarts-ebbtide.json")["ways"][0].clone();
    assert!(way["fault"].as_str().unwrap().contains("not today"), "{way:#}");
    let restarts = way["restarts"].as_array().unwrap();
    assert_eq!(restarts.len(), 2, "{way:#}");
    for restart in restarts {
        let report = &restart["ledger"]["report"];
        let (begun, answered) = (&report["begun"], &report["finished"]["answered"]);
        let expected = [
            format!("begun: {begun}, of which {answered} have ended, 0 not"),
            format!("begun: {begun} in its report, {answered} in its log"),
        ];
        assert_eq!(restart["ledger"]["differences"], json!(expected), "{restart:#}");
        assert!(answered.as_u64().unwrap() > 10, "{restart:#}");
    }
    assert_eq!(way["last_instances"], json!([]), "the last one was killed: {way:#}");
}

#[test]
fn every_request_has_its_time_from_the_signal_in_the_results() {
    let scene = Scene::serving("times", "", "well");
    let output = scene.run(&["restarts", "--ways", "stop_start", "--times", "2", "--pause", "0.3"]);
    let result = scene.result("restarts-ebbtide.json");
    let edges = result["ended_edges"].as_array().unwrap();
    let way = &result["ways"][0];
    let mut counted = BTreeMap::new();
    for restart in way["restarts"].as_array().unwrap() {
        for (outcome, counts) in restart["ended"].as_object().unwrap() {
            let counts = counts.as_array().unwrap();
            assert_eq!(counts.len(), edges.len() + 1);
            let sum: u64 = counts.iter().map(|count| count.as_u64().unwrap()).sum();
            *counted.entry(outcome.clone()).or_insert(0) += sum;
        }
    }
    for (outcome, count) in way["requests"].as_object().unwrap() {
        let counted = counted.get(outcome).copied().unwrap_or(0);
        assert_eq!(Some(counted), count.as_u64(), "{outcome}: {}", text(&output));
    }
}

#[test]
fn a_server_that_does_not_listen_when_it_says_so_has_refused_for_no_reason() {
    let deaf = format!("{COUNTED}; if [ $n = 2 ]; then {SERVES}; exec sleep 20; fi");
    let scene = Scene::serving("deaf", &deaf, "well");
    let output = scene.run(&["restarts", "--ways", "reuse_port", "--times", "1", "--pause", "0.3"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("\nrefused: "), "{}", text(&output));
    let way = scene.result("restarts-ebbtide.json")["ways"][0].clone();
    assert!(way["refused_for_no_reason"].as_u64().unwrap() > 0, "{way:#}");
    let failures = way["losses"].as_array().unwrap();
    assert!(failures.iter().any(|failure| failure["outcome"] == "refused"), "{way:#}");
}

#[test]
fn a_drain_of_a_server_that_never_starts_says_so() {
    let scene = Scene::new("drain_never_starts", "echo 'no such thing' >&2; exit 1");
    let output = scene.run(&["drain"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("it ended; its last lines: no such thing"), "{}", text(&output));
}

#[test]
fn results_that_could_not_be_written_are_not_taken() {
    let scene = Scene::new("unwritable", &format!("touch \"$0.was_started\"; {SERVES}"));
    let mut command = scene.bare(&ONE);
    // A place in which nobody can make a file, root included.
    command.arg("--binary").arg(scene.directory.join("server")).args(["--out", "/proc/self"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("cannot write to /proc/self: "), "{}", text(&output));
    assert!(!scene.directory.join("server.was_started").exists(), "{}", text(&output));
    assert_eq!(scene.left_behind(), 0);
}

#[test]
fn a_run_that_cannot_begin_leaves_nothing_behind() {
    // As root the program is missing, as another user there is nothing to give away.
    let scene = Scene::new("cannot_begin", "");
    fs::remove_file(scene.directory.join("server")).unwrap();
    let output = scene.run(&["drain", "--user", "65532"]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert_eq!(scene.left_behind(), 0);
}

#[test]
fn several_servers_take_turns_and_each_has_its_results() {
    let scene = Scene::serving("side_by_side", "", "well");
    let forgetful = scene.program("forgetful", &serving("export LISTEN=$1", "forgetful"));
    let broken = scene.program("broken", "echo 'out of order' >&2; exit 1");
    let peers = format!("{forgetful},{broken}");
    let output = scene.run(&[
        "restarts",
        "--ways",
        "stop_start",
        "--times",
        "3",
        "--pause",
        "0.2",
        "--peer",
        &peers,
    ]);
    // Whoever is broken is not asked again, and the others go on; but the run is not finished.
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let fault =
        "NOT FINISHED: broken: the server never started: it ended; its last lines: out of order";
    assert_eq!(text(&output).matches(fault).count(), 1, "{}", text(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    let turns: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split(": stopped in").nth(1).and(line.split(": ").next()))
        .collect();
    let expected = ["ebbtide", "ebbtide", "forgetful", "forgetful", "ebbtide", "forgetful"];
    assert_eq!(turns, expected, "{said}");
    for (name, restarts) in [("ebbtide", 3), ("forgetful", 3), ("broken", 0)] {
        let result = scene.result(&format!("restarts-{name}.json"));
        assert_eq!(result["target"], name);
        let ways = result["ways"].as_array().unwrap();
        assert_eq!(ways.len(), 1, "{name}: {result:#}");
        assert_eq!(ways[0]["restarts"].as_array().unwrap().len(), restarts, "{name}");
        assert!(scene.directory.join(format!("out/restarts-{name}.svg")).exists());
        let row = format!("| `stop_start` | {name} | {restarts} | ");
        let table = fs::read_to_string(scene.directory.join("out/restarts.md")).unwrap();
        assert!(table.contains(&row), "{table}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&table), "{}", text(&output));
    }
    // What it forgot was lost on connections that it had kept.
    let losses = scene.result("restarts-forgetful.json")["ways"][0]["losses"].clone();
    assert!(losses.as_array().unwrap().iter().any(|loss| loss["outcome"] == "stale_eof"));
    assert_eq!(scene.left_behind(), 0);
}

#[test]
fn a_server_of_anybodys_is_judged_alone_when_it_is_named_alone() {
    let scene = Scene::new("alone", "");
    let peer = scene.program("mine", &serving("export LISTEN=$1", "forgetful"));
    let mut command = scene.bare(&ONE);
    command.arg("--out").arg(scene.directory.join("out")).args(["--peer", &peer]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("mine: lost: "), "{}", text(&output));
    assert_eq!(scene.result("restarts-mine.json")["ways"][0]["differences"], json!([]));
    assert!(!scene.directory.join("out/restarts-ebbtide.json").exists());
}

#[test]
fn servers_that_make_no_sense_are_status_2() {
    for (arguments, expected) in [
        (&["restarts", "--peer", "apache"][..], "expected ebbtide, axum, hyper, actix, nginx, or"),
        (&["restarts", "--peer", "axum,hyper,axum"], "two servers are named axum"),
        (&["restarts", "--peer", "./a/b,./c/b"], "two servers are named b"),
        (&["restarts", "--peer", "axum", "--binary", "x"], "ebbtide is not asked for"),
        (&["contrast"], "unrecognized subcommand"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = command.args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(expected), "{arguments:?}: {}", text(&output));
    }
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
