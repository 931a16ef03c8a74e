//! The queue against a list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;

use ebbtide::internal::pool::queue::{Queue, Refused, Sleep};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::Count;

/// Threads that take from the queue, and how many jobs each takes in a turn.
const THREADS: u64 = 4;
const JOBS_PER_TURN: usize = 4;
/// Jobs that the queue holds.
const LENGTH: usize = 5;

#[derive(Clone, Debug)]
enum QueueStep {
    Push,
    Pop(u64),
    LieDown(u64, Sleep),
    LeaveToIdle(u64),
    Rise(u64),
    /// Has a turn, in which so many jobs come.
    Turn(u64, usize),
    /// Gives up the waiting job at this place, if there is one.
    GiveUp(usize),
    Sweep,
    Close,
}

fn queue_step() -> impl Strategy<Value = QueueStep> {
    let thread = 0..THREADS;
    prop_oneof![
        6 => Just(QueueStep::Push),
        4 => thread.clone().prop_map(QueueStep::Pop),
        3 => thread.clone().prop_map(|thread| QueueStep::LieDown(thread, Sleep::Idle)),
        2 => thread.clone().prop_map(|thread| QueueStep::LieDown(thread, Sleep::Ready)),
        2 => thread.clone().prop_map(|thread| QueueStep::LieDown(thread, Sleep::Occupied)),
        1 => thread.clone().prop_map(QueueStep::LeaveToIdle),
        1 => thread.clone().prop_map(QueueStep::Rise),
        2 => (thread, 0..3_usize).prop_map(|(thread, jobs)| QueueStep::Turn(thread, jobs)),
        2 => (0..LENGTH).prop_map(QueueStep::GiveUp),
        1 => Just(QueueStep::Sweep),
        1 => Just(QueueStep::Close),
    ]
}

/// A job that can be given up.
type Flag = Arc<AtomicBool>;

fn is_dead(job: &(usize, Flag)) -> bool {
    job.1.load(Ordering::SeqCst)
}

struct QueuePair {
    queue: Queue<(usize, Flag)>,
    jobs: VecDeque<(usize, Flag)>,
    /// Who sleeps, on which of the stacks, the last to lie down last.
    ready: Vec<u64>,
    idle: Vec<u64>,
    occupied: Vec<u64>,
    /// Who was woken for a job and has not moved since.
    coming: Vec<u64>,
    wakers: Vec<Arc<Count>>,
    woken: Vec<usize>,
    is_closed: bool,
    next: usize,
}

impl QueuePair {
    fn new() -> QueuePair {
        QueuePair {
            queue: Queue::new(LENGTH, JOBS_PER_TURN),
            jobs: VecDeque::new(),
            ready: Vec::new(),
            idle: Vec::new(),
            occupied: Vec::new(),
            coming: Vec::new(),
            wakers: (0..THREADS).map(|_| Arc::default()).collect(),
            woken: vec![0; usize::try_from(THREADS).unwrap()],
            is_closed: false,
            next: 0,
        }
    }

    fn take(&mut self, step: &QueueStep) {
        match *step {
            QueueStep::Push => self.push(),
            QueueStep::Pop(thread) => {
                self.rise(thread);
                let popped = self.queue.pop().map(|job| job.0);
                assert_eq!(popped, self.jobs.pop_front().map(|job| job.0));
            }
            QueueStep::LieDown(thread, sleep) => self.lie_down(thread, sleep),
            QueueStep::LeaveToIdle(thread) => self.leave_to_idle(thread),
            QueueStep::Rise(thread) => self.rise(thread),
            QueueStep::Turn(thread, jobs) => self.turn(thread, jobs),
            QueueStep::GiveUp(place) => {
                if let Some((_, flag)) = self.jobs.get(place)
                    && !flag.swap(true, Ordering::SeqCst)
                {
                    self.queue.note_dead();
                }
            }
            QueueStep::Sweep => self.sweep(),
            QueueStep::Close => {
                self.queue.close();
                let stacks = [&mut self.ready, &mut self.idle, &mut self.occupied];
                for thread in stacks.into_iter().flat_map(|stack| stack.drain(..)) {
                    self.woken[usize::try_from(thread).unwrap()] += 1;
                }
                self.is_closed = true;
            }
        }
    }

    fn push(&mut self) {
        let job = (self.next, Flag::default());
        self.next += 1;
        let pushed = self.queue.push(Box::new(job.clone()), is_dead).map_err(|it| it.0);
        if self.is_closed {
            assert_eq!(pushed, Err(Refused::Closed));
            return;
        }
        if self.jobs.len() == LENGTH {
            // The dead make room.
            self.jobs.retain(|job| !is_dead(job));
            if self.jobs.len() == LENGTH {
                assert_eq!(pushed, Err(Refused::Full));
                return;
            }
            if !self.jobs.is_empty() {
                self.wake_one();
            }
        }
        self.jobs.push_back(job);
        assert_eq!(pushed, Ok(self.wake_one()));
    }

    // Few jobs wake nobody while a thread is in its turn: it has to take them.
    fn turn(&mut self, thread: u64, jobs: usize) {
        self.rise(thread);
        self.queue.begin_turn(thread);
        if self.jobs.is_empty() && !self.is_closed {
            for _ in 0..jobs {
                let job = (self.next, Flag::default());
                self.next += 1;
                assert!(self.queue.push(Box::new(job.clone()), is_dead).is_ok_and(|wakes| wakes));
                self.jobs.push_back(job);
            }
        }
        self.queue.end_turn();
        self.lie_down(thread, Sleep::Idle);
    }

    fn sweep(&mut self) {
        let out: Vec<usize> = self.queue.sweep(is_dead).iter().map(|job| job.0).collect();
        let dead: Vec<usize> =
            self.jobs.iter().filter(|job| is_dead(job)).map(|job| job.0).collect();
        assert_eq!(out, dead);
        self.jobs.retain(|job| !is_dead(job));
        if !self.jobs.is_empty() {
            self.wake_one();
        }
    }

    fn lie_down(&mut self, thread: u64, sleep: Sleep) {
        self.rise(thread);
        let waker = Waker::from(Arc::clone(&self.wakers[usize::try_from(thread).unwrap()]));
        let sleeps = self.queue.lie_down(thread, sleep, &waker);
        assert_eq!(sleeps, self.jobs.is_empty(), "who sleeps leaves no job behind");
        if sleeps {
            match sleep {
                Sleep::Ready => self.ready.push(thread),
                Sleep::Idle => self.idle.push(thread),
                Sleep::Occupied => self.occupied.push(thread),
            }
        }
    }

    fn leave_to_idle(&mut self, thread: u64) {
        self.rise(thread);
        let waker = Waker::from(Arc::clone(&self.wakers[usize::try_from(thread).unwrap()]));
        let has_idle = !self.idle.is_empty();
        assert_eq!(self.queue.leave_to_idle(thread, &waker), has_idle);
        if let Some(idle) = self.idle.pop() {
            self.woken[usize::try_from(idle).unwrap()] += 1;
            self.coming.push(idle);
            self.occupied.push(thread);
        }
    }

    fn rise(&mut self, thread: u64) {
        self.queue.rise(thread);
        for who in [&mut self.ready, &mut self.idle, &mut self.occupied, &mut self.coming] {
            who.retain(|other| *other != thread);
        }
    }

    /// The one that slept the shortest, of those that are best woken, unless those on their way
    /// suffice.
    fn wake_one(&mut self) -> bool {
        if self.jobs.len() <= self.coming.len() * JOBS_PER_TURN {
            return !self.coming.is_empty();
        }
        let stacks = [&mut self.ready, &mut self.idle, &mut self.occupied];
        let Some(thread) = stacks.into_iter().find_map(Vec::pop) else { return false };
        self.woken[usize::try_from(thread).unwrap()] += 1;
        self.coming.push(thread);
        true
    }

    fn check(&self) {
        let woken: Vec<usize> = self.wakers.iter().map(|waker| waker.get()).collect();
        assert_eq!(woken, self.woken);
        assert_eq!(self.queue.is_empty(), self.jobs.is_empty());
        let (pushed, popped) = self.queue.passed();
        assert_eq!(pushed - popped, self.jobs.len() as u64);
    }
}

proptest! {
    #[test]
    fn the_queue_answers_as_a_list_does_and_wakes_who_slept_the_shortest(
        steps in vec(queue_step(), 1..80),
    ) {
        let mut pair = QueuePair::new();
        for step in &steps {
            pair.take(step);
            pair.check();
        }
    }
}
