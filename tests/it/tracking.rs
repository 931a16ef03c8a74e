//! `ConnectionTracking` around services that are none of ours, driven by hand.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use ebbtide::{ConnectionTracking, Ledger, RequestOutcome};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};

use super::client::request as text_of;
use super::support::{Gate, Served, app};

/// The books after `steps` with a tracked service, whose conservation laws hold at any time.
fn check(ledger: &Ledger, in_flight: u64, outcomes: [u64; 4]) {
    let counts = ledger.counts();
    counts.check();
    assert_eq!(counts.in_flight, in_flight);
    assert_eq!(ledger.in_flight(), in_flight);
    assert_eq!(counts.finished, outcomes, "answered, refused, cut, abandoned");
    assert_eq!(counts.begun, in_flight + outcomes.iter().sum::<u64>());
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn ready<F: Future>(future: F) -> F::Output {
    match poll_once(pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it has nothing to wait for"),
    }
}

/// Polls one frame out of a body; `None` at its end.
fn next_frame<B: Body + Unpin>(body: &mut B) -> Option<Result<(), B::Error>> {
    let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    match polled {
        Poll::Ready(frame) => frame.map(|frame| frame.map(drop)),
        Poll::Pending => panic!("it has nothing to wait for"),
    }
}

/// A request without a body.
type Plain = Request<Empty<Bytes>>;

fn request(method: Method) -> Plain {
    Request::builder().method(method).body(Empty::new()).expect("a request")
}

#[test]
fn a_request_is_in_flight_until_its_body_is_handed_out() {
    let ledger = Arc::new(Ledger::default());
    let hello = service_fn(async |_: Plain| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
    });
    let tracked = ConnectionTracking::new(hello, Arc::clone(&ledger));
    check(&ledger, 0, [0, 0, 0, 0]);
    let call = tracked.call(request(Method::GET));
    check(&ledger, 1, [0, 0, 0, 0]);
    let mut body = ready(call).expect("infallible").into_body();
    check(&ledger, 1, [0, 0, 0, 0]);
    assert!(next_frame(&mut body).is_some());
    assert!(next_frame(&mut body).is_none());
    check(&ledger, 0, [1, 0, 0, 0]);
    drop(body);
    check(&ledger, 0, [1, 0, 0, 0]);
}

#[test]
fn a_request_whose_future_or_body_is_dropped_is_abandoned() {
    let ledger = Arc::new(Ledger::default());
    let gate = Gate::default();
    let waiting = gate.clone();
    let service = service_fn(move |_: Plain| {
        let gate = waiting.clone();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
    });
    let tracked = ConnectionTracking::new(service, Arc::clone(&ledger));
    // Never polled, polled once, and with its body left alone.
    drop(tracked.call(request(Method::GET)));
    check(&ledger, 0, [0, 0, 0, 1]);
    let mut call = Box::pin(tracked.call(request(Method::GET)));
    assert!(poll_once(call.as_mut()).is_pending());
    check(&ledger, 1, [0, 0, 0, 1]);
    drop(call);
    check(&ledger, 0, [0, 0, 0, 2]);
    gate.open();
    let response = ready(tracked.call(request(Method::GET))).expect("infallible");
    check(&ledger, 1, [0, 0, 0, 2]);
    drop(response);
    check(&ledger, 0, [0, 0, 0, 3]);
}

#[test]
fn a_response_without_a_body_on_the_wire_is_answered_when_dropped() {
    let ledger = Arc::new(Ledger::default());
    let with_status = |status: StatusCode| {
        let service = service_fn(move |_: Plain| {
            let response = Response::builder().status(status);
            let response = response.body(Full::new(Bytes::from_static(b"unsent")));
            std::future::ready(Ok::<_, Infallible>(response.expect("a response")))
        });
        ConnectionTracking::new(service, Arc::clone(&ledger))
    };
    let cases = [
        (StatusCode::OK, Method::HEAD),
        (StatusCode::NO_CONTENT, Method::GET),
        (StatusCode::NOT_MODIFIED, Method::GET),
    ];
    for (n, (status, method)) in (1..).zip(cases) {
        let response = ready(with_status(status).call(request(method))).expect("infallible");
        drop(response);
        check(&ledger, 0, [n, 0, 0, 0]);
    }
    let empty =
        service_fn(async |_: Plain| Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())));
    let tracked = ConnectionTracking::new(empty, Arc::clone(&ledger));
    drop(ready(tracked.call(request(Method::GET))));
    check(&ledger, 0, [4, 0, 0, 0]);
}

#[test]
fn a_service_that_fails_has_cut_its_request() {
    let ledger = Arc::new(Ledger::default());
    let failing = service_fn(async |_: Plain| {
        Err::<Response<Empty<Bytes>>, _>(io::Error::other("no answer"))
    });
    let tracked = ConnectionTracking::new(failing, Arc::clone(&ledger));
    assert!(ready(tracked.call(request(Method::GET))).is_err());
    check(&ledger, 0, [0, 0, 1, 0]);
}

/// The future of a service that has nothing to wait for.
type AtOnce = std::future::Ready<Result<Response<Empty<Bytes>>, Infallible>>;

#[test]
fn a_service_that_panics_leaves_nothing_in_flight() {
    let ledger = Arc::new(Ledger::default());
    let panicking = service_fn(|_: Plain| -> AtOnce { panic!("in the call itself") });
    let tracked = ConnectionTracking::new(panicking, Arc::clone(&ledger));
    let called = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        drop(tracked.call(request(Method::GET)));
    }));
    assert!(called.is_err());
    check(&ledger, 0, [0, 0, 0, 1]);
}

#[test]
fn clones_count_in_the_same_books_from_any_thread() {
    let ledger = Arc::new(Ledger::default());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let ledger = Arc::clone(&ledger);
            super::support::spawn("counting", move || {
                let empty = service_fn(async |_: Plain| {
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                });
                let tracked = ConnectionTracking::new(empty, ledger);
                for _ in 0..1000 {
                    drop(ready(tracked.clone().call(request(Method::GET))));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    check(&ledger, 0, [4000, 0, 0, 0]);
}

/// Both directions of a connection, in memory.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Read for Memory {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wires = self.0.lock().expect("no panic while held");
        let count = cursor.remaining().min(wires.input.len());
        if count == 0 {
            return Poll::Pending;
        }
        let bytes: Vec<u8> = wires.input.drain(..count).collect();
        cursor.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl Write for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().expect("no panic while held").output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_plain_hyper_server_counts_with_it() {
    let ledger = Arc::new(Ledger::default());
    let gate = Gate::default();
    let waiting = gate.clone();
    let service = service_fn(move |_: Request<Incoming>| {
        let gate = waiting.clone();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
    });
    let memory = Memory::default();
    let tracked = ConnectionTracking::new(service, Arc::clone(&ledger));
    let mut connection = Box::pin(http1::Builder::new().serve_connection(memory.clone(), tracked));
    assert!(poll_once(connection.as_mut()).is_pending());
    check(&ledger, 0, [0, 0, 0, 0]);
    let feed = |text: String| {
        memory.0.lock().expect("no panic while held").input.extend(text.into_bytes());
    };
    feed(text_of("/"));
    assert!(poll_once(connection.as_mut()).is_pending());
    check(&ledger, 1, [0, 0, 0, 0]);
    gate.let_one();
    assert!(poll_once(connection.as_mut()).is_pending());
    check(&ledger, 0, [1, 0, 0, 0]);
    let output = std::mem::take(&mut memory.0.lock().expect("no panic while held").output);
    assert!(output.starts_with(b"HTTP/1.1 200 OK\r\n") && output.ends_with(b"hello"));
    // The next one is given up with its connection.
    feed(text_of("/"));
    assert!(poll_once(connection.as_mut()).is_pending());
    check(&ledger, 1, [1, 0, 0, 0]);
    drop(connection);
    check(&ledger, 0, [1, 0, 0, 1]);
}

#[test]
fn a_server_of_ours_keeps_the_same_books() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    served.until("nothing is begun", |counts| counts.begun == 0);
    client.send(text_of("/wait"));
    gate.until_arrived(1);
    served.until("one is in flight", |counts| counts.in_flight == 1 && counts.begun == 1);
    gate.open();
    client.read_response().expect(200, "waited");
    served.until_finished(RequestOutcome::Answered, 1);
    assert_eq!(served.counts().in_flight, 0);
}
