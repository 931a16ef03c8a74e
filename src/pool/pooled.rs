//! A pool as the server around it sees it: its health, its numbers, its jobs and its end.

use std::fmt;
use std::sync::Arc;
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::error::DatabaseError;

/// Something with threads and connections that ends with the server.
pub trait Pooled: Send + Sync {
    /// Its name in logs and metrics.
    fn name(&self) -> &'static str;

    /// Whether a job would find a connection, now.
    ///
    /// # Errors
    /// Why not, in one line for operators.
    fn usable(&self) -> Result<(), String>;

    /// What it has done so far.
    fn numbers(&self) -> Numbers;

    /// What the threads have in hand, oldest first.
    fn jobs(&self, now: Instant) -> Vec<RunningJob>;

    /// What each of its threads is doing, in a word each.
    fn threads(&self) -> Vec<String>;

    /// Ends all that runs and all that waits, now and from now on. Does not block.
    fn cancel(&self);

    /// Takes no more jobs; its threads end once those there are done. Does not block.
    fn end(&self);

    /// Takes no more jobs, waits for those that run and closes every connection. What still runs
    /// shortly before `deadline` is cancelled. Blocks.
    ///
    /// # Errors
    /// What could not be closed in time.
    fn close(&self, deadline: Instant) -> Result<(), String>;
}

/// What has its own pools: give it to a server, which reports on them and closes them.
pub trait DataClient {
    /// The pools it consists of.
    #[doc(hidden)]
    fn pools(&self) -> Pools;
}

/// The pools of a client, under the name that `close_...` and `/readyz?verbose` give it.
#[derive(Clone)]
pub struct Pools {
    pub(crate) name: &'static str,
    pub(crate) pools: Vec<Arc<dyn Pooled>>,
}

impl Pools {
    pub(crate) fn usable(&self) -> Result<(), String> {
        self.pools.iter().try_for_each(|pool| pool.usable())
    }

    /// Closes them side by side. Blocks until `deadline` at most.
    ///
    /// # Errors
    /// What could not be closed.
    pub(crate) fn close(&self, deadline: Instant) -> Result<(), String> {
        self.pools.iter().for_each(|pool| pool.end());
        let left: Vec<String> = thread::scope(|scope| {
            let close = |pool: &Arc<dyn Pooled>| {
                let pool = Arc::clone(pool);
                let here = Arc::clone(&pool);
                let closing = Builder::new().spawn_scoped(scope, move || pool.close(deadline));
                // One after the other, where there is no thread to be had.
                closing.map_err(|_| here.close(deadline))
            };
            let closing: Vec<_> = self.pools.iter().map(close).collect();
            let closed = closing.into_iter().map(|closing| match closing {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("it panicked".to_owned())),
                Err(closed) => closed,
            });
            closed.filter_map(Result::err).collect()
        });
        if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
    }
}

impl fmt::Debug for Pools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.pools.iter().map(|pool| pool.name())).finish()
    }
}

/// A job that a thread has in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningJob {
    /// Its statement, or the name its submitter gave it.
    pub statement: String,
    /// Since a thread took it.
    pub age: Duration,
}

/// The numbers of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Numbers {
    pub threads: u64,
    /// Threads with a job in hand.
    pub busy: u64,
    pub queue_length: u64,
    /// From submitting to a thread's taking it.
    pub wait: Histogram,
    /// From the taking to the result.
    pub run: Histogram,
    /// In the order of [`JobOutcome::ALL`].
    pub outcomes: [u64; JobOutcome::ALL.len()],
}

/// Observations counted by size.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    /// Of each bucket of [`SECONDS_BUCKETS`], not cumulated, and of what is larger.
    pub counts: [u64; SECONDS_BUCKETS.len() + 1],
    pub sum_seconds: f64,
}

/// Upper bounds in seconds.
pub const SECONDS_BUCKETS: [f64; 14] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5,
    5.0,
];

/// How a job can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// With a result.
    Done,
    /// The database, or the closure, returned an error.
    Failed,
    /// Its ticket was dropped, or the server shut down.
    Cancelled,
    /// Its time was over.
    TimedOut,
    /// Its connection broke.
    Lost,
    /// It was never begun: no room, no connection, or too long a wait.
    Refused,
    /// Its closure panicked.
    Panicked,
}

impl JobOutcome {
    /// All of them, in their order.
    pub const ALL: [JobOutcome; 7] = [
        JobOutcome::Done,
        JobOutcome::Failed,
        JobOutcome::Cancelled,
        JobOutcome::TimedOut,
        JobOutcome::Lost,
        JobOutcome::Refused,
        JobOutcome::Panicked,
    ];

    /// How a job with this result ended.
    pub fn of<T>(result: &Result<T, DatabaseError>) -> JobOutcome {
        match result {
            Ok(_) => JobOutcome::Done,
            Err(DatabaseError::Rejected(_) | DatabaseError::Mismatch(_)) => JobOutcome::Failed,
            Err(DatabaseError::Cancelled) => JobOutcome::Cancelled,
            Err(DatabaseError::Timeout) => JobOutcome::TimedOut,
            Err(DatabaseError::Lost) => JobOutcome::Lost,
            Err(DatabaseError::Panicked) => JobOutcome::Panicked,
            Err(DatabaseError::Busy | DatabaseError::Unavailable | DatabaseError::Closed) => {
                JobOutcome::Refused
            }
        }
    }

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            JobOutcome::Done => "done",
            JobOutcome::Failed => "failed",
            JobOutcome::Cancelled => "cancelled",
            JobOutcome::TimedOut => "timed_out",
            JobOutcome::Lost => "lost",
            JobOutcome::Refused => "refused",
            JobOutcome::Panicked => "panicked",
        }
    }
}
