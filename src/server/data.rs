//! What the handlers keep their data in: it ends with the server, and what it waits for is told.

use std::time::{Duration, Instant};

use super::Server;
use super::control::Control;
use crate::cleanup::Hook;
use crate::pool::{DataClient, Pooled, Pools, RunningJob};
use crate::report::JobLine;

impl Server {
    /// Has the server look after a client of a database: `/readyz` tells whether it is usable,
    /// `/metrics` what it does; its jobs are cancelled when the phase `cancelling` begins, and a
    /// clean-up hook of stage `http_drained`, `close_database`, closes it.
    ///
    /// May be called for several clients.
    #[must_use]
    pub fn with_database(self, client: &impl DataClient) -> Server {
        self.status.add_data(client.pools());
        self
    }

    /// Registers what closes the clients, under the handle that the server ends up with.
    pub(super) fn add_closing_hooks(&self) {
        for data in self.status.data() {
            let name = format!("close_{}", data.name);
            self.handle.handle().on_cleanup(Hook::http_drained(name, move |deadline| {
                // So that what could not be closed is said before nobody listens any more.
                let deadline = deadline.checked_sub(CLOSE_MARGIN).unwrap_or(deadline);
                data.close(deadline).map_err(Into::into)
            }));
        }
    }
}

impl Control {
    /// Has every job end; those that were under way the first time are remembered.
    pub(super) fn cancel_jobs(&mut self, now: Instant) {
        self.name_jobs(now);
        pools(&self.status.data()).for_each(Pooled::cancel);
    }

    /// Remembers the jobs that are under way, the first time.
    pub(super) fn name_jobs(&mut self, now: Instant) {
        let data = self.status.data();
        self.cancelled_jobs.get_or_insert_with(|| {
            let lines = pools(&data).flat_map(|pool| {
                pool.jobs(now).into_iter().map(|job| JobLine {
                    pool: pool.name(),
                    statement: job.statement,
                    age_seconds: seconds(job.age),
                })
            });
            lines.take(JOBS_NAMED_MAX).collect()
        });
    }
}

/// What the databases are doing, oldest first: `None` when nothing.
pub fn told_jobs(data: &[Pools], now: Instant) -> Option<String> {
    let mut jobs: Vec<RunningJob> = pools(data).flat_map(|pool| pool.jobs(now)).collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.age));
    let told = |job: &RunningJob| format!("{} for {:.1} s", job.statement, job.age.as_secs_f64());
    let mut named: Vec<String> = jobs.iter().take(JOBS_TOLD_MAX).map(told).collect();
    if jobs.len() > JOBS_TOLD_MAX {
        named.push(format!("{} more", jobs.len() - JOBS_TOLD_MAX));
    }
    (!named.is_empty()).then(|| named.join("; "))
}

/// The pools in a line each; `None` when there are none.
pub fn told_pools(data: &[Pools]) -> Option<String> {
    let told = |pool: &dyn Pooled| {
        let numbers = pool.numbers();
        format!(
            "{}: {} of {} threads busy, {} jobs wait ({})",
            pool.name(),
            numbers.busy,
            numbers.threads,
            numbers.queue_length,
            pool.threads().join(", ")
        )
    };
    let all: Vec<String> = pools(data).map(told).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn pools(data: &[Pools]) -> impl Iterator<Item = &dyn Pooled> {
    data.iter().flat_map(|data| &data.pools).map(|pool| &**pool)
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// What is left of the time of a closing hook for saying how it ended.
const CLOSE_MARGIN: Duration = Duration::from_millis(20);

/// Jobs that a report names.
const JOBS_NAMED_MAX: usize = 200;

/// Jobs that a line of the log names.
const JOBS_TOLD_MAX: usize = 5;
