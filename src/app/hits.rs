//! Counters in Redis, for trying out what becomes of it in a shutdown: `POST /hits/{name}` counts
//! and answers the new number, `GET /hits/{name}` answers the number.

use http::StatusCode;
use redis::{cmd, pipe};

use super::router::{Router, get};
use crate::http::message::{IntoResponse, Request, Response};
use crate::pool::{DatabaseError, Redis};

/// Adds the routes.
pub fn add(router: Router, redis: &Redis) -> Router {
    let (reading, counting) = (redis.clone(), redis.clone());
    router.route(
        "/hits/{name}",
        get(move |request| read(reading.clone(), request))
            .post(move |request| count(counting.clone(), request)),
    )
}

async fn read(redis: Redis, request: Request) -> Response {
    let Some(key) = key(&request) else { return StatusCode::NOT_FOUND.into_response() };
    let mut read = cmd("GET");
    read.arg(key);
    told(&request, redis.command::<Option<u64>>(read)).await
}

/// Counts, and has the counter end some time after the last hit.
async fn count(redis: Redis, request: Request) -> Response {
    let Some(key) = key(&request) else { return StatusCode::NOT_FOUND.into_response() };
    let mut both = pipe();
    both.atomic().cmd("INCR").arg(&key).cmd("EXPIRE").arg(&key).arg(KEPT_SECONDS).ignore();
    let counted = async { redis.pipeline::<(u64,)>(both).await.map(|(hits,)| Some(hits)) };
    told(&request, counted).await
}

async fn told(
    request: &Request,
    hits: impl Future<Output = Result<Option<u64>, DatabaseError>>,
) -> Response {
    match request.cancelled().run_until_cancelled(hits).await {
        Some(Ok(hits)) => Response::json(&serde_json::json!({ "hits": hits.unwrap_or(0) })),
        Some(Err(error)) => error.into_response(),
        None => DatabaseError::Cancelled.into_response(),
    }
}

fn key(request: &Request) -> Option<String> {
    let name = request.param("name").filter(|name| name.len() <= NAME_BYTES_MAX)?;
    Some(format!("ebbtide:hits:{name}"))
}

/// The longest name of a counter, in bytes.
const NAME_BYTES_MAX: usize = 100;

/// How long a counter that nobody hits is kept.
const KEPT_SECONDS: u64 = 24 * 60 * 60;
