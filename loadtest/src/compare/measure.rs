//! What is measured, and in which numbers: one table.

/// Something that is done to a server, by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// As many requests as it takes, on connections that are kept.
    KeepAlive,
    /// Likewise, sixteen sent at once.
    Pipelined,
    /// Likewise, each on a connection of its own, which it asks to close.
    Churn,
    /// Requests at a rate that is the same for all, whatever comes of those before.
    Latency,
    /// Many connections that had one request and are idle.
    Memory,
    /// From the start of its process to its first answer.
    Startup,
    /// Its program.
    Size,
    /// Two workers against one, on cores that the load shares.
    Scaling,
}

impl Measure {
    /// All of them, in the order of a round.
    pub const ALL: [Measure; 8] = [
        Measure::KeepAlive,
        Measure::Pipelined,
        Measure::Churn,
        Measure::Latency,
        Measure::Memory,
        Measure::Startup,
        Measure::Size,
        Measure::Scaling,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Measure::KeepAlive => "keep_alive",
            Measure::Pipelined => "pipelined",
            Measure::Churn => "churn",
            Measure::Latency => "latency",
            Measure::Memory => "memory",
            Measure::Startup => "startup",
            Measure::Size => "size",
            Measure::Scaling => "scaling",
        }
    }

    /// The measure of that name.
    pub fn named(name: &str) -> Option<Measure> {
        Measure::ALL.into_iter().find(|measure| measure.name() == name)
    }

    /// In how many of so many rounds it is taken: less often what takes long, or never changes.
    pub fn rounds(self, all: u32) -> u32 {
        match self {
            Measure::Memory => all.min(MEMORY_ROUNDS_MAX),
            Measure::Size => all.min(1),
            _ => all,
        }
    }
}

/// Half a minute for each server.
const MEMORY_ROUNDS_MAX: u32 = 3;

/// A number that a measure brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the table below says what each is")]
pub enum Metric {
    KeepAliveCpu,
    KeepAliveRate,
    PipelinedCpu,
    PipelinedRate,
    ChurnCpu,
    ChurnRate,
    HalfMedian,
    HalfP99,
    HalfP999,
    HalfLate,
    HighMedian,
    HighP99,
    HighP999,
    HighLate,
    IdleBytes,
    StartMemory,
    Startup,
    Size,
    OneWorkerRate,
    TwoWorkersRate,
    OneWorkerCpu,
    TwoWorkersCpu,
}

/// What there is to say of a [`Metric`].
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// In the CSV file.
    pub name: &'static str,
    /// Of what it is.
    pub unit: &'static str,
    /// Digits behind the point.
    pub digits: usize,
    /// Above its table.
    pub title: &'static str,
    /// Above its column where servers are compared at a glance; `None` where it has none.
    pub brief: Option<&'static str>,
}

impl Metric {
    /// All of them.
    pub const ALL: [Metric; 22] = [
        Metric::KeepAliveCpu,
        Metric::KeepAliveRate,
        Metric::PipelinedCpu,
        Metric::PipelinedRate,
        Metric::ChurnCpu,
        Metric::ChurnRate,
        Metric::HalfMedian,
        Metric::HalfP99,
        Metric::HalfP999,
        Metric::HalfLate,
        Metric::HighMedian,
        Metric::HighP99,
        Metric::HighP999,
        Metric::HighLate,
        Metric::IdleBytes,
        Metric::StartMemory,
        Metric::Startup,
        Metric::Size,
        Metric::OneWorkerRate,
        Metric::TwoWorkersRate,
        Metric::OneWorkerCpu,
        Metric::TwoWorkersCpu,
    ];

    /// The table.
    #[rustfmt::skip]
    pub fn facts(self) -> Facts {
        let (name, unit, digits, title, brief) = match self {
            Metric::KeepAliveCpu => ("keep_alive_cpu", "µs", 2,
                "CPU time of a request, kept connections", Some("CPU, kept, µs")),
            Metric::KeepAliveRate => ("keep_alive_rate", "1/s", 0,
                "Requests a second, kept connections", None),
            Metric::PipelinedCpu => ("pipelined_cpu", "µs", 3,
                "CPU time of a request, sixteen sent at once", Some("CPU, pipelined, µs")),
            Metric::PipelinedRate => ("pipelined_rate", "1/s", 0,
                "Requests a second, sixteen sent at once", None),
            Metric::ChurnCpu => ("churn_cpu", "µs", 2,
                "CPU time of a request with a connection of its own", Some("CPU, churn, µs")),
            Metric::ChurnRate => ("churn_rate", "1/s", 0,
                "Requests a second, each with a connection of its own", None),
            Metric::HalfMedian => ("latency_50_median", "µs", 0,
                "Median latency at 50 % load", None),
            Metric::HalfP99 => ("latency_50_p99", "µs", 0,
                "99 % latency at 50 % load", Some("p99 at 50 %, µs")),
            Metric::HalfP999 => ("latency_50_p99_9", "µs", 0,
                "99.9 % latency at 50 % load", None),
            Metric::HalfLate => ("latency_50_late", "µs", 0,
                "How late the load itself was at 50 %, 99 % of its requests", None),
            Metric::HighMedian => ("latency_80_median", "µs", 0,
                "Median latency at 80 % load", None),
            Metric::HighP99 => ("latency_80_p99", "µs", 0,
                "99 % latency at 80 % load", Some("p99 at 80 %, µs")),
            Metric::HighP999 => ("latency_80_p99_9", "µs", 0,
                "99.9 % latency at 80 % load", None),
            Metric::HighLate => ("latency_80_late", "µs", 0,
                "How late the load itself was at 80 %, 99 % of its requests", None),
            Metric::IdleBytes => ("idle_connection", "bytes", 0,
                "Memory of an idle connection after one request", Some("idle connection, bytes")),
            Metric::StartMemory => ("start_memory", "KiB", 0,
                "Memory before them", None),
            Metric::Startup => ("startup", "ms", 1,
                "From its start to its first answer", Some("start, ms")),
            Metric::Size => ("program", "KiB", 0,
                "Size of its program without symbols", Some("program, KiB")),
            Metric::OneWorkerRate => ("one_worker_rate", "1/s", 0,
                "Requests a second of one worker, cores shared with the load",
                Some("one worker, 1/s")),
            Metric::TwoWorkersRate => ("two_workers_rate", "1/s", 0,
                "Requests a second of two workers, cores shared with the load",
                Some("two workers, 1/s")),
            Metric::OneWorkerCpu => ("one_worker_cpu", "µs", 2,
                "CPU time of a request, one worker, cores shared with the load", None),
            Metric::TwoWorkersCpu => ("two_workers_cpu", "µs", 2,
                "CPU time of a request, two workers, cores shared with the load", None),
        };
        Facts { name, unit, digits, title, brief }
    }

    /// Which measure brings it.
    pub fn measure(self) -> Measure {
        match self {
            Metric::KeepAliveCpu | Metric::KeepAliveRate => Measure::KeepAlive,
            Metric::PipelinedCpu | Metric::PipelinedRate => Measure::Pipelined,
            Metric::ChurnCpu | Metric::ChurnRate => Measure::Churn,
            Metric::HalfMedian
            | Metric::HalfP99
            | Metric::HalfP999
            | Metric::HalfLate
            | Metric::HighMedian
            | Metric::HighP99
            | Metric::HighP999
            | Metric::HighLate => Measure::Latency,
            Metric::IdleBytes | Metric::StartMemory => Measure::Memory,
            Metric::Startup => Measure::Startup,
            Metric::Size => Measure::Size,
            Metric::OneWorkerRate
            | Metric::TwoWorkersRate
            | Metric::OneWorkerCpu
            | Metric::TwoWorkersCpu => Measure::Scaling,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_metric_is_listed_once_and_each_measure_has_one() {
        let names: BTreeSet<_> = Metric::ALL.map(|metric| metric.facts().name).into();
        assert_eq!(names.len(), Metric::ALL.len());
        let measures: BTreeSet<_> = Metric::ALL.map(Metric::measure).into();
        assert_eq!(measures, BTreeSet::from(Measure::ALL));
        for measure in Measure::ALL {
            assert_eq!(Measure::named(measure.name()), Some(measure));
        }
    }
}
