//! What handlers and streams are told when nobody waits for them any more.

use std::sync::{Arc, Mutex};

use ebbtide::{
    Body, Bytes, CancellationToken, HalfClose, IntoResponse, Options, Phase, Policy, Request,
    RequestOutcome, Response, Router, Workers, blocking, get, post,
};
use http::StatusCode;

use super::client::{Client, request, upload};
use super::support::{Gate, SLACK, Served, app, assert_took, ms, now, options, wait_until};

/// Draining lasts 1.2 s; then handlers have 0.2 s.
fn two_seconds() -> Policy {
    Policy { timeout: ms(2000), ..Policy::default() }
}

/// The tokens of the requests so far, for the test to look at.
#[derive(Clone, Default)]
struct Tokens(Arc<Mutex<Vec<CancellationToken>>>);

impl Tokens {
    fn add(&self, token: CancellationToken) {
        self.0.lock().expect("no panic while held").push(token);
    }

    fn fired(&self) -> Vec<bool> {
        let tokens = self.0.lock().expect("no panic while held");
        tokens.iter().map(CancellationToken::is_cancelled).collect()
    }

    fn until_fired(&self, fired: &[bool]) {
        wait_until(&format!("the tokens say {fired:?}"), || self.fired() == fired);
    }
}

/// A route `/told/{status}` that waits until `which` fires, and answers with the status then; and
/// what [`app`] has.
fn told(which: fn(&Request) -> CancellationToken, gate: &Gate) -> Router {
    let (arriving, streaming) = (gate.clone(), gate.clone());
    let wait = move |request: Request| {
        let (token, gate) = (which(&request), arriving.clone());
        let status = request.param("status").and_then(|text| text.parse::<u16>().ok());
        async move {
            gate.let_one();
            gate.pass().await;
            token.await;
            (StatusCode::from_u16(status.expect("a status")).expect("a status"), "told")
        }
    };
    let stream = move |request: Request| {
        let (token, gate) = (which(&request), streaming.clone());
        Body::unfold(0, move |n| {
            let (token, gate) = (token.clone(), gate.clone());
            async move {
                match n {
                    0 => Some((Bytes::from_static(b"begun;"), 1)),
                    1 => {
                        gate.let_one();
                        gate.pass().await;
                        token.cancelled().await;
                        Some((Bytes::from_static(b"ended early;"), 2))
                    }
                    _ => None,
                }
            }
        })
    };
    app(gate).route("/told/{status}", get(wait)).route("/stream-until", get(stream))
}

const BOTH: [fn(&Request) -> CancellationToken; 2] = [Request::shutdown, Request::cancelled];

#[test]
fn handlers_are_told_when_cancelling_begins_and_not_before() {
    for (which, workers) in [(BOTH[0], 1), (BOTH[1], 1), (BOTH[0], 0), (BOTH[1], 0)] {
        let gate = Gate::default();
        let workers = Workers::Count(workers);
        let options = Options { shutdown: two_seconds(), workers, ..options() };
        let served = Served::with(options, told(which, &gate));
        let mut client = served.client();
        client.send(request("/told/200"));
        gate.until_arrived(1);
        let began = now();
        served.begin_shutdown();
        let answer = client.read_response();
        assert_took(began, ms(1200));
        assert!(answer.expect(200, "told").announces_close());
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.refused, report.cut), (0, 0, 0));
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 1);
    }
}

#[test]
fn an_error_after_the_token_fired_is_a_refusal_and_anything_else_an_answer() {
    for (status, is_refused) in
        [(200, false), (204, false), (302, false), (409, false), (500, true), (503, true)]
    {
        let gate = Gate::default();
        let served = Served::ending(two_seconds(), told(Request::shutdown, &gate));
        let mut client = served.client();
        client.send(request(&format!("/told/{status}")));
        gate.until_arrived(1);
        served.begin_shutdown();
        let answer = client.read_response();
        assert_eq!(answer.status, status);
        assert!(answer.announces_close());
        drop(client);
        let report = served.report();
        assert_eq!(report.refused, u64::from(is_refused), "{status}");
        assert_eq!(report.exit_status, if is_refused { 3 } else { 0 }, "{status}");
        assert_eq!(report.lost.len(), usize::from(is_refused), "{:?}", report.lost);
    }
}

#[test]
fn an_error_before_the_token_fired_is_an_answer() {
    let gate = Gate::default();
    let held = gate.clone();
    let failing = get(move |_: Request| {
        let held = held.clone();
        async move {
            held.pass().await;
            StatusCode::BAD_GATEWAY
        }
    });
    let served = Served::ending(two_seconds(), Router::new().route("/failing", failing));
    let mut client = served.client();
    client.send(request("/failing"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    assert_eq!(client.read_response().status, 502);
    drop(client);
    let report = served.report();
    assert_eq!((report.exit_status, report.refused), (0, 0));
}

#[test]
fn a_stream_that_is_told_may_end_in_order() {
    for which in BOTH {
        let gate = Gate::default();
        let served = Served::ending(two_seconds(), told(which, &gate));
        let mut client = served.client();
        client.send(request("/stream-until"));
        gate.until_arrived(1);
        let began = now();
        served.begin_shutdown();
        let answer = client.read_response();
        assert_took(began, ms(1200));
        answer.expect(200, "begun;ended early;");
        client.expect_end();
        drop(client);
        let report = served.report();
        assert_eq!((report.exit_status, report.cut, report.refused), (0, 0, 0));
    }
}

#[test]
fn a_second_signal_tells_handlers_at_once() {
    let gate = Gate::default();
    let served = Served::start(told(Request::shutdown, &gate));
    let mut client = served.client();
    client.send(request("/told/200"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.expect_silence(ms(200));
    let began = now();
    served.handle.signal_handler(ebbtide::Signal::Terminate);
    client.read_response().expect(200, "told");
    assert!(now() - began < SLACK);
}

#[test]
fn whoever_asks_late_is_told_at_once() {
    let gate = Gate::default();
    let held = gate.clone();
    let late = get(move |request: Request| {
        let held = held.clone();
        async move {
            held.pass().await;
            let fired = (request.shutdown().is_cancelled(), request.cancelled().is_cancelled());
            request.cancelled().await;
            request.shutdown().await;
            format!("{fired:?}")
        }
    });
    let served = Served::ending(two_seconds(), Router::new().route("/late", late));
    let mut client = served.client();
    client.send(request("/late"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Cancelling);
    gate.open();
    client.read_response().expect(200, "(true, true)");
}

#[test]
fn a_handler_that_ignores_the_token_is_refused_and_dropped() {
    struct Noted(Arc<Mutex<bool>>);
    impl Drop for Noted {
        fn drop(&mut self) {
            *self.0.lock().expect("no panic while held") = true;
        }
    }
    let (gate, dropped) = (Gate::default(), Arc::new(Mutex::new(false)));
    let (held, noting) = (gate.clone(), Arc::clone(&dropped));
    let deaf = get(move |_: Request| {
        let (held, noted) = (held.clone(), Noted(Arc::clone(&noting)));
        async move {
            held.pass().await;
            drop(noted);
            "never"
        }
    });
    let served = Served::ending(two_seconds(), Router::new().route("/deaf", deaf));
    let mut client = served.client();
    client.send(request("/deaf"));
    gate.until_arrived(1);
    served.begin_shutdown();
    client.read_response().expect_refusal();
    drop(client);
    assert_eq!(served.report().exit_status, 3);
    assert!(*dropped.lock().expect("no panic while held"), "its future is not kept");
}

/// A server whose `/hold` waits at the gate with its token in `tokens`; `/held-stream` does so in
/// the middle of its body.
fn holding(half_close: HalfClose) -> (Served, Gate, Tokens) {
    let (gate, tokens) = (Gate::default(), Tokens::default());
    let (held, noting) = (gate.clone(), tokens.clone());
    let waits = move |request: Request| {
        noting.add(request.cancelled());
        let held = held.clone();
        async move {
            held.pass().await;
            "held"
        }
    };
    let (held, noting) = (gate.clone(), tokens.clone());
    let stream = get(move |request: Request| {
        noting.add(request.cancelled());
        let held = held.clone();
        Body::unfold(0, move |n| {
            let held = held.clone();
            async move {
                if n == 1 {
                    held.pass().await;
                }
                (n < 2).then(|| (Bytes::from_static(b"part;"), n + 1))
            }
        })
    });
    let router = app(&gate)
        .route("/hold", get(waits.clone()))
        .route("/hold-post", post(waits))
        .route("/held-stream", stream);
    let options = Options { client_half_close: half_close, ..options() };
    (Served::with(options, router), gate, tokens)
}

#[test]
fn a_reset_fires_the_token_whatever_a_fin_means() {
    for half_close in [HalfClose::Cancel, HalfClose::Serve] {
        for path in ["/hold", "/held-stream"] {
            let (served, gate, tokens) = holding(half_close);
            let mut client = served.client();
            client.send(request(path));
            gate.until_arrived(1);
            assert_eq!(tokens.fired(), [false]);
            client.reset();
            tokens.until_fired(&[true]);
            served.until_finished(RequestOutcome::Abandoned, 1);
        }
    }
}

#[test]
fn a_fin_fires_the_token_and_the_answer_is_sent_all_the_same() {
    for path in ["/hold", "/held-stream"] {
        let (served, gate, tokens) = holding(HalfClose::Cancel);
        let mut client = served.client();
        client.send(request(path));
        gate.until_arrived(1);
        client.half_close();
        tokens.until_fired(&[true]);
        gate.open();
        assert_eq!(client.read_response().status, 200);
        client.expect_end();
        drop(client);
        served.until_finished(RequestOutcome::Answered, 1);
    }
}

#[test]
fn a_fin_with_the_request_fires_the_token() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    let mut client = served.client();
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    // Both are there before the server looks.
    client.send(request("/hold"));
    client.half_close();
    gate.let_one();
    blocking.read_response().expect(200, "blocked");
    gate.until_arrived(2);
    tokens.until_fired(&[true]);
    gate.open();
    client.read_response().expect(200, "held");
}

#[test]
fn a_fin_behind_an_upload_fires_the_token() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    for unread in [0, 10, 50_000] {
        let arrived = gate.arrived();
        let mut client = served.client();
        client.send(upload("/hold-post", vec![b'x'; unread]));
        gate.until_arrived(arrived + 1);
        client.half_close();
        wait_until(&format!("the token fires behind {unread}"), || {
            tokens.fired().last() == Some(&true)
        });
        gate.let_one();
        client.read_response().expect(200, "held");
    }
}

#[test]
fn a_fin_says_nothing_where_half_closed_clients_are_served() {
    for path in ["/hold", "/held-stream"] {
        let (served, gate, tokens) = holding(HalfClose::Serve);
        let mut client = served.client();
        client.send(request(path));
        gate.until_arrived(1);
        client.half_close();
        // Long enough for the FIN to be seen: another client's request was.
        served.client().get("/hello").expect(200, "hello");
        client.hears_within(ms(100));
        assert_eq!(tokens.fired(), [false]);
        gate.open();
        assert_eq!(client.read_response().status, 200);
        client.expect_end();
        assert_eq!(tokens.fired(), [false], "it was answered");
    }
}

#[test]
fn where_half_closed_clients_are_served_the_shutdown_still_fires_the_token() {
    let gate = Gate::default();
    let options =
        Options { client_half_close: HalfClose::Serve, shutdown: two_seconds(), ..options() };
    let served = Served::with(options, told(Request::cancelled, &gate));
    let mut client = served.client();
    client.send(request("/told/200"));
    client.half_close();
    gate.until_arrived(1);
    served.begin_shutdown();
    client.read_response().expect(200, "told");
    drop(client);
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn the_token_of_an_answered_request_never_fires() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    gate.open();
    // One that leaves in order, one that resets, one that is there when the shutdown cancels.
    let mut clients: Vec<Client> = (0..3).map(|_| served.client()).collect();
    for client in &mut clients {
        client.get("/hold").expect(200, "held");
    }
    served.until_finished(RequestOutcome::Answered, 3);
    let last = clients.pop().expect("three");
    clients.pop().expect("two").reset();
    drop(clients);
    served.until("two have left", |counts| counts.open() == 1);
    assert_eq!(tokens.fired(), [false; 3], "they have their answers");
    served.handle.signal_handler(ebbtide::Signal::Interrupt);
    served.report();
    assert_eq!(tokens.fired(), [false; 3], "they have their answers");
    drop(last);
}

#[test]
fn the_token_of_an_answered_request_does_not_fire_when_the_shutdown_cancels() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    let mut answered = served.client();
    answered.send(request("/hold"));
    gate.until_arrived(1);
    gate.let_one();
    answered.read_response().expect(200, "held");
    let mut waiting = served.client();
    waiting.send(request("/hold"));
    gate.until_arrived(2);
    served.begin_shutdown();
    waiting.expect_silence(ms(150));
    served.handle.signal_handler(ebbtide::Signal::Terminate);
    tokens.until_fired(&[false, true]);
    gate.open();
    waiting.read_response().expect(200, "held");
    answered.expect_end();
    assert_eq!(tokens.fired(), [false, true]);
}

#[test]
fn pipelined_requests_have_tokens_of_their_own() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    let mut client = served.client();
    client.send(request("/hold").repeat(3));
    gate.until_arrived(1);
    gate.let_one();
    client.read_response().expect(200, "held");
    gate.until_arrived(2);
    assert_eq!(tokens.fired(), [false, false]);
    client.reset();
    // The first was answered; the third never came to its handler.
    tokens.until_fired(&[false, true]);
    served.until_finished(RequestOutcome::Abandoned, 1);
    assert_eq!(tokens.fired(), [false, true]);
}

#[test]
fn a_later_request_of_a_connection_has_a_fresh_token() {
    let (served, gate, tokens) = holding(HalfClose::Cancel);
    let mut client = served.client();
    for count in 1..=3 {
        client.send(request("/hold"));
        gate.until_arrived(count);
        gate.let_one();
        client.read_response().expect(200, "held");
    }
    client.send(request("/hold"));
    gate.until_arrived(4);
    client.half_close();
    tokens.until_fired(&[false, false, false, true]);
    gate.open();
    client.read_response().expect(200, "held");
}

#[test]
fn asking_twice_gives_the_same_token() {
    let router = Router::new().route(
        "/twice",
        get(|request: Request| {
            let (one, two) = (request.cancelled(), request.cancelled());
            one.cancel();
            format!("{} {}", two.is_cancelled(), request.shutdown().is_cancelled())
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    // Firing one's own token is one's own affair: the next request has another.
    client.get("/twice").expect(200, "true false");
    client.get("/twice").expect(200, "true false");
}

/// `/work` computes on another thread until its token fires.
fn worked(gate: &Gate) -> Router {
    let gate = gate.clone();
    let work = get(move |request: Request| {
        let (token, gate) = (request.cancelled(), gate.clone());
        async move {
            let stopped = blocking(move || {
                gate.let_one();
                gate.block();
                let end = now() + super::support::PATIENCE;
                while !token.is_cancelled() && now() < end {
                    super::support::pace(ms(1));
                }
                gate.let_one();
                gate.block();
                token.is_cancelled()
            });
            stopped.await.map(|stopped| stopped.to_string())
        }
    });
    Router::new().route("/work", work)
}

#[test]
fn work_on_another_thread_can_look_at_the_token() {
    // Until its client resets, closes, or the shutdown cancels.
    type End = fn(&Served, Client) -> Option<Client>;
    let ends: [(End, bool); 3] = [
        (
            |_, client| {
                client.reset();
                None
            },
            false,
        ),
        (
            |_, client| {
                client.half_close();
                Some(client)
            },
            true,
        ),
        (
            |served, client| {
                served.begin_shutdown();
                Some(client)
            },
            true,
        ),
    ];
    for (end, is_answered) in ends {
        let gate = Gate::default();
        let served = Served::ending(two_seconds(), worked(&gate));
        let mut client = served.client();
        client.send(request("/work"));
        gate.until_arrived(1);
        let client = end(&served, client);
        gate.until_arrived(2);
        if let Some(mut client) = client {
            client.read_response().expect(200, "true");
        }
        if is_answered {
            served.until_finished(RequestOutcome::Answered, 1);
        } else {
            served.until_finished(RequestOutcome::Abandoned, 1);
        }
    }
}

#[test]
fn run_until_cancelled_gives_what_comes_first() {
    let gate = Gate::default();
    let held = gate.clone();
    let race = get(move |request: Request| {
        let held = held.clone();
        async move {
            let work = async {
                held.pass().await;
                "worked"
            };
            match request.cancelled().run_until_cancelled(work).await {
                Some(text) => Response::text(text),
                None => (StatusCode::IM_A_TEAPOT, "stopped").into_response(),
            }
        }
    });
    let served = Served::ending(two_seconds(), Router::new().route("/race", race));
    let mut client = served.client();
    client.send(request("/race"));
    gate.until_arrived(1);
    gate.let_one();
    client.read_response().expect(200, "worked");
    client.send(request("/race"));
    gate.until_arrived(2);
    client.half_close();
    client.read_response().expect(418, "stopped");
    let mut other = served.client();
    other.send(request("/race"));
    gate.until_arrived(3);
    served.begin_shutdown();
    other.read_response().expect(418, "stopped");
    drop((client, other));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn many_that_wait_are_all_told() {
    let gate = Gate::default();
    let served = Served::ending(two_seconds(), told(Request::shutdown, &gate));
    let mut clients: Vec<Client> = (0..200).map(|_| served.client()).collect();
    for client in &mut clients {
        client.send(request("/told/200"));
    }
    gate.until_arrived(200);
    served.begin_shutdown();
    for client in &mut clients {
        client.read_response().expect(200, "told");
    }
    drop(clients);
    let report = served.report();
    assert_eq!((report.exit_status, report.refused + report.cut), (0, 0));
}
