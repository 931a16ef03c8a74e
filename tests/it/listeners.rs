//! Listeners by how they came to be: inherited, shared with a successor, bound to a file. What is
//! queued is answered by somebody, whoever leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use ebbtide::{
    Address, ConnectionState, InheritedListeners, Options, Phase, Request, RequestOutcome, Router,
    Server, Workers, get,
};
use socket2::{Domain, Socket, Type};

use super::client::{Client, request, upload};
use super::embedding::SocketPath;
use super::support::{Gate, Served, app, ms, now, options, spawn, tcp, wait_until};

fn workers(count: usize, listen: &[&str]) -> Options {
    let listen = listen.iter().map(|text| text.parse().expect("an address")).collect();
    Options { listen, workers: Workers::Count(count), ..options() }
}

fn inheriting(count: usize, socket: impl Into<OwnedFd>, router: Router) -> Served {
    let inherited = InheritedListeners::of([socket.into()]).expect("a socket that listens");
    let server = Server::bind_inheriting(workers(count, &["systemd"]), inherited, router);
    Served::run(server.expect("there is a socket"))
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// The routes of [`app`], and `/who`, which says which thread answers.
fn who(gate: &Gate) -> Router {
    let name = |_: Request| std::thread::current().name().unwrap_or_default().to_owned();
    app(gate).route("/who", get(name))
}

fn asking(connect: impl Fn() -> Client, count: usize) -> Vec<Client> {
    let ask = |_| {
        let mut client = connect();
        client.send(request("/hello"));
        client
    };
    (0..count).map(ask).collect()
}

fn expect_answers(clients: Vec<Client>) {
    for mut client in clients {
        client.read_response().expect(200, "hello");
    }
}

#[test]
fn connections_of_a_shared_queue_are_dealt_in_turn() {
    let path = SocketPath::new("dealt");
    let listen = format!("unix:{}", path.path().display());
    let _served = Served::with(workers(4, &[&listen]), who(&Gate::default()));
    let mut shares: BTreeMap<String, usize> = BTreeMap::new();
    let mut clients: Vec<Client> = (0..40).map(|_| Client::connect_unix(path.path())).collect();
    for client in &mut clients {
        let answer = client.get("/who");
        *shares.entry(String::from_utf8(answer.body).expect("a name")).or_default() += 1;
    }
    assert_eq!(shares.into_values().collect::<Vec<_>>(), [10; 4]);
}

#[test]
fn connections_that_were_dealt_to_a_worker_that_is_held_are_answered() {
    let path = SocketPath::new("held");
    let gate = Gate::default();
    let listen = format!("unix:{}", path.path().display());
    let served = Served::with(workers(2, &[&listen]), app(&gate));
    let mut blocking: Vec<Client> = Vec::new();
    for n in 1..=2 {
        let mut client = Client::connect_unix(path.path());
        client.send(request("/block"));
        blocking.push(client);
        gate.until_arrived(n);
    }
    let dealt = asking(|| Client::connect_unix(path.path()), 50);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    wait_until("its file is gone", || !path.path().exists());
    gate.open();
    expect_answers(dealt);
    for mut client in blocking {
        client.read_response().expect(200, "blocked");
    }
    let report = served.report();
    assert_eq!((report.exit_status, report.counts.opened), (0, 52));
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 52);
}

#[test]
fn a_unix_socket_is_emptied_once_its_file_is_gone() {
    let path = SocketPath::new("emptied");
    let gate = Gate::default();
    let listen = format!("unix:{}", path.path().display());
    let served = Served::with(workers(0, &[&listen]), app(&gate));
    let mut blocking = Client::connect_unix(path.path());
    blocking.send(request("/block"));
    gate.until_arrived(1);
    let queued = asking(|| Client::connect_unix(path.path()), 100);
    served.handle.shutdown();
    gate.open();
    expect_answers(queued);
    blocking.read_response().expect(200, "blocked");
    drop(blocking);
    assert_eq!(served.report().exit_status, 0);
    assert!(!path.path().exists());
}

#[test]
fn a_socket_that_has_taken_the_place_of_ours_is_left_alone() {
    let path = SocketPath::new("replaced");
    let listen = format!("unix:{}", path.path().display());
    let served = Served::with(workers(1, &[&listen]), app(&Gate::default()));
    Client::connect_unix(path.path()).get("/hello").expect(200, "hello");
    std::fs::remove_file(path.path()).expect("it is there");
    let successor = Served::with(workers(1, &[&listen]), app(&Gate::default()));
    assert_eq!(served.stop().exit_status, 0);
    Client::connect_unix(path.path()).get("/hello").expect(200, "hello");
    assert_eq!(successor.stop().exit_status, 0);
    assert!(!path.path().exists(), "the last one removes its own");
}

#[test]
fn a_server_that_never_runs_leaves_no_file() {
    let path = SocketPath::new("unused");
    let listen = format!("unix:{}", path.path().display());
    let server = Server::bind(workers(1, &[&listen]), Router::new()).expect("a fresh path");
    assert!(path.path().exists());
    drop(server);
    assert!(!path.path().exists());
}

#[test]
fn an_inherited_socket_is_served_and_stays_with_its_owner() {
    for count in [0, 1, 4] {
        let (listener, address) = listener();
        let gate = Gate::default();
        let served = inheriting(count, listener.try_clone().expect("a descriptor"), app(&gate));
        assert_eq!(served.addresses(), [Address::Tcp(address)]);
        let mut client = served.client();
        client.send(request("/wait"));
        gate.until_arrived(1);
        served.begin_shutdown();
        gate.open();
        client.read_response().expect(200, "waited");
        drop(client);
        assert_eq!(served.report().exit_status, 0);
        // Nobody accepts now, and nobody is refused.
        let queued = asking(|| Client::connect(address), 20);
        let next = inheriting(count, listener, app(&gate));
        expect_answers(queued);
        assert_eq!(next.stop().exit_status, 0);
    }
}

#[test]
fn what_is_queued_in_an_inherited_socket_is_left_to_the_other_holder() {
    let (listener, address) = listener();
    let gate = Gate::default();
    let served = inheriting(0, listener.try_clone().expect("a descriptor"), app(&gate));
    let mut blocking = Client::connect(address);
    blocking.send(request("/block"));
    gate.until_arrived(1);
    let queued = asking(|| Client::connect(address), 100);
    served.handle.shutdown();
    gate.open();
    blocking.read_response().expect(200, "blocked");
    drop(blocking);
    let report = served.report();
    assert_eq!((report.exit_status, report.counts.opened), (0, 1));
    let next = inheriting(2, listener, app(&gate));
    expect_answers(queued);
    assert_eq!(next.stop().counts.opened, 100);
}

#[test]
fn the_file_of_an_inherited_unix_socket_stays() {
    let path = SocketPath::new("inherited");
    let listener = UnixListener::bind(path.path()).expect("a fresh path");
    for count in [0, 1, 4] {
        let clone = listener.try_clone().expect("a descriptor");
        let served = inheriting(count, clone, app(&Gate::default()));
        assert_eq!(served.addresses(), [Address::Unix(path.path().to_owned())]);
        Client::connect_unix(path.path()).get("/hello").expect(200, "hello");
        assert_eq!(served.stop().exit_status, 0);
        assert!(path.path().exists(), "it is not ours");
    }
}

#[test]
fn addresses_of_every_kind_are_served_side_by_side() {
    let path = SocketPath::new("kinds");
    let unix = format!("unix:{}", path.path().display());
    for count in [0, 2] {
        let (listener, inherited) = listener();
        let passed = InheritedListeners::of([listener.into()]).expect("it listens");
        let options = workers(count, &[&unix, "systemd", "127.0.0.1:0"]);
        let bound = Server::bind_inheriting(options, passed, app(&Gate::default()));
        let served = Served::run(bound.expect("all are free"));
        let [at_unix, at_inherited, own] = served.addresses() else { panic!("three addresses") };
        assert_eq!(at_unix, &Address::Unix(path.path().to_owned()));
        assert_eq!(at_inherited, &Address::Tcp(inherited));
        Client::connect(tcp(own)).get("/hello").expect(200, "hello");
        Client::connect(inherited).get("/hello").expect(200, "hello");
        Client::connect_unix(path.path()).get("/hello").expect(200, "hello");
        let report = served.stop();
        assert_eq!((report.exit_status, report.counts.opened), (0, 3));
    }
}

#[test]
fn a_dealt_connection_over_the_limit_is_told_so() {
    let path = SocketPath::new("full");
    let gate = Gate::default();
    let unix = format!("unix:{}", path.path().display());
    let options = Options { max_connections: Some(2), ..workers(2, &[&unix]) };
    let served = Served::with(options, app(&gate));
    let mut clients: Vec<Client> = (0..2).map(|_| Client::connect_unix(path.path())).collect();
    for (client, n) in clients.iter_mut().zip(1..) {
        client.send(request("/wait"));
        gate.until_arrived(n);
    }
    let mut third = Client::connect_unix(path.path());
    third.send(request("/hello"));
    assert_eq!(third.read_response().status, 503);
    gate.open();
    for client in &mut clients {
        client.read_response().expect(200, "waited");
    }
    drop((clients, third));
    served.until("all are gone", |counts| counts.open() == 0);
    Client::connect_unix(path.path()).get("/hello").expect(200, "hello");
}

#[test]
fn a_storm_on_shared_queues_is_answered_to_the_last() {
    for count in [0, 1, 4] {
        let path = SocketPath::new("storm");
        let unix = format!("unix:{}", path.path().display());
        let served = Served::with(workers(count, &[&unix]), app(&Gate::default()));
        let storm: Vec<_> = (0..6)
            .map(|_| {
                let path = path.path().to_owned();
                spawn("storm", move || ask_until_gone(&path))
            })
            .collect();
        wait_until("the storm blows", || served.counts().begun > 500);
        served.begin_shutdown();
        let answered: u64 = storm.into_iter().map(|client| client.join().expect("no panic")).sum();
        let report = served.report();
        assert_eq!(report.exit_status, 0);
        assert_eq!(report.counts.finished_as(RequestOutcome::Answered), answered);
        assert_eq!(report.counts.begun, answered, "both sides count the same");
    }
}

/// Connects anew for each request until the socket is gone. Every connection made is answered.
fn ask_until_gone(path: &Path) -> u64 {
    let mut answered = 0;
    // The first may come before the server listens.
    let mut next = Some(Client::connect_unix(path));
    while let Some(mut client) = next {
        client.send(request("/hello"));
        client.read_response().expect(200, "hello");
        answered += 1;
        next = Client::try_connect_unix(path).ok();
    }
    answered
}

#[test]
fn what_is_queued_is_answered_when_a_successor_shares_the_port() {
    let gate = Gate::default();
    let sharing = |listen: &str| Options { reuse_port: true, ..workers(2, &[listen]) };
    let old = Served::with(sharing("127.0.0.1:0"), app(&gate));
    let blocking = super::shutdown_queue::block_all(&old, &gate, 2);
    let address = old.address();
    let queued = asking(|| Client::connect(address), 100);
    let new = Served::with(sharing(&address.to_string()), app(&Gate::default()));
    new.until_ready();
    old.begin_shutdown();
    old.until_phase(Phase::Draining);
    gate.open();
    let later = asking(|| Client::connect(address), 100);
    expect_answers(queued);
    expect_answers(later);
    drop(blocking);
    wait_until("the old one has ended", || old.phase() == Phase::Stopped);
    assert_eq!(old.report().exit_status, 0);
    Client::connect(address).get("/hello").expect(200, "hello");
    assert_eq!(new.stop().exit_status, 0);
}

/// A worker that is held keeps its socket on the port, and nobody accepts there.
#[test]
fn new_connections_are_steered_past_a_server_that_is_leaving() {
    let sharing = |listen: &str| Options { reuse_port: true, ..workers(2, &[listen]) };
    for _ in 0..10 {
        let gate = Gate::default();
        let old = Served::with(sharing("127.0.0.1:0"), who(&gate));
        let mut on_each: BTreeMap<Vec<u8>, Client> = BTreeMap::new();
        while on_each.len() < 2 {
            let mut client = old.client();
            let name = client.get("/who").body;
            on_each.entry(name).or_insert(client);
        }
        let mut on_each = on_each.into_values();
        let (mut held, mut free) = (on_each.next().expect("one"), on_each.next().expect("two"));
        held.send(request("/block"));
        gate.until_arrived(1);
        let new = Served::with(sharing(&old.address().to_string()), who(&gate));
        new.until_ready();
        let began = now();
        old.begin_shutdown();
        assert!(free.get("/hello").announces_close(), "this worker has its orders");
        let later = asking(|| Client::connect(old.address()), 50);
        // For so long the free worker waits for handshakes to end.
        let is_in_time = now() - began < ms(100);
        if is_in_time {
            expect_answers(later);
        }
        gate.open();
        held.read_response().expect(200, "blocked");
        if is_in_time {
            return;
        }
    }
    panic!("the machine is too slow for this test");
}

#[test]
fn a_successor_with_more_workers_has_work_for_each_of_them() {
    let sharing = |count, listen: &str| Options { reuse_port: true, ..workers(count, &[listen]) };
    let old = Served::with(sharing(1, "127.0.0.1:0"), app(&Gate::default()));
    old.until_ready();
    let address = old.address();
    let new = Served::with(sharing(4, &address.to_string()), who(&Gate::default()));
    new.until_ready();
    assert_eq!(old.stop().exit_status, 0);
    // It looks for the older one once a second.
    wait_until("each worker has answered", || {
        let ask = |_| Client::connect(address).get("/who").body;
        (0..50).map(ask).collect::<BTreeSet<_>>().len() == 4
    });
}

#[test]
fn a_younger_server_that_is_taken_back_loses_nothing() {
    let sharing = |listen: &str| Options { reuse_port: true, ..workers(2, &[listen]) };
    let (gate, open) = (Gate::default(), Gate::default());
    open.open();
    let old = Served::with(sharing("127.0.0.1:0"), app(&open));
    old.until_ready();
    let address = old.address();
    let young = Served::with(sharing(&address.to_string()), app(&gate));
    young.until_ready();
    let blocking = super::shutdown_queue::block_all(&young, &gate, 2);
    let queued = asking(|| Client::connect(address), 50);
    young.begin_shutdown();
    young.until_phase(Phase::Draining);
    gate.open();
    expect_answers(queued);
    drop(blocking);
    assert_eq!(young.report().exit_status, 0);
    expect_answers(asking(|| Client::connect(address), 50));
    assert_eq!(old.stop().exit_status, 0);
}

#[test]
fn a_port_is_handed_on_through_five_generations_without_a_loss() {
    let sharing = |listen: &str| Options { reuse_port: true, ..workers(2, &[listen]) };
    let mut serving = Served::with(sharing("127.0.0.1:0"), app(&Gate::default()));
    serving.until_ready();
    let address = serving.address();
    let gate = Gate::default();
    let storm: Vec<_> = (0..4)
        .map(|_| {
            let gate = gate.clone();
            spawn("storm", move || ask_until_told(address, &gate))
        })
        .collect();
    let mut answered = 0;
    for _ in 0..5 {
        let next = Served::with(sharing(&address.to_string()), app(&Gate::default()));
        next.until_ready();
        let old = std::mem::replace(&mut serving, next);
        old.begin_shutdown();
        let report = old.report();
        assert_eq!(report.exit_status, 0);
        answered += report.counts.finished_as(RequestOutcome::Answered);
        wait_until("the next one serves", || serving.counts().begun > 100);
    }
    gate.open();
    let asked: u64 = storm.into_iter().map(|client| client.join().expect("no loss")).sum();
    let report = serving.stop();
    answered += report.counts.finished_as(RequestOutcome::Answered);
    assert_eq!(answered, asked, "both sides count the same");
}

/// Connects anew for each request, until the test ends it. Returns how many were answered: all.
fn ask_until_told(address: SocketAddr, end: &Gate) -> u64 {
    let mut answered = 0;
    while !end.is_open() {
        let mut client = Client::try_connect(address).expect("somebody listens");
        client.send(request("/hello"));
        client.read_response().expect(200, "hello");
        answered += 1;
    }
    answered
}

#[test]
fn a_socket_that_can_not_be_accepted_from_is_refused() {
    let refusal = |socket: OwnedFd| {
        InheritedListeners::of([socket]).expect_err("it does not fit").to_string()
    };
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    assert_eq!(refusal(datagrams.into()), "cannot listen on systemd: a socket is no stream socket");
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    assert_eq!(refusal(silent.into()), "cannot listen on systemd: a socket does not listen");
    let file = std::fs::File::open("/dev/null").expect("it is everywhere");
    assert_eq!(refusal(file.into()), "cannot listen on systemd: a socket is no socket");
}

#[test]
fn without_an_inherited_socket_there_is_nothing_to_listen_on() {
    let error = Server::bind(workers(1, &["systemd"]), Router::new()).expect_err("none was given");
    assert_eq!(
        error.to_string(),
        "cannot listen on systemd: no socket was passed on to this process: \
         expected LISTEN_FDS with their number, and LISTEN_PID with the process id"
    );
    let admin = Options { admin_listen: Some(Address::Inherited), ..workers(1, &["127.0.0.1:0"]) };
    Server::bind(admin, Router::new()).expect_err("the admin listener has an address of its own");
    assert!(InheritedListeners::default().is_empty());
}

#[test]
fn clients_that_send_late_and_clients_that_send_at_once_are_answered_alike() {
    let served = Served::start(app(&Gate::default()));
    for _ in 0..3 {
        // Enough of a kind that the worker gets used to it.
        for _ in 0..40 {
            let mut late = served.client();
            served.until_in_state(ConnectionState::New, 1);
            late.get("/hello").expect(200, "hello");
            drop(late);
            served.until("it is gone", |counts| counts.open() == 0);
        }
        expect_answers(asking(|| served.client(), 100));
        served.until("they are gone", |counts| counts.open() == 0);
    }
}

#[test]
fn a_queue_that_filled_while_the_worker_was_away_is_accepted_to_its_end() {
    let gate = Gate::default();
    let served = Served::with(workers(1, &["127.0.0.1:0"]), app(&gate));
    for (arrived, count) in (1..).zip([1, 2, 65, 300]) {
        let mut blocking = served.client();
        blocking.send(request("/block"));
        gate.until_arrived(arrived);
        let queued = asking(|| served.client(), count);
        gate.let_one();
        blocking.read_response().expect(200, "blocked");
        expect_answers(queued);
    }
}

#[test]
fn unix_clients_that_had_sent_and_gone_have_their_requests_begun() {
    let path = SocketPath::new("gone");
    let gate = Gate::default();
    let listen = format!("unix:{}", path.path().display());
    let served = Served::with(workers(1, &[&listen]), app(&gate));
    for _ in 0..20 {
        let mut late = Client::connect_unix(path.path());
        served.until_in_state(ConnectionState::New, 1);
        late.get("/hello").expect(200, "hello");
        drop(late);
        served.until("it is gone", |counts| counts.open() == 0);
    }
    let mut blocking = Client::connect_unix(path.path());
    blocking.send(request("/block"));
    gate.until_arrived(1);
    for _ in 0..40 {
        Client::connect_unix(path.path()).send(upload("/echo", "hello"));
    }
    gate.open();
    blocking.read_response().expect(200, "blocked");
    served.until("all are gone", |counts| counts.opened == 61 && counts.open() == 1);
    assert_eq!(served.counts().begun, 61);
}
