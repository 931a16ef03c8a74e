//! Replacing a server under load, again and again, and counting what that costs its clients.

use std::time::Duration;

use crate::books::Books;
use crate::field::{Field, Terms};
use crate::outcome::{End, Tally};
use crate::target::{Fault, Way};

/// One way, all its restarts.
#[derive(Debug)]
pub struct Trip {
    /// How instances replaced each other.
    pub way: Way,
    /// In their order. After the last of them the load ends, and its last instance is stopped.
    pub restarts: Vec<Restart>,
    /// The ledger of the instance that was stopped when there was no load any more, and what does
    /// not agree in it.
    pub last: Option<Ledger>,
    /// What does not agree over all instances together.
    pub differences: Vec<String>,
    /// Every request of the load.
    pub ends: Vec<End>,
    /// Lost requests whose connection met the gap of a listener that stands alone, by position in
    /// `ends`, with how long before the listener's close the connection was made.
    pub gaps: Vec<(usize, Duration)>,
    /// Why it was not finished, if it was not.
    pub fault: Option<Fault>,
}

/// One restart. Times are since the run began.
#[derive(Debug)]
pub struct Restart {
    /// When the old instance was told to stop.
    pub signalled: Duration,
    /// When its listeners were seen to be gone; `None` when they live on elsewhere.
    pub closed: Option<Duration>,
    /// When it was gone.
    pub exited: Option<Duration>,
    /// Its exit status.
    pub status: Option<i32>,
    /// When its successor was started.
    pub successor: Option<Duration>,
    /// What ended from this signal to the next.
    pub tally: Tally,
    /// Latencies of the quick kinds that ended then.
    pub latency: Latency,
    /// How many of them were lost, without those that the gap explains.
    pub losses: u64,
    /// How many connections met the gap.
    pub gaps: u64,
    /// The old instance's ledger.
    pub ledger: Ledger,
}

/// A server's ledger, compared.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What the report said; `None` when there is none.
    pub books: Option<Books>,
    /// What does not agree with the clients, in words.
    pub differences: Vec<String>,
}

/// Latencies of requests, from when they were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Half of them took at most this.
    pub median: Duration,
    /// 99 of 100 took at most this.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Latency {
    /// Of the answered requests of the quick kinds.
    pub fn of(ends: &[End]) -> Latency {
        let quick = ends.iter().filter(|end| end.outcome.is_answered() && !end.kind.is_slow());
        let mut all: Vec<Duration> = quick.map(End::latency).collect();
        all.sort_unstable();
        let at = |percent: usize| all.get(all.len().saturating_sub(1) * percent / 100).copied();
        Latency {
            median: at(50).unwrap_or_default(),
            p99: at(99).unwrap_or_default(),
            max: at(100).unwrap_or_default(),
        }
    }
}

impl Trip {
    /// Lost requests that the gap does not explain.
    pub fn losses(&self) -> u64 {
        Tally::of(&self.ends).losses() - self.gaps.len() as u64
    }

    /// Connections that met the gap.
    pub fn gap_connections(&self) -> u64 {
        self.gaps.iter().filter(|(at, _)| self.ends[*at].nth == 0).count() as u64
    }

    /// How many of those are within what the kernel leaves open: one in ten restarts.
    pub fn gaps_allowed(&self) -> u64 {
        (self.restarts.len() as u64).div_ceil(10)
    }

    /// All that does not agree, and every old instance that did not end well.
    pub fn all_differences(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (number, restart) in (1..).zip(&self.restarts) {
            let of = format!("{} {number}", self.way.name());
            all.extend(restart.ledger.differences.iter().map(|what| format!("{of}: {what}")));
            // Of a server that writes no report its status says nothing.
            let ledger = &restart.ledger;
            let has_report = ledger.books.is_some() || !ledger.differences.is_empty();
            if let Some(status) = restart.status.filter(|status| has_report && *status != 0) {
                all.push(format!("{of}: the old instance ended with status {status}"));
            }
        }
        let last = self.last.iter().flat_map(|ledger| &ledger.differences);
        all.extend(last.map(|what| format!("{}, the last instance: {what}", self.way.name())));
        all.extend(self.differences.iter().map(|what| format!("{}: {what}", self.way.name())));
        all
    }

    /// Whether nothing was lost and everything agrees.
    pub fn is_clean(&self) -> bool {
        self.fault.is_none()
            && self.losses() == 0
            && self.gap_connections() <= self.gaps_allowed()
            && self.all_differences().is_empty()
    }
}

/// Replaces a server so many times. `say` is told of each restart when it is over.
pub fn run(terms: &Terms, way: Way, times: u32, say: &mut dyn FnMut(&str)) -> Trip {
    let mut marks = Vec::new();
    let mut field = match Field::new(terms, way) {
        Ok(field) => field,
        Err(fault) => return Trip::not_begun(way, fault),
    };
    let fault = drive(&mut field, terms, way, times, &mut marks, say).err();
    if fault.is_some() {
        field.abandon();
    }
    judge(&field, way, &marks, fault)
}

/// A restart while it is under way: which instance, and when the next one was started.
pub(crate) struct Mark {
    pub(crate) old: usize,
    pub(crate) successor: Option<Duration>,
}

fn drive(
    field: &mut Field,
    terms: &Terms,
    way: Way,
    times: u32,
    marks: &mut Vec<Mark>,
    say: &mut dyn FnMut(&str),
) -> Result<(), Fault> {
    field.start_instance()?;
    field.start_load()?;
    field.gather(terms.pause)?;
    for number in 1..=times {
        let old = field.instances.len() - 1;
        if way == Way::StopStart {
            marks.push(Mark { old, successor: None });
            field.stop_instance(old)?;
            field.start_instance()?;
        } else {
            field.start_instance()?;
            marks.push(Mark { old, successor: None });
            field.stop_instance(old)?;
        }
        if let Some(mark) = marks.last_mut() {
            mark.successor = field.instances.last().map(|instance| instance.started);
        }
        say(&format!(
            "{} {number}/{times}: stopped in {:.2} s; so far {} requests, {} lost",
            way.name(),
            took(field, old).as_secs_f64(),
            Tally::of(&field.ends).all(),
            field.losses()
        ));
        field.gather(terms.pause)?;
    }
    field.stop_load()?;
    let last = field.instances.len() - 1;
    field.stop_instance(last)
}

fn took(field: &Field, number: usize) -> Duration {
    let instance = &field.instances[number];
    match (instance.signalled, instance.exited) {
        (Some(from), Some((to, _))) => to.saturating_sub(from),
        _ => Duration::ZERO,
    }
}

impl Trip {
    pub(crate) fn not_begun(way: Way, fault: Fault) -> Trip {
        Trip {
            way,
            restarts: Vec::new(),
            last: None,
            differences: Vec::new(),
            ends: Vec::new(),
            gaps: Vec::new(),
            fault: Some(fault),
        }
    }
}

pub(crate) fn judge(field: &Field, way: Way, marks: &[Mark], fault: Option<Fault>) -> Trip {
    let gap = |(at, end): (usize, &End)| field.gap_of(end).map(|before| (at, before));
    let gaps: Vec<(usize, Duration)> = field.ends.iter().enumerate().filter_map(gap).collect();
    // Of a run that broke off the ledgers say nothing: some instances were killed.
    let (compared, differences) =
        if fault.is_none() { field.compare() } else { Default::default() };
    let mut ledgers: Vec<Ledger> = compared
        .into_iter()
        .map(|one| Ledger { books: one.remains.books, differences: one.differences })
        .collect();
    let last = if ledgers.len() > marks.len() { ledgers.pop() } else { None };
    let signals: Vec<Duration> =
        marks.iter().filter_map(|mark| field.instances[mark.old].signalled).collect();
    let mut ledgers = ledgers.into_iter();
    let restarts = signals.iter().zip(marks).enumerate().map(|(at, (from, mark))| {
        let until = signals.get(at + 1).copied().unwrap_or(Duration::MAX);
        let is_within = |end: &&End| (*from..until).contains(&end.ended);
        let within: Vec<End> = field.ends.iter().filter(is_within).cloned().collect();
        let met: Vec<&End> =
            gaps.iter().map(|(at, _)| &field.ends[*at]).filter(is_within).collect();
        let instance = &field.instances[mark.old];
        Restart {
            signalled: *from,
            closed: instance.closed,
            exited: instance.exited.map(|(at, _)| at),
            status: instance.exited.map(|(_, status)| status),
            successor: mark.successor,
            tally: Tally::of(&within),
            latency: Latency::of(&within),
            losses: Tally::of(&within).losses() - met.len() as u64,
            gaps: met.iter().filter(|end| end.nth == 0).count() as u64,
            ledger: ledgers.next().unwrap_or_default(),
        }
    });
    let restarts = restarts.collect();
    Trip { way, restarts, last, differences, ends: field.ends.clone(), gaps, fault }
}
