//! Databases and what is told of them, on real servers that the tests start themselves: PostgreSQL,
//! Redis, and servers of the tests' own that play Sentry.
//!
//! Where a program is missing, the test that wants it says `SKIPPED` on stderr and passes; with
//! `EBBTIDE_REQUIRE_TOOLS=1` or `CI=true` it fails instead. Nothing sleeps: a test waits for a
//! condition, with a deadline.

#![allow(
    clippy::disallowed_methods,
    reason = "time is measured from outside, and a thread that will not start ends the test"
)]
#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should, and says so")]

#[cfg(all(feature = "postgres", feature = "sqlite"))]
mod chaos;
mod harness;
#[cfg(feature = "sqlite")]
mod items;
#[cfg(feature = "postgres")]
mod postgres_exit;
#[cfg(feature = "postgres")]
mod postgres_pool;
#[cfg(feature = "postgres")]
mod postgres_server;
#[cfg(feature = "postgres")]
mod postgres_statements;
#[cfg(feature = "postgres-tls")]
mod postgres_tls;
#[cfg(all(feature = "redis", feature = "sqlite"))]
mod redis;
#[cfg(feature = "sentry")]
mod sentry;
#[allow(dead_code, reason = "what a server can do to its clients, tested for or not yet")]
#[path = "../support/mod.rs"]
mod services;
#[cfg(feature = "sqlite")]
mod sqlite;
#[allow(dead_code, reason = "tests/process wants the rest")]
#[path = "../process/support/mod.rs"]
mod support;
