//! The sample API is the same on either database: every test here runs on both.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::services::postgres::Database;
use crate::support::client::{Client, Response};
use crate::support::scratch;
use crate::support::server::{Launch, Server};
use crate::support::{SLACK, SOON, until};

/// Runs the test on SQLite in a file and, where it is, on PostgreSQL.
fn on_each(name: &str, test: impl Fn(&Server)) {
    let file = scratch(&format!("items-{name}")).join("items.db");
    let server = started(&format!("sqlite:{}", file.display()));
    test(&server);
    server.stop();
    if cfg!(feature = "postgres")
        && let Some(database) = Database::create(name)
    {
        let server = started(&database.url());
        test(&server);
        server.stop();
        let gone = || database.sessions().is_empty().then_some(());
        until("the end of every session", SESSIONS_GONE, gone);
    }
}

/// A server that has its database.
pub fn started(url: &str) -> Server {
    let server = Launch::new().env("DATABASE_URL", url).start();
    until_ready(&server);
    server
}

pub fn until_ready(server: &Server) {
    until("the database", SOON, || {
        (Client::connect(server.admin).get("/readyz").status == 200).then_some(())
    });
}

pub fn send(client: &mut Client, method: &str, path: &str, body: &str) -> Response {
    client.send(format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    client.response()
}

pub fn parsed(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("no JSON: {response:?}"))
}

#[test]
fn an_item_is_created_read_replaced_and_deleted() {
    on_each("life", |server| {
        let mut client = server.connect();
        let rope = r#"{"name":"a \"rope\" – 5 m","quantity":3,"details":{"tags":["x"]}}"#;
        let made = send(&mut client, "POST", "/items", rope);
        assert_eq!((made.status, made.header("content-type")), (201, Some("application/json")));
        let item = parsed(&made);
        let id = item["id"].as_i64().expect("an id");
        let path = format!("/items/{id}");
        assert_eq!(made.header("location"), Some(path.as_str()));
        let wanted = json!({
            "id": id, "name": "a \"rope\" – 5 m", "quantity": 3, "details": { "tags": ["x"] }
        });
        assert_eq!(item, wanted);
        assert_eq!(parsed(&client.get(&path)), wanted);

        let replaced = send(&mut client, "PUT", &path, r#"{"name":"twine","quantity":0}"#);
        let wanted = json!({ "id": id, "name": "twine", "quantity": 0, "details": {} });
        assert_eq!((replaced.status, parsed(&replaced)), (200, wanted.clone()));
        assert_eq!(parsed(&client.get(&path)), wanted);

        assert_eq!(send(&mut client, "DELETE", &path, "").status, 204);
        for method in ["GET", "PUT", "DELETE"] {
            let body = r#"{"name":"x","quantity":1}"#;
            let gone = send(&mut client, method, &path, body);
            assert_eq!(gone.status, 404, "{method}");
            assert_eq!(parsed(&gone), json!({ "error": "there is no such item" }));
        }
        // Its id is not given again.
        let next = send(&mut client, "POST", "/items", r#"{"name":"x","quantity":1}"#);
        assert!(parsed(&next)["id"].as_i64() > Some(id));
    });
}

#[test]
fn a_list_is_read_page_by_page_to_its_end() {
    on_each("pages", |server| {
        let mut client = server.connect();
        assert_eq!(parsed(&client.get("/items")), json!({ "items": [], "next": null }));
        let mut names = Vec::new();
        for n in 0..45 {
            names.push(format!("item {n}"));
            let body = json!({ "name": names[n], "quantity": n }).to_string();
            assert_eq!(send(&mut client, "POST", "/items", &body).status, 201);
        }
        for limit in [1, 20, 45, 100] {
            let (mut seen, mut after, mut pages) = (Vec::new(), 0, 0);
            loop {
                let page = parsed(&client.get(&format!("/items?limit={limit}&after={after}")));
                let items = page["items"].as_array().expect("a list");
                assert!(items.len() <= limit);
                seen.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
                pages += 1;
                let Some(next) = page["next"].as_i64() else { break };
                assert_eq!(items.last().unwrap()["id"], next);
                after = next;
            }
            assert_eq!(seen, names);
            assert_eq!(pages, 45_usize.div_ceil(limit));
        }
        assert_eq!(parsed(&client.get("/items"))["items"].as_array().unwrap().len(), 20);
    });
}

#[test]
fn what_a_client_does_wrong_is_told_with_its_field() {
    on_each("wrong", |server| {
        let deep = format!("{{\"details\":{}", "[".repeat(10_000));
        for (method, path, body, status, field) in [
            ("POST", "/items", "{", 400, None),
            ("POST", "/items", deep.as_str(), 400, Some("details")),
            ("POST", "/items", r#"{"name":"x","quantity":1,"name":"y"}"#, 422, Some("name")),
            ("POST", "/items", "[]", 422, None),
            ("POST", "/items", r#"{"name":"x"}"#, 422, Some("quantity")),
            ("POST", "/items", r#"{"name":7,"quantity":1}"#, 422, Some("name")),
            ("POST", "/items", r#"{"name":"a\u0000b","quantity":1}"#, 422, Some("name")),
            ("POST", "/items", r#"{"name":"x","quantity":1,"id":3}"#, 422, Some("id")),
            ("PUT", "/items/x", r#"{"name":"x","quantity":1}"#, 400, Some("id")),
            ("GET", "/items/0", "", 400, Some("id")),
            ("GET", "/items?limit=1000", "", 400, Some("limit")),
            ("GET", "/items?after=-1", "", 400, Some("after")),
            ("GET", "/db/sleep/x", "", 400, Some("ms")),
        ] {
            let response = send(&mut server.connect(), method, path, body);
            assert_eq!(response.status, status, "{method} {path} {body}");
            let told = parsed(&response);
            assert_eq!(told["field"].as_str(), field, "{told}");
            assert!(!told["error"].as_str().unwrap().is_empty());
        }
        let large = format!(r#"{{"name":"{}","quantity":1}}"#, "x".repeat(70_000));
        assert_eq!(send(&mut server.connect(), "POST", "/items", &large).status, 413);
        let mut client = server.connect();
        let head = "POST /items HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 2";
        client.send(format!("{head}\r\n\r\n{{}}"));
        assert_eq!(client.response().status, 415);
        let listed = parsed(&server.connect().get("/items"));
        assert_eq!(listed["items"], json!([]), "nothing of it was stored");
    });
}

#[test]
fn text_that_looks_like_sql_is_text() {
    on_each("injection", |server| {
        let mut client = server.connect();
        for name in ["'; DROP TABLE items; --", "$1", "\\", "\" OR 1=1", "%00"] {
            let body = json!({ "name": name, "quantity": 1, "details": { name: name } });
            let made = send(&mut client, "POST", "/items", &body.to_string());
            let id = parsed(&made)["id"].as_i64().expect("an id");
            let item = parsed(&client.get(&format!("/items/{id}")));
            assert_eq!((&item["name"], &item["details"]), (&body["name"], &body["details"]));
        }
    });
}

#[test]
fn the_lab_reads_random_rows_and_holds_connections() {
    on_each("lab", |server| {
        let mut client = server.connect();
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let row = parsed(&client.get("/db"));
            let (id, number) = (row["id"].as_i64().unwrap(), row["number"].as_i64().unwrap());
            assert!((1..=10_000).contains(&id) && (1..=10_000).contains(&number), "{row}");
            assert_eq!(number, 1 + id * 7919 % 10_000, "the row is that of its id");
            ids.insert(id);
        }
        assert!(ids.len() > 40, "{ids:?}");
        assert_eq!(client.get("/db/sleep/10").text(), "slept 10 ms in the database\n");
    });
}

#[test]
fn replicas_that_start_together_find_one_schema() {
    let together = |url: &str| {
        let servers: Vec<Server> = (0..4)
            .map(|_| Launch::new().env("DATABASE_URL", url))
            .map(|launch| std::thread::spawn(|| launch.start()))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|starting| starting.join().unwrap())
            .collect();
        for server in &servers {
            until_ready(server);
            let made =
                send(&mut server.connect(), "POST", "/items", r#"{"name":"x","quantity":1}"#);
            assert_eq!(made.status, 201);
            assert_eq!(server.connect().get("/db").status, 200);
        }
        let page = parsed(&servers[0].connect().get("/items"));
        assert_eq!(page["items"].as_array().unwrap().len(), servers.len());
        for server in servers {
            server.stop();
        }
    };
    let file = scratch("together").join("items.db");
    together(&format!("sqlite:{}", file.display()));
    if let Some(database) = Database::create("together") {
        together(&database.url());
        let rows = database.rows("SELECT count(*) FROM lab_rows");
        assert_eq!(rows[0].get::<_, i64>(0), 10_000);
    }
}

#[test]
fn two_hundred_writes_of_many_clients_are_all_there() {
    on_each("many", |server| {
        let count = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for client in 0..8 {
                let count = &count;
                scope.spawn(move || {
                    let mut connection = server.connect();
                    for n in 0..25 {
                        let name = format!("{client}/{n}");
                        let body = json!({ "name": name, "quantity": n }).to_string();
                        let made = send(&mut connection, "POST", "/items", &body);
                        assert_eq!(made.status, 201, "{}", made.text());
                        assert_eq!(parsed(&made)["name"], name.as_str(), "its own answer");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let mut after = 0;
        let mut found = 0;
        loop {
            let page = parsed(&server.connect().get(&format!("/items?limit=100&after={after}")));
            found += u32::try_from(page["items"].as_array().unwrap().len()).unwrap();
            let Some(next) = page["next"].as_i64() else { break };
            after = next;
        }
        assert_eq!(found, count.into_inner());
    });
}

/// Within which PostgreSQL shows no session of a server that has ended.
const SESSIONS_GONE: Duration = Duration::from_millis(1500).saturating_add(SLACK);
