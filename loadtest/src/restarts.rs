//! Replacing a server under load, again and again, and counting what that costs its clients.

use std::time::Duration;

use crate::books::Scope;
use crate::field::{Compared, Field, Terms};
use crate::outcome::{End, Outcome, Tally};
use crate::target::{Fault, Way};

/// One way, all its restarts: under one load, or under several, one after the other.
#[derive(Clone, Debug)]
pub struct Trip {
    /// How instances replaced each other.
    pub way: Way,
    /// In their order. After the last of a load that ends, and its last instance is stopped.
    pub restarts: Vec<Restart>,
    /// For each load the ledger of that last instance.
    pub last: Vec<Compared>,
    /// What does not agree over all instances of a load together.
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
#[derive(Clone, Debug)]
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
    /// The old instance's ledger; `None` when it did not stop by itself.
    pub ledger: Option<Compared>,
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

    /// Whether a request ended as none may: lost, or refused where somebody was to listen.
    pub fn is_failure(&self, end: &End) -> bool {
        end.outcome.is_loss() || (end.outcome == Outcome::Refused && !self.way.may_refuse())
    }

    /// Requests that were refused where somebody was to listen.
    pub fn refusals(&self) -> u64 {
        if self.way.may_refuse() { 0 } else { Tally::of(&self.ends).count(Outcome::Refused) }
    }

    /// Connections that met the gap.
    pub fn gap_connections(&self) -> u64 {
        self.gaps.iter().filter(|(at, _)| self.ends[*at].nth == 0).count() as u64
    }

    /// Whether those are no more than the kernel may leave: one in ten restarts, so that fewer than
    /// ten restarts leave none.
    pub fn are_gaps_rare(&self) -> bool {
        self.gap_connections() * RESTARTS_FOR_A_GAP <= self.restarts.len() as u64
    }

    /// All that does not agree, and every old instance that did not end well.
    pub fn all_differences(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (number, restart) in (1..).zip(&self.restarts) {
            let of = format!("{} {number}", self.way.name());
            let Some(ledger) = &restart.ledger else { continue };
            all.extend(ledger.differences.iter().map(|what| format!("{of}: {what}")));
            // Of a server that writes no report its status says nothing.
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

    /// Whether nothing was lost, nobody refused who should not be, and everything agrees.
    pub fn is_clean(&self) -> bool {
        self.fault.is_none()
            && self.losses() == 0
            && self.refusals() == 0
            && self.are_gaps_rare()
            && self.all_differences().is_empty()
    }
}

/// At least so many restarts for each connection that meets the gap.
const RESTARTS_FOR_A_GAP: u64 = 10;

/// Who is told of a run while it lasts.
pub trait Witness {
    /// A restart is over; a line about it.
    fn say(&mut self, line: &str);

    /// All restarts so far, when the next one is due.
    ///
    /// # Errors
    /// When results cannot be kept, which ends the run.
    fn keep(&mut self, so_far: Trip) -> Result<(), Fault>;
}

/// Replaces a server so many times.
pub fn run(terms: &Terms, way: Way, times: u32, witness: &mut dyn Witness) -> Trip {
    let mut marks = Vec::new();
    let mut field = match Field::new(terms, way) {
        Ok(field) => field,
        Err(fault) => return Trip::not_begun(way, fault),
    };
    let fault = drive(&mut field, terms, way, times, &mut marks, witness).err();
    conclude(&mut field, way, &marks, fault)
}

/// What has come of a run that is over, or has broken off.
pub(crate) fn conclude(field: &mut Field, way: Way, marks: &[Mark], fault: Option<Fault>) -> Trip {
    if fault.is_none() {
        return judge(field, way, marks, Scope::Whole);
    }
    field.abandon();
    Trip { fault, ..judge(field, way, marks, Scope::SoFar) }
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
    witness: &mut dyn Witness,
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
        witness.say(&format!(
            "{} {number}/{times}: stopped in {:.2} s; so far {} requests, {} lost",
            way.name(),
            took(field, old).as_secs_f64(),
            Tally::of(&field.ends).all(),
            field.losses()
        ));
        field.gather(terms.pause)?;
        if number < times {
            witness.keep(judge(field, way, marks, Scope::SoFar))?;
        }
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
    /// Adds what came of another load in the same way, later.
    pub fn join(&mut self, next: Trip) {
        let begin = self.ends.len();
        self.restarts.extend(next.restarts);
        self.last.extend(next.last);
        self.differences.extend(next.differences);
        self.ends.extend(next.ends);
        self.gaps.extend(next.gaps.into_iter().map(|(at, before)| (begin + at, before)));
        self.fault = self.fault.take().or(next.fault);
    }

    pub(crate) fn not_begun(way: Way, fault: Fault) -> Trip {
        Trip {
            way,
            restarts: Vec::new(),
            last: Vec::new(),
            differences: Vec::new(),
            ends: Vec::new(),
            gaps: Vec::new(),
            fault: Some(fault),
        }
    }
}

fn judge(field: &Field, way: Way, marks: &[Mark], scope: Scope) -> Trip {
    let gap = |(at, end): (usize, &End)| field.gap_of(end).map(|before| (at, before));
    let gaps: Vec<(usize, Duration)> = field.ends.iter().enumerate().filter_map(gap).collect();
    let (mut ledgers, differences) = field.compare(scope);
    let last = ledgers.split_off(marks.len().min(ledgers.len())).into_iter().flatten().collect();
    // A mark without its signal is of an instance that was gone before.
    let signal = |mark: &Mark| field.instances.get(mark.old)?.signalled;
    let signals: Vec<Duration> = marks.iter().filter_map(signal).collect();
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
            ledger: ledgers.get_mut(mark.old).and_then(Option::take),
        }
    });
    let restarts = restarts.collect();
    Trip { way, restarts, last, differences, ends: field.ends.clone(), gaps, fault: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn end(outcome: Outcome, nth: u32) -> End {
        let at = Duration::from_secs(1);
        End {
            id: 4,
            kind: Kind::Get,
            outcome,
            planned: at,
            sent: None,
            ended: at,
            connected: None,
            port: 0,
            nth,
            reset_unheard: false,
            detail: "".into(),
        }
    }

    fn trip(way: Way, ends: Vec<End>) -> Trip {
        let fault = Fault("none".to_owned());
        Trip { ends, fault: None, ..Trip::not_begun(way, fault) }
    }

    #[test]
    fn a_refusal_is_a_failure_where_somebody_is_to_listen_and_a_loss_nowhere() {
        for (way, is_clean) in
            [(Way::ReusePort, false), (Way::Inherited, false), (Way::StopStart, true)]
        {
            let trip = trip(way, vec![end(Outcome::Ok, 0), end(Outcome::Refused, 0)]);
            assert_eq!(trip.is_clean(), is_clean, "{way:?}");
            assert_eq!(trip.refusals(), u64::from(!is_clean), "{way:?}");
            assert_eq!(trip.losses(), 0);
            assert_eq!(
                trip.ends.iter().filter(|end| trip.is_failure(end)).count(),
                usize::from(!is_clean)
            );
        }
    }

    #[test]
    fn one_gap_in_ten_restarts_is_clean_and_no_more() {
        let restart = Restart {
            signalled: Duration::ZERO,
            closed: None,
            exited: None,
            status: None,
            successor: None,
            tally: Tally::default(),
            latency: Latency::default(),
            losses: 0,
            gaps: 0,
            ledger: None,
        };
        for (gaps, restarts, is_clean) in [
            (0, 1, true),
            (1, 3, false),
            (1, 9, false),
            (1, 10, true),
            (2, 19, false),
            (2, 20, true),
        ] {
            let mut trip = trip(Way::StopStart, vec![end(Outcome::ResetBeforeResponse, 0); gaps]);
            trip.gaps = (0..gaps).map(|at| (at, Duration::ZERO)).collect();
            trip.restarts = vec![restart.clone(); restarts];
            assert_eq!(trip.losses(), 0);
            assert_eq!(trip.is_clean(), is_clean, "{gaps} in {restarts}");
        }
    }

    #[test]
    fn trips_that_are_joined_keep_their_gaps_and_the_first_fault() {
        let mut all = trip(Way::StopStart, vec![end(Outcome::Ok, 0)]);
        let mut next =
            trip(Way::StopStart, vec![end(Outcome::Ok, 0), end(Outcome::ResetBeforeResponse, 0)]);
        next.gaps = vec![(1, Duration::ZERO)];
        next.fault = Some(Fault("late".to_owned()));
        all.join(next);
        assert_eq!(
            (all.ends.len(), all.gaps[0].0, all.losses(), all.gap_connections()),
            (3, 2, 0, 1)
        );
        all.join(Trip::not_begun(Way::StopStart, Fault("later".to_owned())));
        assert_eq!(all.fault, Some(Fault("late".to_owned())));
    }
}
