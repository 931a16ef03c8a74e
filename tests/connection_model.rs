//! A connection over an in-memory transport: whatever the cuts, stalls and short writes, the client
//! reads the same bytes, and the ledger balances.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ebbtide::internal::http::buffers::Loan;
use ebbtide::internal::http::connection::{Connection, Means, Step};
use ebbtide::internal::http::service::{Answer, App};
use ebbtide::internal::http::site::{AccessLog, Delivery, Grace, Lines, Mode, RequestIds};
use ebbtide::internal::http::site::{Site, builder};
use ebbtide::internal::metrics::Metrics;
use ebbtide::internal::reactor::slots::Token;
use ebbtide::internal::reactor::socket::{Peer, Readiness, Transport};
use ebbtide::internal::reactor::turn::{Key, Reactor};
use ebbtide::{
    Body, Bytes, CancellationToken, ConnectionOutcome, ConnectionState, HalfClose, IntoResponse,
    Ledger, Limits, Request, Response,
};
use proptest::prelude::*;

/// The network between a connection and its client.
#[derive(Default)]
struct Network {
    /// Bytes the kernel holds for the server.
    inbound: VecDeque<u8>,
    /// Whether the client has sent FIN.
    is_finished: bool,
    /// Bytes the client has read.
    outbound: Vec<u8>,
    /// Bytes that the kernel still takes.
    window: usize,
    is_shut: bool,
}

#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Network>>);

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut network = self.0.borrow_mut();
        if network.inbound.is_empty() {
            return if network.is_finished { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let count = buf.len().min(network.inbound.len());
        for (to, from) in buf.iter_mut().zip(network.inbound.drain(..count)) {
            *to = from;
        }
        Ok(count)
    }
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut network = self.0.borrow_mut();
        let count = buf.len().min(network.window);
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        network.window -= count;
        network.outbound.extend_from_slice(&buf[..count]);
        Ok(count)
    }

    /// Like the kernel: goes on to the next buffer as long as there is room.
    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.write(buf) {
                Ok(count) => written += count,
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Pipe {
    fn shutdown_write(&self) -> io::Result<()> {
        self.0.borrow_mut().is_shut = true;
        Ok(())
    }

    fn unacknowledged(&self) -> Option<usize> {
        Some(0)
    }

    fn reset_on_close(&self) {}
}

/// Echoes bodies, at once or after having read them, and tells what was asked for.
struct Echo {
    /// Whether those that wait may answer.
    gate: Rc<Cell<bool>>,
}

impl App for Echo {
    fn call(&self, mut request: Request) -> Answer {
        if request.path() == "/ignore" {
            return Answer::Ready(Response::text("ignored"));
        }
        if request.path() == "/some" {
            return Answer::Later(Box::pin(async move {
                let first = request.body_mut().chunk().await;
                Response::text(if first.is_some() { "some" } else { "nothing" })
            }));
        }
        if request.path() == "/wait" {
            let gate = Rc::clone(&self.gate);
            return Answer::Later(Box::pin(async move {
                poll_fn(|_| if gate.get() { Poll::Ready(()) } else { Poll::Pending }).await;
                Response::text("waited")
            }));
        }
        if request.path() == "/fail" {
            let body = Body::try_unfold((), |()| async { Err::<Option<(Bytes, ())>, _>("broken") });
            return Answer::Ready(body.into_response());
        }
        if request.method() == "POST" {
            return Answer::Later(Box::pin(async move {
                match request.bytes().await {
                    Ok(bytes) => Response::text(bytes),
                    Err(error) => error.into_response(),
                }
            }));
        }
        if let Some(size) = request.path().strip_prefix("/big/") {
            return Answer::Ready(Response::text("b".repeat(size.parse().expect("a number"))));
        }
        Answer::Ready(Response::text(request.path().to_owned()))
    }
}

/// A connection and the means to drive it.
struct World {
    site: Rc<Site>,
    gate: Rc<Cell<bool>>,
    loan: Loan,
    reactor: Reactor,
    pipe: Pipe,
    connection: Option<Connection<Pipe>>,
    booked: ConnectionState,
    outcome: Option<ConnectionOutcome>,
    /// When the connection asked to run again.
    deadline: Option<Instant>,
}

impl World {
    fn new(limits: Limits) -> World {
        let gate = Rc::new(Cell::new(false));
        let now = Instant::now();
        let site = Rc::new(Site {
            delivery: Cell::new(Delivery::Ours),
            builder: builder(&limits),
            app: Rc::new(Echo { gate: Rc::clone(&gate) }),
            ledger: Arc::new(Ledger::default()),
            watch: Arc::default(),
            metrics: RefCell::new(Metrics::new().worker()),
            answered: RefCell::default(),
            access_log: AccessLog::Off,
            on_failure: None,
            hot: Cell::new(0),
            last_host: RefCell::default(),
            ids: RequestIds::new(1),
            epoch: now,
            shutdown: CancellationToken::default(),
            half_close: HalfClose::Cancel,
            lines: Lines::new(&limits),
            mode: Cell::new(Mode::Serving),
            now: Cell::new(now),
            limits,
        });
        site.ledger.opened();
        let pipe = Pipe::default();
        World {
            connection: Some(Connection::accepted(pipe.clone(), &site)),
            loan: Loan::new(site.limits.head_bytes_max),
            reactor: Reactor::new().expect("epoll is there"),
            booked: ConnectionState::New,
            outcome: None,
            deadline: None,
            site,
            gate,
            pipe,
        }
    }

    /// Runs exactly as often as the worker would: after an event, a wake, an exhausted budget or a
    /// deadline, and never just in case. A connection that forgets to ask hangs here.
    fn run(&mut self, readiness: Readiness) {
        if let Some(connection) = &mut self.connection {
            connection.announce(readiness);
        }
        while self.run_once() {}
        self.site.ledger.counts().check();
    }

    /// One turn of the worker. Whether it would run the connection in the next one again.
    fn run_once(&mut self) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let mut means = Means {
            site: &self.site,
            loan: &mut self.loan,
            remote: self.reactor.remote(),
            key: Key::new(1, Token::from_bits(0)),
            peer: Peer::LOCAL,
        };
        let step = connection.run(&mut means);
        let state = connection.state();
        if let Step::Closed(outcome) = step {
            self.site.ledger.closed(self.booked, outcome);
            self.outcome = Some(outcome);
            self.connection = None;
            return false;
        }
        self.site.ledger.moved(self.booked, state);
        self.booked = state;
        let is_woken = self.reactor.remote().take_woken().is_some();
        self.deadline = match step {
            Step::Wait(at) => at,
            Step::Again | Step::Closed(_) => Some(self.site.now.get()),
        };
        is_woken || self.deadline.is_some_and(|at| at <= self.site.now.get())
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.pipe.0.borrow_mut().inbound.extend(bytes);
        self.run(Readiness::READABLE);
    }

    fn finish(&mut self) {
        self.pipe.0.borrow_mut().is_finished = true;
        self.run(Readiness::READABLE | Readiness::READ_CLOSED);
    }

    fn open_window(&mut self, bytes: usize) {
        self.pipe.0.borrow_mut().window += bytes;
        self.run(Readiness::WRITABLE);
    }

    fn pass(&mut self, time: Duration) {
        self.site.now.set(self.site.now.get() + time);
        if self.deadline.is_some_and(|at| at <= self.site.now.get()) {
            self.run(Readiness::NONE);
        }
    }

    /// What the drain's order does.
    fn drain(&mut self) {
        let second = Duration::from_secs(1);
        let grace = Grace { first_byte: second, idle: 5 * second, spread: Duration::ZERO };
        self.site.mode.set(Mode::Draining { since: self.site.now.get(), grace });
        if let Some(connection) = &mut self.connection {
            connection.recheck();
        }
        self.run(Readiness::NONE);
    }

    /// What the client has read, without the dates and without what is said of staying open.
    fn output(&self) -> String {
        let bytes = self.pipe.0.borrow().outbound.clone();
        let text = String::from_utf8(bytes).expect("the echo is text");
        let masked = ["date: ", "keep-alive: ", "connection: keep-alive"];
        let is_told = |line: &&str| !masked.iter().any(|start| line.starts_with(start));
        text.lines().filter(is_told).collect::<Vec<_>>().join("\n")
    }
}

/// What one client sends, and how often the server should answer 200.
fn requests() -> impl Strategy<Value = Vec<String>> {
    let get = (0u32..1000).prop_map(|n| format!("GET /{n} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let post = "[a-z]{0,300}".prop_map(|body| {
        format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    });
    let chunked = proptest::collection::vec("[a-z]{1,80}", 0..4).prop_map(|chunks| {
        let mut text =
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        for chunk in chunks {
            write!(text, "{:x}\r\n{chunk}\r\n", chunk.len()).expect("strings take everything");
        }
        text + "0\r\n\r\n"
    });
    let big = (0u32..300_000).prop_map(|n| format!("GET /big/{n} HTTP/1.1\r\nHost: x\r\n\r\n"));
    proptest::collection::vec(prop_oneof![8 => get, 4 => post, 2 => chunked, 1 => big], 1..7)
}

/// Patience for a client that pauses within everything it sends.
fn patient() -> Limits {
    let hour = Duration::from_secs(3600);
    Limits {
        first_byte_timeout: hour,
        head_timeout: hour,
        keep_alive_timeout: hour,
        body_stall_timeout: hour,
        body_rate_min: 0,
        write_stall_timeout: hour,
        request_timeout: hour,
        ..Limits::default()
    }
}

/// The same exchange without any cut.
fn reference(bytes: &[u8]) -> String {
    let mut world = World::new(patient());
    world.open_window(1 << 24);
    world.receive(bytes);
    world.output()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn cuts_pauses_and_short_writes_change_nothing(
        requests in requests(),
        cuts in proptest::collection::vec((1usize..200, 0usize..120, 0u64..2500), 1..60),
    ) {
        let bytes = requests.concat().into_bytes();
        let count = requests.len() as u64;
        let expected = reference(&bytes);
        prop_assert_eq!(expected.matches("HTTP/1.1 200 OK").count() as u64, count);

        let mut world = World::new(patient());
        let mut rest = bytes.as_slice();
        for (size, window, pause) in cuts.iter().cycle().take(100_000) {
            let (now, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            world.receive(now);
            world.open_window(*window);
            world.pass(Duration::from_millis(*pause));
            if rest.is_empty() {
                break;
            }
        }
        world.open_window(1 << 24);
        prop_assert_eq!(world.output(), expected);
        let counts = world.site.ledger.counts();
        prop_assert_eq!(counts.begun, count);
        prop_assert_eq!(counts.finished[0], count, "all answered");
        world.finish();
        prop_assert_eq!(world.outcome, Some(ConnectionOutcome::ClientClosed));
    }

    #[test]
    fn a_drain_at_any_point_answers_every_complete_request(
        requests in requests(),
        cuts in proptest::collection::vec(1usize..120, 1..40),
        at in 0usize..40,
    ) {
        let bytes = requests.concat().into_bytes();
        let expected = reference(&bytes);
        let mut world = World::new(patient());
        world.open_window(1 << 24);
        let mut rest = bytes.as_slice();
        let mut sent = 0;
        for (i, size) in cuts.iter().cycle().enumerate().take(100_000) {
            if i == at {
                world.drain();
            }
            // A client stops sending when it is told that the connection closes.
            if rest.is_empty() || world.output().contains("connection: close") {
                break;
            }
            let (now, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            sent += now.len();
            world.receive(now);
        }
        // Requests that had arrived whole are answered, in order, and nothing else is.
        let mut complete = 0;
        let mut length = 0;
        for request in &requests {
            length += request.len();
            complete += usize::from(length <= sent);
        }
        let output = world.output().replace("connection: close\n", "");
        prop_assert_eq!(output.matches("HTTP/1.1 200 OK").count(), complete);
        prop_assert!(expected.starts_with(&output), "{}\n--- is no part of\n{}", output, expected);
    }
}

#[test]
fn a_body_that_nobody_reads_is_never_served_as_a_request() {
    let framings = [("Transfer-Encoding: chunked", "1000\r\n"), ("Content-Length: 4096", "")];
    for path in ["/ignore", "/some", "/too-large"] {
        for (framing, start) in framings {
            for first in [0, 1, 700] {
                let mut world = World::new(Limits { body_bytes_max: 600, ..patient() });
                world.open_window(1 << 20);
                let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n{start}");
                world.receive(head.as_bytes());
                world.receive("a".repeat(first).as_bytes());
                world.pass(Duration::from_secs(3));
                // Still within the body that was announced.
                world.receive(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
                world.pass(Duration::from_secs(3));
                world.receive(b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n");
                let output = world.output();
                let case = format!("{path}, {framing}, {first} bytes first:\n{output}");
                assert!(!output.contains("smuggled"), "{case}");
                assert!(output.matches("HTTP/1.1").count() <= 1, "{case}");
                assert_eq!(world.site.ledger.counts().begun, 1, "{case}");
            }
        }
    }
}

#[test]
fn in_a_crowd_who_is_answered_hibernates_at_once() {
    let mut world = World::new(Limits::default());
    world.open_window(1 << 16);
    world.receive(b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(world.booked, ConnectionState::Idle);
    let others = world.site.hot.get() + 4096;
    world.site.hot.set(others);
    world.receive(b"GET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(world.booked, ConnectionState::Hibernating);
    assert_eq!(world.site.hot.get(), others - 1);
    world.receive(b"GET /4 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(world.booked, ConnectionState::Hibernating);
    let output = world.output();
    assert!(["/1", "/2", "/3", "/4"].iter().all(|path| output.contains(path)), "{output}");
}

#[test]
fn who_asked_for_the_close_and_has_everything_is_not_waited_for() {
    let ask = |rest: &str, window: usize| {
        let mut world = World::new(Limits::default());
        world.open_window(window);
        let head = "GET /1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        world.receive(format!("{head}{rest}").as_bytes());
        world
    };
    assert_eq!(ask("", 1 << 16).outcome, Some(ConnectionOutcome::ClosedAfterResponse));
    assert_eq!(ask("", 20).outcome, None, "it has not got everything");
    assert_eq!(ask("GET /2 HTTP/1.1\r\n", 1 << 16).outcome, None, "it may send more");
}

#[test]
fn a_silent_connection_is_closed_at_the_end_of_its_time() {
    let mut world = World::new(Limits::default());
    world.open_window(1 << 24);
    world.receive(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    world.pass(Duration::from_millis(1100));
    assert_eq!(world.booked, ConnectionState::Hibernating);
    world.pass(Duration::from_secs(73));
    assert_eq!(world.outcome, None);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.outcome, Some(ConnectionOutcome::ClosedIdle));
    assert!(world.pipe.0.borrow().is_shut);
}

#[test]
fn a_head_that_drips_is_timed_from_its_first_byte() {
    let mut world = World::new(Limits::default());
    world.open_window(1 << 24);
    for _ in 0..9 {
        world.receive(b"G");
        world.pipe.0.borrow_mut().inbound.clear();
        world.pass(Duration::from_secs(1));
        if world.booked == ConnectionState::Lingering {
            break;
        }
    }
    world.pass(Duration::from_millis(1200));
    assert!(world.output().starts_with("HTTP/1.1 408 Request Timeout"), "{}", world.output());
}

#[test]
fn a_request_that_comes_while_a_handler_works_is_not_lost_to_the_announced_close() {
    let finish = [false, true];
    for is_finished in finish {
        let mut world = World::new(patient());
        world.open_window(1 << 20);
        world.receive(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        world.drain();
        world.receive(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n");
        if is_finished {
            world.finish();
        }
        world.gate.set(true);
        world.run(Readiness::NONE);
        let output = world.output();
        assert!(output.contains("waited") && output.contains("/next"), "{output}");
        assert_eq!(world.site.ledger.counts().finished[0], 2);
    }
}

#[test]
fn the_rest_of_an_unwanted_body_is_no_request_while_draining_either() {
    let rest = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for (framing, start) in [
        ("Transfer-Encoding: chunked", format!("2\r\nab\r\n{:x}\r\n{rest}", rest.len())),
        ("Content-Length: 37", format!("ab{rest}")),
    ] {
        for path in ["/some", "/ignore"] {
            let mut world = World::new(patient());
            world.open_window(1 << 20);
            world.drain();
            let (head, body) =
                (format!("POST {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"), start.as_bytes());
            let (some, more) = body.split_at(if framing.contains("chunked") { 12 } else { 2 });
            world.receive(&[head.as_bytes(), some].concat());
            world.receive(more);
            world.pass(Duration::from_secs(2));
            let output = world.output();
            assert!(!output.contains("smuggled"), "{path}, {framing}:\n{output}");
            assert_eq!(output.matches("HTTP/1.1").count(), 1, "{path}, {framing}:\n{output}");
            assert_eq!(world.site.ledger.counts().begun, 1);
        }
    }
}

#[test]
fn a_stream_that_fails_leaves_the_responses_before_it_whole() {
    let mut world = World::new(patient());
    world.receive(
        b"GET /big/300000 HTTP/1.1\r\nHost: x\r\n\r\nGET /fail HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    for _ in 0..400 {
        world.open_window(1000);
    }
    let output = world.output();
    let body = output.bytes().filter(|byte| *byte == b'b').count();
    assert!(body >= 300_000, "{body} bytes of 300000");
    assert!(!output.ends_with("0\r\n\r\n"), "the stream looks complete");
    assert!(world.pipe.0.borrow().is_shut);
    let counts = world.site.ledger.counts();
    assert_eq!(counts.finished[0], 1, "the first is answered");
    assert_eq!(counts.finished[2], 1, "the second is cut");
}

#[test]
fn a_client_that_goes_on_taking_a_large_response_is_not_stalled() {
    let mut world = World::new(Limits::default());
    world.receive(b"GET /big/1000000 HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..12 {
        world.open_window(20_000);
        world.pass(Duration::from_secs(7));
    }
    assert_eq!(world.outcome, None);
    world.pass(Duration::from_secs(24));
    assert_eq!(world.outcome, Some(ConnectionOutcome::TimedOut), "now it is");
}

#[test]
fn idle_time_counts_from_the_last_byte_that_the_client_took() {
    let mut world = World::new(Limits::default());
    world.receive(b"GET /big/10000 HTTP/1.1\r\nHost: x\r\n\r\n");
    for _ in 0..5 {
        world.open_window(100);
        world.pass(Duration::from_secs(20));
    }
    world.open_window(1 << 20);
    world.pass(Duration::from_secs(74));
    assert_eq!(world.outcome, None);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.outcome, Some(ConnectionOutcome::ClosedIdle));
}

#[test]
fn a_client_that_always_has_a_next_request_ends_each_turn_in_a_drain_as_well() {
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let second = Duration::from_secs(1);
    let grace = Grace { first_byte: second, idle: 5 * second, spread: Duration::ZERO };
    let mut world = World::new(patient());
    world.open_window(1 << 30);
    world.receive(request);
    let since = world.site.now.get();
    world.site.mode.set(Mode::Draining { since, grace });
    world.pipe.0.borrow_mut().inbound.extend(request.repeat(100_000));
    if let Some(connection) = &mut world.connection {
        connection.announce(Readiness::READABLE);
    }
    let mut before = world.site.ledger.counts().begun;
    let mut turns = 0;
    while world.run_once() {
        let begun = world.site.ledger.counts().begun;
        // A turn's bytes are 256 KiB.
        let most = 256 * 1024 / request.len() as u64 + 1;
        assert!(begun - before <= most, "{} requests in one turn", begun - before);
        before = begun;
        turns += 1;
    }
    assert!(turns > 10, "{turns} turns");
    assert_eq!(world.site.ledger.counts().finished[0], 100_001, "all are answered");
}
