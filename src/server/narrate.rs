//! What control says in the log. One function per event, so that names and fields have one home.

use std::time::{Duration, Instant};

use super::data::{told_jobs, told_pools};
use super::view::WorkerView;
use crate::cleanup::{HookOutcome, HookReport};
use crate::drain::{Phase, Signal};
use crate::http::watch::RequestInfo;
use crate::ledger::{ConnectionState, Counts};
use crate::pool::Pools;
use crate::report::Report;

pub fn started(listen: &str, admin: &str, workers: usize, connections_max: usize) {
    log::info!(
        event_type = "server_started",
        listen = listen,
        admin_listen = admin,
        workers = workers,
        max_connections = connections_max,
        version = env!("CARGO_PKG_VERSION");
        "Listening on {listen}"
    );
}

pub fn initiated(reason: &str, connections: u64, requests: u64) {
    log::info!(
        event_type = "shutdown_initiated",
        reason = reason,
        connections = connections,
        requests_in_flight = requests;
        "Received {reason}, initiating graceful shutdown..."
    );
}

/// SIGQUIT to a server that was running.
pub fn forced(reason: &str, connections: u64, requests: u64) {
    log::warn!(
        event_type = "shutdown_forced",
        reason = reason,
        connections = connections,
        requests_in_flight = requests;
        "Received {reason}, ending at once"
    );
}

pub fn phase(phase: Phase, left: Option<Duration>) {
    log::info!(
        event_type = "shutdown_phase",
        phase = phase.name(),
        ends_in_seconds = left.map(seconds);
        "Shutdown phase: {}", phase.name()
    );
}

pub fn further_signal(signal: Signal, phase: Phase) {
    log::warn!(
        event_type = "shutdown_signal",
        signal = signal.name(),
        phase = phase.name();
        "Received {} during shutdown", signal.name()
    );
}

/// The shutdown was taken back in its lame-duck phase.
pub fn undone(reason: &str) {
    log::warn!(
        event_type = "shutdown_undone", reason = reason;
        "Shutdown undone, serving on"
    );
}

pub fn undo_too_late(phase: Phase) {
    log::warn!(
        event_type = "shutdown_not_undone", phase = phase.name();
        "The shutdown cannot be undone any more: the listeners are closed"
    );
}

/// A clean-up hook has ended.
pub fn hook(report: &HookReport) {
    let level = match report.outcome {
        HookOutcome::Done => log::Level::Info,
        HookOutcome::Failed(_)
        | HookOutcome::Panicked(_)
        | HookOutcome::Overran
        | HookOutcome::Skipped => log::Level::Warn,
    };
    let (name, outcome) = (report.name.as_str(), report.outcome.name());
    log::log!(
        level,
        event_type = "shutdown_hook",
        hook = name,
        stage = report.stage.name(),
        outcome = outcome,
        seconds = seconds(report.took),
        limit_seconds = seconds(report.limit),
        error = report.outcome.error();
        "Clean-up hook {name}: {outcome} in {:.3} s", report.took.as_secs_f64()
    );
}

/// What a server waits for, in a shutdown or not.
pub struct Progress<'a> {
    pub phase: Phase,
    /// Since the shutdown began.
    pub age: Duration,
    /// Of the budget.
    pub left: Option<Duration>,
    pub counts: Counts,
    pub other_work: u64,
    /// Connections that are closed, and whose last responses the kernel has still to deliver.
    pub to_deliver: usize,
    /// Clean-up hooks that run, and for how long.
    pub hooks: Vec<(&'a str, Duration)>,
    /// What the handlers keep their data in.
    pub data: Vec<Pools>,
}

impl Progress<'_> {
    fn hooks_running(&self) -> Option<String> {
        let told =
            |(name, age): &(&str, Duration)| format!("{name} for {:.1} s", age.as_secs_f64());
        let hooks: Vec<String> = self.hooks.iter().map(told).collect();
        (!hooks.is_empty()).then(|| hooks.join("; "))
    }
}

pub fn progress(progress: &Progress<'_>, workers: &[WorkerView], now: Instant) {
    let oldest = oldest(workers, 1).into_iter().next();
    let (open, in_flight) = (progress.counts.open(), progress.counts.in_flight);
    log::info!(
        event_type = "shutdown_progress",
        phase = progress.phase.name(),
        elapsed_seconds = seconds(progress.age),
        left_seconds = progress.left.map(seconds),
        connections = open,
        requests_in_flight = in_flight,
        other_work = progress.other_work,
        responses_to_deliver = progress.to_deliver,
        hooks_running = progress.hooks_running(),
        database_jobs = told_jobs(&progress.data, now),
        oldest = oldest.as_ref().map(|info| describe(info, now));
        "Shutting down, requests in flight: {in_flight}, connections open: {open}"
    );
}

/// The shutdown does not wait any longer for what was left to the kernel.
pub fn undelivered(responses: usize) {
    log::warn!(
        event_type = "responses_undelivered",
        responses = responses;
        "Clients have not acknowledged their last responses, the kernel goes on: {responses}"
    );
}

pub fn worker_blocked(worker: usize, age: Duration, running: Option<RequestInfo>) {
    let info = running.unwrap_or_default();
    log::warn!(
        event_type = "worker_blocked",
        worker = worker,
        seconds = seconds(age),
        method = info.method,
        path = info.path,
        route = info.route;
        "Worker {worker} has been blocked for {:.1} s", age.as_secs_f64()
    );
}

/// The answer to SIGUSR1.
pub fn snapshot(progress: &Progress<'_>, workers: &[WorkerView], now: Instant) {
    let counts = &progress.counts;
    let states = ConnectionState::ALL
        .map(|state| format!("{}={}", state.name(), counts.in_state(state)))
        .join(" ");
    let requests: Vec<String> =
        oldest(workers, SNAPSHOT_REQUESTS_MAX).iter().map(|info| describe(info, now)).collect();
    log::info!(
        event_type = "snapshot",
        phase = progress.phase.name(),
        left_seconds = progress.left.map(seconds),
        connections = counts.open(),
        connection_states = states,
        requests_begun = counts.begun,
        requests_in_flight = counts.in_flight,
        other_work = progress.other_work,
        hooks_running = progress.hooks_running(),
        pools = told_pools(&progress.data),
        oldest_requests = requests.join("; ");
        "Snapshot, requests in flight: {}, connections open: {}", counts.in_flight, counts.open()
    );
}

/// The last line of a shutdown.
pub fn report(report: &Report) {
    let json = crate::logging::json(report.to_json());
    log::info!(
        event_type = "shutdown_report",
        exit_status = report.exit_status,
        "json:report" = json;
        "{report}"
    );
}

/// The requests that wait longest, of all workers.
fn oldest(workers: &[WorkerView], count: usize) -> Vec<RequestInfo> {
    let mut all: Vec<RequestInfo> = workers
        .iter()
        .flat_map(|worker| {
            let waiting = worker.watch.waiting().into_iter().map(|request| request.info);
            worker.watch.running().into_iter().chain(waiting)
        })
        .collect();
    all.sort_by_key(|info| info.begun);
    all.truncate(count);
    all
}

fn describe(info: &RequestInfo, now: Instant) -> String {
    let age = info.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
    format!("{} {} from {} for {:.1} s", info.method, info.path, info.peer, age.as_secs_f64())
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Requests that a snapshot names.
const SNAPSHOT_REQUESTS_MAX: usize = 10;
