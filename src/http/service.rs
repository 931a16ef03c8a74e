//! From hyper's call to the application's, and back.
//!
//! Outermost is the gate: what RFC 9112 forbids and hyper lets pass is answered there and never
//! becomes a request. What passes is counted, and the application is called with its panics caught
//! and the server's verdicts applied. On the way back the response learns whether the connection
//! closes after it. That is one future, and one body, instead of a middleware around another: each
//! would move the response once more. For services of others there is
//! [`ConnectionTracking`](super::tracking::ConnectionTracking).

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::Ipv6Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use http::header::{CONNECTION, HOST, HeaderName, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::service::Service;

use super::body::OutBody;
use super::failure::{FailureCause, tell_failure};
use super::flow::{Flow, Splice};
use super::frame::{BodyOwner, Frame};
use super::message::{IntoResponse, Request, Response};
use super::short::{Closes, Short};
use super::site::{Mode, Site};
use super::verdict::Verdict;
use crate::awaited;
use crate::ledger::RejectedCode;
use crate::said::panic_message;

/// What answers requests. Lives on one worker; neither it nor its futures need be `Send`.
pub trait App {
    /// Answers a request. May panic: the caller catches it.
    fn call(&self, request: Request) -> Answer;
}

/// An application's answer.
pub enum Answer {
    /// At once: costs no allocation.
    Ready(Response),
    /// When the future is ready: the connection polls it.
    Later(Pin<Box<dyn Future<Output = Response>>>),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::Ready(_) => "Ready",
            Answer::Later(_) => "Later",
        })
    }
}

/// The service that hyper calls.
pub(super) struct Gate {
    flow: Rc<Flow>,
}

impl Gate {
    pub fn new(flow: Rc<Flow>) -> Gate {
        Gate { flow }
    }

    /// Whether the head's request may be served. What hyper is to be given from now on follows
    /// from it in any case.
    fn admit(&self, request: &http::Request<Incoming>) -> bool {
        let flow = &*self.flow;
        let size = request.body().size_hint().exact();
        match size {
            // Once hyper may hold bytes of what comes next, there is no telling heads from bodies.
            _ if flow.frame.get() == Frame::Anything => {}
            Some(0) => flow.frame.set(Frame::Head),
            Some(length) => flow.frame.set(Frame::Body(length)),
            None => flow.frame.set(Frame::Chunked),
        }
        let version = request.version();
        flow.is_close_delimited.set(version < Version::HTTP_11);
        flow.chunked.set(size.is_none());
        // Until a handler gets it.
        let is_over = request.body().is_end_stream();
        flow.body.set(if is_over { BodyOwner::Nobody } else { BodyOwner::Dropped });
        let claims = Claims::of(request.headers());
        // Of the old version hyper takes care.
        flow.persists.set(version == Version::HTTP_11 && !claims.closes);
        flow.asks_to_close.set(if claims.closes { Closes::Yes } else { Closes::No });
        flow.brings_id.set(claims.has_id);
        match claims.inspect(flow.site(), version, size.is_some()) {
            Ok(()) => true,
            Err(fault) => {
                flow.site().ledger.rejected(fault);
                flow.gate_rejected.set(true);
                flow.close_announced.set(true);
                false
            }
        }
    }

    /// Calls the application with a request that is counted from here on.
    fn serve(&self, request: http::Request<Incoming>) -> CallFuture {
        let flow = &self.flow;
        let site = flow.site();
        let id = if flow.brings_id.get() { request.headers().get(X_REQUEST_ID) } else { None };
        let id = id.and_then(|id| well_formed_id(id.as_bytes()));
        flow.begin(request.method(), request.uri().path(), id);
        if *request.method() == Method::CONNECT {
            // hyper would treat a 2xx as the start of a tunnel.
            let response = StatusCode::METHOD_NOT_ALLOWED.into_response();
            return self.future(Stage::Answered(response));
        }
        answer(flow, Request::new(request, flow, site.limits.body_bytes_max))
    }

    fn future(&self, stage: Stage) -> CallFuture {
        CallFuture::new(&self.flow, stage)
    }
}

impl Service<http::Request<Incoming>> for Gate {
    type Response = http::Response<OutBody>;
    type Error = Infallible;
    type Future = CallFuture;

    fn call(&self, request: http::Request<Incoming>) -> CallFuture {
        if let Some(response) = self.flow.prepared.take() {
            self.flow.frame.set(Frame::Head);
            return self.future(Stage::Complete(response));
        }
        if self.admit(&request) { self.serve(request) } else { self.future(Stage::Rejected) }
    }
}

/// A request that came the short way is admitted and counted.
pub(super) fn begin_short(flow: &Rc<Flow>, request: &Short<'_>) -> Request {
    flow.is_close_delimited.set(false);
    flow.chunked.set(false);
    flow.body.set(BodyOwner::Nobody);
    flow.persists.set(request.closes == Closes::No);
    flow.asks_to_close.set(request.closes);
    flow.begin(&request.method, request.path(), request.id);
    Request::short(request, flow)
}

/// Calls the application, unless there is a verdict already.
pub(super) fn answer(flow: &Rc<Flow>, request: Request) -> CallFuture {
    let site = flow.site();
    if site.ledger.in_flight() > site.limits.in_flight_max {
        flow.judge(Verdict::Overloaded);
    }
    if flow.verdict().is_some() {
        return CallFuture::new(flow, Stage::Judged);
    }
    let response = match catch_unwind(AssertUnwindSafe(|| site.app.call(request))) {
        // The call goes on with the first poll.
        Ok(Answer::Later(future)) => {
            return CallFuture::new(flow, Stage::Handling { future, polled: false });
        }
        Ok(Answer::Ready(response)) => response,
        Err(panic) => panicked(flow, panic),
    };
    site.watch.returned();
    CallFuture::new(flow, Stage::Answered(response))
}

/// What a head says to the server itself. One pass over its fields: a look-up of each costs more
/// for all but the longest heads.
#[derive(Default)]
struct Claims<'a> {
    host: Option<&'a HeaderValue>,
    hosts: usize,
    coding: Option<&'a HeaderValue>,
    codings: usize,
    /// Whether the client asks for the connection to be closed.
    closes: bool,
    /// Whether it brings an id.
    has_id: bool,
}

impl Claims<'_> {
    fn of(headers: &HeaderMap) -> Claims<'_> {
        let mut claims = Claims::default();
        for (name, value) in headers {
            if *name == HOST {
                claims.host = Some(value);
                claims.hosts += 1;
            } else if *name == TRANSFER_ENCODING {
                claims.coding = Some(value);
                claims.codings += 1;
            } else if *name == CONNECTION {
                claims.closes |= asks_to_close(value);
            } else if *name == X_REQUEST_ID {
                claims.has_id = true;
            }
        }
        claims
    }

    /// The rules of RFC 9112 that hyper leaves to its user. `is_sized`: hyper knows the size of
    /// the body.
    fn inspect(&self, site: &Site, version: Version, is_sized: bool) -> Result<(), RejectedCode> {
        // 3.2: 400 for a request of HTTP/1.1 without Host, and for any with two or an invalid one.
        match self.host {
            Some(host) if self.hosts == 1 && is_known_host(site, host.as_bytes()) => {}
            None if version < Version::HTTP_11 => {}
            _ => return Err(RejectedCode::BadRequest),
        }
        // 6.1: a coding we do not understand leaves the body's end unknown; hyper takes any list
        // that ends in chunked. A body whose size it knows has none.
        match self.coding {
            _ if is_sized => Ok(()),
            None => Ok(()),
            Some(coding)
                if self.codings == 1 && coding.as_bytes().eq_ignore_ascii_case(b"chunked") =>
            {
                Ok(())
            }
            Some(_) => Err(RejectedCode::BadRequest),
        }
    }
}

/// As [`is_host`]; most requests name the host that the one before them named.
pub(super) fn is_known_host(site: &Site, host: &[u8]) -> bool {
    let mut known = site.last_host.borrow_mut();
    if *known == host {
        return true;
    }
    let is_host = is_host(host);
    if is_host {
        known.clear();
        known.extend_from_slice(host);
    }
    is_host
}

/// Whether `host` is `uri-host [ ":" port ]` (RFC 9110, 7.2; RFC 3986, 3.2.2). An empty one is
/// allowed: a client sends it for targets without an authority.
fn is_host(host: &[u8]) -> bool {
    let (is_name, rest) = if let Some(rest) = host.strip_prefix(b"[") {
        let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
        let literal = str::from_utf8(&rest[..end]).unwrap_or_default();
        (literal.parse::<Ipv6Addr>().is_ok(), &rest[end + 1..])
    } else {
        let end = host.iter().position(|byte| *byte == b':').unwrap_or(host.len());
        (is_reg_name(&host[..end]), &host[end..])
    };
    is_name && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
}

/// Digits, of a number that is a port; none are allowed (RFC 3986, 3.2.3).
fn is_port(digits: &[u8]) -> bool {
    let mut port: u32 = 0;
    digits.iter().all(|byte| {
        port = port * 10 + u32::from(byte.wrapping_sub(b'0'));
        byte.is_ascii_digit() && u16::try_from(port).is_ok()
    })
}

/// A registered name or an IPv4 address: a percent sign is followed by two digits.
fn is_reg_name(name: &[u8]) -> bool {
    let mut rest = name;
    while let [byte, after @ ..] = rest {
        rest = match (byte, after) {
            _ if NAME_BYTES[usize::from(*byte)] => after,
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                after
            }
            _ => return false,
        };
    }
    true
}

/// Unreserved or sub-delims, by byte: a request's `Host` is looked at byte by byte.
static NAME_BYTES: [bool; 256] = {
    let mut bytes = [false; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        bytes[byte as usize] = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'-' | b'.'
                    | b'_'
                    | b'~'
                    | b'!'
                    | b'$'
                    | b'&'
                    | b'\''
                    | b'('
                    | b')'
                    | b'*'
                    | b'+'
                    | b','
                    | b';'
                    | b'='
            );
        byte += 1;
    }
    bytes
};

/// An answer on its way. Not boxed: it lives in the space that hyper keeps per connection.
pub(super) struct CallFuture {
    flow: Rc<Flow>,
    stage: Stage,
}

enum Stage {
    /// The gate turned the head down: no request was begun.
    Rejected,
    /// There was a verdict before the handler could be called.
    Judged,
    /// The handler works on the answer. `polled`: whether its future was polled.
    Handling {
        future: Pin<Box<dyn Future<Output = Response>>>,
        polled: bool,
    },
    Answered(Response),
    /// Answered, and the server has added its part.
    Complete(Response),
    /// The response has been handed out.
    Over,
}

impl CallFuture {
    fn new(flow: &Rc<Flow>, stage: Stage) -> CallFuture {
        CallFuture { flow: Rc::clone(flow), stage }
    }

    /// Whether the answer is there, so that nobody will be woken for it.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Answered(_))
    }

    /// The whole answer, once it is there.
    pub(super) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let mut response = ready!(self.poll_answer(cx));
        self.complete(&mut response);
        Poll::Ready(response)
    }

    /// Goes on with the handler; when this is ready, the stage is `Answered`.
    fn poll_handler(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Handling { future, polled } = &mut self.stage else {
            // Answered on the spot, unless there is a verdict.
            return if self.is_answered() { Poll::Ready(()) } else { Poll::Pending };
        };
        let result = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        if !std::mem::replace(polled, true) {
            // From now on a request that waits is listed as waiting.
            self.flow.site().watch.returned();
        }
        // Taken in any case: what one handler leaves is not for the next.
        let awaited = awaited::take();
        if matches!(result, Ok(Poll::Pending)) {
            self.flow.awaited.set(awaited);
        }
        let response = match result {
            Ok(poll) => ready!(poll),
            Err(panic) => panicked(&self.flow, panic),
        };
        self.enter(Stage::Answered(response));
        Poll::Ready(())
    }

    /// The application's part of the stage that is left may panic when it is dropped.
    fn enter(&mut self, stage: Stage) {
        match std::mem::replace(&mut self.stage, stage) {
            Stage::Handling { future, .. } => drop_quietly(&self.flow, future),
            Stage::Answered(response) | Stage::Complete(response) => {
                drop_quietly(&self.flow, response);
            }
            Stage::Rejected | Stage::Judged | Stage::Over => {}
        }
    }

    /// The answer to a request, once its handler or a verdict has given it.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        let handled = match self.flow.verdict() {
            None => self.poll_handler(cx),
            Some(_) => Poll::Pending,
        };
        if handled.is_pending() && self.flow.site().mode.get() == Mode::Refusing {
            // One that was in hand behind a refused one is answered at once or refused as well.
            self.flow.judge(Verdict::ShuttingDown);
        }
        match self.flow.verdict() {
            // Also when the handler has just answered: a body over its limit is 413 whatever it
            // says.
            Some(verdict) => self.enter(Stage::Answered(verdict.response())),
            None => ready!(handled),
        }
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Answered(response) => Poll::Ready(response),
            _ => unreachable!("it was answered just now"),
        }
    }

    /// Adds what the server itself has to say in a response.
    fn complete(&self, response: &mut Response) {
        let flow = &*self.flow;
        let mode = flow.site().mode.get();
        let wants_close = mode.announces() || flow.verdict().is_some() || flow.has_panicked.get();
        // Requests that may be in hand are answered first, whatever the reason for the close.
        if flow.has_unwanted_body() || (wants_close && !flow.has_surplus()) {
            announce_close(response.other_headers_mut());
            flow.close_announced.set(true);
        }
        if response.status().is_server_error() && !flow.has_panicked.get() {
            tell_failure(flow, response.status(), FailureCause::Status);
        }
        // A handler may have a say of its own in how the connection goes on.
        let advertises = flow.persists.get()
            && mode == Mode::Serving
            && !response.other_headers_mut().keys().any(|name| *name == CONNECTION);
        if !response.body().is_whole() {
            // Its stream may block the worker: it has to be known by then.
            flow.waits(flow.waits_for());
        }
        if let Some(id) = flow.responded(response.status())
            && let Ok(id) = HeaderValue::from_str(&id)
        {
            response.other_headers_mut().insert(X_REQUEST_ID, id);
        }
        flow.splice.set(Splice { advertises, media: response.media() });
    }
}

impl Future for CallFuture {
    type Output = Result<http::Response<OutBody>, Infallible>;

    fn poll(mut self: Pin<&mut CallFuture>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match &self.stage {
            Stage::Rejected => {
                let mut response = Response::default().with_status(StatusCode::BAD_REQUEST);
                announce_close(response.other_headers_mut());
                response
            }
            Stage::Complete(_) => match std::mem::replace(&mut self.stage, Stage::Over) {
                Stage::Complete(response) => response,
                _ => unreachable!("it was complete just now"),
            },
            _ => ready!(self.poll_response(cx)),
        };
        Poll::Ready(Ok(response.into_http(Rc::clone(&self.flow))))
    }
}

impl Drop for CallFuture {
    fn drop(&mut self) {
        match self.stage {
            Stage::Rejected | Stage::Over => {}
            // hyper was taken down while the handler worked.
            Stage::Judged | Stage::Handling { .. } | Stage::Answered(_) | Stage::Complete(_) => {
                self.enter(Stage::Over);
                self.flow.over();
            }
        }
    }
}

/// Drops what is the application's: its destructors may panic, too, and so may those of what they
/// panic with.
pub(super) fn drop_quietly<T>(flow: &Flow, value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        log_panic(flow, &*panic);
        #[allow(clippy::mem_forget, reason = "rather lost than dropped: see above")]
        std::mem::forget(panic);
    }
}

/// The response in the place of a handler that panicked.
fn panicked(flow: &Flow, panic: Box<dyn Any + Send>) -> Response {
    log_panic(flow, &*panic);
    drop_quietly(flow, panic);
    flow.has_panicked.set(true);
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

pub(super) fn log_panic(flow: &Flow, panic: &(dyn Any + Send)) {
    let what = panic_message(panic);
    tell_failure(flow, StatusCode::INTERNAL_SERVER_ERROR, FailureCause::Panic(what));
    let (method, path) = flow.target();
    log::error!(
        event_type = "handler_panicked",
        method = method.as_str(),
        path = path.as_str(),
        request_id = flow.known_id().as_deref().unwrap_or("");
        "a handler panicked: {what}"
    );
}

/// Whether a value of `Connection` holds the option `close`.
fn asks_to_close(value: &HeaderValue) -> bool {
    let mut options = value.as_bytes().split(|byte| *byte == b',');
    options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

fn announce_close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// The client's request id, when it is one.
pub(super) fn well_formed_id(id: &[u8]) -> Option<&str> {
    let is_well_formed = (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
    if is_well_formed { str::from_utf8(id).ok() } else { None }
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer inbound ids are replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_nonsense() {
        for host in
            ["", "x", "a.b:80", "127.0.0.1:8080", "[::1]", "[::1]:80", "a_b-c~d", "a%20b", "x:"]
        {
            assert!(is_host(host.as_bytes()), "{host:?} is a host");
        }
        for host in [
            "a b", "a/b", "a@b", "[::1", "[]", "[::1]x", "[zz]", "a%zz", "a%2", "a:99999", "a:+1",
            "a:b", "a:1:2", "a,b\t", "x:123456", "é",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?} is no host");
        }
    }
}
