//! Listeners of a real process: what is queued when the signal comes, restarts under clients that
//! connect anew for each request, and sockets that are passed on.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use socket2::{Domain, Socket, Type};

use crate::support::client::Client;
use crate::support::server::{Launch, Log, Server, file_in, send};
use crate::support::tools::{as_user, tool};
use crate::support::{SOON, alone, beside_others, say, until};

/// So many clients whose requests are sent before anybody looks at them.
fn asking(connect: impl Fn() -> Client) -> Vec<Client> {
    let ask = |_| {
        let mut client = connect();
        client.ask("/plaintext");
        client
    };
    (0..60).map(ask).collect()
}

fn expect_answers(clients: Vec<Client>) {
    for mut client in clients {
        assert_eq!(client.response().text(), "Hello, World!");
    }
}

/// Stops the process, has `connect` fill its queue, and lets it find the signal and the queue at
/// the same time.
fn signal_with_a_full_queue(server: &Server, connect: impl Fn() -> Client) -> Vec<Client> {
    server.signal("STOP");
    until_stopped(server);
    let clients = asking(connect);
    server.signal("TERM");
    server.signal("CONT");
    clients
}

fn until_stopped(server: &Server) {
    let status = format!("/proc/{}/stat", server.pid());
    until("the process to stop", SOON, || {
        let stat = std::fs::read_to_string(&status).unwrap();
        stat.contains(") T ").then_some(())
    });
}

fn assert_clean_end(mut server: Server) -> u64 {
    let exit = server.exit(SOON);
    let report = server.log.report();
    assert_eq!(exit.status, 0, "{report:#}");
    report["requests"]["finished"]["answered"].as_u64().unwrap()
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn inheriting(listener: &TcpListener) -> Launch {
    Launch::new().listen("systemd").passing([listener.try_clone().unwrap().into()])
}

#[test]
fn what_is_queued_is_answered_by_a_server_alone() {
    let _turn = beside_others();
    for workers in [0, 1, 3] {
        let server = Launch::new().env("WORKERS", workers).start();
        let queued = signal_with_a_full_queue(&server, || server.connect());
        expect_answers(queued);
        assert_eq!(assert_clean_end(server), 60);
    }
}

#[test]
fn what_is_queued_at_a_unix_socket_is_answered() {
    let _turn = beside_others();
    for workers in [0, 1, 3] {
        let path = file_in("queued", "socket");
        let address = format!("unix:{path}");
        let server = Launch::new().listen(address).env("WORKERS", workers).start();
        let queued = signal_with_a_full_queue(&server, || Client::connect_unix(path.as_ref()));
        expect_answers(queued);
        assert_eq!(assert_clean_end(server), 60);
        assert!(!std::fs::exists(&path).unwrap(), "its file goes with it");
    }
}

#[test]
fn what_is_queued_is_answered_when_another_shares_the_port() {
    let _turn = beside_others();
    let sharing = || Launch::new().env("REUSE_PORT", true).env("WORKERS", 2);
    let old = sharing().start();
    let port = old.port;
    old.signal("STOP");
    until_stopped(&old);
    let queued = asking(|| Client::connect(port));
    let new = sharing().listen(format!("127.0.0.1:{port}")).start();
    // Some of these are given to the one that is stopped.
    let shared = asking(|| Client::connect(port));
    old.signal("TERM");
    old.signal("CONT");
    let later = asking(|| Client::connect(port));
    expect_answers(queued);
    expect_answers(shared);
    expect_answers(later);
    let answered = assert_clean_end(old);
    assert!(answered >= 60, "its queue was its own: {answered}");
    new.signal("TERM");
    assert_eq!(answered + assert_clean_end(new), 180);
}

#[test]
fn what_is_queued_in_an_inherited_socket_is_answered_by_who_comes_next() {
    let _turn = beside_others();
    let (listener, port) = listener();
    let old = inheriting(&listener).start();
    assert_eq!(old.port, port);
    Client::connect(port).get("/plaintext");
    let queued = signal_with_a_full_queue(&old, || Client::connect(port));
    // How many it has taken by then is its own affair.
    let answered = assert_clean_end(old);
    let new = inheriting(&listener).start();
    expect_answers(queued);
    new.signal("TERM");
    assert_eq!(answered + assert_clean_end(new), 61);
}

#[test]
fn inherited_sockets_of_both_kinds_are_served_and_left() {
    let _turn = beside_others();
    let (listener, port) = listener();
    let path = file_in("inherited", "socket");
    let unix = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let sockets: [OwnedFd; 2] =
            [listener.try_clone().unwrap().into(), unix.try_clone().unwrap().into()];
        let server = Launch::new().listen("systemd").passing(sockets).start();
        assert_eq!(Client::connect(port).get("/plaintext").status, 200);
        assert_eq!(Client::connect_unix(path.as_ref()).get("/plaintext").status, 200);
        server.signal("TERM");
        assert_eq!(assert_clean_end(server), 2);
    }
    assert!(std::fs::exists(&path).unwrap(), "it belongs to who bound it");
}

#[test]
fn socket_activation_of_systemd_is_understood() {
    let _turn = beside_others();
    if tool("systemd-socket-activate").is_none() {
        return;
    }
    let path = file_in("activated", "socket");
    let activate = ["systemd-socket-activate", "--listen", &path, "--setenv=ADMIN_LISTEN=off"];
    let launch = Launch::new().through(&[&activate[..], &["--setenv=LISTEN=systemd"]].concat());
    let mut command = launch.command();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    until("the socket to be there", SOON, || std::fs::exists(&path).unwrap().then_some(()));
    // It starts the server when the first connection comes, in its own place.
    let mut client = Client::connect_unix(path.as_ref());
    client.ask("/plaintext");
    let server = Server::new(child, stderr);
    assert_eq!(client.response().text(), "Hello, World!");
    drop(client);
    server.signal("TERM");
    assert_eq!(assert_clean_end(server), 1);
}

/// Clients that connect anew for each request, and must never be refused, reset or left alone.
struct Demanding {
    clients: Vec<JoinHandle<()>>,
    answered: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Demanding {
    fn start(port: u16) -> Demanding {
        let (answered, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let client = |_| {
            let (answered, is_over) = (Arc::clone(&answered), Arc::clone(&is_over));
            thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    assert_eq!(Client::connect(port).get("/plaintext").status, 200);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Demanding { clients, answered, is_over }
    }

    /// Waits until so many more are answered.
    fn wait_answered(&self, count: u64) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        until("answers", SOON, || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "one was let down");
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    fn finish(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().expect("no request is lost"));
        self.answered.load(Ordering::Relaxed)
    }
}

fn restarts() -> usize {
    if std::env::var_os("EBBTIDE_LONG").is_some_and(|value| value == "1") { 40 } else { 5 }
}

#[test]
fn restarts_on_a_shared_port_lose_nothing_under_load() {
    let _turn = alone();
    let as_we_are: fn(Launch) -> Launch = |launch| launch;
    for (name, user) in
        [("as we are", as_we_are), ("unprivileged", |launch| launch.through(as_user()))]
    {
        let sharing = || user(Launch::new().env("REUSE_PORT", true).env("WORKERS", 2));
        let mut serving = sharing().start();
        let port = serving.port;
        let clients = Demanding::start(port);
        let mut answered = 0;
        for _ in 0..restarts() {
            clients.wait_answered(200);
            let next = sharing().listen(format!("127.0.0.1:{port}")).start();
            let old = std::mem::replace(&mut serving, next);
            old.signal("TERM");
            answered += assert_clean_end(old);
        }
        clients.wait_answered(200);
        let asked = clients.finish();
        serving.signal("TERM");
        answered += assert_clean_end(serving);
        say(&format!(
            "{} restarts with reuse_port, {name}: {asked} connections, none lost",
            restarts()
        ));
        assert_eq!(answered, asked, "both sides count the same");
    }
}

#[test]
fn restarts_on_an_inherited_socket_lose_nothing_under_load() {
    let _turn = alone();
    let (listener, port) = listener();
    let mut serving = inheriting(&listener).start();
    let clients = Demanding::start(port);
    let mut answered = 0;
    for restart in 0..restarts() {
        clients.wait_answered(200);
        // The successor comes before its predecessor leaves, or after it.
        if restart % 2 == 0 {
            let next = inheriting(&listener).start();
            let old = std::mem::replace(&mut serving, next);
            old.signal("TERM");
            answered += assert_clean_end(old);
        } else {
            serving.signal("TERM");
            answered += assert_clean_end(serving);
            serving = inheriting(&listener).start();
        }
    }
    clients.wait_answered(200);
    let asked = clients.finish();
    serving.signal("TERM");
    answered += assert_clean_end(serving);
    say(&format!("{} restarts with LISTEN_FDS: {asked} connections, none lost", restarts()));
    assert_eq!(answered, asked, "both sides count the same");
}

/// What systemd does when a service is restarted, by a script: it keeps the socket, and each server
/// gets it in its turn. Says each one's process id on stderr.
const RESTARTING: &str = r#"
    while test ! -e "$OVER"; do
        sh -c 'export LISTEN_PID=$$; exec "$@"' sh "$@" &
        echo "server $!" >&2
        wait $! || exit 1
    done
"#;

/// A socket that stays while servers come and go. It goes with its last server when dropped.
struct Activated {
    holder: Child,
    log: Log,
    port: u16,
    /// A file that says that no server is to come any more.
    over: String,
}

impl Activated {
    /// With the settings of the unit in `deploy/systemd`, but for what needs a place or a port.
    fn start() -> Option<Activated> {
        tool("systemd-socket-activate")?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let over = file_in("activated-restarts", "over");
        let unit = include_str!("../../deploy/systemd/ebbtide.service");
        let settings = unit.lines().filter_map(|line| line.strip_prefix("Environment="));
        let over_is = format!("OVER={over}");
        let own = ["SHUTDOWN_REPORT_PATH=", "ADMIN_LISTEN=off", &over_is];
        let mut wrapper =
            vec!["systemd-socket-activate".to_owned(), format!("--listen=127.0.0.1:{port}")];
        wrapper.extend(settings.chain(own).map(|setting| format!("--setenv={setting}")));
        wrapper.extend(["sh", "-c", RESTARTING, "sh"].map(str::to_owned));
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut command = Launch::bare().through(&wrapper).command();
        let mut holder = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Log::follow(holder.stderr.take().unwrap());
        let activated = Activated { holder, log, port, over };
        activated.log.wait_line("listening", |line| line.contains("Listening on"));
        Some(activated)
    }

    /// The process ids of the servers so far.
    fn servers(&self) -> Vec<u32> {
        let id = |line: &String| Some(line.strip_prefix("server ")?.parse().unwrap());
        self.log.so_far().iter().filter_map(id).collect()
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let _over = std::fs::write(&self.over, "");
        for server in self.servers().last().into_iter().chain([&self.holder.id()]) {
            let _killed = Command::new("kill").args(["-KILL", &server.to_string()]).output();
        }
        let _waited = self.holder.wait();
    }
}

#[test]
fn restarts_through_an_activated_socket_lose_nothing_under_load() {
    let _turn = alone();
    let Some(mut activated) = Activated::start() else { return };
    let clients = Demanding::start(activated.port);
    let server =
        |count: usize| until("the next server", SOON, || activated.servers().get(count).copied());
    for restart in 0..restarts() {
        clients.wait_answered(200);
        send("TERM", server(restart));
    }
    clients.wait_answered(200);
    let last = server(restarts());
    let asked = clients.finish();
    std::fs::write(&activated.over, "").unwrap();
    send("TERM", last);
    assert!(activated.holder.wait().unwrap().success(), "{:#?}", activated.log.so_far());
    say(&format!(
        "{} restarts through an activated socket: {asked} connections, none lost",
        restarts()
    ));
    let reports = activated.log.all();
    let reports = reports.iter().filter(|line| line.contains("\"shutdown_report\"")).count();
    assert_eq!(reports, restarts() + 1);
}

/// What the log says of a start that fails.
fn refusal(launch: Launch) -> String {
    let ended = launch.finish();
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    let line = ended.stderr.lines().find(|line| line.contains("start_failed"));
    let line: serde_json::Value = serde_json::from_str(line.expect("a reason")).unwrap();
    line["message"].as_str().unwrap().to_owned()
}

#[test]
fn a_descriptor_that_is_no_listening_stream_socket_is_named() {
    let _turn = beside_others();
    let passing = |socket: OwnedFd| Launch::new().listen("systemd").passing([socket]);
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    assert_eq!(
        refusal(passing(datagrams.into())),
        "cannot listen on systemd: descriptor 3 of LISTEN_FDS is no stream socket"
    );
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    assert_eq!(
        refusal(passing(silent.into())),
        "cannot listen on systemd: descriptor 3 of LISTEN_FDS does not listen"
    );
    let file = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(
        refusal(passing(file.into())),
        "cannot listen on systemd: descriptor 3 of LISTEN_FDS is no socket"
    );
    // The second is what the shell was given as its stdout: a pipe.
    let (listener, _) = listener();
    let script = "exec 3<&0 4<&1; export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\"";
    assert_eq!(
        refusal(inheriting(&listener).through(&["sh", "-c", script, "sh"])),
        "cannot listen on systemd: descriptor 4 of LISTEN_FDS is no socket"
    );
}

#[test]
fn descriptors_that_are_not_there_or_not_for_us_are_not_taken() {
    let _turn = beside_others();
    let with = |script: &str| {
        let script = format!("{script}; exec \"$@\"");
        refusal(Launch::new().listen("systemd").through(&["sh", "-c", &script, "sh"]))
    };
    let none = "cannot listen on systemd: no socket was passed on to this process: \
                expected LISTEN_FDS with their number, and LISTEN_PID with the process id";
    assert_eq!(with("true"), none);
    assert_eq!(with("export LISTEN_FDS=1"), none);
    assert_eq!(with("export LISTEN_FDS=1 LISTEN_PID=1"), none);
    assert_eq!(with("export LISTEN_FDS=0 LISTEN_PID=$$"), none);
    assert_eq!(
        with("exec 3<&- 9<&-; export LISTEN_FDS=1 LISTEN_PID=$$"),
        "cannot listen on systemd: descriptor 3 of LISTEN_FDS is not open"
    );
    assert_eq!(
        with("export LISTEN_FDS=-1 LISTEN_PID=$$"),
        "cannot listen on systemd: invalid LISTEN_FDS in the environment"
    );
    assert_eq!(
        with("export LISTEN_FDS=1 LISTEN_PID=me"),
        "cannot listen on systemd: invalid LISTEN_PID in the environment"
    );
}

#[test]
fn sockets_that_are_passed_on_unasked_are_left_alone() {
    let _turn = beside_others();
    let (listener, port) = listener();
    let server = Launch::new().passing([listener.try_clone().unwrap().into()]).start();
    assert_ne!(server.port, port);
    assert_eq!(server.connect().get("/plaintext").status, 200);
    server.stop();
}
