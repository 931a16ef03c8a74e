//! Ordinary requests are answered without hyper, and nobody can tell: what is sent back, what the
//! handler sees and what is counted are the same.
//!
//! Each case is sent twice. The second time a field `Expect: hyper` is among its fields, which
//! nobody acts on, but which sends it the long way.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use ebbtide::{
    Body, IntoResponse, Limits, Request, RequestBody, RequestOutcome, Response, Router, any, get,
    post,
};
use http::header::{ALLOW, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::support::{PATIENCE, Served};

/// Answers with all that a handler can learn of its request, as `kind` says.
async fn tell(mut request: Request) -> Response {
    let body = request.bytes().await.map_err(|error| error.to_string());
    let mut said = format!(
        "{} {} {:?} {} {:?} {:?} {body:?}\n",
        request.method(),
        request.path(),
        request.query(),
        request.uri(),
        request.version(),
        request.param("kind"),
    );
    for name in ["host", "Connection", "x-odd", "x-request-id", "accept", "none"] {
        writeln!(said, "{name} is {:?}", request.header(name)).unwrap();
    }
    let id = request.header("x-request-id").map(|_| request.id());
    for (name, value) in request.headers() {
        if name != "expect" {
            writeln!(said, "{name}: {value:?}").unwrap();
        }
    }
    let kind = request.param("kind").unwrap_or_default().to_owned();
    let (head, _) = request.into_parts();
    writeln!(said, "{} {} {}", head.method, head.uri, head.headers.contains_key("host")).unwrap();
    drop(id);
    answer(&kind, said)
}

fn answer(kind: &str, said: String) -> Response {
    match kind {
        "empty" => Response::default(),
        "json" => Response::json(&said),
        "fields" => {
            Response::text(said).with_header(ALLOW, HeaderValue::from_static("GET")).with_header(
                HeaderName::from_static("x-odd"),
                HeaderValue::from_bytes(b"\xe9\ttab").unwrap(),
            )
        }
        "twice" => {
            let mut response = Response::text(said);
            for cookie in ["a=1", "b=2"] {
                let cookie = HeaderValue::from_static(cookie);
                response.headers_mut().append(http::header::SET_COOKIE, cookie);
            }
            response
        }
        "closing" => Response::text(said)
            .with_header(http::header::CONNECTION, HeaderValue::from_static("close")),
        "dated" => {
            Response::text(said).with_header(http::header::DATE, HeaderValue::from_static("today"))
        }
        "old" => {
            let response = http::Response::builder().version(Version::HTTP_10);
            response.body(Body::from(said)).unwrap().into()
        }
        "reason" => {
            let mut response = http::Response::new(Body::from(said));
            let reason = hyper::ext::ReasonPhrase::from_static(b"Why not");
            response.extensions_mut().insert(reason);
            response.into()
        }
        "large" => Response::text(said.repeat(400)),
        "stream" => {
            Body::unfold(
                0,
                |n| async move { (n < 3).then(|| (format!("piece {n};").into(), n + 1)) },
            )
            .into_response()
        }
        "broken" => Body::try_unfold(0, |n| async move {
            if n < 2 { Ok(Some(("piece;".into(), n + 1))) } else { Err("it broke") }
        })
        .into_response(),
        "trailers" => {
            let trailers = async {
                let sum = (HeaderName::from_static("x-sum"), HeaderValue::from_static("42"));
                Some(Ok(HeaderMap::from_iter([sum])))
            };
            let body = http_body_util::Full::new(Bytes::from(said)).with_trailers(trailers);
            let response = Body::new(body).into_response();
            response.with_header(http::header::TRAILER, HeaderValue::from_static("x-sum"))
        }
        "panic" => panic!("as asked"),
        _ => match kind.parse().ok().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) => Response::text(said).with_status(status),
            None => Response::text(said),
        },
    }
}

fn router() -> Router {
    let plainly = |request: Request| {
        let said = format!("{} {}", request.method(), request.path());
        answer(request.param("kind").unwrap_or_default(), said)
    };
    Router::new()
        .route("/tell/{kind}", any(tell))
        .route("/plain/{kind}", get(plainly))
        .route("/unread", post(|_: Request| "unread"))
        .route("/small", post(tell).body_bytes_max(4))
}

/// What the server sends back to `bytes` and a FIN, without what is of the moment.
fn answers(served: &Served, bytes: &[u8]) -> String {
    let mut client = served.client();
    client.send(bytes);
    client.half_close();
    let mut answers = String::new();
    for line in client.read_to_end().bytes.split_inclusive(|byte| *byte == b'\n') {
        let is_made = line.starts_with(b"x-request-id: ") && line != b"x-request-id: abc-1\r\n";
        let is_now = line.starts_with(b"date: ") && line != b"date: today\r\n";
        if is_made {
            answers += "x-request-id: one that was made\n";
        } else if !is_now {
            answers += &line.escape_ascii().to_string();
            answers.push('\n');
        }
    }
    answers
}

fn target() -> impl Strategy<Value = String> {
    let query = prop_oneof![
        4 => Just(String::new()),
        2 => prop::sample::select(vec!["?".to_owned(), "?a=b&c=%20?/".to_owned()]),
        1 => "\\?[ -~]{0,12}",
    ];
    let known = ("/(tell|plain)/", prop::sample::select(KINDS), query);
    prop_oneof![
        6 => known.prop_map(|(at, kind, query)| format!("{at}{kind}{query}")),
        3 => prop::sample::select(TARGETS).prop_map(str::to_owned),
        1 => "/[!-~]{0,12}",
    ]
}

#[rustfmt::skip]
const KINDS: &[&str] = &[
    "text", "empty", "json", "fields", "twice", "closing", "dated", "old", "reason", "large",
    "stream", "broken", "trailers", "panic", "200", "204", "205", "304", "404", "500", "503",
    "799", "%20", "a:b@c,d",
];

const TARGETS: &[&str] = &["/unread", "/small", "//tell/text", "http://x/tell/text"];

#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "Host: x", "host: [::1]:80", "Host: a b", "Host:", "Connection: keep-alive",
    "connection: Keep-Alive", "Connection: close", "connection: Close , x", "Connection: upgrade",
    "X-Request-Id: abc-1", "x-request-id: no id", "Accept: */*", "accept:", "X-Odd: \u{e9}\ttab  ",
    "Bad Name: x", " folded: x", "Transfer-Encoding: chunked", "Upgrade: h2c", "TE: trailers",
    "Content-Length: 0", "Content-Length: 5", "Content-Length: +5", "Content-Length: 5, 5",
    "Content-Length: 99", "Content-Length: 18446744073709551617",
];

/// A request, without the field that sends it the long way and with it.
fn both_ways(line: &str, fields: &[&str], body: &str) -> [String; 2] {
    ["", "Expect: hyper\r\n"].map(|hypers| {
        let fields = [fields, &[""]].concat().join("\r\n");
        format!("{line} HTTP/1.1\r\n{hypers}{fields}\r\n{body}")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_a_client_hears_is_the_same_on_both_ways(
        method in prop_oneof![
            6 => Just("GET"), 3 => Just("POST"), 1 => Just("PUT"), 1 => Just("PATCH"),
            1 => Just("DELETE"), 1 => Just("HEAD"), 1 => Just("OPTIONS"), 1 => Just("get"),
        ],
        target in target(),
        mut fields in proptest::collection::vec(prop::sample::select(FIELDS), 0..4),
        is_ordinary in prop::bool::weighted(0.7),
        body in prop_oneof![3 => Just(""), 2 => Just("hello"), 1 => Just("hello and more")],
        is_pipelined in prop::bool::ANY,
    ) {
        // Most cases are to be served, and have what they need for it.
        if is_ordinary {
            fields.retain(|field| !field.to_lowercase().starts_with("host"));
            fields.push("Host: x");
            if body == "hello" {
                fields.retain(|field| !field.starts_with("Content-Length"));
                fields.push("Content-Length: 5");
            }
        }
        let served = Served::start(router());
        let [short, long] = both_ways(&format!("{method} {target}"), &fields, body).map(|request| {
            let behind = "GET /tell/text HTTP/1.1\r\nHost: x\r\n\r\n";
            let bytes = if is_pipelined { request.clone() + behind } else { request };
            let before = served.counts();
            let heard = answers(&served, bytes.as_bytes());
            served.until("the connection is gone", |counts| {
                counts.closed.iter().sum::<u64>() > before.closed.iter().sum()
            });
            let after = served.counts();
            let ended: Vec<u64> =
                after.finished.iter().zip(before.finished).map(|(now, then)| now - then).collect();
            (heard, after.begun - before.begun, ended)
        });
        served.stop();
        prop_assert_eq!(short, long);
    }
}

#[test]
fn a_body_that_is_not_there_whole_comes_through_hyper() {
    let served = Served::start(router());
    let mut client = served.client();
    client.send("POST /tell/text HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe");
    client.expect_silence(Duration::from_millis(20));
    client.send("llo");
    assert!(client.read_response().text().contains("b\"hello\""));
    client.send("POST /tell/text HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nworld");
    assert!(client.read_response().text().contains("b\"world\""));
    served.until_finished(RequestOutcome::Answered, 2);
}

#[test]
fn limits_hold_on_the_short_way() {
    let limits = Limits { header_fields_max: 3, body_bytes_max: 6, ..Limits::default() };
    let served = Served::limited(limits, router());
    let request = |fields: &str, body: &str| {
        let length = body.len();
        format!(
            "POST /tell/text HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{fields}\r\n{body}"
        )
    };
    let answer = |bytes: String| {
        let mut client = served.client();
        client.send(bytes);
        client.read_response().status
    };
    assert_eq!(answer(request("A: b\r\n", "sixsix")), 200);
    assert_eq!(answer(request("A: b\r\nC: d\r\n", "sixsix")), 431);
    assert_eq!(answer(request("A: b\r\n", "sevenyy")), 413);
}

thread_local! {
    /// What handlers keep of their requests.
    static KEPT: RefCell<Vec<Request>> = RefCell::default();
    static BODIES: RefCell<Vec<RequestBody>> = RefCell::default();
}

/// Panics again when what it was thrown with is over.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "stepped on a mine");
    }
}

/// Owns a body's bytes, and panics when they are dropped.
struct Owner;

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        b"owned"
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "the owner is dropped");
    }
}

/// Handlers with bad habits.
fn careless() -> Router {
    Router::new()
        .route("/hello", get(|_: Request| "hello"))
        .route("/large", get(|_: Request| "x".repeat(50_000)))
        .route("/mine", get(|_: Request| -> Response { std::panic::panic_any(Mine) }))
        .route("/later", get(async |_: Request| -> Response { std::panic::panic_any(Mine) }))
        .route("/owned", get(|_: Request| Body::from(Bytes::from_owner(Owner))))
        .route("/unread", post(|_: Request| "unread"))
        .route(
            "/keep",
            post(|request: Request| {
                KEPT.with_borrow_mut(|kept| kept.push(request));
                "kept"
            }),
        )
        .route(
            "/forget",
            post(async |mut request: Request| {
                KEPT.take();
                Body::from(request.bytes().await.unwrap_or_default()).into_response()
            }),
        )
        .route(
            "/half",
            post(async |request: Request| {
                let (_, mut body) = request.into_parts();
                let first = body.chunk().await.and_then(Result::ok).unwrap_or_default();
                BODIES.with_borrow_mut(|kept| kept.push(body));
                Body::from(first).into_response()
            }),
        )
}

const LONG: &str = "Expect: hyper\r\n";

#[test]
fn what_panics_as_it_is_dropped_costs_no_other_connection() {
    let served = Served::start(careless());
    let mut neighbour = served.client();
    neighbour.get("/hello").expect(200, "hello");
    for path in ["/mine", "/later", "/owned"] {
        for way in ["", LONG] {
            let mut client = served.client();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{way}\r\n"));
            if path == "/owned" {
                client.hears_within(PATIENCE);
            } else {
                assert_eq!(client.read_response().status, 500, "{path} {way}");
            }
            neighbour.get("/hello").expect(200, "hello");
        }
    }
}

#[test]
fn what_is_kept_of_a_request_has_no_say_in_the_next() {
    let served = Served::start(careless());
    let mut client = served.client();
    for way in ["", LONG] {
        client.send("POST /keep HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        client.read_response().expect(200, "kept");
        let head = format!("POST /forget HTTP/1.1\r\nHost: x\r\n{way}Content-Length: 5\r\n\r\n");
        client.send(head);
        served.until_in_state(ebbtide::ConnectionState::Handling, 1);
        client.send("again");
        let answer = client.read_response();
        assert!(!answer.expect(200, "again").announces_close(), "{way}: {answer:?}");
    }
}

#[test]
fn nothing_is_begun_behind_a_body_that_somebody_keeps() {
    let served = Served::start(careless());
    for path in ["/hello", "/large"] {
        let mut client = served.client();
        let chunks = "3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
        let head = "POST /half HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send([head, chunks].concat());
        client.read_response();
        let begun = served.counts().begun;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        client.hears_within(Duration::from_millis(50));
        assert_eq!(served.counts().begun, begun, "{path}");
    }
}

#[test]
fn a_response_says_one_thing_of_how_the_connection_goes_on() {
    let served = Served::start(careless());
    for size in [100, 8192, 8193, 10_000, 30_000] {
        for way in ["", LONG] {
            let mut client = served.client();
            let body = "b".repeat(size);
            client.send(format!(
                "POST /unread HTTP/1.1\r\nHost: x\r\n{way}Content-Length: {size}\r\n\r\n{body}"
            ));
            let answer = client.read_response();
            assert!(answer.header("connection").is_some(), "{size}: {answer:?}");
            assert_eq!(answer.announces_close(), answer.header("keep-alive").is_none(), "{size}");
        }
    }
}
