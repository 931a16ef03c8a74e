//! Results as JSON: every restart, every loss, when everything ended, and what does not agree.
//! Times are in seconds.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::field::Compared;
use crate::kind::Kind;
use crate::moments::{EDGES_MS, Moments};
use crate::outcome::{End, Outcome, Tally};
use crate::restarts::{Latency, Restart, Trip};
use crate::table::last_signal;

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

/// Writes a file, or leaves the one that is there: whoever looks finds one of the two, whole.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| {
        // It may not even be there.
        let _removed = fs::remove_file(&new);
    })
}

/// Whether files can be written in a directory.
///
/// # Errors
/// When not.
pub fn probe(directory: &Path) -> io::Result<()> {
    let path = directory.join(format!("loadtest-{}.new", std::process::id()));
    fs::write(&path, "")?;
    fs::remove_file(&path)
}

/// All trips of a run.
pub fn restarts(heading: &Heading, trips: &[&Trip]) -> Value {
    #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
    let edges = EDGES_MS.map(|edge| edge as f64 / 1e3);
    json!({
        "target": heading.target,
        "seed": heading.seed,
        "rate": heading.rate,
        "user": heading.user,
        "unix_time": heading.unix_time,
        "ended_edges": edges,
        "ways": trips.iter().map(|of| trip(of)).collect::<Vec<_>>(),
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
    let lost = trip.ends.iter().enumerate().filter(|(_, end)| trip.is_failure(end));
    let signals: Vec<Duration> = trip.restarts.iter().map(|restart| restart.signalled).collect();
    let moments = Moments::of(&trip.ends, &signals);
    let is_gap = |at: usize| trip.gaps.iter().find(|(of, _)| *of == at).map(|(_, before)| *before);
    json!({
        "way": trip.way.name(),
        "lost": trip.losses(),
        "refused_for_no_reason": trip.refusals(),
        "gap_connections": trip.gap_connections(),
        "is_clean": trip.is_clean(),
        "fault": trip.fault.as_ref().map(ToString::to_string),
        "requests": tally(&Tally::of(&trip.ends)),
        "latency": latency(&Latency::of(&trip.ends)),
        "kinds": kinds,
        "restarts": trip.restarts.iter().zip(&moments).map(restart).collect::<Vec<_>>(),
        "last_instances": trip.last.iter().map(ledger).collect::<Vec<_>>(),
        "differences": trip.all_differences(),
        "losses": lost.map(|(at, end)| loss(trip, end, is_gap(at))).collect::<Vec<_>>(),
    })
}

fn restart((restart, moments): (&Restart, &Moments)) -> Value {
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
        "ended": ended(moments),
        "ledger": restart.ledger.as_ref().map(ledger),
    })
}

/// How many requests ended when, by outcome: of those nearest to this signal, a bucket each. What
/// never happened is left out.
fn ended(moments: &Moments) -> Value {
    let counts = Outcome::ALL.into_iter().map(|outcome| (outcome.name(), moments.counts(outcome)));
    let some = counts.filter(|(_, counts)| counts.iter().any(|count| *count > 0));
    some.map(|(name, counts)| (name.to_owned(), json!(counts))).collect::<Map<_, _>>().into()
}

fn ledger(ledger: &Compared) -> Value {
    let books = ledger.books.as_ref().map(|books| {
        json!({
            "begun": books.begun,
            "in_flight": books.in_flight,
            "finished": books.finished,
            "rejected": books.rejected,
            "opened": books.opened,
            "open": books.open,
            "closed": books.closed,
            "late_bytes": books.late_bytes,
            "duration": books.seconds,
            "phases": books.phases,
        })
    });
    json!({ "report": books, "differences": ledger.differences })
}

/// One request that was lost, or refused for no reason; its times are relative to the last signal
/// before its end.
fn loss(trip: &Trip, end: &End, gap: Option<Duration>) -> Value {
    let signal = last_signal(trip, end).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let directory =
            std::env::temp_dir().join(format!("loadtest-results-{}", std::process::id()));
        fs::create_dir_all(directory.join("taken/by a directory")).unwrap();
        let path = directory.join("a.json");
        probe(&directory).unwrap();
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert!(write(&directory.join("taken"), "three").is_err());
        assert!(write(&directory.join("nowhere/b.json"), "three").is_err());
        let mut names: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a.json", "taken"]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
