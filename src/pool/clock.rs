//! The clock of the pools' threads. A reactor's turn has its own; here a job is submitted, taken
//! and done on threads that have no turns.

use std::time::Instant;

/// Now.
#[allow(clippy::disallowed_methods, reason = "the one place where a pool reads the clock")]
pub fn now() -> Instant {
    Instant::now()
}
