//! The handle by which a program watches and steers the shutdown of its server.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::control::ControlMail;
use super::error::StartError;
use super::hooks;
use super::narrate;
use crate::app::status::Status;
use crate::cleanup::{Hook, HookReport};
use crate::drain::{Budget, Phase, Signal};
use crate::ledger::Counts;
use crate::reactor::cancel::CancellationToken;
use crate::reactor::mailbox::Mailbox;
use crate::report::Report;

/// Steers the shutdown of one server. Clones steer the same; all methods may be called from any
/// thread.
///
/// Every server has one ([`Server::shutdown_handle`](crate::Server::shutdown_handle)); one that is
/// made first can be given to it ([`Server::with_shutdown`](crate::Server::with_shutdown)), so that
/// whatever has to be closed registers its hook where it is made. What a handle is told before it
/// has its server is done once the server runs.
#[derive(Clone, Debug)]
pub struct GracefulShutdown {
    shared: Arc<Shared>,
}

struct Shared {
    /// T, as given.
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
    /// Guards of [`GracefulShutdown::add_connection`] that are held.
    work: AtomicU64,
    /// Fires when `cancelling` begins.
    token: CancellationToken,
}

struct State {
    link: Link,
    /// Whether the server has begun to accept connections.
    is_listening: bool,
    begun: bool,
    /// `Some` once the server has stopped.
    report: Option<Report>,
    /// `None` once they were taken to be run.
    hooks: Option<Vec<Hook>>,
    /// Of hooks that [`GracefulShutdown::cleanup_resources`] ran.
    ran: Vec<HookReport>,
}

/// Whether there is a server to steer.
enum Link {
    /// Not yet: this is what it will be told.
    Apart(Vec<ControlMail>),
    Joined {
        control: Mailbox<ControlMail>,
        status: Arc<Status>,
    },
}

/// A server as it is at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The phase of its shutdown.
    pub phase: Phase,
    /// The books of all workers.
    pub counts: Counts,
    /// Guards of [`GracefulShutdown::add_connection`] that are held.
    pub other_work: u64,
}

impl GracefulShutdown {
    /// A handle without a server yet. `timeout` is the whole budget of the shutdown, from the first
    /// signal to the end of the process.
    pub fn new(timeout: Duration) -> GracefulShutdown {
        let state = State {
            link: Link::Apart(Vec::new()),
            is_listening: false,
            begun: false,
            report: None,
            hooks: Some(Vec::new()),
            ran: Vec::new(),
        };
        GracefulShutdown {
            shared: Arc::new(Shared {
                timeout,
                state: Mutex::new(state),
                changed: Condvar::new(),
                work: AtomicU64::new(0),
                token: CancellationToken::new(),
            }),
        }
    }

    /// The whole budget, as it was given.
    pub fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// Blocks the calling thread until the server accepts connections. Returns false when it has
    /// ended without, because it could not start or was dropped.
    pub fn wait_until_listening(&self) -> bool {
        let starting = |state: &mut State| !state.is_listening && state.report.is_none();
        let wait = self.shared.changed.wait_while(self.state(), starting);
        wait.unwrap_or_else(PoisonError::into_inner).is_listening
    }

    /// Begins the shutdown as SIGTERM would; does nothing when it has begun.
    pub fn shutdown(&self) {
        self.post(ControlMail::Begin);
    }

    /// Does what the signal would do, a second one included. An ordinary call: not for signal
    /// context.
    pub fn signal_handler(&self, signal: Signal) {
        self.post(ControlMail::Signal(signal));
    }

    /// Ends what stands, now: connections are reset, requests in flight are cut, named and counted.
    /// The clean-up still runs. Begins the shutdown when it has not begun.
    pub fn force(&self) {
        self.post(ControlMail::Force);
    }

    /// Takes the shutdown back as long as it is in its lame-duck phase: the server is ready again.
    /// Later it does nothing, for the listeners are closed; a log line says so.
    pub fn undrain(&self) {
        self.post(ControlMail::Undo);
    }

    /// Whether the shutdown has begun, and was not taken back.
    pub fn is_shutting_down(&self) -> bool {
        self.state().begun
    }

    /// Blocks the calling thread until the shutdown begins.
    pub fn wait_for_shutdown(&self) {
        let guard = self.shared.changed.wait_while(self.state(), |state| !state.begun);
        drop(guard.unwrap_or_else(PoisonError::into_inner));
    }

    /// Blocks the calling thread until the server has stopped. A server that could not start, or
    /// was dropped without having run, gives a report of exit status 1.
    pub fn finished(&self) -> Report {
        let mut state = self.state();
        loop {
            if let Some(report) = &state.report {
                return report.clone();
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`finished`](GracefulShutdown::finished), but for `limit` at most; then `None`.
    pub fn finished_within(&self, limit: Duration) -> Option<Report> {
        let unfinished = |state: &mut State| state.report.is_none();
        let wait = self.shared.changed.wait_timeout_while(self.state(), limit, unfinished);
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        state.report.clone()
    }

    /// The phase and the books as they are now.
    pub fn snapshot(&self) -> Snapshot {
        let other_work = self.other_work();
        match &self.state().link {
            Link::Apart(_) => {
                Snapshot { phase: Phase::Running, counts: Counts::default(), other_work }
            }
            Link::Joined { status, .. } => {
                Snapshot { phase: status.phase(), counts: status.counts(), other_work }
            }
        }
    }

    /// Counts work that is none of the server's requests (a connection of another protocol, a
    /// background job): until the guard is dropped the shutdown waits for it as for a request. What
    /// is still held when the time is up is counted in [`Report::other_work`].
    pub fn add_connection(&self) -> ActiveWork {
        self.shared.work.fetch_add(1, Ordering::AcqRel);
        ActiveWork { handle: self.clone() }
    }

    /// Fires when the phase `cancelling` begins: for work outside of requests. Handlers have
    /// [`Request::shutdown`](crate::Request::shutdown).
    pub fn cancellation(&self) -> CancellationToken {
        self.shared.token.clone()
    }

    /// Adds a step to the clean-up. Once the clean-up has begun it is too late: the hook is dropped
    /// and a log line says so.
    pub fn on_cleanup(&self, hook: Hook) {
        if let Some(hooks) = &mut self.state().hooks {
            hooks.push(hook);
            return;
        }
        log::warn!(
            event_type = "hook_too_late";
            "the clean-up has begun: {hook:?} is dropped"
        );
    }

    /// Runs the hooks, once: those that a server or an earlier call has taken are not run again.
    /// Blocks until each has ended or overrun, for at most the clean-up's share of the budget (a
    /// fifth, at most 5 s). For programs without a server; a server runs them itself.
    pub fn cleanup_resources(&self) -> Vec<HookReport> {
        let hooks = self.take_hooks();
        let share = Budget::carve(self.shared.timeout, Duration::ZERO).cleaning_up;
        let reports = hooks::run_all(hooks, share);
        let mut state = self.state();
        state.ran.extend(reports.iter().cloned());
        if let Link::Joined { status, .. } = &state.link {
            for report in &reports {
                status.add_hook(report.name.clone(), report.took.as_secs_f64());
            }
        }
        drop(state);
        reports.iter().for_each(narrate::hook);
        reports
    }

    fn post(&self, mail: ControlMail) {
        let mut state = self.state();
        match &mut state.link {
            Link::Joined { control, .. } => control.post(mail),
            Link::Apart(pending) => {
                let begins = mail.begins();
                pending.push(mail);
                if begins {
                    state.begun = true;
                    self.shared.changed.notify_all();
                }
            }
        }
    }

    /// Gives it a server, which gets what it was told before.
    ///
    /// # Errors
    /// When it has one.
    pub(super) fn join(
        &self,
        control: Mailbox<ControlMail>,
        status: Arc<Status>,
    ) -> Result<Joined, StartError> {
        let mut state = self.state();
        let Link::Apart(pending) = &mut state.link else { return Err(StartError::HandleInUse) };
        for mail in std::mem::take(pending) {
            control.post(mail);
        }
        state.link = Link::Joined { control, status };
        Ok(Joined { handle: self.clone() })
    }

    pub(super) fn set_listening(&self) {
        self.state().is_listening = true;
        self.shared.changed.notify_all();
    }

    pub(super) fn set_begun(&self) {
        self.state().begun = true;
        self.shared.changed.notify_all();
    }

    pub(super) fn set_undone(&self) {
        self.state().begun = false;
    }

    pub(super) fn set_finished(&self, report: &Report) {
        let mut state = self.state();
        state.begun = true;
        state.report = Some(report.clone());
        drop(state);
        self.shared.changed.notify_all();
    }

    pub(super) fn take_hooks(&self) -> Vec<Hook> {
        self.state().hooks.take().unwrap_or_default()
    }

    /// What became of hooks that the program ran itself.
    pub(super) fn ran(&self) -> Vec<HookReport> {
        self.state().ran.clone()
    }

    pub(super) fn other_work(&self) -> u64 {
        self.shared.work.load(Ordering::Acquire)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Work that the shutdown waits for; see [`GracefulShutdown::add_connection`].
#[derive(Debug)]
#[must_use = "the work counts as done when this is dropped"]
pub struct ActiveWork {
    handle: GracefulShutdown,
}

impl Drop for ActiveWork {
    fn drop(&mut self) {
        if self.handle.shared.work.fetch_sub(1, Ordering::AcqRel) == 1
            && let Link::Joined { control, .. } = &self.handle.state().link
        {
            control.post(ControlMail::Quiet);
        }
    }
}

/// A server's hold on its handle. When it ends without a report, nobody waits for one in vain.
#[derive(Debug)]
pub(super) struct Joined {
    handle: GracefulShutdown,
}

impl Joined {
    pub fn handle(&self) -> &GracefulShutdown {
        &self.handle
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let is_finished = self.handle.state().report.is_some();
        if !is_finished {
            self.handle.set_finished(&Report::not_run(self.handle.timeout()));
        }
    }
}
