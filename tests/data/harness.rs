//! The tests' servers themselves: they run, break and end as the other tests need it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::services::keeper::{Keeper, directory};
use crate::services::postgres::{Cluster, Database, Stop};
use crate::services::proxy::Proxy;
use crate::services::redis::Redis;
use crate::services::{SOON, until};

#[test]
fn a_database_is_the_tests_own_and_goes_with_it() {
    let Some(database) = Database::create("own") else { return };
    let name = database.name().to_owned();
    let mut client = Client::connect(&database.url(), NoTls).unwrap();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").unwrap();
    assert_eq!(database.rows("SELECT n FROM t")[0].get::<_, i32>(0), 7);
    let sessions = database.sessions();
    assert_eq!((sessions.len(), sessions[0].state.as_str()), (1, "idle"));

    let cluster = database.cluster().superuser("postgres");
    drop(database);
    let mut cluster = cluster;
    let left = cluster.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).unwrap();
    assert!(left.is_empty(), "{name} is still there");
    assert!(client.simple_query("SELECT 1").is_err(), "its session is ended");
}

#[test]
fn a_cluster_can_be_crashed_and_keeps_what_was_committed() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("crashed");
    let mut client = Client::connect(&database.url(), NoTls).unwrap();
    client.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").unwrap();
    cluster.stop(Stop::Immediate);
    assert!(Client::connect(&database.url(), NoTls).is_err());
    cluster.begin();
    assert!(client.simple_query("SELECT 1").is_err(), "its session did not survive");
    assert_eq!(database.rows("SELECT n FROM t")[0].get::<_, i32>(0), 7);
}

#[test]
fn a_frozen_session_answers_when_it_is_thawed() {
    let Some(database) = Database::create("frozen") else { return };
    let mut client = Client::connect(&database.url(), NoTls).unwrap();
    let frozen = database.sessions()[0].freeze();
    let asked = std::thread::spawn(move || client.simple_query("SELECT 1").map(|_| ()));
    until("bytes that nobody reads", SOON, || {
        let pid = database.sessions()[0].pid;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.contains("State:\tT").then_some(())
    });
    assert!(!asked.is_finished());
    drop(frozen);
    asked.join().unwrap().unwrap();
}

#[test]
fn a_server_and_its_directory_end_with_their_keeper() {
    let home = directory("kept");
    let pid_file = home.join("pid");
    let script = format!("echo $$ >{}; exec sleep 600", pid_file.display());
    let keeper = Keeper::new(home.clone(), "KILL", ["sh", "-c", &script]);
    keeper.start();
    let pid = until("the server's process", SOON, || {
        std::fs::read_to_string(&pid_file).ok().filter(|pid| pid.ends_with('\n'))
    });
    let process = Path::new("/proc").join(pid.trim());
    assert!(process.exists());
    // What a killed test process does: the keeper's stdin ends.
    drop(keeper);
    assert!(!process.exists());
    assert!(!home.exists());
}

#[test]
fn redis_is_killed_and_comes_back() {
    let Some(redis) = Redis::start() else { return };
    assert_eq!(redis.say("SET k v"), "+OK");
    redis.kill();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, redis.port())).is_err());
    redis.begin();
    assert_eq!(redis.say("EXISTS k"), ":0");
}

#[test]
fn the_proxy_passes_swallows_and_cuts() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Proxy::before(listener.local_addr().unwrap().port());
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let mut buffer = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");

    proxy.swallow();
    client.write_all(b"lost").unwrap();
    until("the bytes to be swallowed", SOON, || (proxy.swallowed() == 4).then_some(()));
    server.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(server.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);

    proxy.cut();
    client.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.read(&mut buffer).unwrap(), 0);
}
