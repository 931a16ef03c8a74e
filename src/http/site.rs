//! What all connections of one listener share on one worker.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use hyper::server::conn::http1;

use super::date::DateCache;
use super::failure::OnFailure;
use super::flow::Splice;
use super::limits::{HYPER_BUFFER_BYTES_MAX, Limits};
use super::message::Media;
use super::service::App;
use super::watch::Watch;
use crate::ledger::Ledger;
use crate::metrics::WorkerMetrics;
use crate::reactor::cancel::CancellationToken;

/// Everything a connection needs besides its socket. One per listener and worker, single-threaded.
pub struct Site {
    /// What a client may send, and how slowly.
    pub limits: Limits,
    /// What answers the requests.
    pub app: Rc<dyn App>,
    /// The worker's books.
    pub ledger: Arc<Ledger>,
    /// What the worker is working on, for control to read.
    pub watch: Arc<Watch>,
    /// The worker's observations.
    pub metrics: RefCell<WorkerMetrics>,
    /// Requests answered in this turn. Their durations are taken at its end: what a handler did in
    /// the turn is then in them, at the price of what others did.
    pub answered: RefCell<Vec<AnsweredRequest>>,
    /// Whether each finished request is logged.
    pub access_log: AccessLog,
    /// Who is told of panics and of responses that say the server failed.
    pub on_failure: Option<OnFailure>,
    /// How many connections hyper works on.
    pub hot: Cell<usize>,
    /// The host that a request named last, which is well-formed (or empty: nothing yet).
    pub last_host: RefCell<Vec<u8>>,
    /// Where ids of requests come from that brought none.
    pub ids: RequestIds,
    /// Where [`Stamp`]s count from.
    pub epoch: Instant,
    /// hyper, with our settings.
    pub builder: http1::Builder,
    /// Fires when handlers are to come to an end. The server's: a worker that is held up by its
    /// handler hears of it as well.
    pub shutdown: CancellationToken,
    /// What a client's FIN means for its request.
    pub half_close: HalfClose,
    /// What responses say besides.
    pub lines: Lines,
    /// How requests are treated now. Only ever moves down the list of [`Mode`].
    pub mode: Cell<Mode>,
    /// Who sees to it that last responses are delivered.
    pub delivery: Cell<Delivery>,
    /// The turn's `now`.
    pub now: Cell<Instant>,
    /// A mistake that the simulation is to find.
    #[cfg(test)]
    pub fault: Cell<Fault>,
}

/// Mistakes that lose requests in a shutdown, made on purpose.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// None is made.
    #[default]
    None,
    /// hyper's own `graceful_shutdown` is used.
    HyperShutdown,
    /// The close is announced whatever is behind the request at hand.
    NoSurplusRule,
    /// An idle connection is closed without another look into the kernel's buffer.
    NoLastLook,
}

/// What the metrics learn of a request.
#[derive(Debug)]
pub struct AnsweredRequest {
    /// A label of its series.
    pub method: Method,
    /// The other label.
    pub status: u16,
    /// When its head was complete.
    pub begun: Instant,
    /// How many such there were one after the other.
    pub count: u32,
}

/// Whether each finished request is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Only what goes wrong is logged.
    Off,
    /// One line per finished request.
    On,
}

/// What it means for a request that its client has finished sending (FIN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClose {
    /// The client is gone, most likely: an ordinary abort looks exactly like it. The request's
    /// token fires; its handler may still finish and answer.
    Cancel,
    /// The client waits for its answer.
    Serve,
}

/// The lines of a response's head that go to the wire beside hyper's.
#[derive(Debug)]
pub struct Lines {
    /// By [`Media`], without and with those on the idle time that follows.
    by_media: [[Box<[u8]>; 2]; 3],
    /// The line on the time.
    pub(super) date: DateCache,
}

impl Lines {
    /// The lines for these limits.
    pub fn new(limits: &Limits) -> Lines {
        let keep_alive = keep_alive(limits);
        Lines {
            date: DateCache::default(),
            by_media: Media::ALL.map(|media| {
                let line = media.line();
                let both = [keep_alive.as_str(), &line].concat();
                [line.into_bytes().into(), both.into_bytes().into()]
            }),
        }
    }

    pub(super) fn of(&self, splice: Splice) -> &[u8] {
        &self.by_media[splice.media as usize][usize::from(splice.advertises)]
    }
}

/// The header lines by which responses tell how long the connection may be idle: whole seconds, and
/// less than it really has. A client that goes by them never sends a request into a connection that
/// is being closed, though the request and our FIN take their time. Nothing for times too short to
/// tell.
///
/// `Keep-Alive` is of RFC 2068, 19.7.1; RFC 9110, 7.6.1 wants it listed in `Connection`.
fn keep_alive(limits: &Limits) -> String {
    let seconds = limits.keep_alive_timeout.saturating_sub(KEEP_ALIVE_MARGIN).as_secs();
    if seconds == 0 {
        return String::new();
    }
    format!("connection: keep-alive\r\nkeep-alive: timeout={seconds}\r\n")
}

/// Between the time that clients are told and the close: a round trip and the grain of deadlines.
const KEEP_ALIVE_MARGIN: Duration = Duration::from_secs(1);

/// Who sees to it that the client of a connection that is closed has its last response.
///
/// The kernel goes on sending after the close, so that it is enough to send FIN and to close, when
/// the response is small, the client has asked for the close (so that it sends nothing more, which
/// would have the kernel send RST: RFC 9112, 9.6) and nothing else is on its way to it. Response
/// and FIN then leave in one packet (`MSG_MORE`, `send(2)`), which saves a sixth to a fifth of
/// what such a connection costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// We, by asking before the close: nobody would wait for the kernel.
    Ours,
    /// We, until the kernel has shown that it keeps lists as Linux does.
    OursYet,
    /// The kernel, where that is enough. Whoever ends the process looks at its list first.
    Kernels,
}

/// How a worker treats its connections, by the shutdown's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No shutdown is under way.
    Serving,
    /// Lame duck: serving, but every response that can announces the close.
    Announcing,
    /// Listeners are retired. `since` is when that began.
    Draining {
        /// When the worker was told.
        since: Instant,
        /// What clients are granted that owe nothing.
        grace: Grace,
    },
    /// The deadline is near: idle connections close, an error response counts as refused.
    Cancelling,
    /// As `Cancelling`, and requests without a response head are answered 503.
    Refusing,
}

/// How long a draining worker waits for clients that owe it nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace {
    /// For the first byte on a connection that sent none.
    pub first_byte: Duration,
    /// For one more request on an idle connection, at least.
    pub idle: Duration,
    /// Over how much more time the closing of idle connections is spread.
    pub spread: Duration,
}

/// hyper's HTTP/1 side for these limits: half-closed clients are answered, no timer, no
/// `pipeline_flush`.
pub fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .half_close(true)
        .max_header_size(limits.head_bytes_max)
        .max_buf_size(HYPER_BUFFER_BYTES_MAX.max(limits.head_bytes_max));
    if limits.header_fields_max != HYPER_FIELDS_DEFAULT {
        // Any explicit value above it makes hyper allocate the field table per request.
        builder.max_headers(limits.header_fields_max);
    }
    builder
}

/// What hyper allows when it is not told otherwise, in an array on its stack.
const HYPER_FIELDS_DEFAULT: usize = 100;

/// An instant in four bytes, to a tenth of a second, rounded up: what idle connections can afford.
/// Reaches 13 years past the site's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u32);

const STAMPS_PER_SECOND: u32 = 10;

impl Site {
    /// Gives the requests answered in the turn to the metrics, at the turn's end.
    pub fn observe_answered(&self, end: Instant) {
        let mut metrics = self.metrics.borrow_mut();
        for request in self.answered.borrow_mut().drain(..) {
            let seconds = end.saturating_duration_since(request.begun).as_secs_f64();
            metrics.requests(&request.method, request.status, seconds, request.count);
        }
    }

    /// Notes a request that was answered. In a busy turn most are like the one before.
    pub fn note_answered(&self, method: &Method, status: u16, begun: Instant) {
        let mut answered = self.answered.borrow_mut();
        match answered.last_mut() {
            Some(last)
                if last.begun == begun && last.status == status && last.method == *method =>
            {
                last.count += 1;
            }
            _ => {
                let method = method.clone();
                answered.push(AnsweredRequest { method, status, begun, count: 1 });
            }
        }
    }

    /// Whether the mistake is to be made.
    #[cfg(test)]
    pub fn has_fault(&self, fault: Fault) -> bool {
        self.fault.get() == fault
    }

    /// The turn's `now` as a stamp.
    pub fn stamp(&self) -> Stamp {
        self.stamp_of(self.now.get())
    }

    /// An instant as a stamp; what was before the epoch counts as the epoch.
    pub fn stamp_of(&self, at: Instant) -> Stamp {
        let elapsed = at.saturating_duration_since(self.epoch);
        let tenths = elapsed.as_nanos().div_ceil(u128::from(1_000_000_000 / STAMPS_PER_SECOND));
        Stamp(u32::try_from(tenths).unwrap_or(u32::MAX))
    }

    /// The instant that a stamp stands for.
    pub fn at(&self, stamp: Stamp) -> Instant {
        self.epoch + Duration::from_millis(u64::from(stamp.0) * u64::from(1000 / STAMPS_PER_SECOND))
    }
}

impl Mode {
    /// Whether responses announce the close.
    pub fn announces(self) -> bool {
        self != Mode::Serving
    }

    /// Whether the deadline is near.
    pub fn is_cancelling(self) -> bool {
        matches!(self, Mode::Cancelling | Mode::Refusing)
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("mode", &self.mode.get()).finish_non_exhaustive()
    }
}

/// Request ids: a prefix that differs between processes and workers, and a counter.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    next: Cell<u64>,
}

impl RequestIds {
    /// Ids that begin with `prefix`, in hexadecimal.
    pub fn new(prefix: u64) -> RequestIds {
        RequestIds { prefix, next: Cell::new(0) }
    }

    /// An id that this site has not given out before.
    pub fn next(&self) -> String {
        let serial = self.next.get();
        self.next.set(serial.wrapping_add(1));
        format!("{:016x}-{serial:x}", self.prefix)
    }
}
