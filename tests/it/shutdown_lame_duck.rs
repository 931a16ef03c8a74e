//! The lame duck: not ready any more, and serving as before.

use ebbtide::{ConnectionState, Phase, Policy, Signal};

use super::client::request;
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now};

fn policy() -> Policy {
    Policy { timeout: ms(6000), delay: ms(1000), idle_window: ms(300), ..Policy::default() }
}

#[test]
fn a_lame_duck_is_not_ready_and_serves_on() {
    let served = Served::ending(policy(), app(&Gate::default()));
    served.until_ready();
    let mut admin = served.admin_client();
    let began = now();
    served.begin_shutdown();
    assert_eq!(served.phase(), Phase::LameDuck);
    assert_eq!(admin.get("/readyz").status, 503);
    let mut accepted = 0;
    while served.phase() == Phase::LameDuck && now() - began < ms(800) {
        // New connections, on which every response announces the close.
        for (path, status) in [("/readyz", 503), ("/hello", 200), ("/livez", 200)] {
            let mut client = served.client();
            let answer = client.get(path);
            assert_eq!(answer.status, status, "{path}");
            assert!(answer.announces_close(), "{path}: {answer:?}");
            client.expect_end();
            accepted += 1;
        }
    }
    assert!(accepted > 10, "{accepted}");
    served.until_phase(Phase::Draining);
    assert_took(began, ms(1000));
    served.until_retired_or_ended();
    drop(admin);
    let report = served.report();
    assert_eq!(report.exit_status, 0);
    let phases: Vec<Phase> = report.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::LameDuck, Phase::Draining, Phase::CleaningUp]);
}

#[test]
fn a_lame_duck_lasts_its_time_even_with_nothing_to_do() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert_took(began, ms(1000));
    assert_eq!(report.exit_status, 0);
    assert!(report.phases[0].1 >= ms(990), "{:?}", report.phases);
}

#[test]
fn idle_connections_of_a_lame_duck_are_kept_and_their_next_response_announces_the_close() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut speaking = served.client();
    speaking.get("/hello").expect(200, "hello");
    let mut silent = served.client();
    silent.get("/hello").expect(200, "hello");
    let began = now();
    served.begin_shutdown();
    silent.expect_silence(ms(500));
    let answer = speaking.get("/hello");
    answer.expect(200, "hello");
    assert!(answer.announces_close());
    speaking.expect_end();
    // The window begins with the drain.
    silent.expect_end();
    assert_took(began, ms(1300));
}

#[test]
fn requests_begun_in_the_lame_duck_are_finished_in_the_drain() {
    let gate = Gate::default();
    let served = Served::ending(policy(), app(&gate));
    served.begin_shutdown();
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.until_phase(Phase::Draining);
    gate.open();
    let answer = client.read_response();
    answer.expect(200, "waited");
    assert!(answer.announces_close());
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn an_interrupt_skips_the_lame_duck() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Idle, 1);
    let began = now();
    served.signal(Signal::Interrupt);
    idle.expect_end();
    let report = served.report();
    assert!(now() - began < SLACK, "it took {:?}", now() - began);
    assert!(report.phases.iter().all(|(phase, _)| *phase != Phase::LameDuck));
}

#[test]
fn a_second_signal_ends_the_lame_duck() {
    let served = Served::ending(policy(), app(&Gate::default()));
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    served.signal(Signal::Terminate);
    assert_eq!(served.phase(), Phase::LameDuck);
    idle.expect_silence(ms(150));
    let began = now();
    served.handle.signal_handler(Signal::Terminate);
    idle.expect_end();
    let report = served.report();
    assert!(now() - began < SLACK, "it took {:?}", now() - began);
    assert_eq!(report.exit_status, 0);
}

#[test]
fn a_delay_takes_at_most_a_third_of_the_budget() {
    let policy = Policy { timeout: ms(1500), delay: ms(10_000), ..Policy::default() };
    let served = Served::ending(policy, app(&Gate::default()));
    let began = now();
    served.begin_shutdown();
    served.report();
    assert_took(began, ms(500));
}
