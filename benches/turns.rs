//! What a worker's turn and a drain take, over sockets that are memory (`benches/rig`).
//!
//! ```sh
//! cargo bench --bench turns
//! ```

mod rig;

use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ebbtide::Limits;
use ebbtide::internal::http::site::Grace;
use ebbtide::internal::server::endpoint::Command;
use rig::{Client, Rig, get_request, router};

/// One turn in which so many of 1,000 keep-alive connections have a request.
fn turns(criterion: &mut Criterion) {
    for ready in [0, 1, 1000] {
        let mut rig = Rig::new(router());
        let clients: Vec<Client> = (0..1000).map(|_| rig.connect()).collect();
        rig.settle();
        let request = get_request("/plain");
        criterion.bench_function(&format!("turn/{ready} of 1000 sockets ready"), |bencher| {
            bencher.iter(|| {
                for client in &clients[..ready] {
                    rig.send(*client, &request);
                }
                rig.turn();
            });
        });
        assert_eq!(rig.counts().in_flight, 0, "a turn answers all that were ready");
    }
}

/// From the order to drain until the last of 10,000 idle connections is gone. The window in which
/// a client may still send a request passes in the rig's time.
fn drain(criterion: &mut Criterion) {
    let window = Duration::from_secs(5);
    let grace = Grace { first_byte: Duration::from_secs(1), idle: window, spread: Duration::ZERO };
    let mut group = criterion.benchmark_group("drain");
    group.sample_size(10);
    group.bench_function("10000 idle connections", |bencher| {
        let drained = |mut rig: Rig| {
            rig.obey(Command::Drain(grace));
            rig.settle();
            while !rig.is_quiet() {
                assert!(rig.pass_to_deadline(), "something ends the drain");
            }
        };
        bencher.iter_batched(crowd, drained, BatchSize::PerIteration);
    });
    group.finish();
}

/// A server with 10,000 connections that have each had an answer.
fn crowd() -> Rig {
    let day = Duration::from_secs(24 * 3600);
    let limits = Limits { keep_alive_timeout: day, ..Limits::default() };
    let mut rig = Rig::with_limits(router(), limits);
    rig.prepare(10_000);
    for _ in 0..10 {
        let clients: Vec<Client> = (0..1000).map(|_| rig.connect()).collect();
        rig.settle();
        for client in clients {
            rig.send(client, &get_request("/plain"));
        }
        rig.settle();
        rig.pass(Duration::from_secs(4));
        rig.settle();
    }
    rig
}

criterion_group!(benches, turns, drain);
criterion_main!(benches);
