//! What handlers see of a request and make of a response.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ebbtide::internal::app::{lab::Lab, sample};
use ebbtide::{Body, IntoResponse, Request, Response, Router, get, post};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, StatusCode, Version};
use http_body::Frame;

use super::client::{chunked_upload, request, upload};
use super::support::{Served, assert_took, ms, now, pattern};

#[test]
fn a_request_shows_what_was_sent() {
    let shown = |request: Request| {
        assert_eq!(request.version(), Version::HTTP_11);
        assert_eq!(request.uri(), "/shown?x=1");
        let several: Vec<&HeaderValue> = request.headers().get_all("x-several").iter().collect();
        format!(
            "{} {:?} {:?} {}",
            request.method(),
            request.header("user-agent"),
            request.header("x-missing"),
            several.len()
        )
    };
    let served = Served::start(Router::new().route("/shown", get(shown)));
    let mut client = served.client();
    client.send(
        "GET /shown?x=1 HTTP/1.1\r\nhOST: x\r\nUser-Agent:  tide \t\r\n\
         X-Several: 1\r\nx-several: 2\r\n\r\n",
    );
    client.read_response().expect(200, "GET Some(\"tide\") None 2");
}

#[test]
fn a_header_that_is_no_text_is_there_all_the_same() {
    let shown = |request: Request| {
        let raw = request.headers().get("x-raw").map(HeaderValue::as_bytes);
        format!("{:?} {raw:?}", request.header("x-raw"))
    };
    let served = Served::start(Router::new().route("/", get(shown)));
    let mut client = served.client();
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Raw: \xff\r\n\r\n");
    client.read_response().expect(200, "None Some([255])");
}

#[test]
fn what_a_handler_returns_becomes_a_response() {
    let router = Router::new()
        .route("/str", get(|_: Request| "text"))
        .route("/string", get(|_: Request| String::from("text")))
        .route("/status", get(|_: Request| StatusCode::IM_A_TEAPOT))
        .route("/pair", get(|_: Request| (StatusCode::CREATED, "made")))
        .route("/ok", get(|_: Request| Ok::<_, StatusCode>("fine")))
        .route("/err", get(|_: Request| Err::<&str, _>((StatusCode::CONFLICT, "taken"))))
        .route("/json", get(|_: Request| Response::json(&vec![1, 2])))
        .route("/body", get(|_: Request| Body::from("raw")))
        .route("/busy", get(|_: Request| Response::busy()))
        .route("/http", get(|_: Request| http::Response::new(Body::from("http"))))
        .route("/empty", get(|_: Request| Response::default()));
    let served = Served::start(router);
    let mut client = served.client();
    client.get("/str").expect(200, "text");
    client.get("/string").expect(200, "text");
    client.get("/status").expect(418, "I'm a teapot");
    client.get("/pair").expect(201, "made");
    client.get("/ok").expect(200, "fine");
    client.get("/err").expect(409, "taken");
    let json = client.get("/json");
    assert_eq!(json.expect(200, "[1,2]").header("content-type"), Some("application/json"));
    let raw = client.get("/body");
    assert_eq!(raw.expect(200, "raw").header("content-type"), None);
    let busy = client.get("/busy");
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")));
    client.get("/http").expect(200, "http");
    client.get("/empty").expect(200, "");
}

#[test]
fn headers_of_a_response_replace_those_of_that_name() {
    let router = Router::new().route(
        "/",
        get(|_: Request| {
            Response::text("x")
                .with_header(CONTENT_TYPE, HeaderValue::from_static("text/css"))
                .with_header(HeaderName::from_static("x-a"), HeaderValue::from_static("1"))
                .with_header(HeaderName::from_static("x-a"), HeaderValue::from_static("2"))
        }),
    );
    let answer = Served::start(router).client().get("/");
    assert_eq!(answer.header("content-type"), Some("text/css"));
    assert_eq!(answer.header("x-a"), Some("2"));
}

#[test]
fn a_request_can_be_taken_apart() {
    let router = Router::new().route(
        "/",
        post(async |request: Request| {
            let (head, mut body) = request.into_parts();
            let bytes = body.bytes().await.map(|bytes| bytes.len());
            format!("{} {:?}", head.method, bytes.ok())
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    client.send(upload("/", "four"));
    client.read_response().expect(200, "POST Some(4)");
}

#[test]
fn the_sample_is_served_as_described() {
    let served = Served::start(sample::router(Lab::Off, None));
    let mut client = served.client();
    let about = client.get("/");
    assert_eq!(about.header("content-type"), Some("application/json"));
    let about: serde_json::Value = serde_json::from_slice(&about.body).expect("JSON");
    assert_eq!(about["name"], "ebbtide");
    let plain = client.get("/plaintext");
    plain.expect(200, "Hello, World!");
    assert_eq!(plain.header("content-type"), Some("text/plain; charset=utf-8"));
    let json = client.get("/json");
    assert_eq!(json.header("content-type"), Some("application/json"));
    let json: serde_json::Value = serde_json::from_slice(&json.body).expect("JSON");
    assert_eq!(json, serde_json::json!({ "message": "Hello, World!" }));
    client.send(upload("/echo", "back"));
    client.read_response().expect(200, "back");
    for path in ["/sleep/1", "/bytes/1", "/stream/1/1", "/panic", "/block/1", "/upload"] {
        assert_eq!(client.get(path).status, 404, "the lab is off: {path}");
    }
}

#[test]
fn the_lab_does_what_its_routes_say() {
    let served = Served::start(sample::router(Lab::On { upload_bytes_max: 3_000_000 }, None));
    let mut client = served.client();
    let began = now();
    assert_eq!(client.get("/sleep/200").status, 200);
    assert_took(began, ms(200));
    let began = now();
    assert_eq!(client.get("/block/100").status, 200);
    assert_took(began, ms(100));
    let bytes = client.get("/bytes/200000");
    assert_eq!((bytes.body.len(), bytes.header("content-length")), (200_000, Some("200000")));
    assert_eq!(client.get("/bytes/0").body.len(), 0);
    let began = now();
    let stream = client.get("/stream/3/50");
    assert!(stream.is_chunked() && !stream.body.is_empty());
    assert_took(began, ms(100));
    for path in ["/sleep/x", "/sleep/-1", "/bytes/99999999999999999999", "/block/600001"] {
        assert_eq!(client.get(path).status, 400, "bounded: {path}");
    }
    assert_eq!(client.get("/panic").status, 500);
}

#[test]
fn the_lab_counts_uploads_up_to_its_own_limit() {
    let served = Served::start(sample::router(Lab::On { upload_bytes_max: 3_000_000 }, None));
    let mut client = served.client();
    let body = pattern(3_000_000);
    client.send(upload("/upload", &body));
    let told: serde_json::Value =
        serde_json::from_slice(&client.read_response().body).expect("JSON");
    assert_eq!(told["bytes"], 3_000_000);
    let chunks: Vec<&[u8]> = body.chunks(100_000).collect();
    client.send(chunked_upload("/upload", &chunks));
    assert_eq!(client.read_response().status, 200);
    let mut client = served.client();
    let head = "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 3000001\r\n\r\n";
    client.send(head);
    assert_eq!(client.read_response().status, 413);
}

#[test]
fn a_body_from_another_crate_is_streamed() {
    let full = |_: Request| Body::new(http_body_util::Full::new(Bytes::from_static(b"full")));
    let frames = |_: Request| Body::new(Frames(vec!["c", "", "ab"])).into_response();
    let router = Router::new().route("/full", get(full)).route("/frames", get(frames));
    let served = Served::start(router);
    let mut client = served.client();
    client.send(request("/full"));
    let full = client.read_response();
    assert_eq!(full.expect(200, "full").header("content-length"), Some("4"));
    let frames = client.get("/frames");
    assert!(frames.is_chunked());
    // An empty frame is no end.
    frames.expect(200, "abc");
}

/// Its frames, from the last to the first.
struct Frames(Vec<&'static str>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Frames>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.pop().map(|text| Ok(Frame::data(Bytes::from(text)))))
    }
}
