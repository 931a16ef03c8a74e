//! Connections for single statements: each thread keeps several in flight on its one connection.
//!
//! A thread runs a current-thread runtime with one task, the line: it polls the connection, the
//! statements in flight and the queue, in turn, until none of them moves. What it takes from the
//! queue in one turn goes out in one write.
//!
//! Rules for ending statements. A `CancelRequest` names a backend, not a statement, so:
//! 1. A statement whose ticket was dropped runs on, under `statement_timeout`, while another in
//!    flight on its connection is wanted; its rows are thrown away.
//! 2. When no statement in flight is wanted any more, the backend is cancelled.
//! 3. A connection whose backend was cancelled takes no statement any more: it is closed once those
//!    in flight are over, and the thread connects anew.
//! 4. A connection takes no statement while its oldest has run for [`OLDEST_MAX`]: so a slow one
//!    keeps few others waiting, and is soon alone.
//! 5. While an idle connection is left, one takes only as many statements as it is likely to answer
//!    within [`WAIT_MAX`]: short ones are cheapest together, on few connections whose threads are
//!    woken once for many; long ones are done beside each other.
//! 6. A statement out of time fails its ticket; when it is the oldest, which the server works on,
//!    its connection is dropped with all that is in flight.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::time::{self, Sleep as Timer};
use tokio_postgres::{Client, Error, Row};

use super::backoff::Backoff;
use super::clock;
use super::core::{Core, HasCore, PoolLimits, Waiting};
use super::error::DatabaseError;
use super::in_flight::InFlight;
use super::pace::Pace;
use super::pooled::JobOutcome;
use super::postgres_address::PostgresAddress;
use super::postgres_params::Params;
use super::postgres_statements::Statements;
use super::postgres_tls::{Tls, connector};
use super::queue::Sleep;
use super::resource::Reason;
use super::slot::{Care, Health, Slot};
use super::ticket::{Cell, Entry, Stage, Ticket};
use super::watch::{Look, Watched};
use crate::said::chain;
use crate::wakes;

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
    entry: Arc<dyn Entry>,
    statement: Cow<'static, str>,
    params: Params,
    finish: Finish,
}

/// Settles the ticket, and is told whether that was the first to do so.
type Finish = Box<dyn FnOnce(Result<Vec<Row>, DatabaseError>) -> (JobOutcome, bool) + Send>;

impl Waiting for Job {
    fn entry(&self) -> &Arc<dyn Entry> {
        &self.entry
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
    pub fn submit<T, F>(&self, statement: Cow<'static, str>, params: Params, map: F) -> Ticket<T>
    where
        T: Send + 'static,
        F: FnOnce(Vec<Row>) -> Result<T, DatabaseError> + Send + 'static,
    {
        self.shared.core.submit(statement.clone(), |cell: Arc<Cell<T>>| {
            let entry = Arc::clone(&cell) as Arc<dyn Entry>;
            let finish = Box::new(move |rows: Result<Vec<Row>, DatabaseError>| {
                let result = rows.and_then(map);
                let outcome = JobOutcome::of(&result);
                (outcome, cell.settle(result))
            });
            Job { entry, statement, params, finish }
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
                Ok((client, connection, tls)) => {
                    self.backoff.succeed();
                    let line = Line::new(Arc::clone(&core), Arc::clone(&self.slot), client, tls);
                    core.note_connected(&self.slot);
                    line.serve(connection).await;
                    // A job may have woken this thread in vain.
                    if !core.queue.is_empty() {
                        core.queue.wake_one();
                        core.bell.ring();
                    }
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

/// The half of a connection that has to be polled. Ready when it is over.
type Driver = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

async fn connect(address: &PostgresAddress) -> Result<(Client, Driver, Tls), Reason> {
    let reason = |error: &Error| Reason(address.redact(&chain(error)));
    let tls = connector(address)?;
    let connecting = async {
        let (client, connection) = address.config.connect(Tls::clone(&tls)).await?;
        let mut driver: Driver = Box::pin(connection);
        address.schema.prepare(&client, &mut driver).await?;
        Ok::<_, Error>((client, driver))
    };
    match time::timeout(CONNECT_MAX, connecting).await {
        Ok(Ok((client, driver))) => Ok((client, driver, tls)),
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(Reason("the server accepts connections and does not answer".to_owned())),
    }
}

/// A connection with its statements.
struct Line {
    core: Arc<Core<Job>>,
    slot: Arc<Slot>,
    client: Arc<Client>,
    tls: Tls,
    statements: Arc<Statements>,
    in_flight: InFlight,
    /// Rings at `alarm_at`, when something may be due for a statement in flight.
    alarm: Pin<Box<Timer>>,
    alarm_at: Option<Instant>,
    /// Since when no statement in flight is wanted.
    unwanted: Option<Instant>,
    cancel: CancelState,
    pace: Pace,
}

/// What became of cancelling the backend.
enum CancelState {
    No,
    /// It was asked for; until then the statements are waited for.
    Asked(Instant),
}

/// Why a turn of the line ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// The connection has ended.
    Broken,
    /// It is not to be used further: its backend was cancelled, or is out of time, or something
    /// has panicked.
    Discarded,
    /// The pool is closed and nothing is in flight.
    Closed,
}

impl Line {
    fn new(core: Arc<Core<Job>>, slot: Arc<Slot>, client: Client, tls: Tls) -> Line {
        Line {
            core,
            slot,
            client: Arc::new(client),
            tls,
            statements: Arc::default(),
            in_flight: InFlight::default(),
            alarm: Box::pin(time::sleep(Duration::ZERO)),
            alarm_at: None,
            unwanted: None,
            cancel: CancelState::No,
            pace: Pace::default(),
        }
    }

    /// Does statements until the connection or the pool is over, and closes the connection.
    async fn serve(mut self, mut driver: Driver) {
        let over = poll_fn(|cx| {
            // Whose results are dropped or wakers called is not known here.
            let turn = AssertUnwindSafe(|| self.turn(&mut driver, cx));
            catch_unwind(turn).unwrap_or_else(|_| {
                self.core.queue.end_turn();
                Poll::Ready(Over::Discarded)
            })
        })
        .await;
        self.core.note_disconnected(&self.slot);
        self.core.queue.rise(self.slot.id);
        for entry in self.slot.entries() {
            if entry.fail(DatabaseError::Lost) {
                self.core.tally.count(JobOutcome::Lost);
            }
            self.slot.end(&entry);
        }
        // With the last handle gone the connection says good-bye and ends.
        let Line { client, in_flight, statements, .. } = self;
        drop((in_flight, statements, client));
        if over != Over::Broken {
            let closing = time::timeout(CLOSE_MAX, driver).await;
            if !matches!(closing, Ok(Ok(()))) {
                log::debug!(
                    event_type = "database_close";
                    "a connection did not close: {closing:?}"
                );
            }
        }
    }

    /// One turn: everything is polled until nothing moves.
    fn turn(&mut self, driver: &mut Driver, cx: &mut Context<'_>) -> Poll<Over> {
        self.slot.set_waker(cx.waker());
        self.core.queue.begin_turn(self.slot.id);
        let over = self.move_all(driver, cx);
        if over.is_ready() {
            self.core.queue.end_turn();
        }
        over
    }

    /// Polls everything until nothing moves, and lies down then.
    fn move_all(&mut self, driver: &mut Driver, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            // First what has come: a connection that has ended is not to be given statements.
            if driver.as_mut().poll(cx).is_ready() {
                // What it had read before its end is for the statements.
                self.take_results();
                return Poll::Ready(Over::Broken);
            }
            let moved = self.take_results() | self.take_jobs();
            if self.statements.is_spoilt() {
                return Poll::Ready(Over::Discarded);
            }
            if moved {
                continue;
            }
            let now = clock::now();
            if let Some(over) = self.look(now) {
                return Poll::Ready(over);
            }
            if !self.set_alarm(now, cx) {
                continue;
            }
            if self.lie_down(now, cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    /// Polls the statements in flight: whether one is done. Each is moved by the connection alone,
    /// which was polled just before, so nothing needs to wake them.
    fn take_results(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let (in_flight, statements) = (&mut self.in_flight, &self.statements);
        let mut count = 0;
        // Those who wait for them are woken when all are there.
        wakes::hold(Waker::noop(), || {
            while !statements.is_spoilt() && in_flight.poll_next(&mut cx) {
                count += 1;
            }
        });
        if count > 0 {
            self.pace.answered(count, clock::now());
        }
        count > 0
    }

    /// Takes what may be taken from the queue: whether it was anything.
    fn take_jobs(&mut self) -> bool {
        if self.core.queue.is_empty() {
            return false;
        }
        let now = clock::now();
        let mut is_any = false;
        while self.wants(now)
            && !self.statements.is_spoilt()
            && let Some(job) = self.core.queue.pop()
        {
            is_any |= self.begin(job, now);
        }
        if is_any {
            // Has them sent.
            self.take_results();
        }
        is_any
    }

    /// Whether it may take another statement.
    fn accepts(&self, now: Instant) -> bool {
        let (oldest, count) = self.slot.oldest();
        let is_fresh = oldest.is_none_or(|since| now.saturating_duration_since(since) < OLDEST_MAX);
        is_fresh
            && count < IN_FLIGHT_MAX
            && matches!(self.cancel, CancelState::No)
            && !self.core.is_cancelled()
    }

    /// Whether it is likely to answer one more within [`WAIT_MAX`].
    fn has_room(&self, now: Instant) -> bool {
        let (oldest, count) = self.slot.oldest();
        let is_fresh = oldest.is_none_or(|since| now.saturating_duration_since(since) < WAIT_MAX);
        is_fresh && count < self.pace.within(WAIT_MAX)
    }

    /// Whether it is the one to take another statement.
    fn wants(&self, now: Instant) -> bool {
        self.accepts(now) && (self.has_room(now) || !self.core.queue.has_idle())
    }

    fn begin(&mut self, job: Box<Job>, now: Instant) -> bool {
        if self.in_flight.is_empty() {
            self.pace.begins(now);
        }
        self.slot.begin(Arc::clone(&job.entry), now);
        if !job.entry.take(self.slot.id) {
            self.slot.end(&job.entry);
            return false;
        }
        let submitted = job.entry.facts().submitted;
        self.core.tally.waited(now.saturating_duration_since(submitted));
        let (core, slot) = (Arc::clone(&self.core), Arc::clone(&self.slot));
        let (client, statements) = (Arc::clone(&self.client), Arc::clone(&self.statements));
        self.in_flight.push(async move {
            let Job { entry, statement, params, finish } = *job;
            let rows = statements.query(&client, statement, &params).await;
            core.tally.ran(clock::now().saturating_duration_since(now));
            slot.end(&entry);
            let (outcome, is_first) = finish(rows);
            if is_first {
                core.tally.count(outcome);
            }
        });
        true
    }

    /// Does what is due for the statements in flight.
    fn look(&mut self, now: Instant) -> Option<Over> {
        let is_idle = self.in_flight.is_empty();
        if let CancelState::Asked(until) = self.cancel
            && (is_idle || now >= until)
        {
            return Some(Over::Discarded);
        }
        if is_idle {
            self.unwanted = None;
            let is_over = self.core.queue.is_closed() && self.core.queue.is_empty();
            return is_over.then_some(Over::Closed);
        }
        let is_due = self.alarm_at.is_some_and(|at| now >= at);
        let is_rung = self.slot.is_rung.swap(false, Ordering::SeqCst);
        if !is_due && !is_rung && !self.core.is_cancelled() {
            return None;
        }
        let entries = self.slot.entries();
        for (at, entry) in entries.iter().enumerate() {
            if self.core.is_cancelled() && entry.fail(DatabaseError::Cancelled) {
                self.core.tally.count(JobOutcome::Cancelled);
            }
            if now >= entry.facts().deadline {
                if entry.fail(DatabaseError::Timeout) {
                    self.core.tally.count(JobOutcome::TimedOut);
                }
                if at == 0 {
                    self.core.note_given_up(&self.slot, now);
                    return Some(Over::Discarded);
                }
            }
        }
        let is_wanted = entries.iter().any(|entry| entry.stage() == Stage::Running);
        self.unwanted = if is_wanted { None } else { self.unwanted.or(Some(now)) };
        if let Some(since) = self.unwanted
            && matches!(self.cancel, CancelState::No)
            && (now >= since + CANCEL_GRACE || self.core.is_cancelled())
        {
            self.cancel = CancelState::Asked(now + CANCEL_MAX);
            let (token, tls) = (self.client.cancel_token(), Tls::clone(&self.tls));
            tokio::spawn(async move {
                let asking = time::timeout(CANCEL_MAX, token.cancel_query(tls));
                if !matches!(asking.await, Ok(Ok(()))) {
                    log::warn!(event_type = "cancel_failed"; "a statement could not be cancelled");
                }
            });
        }
        None
    }

    /// Has the task woken when something is due: false when it is already.
    fn set_alarm(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if self.in_flight.is_empty() {
            self.alarm_at = None;
            return true;
        }
        if self.alarm_at.is_some_and(|at| now >= at) {
            self.alarm_at = None;
        }
        let due = match (&self.cancel, self.unwanted) {
            (CancelState::Asked(until), _) => *until,
            (CancelState::No, Some(since)) => since + CANCEL_GRACE,
            (CancelState::No, None) => now + ALARM_INTERVAL,
        };
        if self.alarm_at.is_none_or(|at| due < at) {
            self.alarm_at = Some(due);
            self.alarm.as_mut().reset(due.into());
        }
        self.alarm.as_mut().poll(cx).is_pending()
    }

    /// Goes to sleep: false when there is something to do after all.
    fn lie_down(&mut self, now: Instant, waker: &Waker) -> bool {
        self.core.queue.end_turn();
        if !self.accepts(now) {
            // Whoever sleeps may take what this thread was woken for.
            if !self.core.queue.is_empty() && !self.core.queue.wake_one() {
                self.core.bell.ring_by(now + self.core.limits.queue_timeout);
            }
            return true;
        }
        let sleep = if self.in_flight.is_empty() {
            Sleep::Idle
        } else if self.has_room(now) {
            Sleep::Ready
        } else {
            if !self.core.queue.is_empty() && self.core.queue.leave_to_idle(self.slot.id, waker) {
                return true;
            }
            Sleep::Occupied
        };
        let sleeps = self.core.queue.lie_down(self.slot.id, sleep, waker)
            && !(self.core.queue.is_closed() && self.in_flight.is_empty());
        if !sleeps {
            self.core.queue.begin_turn(self.slot.id);
        }
        sleeps
    }
}

/// How long a statement may be likely to wait behind others while there is an idle connection: some
/// times what waking its thread costs.
const WAIT_MAX: Duration = Duration::from_micros(500);

/// Statements that wait for a thread which is awake, or about to be, without another being woken.
const JOBS_PER_TURN: usize = 16;

/// Statements in flight on a connection.
const IN_FLIGHT_MAX: usize = 32;

/// How long the oldest statement may have run for others to be sent behind it.
const OLDEST_MAX: Duration = Duration::from_millis(50);

/// How long statements that nobody waits for may go on by themselves: most are over before, and
/// cancelling costs the connection.
const CANCEL_GRACE: Duration = Duration::from_millis(20);

/// How long a cancelling may take before the connection is dropped without it.
const CANCEL_MAX: Duration = Duration::from_secs(1);

/// How often the deadlines of statements in flight are looked at.
const ALARM_INTERVAL: Duration = Duration::from_millis(50);

/// How long an attempt to connect may take, of a server that accepts connections.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long the good-bye may take.
const CLOSE_MAX: Duration = Duration::from_millis(500);
