//! What the parts take: the timer wheel, the slots, the mailbox, a line of the log, the
//! configuration.
//!
//! ```sh
//! cargo bench --bench parts
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use ebbtide::internal::config;
use ebbtide::internal::reactor::mailbox::Mailbox;
use ebbtide::internal::reactor::slots::{Slots, Token};
use ebbtide::internal::reactor::timer::{Tick, Wheel};
use ebbtide::internal::reactor::turn::Reactor;
use ebbtide::logging;
use log::LevelFilter;
use log::kv::Value;

/// What most requests do to the wheel is the first; what 10,000 idle connections cost, the last.
fn wheel(criterion: &mut Criterion) {
    let mut wheel = Wheel::new(Instant::now());
    for key in 0..10_000 {
        wheel.file_by(key, Tick(100 + key % 700));
    }
    criterion.bench_function("wheel/a later deadline for a filed key", |bencher| {
        bencher.iter(|| wheel.file_by(black_box(5000), black_box(Tick(2000))));
    });
    criterion.bench_function("wheel/file and cancel", |bencher| {
        bencher.iter(|| {
            wheel.file_by(black_box(10_001), black_box(Tick(50)));
            wheel.cancel(black_box(10_001));
        });
    });
    criterion.bench_function("wheel/next of 10000", |bencher| bencher.iter(|| wheel.next()));
    let mut due = Vec::new();
    criterion.bench_function("wheel/10000 keys filed and expired", |bencher| {
        bencher.iter_custom(|times| {
            let mut spent = Duration::ZERO;
            for _ in 0..times {
                let mut wheel = Wheel::new(Instant::now());
                let began = Instant::now();
                for key in 0..10_000 {
                    wheel.file_by(key, Tick(key % 700));
                }
                wheel.expire(Tick(700), &mut due);
                spent += began.elapsed();
                assert_eq!(due.len(), 10_000);
                due.clear();
            }
            spent
        });
    });
}

fn slots(criterion: &mut Criterion) {
    let mut slots = Slots::new();
    let tokens: Vec<Token> = (0..10_000u64).map(|value| slots.insert([value; 6])).collect();
    let mut at = 0;
    criterion.bench_function("slots/look up one of 10000, far from the last", |bencher| {
        bencher.iter(|| {
            at = (at + 7919) % tokens.len();
            slots.get_mut(tokens[at]).map(|value| value[0])
        });
    });
    criterion.bench_function("slots/insert and remove", |bencher| {
        bencher.iter(|| {
            let token = slots.insert(black_box([1; 6]));
            slots.remove(token)
        });
    });
    criterion.bench_function("slots/walk 10000", |bencher| {
        bencher.iter(|| slots.iter().map(|(_, value)| value[0]).sum::<u64>());
    });
}

/// From another thread's point of view: to a reactor that is awake, which is not rung.
fn mailbox(criterion: &mut Criterion) {
    let reactor = Reactor::new().expect("epoll is there");
    let mailbox = Mailbox::new(Arc::clone(reactor.remote()));
    criterion.bench_function("mailbox/post and take", |bencher| {
        bencher.iter(|| {
            mailbox.post(black_box(1u64));
            mailbox.take()
        });
    });
    criterion.bench_function("mailbox/empty", |bencher| bencher.iter(|| mailbox.is_empty()));
}

/// One line of the access log, made and handed to the thread that writes.
fn log_line(criterion: &mut Criterion) {
    let options = logging::Options { level: LevelFilter::Info, format: logging::Format::Json };
    let sink = Box::new(io::sink());
    let (log, _writer) = logging::with_sink(options, sink).expect("a thread can be started");
    let text = format_args!("GET /plaintext 200");
    criterion.bench_function("log/one line with five fields", |bencher| {
        bencher.iter(|| {
            let fields = [
                ("event_type", Value::from("request")),
                ("method", Value::from("GET")),
                ("path", Value::from(black_box("/plaintext"))),
                ("status", Value::from(200)),
                ("duration_ms", Value::from(0.42)),
            ];
            let mut record = log::Record::builder();
            record.level(log::Level::Info).target("ebbtide").key_values(&fields);
            log.log(&record.args(text).build());
        });
    });
}

/// What `ebbtide serve` reads at its start: the checked-in file, some variables, a flag.
fn configuration(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let args: Vec<OsString> = ["ebbtide", "--shutdown-timeout", "20"].map(OsString::from).into();
    let env = BTreeMap::from([
        ("WORKERS", OsString::from("2")),
        ("LISTEN", OsString::from("127.0.0.1:8081")),
    ]);
    criterion.bench_function("config/settings.toml, two variables, one flag", |bencher| {
        bencher.iter(|| {
            let loaded = config::load(args.clone(), &|name| env.get(name).cloned(), root);
            black_box(loaded.expect("the checked-in settings are good"))
        });
    });
}

criterion_group!(benches, wheel, slots, mailbox, log_line, configuration);
criterion_main!(benches);
