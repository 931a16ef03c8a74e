//! A server in this process, and waiting without sleeping.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ebbtide::{
    Address, Body, BodyError, ConnectionState, Counts, GracefulShutdown, IntoResponse, Limits,
    Options, Phase, Policy, Report, Request, RequestOutcome, Response, Router, Server, Signal,
    StartError, Workers, get, post,
};

use super::client::{Client, request};
pub use super::gate::Gate;

/// A server that serves on a thread of its own.
///
/// Ends when dropped. However it ends, its books must balance.
pub struct Served {
    pub handle: GracefulShutdown,
    addresses: Vec<Address>,
    admin: Option<Address>,
    /// `None` once it has ended.
    thread: Option<JoinHandle<Result<Report, StartError>>>,
}

impl Served {
    /// A server with the default limits and one worker.
    pub fn start(router: Router) -> Served {
        Served::with(options(), router)
    }

    /// As [`start`](Served::start), with other limits.
    pub fn limited(limits: Limits, router: Router) -> Served {
        Served::with(Options { limits, ..options() }, router)
    }

    /// As [`start`](Served::start), with a policy for its shutdown.
    pub fn ending(shutdown: Policy, router: Router) -> Served {
        Served::with(Options { shutdown, ..options() }, router)
    }

    pub fn with(options: Options, router: Router) -> Served {
        Served::run(Server::bind(options, router).expect("the address can be bound"))
    }

    pub fn run(server: Server) -> Served {
        Served {
            handle: server.shutdown_handle(),
            addresses: server.addresses(),
            admin: server.admin_address(),
            thread: Some(spawn("served", move || server.run())),
        }
    }

    pub fn address(&self) -> SocketAddr {
        tcp(&self.addresses[0])
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address())
    }

    /// A client of the admin listener.
    pub fn admin_client(&self) -> Client {
        Client::connect(tcp(self.admin.as_ref().expect("an admin listener was asked for")))
    }

    pub fn counts(&self) -> Counts {
        self.handle.snapshot().counts
    }

    pub fn phase(&self) -> Phase {
        self.handle.snapshot().phase
    }

    /// Waits until the books say so.
    pub fn until(&self, what: &str, condition: impl Fn(&Counts) -> bool) {
        wait_until(what, || condition(&self.counts()));
    }

    /// Waits until so many connections are in `state`.
    pub fn until_in_state(&self, state: ConnectionState, count: u64) {
        let what = format!("{count} connections are {}", state.name());
        self.until(&what, |counts| counts.in_state(state) == count);
    }

    /// Waits until so many requests have ended as `outcome`, and checks the books then.
    pub fn until_finished(&self, outcome: RequestOutcome, count: u64) {
        let what = format!("{count} requests are {}", outcome.name());
        self.until(&what, |counts| counts.finished_as(outcome) == count);
        // The reader may be in the middle of a turn; the laws hold after it.
        wait_until("the books balance", || balances(&self.counts()));
    }

    /// Begins the shutdown and waits until the workers have their orders.
    pub fn begin_shutdown(&self) {
        self.handle.shutdown();
        self.handle.wait_for_shutdown();
        self.until_ordered();
    }

    /// As [`begin_shutdown`](Served::begin_shutdown), by a signal.
    pub fn signal(&self, signal: Signal) {
        self.handle.signal_handler(signal);
        self.handle.wait_for_shutdown();
        self.until_ordered();
    }

    /// Waits until the workers have the orders of this phase.
    pub fn until_phase(&self, phase: Phase) {
        wait_until(&format!("the phase is {}", phase.name()), || self.phase() == phase);
        self.until_ordered();
    }

    /// The admin listener answers on control's own thread: what control has begun, it has finished
    /// when an answer comes, and its workers find their orders before anything that comes later.
    fn until_ordered(&self) {
        let Some(admin) = &self.admin else { return };
        if let Ok(mut client) = Client::try_connect(tcp(admin)) {
            // A server that has ended has finished as well.
            let _ended = client.try_send(request("/livez"));
            let _ended = client.try_read_response();
        }
    }

    /// Waits until every listener accepts; the first does so a little earlier.
    pub fn until_ready(&self) {
        let mut admin = self.admin_client();
        wait_until("it is ready", || admin.get("/readyz").status == 200);
    }

    /// Waits until new connections are refused.
    pub fn until_retired(&self) {
        let address = self.address();
        wait_until("the listener is closed", || Client::try_connect(address).is_err());
    }

    /// As [`until_retired`](Served::until_retired), for a server that may end by itself then.
    pub fn until_retired_or_ended(&self) {
        let address = self.address();
        wait_until("the listener is closed", || {
            self.phase() == Phase::Stopped || Client::try_connect(address).is_err()
        });
    }

    /// The report of a shutdown that has been begun, once it is over.
    pub fn report(mut self) -> Report {
        self.end()
    }

    /// Shuts down without waiting for silent clients.
    pub fn stop(self) -> Report {
        self.handle.signal_handler(Signal::Interrupt);
        self.report()
    }

    fn end(&mut self) -> Report {
        let thread = self.thread.take().expect("a server ends once");
        let handle = self.handle.clone();
        wait_until("the server has ended", || thread.is_finished());
        let returned = thread.join().expect("control does not panic").expect("it could serve");
        let told = handle.finished_within(Duration::ZERO).expect("the handle knows the report");
        assert_eq!(told, returned, "handle and run() tell the same");
        returned.counts.check();
        if returned.exit_status == 0 {
            assert_eq!(returned.counts.open(), 0, "nothing is left open: {returned:?}");
            assert_eq!(returned.counts.in_flight, 0, "nothing is left in flight: {returned:?}");
        }
        let ended: u64 = returned.counts.finished.iter().sum();
        assert_eq!(returned.counts.begun, ended, "every request has one end: {returned:?}");
        returned
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        if thread::panicking() {
            self.handle.signal_handler(Signal::Quit);
            return;
        }
        self.handle.signal_handler(Signal::Interrupt);
        if self.handle.finished_within(2 * SIGNAL_ECHO).is_none() {
            // Some handler waits for a gate that nobody will open.
            self.handle.signal_handler(Signal::Interrupt);
        }
        self.end();
    }
}

/// Loopback and one worker.
pub fn options() -> Options {
    let any_port: Address = "127.0.0.1:0".parse().expect("an address");
    Options {
        listen: vec![any_port.clone()],
        admin_listen: Some(any_port),
        workers: Workers::Count(1),
        ..Options::default()
    }
}

pub fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        other => panic!("a TCP address was expected, not {other}"),
    }
}

fn balances(counts: &Counts) -> bool {
    let finished: u64 = counts.finished.iter().sum();
    let gone: u64 = counts.closed.iter().sum();
    let open: u64 = counts.states.iter().sum();
    counts.begun == finished + counts.in_flight && counts.opened == gone + open
}

/// The routes that most tests need. `/wait`, `/block` and `/stream` are held by the gate.
pub fn app(gate: &Gate) -> Router {
    let (waiting, blocking, streaming) = (gate.clone(), gate.clone(), gate.clone());
    let bytes = |request: Request| {
        let count = request.param("n").and_then(|n| n.parse().ok()).expect("a number");
        Body::from(pattern(count))
    };
    Router::new()
        .route("/hello", get(|_: Request| "hello"))
        .route("/echo", post(echo))
        .route("/count", post(count))
        .route("/bytes/{n}", get(bytes))
        .route(
            "/wait",
            get(move |_: Request| {
                let gate = waiting.clone();
                async move {
                    gate.pass().await;
                    "waited"
                }
            }),
        )
        .route(
            "/block",
            get(move |_: Request| {
                blocking.block();
                "blocked"
            }),
        )
        .route("/stream", get(move |_: Request| gated_stream(streaming.clone())))
}

/// Four chunks, each of which needs a pass.
pub fn gated_stream(gate: Gate) -> Response {
    let body = Body::unfold(0, move |n| {
        let gate = gate.clone();
        async move {
            if n == 4 {
                return None;
            }
            gate.pass().await;
            Some((Bytes::from(format!("chunk {n};")), n + 1))
        }
    });
    body.into_response()
}

/// What [`gated_stream`] sends.
pub const STREAMED: &str = "chunk 0;chunk 1;chunk 2;chunk 3;";

async fn echo(mut request: Request) -> Result<Response, BodyError> {
    Ok(Body::from(request.bytes().await?).into_response())
}

async fn count(mut request: Request) -> Result<String, BodyError> {
    let mut count = 0;
    while let Some(chunk) = request.body_mut().chunk().await {
        count += chunk?.len();
    }
    Ok(count.to_string())
}

/// Bytes that show where one is missing.
pub fn pattern(count: usize) -> Vec<u8> {
    let unit: Vec<u8> = (0..251).collect();
    let mut bytes = unit.repeat(count / unit.len() + 1);
    bytes.truncate(count);
    bytes
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = now() + PATIENCE;
    while !condition() {
        assert!(now() < end, "waited in vain until {what}");
        pace(Duration::from_micros(500));
    }
}

/// Keeps a peer slow whose slowness is what the test is about. Nothing is waited for by it.
pub fn pace(pause: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    assert_eq!(receiver.recv_timeout(pause), Err(mpsc::RecvTimeoutError::Timeout));
}

/// Asserts that what began at `began` took as long as promised.
pub fn assert_took(began: Instant, promised: Duration) {
    let took = now().saturating_duration_since(began);
    assert!(
        (promised..promised + SLACK).contains(&took),
        "{promised:?} were promised, it took {took:?}"
    );
}

/// The clock of the tests.
pub fn now() -> Instant {
    Instant::now()
}

pub fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started")
}

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Far more than any wait here needs; a test that gets there has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a loaded machine may add to a promised time.
pub const SLACK: Duration = Duration::from_millis(500);

/// Two signals within this time count as one.
pub const SIGNAL_ECHO: Duration = Duration::from_millis(100);
