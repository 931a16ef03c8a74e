//! What a server says of itself: whether it is ready, and its numbers.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::drain::Phase;
use crate::ledger::{Counts, Ledger, RejectedCode};
use crate::metrics::{Facts, HistogramFacts, Metrics, PoolFacts};
use crate::pool::{Histogram, JobOutcome, Pooled, Pools, SECONDS_BUCKETS};

/// One server's status, shared by its endpoints and its control.
#[derive(Debug)]
pub struct Status {
    /// When the server was made.
    began: Instant,
    /// Position in [`Phase::ALL`].
    phase: AtomicU8,
    /// Set once every listener accepts.
    listening: AtomicBool,
    ledgers: Vec<Arc<Ledger>>,
    metrics: Metrics,
    log_lines_dropped: Arc<AtomicU64>,
    shutdown: Mutex<ShutdownFacts>,
    /// Seconds that clean-up hooks took.
    hooks: Mutex<Vec<(String, f64)>>,
    /// What the handlers keep their data in; set before the server runs.
    data: Mutex<Vec<Pools>>,
}

/// The numbers of the shutdown, for the metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShutdownFacts {
    /// `Some` once it has begun.
    pub begun: Option<Instant>,
    pub active_connections: u64,
    pub forced: u64,
}

impl Status {
    pub fn new(
        ledgers: Vec<Arc<Ledger>>,
        metrics: Metrics,
        log_lines_dropped: Arc<AtomicU64>,
        now: Instant,
    ) -> Status {
        Status {
            began: now,
            phase: AtomicU8::new(0),
            listening: AtomicBool::new(false),
            ledgers,
            metrics,
            log_lines_dropped,
            shutdown: Mutex::default(),
            hooks: Mutex::default(),
            data: Mutex::default(),
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// How long ago the server was made.
    pub fn up(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    pub fn set_listening(&self) {
        self.listening.store(true, Ordering::Release);
    }

    /// Whether new connections should be sent here, and if not, why.
    ///
    /// # Errors
    /// The reason, in a word.
    pub fn readiness(&self) -> Result<(), &'static str> {
        match self.phase() {
            Phase::Running if !self.listening.load(Ordering::Acquire) => Err("starting"),
            Phase::Running => {
                let unusable = self.data().into_iter().find(|data| data.usable().is_err());
                unusable.map_or(Ok(()), |data| Err(data.name))
            }
            phase => Err(phase.name()),
        }
    }

    /// The handlers keep their data in this.
    pub fn add_data(&self, pools: Pools) {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).push(pools);
    }

    /// What the handlers keep their data in.
    pub fn data(&self) -> Vec<Pools> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The books of all workers together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for ledger in &self.ledgers {
            sum.add(&ledger.counts());
        }
        sum
    }

    /// The books of each worker.
    pub fn workers(&self) -> impl Iterator<Item = Counts> {
        self.ledgers.iter().map(|ledger| ledger.counts())
    }

    pub fn set_shutdown(&self, facts: ShutdownFacts) {
        *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner) = facts;
    }

    /// A clean-up hook has ended.
    pub fn add_hook(&self, name: String, seconds: f64) {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).push((name, seconds));
    }

    /// The metrics as text.
    pub fn render_metrics(&self, now: Instant) -> String {
        let counts = self.counts();
        let shutdown = *self.shutdown.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |begun| now.saturating_duration_since(begun);
        let elapsed = shutdown.begun.map(since).unwrap_or_default();
        self.metrics.render(&Facts {
            requests_in_flight: counts.in_flight,
            requests_finished: counts.finished,
            rejected: RejectedCode::ALL
                .iter()
                .map(|code| (code.status(), counts.rejected[*code as usize]))
                .collect(),
            connections: counts.states,
            accepted: counts.opened,
            connections_closed: counts.closed,
            late_bytes: counts.late_bytes,
            phase: self.phase() as usize,
            shutdown_duration_seconds: elapsed.as_secs_f64(),
            active_connections_at_shutdown: shutdown.active_connections,
            forced_shutdown_total: shutdown.forced,
            hook_seconds: self.hooks.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            log_lines_dropped: self.log_lines_dropped.load(Ordering::Relaxed),
            pools: self.data().iter().flat_map(|data| &data.pools).map(pool_facts).collect(),
        })
    }
}

fn pool_facts(pool: &Arc<dyn Pooled>) -> PoolFacts {
    let numbers = pool.numbers();
    let histogram = |of: Histogram| HistogramFacts {
        bounds: &SECONDS_BUCKETS,
        counts: of.counts.to_vec(),
        sum: of.sum_seconds,
    };
    PoolFacts {
        name: pool.name(),
        threads: numbers.threads,
        busy: numbers.busy,
        queue_length: numbers.queue_length,
        wait: histogram(numbers.wait),
        run: histogram(numbers.run),
        outcomes: JobOutcome::ALL.iter().map(|it| it.name()).zip(numbers.outcomes).collect(),
    }
}
