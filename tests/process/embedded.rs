//! A program of somebody's own, with hooks and a handle: this very test binary, started once more.
//!
//! The server's own binary has no hooks that fail and nobody who takes a shutdown back. So a test
//! starts its own executable with one test selected, [`is_a_program_when_it_is_told_so`], which
//! then is the program: it serves the sample, catches signals, logs JSON to stderr, obeys the lines
//! of its stdin and ends with the status of its report.

use std::io::{BufRead, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use ebbtide::internal::app::{lab::Lab, sample};
use ebbtide::{
    ActiveWork, GracefulShutdown, Hook, HookError, Options, Policy, Server as Served, Workers,
    logging, setup_signal_handlers,
};

use crate::support::server::Server;
use crate::support::{SOON, beside_others};

/// How to start it.
#[derive(Clone, Debug)]
pub struct Program {
    /// The whole budget, in milliseconds.
    pub timeout: u64,
    /// The lame duck, in milliseconds.
    pub delay: u64,
    pub workers: usize,
    /// `STAGE:NAME:WHAT`, where WHAT is what it does.
    pub hooks: &'static [&'static str],
    /// The file that gets the report; empty: none.
    pub report: String,
}

impl Default for Program {
    fn default() -> Program {
        Program { timeout: 10_000, delay: 0, workers: 2, hooks: &[], report: String::new() }
    }
}

impl Program {
    /// The command that runs it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "embedded::is_a_program_when_it_is_told_so", "--nocapture"])
            .env_clear()
            .env(TOLD, self.to_line())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Starts it and waits until it serves. What is written to the pipe it obeys.
    pub fn start(&self) -> (Server, ChildStdin) {
        let mut child: Child =
            self.command().stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdin, stderr) = (child.stdin.take().unwrap(), child.stderr.take().unwrap());
        (Server::new(child, stderr), stdin)
    }

    fn to_line(&self) -> String {
        let Program { timeout, delay, workers, hooks, report } = self;
        format!("{timeout}|{delay}|{workers}|{}|{report}", hooks.join(","))
    }

    fn be(line: &str) -> u8 {
        let parts: Vec<&str> = line.split('|').collect();
        let number = |at: usize| parts[at].parse::<u64>().unwrap();
        let logger = logging::init(logging::Options {
            level: log::LevelFilter::Info,
            format: logging::Format::Json,
        });
        let logger = logger.unwrap();
        logging::install_panic_hook();
        let handle = GracefulShutdown::new(Duration::from_millis(number(0)));
        for hook in parts[3].split(',').filter(|hook| !hook.is_empty()) {
            handle.on_cleanup(hook_of(hook));
        }
        let options = Options {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            admin_listen: Some("127.0.0.1:0".parse().unwrap()),
            workers: Workers::Count(usize::try_from(number(2)).unwrap()),
            shutdown: Policy { delay: Duration::from_millis(number(1)), ..Policy::default() },
            report_path: (!parts[4].is_empty()).then(|| parts[4].into()),
            ..Options::default()
        };
        let router = sample::router(Lab::On { upload_bytes_max: 1 << 20 }, None);
        let server = Served::bind(options, router).unwrap();
        let server = server.with_shutdown(&handle).unwrap();
        let server = server.with_signals(setup_signal_handlers().unwrap());
        std::thread::spawn(move || obey(&handle));
        let report = server.run().unwrap();
        // As the server's own binary does it.
        let patience = report.budget_left.clamp(FLUSH_MIN, FLUSH_MAX);
        logger.flush(Instant::now() + patience);
        report.exit_status()
    }
}

/// Does what the lines of stdin say.
fn obey(handle: &GracefulShutdown) {
    let mut work: Vec<ActiveWork> = Vec::new();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.as_str() {
            "shutdown" => handle.shutdown(),
            "undrain" => handle.undrain(),
            "force" => handle.force(),
            "work" => work.push(handle.add_connection()),
            "done" => work.clear(),
            "hook" => handle.on_cleanup(Hook::last("late", |_| Ok(()))),
            other => panic!("nobody knows {other:?}"),
        }
    }
    // Its guards are dropped with the end of its input.
}

fn hook_of(text: &str) -> Hook {
    let mut parts = text.split(':');
    let mut next = || parts.next().unwrap().to_owned();
    let (stage, name, what) = (next(), next(), next());
    let work = move |deadline: Instant| -> Result<(), HookError> {
        match what.as_str() {
            "works" => Ok(()),
            "logs" => {
                log::info!(event_type = "from_a_hook"; "a hook speaks");
                Ok(())
            }
            "fails" => Err("the disk is full".into()),
            "panics" => panic!("ouch"),
            "hangs" => loop {
                std::thread::park();
            },
            "takes-its-time" => {
                let end = deadline.checked_sub(Duration::from_millis(50)).unwrap();
                std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
                Ok(())
            }
            other => panic!("nobody knows {other:?}"),
        }
    };
    match stage.as_str() {
        "last" => Hook::last(name, work),
        _ => Hook::http_drained(name, work),
    }
}

/// Says one line to a program.
pub fn tell(stdin: &mut ChildStdin, line: &str) {
    writeln!(stdin, "{line}").unwrap();
}

#[test]
fn is_a_program_when_it_is_told_so() {
    if let Some(line) = std::env::var_os(TOLD) {
        std::process::exit(Program::be(line.to_str().unwrap()).into());
    }
    let _turn = beside_others();
    let (mut server, stdin) = Program::default().start();
    assert_eq!(server.connect().get("/plaintext").status, 200);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    assert_eq!(server.log.report()["requests"]["begun"], 1);
    drop(stdin);
}

/// What the program is to do; without it the test is a test.
const TOLD: &str = "EBBTIDE_EMBEDDED";

const FLUSH_MAX: Duration = Duration::from_secs(1);
const FLUSH_MIN: Duration = Duration::from_millis(20);
