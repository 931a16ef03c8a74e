//! The report of a shutdown: what is said of it at its end, as one JSON object, and how that is
//! found and drawn again (`ebbtide report`).

pub mod draw;
pub mod read;

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};

use crate::cleanup::{HookOutcome, HookReport};
use crate::drain::Phase;
use crate::http::watch::{EndedRequest, RequestInfo};
use crate::ledger::{ConnectionOutcome, Counts, RejectedCode, RequestOutcome};
use crate::logging::visible;

/// What became of a server's connections and requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What began the shutdown: a signal's name, or `shutdown()`.
    pub reason: String,
    /// The wall clock at the end. It is read once: the shutdown began
    /// [`duration`](Report::duration) before.
    pub ended_at: SystemTime,
    /// How long each phase took, in the order in which they came.
    pub phases: Vec<(Phase, Duration)>,
    /// The whole budget.
    pub budget: Duration,
    /// What was left of the budget at the end.
    pub budget_left: Duration,
    /// When the shutdown began.
    pub active_connections_at_shutdown: u64,
    /// The books at the end.
    pub counts: Counts,
    /// Requests refused since the shutdown began.
    pub refused: u64,
    /// Requests cut since the shutdown began.
    pub cut: u64,
    /// Connections cut since then: with a request, with part of one, or with the end of a response
    /// that the client had not taken from the kernel.
    pub cut_connections: u64,
    /// Responses to clients that had asked for the close, and that had not acknowledged them at the
    /// end. The kernel goes on delivering them, as long as its network is there.
    pub undelivered: u64,
    /// The refused and cut requests by name, as many as were kept.
    pub lost: Vec<LostLine>,
    /// How many more requests were refused or cut than `lost` names.
    pub lost_unnamed: u64,
    /// What became of the clean-up hooks, in the order in which they ended.
    pub hooks: Vec<HookReport>,
    /// Guards of [`GracefulShutdown::add_connection`](crate::GracefulShutdown::add_connection) that
    /// were still held when the time was up.
    pub other_work: u64,
    /// The slowest requests that were in flight during the shutdown, had to wait and were answered
    /// or abandoned: at most ten, slowest first.
    pub slowest: Vec<LostLine>,
    /// What the databases were doing when the shutdown cancelled it, oldest first in each pool: at
    /// most 200.
    pub cancelled_jobs: Vec<JobLine>,
    /// The status the process should end with.
    pub exit_status: u8,
}

/// A job of a database that the shutdown cancelled.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobLine {
    /// The threads that had it.
    pub pool: &'static str,
    /// Its statement, or what its submitter called it.
    pub statement: String,
    /// From a thread's taking it to its cancelling.
    pub age_seconds: f64,
}

/// One request, with its end. Most are of requests that were refused or cut.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LostLine {
    /// `refused` or `cut`; among the slowest `answered` or `abandoned`.
    pub outcome: &'static str,
    /// As sent.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The client's address and port, or `unix`.
    pub peer: String,
    /// The template of its route; empty when none matched.
    pub route: String,
    /// From its complete head to its end.
    pub age_seconds: f64,
    /// From the beginning of the shutdown to its end.
    pub ended_seconds: f64,
    /// What it was doing when it ended.
    pub waited_for: &'static str,
}

impl LostLine {
    /// What is told of a request that has ended, in a shutdown that began at `begun`.
    pub fn new(request: &EndedRequest, begun: Instant) -> LostLine {
        let EndedRequest { info, outcome, waited_for, at } = request;
        LostLine::unfinished(info.clone(), *outcome, waited_for, begun, *at)
    }

    /// What is told of a request that still runs, and ends as `outcome` at `end`.
    pub fn unfinished(
        info: RequestInfo,
        outcome: RequestOutcome,
        waited_for: &'static str,
        begun: Instant,
        end: Instant,
    ) -> LostLine {
        let since = |from: Instant| {
            let span = end.saturating_duration_since(from);
            (span.as_secs_f64() * 1000.0).round() / 1000.0
        };
        LostLine {
            outcome: outcome.name(),
            method: info.method,
            path: info.path,
            peer: info.peer.to_string(),
            route: info.route,
            age_seconds: info.begun.map_or(0.0, since),
            ended_seconds: since(begun),
            waited_for,
        }
    }
}

impl Report {
    /// Of a server that did not come to its shutdown.
    pub(crate) fn not_run(budget: Duration) -> Report {
        Report {
            reason: "the server did not run".to_owned(),
            ended_at: SystemTime::UNIX_EPOCH,
            phases: Vec::new(),
            budget,
            budget_left: budget,
            active_connections_at_shutdown: 0,
            counts: Counts::default(),
            refused: 0,
            cut: 0,
            cut_connections: 0,
            undelivered: 0,
            lost: Vec::new(),
            lost_unnamed: 0,
            slowest: Vec::new(),
            hooks: Vec::new(),
            other_work: 0,
            cancelled_jobs: Vec::new(),
            exit_status: 1,
        }
    }

    /// Whether every hook did its work in its time.
    pub fn is_cleaned_up(&self) -> bool {
        self.hooks.iter().all(|hook| hook.outcome == HookOutcome::Done)
    }

    /// Whether a signal ended the process at once: then nothing is waited for any more.
    pub fn is_ended_by_signal(&self) -> bool {
        self.exit_status > SIGNAL_STATUS
    }

    /// 0: drained. 3: the shutdown refused or cut a request or other work. 4: a clean-up hook
    /// failed or overran. 128+n: ended by a signal. 1: a fault of the server.
    pub fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// How long the shutdown took.
    pub fn duration(&self) -> Duration {
        self.phases.iter().map(|(_, duration)| *duration).sum()
    }

    /// The report as one line of JSON, in which everything is visible.
    pub fn to_json(&self) -> String {
        let counts = &self.counts;
        let mut start = Duration::ZERO;
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|(phase, duration)| {
                let (began, took) = (seconds(start), seconds(*duration));
                start += *duration;
                json!({ "name": phase.name(), "start_seconds": began, "seconds": took })
            })
            .collect();
        let before = self.phases.iter().take_while(|(phase, _)| *phase < Phase::CleaningUp);
        let cleaning = before.map(|(_, duration)| *duration).sum();
        let mut phases_seconds = serde_json::Map::new();
        for (phase, duration) in &self.phases {
            phases_seconds.insert(phase.name().to_owned(), seconds(*duration));
        }
        let finished = named(RequestOutcome::ALL.map(|it| (it.name(), counts.finished_as(it))));
        let closed = named(ConnectionOutcome::ALL.map(|it| (it.name(), counts.closed_as(it))));
        let rejected =
            named(RejectedCode::ALL.map(|code| (code.status(), counts.rejected[code as usize])));
        let report = json!({
            "version": VERSION,
            "reason": self.reason,
            "started_at": date(self.ended_at.checked_sub(self.duration())),
            "ended_at": date(Some(self.ended_at)),
            "duration_seconds": seconds(self.duration()),
            "phases": phases,
            "phases_seconds": phases_seconds,
            "budget_seconds": seconds(self.budget),
            "budget_left_seconds": seconds(self.budget_left),
            "active_connections_at_shutdown": self.active_connections_at_shutdown,
            "refused_in_shutdown": self.refused,
            "cut_in_shutdown": self.cut,
            "connections_cut_in_shutdown": self.cut_connections,
            "responses_undelivered": self.undelivered,
            "requests": {
                "begun": counts.begun,
                "in_flight": counts.in_flight,
                "finished": finished,
                "rejected": rejected,
            },
            "connections": {
                "opened": counts.opened,
                "open": counts.open(),
                "closed": closed,
            },
            "late_bytes": counts.late_bytes,
            "lost": self.lost,
            "lost_unnamed": self.lost_unnamed,
            "cancelled_jobs": self.cancelled_jobs,
            "hooks": self.hooks.iter().map(|hook| hook_json(hook, cleaning)).collect::<Vec<_>>(),
            "other_work": self.other_work,
            "slowest": self.slowest,
            "exit_status": self.exit_status,
        });
        // Its strings are escaped as JSON has it; what else a terminal obeys is escaped as well.
        visible(&report.to_string()).into_owned()
    }
}

/// One line: how long it took, and what became of the requests.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Shutdown complete in {:.3} s: {} answered, {} refused, {} cut, {} abandoned",
            self.duration().as_secs_f64(),
            self.counts.finished_as(RequestOutcome::Answered),
            self.counts.finished_as(RequestOutcome::Refused),
            self.counts.finished_as(RequestOutcome::Cut),
            self.counts.finished_as(RequestOutcome::Abandoned),
        )
    }
}

/// A `main` may return its report: the process ends with its exit status.
impl Termination for Report {
    fn report(self) -> ExitCode {
        ExitCode::from(self.exit_status)
    }
}

/// `began` is when the clean-up did.
fn hook_json(hook: &HookReport, began: Duration) -> Value {
    let mut json = json!({
        "name": hook.name,
        "stage": hook.stage.name(),
        "outcome": hook.outcome.name(),
        "start_seconds": seconds(began + hook.start),
        "seconds": seconds(hook.took),
        "limit_seconds": seconds(hook.limit),
    });
    if let Some(error) = hook.outcome.error() {
        json["error"] = error.into();
    }
    json
}

fn named<const N: usize>(counts: [(impl ToString, u64); N]) -> Value {
    counts.into_iter().map(|(name, count)| (name.to_string(), Value::from(count))).collect()
}

/// As RFC 3339 has it, to the millisecond, in UTC.
fn date(at: Option<SystemTime>) -> String {
    // humantime refuses a clock before 1970 with a panic.
    let at = at.unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(at).to_string()
}

/// Seconds to the microsecond: more digits would be noise.
fn seconds(duration: Duration) -> Value {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    #[allow(clippy::cast_precision_loss, reason = "exact up to 285 years")]
    let seconds = micros as f64 / 1e6;
    seconds.into()
}

/// The format of the JSON. A reader of one version need not understand another.
pub const VERSION: u64 = 1;

/// Exit statuses above it are those of signals that ended the process (`signal(7)`).
const SIGNAL_STATUS: u8 = 128;
