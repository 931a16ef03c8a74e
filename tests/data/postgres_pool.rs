//! The PostgreSQL client by itself, on a real server: what it promises of jobs, tickets,
//! cancelling and closing.

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ebbtide::{DatabaseError, Postgres, PostgresAddress, PostgresOptions, Ticket, params};

use postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::services::postgres::{Cluster, Database, Session, Stop};
use crate::services::proxy::Proxy;
use crate::services::{SOON, until};
use crate::support::let_pass;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Unpark>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread.
fn wait<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    let end = Instant::now() + SOON;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(Instant::now() < end, "a ticket that is never ready");
        thread::park_timeout(Duration::from_millis(100));
    }
}

fn options() -> PostgresOptions {
    PostgresOptions { pipelined: 2, exclusive: 3, ..PostgresOptions::default() }
}

fn client(url: &str, options: &PostgresOptions) -> Postgres {
    let address = PostgresAddress::parse(url).unwrap();
    Postgres::start(&address, options).unwrap()
}

fn connected(url: &str, options: &PostgresOptions) -> Postgres {
    let db = client(url, options);
    until("the client to connect", SOON, || db.usable().ok());
    db
}

fn number(db: &Postgres, value: i32) -> Ticket<Vec<ebbtide::PostgresRow>> {
    db.query("SELECT $1::int4", params![value])
}

/// Sessions that work on a statement that begins like this.
fn working(database: &Database<'_>, statement: &str) -> usize {
    let sessions = database.sessions();
    let is_it = |state: &str, query: &str| state == "active" && query.starts_with(statement);
    sessions.iter().filter(|session| is_it(&session.state, &session.query)).count()
}

/// The client has said good-bye; the server may take a moment to see to it.
fn left_alone(database: &Database<'_>) {
    until("no session to be left", SOON, || database.sessions().is_empty().then_some(()));
}

fn closed(db: &Postgres) {
    db.close(Instant::now() + SOON).unwrap();
}

#[test]
fn each_of_many_statements_gets_its_own_rows() {
    let Some(database) = Database::create("rows") else { return };
    let db = connected(&database.url(), &options());
    for round in 0..20 {
        let tickets: Vec<_> = (0..100).map(|at| (at, number(&db, round * 1000 + at))).collect();
        for (at, ticket) in tickets {
            let rows = wait(ticket).unwrap();
            assert_eq!(rows[0].get::<_, i32>(0), round * 1000 + at);
        }
    }
    closed(&db);
    left_alone(&database);
}

#[test]
fn a_statement_is_prepared_once_on_each_connection() {
    let Some(database) = Database::create("prepared") else { return };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..options() });
    for value in 0..10 {
        wait(number(&db, value)).unwrap();
    }
    let count = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1%'";
    let rows = wait(db.query(count, params![])).unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 1);
    closed(&db);
}

#[test]
fn a_table_may_change_under_a_prepared_statement() {
    let Some(database) = Database::create("changed") else { return };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..options() });
    wait(db.run(|client| client.batch_execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")))
        .unwrap();
    wait(db.query("SELECT * FROM t", params![])).unwrap();
    wait(db.run(|client| client.batch_execute("ALTER TABLE t ADD b int"))).unwrap();
    until("the statement to be prepared anew", SOON, || {
        let rows = wait(db.query("SELECT * FROM t", params![])).ok()?;
        assert_eq!(rows[0].len(), 2);
        Some(())
    });
    closed(&db);
}

#[test]
fn a_transaction_is_committed_or_leaves_nothing() {
    let Some(database) = Database::create("transactions") else { return };
    let db = connected(&database.url(), &options());
    wait(db.run(|client| client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)"))).unwrap();
    let insert = |value: i32, twice: bool| {
        db.transaction(move |tx| {
            tx.execute("INSERT INTO t VALUES ($1)", &[&value])?;
            if twice { tx.execute("INSERT INTO t VALUES ($1)", &[&value]) } else { Ok(1) }
        })
    };
    assert_eq!(wait(insert(1, false)), Ok(1));
    let Err(DatabaseError::Rejected(rejection)) = wait(insert(2, true)) else {
        panic!("the second of two equal keys was taken")
    };
    assert_eq!(rejection.code, "23505");
    assert_eq!(rejection.constraint.as_deref(), Some("t_pkey"));
    let panics = db.transaction(|tx| {
        tx.execute("INSERT INTO t VALUES (3)", &[])?;
        assert_eq!(1, 2, "a fault of the closure");
        Ok::<(), DatabaseError>(())
    });
    assert_eq!(wait(panics), Err(DatabaseError::Panicked));
    let rows = wait(db.query("SELECT a FROM t", params![])).unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1]);
    closed(&db);
}

#[test]
fn a_single_statement_cannot_change_the_session_that_others_are_on() {
    let Some(database) = Database::create("session") else { return };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..options() });
    wait(db.run(|client| client.batch_execute("CREATE TABLE t (a int)"))).unwrap();
    let Err(DatabaseError::Mismatch(why)) = wait(db.query("BEGIN", params![])) else {
        panic!("all that is written from now on would be lost")
    };
    assert!(why.contains("BEGIN") && why.contains("transaction"), "{why}");
    wait(db.query("INSERT INTO t VALUES (1)", params![])).unwrap();
    assert_eq!(database.rows("SELECT a FROM t").len(), 1);
    closed(&db);
}

#[test]
fn a_transaction_that_a_failed_closure_left_is_nobody_elses() {
    let Some(database) = Database::create("left_open") else { return };
    let db = connected(&database.url(), &PostgresOptions { exclusive: 1, ..options() });
    wait(db.run(|client| client.batch_execute("CREATE TABLE t (a int PRIMARY KEY)"))).unwrap();
    let insert = |value: i32| {
        db.run(move |client| client.execute("INSERT INTO t VALUES ($1)", &[&value]).map(drop))
    };
    // One that has failed in it, and one that failed for a reason of its own.
    let broken = db.run(|client| client.batch_execute("BEGIN; SELECT nonsense"));
    assert!(matches!(wait(broken), Err(DatabaseError::Rejected(_))));
    assert_eq!(wait(insert(1)), Ok(()));
    let left = db.run(|client| {
        client.batch_execute("BEGIN; INSERT INTO t VALUES (2)")?;
        Err::<(), _>(DatabaseError::Mismatch("its own".to_owned()))
    });
    assert_eq!(wait(left), Err(DatabaseError::Mismatch("its own".to_owned())));
    assert_eq!(wait(insert(3)), Ok(()));
    let rows = database.rows("SELECT a FROM t ORDER BY a");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 3]);
    // A failure alone costs no connection.
    let before = database.sessions();
    assert!(matches!(wait(insert(1)), Err(DatabaseError::Rejected(_))));
    assert_eq!(wait(insert(4)), Ok(()));
    let pids = |sessions: Vec<Session>| -> std::collections::BTreeSet<u32> {
        sessions.iter().map(|session| session.pid).collect()
    };
    assert_eq!(pids(before), pids(database.sessions()));
    closed(&db);
}

#[test]
fn a_wrong_parameter_is_the_callers_fault_and_costs_no_connection() {
    let Some(database) = Database::create("mismatch") else { return };
    let db = connected(&database.url(), &options());
    let sessions = || -> Vec<u32> {
        let sessions = database.sessions();
        sessions.iter().map(|session| session.pid).collect()
    };
    let before = until("every connection", SOON, || {
        Some(sessions()).filter(|all| all.len() == options().pipelined + options().exclusive)
    });
    let wrong = db.query("SELECT $1::int4", params!["text".to_owned()]);
    assert!(matches!(wait(wrong), Err(DatabaseError::Mismatch(_))));
    let wrong = db.query("SELECT nonsense", params![]);
    let Err(DatabaseError::Rejected(rejection)) = wait(wrong) else { panic!("that is no column") };
    assert_eq!(rejection.code, "42703");
    assert_eq!(wait(number(&db, 1)).unwrap().len(), 1);
    let after = sessions();
    assert_eq!(before.len(), after.len());
    assert!(before.iter().all(|pid| after.contains(pid)), "a connection was lost");
    closed(&db);
}

#[test]
fn dropping_a_ticket_cancels_its_closure_alone() {
    let Some(database) = Database::create("drop_run") else { return };
    let long = PostgresOptions { statement_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &long);
    let sleeping = |seconds: f64| {
        db.run(move |client| client.query("SELECT pg_sleep($1)", &[&seconds]).map(drop))
    };
    let (goes, stays) = (sleeping(60.0), sleeping(1.0));
    until("both to run", SOON, || (working(&database, "SELECT pg_sleep") == 2).then_some(()));
    let dropped = Instant::now();
    drop(goes);
    until("one to be cancelled", SOON, || {
        (working(&database, "SELECT pg_sleep") == 1).then_some(())
    });
    let took = dropped.elapsed();
    assert!(took < Duration::from_millis(600), "cancelled after {took:?}");
    assert_eq!(wait(stays), Ok(()));
    // Its thread connects anew and serves.
    assert_eq!(wait(db.run(|client| client.query("SELECT 1", &[]).map(|rows| rows.len()))), Ok(1));
    closed(&db);
}

#[test]
fn dropping_a_ticket_cancels_a_statement_that_is_alone_on_its_connection() {
    let Some(database) = Database::create("drop_query") else { return };
    let long = PostgresOptions { statement_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..long });
    let ticket = db.query("SELECT pg_sleep(60)", params![]);
    until("it to run", SOON, || (working(&database, "SELECT pg_sleep") == 1).then_some(()));
    let dropped = Instant::now();
    drop(ticket);
    until("it to be cancelled", SOON, || {
        (working(&database, "SELECT pg_sleep") == 0).then_some(())
    });
    let took = dropped.elapsed();
    assert!(took < Duration::from_millis(600), "cancelled after {took:?}");
    assert_eq!(wait(number(&db, 7)).unwrap()[0].get::<_, i32>(0), 7);
    closed(&db);
}

#[test]
fn a_wanted_statement_keeps_its_unwanted_neighbour_from_being_cancelled() {
    let Some(database) = Database::create("neighbours") else { return };
    let long = PostgresOptions { statement_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..long });
    wait(db.query("SELECT pg_sleep($1)", params![0.0])).unwrap();
    let unwanted = db.query("SELECT pg_sleep($1)", params![0.5]);
    let wanted = db.query("SELECT pg_sleep($1), 5", params![0.01]);
    until("it to run", SOON, || (working(&database, "SELECT pg_sleep") == 1).then_some(()));
    drop(unwanted);
    let rows = wait(wanted).unwrap();
    assert_eq!(rows[0].get::<_, i32>(1), 5);
    closed(&db);
}

#[test]
fn of_many_jobs_that_are_given_up_at_any_moment_none_takes_another_with_it() {
    let Some(database) = Database::create("given_up") else { return };
    let patient = PostgresOptions { queue_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &patient);
    // Of each thread another part of one sequence, which goes everywhere in time.
    let nap = |at: u64| f64::from(u32::try_from(at * 7919 % 30).unwrap()) / 1000.0;
    let (kept, dropped) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for client in 0..8_u64 {
            let (db, kept, dropped) = (&db, &kept, &dropped);
            scope.spawn(move || {
                for round in 0..60 {
                    let at = client * 1000 + round;
                    let value = i64::try_from(at).unwrap();
                    let statement = db.records(
                        "SELECT $1::int8, pg_sleep($2)::text",
                        vec![value.into(), nap(at).into()],
                    );
                    let closure = db.run(move |client| {
                        client.execute("SELECT pg_sleep($1)", &[&nap(at + 3)])?;
                        client.query_one("SELECT $1::int8", &[&value]).map(|row| row.get(0))
                    });
                    // Alone on its connection or in a crowd, running or waiting.
                    if at % 3 == 0 {
                        let_pass(Duration::from_secs_f64(nap(at + 11)));
                        drop((statement, closure));
                        dropped.fetch_add(2, Ordering::SeqCst);
                    } else {
                        let rows = wait(statement).expect("nobody gave this one up");
                        assert_eq!(rows[0][0], ebbtide::Value::Int(value), "another's rows");
                        let told: i64 = wait(closure).expect("nobody gave this one up");
                        assert_eq!(told, value, "another's row");
                        kept.fetch_add(2, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(kept.into_inner() + dropped.into_inner(), 8 * 60 * 2);
    closed(&db);
    left_alone(&database);
}

/// A parameter with a fault.
#[derive(Debug)]
struct Panicking;

impl ToSql for Panicking {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(b"half of it");
        panic!("a parameter that panics, which a test asked for")
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

#[test]
fn a_parameter_that_panics_fails_its_own_job_and_no_thread_ends() {
    let Some(database) = Database::create("panicking") else { return };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, ..options() });
    for round in 0..5 {
        let panics = db.query("SELECT $1::text", params![Panicking]);
        assert_eq!(wait(panics).map(drop), Err(DatabaseError::Panicked));
        let rows = until("statements to be done again", SOON, || wait(number(&db, round)).ok());
        assert_eq!(rows[0].get::<_, i32>(0), round);
    }
    closed(&db);
    left_alone(&database);
}

#[test]
fn a_ticket_fails_on_time_when_the_server_is_frozen_and_the_client_recovers() {
    let Some(database) = Database::create("frozen") else { return };
    let short = PostgresOptions { job_timeout: Duration::from_millis(700), ..options() };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, exclusive: 1, ..short });
    wait(number(&db, 1)).unwrap();
    wait(db.run(|client| client.query("SELECT 1", &[]).map(drop))).unwrap();
    let frozen: Vec<_> = database.sessions();
    assert_eq!(frozen.len(), 2);
    let guards: Vec<_> = frozen.iter().map(Session::freeze).collect();
    let begun = Instant::now();
    let (statement, closure) =
        (number(&db, 2), db.run(|client| client.query("SELECT 2", &[]).map(drop)));
    assert_eq!(wait(statement).map(drop), Err(DatabaseError::Timeout));
    assert_eq!(wait(closure), Err(DatabaseError::Timeout));
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(1200), "failed after {took:?}");
    // With other connections, while those are still frozen.
    until("statements to be done again", SOON, || wait(number(&db, 3)).ok());
    until("closures to be done again", SOON, || {
        wait(db.run(|client| client.query("SELECT 3", &[]).map(drop))).ok()
    });
    drop(guards);
    closed(&db);
    left_alone(&database);
}

#[test]
fn jobs_fail_at_once_while_the_server_is_down_and_soon_do_not_when_it_is_back() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("down");
    let db = connected(&database.url(), &options());
    wait(number(&db, 1)).unwrap();
    cluster.stop(Stop::Immediate);
    until("the client to notice", SOON, || db.usable().err());
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(wait(number(&db, 2)).map(drop), Err(DatabaseError::Unavailable));
        assert!(begun.elapsed() < Duration::from_millis(500));
    }
    let why = until("a reason", SOON, || db.usable().err().filter(|why| why.contains("connect")));
    assert!(!why.contains('\n') && !why.contains("tidal"), "{why}");
    cluster.begin();
    let back = Instant::now();
    until("statements to be done again", SOON, || wait(number(&db, 3)).ok());
    until("closures to be done again", SOON, || {
        wait(db.run(|client| client.query("SELECT 3", &[]).map(drop))).ok()
    });
    let took = back.elapsed();
    assert!(took < Duration::from_millis(2500), "back after {took:?}");
    closed(&db);
}

#[test]
fn a_client_begins_before_its_server() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("before");
    cluster.stop(Stop::Fast);
    let db = client(&database.url(), &options());
    until("the client to know", SOON, || {
        (wait(number(&db, 1)).map(drop) == Err(DatabaseError::Unavailable)).then_some(())
    });
    cluster.begin();
    until("statements to be done", SOON, || wait(number(&db, 1)).ok());
    closed(&db);
}

#[test]
fn a_full_queue_refuses_at_once_and_given_up_jobs_leave_it() {
    let Some(database) = Database::create("full") else { return };
    let small = PostgresOptions { exclusive: 1, queue_length_max: 2, ..options() };
    let db = connected(&database.url(), &PostgresOptions { queue_timeout: SOON, ..small });
    let sleeping = || db.run(|client| client.query("SELECT pg_sleep(0.3)", &[]).map(drop));
    let first = sleeping();
    until("it to run", SOON, || (working(&database, "SELECT pg_sleep") == 1).then_some(()));
    let waiting = [sleeping(), sleeping()];
    assert_eq!(wait(sleeping()), Err(DatabaseError::Busy));
    drop(waiting);
    let again = [sleeping(), sleeping()];
    assert_eq!(wait(first), Ok(()));
    assert_eq!(again.map(wait), [Ok(()), Ok(())]);
    closed(&db);
}

#[test]
fn a_job_waits_for_a_thread_no_longer_than_it_may() {
    let Some(database) = Database::create("patience") else { return };
    let queue_timeout = Duration::from_millis(200);
    let db =
        connected(&database.url(), &PostgresOptions { exclusive: 1, queue_timeout, ..options() });
    let first = db.run(|client| client.query("SELECT pg_sleep(1)", &[]).map(drop));
    until("it to run", SOON, || (working(&database, "SELECT pg_sleep") == 1).then_some(()));
    let begun = Instant::now();
    assert_eq!(
        wait(db.run(|client| client.query("SELECT 1", &[]).map(drop))),
        Err(DatabaseError::Busy)
    );
    let took = begun.elapsed();
    assert!(queue_timeout <= took && took < Duration::from_millis(700), "{took:?}");
    assert_eq!(wait(first), Ok(()));
    closed(&db);
}

#[test]
fn closing_waits_for_what_runs_and_takes_nothing_more() {
    let Some(database) = Database::create("closing") else { return };
    let db = connected(&database.url(), &options());
    let running = db.run(|client| client.query("SELECT pg_sleep(0.3)", &[]).map(drop));
    until("it to run", SOON, || (working(&database, "SELECT pg_sleep") == 1).then_some(()));
    closed(&db);
    assert_eq!(wait(running), Ok(()));
    left_alone(&database);
    assert_eq!(wait(number(&db, 1)).map(drop), Err(DatabaseError::Closed));
    assert_eq!(
        wait(db.run(|client| client.query("SELECT 1", &[]).map(drop))),
        Err(DatabaseError::Closed)
    );
}

#[test]
fn closing_cancels_what_does_not_end_in_time() {
    let Some(database) = Database::create("closing_late") else { return };
    let long = PostgresOptions { statement_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &long);
    let closure = db.run(|client| client.query("SELECT pg_sleep(60)", &[]).map(drop));
    let statement = db.query("SELECT pg_sleep(60)", params![]);
    until("both to run", SOON, || (working(&database, "SELECT pg_sleep") == 2).then_some(()));
    let begun = Instant::now();
    db.close(Instant::now() + Duration::from_secs(2)).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert_eq!(wait(closure), Err(DatabaseError::Cancelled));
    assert_eq!(wait(statement).map(drop), Err(DatabaseError::Cancelled));
    left_alone(&database);
}

#[test]
fn connections_that_cannot_be_closed_take_no_time_from_those_that_can() {
    let Some(database) = Database::create("closing_beside") else { return };
    let long = PostgresOptions { statement_timeout: SOON, job_timeout: SOON, ..options() };
    let db = connected(&database.url(), &PostgresOptions { pipelined: 1, exclusive: 1, ..long });
    let statement = db.query("SELECT pg_sleep(60), 1", params![]);
    let closure = db.run(|client| client.query("SELECT pg_sleep(60), 2", &[]).map(drop));
    until("both to run", SOON, || (working(&database, "SELECT pg_sleep") == 2).then_some(()));
    let sessions = database.sessions();
    let silent = sessions.iter().find(|session| session.query.ends_with(", 1")).unwrap().freeze();
    let why = db.close(Instant::now() + Duration::from_secs(2)).expect_err("it is silent");
    assert!(why.contains("pipelined: 1") && !why.contains("exclusive"), "{why}");
    assert_eq!(wait(closure), Err(DatabaseError::Cancelled));
    assert_eq!(wait(statement).map(drop), Err(DatabaseError::Cancelled));
    drop(silent);
    left_alone(&database);
}

#[test]
fn a_client_that_is_dropped_leaves_no_session() {
    let Some(database) = Database::create("dropped") else { return };
    let db = connected(&database.url(), &options());
    let ticket = number(&db, 1);
    drop(db);
    assert_eq!(wait(ticket).unwrap().len(), 1);
    left_alone(&database);
}

#[test]
fn a_half_open_link_costs_its_jobs_and_no_others() {
    let Some(database) = Database::create("half_open") else { return };
    let proxy = Proxy::before(database.cluster().port());
    let short = PostgresOptions { job_timeout: Duration::from_millis(700), ..options() };
    let db = connected(&database.url_through(proxy.port()), &short);
    wait(number(&db, 1)).unwrap();
    proxy.swallow();
    let begun = Instant::now();
    let lost = [number(&db, 2), number(&db, 3)];
    for ticket in lost {
        assert!(wait(ticket).is_err());
    }
    assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
    proxy.pass();
    until("statements to be done again", SOON, || wait(number(&db, 4)).ok());
    closed(&db);
}

#[test]
fn a_server_that_has_no_room_is_asked_by_one_thread_after_the_other() {
    // It takes connections and closes them, as PostgreSQL does with more than it may have.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream.unwrap());
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let url = format!("postgres://me@127.0.0.1:{port}/db");
    let db = client(&url, &PostgresOptions { exclusive: 20, pipelined: 20, ..options() });
    // Each for itself, at first; then the pauses grow.
    until("the first of them", SOON, || (attempts.load(Ordering::SeqCst) >= 60).then_some(()));
    let (before, span) = (attempts.load(Ordering::SeqCst), Duration::from_secs(3));
    let begun = Instant::now();
    until("three seconds", SOON, || (begun.elapsed() >= span).then_some(()));
    let count = attempts.load(Ordering::SeqCst) - before;
    // Each of the two sets every 0.25 to 0.5 s in the end, with a few before that.
    assert!((8..60).contains(&count), "{count} attempts in three seconds");
    closed(&db);
}
