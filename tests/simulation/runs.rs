//! Many worlds, one after the other on each core, and the way back to one of them.
//!
//! | variable | means |
//! |---|---|
//! | `EBBTIDE_SEEDS=N`, `EBBTIDE_FROM=M` | so many worlds, from this seed on |
//! | `EBBTIDE_SEED=N` | this one, with its trace |
//! | `EBBTIDE_CLIENTS=0,2` | only with these of its clients |
//! | `EBBTIDE_FAULT=NoSurplusRule` | with a mistake in the server (see [`Fault`]) |
//! | `EBBTIDE_SURVEY=1` | do not stop at the first finding: count them by kind |

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::oracle::{Finding, Kind, judge};
use super::settings::Settings;
use super::world::{Case, Stage, World};
use crate::http::site::Fault;
use crate::ledger::{Counts, RequestOutcome};
use crate::metrics::Metrics;
use crate::reactor::blocking::Pool;
use crate::reactor::task;
use crate::reactor::turn::Reactor;

/// A world that has ended.
struct Ran {
    findings: Vec<Finding>,
    counts: Counts,
    /// Empty unless it was asked for.
    trace: Vec<String>,
}

#[test]
fn every_request_comes_to_its_right_end_whatever_the_seed() {
    let fault = fault();
    if let Some(seed) = number("EBBTIDE_SEED") {
        let case = Case { seed, fault, only: clients(), is_traced: true };
        let ran = on_stage(|stage| run(&case, stage));
        println!("{}", explain(&case));
        assert!(ran.findings.is_empty(), "seed {seed}: {:?}", ran.findings);
        return;
    }
    let count = number("EBBTIDE_SEEDS");
    let count = count.unwrap_or(if cfg!(debug_assertions) { 300 } else { 10_000 });
    let from = number("EBBTIDE_FROM").unwrap_or(0);
    if std::env::var_os("EBBTIDE_SURVEY").is_some() {
        println!("{}", survey(from..from + count, fault));
        return;
    }
    let (failure, counts) = first_failure(from..from + count, fault);
    if let Some((case, findings)) = failure {
        panic!("{}", explain(&shrink(&case, findings[0].kind)));
    }
    let ends = RequestOutcome::ALL.map(|end| format!("{} {}", counts.finished_as(end), end.name()));
    println!("{count} worlds, {} requests: {}", counts.begun, ends.join(", "));
    for end in RequestOutcome::ALL {
        assert!(count < 300 || counts.finished_as(end) > 0, "no request was ever {}", end.name());
    }
}

#[test]
fn hypers_own_graceful_shutdown_is_caught() {
    is_caught(Fault::HyperShutdown, &[Kind::LostAnnounced, Kind::LostSilently]);
}

#[test]
fn announcing_the_close_over_a_next_request_is_caught() {
    is_caught(Fault::NoSurplusRule, &[Kind::LostAnnounced]);
}

#[test]
fn an_idle_close_without_a_last_look_is_caught() {
    is_caught(Fault::NoLastLook, &[Kind::LostSilently]);
}

/// The mistake is found, as what it is, within so many seeds.
fn is_caught(fault: Fault, as_one_of: &[Kind]) {
    let (failure, _) = first_failure(0..6000, fault);
    let (case, findings) = failure.unwrap_or_else(|| panic!("nobody noticed {fault:?}"));
    for finding in &findings {
        let what = format!("{fault:?}, seed {}: {finding:?}", case.seed);
        assert!(as_one_of.contains(&finding.kind), "{what}");
    }
}

/// Runs worlds on the calling thread, which has one reactor.
fn on_stage<R>(f: impl FnOnce(&Stage) -> R) -> R {
    let reactor = Reactor::new().expect("epoll is there");
    let _entered = reactor.enter(Pool::new(0));
    let stage = Stage {
        remote: Arc::clone(reactor.remote()),
        epoch: reactor.now(),
        metrics: Metrics::new(),
    };
    f(&stage)
}

fn run(case: &Case, stage: &Stage) -> Ran {
    let mut world = World::new(case, stage);
    let ended = catch_unwind(AssertUnwindSafe(|| {
        world.run();
        judge(&world)
    }));
    let findings = ended.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let what = text.unwrap_or_else(|| "an assertion failed".to_owned());
        vec![Finding { kind: Kind::Panic, what }]
    });
    let mut counts = Counts::default();
    for worker in &world.workers {
        counts.add(&worker.counts);
    }
    let trace = world.kernel.take_trace();
    drop(world);
    // What this world woke last is no business of the next.
    task::drain_woken(|_| {});
    while stage.remote.take_woken().is_some() {}
    Ran { findings, counts, trace }
}

/// Runs the seeds' worlds on as many threads as there are cores, until `see` has seen enough.
fn each(seeds: Range<u64>, fault: Fault, see: impl Fn(Case, Ran) -> ControlFlow<()> + Sync) {
    let next = AtomicU64::new(seeds.start);
    let work = |stage: &Stage| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let case = Case { seed, fault, only: None, is_traced: false };
            let ran = run(&case, stage);
            if see(case, ran).is_break() {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| on_stage(work));
        }
    });
}

/// A world that shows something, if there is one; and what all worlds until then have booked.
fn first_failure(seeds: Range<u64>, fault: Fault) -> (Option<(Case, Vec<Finding>)>, Counts) {
    let result = Mutex::new((None, Counts::default()));
    each(seeds, fault, |case, ran| {
        let (found, counts) = &mut *result.lock().unwrap();
        counts.add(&ran.counts);
        if ran.findings.is_empty() {
            return ControlFlow::Continue(());
        }
        *found = Some((case, ran.findings));
        ControlFlow::Break(())
    });
    result.into_inner().unwrap()
}

/// How often each kind was found, with a few seeds that show it.
fn survey(seeds: Range<u64>, fault: Fault) -> String {
    let all: Mutex<BTreeMap<String, Vec<u64>>> = Mutex::default();
    each(seeds, fault, |case, ran| {
        let mut all = all.lock().unwrap();
        for finding in ran.findings {
            all.entry(format!("{:?}", finding.kind)).or_default().push(case.seed);
        }
        ControlFlow::Continue(())
    });
    let mut text = String::new();
    for (kind, seeds) in all.into_inner().unwrap() {
        let some = &seeds[..seeds.len().min(8)];
        writeln!(text, "{kind}: {}, e.g. {some:?}", seeds.len()).unwrap();
    }
    text
}

/// Takes clients away as long as what was found stays.
fn shrink(case: &Case, kind: Kind) -> Case {
    let mut only: Vec<usize> = (0..Settings::new(case.seed).clients).collect();
    on_stage(|stage| {
        for client in only.clone() {
            let fewer: Vec<usize> = only.iter().copied().filter(|other| *other != client).collect();
            let tried = Case { only: Some(fewer.clone()), ..case.clone() };
            if run(&tried, stage).findings.iter().any(|finding| finding.kind == kind) {
                only = fewer;
            }
        }
    });
    Case { only: Some(only), ..case.clone() }
}

/// What happened, for a reader, and how to see it again.
fn explain(case: &Case) -> String {
    let ran = on_stage(|stage| run(&Case { is_traced: true, ..case.clone() }, stage));
    let mut text = ran.trace.join("\n");
    write!(text, "\n\nseed {}", case.seed).unwrap();
    for finding in &ran.findings {
        write!(text, "\n  {:?}: {}", finding.kind, finding.what).unwrap();
    }
    write!(text, "\nAgain:\n  EBBTIDE_SEED={}", case.seed).unwrap();
    if let Some(only) = &case.only {
        let only: Vec<String> = only.iter().map(usize::to_string).collect();
        write!(text, " EBBTIDE_CLIENTS={}", only.join(",")).unwrap();
    }
    if case.fault != Fault::None {
        write!(text, " EBBTIDE_FAULT={:?}", case.fault).unwrap();
    }
    text + " cargo test --lib simulation::runs::every -- --nocapture"
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn clients() -> Option<Vec<usize>> {
    let text = std::env::var("EBBTIDE_CLIENTS").ok()?;
    Some(text.split(',').map(|index| index.parse().expect("clients are numbers")).collect())
}

fn fault() -> Fault {
    let Ok(name) = std::env::var("EBBTIDE_FAULT") else { return Fault::None };
    let all = [Fault::HyperShutdown, Fault::NoSurplusRule, Fault::NoLastLook];
    let named = all.into_iter().find(|fault| format!("{fault:?}") == name);
    named.unwrap_or_else(|| panic!("EBBTIDE_FAULT is one of {all:?}"))
}
