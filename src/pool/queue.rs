//! The bounded queue between those who submit jobs and the threads that do them.
//!
//! A thread that finds nothing goes to sleep on top of a stack; a job wakes the thread on top: the
//! one that slept the shortest, whose memory is still in a cache and whose core has not gone to
//! sleep itself. Threads that sleep with work under way (a pipelining one waits for answers and
//! could take more) are woken only when no idle one is left. Nobody is woken for a few jobs while a
//! thread is in its turn: it takes them with what it has, in one write, which costs less than a
//! wake.
//!
//! Invariants:
//! 1. No job is left behind while a thread sleeps: who submits pushes first and looks at the
//!    sleepers then, who goes to sleep lies down first and looks at the queue then, both under one
//!    lock in between.
//! 2. A thread is on the stacks at most once, and off them when it has been woken.
//!    Who is counted as turning looks at the queue once more after it was counted off.
//! 3. Nobody waits for room: a full queue refuses at once. Jobs that were given up count no more.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use crossbeam_queue::ArrayQueue;

/// See the module's essay.
pub struct Queue<J> {
    jobs: ArrayQueue<J>,
    sleepers: Mutex<Sleepers>,
    /// Jobs in it that nobody waits for any more.
    dead: AtomicUsize,
    /// Jobs that went in, and that came out.
    pushed: AtomicU64,
    popped: AtomicU64,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Sleepers {
    /// Threads that are awake and will look at the queue before they sleep.
    turning: usize,
    /// With nothing to do; who slept the shortest is last.
    idle: Vec<(u64, Waker)>,
    /// With work under way, able to take more; likewise.
    occupied: Vec<(u64, Waker)>,
}

/// How a thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// It has nothing to do.
    Idle,
    /// It waits for answers.
    Occupied,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room.
    Full,
    /// None is taken any more.
    Closed,
}

impl<J> Queue<J> {
    /// # Panics
    /// When `length_max` is 0.
    pub fn new(length_max: usize) -> Queue<J> {
        Queue {
            jobs: ArrayQueue::new(length_max),
            sleepers: Mutex::default(),
            dead: AtomicUsize::new(0),
            pushed: AtomicU64::new(0),
            popped: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    /// Adds a job and wakes a thread for it: false when none slept. `is_dead` tells which jobs may
    /// make room for it.
    ///
    /// # Errors
    /// The job, when there is no room or the queue was closed.
    pub fn push(&self, job: J, is_dead: impl Fn(&J) -> bool) -> Result<bool, (Refused, J)> {
        if self.is_closed() {
            return Err((Refused::Closed, job));
        }
        if let Err(job) = self.jobs.push(job) {
            if self.dead.load(Ordering::Relaxed) == 0 {
                return Err((Refused::Full, job));
            }
            for left_over in self.sweep(is_dead) {
                drop(left_over);
            }
            self.jobs.push(job).map_err(|job| (Refused::Full, job))?;
        }
        self.pushed.fetch_add(1, Ordering::Relaxed);
        Ok(self.wake_one())
    }

    /// The oldest job.
    pub fn pop(&self) -> Option<J> {
        let job = self.jobs.pop()?;
        self.popped.fetch_add(1, Ordering::Relaxed);
        Some(job)
    }

    /// The caller goes to sleep: false when there is a job after all. `waker` is called when it is
    /// woken; who wakes for another reason calls [`rise`](Queue::rise).
    #[must_use = "whoever is not asleep has a job to take"]
    pub fn lie_down(&self, thread: u64, sleep: Sleep, waker: &Waker) -> bool {
        {
            let mut sleepers = self.sleepers();
            sleepers.remove(thread);
            let stack = match sleep {
                Sleep::Idle => &mut sleepers.idle,
                Sleep::Occupied => &mut sleepers.occupied,
            };
            stack.push((thread, waker.clone()));
        }
        if self.jobs.is_empty() {
            return true;
        }
        self.rise(thread);
        false
    }

    /// The caller is awake, and will look at the queue before it sleeps: until
    /// [`end_turn`](Queue::end_turn), which it calls before it lies down as well.
    pub fn begin_turn(&self, thread: u64) {
        let mut sleepers = self.sleepers();
        sleepers.remove(thread);
        sleepers.turning += 1;
    }

    /// The caller's turn is over. What it does not take any more is for others.
    pub fn end_turn(&self) {
        self.sleepers().turning -= 1;
    }

    /// The caller is awake.
    pub fn rise(&self, thread: u64) {
        self.sleepers().remove(thread);
    }

    /// Wakes the thread that slept the shortest, an idle one if there is one: false when none
    /// sleeps.
    pub fn wake_one(&self) -> bool {
        let woken = {
            let mut sleepers = self.sleepers();
            if self.jobs.len() <= sleepers.turning * JOBS_PER_TURN {
                return sleepers.turning > 0;
            }
            sleepers.idle.pop().or_else(|| sleepers.occupied.pop())
        };
        let Some((_, waker)) = woken else { return false };
        waker.wake();
        true
    }

    /// Wakes every thread.
    pub fn wake_all(&self) {
        let (idle, occupied) = {
            let mut sleepers = self.sleepers();
            (std::mem::take(&mut sleepers.idle), std::mem::take(&mut sleepers.occupied))
        };
        for (_, waker) in idle.into_iter().chain(occupied) {
            waker.wake();
        }
    }

    /// A job in it was given up.
    pub fn note_dead(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out the jobs that `is_over`. Those that stay keep their order among themselves. The
    /// answer may have a job that is not over, when others took its place meanwhile.
    pub fn sweep(&self, is_over: impl Fn(&J) -> bool) -> Vec<J> {
        self.dead.store(0, Ordering::Relaxed);
        let mut out = Vec::new();
        for _ in 0..self.jobs.len() {
            let Some(job) = self.jobs.pop() else { break };
            if is_over(&job) {
                self.popped.fetch_add(1, Ordering::Relaxed);
                out.push(job);
            } else if let Err(job) = self.jobs.push(job) {
                self.popped.fetch_add(1, Ordering::Relaxed);
                out.push(job);
            }
        }
        // A thread may have found it empty for a moment, and gone to sleep.
        if !self.jobs.is_empty() {
            self.wake_one();
        }
        out
    }

    /// From now on it takes no job; those in it stay. Wakes every thread.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.wake_all();
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Whether there is no job in it, given up or not.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Jobs that somebody waits for.
    pub fn len(&self) -> usize {
        self.jobs.len().saturating_sub(self.dead.load(Ordering::Relaxed))
    }

    /// Jobs that went in, and that came out, so far.
    pub fn passed(&self) -> (u64, u64) {
        (self.pushed.load(Ordering::Relaxed), self.popped.load(Ordering::Relaxed))
    }

    /// Poisoning is passed over: every critical section leaves the stacks whole at each step.
    fn sleepers(&self) -> MutexGuard<'_, Sleepers> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> fmt::Debug for Queue<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// What a thread in its turn may find in the queue without another being woken for it.
const JOBS_PER_TURN: usize = 4;

impl Sleepers {
    fn remove(&mut self, thread: u64) {
        self.idle.retain(|(other, _)| *other != thread);
        self.occupied.retain(|(other, _)| *other != thread);
    }
}
