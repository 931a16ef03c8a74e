//! axum, stopped as the documentation of `axum::serve` shows: `with_graceful_shutdown`.
//!
//! It waits for open connections without a limit, as there is none in what is shown.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use peers::{
    BYTES_MAX, BYTES_TYPE, CHUNKS_MAX, ECHO_BYTES_MAX, JSON, JSON_TYPE, MILLISECONDS_MAX,
    PLAINTEXT, READY,
};

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = peers::listener(std::env::args().skip(1))?;
    listener.set_nonblocking(true)?;
    peers::announce(&listener)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    axum::serve(listener, router()).with_graceful_shutdown(peers::stop_signal()).await
}

fn router() -> Router {
    Router::new()
        .route("/plaintext", get(PLAINTEXT))
        .route("/json", get(([(CONTENT_TYPE, JSON_TYPE)], JSON)))
        .route("/readyz", get(([(CACHE_CONTROL, "no-store")], READY)))
        .route("/echo", post(echo).layer(DefaultBodyLimit::max(ECHO_BYTES_MAX)))
        .route("/upload", post(upload))
        .route("/sleep/{ms}", get(sleep))
        .route("/bytes/{n}", get(bytes))
        .route("/stream/{chunks}/{ms}", get(stream))
}

async fn echo(headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let content_type = headers.get(CONTENT_TYPE).cloned();
    ([(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static(BYTES_TYPE)))], body)
}

async fn upload(body: Body) -> Result<impl IntoResponse, Refusal> {
    let mut body = body.into_data_stream();
    let mut count = 0;
    while let Some(chunk) = body.next().await {
        count += chunk.map_err(|error| refuse(error.to_string()))?.len() as u64;
    }
    Ok(([(CONTENT_TYPE, JSON_TYPE)], peers::uploaded(count)))
}

async fn sleep(Path(ms): Path<String>) -> Result<String, Refusal> {
    Ok(peers::slept(number(&ms, "ms", MILLISECONDS_MAX)?).await)
}

async fn bytes(Path(n): Path<String>) -> Result<Response, Refusal> {
    let count = number(&n, "n", BYTES_MAX)?;
    Ok(([(CONTENT_LENGTH, count)], Body::from_stream(peers::zeros(count))).into_response())
}

async fn stream(Path((chunks, ms)): Path<(String, String)>) -> Result<Response, Refusal> {
    let count = number(&chunks, "chunks", CHUNKS_MAX)?;
    let pause = number(&ms, "ms", MILLISECONDS_MAX)?;
    Ok(Body::from_stream(peers::chunks(count, pause)).into_response())
}

type Refusal = (StatusCode, String);

fn number(text: &str, name: &str, max: u64) -> Result<u64, Refusal> {
    peers::number(text, name, max).map_err(refuse)
}

fn refuse(why: String) -> Refusal {
    (StatusCode::BAD_REQUEST, why)
}
