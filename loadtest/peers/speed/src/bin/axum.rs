//! axum as `axum::serve` has it, one current-thread runtime for each core.

use std::io;
use std::net::TcpListener;

use axum::Router;
use axum::http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use axum::routing::get;
use speed::{KEEP_ALIVE, Options, PLAINTEXT, TEXT_TYPE};

fn main() -> io::Result<()> {
    Options::from_args()?.run(work)
}

fn work(options: Options, listener: TcpListener) -> io::Result<()> {
    let text = (CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE));
    let kept = [
        text.clone(),
        (CONNECTION, HeaderValue::from_static(speed::CONNECTION)),
        (HeaderName::from_static("keep-alive"), HeaderValue::from_static(KEEP_ALIVE)),
    ];
    let route = if options.closes {
        get(move || async move { ([text], PLAINTEXT) })
    } else {
        get(move || async move { (kept, PLAINTEXT) })
    };
    let router = Router::new().route("/plaintext", route);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async move {
        axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await
    })
}
