//! Signals, one after the other, through the handle.

use ebbtide::{AtDeadline, Phase, Policy, Report, Signal};

use super::client::{Client, request};
use super::support::{Gate, SIGNAL_ECHO, SLACK, Served, app, assert_took, ms, now};

/// A server with a request that waits at the gate.
fn waiting(policy: Policy) -> (Served, Gate, Client) {
    let gate = Gate::default();
    let served = Served::ending(policy, app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    (served, gate, client)
}

#[test]
fn the_report_names_what_began_the_shutdown() {
    for signal in [Signal::Terminate, Signal::Interrupt, Signal::HangUp] {
        let served = Served::start(app(&Gate::default()));
        served.signal(signal);
        let report = served.report();
        assert_eq!((report.reason.as_str(), report.exit_status), (signal.name(), 0));
    }
    let served = Served::start(app(&Gate::default()));
    served.begin_shutdown();
    assert!(served.report().reason.contains("shutdown"));
}

#[test]
fn a_second_signal_goes_over_to_cancelling() {
    for (first, second) in [
        (Signal::Terminate, Signal::Terminate),
        (Signal::Interrupt, Signal::Terminate),
        (Signal::Terminate, Signal::Interrupt),
        (Signal::HangUp, Signal::Terminate),
    ] {
        let (served, _gate, mut client) = waiting(Policy::default());
        served.signal(first);
        client.expect_silence(SIGNAL_ECHO + ms(50));
        assert_eq!(served.phase(), Phase::Draining);
        let began = now();
        served.handle.signal_handler(second);
        // Cancelling is 2 s of 30; the handler has half of it.
        client.read_response().expect_refusal();
        assert_took(began, ms(1000));
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.refused), (3, 1));
        assert_eq!(report.reason, first.name());
    }
}

#[test]
fn a_signal_after_shutdown_was_called_counts_as_the_second() {
    let (served, _gate, mut client) = waiting(Policy::default());
    served.begin_shutdown();
    // Asking again is no signal.
    served.handle.shutdown();
    client.expect_silence(SIGNAL_ECHO + ms(50));
    served.handle.shutdown();
    client.expect_silence(ms(50));
    assert_eq!(served.phase(), Phase::Draining);
    served.handle.signal_handler(Signal::Terminate);
    served.until_phase(Phase::Cancelling);
    client.read_response().expect_refusal();
}

#[test]
fn two_signals_at_once_count_as_one() {
    let (served, gate, mut client) = waiting(Policy::default());
    served.handle.signal_handler(Signal::Terminate);
    served.handle.signal_handler(Signal::Terminate);
    served.handle.signal_handler(Signal::Interrupt);
    served.handle.wait_for_shutdown();
    client.expect_silence(ms(200));
    assert_eq!(served.phase(), Phase::Draining);
    gate.open();
    client.read_response().expect(200, "waited");
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_hangup_during_a_shutdown_changes_nothing() {
    let (served, gate, mut client) = waiting(Policy::default());
    served.signal(Signal::Terminate);
    for _ in 0..3 {
        client.expect_silence(SIGNAL_ECHO + ms(20));
        served.handle.signal_handler(Signal::HangUp);
    }
    client.expect_silence(ms(50));
    assert_eq!(served.phase(), Phase::Draining);
    gate.open();
    client.read_response().expect(200, "waited");
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_third_signal_ends_it_at_once() {
    for (third, status) in [(Signal::Terminate, 128 + 15), (Signal::Interrupt, 128 + 2)] {
        let (served, _gate, mut client) = waiting(Policy::default());
        served.signal(Signal::Terminate);
        client.expect_silence(SIGNAL_ECHO + ms(20));
        served.handle.signal_handler(Signal::Terminate);
        served.until_phase(Phase::Cancelling);
        client.expect_silence(SIGNAL_ECHO + ms(20));
        let began = now();
        served.handle.signal_handler(third);
        let report = served.report();
        assert!(now() - began < SLACK);
        assert_eq!(report.exit_status, status);
        expect_one_cut(&report);
    }
}

/// What the end of the process cuts is in the books like anything else.
fn expect_one_cut(report: &Report) {
    assert_eq!((report.cut, report.counts.in_flight), (1, 0), "{report:?}");
    assert_eq!(report.lost.len(), 1, "{report:?}");
    assert_eq!((report.lost[0].outcome, &*report.lost[0].path), ("cut", "/wait"));
}

#[test]
fn a_quit_ends_it_at_once_whenever_it_comes() {
    for first in [None, Some(Signal::Terminate), Some(Signal::Interrupt)] {
        let (served, _gate, _client) = waiting(Policy::default());
        if let Some(signal) = first {
            served.signal(signal);
        }
        // Never the echo of another.
        let began = now();
        served.handle.signal_handler(Signal::Quit);
        let report = served.report();
        assert!(now() - began < SLACK);
        assert_eq!(report.exit_status, 128 + 3);
        expect_one_cut(&report);
    }
}

#[test]
fn a_second_signal_escalates_a_server_that_waits_without_end() {
    let policy = Policy { timeout: ms(1000), at_deadline: AtDeadline::WaitOn, ..Policy::default() };
    let (served, _gate, mut client) = waiting(policy);
    served.signal(Signal::Terminate);
    client.expect_silence(ms(1500));
    let began = now();
    served.handle.signal_handler(Signal::Terminate);
    // Cancelling is a fifth of the budget.
    client.read_response().expect_refusal();
    assert_took(began, ms(100));
    drop(client);
    assert_eq!(served.report().exit_status, 3);
}

#[test]
fn a_waiter_sees_the_phase_that_woke_it() {
    for _ in 0..50 {
        let (served, gate, _client) = waiting(Policy::default());
        served.handle.shutdown();
        served.handle.wait_for_shutdown();
        assert_eq!(served.handle.snapshot().phase, Phase::Draining);
        gate.open();
    }
}

#[test]
fn waiters_of_the_handle_are_woken() {
    let (served, gate, mut client) = waiting(Policy::default());
    let handle = served.handle.clone();
    let begun = super::support::spawn("waiting for the beginning", move || {
        handle.wait_for_shutdown();
        handle.is_shutting_down()
    });
    let handle = served.handle.clone();
    let over = super::support::spawn("waiting for the end", move || {
        handle.finished_within(super::support::PATIENCE).map(|report| report.exit_status)
    });
    client.expect_silence(ms(20));
    assert!(!begun.is_finished());
    served.handle.shutdown();
    assert!(begun.join().expect("no panic"));
    assert!(!over.is_finished());
    gate.open();
    client.read_response().expect(200, "waited");
    drop(client);
    assert_eq!(over.join().expect("no panic"), Some(0));
    served.report();
}
