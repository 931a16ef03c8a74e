//! What the server could not do for a client, for whoever wants to be told: an error tracker.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use http::StatusCode;

use super::flow::Flow;

/// A request that was answered with a status of 500 or above, whose handler panicked or whose
/// response ended before its end.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// The status of the response; 500 for a panic or a failed body.
    pub status: u16,
    /// The request's method.
    pub method: &'a str,
    /// The request's path, as sent, without its query.
    pub path: &'a str,
    /// The route's template; `None` when no route was found, or the server answered before.
    pub route: Option<&'a str>,
    /// The request's id, which the response carries as `X-Request-Id` if its head was not sent yet.
    pub request_id: &'a str,
    /// How it failed.
    pub cause: FailureCause<'a>,
}

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause<'a> {
    /// Its response says so: the handler's, or the server's in its place.
    Status,
    /// The handler panicked and said this.
    Panic(&'a str),
    /// The response's body failed, its head being sent, with this error.
    Body(&'a str),
}

/// Is told of failures. A clone tells the same one.
#[derive(Clone)]
pub struct OnFailure(Arc<dyn Fn(&Failure<'_>) + Send + Sync>);

impl OnFailure {
    /// Has `told` called for each failure, on the worker's thread, which serves nobody meanwhile:
    /// hand it on to a thread. A panic's failure is told where the panic was caught. A panic of
    /// `told` itself is passed over.
    pub fn new(told: impl Fn(&Failure<'_>) + Send + Sync + 'static) -> OnFailure {
        OnFailure(Arc::new(told))
    }

    fn tell(&self, failure: &Failure<'_>) {
        // The panic hook has had it; the request must not suffer from it.
        let _told = catch_unwind(AssertUnwindSafe(|| (self.0)(failure)));
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}

/// Tells whoever wants to know that the request at hand failed.
pub(super) fn tell_failure(flow: &Flow, status: StatusCode, cause: FailureCause<'_>) {
    let Some(on_failure) = &flow.site().on_failure else { return };
    let request_id = flow.request_id();
    let (method, path) = flow.target();
    let route = flow.route();
    on_failure.tell(&Failure {
        status: status.as_u16(),
        method: &method,
        path: &path,
        route: route.as_ref().map(|route| route.template.as_str()),
        request_id: &request_id,
        cause,
    });
}
