//! Reports of panics and failed requests to Sentry, with route and request id.
//!
//! Nothing is installed by itself: the program gives [`Sentry::on_failure`] and the hook
//! [`Sentry::flush_hook`] to its server and calls [`Sentry::install_panic_hook`].
//!
//! A worker only describes what happened and goes on. Making the event (naming the frames of a
//! backtrace takes many milliseconds) and sending it is the work of one thread, which a bounded
//! queue feeds; what does not fit, or comes faster than anybody would read it, is counted and told
//! with the next event. A panic becomes one event: the panic hook keeps its backtrace on the worker
//! until the request it belongs to is known, an instant later.
//!
//! The envelopes are the `sentry` crate's; the transport is ours, because the crate's has no time
//! limits and does not say whether an event arrived.

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backtrace::Backtrace;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sentry::protocol::{Event, Exception, Mechanism, Request, Value};
use sentry::types::Dsn;
use sentry::{Client, ClientOptions, Envelope, Level, Transport};

use crate::cleanup::{Hook, HookError};
use crate::http::{Failure, FailureCause, OnFailure};
use crate::reactor::turn::clock;
use crate::said::panic_message;

/// Reports to one Sentry project. A clone reports to the same.
#[derive(Clone)]
pub struct Sentry {
    queue: Sender<Message>,
    /// Failures that did not fit.
    passed_over: Arc<AtomicU64>,
}

/// Why there can be no [`Sentry`].
#[derive(Debug)]
pub enum SentryError {
    /// What was given is no DSN. (It is not repeated: it may be a secret of another kind.)
    Dsn(String),
    /// The system refused the thread that reports.
    Thread(io::Error),
}

impl fmt::Display for SentryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SentryError::Dsn(why) => {
                write!(f, "not a DSN such as https://KEY@sentry.example/1: {why}")
            }
            SentryError::Thread(_) => f.write_str("the thread that reports could not be started"),
        }
    }
}

impl std::error::Error for SentryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SentryError::Dsn(_) => None,
            SentryError::Thread(error) => Some(error),
        }
    }
}

/// Whether this is a DSN.
///
/// # Errors
/// [`SentryError::Dsn`].
pub fn check_dsn(dsn: &str) -> Result<(), SentryError> {
    read_dsn(dsn).map(|_| ())
}

fn read_dsn(dsn: &str) -> Result<Dsn, SentryError> {
    dsn.parse().map_err(|error| SentryError::Dsn(format!("{error}")))
}

impl Sentry {
    /// Starts the thread that reports to the project of `dsn`. Nothing is sent yet: a server that
    /// does not answer shows with the first event, in the log.
    ///
    /// # Errors
    /// See [`SentryError`].
    pub fn start(dsn: &str) -> Result<Sentry, SentryError> {
        let dsn = read_dsn(dsn)?;
        let (queue, messages) = bounded(QUEUE_EVENTS);
        let passed_over = Arc::new(AtomicU64::new(0));
        let reporter = Reporter {
            client: client(&dsn),
            passed_over: Arc::clone(&passed_over),
            window: None,
            sent: 0,
        };
        thread::Builder::new()
            .name("ebbtide-sentry".to_owned())
            .spawn(move || reporter.run(&messages))
            .map_err(SentryError::Thread)?;
        Ok(Sentry { queue, passed_over })
    }

    /// For [`Options::on_failure`](crate::Options::on_failure).
    pub fn on_failure(&self) -> OnFailure {
        let sentry = self.clone();
        OnFailure::new(move |failure| sentry.report(failure))
    }

    /// Has panics reported with their backtrace, those outside of requests as well, and calls the
    /// panic hook that is there before.
    pub fn install_panic_hook(&self) {
        let sentry = self.clone();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            before(info);
            let thread = thread::current();
            let thread = thread.name().unwrap_or("unnamed").to_owned();
            let serves = thread == "main" || thread.starts_with(WORKER);
            let panic = Panic {
                message: panic_message(info.payload()).to_owned(),
                location: info.location().map(ToString::to_string),
                thread,
                backtrace: Backtrace::new_unresolved(),
            };
            if serves {
                // What was kept before belonged to no request.
                if let Some(before) = KEPT.replace(Some(panic)) {
                    sentry.offer(Message::Panic(before, None));
                }
            } else {
                sentry.offer(Message::Panic(panic, None));
            }
        }));
    }

    /// The hook of stage `last` that waits until everything has been sent. It fails when something
    /// was not by its end: two seconds, or what is left of the shutdown's budget.
    pub fn flush_hook(&self) -> Hook {
        let sentry = self.clone();
        Hook::last("flush_sentry", move |deadline| sentry.flush(deadline)).limit(FLUSH_MAX)
    }

    fn flush(&self, deadline: Instant) -> Result<(), HookError> {
        // To be heard, it has to speak before it is given up.
        let left = || deadline.saturating_duration_since(clock()).saturating_sub(FLUSH_MARGIN);
        let (answer, lost) = bounded(1);
        let asked = self.queue.send_timeout(Message::Flush(answer), left());
        match asked.ok().and_then(|()| lost.recv_timeout(left()).ok()) {
            Some(0) => Ok(()),
            Some(lost) => Err(format!("{lost} events did not reach Sentry").into()),
            None => Err("Sentry does not answer".into()),
        }
    }

    fn report(&self, failure: &Failure<'_>) {
        let request = FailedRequest {
            status: failure.status,
            method: failure.method.to_owned(),
            path: failure.path.to_owned(),
            route: failure.route.map(str::to_owned),
            id: failure.request_id.to_owned(),
        };
        self.offer(match failure.cause {
            FailureCause::Status => Message::Failed(None, request),
            FailureCause::Body(what) => Message::Failed(Some(what.to_owned()), request),
            FailureCause::Panic(said) => {
                let kept = KEPT.take().filter(|panic| panic.message == said);
                Message::Panic(kept.unwrap_or_else(|| Panic::without_hook(said)), Some(request))
            }
        });
    }

    /// Never waits: a worker calls it.
    fn offer(&self, message: Message) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(message) {
            self.passed_over.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Sentry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentry").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

thread_local! {
    /// The last panic of this worker, until the request that it belongs to is known.
    static KEPT: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

enum Message {
    /// A panic, and the request whose handler it ended, if it was one.
    Panic(Panic, Option<FailedRequest>),
    /// A response that says that the server failed, and why its body did.
    Failed(Option<String>, FailedRequest),
    /// Answer when all before this is sent: how many events of the process were not.
    Flush(Sender<u64>),
}

struct Panic {
    message: String,
    location: Option<String>,
    thread: String,
    /// Addresses only: naming them is not for a worker.
    backtrace: Backtrace,
}

impl Panic {
    /// A panic that no hook has seen.
    fn without_hook(said: &str) -> Panic {
        let thread = thread::current().name().unwrap_or("unnamed").to_owned();
        let backtrace = Backtrace::from(Vec::new());
        Panic { message: said.to_owned(), location: None, thread, backtrace }
    }
}

struct FailedRequest {
    status: u16,
    method: String,
    path: String,
    route: Option<String>,
    id: String,
}

/// The thread's state.
struct Reporter {
    client: (Client, Arc<Courier>),
    passed_over: Arc<AtomicU64>,
    /// When the second began that `sent` counts in.
    window: Option<Instant>,
    sent: u32,
}

impl Reporter {
    fn run(mut self, messages: &Receiver<Message>) {
        for message in messages {
            match message {
                Message::Flush(answer) => {
                    let lost = self.client.1.lost.load(Ordering::Relaxed);
                    // Whoever asked may have given up.
                    let _told = answer.try_send(lost);
                }
                message if self.has_room(clock()) => self.send(message),
                _ => {
                    self.passed_over.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether another event may be sent in this second.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_new = self.window.is_none_or(|begun| now >= begun + Duration::from_secs(1));
        if is_new {
            (self.window, self.sent) = (Some(now), 0);
        }
        self.sent += 1;
        self.sent <= EVENTS_PER_SECOND_MAX
    }

    fn send(&self, message: Message) {
        let mut event = match message {
            Message::Panic(panic, request) => {
                let mut event = panic_event(panic);
                if let Some(request) = request {
                    of_request(&mut event, request);
                }
                event
            }
            Message::Failed(why, request) => failed_event(why, request),
            Message::Flush(_) => return,
        };
        let passed_over = self.passed_over.swap(0, Ordering::Relaxed);
        if passed_over > 0 {
            event.extra.insert("failures_passed_over".to_owned(), Value::from(passed_over));
        }
        self.client.0.capture_event(event, None);
    }
}

fn panic_event(mut panic: Panic) -> Event<'static> {
    panic.backtrace.resolve();
    let exception = Exception {
        ty: "panic".to_owned(),
        value: Some(panic.message),
        mechanism: Some(Mechanism {
            ty: "panic".to_owned(),
            handled: Some(false),
            ..Mechanism::default()
        }),
        stacktrace: sentry::integrations::backtrace::backtrace_to_stacktrace(&panic.backtrace),
        ..Exception::default()
    };
    let mut event = Event { level: Level::Fatal, ..Event::default() };
    event.exception = vec![exception].into();
    event.tags.insert("thread".to_owned(), panic.thread);
    event.culprit = panic.location;
    event
}

fn failed_event(why: Option<String>, request: FailedRequest) -> Event<'static> {
    let place = request.route.as_deref().unwrap_or("(no route)");
    let what = format!("{} {place}: {}", request.method, request.status);
    // One issue a route and status, whatever the path.
    let parts = [request.method.clone(), place.to_owned(), request.status.to_string()];
    let mut event = Event { level: Level::Error, ..Event::default() };
    event.fingerprint = parts.into_iter().map(Cow::Owned).collect::<Vec<_>>().into();
    event.message = Some(match why {
        Some(why) => format!("{what}: {why}"),
        None => what,
    });
    of_request(&mut event, request);
    event
}

/// What the request has to do with it. The path goes without its query, which is not known here.
fn of_request(event: &mut Event<'static>, request: FailedRequest) {
    let FailedRequest { status, method, path, route, id } = request;
    event.tags.insert("request_id".to_owned(), id);
    event.tags.insert("status".to_owned(), status.to_string());
    event.transaction = route.as_ref().map(|route| format!("{method} {route}"));
    if let Some(route) = route {
        event.tags.insert("route".to_owned(), route);
    }
    event.extra.insert("path".to_owned(), Value::from(path));
    event.request = Some(Request { method: Some(method), ..Request::default() });
}

fn client(dsn: &Dsn) -> (Client, Arc<Courier>) {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(SEND_MAX))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let courier = Arc::new(Courier {
        agent,
        url: dsn.envelope_api_url().to_string(),
        auth: dsn.to_auth(Some(AGENT)).to_string(),
        lost: AtomicU64::new(0),
        failing: AtomicU64::new(0),
    });
    let mut options = ClientOptions::new()
        .dsn(&dsn.to_string())
        .release(env!("CARGO_PKG_VERSION"))
        .default_integrations(false)
        .in_app_include(vec!["ebbtide"])
        .add_integration(sentry::integrations::contexts::ContextIntegration::new())
        .add_integration(sentry::integrations::backtrace::ProcessStacktraceIntegration::new());
    options.transport = Some(Arc::new(Arc::clone(&courier)));
    (Client::with_options(options), courier)
}

/// Sends an envelope and waits for its answer.
struct Courier {
    agent: ureq::Agent,
    url: String,
    auth: String,
    /// Envelopes that did not arrive.
    lost: AtomicU64,
    /// How many of them since the last one that did: the first is logged.
    failing: AtomicU64,
}

impl Transport for Courier {
    fn send_envelope(&self, envelope: Envelope) {
        let mut body = Vec::new();
        let written = envelope.to_writer(&mut body).map_err(|error| error.to_string());
        let sent = written.and_then(|()| {
            let request = self.agent.post(&self.url).header("X-Sentry-Auth", &self.auth);
            let response = request.send(&body).map_err(|error| error.to_string())?;
            match response.status().as_u16() {
                200..=299 => Ok(()),
                status => Err(format!("it answered {status}")),
            }
        });
        let Err(why) = sent else {
            self.failing.store(0, Ordering::Relaxed);
            return;
        };
        self.lost.fetch_add(1, Ordering::Relaxed);
        if self.failing.fetch_add(1, Ordering::Relaxed) == 0 {
            log::warn!(event_type = "sentry_failed"; "an event did not reach Sentry: {why}");
        }
    }
}

/// How the threads that serve are named.
const WORKER: &str = "ebbtide-worker-";

/// As Sentry knows its clients.
const AGENT: &str = concat!("ebbtide/", env!("CARGO_PKG_VERSION"));

/// Failures that may wait for the thread.
const QUEUE_EVENTS: usize = 64;

/// Nobody reads more; each costs some tenths of a millisecond.
const EVENTS_PER_SECOND_MAX: u32 = 10;

/// How long one event may take to arrive.
const SEND_MAX: Duration = Duration::from_secs(5);

/// How long the exit waits for what was not sent yet.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// What the hook needs to say that it failed.
const FLUSH_MARGIN: Duration = Duration::from_millis(20);
