//! The middleware that counts requests: begun at the call, ended when the response's body is done.
//!
//! It wraps any [`hyper::service::Service`]. With an [`Arc<Ledger>`](Ledger) as its tracker it
//! counts by itself, for use outside this server; inside, the tracker is the connection's
//! [`Flow`](super::flow::Flow), which knows more: a response is answered when the kernel has it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::service::Service;
use pin_project_lite::pin_project;

use crate::ledger::{Ledger, RequestOutcome};

/// Who is told of the requests of one connection (or of several).
pub trait Tracker: Clone {
    /// A request came to the service.
    fn begun(&self);
    /// The response's head is decided.
    fn responded(&self, status: StatusCode);
    /// Bytes of the response's body were handed out.
    fn sent(&self, bytes: u64);
    /// The request is over. Called once for each `begun`.
    fn ended(&self, end: End);
}

/// How a request's handling ended, as seen by the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The whole body was handed out.
    Complete,
    /// The response or its body was dropped before that.
    Dropped,
    /// The service or its body failed.
    Failed,
}

/// Counts `answered` at the end of the body and `abandoned` when it is dropped before; a failed
/// body is `cut`.
impl Tracker for Arc<Ledger> {
    fn begun(&self) {
        self.begun_anywhere();
    }

    fn responded(&self, _status: StatusCode) {}

    fn sent(&self, _bytes: u64) {}

    fn ended(&self, end: End) {
        self.finished_anywhere(match end {
            End::Complete => RequestOutcome::Answered,
            End::Dropped => RequestOutcome::Abandoned,
            End::Failed => RequestOutcome::Cut,
        });
    }
}

/// Counts the requests in flight of any hyper service.
///
/// ```
/// use std::sync::Arc;
/// use ebbtide::{ConnectionTracking, Ledger};
///
/// # fn wrap<S>(service: S) {
/// let ledger = Arc::new(Ledger::default());
/// let tracked = ConnectionTracking::new(service, Arc::clone(&ledger));
/// // Give `tracked` to hyper; ask `ledger.in_flight()` from any thread.
/// # let _ = tracked;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ConnectionTracking<S, T = Arc<Ledger>> {
    service: S,
    tracker: T,
}

impl<S, T> ConnectionTracking<S, T> {
    /// Wraps `service`.
    pub fn new(service: S, tracker: T) -> ConnectionTracking<S, T> {
        ConnectionTracking { service, tracker }
    }
}

impl<S, T, In, Out> Service<Request<In>> for ConnectionTracking<S, T>
where
    S: Service<Request<In>, Response = Response<Out>>,
    T: Tracker,
    Out: Body,
{
    type Response = Response<TrackedBody<Out, T>>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future, T>;

    fn call(&self, request: Request<In>) -> Self::Future {
        self.tracker.begun();
        // The guard is there before the call: a service that panics in it still ends the request.
        let guard = Guard { tracker: Some(self.tracker.clone()) };
        let bodiless = request.method() == Method::HEAD;
        TrackedFuture { future: self.service.call(request), guard, bodiless }
    }
}

/// Ends the request when dropped, unless it has been ended.
struct Guard<T: Tracker> {
    /// `None` once the request has ended, or for a response that is not tracked.
    tracker: Option<T>,
}

impl<T: Tracker> Guard<T> {
    fn end(&mut self, end: End) {
        if let Some(tracker) = self.tracker.take() {
            tracker.ended(end);
        }
    }
}

impl<T: Tracker> Drop for Guard<T> {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}

pin_project! {
    /// The future of a tracked call.
    pub struct TrackedFuture<F, T: Tracker> {
        #[pin]
        future: F,
        guard: Guard<T>,
        // Whether the response has no body on the wire whatever its body says (HEAD).
        bodiless: bool,
    }
}

impl<F, T, Out, E> Future for TrackedFuture<F, T>
where
    F: Future<Output = Result<Response<Out>, E>>,
    T: Tracker,
    Out: Body,
{
    type Output = Result<Response<TrackedBody<Out, T>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match ready!(this.future.poll(cx)) {
            Ok(response) => {
                let status = response.status();
                if let Some(tracker) = &this.guard.tracker {
                    tracker.responded(status);
                }
                // RFC 9110, 6.4.1: no content in responses to HEAD and with 1xx, 204 and 304.
                let bodiless = *this.bodiless
                    || status.is_informational()
                    || status == StatusCode::NO_CONTENT
                    || status == StatusCode::NOT_MODIFIED;
                let guard = Guard { tracker: this.guard.tracker.take() };
                Poll::Ready(Ok(response.map(|body| TrackedBody { body, guard, bodiless })))
            }
            Err(error) => {
                this.guard.end(End::Failed);
                Poll::Ready(Err(error))
            }
        }
    }
}

pin_project! {
    /// The body of a tracked response.
    pub struct TrackedBody<B: Body, T: Tracker> {
        #[pin]
        body: B,
        guard: Guard<T>,
        bodiless: bool,
    }

    impl<B: Body, T: Tracker> PinnedDrop for TrackedBody<B, T> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // hyper drops a body that reports its end without polling it, and one that may not be
            // sent.
            if *this.bodiless || this.body.is_end_stream() {
                this.guard.end(End::Complete);
            }
        }
    }
}

impl<B: Body, T: Tracker> TrackedBody<B, T> {
    /// A body that belongs to no counted request.
    pub fn untracked(body: B) -> TrackedBody<B, T> {
        TrackedBody { body, guard: Guard { tracker: None }, bodiless: false }
    }
}

impl<B: Body, T: Tracker> Body for TrackedBody<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(tracker)) = (frame.data_ref(), &this.guard.tracker) {
                    tracker.sent(bytes::Buf::remaining(data) as u64);
                }
            }
            Some(Err(_)) => this.guard.end(End::Failed),
            None => this.guard.end(End::Complete),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
