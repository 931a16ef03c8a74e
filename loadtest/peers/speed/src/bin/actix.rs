//! actix-web. It writes `Connection` itself and passes over one of ours: another field stands for
//! it.

use std::io;

use actix_web::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use actix_web::{App, HttpResponse, HttpServer, web};
use speed::{CONNECTION, KEEP_ALIVE, Options, PLAINTEXT, TEXT_TYPE};

#[actix_web::main]
async fn main() -> io::Result<()> {
    let options = Options::from_args()?;
    HttpServer::new(move || {
        let route = if options.closes { web::get().to(closing) } else { web::get().to(keeping) };
        App::new().route("/plaintext", route)
    })
    .keep_alive(std::time::Duration::from_secs(75))
    .workers(options.workers)
    .listen(options.listener()?)?
    .run()
    .await
}

async fn keeping() -> HttpResponse {
    let kept = HeaderName::from_static("x-connection");
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE)))
        .insert_header((kept, HeaderValue::from_static(CONNECTION)))
        .insert_header((
            HeaderName::from_static("keep-alive"),
            HeaderValue::from_static(KEEP_ALIVE),
        ))
        .body(PLAINTEXT)
}

async fn closing() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, HeaderValue::from_static(TEXT_TYPE)))
        .body(PLAINTEXT)
}
