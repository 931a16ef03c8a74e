//! When memory is given back to the system: once, after a burst, never on a worker.

use std::time::{Duration, Instant};

/// Watches the number of hot connections that have been dropped.
#[derive(Debug, Default)]
pub struct Trim {
    /// As of the last look.
    cooled: u64,
    /// When the number was last seen to change.
    changed: Option<Instant>,
    /// The number when memory was last given back.
    trimmed: u64,
    /// Whether the workers were told to tidy up their heaps for it.
    is_consolidated: bool,
}

impl Trim {
    /// Looks at the number, about once a second. Says whether the workers are to tidy up their
    /// heaps; the next look then gives memory back.
    #[must_use]
    pub fn is_due(&mut self, cooled: u64, now: Instant) -> bool {
        if cooled != self.cooled {
            self.cooled = cooled;
            self.changed = Some(now);
        }
        let is_over = self.changed.is_some_and(|at| now >= at + QUIET);
        if !is_over || cooled < self.trimmed + TRIM_AFTER {
            return false;
        }
        self.is_consolidated = !self.is_consolidated;
        if !self.is_consolidated {
            self.trimmed = cooled;
            give_back();
        }
        self.is_consolidated
    }
}

/// On a thread of its own: it takes milliseconds and locks the heaps.
fn give_back() {
    let spawned =
        std::thread::Builder::new().name("ebbtide-trim".to_owned()).spawn(crate::os::trim_memory);
    if let Err(error) = spawned {
        log::debug!(event_type = "trim_failed"; "cannot give memory back: {error}");
    }
}

/// How long no connection may have cooled: longer than an idle one stays hot, so that what a burst
/// took is given back in one piece, and between two looks.
const QUIET: Duration = Duration::from_millis(1800);

/// Dropped hot connections that are worth it: with hyper they take some 10 to 18 KiB each.
const TRIM_AFTER: u64 = 16;
