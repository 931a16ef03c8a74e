//! hyper on tokio, one current-thread runtime for each core.
//!
//! `half_close` saves hyper an allocation for each request. `--pipeline-flush` makes one write of
//! the responses to pipelined requests, and loses some: what follows a request that announces the
//! close, a 400, and whatever stands behind the first half of a next request is not flushed.

use std::convert::Infallible;
use std::net::TcpListener;
use std::{future, io};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use speed::{KEEP_ALIVE, Options, PLAINTEXT, TEXT_TYPE};
use tokio::task::{LocalSet, spawn_local};

fn main() -> io::Result<()> {
    Options::from_args()?.run(work)
}

fn work(options: Options, listener: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut http = http1::Builder::new();
        http.half_close(true).pipeline_flush(options.pipeline_flush);
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let answered =
                move |request| future::ready(Ok::<_, Infallible>(answer(&request, options)));
            let service = service_fn(answered);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            spawn_local(async move {
                // A client that goes away is no news.
                let _gone = connection.await;
            });
        }
    })
}

fn answer(request: &Request<Incoming>, options: Options) -> Response<Full<Bytes>> {
    if request.uri().path() != "/plaintext" {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from_static(PLAINTEXT.as_bytes())));
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE));
    if !options.closes {
        fields.insert(CONNECTION, HeaderValue::from_static(speed::CONNECTION));
        let name = HeaderName::from_static("keep-alive");
        fields.insert(name, HeaderValue::from_static(KEEP_ALIVE));
    }
    response
}
