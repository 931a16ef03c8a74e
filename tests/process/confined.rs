//! The server where little is allowed: in so much memory as a small container has, and with the
//! system calls that a service of systemd gets.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::services::postgres::Database;
use crate::services::skip;
use crate::support::client::{Client, End};
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::{
    Wrk, as_user, finished_trace, raise_descriptors, stdout, strace_works, tool,
};
use crate::support::{SOON, alone, beside_others, say, until};

/// A control group with a limit of memory, of either version. Removed when dropped.
struct Memory {
    place: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Memory {
    /// `None`, said loudly, where none can be made: that needs root, or a group that is delegated.
    fn limited(bytes: u64) -> Option<Memory> {
        let name = format!("ebbtide-test-{}", std::process::id());
        let made = [
            ("/sys/fs/cgroup/memory", Version::V1, "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", Version::V2, "memory.max"),
        ]
        .into_iter()
        .find_map(|(root, version, limit)| {
            let memory = Memory { place: Path::new(root).join(&name), version };
            fs::create_dir(&memory.place).ok()?;
            // Where memory is not controlled there is no such file.
            fs::write(memory.place.join(limit), bytes.to_string()).is_ok().then_some(memory)
        });
        if made.is_none() {
            skip("no control group with a limit of memory can be made");
        }
        made
    }

    /// Has a process put itself into the group before it becomes the server.
    fn start(&self, launch: Launch) -> Server {
        let script = format!("echo $$ >{}/cgroup.procs && exec \"$@\"", self.place.display());
        launch.through(&["sh", "-c", &script, "sh"]).start()
    }

    /// How many processes have been killed for want of memory.
    fn killed(&self) -> u64 {
        let file = if self.version == Version::V1 { "memory.oom_control" } else { "memory.events" };
        let text = fs::read_to_string(self.place.join(file)).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.expect("the kernel counts them").parse().unwrap()
    }

    /// The most it has held, with what the kernel keeps for sockets and files.
    fn peak(&self) -> u64 {
        let v1 = self.version == Version::V1;
        let file = if v1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        fs::read_to_string(self.place.join(file)).map_or(0, |text| text.trim().parse().unwrap())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Its processes have ended, or the test has failed anyway.
        let _removed = fs::remove_dir(&self.place);
    }
}

/// What a container of 24 MiB must be enough for.
const LIMIT: u64 = 24 << 20;
const CROWD: usize = 2_000;
const ACTIVE: usize = 500;

/// A server in the group, what is done to it, and its end: with nobody killed, and status 0.
fn survives(name: &str, then: impl FnOnce(&Server) -> Vec<Client>) {
    raise_descriptors();
    let Some(memory) = Memory::limited(LIMIT) else { return };
    let mut server = memory.start(Launch::new().env("SHUTDOWN_TIMEOUT", 15));
    let clients = then(&server);
    assert_eq!(clients.len(), if name == "active" { ACTIVE } else { CROWD });
    let rss = server.metric("process_resident_memory_bytes") / 1024.0;
    server.signal("TERM");
    for mut client in clients {
        if name == "active" {
            assert_eq!(client.response().status, 200);
        } else if name == "half a head" {
            // It takes its time, as heads may, and is answered.
            client.send("ncoding: gzip\r\n\r\n");
            assert_eq!(client.response().status, 200);
        }
        assert_eq!(client.end(), End::Closed);
    }
    let exit = server.exit(SOON);
    assert_eq!((exit.status, memory.killed()), (0, 0), "{:#}", server.log.report());
    let peak = memory.peak() >> 10;
    say(&format!("in 24 MiB, {name}: resident {rss} KiB, group's peak {peak} KiB, none killed"));
}

fn crowd(server: &Server, request: &str) -> Vec<Client> {
    let one = |_| {
        let mut client = server.connect();
        client.send(request);
        client
    };
    (0..CROWD).map(one).collect()
}

/// Waits until so many connections are in a state.
fn wait_state(server: &Server, state: &str, count: usize) {
    let wanted = format!("http_connections{{state=\"{state}\"}} {count}\n");
    until(&wanted, SOON, || server.metrics().contains(&wanted).then_some(()));
}

#[test]
fn two_thousand_idle_connections_survive_in_24_mebibytes() {
    let _turn = alone();
    survives("idle", |server| {
        // All at once: each is hot, with hyper around it, for a moment.
        let mut clients = crowd(server, "GET /json HTTP/1.1\r\nHost: localhost\r\n\r\n");
        for client in &mut clients {
            assert_eq!(client.response().status, 200);
        }
        wait_state(server, "hibernating", CROWD);
        clients
    });
}

#[test]
fn two_thousand_half_heads_survive_in_24_mebibytes() {
    let _turn = alone();
    survives("half a head", |server| {
        let half = "GET /json HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Mozilla/5.0 (X11; Linux \
                    x86_64) Gecko/20100101\r\nAccept-E";
        let clients = crowd(server, half);
        wait_state(server, "reading_head", CROWD);
        clients
    });
}

#[test]
fn five_hundred_active_connections_survive_in_24_mebibytes() {
    let _turn = alone();
    survives("active", |server| {
        if let Some(mut wrk) = tool("wrk") {
            let connections = format!("-c{ACTIVE}");
            wrk.args(["-t2", &connections, "-d4s", "--timeout", "10s"]);
            let said = Wrk::read(&stdout(wrk.arg(server.url("/bytes/10000"))));
            let errors = [said.connect, said.read, said.write, said.timeout, said.non_2xx];
            assert_eq!(errors, [0; 5], "{said:?}");
        }
        let one = |_| {
            let mut client = server.connect();
            client.ask("/sleep/2000");
            client
        };
        let clients = (0..ACTIVE).map(one).collect();
        server.wait_in_flight(ACTIVE);
        clients
    });
}

/// The names of the system calls in a set of systemd's, those of the sets in it included.
fn calls_of(set: &str) -> BTreeSet<String> {
    let text = stdout(tool("systemd-analyze").unwrap().args(["syscall-filter", set]));
    let words = text.lines().skip(1).map(str::trim).filter(|line| !line.starts_with('#'));
    let mut calls = BTreeSet::new();
    for word in words.filter(|word| !word.is_empty()) {
        if word.starts_with('@') {
            calls.extend(calls_of(word));
        } else {
            calls.insert(word.to_owned());
        }
    }
    calls
}

/// The calls that the unit's filter lets through.
fn allowed() -> BTreeSet<String> {
    let unit = include_str!("../../deploy/systemd/ebbtide.service");
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        for set in filter.trim_start_matches('~').split(' ') {
            let calls = calls_of(set);
            if filter.starts_with('~') {
                allowed = allowed.difference(&calls).cloned().collect();
            } else {
                allowed.extend(calls);
            }
        }
    }
    assert!(allowed.contains("epoll_wait") && !allowed.contains("mount"), "{allowed:?}");
    allowed
}

/// Starting, serving of every kind and draining: each call is one that the unit's filter allows,
/// with no database, with the file that the unit's server keeps, and with PostgreSQL.
#[test]
fn every_system_call_is_one_that_the_unit_allows() {
    let _turn = beside_others();
    if !strace_works() || tool("systemd-analyze").is_none() {
        return;
    }
    let allowed = allowed();
    let file = writable("confined-database", "ebbtide.db");
    let mut urls = vec!["off".to_owned(), format!("sqlite:{file}")];
    let postgres = Database::create("confined");
    urls.extend(postgres.as_ref().map(Database::url));
    let mut called = BTreeSet::new();
    for url in urls {
        let trace = traced(&url);
        let calls: BTreeSet<String> = trace.lines().filter_map(call).collect();
        assert!(calls.len() > 20, "{calls:?}");
        called.extend(calls);
    }
    say(&format!("{} different system calls from start to exit", called.len()));
    // The first is the tracer's doing: systemd executes the program before the filter is checked.
    let beyond: Vec<&String> = called.difference(&allowed).collect();
    assert!(beyond.is_empty(), "not allowed by the unit: {beyond:?}");
}

/// A path in a fresh folder that anybody may write to.
fn writable(directory: &str, name: &str) -> String {
    let path = file_in(directory, name);
    let folder = Path::new(&path).parent().unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    path
}

/// What strace saw of a server with that database, from its start to its exit.
fn traced(database: &str) -> String {
    let trace = writable("confined", "trace");
    let launch = Launch::new().env("SHUTDOWN_REPORT_PATH", writable("confined-report", "report"));
    let launch = launch.env("DATABASE_URL", database);
    // As root SQLite gives its files to who has the first one: a call that the unit's user has not.
    let strace = ["strace", "-D", "-f", "-o", &trace];
    let mut server = launch.through(&[as_user(), &strace].concat()).start();
    until("readiness", SOON, || {
        (Client::connect(server.admin).get("/readyz").status == 200).then_some(())
    });
    let mut client = server.connect();
    for path in ["/json", "/bytes/5000000", "/stream/3/10", "/sleep/20", "/panic"] {
        client.get(path);
        client = server.connect();
    }
    client.send("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.response().text(), "hi");
    for path in ["/metrics", "/connections", "/readyz?verbose"] {
        assert_eq!(Client::connect(server.admin).get(path).status, 200);
    }
    if database != "off" {
        client.send(
            "POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: 28\r\n\r\n{\"name\":\"rope\",\"quantity\":1}",
        );
        assert_eq!(client.response().status, 201);
        assert_eq!(client.get("/items").status, 200);
        assert_eq!(client.get("/db").status, 200);
    }
    client.ask("/sleep/300");
    server.wait_in_flight(1);
    server.signal("TERM");
    assert_eq!(client.response().status, 200);
    drop(client);
    assert_eq!(server.exit(SOON).status, 0);
    finished_trace(&trace)
}

/// The call that a line of strace is about: `123 name(...`, or `123 <... name resumed>`.
fn call(line: &str) -> Option<String> {
    let rest = line.split_once(' ')?.1.trim_start();
    let name = match rest.strip_prefix("<... ") {
        Some(resumed) => resumed.split(' ').next()?,
        None => rest.split_once('(')?.0,
    };
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then(|| name.to_owned())
}
