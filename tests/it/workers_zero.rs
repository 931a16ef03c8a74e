//! `workers = 0`: everything on the caller's thread, with one reactor.

use ebbtide::{Options, Phase, Policy, Request, RequestOutcome, Router, Workers, blocking, get};

use super::client::{Client, request, upload};
use super::support::{Gate, SLACK, Served, app, ms, now, options, pattern};

fn alone() -> Options {
    Options { workers: Workers::Count(0), ..options() }
}

#[test]
fn one_thread_serves_everything() {
    let name = |_: Request| std::thread::current().name().unwrap_or_default().to_owned();
    let served = Served::with(alone(), app(&Gate::default()).route("/thread", get(name)));
    let mut client = served.client();
    client.get("/thread").expect(200, "served");
    client.get("/hello").expect(200, "hello");
    client.send(upload("/echo", pattern(500_000)));
    assert!(client.read_response().body == pattern(500_000));
    assert_eq!(client.get("/readyz").status, 200);
    let mut admin = served.admin_client();
    assert_eq!(admin.get("/readyz").status, 200);
    assert_eq!(admin.get("/metrics").status, 200);
    drop((client, admin));
    let report = served.stop();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 4);
}

#[test]
fn one_thread_sleeps_and_blocks_elsewhere() {
    let router = Router::new()
        .route(
            "/nap",
            get(async |_: Request| {
                ebbtide::sleep(ms(50)).await;
                "slept"
            }),
        )
        .route("/work", get(async |_: Request| blocking(|| "worked").await));
    let served = Served::with(alone(), router);
    let mut clients: Vec<Client> = (0..20).map(|_| served.client()).collect();
    let began = now();
    for client in &mut clients {
        client.send(request("/nap") + &request("/work"));
    }
    for client in &mut clients {
        client.read_response().expect(200, "slept");
        client.read_response().expect(200, "worked");
    }
    assert!(now() - began < ms(50) + SLACK);
}

#[test]
fn one_thread_drains() {
    let gate = Gate::default();
    let served = Served::with(alone(), app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let mut admin = served.admin_client();
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    assert_eq!(admin.get("/readyz").status, 503);
    let answer = idle.get("/hello");
    assert!(answer.expect(200, "hello").announces_close());
    served.until_retired();
    gate.open();
    let answer = waiting.read_response();
    assert!(answer.expect(200, "waited").announces_close());
    drop((waiting, idle));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn one_thread_keeps_its_budget() {
    let gate = Gate::default();
    let shutdown = Policy { timeout: ms(1000), ..Policy::default() };
    let served = Served::with(Options { shutdown, ..alone() }, app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut streaming = served.client();
    streaming.send(request("/stream"));
    gate.until_arrived(2);
    let began = now();
    served.begin_shutdown();
    waiting.read_response().expect_refusal();
    assert!(streaming.try_read_response().is_err());
    drop(waiting);
    let report = served.report();
    assert!(now() - began < ms(1000) + SLACK);
    assert_eq!((report.exit_status, report.refused, report.cut), (3, 1, 1));
}

#[test]
fn one_thread_answers_what_waited_while_it_was_blocked() {
    let gate = Gate::default();
    let served = Served::with(alone(), app(&gate));
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    let mut queued: Vec<Client> = (0..50).map(|_| served.client()).collect();
    for client in &mut queued {
        client.send(request("/hello"));
    }
    served.handle.shutdown();
    gate.open();
    blocking.read_response().expect(200, "blocked");
    for client in &mut queued {
        client.read_response().expect(200, "hello");
    }
    drop((queued, blocking));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn one_thread_survives_a_panic() {
    let router = app(&Gate::default())
        .route("/panic", get(|_: Request| -> &'static str { panic!("on the only thread") }));
    let served = Served::with(alone(), router);
    for _ in 0..3 {
        assert_eq!(served.client().get("/panic").status, 500);
        served.client().get("/hello").expect(200, "hello");
    }
}
