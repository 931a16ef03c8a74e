//! Streams that the shutdown ends: what is cut never looks complete, and is named.

use ebbtide::{
    Body, Bytes, ConnectionState, IntoResponse, Options, Policy, Request, Router, Workers, get,
};

use super::client::{End, request};
use super::support::{Gate, Served, app, assert_took, ms, now, options};

/// Draining lasts 1.2 s; then handlers have 0.2 s.
fn two_seconds() -> Policy {
    Policy { timeout: ms(2000), ..Policy::default() }
}

/// Streams that are held in the middle, in chunks and with a length.
fn half_streams(gate: &Gate) -> Router {
    let held = gate.clone();
    let sized = get(move |_: Request| {
        let held = held.clone();
        let body = Body::unfold(0, move |n| {
            let held = held.clone();
            async move {
                if n == 1 {
                    held.pass().await;
                }
                (n < 2).then(|| (Bytes::from(vec![b'a' + n; 1000]), n + 1))
            }
        });
        body.into_response().with_header(http::header::CONTENT_LENGTH, "2000".parse().expect("ok"))
    });
    app(gate).route("/sized", sized)
}

#[test]
fn a_truncated_stream_never_looks_complete() {
    for (workers, version) in [(1, "HTTP/1.1"), (1, "HTTP/1.0"), (0, "HTTP/1.1")] {
        let gate = Gate::default();
        let shutdown = Policy { timeout: ms(500), ..Policy::default() };
        let workers = Workers::Count(workers);
        let served = Served::with(Options { shutdown, workers, ..options() }, half_streams(&gate));
        let mut chunked = served.client();
        chunked.send(format!("GET /stream?secret {version}\r\nHost: x\r\n\r\n"));
        gate.let_one();
        gate.until_arrived(2);
        let mut sized = served.client();
        sized.send(format!("GET /sized {version}\r\nHost: x\r\n\r\n"));
        gate.until_arrived(3);
        assert!(chunked.hears_within(ms(5000)) && sized.hears_within(ms(5000)));
        served.begin_shutdown();
        let report = served.report();
        let rest = chunked.read_to_end();
        let text = String::from_utf8_lossy(&rest.bytes).into_owned();
        assert!(text.contains("chunk 0;") && !text.contains("chunk 1;"), "{text}");
        assert!(!text.contains("\r\n0\r\n"), "a final chunk: {text}");
        // Of the old version the end is the connection's: only a reset is no good end.
        assert_eq!(rest.end, End::Reset, "{version}: {text}");
        let rest = sized.read_to_end();
        assert!(!rest.bytes.ends_with(&[b'b'; 1000]), "{rest:?}");
        assert_eq!(rest.end, End::Reset);
        assert_eq!((report.exit_status, report.cut, report.refused), (3, 2, 0));
        let mut named: Vec<_> =
            report.lost.iter().map(|lost| (&*lost.path, lost.outcome)).collect();
        named.sort_unstable();
        assert_eq!(named, [("/sized", "cut"), ("/stream", "cut")]);
        assert!(report.lost.iter().all(|lost| lost.waited_for == "the response body"));
    }
}

#[test]
fn a_stream_that_is_told_and_goes_on_is_cut_in_the_end() {
    let gate = Gate::default();
    let held = gate.clone();
    let stubborn = get(move |request: Request| {
        let (token, held) = (request.shutdown(), held.clone());
        Body::unfold((), move |()| {
            let (token, held) = (token.clone(), held.clone());
            async move {
                held.let_one();
                held.pass().await;
                token.await;
                ebbtide::sleep(ms(5)).await;
                Some((Bytes::from_static(b"more;"), ()))
            }
        })
    });
    let served = Served::ending(two_seconds(), Router::new().route("/more", stubborn));
    let mut client = served.client();
    client.send(request("/more"));
    gate.until_arrived(1);
    served.until_in_state(ConnectionState::Streaming, 1);
    let began = now();
    served.begin_shutdown();
    let rest = client.try_read_response().expect_err("no whole response");
    assert_took(began, ms(1600));
    let text = String::from_utf8_lossy(&rest.bytes).into_owned();
    assert!(text.contains("more;") && !text.contains("\r\n0\r\n"), "{text}");
    let report = served.report();
    assert_eq!((report.exit_status, report.cut, report.lost.len()), (3, 1, 1));
}
