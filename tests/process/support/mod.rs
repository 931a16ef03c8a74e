//! What the tests share: a server to start and end, a client of plain bytes, tools, waiting.

pub mod client;
pub mod server;
pub mod tools;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen soon. Long, because it only matters when it fails.
pub const SOON: Duration = Duration::from_secs(20);

/// What a promise about time is given on top.
pub const SLACK: Duration = Duration::from_millis(500);

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

/// Lets time pass where time itself is the condition: a window that a measurement needs, or the
/// span after which a signal no longer counts as an echo.
pub fn let_pass(span: Duration) {
    let end = Instant::now() + span;
    until("time to pass", span + SOON, || (Instant::now() >= end).then_some(()));
}

/// Says a number that was measured, or that a test was skipped, where it is seen although all is
/// well: on stderr past the capture of `cargo test`, and in the file that `EBBTIDE_MEASURED` names.
pub fn say(line: &str) {
    let line = format!("process: {line}\n");
    // What can not be said is no reason to fail.
    let _said = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("EBBTIDE_MEASURED") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        let _said = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// A test that puts no load on the machine, side by side with others of its kind.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(PoisonError::into_inner)
}

/// A test that loads or measures the machine. The lock is for `cargo test`; nextest, which runs
/// each test in a process of its own, has a group for these in `.config/nextest.toml`.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    if let Some(group) = std::env::var_os("NEXTEST_TEST_GROUP") {
        assert_eq!(group, "machine", "this test's group in .config/nextest.toml");
    }
    MACHINE.write().unwrap_or_else(PoisonError::into_inner)
}

static MACHINE: RwLock<()> = RwLock::new(());

/// An empty directory of the given name, unique among the tests.
pub fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("process").join(name);
    match std::fs::remove_dir_all(&path) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
    }
    std::fs::create_dir_all(&path).unwrap();
    path
}

const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(1);
