//! SQLite by itself: where the file is, what survives, and what happens when there can be none.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::items::{parsed, send, started, until_ready};
use crate::services::keeper::directory;
use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SLACK, SOON, scratch, until};

const ITEM: &str = r#"{"name":"rope","quantity":3}"#;

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn without_a_database_named_it_is_a_file_in_the_working_directory() {
    let home = scratch("default-database");
    let start = || {
        let server = at_home(&home);
        until_ready(&server);
        server
    };
    let server = start();
    assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    server.stop();
    assert_eq!(names(&home), ["ebbtide.db"], "the log is brought into the file");
    let server = start();
    assert_eq!(parsed(&server.connect().get("/items/1"))["name"], "rope");
    server.stop();
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let home = scratch("killed-database");
    let url = format!("sqlite:{}", home.join("items.db").display());
    let mut server = started(&url);
    for _ in 0..20 {
        assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    }
    server.signal("KILL");
    server.exit(Duration::from_secs(5));
    let server = started(&url);
    let page = parsed(&server.connect().get("/items?limit=100"));
    assert_eq!(page["items"].as_array().unwrap().len(), 20);
    server.stop();
}

#[test]
fn a_database_in_memory_ends_with_its_server() {
    let server = started("sqlite::memory:");
    assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    assert_eq!(server.connect().get("/items/1").status, 200);
    server.stop();
    let server = started("sqlite::memory:");
    assert_eq!(server.connect().get("/items/1").status, 404);
    server.stop();
}

#[test]
fn without_a_database_the_rest_is_served_and_items_say_so() {
    let server = Launch::new().env("DATABASE_URL", "off").start();
    assert_eq!(Client::connect(server.admin).get("/readyz").status, 200);
    assert_eq!(server.connect().get("/plaintext").status, 200);
    for path in ["/items", "/items/1", "/db", "/db/sleep/1"] {
        let response = server.connect().get(path);
        assert_eq!(response.status, 503);
        assert_eq!(parsed(&response), json!({ "error": "this server has no database" }));
        assert_eq!(response.header("retry-after"), None, "it would not help");
    }
    server.stop();
}

#[test]
fn a_working_directory_that_cannot_be_written_is_no_reason_not_to_serve() {
    // Of root's, for a server that is nobody's.
    let home = directory("readonly");
    std::fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o555)).unwrap();
    let mut command = Launch::new().command();
    command.env_remove("DATABASE_URL").current_dir(&home);
    if std::fs::write(home.join("probe"), "").is_ok() {
        // Root may write anywhere, so it must not be root.
        command.uid(65534).gid(65534);
        std::fs::remove_file(home.join("probe")).unwrap();
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let server = Server::new(child, stderr);
    let said = server.log.wait("database_off");
    let message = said["message"].as_str().unwrap();
    assert!(message.contains("ebbtide.db") && message.contains("DATABASE_URL"), "{message}");
    assert_eq!(Client::connect(server.admin).get("/readyz").status, 200);
    assert_eq!(server.connect().get("/plaintext").status, 200);
    assert_eq!(server.connect().get("/items").status, 503);
    server.stop();
    std::fs::remove_dir_all(&home).unwrap();
}

#[test]
fn a_file_that_is_named_and_cannot_be_used_shows_in_readyz() {
    let home = scratch("unusable-database");
    std::fs::write(
        home.join("text.db"),
        "this is a text and no database, for longer than a header needs",
    )
    .unwrap();
    for (path, reason) in
        [(home.join("absent/items.db"), "unable to open"), (home.join("text.db"), "not a database")]
    {
        let server =
            Launch::new().env("DATABASE_URL", format!("sqlite:{}", path.display())).start();
        let ready = Client::connect(server.admin).get("/readyz?verbose");
        assert_eq!(ready.status, 503, "{}", ready.text());
        until("the reason", SOON, || {
            let ready = Client::connect(server.admin).get("/readyz?verbose").text();
            ready.contains(reason).then_some(())
        });
        let refused = server.connect().get("/items");
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        assert!(!refused.text().contains(reason), "clients are not told");
        assert_eq!(server.connect().get("/plaintext").status, 200);
        // It is tried again.
        if path.ends_with("absent/items.db") {
            std::fs::create_dir(home.join("absent")).unwrap();
            until_ready(&server);
            assert_eq!(server.connect().get("/items").status, 200);
        }
        server.stop();
    }
}

#[test]
fn a_cancelled_sleep_frees_its_connection() {
    let mut server = Launch::new()
        .env("DATABASE_URL", "sqlite::memory:")
        .env("POOL_JOB_TIMEOUT", "60s")
        .env("STATEMENT_TIMEOUT", "30s")
        .env("POOL_QUEUE_TIMEOUT", "10s")
        .env("SHUTDOWN_TIMEOUT", "3s")
        .start();
    until_ready(&server);
    let mut sleeping = server.connect();
    sleeping.ask("/db/sleep/50000");
    server.wait_in_flight(1);
    // The one connection there is comes free with its client's end.
    drop(sleeping);
    assert_eq!(server.connect().get("/items").status, 200);
    // And the shutdown ends one when it is time.
    let mut sleeping = server.connect();
    sleeping.ask("/db/sleep/50000");
    server.wait_in_flight(1);
    let before = server.signal("TERM");
    assert_eq!(sleeping.response().status, 503);
    let exit = server.exit(SOON);
    assert!(exit.at - before < Duration::from_secs(3) + SLACK);
    let report = server.log.report();
    assert_eq!(exit.status, 3, "{report:#}");
    assert_eq!(report["cancelled_jobs"][0]["statement"], "sleep", "{report:#}");
}

/// A server with the file of its working directory.
fn at_home(home: &Path) -> Server {
    let mut command = Launch::new().command();
    command.env_remove("DATABASE_URL").current_dir(home);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    Server::new(child, stderr)
}

/// Another program, with the file to itself until its end.
fn locked(file: &Path) -> rusqlite::Connection {
    let other = rusqlite::Connection::open(file).unwrap();
    other.busy_timeout(SOON).unwrap();
    other.execute_batch("CREATE TABLE IF NOT EXISTS theirs (a); BEGIN EXCLUSIVE").unwrap();
    other
}

fn until_told(server: &Server, reason: &str) {
    until(reason, SOON, || {
        let ready = Client::connect(server.admin).get("/readyz?verbose");
        (ready.status == 503 && ready.text().contains(reason)).then_some(())
    });
}

#[test]
fn a_file_that_is_there_and_cannot_be_used_is_not_passed_over() {
    let home = scratch("default-unusable");
    let file = home.join("ebbtide.db");
    // Of another program, for longer than anything is waited for.
    let other = locked(&file);
    let begun = Instant::now();
    let server = at_home(&home);
    assert_eq!(server.connect().get("/plaintext").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "the start waited for the file");
    until_told(&server, "locked");
    other.execute_batch("COMMIT").unwrap();
    until_ready(&server);
    assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    server.stop();

    std::fs::write(&file, "a text, and longer than the header of a database, which it has not got")
        .unwrap();
    let server = at_home(&home);
    until_told(&server, "not a database");
    assert_eq!(server.connect().get("/items").status, 503);
    std::fs::remove_file(&file).unwrap();
    until_ready(&server);
    assert_eq!(server.connect().get("/items").status, 200);
    server.stop();

    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let server = at_home(&home);
    until_told(&server, "unable to open");
    server.stop();
}

#[test]
fn writes_that_another_program_keeps_waiting_are_refused_and_never_done() {
    let file = scratch("foreign-lock").join("items.db");
    let server = started(&format!("sqlite:{}", file.display()));
    assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    let other = locked(&file);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let refused = send(&mut server.connect(), "POST", "/items", ITEM);
                let told = (refused.status, refused.header("retry-after"));
                assert_eq!(told, (503, Some("1")), "{}", refused.text());
            });
        }
    });
    let took = begun.elapsed();
    assert!(took < PATIENCE + SLACK, "they waited for each other: {took:?}");
    // Who reads waits for nobody.
    assert_eq!(server.connect().get("/items").status, 200);
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(send(&mut server.connect(), "POST", "/items", ITEM).status, 201);
    let page = parsed(&server.connect().get("/items"));
    assert_eq!(page["items"].as_array().unwrap().len(), 2, "one of the refused was done");
    server.stop();
}

#[test]
fn a_write_that_waits_for_another_program_ends_with_its_request() {
    let file = scratch("foreign-lock-exit").join("items.db");
    let mut server = started(&format!("sqlite:{}", file.display()));
    let other = locked(&file);
    let post = format!(
        "POST /items HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{ITEM}",
        ITEM.len()
    );
    // On all four threads, and all of their clients leave.
    let mut clients: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut clients {
        client.send(&post);
    }
    server.wait_in_flight(4);
    let left = Instant::now();
    drop(clients);
    assert_eq!(server.connect().get("/items").status, 200);
    assert!(left.elapsed() < SLACK, "their threads waited on: {:?}", left.elapsed());
    // The shutdown does not wait for it either.
    let mut client = server.connect();
    client.send(&post);
    server.wait_in_flight(1);
    let before = server.signal("TERM");
    server.log.wait_for("draining", |line| line["phase"] == "draining");
    until("the second signal to count", SOON, || {
        server.signal("TERM");
        let lines = server.log.so_far();
        lines.iter().any(|line| line.contains("\"phase\":\"cancelling\"")).then_some(())
    });
    assert_eq!(client.response().status, 503);
    drop(client);
    let exit = server.exit(SOON);
    assert!(exit.at - before < Duration::from_secs(1) + SLACK, "{:?}", exit.at - before);
    let report = server.log.report();
    let hooks = report["hooks"].as_array().unwrap();
    let closing = hooks.iter().find(|hook| hook["name"] == "close_database").unwrap();
    assert_eq!(closing["outcome"], "done", "{report:#}");
    other.execute_batch("COMMIT").unwrap();
    let count: i64 = other.query_row("SELECT count(*) FROM items", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
}

/// How long a job waits for another program.
const PATIENCE: Duration = Duration::from_secs(3);
