//! The pool against models that are too simple to be wrong: its queue, its tickets, and its end
//! with connections that do what a script says.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use ebbtide::internal::pool::queue::{Queue, Refused, Sleep};
use ebbtide::internal::pool::ticket::{Cell, Desk, Entry, Facts, Stage};
use ebbtide::internal::pool::{After, Canceller, Pool, PoolLimits, Pooled, Reason, Resource};
use ebbtide::{DatabaseError, Ticket};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Count>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

// The queue.

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

// The ticket.

#[derive(Clone, Copy, Debug)]
enum TicketStep {
    Take,
    Settle(u8),
    Fail,
    Poll,
    Drop,
}

fn ticket_step() -> impl Strategy<Value = TicketStep> {
    prop_oneof![
        Just(TicketStep::Take),
        any::<u8>().prop_map(TicketStep::Settle),
        Just(TicketStep::Fail),
        Just(TicketStep::Poll),
        Just(TicketStep::Drop),
    ]
}

#[derive(Default)]
struct Told(Mutex<Vec<Stage>>);

impl Desk for Told {
    fn abandoned(&self, was: Stage, _: &Facts) {
        self.0.lock().unwrap().push(was);
    }
}

fn ticket_agrees(steps: &[TicketStep]) {
    let (told, waker) = (Arc::new(Told::default()), Arc::new(Count::default()));
    let now = Instant::now();
    let cell: Arc<Cell<u8>> = Cell::new(Cow::Borrowed("job"), now, now);
    let mut ticket = Some(cell.ticket(Arc::clone(&told) as Arc<dyn Desk>));
    let mut stage = Stage::Queued;
    let mut result: Option<Result<u8, DatabaseError>> = None;
    let (mut waits, mut woken, mut abandoned) = (false, 0, Vec::new());
    for step in steps {
        match *step {
            TicketStep::Take => {
                assert_eq!(cell.take(3), stage == Stage::Queued);
                if stage == Stage::Queued {
                    stage = Stage::Running;
                }
            }
            TicketStep::Settle(_) | TicketStep::Fail => {
                let given = match *step {
                    TicketStep::Settle(value) => Ok(value),
                    _ => Err(DatabaseError::Timeout),
                };
                let is_first = matches!(stage, Stage::Queued | Stage::Running);
                assert_eq!(cell.settle(given.clone()), is_first, "the first result stays");
                if is_first {
                    stage = Stage::Done;
                    result = Some(given);
                    woken += usize::from(std::mem::take(&mut waits));
                }
            }
            TicketStep::Poll => {
                let Some(open) = &mut ticket else { continue };
                let waker = Waker::from(Arc::clone(&waker));
                let polled = Pin::new(open).poll(&mut Context::from_waker(&waker));
                if let Some(expected) = result.take() {
                    assert_eq!(polled, Poll::Ready(expected));
                    // It is ready once.
                    ticket = None;
                } else {
                    assert_eq!(polled, Poll::Pending);
                    waits = true;
                }
            }
            TicketStep::Drop => {
                if ticket.take().is_some() && stage != Stage::Done {
                    abandoned.push(stage);
                    stage = Stage::Abandoned;
                    waits = false;
                }
            }
        }
        assert_eq!(cell.stage(), stage);
        assert_eq!(waker.get(), woken, "who waits is woken once, by the result");
        assert_eq!(*told.0.lock().unwrap(), abandoned);
    }
}

// The end.

/// What connections of a test share.
#[derive(Default)]
struct World {
    /// Connections that were made, and closed.
    made: AtomicUsize,
    closed: AtomicUsize,
    /// Attempts to connect that are still to fail.
    failures: AtomicUsize,
    cancelled: Mutex<usize>,
    changed: Condvar,
}

struct Connection {
    world: Arc<World>,
}

struct Cancelling(Arc<World>);

impl Canceller for Cancelling {
    fn cancel(&self) {
        *self.0.cancelled.lock().unwrap() += 1;
        self.0.changed.notify_all();
    }
}

impl Resource for Connection {
    type Settings = Arc<World>;

    fn connect(world: &Arc<World>) -> Result<Connection, Reason> {
        let fails = |left: usize| left.checked_sub(1);
        if world.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fails).is_ok() {
            return Err(Reason("not yet".to_owned()));
        }
        world.made.fetch_add(1, Ordering::SeqCst);
        Ok(Connection { world: Arc::clone(world) })
    }

    fn is_usable(&mut self, after: After) -> bool {
        after != After::Cancelled
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        Arc::new(Cancelling(Arc::clone(&self.world)))
    }

    fn close(self) {
        self.world.closed.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Copy, Debug)]
enum JobKind {
    Quick,
    Refused,
    Broken,
    Panicking,
    /// Ends when it is cancelled.
    Endless,
}

#[derive(Clone, Debug)]
struct Script {
    failures: usize,
    threads: usize,
    jobs: Vec<(JobKind, bool)>,
}

fn script() -> impl Strategy<Value = Script> {
    let kind = prop_oneof![
        4 => Just(JobKind::Quick),
        1 => Just(JobKind::Refused),
        1 => Just(JobKind::Broken),
        1 => Just(JobKind::Panicking),
        1 => Just(JobKind::Endless),
    ];
    (0..3_usize, 1..4_usize, vec((kind, any::<bool>()), 0..12))
        .prop_map(|(failures, threads, jobs)| Script { failures, threads, jobs })
}

fn work(kind: JobKind, connection: &mut Connection) -> Result<u8, DatabaseError> {
    match kind {
        JobKind::Quick => Ok(7),
        JobKind::Refused => Err(DatabaseError::Mismatch("no".to_owned())),
        JobKind::Broken => Err(DatabaseError::Lost),
        JobKind::Panicking => panic!("a job that panics, which a test asked for"),
        JobKind::Endless => {
            let cancelled = connection.world.cancelled.lock().unwrap();
            let before = *cancelled;
            let waits = |cancelled: &mut usize| *cancelled == before;
            let waited =
                connection.world.changed.wait_timeout_while(cancelled, SOON, waits).unwrap();
            assert!(!waited.1.timed_out(), "nobody cancelled it");
            Err(DatabaseError::Timeout)
        }
    }
}

fn closes_completely(script: &Script) {
    let world = Arc::new(World::default());
    world.failures.store(script.failures, Ordering::SeqCst);
    let limits = PoolLimits {
        threads: script.threads,
        queue_length_max: 8,
        queue_timeout: SOON,
        job_timeout: SOON,
    };
    let pool: Pool<Connection> = Pool::start("model", Arc::clone(&world), limits).unwrap();
    let mut kept: Vec<(JobKind, Ticket<u8>)> = Vec::new();
    for &(kind, keeps) in &script.jobs {
        let ticket = pool.submit(Cow::Borrowed("job"), move |connection| work(kind, connection));
        if keeps {
            kept.push((kind, ticket));
        }
    }
    // The endless ones are cancelled when half of this is over.
    pool.close(Instant::now() + Duration::from_millis(800)).expect("everything can be closed");
    for (kind, ticket) in kept {
        let result = ticket.wait();
        let never_begun = matches!(
            result,
            Err(DatabaseError::Busy
                | DatabaseError::Unavailable
                | DatabaseError::Closed
                | DatabaseError::Cancelled)
        );
        let is_own = match kind {
            JobKind::Quick => result == Ok(7),
            JobKind::Refused => matches!(result, Err(DatabaseError::Mismatch(_))),
            JobKind::Broken => result == Err(DatabaseError::Lost),
            JobKind::Panicking => result == Err(DatabaseError::Panicked),
            JobKind::Endless => false,
        };
        assert!(is_own || never_begun, "{kind:?}: {result:?}");
    }
    let late = pool.submit(Cow::Borrowed("late"), |_| Ok(())).wait();
    assert!(matches!(late, Err(DatabaseError::Closed | DatabaseError::Cancelled)), "{late:?}");
    assert_eq!(world.made.load(Ordering::SeqCst), world.closed.load(Ordering::SeqCst));
    assert_eq!(pool.numbers().threads, 0);
    let told: u64 = pool.numbers().outcomes.iter().sum();
    assert_eq!(told, script.jobs.len() as u64 + 1, "each job has one outcome");
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

    #[test]
    fn a_ticket_has_one_result_and_one_end(steps in vec(ticket_step(), 1..12)) {
        ticket_agrees(&steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_pool_that_is_closed_has_settled_every_ticket_and_closed_every_connection(
        script in script(),
    ) {
        closes_completely(&script);
    }
}

/// Jobs from several threads to several others, with tickets dropped on the way: each that is kept
/// has its result, and nobody sleeps beside a job.
#[test]
fn under_contention_no_job_is_left_behind() {
    let limits =
        PoolLimits { threads: 3, queue_length_max: 64, queue_timeout: SOON, job_timeout: SOON };
    let pool: Pool<Connection> = Pool::start("busy", Arc::default(), limits).unwrap();
    std::thread::scope(|scope| {
        for submitter in 0..4_u32 {
            let pool = pool.clone();
            scope.spawn(move || {
                for number in 0..2000_u32 {
                    let ticket = pool.submit(Cow::Borrowed("add"), move |_| Ok(submitter + number));
                    if number % 7 == 0 {
                        drop(ticket);
                    } else {
                        assert_eq!(ticket.wait(), Ok(submitter + number));
                    }
                }
            });
        }
    });
    pool.close(Instant::now() + SOON).unwrap();
}

const JOBS_PER_TURN: usize = 4; // that a thread takes
const THREADS: u64 = 4;
const LENGTH: usize = 5;
const SOON: Duration = Duration::from_secs(20);

/// A client that panics wherever it can, each time once more than is good.
struct Faulty(Arc<AtomicUsize>);

fn every_other_time(calls: &AtomicUsize) {
    let call = calls.fetch_add(1, Ordering::SeqCst);
    assert!(call % 2 == 1, "a client that panics, which a test asked for");
}

impl Resource for Faulty {
    type Settings = Arc<AtomicUsize>;

    fn connect(calls: &Arc<AtomicUsize>) -> Result<Faulty, Reason> {
        every_other_time(calls);
        Ok(Faulty(Arc::clone(calls)))
    }

    fn is_usable(&mut self, _: After) -> bool {
        every_other_time(&self.0);
        true
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        Arc::new(Cancelling(Arc::default()))
    }

    fn close(self) {
        every_other_time(&self.0);
    }
}

/// A result that panics when nobody wants it.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "a result that panics, which a test asked for");
    }
}

#[test]
fn no_thread_ends_because_something_in_it_panics() {
    let limits =
        PoolLimits { threads: 1, queue_length_max: 8, queue_timeout: SOON, job_timeout: SOON };
    let pool: Pool<Faulty> = Pool::start("faulty", Arc::default(), limits).unwrap();
    let end = Instant::now() + 3 * SOON; // a trace of each panic takes its time
    let mut done = 0;
    while done < 3 {
        assert!(Instant::now() < end, "no job is done any more");
        let ticket = pool.submit(Cow::Borrowed("job"), |_| Ok(()));
        done += usize::from(ticket.wait().is_ok());
        // One whose result comes when its ticket is gone.
        let (begun, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (begins, goes) = (Arc::clone(&begun), Arc::clone(&go));
        let ticket = pool.submit(Cow::Borrowed("bomb"), move |_| {
            begins.store(true, Ordering::SeqCst);
            while !goes.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            Ok(Bomb)
        });
        while pool.usable().is_ok() && !begun.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(ticket);
        go.store(true, Ordering::SeqCst);
    }
    assert_eq!(pool.numbers().threads, 1);
    pool.close(Instant::now() + SOON).expect("it can be closed");
}
