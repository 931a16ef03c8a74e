//! Clean-up hooks: their stages, their limits, and what becomes of those that fail.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use ebbtide::{
    GracefulShutdown, Hook, HookOutcome, HookReport, HookStage, Options, Phase, Policy, Report,
    Request, Router, Server, Signal, Workers, get,
};

use super::client::request;
use super::support::{
    Gate, SIGNAL_ECHO, SLACK, Served, app, assert_took, ms, now, options, pace, wait_until,
};

/// Hooks have a fifth of it: 0.4 s.
fn two_seconds() -> Policy {
    Policy { timeout: ms(2000), ..Policy::default() }
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    pub fn add(&self, what: &str) {
        self.0.lock().expect("no panic while held").push(what.to_owned());
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic while held").clone()
    }

    /// A hook that notes its beginning and its end, between which it waits for the gate.
    fn gated(&self, name: &'static str, stage: HookStage, gate: &Gate) -> Hook {
        let (notes, gate) = (self.clone(), gate.clone());
        let work = move |_: Instant| {
            notes.add(&format!("{name} begins"));
            gate.block();
            notes.add(&format!("{name} ends"));
            Ok(())
        };
        match stage {
            HookStage::HttpDrained => Hook::http_drained(name, work),
            HookStage::Last => Hook::last(name, work),
        }
    }
}

/// A hook that never ends, as far as its server is concerned.
pub fn hanging(name: &str, gate: &Gate) -> Hook {
    let gate = gate.clone();
    Hook::http_drained(name, move |_| {
        gate.block();
        Ok(())
    })
}

pub fn of<'a>(report: &'a Report, name: &str) -> &'a HookReport {
    let mut found = report.hooks.iter().filter(|hook| hook.name == name);
    let hook = found.next().unwrap_or_else(|| panic!("no {name} in {:?}", report.hooks));
    assert!(found.next().is_none(), "{name} has one outcome: {:?}", report.hooks);
    hook
}

pub fn names(report: &Report) -> Vec<&str> {
    report.hooks.iter().map(|hook| hook.name.as_str()).collect()
}

#[test]
fn stages_come_one_after_the_other_and_hooks_of_one_run_side_by_side() {
    for workers in [1, 0] {
        let workers = Workers::Count(workers);
        let served = Served::with(Options { workers, ..options() }, app(&Gate::default()));
        let (notes, gate) = (Notes::default(), Gate::default());
        // Registered in the wrong order.
        served.handle.on_cleanup(notes.gated("flush", HookStage::Last, &gate));
        for name in ["one", "two", "three"] {
            served.handle.on_cleanup(notes.gated(name, HookStage::HttpDrained, &gate));
        }
        served.begin_shutdown();
        // Each has begun while none has ended; `flush` has not.
        gate.until_arrived(3);
        assert_eq!(served.phase(), Phase::CleaningUp);
        let mut begun = notes.all();
        begun.sort_unstable();
        assert_eq!(begun, ["one begins", "three begins", "two begins"]);
        gate.let_one();
        gate.let_one();
        wait_until("two have ended", || notes.all().len() == 5);
        pace(ms(50));
        assert!(!notes.all().contains(&"flush begins".to_owned()), "{:?}", notes.all());
        gate.let_one();
        gate.until_arrived(4);
        gate.open();
        let report = served.report();
        assert_eq!(notes.all()[6..], ["flush begins", "flush ends"]);
        assert_eq!((report.exit_status, report.hooks.len()), (0, 4));
        assert!(report.hooks.iter().all(|hook| hook.outcome == HookOutcome::Done));
        assert_eq!(of(&report, "flush").stage, HookStage::Last);
        assert_eq!(of(&report, "two").stage, HookStage::HttpDrained);
        assert_eq!(names(&report)[3], "flush");
    }
}

#[test]
fn hooks_run_when_http_is_over_and_not_before() {
    let (gate, notes) = (Gate::default(), Notes::default());
    let served = Served::start(app(&gate));
    let theirs = notes.clone();
    let handle = served.handle.clone();
    served.handle.on_cleanup(Hook::http_drained("close", move |_| {
        let counts = handle.snapshot().counts;
        theirs.add(&format!("{} in flight, {} open", counts.in_flight, counts.open()));
        Ok(())
    }));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.expect_silence(ms(200));
    assert_eq!(notes.all(), Vec::<String>::new());
    gate.open();
    client.read_response().expect(200, "waited");
    drop(client);
    assert_eq!(served.report().exit_status, 0);
    assert_eq!(notes.all(), ["0 in flight, 0 open"]);
}

#[test]
fn a_hook_that_fails_panics_or_hangs_does_not_stop_the_others() {
    let served = Served::ending(two_seconds(), app(&Gate::default()));
    let (gate, notes) = (Gate::default(), Notes::default());
    served.handle.on_cleanup(Hook::http_drained("fails", |_| {
        let cause = std::io::Error::other("the disk is full");
        Err(Box::new(cause))
    }));
    served.handle.on_cleanup(Hook::http_drained("panics", |_| panic!("ouch {}", 1)));
    served.handle.on_cleanup(hanging("hangs", &gate).limit(ms(100)));
    for (name, stage) in [("works", HookStage::HttpDrained), ("flush", HookStage::Last)] {
        served.handle.on_cleanup(notes.gated(name, stage, &{
            let open = Gate::default();
            open.open();
            open
        }));
    }
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert_took(began, ms(100));
    gate.open();
    assert_eq!(report.exit_status, 4);
    assert_eq!(of(&report, "fails").outcome, HookOutcome::Failed("the disk is full".to_owned()));
    assert_eq!(of(&report, "panics").outcome, HookOutcome::Panicked("ouch 1".to_owned()));
    assert_eq!(of(&report, "hangs").outcome, HookOutcome::Overran);
    assert_eq!(of(&report, "works").outcome, HookOutcome::Done);
    assert_eq!(of(&report, "flush").outcome, HookOutcome::Done);
    let hangs = of(&report, "hangs");
    assert_eq!(hangs.limit, ms(100));
    assert!((ms(100)..ms(100) + SLACK).contains(&hangs.took), "{hangs:?}");
    assert_eq!(notes.all().last().map(String::as_str), Some("flush ends"));
    // And the same as JSON.
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
    let told = |name: &str| {
        let hooks = json["hooks"].as_array().expect("an array");
        let hook = hooks.iter().find(|hook| hook["name"] == name).expect("it is there").clone();
        (hook["outcome"].clone(), hook["error"].clone(), hook["stage"].clone())
    };
    let null = serde_json::Value::Null;
    let drained: serde_json::Value = "http_drained".into();
    assert_eq!(told("fails"), ("failed".into(), "the disk is full".into(), drained.clone()));
    assert_eq!(told("panics"), ("panicked".into(), "ouch 1".into(), drained.clone()));
    assert_eq!(told("hangs"), ("overran".into(), null.clone(), drained));
    assert_eq!(told("flush"), ("done".into(), null, "last".into()));
    assert_eq!(json["exit_status"], 4);
}

#[test]
fn each_way_to_fail_alone_is_status_4() {
    type Work = fn(Instant) -> Result<(), ebbtide::HookError>;
    let works: [Work; 3] = [
        |_| Err("no".into()),
        |_| std::panic::panic_any(7),
        |deadline| {
            wait_until("the deadline is over", || now() > deadline + ms(100));
            Ok(())
        },
    ];
    for work in works {
        for stage in [Hook::http_drained("bad", work), Hook::last("bad", work)] {
            let served = Served::ending(two_seconds(), app(&Gate::default()));
            served.handle.on_cleanup(stage);
            served.begin_shutdown();
            assert_eq!(served.report().exit_status, 4);
        }
    }
}

#[test]
fn a_lost_request_outranks_a_failed_hook() {
    let gate = Gate::default();
    let served = Served::ending(two_seconds(), app(&gate));
    served.handle.on_cleanup(Hook::last("fails", |_| Err("no".into())));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.read_response().expect_refusal();
    drop(client);
    let report = served.report();
    assert_eq!((report.exit_status, report.refused), (3, 1));
    assert_eq!(of(&report, "fails").outcome, HookOutcome::Failed("no".to_owned()));
}

#[test]
fn a_hook_is_given_its_deadline() {
    for (limit, expected) in [(None, ms(400)), (Some(ms(150)), ms(150)), (Some(ms(9000)), ms(400))]
    {
        let given = Arc::new(Mutex::new(None));
        let theirs = Arc::clone(&given);
        let mut hook = Hook::http_drained("asks", move |deadline| {
            *theirs.lock().expect("no panic while held") = Some((now(), deadline));
            Ok(())
        });
        if let Some(limit) = limit {
            hook = hook.limit(limit);
        }
        let served = Served::ending(two_seconds(), app(&Gate::default()));
        served.handle.on_cleanup(hook);
        served.begin_shutdown();
        let report = served.report();
        let (at, deadline) = given.lock().expect("no panic while held").expect("it ran");
        let left = deadline.saturating_duration_since(at);
        assert!(left <= expected && left + ms(100) >= expected, "{limit:?}: {left:?} left");
        assert_eq!(of(&report, "asks").limit, expected);
    }
}

#[test]
fn a_hung_hook_leaves_time_for_the_last_stage_and_does_not_outlast_the_budget() {
    for workers in [1, 0] {
        let workers = Workers::Count(workers);
        let options = Options { shutdown: two_seconds(), workers, ..options() };
        let served = Served::with(options, app(&Gate::default()));
        let (gate, notes) = (Gate::default(), Notes::default());
        let theirs = notes.clone();
        served.handle.on_cleanup(hanging("hangs", &gate));
        served.handle.on_cleanup(Hook::last("flush", move |deadline| {
            theirs.add(if now() < deadline { "in time" } else { "too late" });
            Ok(())
        }));
        let began = now();
        served.begin_shutdown();
        let report = served.report();
        let took = now() - began;
        gate.open();
        assert!(took < ms(400) + SLACK, "hooks have a fifth of the budget, they took {took:?}");
        assert_eq!(report.exit_status, 4);
        assert_eq!(of(&report, "hangs").outcome, HookOutcome::Overran);
        assert_eq!(of(&report, "flush").outcome, HookOutcome::Done);
        assert_eq!(notes.all(), ["in time"]);
    }
}

#[test]
fn hooks_after_a_cut_end_within_the_budget() {
    let (gate, hang) = (Gate::default(), Gate::default());
    let served = Served::ending(two_seconds(), app(&gate));
    served.handle.on_cleanup(hanging("hangs", &hang));
    served.handle.on_cleanup(Hook::last("hangs as well", {
        let hang = hang.clone();
        move |_| {
            hang.block();
            Ok(())
        }
    }));
    let mut streaming = served.client();
    streaming.send(request("/stream"));
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(2);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert_took(began, ms(2000));
    gate.open();
    hang.open();
    assert_eq!((report.exit_status, report.cut), (3, 2));
    assert!(report.hooks.iter().all(|hook| hook.outcome == HookOutcome::Overran));
    assert_eq!(report.hooks.len(), 2);
    assert!(report.duration() < ms(2000) + SLACK);
}

#[test]
fn a_budget_of_nothing_gives_hooks_no_time_and_says_so() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(0), ..Policy::default() };
    let served = Served::ending(policy, app(&Gate::default()));
    served.handle.on_cleanup(hanging("hangs", &gate));
    served.handle.on_cleanup(Hook::last("flush", |_| Ok(())));
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    gate.open();
    assert!(now() - began < SLACK);
    assert_eq!(of(&report, "hangs").outcome, HookOutcome::Overran);
    assert_eq!(report.hooks.len(), 2, "each is named: {:?}", report.hooks);
    assert_eq!(report.exit_status, 4);
}

#[test]
fn a_hook_that_comes_too_late_is_not_run_and_harms_nothing() {
    struct Noted(Notes);
    impl Drop for Noted {
        fn drop(&mut self) {
            self.0.add("dropped");
        }
    }
    let (gate, notes) = (Gate::default(), Notes::default());
    let served = Served::start(app(&Gate::default()));
    served.handle.on_cleanup(hanging("holds", &gate));
    served.begin_shutdown();
    gate.until_arrived(1);
    let late = |name: &str| {
        let alive = Noted(notes.clone());
        Hook::last(name, move |_| {
            alive.0.add("run");
            Ok(())
        })
    };
    served.handle.on_cleanup(late("late"));
    gate.open();
    let handle = served.handle.clone();
    let report = served.report();
    handle.on_cleanup(late("later still"));
    assert_eq!(names(&report), ["holds"]);
    assert_eq!(report.exit_status, 0);
    assert_eq!(notes.all(), ["dropped", "dropped"]);
    assert_eq!(handle.cleanup_resources(), []);
}

#[test]
fn a_hook_may_use_the_handle() {
    let served = Served::start(app(&Gate::default()));
    let (handle, notes) = (served.handle.clone(), Notes::default());
    let theirs = notes.clone();
    served.handle.on_cleanup(Hook::http_drained("asks", move |_| {
        theirs.add(handle.snapshot().phase.name());
        assert!(handle.is_shutting_down());
        handle.on_cleanup(Hook::last("never", |_| Err("too late".into())));
        handle.shutdown();
        handle.undrain();
        assert_eq!(handle.cleanup_resources(), []);
        Ok(())
    }));
    served.begin_shutdown();
    let report = served.report();
    assert_eq!((report.exit_status, names(&report)), (0, vec!["asks"]));
    assert_eq!(notes.all(), ["cleaning_up"]);
}

#[test]
fn hooks_that_were_there_before_the_server_are_run_by_it() {
    for workers in [1, 0] {
        let handle = GracefulShutdown::new(ms(3000));
        let notes = Notes::default();
        let theirs = notes.clone();
        handle.on_cleanup(Hook::http_drained("the pool", move |_| {
            theirs.add("closed");
            Ok(())
        }));
        let options = Options { workers: Workers::Count(workers), ..options() };
        let bound = Server::bind(options, app(&Gate::default())).expect("a free port");
        let bound = bound.with_shutdown(&handle).expect("it has no server yet");
        let served = Served::run(bound);
        served.client().get("/hello").expect(200, "hello");
        assert_eq!(notes.all(), Vec::<String>::new());
        handle.signal_handler(Signal::Interrupt);
        let report = served.report();
        assert_eq!(notes.all(), ["closed"]);
        assert_eq!((report.exit_status, report.budget), (0, ms(3000)));
        assert_eq!(names(&report), ["the pool"]);
    }
}

#[test]
fn the_admin_listener_answers_while_hooks_run() {
    for workers in [1, 0] {
        let workers = Workers::Count(workers);
        let served = Served::with(Options { workers, ..options() }, app(&Gate::default()));
        let gate = Gate::default();
        served.handle.on_cleanup(Hook::http_drained("quick \"one\"", |_| Ok(())));
        served.handle.on_cleanup(hanging("slow", &gate));
        let mut kept = served.admin_client();
        assert_eq!(kept.get("/livez").status, 200);
        served.begin_shutdown();
        gate.until_arrived(1);
        let metrics = || served.admin_client().get("/metrics").text().to_owned();
        let seconds = "shutdown_hook_seconds{hook=\"quick \\\"one\\\"\"} ";
        wait_until("the first has ended", || metrics().contains(seconds));
        for _ in 0..3 {
            assert_eq!(served.admin_client().get("/readyz").status, 503);
            assert_eq!(served.admin_client().get("/livez").status, 200);
            assert_eq!(kept.get("/readyz").status, 503);
            assert!(!metrics().contains("shutdown_hook_seconds{hook=\"slow\"}"), "it still runs");
        }
        let text = metrics();
        assert!(text.contains("shutdown_phase{phase=\"cleaning_up\"} 1\n"), "{text}");
        gate.open();
        assert_eq!(served.report().exit_status, 0);
    }
}

#[test]
fn hooks_of_one_name_make_one_series() {
    let served = Served::start(app(&Gate::default()));
    let gate = Gate::default();
    for _ in 0..3 {
        served.handle.on_cleanup(Hook::http_drained("twin\n\"\\", |_| Ok(())));
    }
    served.handle.on_cleanup(Hook::http_drained("", |_| Ok(())));
    served.handle.on_cleanup(hanging("slow", &gate));
    served.begin_shutdown();
    gate.until_arrived(1);
    let metrics = || served.admin_client().get("/metrics").text().to_owned();
    let of_hooks = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| line.starts_with("shutdown_hook_seconds"));
        samples.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
    };
    wait_until("all but one have ended", || of_hooks(&metrics()).len() >= 2);
    pace(ms(50));
    let text = metrics();
    let mut series = of_hooks(&text);
    series.sort_unstable();
    let twin = "shutdown_hook_seconds{hook=\"twin\\n\\\"\\\\\"}";
    assert_eq!(series, ["shutdown_hook_seconds{hook=\"\"}", twin], "{text}");
    assert!(text.contains("\nshutdown_duration_seconds "), "{text}");
    gate.open();
    assert_eq!(served.report().hooks.len(), 5);
}

#[test]
fn a_signal_while_hooks_run_ends_it_at_once_and_names_them() {
    let gate = Gate::default();
    let served = Served::start(app(&Gate::default()));
    served.handle.on_cleanup(hanging("hangs", &gate));
    served.handle.on_cleanup(Hook::last("never begun", |_| Ok(())));
    served.begin_shutdown();
    gate.until_arrived(1);
    pace(SIGNAL_ECHO + ms(20));
    let began = now();
    served.handle.signal_handler(Signal::Terminate);
    let report = served.report();
    gate.open();
    assert!(now() - began < SLACK);
    assert_eq!(report.exit_status, 128 + 15);
    assert_eq!(of(&report, "hangs").outcome, HookOutcome::Overran);
    assert_eq!(of(&report, "never begun").outcome, HookOutcome::Skipped);
}

#[test]
fn an_end_before_the_clean_up_names_the_hooks_that_were_skipped() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    served.handle.on_cleanup(Hook::http_drained("skipped", |_| Ok(())));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.handle.signal_handler(Signal::Quit);
    let report = served.report();
    gate.open();
    assert_eq!(report.exit_status, 128 + 3);
    assert_eq!(of(&report, "skipped").outcome, HookOutcome::Skipped);
}

#[test]
fn a_second_signal_hurries_to_the_hooks_and_does_not_skip_them() {
    let (gate, notes) = (Gate::default(), Notes::default());
    let served = Served::ending(Policy { timeout: ms(4000), ..Policy::default() }, app(&gate));
    let theirs = notes.clone();
    served.handle.on_cleanup(Hook::http_drained("close", move |_| {
        theirs.add("closed");
        Ok(())
    }));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.expect_silence(SIGNAL_ECHO + ms(20));
    served.handle.signal_handler(Signal::Terminate);
    client.read_response().expect_refusal();
    drop(client);
    assert_eq!(served.report().exit_status, 3);
    assert_eq!(notes.all(), ["closed"]);
}

#[test]
fn a_quit_runs_no_hook() {
    let notes = Notes::default();
    let served = Served::start(app(&Gate::default()));
    let theirs = notes.clone();
    served.handle.on_cleanup(Hook::http_drained("close", move |_| {
        theirs.add("closed");
        Ok(())
    }));
    served.handle.signal_handler(Signal::Quit);
    assert_eq!(served.report().exit_status, 128 + 3);
    assert_eq!(notes.all(), Vec::<String>::new());
}

#[test]
fn hooks_of_a_server_that_waits_without_end_have_their_share_after_it() {
    let (gate, hang) = (Gate::default(), Gate::default());
    let policy = Policy { at_deadline: ebbtide::AtDeadline::WaitOn, ..two_seconds() };
    let served = Served::ending(policy, app(&gate));
    served.handle.on_cleanup(hanging("hangs", &hang));
    served.handle.on_cleanup(Hook::last("flush", |_| Ok(())));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.expect_silence(ms(2300));
    gate.open();
    client.read_response().expect(200, "waited");
    drop(client);
    let began = now();
    let report = served.report();
    let took = now() - began;
    hang.open();
    assert!((ms(200)..ms(400) + SLACK).contains(&took), "{took:?}");
    assert_eq!(report.exit_status, 4);
    assert_eq!(of(&report, "flush").outcome, HookOutcome::Done);
}

#[test]
fn fifty_hooks_of_one_stage_run_side_by_side() {
    let served = Served::start(app(&Gate::default()));
    let gate = Gate::default();
    for count in 0..50 {
        served.handle.on_cleanup(hanging(&format!("hook {count}"), &gate));
    }
    served.begin_shutdown();
    gate.until_arrived(50);
    gate.open();
    let report = served.report();
    assert_eq!((report.exit_status, report.hooks.len()), (0, 50));
}

#[test]
fn a_hook_registered_by_a_request_is_run() {
    let notes = Notes::default();
    let handle = GracefulShutdown::new(ms(5000));
    let (theirs, registering) = (notes.clone(), handle.clone());
    let router = Router::new().route(
        "/register",
        get(move |_: Request| {
            let theirs = theirs.clone();
            registering.on_cleanup(Hook::last("from a handler", move |_| {
                theirs.add("run");
                Ok(())
            }));
            "registered"
        }),
    );
    let bound = Server::bind(options(), router).expect("a free port");
    let served = Served::run(bound.with_shutdown(&handle).expect("a fresh handle"));
    let mut client = served.client();
    client.get("/register").expect(200, "registered");
    client.get("/register").expect(200, "registered");
    drop(client);
    assert_eq!(served.stop().hooks.len(), 2);
    assert_eq!(notes.all(), ["run", "run"]);
}
