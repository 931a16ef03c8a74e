//! What the service manager is told, by a socket that stands for it.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::support::server::Launch;
use super::support::{SLACK, SOON, alone, say, scratch};

/// A manager's socket, and what came so far.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Manager {
        let path = scratch(name).join("socket");
        let socket = UnixDatagram::bind(&path).expect("a fresh path");
        socket.set_read_timeout(Some(SOON)).expect("a socket takes a timeout");
        Manager { socket, path }
    }

    /// The next message, as lines.
    fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let count = self.socket.recv(&mut buffer).expect("the server says something");
        String::from_utf8(buffer[..count].to_vec()).expect("words are text")
    }

    /// The next message that has a line which begins so.
    fn next_with(&self, start: &str) -> String {
        loop {
            let message = self.next();
            if message.lines().any(|line| line.starts_with(start)) {
                return message;
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _removed = std::fs::remove_file(&self.path);
    }
}

#[test]
fn the_service_manager_is_told_of_the_start_of_the_shutdown_and_of_what_is_left() {
    let manager = Manager::new("notify-shutdown");
    let launch = Launch::new().env("NOTIFY_SOCKET", manager.path.display());
    let mut server = launch.env("SHUTDOWN_TIMEOUT", "10").start();
    let ready = manager.next();
    assert!(ready.contains("READY=1\n") && ready.contains("STATUS=serving\n"), "{ready}");
    let mut client = server.connect();
    client.ask("/sleep/2500");
    server.wait_in_flight(1);
    server.signal("TERM");
    let stopping = manager.next_with("STOPPING=1");
    assert!(stopping.contains("STATUS=draining: 1 requests in flight, "), "{stopping}");
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=5000000\n"), "{stopping}");
    for _ in 0..2 {
        let status = manager.next_with("STATUS=draining: 1 requests in flight");
        assert!(status.contains(" s left\n") && status.contains("EXTEND_TIMEOUT_USEC="));
    }
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
}

/// From the call that starts the process to the word that it serves. Its own limit is for a machine
/// that does nothing else; here half a second is added, and what was measured is said.
#[test]
fn a_start_takes_milliseconds_and_little_memory() {
    let _turn = alone();
    let mut times = Vec::new();
    for _ in 0..20 {
        let manager = Manager::new("notify-start");
        let launch = Launch::new().env("NOTIFY_SOCKET", manager.path.display());
        let launch = launch.env("DATABASE_URL", "sqlite::memory:");
        let began = Instant::now();
        let server = launch.start_with(|| {
            manager.next_with("READY=1");
            times.push(began.elapsed());
        });
        if times.len() == 20 {
            let resident = server.metric("process_resident_memory_bytes") / 1e6;
            times.sort();
            let median = times[times.len() / 2];
            say(&format!(
                "start to ready: median {median:?}, worst {:?}; resident {resident} MB",
                times[times.len() - 1]
            ));
            assert!(median < READY_WITHIN + SLACK, "{times:?}");
            // Debug builds are not for small containers.
            assert!(cfg!(debug_assertions) || resident <= RESIDENT_MB, "{resident} MB");
        }
        server.stop();
    }
}

const READY_WITHIN: Duration = Duration::from_millis(30);

/// Of the release build as cargo links it, with SQLite. 2 MB of it are pages of the C library that
/// all processes of a machine share; the static image has a limit of its own in `tests/deploy`.
const RESIDENT_MB: f64 = 7.5;

#[test]
fn the_watchdog_hears_of_the_workers_as_long_as_each_of_them_answers() {
    let manager = Manager::new("notify-watchdog");
    let launch = Launch::new().env("NOTIFY_SOCKET", manager.path.display());
    let mut server = launch.env("WATCHDOG_USEC", "400000").env("WORKERS", "2").start();
    for _ in 0..4 {
        manager.next_with("WATCHDOG=1");
    }
    let mut client = server.connect();
    client.ask("/block/600000");
    server.log.wait("worker_blocked");
    // What was said before that, but nothing after it.
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 1024];
    let said = std::iter::from_fn(|| manager.socket.recv(&mut buffer).ok()).take(100).count();
    assert!(said < 100, "the watchdog is fed while a worker is blocked");
    server.signal("QUIT");
    assert_eq!(server.exit(SOON).status, 131);
}
