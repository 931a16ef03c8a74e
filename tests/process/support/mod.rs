//! What the tests share: a server to start and end, a client of plain bytes, tools, waiting.

pub mod client;
pub mod server;
pub mod tools;

use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "not every set of tests has something to say")]
pub use crate::services::say;
pub use crate::services::{SOON, until};

/// What a promise about time is given on top.
pub const SLACK: Duration = Duration::from_millis(500);

/// Lets time pass where time itself is the condition: a window that a measurement needs, or the
/// span after which a signal no longer counts as an echo.
pub fn let_pass(span: Duration) {
    let end = Instant::now() + span;
    until("time to pass", span + SOON, || (Instant::now() >= end).then_some(()));
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
