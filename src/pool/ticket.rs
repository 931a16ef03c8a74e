//! The ticket: where a job leaves its result, and the future of whoever waits for it.
//!
//! ```text
//!           take              settle
//!  Queued ────────► Running ─────────► Done ──► (polled) Taken
//!    │ │               │ │
//!    │ └── settle ─────┼─┼──► Done           refused, too late, closed
//!    │                 │ └── settle          out of time: the result that comes later is dropped
//!    └── drop ─────────┴────► Abandoned      nobody waits: not begun, or cancelled
//! ```
//!
//! Invariants:
//! 1. A ticket is settled at most once: the first result stays, later ones are dropped.
//! 2. The waker is called after the result is in its place, and never under the lock.
//! 3. A job that was abandoned before it was taken is never begun.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use super::error::DatabaseError;
use crate::{awaited, wakes};

/// The future of a job's result. Any executor can await it; dropping it cancels the job: one that
/// was not begun never will be, one that is under way is cancelled at the database where that
/// harms no other.
#[must_use = "a job whose ticket is dropped is cancelled"]
pub struct Ticket<T> {
    cell: Arc<Cell<T>>,
    /// Told when nobody waits any more.
    desk: Option<Arc<dyn Desk>>,
}

/// Who wants to know of abandoned jobs.
pub trait Desk: Send + Sync {
    /// A job that was not begun, or is under way, has lost its ticket. `was` tells which.
    fn abandoned(&self, was: Stage, facts: &Facts);
}

/// What is known of a job besides its result.
#[derive(Debug)]
pub struct Facts {
    /// What it does: a statement, or the name of a closure.
    pub statement: Cow<'static, str>,
    /// When it was submitted.
    pub submitted: Instant,
    /// When its ticket fails, whatever the database does.
    pub deadline: Instant,
    /// Position of the thread that runs it, and [`NOBODY`] before.
    pub thread: AtomicU64,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No thread has it.
    Queued,
    /// A thread has it in hand.
    Running,
    /// It has its result.
    Done,
    /// Its ticket is gone.
    Abandoned,
}

/// A job's side and its ticket's side.
pub struct Cell<T> {
    /// What is known of it besides.
    pub facts: Facts,
    state: Mutex<State<T>>,
}

struct State<T> {
    stage: Stage,
    /// `Some` from the settling until the ticket takes it.
    result: Option<Result<T, DatabaseError>>,
    /// `Some` while the ticket waits.
    waker: Option<Waker>,
}

/// A job as its queue and its watcher see it.
pub trait Entry: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &Facts;
    /// How far it is.
    fn stage(&self) -> Stage;
    /// A thread takes it: false when there is nothing to do any more.
    fn take(&self, thread: u64) -> bool;
    /// Fails it, unless it is done or abandoned: whether this was what ended it.
    fn fail(&self, error: DatabaseError) -> bool;
}

impl<T> Cell<T> {
    /// A job that no thread has, and that no ticket waits for yet.
    pub fn new(statement: Cow<'static, str>, submitted: Instant, deadline: Instant) -> Arc<Self> {
        let thread = AtomicU64::new(NOBODY);
        let state = State { stage: Stage::Queued, result: None, waker: None };
        let facts = Facts { statement, submitted, deadline, thread };
        Arc::new(Cell { facts, state: Mutex::new(state) })
    }

    /// The ticket of this job; there is one.
    pub fn ticket(self: &Arc<Self>, desk: Arc<dyn Desk>) -> Ticket<T> {
        Ticket { cell: Arc::clone(self), desk: Some(desk) }
    }

    /// Leaves the result, if it is the first and somebody waits for it: whether it was left.
    pub fn settle(&self, result: Result<T, DatabaseError>) -> bool {
        let waker = {
            let mut state = self.lock();
            if !matches!(state.stage, Stage::Queued | Stage::Running) {
                drop(state);
                // With nothing locked: it may run foreign code.
                drop(result);
                return false;
            }
            state.stage = Stage::Done;
            state.result = Some(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Poisoning is passed over: every critical section leaves the state whole at each step.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> fmt::Debug for Cell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl<T: Send> Entry for Cell<T> {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn stage(&self) -> Stage {
        self.lock().stage
    }

    fn take(&self, thread: u64) -> bool {
        let mut state = self.lock();
        if state.stage != Stage::Queued {
            return false;
        }
        state.stage = Stage::Running;
        self.facts.thread.store(thread, Ordering::Relaxed);
        true
    }

    fn fail(&self, error: DatabaseError) -> bool {
        self.settle(Err(error))
    }
}

impl<T> Ticket<T> {
    /// A ticket that has its result.
    pub(super) fn settled(result: Result<T, DatabaseError>, now: Instant) -> Ticket<T> {
        let cell = Cell::new(Cow::Borrowed(""), now, now);
        cell.settle(result);
        Ticket { cell, desk: None }
    }

    /// Blocks the calling thread until the job is over: for programs that begin or end, never for
    /// a handler, which awaits it.
    ///
    /// # Errors
    /// As awaiting it.
    pub fn wait(self) -> Result<T, DatabaseError> {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut ticket = pin!(self);
        loop {
            if let Poll::Ready(result) = ticket.as_mut().poll(&mut Context::from_waker(&waker)) {
                return result;
            }
            thread::park();
        }
    }

    /// What the job does.
    pub fn statement(&self) -> &str {
        &self.cell.facts.statement
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T, DatabaseError>;

    /// # Panics
    /// When it is polled after it was ready.
    fn poll(self: Pin<&mut Ticket<T>>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.cell.lock();
        if state.stage == Stage::Done {
            return Poll::Ready(state.result.take().expect("a ticket is ready once"));
        }
        awaited::note(match self.cell.facts.statement {
            Cow::Borrowed(statement) => statement,
            // Words for operators outlive the job.
            Cow::Owned(_) => UNNAMED,
        });
        if state.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            let before = state.waker.replace(cx.waker().clone());
            drop(state);
            // With nothing locked: it may run foreign code.
            drop(before);
        } else {
            drop(state);
        }
        wakes::waits(cx.waker());
        Poll::Pending
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        let (was, rest) = {
            let mut state = self.cell.lock();
            let was = state.stage;
            if was != Stage::Done {
                state.stage = Stage::Abandoned;
            }
            (was, (state.result.take(), state.waker.take()))
        };
        // With nothing locked: they may run foreign code.
        drop(rest);
        if was != Stage::Done
            && let Some(desk) = &self.desk
        {
            desk.abandoned(was, &self.cell.facts);
        }
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("statement", &self.statement()).finish_non_exhaustive()
    }
}

/// Wakes a thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

/// What a job is called in the place of a name that does not outlive it.
const UNNAMED: &str = "a job of the database";

/// No thread has the job.
pub const NOBODY: u64 = u64::MAX;
