//! Faults that were there once, each with its story in a sentence.

use ebbtide::{ConnectionOutcome, Limits, Phase, Request, Router, get, post};

use super::client::{Client, chunked_upload, request};
use super::support::{Gate, Served, app, ms, now, pattern};

/// The first part of a chunked upload that hides a request further on, and the rest of it.
fn smuggling(path: &str, visible: usize) -> (Vec<u8>, Vec<u8>) {
    let hidden = request("/hello").repeat(3);
    let size = visible + hidden.len();
    let head = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut first = format!("POST {path} HTTP/1.1\r\n{head}{size:x}\r\n").into_bytes();
    first.extend(pattern(visible));
    (first, (hidden + "\r\n0\r\n\r\n").into_bytes())
}

fn deaf() -> Router {
    let some = async |mut request: Request| match request.body_mut().chunk().await {
        Some(Ok(_)) => "some of it",
        _ => "nothing",
    };
    app(&Gate::default()).route("/some", post(some)).route("/none", post(|_: Request| "some of it"))
}

/// The rest of a chunked body that nobody read was taken for the next request.
#[test]
fn the_rest_of_an_unread_chunked_body_is_never_served() {
    let limits = Limits { body_bytes_max: 1000, ..Limits::default() };
    let served = Served::limited(limits, deaf());
    for (path, visible, status) in
        [("/some", 10, 200), ("/none", 10, 200), ("/none", 0, 200), ("/echo", 1001, 413)]
    {
        for pause in [ms(0), ms(50), ms(1300)] {
            let begun = served.counts().begun;
            let (first, rest) = smuggling(path, visible);
            let mut client = served.client();
            client.send(&first);
            let answer = client.read_response();
            assert_eq!(answer.status, status, "{path}");
            // Long enough, the last time, for an idle connection to hibernate.
            if !pause.is_zero() && !client.hears_within(pause) {
                assert!(!answer.announces_close(), "{path}: it was announced and does not come");
            }
            let _closed_already = client.try_send(&rest);
            let more = client.read_to_end();
            assert!(more.bytes.is_empty(), "{path}: {more:?}");
            assert_eq!(served.counts().begun, begun + 1, "{path}: the body held no requests");
        }
    }
    let counts = served.stop().counts;
    assert_eq!(counts.closed_as(ConnectionOutcome::Rejected), 0, "{counts:?}");
}

/// As above, with the whole body there before the response.
#[test]
fn a_chunked_body_that_nobody_reads_hides_no_requests() {
    let served = Served::start(deaf());
    for path in ["/some", "/none"] {
        for size in [10, 5000, 200_000] {
            let begun = served.counts().begun;
            let body = [pattern(size), request("/hello").repeat(3).into_bytes()].concat();
            let chunks: Vec<&[u8]> = body.chunks(100).collect();
            let mut client = served.client();
            let _cut_short = client.try_send(chunked_upload(path, &chunks));
            let answer = client.try_read_response();
            let answer = answer.unwrap_or_else(|rest| panic!("{path} {size}: {rest:?}"));
            answer.expect(200, "some of it");
            if answer.announces_close() {
                let more = client.read_to_end();
                assert!(more.bytes.is_empty(), "{path}: {more:?}");
            } else {
                client.send(request("/bytes/0"));
                let next = client.try_read_response();
                let next = next.unwrap_or_else(|rest| panic!("{path} {size}, the next: {rest:?}"));
                next.expect(200, "");
                assert_eq!(served.counts().begun, begun + 2, "{path}");
            }
        }
    }
}

/// The drain's look into every socket made the last of several pipelined requests seem to have
/// another behind it, so it did not announce the close.
#[test]
fn the_last_of_pipelined_requests_is_known_to_be_the_last() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send([request("/wait"), request("/hello"), request("/hello")].concat());
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    let began = now();
    client.read_response().expect(200, "waited");
    client.read_response().expect(200, "hello");
    assert!(client.read_response().expect(200, "hello").announces_close());
    client.expect_end();
    drop(client);
    assert_eq!(served.report().exit_status, 0);
    assert!(now() - began < ms(1000), "no window is waited for");
}

/// A route with a parameter stood in the way of the health endpoints.
#[test]
fn a_route_with_a_parameter_leaves_the_health_endpoints_alone() {
    let named = get(|request: Request| request.param("name").unwrap_or_default().to_owned());
    let served = Served::start(Router::new().route("/{name}", named));
    served.until_ready();
    let mut client = served.client();
    client.get("/anybody").expect(200, "anybody");
    client.get("/livez").expect(200, "ok\n");
    client.get("/readyz").expect(200, "ready\n");
    assert_eq!(client.get("/healthz").status, 200);
}

/// A burst of connections, all of them busy, is over without a trace.
#[test]
fn a_burst_of_connections_comes_and_goes() {
    let served = Served::start(app(&Gate::default()));
    for _ in 0..3 {
        let mut clients: Vec<Client> = (0..500).map(|_| served.client()).collect();
        for client in &mut clients {
            client.send(request("/bytes/1000"));
        }
        for client in &mut clients {
            assert_eq!(client.read_response().body, pattern(1000));
        }
        drop(clients);
        served.until("all are gone", |counts| counts.open() == 0);
    }
    assert_eq!(served.stop().counts.opened, 1500);
}
