//! Connections for single statements: each thread keeps several in flight on its one connection.
//!
//! A thread runs a current-thread runtime with one task, which connects, and serves the line while
//! it has one.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::Builder;
use std::time::Instant;

use tokio::runtime;
use tokio::time;

use super::backoff::Backoff;
use super::clock;
use super::core::{Core, HasCore, PoolLimits, Waiting};
use super::error::DatabaseError;
use super::pooled::JobOutcome;
use super::postgres_address::PostgresAddress;
use super::postgres_connect::connect;
use super::postgres_conversation::Asks;
use super::postgres_line::Line;
use super::postgres_params::Params;
use super::postgres_row::PostgresRow;
use super::resource::Reason;
use super::slot::{Care, Health, Slot};
use super::ticket::{Cell, Entry, Stage, Ticket};
use super::watch::{Look, Watched};

/// The threads; clones share them. They end when the last clone is gone, or with
/// [`close`](Pooled::close).
#[derive(Clone)]
pub struct Pipeline {
    shared: Arc<Shared>,
    _keeper: Arc<Keeper>,
}

struct Shared {
    core: Arc<Core<Job>>,
    address: PostgresAddress,
}

/// Ends the threads with the last clone of their pool.
struct Keeper {
    shared: Arc<Shared>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.core.end();
    }
}

pub(super) struct Job {
    pub entry: Arc<dyn Entry>,
    statement: Cow<'static, str>,
    params: Params,
    purpose: Purpose,
    /// When it was taken; before, when it was submitted.
    pub since: Instant,
    pub finish: Finish,
}

/// What a statement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Any,
    /// It only reads: see [`Asks::only_reads`].
    Read,
}

/// Settles the ticket, and is told whether that was the first to do so.
pub(super) type Finish = Box<dyn FnOnce(Rows) -> (JobOutcome, bool) + Send>;

pub(super) type Rows = Result<Vec<PostgresRow>, DatabaseError>;

impl Waiting for Job {
    fn entry(&self) -> &Arc<dyn Entry> {
        &self.entry
    }
}

impl Job {
    /// Whether writing it takes nobody long: it is small, and its values are of known types.
    pub fn is_light(&self) -> bool {
        let values = self.params.bytes_max();
        values.is_some_and(|bytes| bytes + self.statement.len() <= LIGHT_BYTES_MAX)
    }
}

impl Asks for Box<Job> {
    fn text(&self) -> &Cow<'static, str> {
        &self.statement
    }

    fn params(&self) -> &Params {
        &self.params
    }

    fn only_reads(&self) -> bool {
        self.purpose == Purpose::Read
    }

    fn is_wanted(&self) -> bool {
        self.entry.stage() == Stage::Running
    }
}

impl Pipeline {
    /// Starts the threads, which connect by themselves; none is waited for.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(
        name: &'static str,
        address: PostgresAddress,
        limits: PoolLimits,
    ) -> io::Result<Pipeline> {
        let shared =
            Arc::new(Shared { core: Arc::new(Core::new(name, limits, JOBS_PER_TURN)), address });
        let keeper = Arc::new(Keeper { shared: Arc::clone(&shared) });
        for _ in 0..limits.threads {
            start_thread(&shared)?;
        }
        shared.core.bell.watch(name, Arc::clone(&shared) as Arc<dyn Watched>)?;
        Ok(Pipeline { shared, _keeper: keeper })
    }

    /// Has `statement` done, and its rows made into a result by `map`, on the thread that has them.
    pub fn submit<T, F>(
        &self,
        statement: Cow<'static, str>,
        params: Params,
        purpose: Purpose,
        map: F,
    ) -> Ticket<T>
    where
        T: Send + 'static,
        F: FnOnce(Vec<PostgresRow>) -> Result<T, DatabaseError> + Send + 'static,
    {
        self.shared.core.submit(statement.clone(), |cell: Arc<Cell<T>>| {
            let entry = Arc::clone(&cell) as Arc<dyn Entry>;
            let since = cell.facts.submitted;
            let finish = Box::new(move |rows: Rows| {
                let result = rows.and_then(map);
                let outcome = JobOutcome::of(&result);
                (outcome, cell.settle(result))
            });
            Job { entry, statement, params, purpose, since, finish }
        })
    }
}

fn start_thread(shared: &Arc<Shared>) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let slot = shared.core.add_slot(Care::Thread);
    let id = slot.id;
    let name = format!("ebbtide-{}-{id}", shared.core.name);
    let ending = Arc::clone(shared);
    let thread = Thread { shared: Arc::clone(shared), slot, backoff: Backoff::default() };
    let run = move || {
        let task = runtime.spawn(thread.run());
        if runtime.block_on(task).is_err() {
            log::error!(event_type = "thread_lost"; "a thread of the database has panicked");
        }
        ending.core.leave(id);
    };
    let started = Builder::new().name(name).spawn(run);
    started.map(drop).inspect_err(|_| shared.core.leave(id))
}

impl HasCore for Pipeline {
    type Job = Job;

    fn core(&self) -> &Core<Job> {
        &self.shared.core
    }
}

impl Watched for Shared {
    /// The threads look after what they have in hand themselves.
    fn look(self: Arc<Self>, now: Instant) -> Look {
        let next = self.core.look_at_queue(now);
        if self.core.queue.is_closed() && self.core.crew() == 0 { Look::Never } else { next }
    }
}

/// One thread, between its connections.
struct Thread {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    backoff: Backoff,
}

impl Thread {
    async fn run(mut self) {
        let core = Arc::clone(&self.shared.core);
        while !core.queue.is_closed() {
            self.slot.set_health(Health::Connecting { since: clock::now() });
            let Some(connected) = self.until_closed(connect(&self.shared.address)).await else {
                break;
            };
            match connected {
                Ok(connected) => {
                    self.backoff.succeed();
                    let line = Line::new(Arc::clone(&core), Arc::clone(&self.slot), connected);
                    core.note_connected(&self.slot);
                    line.serve().await;
                }
                Err(reason) => self.pause(reason).await,
            }
        }
    }

    /// Waits before the next attempt.
    async fn pause(&mut self, reason: Reason) {
        let core = Arc::clone(&self.shared.core);
        let now = clock::now();
        core.note_failed(&self.slot, reason, now);
        let mut end = now + core.patience(&self.slot, &mut self.backoff);
        while self.until_closed(time::sleep_until(end.into())).await.is_some() {
            match core.may_connect(&self.slot, clock::now()) {
                Ok(()) => break,
                Err(at) => end = at,
            }
        }
    }

    /// Does `work` until it is done or the pool is closed: `None` when that comes first.
    async fn until_closed<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.slot.set_waker(cx.waker());
            if self.shared.core.queue.is_closed() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

/// Statements that wait for a thread which is awake, or about to be, without another being woken.
const JOBS_PER_TURN: usize = 64;

/// A statement, with its values, that whoever submits another may write.
const LIGHT_BYTES_MAX: usize = 8192;
