//! What `ebbtide serve` serves.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::items;
use super::lab;
use super::router::{Router, get, post};
use crate::http::body::{Body, BodyError};
use crate::http::message::{IntoResponse, JSON, Request, Response};
use crate::pool::Database;

/// The routes of `ebbtide serve`. Without a database, those that want one answer 503.
pub fn router(lab: lab::Lab, database: Option<Database>) -> Router {
    let router = Router::new()
        .route("/", get(about))
        .route("/plaintext", get(plaintext))
        .route("/json", get(json))
        .route("/echo", post(echo));
    let router = items::add(router, database);
    match lab {
        lab::Lab::Off => router,
        lab::Lab::On { upload_bytes_max } => items::add_lab(lab::add(router, upload_bytes_max)),
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
    Response::text(Bytes::from_static(b"Hello, World!"))
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
