//! What may handle a request: a plain function or an `async` one, of a [`Request`].
//!
//! The handler itself is shared by all workers, so it is `Send + Sync`; its future stays on the
//! worker that called it and need not be.

use std::future::Future;
use std::sync::Arc;

use crate::http::message::{IntoResponse, Request};
use crate::http::service::Answer;

/// A request handler. `Kind` only tells the two ways of writing one apart and is inferred.
pub trait Handler<Kind>: Send + Sync + 'static {
    /// Answers the request, at once or later.
    fn handle(&self, request: Request) -> Answer;
}

/// Marks handlers that answer at once.
#[derive(Debug)]
pub struct Plain;

/// Marks handlers that answer later.
#[derive(Debug)]
pub struct Async;

impl<F, R> Handler<Plain> for F
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: IntoResponse,
{
    fn handle(&self, request: Request) -> Answer {
        Answer::Ready(self(request).into_response())
    }
}

impl<F, R> Handler<Async> for F
where
    F: Fn(Request) -> R + Send + Sync + 'static,
    R: Future + 'static,
    R::Output: IntoResponse,
{
    fn handle(&self, request: Request) -> Answer {
        let future = self(request);
        Answer::Later(Box::pin(async move { future.await.into_response() }))
    }
}

/// A handler without its type.
pub(super) type AnyHandler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

pub(super) fn erase<K>(handler: impl Handler<K>) -> AnyHandler {
    Arc::new(move |request| handler.handle(request))
}
