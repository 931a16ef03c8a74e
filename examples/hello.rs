//! The smallest whole program: two routes, stopped by signals, ended with the shutdown's status.
//!
//! ```text
//! cargo run --example hello
//! curl -i http://127.0.0.1:8080/hello/tide
//! curl -i http://127.0.0.1:9464/readyz     # health and metrics are on the admin port
//! ```
//!
//! Ctrl-C (SIGINT) or SIGTERM stops it: it finishes what is in flight, prints what became of the
//! requests and exits with status 0 if none was lost, else with 3.

use ebbtide::{Options, Report, Request, Router, Server, StartError, get, setup_signal_handlers};

async fn hello(request: Request) -> String {
    format!("Hello, {}!\n", request.param("name").unwrap_or("you"))
}

fn main() -> Result<Report, StartError> {
    let signals = setup_signal_handlers()?;
    let router = Router::new()
        .route("/", get(|_: Request| "Hello, World!\n"))
        .route("/hello/{name}", get(hello));
    let report = Server::bind(Options::default(), router)?.with_signals(signals).run()?;
    println!("{report}");
    Ok(report)
}
