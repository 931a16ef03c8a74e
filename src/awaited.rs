//! What the code on this thread last went to wait for, in words for operators.
//!
//! A ticket says so when it is not ready, and whoever polled the handler that awaits it asks then:
//! neither has to know the other.

use std::cell::Cell;

thread_local! {
    static AWAITED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The code that runs is about to wait for this.
pub fn note(what: &'static str) {
    AWAITED.set(Some(what));
}

/// What was noted since this was last asked on this thread.
pub fn take() -> Option<&'static str> {
    AWAITED.take()
}
