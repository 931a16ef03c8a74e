//! The end of a shutdown: the books are closed, and the report is made of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use super::control::{Control, Verdict};
use super::view::WorkerView;
use super::worker::WorkerMail;
use crate::cleanup::HookOutcome;
use crate::drain::Phase;
use crate::http::hold;
use crate::http::watch::keep_slowest;
use crate::ledger::{ConnectionOutcome, Counts, RequestOutcome};
use crate::reactor::mailbox::Mailbox;
use crate::report::{LostLine, Report};

impl Control {
    /// The report, once there is a verdict.
    pub fn report(&mut self, now: Instant, ended_at: SystemTime) -> Report {
        self.cleanup.close(now, self.handle.take_hooks());
        let mut hooks = self.handle.ran();
        hooks.extend(self.cleanup.reports().iter().cloned());
        let other_work = self.handle.other_work();
        let verdict = self.verdict.unwrap_or(Verdict::Stopped);
        let mut counts = Counts::default();
        let begun = self.drain.begun().unwrap_or(now);
        let mut lost = Vec::new();
        let mut lost_unnamed = 0;
        let mut slowest = Vec::new();
        for worker in &self.workers {
            let (books, named, unnamed) = close_books(worker, begun, now);
            counts.add(&books);
            lost.extend(named);
            lost_unnamed += unnamed;
            for request in worker.watch.take_slowest() {
                keep_slowest(&mut slowest, request);
            }
        }
        let refused = self.lost_since_begin(&counts, RequestOutcome::Refused);
        let cut = self.lost_since_begin(&counts, RequestOutcome::Cut);
        let cut_connections = self.cut_connections(&counts);
        let exit_status = match verdict {
            Verdict::Quit(status) => status,
            Verdict::Stopped if self.workers.iter().any(|worker| worker.is_lost) => EXIT_FAULT,
            Verdict::Stopped if refused + cut + cut_connections + other_work > 0 => EXIT_LOST,
            Verdict::Stopped if self.undelivered > 0 => EXIT_LOST,
            Verdict::Stopped if hooks.iter().any(|hook| hook.outcome != HookOutcome::Done) => {
                EXIT_HOOK
            }
            Verdict::Stopped => 0,
        };
        let ends = self.phases.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let phases = self.phases.iter().zip(ends);
        Report {
            reason: self.reason.clone(),
            ended_at,
            phases: phases
                .filter(|((phase, _), _)| *phase != Phase::Stopped)
                .map(|((phase, began), end)| (*phase, end.saturating_duration_since(*began)))
                .collect(),
            budget: self.drain.policy().timeout,
            budget_left: self
                .drain
                .end()
                .map_or(Duration::ZERO, |end| end.saturating_duration_since(now)),
            active_connections_at_shutdown: self.at_shutdown.open(),
            counts,
            refused,
            cut,
            cut_connections,
            undelivered: self.undelivered as u64,
            lost,
            lost_unnamed,
            slowest: slowest.iter().map(|request| LostLine::new(request, begun)).collect(),
            hooks,
            other_work,
            cancelled_jobs: self.cancelled_jobs.take().unwrap_or_default(),
            exit_status,
        }
    }
}

/// Closes a worker's books at the end: what it still has is cut by the end of the process, be it
/// stuck in a handler or not asked to finish. Names what can be named; the number is of those that
/// cannot.
fn close_books(worker: &WorkerView, begun: Instant, now: Instant) -> (Counts, Vec<LostLine>, u64) {
    let mut counts = worker.ledger.counts().closed_by_cut();
    // Dealt to it, and never looked at.
    while let Some(mail) = worker.mailbox.as_ref().and_then(Mailbox::take) {
        if let WorkerMail::Connection(..) = mail {
            counts.opened += 1;
            counts.closed[ConnectionOutcome::Cut as usize] += 1;
        }
    }
    let unfinished = std::mem::take(&mut counts.in_flight);
    counts.finished[RequestOutcome::Cut as usize] += unfinished;
    let (named, mut unnamed) = worker.watch.take_lost();
    let mut lost: Vec<LostLine> =
        named.iter().map(|request| LostLine::new(request, begun)).collect();
    if unfinished > 0 {
        let running = worker.watch.running().map(|info| (info, hold::RUNNING_HANDLER));
        let waiting = worker.watch.waiting().into_iter();
        let waiting = waiting.map(|request| (request.info, request.waits_for));
        let before = lost.len();
        lost.extend(running.into_iter().chain(waiting).map(|(info, waited_for)| {
            LostLine::unfinished(info, RequestOutcome::Cut, waited_for, begun, now)
        }));
        unnamed += unfinished.saturating_sub((lost.len() - before) as u64);
    }
    (counts, lost, unnamed)
}

/// Writes the report's file.
pub fn write(report: &Report, path: &Path) {
    // Who asked for an end at once does not wait for a file.
    let is_urgent = report.is_ended_by_signal();
    let left = if is_urgent { Duration::ZERO } else { report.budget_left };
    let patience = left.clamp(WRITE_MIN, WRITE_MAX);
    if let Err(error) = write_within(path.to_owned(), report.to_json() + "\n", patience) {
        log::warn!(
            event_type = "report_not_written", path:% = path.display();
            "cannot write the shutdown report: {error}"
        );
    }
}

/// Writes on a thread of its own: a named pipe that nobody reads, or a file system that does not
/// answer, must not hold the exit.
fn write_within(path: PathBuf, text: String, patience: Duration) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().name("ebbtide-report".to_owned()).spawn(move || {
        // Nobody listens any more when it took too long.
        let _late = sender.send(std::fs::write(path, text));
    })?;
    receiver.recv_timeout(patience).unwrap_or_else(|_| {
        let why = format!("it was not taken within {:.2} s", patience.as_secs_f64());
        Err(io::Error::new(io::ErrorKind::TimedOut, why))
    })
}

/// How long the report's file is waited for at most, and at least when the budget is used up.
const WRITE_MAX: Duration = Duration::from_secs(1);
const WRITE_MIN: Duration = Duration::from_millis(100);

/// The exit status when the shutdown refused or cut a request, cut a connection, or ended before a
/// last response was delivered.
pub const EXIT_LOST: u8 = 3;

/// The exit status when a clean-up hook failed or overran, and nothing was lost.
pub const EXIT_HOOK: u8 = 4;

/// The exit status when a worker was lost.
pub const EXIT_FAULT: u8 = 1;
