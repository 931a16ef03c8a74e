//! `may_minihttp`: a coroutine for each connection. It never closes one, has no deadlines, and
//! answers every path. It names itself in `Server`, so one field of ours is enough.

use std::io;

use may_minihttp::{HttpServer, HttpService, Request, Response};
use speed::{Options, PLAINTEXT};

#[derive(Clone)]
struct Plaintext;

impl HttpService for Plaintext {
    fn call(&mut self, _request: Request, response: &mut Response) -> io::Result<()> {
        response.header("Content-Type: text/plain; charset=utf-8");
        response.header("Keep-Alive: timeout=74");
        response.body(PLAINTEXT);
        Ok(())
    }
}

fn main() -> io::Result<()> {
    let options = Options::from_args()?;
    may::config().set_workers(options.workers);
    let server = HttpServer(Plaintext).start(options.address)?;
    server.join().map_err(|_| io::Error::other("the server has failed"))
}
