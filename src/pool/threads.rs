//! A pool of threads that own a connection each and do one job at a time, whatever blocks in it.
//!
//! A thread that is stuck in its connection cannot be helped: no call of a blocking client can be
//! ended from outside when its server is silent. So nobody depends on it: the watcher fails its
//! ticket on time, gives the thread up and puts a new one in its place. The old one closes its
//! connection and ends when the server lets go of it, or with the process.
//!
//! Cancelling names a connection, not a job: [`Canceller`](super::resource::Canceller) is called
//! for a job that nobody waits for any more, and the thread begins no next job on that connection
//! before the call has returned and [`Resource::is_usable`] has agreed.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};
use std::thread::{self, Builder, Thread};
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::clock;
use super::core::{Core, HasCore, PoolLimits, Waiting};
use super::error::DatabaseError;
use super::pooled::JobOutcome;
use super::queue::Sleep;
use super::resource::Reason;
use super::resource::{After, Canceller, Resource};
use super::slot::{Cancel, Care, Due, Health, Slot};
use super::ticket::{Cell, Entry, Ticket};
use super::watch::{Look, Watched};

/// The threads; clones share them. They end when the last clone is gone, or with
/// [`close`](super::pooled::Pooled::close).
pub struct Pool<R: Resource> {
    shared: Arc<Shared<R>>,
    keeper: Arc<Keeper<R>>,
}

/// Ends the threads with the last clone of their pool.
struct Keeper<R: Resource> {
    shared: Arc<Shared<R>>,
}

impl<R: Resource> Drop for Keeper<R> {
    fn drop(&mut self) {
        self.shared.core.end();
    }
}

struct Shared<R: Resource> {
    core: Arc<Core<Job<R>>>,
    settings: R::Settings,
}

pub(super) struct Job<R> {
    entry: Arc<dyn Entry>,
    work: Work<R>,
}

/// Does the job and settles its ticket, which is told whether that was the first to do so.
type Work<R> = Box<dyn FnOnce(&mut R) -> (JobOutcome, bool) + Send>;

impl<R: Resource> Waiting for Job<R> {
    fn entry(&self) -> &Arc<dyn Entry> {
        &self.entry
    }
}

impl<R: Resource> Pool<R> {
    /// Starts the threads, which connect by themselves; none is waited for.
    ///
    /// # Errors
    /// When there are no threads to be had.
    pub fn start(
        name: &'static str,
        settings: R::Settings,
        limits: PoolLimits,
    ) -> io::Result<Pool<R>> {
        let shared = Arc::new(Shared { core: Arc::new(Core::new(name, limits, 1)), settings });
        let keeper = Arc::new(Keeper { shared: Arc::clone(&shared) });
        let pool = Pool { shared: Arc::clone(&shared), keeper };
        for _ in 0..limits.threads {
            shared.start_thread()?;
        }
        shared.core.bell.watch(name, Arc::clone(&shared) as Arc<dyn Watched>)?;
        Ok(pool)
    }

    /// Has a thread do `work` with its connection. `statement` names it to operators.
    pub fn submit<T, F>(&self, statement: Cow<'static, str>, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut R) -> Result<T, DatabaseError> + Send + 'static,
    {
        self.shared.core.submit(statement, |cell: Arc<Cell<T>>| {
            let entry = Arc::clone(&cell) as Arc<dyn Entry>;
            let work = Box::new(move |resource: &mut R| {
                let result = catch_unwind(AssertUnwindSafe(|| work(resource)));
                let result = result.unwrap_or(Err(DatabaseError::Panicked));
                let outcome = JobOutcome::of(&result);
                (outcome, cell.settle(result))
            });
            Job { entry, work }
        })
    }
}

impl<R: Resource> Clone for Pool<R> {
    fn clone(&self) -> Pool<R> {
        Pool { shared: Arc::clone(&self.shared), keeper: Arc::clone(&self.keeper) }
    }
}

impl<R: Resource> fmt::Debug for Pool<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.shared.core.name).finish_non_exhaustive()
    }
}

impl<R: Resource> HasCore for Pool<R> {
    type Job = Job<R>;

    fn core(&self) -> &Core<Job<R>> {
        &self.shared.core
    }
}

impl<R: Resource> Shared<R> {
    fn start_thread(self: &Arc<Self>) -> io::Result<()> {
        let slot = self.core.add_slot(Care::Watcher);
        let id = slot.id;
        let shared = Arc::clone(self);
        let run =
            move || Runner { shared, slot, backoff: Backoff::default(), alarm: Alarm::new() }.run();
        let name = format!("ebbtide-{}-{id}", self.core.name);
        let started = Builder::new().name(name).spawn(run);
        started.map(drop).inspect_err(|_| self.core.leave(id))
    }

    /// Puts another thread in the place of one that is stuck, unless too many are.
    fn replace(self: &Arc<Self>, slot: &Slot, now: Instant) {
        let threads = self.core.limits.threads;
        let strays = self.core.crew().saturating_sub(threads);
        if self.core.queue.is_closed() || strays >= threads * STRAYS_PER_THREAD {
            return;
        }
        self.core.note_given_up(slot, now);
        self.core.give_up(slot);
        if let Err(error) = self.start_thread() {
            log::error!(event_type = "thread_not_started"; "a thread for the database: {error}");
        }
    }

    /// Does what is due for one thread. Returns when to look again.
    fn look_at(self: &Arc<Self>, slot: &Arc<Slot>, now: Instant) -> Option<Instant> {
        if let Some(since) = slot.connecting_since() {
            let is_closing = self.core.queue.is_closed();
            let end = since + if is_closing { CLOSING_CONNECT_MAX } else { CONNECT_MAX };
            if now >= end && is_closing {
                self.core.give_up(slot);
            } else if now >= end {
                self.replace(slot, now);
            }
            return Some(end.max(now + STUCK_LOOK_INTERVAL));
        }
        let mut is_late = false;
        for entry in slot.entries() {
            if self.core.is_cancelled() && entry.fail(DatabaseError::Cancelled) {
                self.core.tally.count(JobOutcome::Cancelled);
            }
            if now >= entry.facts().deadline {
                is_late = true;
                if entry.fail(DatabaseError::Timeout) {
                    self.core.tally.count(JobOutcome::TimedOut);
                }
            }
        }
        let is_urgent = is_late || self.core.is_cancelled();
        let due = slot.due(now, if is_urgent { Duration::ZERO } else { CANCEL_GRACE });
        if is_late {
            self.replace(slot, now);
        }
        match due {
            Due::Nothing => is_late.then(|| now + STUCK_LOOK_INTERVAL),
            Due::By(at) => Some(at),
            Due::Cancel(canceller) => {
                ask(canceller, Arc::clone(slot));
                Some(now + STUCK_LOOK_INTERVAL)
            }
        }
    }
}

/// Has a thread of its own ask for the cancelling: it blocks.
fn ask(canceller: Arc<dyn Canceller>, slot: Arc<Slot>) {
    let known = (Arc::clone(&slot), Arc::clone(&canceller));
    let asking = move || {
        canceller.cancel();
        slot.asked(&canceller);
    };
    let started = Builder::new().name("ebbtide-cancel".to_owned()).spawn(asking);
    if let Err(error) = started {
        log::error!(event_type = "thread_not_started"; "a thread to cancel a job: {error}");
        known.0.asked(&known.1);
    }
}

impl<R: Resource> Watched for Shared<R> {
    fn look(self: Arc<Self>, now: Instant) -> Look {
        let mut next = self.core.look_at_queue(now);
        let slots = self.core.slots().clone();
        for slot in slots {
            if let Some(at) = self.look_at(&slot, now) {
                next = next.or_at(at);
            }
        }
        if self.core.queue.is_closed() && self.core.crew() == 0 { Look::Never } else { next }
    }
}

/// One thread.
struct Runner<R: Resource> {
    shared: Arc<Shared<R>>,
    slot: Arc<Slot>,
    backoff: Backoff,
    alarm: Arc<Alarm>,
}

/// Why a connection is not used any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It broke, or cannot be trusted.
    Unusable,
    /// The thread is to end.
    Over,
}

impl<R: Resource> Runner<R> {
    fn run(mut self) {
        self.slot.set_waker(&Waker::from(Arc::clone(&self.alarm)));
        while !self.is_over() {
            self.slot.set_health(Health::Connecting { since: clock::now() });
            self.shared.core.bell.ring_by(clock::now() + CONNECT_MAX);
            let settings = &self.shared.settings;
            let connected = catch_unwind(AssertUnwindSafe(|| R::connect(settings)));
            match connected.unwrap_or_else(|_| Err(Reason(PANICKED.to_owned()))) {
                Ok(resource) => {
                    self.backoff.succeed();
                    if self.serve(resource) == End::Over {
                        break;
                    }
                }
                Err(reason) => self.pause(reason),
            }
        }
        self.shared.core.leave(self.slot.id);
    }

    fn is_over(&self) -> bool {
        self.shared.core.queue.is_closed() || self.slot.is_given_up()
    }

    /// Waits before the next attempt.
    fn pause(&mut self, reason: Reason) {
        let core = &self.shared.core;
        let now = clock::now();
        core.note_failed(&self.slot, reason, now);
        let mut end = now + core.patience(&self.slot, &mut self.backoff);
        while !self.is_over() {
            let now = clock::now();
            if now < end {
                thread::park_timeout(end - now);
                continue;
            }
            match core.may_connect(&self.slot, now) {
                Ok(()) => break,
                Err(at) => end = at,
            }
        }
    }

    /// Does jobs with this connection, as long as it is good.
    fn serve(&mut self, mut resource: R) -> End {
        let core = Arc::clone(&self.shared.core);
        self.slot.set_canceller(Some(resource.canceller()));
        core.note_connected(&self.slot);
        let jobs = AssertUnwindSafe(|| self.do_jobs(&mut resource));
        let end = catch_unwind(jobs).unwrap_or(End::Unusable);
        core.queue.rise(self.slot.id);
        self.slot.set_canceller(None);
        core.note_disconnected(&self.slot);
        if catch_unwind(AssertUnwindSafe(|| resource.close())).is_err() {
            log::error!(event_type = "database_close"; "closing a connection: {PANICKED}");
        }
        // A job may have woken this thread in vain.
        if !core.queue.is_empty() {
            core.queue.wake_one();
            core.bell.ring();
        }
        end
    }

    fn do_jobs(&self, resource: &mut R) -> End {
        loop {
            if self.slot.is_given_up() {
                break End::Over;
            }
            if let Some(job) = self.shared.core.queue.pop() {
                let after = self.work(*job, resource);
                if after.is_none_or(|after| !resource.is_usable(after)) {
                    break if self.slot.is_given_up() { End::Over } else { End::Unusable };
                }
            } else if self.shared.core.queue.is_closed() {
                break End::Over;
            } else if !self.rest(resource) {
                break End::Unusable;
            }
        }
    }

    /// Sleeps until there is a job: false when the connection broke meanwhile.
    fn rest(&self, resource: &mut R) -> bool {
        let core = &self.shared.core;
        let alarm = &self.alarm;
        alarm.has_rung.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(alarm));
        if !core.queue.lie_down(self.slot.id, Sleep::Idle, &waker) {
            return true;
        }
        loop {
            if core.queue.is_closed() {
                core.queue.rise(self.slot.id);
                return true;
            }
            thread::park_timeout(REST_CHECK_INTERVAL);
            if alarm.has_rung.load(Ordering::Acquire) {
                core.queue.rise(self.slot.id);
                return core.queue.is_closed() || resource.is_usable(After::Rest);
            }
            if !resource.is_usable(After::Rest) {
                core.queue.rise(self.slot.id);
                return false;
            }
        }
    }

    /// Does a job: what the connection was used for, and `None` when it cannot be used any more.
    fn work(&self, job: Job<R>, resource: &mut R) -> Option<After> {
        let core = &self.shared.core;
        let Job { entry, work } = job;
        let begun = clock::now();
        self.slot.begin(Arc::clone(&entry), begun);
        if core.is_cancelled() {
            entry.fail(DatabaseError::Cancelled);
        }
        if !entry.take(self.slot.id) {
            self.slot.end(&entry);
            return Some(After::Rest);
        }
        core.tally.waited(begun.saturating_duration_since(entry.facts().submitted));
        core.bell.ring_by(entry.facts().deadline);
        // A result that is dropped, or a waker, may panic as well as the job.
        let worked = catch_unwind(AssertUnwindSafe(|| work(resource)));
        let (outcome, is_first) =
            worked.unwrap_or_else(|_| (JobOutcome::Panicked, entry.fail(DatabaseError::Panicked)));
        core.tally.ran(clock::now().saturating_duration_since(begun));
        if is_first {
            core.tally.count(outcome);
        }
        self.slot.end(&entry);
        let after = self.after()?;
        let is_broken = matches!(outcome, JobOutcome::Lost | JobOutcome::Panicked);
        (!is_broken).then_some(after)
    }

    /// Waits for whoever is cancelling the job that has ended. `None` when that takes too long.
    fn after(&self) -> Option<After> {
        let end = clock::now() + CANCEL_MAX;
        loop {
            match self.slot.take_cancel() {
                Cancel::No => return Some(After::Job),
                Cancel::Asked => return Some(After::Cancelled),
                Cancel::Asking if clock::now() >= end => return None,
                Cancel::Asking => thread::park_timeout(LOOK_INTERVAL),
            }
        }
    }
}

/// Wakes a thread that is parked.
struct Alarm {
    thread: Thread,
    has_rung: AtomicBool,
}

impl Alarm {
    /// For the calling thread.
    fn new() -> Arc<Alarm> {
        Arc::new(Alarm { thread: thread::current(), has_rung: AtomicBool::new(false) })
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Alarm>) {
        self.has_rung.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Of a client library, as the reason why there is no connection.
const PANICKED: &str = "the client panicked, which the log tells of";

/// How long an attempt to connect may take before its thread is replaced: far more than a resource
/// takes. A server that is slow with many at once must not be asked by more.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// As above, once the pool is closing: there is nothing yet to say good-bye to.
const CLOSING_CONNECT_MAX: Duration = Duration::from_millis(300);

/// How long a job that nobody waits for may go on by itself. Most are over before: cancelling costs
/// a connection.
const CANCEL_GRACE: Duration = Duration::from_millis(20);

/// How long a thread waits for the end of a cancelling.
const CANCEL_MAX: Duration = Duration::from_secs(2);

/// How often something is looked at that tells nobody.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// How often an idle connection is looked at, so that `/readyz` tells of one that broke.
const REST_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a thread that is stuck is looked at.
const STUCK_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Threads that may be stuck for each that serves.
const STRAYS_PER_THREAD: usize = 2;
