//! What is no request is answered 400 and harms nobody.

use ebbtide::{ConnectionOutcome, Request, Router, any, get};

use super::client::{Client, End, request};
use super::support::{Gate, Served, app, ms, now};

/// Heads that RFC 9112 forbids, or that are nothing at all, each with its name.
pub const MALFORMED: [(&str, &[u8]); 41] = [
    ("no target", b"GET\r\nHost: x\r\n\r\n"),
    ("no version", b"GET /\r\nHost: x\r\n\r\n"),
    ("another protocol", b"GET / FTP/1.1\r\nHost: x\r\n\r\n"),
    ("a version that is no number", b"GET / HTTP/1.x\r\nHost: x\r\n\r\n"),
    ("a lowercase version", b"GET / http/1.1\r\nHost: x\r\n\r\n"),
    ("two spaces before the target", b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("two spaces before the version", b"GET /  HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a space in the target", b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a space before the method", b" GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("no method", b"/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a method that is no token", b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("NUL in the method", b"G\0T / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("NUL in the target", b"GET /\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a control byte in the target", b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("DEL in the target", b"GET /\x7f HTTP/1.1\r\nHost: x\r\n\r\n"),
    ("a bare CR in the request line", b"GET / HTTP/1.1\rHost: x\r\n\r\n"),
    ("a field without a colon", b"GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n"),
    ("a field without a name", b"GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"),
    ("a space before the colon", b"GET / HTTP/1.1\r\nHost: x\r\nA : y\r\n\r\n"),
    ("a space in a field's name", b"GET / HTTP/1.1\r\nHost: x\r\nA B: y\r\n\r\n"),
    ("a space before the first field", b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    ("a folded line", b"GET / HTTP/1.1\r\nHost: x\r\nA: y\r\n z\r\n\r\n"),
    ("NUL in a field's name", b"GET / HTTP/1.1\r\nHost: x\r\nA\0: y\r\n\r\n"),
    ("NUL in a field's value", b"GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n"),
    ("a control byte in a value", b"GET / HTTP/1.1\r\nHost: x\r\nA: \x1b[2J\r\n\r\n"),
    ("a bare CR in a value", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n"),
    ("a length that is no number", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: a\r\n\r\n"),
    ("a negative length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    ("a length with a sign", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n"),
    ("a length in hexadecimal", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\n"),
    ("an empty length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\n"),
    (
        "a length of more than 64 bits",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n",
    ),
    (
        "two lengths",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ),
    ("gzip alone", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
    ("gzip", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked twice", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n"),
    ("not quite chunked", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    ("identity", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n"),
    (
        "two codings",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\
          Transfer-Encoding: chunked\r\n\r\n",
    ),
    ("a coding in 1.0", b"POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
];

/// Everything is a route: a request that got through would be answered 200.
pub fn everything() -> Router {
    Router::new().route("/", any(|_: Request| "root")).route("/{*rest}", any(|_: Request| "rest"))
}

/// Asserts that the client is told 400 and that nothing else is answered.
fn expect_400(client: &mut Client, what: &str) {
    let answer = client.try_read_response();
    let answer = answer.unwrap_or_else(|rest| panic!("{what} has no answer: {rest:?}"));
    assert_eq!(answer.status, 400, "{what}: {answer:?}");
    assert!(answer.announces_close(), "{what}: {answer:?}");
    let rest = client.read_to_end();
    assert!(rest.bytes.is_empty(), "{what}: one answer is enough: {rest:?}");
    assert_eq!(rest.end, End::Closed, "{what}: the answer can be read in peace");
}

#[test]
fn malformed_heads_are_answered_400_and_the_connection_closes() {
    let served = Served::start(everything());
    for (what, bytes) in MALFORMED {
        let mut client = served.client();
        client.send(bytes);
        expect_400(&mut client, what);
    }
    served.client().get("/").expect(200, "root");
    let counts = served.stop().counts;
    let malformed = MALFORMED.len() as u64;
    assert_eq!(counts.rejected[0], malformed, "each is counted as 400: {counts:?}");
    assert_eq!(counts.begun, 1, "none was a request");
    assert_eq!(counts.closed_as(ConnectionOutcome::Cut), 0, "nothing panicked: {counts:?}");
}

#[test]
fn malformed_heads_after_a_good_request_are_answered_after_it() {
    let served = Served::start(everything());
    for (what, bytes) in MALFORMED {
        // In one segment, and with the first response read.
        let mut client = served.client();
        client.send([request("/").as_bytes(), bytes].concat());
        client.read_response().expect(200, "root");
        expect_400(&mut client, what);
        let mut client = served.client();
        client.get("/").expect(200, "root");
        client.send(bytes);
        expect_400(&mut client, what);
    }
}

#[test]
fn malformed_heads_behind_a_chunked_upload_are_answered_after_it() {
    let served = Served::start(app(&Gate::default()));
    for (what, bytes) in MALFORMED {
        let mut client = served.client();
        client.send([&super::client::chunked_upload("/echo", &[b"body"])[..], bytes].concat());
        client.read_response().expect(200, "body");
        expect_400(&mut client, what);
    }
}

#[test]
fn a_request_in_progress_is_answered_before_the_garbage_behind_it() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait") + "\0\0\0");
    gate.until_arrived(1);
    gate.open();
    client.read_response().expect(200, "waited");
    expect_400(&mut client, "garbage behind a request in progress");
}

#[test]
fn a_host_is_needed_once_and_in_good_form() {
    let served = Served::start(everything());
    let bad = [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a b\r\n",
        "Host: a, b\r\n",
        "Host: a/b\r\n",
        "Host: http://a\r\n",
        "Host: user@a\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: a\\b\r\n",
        "Host: a\"b\r\n",
        "Host: <a>\r\n",
        "Host: a:b\r\n",
        "Host: a:1:2\r\n",
        "Host: a:-1\r\n",
        "Host: [::1\r\n",
        "Host: ::1\r\n",
        "Host: []\r\n",
        "Host: [::1]x\r\n",
        "Host: a\tb\r\n",
    ];
    for host in bad {
        let mut client = served.client();
        client.send(format!("GET / HTTP/1.1\r\n{host}\r\n"));
        expect_400(&mut client, host);
    }
    let mut client = served.client();
    client.send(b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n");
    expect_400(&mut client, "a host that is no ASCII");
    let good = ["x", "a.b:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b-c~d", "a%20b", "", "x:"];
    for host in good {
        let mut client = served.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.read_response().expect(200, "root");
    }
    // 1.0 came before Host. Two are wrong there as well.
    let mut client = served.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    client.read_response().expect(200, "root");
    let mut client = served.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n");
    expect_400(&mut client, "two hosts in 1.0");
}

#[test]
fn garbage_is_answered_at_once_and_not_at_the_head_deadline() {
    let served = Served::start(everything());
    let garbage: [&[u8]; 8] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0",
        b"\xff\xfe\xfd",
        b"\x80",
        b"{\"json\": true}",
        b"GET / HTTQ",
        b"GET / HTTP/1.1\r\n\0",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ];
    for bytes in garbage {
        let mut client = served.client();
        let began = now();
        client.send(bytes);
        expect_400(&mut client, &bytes.escape_ascii().to_string());
        let took = now() - began;
        assert!(took < ms(1000), "{} took {took:?}", bytes.escape_ascii());
    }
}

#[test]
fn a_length_next_to_chunked_ends_the_connection_and_smuggles_nothing() {
    let served = Served::start(app(&Gate::default()).route("/smuggled", get(|_: Request| "no")));
    let fields = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 100\r\n",
    ];
    for fields in fields {
        let mut client = served.client();
        let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        client.send(format!("{head}2\r\nhi\r\n0\r\n\r\n{}", request("/smuggled")));
        let answer = client.read_response();
        // RFC 9112, 6.3: refuse it, or take the chunks; in any case close (6.1).
        assert!(matches!((answer.status, answer.text()), (400, _) | (200, "hi")), "{answer:?}");
        let rest = client.read_to_end();
        assert!(rest.bytes.is_empty(), "nothing behind it is served: {rest:?}");
    }
    served.until("none was smuggled", |counts| counts.begun <= fields.len() as u64);
}

#[test]
fn an_end_in_the_middle_of_a_head_is_no_request() {
    let served = Served::start(everything());
    let text = request("/");
    for size in 1..text.len() {
        let mut client = served.client();
        client.send(&text[..size]);
        client.half_close();
        let rest = client.read_to_end();
        let told = String::from_utf8_lossy(&rest.bytes);
        assert!(told.is_empty() || told.starts_with("HTTP/1.1 400 "), "{size}: {told}");
    }
    served.client().get("/").expect(200, "root");
    assert_eq!(served.stop().counts.begun, 1);
}
