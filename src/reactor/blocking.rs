//! Work off the reactor: threads for what would hold a worker up.
//!
//! Threads start when a job finds none idle, up to a limit, and end after a while without work.
//! The queue is bounded: when it is full the job is refused at once instead of waiting unseen.
//! A job whose future was dropped still runs; its result is thrown away.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::task;

/// The threads that run blocking jobs. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait in `work`; at most `threads`.
    idle: usize,
    /// Set once the last handle is gone: threads end as soon as the queue is empty.
    closed: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl Pool {
    /// A pool of at most `threads_max` threads, none of them started yet.
    pub fn new(threads_max: usize) -> Pool {
        let state = State { jobs: VecDeque::new(), threads: 0, idle: 0, closed: false };
        let shared = Shared { state: Mutex::new(state), work: Condvar::new(), threads_max };
        Pool { shared: Arc::new(shared) }
    }

    /// Lets idle threads end. Jobs already queued still run.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }

    fn submit(&self, job: Job) -> Result<(), BlockingError> {
        let mut state = self.shared.lock();
        if state.closed || state.jobs.len() >= QUEUE_MAX {
            return Err(BlockingError::Busy);
        }
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle && state.threads < self.shared.threads_max {
            let shared = Arc::clone(&self.shared);
            let spawned = thread::Builder::new()
                .name("ebbtide-blocking".to_owned())
                .spawn(move || shared.run_thread());
            match spawned {
                Ok(_detached) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    state.jobs.pop_back();
                    log::error!(event_type = "thread_not_started"; "blocking thread: {error}");
                    return Err(BlockingError::Busy);
                }
                // The threads there are will come to it.
                Err(_) => {}
            }
        }
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads_max", &self.shared.threads_max).finish()
    }
}

impl Shared {
    /// Poisoning is passed over: every critical section leaves the state whole at each step.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_thread(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.lock();
                continue;
            }
            if state.closed {
                break;
            }
            state.idle += 1;
            let (woken, wait) = self
                .work
                .wait_timeout(state, THREAD_IDLE_MAX)
                .unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if wait.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }
}

/// Runs `work` on a thread of its own kind and waits for its result without holding the worker.
///
/// # Errors
/// [`BlockingError::Busy`] when the queue is full, [`BlockingError::Panicked`] when `work`
/// panicked.
///
/// # Panics
/// When called on a thread that runs no reactor.
pub fn blocking<T, F>(work: F) -> Blocking<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let cell = Arc::new(Mutex::new(Cell { result: None, waker: None }));
    let delivery = Arc::clone(&cell);
    let job = Box::new(move || {
        let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| BlockingError::Panicked);
        deliver(&delivery, result);
    });
    let submitted = task::with(|local| local.blocking.clone())
        .expect("ebbtide::blocking is for code that runs on a worker of ebbtide")
        .submit(job);
    if let Err(error) = submitted {
        deliver(&cell, Err(error));
    }
    Blocking { cell }
}

fn deliver<T>(cell: &Mutex<Cell<T>>, result: Result<T, BlockingError>) {
    let waker = {
        let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
        cell.result = Some(result);
        cell.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Where a job leaves its result.
struct Cell<T> {
    /// `Some` between the job's end and the future's taking it.
    result: Option<Result<T, BlockingError>>,
    waker: Option<Waker>,
}

/// The future of [`blocking`].
#[must_use = "the work runs anyway, but nobody waits for its result"]
pub struct Blocking<T> {
    cell: Arc<Mutex<Cell<T>>>,
}

impl<T> Future for Blocking<T> {
    type Output = Result<T, BlockingError>;

    fn poll(self: Pin<&mut Blocking<T>>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut cell = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = cell.result.take() {
            return Poll::Ready(result);
        }
        cell.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T> fmt::Debug for Blocking<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blocking")
    }
}

/// Why blocking work has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockingError {
    /// The queue of waiting jobs is full: answer 503 and let the client come back.
    Busy,
    /// The work panicked: a fault of the handler.
    Panicked,
}

impl fmt::Display for BlockingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlockingError::Busy => "too much blocking work is waiting",
            BlockingError::Panicked => "the blocking work panicked",
        })
    }
}

impl std::error::Error for BlockingError {}

/// Jobs that may wait for a thread.
const QUEUE_MAX: usize = 4096;

/// How long a thread waits for another job before it ends.
const THREAD_IDLE_MAX: Duration = Duration::from_secs(10);
