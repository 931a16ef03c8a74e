//! What the servers to compare the speed with share: their command line, listeners and answer.
//!
//! Each answers `GET /plaintext` as `ebbtide serve` does, by the same body and as many header
//! fields, from one worker per core, each with a listener of its own. What differs is the framework
//! alone, set up as its fastest users do, as long as no response is ever lost.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};

/// The body of `/plaintext`.
pub const PLAINTEXT: &str = "Hello, World!";

/// Its content type.
pub const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// What ebbtide says of a connection that is kept: two more fields.
pub const CONNECTION: &str = "keep-alive";

/// The value of the second of them, `Keep-Alive`.
pub const KEEP_ALIVE: &str = "timeout=74";

/// The command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `--listen`
    pub address: SocketAddr,
    /// `--workers`, 1 if it is not given.
    pub workers: usize,
    /// `--close`: every request asks for the close of its connection, so nothing is to be said of
    /// keeping it.
    pub closes: bool,
    /// `--pipeline-flush`: for hyper alone.
    pub pipeline_flush: bool,
}

impl Options {
    /// What the process was started with.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_args() -> io::Result<Options> {
        Options::parse(std::env::args().skip(1))
    }

    fn parse(mut arguments: impl Iterator<Item = String>) -> io::Result<Options> {
        let (mut address, mut workers) = (None, 1);
        let (mut closes, mut pipeline_flush) = (false, false);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--listen" => address = arguments.next().and_then(|text| text.parse().ok()),
                "--workers" => {
                    let number = arguments.next().and_then(|text| text.parse().ok());
                    workers = number.filter(|number| *number > 0).ok_or_else(usage)?;
                }
                "--close" => closes = true,
                "--pipeline-flush" => pipeline_flush = true,
                _ => return Err(usage()),
            }
        }
        let address = address.ok_or_else(usage)?;
        Ok(Options { address, workers, closes, pipeline_flush })
    }

    /// One more listener on the address, which does not block; its connections have no delay.
    ///
    /// # Errors
    /// As the system has them.
    pub fn listener(&self) -> io::Result<TcpListener> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Connections inherit it: a system call less for each.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&self.address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// Runs as many workers, each on a thread with a listener of its own; the last one here.
    ///
    /// # Errors
    /// When a listener or a thread cannot be had, and the error of the worker that ends here.
    ///
    /// # Panics
    /// When another worker fails.
    pub fn run(self, work: fn(Options, TcpListener) -> io::Result<()>) -> io::Result<()> {
        for _ in 1..self.workers {
            let listener = self.listener()?;
            let worker = move || work(self, listener).expect("a worker does not end");
            thread::Builder::new().spawn(worker)?;
        }
        work(self, self.listener()?)
    }
}

/// What the kernel makes of it is `net.core.somaxconn` at most, 4096 by default.
const BACKLOG: i32 = 4096;

fn usage() -> io::Error {
    let usage = "expected --listen 127.0.0.1:8080, and --workers N and --close or not";
    io::Error::new(io::ErrorKind::InvalidInput, usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> io::Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_command_line_has_an_address_and_at_least_one_worker() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let plain = Options { address, workers: 1, closes: false, pipeline_flush: false };
        assert_eq!(parse("--listen 127.0.0.1:8080").unwrap(), plain);
        let two = parse("--close --workers 2 --listen 127.0.0.1:8080 --pipeline-flush").unwrap();
        assert_eq!(two, Options { workers: 2, closes: true, pipeline_flush: true, ..plain });
        for bad in ["", "--listen x", "--listen 127.0.0.1:1 --workers 0", "--listen 127.0.0.1:1 x"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
