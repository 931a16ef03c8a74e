//! Writes under everything that goes wrong with a database: what a client was told and what is in
//! the table are compared row by row. A POST that got 201 is there once, one that got an error at
//! most once, and every answer is to the request it follows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::items::{parsed, until_ready};
use crate::services::postgres::{Cluster, Database, Stop};
use crate::services::proxy::Proxy;
use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SLACK, let_pass, say};

/// What became of one POST.
struct Sent {
    name: String,
    status: u16,
    /// Of a 201.
    id: Option<i64>,
}

fn launch(url: &str) -> Launch {
    Launch::new()
        .env("DATABASE_URL", url)
        .env("POOL_QUEUE_TIMEOUT", "500ms")
        .env("POOL_JOB_TIMEOUT", "1s")
        .env("STATEMENT_TIMEOUT", "800ms")
}

/// Posts from several clients while `trouble` goes on, and until all is well again; then reads the
/// books.
fn under(server: &Server, database: &Database<'_>, trouble: impl FnOnce()) {
    let is_over = AtomicBool::new(false);
    let sent: Vec<Sent> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let is_over = &is_over;
                scope.spawn(move || post_until(server, client, is_over))
            })
            .collect();
        let watching = scope.spawn(|| watch_plaintext(server, &is_over));
        trouble();
        until_ready(server);
        // Some that go well again, after the trouble.
        let_pass(Duration::from_millis(300));
        is_over.store(true, Ordering::SeqCst);
        watching.join().unwrap();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    reconcile(database, &sent);
    // The last of each client went well: it has recovered.
    for client in 0..CLIENTS {
        let prefix = format!("{client}/");
        let last = sent.iter().rfind(|sent| sent.name.starts_with(&prefix)).unwrap();
        assert_eq!(last.status, 201, "{}", last.name);
    }
}

fn post_until(server: &Server, client: usize, is_over: &AtomicBool) -> Vec<Sent> {
    let mut connection = server.connect();
    let mut sent = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let name = format!("{client}/{}", sent.len());
        let body = json!({ "name": name, "quantity": sent.len() }).to_string();
        let response = super::items::send(&mut connection, "POST", "/items", &body);
        let id = (response.status == 201).then(|| {
            let item = parsed(&response);
            assert_eq!(item["name"], name.as_str(), "the answer to another request");
            item["id"].as_i64().unwrap()
        });
        assert!([201, 503, 504].contains(&response.status), "{}", response.text());
        if id.is_none() {
            // Told to come again: not at once.
            let_pass(Duration::from_millis(2));
        }
        sent.push(Sent { name, status: response.status, id });
    }
    sent
}

/// What has no need of the database does not feel its bad days.
fn watch_plaintext(server: &Server, is_over: &AtomicBool) {
    let mut client = server.connect();
    let mut worst = Duration::ZERO;
    while !is_over.load(Ordering::SeqCst) {
        let asked = Instant::now();
        assert_eq!(client.get("/plaintext").status, 200);
        worst = worst.max(asked.elapsed());
        let_pass(Duration::from_millis(5));
    }
    assert!(worst < SLACK, "it felt them: {worst:?}");
}

fn reconcile(database: &Database<'_>, sent: &[Sent]) {
    let rows = database.rows("SELECT name, id, count(*) OVER (PARTITION BY name) FROM items");
    let stored: std::collections::BTreeMap<String, (i64, i64)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let (mut done, mut failed, mut done_after_all) = (0, 0, 0);
    for sent in sent {
        let found = stored.get(&sent.name);
        match (sent.id, found) {
            (Some(id), Some((stored, 1))) => {
                assert_eq!(id, *stored, "{} was told another id", sent.name);
                done += 1;
            }
            (None, None) => failed += 1,
            (None, Some((_, 1))) => done_after_all += 1,
            (Some(_), None) => panic!("{} was acknowledged and is not there", sent.name),
            (_, Some((_, times))) => panic!("{} is there {times} times", sent.name),
        }
    }
    assert_eq!(stored.len(), done + done_after_all, "rows that nobody sent");
    assert!(done > 0 && failed + done_after_all > 0, "{done} done, {failed} failed: no trouble");
    say(&format!("{done} writes done, {failed} failed, {done_after_all} failed and were done"));
}

#[test]
fn sessions_are_terminated_at_random() {
    let Some(database) = Database::create("terminated") else { return };
    let server = launch(&database.url()).start();
    until_ready(&server);
    under(&server, &database, || {
        let mut superuser = database.cluster().superuser("postgres");
        for round in 0..40 {
            let sessions = database.sessions();
            if let Some(session) = sessions.get(round % sessions.len().max(1)) {
                let pid = i32::try_from(session.pid).unwrap();
                superuser.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
            }
            let_pass(Duration::from_millis(25));
        }
    });
    server.stop();
}

#[test]
fn postgres_crashes_and_comes_back_under_load() {
    let Some(cluster) = Cluster::start() else { return };
    let database = cluster.database("crashing");
    let server = launch(&database.url()).start();
    until_ready(&server);
    under(&server, &database, || {
        for _ in 0..3 {
            let_pass(Duration::from_millis(300));
            cluster.stop(Stop::Immediate);
            let_pass(Duration::from_millis(300));
            cluster.begin();
            until_ready(&server);
        }
    });
    server.stop();
}

#[test]
fn every_session_is_frozen_for_a_while() {
    let Some(database) = Database::create("frozen_all") else { return };
    let server = launch(&database.url()).start();
    until_ready(&server);
    under(&server, &database, || {
        let_pass(Duration::from_millis(200));
        let frozen: Vec<_> =
            database.sessions().iter().map(crate::services::postgres::Session::freeze).collect();
        // Longer than a job may take: its ticket fails on time, its connection is given up.
        let_pass(Duration::from_secs(5));
        drop(frozen);
    });
    server.stop();
}

#[test]
fn the_link_goes_half_open() {
    let Some(database) = Database::create("half_open") else { return };
    let proxy = Proxy::before(database.cluster().port());
    let server = launch(&database.url_through(proxy.port())).start();
    until_ready(&server);
    under(&server, &database, || {
        let_pass(Duration::from_millis(200));
        proxy.swallow();
        let_pass(Duration::from_millis(2500));
        proxy.pass();
        // What was swallowed is lost for good: those connections are dead though they look alive.
    });
    server.stop();
}

#[test]
fn links_are_cut_in_mid_message() {
    let Some(database) = Database::create("cut_links") else { return };
    let proxy = Proxy::before(database.cluster().port());
    let server = launch(&database.url_through(proxy.port())).start();
    until_ready(&server);
    under(&server, &database, || {
        for _ in 0..10 {
            let_pass(Duration::from_millis(100));
            proxy.cut();
        }
    });
    server.stop();
}

#[test]
fn the_server_is_killed_and_leaves_nothing_behind() {
    let Some(database) = Database::create("killed_server") else { return };
    let mut server = launch(&database.url())
        .env("STATEMENT_TIMEOUT", "60s")
        .env("POOL_JOB_TIMEOUT", "60s")
        .start();
    until_ready(&server);
    let mut client: Client = server.connect();
    client.ask("/db/sleep/30000");
    crate::support::until("the query to run", crate::support::SOON, || {
        database.sessions().iter().any(|session| session.is_running("pg_sleep")).then_some(())
    });
    server.signal("KILL");
    server.exit(crate::support::SOON);
    let limit = Duration::from_millis(1500) + SLACK;
    crate::support::until("every session and query to be gone", limit, || {
        database.sessions().is_empty().then_some(())
    });
}

/// Connections that post at a time.
const CLIENTS: usize = 12;
