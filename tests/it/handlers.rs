//! What handlers can ask for: ids, sleeping, blocking work, the peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ebbtide::{BlockingError, Request, Router, blocking, get};

use super::client::{Client, request};
use super::support::{Gate, Served, app, assert_took, ms, now};

fn ids() -> Router {
    Router::new()
        .route("/id", get(|request: Request| request.id().to_string()))
        .route("/silent", get(|_: Request| "silent"))
}

fn get_with_id(client: &mut Client, path: &str, id: &str) -> super::client::Answer {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\n\r\n"));
    client.read_response()
}

#[test]
fn a_well_formed_request_id_is_kept_and_sent_back() {
    let served = Served::start(ids());
    let mut client = served.client();
    let longest = "x".repeat(128);
    for id in ["a", "7", "ABC-123_x.y", "0af7651916cd43dd8448eb211c80319c", &longest] {
        let answer = get_with_id(&mut client, "/id", id);
        assert_eq!(answer.header("x-request-id"), Some(id));
        answer.expect(200, id);
        // Also when the handler does not ask.
        assert_eq!(get_with_id(&mut client, "/silent", id).header("x-request-id"), Some(id));
    }
}

#[test]
fn a_malformed_request_id_is_replaced() {
    let served = Served::start(ids());
    let mut client = served.client();
    let too_long = "x".repeat(129);
    for id in ["", "a b", "a,b", "a\u{e9}b", "\"quoted\"", "a/b", "<b>", "a;b=c", &too_long] {
        let answer = get_with_id(&mut client, "/id", id);
        let made = answer.header("x-request-id").expect("an asked-for id is sent back");
        assert_ne!(made, id);
        let is_well_formed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        assert!(!made.is_empty() && made.bytes().all(is_well_formed), "{made:?} for {id:?}");
        answer.expect(200, made);
    }
}

#[test]
fn ids_made_here_differ() {
    let options =
        ebbtide::Options { workers: ebbtide::Workers::Count(2), ..super::support::options() };
    let served = Served::with(options, ids());
    let other = Served::start(ids());
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        for server in [&served, &other] {
            let answer = server.client().get("/id");
            assert!(seen.insert(answer.text().to_owned()), "{answer:?}");
        }
    }
}

#[test]
fn an_id_nobody_asked_for_is_not_sent() {
    let served = Served::start(ids());
    assert_eq!(served.client().get("/silent").header("x-request-id"), None);
}

#[test]
fn a_hundred_sleeps_share_one_worker() {
    let router = Router::new().route(
        "/nap",
        get(async |_: Request| {
            ebbtide::sleep(ms(100)).await;
            "slept"
        }),
    );
    let served = Served::start(router);
    let mut clients: Vec<Client> = (0..100).map(|_| served.client()).collect();
    let began = now();
    for client in &mut clients {
        client.send(request("/nap"));
    }
    for client in &mut clients {
        client.read_response().expect(200, "slept");
    }
    assert_took(began, ms(100));
}

#[test]
fn sleeps_end_in_the_order_of_their_time() {
    let order = Arc::new(AtomicUsize::new(0));
    let router = Router::new()
        .route(
            "/nap/{ms}",
            get(async |request: Request| {
                let time = request.param("ms").and_then(|ms| ms.parse().ok()).expect("a number");
                ebbtide::sleep(ms(time)).await;
                let order = request.state::<Arc<AtomicUsize>>();
                order.fetch_add(1, Ordering::Relaxed).to_string()
            }),
        )
        .with_state(order);
    let served = Served::start(router);
    let mut clients: Vec<(u64, Client)> =
        [300, 100, 200].into_iter().map(|time| (time, served.client())).collect();
    for (time, client) in &mut clients {
        client.send(request(&format!("/nap/{time}")));
    }
    for (time, client) in &mut clients {
        client.read_response().expect(200, &(*time / 100 - 1).to_string());
    }
}

#[test]
fn a_sleep_of_no_time_and_a_dropped_sleep_do_no_harm() {
    let router = Router::new().route(
        "/nap",
        get(async |_: Request| {
            ebbtide::sleep(ms(0)).await;
            drop(ebbtide::sleep(ms(1)));
            let mut forgotten = Box::pin(ebbtide::sleep(ms(1)));
            std::future::poll_fn(|cx| {
                let _pending = forgotten.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(forgotten);
            ebbtide::sleep(ms(5)).await;
            "slept"
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    for _ in 0..3 {
        client.get("/nap").expect(200, "slept");
    }
}

#[test]
fn blocking_work_gives_its_value() {
    let router = Router::new().route(
        "/work",
        get(async |_: Request| {
            let name = blocking(|| std::thread::current().name().map(str::to_owned)).await?;
            Ok::<_, BlockingError>(format!("done by {}", name.unwrap_or_default()))
        }),
    );
    let answer = Served::start(router).client().get("/work");
    assert_eq!(answer.status, 200);
    assert!(!answer.text().contains("worker"), "not on a worker: {answer:?}");
}

#[test]
fn blocking_work_that_panics_is_answered_500_and_its_thread_lives_on() {
    let router = Router::new()
        .route(
            "/panic",
            get(async |_: Request| blocking(|| -> String { panic!("the work failed") }).await),
        )
        .route("/work", get(async |_: Request| blocking(|| "done").await));
    let options = ebbtide::Options { blocking_threads: 1, ..super::support::options() };
    let served = Served::with(options, router);
    let mut client = served.client();
    for _ in 0..3 {
        let answer = client.get("/panic");
        assert_eq!(answer.status, 500);
        assert!(!answer.text().contains("the work failed"), "what it said stays here");
        client = served.client();
        client.get("/work").expect(200, "done");
    }
}

#[test]
fn blocking_work_does_not_hold_the_worker() {
    let gate = Gate::default();
    let held = gate.clone();
    let router = app(&Gate::default()).route(
        "/work",
        get(move |_: Request| {
            let gate = held.clone();
            blocking(move || {
                gate.block();
                "done"
            })
        }),
    );
    let served = Served::start(router);
    let mut waiting = served.client();
    waiting.send(request("/work"));
    gate.until_arrived(1);
    served.client().get("/hello").expect(200, "hello");
    gate.open();
    waiting.read_response().expect(200, "done");
}

#[test]
fn blocking_jobs_run_side_by_side() {
    // Each waits until all have come.
    let barrier = Arc::new(std::sync::Barrier::new(8));
    let router = Router::new().route(
        "/work",
        get(move |_: Request| {
            let barrier = Arc::clone(&barrier);
            blocking(move || {
                barrier.wait();
                "done"
            })
        }),
    );
    let served = Served::start(router);
    let mut clients: Vec<Client> = (0..8).map(|_| served.client()).collect();
    for client in &mut clients {
        client.send(request("/work"));
    }
    for client in &mut clients {
        client.read_response().expect(200, "done");
    }
}

#[test]
fn the_peer_is_the_client() {
    let router = Router::new()
        .route("/peer", get(|request: Request| format!("{:?}", request.peer().map(|p| p.ip()))));
    Served::start(router).client().get("/peer").expect(200, "Some(127.0.0.1)");
}
