//! What a server keeps in memory for connections that are idle after one request.
//!
//! The kernel's own memory for their sockets is not in it: that is the same for all servers.

use std::io;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::compare::answer::{self, Asks};
use crate::compare::server::Server;

/// The memory of a server.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// KiB before, with a few connections.
    pub before: f64,
    /// Bytes more for each of many.
    pub each: f64,
}

/// Makes so many connections, with one request on each, and looks when the server is at rest: not
/// before `rest`.
///
/// # Errors
/// When one gets no answer.
pub fn measure(server: &Server, connections: u32, rest: Duration) -> io::Result<Memory> {
    let request = answer::request(server.address, Asks::Keep);
    let open = |count: u32| -> io::Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(server.address)?;
            answer::exchange(&mut stream, &request)?;
            streams.push(stream);
        }
        Ok(streams)
    };
    let first = open(FIRST)?;
    let before = at_rest(server, rest)?;
    let many = open(connections)?;
    let after = at_rest(server, rest)?;
    drop((first, many));
    let each = (after - before) * 1024.0 / f64::from(connections);
    Ok(Memory { before, each })
}

/// Its memory in KiB once that has not changed by 0.5 % for half of `rest`: what a server gives
/// back when its connections are idle, it gives back after some seconds. Three times `rest` is
/// enough.
fn at_rest(server: &Server, rest: Duration) -> io::Result<f64> {
    let begun = Instant::now();
    let (mut last, mut since) = (server.memory_kib()?, begun);
    loop {
        thread::park_timeout(LOOK);
        let now = server.memory_kib()?;
        if now.abs_diff(last) > last / 200 {
            (last, since) = (now, Instant::now());
        }
        let is_quiet = since.elapsed() >= rest / 2 && begun.elapsed() >= rest;
        if is_quiet || begun.elapsed() > rest * 3 {
            #[allow(clippy::cast_precision_loss, reason = "KiB")]
            return Ok(now as f64);
        }
    }
}

/// Lets us, and the servers that we start, have as many descriptors as the system allows.
///
/// # Errors
/// When that is fewer than so many connections need.
pub fn allow(connections: u32) -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(connections + FIRST + SPARE);
    if let Some(most) = limit.maximum.filter(|most| *most < wanted) {
        return Err(format!("{connections} connections need {wanted} files, the limit is {most}"));
    }
    let current = limit.maximum.or(Some(wanted));
    setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })
        .map_err(|error| format!("cannot raise the limit of files: {error}"))
}

/// Connections before the many: what the first ones cost is the server's, not theirs.
const FIRST: u32 = 10;

/// Descriptors for everything else.
const SPARE: u32 = 64;

const LOOK: Duration = Duration::from_millis(250);
