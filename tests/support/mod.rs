//! Real servers for tests: a PostgreSQL cluster and a Redis of their own, and a proxy in front.
//!
//! Each runs on loopback, in a directory of its own, as an ordinary user (`nobody` when the tests
//! run as root, which PostgreSQL refuses), and is ended with the test process however that ends:
//! see [`keeper`]. Where a program is missing the test that wants it says `SKIPPED` on stderr and
//! passes; with `EBBTIDE_REQUIRE_TOOLS=1` or `CI=true` it fails instead.

pub mod keeper;
pub mod postgres;
pub mod proxy;
pub mod redis;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen soon. Long, because it only matters when it fails.
pub const SOON: Duration = Duration::from_secs(20);

/// Asks `question` until it has an answer.
///
/// # Panics
/// When there is none within `limit`; the message says what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain for {what}");
        std::thread::park_timeout(ASKED_AGAIN_AFTER);
    }
}

/// Says a number that was measured, or that a test was skipped, where it is seen although all is
/// well: on stderr past the capture of `cargo test`, and in the file that `EBBTIDE_MEASURED` names.
pub fn say(line: &str) {
    let line = format!("{}: {line}\n", env!("CARGO_CRATE_NAME"));
    // What can not be said is no reason to fail.
    let _said = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("EBBTIDE_MEASURED") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let _said = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Says that something is not tested, and why. Fails where all must be: with
/// `EBBTIDE_REQUIRE_TOOLS=1`, and where `CI=true` says that nobody looks.
///
/// # Panics
/// There.
pub fn skip(why: &str) {
    for (name, must) in [("EBBTIDE_REQUIRE_TOOLS", "1"), ("CI", "true")] {
        let may = std::env::var_os(name).is_none_or(|value| value != must);
        assert!(may, "{why}, and {name}={must} demands it");
    }
    say(&format!("SKIPPED: {why}"));
}

/// Where the program is, or nothing, which is said. Fails when tools are required.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Debian keeps the servers' programs where no PATH leads, one folder a version: newest first.
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut debian: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    debian.sort();
    places.extend(debian.into_iter().rev());
    if let Some(found) = places.iter().map(|place| place.join(name)).find(|file| file.is_file()) {
        return Some(found);
    }
    skip(&format!("{name} is not installed"));
    None
}

/// A port that nobody listens on, and that stays free while its server is down: it lies below those
/// that the kernel gives to clients (32768 and up), so that none is given it, not even a client of
/// this very port, which would then be connected to itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = u16::try_from(std::process::id() % u32::from(PORTS)).expect("a small number");
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut candidates = (0..PORTS).map(|_| {
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        // Neighbouring processes start far from each other.
        FIRST_PORT + (process.wrapping_mul(61) % PORTS + nth % PORTS) % PORTS
    });
    candidates.find(is_free).expect("a port is free")
}

const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(1);
