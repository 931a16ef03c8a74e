//! Bodies that are never whole in memory: an upload that is read as it comes, a response that is
//! made as it goes, and both at once.
//!
//! ```text
//! cargo run --example streaming
//! seq 1000000 | curl -T - http://127.0.0.1:8080/count      # chunked, of unknown length
//! curl -N http://127.0.0.1:8080/tides/5                    # a line every half second
//! printf 'ebb and flow\n' | curl -T - http://127.0.0.1:8080/upper
//! ```
//!
//! Stop it with Ctrl-C while `/tides/20` is running: the stream is finished first.

use std::time::Duration;

use ebbtide::{
    Body, BodyError, Options, Report, Request, Router, Server, StartError, StatusCode, get, put,
    setup_signal_handlers, sleep,
};
use http_body_util::BodyExt;
use memchr::memchr_iter;

fn main() -> Result<Report, StartError> {
    let signals = setup_signal_handlers()?;
    let router = Router::new()
        // 1 GiB instead of the usual 1 MiB: nothing of it is kept.
        .route("/count", put(count).body_bytes_max(1 << 30))
        .route("/upper", put(upper).body_bytes_max(1 << 30))
        .route("/tides/{n}", get(tides));
    let report = Server::bind(Options::default(), router)?.with_signals(signals).run()?;
    println!("{report}");
    Ok(report)
}

/// Counts bytes and lines. The next chunk is read from the socket when it is asked for.
async fn count(mut request: Request) -> Result<String, BodyError> {
    let (mut bytes, mut lines) = (0, 0);
    while let Some(chunk) = request.body_mut().chunk().await {
        let chunk = chunk?;
        bytes += chunk.len();
        lines += memchr_iter(b'\n', &chunk).count();
    }
    Ok(format!("{bytes} bytes, {lines} lines\n"))
}

/// Answers while it still reads: the response's body is the request's, frame by frame. When the
/// request breaks off, so does the response: the client can tell that it is not whole.
fn upper(request: Request) -> Body {
    let (_head, body) = request.into_parts();
    Body::new(body.map_frame(|frame| frame.map_data(|data| data.to_ascii_uppercase().into())))
}

/// A line every half second. Sleeping holds neither the worker nor the other connections.
async fn tides(request: Request) -> Result<Body, (StatusCode, &'static str)> {
    let count: u32 = request
        .param("n")
        .and_then(|text| text.parse().ok())
        .ok_or((StatusCode::BAD_REQUEST, "expected a number\n"))?;
    Ok(Body::unfold(0, move |n| async move {
        if n == count {
            return None;
        }
        if n > 0 {
            sleep(Duration::from_millis(500)).await;
        }
        let line = format!("tide {n}: {}\n", if n % 2 == 0 { "flood" } else { "ebb" });
        Some((line.into(), n + 1))
    }))
}
