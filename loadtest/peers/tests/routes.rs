//! Each peer answers each route as ebbtide does, finishes what it has when it is told to stop, and
//! listens where it is told to.
//!
//! The answers are compared with those of the real ebbtide, which is built first.

#![allow(clippy::unwrap_used, reason = "a test that unwraps fails where it should, and says so")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(20);

const PEERS: [(&str, &str); 3] = [
    ("axum", env!("CARGO_BIN_EXE_peer-axum")),
    ("hyper", env!("CARGO_BIN_EXE_peer-hyper")),
    ("actix", env!("CARGO_BIN_EXE_peer-actix")),
];

/// Method, path and body. The answers are ebbtide's.
const ASKED: [(&str, &str, &str); 13] = [
    ("GET", "/plaintext", ""),
    ("GET", "/json", ""),
    ("GET", "/readyz", ""),
    ("POST", "/echo", "what was sent"),
    ("POST", "/echo", ""),
    ("POST", "/upload", "sixteen bytes..."),
    ("GET", "/sleep/5", ""),
    ("GET", "/sleep/600001", ""),
    ("GET", "/bytes/0", ""),
    ("GET", "/bytes/1000000", ""),
    ("GET", "/bytes/x", ""),
    ("GET", "/stream/3/5", ""),
    ("GET", "/stream/0/0", ""),
];

/// What nginx does by itself.
const NGINX: [(&str, &str, &str); 9] = [
    ("GET", "/plaintext", ""),
    ("GET", "/json", ""),
    ("GET", "/readyz", ""),
    ("POST", "/echo", " what was sent "),
    ("POST", "/upload", "sixteen bytes..."),
    ("GET", "/bytes/0", ""),
    ("GET", "/bytes/4095", ""),
    ("GET", "/bytes/1000000", ""),
    ("GET", "/stream/20/40", ""),
];

/// A process that is killed at the latest when it is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts it and waits until it says where it listens.
    fn start(command: &mut Command) -> Server {
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut server = Server { child, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        let lines = follow(server.child.stderr.take().unwrap());
        let deadline = Instant::now() + SOON;
        let mut all = String::new();
        while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            if let Some((_, rest)) = line.split_once(r#""event_type":"server_started""#) {
                server.address = rest.split('"').nth(3).unwrap().parse().unwrap();
                return server;
            }
            all += &line;
        }
        panic!("{command:?} does not serve: {all}");
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        assert!(kill.args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended: so much the better.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn follow(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            // When nobody listens any more the pipe must be read all the same.
            let _heard = sender.send(line);
        }
    });
    receiver
}

fn peer(binary: &str) -> Server {
    Server::start(Command::new(binary).args(["--listen", "127.0.0.1:0"]))
}

/// The real one, in a debug build.
fn ebbtide() -> Server {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut cargo = Command::new(env!("CARGO"));
    let status = cargo.current_dir(&root).args(["build", "--bin", "ebbtide"]).status().unwrap();
    assert!(status.success(), "ebbtide cannot be built");
    let home = env!("CARGO_TARGET_TMPDIR");
    let mut command = Command::new(root.canonicalize().unwrap().join("target/debug/ebbtide"));
    Server::start(command.current_dir(home).envs([
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN_LISTEN", "off"),
        ("DATABASE_URL", "off"),
        ("LOG_FORMAT", "json"),
    ]))
}

/// What of an answer must be equal.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: String,
    content_type: Option<String>,
    length: Option<String>,
    transfer: Option<String>,
    body: Vec<u8>,
}

fn ask(address: SocketAddr, (method, path, body): (&str, &str, &str)) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let length = match method {
        "POST" => format!("Content-Type: text/x-test\r\nContent-Length: {}\r\n", body.len()),
        _ => String::new(),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{length}\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let field = |wanted: &str| {
        head.lines().skip(1).find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    let transfer = field("transfer-encoding");
    let rest = &bytes[end + 4..];
    Answer {
        status: head.split(' ').nth(1).unwrap().to_owned(),
        content_type: field("content-type"),
        length: field("content-length"),
        body: if transfer.is_some() { unchunked(rest) } else { rest.to_vec() },
        transfer,
    }
}

/// The body of complete chunks, up to the last one.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
        if size == 0 {
            assert!(rest.is_empty(), "bytes behind the last chunk");
            return body;
        }
    }
}

#[test]
fn each_peer_answers_each_route_as_ebbtide_does() {
    let ebbtide = ebbtide();
    for (name, binary) in PEERS {
        let peer = peer(binary);
        for asked in ASKED {
            let mut expected = ask(ebbtide.address, asked);
            // actix-web gives every stream a type.
            if name == "actix" && asked.1.starts_with("/stream") {
                expected.content_type = Some("application/octet-stream".to_owned());
            }
            assert_eq!(ask(peer.address, asked), expected, "{name} {asked:?}");
        }
    }
}

#[test]
fn nginx_answers_what_it_can_as_ebbtide_does_and_reloads() {
    let ebbtide = ebbtide();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nginx");
    let start = || {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("run"));
        command.args(["nginx", &address, "--reuse-port"]).env("PEERS_NGINX_DIR", &directory);
        Server::start(&mut command)
    };
    let mut nginx = start();
    for asked in NGINX {
        let mut expected = ask(ebbtide.address, asked);
        // A file has a type, and a stream is a file.
        if ["/bytes", "/stream", "/echo"].iter().any(|start| asked.1.starts_with(start)) {
            expected.content_type = Some("application/octet-stream".to_owned());
        }
        if asked.1.starts_with("/stream") {
            (expected.length, expected.transfer) = (Some(expected.body.len().to_string()), None);
        }
        assert_eq!(ask(nginx.address, asked), expected, "nginx {asked:?}");
    }
    assert_eq!(ask(nginx.address, ("GET", "/sleep/5", "")).status, "501");
    let master = || std::fs::read_to_string(directory.join("nginx.pid")).unwrap();
    let (before, mut successor) = (master(), start());
    nginx.signal("TERM");
    assert!(nginx.wait().success());
    assert_eq!(master(), before, "a reload leaves the master");
    assert_eq!(ask(successor.address, NGINX[0]).status, "200");
    let log = std::fs::read_to_string(directory.join("error.log")).unwrap();
    assert!(log.contains("signal 1 (SIGHUP) received"), "{log}");
    successor.signal("TERM");
    assert!(successor.wait().success());
    assert!(TcpStream::connect(successor.address).is_err());
}

#[test]
fn each_peer_finishes_the_request_in_flight_when_it_is_told_to_stop() {
    for (name, binary) in PEERS {
        let mut peer = peer(binary);
        // The signal comes while the stream is under way: its first chunk has been read.
        let mut stream = TcpStream::connect(peer.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(b"GET /stream/3/200 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream).lines();
        assert!(lines.any(|line| line.unwrap() == "chunk 0"), "{name}");
        peer.signal("TERM");
        assert!(lines.any(|line| line.unwrap() == "chunk 2"), "{name}");
        assert!(lines.any(|line| line.unwrap() == "0"), "{name}");
        drop(lines);
        assert!(peer.wait().success(), "{name}");
    }
}

/// Binds a socket and becomes the program named behind, with the socket as descriptor 3.
const PASS_ON: &str = r#"
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn each_peer_takes_a_socket_that_is_passed_on_and_shares_its_port_when_told_to() {
    for (name, binary) in PEERS {
        let mut command = Command::new("python3");
        let passed = Server::start(command.args(["-c", PASS_ON, binary, "--listen", "systemd"]));
        assert_eq!(ask(passed.address, ASKED[0]).body, b"Hello, World!", "{name}");

        let shared = ["--reuse-port", "--listen"];
        let first = Server::start(Command::new(binary).args(shared).arg("127.0.0.1:0"));
        let address = first.address.to_string();
        let second = Server::start(Command::new(binary).args(shared).arg(&address));
        assert_eq!(first.address, second.address, "{name}");
        drop(first);
        assert_eq!(ask(second.address, ASKED[0]).body, b"Hello, World!", "{name}");
    }
}

#[test]
fn each_peer_says_what_is_wrong_with_its_command_line() {
    for (name, binary) in PEERS {
        for wrong in [&["--listen", "nowhere"][..], &["--lisen", "127.0.0.1:0"], &[]] {
            let output = Command::new(binary).args(wrong).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{name} {wrong:?}");
            assert!(said.contains("expected --listen 127.0.0.1:8080"), "{name} {wrong:?}: {said}");
        }
    }
}
