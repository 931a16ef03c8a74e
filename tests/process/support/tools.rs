//! External programs: whether they are there, how they are run, what they say.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{SOON, until};
use crate::services::{program, skip};

/// The program, or nothing, which is said. Fails when tools are required.
pub fn tool(name: &str) -> Option<Command> {
    program(name).map(Command::new)
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs a program that must succeed; returns what it printed.
pub fn stdout(command: &mut Command) -> String {
    let output = run(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// The program that makes another one a user's without privileges; nothing where this is one.
pub fn as_user() -> &'static [&'static str] {
    let is_root = std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    if is_root && tool("setpriv").is_some() {
        &["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups"]
    } else {
        &[]
    }
}

/// What wrk says of its run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wrk {
    pub requests: u64,
    pub connect: u64,
    pub read: u64,
    pub write: u64,
    pub timeout: u64,
    pub non_2xx: u64,
}

impl Wrk {
    /// Reads wrk's own words. It leaves out what is zero.
    pub fn read(text: &str) -> Wrk {
        let mut said = Wrk::default();
        let first = |text: &str| -> u64 {
            let digits: String = text.trim().chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or_else(|_| panic!("a number was expected in {text:?}"))
        };
        for line in text.lines().map(str::trim) {
            if let Some(errors) = line.strip_prefix("Socket errors: ") {
                let mut kinds =
                    errors.split(", ").map(|kind| first(kind.split_once(' ').unwrap().1));
                said.connect = kinds.next().unwrap();
                said.read = kinds.next().unwrap();
                said.write = kinds.next().unwrap();
                said.timeout = kinds.next().unwrap();
            } else if let Some((_, count)) = line.split_once("Non-2xx or 3xx responses: ") {
                said.non_2xx = first(count);
            } else if let Some((count, _)) = line.split_once(" requests in ") {
                said.requests = first(count);
            }
        }
        assert!(said.requests > 0, "wrk made no request: {text}");
        said
    }
}

/// A program that runs beside the test and is ended with it.
#[derive(Debug)]
pub struct Beside {
    child: Option<std::process::Child>,
}

impl Beside {
    pub fn start(command: &mut Command) -> Beside {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Beside { child: Some(child.spawn().unwrap()) }
    }

    /// Waits for its end; returns what it printed.
    pub fn finish(mut self) -> String {
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}: {text}", output.status);
        text
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _killed = child.kill();
            let _waited = child.wait();
        }
    }
}

/// Raises this process's limit of open descriptors to its hard limit, and with it that of the
/// processes it starts from now on. Returns the limit in force.
pub fn raise_descriptors() -> usize {
    let (_, hard) = descriptors();
    let pid = std::process::id().to_string();
    // Without the tool the limit stays as it is, which the caller is told.
    let _raised = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={hard}:{hard}")])
        .stderr(Stdio::null())
        .status();
    descriptors().0
}

/// The soft and the hard limit of this process.
fn descriptors() -> (usize, usize) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(1 << 20));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Whether strace may trace here; containers can forbid it.
pub fn strace_works() -> bool {
    let Some(mut strace) = tool("strace") else { return false };
    let traced = run(strace.args(["-o", "/dev/null", "-e", "trace=none", "true"]));
    if traced.status.success() {
        return true;
    }
    let why = String::from_utf8_lossy(&traced.stderr);
    skip(&format!("strace may not trace on this machine: {}", why.trim_end()));
    false
}

/// What strace wrote of a server that has ended well. The tracer outlives it by a moment.
pub fn finished_trace(path: &str) -> String {
    until("the trace to be complete", SOON, || {
        let text = std::fs::read_to_string(path).unwrap();
        text.contains("+++ exited with 0 +++").then_some(text)
    })
}

/// The number in a line `Name:   123 kB` of a file of `/proc`, in bytes.
pub fn kilobytes(file: &Path, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    number.unwrap_or_else(|| panic!("no {name} in {text}")) * 1024
}
