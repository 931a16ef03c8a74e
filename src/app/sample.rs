//! What `ebbtide serve` serves.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
use super::items;
use super::lab;
use super::router::{Router, get, post};
use crate::http::body::{Body, BodyError};
use crate::http::message::{IntoResponse, JSON, Request, Response, TEXT};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::pool::Database;

/// The routes of `ebbtide serve`, but for those that want a database.
pub fn router(lab: lab::Lab) -> Router {
    let router = Router::new()
        .route("/", get(about))
        .route("/plaintext", get(plaintext))
        .route("/json", get(json))
        .route("/echo", post(echo));
    match lab {
        lab::Lab::Off => router,
        lab::Lab::On { upload_bytes_max } => lab::add(router, upload_bytes_max),
    }
}

/// All routes of `ebbtide serve`. Without a database, those that want one answer 503.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub fn with_database(lab: lab::Lab, database: Option<Database>) -> Router {
    let router = items::add(router(lab), database);
    match lab {
        lab::Lab::Off => router,
        lab::Lab::On { .. } => items::add_lab(router),
    }
}

fn about(_: Request) -> Response {
    Response::json(&serde_json::json!({
        "name": "ebbtide",
        "version": env!("CARGO_PKG_VERSION"),
        "what": "an HTTP server whose stopping is as exact as its serving",
    }))
}

fn plaintext(_: Request) -> Response {
    Response::typed(TEXT, Bytes::from_static(b"Hello, World!"))
}

fn json(_: Request) -> Response {
    Response::typed(JSON, Bytes::from_static(br#"{"message":"Hello, World!"}"#))
}

/// Sends the body back, with its content type.
async fn echo(mut request: Request) -> Result<Response, BodyError> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let bytes = request.bytes().await?;
    let content_type = content_type.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    Ok(Body::from(bytes).into_response().with_header(CONTENT_TYPE, content_type))
}
