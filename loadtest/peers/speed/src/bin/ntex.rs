//! ntex on tokio. It writes `Connection` itself and passes over one of ours: another field stands
//! for it.

use std::io;

use ntex::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use ntex::web::{self, App, HttpResponse, HttpServer};
use speed::{CONNECTION, KEEP_ALIVE, Options, PLAINTEXT, TEXT_TYPE};

#[ntex::main]
async fn main() -> io::Result<()> {
    let options = Options::from_args()?;
    HttpServer::new(async move || {
        let route = if options.closes { web::get().to(closing) } else { web::get().to(keeping) };
        App::new().route("/plaintext", route)
    })
    .workers(options.workers)
    .listen(options.listener()?)?
    .run()
    .await
}

async fn keeping() -> HttpResponse {
    HttpResponse::Ok()
        .header(CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE))
        .header(HeaderName::from_static("x-connection"), HeaderValue::from_static(CONNECTION))
        .header(HeaderName::from_static("keep-alive"), HeaderValue::from_static(KEEP_ALIVE))
        .body(PLAINTEXT)
}

async fn closing() -> HttpResponse {
    HttpResponse::Ok().header(CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE)).body(PLAINTEXT)
}
