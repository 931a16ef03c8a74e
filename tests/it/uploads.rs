//! Request bodies: by length and in chunks, announced with `Expect`, read or not.

use ebbtide::{Request, RequestOutcome, Response, Router, get, post};
use http::StatusCode;

use super::client::{chunked_upload, request, upload};
use super::support::{Gate, Served, app, ms, pattern};

#[test]
fn a_mebibyte_by_length_comes_back_whole() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    let body = pattern(1 << 20);
    for _ in 0..3 {
        client.send(upload("/echo", &body));
        assert!(client.read_response().body == body, "the body is what was sent");
    }
}

#[test]
fn a_mebibyte_in_chunks_comes_back_whole() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    let body = pattern(1 << 20);
    for size in [997, 16 * 1024, 100_000, 1 << 20] {
        let chunks: Vec<&[u8]> = body.chunks(size).collect();
        client.send(chunked_upload("/echo", &chunks));
        assert!(client.read_response().body == body, "chunks of {size}");
    }
    client.get("/hello").expect(200, "hello");
}

#[test]
fn chunks_may_have_extensions_and_trailers() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;name=value\r\nhello\r\nA;q=\"a b\"\r\n0123456789\r\n0;last\r\nX-Sum: 15\r\n\r\n",
    );
    client.read_response().expect(200, "hello0123456789");
    client.get("/hello").expect(200, "hello");
}

#[test]
fn a_body_is_handed_over_as_it_comes() {
    let gate = Gate::default();
    let seen = gate.clone();
    let router = Router::new().route(
        "/",
        post(move |mut request: Request| {
            let seen = seen.clone();
            async move {
                let mut total = 0;
                while let Some(Ok(chunk)) = request.body_mut().chunk().await {
                    total += chunk.len();
                    seen.pass().await;
                }
                total.to_string()
            }
        }),
    );
    let served = Served::start(router);
    let mut client = served.client();
    client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n");
    for n in 1..=3 {
        client.send("12345");
        gate.until_arrived(n);
        gate.let_one();
    }
    client.read_response().expect(200, "15");
}

#[test]
fn a_client_that_expects_100_continue_gets_it_when_the_body_is_wanted() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for _ in 0..2 {
        client.send(
            "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
        );
        let interim = "HTTP/1.1 100 Continue\r\n\r\n";
        assert_eq!(client.read_bytes(interim.len()), interim.as_bytes());
        client.expect_silence(ms(20));
        client.send("body");
        client.read_response().expect(200, "body");
    }
}

#[test]
fn a_client_that_expects_100_continue_and_is_refused_gets_only_the_refusal() {
    let refuse = post(|_: Request| StatusCode::FORBIDDEN);
    let later = post(async |_: Request| {
        ebbtide::sleep(ms(5)).await;
        StatusCode::FORBIDDEN
    });
    let served = Served::start(Router::new().route("/", refuse).route("/later", later));
    for path in ["/", "/later"] {
        let mut client = served.client();
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        ));
        // An interim response would be the first.
        assert_eq!(client.read_response().status, 403, "{path}");
    }
}

#[test]
fn a_body_that_is_too_large_is_not_asked_for() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\
         Content-Length: 1048577\r\n\r\n",
    );
    assert_eq!(client.read_response().status, 413);
}

fn deaf() -> Router {
    app(&Gate::default())
        .route("/deaf", post(|_: Request| "not read"))
        .route(
            "/late",
            post(async |_: Request| {
                ebbtide::sleep(ms(5)).await;
                "not read"
            }),
        )
        .route(
            "/half",
            post(async |mut request: Request| {
                let first = request.body_mut().chunk().await;
                format!("read {}", first.is_some())
            }),
        )
}

#[test]
fn a_response_does_not_depend_on_the_request_body_being_read() {
    let served = Served::start(deaf());
    for size in [0, 10, 5000, 100_000, 1_000_000] {
        for path in ["/deaf", "/late"] {
            let body = pattern(size);
            let chunks: Vec<&[u8]> = body.chunks(4000).collect();
            for bytes in [upload(path, &body), chunked_upload(path, &chunks)] {
                let mut client = served.client();
                // The server may stop reading once it has answered.
                let _cut_short = client.try_send(bytes);
                let answer = client.try_read_response();
                let answer = answer.unwrap_or_else(|rest| panic!("{path} {size}: {rest:?}"));
                answer.expect(200, "not read");
                if !answer.announces_close() {
                    client.get("/hello").expect(200, "hello");
                }
            }
        }
    }
    served.until_finished(RequestOutcome::Abandoned, 0);
}

#[test]
fn a_response_may_come_before_the_body() {
    let served = Served::start(deaf());
    for path in ["/deaf", "/late"] {
        let mut client = served.client();
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly the beginning"
        ));
        let answer = client.read_response();
        answer.expect(200, "not read");
        if !answer.announces_close() {
            client.send(vec![b'x'; 1000 - "only the beginning".len()]);
            client.get("/hello").expect(200, "hello");
        }
    }
}

#[test]
fn what_is_left_of_a_half_read_body_is_no_request() {
    let served = Served::start(deaf());
    let mut client = served.client();
    let smuggled = request("/hello").repeat(100);
    client.send(format!(
        "POST /half HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        smuggled.len()
    ));
    let _cut_short = client.try_send(&smuggled);
    let answer = client.read_response();
    answer.expect(200, "read true");
    if answer.announces_close() {
        let rest = client.read_to_end();
        assert!(rest.bytes.is_empty(), "nothing more is answered: {rest:?}");
    } else {
        client.get("/bytes/1").expect(200, "\0");
    }
    drop(client);
    let begun = served.stop().counts.begun;
    assert!(begun <= 2, "the body held no requests, {begun} were begun");
}

#[test]
fn a_body_that_ends_early_is_an_error_for_its_handler() {
    let told = post(async |mut request: Request| match request.bytes().await {
        Ok(bytes) => Response::text(format!("whole: {}", bytes.len())),
        Err(error) => Response::text(error.to_string()).with_status(StatusCode::BAD_REQUEST),
    });
    let served = Served::start(Router::new().route("/", told).route("/x", get(|_: Request| "x")));
    let heads = ["Content-Length: 10\r\n\r\nfour", "Transfer-Encoding: chunked\r\n\r\n5\r\nfo"];
    for head in heads {
        let mut client = served.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: x\r\n{head}"));
        client.half_close();
        let rest = client.read_to_end();
        let text = String::from_utf8_lossy(&rest.bytes);
        assert!(rest.bytes.is_empty() || text.starts_with("HTTP/1.1 400 "), "{text}");
    }
    served.client().get("/x").expect(200, "x");
}

#[test]
fn a_malformed_chunk_is_answered_400() {
    let served = Served::start(app(&Gate::default()));
    for chunk in ["x\r\n", "-1\r\n", "0x5\r\nhello\r\n", "fffffffffffffffff\r\n", "5\nhello\n"] {
        let mut client = served.client();
        client.send(format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}"
        ));
        let answer = client.read_response();
        assert_eq!(answer.status, 400, "{chunk:?}");
        assert!(answer.announces_close(), "{chunk:?}: {answer:?}");
        client.expect_end();
    }
    served.client().get("/hello").expect(200, "hello");
}
