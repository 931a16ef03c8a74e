//! HTTP: the only place that names hyper.
//!
//! Reading order: [`connection`] (one connection's life), [`head`] and `chunked` (pure: where a
//! request head and a chunked body end), [`buffers`] and [`wire`] (what was read and written
//! ahead, and the socket as hyper's `Read` and `Write`), [`flow`] (what
//! happens to the request at hand), `ways` and `short` (past hyper, or through it), [`service`]
//! (from hyper's call to the application's),
//! [`tracking`] (who counts), `parting` and [`linger`] (closing without losing the response),
//! [`message`] and [`body`] (what handlers see), [`site`] (what all connections of a worker share),
//! [`watch`] (what other threads may know), [`hold`] (what a connection waits for, in words).
//!
//! Four rules hold throughout:
//! 1. hyper is given complete heads only, and nothing behind the request it is working on. So the
//!    bytes of a next request are always in our hands, and announcing a close loses none of them.
//!    (Should hyper and we ever disagree on where something ends, the connection closes after it.)
//! 2. hyper's `graceful_shutdown`, timers and `pipeline_flush` are not used: each loses requests or
//!    responses on HTTP/1, or does not do what its name says without a runtime.
//! 3. Bytes that hyper "wrote" are in our buffer; a response is answered when the kernel has them.
//! 4. Nobody can tell whether a request went past hyper: not its client, not its handler, not the
//!    books. What is not as plain as can be is hyper's, and so is all in a shutdown.

pub mod body;
pub mod buffers;
mod chunked;
pub mod connection;
mod date;
mod exchange;
mod failure;
pub mod flow;
mod frame;
pub mod head;
pub mod hold;
mod hot;
pub mod limits;
pub mod linger;
pub mod message;
mod parting;
pub mod reject;
mod request_head;
pub mod service;
mod short;
pub mod site;
mod spare;
pub mod tracking;
mod verdict;
pub mod watch;
mod ways;
pub mod wire;

pub use body::{Body, BodyError, RequestBody};
pub use failure::{Failure, FailureCause, OnFailure};
pub use limits::Limits;
pub use message::{IntoResponse, Request, Response};
pub use site::HalfClose;
pub use tracking::ConnectionTracking;
