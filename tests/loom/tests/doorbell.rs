//! The wake of a sleeping reactor, in the interleavings and with the stale reads that the memory
//! model allows: two producers with one piece of mail each, and one reactor that sleeps whenever
//! it finds nothing.
//!
//! The surroundings of the doorbell hand over as little as they may, lest they stand in for a
//! fence. The queue is a flag a producer, set with release and read with acquire. The eventfd is
//! touched only by relaxed read-modify-writes: those read the latest value, as the kernel's own
//! object would, and order nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ebbtide_loom::Fences::{self, Kept, Omitted};
use ebbtide_loom::{doorbell::Doorbell, set_fences};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

#[test]
fn no_wake_is_lost() {
    model(|| {
        // The assertion is in `Shared::wait`: the reactor ends only when it has all its mail.
        run(Sides { ringing: Kept, dozing: Kept });
    });
}

#[test]
fn the_eventfd_is_written_at_most_once_a_sleep() {
    model(|| {
        let ran = run(Sides { ringing: Kept, dozing: Kept });
        assert!(ran.writes <= ran.dozes, "{} writes for {} sleeps", ran.writes, ran.dozes);
    });
}

#[test]
fn without_the_fence_of_ring_a_wake_is_lost() {
    assert_eq!(failure_of(Sides { ringing: Omitted, dozing: Kept }), Some(LOST.to_owned()));
}

#[test]
fn without_the_fence_of_doze_a_wake_is_lost() {
    assert_eq!(failure_of(Sides { ringing: Kept, dozing: Omitted }), Some(LOST.to_owned()));
}

/// Runs `scenario` in every interleaving with at most [`PREEMPTIONS`] preemptions.
fn model(scenario: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(scenario);
}

/// Which threads of a model have their fences.
#[derive(Clone, Copy)]
struct Sides {
    ringing: Fences,
    dozing: Fences,
}

/// What a run that came to its end looked like.
struct Ran {
    dozes: u32,
    writes: u32,
}

/// What loom panicked with, if it found an interleaving that fails.
fn failure_of(sides: Sides) -> Option<String> {
    let explored = catch_unwind(AssertUnwindSafe(|| {
        model(move || {
            run(sides);
        });
    }));
    let payload = explored.err()?;
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}

/// One execution: the producers push and ring, this thread is the reactor.
fn run(sides: Sides) -> Ran {
    let shared = Arc::new(Shared::new());
    let producers: Vec<_> = (0..PRODUCERS)
        .map(|me| {
            let shared = shared.clone();
            thread::spawn(move || {
                set_fences(sides.ringing);
                shared.produce(me);
            })
        })
        .collect();
    set_fences(sides.dozing);
    let dozes = shared.react();
    for producer in producers {
        producer.join().expect("a producer has no way to panic");
    }
    Ran { dozes, writes: shared.eventfd.load(Ordering::Relaxed) }
}

struct Shared {
    bell: Doorbell,
    /// A flag a producer: its mail is in the queue.
    mail: [AtomicBool; PRODUCERS],
    /// Writes so far. It is never reset: like an edge-triggered eventfd, it is news when it moves.
    eventfd: AtomicU32,
    /// Producers that have rung, and written if they had to. No part of the model but its referee:
    /// std's and not loom's, hence always up to date and ordering nothing.
    done: std::sync::atomic::AtomicU32,
}

impl Shared {
    fn new() -> Self {
        Self {
            bell: Doorbell::new(),
            mail: std::array::from_fn(|_| AtomicBool::new(false)),
            eventfd: AtomicU32::new(0),
            done: std::sync::atomic::AtomicU32::new(0),
        }
    }

    fn produce(&self, me: usize) {
        self.mail[me].store(true, Ordering::Release);
        if self.bell.ring() {
            self.eventfd.fetch_add(1, Ordering::Relaxed);
        }
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes mail and sleeps until all of it is there; answers how often it dozed.
    fn react(&self) -> u32 {
        let mut heard = 0;
        let mut dozes = 0;
        loop {
            let taken = self.mail_in();
            if taken == PRODUCERS {
                return dozes;
            }
            self.bell.doze();
            dozes += 1;
            if self.mail_in() == taken {
                heard = self.wait(heard);
            }
            self.bell.awake();
        }
    }

    /// Pieces of mail ever put in, as far as can be seen from here.
    fn mail_in(&self) -> usize {
        self.mail.iter().filter(|flag| flag.load(Ordering::Acquire)).count()
    }

    /// `epoll_wait` without a timeout: until the eventfd has moved on from `heard`.
    fn wait(&self, heard: u32) -> u32 {
        loop {
            // In this order: whoever is counted as done has written before.
            let done = self.done.load(Ordering::Relaxed);
            let writes = self.eventfd.fetch_add(0, Ordering::Relaxed);
            if writes != heard {
                return writes;
            }
            assert!((done as usize) < PRODUCERS, "{LOST}");
            thread::yield_now();
        }
    }
}

const PRODUCERS: usize = 2;

/// How often a thread may be stopped where it could go on. Without a bound the two models that
/// pass go through millions of executions; without a fence one preemption is enough to fail.
const PREEMPTIONS: usize = 3;

/// How a model fails that loses a wake.
const LOST: &str = "the reactor sleeps, its mail is in, and nobody will ring again";
