//! Health and metrics endpoints, and what the connections are doing.
//!
//! `/livez` says that the process can answer, and nothing else: a restart must not be caused by
//! what a restart does not mend. `/readyz` says whether to send new connections here; it turns 503
//! in the first moment of a shutdown. `/healthz` is the same under the name that older tools ask
//! for.

use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;

use http::header::CACHE_CONTROL;
use http::{HeaderValue, StatusCode};

use super::router::{Router, get};
use super::status::Status;
use crate::http::message::{JSON, Request, Response};
use crate::metrics;

/// Paths that [`with_health`] adds.
pub const HEALTH_PATHS: [&str; 3] = ["/livez", "/readyz", "/healthz"];

/// Who reads the answers of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Why a database is unusable is for them: it names hosts, users and files.
    Operators,
    /// Clients.
    Anybody,
}

/// Adds the health endpoints to a router, except where it has routes of its own.
pub fn with_health(mut router: Router, status: &Arc<Status>, readers: Readers) -> Router {
    for path in HEALTH_PATHS {
        if router.has_template(path) {
            continue;
        }
        let status = Arc::clone(status);
        router = router.route(
            path,
            if path == "/livez" {
                get(|_: Request| plain(StatusCode::OK, "ok\n".to_owned()))
            } else {
                get(move |request: Request| readiness(&status, &request, readers))
            },
        );
    }
    router
}

/// Asks for what the connections are doing, as JSON. The answer comes in a fraction of a second.
pub type Ask = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String>>> + Send + Sync>;

/// What the admin listener serves.
pub fn router(status: &Arc<Status>, connections: Ask) -> Router {
    let metrics = Arc::clone(status);
    let router = Router::new()
        .route(
            "/metrics",
            get(move |request: Request| {
                let text = metrics.render_metrics(request.now());
                no_store(Response::typed(
                    HeaderValue::from_static(metrics::CONTENT_TYPE),
                    text.into_bytes().into(),
                ))
            }),
        )
        .route(
            "/connections",
            get(move |_: Request| {
                let asking = connections();
                async move { no_store(Response::typed(JSON, asking.await.into_bytes().into())) }
            }),
        );
    let index = "/livez\n/readyz\n/healthz\n/metrics\n/connections\n";
    with_health(router, status, Readers::Operators).route("/", get(move |_: Request| index))
}

fn readiness(status: &Status, request: &Request, readers: Readers) -> Response {
    let readiness = status.readiness();
    let code = match readiness {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut text = match readiness {
        Ok(()) => "ready\n".to_owned(),
        Err(reason) => format!("not ready: {reason}\n"),
    };
    let is_verbose = request.query().is_some_and(|query| {
        query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
    });
    if is_verbose {
        let counts = status.counts();
        let mark = if readiness.is_ok() { '+' } else { '-' };
        let written = writeln!(
            text,
            "[{mark}] phase {}\n[+] up {:.3} s\n[+] connections {} open\n[+] requests {} in flight",
            status.phase().name(),
            status.up(request.now()).as_secs_f64(),
            counts.open(),
            counts.in_flight
        );
        written.expect("writing to a string cannot fail");
        for (worker, counts) in status.workers().enumerate() {
            let (open, opened) = (counts.open(), counts.opened);
            let written = writeln!(text, "[+] worker {worker} {open} open of {opened} connections");
            written.expect("writing to a string cannot fail");
        }
        for data in status.data() {
            let (mark, what) = match data.usable() {
                Ok(()) => ('+', "usable".to_owned()),
                Err(reason) if readers == Readers::Operators => ('-', reason),
                Err(_) => ('-', "unusable".to_owned()),
            };
            let written = writeln!(text, "[{mark}] {} {what}", data.name);
            written.expect("writing to a string cannot fail");
        }
    }
    plain(code, text)
}

fn plain(status: StatusCode, text: String) -> Response {
    no_store(Response::text(text).with_status(status))
}

/// An old answer about health is worse than none.
fn no_store(response: Response) -> Response {
    response.with_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))
}
