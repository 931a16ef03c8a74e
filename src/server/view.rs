//! What control knows of a worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::narrate;
use super::site::SiteSetup;
use super::worker::{Pulse, WorkerMail};
use crate::http::watch::Watch;
use crate::ledger::Ledger;
use crate::reactor::mailbox::Mailbox;

/// See the module's essay.
pub struct WorkerView {
    /// `None` for the endpoint on control's own thread.
    pub mailbox: Option<Mailbox<WorkerMail>>,
    pub ledger: Arc<Ledger>,
    pub watch: Arc<Watch>,
    pub pulse: Arc<Pulse>,
    /// Whether it was reported as blocked in its current turn.
    complained: bool,
    /// Whether its thread has ended by a fault: nothing more is to be expected of it.
    pub is_lost: bool,
}

impl WorkerView {
    /// Of one that will have this site; no thread of its own is known yet.
    pub fn new(site: &SiteSetup, pulse: &Arc<Pulse>) -> WorkerView {
        WorkerView {
            mailbox: None,
            ledger: Arc::clone(&site.ledger),
            watch: Arc::clone(&site.watch),
            pulse: Arc::clone(pulse),
            complained: false,
            is_lost: false,
        }
    }

    /// Whether it has said that nothing is left, or will never say anything.
    pub fn is_quiet(&self) -> bool {
        self.is_lost || self.pulse.quiet.load(Ordering::Acquire)
    }

    /// Says, once, when its turn has lasted too long. Returns when the one that is running would
    /// have.
    pub fn look(&mut self, index: usize, now: Instant) -> Option<Instant> {
        let age = self.pulse.turn_age(now);
        let is_blocked = age.is_some_and(|age| age > BLOCKED_AFTER);
        let has_complained = std::mem::replace(&mut self.complained, is_blocked);
        let age = age?;
        if !is_blocked {
            return Some(now + BLOCKED_AFTER.saturating_sub(age) + LOOK_MARGIN);
        }
        if !has_complained {
            narrate::worker_blocked(index, age, self.watch.running());
        }
        None
    }
}

/// A worker's turn that lasts longer is worth a warning.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);

/// So that a turn is surely too long when it is looked at for that.
const LOOK_MARGIN: Duration = Duration::from_millis(5);
