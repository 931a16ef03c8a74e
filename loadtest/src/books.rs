//! The server's ledger against what its clients saw.
//!
//! Which instance a request went to is nothing a client can see: the kernel picks it. The server's
//! log tells, line by line: every request that it has begun ends in a line with the client's id of
//! it and its outcome, every connection in a line with the client's port. So for one instance
//!
//! 1. `begun` and each outcome of its report are the number of its request lines, in all and with
//!    that outcome; `opened` and each outcome of a connection are the number of its closing lines,
//!    likewise: the counters and the log, two accounts of the same server, agree. Neither names an
//!    outcome that the other does not know.
//! 2. Each of its request lines names a request that a client sent, and no request is in two lines,
//!    of this instance or another.
//! 3. What is `answered` there ended `ok` or `ok_close` at the client; what is `refused` ended with
//!    its status there; and nothing that the server calls otherwise did.
//! 4. What it has begun it has finished, and what it has opened it has closed: the outcomes add up,
//!    and nothing is in flight or open. Nothing was rejected (400, 408, 414, 431): the clients send
//!    valid requests in good time.
//!
//! and over all instances that shared a load
//!
//! 5. Every request that ended `ok` or `ok_close` is in the lines of an instance. With 2 and 3 the
//!    sum of all `answered` is the number of those.
//! 6. Per client port, the connections that clients established are the closing lines, save those
//!    that the kernel reset in the queue of a listener that was closed: these are named.
//! 7. `late_bytes` are of requests that clients sent and got no answer to: no more than those have.
//!    Without a lost request there are none.
//!
//! 1 to 4 hold for each instance that was told to stop and did, whatever became of the run: while
//! it lasts, and when it breaks off, what is on its way has no end, and nothing is said of it
//! ([`Scope`]). 5 to 7 are for whole runs.
//!
//! A report without the lines it counts (the log was too slow) leaves 1 unequal: nothing is
//! believed that was not compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::kind::Routes;
use crate::outcome::{End, Outcome};
use crate::target::Note;

/// What a report counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Books {
    /// Requests whose head reached the application.
    pub begun: u64,
    /// Those that have not ended.
    pub in_flight: u64,
    /// How the others did, by the outcome's name.
    pub finished: BTreeMap<String, u64>,
    /// Answers to what was no request.
    pub rejected: u64,
    /// Connections accepted.
    pub opened: u64,
    /// Those that have not ended.
    pub open: u64,
    /// How the others did, by the outcome's name.
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
        // All of these names and no other: a new one would have to be held against something.
        let counts = |path: &str, names: &[&str]| -> Result<BTreeMap<String, u64>, String> {
            let map = report.pointer(path).and_then(Value::as_object);
            let map = map.ok_or_else(|| format!("the report has no {path}"))?;
            if let Some(stranger) = map.keys().find(|name| !names.contains(&name.as_str())) {
                return Err(format!("the report has a {path}/{stranger}, which nobody knows"));
            }
            let one = |name: &&str| Ok(((*name).to_owned(), count(&format!("{path}/{name}"))?));
            names.iter().map(one).collect()
        };
        let phases = report["phases_seconds"].as_object().into_iter().flatten();
        Ok(Books {
            begun: count("/requests/begun")?,
            in_flight: count("/requests/in_flight")?,
            finished: counts("/requests/finished", &FINISHED)?,
            rejected: counts("/requests/rejected", &REJECTED)?.values().sum(),
            opened: count("/connections/opened")?,
            open: count("/connections/open")?,
            closed: counts("/connections/closed", &CLOSED)?,
            late_bytes: count("/late_bytes")?,
            seconds: report["duration_seconds"].as_f64().unwrap_or(0.0),
            phases: phases.map(|(k, v)| (k.clone(), v.as_f64().unwrap_or(0.0))).collect(),
        })
    }

    /// Equality 4: what does not hold within the report itself.
    fn check(&self) -> Vec<String> {
        let mut differences = Vec::new();
        let mut sums = |name: &str, all: u64, left: u64, outcomes: &BTreeMap<String, u64>| {
            let ended: u64 = outcomes.values().sum();
            if ended != all || left != 0 {
                differences.push(format!("{name}: {all}, of which {ended} have ended, {left} not"));
            }
        };
        sums("begun", self.begun, self.in_flight, &self.finished);
        sums("opened", self.opened, self.open, &self.closed);
        if self.rejected > 0 {
            differences.push(format!("{} requests were rejected as none", self.rejected));
        }
        differences
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
    /// Connections that were closed, by the client's port and outcome.
    pub closed: Vec<(u16, String)>,
    /// Lines that were dropped.
    pub missing: u64,
}

impl Journal {
    /// Adds a line.
    pub fn add(&mut self, note: Note) {
        match note {
            Note::Request { id, outcome } => self.requests.push((id, outcome)),
            Note::Closed { port, outcome } => self.closed.push((port, outcome)),
            Note::Missing(count) => self.missing += count,
            Note::Ready | Note::Other => {}
        }
    }
}

/// How much of a load is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every request has its end.
    Whole,
    /// What has no end may be on its way.
    SoFar,
}

/// What the clients of a load have seen, to look things up in.
#[derive(Debug)]
pub struct Seen<'a> {
    by_id: HashMap<u64, &'a End>,
    scope: Scope,
    /// Established connections, by the client's port.
    ports: BTreeMap<u16, u64>,
    /// In how many request lines an id was found so far.
    named: HashMap<u64, u64>,
    /// Closing lines so far, by port.
    closed: BTreeMap<u16, u64>,
    /// Those of all instances so far.
    late_bytes: u64,
}

impl<'a> Seen<'a> {
    /// Of all ends and all connections of a load.
    pub fn new(ends: &'a [End], ports: &[u16], scope: Scope) -> Seen<'a> {
        let mut counts = BTreeMap::new();
        for port in ports {
            *counts.entry(*port).or_default() += 1;
        }
        Seen {
            by_id: ends.iter().map(|end| (end.id, end)).collect(),
            scope,
            ports: counts,
            named: HashMap::new(),
            closed: BTreeMap::new(),
            late_bytes: 0,
        }
    }

    /// Equalities 1 to 4 of one instance. What does not hold is said in words.
    pub fn compare(&mut self, books: &Books, journal: &Journal) -> Vec<String> {
        let mut differences = books.check();
        if journal.missing > 0 {
            differences.push(format!("{} lines of its log are missing", journal.missing));
        }
        let requests = journal.requests.iter().map(|(_, outcome)| outcome.as_str()).collect();
        let closings = journal.closed.iter().map(|(_, outcome)| outcome.as_str()).collect();
        count(("begun", books.begun), &books.finished, requests, &mut differences);
        count(("opened", books.opened), &books.closed, closings, &mut differences);
        for (id, outcome) in &journal.requests {
            differences.extend(self.judge(*id, outcome));
        }
        for (port, _) in &journal.closed {
            *self.closed.entry(*port).or_default() += 1;
        }
        self.late_bytes += books.late_bytes;
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
            let is_nobodys = self.scope == Scope::Whole;
            return is_nobodys.then(|| format!("request {id} is in its log, but nobody sent it"));
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

    /// Equalities 5 to 7, when all instances have been compared. `reset` are the ports of the
    /// connections that the kernel reset in a queue, `routes` those that were asked for.
    pub fn rest(&self, reset: &[u16], routes: &Routes) -> Vec<String> {
        let mut differences = Vec::new();
        let is_lost = |end: &&&End| end.sent.is_some() && !end.outcome.is_answered();
        let lost = self.by_id.values().filter(is_lost);
        let bytes: usize = lost.map(|end| end.kind.ask(routes, end.id).bytes.len()).sum();
        if self.late_bytes > bytes as u64 {
            differences.push(format!(
                "late_bytes: {} in the reports, and all requests without an answer have {bytes}",
                self.late_bytes
            ));
        }
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

/// Holds a counter and its outcomes in a report against the lines of a log.
fn count(
    (name, all): (&str, u64),
    outcomes: &BTreeMap<String, u64>,
    lines: Vec<&str>,
    differences: &mut Vec<String>,
) {
    let mut logged: BTreeMap<&str, u64> = BTreeMap::new();
    for outcome in lines {
        *logged.entry(outcome).or_default() += 1;
    }
    let mut equal = |what: &str, report: u64, log: u64| {
        if report != log {
            differences.push(format!("{what}: {report} in its report, {log} in its log"));
        }
    };
    equal(name, all, logged.values().sum());
    let reported = outcomes.keys().map(String::as_str);
    for outcome in reported.chain(logged.keys().copied()).collect::<BTreeSet<_>>() {
        let report = outcomes.get(outcome).copied().unwrap_or(0);
        let what = format!("{name}, \"{outcome}\"");
        equal(&what, report, logged.get(outcome).copied().unwrap_or(0));
    }
}

/// The outcomes of requests in a report.
const FINISHED: [&str; 4] = ["answered", "refused", "cut", "abandoned"];

/// Those of connections.
const CLOSED: [&str; 8] = [
    "client_closed",
    "closed_after_response",
    "closed_idle",
    "timed_out",
    "rejected",
    "shed",
    "reset",
    "cut",
];

/// The statuses of what was no request.
const REJECTED: [&str; 4] = ["400", "408", "414", "431"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ebbtide::ROUTES;
    use crate::kind::Kind;

    const REPORT: &str = r#"{
        "duration_seconds": 1.5, "phases_seconds": {"draining": 1.5}, "late_bytes": 0,
        "requests": {
            "begun": 3, "in_flight": 0, "rejected": {"400": 0, "408": 0, "414": 0, "431": 0},
            "finished": {"answered": 2, "refused": 0, "cut": 0, "abandoned": 1}
        },
        "connections": {"opened": 2, "open": 0, "closed": {
            "client_closed": 1, "closed_after_response": 0, "closed_idle": 0, "timed_out": 0,
            "rejected": 0, "shed": 0, "reset": 1, "cut": 0
        }}
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
            reset_unheard: false,
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
        let closed = vec![(1, "client_closed".to_owned()), (2, "reset".to_owned())];
        Journal { requests, closed, missing: 0 }
    }

    /// What is said of a report and a journal, by the instance and by the whole.
    fn said_of(report: &str, ports: &[u16], journal: &Journal) -> String {
        let ends = ends();
        let mut seen = Seen::new(&ends, ports, Scope::Whole);
        let mut said = seen.compare(&Books::read(report).unwrap(), journal);
        said.extend(seen.rest(&[], &ROUTES));
        said.join("; ")
    }

    /// The same of the journal after `change`.
    fn said(ports: &[u16], change: impl FnOnce(&mut Journal)) -> String {
        let mut journal = journal();
        change(&mut journal);
        said_of(REPORT, ports, &journal)
    }

    #[test]
    fn equal_accounts_have_nothing_said_of_them() {
        assert_eq!(said(&[1, 2], |_| {}), "");
    }

    #[test]
    fn whatever_differs_is_said() {
        type Change = fn(&mut Journal);
        let cases: [(&str, Change); 12] = [
            ("begun: 3 in its report, 2 in its log", |j| j.requests.truncate(2)),
            ("begun, \"abandoned\": 1 in its report, 0 in its log", |j| {
                j.requests[2].1 = "cut".to_owned();
            }),
            ("begun, \"cut\": 0 in its report, 1 in its log", |j| {
                j.requests[2].1 = "cut".to_owned();
            }),
            ("begun, \"\": 0 in its report, 1 in its log", |j| j.requests[2].1.clear()),
            ("opened, \"reset\": 1 in its report, 0 in its log", |j| {
                j.closed[1].1 = "vanished".to_owned();
            }),
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
        let mut seen = Seen::new(&ends, &[1, 2, 7], Scope::Whole);
        assert!(seen.compare(&Books::read(REPORT).unwrap(), &journal()).is_empty());
        assert!(seen.rest(&[7], &ROUTES).is_empty());
    }

    #[test]
    fn a_report_that_does_not_add_up_is_said_not_to() {
        for (from, to, expected) in [
            (r#""begun": 3"#, r#""begun": 4"#, "begun: 4, of which 3 have ended, 0 not"),
            (r#""in_flight": 0"#, r#""in_flight": 1"#, "begun: 3, of which 3 have ended, 1 not"),
            (r#""opened": 2"#, r#""opened": 3"#, "opened: 3, of which 2 have ended, 0 not"),
            (r#""open": 0"#, r#""open": 1"#, "opened: 2, of which 2 have ended, 1 not"),
            (r#""shed": 0"#, r#""shed": 1"#, "opened, \"shed\": 1 in its report, 0 in its log"),
            (r#""408": 0"#, r#""408": 2"#, "2 requests were rejected as none"),
        ] {
            let said = said_of(&REPORT.replace(from, to), &[1, 2], &journal());
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }

    #[test]
    fn late_bytes_are_of_requests_without_an_answer() {
        // The third was sent and not answered.
        let late = |bytes: u64| REPORT.replace(r#"bytes": 0"#, &format!(r#"bytes": {bytes}"#));
        let bytes = ends()[2].kind.ask(&ROUTES, 3).bytes.len() as u64;
        assert_eq!(said_of(&late(bytes), &[1, 2], &journal()), "");
        let said = said_of(&late(bytes + 1), &[1, 2], &journal());
        assert!(said.starts_with("late_bytes: "), "{said}");
    }

    #[test]
    fn what_was_on_its_way_when_the_run_broke_off_may_be_in_a_log() {
        let ends = &ends()[..2];
        let books = Books::read(REPORT).unwrap();
        assert!(Seen::new(ends, &[], Scope::SoFar).compare(&books, &journal()).is_empty());
        assert_eq!(Seen::new(ends, &[], Scope::Whole).compare(&books, &journal()).len(), 1);
    }

    #[test]
    fn an_outcome_too_many_or_too_few_is_no_report() {
        let more = REPORT.replace(r#""cut": 0, "a"#, r#""cut": 0, "eaten": 0, "a"#);
        let nobody = "the report has a /requests/finished/eaten, which nobody knows";
        assert_eq!(Books::read(&more), Err(nobody.to_owned()));
        let less = REPORT.replace(r#""closed_idle": 0, "#, "");
        let missing = "the report has no /connections/closed/closed_idle";
        assert_eq!(Books::read(&less), Err(missing.to_owned()));
        let none = REPORT.replace(r#""answered": 2"#, r#""answered": "2""#);
        let missing = "the report has no /requests/finished/answered";
        assert_eq!(Books::read(&none), Err(missing.to_owned()));
    }

    #[test]
    fn a_report_that_is_none_is_said_to_be_none() {
        assert!(Books::read("{").is_err());
        assert_eq!(Books::read("{}"), Err("the report has no /requests/begun".to_owned()));
    }
}
