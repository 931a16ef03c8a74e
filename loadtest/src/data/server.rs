//! One server of those that are compared, started for one measure.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::root;
use crate::target::Fault;

/// Who is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// With its default ways to PostgreSQL.
    Ebbtide,
    /// axum with deadpool-postgres.
    Axum,
    /// actix-web with tokio-postgres.
    Actix,
}

impl Contender {
    /// All of them.
    pub const ALL: [Contender; 3] = [Contender::Ebbtide, Contender::Axum, Contender::Actix];

    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Ebbtide => "ebbtide",
            Contender::Axum => "axum",
            Contender::Actix => "actix",
        }
    }

    /// What it is made of.
    pub fn title(self) -> &'static str {
        match self {
            Contender::Ebbtide => "ebbtide",
            Contender::Axum => "axum + deadpool-postgres",
            Contender::Actix => "actix-web + tokio-postgres",
        }
    }

    /// Builds the others, with the cargo that is there.
    ///
    /// # Errors
    /// When they do not build.
    pub fn build_peers() -> Result<(), Fault> {
        let status = Command::new("cargo")
            .args(["build", "--release", "--locked", "--manifest-path"])
            .arg(root().join(PEERS).join("Cargo.toml"))
            .stdin(Stdio::null())
            .status()
            .map_err(Fault::of("run cargo"))?;
        if status.success() { Ok(()) } else { Err(Fault("the peers do not build".to_owned())) }
    }

    fn command(self, binary: &Path, url: &str, means: Means) -> Command {
        let Means { connections, workers } = means;
        let peer = |name: &str| -> PathBuf { root().join(PEERS).join("target/release").join(name) };
        let mut command = match self {
            Contender::Ebbtide => {
                // One of them for what wants a connection to itself, which nothing here does.
                let pipelined = connections.saturating_sub(1).max(1).to_string();
                let mut command = Command::new(binary);
                command.env("LISTEN", "127.0.0.1:0").env("ADMIN_LISTEN", "off");
                command.env("LOG_FORMAT", "json").env("POOL_EXCLUSIVE", "1");
                command.env("POOL_PIPELINED", pipelined);
                command
            }
            Contender::Axum => Command::new(peer("data-axum")),
            Contender::Actix => Command::new(peer("data-actix")),
        };
        if self != Contender::Ebbtide {
            command.arg("127.0.0.1:0").env("DATABASE_CONNECTIONS", connections.to_string());
        }
        command.env("DATABASE_URL", url).env("WORKERS", workers.to_string()).current_dir("/");
        command
    }
}

/// What a server gets.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// To the database.
    pub connections: u32,
    /// Threads for clients.
    pub workers: u32,
}

/// A server that is ready. Killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// When it does not start, or does not get its database.
    pub fn start(
        contender: Contender,
        binary: &Path,
        url: &str,
        means: Means,
    ) -> Result<Server, Fault> {
        let mut command = contender.command(binary, url, means);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.spawn().map_err(Fault::of(&format!("start {}", contender.name())))?;
        let stderr = child.stderr.take().expect("it is piped");
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let _waited = child.wait();
                return Err(Fault(format!("{} does not start: {said}", contender.name())));
            };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["event_type"] == "server_started"
                && let Some(address) = event["listen"].as_str().and_then(|text| text.parse().ok())
            {
                break address;
            }
            said.push_str(&line);
        };
        // So that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let server = Server { child, address };
        let deadline = Instant::now() + READY_MAX;
        while !server.is_ready() {
            if Instant::now() > deadline {
                return Err(Fault(format!("{} does not get its database", contender.name())));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(server)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return false };
        let request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut answer = Vec::new();
        let read = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
        read.is_ok() && answer.starts_with(b"HTTP/1.1 200")
    }

    /// What its process has used of the CPU so far (proc(5), `stat`: fields 14 and 15, in ticks).
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_seconds(&self) -> Result<f64, Fault> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.map_err(Fault::of("read the CPU time of a server"))?;
        // The name may hold blanks; it ends with the last parenthesis.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok());
        Ok(ticks.sum::<f64>() / TICKS_PER_SECOND)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has ended and was waited for: so much the better.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// Where the others are.
const PEERS: &str = "loadtest/peers/data";

/// What the kernel counts in (`USER_HZ`), on every architecture of today.
const TICKS_PER_SECOND: f64 = 100.0;

const READY_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
