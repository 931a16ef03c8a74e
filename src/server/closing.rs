//! The end of a shutdown: the books are closed, and the report is made of them.

use std::time::{Duration, Instant, SystemTime};

use super::control::{Control, Verdict, WorkerView};
use crate::cleanup::HookOutcome;
use crate::drain::Phase;
use crate::http::hold;
use crate::http::watch::keep_slowest;
use crate::ledger::{Counts, RequestOutcome};
use crate::report::{LostLine, Report};

impl Control {
    /// The report, once there is a verdict.
    pub fn report(&mut self, now: Instant, ended_at: SystemTime) -> Report {
        self.cleanup.close(now);
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
        let exit_status = match verdict {
            Verdict::Quit(status) => status,
            Verdict::Stopped if self.workers.iter().any(|worker| worker.is_lost) => EXIT_FAULT,
            Verdict::Stopped if refused + cut + other_work > 0 => EXIT_LOST,
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
            lost,
            lost_unnamed,
            slowest: slowest.iter().map(|request| LostLine::new(request, begun)).collect(),
            hooks,
            other_work,
            exit_status,
        }
    }
}

/// Closes a worker's books at the end: what it still has is cut by the end of the process, be it
/// stuck in a handler or not asked to finish. Names what can be named; the number is of those that
/// cannot.
fn close_books(worker: &WorkerView, begun: Instant, now: Instant) -> (Counts, Vec<LostLine>, u64) {
    let mut counts = worker.ledger.counts().closed_by_cut();
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

/// The exit status when the shutdown refused or cut a request.
pub const EXIT_LOST: u8 = 3;

/// The exit status when a clean-up hook failed or overran, and nothing was lost.
pub const EXIT_HOOK: u8 = 4;

/// The exit status when a worker was lost.
pub const EXIT_FAULT: u8 = 1;
