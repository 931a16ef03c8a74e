//! The end of a pool, whatever its connections and jobs do.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ebbtide::internal::pool::{After, Canceller, Pool, PoolLimits, Pooled, Reason, Resource};
use ebbtide::{DatabaseError, Ticket};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::SOON;

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
    /// Each with whether its ticket is kept.
    jobs: Vec<(JobKind, bool)>,
    /// So many of the first jobs have ended when the pool is closed, if none of them is endless.
    ended: usize,
}

fn script() -> impl Strategy<Value = Script> {
    let kind = prop_oneof![
        4 => Just(JobKind::Quick),
        1 => Just(JobKind::Refused),
        1 => Just(JobKind::Broken),
        1 => Just(JobKind::Panicking),
        1 => Just(JobKind::Endless),
    ];
    (0..3_usize, 1..4_usize, vec((kind, any::<bool>()), 0..12), 0..12_usize)
        .prop_map(|(failures, threads, jobs, ended)| Script { failures, threads, jobs, ended })
}

fn work(kind: JobKind, connection: &mut Connection) -> Result<u8, DatabaseError> {
    match kind {
        JobKind::Quick => Ok(7),
        JobKind::Refused => Err(DatabaseError::Mismatch("no".to_owned())),
        JobKind::Broken => Err(DatabaseError::Lost),
        // Past the panic hook, whose first backtrace reads a debug build's symbols for seconds.
        JobKind::Panicking => std::panic::resume_unwind(Box::new("a job that panics")),
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
    let mut kept = Vec::new();
    let mut results = Vec::new();
    let mut may_wait = true;
    for (number, &(kind, keeps)) in script.jobs.iter().enumerate() {
        let ticket = pool.submit(Cow::Borrowed("job"), move |connection| work(kind, connection));
        may_wait &= number < script.ended && !matches!(kind, JobKind::Endless);
        match (keeps, may_wait) {
            (true, true) => results.push((kind, ticket.wait())),
            (true, false) => kept.push((kind, ticket)),
            (false, _) => {}
        }
    }
    // The endless ones are cancelled when half of this is over.
    pool.close(Instant::now() + Duration::from_millis(1600)).expect("everything can be closed");
    results.extend(kept.into_iter().map(|(kind, ticket): (_, Ticket<u8>)| (kind, ticket.wait())));
    for (kind, result) in results {
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
