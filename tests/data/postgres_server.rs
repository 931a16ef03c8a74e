//! A server with a PostgreSQL client: readiness, what its requests get on bad days, and its end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ebbtide::{
    Address, DatabaseError, GracefulShutdown, Options, Policy, Postgres, PostgresAddress,
    PostgresOptions, Report, Request, Response, Router, Server, StartError, Workers, get, params,
};

use crate::services::postgres::{Cluster, Database, Session, Stop};
use crate::services::proxy::Proxy;
use crate::services::{SOON, until};

/// A server in this process, with routes that use the database and one that does not.
struct Served {
    handle: GracefulShutdown,
    address: SocketAddr,
    admin: SocketAddr,
    thread: Option<JoinHandle<Result<Report, StartError>>>,
}

/// Answers with what became of a job.
fn told<T>(result: Option<Result<T, DatabaseError>>) -> Response {
    match result {
        Some(Ok(_)) => Response::text("done"),
        Some(Err(DatabaseError::Rejected(rejection))) => {
            Response::text(rejection.code).with_status(ebbtide::StatusCode::CONFLICT)
        }
        Some(Err(_)) | None => Response::busy(),
    }
}

fn routes(db: &Postgres) -> Router {
    let (one, sleep, insert, closure) = (db.clone(), db.clone(), db.clone(), db.clone());
    Router::new()
        .route("/plain", get(|_: Request| "plain"))
        .route(
            "/one",
            get(move |request: Request| {
                let ticket = one.query("SELECT 1", params![]);
                async move { told(request.cancelled().run_until_cancelled(ticket).await) }
            }),
        )
        .route(
            "/sleep/{seconds}",
            get(move |request: Request| {
                let seconds: f64 = request.param("seconds").unwrap().parse().unwrap();
                let ticket = sleep.run_as("SELECT pg_sleep($1)", move |client| {
                    client.query("SELECT pg_sleep($1)", &[&seconds])
                });
                async move { told(request.cancelled().run_until_cancelled(ticket).await) }
            }),
        )
        .route(
            "/nap/{seconds}",
            get(move |request: Request| {
                let seconds: f64 = request.param("seconds").unwrap().parse().unwrap();
                let ticket = closure.query("SELECT pg_sleep($1)", params![seconds]);
                async move { told(request.cancelled().run_until_cancelled(ticket).await) }
            }),
        )
        .route(
            "/insert/{key}",
            get(move |request: Request| {
                let key: i32 = request.param("key").unwrap().parse().unwrap();
                let ticket = insert.query("INSERT INTO written VALUES ($1)", params![key]);
                async move { told(request.cancelled().run_until_cancelled(ticket).await) }
            }),
        )
}

fn local() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

fn options(timeout: Duration) -> Options {
    Options {
        listen: vec![local()],
        admin_listen: Some(local()),
        workers: Workers::Count(2),
        shutdown: Policy { timeout, ..Policy::default() },
        ..Options::default()
    }
}

fn tcp(address: &Address) -> SocketAddr {
    let Address::Tcp(address) = address else { panic!("{address} is not TCP") };
    *address
}

impl Served {
    fn start(url: &str, timeout: Duration, of_database: &PostgresOptions) -> Served {
        let db = Postgres::start(&PostgresAddress::parse(url).unwrap(), of_database).unwrap();
        let server = Server::bind(options(timeout), routes(&db)).unwrap().with_database(&db);
        let this = Served {
            handle: server.shutdown_handle(),
            address: tcp(&server.addresses()[0]),
            admin: tcp(&server.admin_address().unwrap()),
            thread: Some(thread::spawn(move || server.run())),
        };
        assert!(this.handle.wait_until_listening());
        this
    }

    fn ready(url: &str, timeout: Duration, of_database: &PostgresOptions) -> Served {
        let served = Served::start(url, timeout, of_database);
        until("the server to be ready", SOON, || (served.readiness().0 == 200).then_some(()));
        served
    }

    fn get(&self, path: &str) -> (u16, String) {
        ask(self.address, path)
    }

    fn readiness(&self) -> (u16, String) {
        ask(self.admin, "/readyz?verbose")
    }

    fn metrics(&self) -> String {
        ask(self.admin, "/metrics").1
    }

    fn end(&mut self) -> Report {
        self.thread.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.force();
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

/// Sends a request and leaves the connection with its answer to come.
fn begin(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn finish(mut stream: TcpStream) -> (u16, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("an answer: {answer:?}"));
    (status.parse().unwrap(), answer)
}

fn ask(address: SocketAddr, path: &str) -> (u16, String) {
    finish(begin(address, path))
}

fn sleeping(database: &Database<'_>) -> usize {
    database.sessions().iter().filter(|session| session.is_running("pg_sleep")).count()
}

fn patient(exclusive: usize) -> PostgresOptions {
    let long = Duration::from_secs(120);
    PostgresOptions {
        exclusive,
        job_timeout: long,
        statement_timeout: long,
        ..PostgresOptions::default()
    }
}

#[test]
fn a_server_begins_without_its_database_and_is_ready_once_it_is_there() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("late");
    cluster.stop(Stop::Fast);
    let served = Served::start(&database.url(), SOON, &PostgresOptions::default());
    let told = until("a reason", SOON, || {
        let (status, text) = served.readiness();
        (status == 503 && text.contains("refused")).then_some(text)
    });
    assert!(told.contains("not ready: database") && !told.contains("tidal"), "{told}");
    assert_eq!(served.get("/plain").0, 200);
    let begun = Instant::now();
    for path in ["/one", "/sleep/0"] {
        let (status, answer) = served.get(path);
        assert_eq!(status, 503, "{answer}");
        assert!(answer.to_ascii_lowercase().contains("retry-after"), "{answer}");
    }
    assert!(begun.elapsed() < Duration::from_millis(700), "{:?}", begun.elapsed());
    cluster.begin();
    let back = Instant::now();
    until("the server to be ready", SOON, || (served.readiness().0 == 200).then_some(()));
    assert!(back.elapsed() < Duration::from_millis(2500), "{:?}", back.elapsed());
    until("statements to be done", SOON, || (served.get("/one").0 == 200).then_some(()));
    until("closures to be done", SOON, || (served.get("/sleep/0").0 == 200).then_some(()));
}

#[test]
fn a_wrong_password_is_told_to_operators_only() {
    let Some(database) = Database::create("password") else { return };
    let url = database.url().replace("tidal", "wr0ng");
    let served = Served::start(&url, SOON, &PostgresOptions::default());
    let told = until("a reason", SOON, || {
        let (status, text) = served.readiness();
        (status == 503 && text.contains("authentication failed")).then_some(text)
    });
    assert!(!told.contains("wr0ng"), "{told}");
    let (status, answer) = served.get("/one");
    assert_eq!(status, 503);
    assert!(!answer.contains("authentication") && !answer.contains("ebbtide\""), "{answer}");
    // Clients may ask as well whether it is ready.
    let (status, answer) = served.get("/readyz?verbose");
    assert_eq!(status, 503);
    assert!(answer.contains("[-] database unusable\n"), "{answer}");
    assert!(!answer.contains("authentication"), "{answer}");
}

#[test]
fn a_drained_server_leaves_no_session() {
    let Some(database) = Database::create("drained") else { return };
    let mut served = Served::ready(&database.url(), SOON, &PostgresOptions::default());
    assert_eq!(served.get("/one").0, 200);
    let waits = begin(served.address, "/sleep/0.4");
    until("it to run", SOON, || (sleeping(&database) == 1).then_some(()));
    served.handle.shutdown();
    assert_eq!(finish(waits).0, 200);
    let report = served.end();
    assert_eq!(report.exit_status(), 0, "{}", report.to_json());
    let hook = report.hooks.iter().find(|hook| hook.name == "close_database").unwrap();
    assert_eq!(hook.outcome.name(), "done");
    until("no session to be left", SOON, || database.sessions().is_empty().then_some(()));
    // Each has said good-bye: PostgreSQL counts those that have not.
    let ends = "SELECT sessions, sessions_abandoned FROM pg_stat_database WHERE datname = $1";
    let (sessions, abandoned) = until("the sessions to be counted", SOON, || {
        let mut client = database.cluster().superuser("postgres");
        let row = client.query_one(ends, &[&database.name()]).unwrap();
        Some((row.get::<_, i64>(0), row.get::<_, i64>(1))).filter(|(sessions, _)| *sessions > 0)
    });
    assert_eq!(abandoned, 0, "of {sessions}");
}

#[test]
fn twenty_long_closures_are_cancelled_in_time_and_named() {
    let Some(database) = Database::create("twenty") else { return };
    let mut served = Served::ready(&database.url(), Duration::from_secs(3), &patient(20));
    let waiting: Vec<TcpStream> = (0..20).map(|_| begin(served.address, "/sleep/60")).collect();
    until("all to run", SOON, || (sleeping(&database) == 20).then_some(()));
    let begun = Instant::now();
    served.handle.shutdown();
    let report = served.end();
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(3500), "{took:?}");
    assert_eq!(report.exit_status(), 3);
    assert_eq!(report.cancelled_jobs.len(), 20);
    for job in &report.cancelled_jobs {
        assert_eq!((job.pool, &*job.statement), ("postgres_exclusive", "SELECT pg_sleep($1)"));
    }
    assert_eq!(report.lost.len(), 20);
    for request in &report.lost {
        let told = (request.outcome, &*request.path, request.waited_for);
        assert_eq!(told, ("refused", "/sleep/60", "SELECT pg_sleep($1)"));
    }
    for stream in waiting {
        assert_eq!(finish(stream).0, 503);
    }
    until("no session to be left", Duration::from_millis(1500), || {
        database.sessions().is_empty().then_some(())
    });
}

#[test]
fn a_client_that_leaves_has_its_query_cancelled_and_its_neighbours_not() {
    let Some(database) = Database::create("leaving") else { return };
    let of_database = PostgresOptions { pipelined: 1, ..patient(2) };
    let served = Served::ready(&database.url(), SOON, &of_database);
    let (stays, leaves) = (begin(served.address, "/sleep/1"), begin(served.address, "/sleep/60"));
    until("both to run", SOON, || (sleeping(&database) == 2).then_some(()));
    let left = Instant::now();
    drop(leaves);
    until("its query to end", SOON, || (sleeping(&database) == 1).then_some(()));
    assert!(left.elapsed() < Duration::from_millis(600), "{:?}", left.elapsed());
    assert_eq!(finish(stays).0, 200);

    // On one pipelined connection: the neighbour is sent behind, and gets its rows.
    assert_eq!(served.get("/nap/0").0, 200);
    let leaves = begin(served.address, "/nap/0.6");
    until("it to run", SOON, || (sleeping(&database) == 1).then_some(()));
    let stays = begin(served.address, "/one");
    drop(leaves);
    assert_eq!(finish(stays).0, 200);
    let metrics = served.metrics();
    assert!(
        metrics.contains("pool_jobs_total{pool=\"postgres_exclusive\",outcome=\"cancelled\"} 1")
    );
    assert!(
        metrics.contains("pool_jobs_total{pool=\"postgres_pipelined\",outcome=\"cancelled\"} 1")
    );
}

/// What clients were told of their writes: of each key the status, while `harm` is done.
fn written_under(served: &Served, harm: impl FnOnce()) -> Vec<(i32, u16)> {
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let next = std::sync::atomic::AtomicI32::new(0);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut answers = Vec::new();
                    while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                        let key = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        answers.push((key, served.get(&format!("/insert/{key}")).0));
                    }
                    answers
                })
            })
            .collect();
        harm();
        is_over.store(true, std::sync::atomic::Ordering::SeqCst);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Each write that was said to be done is there once, every other at most once.
fn reconcile(database: &Database<'_>, answers: &[(i32, u16)]) {
    let mut there = std::collections::HashMap::new();
    for row in database.rows("SELECT key FROM written") {
        *there.entry(row.get::<_, i32>(0)).or_insert(0) += 1;
    }
    let mut done = 0;
    for (key, status) in answers {
        let count = there.remove(key).unwrap_or(0);
        match status {
            200 => assert_eq!(count, 1, "{key} was answered 200"),
            503 => assert!(count <= 1, "{key} was answered 503 and is there {count} times"),
            other => panic!("{key} was answered {other}"),
        }
        done += usize::from(*status == 200);
    }
    assert!(there.is_empty(), "rows that nobody wrote: {there:?}");
    assert!(done > 0, "nothing was written");
}

fn table(database: &Database<'_>) {
    let make = "CREATE TABLE written (key int); GRANT ALL ON written TO ebbtide";
    database.superuser().batch_execute(make).unwrap();
}

#[test]
fn no_write_is_repeated_or_lost_when_sessions_are_terminated() {
    let Some(database) = Database::create("terminated") else { return };
    table(&database);
    let served = Served::ready(&database.url(), SOON, &PostgresOptions::default());
    let answers = written_under(&served, || {
        let mut superuser = database.superuser();
        let pick = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                    WHERE usename = 'ebbtide' AND datname = current_database() AND random() < 0.3";
        for round in 0..10 {
            superuser.query(pick, &[]).unwrap();
            until("writes to go on", SOON, || {
                (served.get(&format!("/insert/{}", -1 - round)).0 == 200).then_some(())
            });
        }
    });
    // Those in between are no part of the account.
    database.superuser().execute("DELETE FROM written WHERE key < 0", &[]).unwrap();
    reconcile(&database, &answers);
}

#[test]
fn no_write_is_repeated_or_lost_when_the_server_crashes_under_load() {
    let Some(cluster) = Cluster::start_with(&["fsync=on"]) else { return };
    let database = cluster.database("crashed");
    table(&database);
    let served = Served::ready(&database.url(), SOON, &PostgresOptions::default());
    let answers = written_under(&served, || {
        for _ in 0..2 {
            until("writes to be done", SOON, || (served.get("/one").0 == 200).then_some(()));
            cluster.stop(Stop::Immediate);
            until("requests to be refused", SOON, || (served.get("/one").0 == 503).then_some(()));
            let begun = Instant::now();
            assert_eq!(served.get("/plain").0, 200);
            assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
            cluster.begin();
            let back = Instant::now();
            until("the server to be ready", SOON, || (served.readiness().0 == 200).then_some(()));
            assert!(back.elapsed() < Duration::from_millis(2500), "{:?}", back.elapsed());
        }
    });
    reconcile(&database, &answers);
}

#[test]
fn a_half_open_link_does_not_hold_the_other_routes_nor_the_exit() {
    let Some(database) = Database::create("swallowed") else { return };
    let proxy = Proxy::before(database.cluster().port());
    let timeout = Duration::from_secs(3);
    let mut served =
        Served::ready(&database.url_through(proxy.port()), timeout, &PostgresOptions::default());
    // All of the default number: what is not connected yet has nothing to be cut off from.
    until("every connection", SOON, || (database.sessions().len() == 4 + 8).then_some(()));
    assert_eq!(served.get("/one").0, 200);
    proxy.swallow();
    let waiting = [begin(served.address, "/one"), begin(served.address, "/sleep/0")];
    let begun = Instant::now();
    assert_eq!(served.get("/plain").0, 200);
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let begun = Instant::now();
    served.handle.shutdown();
    let report = served.end();
    assert!(begun.elapsed() < Duration::from_millis(3500), "{:?}", begun.elapsed());
    assert_eq!(report.exit_status(), 3);
    for stream in waiting {
        assert_eq!(finish(stream).0, 503);
    }
    proxy.cut();
}

#[test]
fn a_server_that_falls_silent_is_named_with_what_could_not_be_closed() {
    let Some(database) = Database::create("silent_end") else { return };
    let options = PostgresOptions { pipelined: 1, exclusive: 1, ..PostgresOptions::default() };
    let mut served = Served::ready(&database.url(), Duration::from_secs(3), &options);
    let frozen: Vec<_> = database.sessions().iter().map(Session::freeze).collect();
    assert_eq!(frozen.len(), 2);
    let waiting = [begin(served.address, "/one"), begin(served.address, "/sleep/0")];
    let is_busy = |metrics: &str, pool: &str| {
        metrics.contains(&format!("pool_busy{{pool=\"postgres_{pool}\"}} 1\n"))
    };
    until("both to be under way", SOON, || {
        let metrics = served.metrics();
        (is_busy(&metrics, "pipelined") && is_busy(&metrics, "exclusive")).then_some(())
    });
    let begun = Instant::now();
    served.handle.shutdown();
    let report = served.end();
    assert!(begun.elapsed() < Duration::from_millis(3500), "{:?}", begun.elapsed());
    assert_eq!(report.exit_status(), 3);
    let hook = report.hooks.iter().find(|hook| hook.name == "close_database").unwrap();
    let why = hook.outcome.error().expect("sessions that cannot be ended are not ended");
    for part in ["postgres_pipelined: 1", "SELECT 1", "postgres_exclusive: 1", "pg_sleep"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    for stream in waiting {
        assert_eq!(finish(stream).0, 503);
    }
    drop(frozen);
}
