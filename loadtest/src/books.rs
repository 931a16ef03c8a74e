//! The server's ledger against what its clients saw.
//!
//! Which instance a request went to is nothing a client can see: the kernel picks it. The server's
//! log tells, line by line: every request that it has begun ends in a line with the client's id of
//! it and its outcome, every connection in a line with the client's port. So for one instance
//!
//! 1. `begun` and each outcome of its report are the number of its request lines, in all and with
//!    that outcome: the counters and the log, two accounts of the same server, agree.
//! 2. Each of its request lines names a request that a client sent, and no request is in two lines,
//!    of this instance or another.
//! 3. What is `answered` there ended `ok` or `ok_close` at the client; what is `refused` ended with
//!    its status there; and nothing that the server calls otherwise did.
//! 4. `opened` is the number of its closing lines; nothing was rejected (400, 408, 414, 431): the
//!    clients send valid requests in good time.
//!
//! and over all instances that shared a load
//!
//! 5. Every request that ended `ok` or `ok_close` is in the lines of an instance. With 2 and 3 the
//!    sum of all `answered` is the number of those.
//! 6. Per client port, the connections that clients established are the closing lines, save those
//!    that the kernel reset in the queue of a listener that was closed: these are named.
//!
//! A report without the lines it counts (the log was too slow) leaves 1 unequal: nothing is
//! believed that was not compared.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::outcome::{End, Outcome};
use crate::target::Note;

/// What a report counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Books {
    /// Requests whose head reached the application.
    pub begun: u64,
    /// How they ended, by the outcome's name.
    pub finished: BTreeMap<String, u64>,
    /// Answers to what was no request.
    pub rejected: u64,
    /// Connections accepted.
    pub opened: u64,
    /// How they ended, by the outcome's name.
    pub closed: BTreeMap<String, u64>,
    /// Request bytes that came after the server's FIN.
    pub late_bytes: u64,
    /// From the signal to the report.
    pub seconds: f64,
    /// The phases in which they went by.
    pub phases: BTreeMap<String, f64>,
}

impl Books {
    /// Reads ebbtide's report.
    ///
    /// # Errors
    /// What is missing in it.
    pub fn read(report: &str) -> Result<Books, String> {
        let report: Value =
            serde_json::from_str(report).map_err(|error| format!("the report: {error}"))?;
        let count = |path: &str| {
            let value = report.pointer(path).and_then(Value::as_u64);
            value.ok_or_else(|| format!("the report has no {path}"))
        };
        let counts = |path: &str| -> Result<BTreeMap<String, u64>, String> {
            let map = report.pointer(path).and_then(Value::as_object);
            let map = map.ok_or_else(|| format!("the report has no {path}"))?;
            Ok(map.iter().map(|(k, v)| (k.clone(), v.as_u64().unwrap_or(0))).collect())
        };
        let phases = report["phases_seconds"].as_object().into_iter().flatten();
        Ok(Books {
            begun: count("/requests/begun")?,
            finished: counts("/requests/finished")?,
            rejected: counts("/requests/rejected")?.values().sum(),
            opened: count("/connections/opened")?,
            closed: counts("/connections/closed")?,
            late_bytes: count("/late_bytes")?,
            seconds: report["duration_seconds"].as_f64().unwrap_or(0.0),
            phases: phases.map(|(k, v)| (k.clone(), v.as_f64().unwrap_or(0.0))).collect(),
        })
    }

    /// How many requests ended so.
    pub fn finished_as(&self, outcome: &str) -> u64 {
        self.finished.get(outcome).copied().unwrap_or(0)
    }
}

/// What an instance has logged.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Requests, by id and outcome.
    pub requests: Vec<(Option<u64>, String)>,
    /// The client's ports of connections that were closed.
    pub closed: Vec<u16>,
    /// Lines that were dropped.
    pub missing: u64,
}

impl Journal {
    /// Adds a line.
    pub fn add(&mut self, note: Note) {
        match note {
            Note::Request { id, outcome } => self.requests.push((id, outcome)),
            Note::Closed { port } => self.closed.push(port),
            Note::Missing(count) => self.missing += count,
            Note::Ready | Note::Other => {}
        }
    }
}

/// What the clients of a load have seen, to look things up in.
#[derive(Debug)]
pub struct Seen<'a> {
    by_id: HashMap<u64, &'a End>,
    /// Established connections, by the client's port.
    ports: BTreeMap<u16, u64>,
    /// In how many request lines an id was found so far.
    named: HashMap<u64, u64>,
    /// Closing lines so far, by port.
    closed: BTreeMap<u16, u64>,
}

impl<'a> Seen<'a> {
    /// Of all ends and all connections of a load.
    pub fn new(ends: &'a [End], ports: &[u16]) -> Seen<'a> {
        let mut counts = BTreeMap::new();
        for port in ports {
            *counts.entry(*port).or_default() += 1;
        }
        Seen {
            by_id: ends.iter().map(|end| (end.id, end)).collect(),
            ports: counts,
            named: HashMap::new(),
            closed: BTreeMap::new(),
        }
    }

    /// Equalities 1 to 4 of one instance. What does not hold is said in words.
    pub fn compare(&mut self, books: &Books, journal: &Journal) -> Vec<String> {
        let mut differences = Vec::new();
        if journal.missing > 0 {
            differences.push(format!("{} lines of its log are missing", journal.missing));
        }
        let mut equal = |what: &str, report: u64, lines: usize| {
            if report != lines as u64 {
                differences.push(format!("{what}: {report} in its report, {lines} in its log"));
            }
        };
        equal("begun", books.begun, journal.requests.len());
        for (outcome, count) in &books.finished {
            let lines = journal.requests.iter().filter(|(_, logged)| logged == outcome).count();
            equal(outcome, *count, lines);
        }
        equal("opened", books.opened, journal.closed.len());
        if books.rejected > 0 {
            differences.push(format!("{} requests were rejected as none", books.rejected));
        }
        for (id, outcome) in &journal.requests {
            differences.extend(self.judge(*id, outcome));
        }
        for port in &journal.closed {
            *self.closed.entry(*port).or_default() += 1;
        }
        differences
    }

    /// Equalities 2 and 3 of one line.
    fn judge(&mut self, id: Option<u64>, outcome: &str) -> Option<String> {
        let Some(id) = id else { return Some("a request of nobody is in its log".to_owned()) };
        let named = self.named.entry(id).or_default();
        *named += 1;
        if *named > 1 {
            return Some(format!("request {id} was begun {named} times"));
        }
        let Some(end) = self.by_id.get(&id) else {
            return Some(format!("request {id} is in its log, but nobody sent it"));
        };
        let agrees = match outcome {
            "answered" => end.outcome.is_answered(),
            "refused" => end.outcome == Outcome::Status,
            _ => !end.outcome.is_answered(),
        };
        (!agrees).then(|| {
            let (kind, seen) = (end.kind.name(), end.outcome.name());
            format!("request {id} ({kind}): {outcome} at the server, {seen} at the client")
        })
    }

    /// Equalities 5 and 6, when all instances have been compared. `reset` are the ports of the
    /// connections that the kernel reset in a queue.
    pub fn rest(&self, reset: &[u16]) -> Vec<String> {
        let mut differences = Vec::new();
        let answered = self.by_id.values().filter(|end| end.outcome.is_answered());
        let mut unnamed: Vec<u64> =
            answered.map(|end| end.id).filter(|id| !self.named.contains_key(id)).collect();
        unnamed.sort_unstable();
        if let Some(first) = unnamed.first() {
            let count = unnamed.len();
            differences.push(format!(
                "{count} answered requests are in no log, the first of them {first}"
            ));
        }
        let mut expected = self.ports.clone();
        for port in reset {
            if let Some(count) = expected.get_mut(port) {
                *count = count.saturating_sub(1);
            }
        }
        expected.retain(|_, count| *count > 0);
        if expected != self.closed {
            let differs = |port: &&u16| expected.get(port) != self.closed.get(port);
            let ports: Vec<&u16> =
                expected.keys().chain(self.closed.keys()).filter(differs).take(5).collect();
            differences.push(format!(
                "{} connections were established and {} are in the logs; they differ at the \
                 client's ports {ports:?}",
                expected.values().sum::<u64>(),
                self.closed.values().sum::<u64>(),
            ));
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kind::Kind;

    const REPORT: &str = r#"{
        "duration_seconds": 1.5, "phases_seconds": {"draining": 1.5}, "late_bytes": 0,
        "requests": {
            "begun": 3, "rejected": {"400": 0, "408": 0},
            "finished": {"answered": 2, "refused": 0, "cut": 0, "abandoned": 1}
        },
        "connections": {"opened": 2, "closed": {"client_closed": 1, "reset": 1}}
    }"#;

    fn end(id: u64, outcome: Outcome) -> End {
        let at = Duration::from_secs(id);
        End {
            id,
            kind: Kind::Get,
            outcome,
            planned: at,
            sent: Some(at),
            ended: at,
            connected: Some(at),
            port: 1,
            nth: 0,
            detail: "".into(),
        }
    }

    /// Three requests on two connections, one of them given up by its client.
    fn ends() -> Vec<End> {
        vec![end(1, Outcome::Ok), end(2, Outcome::OkClose), end(3, Outcome::Timeout)]
    }

    fn journal() -> Journal {
        let outcomes = [(1, "answered"), (2, "answered"), (3, "abandoned")];
        let requests = outcomes.map(|(id, outcome)| (Some(id), outcome.to_owned())).to_vec();
        Journal { requests, closed: vec![1, 2], missing: 0 }
    }

    /// What is said of the journal after `change`, by the instance and by the whole.
    fn said(ports: &[u16], change: impl FnOnce(&mut Journal)) -> String {
        let (ends, mut journal) = (ends(), journal());
        change(&mut journal);
        let mut seen = Seen::new(&ends, ports);
        let mut said = seen.compare(&Books::read(REPORT).unwrap(), &journal);
        said.extend(seen.rest(&[]));
        said.join("; ")
    }

    #[test]
    fn equal_accounts_have_nothing_said_of_them() {
        assert_eq!(said(&[1, 2], |_| {}), "");
    }

    #[test]
    fn whatever_differs_is_said() {
        type Change = fn(&mut Journal);
        let cases: [(&str, Change); 9] = [
            ("begun: 3 in its report, 2 in its log", |j| j.requests.truncate(2)),
            ("abandoned: 1 in its report, 0 in its log", |j| j.requests[2].1 = "cut".to_owned()),
            ("request 1 was begun 2 times", |j| j.requests[1].0 = Some(1)),
            ("1 answered requests are in no log, the first of them 2", |j| {
                j.requests[1].0 = Some(1);
            }),
            ("request 9 is in its log, but nobody sent it", |j| j.requests[1].0 = Some(9)),
            ("a request of nobody is in its log", |j| j.requests[1].0 = None),
            ("request 3 (get): answered at the server, timeout at the client", |j| {
                j.requests[2].1 = "answered".to_owned();
            }),
            ("opened: 2 in its report, 1 in its log", |j| j.closed.truncate(1)),
            ("4 lines of its log are missing", |j| j.missing = 4),
        ];
        for (expected, change) in cases {
            let said = said(&[1, 2], change);
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }

    #[test]
    fn a_connection_too_many_is_said_unless_the_kernel_reset_it_in_the_queue() {
        let said = said(&[1, 2, 7], |_| {});
        assert!(said.contains("3 connections were established and 2 are in the logs"), "{said}");
        let ends = ends();
        let mut seen = Seen::new(&ends, &[1, 2, 7]);
        assert!(seen.compare(&Books::read(REPORT).unwrap(), &journal()).is_empty());
        assert!(seen.rest(&[7]).is_empty());
    }

    #[test]
    fn a_report_that_is_none_is_said_to_be_none() {
        assert!(Books::read("{").is_err());
        assert_eq!(Books::read("{}"), Err("the report has no /requests/begun".to_owned()));
    }
}
