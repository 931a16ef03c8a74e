//! The report of a shutdown: what is said of it at its end, as one JSON object.

use std::fmt;
use std::process::{ExitCode, Termination};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cleanup::{HookOutcome, HookReport};
use crate::drain::Phase;
use crate::http::watch::{LostRequest, RequestInfo};
use crate::ledger::{ConnectionOutcome, Counts, RejectedCode, RequestOutcome};

/// What became of a server's connections and requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What began the shutdown: a signal's name, or `shutdown()`.
    pub reason: String,
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
    /// The refused and cut requests by name, as many as were kept.
    pub lost: Vec<LostLine>,
    /// How many more requests were refused or cut than `lost` names.
    pub lost_unnamed: u64,
    /// What became of the clean-up hooks, in the order in which they ended.
    pub hooks: Vec<HookReport>,
    /// Guards of [`GracefulShutdown::add_connection`](crate::GracefulShutdown::add_connection) that
    /// were still held when the time was up.
    pub other_work: u64,
    /// The status the process should end with.
    pub exit_status: u8,
}

/// One request that was refused or cut.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LostLine {
    /// `refused` or `cut`.
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
    /// What it was doing when it was ended.
    pub waited_for: &'static str,
}

impl LostLine {
    /// What is told of a request that the server ended.
    pub fn new(request: &LostRequest, now: Instant) -> LostLine {
        // Its age when it ended, not when the report is written.
        let until = request.at.min(now);
        LostLine::unfinished(request.info.clone(), request.outcome, request.waited_for, until)
    }

    /// What is told of a request that still runs.
    pub fn unfinished(
        info: RequestInfo,
        outcome: RequestOutcome,
        waited_for: &'static str,
        now: Instant,
    ) -> LostLine {
        let age = info.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
        LostLine {
            outcome: outcome.name(),
            method: info.method,
            path: info.path,
            peer: info.peer.to_string(),
            route: info.route,
            age_seconds: (age.as_secs_f64() * 1000.0).round() / 1000.0,
            waited_for,
        }
    }
}

impl Report {
    /// Of a server that did not come to its shutdown.
    pub(crate) fn not_run(budget: Duration) -> Report {
        Report {
            reason: "the server did not run".to_owned(),
            phases: Vec::new(),
            budget,
            budget_left: budget,
            active_connections_at_shutdown: 0,
            counts: Counts::default(),
            refused: 0,
            cut: 0,
            lost: Vec::new(),
            lost_unnamed: 0,
            hooks: Vec::new(),
            other_work: 0,
            exit_status: 1,
        }
    }

    /// Whether every hook did its work in its time.
    pub fn is_cleaned_up(&self) -> bool {
        self.hooks.iter().all(|hook| hook.outcome == HookOutcome::Done)
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

    /// The report as one line of JSON.
    pub fn to_json(&self) -> String {
        let counts = &self.counts;
        let phases: serde_json::Map<String, serde_json::Value> = self
            .phases
            .iter()
            .map(|(phase, duration)| (phase.name().to_owned(), seconds(*duration)))
            .collect();
        let finished: serde_json::Map<String, serde_json::Value> = RequestOutcome::ALL
            .iter()
            .map(|outcome| (outcome.name().to_owned(), counts.finished_as(*outcome).into()))
            .collect();
        let closed: serde_json::Map<String, serde_json::Value> = ConnectionOutcome::ALL
            .iter()
            .map(|outcome| (outcome.name().to_owned(), counts.closed_as(*outcome).into()))
            .collect();
        let rejected: serde_json::Map<String, serde_json::Value> = RejectedCode::ALL
            .iter()
            .map(|code| (code.status().to_string(), counts.rejected[*code as usize].into()))
            .collect();
        serde_json::json!({
            "reason": self.reason,
            "duration_seconds": seconds(self.duration()),
            "phases_seconds": phases,
            "budget_seconds": seconds(self.budget),
            "budget_left_seconds": seconds(self.budget_left),
            "active_connections_at_shutdown": self.active_connections_at_shutdown,
            "refused_in_shutdown": self.refused,
            "cut_in_shutdown": self.cut,
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
            "hooks": self.hooks.iter().map(hook_json).collect::<Vec<_>>(),
            "other_work": self.other_work,
            "exit_status": self.exit_status,
        })
        .to_string()
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

fn hook_json(hook: &HookReport) -> serde_json::Value {
    let mut json = serde_json::json!({
        "name": hook.name,
        "stage": hook.stage.name(),
        "outcome": hook.outcome.name(),
        "seconds": seconds(hook.took),
        "limit_seconds": seconds(hook.limit),
    });
    if let Some(error) = hook.outcome.error() {
        json["error"] = error.into();
    }
    json
}

/// Seconds to the microsecond: more digits would be noise.
fn seconds(duration: Duration) -> serde_json::Value {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    #[allow(clippy::cast_precision_loss, reason = "exact up to 285 years")]
    let seconds = micros as f64 / 1e6;
    seconds.into()
}
