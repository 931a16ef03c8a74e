//! A crowd of keep-alive connections that have each had one answer: what is left of it in memory
//! once it has gone, and that a shutdown closes all of it and loses none.
//!
//! How large it is: 1,000 in a debug build, 9,000 in a release build, or what `EBBTIDE_CROWD` says,
//! as far as `RLIMIT_NOFILE` goes (some descriptors are kept for other things). `loadtest/crowd`
//! runs it with as many as this machine allows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::server::{Launch, Server};
use crate::support::tools::{kilobytes, raise_descriptors};
use crate::support::{SOON, alone, say, until};

/// Descriptors that are not a client's.
const DESCRIPTORS_KEPT: usize = 400;

/// Memory is back this soon after the last has gone, by the promise.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(5);

fn size() -> usize {
    let usual = if cfg!(debug_assertions) { 1000 } else { 9000 };
    let asked = std::env::var("EBBTIDE_CROWD").ok();
    let wanted = asked.map_or(usual, |text| text.parse().expect("EBBTIDE_CROWD is a number"));
    let allowed = raise_descriptors().saturating_sub(DESCRIPTORS_KEPT);
    if wanted > allowed {
        say(&format!("crowd: only {allowed} connections of {wanted}: RLIMIT_NOFILE"));
    }
    wanted.min(allowed)
}

fn server(size: usize) -> Server {
    Launch::new()
        .env("MAX_CONNECTIONS", size + 50)
        .env("KEEP_ALIVE_TIMEOUT", "10m")
        .env("SHUTDOWN_IDLE_WINDOW", "1s")
        .start()
}

/// Connects them all, has each served once, and waits until they hibernate.
fn crowd(server: &Server, size: usize) -> Vec<TcpStream> {
    let request = b"GET /plaintext HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let connect = |_| {
        let mut client = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        client.write_all(request).unwrap();
        let mut answer = [0; 1024];
        let count = client.read(&mut answer).unwrap();
        assert!(answer[..count].starts_with(b"HTTP/1.1 200 "), "{:?}", &answer[..count]);
        client
    };
    let clients = (0..size).map(connect).collect();
    settle(server, "hibernating", size);
    clients
}

fn settle(server: &Server, state: &str, count: usize) {
    let line = format!("http_connections{{state=\"{state}\"}} {count}\n");
    until(&line, SOON, || server.metrics().contains(&line).then_some(()));
}

fn resident(server: &Server) -> u64 {
    kilobytes(&PathBuf::from(format!("/proc/{}/status", server.pid())), "VmRSS")
}

#[test]
fn memory_is_given_back_within_5_seconds_of_a_crowd_that_leaves() {
    let _turn = alone();
    let size = size();
    let server = server(size);
    let start = resident(&server);
    let clients = crowd(&server, size);
    let peak = resident(&server);
    drop(clients);
    settle(&server, "hibernating", 0);
    let gone = Instant::now();
    let most = start * 3 / 2 + 64 * size as u64;
    let limit = GIVEN_BACK_WITHIN + Duration::from_millis(500);
    until(&format!("{most} bytes of {peak} to be left"), limit, || {
        (resident(&server) <= most).then_some(())
    });
    say(&format!(
        "crowd of {size}: resident {start} bytes at the start, {peak} with it, {} within {:.1} s \
         of its leaving (promised: {most})",
        resident(&server),
        gone.elapsed().as_secs_f64()
    ));
    server.stop();
}

#[test]
fn an_idle_crowd_is_drained_and_none_is_lost() {
    let _turn = alone();
    let size = size();
    let server = server(size);
    let clients = crowd(&server, size);
    let began = Instant::now();
    let report = server.stop();
    let took = began.elapsed();
    // Each got an orderly end, and nothing but that.
    for mut client in clients {
        assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
    }
    let closed = &report["connections"]["closed"];
    let said = format!("crowd of {size}: drained in {:.2} s, {closed}", took.as_secs_f64());
    say(&said);
    let number = |name: &str| closed[name].as_u64().unwrap_or(0);
    assert!(number("closed_idle") + number("client_closed") >= size as u64, "{said}");
    for lost in ["cut", "reset", "timed_out", "shed"] {
        assert_eq!(number(lost), 0, "{said}");
    }
}
