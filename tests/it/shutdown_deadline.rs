//! The end of the budget: what has not finished is refused or cut, named, and never looks complete.

use ebbtide::{
    AtDeadline, Body, ConnectionOutcome, ConnectionState, InFlight, Phase, Policy, Report, Request,
    RequestOutcome, Router, get,
};
use http::StatusCode;

use super::client::{Client, request};
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now, pattern};

/// Draining lasts 1.2 s; cancelling 0.4 s, after half of which requests are refused.
fn two_seconds() -> Policy {
    Policy { timeout: ms(2000), ..Policy::default() }
}

fn refused_at(policy: &Policy) -> std::time::Duration {
    policy.timeout * 7 / 10
}

fn the_only_loss(report: &Report) -> &Report {
    assert_eq!((report.lost.len(), report.lost_unnamed), (1, 0), "{:?}", report.lost);
    assert_eq!(report.exit_status, 3);
    report
}

#[test]
fn a_handler_that_does_not_finish_is_answered_for_and_named() {
    let gate = Gate::default();
    let held = gate.clone();
    let handler = get(move |_: Request| {
        let held = held.clone();
        async move {
            held.pass().await;
            "too late"
        }
    });
    let served = Served::ending(two_seconds(), Router::new().route("/slow/{name}", handler));
    let mut client = served.client();
    client.send(request("/slow/tide?secret=1"));
    gate.until_arrived(1);
    let began = now();
    served.begin_shutdown();
    client.read_response().expect_refusal();
    assert_took(began, refused_at(&two_seconds()));
    client.expect_end();
    drop(client);
    let report = served.report();
    assert!(now() - began < ms(2000) + SLACK);
    let lost = &the_only_loss(&report).lost[0];
    assert_eq!((lost.outcome, &*lost.method, &*lost.path), ("refused", "GET", "/slow/tide"));
    assert_eq!(lost.route, "/slow/{name}");
    assert!(lost.peer.starts_with("127.0.0.1:"), "{lost:?}");
    assert!((1.2..2.0).contains(&lost.age_seconds), "{lost:?}");
    assert_eq!((report.refused, report.cut), (1, 0));
    assert_eq!(report.counts.finished_as(RequestOutcome::Refused), 1);
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).expect("JSON");
    assert_eq!(json["exit_status"], 3);
    assert_eq!(json["lost"][0]["path"], "/slow/tide");
}

#[test]
fn a_stream_that_does_not_finish_is_cut_and_never_looks_complete() {
    let gate = Gate::default();
    let served = Served::ending(two_seconds(), app(&gate));
    let mut client = served.client();
    client.send(request("/stream"));
    gate.let_one();
    gate.until_arrived(2);
    let began = now();
    served.begin_shutdown();
    let rest = client.try_read_response().expect_err("no whole response");
    assert!(now() - began < ms(2000) + SLACK);
    assert!(!rest.bytes.ends_with(b"0\r\n\r\n"), "{rest:?}");
    let text = String::from_utf8_lossy(&rest.bytes);
    assert!(text.contains("chunk 0;") && !text.contains("chunk 1;"), "{text}");
    let report = served.report();
    let lost = &the_only_loss(&report).lost[0];
    assert_eq!((lost.outcome, &*lost.path, &*lost.route), ("cut", "/stream", "/stream"));
    assert_eq!((report.refused, report.cut), (0, 1));
    assert_eq!(report.counts.closed_as(ConnectionOutcome::Cut), 1);
}

#[test]
fn a_reader_that_takes_nothing_is_cut() {
    let served = Served::ending(two_seconds(), app(&Gate::default()));
    let mut client = Client::with_small_window(served.address());
    client.send(request("/bytes/20000000"));
    served.until_in_state(ConnectionState::Streaming, 1);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert!(now() - began < ms(2000) + SLACK);
    let rest = client.try_read_response().expect_err("no whole response");
    assert!(!rest.bytes.ends_with(&pattern(20_000_000)[19_999_000..]));
    assert_eq!(rest.end, super::client::End::Reset, "the kernel keeps no orphan");
    assert_eq!(the_only_loss(&report).lost[0].outcome, "cut");
}

#[test]
fn an_upload_that_does_not_finish_is_answered_for() {
    let served = Served::ending(two_seconds(), app(&Gate::default()));
    let mut client = served.client();
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nfour");
    served.until_in_state(ConnectionState::Handling, 1);
    let began = now();
    served.begin_shutdown();
    client.read_response().expect_refusal();
    assert_took(began, refused_at(&two_seconds()));
    drop(client);
    let report = served.report();
    assert_eq!(the_only_loss(&report).lost[0].waited_for, "the request body");
}

#[test]
fn a_head_that_is_not_completed_is_told_408_when_the_time_is_up() {
    let served = Served::ending(two_seconds(), app(&Gate::default()));
    let mut fresh = served.client();
    fresh.send("GET /hello HT");
    let mut later = served.client();
    later.get("/hello").expect(200, "hello");
    later.send("GET /hello HT");
    served.until_in_state(ConnectionState::ReadingHead, 2);
    let began = now();
    served.begin_shutdown();
    for client in [&mut fresh, &mut later] {
        let answer = client.read_response();
        assert_eq!(answer.status, 408);
        assert!(answer.announces_close());
        client.expect_end();
    }
    assert_took(began, ms(1200));
    drop((fresh, later));
    let report = served.report();
    assert_eq!(report.exit_status, 0, "neither was a request");
    assert_eq!(report.counts.rejected[1], 2);
}

#[test]
fn a_budget_of_nothing_ends_at_once() {
    let gate = Gate::default();
    let served = Served::ending(Policy { timeout: ms(0), ..Policy::default() }, app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert!(now() - began < SLACK, "it took {:?}", now() - began);
    assert_eq!((report.exit_status, report.refused + report.cut), (3, 1));
}

#[test]
fn an_idle_window_longer_than_the_budget_ends_with_it() {
    let policy = Policy { idle_window: ms(60_000), ..two_seconds() };
    let served = Served::ending(policy, app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    let began = now();
    served.begin_shutdown();
    client.expect_end();
    assert_took(began, ms(1200));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn a_handler_that_blocks_its_worker_does_not_hold_the_exit() {
    let gate = Gate::default();
    let served = Served::ending(two_seconds(), app(&gate));
    let mut client = served.client();
    client.send(request("/block"));
    gate.until_arrived(1);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    assert!(now() - began < ms(2000) + SLACK, "it took {:?}", now() - began);
    let lost = &the_only_loss(&report).lost[0];
    assert_eq!((lost.outcome, &*lost.path, &*lost.route), ("cut", "/block", "/block"));
    gate.open();
}

#[test]
fn a_request_that_blocks_its_worker_anywhere_is_named() {
    for path in ["/first", "/later", "/body"] {
        let gate = Gate::default();
        let (first, later, body) = (gate.clone(), gate.clone(), gate.clone());
        let blocking = |gate: Gate, pause: u64| async move {
            if pause > 0 {
                ebbtide::sleep(ms(pause)).await;
            }
            gate.block();
            "blocked"
        };
        let router = Router::new()
            .route("/first", get(move |_: Request| blocking(first.clone(), 0)))
            .route("/later", get(move |_: Request| blocking(later.clone(), 5)))
            .route(
                "/body",
                get(move |_: Request| {
                    let body = body.clone();
                    Body::unfold((), move |()| {
                        let body = body.clone();
                        async move {
                            body.block();
                            None
                        }
                    })
                }),
            );
        let policy = Policy { timeout: ms(500), ..Policy::default() };
        let served = Served::ending(policy, router);
        let mut client = served.client();
        client.send(request(path));
        gate.until_arrived(1);
        served.begin_shutdown();
        let report = served.report();
        gate.open();
        let lost = &the_only_loss(&report).lost[0];
        assert_eq!((lost.outcome, &*lost.path, &*lost.route), ("cut", path, path));
    }
}

#[test]
fn a_blocked_worker_does_not_spoil_the_drain_of_the_others() {
    let (gate, block) = (Gate::default(), Gate::default());
    let held = block.clone();
    let router = app(&gate).route(
        "/hold",
        get(move |_: Request| {
            held.block();
            "held"
        }),
    );
    let options = ebbtide::Options {
        workers: ebbtide::Workers::Count(2),
        shutdown: two_seconds(),
        ..super::support::options()
    };
    let served = Served::with(options, router);
    let mut waiting: Vec<Client> = (0..20).map(|_| served.client()).collect();
    for client in &mut waiting {
        client.send(request("/wait"));
    }
    gate.until_arrived(20);
    // Takes one of the workers; those that wait on it are lost with it.
    let mut holding = served.client();
    holding.send(request("/hold"));
    block.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    served.until("the other worker is done", |counts| {
        counts.finished_as(RequestOutcome::Answered) > 0
    });
    let report = served.report();
    assert_eq!(report.exit_status, 3);
    let answered = report.counts.finished_as(RequestOutcome::Answered);
    assert_eq!(report.cut + answered, 21);
    assert_eq!(report.lost.len() as u64 + report.lost_unnamed, report.cut);
    assert!(report.lost.iter().any(|lost| lost.path == "/hold"), "{:?}", report.lost);
    block.open();
}

/// A handler that answers with `status` when the gate opens.
fn answering(gate: &Gate, status: StatusCode) -> Router {
    let gate = gate.clone();
    Router::new().route(
        "/late",
        get(move |_: Request| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                status
            }
        }),
    )
}

#[test]
fn handlers_have_half_of_cancelling_to_answer() {
    for (status, is_refused) in [(StatusCode::OK, false), (StatusCode::BAD_GATEWAY, true)] {
        let gate = Gate::default();
        let policy = Policy { timeout: ms(6000), ..Policy::default() };
        let served = Served::ending(policy, answering(&gate, status));
        let mut client = served.client();
        client.send(request("/late"));
        gate.until_arrived(1);
        served.begin_shutdown();
        served.until_phase(Phase::Cancelling);
        gate.open();
        let answer = client.read_response();
        assert_eq!(answer.status, status.as_u16());
        assert!(answer.announces_close());
        drop(client);
        let report = served.report();
        assert_eq!(report.exit_status, if is_refused { 3 } else { 0 });
        assert_eq!(report.refused, u64::from(is_refused), "an error now is the shutdown's doing");
    }
}

#[test]
fn without_waiting_what_has_arrived_is_begun_and_then_cancelled() {
    let gate = Gate::default();
    let policy = Policy { in_flight: InFlight::Cancel, ..two_seconds() };
    let served = Served::ending(policy, app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(2);
    let mut arrived = served.client();
    arrived.send(request("/hello"));
    let began = now();
    served.begin_shutdown();
    served.until_phase(Phase::Cancelling);
    gate.let_one();
    blocking.read_response().expect(200, "blocked");
    arrived.read_response().expect(200, "hello");
    idle.expect_end();
    waiting.read_response().expect_refusal();
    assert!(now() - began < ms(400) + SLACK);
    drop((waiting, blocking, arrived));
    let report = served.report();
    assert_eq!(report.exit_status, 3);
    assert_eq!((report.refused, report.cut), (1, 0));
}

#[test]
fn without_force_the_server_waits_on() {
    let gate = Gate::default();
    let policy = Policy {
        timeout: ms(600),
        idle_window: ms(200),
        at_deadline: AtDeadline::WaitOn,
        ..Policy::default()
    };
    let served = Served::ending(policy, app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    let mut streaming = served.client();
    streaming.send(request("/stream"));
    gate.until_arrived(2);
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    served.begin_shutdown();
    idle.expect_end();
    waiting.expect_silence(ms(1500));
    assert_eq!(served.phase(), Phase::Draining);
    gate.open();
    let answer = waiting.read_response();
    answer.expect(200, "waited");
    assert!(answer.announces_close());
    streaming.read_response().expect(200, super::support::STREAMED);
    drop((waiting, streaming, idle));
    let report = served.report();
    assert_eq!((report.exit_status, report.refused, report.cut), (0, 0, 0));
    assert_eq!(report.budget_left, ms(0));
}

#[test]
fn the_end_of_a_response_that_stays_in_the_kernel_is_a_loss() {
    let served = Served::ending(
        Policy { timeout: ms(1000), ..Policy::default() },
        app(&Gate::default()).route("/large", get(|_: Request| Body::from(vec![b'x'; 1 << 20]))),
    );
    let mut client = served.client();
    client.send(request("/large"));
    // The kernel has taken all of it, the client nothing.
    served.until_finished(RequestOutcome::Answered, 1);
    served.begin_shutdown();
    let report = served.report();
    assert_eq!((report.cut, report.cut_connections, report.exit_status), (0, 1, 3));
}
