//! The handle by which a program watches and steers a shutdown.

use ebbtide::{
    AtDeadline, Counts, GracefulShutdown, InFlight, Options, Phase, Policy, Request,
    RequestOutcome, Server, Signal, Snapshot, StartError, Workers, get,
};

use super::client::{Client, request};
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now, options, spawn, wait_until};

/// A server with a lame duck of a second.
fn lame() -> Policy {
    Policy { timeout: ms(6000), delay: ms(1000), idle_window: ms(300), ..Policy::default() }
}

/// A server that is steered by `handle`.
fn joined(handle: &GracefulShutdown, gate: &Gate, workers: usize) -> Served {
    let options = Options { workers: Workers::Count(workers), ..options() };
    let bound = Server::bind(options, app(gate)).expect("a free port");
    Served::run(bound.with_shutdown(handle).expect("it has no server yet"))
}

fn phases(report: &ebbtide::Report) -> Vec<Phase> {
    report.phases.iter().map(|(phase, _)| *phase).collect()
}

#[test]
fn a_handle_without_a_server_knows_nothing_yet() {
    let handle = GracefulShutdown::new(ms(1234));
    assert_eq!(handle.timeout(), ms(1234));
    assert!(!handle.is_shutting_down());
    assert!(handle.finished_within(ms(1)).is_none());
    let expected = Snapshot { phase: Phase::Running, counts: Counts::default(), other_work: 0 };
    assert_eq!(handle.snapshot(), expected);
    let work = (handle.add_connection(), handle.clone().add_connection());
    assert_eq!(handle.snapshot().other_work, 2);
    drop(work);
    assert_eq!(handle.snapshot(), expected);
    assert!(!handle.cancellation().is_cancelled());
}

#[test]
fn the_timeout_of_the_handle_is_the_budget_of_its_server() {
    let gate = Gate::default();
    let handle = GracefulShutdown::new(ms(1000));
    let served = joined(&handle, &gate, 1);
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    let began = now();
    handle.shutdown();
    client.read_response().expect_refusal();
    assert_took(began, ms(700));
    drop(client);
    assert_eq!(served.report().budget, ms(1000));
}

#[test]
fn what_a_handle_is_told_before_it_has_a_server_is_done_once_that_runs() {
    for workers in [1, 0] {
        let handle = GracefulShutdown::new(ms(5000));
        handle.signal_handler(Signal::Interrupt);
        assert!(handle.is_shutting_down());
        handle.wait_for_shutdown();
        let report = joined(&handle, &Gate::default(), workers).report();
        assert_eq!((report.exit_status, report.reason.as_str()), (0, "SIGINT"));
        assert!(report.duration() < SLACK);
    }
}

#[test]
fn a_quit_before_the_start_ends_the_server_at_its_start() {
    let handle = GracefulShutdown::new(ms(5000));
    handle.signal_handler(Signal::Quit);
    let report = joined(&handle, &Gate::default(), 1).report();
    assert_eq!(report.exit_status, 128 + 3);
}

#[test]
fn a_force_before_the_start_ends_the_server_at_its_start() {
    let handle = GracefulShutdown::new(ms(5000));
    handle.force();
    assert!(handle.is_shutting_down());
    let report = joined(&handle, &Gate::default(), 1).report();
    assert_eq!((report.exit_status, report.refused + report.cut), (0, 0));
}

#[test]
fn a_shutdown_that_was_taken_back_before_the_start_does_not_happen() {
    let bound = Server::bind(Options { shutdown: lame(), ..options() }, app(&Gate::default()));
    let bound = bound.expect("a free port");
    let handle = bound.shutdown_handle();
    handle.shutdown();
    handle.undrain();
    let served = Served::run(bound);
    served.until_ready();
    wait_until("it is taken back", || !handle.is_shutting_down());
    assert_eq!(served.phase(), Phase::Running);
    let answer = served.client().get("/hello");
    assert!(!answer.expect(200, "hello").announces_close());
    assert_eq!(served.stop().reason, "SIGINT");
}

#[test]
fn one_handle_steers_one_server() {
    let handle = GracefulShutdown::new(ms(5000));
    let served = joined(&handle, &Gate::default(), 1);
    let other = Server::bind(options(), app(&Gate::default())).expect("a free port");
    let others = other.shutdown_handle();
    let error = other.with_shutdown(&handle).expect_err("it steers another");
    assert!(matches!(error, StartError::HandleInUse), "{error}");
    assert!(!error.to_string().is_empty());
    // The server that was not to be is gone, and says so to whoever waits for it.
    assert_eq!(others.finished().exit_status, 1);
    // The other one does not suffer from it.
    assert!(!handle.is_shutting_down());
    served.client().get("/hello").expect(200, "hello");
    assert_eq!(served.stop().exit_status, 0);
    let late = Server::bind(options(), app(&Gate::default())).expect("a free port");
    assert!(late.with_shutdown(&handle).is_err(), "not even when that has ended");
}

#[test]
fn a_server_may_not_be_given_its_own_handle() {
    let bound = Server::bind(options(), app(&Gate::default())).expect("a free port");
    let own = bound.shutdown_handle();
    assert!(matches!(bound.with_shutdown(&own), Err(StartError::HandleInUse)));
}

#[test]
fn a_server_that_is_dropped_without_having_run_leaves_nobody_waiting() {
    let handle = GracefulShutdown::new(ms(5000));
    let (one, two) = (handle.clone(), handle.clone());
    let begun = spawn("waiting for the beginning", move || one.wait_for_shutdown());
    let over = spawn("waiting for the end", move || two.finished());
    let bound = Server::bind(options(), app(&Gate::default())).expect("a free port");
    let bound = bound.with_shutdown(&handle).expect("a fresh handle");
    assert!(!begun.is_finished() && !over.is_finished());
    drop(bound);
    begun.join().expect("no panic");
    let report = over.join().expect("no panic");
    assert_eq!((report.exit_status, &report.counts), (1, &Counts::default()));
    assert_eq!(handle.finished_within(ms(0)), Some(report));
    // Too late for anything, and no harm.
    handle.shutdown();
    handle.undrain();
    handle.force();
    drop(handle.add_connection());
}

#[test]
fn a_server_that_could_not_start_leaves_nobody_waiting() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let listen = vec![address.parse().expect("an address")];
    let handle = GracefulShutdown::new(ms(5000));
    let result = Server::bind(Options { listen, ..options() }, app(&Gate::default()));
    assert!(result.is_err());
    // It never had the handle, which is free for another.
    assert_eq!(joined(&handle, &Gate::default(), 1).stop().exit_status, 0);
}

#[test]
fn other_work_holds_the_drain_until_it_is_done() {
    for workers in [1, 0] {
        let handle = GracefulShutdown::new(ms(10_000));
        // Counted before there is a server, and on other threads.
        let first = handle.add_connection();
        let served = joined(&handle, &Gate::default(), workers);
        let second = handle.add_connection();
        served.client().get("/hello").expect(200, "hello");
        handle.shutdown();
        served.until_retired();
        drop(first);
        assert!(handle.finished_within(ms(300)).is_none(), "it is waited for");
        assert_eq!(handle.snapshot().other_work, 1);
        assert_eq!(served.phase(), Phase::Draining);
        // What comes while another is held is waited for as well.
        let third = handle.add_connection();
        drop(second);
        assert!(handle.finished_within(ms(100)).is_none(), "the third is held");
        let began = now();
        spawn("the third", move || drop(third)).join().expect("no panic");
        let report = served.report();
        assert!(now() - began < SLACK, "it is gone as soon as the last is done");
        assert_eq!((report.exit_status, report.other_work), (0, 0));
    }
}

#[test]
fn other_work_that_does_not_end_is_told_and_then_counted() {
    for workers in [1, 0] {
        let handle = GracefulShutdown::new(ms(2000));
        let served = joined(&handle, &Gate::default(), workers);
        let work = (handle.add_connection(), handle.add_connection());
        let token = handle.cancellation();
        served.until_ready();
        let began = now();
        handle.shutdown();
        wait_until("it is told", || token.is_cancelled());
        assert_took(began, ms(1200));
        drop(work.0);
        let report = served.report();
        let took = now() - began;
        assert!((ms(1600)..ms(2000) + SLACK).contains(&took), "{took:?}");
        assert_eq!((report.exit_status, report.other_work), (3, 1));
        assert_eq!((report.refused, report.cut, report.lost.len()), (0, 0, 0));
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
        assert_eq!(json["other_work"], 1);
        drop(work.1);
        assert_eq!(handle.snapshot().other_work, 0);
    }
}

#[test]
fn other_work_that_heeds_the_token_loses_nothing() {
    let handle = GracefulShutdown::new(ms(2000));
    let served = joined(&handle, &Gate::default(), 1);
    let (work, token) = (handle.add_connection(), handle.cancellation());
    let job = spawn("a job", move || {
        wait_until("it is told", || token.is_cancelled());
        drop(work);
    });
    served.until_ready();
    let began = now();
    handle.shutdown();
    let report = served.report();
    assert_took(began, ms(1200));
    assert_eq!((report.exit_status, report.other_work), (0, 0));
    job.join().expect("no panic");
}

#[test]
fn a_drain_that_ends_in_time_tells_nobody() {
    let served = Served::start(app(&Gate::default()));
    let token = served.handle.cancellation();
    assert_eq!(served.stop().exit_status, 0);
    assert!(!token.is_cancelled());
}

#[test]
fn force_ends_what_stands_whatever_the_phase() {
    for (policy, phase) in [
        (Policy::default(), Phase::Running),
        (lame(), Phase::LameDuck),
        (Policy::default(), Phase::Draining),
        (
            Policy { timeout: ms(500), at_deadline: AtDeadline::WaitOn, ..Policy::default() },
            Phase::Draining,
        ),
        (Policy { in_flight: InFlight::Cancel, ..Policy::default() }, Phase::Cancelling),
    ] {
        let (gate, what) = (Gate::default(), format!("{policy:?} in {phase:?}"));
        let waits_on = policy.at_deadline == AtDeadline::WaitOn;
        let served = Served::ending(policy, app(&gate));
        let (mut waiting, mut streaming) = (served.client(), served.client());
        let (mut blocking, mut idle) = (served.client(), served.client());
        idle.get("/hello").expect(200, "hello");
        waiting.send(request("/wait"));
        streaming.send(request("/stream"));
        gate.until_arrived(2);
        let work = served.handle.add_connection();
        if phase != Phase::Running {
            served.begin_shutdown();
            assert_eq!(served.phase(), phase);
        }
        if phase == Phase::Running {
            // Even this one holds nobody.
            blocking.send(request("/block"));
            gate.until_arrived(3);
        }
        if waits_on {
            waiting.expect_silence(ms(700));
        }
        let token = served.handle.cancellation();
        let began = now();
        served.handle.force();
        served.handle.wait_for_shutdown();
        let report = served.report();
        assert!(now() - began < SLACK, "{what}");
        assert!(token.is_cancelled(), "{what}");
        let blocked = u64::from(phase == Phase::Running);
        assert_eq!((report.exit_status, report.refused), (3, 0), "{what}");
        assert_eq!((report.cut, report.other_work), (2 + blocked, 1), "{what}");
        assert_eq!(report.lost.len() as u64, 2 + blocked, "{what}: {:?}", report.lost);
        assert!(!phases(&report).contains(&Phase::Running));
        if blocked == 0 {
            assert!(waiting.try_read_response().is_err(), "{what}");
            assert!(streaming.try_read_response().is_err(), "{what}");
        }
        gate.open();
        drop(work);
    }
}

#[test]
fn force_still_cleans_up_and_with_nothing_to_lose_loses_nothing() {
    let served = Served::start(app(&Gate::default()));
    let ran = Gate::default();
    let noting = ran.clone();
    ran.open();
    served.handle.on_cleanup(ebbtide::Hook::http_drained("close", move |_| {
        noting.block();
        Ok(())
    }));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    served.until_finished(RequestOutcome::Answered, 1);
    served.handle.force();
    let report = served.report();
    assert_eq!((report.exit_status, report.cut, ran.arrived()), (0, 0, 1));
    assert_eq!(report.reason, "force()");
    assert_eq!(phases(&report).last(), Some(&Phase::CleaningUp));
}

#[test]
fn force_twice_is_force_once() {
    let gate = Gate::default();
    let served = Served::start(app(&Gate::default()));
    let hang = gate.clone();
    served.handle.on_cleanup(ebbtide::Hook::last("slow", move |_| {
        hang.block();
        Ok(())
    }));
    served.handle.force();
    gate.until_arrived(1);
    served.handle.force();
    served.handle.undrain();
    assert!(served.handle.finished_within(ms(100)).is_none(), "the hook has its time");
    gate.open();
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_lame_duck_can_be_undone() {
    for workers in [1, 2, 0] {
        let gate = Gate::default();
        let workers = Workers::Count(workers);
        let served = Served::with(Options { shutdown: lame(), workers, ..options() }, app(&gate));
        served.until_ready();
        let mut admin = served.admin_client();
        let mut kept = served.client();
        kept.get("/hello").expect(200, "hello");
        let mut waiting = served.client();
        waiting.send(request("/wait"));
        gate.until_arrived(1);
        served.signal(Signal::Terminate);
        assert_eq!((served.phase(), admin.get("/readyz").status), (Phase::LameDuck, 503));
        assert!(served.client().get("/hello").announces_close());
        served.handle.undrain();
        wait_until("it is ready again", || admin.get("/readyz").status == 200);
        assert_eq!(served.phase(), Phase::Running);
        assert!(!served.handle.is_shutting_down());
        assert!(!served.handle.cancellation().is_cancelled());
        let text = admin.get("/metrics").text().to_owned();
        assert!(text.contains("shutdown_phase{phase=\"running\"} 1"), "{text}");
        assert!(text.contains("\nshutdown_duration_seconds 0\n"), "{text}");
        assert!(text.contains("\nactive_connections_at_shutdown 0\n"), "{text}");
        // Nothing announces the close any more: connections of before, of between, new ones.
        gate.open();
        for client in [&mut kept, &mut waiting, &mut served.client()] {
            if client.hears_within(ms(500)) {
                assert!(!client.read_response().expect(200, "waited").announces_close());
            }
            for _ in 0..2 {
                let answer = client.get("/hello");
                assert!(!answer.expect(200, "hello").announces_close());
                assert_eq!(answer.header("keep-alive"), Some("timeout=74"));
            }
        }
        // The lame duck's end does not come after all.
        kept.expect_silence(ms(1100));
        assert_eq!(served.phase(), Phase::Running);
        kept.get("/hello").expect(200, "hello");
        served.stop();
    }
}

#[test]
fn a_signal_after_an_undone_shutdown_begins_afresh() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(3000), ..lame() };
    let served = Served::ending(policy, app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.signal(Signal::HangUp);
    client.expect_silence(ms(500));
    served.handle.undrain();
    wait_until("it is undone", || !served.handle.is_shutting_down());
    // At once: it is not the echo of the first.
    let began = now();
    served.signal(Signal::Terminate);
    assert_eq!(served.phase(), Phase::LameDuck, "a first signal, no second");
    served.until_phase(Phase::Draining);
    assert_took(began, ms(1000));
    client.read_response().expect_refusal();
    // 3 s less 0.6 s for the clean-up and half of 0.6 s for cancelling.
    assert_took(began, ms(2100));
    drop(client);
    let report = served.report();
    assert_eq!((report.reason.as_str(), report.refused), ("SIGTERM", 1));
    assert_eq!(phases(&report)[..2], [Phase::LameDuck, Phase::Draining]);
    assert!(report.duration() > ms(2000) && report.duration() < ms(3000) + SLACK);
    assert!(report.budget_left < ms(1000));
}

#[test]
fn undoing_twice_and_beginning_often_is_no_trouble() {
    let served = Served::ending(lame(), app(&Gate::default()));
    let mut client = served.client();
    for _ in 0..5 {
        served.handle.undrain();
        served.begin_shutdown();
        assert_eq!(served.phase(), Phase::LameDuck);
        assert!(served.handle.is_shutting_down());
        let handle = served.handle.clone();
        served.handle.undrain();
        served.handle.undrain();
        wait_until("it is undone", || !served.handle.is_shutting_down());
        let waiter = spawn("waiting for the next", move || handle.wait_for_shutdown());
        client.get("/hello").expect(200, "hello");
        assert!(!waiter.is_finished(), "the one that was undone does not count");
        served.handle.shutdown();
        waiter.join().expect("no panic");
        served.handle.undrain();
        wait_until("it is undone", || !served.handle.is_shutting_down());
    }
    client.get("/hello").expect(200, "hello");
    drop(client);
    let began = now();
    served.signal(Signal::Interrupt);
    let report = served.report();
    assert!(now() - began < SLACK);
    assert_eq!((report.exit_status, report.counts.begun), (0, 6));
}

#[test]
fn requests_lost_before_an_undone_shutdown_are_not_its_business() {
    let gate = Gate::default();
    let limits = ebbtide::Limits { in_flight_max: 1, ..ebbtide::Limits::default() };
    let served = Served::with(Options { limits, shutdown: lame(), ..options() }, app(&gate));
    let mut holding = served.client();
    holding.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.client().get("/hello").expect_refusal();
    served.until_finished(RequestOutcome::Refused, 1);
    served.handle.undrain();
    wait_until("it is undone", || !served.handle.is_shutting_down());
    served.client().get("/hello").expect_refusal();
    gate.open();
    holding.read_response().expect(200, "waited");
    drop(holding);
    served.until_finished(RequestOutcome::Refused, 2);
    let report = served.stop();
    assert_eq!((report.exit_status, report.refused, report.lost.len()), (0, 0, 0));
    assert_eq!(report.counts.finished_as(RequestOutcome::Refused), 2);
}

#[test]
fn undoing_comes_too_late_once_the_listeners_are_closed() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    served.handle.undrain();
    served.until_retired();
    assert!(served.handle.is_shutting_down());
    assert_eq!(served.phase(), Phase::Draining);
    gate.open();
    assert!(client.read_response().expect(200, "waited").announces_close());
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_handler_may_end_its_own_server() {
    for workers in [1, 0] {
        let handle = GracefulShutdown::new(ms(5000));
        let ending = handle.clone();
        let router = app(&Gate::default()).route(
            "/end",
            get(move |_: Request| {
                ending.shutdown();
                // Not a good idea in general, but it must not be a deadlock to look.
                format!("{:?}", ending.snapshot().phase)
            }),
        );
        let options = Options { workers: Workers::Count(workers), ..options() };
        let bound = Server::bind(options, router).expect("a free port");
        let served = Served::run(bound.with_shutdown(&handle).expect("a fresh handle"));
        let mut client = served.client();
        assert_eq!(client.get("/end").status, 200);
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.counts.begun), (0, 1));
    }
}

#[test]
fn many_threads_may_use_the_handle_at_once() {
    let served = Served::ending(lame(), app(&Gate::default()));
    let threads: Vec<_> = (0..8)
        .map(|number| {
            let handle = served.handle.clone();
            spawn("using the handle", move || {
                for _ in 0..100 {
                    drop(handle.add_connection());
                    handle.snapshot();
                    if number % 2 == 0 {
                        handle.shutdown();
                    } else {
                        handle.undrain();
                    }
                    handle.cancellation();
                    handle.finished_within(ms(0));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    let mut client = Client::connect(served.address());
    client.get("/hello").expect(200, "hello");
    drop(client);
    served.handle.undrain();
    let report = served.stop();
    assert_eq!((report.other_work, report.refused, report.cut), (0, 0, 0));
}

#[test]
fn times_without_end_overflow_nowhere() {
    let (gate, forever) = (Gate::default(), std::time::Duration::MAX);
    let handle = GracefulShutdown::new(forever);
    handle.on_cleanup(ebbtide::Hook::http_drained("close", |_| Ok(())).limit(forever));
    let shutdown =
        Policy { delay: forever, idle_window: forever, first_byte_grace: forever, ..lame() };
    let limits = ebbtide::Limits {
        first_byte_timeout: forever,
        head_timeout: forever,
        keep_alive_timeout: forever,
        body_stall_timeout: forever,
        write_stall_timeout: forever,
        request_timeout: forever,
        ..ebbtide::Limits::default()
    };
    let options = Options { shutdown, limits, ..options() };
    let bound = Server::bind(options, app(&gate)).expect("a free port");
    let served = Served::run(bound.with_shutdown(&handle).expect("a fresh handle"));
    let (mut idle, silent, mut half) = (served.client(), served.client(), served.client());
    idle.get("/hello").expect(200, "hello");
    half.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbo");
    let mut reader = Client::with_small_window(served.address());
    reader.send(request("/bytes/8000000"));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    // The lame duck has no end either.
    served.begin_shutdown();
    assert_eq!(served.phase(), Phase::LameDuck);
    handle.undrain();
    wait_until("it is undone", || !handle.is_shutting_down());
    handle.signal_handler(Signal::Interrupt);
    handle.wait_for_shutdown();
    idle.expect_end();
    waiting.expect_silence(ms(100));
    gate.open();
    waiting.read_response().expect(200, "waited");
    half.send("dy");
    half.read_response().expect(200, "body");
    assert_eq!(reader.read_response().body.len(), 8_000_000);
    drop((idle, silent, half, waiting, reader));
    assert_eq!(served.report().exit_status, 0);
}
