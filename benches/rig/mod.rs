//! A worker's share of the server on the calling thread: a real reactor and endpoint, with sockets
//! that are memory. What benches and tests measure with it is the server and no kernel.
//!
//! Time is the rig's own: it stands still unless it is told to [`pass`](Rig::pass), so that two
//! runs do exactly the same.

#![allow(dead_code, reason = "each bench and test uses a part of it")]
#![allow(clippy::unused_self, reason = "links are the rig's, though sockets must find them alone")]
#![allow(clippy::missing_panics_doc, reason = "a panic here fails the bench or test")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ebbtide::internal::http::site::{AccessLog, Delivery};
use ebbtide::internal::metrics::Metrics;
use ebbtide::internal::reactor::blocking::Pool;
use ebbtide::internal::reactor::listener::{Accepted, Acceptor};
use ebbtide::internal::reactor::socket::{Peer, Readiness, Transport};
use ebbtide::internal::reactor::turn::{Host, Key, Reactor};
use ebbtide::internal::server::Capacity;
use ebbtide::internal::server::endpoint::{Command, Endpoint};
use ebbtide::internal::server::site::SiteSetup;
use ebbtide::{
    CancellationToken, ConnectionState, Counts, HalfClose, IntoResponse, Ledger, Limits, Request,
    Response, Router, get, post,
};

/// What the rig's routes answer with: the commonest small response.
pub const HELLO: &str = "Hello, World!";

/// `/plain` by a function, `/later` by an async one, `/echo` with the request's body.
pub fn router() -> Router {
    Router::new()
        .route("/plain", get(|_: Request| Response::text(HELLO)))
        .route("/later", get(async |_: Request| Response::text(HELLO)))
        .route("/echo", post(echo))
}

async fn echo(mut request: Request) -> Response {
    match request.bytes().await {
        Ok(bytes) => Response::text(bytes),
        Err(error) => error.into_response(),
    }
}

/// The request that wrk and other load generators send.
pub fn get_request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n").into_bytes()
}

/// A request with `body`.
pub fn post_request(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: text/plain\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Names a client of the rig. They are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(u32);

/// One client's connection, as both ends see it.
#[derive(Default)]
struct Link {
    /// What the client has sent and the server has not read.
    inbound: VecDeque<u8>,
    /// Bytes of `inbound` that come again whenever it has been read empty: an endless upload.
    endless: &'static [u8],
    /// Bytes that the server has read.
    read: u64,
    /// Bytes of both ways that [`Rig::moved`] has told of.
    moved: u64,
    /// Bytes that the server wrote, and how many of them [`Rig::received`] has told of.
    written: u64,
    told: u64,
    /// Where readiness is to be announced.
    key: Option<Key>,
    /// Whether the client has closed.
    is_finished: bool,
}

/// What the kernel would have.
#[derive(Default)]
struct Net {
    links: Vec<Link>,
    /// How many of them have been given to clients.
    connected: usize,
    /// To be accepted.
    queue: VecDeque<u32>,
    /// To be announced with the next turn.
    events: Vec<(Key, Readiness)>,
    /// How many of them were to be announced at all.
    watched: usize,
}

thread_local! {
    static NET: RefCell<Net> = RefCell::default();
}

/// The server's end of a link: four bytes, as a descriptor is.
pub struct Wire(u32);

impl Wire {
    fn with<T>(&self, act: impl FnOnce(&mut Link) -> T) -> T {
        NET.with_borrow_mut(|net| act(&mut net.links[self.0 as usize]))
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|link| {
            // Never a short read, which would mean that nothing is left.
            while !link.endless.is_empty() && link.inbound.len() < buf.len() {
                link.inbound.extend(link.endless);
            }
            if link.inbound.is_empty() {
                return if link.is_finished {
                    Ok(0)
                } else {
                    Err(io::ErrorKind::WouldBlock.into())
                };
            }
            // A queue is read in two pieces when it wraps around.
            let first = link.inbound.read(buf)?;
            let count = first + link.inbound.read(&mut buf[first..])?;
            link.read += count as u64;
            Ok(count)
        })
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.with(|link| link.written += buf.len() as u64);
        Ok(buf.len())
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        bufs.iter().map(|buf| self.write(buf)).sum()
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Wire {
    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }

    fn unacknowledged(&self) -> Option<usize> {
        Some(0)
    }

    fn reset_on_close(&self) {}
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.with(|link| link.key = None);
    }
}

/// The listener.
pub struct Door {
    is_ready: bool,
}

impl Acceptor for Door {
    type Stream = Wire;
    type Registrar = ();

    fn watch((): &(), stream: &mut Wire, key: Key) -> io::Result<()> {
        // As epoll does: what is there already is announced once.
        NET.with_borrow_mut(|net| {
            net.watched += 1;
            let link = &mut net.links[stream.0 as usize];
            link.key = Some(key);
            if !link.inbound.is_empty() || !link.endless.is_empty() {
                net.events.push((key, Readiness::READABLE));
            }
        });
        Ok(())
    }

    fn watch_room((): &(), _stream: &mut Wire, _key: Key) -> io::Result<()> {
        unreachable!("all that is written is taken")
    }

    fn announce(&mut self) {
        self.is_ready = true;
    }

    fn is_ready(&self, _now: Instant) -> bool {
        self.is_ready
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn resume(&mut self) {}

    fn pause(&mut self, _now: Instant) {}

    fn drop_syns(&mut self) {}

    fn turn_away(&mut self) {}

    fn accept(&mut self, _now: Instant) -> Accepted<Wire> {
        let Some(index) = NET.with_borrow_mut(|net| net.queue.pop_front()) else {
            self.is_ready = false;
            return Accepted::Nothing;
        };
        Accepted::Connection(Wire(index), Peer::LOCAL)
    }
}

/// See the module's essay.
pub struct Rig {
    worker: Worker,
    reactor: Reactor,
    ledger: Arc<Ledger>,
    /// Kept for what its drop undoes.
    _entered: Box<dyn std::any::Any>,
}

/// The endpoint as the reactor's host, in the rig's time.
struct Worker {
    endpoint: Endpoint<Door>,
    listener: Key,
    now: Instant,
    /// The events of the turn; empty between turns, kept for its capacity.
    events: Vec<(Key, Readiness)>,
}

impl Host for Worker {
    fn is_busy(&self) -> bool {
        true // a turn of the rig never sleeps
    }

    fn deadline(&self) -> Option<Instant> {
        self.endpoint.deadline()
    }

    fn ready(&mut self, _key: Key, _readiness: Readiness) {
        unreachable!("no descriptor is registered");
    }

    fn expire(&mut self, _now: Instant) {
        // Where epoll's events would have been handed over, just before.
        NET.with_borrow_mut(|net| std::mem::swap(&mut net.events, &mut self.events));
        for (key, readiness) in self.events.drain(..) {
            self.endpoint.ready(key, readiness);
        }
        self.endpoint.expire(self.now);
    }

    fn has_mail(&self) -> bool {
        false
    }

    fn take_mail(&mut self, _now: Instant) {}

    fn woken(&mut self, key: Key) {
        self.endpoint.woken(key);
    }

    fn work(&mut self, _now: Instant) {
        self.endpoint.work(self.now);
    }

    fn finish(&mut self, _now: Instant, _worked: Duration) {
        self.endpoint.finish(self.now, WORKED);
    }
}

/// What every turn is said to have taken.
const WORKED: Duration = Duration::from_micros(50);

impl Rig {
    /// A server of `router`, with metrics, deadlines and limits as it has them by default.
    pub fn new(router: Router) -> Rig {
        Rig::with_limits(router, Limits::default())
    }

    /// As `new`, with other limits.
    pub fn with_limits(router: Router, limits: Limits) -> Rig {
        NET.set(Net::default());
        let reactor = Reactor::new().expect("epoll is there");
        let entered = reactor.enter(Pool::new(0));
        let ledger = Arc::new(Ledger::default());
        let setup = SiteSetup {
            delivery: Delivery::Ours,
            limits,
            router,
            ledger: Arc::clone(&ledger),
            watch: Arc::default(),
            metrics: Metrics::new(),
            access_log: AccessLog::Off,
            on_failure: None,
            half_close: HalfClose::Cancel,
            id_prefix: 1,
            shutdown: CancellationToken::default(),
        };
        let (now, remote) = (reactor.now(), Arc::clone(reactor.remote()));
        let capacity = Capacity::new(10_000_000);
        let mut endpoint = Endpoint::new(1, setup.into_site(now), remote, (), capacity);
        let listener = endpoint.listener_key();
        endpoint.attend(Door { is_ready: true });
        let worker = Worker { endpoint, listener, now, events: Vec::new() };
        Rig { worker, reactor, ledger, _entered: Box::new(entered) }
    }

    /// Makes the links of so many clients, so that connecting them takes no memory of the rig's.
    pub fn prepare(&mut self, clients: usize) {
        NET.with_borrow_mut(|net| net.links.resize_with(net.connected + clients, Link::default));
    }

    /// A client that will be accepted in the next turn.
    pub fn connect(&mut self) -> Client {
        let (index, is_first) = NET.with_borrow_mut(|net| {
            let index = u32::try_from(net.connected).expect("fewer clients");
            net.connected += 1;
            if net.links.len() < net.connected {
                net.links.push(Link::default());
            }
            net.queue.push_back(index);
            (index, net.queue.len() == 1)
        });
        if is_first {
            self.worker.endpoint.ready(self.worker.listener, Readiness::READABLE);
        }
        Client(index)
    }

    /// Gives back the memory in which the client's bytes were queued.
    pub fn forget(&mut self, client: Client) {
        NET.with_borrow_mut(|net| {
            let link = &mut net.links[client.0 as usize];
            assert!(link.inbound.is_empty(), "the server has not read all");
            link.inbound = VecDeque::new();
        });
    }

    /// The client sends; the server hears of it in the next turn.
    pub fn send(&mut self, client: Client, bytes: &[u8]) {
        NET.with_borrow_mut(|net| {
            net.links[client.0 as usize].inbound.extend(bytes);
            announce(net, client, Readiness::READABLE);
        });
    }

    /// Whenever the server has read all, the same bytes are there again.
    pub fn send_endlessly(&mut self, client: Client, bytes: &'static [u8]) {
        NET.with_borrow_mut(|net| {
            net.links[client.0 as usize].endless = bytes;
            announce(net, client, Readiness::READABLE);
        });
    }

    /// The client closes.
    pub fn close(&mut self, client: Client) {
        NET.with_borrow_mut(|net| {
            let link = &mut net.links[client.0 as usize];
            link.is_finished = true;
            link.inbound = VecDeque::new();
            announce(net, client, Readiness::READABLE | Readiness::READ_CLOSED);
        });
    }

    /// One turn of the worker.
    pub fn turn(&mut self) {
        self.reactor.turn(&mut self.worker).expect("epoll works");
    }

    /// Turns until nothing is left to do at this time.
    pub fn settle(&mut self) {
        self.turn();
        while self.is_busy() {
            self.turn();
        }
    }

    /// Whether the worker would take another turn at once.
    pub fn is_busy(&self) -> bool {
        let has_events = NET.with_borrow(|net| !net.events.is_empty());
        let deadline = self.worker.endpoint.deadline();
        has_events
            || self.worker.endpoint.is_busy()
            || deadline.is_some_and(|at| at <= self.worker.now)
    }

    /// Lets time go by, without a turn.
    pub fn pass(&mut self, time: Duration) {
        self.worker.now += time;
    }

    /// Lets time go by up to the next deadline, and takes the turns that are due then. Whether
    /// there was one.
    pub fn pass_to_deadline(&mut self) -> bool {
        let Some(at) = self.worker.endpoint.deadline() else { return false };
        self.worker.now = self.worker.now.max(at);
        self.settle();
        true
    }

    /// What control would send the worker.
    pub fn obey(&mut self, command: Command) {
        self.worker.endpoint.obey(command, self.worker.now);
    }

    /// Whether the listener is retired and every connection gone.
    pub fn is_quiet(&self) -> bool {
        self.worker.endpoint.is_quiet()
    }

    /// How many connections epoll was given.
    pub fn watched(&self) -> usize {
        NET.with_borrow(|net| net.watched)
    }

    /// How many bytes the client was sent since this was last asked.
    pub fn received(&mut self, client: Client) -> u64 {
        NET.with_borrow_mut(|net| {
            let link = &mut net.links[client.0 as usize];
            link.written - std::mem::replace(&mut link.told, link.written)
        })
    }

    /// How many bytes the client and the server have exchanged since this was last asked.
    pub fn moved(&mut self, client: Client) -> u64 {
        NET.with_borrow_mut(|net| {
            let link = &mut net.links[client.0 as usize];
            let moved = link.written + link.read;
            moved - std::mem::replace(&mut link.moved, moved)
        })
    }

    /// The worker's books.
    pub fn counts(&self) -> Counts {
        self.ledger.counts()
    }

    /// How many connections are in `state`.
    pub fn in_state(&self, state: ConnectionState) -> u64 {
        self.counts().states[state as usize]
    }
}

fn announce(net: &mut Net, client: Client, readiness: Readiness) {
    if let Some(key) = net.links[client.0 as usize].key {
        net.events.push((key, readiness));
    }
}
