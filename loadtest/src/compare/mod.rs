//! `loadtest compare`: servers side by side, for equal work.
//!
//! A server runs on cores of its own and the load on the others. It is started anew for each
//! measure, so that none finds what another has left. A round takes each measure of all servers,
//! one behind the other, and each round begins with another server: what else the machine does
//! meets all, and the ratio of two servers within a round is hardly touched by it
//! ([`statistics`]). CPU time is the scheduler's own count ([`machine`]), not what a load generator
//! guesses from rates.
//!
//! Equal work: the same request, the same body, a date, and as many header fields as ebbtide sends.
//! [`answer`] looks at each server's first answer; where its fields are more or fewer, the tables
//! say so. A server that is not there is said to be missing, and keeps its row in every table.

pub mod answer;
pub mod chart;
pub mod contender;
pub mod idle;
pub mod machine;
pub mod markdown;
pub mod measure;
pub mod open_loop;
pub mod samples;
pub mod server;
pub mod statistics;
pub mod wrk;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::results;
use crate::site::{CLEAN, FAULT, LOST, Scratch, interruption};
use crate::target::Fault;
use answer::Asks;
use contender::{CONTENDERS, Comes, Contender, Install};
use machine::Cores;
use measure::{Measure, Metric};
use open_loop::OpenLoop;
use samples::{Row, Samples};
use server::{Server, Terms};
use statistics::Spread;
use wrk::{Requests, Wrk};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// Who is compared with ebbtide; `None` for all there are.
    pub peers: Option<Vec<Contender>>,
    /// What is measured, in the order of [`Measure::ALL`].
    pub measures: Vec<Measure>,
    /// How often.
    pub rounds: u32,
    /// How long the load of one measure lasts.
    pub seconds: u32,
    /// Each server's.
    pub workers: u32,
    /// Idle ones.
    pub connections: u32,
    /// How long they are left alone, at least.
    pub rest: Duration,
    /// Whether peers that are missing are to be installed.
    pub install: Install,
    /// The program of ebbtide; `None` to have it built.
    pub binary: Option<PathBuf>,
    /// Where results go.
    pub out: PathBuf,
}

/// A run of the command; returns the exit status.
///
/// # Errors
/// When ebbtide or the load is not there, or when results cannot be written.
pub fn run(order: Order) -> Result<u8, Fault> {
    let mut bench = Bench::new(order)?;
    bench.calibrate()?;
    for round in 1..=bench.order.rounds {
        for measure in bench.order.measures.clone() {
            if round > measure.rounds(bench.order.rounds) {
                continue;
            }
            for at in bench.turns(round) {
                bench.take(at, measure, round);
                if bench.interrupted.load(Ordering::Relaxed) {
                    bench.samples.notes.push(format!("interrupted in round {round}"));
                    bench.write()?;
                    return Ok(FAULT);
                }
            }
        }
        bench.write()?;
        eprintln!("round {round} of {} done", bench.order.rounds);
    }
    println!("{}\n{}", markdown::glance(&bench.samples), markdown::pairs(&bench.samples));
    Ok(bench.verdict())
}

struct Bench {
    order: Order,
    /// Those of the servers in `samples` that are there, with their programs.
    present: Vec<(Contender, PathBuf)>,
    samples: Samples,
    cores: Cores,
    /// Requests a second at which ebbtide was saturated before the first round.
    saturation: Option<f64>,
    /// Of the last minute before we began.
    load_average: Option<f64>,
    scratch: Scratch,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    fn new(order: Order) -> Result<Bench, Fault> {
        let interrupted = interruption().map_err(Fault::of("catch signals"))?;
        let out = &order.out;
        let writable = std::fs::create_dir_all(out).and_then(|()| results::probe(out));
        writable.map_err(Fault::of(&format!("write to {}", out.display())))?;
        if !Wrk::is_there() {
            return Err(Fault("wrk is not installed: apt-get install wrk".to_owned()));
        }
        if order.measures.contains(&Measure::Memory) {
            idle::allow(order.connections).map_err(Fault)?;
        }
        let cores = Cores::split(order.workers as usize).map_err(Fault::of("list cores"))?;
        if !cores.are_apart() {
            eprintln!("WARNING: not enough cores: the load runs on those of the server");
        }
        let scratch = Scratch::new(None)?;
        let (samples, present) = muster(&order, &CONTENDERS)?;
        let saturation = None;
        let load_average = machine::load_average();
        if let Some(load) = load_average.filter(|load| *load > BUSY) {
            eprintln!("WARNING: the load average is {load}: other processes are in the way");
        }
        Ok(Bench { order, present, samples, cores, saturation, load_average, scratch, interrupted })
    }

    /// Whose turn it is in a round, by position in `present`: each begins once.
    fn turns(&self, round: u32) -> Vec<usize> {
        let count = self.present.len();
        (0..count).map(|at| (at + round as usize - 1) % count).collect()
    }

    /// Finds the rate that all get when latencies are measured.
    fn calibrate(&mut self) -> Result<(), Fault> {
        if !self.order.measures.contains(&Measure::Latency) {
            return Ok(());
        }
        let saturate = || -> io::Result<f64> {
            let directory = self.place(0, Measure::Latency)?;
            let server = Server::start(&self.terms(0, &directory))?;
            let wrk = self.wrk(Requests::Single);
            Ok(wrk.run(server.address, &self.cores.load)?.rate)
        };
        let rates: io::Result<Vec<f64>> = (0..CALIBRATIONS).map(|_| saturate()).collect();
        let rates = rates.map_err(Fault::of("find the rate for latencies"))?;
        self.saturation = Spread::of(rates).map(|rates| rates.median);
        Ok(())
    }

    /// Measures a server; a failure is noted, and the others go on.
    fn take(&mut self, at: usize, measure: Measure, round: u32) {
        let contender = self.present[at].0;
        if !contender.takes(measure) {
            return;
        }
        eprintln!("round {round}, {}: {}", measure.name(), contender.name);
        match self.measure(at, measure, round) {
            Ok(values) => {
                for (metric, value) in values {
                    self.samples.add(contender.name, metric, round, value);
                }
            }
            Err(error) => {
                let why = error.to_string();
                eprintln!("FAILED: {}, {}: {why}", contender.name, measure.name());
                self.samples.fail(contender.name, measure, round, &why);
            }
        }
    }

    fn measure(
        &mut self,
        at: usize,
        measure: Measure,
        round: u32,
    ) -> io::Result<Vec<(Metric, f64)>> {
        let directory = self.place(at, measure)?;
        if measure == Measure::Size {
            let (contender, program) = &self.present[at];
            let size = contender.size_kib(program, &directory)?;
            return Ok(size.map(|size| (Metric::Size, size)).into_iter().collect());
        }
        if measure == Measure::Scaling {
            return self.scaling(at, &directory);
        }
        let asks = if measure == Measure::Churn { Asks::Close } else { Asks::Keep };
        let server = Server::start(&Terms { asks, ..self.terms(at, &directory) })?;
        self.samples.fields(self.present[at].0.name, asks, server.answer.fields);
        match measure {
            Measure::Latency => self.latency(at, &server, round),
            Measure::Memory => {
                let memory = idle::measure(&server, self.order.connections, self.order.rest)?;
                Ok(vec![(Metric::IdleBytes, memory.each), (Metric::StartMemory, memory.before)])
            }
            Measure::Startup => Ok(vec![(Metric::Startup, server.startup.as_secs_f64() * 1e3)]),
            _ => self.saturate(at, &server, measure, round),
        }
    }

    /// As many requests as it takes, of the measure's kind.
    fn saturate(
        &mut self,
        at: usize,
        server: &Server,
        measure: Measure,
        round: u32,
    ) -> io::Result<Vec<(Metric, f64)>> {
        let (requests, cpu, rate) = match measure {
            Measure::Pipelined => {
                let many = Requests::Pipelined(PIPELINED);
                (many, Metric::PipelinedCpu, Metric::PipelinedRate)
            }
            Measure::Churn => (Requests::Closing, Metric::ChurnCpu, Metric::ChurnRate),
            _ => (Requests::Single, Metric::KeepAliveCpu, Metric::KeepAliveRate),
        };
        let (micros, done) = loaded(server, &self.wrk(requests), &self.cores.load)?;
        if done.errors > 0 {
            let (name, what, errors) = (self.present[at].0.name, measure.name(), done.errors);
            let note = format!("{name}, {what}, round {round}: wrk counts {errors} errors");
            self.samples.notes.push(note);
        }
        Ok(vec![(cpu, micros), (rate, done.rate)])
    }

    /// At half and at four fifths of ebbtide's saturation, the same for all.
    fn latency(
        &mut self,
        at: usize,
        server: &Server,
        round: u32,
    ) -> io::Result<Vec<(Metric, f64)>> {
        let saturation = self.saturation.unwrap_or(0.0);
        let half = [Metric::HalfMedian, Metric::HalfP99, Metric::HalfP999, Metric::HalfLate];
        let high = [Metric::HighMedian, Metric::HighP99, Metric::HighP999, Metric::HighLate];
        let mut values = Vec::new();
        for (part, metrics) in LOADS.into_iter().zip([half, high]) {
            let lasts = Duration::from_secs(self.order.seconds.into());
            let order = OpenLoop { rate: saturation * part, lasts, seed: round.into() };
            let (to, answer) = (server.address, server.answer);
            let found = machine::pinned(&self.cores.load, || order.run(to, answer))?;
            let Some(found) = found else {
                let (name, percent) = (self.present[at].0.name, part * 100.0);
                let what = format!("it cannot keep up with {percent:.0} % load");
                self.samples.overload(name, &metrics, round, &what);
                continue;
            };
            let numbers = [found.median, found.p99, found.p999, found.late];
            values.extend(metrics.into_iter().zip(numbers));
        }
        Ok(values)
    }

    /// One worker, then two, on the same two cores, which the load has to share with them.
    fn scaling(&self, at: usize, directory: &Path) -> io::Result<Vec<(Metric, f64)>> {
        let cores = Cores::shared(2)?;
        if cores.server.len() < 2 {
            return Err(io::Error::other("two workers need two cores"));
        }
        let mut values = Vec::new();
        let metrics = [
            (1, Metric::OneWorkerRate, Metric::OneWorkerCpu),
            (2, Metric::TwoWorkersRate, Metric::TwoWorkersCpu),
        ];
        for (workers, rate, cpu) in metrics {
            let terms = Terms { workers, cores: &cores, ..self.terms(at, directory) };
            let server = Server::start(&terms)?;
            let wrk = Wrk { threads: 2, ..self.wrk(Requests::Single) };
            let (micros, done) = loaded(&server, &wrk, &cores.load)?;
            values.extend([(rate, done.rate), (cpu, micros)]);
        }
        Ok(values)
    }

    fn wrk(&self, requests: Requests) -> Wrk {
        let threads = u32::try_from(self.cores.load.len()).unwrap_or(1);
        Wrk { requests, connections: CONNECTIONS, threads, seconds: self.order.seconds }
    }

    fn terms<'a>(&'a self, at: usize, directory: &'a Path) -> Terms<'a> {
        let (contender, program) = &self.present[at];
        Terms {
            contender: *contender,
            program,
            workers: self.order.workers as usize,
            cores: &self.cores,
            asks: Asks::Keep,
            directory,
        }
    }

    fn place(&self, at: usize, measure: Measure) -> io::Result<PathBuf> {
        let inside = Path::new(self.present[at].0.name).join(measure.name());
        self.scratch.place(&inside).map_err(|fault| io::Error::other(fault.to_string()))
    }

    fn heading(&self) -> Vec<String> {
        let Order { rounds, seconds, workers, connections, .. } = &self.order;
        let Cores { server, load } = &self.cores;
        let mut lines = vec![
            machine::description(),
            format!(
                "medians of {rounds} interleaved rounds of {seconds} s each (memory: {}, program: \
                 1); quartiles beside them; ratios are of pairs within a round",
                Measure::Memory.rounds(*rounds)
            ),
            format!(
                "{workers} worker(s), the server on cores {server:?}, the load on {load:?}{}; \
                 {CONNECTIONS} connections, {PIPELINED} requests at once where pipelined, \
                 {connections} idle connections",
                if self.cores.are_apart() { "" } else { " (SHARED: not enough cores)" }
            ),
        ];
        lines.extend(self.saturation.map(|rate| {
            let [half, high] = LOADS.map(|part| rate * part);
            format!(
                "latency at {half:.0} and {high:.0} requests a second for all: 50 % and 80 % of \
                 the {rate:.0} at which ebbtide was saturated before the first round"
            )
        }));
        lines.extend(self.load_average.map(|load| {
            let what =
                if load > BUSY { ": THE MACHINE WAS BUSY, and latencies show it" } else { "" };
            format!("load average before {load}{what}")
        }));
        lines
    }

    fn page(&self) -> String {
        markdown::page(&self.heading(), &self.samples)
    }

    /// Writes all there is: each file whole, or not at all.
    fn write(&self) -> Result<(), Fault> {
        let mut files = vec![
            ("compare.md".to_owned(), self.page()),
            ("compare.csv".to_owned(), self.samples.csv()),
        ];
        let subtitle = machine::description();
        for metric in Metric::ALL.into_iter().filter(|metric| chart::is_drawn(*metric)) {
            if self.samples.has(metric) {
                let name = format!("compare-{}.svg", metric.facts().name);
                files.push((name, chart::draw(metric, &self.samples, &subtitle)));
            }
        }
        for (name, text) in files {
            let path = self.order.out.join(name);
            let written = results::write(&path, &text);
            written.map_err(Fault::of(&format!("write {}", path.display())))?;
        }
        Ok(())
    }

    /// Says what is missing, and returns the exit status.
    fn verdict(&self) -> u8 {
        for row in &self.samples.servers {
            let reasons: BTreeSet<&String> = row.absent.iter().chain(row.failed.values()).collect();
            for why in reasons {
                eprintln!("MISSING in the tables: {}: {why}", row.name);
            }
        }
        eprintln!("see {}", self.order.out.display());
        status(&self.samples, self.order.peers.as_deref())
    }
}

/// The exit status: who is only there on demand may be missing, unless it is one of those named.
fn status(samples: &Samples, named: Option<&[Contender]>) -> u8 {
    let is_asked = |row: &Row| {
        let comes = Contender::named(row.name).map(|contender| contender.comes);
        named.is_some() || comes == Some(Comes::Always)
    };
    let is_missing = |row: &Row| !row.failed.is_empty() || (row.absent.is_some() && is_asked(row));
    match samples.servers.split_first() {
        Some((first, _)) if !first.failed.is_empty() => FAULT,
        _ if samples.servers.iter().any(is_missing) => LOST,
        _ => CLEAN,
    }
}

/// CPU time of a request in µs under this load, and what the load says.
fn loaded(server: &Server, wrk: &Wrk, cores: &[usize]) -> io::Result<(f64, wrk::Done)> {
    let before = server.cpu_ns()?;
    let done = wrk.run(server.address, cores)?;
    let used = server.cpu_ns()?.saturating_sub(before);
    #[allow(clippy::cast_precision_loss, reason = "fewer than 2^53")]
    let (used, requests) = (used as f64, done.requests as f64);
    Ok((used / 1e3 / requests, done))
}

/// Who is there and who is not, which is said loudly.
fn muster(
    order: &Order,
    contenders: &[Contender],
) -> Result<(Samples, Vec<(Contender, PathBuf)>), Fault> {
    let is_asked = |contender: &Contender| {
        let names = order.peers.as_ref();
        contender.name == OURS
            || names.is_none_or(|peers| peers.iter().any(|peer| peer.name == contender.name))
    };
    let (mut samples, mut present) = (Samples::default(), Vec::new());
    for contender in contenders.iter().copied().filter(is_asked) {
        let binary = order.binary.as_deref().filter(|_| contender.name == OURS);
        let found = contender.find(binary, order.install);
        let absent = found.as_ref().err().cloned();
        match found {
            Ok(program) => present.push((contender, program)),
            Err(why) if contender.name == OURS => return Err(Fault(why)),
            Err(why) => eprintln!("SKIPPED: {}: {why}", contender.name),
        }
        samples.servers.push(Row {
            name: contender.name,
            what: contender.what,
            absent,
            fields: [None; 2],
            failed: BTreeMap::new(),
        });
    }
    Ok((samples, present))
}

const OURS: &str = CONTENDERS[0].name;

/// At a time, as in most published comparisons.
const CONNECTIONS: u32 = 64;

/// Requests sent at once where they are pipelined, likewise.
const PIPELINED: u32 = 16;

/// How often ebbtide is saturated before the first round: the middle one counts.
const CALIBRATIONS: u32 = 3;

/// Processes that want a core, on average, above which nobody's numbers are to be trusted.
const BUSY: f64 = 0.5;

/// Parts of ebbtide's saturation at which latencies are measured.
const LOADS: [f64; 2] = [0.5, 0.8];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::samples::tests::row;

    fn order(peers: Option<Vec<Contender>>) -> Order {
        Order {
            peers,
            measures: vec![Measure::Size],
            rounds: 1,
            seconds: 1,
            workers: 1,
            connections: 1,
            rest: Duration::ZERO,
            install: Install::No,
            binary: Some("/bin/sh".into()),
            out: PathBuf::new(),
        }
    }

    #[test]
    fn a_server_that_is_not_there_keeps_its_row_and_says_why() {
        let missing = contender::tests::missing();
        let (samples, present) = muster(&order(None), &[CONTENDERS[0], missing]).unwrap();
        assert_eq!(present.len(), 1);
        assert_eq!(samples.servers.len(), 2);
        let why = samples.servers[1].absent.as_deref().unwrap();
        assert!(why.starts_with("not installed: "), "{why}");
    }

    #[test]
    fn only_the_servers_that_are_named_are_compared_and_ours_always() {
        let missing = contender::tests::missing();
        let order = order(Some(vec![missing]));
        let (samples, _) = muster(&order, &[CONTENDERS[0], CONTENDERS[1], missing]).unwrap();
        let names: Vec<_> = samples.servers.iter().map(|row| row.name).collect();
        assert_eq!(names, ["ebbtide", missing.name]);
    }

    #[test]
    fn what_is_missing_shows_in_the_exit_status() {
        let with = |other: Row| Samples::of(vec![row("ebbtide", None), other]);
        let failed = |name: &'static str| {
            let mut row = row(name, None);
            row.failed.insert(Measure::Churn, "it ended".to_owned());
            row
        };
        let go = [Contender::named("go").unwrap()];
        assert_eq!(status(&with(row("nginx", None)), None), CLEAN);
        assert_eq!(status(&with(row("nginx", Some("not installed"))), None), LOST);
        assert_eq!(status(&with(row("go", Some("not installed"))), None), CLEAN);
        assert_eq!(status(&with(row("go", Some("not installed"))), Some(&go)), LOST);
        assert_eq!(status(&with(failed("go")), None), LOST);
        let ours = Samples::of(vec![failed("ebbtide")]);
        assert_eq!(status(&ours, None), FAULT);
    }
}
