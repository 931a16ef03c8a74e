//! Two servers inside a program of your own, which decides by itself when they stop.
//!
//! ```text
//! cargo run --example embedded
//! curl http://127.0.0.1:8081/          # counts its visitors
//! curl http://127.0.0.1:8082/primes    # computes, off the reactor
//! ```
//!
//! Enter (or the end of the input) stops both, side by side, and prints their reports. No signal
//! handler is installed, so Ctrl-C ends this program at once, as it ends any other.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ebbtide::{
    Address, BlockingError, GracefulShutdown, Options, Policy, Report, Request, Router, Server,
    StartError, Workers, get,
};

fn main() -> Result<ExitCode, StartError> {
    // The state is shared by all workers.
    let visits = Router::new().with_state(AtomicU64::new(0)).route("/", get(visit));
    let primes = Router::new().route("/primes", get(primes));
    let servers = [
        ("visits", Server::bind(options(8081, Workers::PerCore), visits)?),
        // One thread serves all of it: the one that calls `run`.
        ("primes", Server::bind(options(8082, Workers::Count(0)), primes)?),
    ];
    let handles = servers.each_ref().map(|(_, server)| server.shutdown_handle());
    let threads = servers.map(|(name, server)| {
        for address in server.addresses() {
            println!("{name}: http://{address}");
        }
        (name, thread::spawn(move || server.run()))
    });

    println!("press Enter to stop");
    // The end of the input and its failure stop the servers as well.
    let _trigger = io::stdin().read_line(&mut String::new());
    handles.iter().for_each(GracefulShutdown::shutdown);

    let mut status = 0;
    for (name, thread) in threads {
        let report: Report = thread.join().expect("`run` does not panic")?;
        println!("{name}: {report}\n{}", report.to_json());
        status = status.max(report.exit_status());
    }
    Ok(ExitCode::from(status))
}

/// A server on one port, without an admin listener, which is gone five seconds after its trigger
/// whatever its clients do.
fn options(port: u16, workers: Workers) -> Options {
    Options {
        listen: vec![Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))],
        admin_listen: None,
        workers,
        shutdown: Policy { timeout: Duration::from_secs(5), ..Policy::default() },
        ..Options::default()
    }
}

async fn visit(request: Request) -> String {
    let before = request.state::<AtomicU64>().fetch_add(1, Ordering::Relaxed);
    format!("You are visitor {}.\n", before + 1)
}

/// What takes its time goes to a thread of its own; the worker serves on meanwhile.
async fn primes(_: Request) -> Result<String, BlockingError> {
    let limit = 1_000_000;
    let count = ebbtide::blocking(move || (2..limit).filter(|n| is_prime(*n)).count()).await?;
    Ok(format!("{count} primes below {limit}\n"))
}

fn is_prime(n: u32) -> bool {
    (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}
