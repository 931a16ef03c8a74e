//! Plain serving: connections that stay, methods, routes.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use ebbtide::{Request, RequestOutcome, Response, Router, any, delete, get, patch, post, put};
use http::StatusCode;

use super::client::{Client, request};
use super::support::{Gate, Served, app, ms};

#[test]
fn many_requests_share_one_connection() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for _ in 0..200 {
        let answer = client.get("/hello");
        assert!(!answer.announces_close());
        answer.expect(200, "hello");
    }
    let report = served.stop();
    assert_eq!(report.exit_status, 0);
    assert_eq!(report.counts.opened, 1);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 200);
}

#[test]
fn a_response_is_written_as_the_standard_says() {
    let served = Served::start(app(&Gate::default()));
    let answer = served.client().get("/hello");
    assert_eq!(answer.version, "HTTP/1.1");
    assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("content-length"), Some("5"));
    assert_eq!(answer.header("transfer-encoding"), None);
    let date = answer.header("date").expect("an origin server with a clock sends Date");
    assert!(date.ends_with(" GMT") && date.len() == "Sun, 06 Nov 1994 08:49:37 GMT".len());
}

#[test]
fn http_1_0_closes_after_the_response() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    client.read_response().expect(200, "hello");
    client.expect_end();
}

#[test]
fn http_1_0_stays_when_asked_to() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for _ in 0..3 {
        client.send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    client.send("GET /hello HTTP/1.0\r\n\r\n");
    client.read_response().expect(200, "hello");
    client.expect_end();
    drop(client);
    assert_eq!(served.stop().counts.opened, 1);
}

#[test]
fn http_1_1_closes_when_asked_to() {
    let served = Served::start(app(&Gate::default()));
    for value in ["close", "Close", "close, keep-alive", "keep-alive, close"] {
        let mut client = served.client();
        client.send(format!("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: {value}\r\n\r\n"));
        let answer = client.read_response();
        answer.expect(200, "hello");
        assert!(answer.announces_close(), "{value}: {answer:?}");
        client.expect_end();
    }
}

#[test]
fn nothing_behind_a_request_that_asked_for_the_close_is_served() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send(format!(
        "GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n{}",
        request("/hello")
    ));
    client.read_response().expect(200, "hello");
    client.expect_end();
    drop(client);
    assert_eq!(served.stop().counts.begun, 1);
}

#[test]
fn head_is_answered_as_get_without_the_body() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate).route("/any", any(|_: Request| "any")));
    for path in ["/hello", "/bytes/100000", "/wait", "/any", "/unknown"] {
        let mut client = served.client();
        let of_get = client.get(path);
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let of_head = client.read_response_to_head();
        assert_eq!(of_head.status, of_get.status, "{path}");
        assert_eq!(of_head.timeless_headers(), of_get.timeless_headers(), "{path}");
        // A body would stand before this.
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn head_of_a_stream_has_no_body() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send("HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.read_response_to_head();
    assert_eq!((answer.status, answer.header("content-length")), (200, None));
    client.get("/hello").expect(200, "hello");
}

#[test]
fn unknown_paths_are_not_found() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for path in ["/", "/hell", "/hello/", "/hello/x", "/HELLO", "//hello"] {
        assert_eq!(client.get(path).status, 404, "{path}");
    }
    client.get("/hello").expect(200, "hello");
}

#[test]
fn other_methods_of_a_path_are_not_allowed_and_the_allowed_are_named() {
    let router = Router::new()
        .route("/one", get(|_: Request| "one"))
        .route("/two", post(|_: Request| "two").delete(|_: Request| "gone"));
    let served = Served::start(router);
    let mut client = served.client();
    let cases = [
        ("DELETE /one", &["GET", "HEAD"][..]),
        ("PUT /one", &["GET", "HEAD"]),
        ("BREW /one", &["GET", "HEAD"]),
        ("GET /two", &["DELETE", "POST"]),
        ("HEAD /two", &["DELETE", "POST"]),
    ];
    for (line, methods) in cases {
        client.send(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let is_head = line.starts_with("HEAD");
        let answer = if is_head { client.read_response_to_head() } else { client.read_response() };
        assert_eq!(answer.status, 405, "{line}");
        assert_eq!(without_options(answer.header("allow")), methods, "{line}");
    }
}

#[test]
fn options_names_the_methods() {
    let router = Router::new().route("/two", get(|_: Request| "two").post(|_: Request| "two"));
    let served = Served::start(router);
    let mut client = served.client();
    client.send("OPTIONS /two HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(without_options(answer.header("allow")), ["GET", "HEAD", "POST"]);
    client.get("/two").expect(200, "two");
}

/// The methods of an `Allow` header, in the order of the alphabet.
fn without_options(allow: Option<&str>) -> Vec<&str> {
    let all = allow.expect("Allow is there").split(", ");
    let mut methods: Vec<&str> = all.filter(|method| *method != "OPTIONS").collect();
    methods.sort_unstable();
    methods
}

#[test]
fn each_method_finds_its_handler() {
    let named = |request: Request| request.method().to_string();
    let router = Router::new()
        .route("/get", get(named))
        .route("/post", post(named))
        .route("/put", put(named))
        .route("/patch", patch(named))
        .route("/delete", delete(named))
        .route("/any", any(named));
    let served = Served::start(router);
    let mut client = served.client();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        for path in [method.to_ascii_lowercase(), "any".to_owned()] {
            client.send(format!("{method} /{path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            client.read_response().expect(200, method);
        }
    }
}

#[test]
fn path_parameters_are_given_as_sent() {
    let two = |request: Request| format!("{:?} {:?}", request.param("port"), request.param("day"));
    let rest = |request: Request| format!("{:?}", request.param("rest"));
    let none = |request: Request| format!("{:?}", request.param("port"));
    let router = Router::new()
        .route("/tides/{port}/{day}", get(two))
        .route("/files/{*rest}", get(rest))
        .route("/fixed", get(none));
    let served = Served::start(router);
    let mut client = served.client();
    client.get("/tides/husum/today").expect(200, r#"Some("husum") Some("today")"#);
    client.get("/tides/a%2Fb/%20").expect(200, r#"Some("a%2Fb") Some("%20")"#);
    client.get("/files/a/b/c.txt").expect(200, r#"Some("a/b/c.txt")"#);
    client.get("/fixed").expect(200, "None");
    assert_eq!(client.get("/tides/husum").status, 404);
}

#[test]
fn the_query_is_given_as_sent_and_does_not_change_the_route() {
    let router = Router::new()
        .route("/q", get(|request: Request| format!("{} {:?}", request.path(), request.query())));
    let served = Served::start(router);
    let mut client = served.client();
    client.get("/q").expect(200, "/q None");
    client.get("/q?").expect(200, r#"/q Some("")"#);
    client.get("/q?a=b&c=%20d?e").expect(200, r#"/q Some("a=b&c=%20d?e")"#);
}

#[test]
fn state_is_shared_by_all_handlers_and_workers() {
    let router = Router::new()
        .route(
            "/add",
            post(|request: Request| {
                (request.state::<AtomicU64>().fetch_add(1, Ordering::Relaxed) + 1).to_string()
            }),
        )
        .route(
            "/sum",
            get(|request: Request| {
                request.state::<AtomicU64>().load(Ordering::Relaxed).to_string()
            }),
        )
        .with_state(AtomicU64::new(40));
    let options =
        ebbtide::Options { workers: ebbtide::Workers::Count(3), ..super::support::options() };
    let served = Served::with(options, router);
    for _ in 0..12 {
        let mut client = served.client();
        client.send("POST /add HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read_response().status, 200);
    }
    served.client().get("/sum").expect(200, "52");
}

#[test]
fn handlers_may_hold_what_other_threads_may_not_have() {
    let router = Router::new().route(
        "/rc",
        get(async |_: Request| {
            let text = Rc::new("not Send".to_owned());
            ebbtide::sleep(ms(1)).await;
            (*text).clone()
        }),
    );
    Served::start(router).client().get("/rc").expect(200, "not Send");
}

#[test]
fn absolute_targets_and_empty_lines_before_a_request_are_accepted() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send("GET http://ebbtide.test/hello HTTP/1.1\r\nHost: ebbtide.test\r\n\r\n");
    client.read_response().expect(200, "hello");
    client.send(format!("\r\n\r\n{}", request("/hello")));
    client.read_response().expect(200, "hello");
}

#[test]
fn a_tunnel_is_not_allowed() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send("CONNECT example.test:443 HTTP/1.1\r\nHost: example.test:443\r\n\r\n");
    assert_eq!(client.read_response().status, 405);
    served.client().get("/hello").expect(200, "hello");
}

#[test]
fn an_offered_upgrade_is_passed_over() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n";
    client.send(format!("GET /hello HTTP/1.1\r\nHost: x\r\n{offer}\r\n"));
    let answer = client.read_response();
    answer.expect(200, "hello");
    if !answer.announces_close() {
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn statuses_without_content_have_none_on_the_wire() {
    let router = Router::new()
        .route("/204", get(|_: Request| StatusCode::NO_CONTENT))
        .route("/304", get(|_: Request| Response::text("").with_status(StatusCode::NOT_MODIFIED)))
        .route("/200", get(|_: Request| StatusCode::OK));
    let served = Served::start(router);
    let mut client = served.client();
    let answer = client.get("/204");
    assert_eq!((answer.status, answer.header("content-length")), (204, None));
    assert_eq!(client.get("/304").status, 304);
    assert_eq!(client.get("/200").header("content-length"), Some("0"));
}

#[test]
fn a_greedy_download_starves_nobody() {
    let served = Served::start(
        Router::new().route("/endless", get(endless)).route("/hello", get(|_: Request| "hello")),
    );
    let mut greedy = served.client();
    greedy.send(request("/endless"));
    let reader = greedy.another();
    let reading = super::support::spawn("greedy", move || drain(reader));
    served.until("the download runs", |counts| counts.in_flight == 1);
    let mut client = served.client();
    let began = super::support::now();
    for _ in 0..50 {
        client.get("/hello").expect(200, "hello");
    }
    let took = super::support::now() - began;
    assert!(took < ms(2000), "50 requests next to a download took {took:?}");
    greedy.reset();
    drop(served);
    reading.join().expect("the reader does not panic");
}

fn endless(_: Request) -> Response {
    use ebbtide::{Body, IntoResponse};
    let chunk = bytes::Bytes::from(super::support::pattern(64 * 1024));
    let body = Body::unfold(chunk, |chunk| async move { Some((chunk.clone(), chunk)) });
    body.into_response()
}

/// Takes what comes until the connection is ended from another thread.
fn drain(mut client: Client) {
    while !client.read_bytes(64 * 1024).is_empty() {}
}
