//! Results as JSON: every restart, every loss, and what does not agree. Times are in seconds.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::outcome::{End, Outcome, Tally};
use crate::restarts::{Latency, Ledger, Restart, Trip};
use crate::table::nearest_signal;

/// What was asked for, and of whom.
#[derive(Clone, Debug)]
pub struct Heading {
    /// The server's name.
    pub target: String,
    /// The seed of the plan.
    pub seed: u64,
    /// Quick requests per second.
    pub rate: u32,
    /// The server's user, if it is not the load generator's.
    pub user: Option<u32>,
    /// When the run began, in seconds since 1970.
    pub unix_time: u64,
}

/// All trips of a run.
pub fn restarts(heading: &Heading, trips: &[Trip]) -> Value {
    json!({
        "target": heading.target,
        "seed": heading.seed,
        "rate": heading.rate,
        "user": heading.user,
        "unix_time": heading.unix_time,
        "ways": trips.iter().map(trip).collect::<Vec<_>>(),
    })
}

fn trip(trip: &Trip) -> Value {
    let kinds: Map<String, Value> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let ends: Vec<End> = trip.ends.iter().filter(|e| e.kind == kind).cloned().collect();
            (kind.name().to_owned(), tally(&Tally::of(&ends)))
        })
        .collect();
    let lost = trip.ends.iter().enumerate().filter(|(_, end)| end.outcome.is_loss());
    let is_gap = |at: usize| trip.gaps.iter().find(|(of, _)| *of == at).map(|(_, before)| *before);
    json!({
        "way": trip.way.name(),
        "lost": trip.losses(),
        "gap_connections": trip.gap_connections(),
        "is_clean": trip.is_clean(),
        "fault": trip.fault.as_ref().map(ToString::to_string),
        "requests": tally(&Tally::of(&trip.ends)),
        "latency": latency(&Latency::of(&trip.ends)),
        "kinds": kinds,
        "restarts": trip.restarts.iter().map(restart).collect::<Vec<_>>(),
        "last_instance": trip.last.as_ref().map(ledger),
        "differences": trip.all_differences(),
        "losses": lost.map(|(at, end)| loss(trip, end, is_gap(at))).collect::<Vec<_>>(),
    })
}

fn restart(restart: &Restart) -> Value {
    let since = |at: Option<Duration>| at.map(|at| relative(at, restart.signalled));
    json!({
        "signalled": seconds(restart.signalled),
        "listeners_closed": since(restart.closed),
        "exited": since(restart.exited),
        "exit_status": restart.status,
        "successor_started": since(restart.successor),
        "requests": tally(&restart.tally),
        "latency": latency(&restart.latency),
        "lost": restart.losses,
        "gap_connections": restart.gaps,
        "ledger": ledger(&restart.ledger),
    })
}

fn ledger(ledger: &Ledger) -> Value {
    let books = ledger.books.as_ref().map(|books| {
        json!({
            "begun": books.begun,
            "finished": books.finished,
            "rejected": books.rejected,
            "opened": books.opened,
            "closed": books.closed,
            "late_bytes": books.late_bytes,
            "duration": books.seconds,
            "phases": books.phases,
        })
    });
    json!({ "report": books, "differences": ledger.differences })
}

/// One lost request; its times are relative to the last signal before its end.
fn loss(trip: &Trip, end: &End, gap: Option<Duration>) -> Value {
    let signal = nearest_signal(trip, end).unwrap_or_default();
    json!({
        "id": end.id,
        "kind": end.kind.name(),
        "outcome": end.outcome.name(),
        "detail": end.detail,
        "is_gap": gap.is_some(),
        "connected_before_close": gap.map(seconds),
        "nth_on_connection": end.nth,
        "port": end.port,
        "connected": end.connected.map(|at| relative(at, signal)),
        "planned": relative(end.planned, signal),
        "sent": end.sent.map(|at| relative(at, signal)),
        "ended": relative(end.ended, signal),
    })
}

fn tally(tally: &Tally) -> Value {
    let counts = Outcome::ALL.into_iter().map(|outcome| {
        let count: Value = tally.count(outcome).into();
        (outcome.name().to_owned(), count)
    });
    counts.collect::<Map<String, Value>>().into()
}

fn latency(latency: &Latency) -> Value {
    json!({
        "p50": seconds(latency.median),
        "p99": seconds(latency.p99),
        "max": seconds(latency.max),
    })
}

/// To the microsecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}

fn relative(at: Duration, signal: Duration) -> f64 {
    ((at.as_secs_f64() - signal.as_secs_f64()) * 1e6).round() / 1e6
}
