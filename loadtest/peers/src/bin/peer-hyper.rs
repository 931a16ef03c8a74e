//! hyper on tokio, stopped as hyper's guide shows: `GracefulShutdown` of hyper-util watches the
//! connections, and what is not closed ten seconds after the signal is dropped.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use peers::{
    BYTES_MAX, BYTES_TYPE, CHUNKS_MAX, ECHO_BYTES_MAX, JSON, JSON_TYPE, MILLISECONDS_MAX,
    PLAINTEXT, READY, TEXT_TYPE,
};

/// The guide's limit.
const LIMIT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = peers::listener(std::env::args().skip(1))?;
    listener.set_nonblocking(true)?;
    peers::announce(&listener)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut http = http1::Builder::new();
    // hyper's limit of 30 s for a head wants a timer; without one it panics.
    http.timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    let mut signal = pin!(peers::stop_signal());
    loop {
        tokio::select! {
            Ok((stream, _address)) = listener.accept() => {
                let connection = http.serve_connection(TokioIo::new(stream), service_fn(answer));
                let watched = graceful.watch(connection);
                tokio::spawn(async move {
                    if let Err(error) = watched.await {
                        eprintln!("connection: {error}");
                    }
                });
            }
            () = &mut signal => {
                drop(listener);
                break;
            }
        }
    }
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(LIMIT) => eprintln!("timed out waiting for connections to close"),
    }
    Ok(())
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let answer = match (request.method(), parts.as_slice()) {
        (&Method::GET, ["plaintext"]) => Ok(typed(TEXT_TYPE, PLAINTEXT)),
        (&Method::GET, ["json"]) => Ok(typed(JSON_TYPE, JSON)),
        (&Method::GET, ["readyz"]) => Ok(ready()),
        (&Method::POST, ["echo"]) => echo(request).await,
        (&Method::POST, ["upload"]) => upload(request).await,
        (&Method::GET, ["sleep", ms]) => sleep(ms).await,
        (&Method::GET, ["bytes", n]) => bytes(n),
        (&Method::GET, ["stream", chunks, ms]) => stream(chunks, ms),
        _ => Err((StatusCode::NOT_FOUND, String::new())),
    };
    Ok(answer.unwrap_or_else(|(status, why)| {
        let mut response = typed(TEXT_TYPE, why);
        *response.status_mut() = status;
        response
    }))
}

type Answer = Result<Response<Body>, (StatusCode, String)>;

fn ready() -> Response<Body> {
    let mut response = typed(TEXT_TYPE, READY);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn echo(request: Request<Incoming>) -> Answer {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = Limited::new(request.into_body(), ECHO_BYTES_MAX).collect().await;
    let body = body.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?;
    let mut response = Response::new(Full::new(body.to_bytes()).boxed());
    let content_type = content_type.unwrap_or(HeaderValue::from_static(BYTES_TYPE));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

async fn upload(request: Request<Incoming>) -> Answer {
    let mut body = request.into_body();
    let mut count = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        count += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(typed(JSON_TYPE, peers::uploaded(count)))
}

async fn sleep(ms: &str) -> Answer {
    Ok(typed(TEXT_TYPE, peers::slept(number(ms, "ms", MILLISECONDS_MAX)?).await))
}

fn bytes(n: &str) -> Answer {
    let count = number(n, "n", BYTES_MAX)?;
    let mut response = Response::new(streamed(peers::zeros(count)));
    response.headers_mut().insert(CONTENT_LENGTH, count.into());
    Ok(response)
}

fn stream(chunks: &str, ms: &str) -> Answer {
    let count = number(chunks, "chunks", CHUNKS_MAX)?;
    let pause = number(ms, "ms", MILLISECONDS_MAX)?;
    Ok(Response::new(streamed(peers::chunks(count, pause))))
}

fn number(text: &str, name: &str, max: u64) -> Result<u64, (StatusCode, String)> {
    peers::number(text, name, max).map_err(|why| (StatusCode::BAD_REQUEST, why))
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn streamed(pieces: impl Stream<Item = Result<Bytes, Infallible>> + Send + Sync + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(pieces.map(|piece| piece.map(Frame::data))))
}
