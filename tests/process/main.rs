//! The real binary as a process: signals, exit statuses, log lines, clients that nobody here wrote,
//! and what an operating system counts (system calls, memory, descriptors).
//!
//! Each test starts its own server on a port of the kernel's choice and ends it by its id, whatever
//! happens. Nothing sleeps: a test waits for a log line or for a condition, with a deadline.
//!
//! External tools (curl, wrk, strace, python3, promtool, nginx, haproxy, kubectl, those of systemd)
//! are used where they are there. A test that misses one says `SKIPPED` on stderr and passes; with
//! `EBBTIDE_REQUIRE_TOOLS=1` or `CI=true` it fails instead. `EBBTIDE_LONG=1` repeats the shutdown
//! under load ten times, not three, and the restarts forty times, not five.
//!
//! What is measured is said as well as held against its limit: on stderr, and in the file that
//! `EBBTIDE_MEASURED` names. Limits of time have half a second of slack over what the server
//! promises, because a test machine does other things too.

#![allow(
    clippy::disallowed_methods,
    reason = "time is measured from outside, and a thread that will not start ends the test"
)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should, and says so")]

mod admin;
mod clients;
mod confined;
mod contract;
mod cost;
mod crowd;
mod delivery;
mod drain;
mod embedded;
mod health_check;
mod hooks;
mod listeners;
mod logs;
mod manager;
mod promises;
mod proxies;
mod refusals;
mod report;
mod scripts;
#[allow(dead_code, reason = "tests/data wants the rest")]
#[path = "../support/mod.rs"]
mod services;
mod signals;
mod support;
mod timing;
