//! What every pool has, whatever its threads own: the queue, the books, the health of each thread,
//! and the end.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::backoff::{Backoff, Gate, LONGEST_BESIDE};
use super::clock;
use super::error::DatabaseError;
use super::pooled::{JobOutcome, Numbers, Pooled, RunningJob};
use super::queue::{Queue, Refused};
use super::resource::Reason;
use super::slot::{Care, Health, Slot};
use super::tally::Tally;
use super::ticket::{Cell, Desk, Entry, Facts, Stage, Ticket};
use super::watch::{Bell, Look};
use crate::wakes;

/// How much a pool takes and how long it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Threads, each with a connection of its own; at least 1.
    pub threads: usize,
    /// Jobs that may wait for a thread; at least 1.
    pub queue_length_max: usize,
    /// How long a job may wait for a thread.
    pub queue_timeout: Duration,
    /// From submitting to the failing of the ticket, whatever the database does.
    pub job_timeout: Duration,
}

/// A job in the queue.
pub trait Waiting: Send + 'static {
    fn entry(&self) -> &Arc<dyn Entry>;
}

/// See the module's essay.
pub struct Core<J> {
    pub name: &'static str,
    pub limits: PoolLimits,
    pub queue: Queue<J>,
    pub tally: Tally,
    pub bell: Arc<Bell>,
    /// The threads that serve; those that were given up are not among them.
    slots: Mutex<Vec<Arc<Slot>>>,
    next_id: AtomicU64,
    /// Threads that have a connection.
    connected: AtomicUsize,
    /// Whether the last attempt to connect failed.
    is_down: AtomicBool,
    /// Where the threads take turns at connecting while it is down.
    gate: Mutex<Gate>,
    /// Set by [`cancel`](Core::cancel), for good.
    is_cancelled: AtomicBool,
    /// Threads that have not ended, given up or not.
    crew: Mutex<usize>,
    crew_left: Condvar,
    /// So many jobs had gone in when the watcher last looked, and none of those that have not come
    /// out since was submitted before that instant. `Some` while jobs wait.
    mark: Mutex<Option<(Instant, u64)>>,
}

/// A pool around a [`Core`], which is all that the server sees of it.
pub(super) trait HasCore: Send + Sync {
    type Job: Waiting;

    fn core(&self) -> &Core<Self::Job>;
}

impl<P: HasCore> Pooled for P {
    fn name(&self) -> &'static str {
        self.core().name
    }

    fn usable(&self) -> Result<(), String> {
        self.core().usable()
    }

    fn numbers(&self) -> Numbers {
        self.core().numbers()
    }

    fn jobs(&self, now: Instant) -> Vec<RunningJob> {
        self.core().jobs(now)
    }

    fn threads(&self) -> Vec<String> {
        self.core().threads()
    }

    fn cancel(&self) {
        self.core().cancel();
    }

    fn end(&self) {
        self.core().end();
    }

    fn close(&self, deadline: Instant) -> Result<(), String> {
        self.core().close(deadline)
    }
}

impl<J: Waiting> Core<J> {
    /// A thread of its takes `jobs_per_turn` at once, if so many are there.
    pub fn new(name: &'static str, limits: PoolLimits, jobs_per_turn: usize) -> Core<J> {
        Core {
            name,
            limits,
            queue: Queue::new(limits.queue_length_max, jobs_per_turn),
            tally: Tally::default(),
            bell: Arc::default(),
            slots: Mutex::default(),
            next_id: AtomicU64::new(0),
            connected: AtomicUsize::new(0),
            is_down: AtomicBool::new(false),
            gate: Mutex::default(),
            is_cancelled: AtomicBool::new(false),
            crew: Mutex::new(0),
            crew_left: Condvar::new(),
            mark: Mutex::default(),
        }
    }

    /// Queues a job that `make` makes of its cell, or says at once why not.
    pub fn submit<T: Send + 'static>(
        self: &Arc<Self>,
        statement: Cow<'static, str>,
        make: impl FnOnce(Arc<Cell<T>>) -> J,
    ) -> Ticket<T> {
        let now = clock::now();
        if let Err(error) = self.admits() {
            self.tally.count(JobOutcome::Refused);
            return Ticket::settled(Err(error), now);
        }
        let cell = Cell::new(statement, now, now + self.limits.job_timeout);
        let ticket = cell.ticket(Arc::clone(self) as Arc<dyn Desk>);
        let is_dead = |job: &J| job.entry().stage() == Stage::Abandoned;
        match self.queue.push(Box::new(make(cell)), is_dead) {
            Ok(true) if !wakes::are_held() => self.refuse_rest(),
            // It waits: somebody must see to it that it does not wait for ever, be it that this
            // very thread blocks before it makes the wake that it holds.
            Ok(_) => {
                self.bell.ring_by(now + self.limits.queue_timeout);
                self.refuse_rest();
            }
            Err((refused, job)) => self.refuse(
                &job,
                match refused {
                    Refused::Full => DatabaseError::Busy,
                    Refused::Closed => DatabaseError::Closed,
                },
            ),
        }
        ticket
    }

    /// Nobody is left to do what is in the queue, once the pool is closed.
    fn refuse_rest(&self) {
        if self.queue.is_closed() && self.slots().is_empty() {
            while let Some(job) = self.queue.pop() {
                self.refuse(&job, DatabaseError::Closed);
            }
        }
    }

    fn admits(&self) -> Result<(), DatabaseError> {
        if self.is_cancelled() {
            return Err(DatabaseError::Cancelled);
        }
        if self.queue.is_closed() {
            return Err(DatabaseError::Closed);
        }
        if self.is_down() {
            return Err(DatabaseError::Unavailable);
        }
        Ok(())
    }

    /// Fails a job that was not begun.
    pub fn refuse(&self, job: &J, error: DatabaseError) {
        let outcome = match error {
            DatabaseError::Cancelled => JobOutcome::Cancelled,
            _ => JobOutcome::Refused,
        };
        if job.entry().fail(error) {
            self.tally.count(outcome);
        }
    }

    /// A thread has a connection.
    pub fn note_connected(&self, slot: &Slot) {
        if slot.connect() {
            self.connected.fetch_add(1, Ordering::SeqCst);
        }
        if self.is_down.swap(false, Ordering::SeqCst) {
            *self.gate() = Gate::default();
            log::info!(
                event_type = "database_connected", pool = self.name;
                "{}: connected", self.name
            );
        }
    }

    /// A thread has lost its connection, or closed it.
    pub fn note_disconnected(&self, slot: &Slot) {
        if slot.disconnect(clock::now()) {
            self.connected.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// The connection of this thread is out of time, and is not used any more.
    pub fn note_given_up(&self, slot: &Slot, now: Instant) {
        log::warn!(
            event_type = "connection_given_up", pool = self.name;
            "{}: a connection does not answer and is given up: {}", self.name, slot.told(now)
        );
    }

    /// The thread of this place is stuck and serves no more: it ends when it can.
    pub fn give_up(&self, slot: &Slot) {
        slot.give_up();
        self.note_disconnected(slot);
        {
            let _crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
            self.slots().retain(|other| other.id != slot.id);
        }
        self.queue.rise(slot.id);
        self.refuse_rest();
        self.crew_left.notify_all();
    }

    /// A thread could not connect. When no other has a connection, whoever waits need not wait any
    /// longer.
    pub fn note_failed(&self, slot: &Slot, reason: Reason, now: Instant) {
        if self.connected.load(Ordering::SeqCst) == 0 {
            self.gate().fail(slot.id, now, chance(slot));
            if !self.is_down.swap(true, Ordering::SeqCst) {
                log::warn!(
                    event_type = "database_unavailable", pool = self.name, reason:% = reason;
                    "{}: no connection: {reason}", self.name
                );
            }
            while self.is_down()
                && let Some(job) = self.queue.pop()
            {
                self.refuse(&job, DatabaseError::Unavailable);
            }
        }
        slot.set_health(Health::Down { reason, since: now });
    }

    /// How long a thread whose attempt has failed waits for its next one by itself, before it asks
    /// whether it [`may_connect`](Core::may_connect).
    pub fn patience(&self, slot: &Slot, backoff: &mut Backoff) -> Duration {
        let wait = backoff.fail(LONGEST_BESIDE, chance(slot));
        if self.is_down() { Duration::ZERO } else { wait }
    }

    /// Whether a thread may try to connect again.
    ///
    /// # Errors
    /// When to ask again: others try.
    pub fn may_connect(&self, slot: &Slot, now: Instant) -> Result<(), Instant> {
        if self.is_down() { self.gate().pass(slot.id, now) } else { Ok(()) }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no thread has a connection, and none is expected in a moment.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst) && self.connected.load(Ordering::SeqCst) == 0
    }

    /// Whether a job would find a connection. `Err` says why not.
    pub fn usable(&self) -> Result<(), String> {
        if self.queue.is_closed() {
            return Err("closed".to_owned());
        }
        if self.connected.load(Ordering::SeqCst) > 0 {
            return Ok(());
        }
        let slots = self.slots();
        let down = slots.iter().find_map(|slot| slot.reason());
        Err(down.map_or_else(|| "connecting".to_owned(), |reason| reason.0))
    }

    pub fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    /// From now on nothing is begun; the watcher ends what runs.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.bell.ring();
        self.wake_slots();
    }

    fn wake_slots(&self) {
        let slots = self.slots().clone();
        for slot in slots {
            slot.wake();
        }
    }

    /// What the watcher has to do about the queue: jobs that have waited too long, or for nothing.
    pub fn look_at_queue(&self, now: Instant) -> Look {
        if self.is_cancelled() {
            while let Some(job) = self.queue.pop() {
                self.refuse(&job, DatabaseError::Cancelled);
            }
            return Look::WhenTold;
        }
        let timeout = self.limits.queue_timeout;
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        let (pushed, popped) = self.queue.passed();
        let since = match *mark {
            Some((since, count)) if popped < count => since,
            _ => now,
        };
        let oldest = std::cell::Cell::new(now);
        if now.saturating_duration_since(since) >= timeout {
            let is_over = |job: &J| {
                let entry = job.entry();
                let submitted = entry.facts().submitted;
                let waited = now.saturating_duration_since(submitted);
                let is_over = waited >= timeout || entry.stage() == Stage::Abandoned;
                if !is_over {
                    oldest.set(oldest.get().min(submitted));
                }
                is_over
            };
            for job in self.queue.sweep(is_over) {
                self.refuse(&job, DatabaseError::Busy);
            }
        } else {
            oldest.set(since);
        }
        *mark = (!self.queue.is_empty()).then_some((oldest.get(), pushed));
        if mark.is_some() { Look::At(now + QUEUE_LOOK_INTERVAL) } else { Look::WhenTold }
    }

    /// A new thread's place.
    pub fn add_slot(&self, care: Care) -> Arc<Slot> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::new(id, care, clock::now()));
        self.slots().push(Arc::clone(&slot));
        *self.crew.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        slot
    }

    /// A thread has ended.
    pub fn leave(&self, id: u64) {
        {
            let mut crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
            self.slots().retain(|slot| slot.id != id);
            *crew -= 1;
        }
        self.refuse_rest();
        self.crew_left.notify_all();
        self.bell.ring();
    }

    /// Threads that have not ended.
    pub fn crew(&self) -> usize {
        *self.crew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every thread that serves has ended, until `deadline` at most: how many have not.
    fn wait_for_crew(&self, deadline: Instant) -> usize {
        let mut crew = self.crew.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let serving = self.slots().len();
            let patience = deadline.saturating_duration_since(clock::now());
            if serving == 0 || patience.is_zero() {
                return serving;
            }
            let waited = self.crew_left.wait_timeout(crew, patience);
            crew = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// No more jobs are taken, and the threads end when they have done those there are.
    pub fn end(&self) {
        self.queue.close();
        self.wake_slots();
        self.bell.ring();
    }

    /// See [`Pooled::close`](super::pooled::Pooled::close).
    pub fn close(&self, deadline: Instant) -> Result<(), String> {
        self.end();
        let now = clock::now();
        let left = deadline.saturating_duration_since(now);
        let patience = now + (left / 2).max(left.saturating_sub(CANCEL_SHARE_MAX));
        if self.wait_for_crew(patience) > 0 {
            self.cancel();
        }
        match self.wait_for_crew(deadline) {
            // Threads that were given up are not waited for: their servers do not answer.
            0 => Ok(()),
            left => Err(format!(
                "{}: {left} connections could not be closed in time: {}",
                self.name,
                self.threads().join(", ")
            )),
        }
    }

    pub fn numbers(&self) -> Numbers {
        let slots = self.slots();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        Numbers {
            threads: count(slots.len()),
            busy: count(slots.iter().filter(|slot| slot.is_busy()).count()),
            queue_length: count(self.queue.len()),
            wait: self.tally.wait(),
            run: self.tally.run(),
            outcomes: self.tally.outcomes(),
        }
    }

    pub fn jobs(&self, now: Instant) -> Vec<RunningJob> {
        let mut jobs: Vec<RunningJob> =
            self.slots().iter().flat_map(|slot| slot.jobs(now)).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.age));
        jobs
    }

    pub fn threads(&self) -> Vec<String> {
        let now = clock::now();
        self.slots().iter().map(|slot| slot.told(now)).collect()
    }

    /// Poisoning is passed over: every critical section leaves the list whole at each step.
    pub fn slots(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J: Waiting> Desk for Core<J> {
    fn abandoned(&self, was: Stage, facts: &Facts) {
        self.tally.count(JobOutcome::Cancelled);
        if was == Stage::Queued {
            self.queue.note_dead();
            return;
        }
        let thread = facts.thread.load(Ordering::Relaxed);
        let slot = self.slots().iter().find(|slot| slot.id == thread).cloned();
        match slot {
            Some(slot) if slot.care == Care::Thread => {
                slot.is_rung.store(true, Ordering::SeqCst);
                slot.wake();
            }
            _ => self.bell.ring(),
        }
    }
}

/// A number that nobody knows.
fn chance(slot: &Slot) -> u64 {
    RandomState::new().hash_one(slot.id)
}

/// How often the watcher looks after a queue in which jobs wait.
const QUEUE_LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// The end of the time for closing that is kept for cancelling what still runs.
const CANCEL_SHARE_MAX: Duration = Duration::from_secs(1);
