//! Clean-up hooks that the program runs itself.

use ebbtide::{GracefulShutdown, Hook, HookOutcome};

use super::hooks::{Notes, hanging, names};
use super::support::{Gate, Served, app, assert_took, ms, now, spawn};

#[test]
fn a_program_without_a_server_runs_its_hooks_once() {
    let handle = GracefulShutdown::new(ms(2000));
    let (notes, gate) = (Notes::default(), Gate::default());
    let (one, two) = (notes.clone(), notes.clone());
    handle.on_cleanup(Hook::last("flush", move |_| {
        two.add("flush");
        Err("full".into())
    }));
    handle.on_cleanup(Hook::http_drained("close", move |_| {
        one.add("close");
        Ok(())
    }));
    handle.on_cleanup(hanging("hangs", &gate).limit(ms(100)));
    let began = now();
    let reports = handle.cleanup_resources();
    assert_took(began, ms(100));
    gate.open();
    let outcomes: Vec<(&str, &str)> =
        reports.iter().map(|hook| (hook.name.as_str(), hook.outcome.name())).collect();
    assert_eq!(outcomes, [("close", "done"), ("hangs", "overran"), ("flush", "failed")]);
    assert_eq!(notes.all(), ["close", "flush"]);
    assert_eq!(handle.cleanup_resources(), []);
    assert_eq!(notes.all(), ["close", "flush"]);
}

#[test]
fn cleaning_up_without_a_server_takes_no_longer_than_its_share() {
    let (handle, gate) = (GracefulShutdown::new(ms(1000)), Gate::default());
    handle.on_cleanup(hanging("hangs", &gate));
    let began = now();
    let reports = handle.cleanup_resources();
    assert_took(began, ms(200));
    gate.open();
    assert_eq!(reports[0].outcome, HookOutcome::Overran);
}

#[test]
fn many_threads_that_clean_up_run_each_hook_once() {
    let (handle, notes) = (GracefulShutdown::new(ms(5000)), Notes::default());
    for count in 0..20 {
        let theirs = notes.clone();
        handle.on_cleanup(Hook::http_drained(count.to_string(), move |_| {
            theirs.add("run");
            Ok(())
        }));
    }
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let handle = handle.clone();
            spawn("cleaning up", move || handle.cleanup_resources().len())
        })
        .collect();
    let ran: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
    assert_eq!((ran, notes.all().len()), (20, 20));
}

#[test]
fn hooks_that_the_program_ran_itself_are_in_the_report_and_not_run_again() {
    let served = Served::start(app(&Gate::default()));
    let notes = Notes::default();
    let theirs = notes.clone();
    served.handle.on_cleanup(Hook::last("early", move |_| {
        theirs.add("run");
        Err("too early".into())
    }));
    assert_eq!(served.handle.cleanup_resources().len(), 1);
    // The server serves on.
    served.client().get("/hello").expect(200, "hello");
    served.begin_shutdown();
    let report = served.report();
    assert_eq!(notes.all(), ["run"]);
    assert_eq!(names(&report), ["early"]);
    assert_eq!(report.exit_status, 4);
}
