//! What it costs to have a thread of a pool do nothing: from submitting to the ticket's result.

use std::borrow::Cow;
use std::hint::black_box;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ebbtide::internal::pool::queue::{Queue, Sleep};
use ebbtide::internal::pool::{After, Canceller, Pool, PoolLimits, Reason, Resource};

struct Nothing;

impl Canceller for Nothing {
    fn cancel(&self) {}
}

impl Resource for Nothing {
    type Settings = ();

    fn connect((): &()) -> Result<Nothing, Reason> {
        Ok(Nothing)
    }

    fn is_usable(&mut self, _: After) -> bool {
        true
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        Arc::new(Nothing)
    }

    fn close(self) {}
}

fn pool(threads: usize) -> Pool<Nothing> {
    let minute = Duration::from_secs(60);
    let limits =
        PoolLimits { threads, queue_length_max: 1024, queue_timeout: minute, job_timeout: minute };
    Pool::start("bench", (), limits).expect("threads")
}

fn hand_off(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("submit to result");
    for threads in [1, 4] {
        let pool = pool(threads);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("one at a time, {threads} threads"), |bencher| {
            bencher.iter(|| {
                let ticket = pool.submit(Cow::Borrowed("nothing"), |_| Ok(black_box(1)));
                ticket.wait().expect("it does nothing")
            });
        });
        group.throughput(Throughput::Elements(64));
        group.bench_function(format!("64 at a time, {threads} threads"), |bencher| {
            bencher.iter(|| {
                let submit = |_| pool.submit(Cow::Borrowed("nothing"), |_| Ok(black_box(1)));
                let tickets: Vec<_> = (0..64).map(submit).collect();
                for ticket in tickets {
                    ticket.wait().expect("it does nothing");
                }
            });
        });
    }
    group.finish();
}

fn queue(criterion: &mut Criterion) {
    let queue = Queue::new(1024, 1);
    criterion.bench_function("queue: push and pop with a sleeper", |bencher| {
        bencher.iter(|| {
            assert!(queue.lie_down(1, Sleep::Idle, Waker::noop()));
            queue.push(Box::new(black_box(7)), |_| false).expect("there is room");
            queue.pop()
        });
    });
}

criterion_group!(benches, hand_off, queue);
criterion_main!(benches);
