//! A connection with its statements.
//!
//! A turn of it looks at what has come and at the queue, until neither moves. What it takes from
//! the queue in one turn goes out in one write. Its thread has most turns; whoever submits a
//! statement while that thread sleeps has a short one for it, which takes what there is and sends
//! it: that saves the waking of a thread that would do no more, and sleep again until the answer
//! comes. Such a turn is bounded: statements with large values, or with values that foreign code
//! writes, are left to the thread.
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
//! 6. A statement out of time fails its ticket; when it is the one that the server works on, its
//!    connection is dropped with all that is in flight.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::time::{self, Sleep as Timer};

use super::clock;
use super::core::Core;
use super::error::DatabaseError;
use super::pace::Pace;
use super::pooled::JobOutcome;
use super::postgres_connect::{CANCEL_MAX, Cancelling, Connected};
use super::postgres_conversation::{Conversation, Done};
use super::postgres_pipeline::Job;
use super::postgres_wire::Wire;
use super::queue::Sleep;
use super::slot::Slot;
use super::ticket::Stage;
use crate::wakes;

/// See the module's essay.
pub struct Line {
    core: Arc<Core<Job>>,
    slot: Arc<Slot>,
    /// `None` once it is over.
    wire: Option<Wire>,
    conversation: Conversation<Box<Job>>,
    canceller: Cancelling,
    /// Statements that are done, on their way to whoever waits for them.
    done: Vec<Done<Box<Job>>>,
    /// A statement that is its thread's to begin: taken from the queue, and not light.
    heavy: Option<Box<Job>>,
    /// Statements in hand: in flight, or waiting for theirs to be prepared.
    in_hand: usize,
    /// Rings at `alarm_at`, when something may be due for a statement in flight.
    alarm: Pin<Box<Timer>>,
    alarm_at: Option<Instant>,
    /// Since when no statement in flight is wanted.
    unwanted: Option<Instant>,
    cancel: CancelState,
    pace: Pace,
    /// It takes nothing any more: it has ended, or a turn has panicked.
    is_over: bool,
    /// What the queue wakes it with.
    bell: Waker,
}

/// Who has a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Own,
    /// Whoever submits: it is not to be kept.
    OfOther,
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
    pub fn new(core: Arc<Core<Job>>, slot: Arc<Slot>, connected: Connected) -> Line {
        Line {
            core,
            slot,
            wire: Some(connected.wire),
            conversation: Conversation::default(),
            canceller: connected.canceller,
            done: Vec::new(),
            heavy: None,
            in_hand: 0,
            alarm: Box::pin(time::sleep(Duration::ZERO)),
            alarm_at: None,
            unwanted: None,
            cancel: CancelState::No,
            pace: Pace::default(),
            is_over: false,
            bell: Waker::noop().clone(),
        }
    }

    /// Does statements until the connection or the pool is over, and closes the connection.
    pub async fn serve(self) {
        let line = Arc::new(Mutex::new(self));
        let mut is_first = true;
        let over = poll_fn(|cx| {
            let mut turning = lock(&line);
            if mem::take(&mut is_first) {
                turning.slot.set_waker(cx.waker());
                let (line, owner) = (Arc::downgrade(&line), cx.waker().clone());
                turning.bell = Waker::from(Arc::new(LineBell { line, owner }));
            }
            turning.turn(cx)
        })
        .await;
        // From here on nobody has a turn of it any more.
        let (wire, out) = lock(&line).end(over);
        if let Some(wire) = wire {
            wire.close(out).await;
        }
    }

    /// It is over. What is left is the saying good-bye, unless it has been said.
    fn end(&mut self, over: Over) -> (Option<Wire>, BytesMut) {
        self.core.note_disconnected(&self.slot);
        self.core.queue.rise(self.slot.id);
        // A job may have woken its thread in vain.
        if !self.core.queue.is_empty() {
            self.core.queue.wake_one();
            self.core.bell.ring();
        }
        self.bell.clone_from(Waker::noop());
        let mut conversation = mem::take(&mut self.conversation);
        conversation.terminate();
        let out = conversation.output().split();
        let wire = self.wire.take().filter(|_| over != Over::Broken);
        // What is dropped and who is woken here is foreign.
        let whole = |work: &mut dyn FnMut()| drop(catch_unwind(AssertUnwindSafe(work)));
        let mut heavy = self.heavy.take();
        whole(&mut || {
            if let Some(job) = heavy.take() {
                self.core.refuse(&job, DatabaseError::Unavailable);
            }
        });
        for entry in self.slot.entries() {
            whole(&mut || {
                if entry.fail(DatabaseError::Lost) {
                    self.core.tally.count(JobOutcome::Lost);
                }
            });
            self.slot.end(&entry);
        }
        let mut left = (Some(conversation), mem::take(&mut self.done));
        whole(&mut || drop(left.0.take()));
        while let Some(done) = left.1.pop() {
            let mut done = Some(done);
            whole(&mut || drop(done.take()));
        }
        (wire, out)
    }

    /// A turn of its thread: everything is moved until nothing moves.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        self.core.queue.begin_turn(self.slot.id);
        // Whose results are dropped or wakers called is not known here.
        let over = catch_unwind(AssertUnwindSafe(|| self.move_all(cx)));
        let over = over.unwrap_or(Poll::Ready(Over::Discarded));
        if over.is_ready() {
            self.is_over = true;
            self.core.queue.end_turn();
        }
        over
    }

    /// A turn of whoever has submitted a statement, for its thread, which sleeps: whether that may
    /// go on sleeping.
    fn turn_of_other(&mut self) -> bool {
        let now = clock::now();
        // Without an alarm nobody would look at the deadlines. When nothing is to be taken its
        // thread has something to see to.
        let has_alarm = self.alarm_at.is_some_and(|at| now < at);
        if self.is_over
            || self.heavy.is_some()
            || !has_alarm
            || self.core.queue.is_closed()
            || !self.accepts(now)
        {
            return false;
        }
        self.core.queue.begin_turn(self.slot.id);
        let moved = catch_unwind(AssertUnwindSafe(|| self.send_only()));
        let sleeps = moved.unwrap_or_else(|_| {
            self.is_over = true;
            false
        });
        if !sleeps {
            self.core.queue.end_turn();
        }
        sleeps
    }

    /// Takes what may be taken from the queue and sends it: whether all of that is done.
    fn send_only(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            // One instant for both: what is not taken at it must not keep it awake at it.
            let now = clock::now();
            self.take_jobs(now, Turn::OfOther);
            let has_ended = self.in_hand == 0 && self.core.queue.is_closed();
            let is_much = self.conversation.output().len() > OTHERS_BYTES_MAX;
            if self.heavy.is_some() || is_much || has_ended {
                return false;
            }
            let Some(wire) = &mut self.wire else { return false };
            if !matches!(wire.poll_send(&mut cx, self.conversation.output()), Poll::Ready(Ok(()))) {
                return false;
            }
            if self.lie_down(now) {
                return true;
            }
        }
    }

    /// Moves everything until nothing moves, and lies down then.
    fn move_all(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        loop {
            if self.is_over {
                return Poll::Ready(Over::Discarded);
            }
            // First what has come: a connection that has ended is not to be given statements.
            let received = self.receive(cx);
            self.finish();
            if let Poll::Ready(Err(error)) = received {
                log::debug!(event_type = "database_lost"; "a connection has ended: {error}");
                return Poll::Ready(Over::Broken);
            }
            let has_jobs = self.heavy.is_some() || !self.core.queue.is_empty();
            let has_taken = has_jobs && self.take_jobs(clock::now(), Turn::Own);
            let moved = has_taken | received.is_ready();
            if let Err(error) = self.send(cx) {
                log::debug!(event_type = "database_lost"; "a connection takes nothing: {error}");
                return Poll::Ready(Over::Broken);
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
            if self.lie_down(now) {
                return Poll::Pending;
            }
        }
    }

    /// Sends what there is, or as much as there is room for.
    fn send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(wire) = &mut self.wire else { return Ok(()) };
        match wire.poll_send(cx, self.conversation.output()) {
            Poll::Ready(sent) => sent,
            Poll::Pending => Ok(()),
        }
    }

    /// Takes what has come: whether anything has.
    fn receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(wire) = &mut self.wire else { return Poll::Pending };
        let received = wire.poll_receive(cx);
        if let Poll::Ready(Ok(())) = received {
            let now = clock::now();
            while let Some(message) = wire.next_message()? {
                let (kind, body) = (message.kind, wire.body(&message));
                let heard = self.conversation.hear(kind, body, now, &mut self.done);
                heard.map_err(|broken| io::Error::new(io::ErrorKind::InvalidData, broken.0))?;
            }
        }
        received
    }

    /// Hands over what is done.
    fn finish(&mut self) {
        if self.done.is_empty() {
            return;
        }
        let now = clock::now();
        self.pace.answered(u64::try_from(self.done.len()).unwrap_or(u64::MAX), now);
        let (core, slot) = (&self.core, &self.slot);
        self.in_hand -= self.done.len();
        // Those who wait for them are woken when all are there.
        wakes::hold(Waker::noop(), || {
            // One by one: what is dropped here may panic, and the rest is then still there.
            self.done.reverse();
            while let Some(Done { job, rows }) = self.done.pop() {
                let Job { entry, since, finish, .. } = *job;
                core.tally.ran(now.saturating_duration_since(since));
                slot.end(&entry);
                let (outcome, is_first) = finish(rows);
                if is_first {
                    core.tally.count(outcome);
                }
            }
        });
    }

    /// Takes what may be taken from the queue: whether it was anything.
    fn take_jobs(&mut self, now: Instant, turn: Turn) -> bool {
        let mut is_any = false;
        if turn == Turn::Own
            && let Some(job) = self.heavy.take()
        {
            if self.core.is_cancelled() {
                self.core.refuse(&job, DatabaseError::Cancelled);
            } else {
                is_any |= self.begin(job, now);
            }
        }
        while self.wants(now)
            && let Some(job) = self.core.queue.pop()
        {
            if turn == Turn::OfOther && !job.is_light() {
                self.heavy = Some(job);
                break;
            }
            is_any |= self.begin(job, now);
            if turn == Turn::OfOther && self.conversation.output().len() > OTHERS_BYTES_MAX {
                break;
            }
        }
        self.conversation.end_unit();
        self.finish();
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

    fn begin(&mut self, mut job: Box<Job>, now: Instant) -> bool {
        if self.in_hand == 0 {
            self.pace.begins(now);
        }
        self.slot.begin(Arc::clone(&job.entry), now);
        if !job.entry.take(self.slot.id) {
            self.slot.end(&job.entry);
            return false;
        }
        self.core.tally.waited(now.saturating_duration_since(job.since));
        job.since = now;
        self.in_hand += 1;
        self.conversation.ask(job, now, &mut self.done);
        true
    }

    /// Does what is due for the statements in flight.
    fn look(&mut self, now: Instant) -> Option<Over> {
        let is_idle = self.in_hand == 0;
        if let CancelState::Asked(until) = self.cancel
            && (is_idle || now >= until)
        {
            return Some(Over::Discarded);
        }
        if is_idle {
            self.unwanted = None;
            // What is left in the queue of a pool that is cancelled is the watcher's.
            let is_drained = self.core.queue.is_empty() || self.core.is_cancelled();
            let is_over = self.core.queue.is_closed() && is_drained;
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
                // One that was asked for again is the oldest, and not the one in front.
                let is_in_front = match self.conversation.in_front() {
                    Some(job) => Arc::ptr_eq(&job.entry, entry),
                    None => at == 0,
                };
                if is_in_front {
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
            self.conversation.begin_end();
            let canceller = self.canceller.clone();
            tokio::spawn(async move {
                if let Err(reason) = canceller.cancel().await {
                    log::warn!(
                        event_type = "cancel_failed";
                        "a statement could not be cancelled: {reason}"
                    );
                }
            });
        }
        None
    }

    /// Has the task woken when something is due: false when it is already.
    fn set_alarm(&mut self, now: Instant, cx: &mut Context<'_>) -> bool {
        if self.alarm_at.is_some_and(|at| now >= at) {
            self.alarm_at = None;
        }
        if self.in_hand == 0 {
            // One that is set stays: until then others may have turns.
            if self.alarm_at.is_some() && self.alarm.as_mut().poll(cx).is_ready() {
                self.alarm_at = None;
            }
            return true;
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
    fn lie_down(&mut self, now: Instant) -> bool {
        self.core.queue.end_turn();
        if !self.accepts(now) {
            // Whoever sleeps may take what this thread was woken for.
            if !self.core.queue.is_empty() && !self.core.queue.wake_one() {
                self.core.bell.ring_by(now + self.core.limits.queue_timeout);
            }
            return true;
        }
        let sleep = if self.in_hand == 0 {
            Sleep::Idle
        } else if self.has_room(now) {
            Sleep::Ready
        } else {
            if !self.core.queue.is_empty()
                && self.core.queue.leave_to_idle(self.slot.id, &self.bell)
            {
                return true;
            }
            Sleep::Occupied
        };
        let sleeps = self.core.queue.lie_down(self.slot.id, sleep, &self.bell)
            && !(self.core.queue.is_closed() && self.in_hand == 0);
        if !sleeps {
            self.core.queue.begin_turn(self.slot.id);
        }
        sleeps
    }
}

/// Whoever has a turn of it holds the lock. Poisoning is passed over: panics end within a turn.
fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a turn for a line whose thread sleeps, and wakes that thread when one is not enough.
struct LineBell {
    line: Weak<Mutex<Line>>,
    owner: Waker,
}

impl Wake for LineBell {
    fn wake(self: Arc<LineBell>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<LineBell>) {
        let Some(line) = self.line.upgrade() else { return };
        // Nobody waits here: whoever has the lock may be about to let it go, and to sleep.
        let is_done = match line.try_lock() {
            Ok(mut line) => line.turn_of_other(),
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => false,
        };
        if !is_done {
            self.owner.wake_by_ref();
        }
    }
}

/// How long a statement may be likely to wait behind others while there is an idle connection: some
/// times what waking its thread costs.
const WAIT_MAX: Duration = Duration::from_millis(1);

/// What one turn of another may write.
const OTHERS_BYTES_MAX: usize = 64 * 1024;

/// Statements in flight on a connection.
const IN_FLIGHT_MAX: usize = 32;

/// How long the oldest statement may have run for others to be sent behind it.
const OLDEST_MAX: Duration = Duration::from_millis(50);

/// How long statements that nobody waits for may go on by themselves: most are over before, and
/// cancelling costs the connection.
const CANCEL_GRACE: Duration = Duration::from_millis(20);

/// How often the deadlines of statements in flight are looked at.
const ALARM_INTERVAL: Duration = Duration::from_millis(50);
