//! The middleware that counts requests: begun at the call, ended when the response's body is done.
//!
//! It wraps any [`hyper::service::Service`], for use outside this server; it counts in an
//! [`Arc<Ledger>`](Ledger). Inside, a connection's [`Flow`](super::flow::Flow) counts, which knows
//! more: a response is answered when the kernel has it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::service::Service;
use pin_project_lite::pin_project;

use crate::ledger::{Ledger, RequestOutcome};

/// Counts the requests in flight of any hyper service: `answered` at the end of the response's
/// body, `abandoned` when that is dropped before, `cut` when it or the service fails.
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
pub struct ConnectionTracking<S> {
    service: S,
    ledger: Arc<Ledger>,
}

impl<S> ConnectionTracking<S> {
    /// Wraps `service`, whose requests are counted in `ledger`.
    pub fn new(service: S, ledger: Arc<Ledger>) -> ConnectionTracking<S> {
        ConnectionTracking { service, ledger }
    }
}

impl<S, In, Out> Service<Request<In>> for ConnectionTracking<S>
where
    S: Service<Request<In>, Response = Response<Out>>,
    Out: Body,
{
    type Response = Response<TrackedBody<Out>>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<In>) -> Self::Future {
        self.ledger.begun_anywhere();
        // The guard is there before the call: a service that panics in it still ends the request.
        let guard = Guard { ledger: Some(Arc::clone(&self.ledger)) };
        let bodiless = request.method() == Method::HEAD;
        TrackedFuture { future: self.service.call(request), guard, bodiless }
    }
}

/// Ends the request when dropped, unless it has been ended.
struct Guard {
    /// `None` once the request has ended.
    ledger: Option<Arc<Ledger>>,
}

impl Guard {
    fn end(&mut self, outcome: RequestOutcome) {
        if let Some(ledger) = self.ledger.take() {
            ledger.finished_anywhere(outcome);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end(RequestOutcome::Abandoned);
    }
}

pin_project! {
    /// The future of a tracked call.
    pub struct TrackedFuture<F> {
        #[pin]
        future: F,
        guard: Guard,
        // Whether the response has no body on the wire whatever its body says (HEAD).
        bodiless: bool,
    }
}

impl<F, Out, E> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<Out>, E>>,
    Out: Body,
{
    type Output = Result<Response<TrackedBody<Out>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match ready!(this.future.poll(cx)) {
            Ok(response) => {
                let status = response.status();
                // RFC 9110, 6.4.1: no content in responses to HEAD and with 1xx, 204 and 304.
                let bodiless = *this.bodiless
                    || status.is_informational()
                    || status == StatusCode::NO_CONTENT
                    || status == StatusCode::NOT_MODIFIED;
                let guard = Guard { ledger: this.guard.ledger.take() };
                Poll::Ready(Ok(response.map(|body| TrackedBody { body, guard, bodiless })))
            }
            Err(error) => {
                this.guard.end(RequestOutcome::Cut);
                Poll::Ready(Err(error))
            }
        }
    }
}

pin_project! {
    /// The body of a tracked response.
    pub struct TrackedBody<B: Body> {
        #[pin]
        body: B,
        guard: Guard,
        bodiless: bool,
    }

    impl<B: Body> PinnedDrop for TrackedBody<B> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            // hyper drops a body that reports its end without polling it, and one that may not be
            // sent.
            if *this.bodiless || this.body.is_end_stream() {
                this.guard.end(RequestOutcome::Answered);
            }
        }
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => this.guard.end(RequestOutcome::Cut),
            None => this.guard.end(RequestOutcome::Answered),
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
