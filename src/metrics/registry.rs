//! The metrics of a build that has them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write as _};
use std::sync::Arc;

use http::Method;
use prometheus::core::Collector;
use prometheus::local::{LocalHistogram, LocalIntCounter};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder,
};

use super::process::{self, Process};
use super::{
    ACCEPTED, ACTIVE_AT_SHUTDOWN, BUILD, CLOSED, CONNECTION_OUTCOMES, CONNECTION_STATES,
    CONNECTIONS, CPU_SECONDS, FINISHED, FORCED, Facts, HOOK_SECONDS, HistogramFacts, IN_FLIGHT,
    LATE_BYTES, LOG_DROPPED, MAX_FDS, METHODS, OPEN_FDS, OTHER_METHOD, PHASE, PHASES, POOL_BUSY,
    POOL_JOBS, POOL_QUEUE, POOL_RUN, POOL_THREADS, POOL_WAIT, PoolFacts, REJECTED, REJECTION_CODES,
    REQUEST_BUCKETS, REQUEST_OUTCOMES, REQUEST_SECONDS, REQUESTS, RESIDENT_BYTES, Row,
    SHUTDOWN_SECONDS, START_SECONDS, THREADS, TURN_BUCKETS, TURN_SECONDS, VIRTUAL_BYTES,
};

/// One server's metrics. Cloneable; clones are the same metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    turn_seconds: Histogram,
    /// When the process started, in seconds since 1970; `None` where the system does not tell.
    started: Option<f64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that have seen nothing yet, in a registry of their own.
    ///
    /// # Panics
    /// Never: [`super::TABLE`] is valid, which the tests show.
    pub fn new() -> Self {
        const VALID: &str = "the table's names, labels and buckets are valid";
        let requests =
            IntCounterVec::new(Opts::new(REQUESTS.name, REQUESTS.help), &labels(&REQUESTS));
        let requests = requests.expect(VALID);
        let opts = HistogramOpts::new(REQUEST_SECONDS.name, REQUEST_SECONDS.help);
        let opts = opts.buckets(REQUEST_BUCKETS.to_vec());
        let request_seconds = HistogramVec::new(opts, &labels(&REQUEST_SECONDS)).expect(VALID);
        let opts = HistogramOpts::new(TURN_SECONDS.name, TURN_SECONDS.help);
        let turn_seconds = Histogram::with_opts(opts.buckets(TURN_BUCKETS.to_vec())).expect(VALID);

        let registry = Registry::new();
        let collectors: [Box<dyn Collector>; 3] = [
            Box::new(requests.clone()),
            Box::new(request_seconds.clone()),
            Box::new(turn_seconds.clone()),
        ];
        for collector in collectors {
            registry.register(collector).expect("the table names each metric once");
        }
        let started = process::start_time();
        let shared = Shared { registry, requests, request_seconds, turn_seconds, started };
        Self { shared: Arc::new(shared) }
    }

    /// The metrics of one thread, which reach a scrape when it flushes them.
    pub fn worker(&self) -> WorkerMetrics {
        WorkerMetrics {
            shared: Arc::clone(&self.shared),
            turn_seconds: self.shared.turn_seconds.local(),
            series: Vec::new(),
            index: HashMap::new(),
            last: 0,
            is_dirty: false,
        }
    }

    /// Everything as the Prometheus text format (see [`super::CONTENT_TYPE`]): what the workers
    /// have flushed, `facts`, and the process's own numbers, which are read from `/proc` now.
    ///
    /// # Panics
    /// When `facts.phase` is no index into [`PHASES`].
    pub fn render(&self, facts: &Facts) -> String {
        assert!(facts.phase < PHASES.len(), "phase {} of {}", facts.phase, PHASES.len());
        let mut text = String::with_capacity(EXPOSITION_BYTES_USUAL);
        TextEncoder::new()
            .encode_utf8(&self.shared.registry.gather(), &mut text)
            .expect("a String takes all, and gathered families are never empty");
        let mut exposition = Exposition { text };
        exposition.facts(facts);
        exposition.build();
        exposition.process(&Process::read(), self.shared.started);
        exposition.text
    }
}

/// The metrics of one thread: plain numbers, added to the server's when flushed or dropped.
///
/// Who owns it flushes it every so often while it [is dirty](Self::is_dirty), before it waits for
/// events without a limit, and has no need to at its end.
#[derive(Debug)]
pub struct WorkerMetrics {
    shared: Arc<Shared>,
    turn_seconds: LocalHistogram,
    /// One for each method and code this thread has seen: at most `METHODS` and one times the codes
    /// the handlers use, whatever clients send.
    series: Vec<Series>,
    /// Where in `series` a method (as [`fold`] numbers it) and code are.
    index: HashMap<(usize, u16), usize>,
    /// Where in `series` the latest request was; most requests are like the one before.
    last: usize,
    /// Something was observed since the last flush.
    is_dirty: bool,
}

#[derive(Debug)]
struct Series {
    key: (usize, u16),
    requests: LocalIntCounter,
    seconds: LocalHistogram,
}

impl WorkerMetrics {
    /// Counts one request; see [`requests`](Self::requests).
    pub fn request(&mut self, method: &Method, code: u16, seconds: f64) {
        self.requests(method, code, seconds, 1);
    }

    /// Counts so many requests whose responses had the status `code`, and the time that each took,
    /// in seconds. The first of its method and code takes a lock and allocates; the others do
    /// neither.
    pub fn requests(&mut self, method: &Method, code: u16, seconds: f64, count: u32) {
        debug_assert!(seconds.is_finite() && seconds >= 0.0, "{seconds} is no duration");
        let key = (fold(method), code);
        if self.series.get(self.last).is_none_or(|series| series.key != key) {
            self.last = self.resolve(key);
        }
        let series = &self.series[self.last];
        series.requests.inc_by(u64::from(count));
        for _ in 0..count {
            series.seconds.observe(seconds);
        }
        self.is_dirty = true;
    }

    /// Counts one turn of the reactor that worked for so many seconds.
    pub fn turn(&mut self, seconds: f64) {
        debug_assert!(seconds.is_finite() && seconds >= 0.0, "{seconds} is no duration");
        self.turn_seconds.observe(seconds);
        self.is_dirty = true;
    }

    /// Makes everything observed so far visible to scrapes.
    pub fn flush(&mut self) {
        if !self.is_dirty {
            return;
        }
        for series in &self.series {
            series.requests.flush();
            series.seconds.flush();
        }
        self.turn_seconds.flush();
        self.is_dirty = false;
    }

    /// Whether a flush would change what a scrape sees.
    pub fn is_dirty(&self) -> bool {
        self.is_dirty
    }

    /// Where `key` is in `series`, which gets it if it is new.
    fn resolve(&mut self, key: (usize, u16)) -> usize {
        let Self { shared, series, index, .. } = self;
        *index.entry(key).or_insert_with(|| {
            let (method, code) = key;
            let method = METHODS.get(method).copied().unwrap_or(OTHER_METHOD);
            let labels = [method, &code.to_string()];
            series.push(Series {
                key,
                requests: shared.requests.with_label_values(&labels).local(),
                seconds: shared.request_seconds.with_label_values(&labels).local(),
            });
            series.len() - 1
        })
    }
}

impl Drop for WorkerMetrics {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The text of an exposition in the making, for what is not in the registry.
struct Exposition {
    text: String,
}

impl Exposition {
    fn facts(&mut self, facts: &Facts) {
        self.single(&IN_FLIGHT, facts.requests_in_flight);
        self.labelled(&FINISHED, REQUEST_OUTCOMES.into_iter().zip(facts.requests_finished));
        let mut rejected = BTreeMap::from(REJECTION_CODES.map(|code| (code, 0)));
        for &(code, count) in &facts.rejected {
            *rejected.entry(code).or_default() += count;
        }
        self.labelled(&REJECTED, rejected);
        self.labelled(&CONNECTIONS, CONNECTION_STATES.into_iter().zip(facts.connections));
        self.single(&ACCEPTED, facts.accepted);
        self.labelled(&CLOSED, CONNECTION_OUTCOMES.into_iter().zip(facts.connections_closed));
        self.single(&LATE_BYTES, facts.late_bytes);
        let phases = PHASES.into_iter().enumerate();
        self.labelled(&PHASE, phases.map(|(i, phase)| (phase, u8::from(i == facts.phase))));
        self.single(&SHUTDOWN_SECONDS, facts.shutdown_duration_seconds);
        self.single(&ACTIVE_AT_SHUTDOWN, facts.active_connections_at_shutdown);
        self.single(&FORCED, facts.forced_shutdown_total);
        // Hooks of one name are one series, which must not come twice.
        let mut hooks = BTreeMap::new();
        for (name, seconds) in &facts.hook_seconds {
            *hooks.entry(escaped(name)).or_insert(0.0) += seconds;
        }
        if !hooks.is_empty() {
            self.labelled(&HOOK_SECONDS, hooks);
        }
        if !facts.pools.is_empty() {
            self.pools(&facts.pools);
        }
        self.single(&LOG_DROPPED, facts.log_lines_dropped);
    }

    fn pools(&mut self, pools: &[PoolFacts]) {
        self.labelled(&POOL_THREADS, pools.iter().map(|pool| (pool.name, pool.threads)));
        self.labelled(&POOL_BUSY, pools.iter().map(|pool| (pool.name, pool.busy)));
        self.labelled(&POOL_QUEUE, pools.iter().map(|pool| (pool.name, pool.queue_length)));
        self.histograms(&POOL_WAIT, pools.iter().map(|pool| (pool.name, pool.wait.clone())));
        self.histograms(&POOL_RUN, pools.iter().map(|pool| (pool.name, pool.run.clone())));
        self.head(&POOL_JOBS);
        for pool in pools {
            for (outcome, count) in &pool.outcomes {
                self.sample(POOL_JOBS.name, &labels(&POOL_JOBS), &[&pool.name, outcome], count);
            }
        }
    }

    /// Histograms of one label that were counted elsewhere.
    fn histograms(&mut self, row: &Row, all: impl Iterator<Item = (&'static str, HistogramFacts)>) {
        self.head(row);
        let (bucket, label) = (format!("{}_bucket", row.name), [row.labels, "le"]);
        for (value, facts) in all {
            let mut sum = 0;
            let bounds = facts.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            for (bound, count) in bounds.zip(&facts.counts) {
                sum += count;
                self.sample(&bucket, &label, &[&value, &bound], sum);
            }
            self.sample(&format!("{}_sum", row.name), &label[..1], &[&value], facts.sum);
            self.sample(&format!("{}_count", row.name), &label[..1], &[&value], sum);
        }
    }

    fn build(&mut self) {
        self.head(&BUILD);
        self.sample(BUILD.name, &labels(&BUILD), &[&VERSION, &REVISION], 1);
    }

    fn process(&mut self, process: &Process, started: Option<f64>) {
        self.optional(&CPU_SECONDS, process.stat.map(|stat| stat.cpu_seconds));
        self.optional(&OPEN_FDS, process.open_fds);
        self.optional(&MAX_FDS, process.max_fds);
        self.optional(&VIRTUAL_BYTES, process.stat.map(|stat| stat.virtual_bytes));
        self.optional(&RESIDENT_BYTES, process.resident_bytes);
        self.optional(&START_SECONDS, started);
        self.optional(&THREADS, process.stat.map(|stat| stat.threads));
    }

    fn optional(&mut self, row: &Row, value: Option<impl Display>) {
        if let Some(value) = value {
            self.single(row, value);
        }
    }

    fn single(&mut self, row: &Row, value: impl Display) {
        self.head(row);
        self.sample(row.name, &[], &[], value);
    }

    /// A family whose one label takes the values that come with each number.
    fn labelled<L: Display, V: Display>(
        &mut self,
        row: &Row,
        samples: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(row);
        for (label, value) in samples {
            self.sample(row.name, &[row.labels], &[&label], value);
        }
    }

    fn head(&mut self, row: &Row) {
        let Row { name, kind, help, .. } = row;
        let kind = kind.as_str();
        // The table's helps hold nothing that would have to be escaped.
        let head = format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.text.write_fmt(head).expect("a String takes all");
    }

    fn sample(
        &mut self,
        name: &str,
        labels: &[&str],
        values: &[&dyn Display],
        value: impl Display,
    ) {
        self.text.push_str(name);
        for (i, (label, of)) in labels.iter().zip(values).enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            write!(self.text, "{open}{label}=\"{of}\"").expect("a String takes all");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        writeln!(self.text, "{close} {value}").expect("a String takes all");
    }
}

/// A label's value as the exposition format wants it: a program's own names may hold anything.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

/// A number for each label that methods have: the place in [`METHODS`], or one past it.
fn fold(method: &Method) -> usize {
    match *method {
        Method::GET => 0,
        Method::HEAD => 1,
        Method::POST => 2,
        Method::PUT => 3,
        Method::DELETE => 4,
        Method::CONNECT => 5,
        Method::OPTIONS => 6,
        Method::TRACE => 7,
        Method::PATCH => 8,
        _ => METHODS.len(),
    }
}

fn labels(row: &Row) -> Vec<&'static str> {
    row.labels.split(',').collect()
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, if the build said so.
const REVISION: &str = match option_env!("EBBTIDE_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

// It becomes a label's value, which is not escaped: a version control's word for a commit is plain.
const _: () = assert!(is_plain(VERSION) && is_plain(REVISION));

const fn is_plain(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        if !first.is_ascii_graphic() || matches!(first, b'"' | b'\\') {
            return false;
        }
        rest = others;
    }
    true
}

/// Room an exposition begins with: that of a server with a handful of methods and codes.
const EXPOSITION_BYTES_USUAL: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_and_code_are_resolved_once() {
        let mut worker = Metrics::new().worker();
        for _ in 0..3 {
            for (method, code) in [(Method::GET, 200), (Method::GET, 404), (Method::POST, 200)] {
                worker.request(&method, code, 0.001);
                worker.request(&method, code, 0.001);
            }
        }
        let keys: Vec<_> = worker.series.iter().map(|series| series.key).collect();
        assert_eq!(keys, [(0, 200), (0, 404), (2, 200)]);
        assert!(worker.series.iter().all(|series| series.requests.get() == 6));
    }

    #[test]
    fn clients_cannot_make_series_with_methods_of_their_own() {
        let mut worker = Metrics::new().worker();
        for number in 0..100 {
            let method = Method::from_bytes(format!("M{number}").as_bytes()).expect("a token");
            worker.request(&method, 405, 0.001);
        }
        assert_eq!(worker.series.len(), 1);
        for (index, name) in METHODS.iter().enumerate() {
            assert_eq!(fold(&name.parse().expect("a method")), index);
        }
        assert_eq!(fold(&Method::from_bytes(b"get").expect("a token")), METHODS.len());
    }
}
