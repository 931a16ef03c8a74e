//! All that was measured, and why something was not.

use std::collections::BTreeMap;

use crate::compare::answer::Asks;
use crate::compare::measure::{Measure, Metric};
use crate::compare::statistics::{Spread, paired};
use crate::table::put;

/// See the module's essay. Servers are in the order of the tables, known by their names.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Who was to be compared. The first one is compared with the others.
    pub servers: Vec<Row>,
    values: BTreeMap<(&'static str, Metric), BTreeMap<u32, f64>>,
    /// A line for each thing that is to be known of a number.
    pub notes: Vec<String>,
}

/// A server in the tables.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why it is not there, if it is not.
    pub absent: Option<String>,
    /// Header fields of its answers: on a kept connection, and on one that is closed.
    pub fields: [Option<usize>; 2],
    /// The measures that failed, in a round at least, and the first reason.
    pub failed: BTreeMap<Measure, String>,
}

/// What stands in a cell of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// It was measured.
    Value(Spread),
    /// It could not be, though it was tried.
    Failed,
    /// The server is not there.
    Absent,
    /// It is not measured of this server.
    None,
}

impl Samples {
    /// Nothing yet of these servers.
    pub fn of(servers: Vec<Row>) -> Samples {
        Samples { servers, ..Samples::default() }
    }

    /// Adds a number.
    pub fn add(&mut self, server: &'static str, metric: Metric, round: u32, value: f64) {
        self.values.entry((server, metric)).or_default().insert(round, value);
    }

    /// Notes that a measure failed.
    pub fn fail(&mut self, server: &'static str, measure: Measure, round: u32, why: &str) {
        if let Some(row) = self.servers.iter_mut().find(|row| row.name == server) {
            row.failed.entry(measure).or_insert_with(|| why.to_owned());
        }
        self.notes.push(format!("{server}, {}, round {round}: {why}", measure.name()));
    }

    /// Notes that a load was too much for a server, which is a result: it takes for ever, and so
    /// does the median when it is so in most rounds.
    pub fn overload(&mut self, server: &'static str, metrics: &[Metric], round: u32, what: &str) {
        for metric in metrics {
            self.add(server, *metric, round, f64::INFINITY);
        }
        self.notes.push(format!("{server}, round {round}: {what}"));
    }

    /// Keeps how many header fields a server sends.
    pub fn fields(&mut self, server: &'static str, asks: Asks, count: usize) {
        if let Some(row) = self.servers.iter_mut().find(|row| row.name == server) {
            row.fields[usize::from(asks == Asks::Close)] = Some(count);
        }
    }

    /// What is known of a server.
    pub fn cell(&self, row: &Row, metric: Metric) -> Cell {
        let values = self.values.get(&(row.name, metric));
        match values.and_then(|values| Spread::of(values.values().copied())) {
            Some(spread) => Cell::Value(spread),
            None if row.absent.is_some() => Cell::Absent,
            None if row.failed.contains_key(&metric.measure()) => Cell::Failed,
            None => Cell::None,
        }
    }

    /// The first server's numbers over another one's, each pair of the same round.
    pub fn ratio(&self, other: &Row, metric: Metric) -> Option<Spread> {
        let first = self.servers.first()?;
        let of = |name: &'static str| self.values.get(&(name, metric));
        Spread::of(paired(of(first.name)?, of(other.name)?))
    }

    /// Whether anybody has this number.
    pub fn has(&self, metric: Metric) -> bool {
        self.values.keys().any(|(_, of)| *of == metric)
    }

    /// Every number as a line of comma-separated values, and every server that is missing.
    pub fn csv(&self) -> String {
        let mut text = String::from("server,metric,unit,round,value\n");
        for row in &self.servers {
            if row.absent.is_some() {
                put(&mut text, format_args!("{},,,,not installed\n", row.name));
            }
            for measure in row.failed.keys() {
                put(&mut text, format_args!("{},{},,,failed\n", row.name, measure.name()));
            }
            for metric in Metric::ALL {
                let facts = metric.facts();
                for (round, value) in self.values.get(&(row.name, metric)).into_iter().flatten() {
                    put(
                        &mut text,
                        format_args!(
                            "{},{},{},{round},{value:.*}\n",
                            row.name,
                            facts.name,
                            facts.unit,
                            facts.digits + 1,
                        ),
                    );
                }
            }
        }
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(name: &'static str, absent: Option<&str>) -> Row {
        Row {
            name,
            what: "a server",
            absent: absent.map(str::to_owned),
            fields: [Some(5), None],
            failed: BTreeMap::new(),
        }
    }

    /// Two rounds of ebbtide, of one that is twice as slow, of one that is not there, and of one
    /// that fails.
    pub(crate) fn samples() -> Samples {
        let mut samples = Samples::of(vec![
            row("ebbtide", None),
            row("slow", None),
            row("lost", Some("not installed: install it")),
            row("bad", None),
        ]);
        for (round, value) in [(1, 6.0), (2, 12.0)] {
            samples.add("ebbtide", Metric::KeepAliveCpu, round, value);
            samples.add("slow", Metric::KeepAliveCpu, round, value * 2.0);
        }
        samples.fail("bad", Measure::KeepAlive, 1, "it ended");
        samples.overload("slow", &[Metric::HighP99], 1, "it cannot keep up");
        samples
    }

    #[test]
    fn a_server_that_is_missing_or_fails_has_its_cell() {
        let samples = samples();
        let cell = |at: usize| samples.cell(&samples.servers[at], Metric::KeepAliveCpu);
        assert_eq!(cell(0), Cell::Value(Spread::of([6.0, 12.0]).unwrap()));
        assert_eq!((cell(2), cell(3)), (Cell::Absent, Cell::Failed));
        assert_eq!(samples.cell(&samples.servers[0], Metric::Size), Cell::None);
        let Cell::Value(high) = samples.cell(&samples.servers[1], Metric::HighP99) else {
            panic!("an overload is a result");
        };
        assert!(high.median.is_infinite());
        let ratio = |at: usize| samples.ratio(&samples.servers[at], Metric::KeepAliveCpu);
        assert_eq!((ratio(1), ratio(2)), (Spread::of([0.5, 0.5]), None));
        assert!(samples.has(Metric::KeepAliveCpu) && !samples.has(Metric::ChurnCpu));
    }

    #[test]
    fn the_csv_has_every_number_and_everybody() {
        assert_eq!(
            samples().csv(),
            "server,metric,unit,round,value\n\
             ebbtide,keep_alive_cpu,µs,1,6.000\nebbtide,keep_alive_cpu,µs,2,12.000\n\
             slow,keep_alive_cpu,µs,1,12.000\nslow,keep_alive_cpu,µs,2,24.000\n\
             slow,latency_80_p99,µs,1,inf\n\
             lost,,,,not installed\nbad,keep_alive,,,failed\n"
        );
    }
}
