//! The binary as a child process.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::Client;
use super::{SOON, scratch, until};

/// How to start it. Its environment is empty but for what the test says, its working directory has
/// no configuration file, its ports are the kernel's choice.
#[derive(Debug)]
pub struct Launch {
    wrapper: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    listen: Option<String>,
    /// What it gets as its descriptors 3 and 4.
    passed: Vec<OwnedFd>,
}

/// What a process that ended by itself left behind.
#[derive(Debug)]
pub struct Ended {
    /// The exit status; of one that a signal killed, 1000 and the signal's number.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Launch {
    pub fn new() -> Launch {
        Launch {
            wrapper: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            listen: Some("127.0.0.1:0".to_owned()),
            passed: Vec::new(),
        }
    }

    /// Without the addresses that the tests usually give.
    pub fn bare() -> Launch {
        Launch { listen: None, ..Launch::new() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "a plain value reads better in a test")]
    pub fn env(mut self, name: &str, value: impl Display) -> Launch {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn args(mut self, args: &[&str]) -> Launch {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    #[allow(clippy::needless_pass_by_value, reason = "as above")]
    pub fn listen(mut self, address: impl Display) -> Launch {
        self.listen = Some(address.to_string());
        self
    }

    /// Starts it through a program that replaces itself by it, so that the process id stays.
    pub fn through(mut self, wrapper: &[&str]) -> Launch {
        self.wrapper = wrapper.iter().map(|&part| part.to_owned()).collect();
        self
    }

    /// Passes sockets on, two at most, in the way of a service manager. They go to the shell in
    /// the place of stdin and stdout, which puts them where they belong.
    pub fn passing(mut self, sockets: impl IntoIterator<Item = OwnedFd>) -> Launch {
        self.passed.extend(sockets);
        let count = self.passed.len();
        let script = format!(
            "exec 3<&0 4<&1 0</dev/null 1>/dev/null; \
             export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$@\""
        );
        self.through(&["sh", "-c", &script, "sh"])
    }

    pub fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_ebbtide").to_owned();
        let line: Vec<&String> = self.wrapper.iter().chain([&binary]).chain(&self.args).collect();
        let mut command = Command::new(line[0]);
        let home = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("process");
        std::fs::create_dir_all(&home).unwrap();
        command.args(&line[1..]).stdin(Stdio::null()).current_dir(home).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        // Few tests want a database; those that do say which.
        command.env("DATABASE_URL", "off");
        if let Some(listen) = &self.listen {
            command.env("LISTEN", listen).env("ADMIN_LISTEN", "127.0.0.1:0");
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let mut passed = self.passed.iter().map(|socket| socket.try_clone().unwrap());
        if let Some(first) = passed.next() {
            command.stdin(first);
        }
        if let Some(second) = passed.next() {
            command.stdout(second);
        }
        command
    }

    /// Its stdout goes nowhere, unless it stands for a socket that is passed on.
    fn silent(&self) -> Command {
        let mut command = self.command();
        if self.passed.len() < 2 {
            command.stdout(Stdio::null());
        }
        command
    }

    /// Starts it and waits until it serves.
    pub fn start(self) -> Server {
        self.start_with(|| ())
    }

    /// Starts it, does what there is to do at once, and waits until it serves.
    pub fn start_with(self, at_once: impl FnOnce()) -> Server {
        let mut child = self.silent().stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        at_once();
        Server::new(child, stderr)
    }

    /// Runs it to its end, which is to come by itself.
    pub fn finish(self) -> Ended {
        let child = self.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut guard = Guard(child);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut pipes = (guard.0.stdout.take().unwrap(), guard.0.stderr.take().unwrap());
        let status = until("the process to end", SOON, || guard.0.try_wait().unwrap());
        // Short enough for the pipes, so nothing waited for these.
        pipes.0.read_to_string(&mut stdout).unwrap();
        pipes.1.read_to_string(&mut stderr).unwrap();
        Ended { status: number(status), stdout, stderr }
    }
}

fn number(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 1000 + status.signal().unwrap_or(0))
}

/// Ends its process when dropped: by id, and for certain.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Fails when it has ended and was waited for: so much the better.
        let _killed = self.0.kill();
        let _waited = self.0.wait();
    }
}

/// A server that runs, or has run.
#[derive(Debug)]
pub struct Server {
    child: Guard,
    pub log: Log,
    pub port: u16,
    pub admin: u16,
}

/// The end of a server.
#[derive(Debug)]
pub struct Exit {
    pub status: i32,
    /// When that was noticed: at most a millisecond or two late.
    pub at: Instant,
}

impl Server {
    /// Waits until the process says on `stderr` that it serves.
    pub fn new(child: Child, stderr: impl Read + Send + 'static) -> Server {
        let child = Guard(child);
        let log = Log::follow(stderr);
        let started = log.wait_line("server_started", |line| line.contains("server_started"));
        let port = |field: &str| port_in(&started, field);
        Server { port: port("listen"), admin: port("admin_listen"), child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    /// Sends a signal (`"TERM"`) and returns the instant just before.
    pub fn signal(&self, name: &str) -> Instant {
        let before = Instant::now();
        send(name, self.pid());
        before
    }

    /// Waits for its end.
    pub fn exit(&mut self, within: Duration) -> Exit {
        let status = until("the server to exit", within, || self.child.0.try_wait().unwrap());
        Exit { status: number(status), at: Instant::now() }
    }

    /// Ends it with SIGTERM, with nothing in flight; returns the report.
    pub fn stop(mut self) -> Value {
        self.signal("TERM");
        let exit = self.exit(SOON);
        let report = self.log.report();
        assert_eq!(exit.status, 0, "{report:#}");
        report
    }

    /// Waits until so many requests are in flight.
    pub fn wait_in_flight(&self, count: usize) {
        let mut admin = Client::connect(self.admin);
        let wanted = format!("requests {count} in flight");
        until(&wanted, SOON, || {
            admin.get("/readyz?verbose").text().contains(&wanted).then_some(())
        });
    }

    pub fn metrics(&self) -> String {
        Client::connect(self.admin).get("/metrics").text()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

/// The port in the address that a field of a log line holds, JSON or text; 0 for none.
fn port_in(line: &str, field: &str) -> u16 {
    let starts = [format!("\"{field}\":\""), format!(" {field}=")];
    let rest = starts.iter().find_map(|start| Some(line.split_once(start)?.1));
    let address = rest.unwrap_or_else(|| panic!("no {field} in {line}")).split(['"', ' ']).next();
    address.and_then(|address| address.rsplit_once(':')?.1.parse().ok()).unwrap_or(0)
}

/// Sends a signal to one process.
pub fn send(signal: &str, pid: u32) {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(status.success(), "cannot send {signal} to {pid}");
}

/// What a process writes to stderr, line by line.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    /// Whether the other end is closed.
    ended: bool,
}

impl Log {
    pub fn follow(source: impl Read + Send + 'static) -> Log {
        let log = Log { shared: Arc::default() };
        let shared = Arc::clone(&log.shared);
        std::thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line).into_owned();
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line);
                shared.1.notify_all();
            }
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
            shared.1.notify_all();
        });
        log
    }

    /// Waits for a line of that `event_type` and returns it.
    pub fn wait(&self, event: &str) -> Value {
        self.wait_for(event, |line| line["event_type"] == event)
    }

    /// Waits for a line that `is_it` recognises.
    pub fn wait_for(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let parse = |line: &str| serde_json::from_str::<Value>(line).ok();
        let line = self.wait_line(what, |line| parse(line).is_some_and(|line| is_it(&line)));
        parse(&line).expect("a line that was parsed")
    }

    /// Waits for a line that `is_it` recognises as it stands.
    pub fn wait_line(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        let find = |lines: &Lines| lines.lines.iter().find(|line| is_it(line)).cloned();
        let (lock, changed) = &*self.shared;
        let lines = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, _) = changed
            .wait_timeout_while(lines, SOON, |lines| !lines.ended && find(lines).is_none())
            .unwrap_or_else(PoisonError::into_inner);
        find(&lines).unwrap_or_else(|| panic!("no {what} in the log:\n{}", lines.lines.join("\n")))
    }

    /// All lines so far.
    pub fn so_far(&self) -> Vec<String> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// All lines, once the process is gone.
    pub fn all(&self) -> Vec<String> {
        let (lock, changed) = &*self.shared;
        let lines = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let (lines, _) = changed
            .wait_timeout_while(lines, SOON, |lines| !lines.ended)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(lines.ended, "stderr is still open");
        lines.lines.clone()
    }

    /// All lines of that `event_type`, once the process is gone.
    pub fn events(&self, event: &str) -> Vec<Value> {
        let parse = |line: &String| -> Value {
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line:?}"))
        };
        self.all().iter().map(parse).filter(|line| line["event_type"] == event).collect()
    }

    /// The report in the last line, once the process is gone. Its books balance.
    pub fn report(&self) -> Value {
        let all = self.all();
        let last = all.last().expect("a log");
        let line: Value = serde_json::from_str(last).unwrap();
        assert_eq!(line["event_type"], "shutdown_report", "the last line is {last}");
        let report = line["report"].clone();
        assert_balanced(&report);
        report
    }
}

/// Every request and every connection has exactly one end.
pub fn assert_balanced(report: &Value) {
    let sum = |ends: &Value| -> u64 {
        ends.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
    };
    let (requests, connections) = (&report["requests"], &report["connections"]);
    assert_eq!(requests["begun"], sum(&requests["finished"]), "begun = finished: {report:#}");
    assert_eq!(requests["in_flight"], 0, "{report:#}");
    assert_eq!(connections["opened"], sum(&connections["closed"]), "opened = closed: {report:#}");
    assert_eq!(connections["open"], 0, "{report:#}");
}

/// A path in an empty directory of that name.
pub fn file_in(directory: &str, name: &str) -> String {
    scratch(directory).join(name).to_str().unwrap().to_owned()
}
