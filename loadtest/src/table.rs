//! What a reader at a terminal gets: columns of text.

use std::fmt::Write;
use std::time::Duration;

use crate::field::Compared;
use crate::kind::Kind;
use crate::outcome::{End, Outcome, Tally};
use crate::restarts::{Latency, Restart, Trip};

/// A table of text: the first column to the left, the others to the right.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// The whole, two blanks between columns.
    pub fn text(&self) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.0 {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = widths[at];
                if at == 0 {
                    put(&mut line, format_args!("{cell:<width$}"));
                } else {
                    put(&mut line, format_args!("  {cell:>width$}"));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// All that is to be said of a trip.
pub fn trip(trip: &Trip) -> String {
    let mut text = format!("{}: {} restarts\n", trip.way.name(), trip.restarts.len());
    let mut table = Table::default();
    let head = [
        "#", "ok", "ok_close", "refused", "lost", "gap", "p50 ms", "p99 ms", "max ms", "stop s",
        "begun", "answered", "opened", "ledger",
    ];
    table.row(head.map(str::to_owned));
    for (number, restart) in (1u32..).zip(&trip.restarts) {
        table.row(row(number, restart));
    }
    table.row(sum(trip));
    text.push_str(&table.text());
    text.push('\n');
    text.push_str(&by_kind(&trip.ends));
    text.push_str(&findings(trip));
    text
}

/// What is not as it should be, a line each.
pub fn findings(trip: &Trip) -> String {
    let mut text = String::new();
    for line in losses(trip) {
        put(&mut text, format_args!("{line}\n"));
    }
    for difference in trip.all_differences().iter().take(SHOWN_MAX) {
        put(&mut text, format_args!("unequal: {difference}\n"));
    }
    if let Some(fault) = &trip.fault {
        put(&mut text, format_args!("not finished: {fault}\n"));
    }
    text
}

fn row(number: u32, restart: &Restart) -> Vec<String> {
    let stop = restart.exited.map(|at| at.saturating_sub(restart.signalled));
    let mut cells = vec![number.to_string()];
    cells.extend(counts(&restart.tally, restart.losses, restart.gaps));
    cells.extend(latency(&restart.latency));
    cells.push(stop.map_or("-".to_owned(), |stop| format!("{:.2}", stop.as_secs_f64())));
    let books = |ledger: &Compared| ledger.books.clone().map(|it| (it, ledger.differences.len()));
    match restart.ledger.as_ref().and_then(books) {
        Some((books, differences)) => {
            let counts = [books.begun, books.finished_as("answered"), books.opened];
            cells.extend(counts.map(|count| count.to_string()));
            cells.push(equal(differences == 0).to_owned());
        }
        None => cells.extend(["-"; 4].map(str::to_owned)),
    }
    cells
}

fn sum(trip: &Trip) -> Vec<String> {
    let tally = Tally::of(&trip.ends);
    let mut cells = vec!["sum".to_owned()];
    cells.extend(counts(&tally, trip.losses(), trip.gap_connections()));
    cells.extend(latency(&Latency::of(&trip.ends)));
    let of_restarts = trip.restarts.iter().filter_map(|restart| restart.ledger.as_ref());
    let ledgers = of_restarts.chain(&trip.last);
    let books: Vec<_> = ledgers.filter_map(|ledger| ledger.books.as_ref()).collect();
    let stops = trip
        .restarts
        .iter()
        .filter_map(|restart| restart.exited.map(|at| at.saturating_sub(restart.signalled)));
    let longest = stops.max().unwrap_or_default();
    cells.push(format!("{:.2}", longest.as_secs_f64()));
    if books.is_empty() {
        cells.extend(["-"; 4].map(str::to_owned));
        return cells;
    }
    let begun: u64 = books.iter().map(|books| books.begun).sum();
    let answered: u64 = books.iter().map(|books| books.finished_as("answered")).sum();
    let opened: u64 = books.iter().map(|books| books.opened).sum();
    cells.extend([begun, answered, opened].map(|count| count.to_string()));
    cells.push(equal(trip.all_differences().is_empty()).to_owned());
    cells
}

fn equal(is_equal: bool) -> &'static str {
    if is_equal { "equal" } else { "UNEQUAL" }
}

fn counts(tally: &Tally, losses: u64, gaps: u64) -> [String; 5] {
    let (ok, close) = (tally.count(Outcome::Ok), tally.count(Outcome::OkClose));
    [ok, close, tally.count(Outcome::Refused), losses, gaps].map(|count| count.to_string())
}

fn latency(latency: &Latency) -> [String; 3] {
    [latency.median, latency.p99, latency.max].map(milliseconds)
}

/// To the hundredth.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}

/// How the requests of each kind ended, and the latency of those that were answered: one that was
/// refused at once is no quick answer.
pub fn by_kind(ends: &[End]) -> String {
    let mut table = Table::default();
    let names = Outcome::ALL.map(|outcome| outcome.name().to_owned());
    let head = ["kind".to_owned()].into_iter().chain(names);
    table.row(head.chain(["p50 ms", "max ms"].map(str::to_owned)));
    for kind in Kind::ALL {
        let of_kind: Vec<End> = ends.iter().filter(|end| end.kind == kind).cloned().collect();
        let tally = Tally::of(&of_kind);
        let counts = Outcome::ALL.map(|outcome| tally.count(outcome).to_string());
        let answered = of_kind.iter().filter(|end| end.outcome.is_answered());
        let mut all: Vec<Duration> = answered.map(End::latency).collect();
        all.sort_unstable();
        let times = [all.get(all.len() / 2), all.last()];
        let times = times.map(|time| time.map_or("-".to_owned(), |time| milliseconds(*time)));
        table.row([kind.name().to_owned()].into_iter().chain(counts).chain(times));
    }
    table.text()
}

/// The lost requests by name, those that met the gap, and those refused for no reason.
fn losses(trip: &Trip) -> Vec<String> {
    let lost = trip.ends.iter().enumerate().filter(|(_, end)| trip.is_failure(end));
    let mut lines: Vec<String> = lost
        .map(|(at, end)| {
            let gap = trip.gaps.iter().find(|(of, _)| *of == at);
            let what = match end.outcome {
                _ if gap.is_some() => "gap",
                Outcome::Refused => "refused",
                _ => "lost",
            };
            let before = gap.map_or(String::new(), |(_, before)| {
                format!(", connected {} ms before the listener closed", milliseconds(*before))
            });
            format!("{what}: {}{before}", describe(end, last_signal(trip, end)))
        })
        .collect();
    let count = lines.len();
    lines.truncate(SHOWN_MAX);
    if count > SHOWN_MAX {
        lines.push(format!("and {} more: see the results", count - SHOWN_MAX));
    }
    lines
}

/// The last signal before a request ended; the first one for what ended before.
pub fn last_signal(trip: &Trip, end: &End) -> Option<Duration> {
    let signals = || trip.restarts.iter().map(|restart| restart.signalled);
    signals().take_while(|signal| *signal <= end.ended).last().or_else(|| signals().next())
}

/// One end in words, its times relative to a signal.
pub fn describe(end: &End, signal: Option<Duration>) -> String {
    let relative = |at: Duration| {
        let signal = signal.unwrap_or_default().as_secs_f64();
        format!("{:+.1} ms", (at.as_secs_f64() - signal) * 1e3)
    };
    let optional = |at: Option<Duration>| at.map_or("never".to_owned(), relative);
    format!(
        "{} {} {} ({}), request {} of its connection; of the signal: connected {}, due {}, first \
         byte sent {}, ended {}",
        end.kind.name(),
        end.id,
        end.outcome.name(),
        end.detail,
        end.nth + 1,
        optional(end.connected),
        relative(end.planned),
        optional(end.sent),
        relative(end.ended),
    )
}

/// Appends to a text.
pub(crate) fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes all");
}

/// Lines of one sort that a terminal gets.
const SHOWN_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_of_a_kind_are_those_of_its_answers() {
        let ms = Duration::from_millis;
        let end = |kind, outcome, latency: u64| End {
            id: 1,
            kind,
            outcome,
            planned: ms(1_000),
            sent: None,
            ended: ms(1_000 + latency),
            connected: None,
            port: 0,
            nth: 0,
            reset_unheard: false,
            detail: "".into(),
        };
        let ends = [
            end(Kind::Get, Outcome::Ok, 4),
            end(Kind::Get, Outcome::OkClose, 8),
            end(Kind::Get, Outcome::Refused, 0),
            end(Kind::Get, Outcome::Refused, 0),
            end(Kind::Get, Outcome::Refused, 0),
            end(Kind::Get, Outcome::Timeout, 10_000),
            end(Kind::Post, Outcome::Refused, 1),
        ];
        let text = by_kind(&ends);
        let times = |kind: Kind| -> Vec<&str> {
            let row = text.lines().find(|line| line.starts_with(kind.name())).unwrap();
            row.split_whitespace().skip(1 + Outcome::ALL.len()).collect()
        };
        assert_eq!(times(Kind::Get), ["8.00", "8.00"], "{text}");
        assert_eq!(times(Kind::Post), ["-", "-"], "{text}");
    }
}
