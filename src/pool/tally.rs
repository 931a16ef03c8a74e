//! What a pool counts: outcomes and times of its jobs, written by any thread of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pooled::{Histogram, JobOutcome, SECONDS_BUCKETS};

#[derive(Debug, Default)]
pub struct Tally {
    wait: Times,
    run: Times,
    outcomes: [AtomicU64; JobOutcome::ALL.len()],
}

#[derive(Debug, Default)]
struct Times {
    counts: [AtomicU64; SECONDS_BUCKETS.len() + 1],
    sum_nanos: AtomicU64,
}

impl Tally {
    /// A job was taken after so long a wait.
    pub fn waited(&self, wait: Duration) {
        self.wait.observe(wait);
    }

    /// A job that was taken came to its end.
    pub fn ran(&self, run: Duration) {
        self.run.observe(run);
    }

    pub fn count(&self, outcome: JobOutcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn wait(&self) -> Histogram {
        self.wait.read()
    }

    pub fn run(&self) -> Histogram {
        self.run.read()
    }

    pub fn outcomes(&self) -> [u64; JobOutcome::ALL.len()] {
        JobOutcome::ALL.map(|outcome| self.outcomes[outcome as usize].load(Ordering::Relaxed))
    }
}

impl Times {
    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = SECONDS_BUCKETS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn read(&self) -> Histogram {
        let nanos = Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed));
        Histogram {
            counts: std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed)),
            sum_seconds: nanos.as_secs_f64(),
        }
    }
}
