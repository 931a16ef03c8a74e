//! What the peers share: where they listen, and what their routes answer.
//!
//! A peer is its framework with the routes of `ebbtide serve` and the graceful shutdown that the
//! framework's documentation shows. What differs between two peers, and between a peer and
//! ebbtide, is then the framework alone: bodies, limits and listeners come from here. Settings are
//! the framework's defaults but where a file in `bin/` says otherwise, with its reason.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

/// The body of `/plaintext`.
pub const PLAINTEXT: &str = "Hello, World!";

/// The body of `/json`.
pub const JSON: &str = r#"{"message":"Hello, World!"}"#;

/// The body of `/readyz`, which a peer answers as long as it answers.
pub const READY: &str = "ready\n";

/// The content type of text.
pub const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// The content type of JSON.
pub const JSON_TYPE: &str = "application/json";

/// The content type of an echo whose request had none.
pub const BYTES_TYPE: &str = "application/octet-stream";

/// Most bytes of a body sent to `/echo`: 1 MiB.
pub const ECHO_BYTES_MAX: usize = 1 << 20;

/// Longest pause: ten minutes.
pub const MILLISECONDS_MAX: u64 = 600_000;

/// Largest response: 1 GiB.
pub const BYTES_MAX: u64 = 1 << 30;

/// Most chunks of a stream.
pub const CHUNKS_MAX: u64 = 1_000_000;

/// The listener that the command line asks for: `--listen ADDRESS` with an IP address and a port,
/// or `--listen systemd` for the one that `LISTEN_FDS` passes on as descriptor 3. `--reuse-port`
/// lets a successor bind the same port.
///
/// It is in blocking mode.
///
/// # Errors
/// What is wrong with the command line, or what the system said.
pub fn listener(arguments: impl IntoIterator<Item = String>) -> io::Result<TcpListener> {
    let (mut place, mut reuse) = (None, Reuse::No);
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => place = arguments.next(),
            "--reuse-port" => reuse = Reuse::Yes,
            _ => return Err(usage(&format!("{argument} is not known"))),
        }
    }
    let place = place.ok_or_else(|| usage("no address"))?;
    if place == "systemd" {
        let passed = ListenFd::from_env().take_tcp_listener(0)?;
        return passed.ok_or_else(|| usage("LISTEN_FDS passes no socket on"));
    }
    bind(place.parse().map_err(|_| usage(&format!("{place} is no address")))?, reuse)
}

/// Whether a successor may bind the same port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reuse {
    No,
    Yes,
}

fn bind(address: SocketAddr, reuse: Reuse) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // As the standard library and every framework: a restart must not wait for TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse == Reuse::Yes)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the kernel makes of it is `net.core.somaxconn` at most, 4096 by default.
const BACKLOG: i32 = 4096;

fn usage(what: &str) -> io::Error {
    let usage = "expected --listen 127.0.0.1:8080 or --listen systemd, and --reuse-port or not";
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what}: {usage}"))
}

/// Says on stderr that the peer listens, as ebbtide's log does: whoever waits for the one can wait
/// for the other.
///
/// # Errors
/// The listener does not know its address.
pub fn announce(listener: &TcpListener) -> io::Result<()> {
    let address = listener.local_addr()?;
    eprintln!(r#"{{"event_type":"server_started","listen":"{address}"}}"#);
    Ok(())
}

/// SIGTERM or SIGINT.
///
/// # Panics
/// When no signal handler can be installed.
pub async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};

    let mut terminate = signal(SignalKind::terminate()).expect("handlers can be installed");
    let mut interrupt = signal(SignalKind::interrupt()).expect("handlers can be installed");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// A number in the path.
///
/// # Errors
/// The body of the 400 that says what was expected.
pub fn number(text: &str, name: &str, max: u64) -> Result<u64, String> {
    let number = text.parse().ok().filter(|number| *number <= max);
    number.ok_or_else(|| format!("{name} must be a whole number from 0 to {max}\n"))
}

/// Waits, and returns the body of `/sleep/{ms}`.
pub async fn slept(ms: u64) -> String {
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("slept {ms} ms\n")
}

/// The body of `/upload`.
pub fn uploaded(bytes: u64) -> String {
    format!(r#"{{"bytes":{bytes}}}"#)
}

/// The body of `/bytes/{n}`: zero bytes, from one static piece.
pub fn zeros(count: u64) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(count, |left| async move {
        let size = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
        (left > 0).then(|| (Ok(Bytes::from_static(&ZEROS[..size])), left - size as u64))
    })
}

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The body of `/stream/{chunks}/{ms}`: so many chunks, with a pause before each but the first.
pub fn chunks(count: u64, pause: u64) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    stream::unfold(0, move |n| async move {
        if n == count {
            return None;
        }
        if n > 0 {
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Some((Ok(Bytes::from(format!("chunk {n}\n"))), n + 1))
    })
}
