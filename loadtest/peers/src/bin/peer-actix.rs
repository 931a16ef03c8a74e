//! actix-web, stopped as its documentation says: it handles SIGTERM itself, and its workers get
//! `shutdown_timeout` to finish.

use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use actix_web::web::{self, Bytes, Path, Payload, PayloadConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, error};
use futures_util::StreamExt;
use peers::{
    BYTES_MAX, BYTES_TYPE, CHUNKS_MAX, ECHO_BYTES_MAX, JSON, JSON_TYPE, MILLISECONDS_MAX,
    PLAINTEXT, READY, TEXT_TYPE,
};

/// The framework's default, written out.
const SHUTDOWN_SECONDS: u64 = 30;

/// As ebbtide's. The default of 5 s would close connections while nobody restarts anything.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

#[actix_web::main]
async fn main() -> std::io::Result<()> {
    let listener = peers::listener(std::env::args().skip(1))?;
    peers::announce(&listener)?;
    HttpServer::new(|| App::new().configure(routes))
        .keep_alive(KEEP_ALIVE)
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .listen(listener)?
        .run()
        .await
}

fn routes(config: &mut web::ServiceConfig) {
    let echo_config = PayloadConfig::new(ECHO_BYTES_MAX);
    config
        .route("/plaintext", web::get().to(|| async { typed(TEXT_TYPE, PLAINTEXT) }))
        .route("/json", web::get().to(|| async { typed(JSON_TYPE, JSON) }))
        .route("/readyz", web::get().to(ready))
        .service(web::resource("/echo").app_data(echo_config).route(web::post().to(echo)))
        .route("/upload", web::post().to(upload))
        .route("/sleep/{ms}", web::get().to(sleep))
        .route("/bytes/{n}", web::get().to(bytes))
        .route("/stream/{chunks}/{ms}", web::get().to(stream));
}

async fn ready() -> HttpResponse {
    HttpResponse::Ok()
        .content_type(TEXT_TYPE)
        .insert_header((CACHE_CONTROL, "no-store"))
        .body(READY)
}

async fn echo(request: HttpRequest, body: Bytes) -> HttpResponse {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let content_type = content_type.unwrap_or(HeaderValue::from_static(BYTES_TYPE));
    HttpResponse::Ok().insert_header((CONTENT_TYPE, content_type)).body(body)
}

async fn upload(mut body: Payload) -> actix_web::Result<HttpResponse> {
    let mut count = 0;
    while let Some(chunk) = body.next().await {
        count += chunk?.len() as u64;
    }
    Ok(typed(JSON_TYPE, peers::uploaded(count)))
}

async fn sleep(ms: Path<String>) -> actix_web::Result<HttpResponse> {
    Ok(typed(TEXT_TYPE, peers::slept(number(&ms, "ms", MILLISECONDS_MAX)?).await))
}

async fn bytes(n: Path<String>) -> actix_web::Result<HttpResponse> {
    let count = number(&n, "n", BYTES_MAX)?;
    Ok(HttpResponse::Ok().body(SizedStream::new(count, Box::pin(peers::zeros(count)))))
}

async fn stream(path: Path<(String, String)>) -> actix_web::Result<HttpResponse> {
    let count = number(&path.0, "chunks", CHUNKS_MAX)?;
    let pause = number(&path.1, "ms", MILLISECONDS_MAX)?;
    Ok(HttpResponse::Ok().streaming(Box::pin(peers::chunks(count, pause))))
}

fn number(text: &str, name: &str, max: u64) -> actix_web::Result<u64> {
    peers::number(text, name, max).map_err(error::ErrorBadRequest)
}

fn typed(content_type: &'static str, body: impl Into<Bytes>) -> HttpResponse {
    HttpResponse::Ok().content_type(content_type).body(body.into())
}
