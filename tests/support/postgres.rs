//! PostgreSQL: a cluster that the tests of a process share, with a database for each, or one of a
//! test's own, for what hurts all who use it.
//!
//! Clients come over TCP on 127.0.0.1 as `ebbtide`, an ordinary role with a password; the tests'
//! own look behind the scenes goes over the unix socket as the superuser. Nothing is synced to
//! disk.

use std::fmt::Display;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Client, NoTls, Row};

use super::keeper::{Keeper, as_user, directory};
use super::{SOON, free_port, program, until};

/// A cluster that runs, unless a test has stopped it.
#[derive(Debug)]
pub struct Cluster {
    keeper: Keeper,
    port: u16,
}

/// One test's database. Dropped with everybody's sessions in it.
#[derive(Debug)]
pub struct Database<'a> {
    cluster: &'a Cluster,
    name: String,
}

/// The password of the role `ebbtide`.
pub const PASSWORD: &str = "tidal";

/// How PostgreSQL is asked to stop (`pg_ctl -m`).
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    /// Sessions are ended, transactions rolled back.
    Fast,
    /// As after a crash: nobody is told, the next start recovers.
    Immediate,
}

impl Cluster {
    /// The cluster of this process, started with its first use; `None` when PostgreSQL is missing.
    pub fn shared() -> Option<&'static Cluster> {
        static SHARED: LazyLock<Option<Cluster>> = LazyLock::new(Cluster::start);
        SHARED.as_ref()
    }

    /// A cluster of the test's own.
    pub fn start() -> Option<Cluster> {
        Cluster::start_with(&[])
    }

    /// As [`start`](Cluster::start), with settings as `postgresql.conf` has them (`"ssl=on"`).
    pub fn start_with(settings: &[&str]) -> Option<Cluster> {
        let (initdb, postgres) = (program("initdb")?, program("postgres")?);
        let home = directory("pg");
        let path = |name: &str| home.join(name).to_str().expect("a plain path").to_owned();
        let made = as_user(initdb)
            .args(["--pgdata", &path("data"), "--username", "postgres", "--auth", "trust"])
            .args(["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"])
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(path("data/pg_hba.conf"), rules).unwrap();
        let port = free_port();
        let mut line = vec![postgres.to_str().expect("a plain path").to_owned()];
        line.extend(["-D".to_owned(), path("data")]);
        let own = [
            format!("port={port}"),
            "listen_addresses=127.0.0.1".to_owned(),
            format!("unix_socket_directories={}", home.display()),
            "fsync=off".to_owned(),
            "max_connections=150".to_owned(),
            "log_connections=off".to_owned(),
        ];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            line.extend(["-c".to_owned(), setting.to_owned()]);
        }
        let keeper = Keeper::new(home, "QUIT", line);
        let cluster = Cluster { keeper, port };
        cluster.begin();
        let role = format!("CREATE ROLE ebbtide LOGIN PASSWORD '{PASSWORD}'");
        cluster.superuser("postgres").batch_execute(&role).unwrap();
        Some(cluster)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of one of its databases, for the role `ebbtide`.
    pub fn url(&self, database: &str) -> String {
        url_at(self.port, database)
    }

    /// Starts it again and waits until it takes sessions.
    pub fn begin(&self) {
        self.keeper.start();
        until("PostgreSQL to take sessions", SOON, || self.try_superuser("postgres"));
    }

    /// Stops it and waits for its end.
    pub fn stop(&self, how: Stop) {
        self.keeper.signal(match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        });
        self.keeper.wait();
    }

    /// A session of the superuser.
    pub fn superuser(&self, database: &str) -> Client {
        self.try_superuser(database).unwrap_or_else(|| panic!("{}", self.keeper.log()))
    }

    fn try_superuser(&self, database: &str) -> Option<Client> {
        let (host, port) = (self.keeper.directory().display(), self.port);
        let place = format!("host={host} port={port} user=postgres dbname={database}");
        Client::connect(&place, NoTls).ok()
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        self.keeper.log()
    }

    /// A database that is dropped with the value.
    pub fn database(&self, test: &str) -> Database<'_> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let name = format!("{test}_{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        let create = format!("CREATE DATABASE {name} OWNER ebbtide");
        self.superuser("postgres").batch_execute(&create).unwrap();
        Database { cluster: self, name }
    }
}

impl Database<'static> {
    /// A database in the cluster of this process; `None` when PostgreSQL is missing.
    pub fn create(test: &str) -> Option<Database<'static>> {
        Some(Cluster::shared()?.database(test))
    }
}

impl Database<'_> {
    pub fn cluster(&self) -> &Cluster {
        self.cluster
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, for the role `ebbtide`.
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// Its address behind a proxy that listens on `port`.
    pub fn url_through(&self, port: u16) -> String {
        url_at(port, &self.name)
    }

    /// A session of the superuser in it.
    pub fn superuser(&self) -> Client {
        self.cluster.superuser(&self.name)
    }

    /// Rows, as the superuser sees them.
    pub fn rows(&self, query: &str) -> Vec<Row> {
        self.superuser().query(query, &[]).unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// The sessions of `ebbtide` in it that are there now.
    pub fn sessions(&self) -> Vec<Session> {
        let query = format!(
            "SELECT pid, coalesce(state, ''), query FROM pg_stat_activity \
             WHERE datname = '{}' AND usename = 'ebbtide' AND backend_type = 'client backend'",
            self.name
        );
        let mut client = self.cluster.superuser("postgres");
        let rows = client.query(&query, &[]).unwrap();
        let session = |row: &Row| Session {
            pid: u32::try_from(row.get::<_, i32>(0)).unwrap(),
            state: row.get(1),
            query: row.get(2),
        };
        rows.iter().map(session).collect()
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // Fails when a test has stopped the cluster, which then goes as a whole.
        let _dropped =
            self.cluster.try_superuser("postgres").map(|mut client| client.batch_execute(&drop));
    }
}

/// A session, as `pg_stat_activity` tells of it.
#[derive(Clone, Debug)]
pub struct Session {
    pub pid: u32,
    /// `active`, `idle`, `idle in transaction`.
    pub state: String,
    /// The statement it runs, or ran last.
    pub query: String,
}

impl Session {
    pub fn is_running(&self, part: &str) -> bool {
        self.state == "active" && self.query.contains(part)
    }

    /// Stops its process in its tracks. TCP stays alive and nothing is answered.
    pub fn freeze(&self) -> Frozen {
        send("STOP", self.pid);
        Frozen { pid: self.pid }
    }
}

/// A process that is stopped as long as this lives.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Fails when the process was killed meanwhile.
        let _sent = try_send("CONT", self.pid);
    }
}

fn send(signal: &str, pid: u32) {
    assert!(try_send(signal, pid), "{signal} can be sent to {pid}");
}

fn try_send(signal: &str, pid: u32) -> bool {
    let mut kill = Command::new("kill");
    kill.args(["-s", signal, &pid.to_string()]).stderr(std::process::Stdio::null());
    kill.status().is_ok_and(|status| status.success())
}

fn url_at(port: impl Display, database: &str) -> String {
    format!("postgres://ebbtide:{PASSWORD}@127.0.0.1:{port}/{database}")
}
