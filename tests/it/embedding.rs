//! The library in somebody's program: addresses, several servers, errors before anything is served.

use std::net::TcpListener;
use std::path::PathBuf;

use ebbtide::{Address, Options, Request, Router, Server, StartError, Workers, get};

use super::client::{Client, request};
use super::support::{Gate, Served, app, options, tcp, wait_until};

fn listening_on(addresses: &[&str]) -> Options {
    let listen = addresses.iter().map(|text| text.parse().expect("an address")).collect();
    Options { listen, ..options() }
}

#[test]
fn two_servers_live_and_end_by_themselves() {
    let (gate, other_gate) = (Gate::default(), Gate::default());
    let first = Served::start(app(&gate));
    let second = Served::start(app(&other_gate).route("/second", get(|_: Request| "second")));
    assert_eq!(first.client().get("/second").status, 404);
    let mut waiting = second.client();
    waiting.send(request("/wait"));
    other_gate.until_arrived(1);
    assert_eq!(first.stop().exit_status, 0);
    assert!(!second.handle.is_shutting_down());
    second.client().get("/second").expect(200, "second");
    other_gate.open();
    waiting.read_response().expect(200, "waited");
    drop(waiting);
    let report = second.stop();
    assert_eq!((report.exit_status, report.counts.begun), (0, 2));
}

#[test]
fn several_workers_serve_and_end_together() {
    let options = Options { workers: Workers::Count(4), ..options() };
    let gate = Gate::default();
    let served = Served::with(options, app(&gate));
    let mut clients: Vec<Client> = (0..40).map(|_| served.client()).collect();
    for client in &mut clients {
        client.send(request("/wait"));
    }
    gate.until_arrived(40);
    served.begin_shutdown();
    gate.open();
    for client in &mut clients {
        assert!(client.read_response().expect(200, "waited").announces_close());
    }
    drop(clients);
    assert_eq!(served.report().counts.begun, 40);
}

#[test]
fn workers_come_one_per_core_unless_told_otherwise() {
    assert_eq!(Options::default().workers, Workers::PerCore);
    let options = Options { workers: Workers::PerCore, ..options() };
    Served::with(options, app(&Gate::default())).client().get("/hello").expect(200, "hello");
}

#[test]
fn ipv6_is_served() {
    let served = Served::with(listening_on(&["[::1]:0"]), app(&Gate::default()));
    assert!(served.address().is_ipv6());
    served.client().get("/hello").expect(200, "hello");
}

#[test]
fn the_unspecified_ipv6_address_serves_ipv4_as_well() {
    let served = Served::with(listening_on(&["[::]:0"]), app(&Gate::default()));
    let port = served.address().port();
    for ip in ["127.0.0.1", "::1"] {
        let mut client =
            Client::connect((ip.parse::<std::net::IpAddr>().expect("an IP"), port).into());
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn every_address_of_a_list_is_served_and_retired() {
    let gate = Gate::default();
    let served = Served::with(listening_on(&["127.0.0.1:0", "[::1]:0", "127.0.0.1:0"]), app(&gate));
    let addresses: Vec<_> = served.addresses().iter().map(tcp).collect();
    assert_eq!(addresses.len(), 3);
    for address in &addresses {
        Client::connect(*address).get("/hello").expect(200, "hello");
    }
    let mut waiting = Client::connect(addresses[1]);
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    for address in &addresses {
        wait_until("it is retired", || Client::try_connect(*address).is_err());
    }
    gate.open();
    waiting.read_response().expect(200, "waited");
}

/// A path in a directory of its own, which goes with it.
pub struct SocketPath(PathBuf);

impl SocketPath {
    pub fn new(name: &str) -> SocketPath {
        let directory = std::env::temp_dir().join(format!("ebbtide-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the test");
        SocketPath(directory.join("socket"))
    }

    pub fn path(&self) -> &PathBuf {
        &self.0
    }

    fn options(&self) -> Options {
        listening_on(&[&format!("unix:{}", self.0.display())])
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        let directory = self.0.parent().expect("made with one");
        std::fs::remove_dir_all(directory).expect("it was ours");
    }
}

#[test]
fn a_unix_socket_is_served_and_its_file_goes_with_the_server() {
    let path = SocketPath::new("served");
    let gate = Gate::default();
    let peer = get(|request: Request| format!("{:?}", request.peer()));
    for workers in [1, 3] {
        let options = Options { workers: Workers::Count(workers), ..path.options() };
        let served = Served::with(options, app(&gate).route("/peer", peer.clone()));
        assert_eq!(served.addresses(), [Address::Unix(path.0.clone())]);
        let mut client = Client::connect_unix(&path.0);
        client.get("/peer").expect(200, "None");
        client.get("/hello").expect(200, "hello");
        let arrived = gate.arrived();
        client.send(request("/wait"));
        gate.until_arrived(arrived + 1);
        served.begin_shutdown();
        gate.let_one();
        assert!(client.read_response().expect(200, "waited").announces_close());
        client.expect_end();
        drop(client);
        assert_eq!(served.report().exit_status, 0);
        assert!(!path.0.exists(), "its file is gone");
    }
}

#[test]
fn a_unix_socket_that_a_dead_server_left_is_replaced_and_a_living_one_is_not() {
    let path = SocketPath::new("left");
    drop(std::os::unix::net::UnixListener::bind(&path.0).expect("a fresh path"));
    assert!(path.0.exists());
    let served = Served::with(path.options(), app(&Gate::default()));
    Client::connect_unix(&path.0).get("/hello").expect(200, "hello");
    let error = Server::bind(path.options(), Router::new()).expect_err("somebody is there");
    assert!(error.to_string().contains(&*path.0.to_string_lossy()), "{error}");
    Client::connect_unix(&path.0).get("/hello").expect(200, "hello");
    drop(served);
    std::fs::write(&path.0, "no socket").expect("a fresh path");
    Server::bind(path.options(), Router::new()).expect_err("a file of somebody else");
    assert_eq!(std::fs::read(&path.0).expect("untouched"), b"no socket");
}

fn expect_in_use(options: Options, address: &Address) {
    let error = Server::bind(options, Router::new()).expect_err("the address is taken");
    match &error {
        StartError::Listen { address: named, source } => {
            assert_eq!(named, address);
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        StartError::System { .. } | StartError::HandleInUse => {
            panic!("the address is at fault: {error}")
        }
    }
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[test]
fn a_port_in_use_by_another_program_is_an_error_that_names_it() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = Address::Tcp(other.local_addr().expect("bound"));
    for reuse_port in [false, true] {
        let listen = vec![address.clone()];
        expect_in_use(Options { listen, reuse_port, ..options() }, &address);
    }
    let admin_listen = Some(address.clone());
    expect_in_use(Options { admin_listen, ..options() }, &address);
}

#[test]
fn a_port_in_use_by_another_server_is_an_error_that_names_it() {
    for workers in [0, 1, 3] {
        let served = Served::with(
            Options { workers: Workers::Count(workers), ..options() },
            app(&Gate::default()),
        );
        served.client().get("/hello").expect(200, "hello");
        let address = served.addresses()[0].clone();
        let listen = vec![address.clone()];
        expect_in_use(Options { listen, ..options() }, &address);
        served.client().get("/hello").expect(200, "hello");
    }
}

#[test]
fn two_servers_may_share_a_port_when_both_say_so() {
    let shared = Options { reuse_port: true, ..options() };
    let first = Served::with(shared.clone(), app(&Gate::default()));
    first.client().get("/hello").expect(200, "hello");
    let listen = vec![first.addresses()[0].clone()];
    let second = Served::with(Options { listen: listen.clone(), ..shared }, app(&Gate::default()));
    wait_until("the kernel has chosen the second", || {
        first.client().get("/hello").expect(200, "hello");
        second.counts().begun > 0
    });
    expect_in_use(Options { listen: listen.clone(), ..options() }, &listen[0]);
    assert_eq!(first.stop().exit_status, 0);
    second.client().get("/hello").expect(200, "hello");
}

#[test]
fn an_address_that_is_not_ours_is_an_error_that_names_it() {
    let error = Server::bind(listening_on(&["192.0.2.1:0"]), Router::new());
    let error = error.expect_err("an address of nobody");
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

#[test]
fn a_server_that_never_ran_frees_its_addresses() {
    let server = Server::bind(options(), Router::new()).expect("a free port");
    let listen = server.addresses();
    assert!(Client::try_connect(tcp(&listen[0])).is_err(), "clients are refused until it runs");
    drop(server);
    let successor = Served::with(Options { listen, ..options() }, app(&Gate::default()));
    successor.client().get("/hello").expect(200, "hello");
}

#[test]
fn a_shutdown_asked_for_before_the_start_ends_the_server_at_its_start() {
    let server = Server::bind(options(), Router::new()).expect("a free port");
    server.shutdown_handle().shutdown();
    let report = Served::run(server).report();
    assert_eq!(report.exit_status, 0);
}

#[test]
fn the_report_is_written_where_it_is_wanted() {
    let path = SocketPath::new("report");
    let options = Options { report_path: Some(path.0.clone()), ..options() };
    let served = Served::with(options, app(&Gate::default()));
    served.client().get("/hello").expect(200, "hello");
    let report = served.stop();
    let written = std::fs::read_to_string(&path.0).expect("a report");
    assert_eq!(written.trim_end(), report.to_json());
    let json: serde_json::Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!(json["requests"]["begun"], 1);
    assert_eq!(json["requests"]["finished"]["answered"], 1);
    assert_eq!(json["connections"]["opened"], 1);
    assert_eq!(json["exit_status"], 0);
}

#[test]
fn a_report_that_cannot_be_written_harms_nothing() {
    let path = PathBuf::from("/nonexistent/directory/report.json");
    let options = Options { report_path: Some(path), ..options() };
    assert_eq!(Served::with(options, Router::new()).stop().exit_status, 0);
}
