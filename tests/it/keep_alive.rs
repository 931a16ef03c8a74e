//! The ordinary end of an idle connection: what clients are told of it, and that it comes later.

use ebbtide::{ConnectionState, Limits, Options, Policy, Request, Response, Router, get, header};
use http::{HeaderValue, StatusCode};

use super::client::{Answer, Client, chunked_upload, request, upload};
use super::support::{Gate, SLACK, Served, app, ms, now, options, wait_until};

/// A server whose idle connections are closed after so long.
fn idle_for(milliseconds: u64) -> Limits {
    Limits { keep_alive_timeout: ms(milliseconds), ..Limits::default() }
}

/// What `Connection` and `Keep-Alive` say.
fn told(answer: &Answer) -> (Option<&str>, Option<&str>) {
    (answer.header("connection"), answer.header("keep-alive"))
}

const NOTHING: (Option<&str>, Option<&str>) = (None, None);
const CLOSE: (Option<&str>, Option<&str>) = (Some("close"), None);

fn with_connection(path: &str, version: &str, value: &str) -> String {
    format!("GET {path} {version}\r\nHost: x\r\nConnection: {value}\r\n\r\n")
}

#[test]
fn clients_are_told_less_than_the_time_that_a_connection_has() {
    for (timeout, said) in [(75_000, "timeout=74"), (3000, "timeout=2"), (2000, "timeout=1")] {
        let served = Served::limited(idle_for(timeout), app(&Gate::default()));
        let mut client = served.client();
        for bytes in [
            request("/hello").into_bytes(),
            upload("/echo", "hello"),
            chunked_upload("/echo", &[b"hello"]),
            with_connection("/hello", "HTTP/1.1", "keep-alive").into_bytes(),
            request("/nobody").into_bytes(),
        ] {
            client.send(bytes);
            let answer = client.read_response();
            assert_eq!(told(&answer), (Some("keep-alive"), Some(said)), "{answer:?}");
        }
    }
}

#[test]
fn a_fraction_of_a_second_is_not_promised() {
    for (timeout, said) in [(2999, "timeout=1"), (3400, "timeout=2")] {
        let served = Served::limited(idle_for(timeout), app(&Gate::default()));
        let answer = served.client().get("/hello");
        assert_eq!(told(&answer), (Some("keep-alive"), Some(said)), "{timeout} ms");
    }
}

#[test]
fn a_time_too_short_to_say_is_not_said() {
    for timeout in [1, 500, 1000, 1500, 1999] {
        let served = Served::limited(idle_for(timeout), app(&Gate::default()));
        let answer = served.client().get("/hello");
        answer.expect(200, "hello");
        assert_eq!(told(&answer), NOTHING, "{timeout} ms");
    }
}

#[test]
fn the_close_comes_later_than_advertised_and_no_earlier_than_set() {
    for timeout in [2000, 2900] {
        let served = Served::limited(idle_for(timeout), app(&Gate::default()));
        // One that was idle from the first request on, and one that was used in between.
        let mut clients = [served.client(), served.client()];
        let mut since = clients.each_mut().map(|client| {
            client.get("/hello").expect(200, "hello");
            now()
        });
        clients[1].expect_silence(ms(900));
        let answer = clients[1].get("/hello");
        since[1] = now();
        let said = answer.header("keep-alive").and_then(|value| value.strip_prefix("timeout="));
        let advertised = ms(1000 * said.expect("it is said").parse::<u64>().expect("seconds"));
        for (client, since) in clients.iter_mut().zip(since) {
            client.expect_end();
            let idle = now() - since;
            assert!(advertised + ms(500) < idle, "told {advertised:?}, closed after {idle:?}");
            // The answer was on its way for a moment before the client had it.
            assert!(ms(timeout - 50) < idle && idle < ms(timeout) + SLACK, "{idle:?}");
        }
    }
}

#[test]
fn a_client_that_uses_all_of_the_advertised_time_is_never_closed_upon() {
    let served = Served::limited(idle_for(2000), app(&Gate::default()));
    let mut client = served.client();
    for _ in 0..3 {
        let answer = client.get("/hello");
        assert_eq!(answer.header("keep-alive"), Some("timeout=1"));
        client.expect_silence(ms(1000));
    }
    client.get("/hello").expect(200, "hello");
}

#[test]
fn a_client_that_asks_for_the_close_is_told_nothing_else() {
    let served = Served::start(app(&Gate::default()));
    for value in ["close", "Close", "keep-alive, close", "TE ,\tCLOSE"] {
        let mut client = served.client();
        client.send(with_connection("/hello", "HTTP/1.1", value));
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert_eq!(told(&answer), CLOSE, "{value:?}");
        client.expect_end();
    }
    let mut client = served.client();
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: TE\r\nConnection: close\r\n\r\n");
    assert_eq!(told(&client.read_response()), CLOSE, "the second field counts as well");
    client.expect_end();
}

#[test]
fn the_old_version_is_told_what_it_asked_for() {
    let served = Served::start(app(&Gate::default()));
    let mut plain = served.client();
    plain.send("GET /hello HTTP/1.0\r\nHost: x\r\n\r\n");
    let answer = plain.read_response();
    answer.expect(200, "hello");
    assert_eq!(answer.header("keep-alive"), None, "nobody asked: {answer:?}");
    assert_ne!(answer.header("connection"), Some("keep-alive"));
    plain.expect_end();
    let mut persistent = served.client();
    for _ in 0..2 {
        persistent.send(with_connection("/hello", "HTTP/1.0", "keep-alive"));
        let answer = persistent.read_response();
        answer.expect(200, "hello");
        // Without it a client of that version expects the close.
        assert_eq!(answer.header("connection"), Some("keep-alive"), "{answer:?}");
    }
}

/// Handlers that have a say in the end of their connection.
fn headstrong() -> Router {
    let saying = |value: &'static str| {
        get(move |_: Request| {
            let value = HeaderValue::from_static(value);
            Response::text("said").with_header(header::CONNECTION, value)
        })
    };
    app(&Gate::default())
        .route("/close", saying("close"))
        .route("/shout", saying("Close"))
        .route("/panic", get(|_: Request| -> StatusCode { panic!("on purpose") }))
}

#[test]
fn a_handler_that_closes_the_connection_is_not_contradicted() {
    let served = Served::start(headstrong());
    for path in ["/close", "/shout"] {
        let mut client = served.client();
        let answer = client.get(path);
        answer.expect(200, "said");
        assert_eq!(answer.header("keep-alive"), None, "{path}: {answer:?}");
        assert!(answer.announces_close(), "{path}: {answer:?}");
        client.expect_end();
    }
}

#[test]
fn a_response_that_ends_its_connection_advertises_nothing() {
    let limits = Limits { body_bytes_max: 10, request_timeout: ms(100), ..Limits::default() };
    let served = Served::limited(limits, headstrong());
    for (bytes, status) in [
        (request("/panic").into_bytes(), 500),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n".to_vec(), 413),
        (request("/wait").into_bytes(), 503),
        (b"GET /hello HTTP/1.1\r\n\r\n".to_vec(), 400),
    ] {
        let mut client = served.client();
        client.send(bytes);
        let answer = client.read_response();
        assert_eq!((answer.status, told(&answer)), (status, CLOSE), "{answer:?}");
        client.expect_end();
    }
}

#[test]
fn an_error_after_which_the_connection_goes_on_keeps_its_word() {
    let limits = Limits { body_bytes_max: 10, ..Limits::default() };
    let served = Served::limited(limits, headstrong());
    let mut client = served.client();
    for _ in 0..3 {
        client.send(upload("/echo", "more than ten bytes"));
        let answer = client.read_response();
        assert_eq!(answer.status, 413);
        if told(&answer) == CLOSE {
            client.expect_end();
            client = served.client();
        }
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn a_shutdown_advertises_nothing() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(6000), delay: ms(1000), ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut pipelining = served.client();
    pipelining.send(request("/wait") + &request("/hello"));
    gate.until_arrived(1);
    served.begin_shutdown();
    // The lame duck, where new connections are served as well.
    assert_eq!(told(&served.client().get("/hello")), CLOSE);
    gate.open();
    // Not announced, for there is another request behind it; and nothing is promised.
    assert_eq!(told(&pipelining.read_response()), NOTHING);
    assert_eq!(told(&pipelining.read_response()), CLOSE);
}

#[test]
fn a_stream_tells_it_as_well() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    gate.open();
    let mut client = served.client();
    let answer = client.get("/stream");
    assert_eq!(told(&answer), (Some("keep-alive"), Some("timeout=74")));
    client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.read_response_to_head();
    assert_eq!(told(&answer), (Some("keep-alive"), Some("timeout=74")));
}

#[test]
fn a_request_in_the_kernel_when_the_time_is_up_is_served() {
    for (workers, state) in [
        (1, ConnectionState::Idle),
        (1, ConnectionState::Hibernating),
        (0, ConnectionState::Hibernating),
    ] {
        let gate = Gate::default();
        let limits = idle_for(if state == ConnectionState::Idle { 400 } else { 1500 });
        let patience = limits.keep_alive_timeout;
        let workers = ebbtide::Workers::Count(workers);
        let served = Served::with(Options { limits, workers, ..options() }, app(&gate));
        let mut waiting: Vec<Client> = (0..5).map(|_| served.client()).collect();
        for client in &mut waiting {
            client.get("/hello").expect(200, "hello");
        }
        let idle_since = now();
        served.until_in_state(state, 5);
        let mut blocking = served.client();
        blocking.send(request("/block"));
        gate.until_arrived(1);
        // The server cannot look; its time passes, and in it comes what it cannot see.
        for client in &mut waiting {
            client.send(request("/hello"));
        }
        assert!(now() - idle_since < patience, "the machine is too slow for this test");
        wait_until("the time is up", || now() - idle_since > patience + ms(200));
        gate.open();
        blocking.read_response().expect(200, "blocked");
        for client in &mut waiting {
            client.read_response().expect(200, "hello");
        }
    }
}

#[test]
fn half_a_head_in_the_kernel_when_the_time_is_up_may_be_completed() {
    let gate = Gate::default();
    let served = Served::limited(idle_for(1500), app(&gate));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    let idle_since = now();
    served.until_in_state(ConnectionState::Hibernating, 1);
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    client.send(&request("/hello")[..10]);
    wait_until("the time is up", || now() - idle_since > ms(1700));
    gate.open();
    client.expect_silence(ms(200));
    client.send(&request("/hello")[10..]);
    client.read_response().expect(200, "hello");
}
