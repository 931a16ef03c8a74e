//! The program and its PostgreSQL sessions at its end: whatever ends it, none is left, and nothing
//! that it asked for still runs.

use std::time::{Duration, Instant};

use crate::items::{started, until_ready};
use crate::services::postgres::{Cluster, Database, Session, Stop};
use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SLACK, SOON, say, until};

/// A server whose statements and jobs may take minutes, with all its connections.
fn patient(database: &Database<'_>, exclusive: usize, timeout: u64) -> Server {
    let launch = Launch::new()
        .env("DATABASE_URL", database.url())
        .env("SHUTDOWN_TIMEOUT", timeout)
        .env("POOL_PIPELINED", 1)
        .env("POOL_EXCLUSIVE", exclusive)
        .env("POOL_JOB_TIMEOUT", 120)
        .env("STATEMENT_TIMEOUT", 120)
        .env("REQUEST_TIMEOUT", 120);
    let server = launch.start();
    let connected = || (database.sessions().len() == exclusive + 1).then_some(());
    until("every connection", SOON, connected);
    until_ready(&server);
    server
}

fn sleeping(database: &Database<'_>) -> usize {
    database.sessions().iter().filter(|session| session.is_running("pg_sleep")).count()
}

/// So many requests, each of which sleeps in the database for a minute.
fn begin_sleeping(server: &Server, database: &Database<'_>, count: usize) -> Vec<Client> {
    let clients: Vec<Client> = (0..count).map(|_| server.connect()).collect();
    let begin = |mut client: Client| {
        client.send("GET /db/sleep/60000 HTTP/1.1\r\nHost: localhost\r\n\r\n");
        client
    };
    let clients = clients.into_iter().map(begin).collect();
    until("all to sleep", SOON, || (sleeping(database) == count).then_some(()));
    clients
}

fn until_no_session(database: &Database<'_>) {
    until("the end of every session", GONE + SLACK, || {
        database.sessions().is_empty().then_some(())
    });
}

#[test]
fn sigterm_ends_twenty_long_queries_in_time_and_names_them() {
    let Some(database) = Database::create("exit_term") else { return };
    let mut server = patient(&database, 20, 3);
    let clients = begin_sleeping(&server, &database, 20);
    let begun = server.signal("TERM");
    let exit = server.exit(SOON);
    let took = exit.at - begun;
    say(&format!("SIGTERM with 20 queries of a minute, budget 3 s: gone after {took:?}"));
    assert!(took < Duration::from_secs(3) + SLACK, "{took:?}");
    assert_eq!(exit.status, 3);
    let report = server.log.report();
    assert_eq!(report["cancelled_jobs"].as_array().map(Vec::len), Some(20), "{report:#}");
    for job in report["cancelled_jobs"].as_array().unwrap() {
        assert!(job["statement"].as_str().unwrap().contains("pg_sleep"), "{job}");
    }
    assert_eq!(report["lost"].as_array().map(Vec::len), Some(20), "{report:#}");
    for request in report["lost"].as_array().unwrap() {
        assert!(request["waited_for"].as_str().unwrap().contains("pg_sleep"), "{request}");
    }
    let hooks = report["hooks"].as_array().unwrap();
    let closing = hooks.iter().find(|hook| hook["name"] == "close_database").unwrap();
    assert_eq!(closing["outcome"], "done");
    until_no_session(&database);
    for mut client in clients {
        assert_eq!(client.response().status, 503);
    }
}

#[test]
fn whatever_kills_the_process_no_query_of_its_goes_on() {
    let Some(database) = Database::create("exit_kill") else { return };
    for signal in ["KILL", "QUIT"] {
        let mut server = patient(&database, 5, 30);
        let clients = begin_sleeping(&server, &database, 5);
        server.signal(signal);
        server.exit(SOON);
        until_no_session(&database);
        drop(clients);
    }
}

#[test]
fn a_second_signal_leaves_no_query_behind_either() {
    let Some(database) = Database::create("exit_twice") else { return };
    let mut server = patient(&database, 5, 30);
    let clients = begin_sleeping(&server, &database, 5);
    server.signal("TERM");
    server.log.wait_for("draining", |line| line["phase"] == "draining");
    // Two within 100 ms are one.
    until("the second to count", SOON, || {
        server.signal("TERM");
        let lines = server.log.so_far();
        lines.iter().any(|line| line.contains("\"phase\":\"cancelling\"")).then_some(())
    });
    server.exit(SOON);
    until_no_session(&database);
    drop(clients);
}

#[test]
fn a_client_that_is_killed_takes_its_query_with_it() {
    let Some(database) = Database::create("exit_client") else { return };
    let server = patient(&database, 5, 30);
    let mut clients = begin_sleeping(&server, &database, 2);
    let killed = Instant::now();
    clients.pop();
    until("its query to end", SOON, || (sleeping(&database) == 1).then_some(()));
    let took = killed.elapsed();
    say(&format!("a client killed in the middle of its query: that is gone after {took:?}"));
    assert!(took < Duration::from_millis(100) + SLACK, "{took:?}");
    // It gave up no thread: another one is served in its place.
    assert_eq!(server.connect().get("/db/sleep/1").status, 200);
}

#[test]
fn a_snapshot_tells_what_the_threads_of_the_database_do() {
    let Some(database) = Database::create("exit_snapshot") else { return };
    let server = patient(&database, 5, 30);
    let _clients = begin_sleeping(&server, &database, 1);
    server.signal("USR1");
    let snapshot = server.log.wait("snapshot");
    let pools = snapshot["pools"].as_str().unwrap();
    assert!(pools.contains("postgres_exclusive: 1 of 5 threads busy"), "{pools}");
    assert!(pools.contains("pg_sleep"), "{pools}");
    let metrics = server.metrics();
    assert!(metrics.contains("pool_threads{pool=\"postgres_exclusive\"} 5\n"), "{metrics}");
    assert!(metrics.contains("pool_busy{pool=\"postgres_exclusive\"} 1\n"), "{metrics}");
}

#[test]
fn what_is_wrong_with_the_database_is_logged_without_the_password() {
    let Some(database) = Database::create("exit_password") else { return };
    let url = database.url().replace("tidal", "wr0ng");
    let server = Launch::new().env("DATABASE_URL", &url).start();
    until("the reason", SOON, || {
        let text = Client::connect(server.admin).get("/readyz?verbose").text();
        text.contains("authentication failed").then_some(())
    });
    assert!(server.log.so_far().iter().all(|line| !line.contains("wr0ng")));
    let server = Launch::new().env("DATABASE_URL", "postgres://me:wr0ng@nowhere.invalid/x").start();
    server.log.wait("database_unavailable");
    assert!(server.log.so_far().iter().all(|line| !line.contains("wr0ng")));
    let ended = Launch::new().env("DATABASE_URL", "postgres://me:wr0ng@host:port/x").finish();
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.contains("DATABASE_URL"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("wr0ng"), "{}", ended.stderr);
    if !cfg!(feature = "postgres-tls") {
        let url = format!("{}?sslmode=require", database.url());
        let ended = Launch::new().env("DATABASE_URL", url).finish();
        assert_eq!(ended.status, 78);
        assert!(ended.stderr.contains("postgres-tls"), "{}", ended.stderr);
    }
}

#[test]
fn frozen_backends_hold_neither_the_other_routes_nor_the_exit() {
    let Some(database) = Database::create("exit_frozen") else { return };
    let mut server = started(&database.url());
    // All of the default number: one that is not frozen would answer.
    until("every connection", SOON, || (database.sessions().len() == 4 + 8).then_some(()));
    let frozen: Vec<_> = database.sessions().iter().map(Session::freeze).collect();
    let begun = Instant::now();
    let mut waiting: Vec<Client> = (0..16).map(|_| server.connect()).collect();
    for (at, client) in waiting.iter_mut().enumerate() {
        client.ask(if at == 0 { "/db/sleep/1" } else { "/db" });
    }
    let asked = Instant::now();
    assert_eq!(server.connect().get("/plaintext").status, 200);
    assert!(asked.elapsed() < SLACK, "{:?}", asked.elapsed());
    for mut client in waiting {
        // Out of time, or its connection was given up with one that was.
        assert!([503, 504].contains(&client.response().status));
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5) + SLACK, "{took:?}");
    for (pool, statement) in
        [("postgres_pipelined", "FROM lab_rows"), ("postgres_exclusive", "pg_sleep")]
    {
        let given_up = server.log.wait_for("a connection to be given up", |line| {
            line["event_type"] == "connection_given_up" && line["pool"] == pool
        });
        assert!(given_up["message"].as_str().unwrap().contains(statement), "{given_up}");
    }
    // With new connections, while the old ones are still frozen.
    until("rows again", SOON, || (server.connect().get("/db").status == 200).then_some(()));
    drop(frozen);
    server.signal("TERM");
    assert_eq!(server.exit(SOON).status, 0);
    until_no_session(&database);
}

#[test]
fn the_server_recovers_from_a_crash_of_its_database() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("exit_crash");
    let server = started(&database.url());
    assert_eq!(server.connect().get("/db").status, 200);
    cluster.stop(Stop::Immediate);
    until("503", SOON, || (server.connect().get("/db").status == 503).then_some(()));
    let begun = Instant::now();
    let response = server.connect().get("/db");
    assert_eq!((response.status, response.header("retry-after").is_some()), (503, true));
    assert!(begun.elapsed() < SLACK, "{:?}", begun.elapsed());
    cluster.begin();
    let back = Instant::now();
    until("rows again", SOON, || (server.connect().get("/db").status == 200).then_some(()));
    assert!(back.elapsed() < Duration::from_secs(2) + SLACK, "{:?}", back.elapsed());
}

/// A server that is gone is known to be gone by then.
const GONE: Duration = Duration::from_millis(1500);
