//! Routes for studying shutdown: slow ones, large ones, broken ones. Bounded, and switchable off
//! with `lab_routes`: a public server has no use for them.

#![allow(clippy::needless_pass_by_value, reason = "a handler is given its request")]

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::router::{Router, get, post};
use crate::http::body::{Body, BodyError};
use crate::http::message::{IntoResponse, Request, Response};
use crate::reactor::sleep::sleep;

/// Whether the lab is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lab {
    /// The routes do not exist.
    Off,
    /// The routes are there, for whoever can reach the server.
    On {
        /// The limit of `/upload`, in bytes.
        upload_bytes_max: u64,
    },
}

/// Adds the lab's routes.
pub fn add(router: Router, upload_bytes_max: u64) -> Router {
    router
        .route("/upload", post(upload).put(upload).body_bytes_max(upload_bytes_max))
        .route("/sleep/{ms}", get(sleep_for))
        .route("/bytes/{n}", get(bytes))
        .route("/stream/{chunks}/{ms}", get(stream))
        .route("/panic", get(panic))
        .route("/block/{ms}", get(block))
}

/// Reads a body as it comes and answers how many bytes it had.
async fn upload(mut request: Request) -> Result<Response, BodyError> {
    let mut count: u64 = 0;
    while let Some(chunk) = request.body_mut().chunk().await {
        count += chunk?.len() as u64;
    }
    Ok(Response::json(&serde_json::json!({ "bytes": count })))
}

/// Answers after a while, without holding its worker.
async fn sleep_for(request: Request) -> Result<Response, Refusal> {
    let ms = number(&request, "ms", MILLISECONDS_MAX)?;
    sleep(Duration::from_millis(ms)).await;
    Ok(Response::text(format!("slept {ms} ms\n")))
}

/// Answers so many bytes, with a length.
fn bytes(request: Request) -> Result<Response, Refusal> {
    let left = number(&request, "n", BYTES_MAX)?;
    Ok(Body::new(Zeros { left }).into_response())
}

/// Streams so many chunks, with a pause before each but the first.
fn stream(request: Request) -> Result<Response, Refusal> {
    let chunks = number(&request, "chunks", CHUNKS_MAX)?;
    let pause = Duration::from_millis(number(&request, "ms", MILLISECONDS_MAX)?);
    let body = Body::unfold(0, move |n| async move {
        if n == chunks {
            return None;
        }
        if n > 0 {
            sleep(pause).await;
        }
        Some((Bytes::from(format!("chunk {n}\n")), n + 1))
    });
    Ok(body.into_response())
}

fn panic(_: Request) -> Response {
    panic!("asked for by the client");
}

/// Holds its worker's thread: what no handler should do, for seeing what it does.
#[allow(clippy::disallowed_methods, reason = "blocking the thread is the purpose")]
fn block(request: Request) -> Result<Response, Refusal> {
    let ms = number(&request, "ms", MILLISECONDS_MAX)?;
    std::thread::sleep(Duration::from_millis(ms));
    Ok(Response::text(format!("blocked {ms} ms\n")))
}

/// A status and what was expected.
type Refusal = (StatusCode, String);

/// A number in the path, or the 400 that says what was expected.
fn number(request: &Request, name: &str, max: u64) -> Result<u64, Refusal> {
    request
        .param(name)
        .and_then(|text| text.parse().ok())
        .filter(|number| *number <= max)
        .ok_or_else(|| {
            (StatusCode::BAD_REQUEST, format!("{name} must be a whole number from 0 to {max}\n"))
        })
}

/// Zero bytes, from one static piece.
struct Zeros {
    left: u64,
}

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl HttpBody for Zeros {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Zeros>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left == 0 {
            return std::task::Poll::Ready(None);
        }
        let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(ZEROS.len());
        self.left -= size as u64;
        std::task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..size])))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Longest pause: ten minutes.
pub const MILLISECONDS_MAX: u64 = 600_000;

/// Largest response: 1 GiB.
const BYTES_MAX: u64 = 1 << 30;

/// Most chunks of a stream.
const CHUNKS_MAX: u64 = 1_000_000;
