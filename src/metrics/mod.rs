//! What the server says of itself in numbers: every name, type, label, help text and bucket.
//!
//! Two kinds of number, by who owns them:
//!
//! - Observations (requests and their durations, turns): each worker thread owns a
//!   [`WorkerMetrics`] of plain, unshared counters and adds them to the registry when it flushes. A
//!   request costs no lock, no atomic and no allocation; a scrape is behind by what has not been
//!   flushed.
//! - Facts (connections by state, the ledger, the shutdown): their owners count them anyway.
//!   Whoever answers a scrape collects them into [`Facts`], and [`Metrics::render`] gives them
//!   their names.
//!
//! Invariants
//!   1. A name is written here and nowhere else. [`TABLE`] is also the README's table.
//!   2. A series with a fixed set of label values exists from the first scrape on, at 0: an alert
//!      on its rate must see the step from 0 to 1.
//!   3. Nothing here reads a clock or knows another module. There is no global: two servers in one
//!      process have two registries.
//!
//! Built without the feature `metrics`, the types stay and do nothing, so callers need no `cfg`.

#[cfg(not(feature = "metrics"))]
mod off;
#[cfg(feature = "metrics")]
mod process;
#[cfg(feature = "metrics")]
mod registry;

use std::fmt::Write as _;

#[cfg(not(feature = "metrics"))]
pub use off::{Metrics, WorkerMetrics};
#[cfg(feature = "metrics")]
pub use registry::{Metrics, WorkerMetrics};

/// The `Content-Type` of [`Metrics::render`]: the Prometheus text exposition format, version 0.0.4.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a request can end, in the order of [`Facts::requests_finished`].
pub const REQUEST_OUTCOMES: [&str; 4] = ["answered", "refused", "cut", "abandoned"];

/// What a connection can be doing, in the order of [`Facts::connections`].
pub const CONNECTION_STATES: [&str; 7] =
    ["new", "reading_head", "handling", "streaming", "idle", "hibernating", "lingering"];

/// How a connection can end, in the order of [`Facts::connections_closed`].
pub const CONNECTION_OUTCOMES: [&str; 8] = [
    "client_closed",
    "closed_after_response",
    "closed_idle",
    "timed_out",
    "rejected",
    "shed",
    "reset",
    "cut",
];

/// The phases of a server's life, in their order. [`Facts::phase`] is an index into it.
pub const PHASES: [&str; 6] =
    ["running", "lame_duck", "draining", "cancelling", "cleaning_up", "stopped"];

/// The codes of `http_rejected_total` that exist before the first of them is sent: malformed, too
/// slow, target too long, fields too large (RFC 9110 section 15.5, RFC 6585 section 5).
pub const REJECTION_CODES: [u16; 4] = [400, 408, 414, 431];

/// The methods that are counted by name (RFC 9110 section 9.3, RFC 5789). Any other is
/// [`OTHER_METHOD`]: a client must not be able to create series.
pub const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The label of every method not in [`METHODS`], as OpenTelemetry's HTTP conventions have it.
pub const OTHER_METHOD: &str = "_OTHER";

/// Upper bounds, in seconds, of `http_request_duration_seconds`: OpenTelemetry's advice for
/// `http.server.request.duration`, with three in front for a server whose median is below 1 ms.
pub const REQUEST_BUCKETS: [f64; 17] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0,
    7.5, 10.0,
];

/// Upper bounds, in seconds, of `reactor_turn_seconds`: from 10 µs, a turn with little to do, to
/// 10 s, a worker that a handler has blocked.
pub const TURN_BUCKETS: [f64; 19] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What a scrape is told by those who count it. Everything starts at 0 and `running`.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Requests begun and not finished: never more than the ledger's `begun`.
    pub requests_in_flight: u64,
    /// Finished requests, in the order of [`REQUEST_OUTCOMES`].
    pub requests_finished: [u64; REQUEST_OUTCOMES.len()],
    /// Error responses to what never was a request, by status code. A code given twice counts as
    /// the sum; a code of [`REJECTION_CODES`] that is missing counts as 0.
    pub rejected: Vec<(u16, u64)>,
    /// Open connections, in the order of [`CONNECTION_STATES`].
    pub connections: [u64; CONNECTION_STATES.len()],
    /// Connections accepted since the start: the open and the closed ones.
    pub accepted: u64,
    /// Closed connections, in the order of [`CONNECTION_OUTCOMES`].
    pub connections_closed: [u64; CONNECTION_OUTCOMES.len()],
    /// Request bytes that arrived after our FIN.
    pub late_bytes: u64,
    /// Index into [`PHASES`].
    pub phase: usize,
    /// Since the shutdown began, or its whole length once over; 0 before.
    pub shutdown_duration_seconds: f64,
    /// Connections open when the shutdown began; 0 before.
    pub active_connections_at_shutdown: u64,
    /// Shutdowns that ended before everything was finished.
    pub forced_shutdown_total: u64,
    /// Seconds that each clean-up hook took, by its name.
    pub hook_seconds: Vec<(String, f64)>,
    /// Log lines lost since the start.
    pub log_lines_dropped: u64,
    /// One for each pool of threads that own connections.
    pub pools: Vec<PoolFacts>,
}

/// What a scrape is told of one pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolFacts {
    /// A plain word.
    pub name: &'static str,
    /// Threads that serve, each with a connection or about to have one.
    pub threads: u64,
    /// Threads with a job in hand.
    pub busy: u64,
    /// Jobs that wait for a thread.
    pub queue_length: u64,
    /// Seconds that jobs waited for a thread.
    pub wait: HistogramFacts,
    /// Seconds that threads had jobs in hand.
    pub run: HistogramFacts,
    /// Jobs by how they ended, plain words.
    pub outcomes: Vec<(&'static str, u64)>,
}

/// Observations that were counted elsewhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistogramFacts {
    /// Upper bounds, growing.
    pub bounds: &'static [f64],
    /// Observations of each bucket, not cumulated; one more than `bounds`, for what is larger.
    pub counts: Vec<u64>,
    /// The sum of all observations.
    pub sum: f64,
}

/// One metric as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// As exposed.
    pub name: &'static str,
    /// What it may do between scrapes.
    pub kind: Kind,
    /// The names of its labels, joined by commas; empty when it has none.
    pub labels: &'static str,
    /// Its help text.
    pub help: &'static str,
}

/// What a metric may do between scrapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

impl Kind {
    /// The word the exposition format uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// `(name, type, labels, help)` of every metric, in the order of the README's table.
pub fn names() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    TABLE.iter().map(|row| (row.name, row.kind.as_str(), row.labels, row.help)).collect()
}

/// [`names`] as the README's Markdown table, line feeds included.
pub fn markdown_table() -> String {
    let mut table = String::from("| metric | type | meaning |\n|---|---|---|\n");
    for Row { name, kind, labels, help } in TABLE {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let kind = kind.as_str();
        writeln!(table, "| `{name}{labels}` | {kind} | {help} |").expect("a String takes all");
    }
    table
}

/// Declares each row once, as a constant for the code that fills it and as an entry of [`TABLE`].
macro_rules! table {
    ($($row:ident: $kind:ident $name:literal [$labels:literal] $help:literal;)*) => {
        $(const $row: Row =
            Row { name: $name, kind: Kind::$kind, labels: $labels, help: $help };)*

        /// Every metric, in the order of the README's table.
        pub const TABLE: &[Row] = &[$($row),*];
    };
}

table! {
    REQUESTS: Counter "http_requests_total" ["method,code"]
        "Requests that got a response, by method (_OTHER unless standard) and status code.";
    REQUEST_SECONDS: Histogram "http_request_duration_seconds" ["method,code"]
        "Time from a complete request head to the end of its response, \
         in the grain of a reactor turn.";
    IN_FLIGHT: Gauge "http_requests_in_flight" [""]
        "Requests begun and not finished.";
    FINISHED: Counter "http_requests_finished_total" ["outcome"]
        "Requests finished: answered, refused (503 by shutdown or overload), \
         cut (ended unanswered by the server) or abandoned (the client left first).";
    REJECTED: Counter "http_rejected_total" ["code"]
        "Error responses to what never became a request, by status code.";
    CONNECTIONS: Gauge "http_connections" ["state"]
        "Open connections by what they are doing.";
    ACCEPTED: Counter "http_connections_accepted_total" [""]
        "Connections accepted.";
    CLOSED: Counter "http_connections_closed_total" ["outcome"]
        "Connections closed, by how they ended.";
    LATE_BYTES: Counter "http_late_bytes_total" [""]
        "Bytes of requests that arrived after the server had closed its side.";
    TURN_SECONDS: Histogram "reactor_turn_seconds" [""]
        "Time a reactor worked in one turn of its loop, waiting excluded.";
    PHASE: Gauge "shutdown_phase" ["phase"]
        "1 for the phase the server is in, 0 for the others.";
    SHUTDOWN_SECONDS: Gauge "shutdown_duration_seconds" [""]
        "Time since the shutdown began, or its whole length once it is over; 0 before.";
    ACTIVE_AT_SHUTDOWN: Gauge "active_connections_at_shutdown" [""]
        "Connections that were open when the shutdown began; 0 before.";
    FORCED: Counter "forced_shutdown_total" [""]
        "Shutdowns that ended requests or connections by force.";
    HOOK_SECONDS: Gauge "shutdown_hook_seconds" ["hook"]
        "Time that a clean-up hook took, or was waited for; no series before it has ended.";
    POOL_THREADS: Gauge "pool_threads" ["pool"]
        "Threads of a pool, each with a connection or about to have one.";
    POOL_BUSY: Gauge "pool_busy" ["pool"]
        "Threads of a pool with a job in hand.";
    POOL_QUEUE: Gauge "pool_queue_length" ["pool"]
        "Jobs that wait for a thread of a pool.";
    POOL_WAIT: Histogram "pool_job_wait_seconds" ["pool"]
        "Time from submitting a job to a thread's taking it.";
    POOL_RUN: Histogram "pool_job_run_seconds" ["pool"]
        "Time from a thread's taking a job to its end.";
    POOL_JOBS: Counter "pool_jobs_total" ["pool,outcome"]
        "Jobs by how they ended: done, failed (the database or the closure returned an error), \
         cancelled, timed_out, lost (with its connection), refused (never begun) or panicked.";
    LOG_DROPPED: Counter "log_lines_dropped_total" [""]
        "Log lines lost because whoever reads the log did not keep up or went away.";
    BUILD: Gauge "build_info" ["version,revision"]
        "Always 1; the labels say what is running.";
    CPU_SECONDS: Counter "process_cpu_seconds_total" [""]
        "Processor time used, user and system.";
    OPEN_FDS: Gauge "process_open_fds" [""]
        "Open file descriptors.";
    MAX_FDS: Gauge "process_max_fds" [""]
        "File descriptors the process may have open (the soft limit).";
    VIRTUAL_BYTES: Gauge "process_virtual_memory_bytes" [""]
        "Size of the address space.";
    RESIDENT_BYTES: Gauge "process_resident_memory_bytes" [""]
        "Memory held in RAM.";
    START_SECONDS: Gauge "process_start_time_seconds" [""]
        "When the process started, in seconds since 1970-01-01 UTC.";
    THREADS: Gauge "process_threads" [""]
        "Threads of the process.";
}
