//! What a request costs in instructions: the processor's work above the kernel, which repeats
//! exactly where time does not. Counted by callgrind over sockets that are memory, in the release
//! build.
//!
//! Each figure is the difference between a long and a short run of the same work, so that what the
//! first requests cost is not in it. They are compared with `tests/instructions.txt`. A change of
//! more than [`TOLERANCE`], up or down, fails until the table says it:
//!
//! ```sh
//! UPDATE=1 cargo test --release --test instructions
//! ```
//!
//! The figures are those of one compiler and one architecture, which the table names. With another
//! one nothing can be said, and the test says that.

#[path = "../benches/rig/mod.rs"]
mod rig;

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::{Client, HELLO, Rig, get_request, post_request, router};

/// Something to be counted.
struct Work {
    name: &'static str,
    /// Connections that have something to read in each turn.
    clients: usize,
    /// Requests that each of them finds.
    pipelined: usize,
    request: fn() -> Vec<u8>,
}

impl Work {
    /// Requests of a turn.
    fn requests(&self) -> usize {
        self.clients * self.pipelined
    }
}

#[rustfmt::skip]
const WORKS: &[Work] = &[
    Work { name: "plain function, alone in its turn", clients: 1, pipelined: 1, request: plain },
    Work { name: "plain function, 64 connections", clients: 64, pipelined: 1, request: plain },
    Work { name: "async function, 64 connections", clients: 64, pipelined: 1, request: later },
    Work { name: "POST of 13 bytes, 64 connections", clients: 64, pipelined: 1, request: echo },
    Work { name: "plain function, 16 pipelined", clients: 1, pipelined: 16, request: plain },
    Work { name: "a turn without work", clients: 0, pipelined: 0, request: Vec::new },
];

fn plain() -> Vec<u8> {
    get_request("/plain")
}

fn later() -> Vec<u8> {
    get_request("/later")
}

fn echo() -> Vec<u8> {
    post_request("/echo", HELLO)
}

/// By how much a figure may change unnoticed, in percent.
const TOLERANCE: f64 = 3.0;

/// Turns of the short run. The long one takes five times as many.
const TURNS: usize = 50;

/// Each run is counted so often and the smallest count taken: hyper writes the date anew when a
/// second has begun, and nothing else depends on the time.
const COUNTS: usize = 3;

/// Serves `turns` times what `work` is.
fn serve(work: &Work, turns: usize) {
    let mut rig = Rig::new(router());
    let clients: Vec<Client> = (0..work.clients).map(|_| rig.connect()).collect();
    rig.settle();
    let bytes = (work.request)().repeat(work.pipelined);
    counted_turns(&mut rig, &clients, &bytes, turns);
    let answered = rig.counts().finished[0];
    assert_eq!(answered, (work.requests() * turns) as u64, "requests that were answered");
}

/// All that callgrind counts: it goes by the name.
#[inline(never)]
fn counted_turns(rig: &mut Rig, clients: &[Client], bytes: &[u8], turns: usize) {
    for _ in 0..turns {
        for client in clients {
            rig.send(*client, bytes);
        }
        rig.settle();
    }
}

/// The instructions that this very program takes for `work`.
fn count(work: usize, turns: usize) -> u64 {
    let counted = || {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*counted_turns*")
            .arg(env::current_exe().expect("it runs"))
            .args(["--exact", "--test-threads=1", NAME])
            .env(COUNTED_WORK, format!("{work} {turns}"))
            .output()
            .expect("valgrind was found before");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "callgrind failed:\n{said}");
        let line = said.lines().find(|line| line.contains("Collected :"));
        let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        let number = number.unwrap_or_else(|| panic!("callgrind collected what?\n{said}"));
        assert!(number > 0, "`counted_turns` was not found by its name");
        number
    };
    (0..COUNTS).map(|_| counted()).min().expect("more than none")
}

/// Instructions per request, or per turn where there is none.
fn measure(work: usize) -> u64 {
    let short = count(work, TURNS);
    let long = count(work, 5 * TURNS);
    let requests = 4 * TURNS * WORKS[work].requests().max(1);
    (long - short) / requests as u64
}

/// The table as it is written: what holds for all figures, then a line for each.
fn table(figures: &[u64]) -> String {
    let mut text = format!("{}\n", compiler());
    for (work, figure) in WORKS.iter().zip(figures) {
        writeln!(text, "{figure:>6} {}", work.name).expect("strings take everything");
    }
    text
}

/// Which compiler's code is counted, for which processor.
fn compiler() -> String {
    let output = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into())).arg("-Vv").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?");
    format!("# instructions, rustc {} for {}", field("release: "), field("host: "))
}

fn figure(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}

/// What differs between the checked-in table and what was measured.
fn findings(checked_in: &str, measured: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let (mut old, mut new) = (checked_in.lines().skip(1), measured.lines().skip(1));
    loop {
        let (old, new) = (old.next(), new.next());
        let (Some(old), Some(new)) = (old, new) else {
            if old != new {
                findings.push("the table has other lines than there are figures".to_owned());
            }
            return findings;
        };
        let change = match (figure(old), figure(new)) {
            (Some(was), Some(is)) if was > 0 => {
                #[allow(clippy::cast_precision_loss, reason = "some thousands")]
                let (was, is) = (was as f64, is as f64);
                (is - was) / was * 100.0
            }
            _ => f64::INFINITY,
        };
        if change.abs() > TOLERANCE {
            findings.push(format!("{} was {}: {change:+.1} %", new.trim(), old.trim()));
        }
    }
}

#[test]
fn a_request_takes_as_many_instructions_as_the_table_says() {
    if let Ok(order) = env::var(COUNTED_WORK) {
        let (work, turns) = order.split_once(' ').expect("two numbers");
        let number = |text: &str| text.parse::<usize>().expect("two numbers");
        return serve(&WORKS[number(work)], number(turns));
    }
    if cfg!(debug_assertions) {
        return skip("this is a debug build, whose instructions nobody counts");
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        assert!(env::var_os("EBBTIDE_REQUIRE_TOOLS").is_none(), "valgrind is not installed");
        return skip("valgrind is not installed");
    }
    let figures: Vec<u64> = (0..WORKS.len()).map(measure).collect();
    let measured = table(&figures);
    println!("{measured}");
    let path = path();
    if env::var_os("UPDATE").is_some() {
        std::fs::write(&path, measured).expect("the table can be written");
        return;
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    let made_with = checked_in.lines().next().unwrap_or("no table");
    if made_with != compiler() {
        return skip(&format!("the table is of another compiler: {made_with}, not {}", compiler()));
    }
    let findings = findings(&checked_in, &measured);
    assert!(
        findings.is_empty(),
        "{}\nif it is meant: UPDATE=1 cargo test --release --test instructions",
        findings.join("\n")
    );
}

#[test]
fn changes_of_more_than_the_tolerance_are_found_both_ways() {
    let was = "# x\n  1000 one\n  2000 two\n";
    assert!(findings(was, was).is_empty());
    assert!(findings(was, "# x\n  1030 one\n  1940 two\n").is_empty());
    assert_eq!(findings(was, "# x\n  1031 one\n  2000 two\n").len(), 1);
    assert_eq!(findings(was, "# x\n  1000 one\n  1939 two\n").len(), 1);
    assert_eq!(findings(was, "# x\n  1000 one\n").len(), 1);
    assert_eq!(findings("", was).len(), 1);
}

/// Loud: on the terminal itself, past what the test runner captures.
fn skip(why: &str) {
    use std::io::Write as _;
    let said = writeln!(std::io::stderr(), "\nNOT MEASURED: instructions: {why}\n");
    said.expect("there is a standard error");
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/instructions.txt")
}

/// The test above: it runs itself under callgrind, and finds there what it is to do.
const NAME: &str = "a_request_takes_as_many_instructions_as_the_table_says";
const COUNTED_WORK: &str = "EBBTIDE_COUNTED_WORK";
