//! The handle by which a program watches and steers the shutdown of its server.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::control::ControlMail;
use crate::app::status::Status;
use crate::drain::{Phase, Signal};
use crate::ledger::Counts;
use crate::reactor::mailbox::Mailbox;
use crate::report::Report;

/// Steers one server. Clones steer the same; all methods may be called from any thread.
#[derive(Clone, Debug)]
pub struct GracefulShutdown {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: Mailbox<ControlMail>,
    status: Arc<Status>,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    begun: bool,
    /// `Some` once the server has stopped.
    report: Option<Report>,
}

impl GracefulShutdown {
    pub(super) fn new(control: Mailbox<ControlMail>, status: Arc<Status>) -> GracefulShutdown {
        let shared =
            Shared { control, status, progress: Mutex::default(), changed: Condvar::new() };
        GracefulShutdown { shared: Arc::new(shared) }
    }

    /// Begins the shutdown as SIGTERM would; does nothing when it has begun.
    pub fn shutdown(&self) {
        self.shared.control.post(ControlMail::Begin);
    }

    /// Does what the signal would do, a second one included. An ordinary call: not for signal
    /// context.
    pub fn signal_handler(&self, signal: Signal) {
        self.shared.control.post(ControlMail::Signal(signal));
    }

    /// Whether the shutdown has begun.
    pub fn is_shutting_down(&self) -> bool {
        self.lock().begun
    }

    /// Blocks the calling thread until the shutdown begins.
    pub fn wait_for_shutdown(&self) {
        let guard = self.shared.changed.wait_while(self.lock(), |progress| !progress.begun);
        drop(guard.unwrap_or_else(PoisonError::into_inner));
    }

    /// Blocks the calling thread until the server has stopped, or `limit` has passed.
    pub fn finished(&self, limit: Duration) -> Option<Report> {
        let wait = self
            .shared
            .changed
            .wait_timeout_while(self.lock(), limit, |progress| progress.report.is_none());
        let (progress, _) = wait.unwrap_or_else(PoisonError::into_inner);
        progress.report.clone()
    }

    /// The phase and the books as they are now.
    pub fn snapshot(&self) -> (Phase, Counts) {
        (self.shared.status.phase(), self.shared.status.counts())
    }

    pub(super) fn set_begun(&self) {
        self.lock().begun = true;
        self.shared.changed.notify_all();
    }

    pub(super) fn set_finished(&self, report: &Report) {
        let mut progress = self.lock();
        progress.begun = true;
        progress.report = Some(report.clone());
        drop(progress);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
