//! The bounded queue between those who submit jobs and the threads that do them.
//!
//! A thread that finds nothing goes to sleep on top of a stack; a job wakes the thread on top: the
//! one that slept the shortest, whose memory is still in a cache and whose core has not gone to
//! sleep itself. A thread that sleeps with work under way (a pipelining one waits for answers and
//! could take more) is woken before an idle one when its answers are due in a moment, for it is
//! about to be awake anyway, and else only when no idle one is left. Nobody is woken for a few jobs
//! while a thread is in its turn: it takes them with what it has, in one write, which costs less
//! than a wake. Nor while one is on its way to it: wakes made in a batch come at its end.
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

use crate::wakes;

/// See the module's essay.
pub struct Queue<J> {
    /// In boxes: room for a job that mostly never comes is a pointer's.
    jobs: ArrayQueue<Box<J>>,
    sleepers: Mutex<Sleepers>,
    /// Jobs in it that nobody waits for any more.
    dead: AtomicUsize,
    /// Jobs that went in, and that came out.
    pushed: AtomicU64,
    popped: AtomicU64,
    is_closed: AtomicBool,
    /// What a thread that is awake may find without another being woken for it.
    jobs_per_turn: usize,
}

#[derive(Default)]
struct Sleepers {
    /// Threads that are awake and will look at the queue before they sleep.
    turning: usize,
    /// Threads that were woken for a job, and are not up yet.
    coming: Vec<u64>,
    /// With work that is about to be done, able to take more; who slept the shortest is last.
    ready: Vec<(u64, Waker)>,
    /// With nothing to do; likewise.
    idle: Vec<(u64, Waker)>,
    /// With work under way, able to take more; likewise.
    occupied: Vec<(u64, Waker)>,
}

/// How a thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// It waits for answers that are due in a moment: what it takes now waits no longer for them
    /// than a wake would take.
    Ready,
    /// It has nothing to do.
    Idle,
    /// It waits for answers, for some time.
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
    /// A thread of its takes `jobs_per_turn` at least, if so many are there.
    ///
    /// # Panics
    /// When `length_max` is 0.
    pub fn new(length_max: usize, jobs_per_turn: usize) -> Queue<J> {
        Queue {
            jobs: ArrayQueue::new(length_max),
            sleepers: Mutex::default(),
            dead: AtomicUsize::new(0),
            pushed: AtomicU64::new(0),
            popped: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            jobs_per_turn,
        }
    }

    /// Adds a job and wakes a thread for it: false when none slept. `is_dead` tells which jobs may
    /// make room for it.
    ///
    /// # Errors
    /// The job, when there is no room or the queue was closed.
    pub fn push(
        &self,
        job: Box<J>,
        is_dead: impl Fn(&J) -> bool,
    ) -> Result<bool, (Refused, Box<J>)> {
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
    pub fn pop(&self) -> Option<Box<J>> {
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
            sleepers.stack(sleep).push((thread, waker.clone()));
        }
        if self.jobs.is_empty() {
            return true;
        }
        self.rise(thread);
        false
    }

    /// The caller, which has answers to wait for, leaves what is in the queue to an idle thread and
    /// goes to sleep: false when there is no idle one.
    #[must_use = "whoever is not asleep has a job to take"]
    pub fn leave_to_idle(&self, thread: u64, waker: &Waker) -> bool {
        let (_, idle) = {
            let mut sleepers = self.sleepers();
            let Some(idle) = sleepers.idle.pop() else { return false };
            sleepers.coming.push(idle.0);
            sleepers.remove(thread);
            sleepers.occupied.push((thread, waker.clone()));
            idle
        };
        idle.wake();
        true
    }

    /// Whether a thread has nothing to do.
    pub fn has_idle(&self) -> bool {
        !self.sleepers().idle.is_empty()
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

    /// Wakes the thread that slept the shortest, of those that are best woken (see the module's
    /// essay): false when none sleeps.
    pub fn wake_one(&self) -> bool {
        let (waker, is_first) = {
            let mut sleepers = self.sleepers();
            let awake = sleepers.turning + sleepers.coming.len();
            if self.jobs.len() <= awake * self.jobs_per_turn {
                return awake > 0;
            }
            let Sleepers { ready, idle, occupied, .. } = &mut *sleepers;
            let woken = ready.pop().or_else(|| idle.pop()).or_else(|| occupied.pop());
            let Some((thread, waker)) = woken else { return false };
            sleepers.coming.push(thread);
            (waker, sleepers.coming.len() == 1)
        };
        if !is_first {
            // There is enough to do for those before it.
            wakes::release();
        }
        wakes::late(waker);
        true
    }

    /// Wakes every thread.
    pub fn wake_all(&self) {
        let all = {
            let mut sleepers = self.sleepers();
            let Sleepers { ready, idle, occupied, .. } = &mut *sleepers;
            [ready, idle, occupied].map(std::mem::take)
        };
        for (_, waker) in all.into_iter().flatten() {
            waker.wake();
        }
    }

    /// A job in it was given up.
    pub fn note_dead(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes out the jobs that `is_over`. Those that stay keep their order among themselves. The
    /// answer may have a job that is not over, when others took its place meanwhile.
    pub fn sweep(&self, is_over: impl Fn(&J) -> bool) -> Vec<Box<J>> {
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

impl Sleepers {
    fn stack(&mut self, sleep: Sleep) -> &mut Vec<(u64, Waker)> {
        match sleep {
            Sleep::Ready => &mut self.ready,
            Sleep::Idle => &mut self.idle,
            Sleep::Occupied => &mut self.occupied,
        }
    }

    fn remove(&mut self, thread: u64) {
        self.coming.retain(|other| *other != thread);
        for stack in [&mut self.ready, &mut self.idle, &mut self.occupied] {
            stack.retain(|(other, _)| *other != thread);
        }
    }
}
