//! A PostgreSQL cluster for the length of a run.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::server::{Contender, Means, Server};
use crate::target::Fault;

/// Stopped and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    postmaster: Child,
    directory: PathBuf,
    port: u16,
}

impl Cluster {
    /// Makes and starts one, as `nobody` when run by root, whom PostgreSQL refuses.
    pub fn start() -> Result<Cluster, Fault> {
        let directory = std::env::temp_dir().join(format!("loadtest-pg-{}", std::process::id()));
        std::fs::create_dir(&directory).map_err(Fault::of("make a directory for PostgreSQL"))?;
        if is_root() {
            let given = chown(&directory, Some(NOBODY), Some(NOBODY));
            given.map_err(Fault::of("give PostgreSQL its directory"))?;
        }
        let data = directory.join("data");
        let made = command("initdb")?
            .arg("--pgdata")
            .arg(&data)
            .args(["--username", "loadtest", "--auth", "trust", "--no-sync"])
            .args(["--encoding", "UTF8", "--locale", "C.UTF-8"])
            .output()
            .map_err(Fault::of("run initdb"))?;
        if !made.status.success() {
            return Err(Fault(format!("initdb: {}", String::from_utf8_lossy(&made.stderr))));
        }
        let port = free_port().map_err(Fault::of("find a free port"))?;
        let postmaster = command("postgres")?
            .arg("-D")
            .arg(&data)
            .args(["-c", &format!("port={port}"), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", &format!("unix_socket_directories={}", directory.display())])
            .args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "max_connections=300"])
            .args(["-c", "shared_buffers=256MB", "-c", "autovacuum=off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Fault::of("start postgres"))?;
        let cluster = Cluster { postmaster, directory, port };
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if Instant::now() > deadline {
                return Err(Fault("PostgreSQL does not start".to_owned()));
            }
            std::thread::park_timeout(LOOK_AGAIN);
        }
        Ok(cluster)
    }

    pub fn url(&self) -> String {
        format!("postgres://loadtest@127.0.0.1:{}/postgres", self.port)
    }

    /// Has the tables there, as they are at the beginning: ebbtide makes them, so whoever is first.
    pub fn fresh(&self, binary: &Path) -> Result<(), Fault> {
        let has_tables = self.psql("SELECT 1 FROM lab_rows LIMIT 1").is_ok();
        if !has_tables {
            let means = Means { connections: 2, workers: 1 };
            drop(Server::start(Contender::Ebbtide, binary, &self.url(), means)?);
        }
        self.psql("TRUNCATE items")?;
        self.psql("VACUUM ANALYZE lab_rows")
    }

    fn psql(&self, text: &str) -> Result<(), Fault> {
        let output = Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", text, &self.url()])
            .stdin(Stdio::null())
            .output()
            .map_err(Fault::of("run psql"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Fault(format!("psql: {}", String::from_utf8_lossy(&output.stderr))))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Without the pains of a clean end: its files go with it.
        let _told = kill_process(Pid::from_child(&self.postmaster), Signal::QUIT);
        let _waited = self.postmaster.wait();
        let _removed = std::fs::remove_dir_all(&self.directory);
    }
}

/// One of PostgreSQL's programs, where Debian keeps them too, as an ordinary user.
fn command(name: &str) -> Result<Command, Fault> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    let found = places.iter().map(|place| place.join(name)).find(|file| file.is_file());
    let missing = || Fault(format!("{name} is not installed: apt-get install postgresql"));
    let mut command = Command::new(found.ok_or_else(missing)?);
    command.current_dir("/");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    Ok(command)
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

const NOBODY: u32 = 65534;
const START_MAX: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
