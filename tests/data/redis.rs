//! Redis: commands and pipelines, and what becomes of them when it is killed, silent or gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::items::{parsed, until_ready};
use crate::services::redis::Redis;
use crate::support::client::Client;
use crate::support::server::{Launch, Server};
use crate::support::{SOON, let_pass, until};

fn started(redis: &Redis) -> Server {
    let server = launch(&redis.url()).start();
    until_ready(&server);
    server
}

fn launch(url: &str) -> Launch {
    Launch::new().env("REDIS_URL", url).env("POOL_JOB_TIMEOUT", "2s")
}

/// Hits a counter; the status and the number.
fn hit(client: &mut Client, name: &str) -> (u16, Option<u64>) {
    client.send(format!(
        "POST /hits/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    ));
    let response = client.response();
    (response.status, parsed(&response)["hits"].as_u64())
}

#[test]
fn commands_and_pipelines_are_done() {
    let Some(redis) = Redis::start() else { return };
    let server = started(&redis);
    let mut client = server.connect();
    assert_eq!(parsed(&client.get("/hits/a")), json!({ "hits": 0 }));
    for n in 1..=20 {
        assert_eq!(hit(&mut client, "a"), (200, Some(n)));
    }
    assert_eq!(parsed(&client.get("/hits/a")), json!({ "hits": 20 }));
    assert_eq!(redis.say("GET ebbtide:hits:a"), "$2");
    let ready = Client::connect(server.admin).get("/readyz?verbose").text();
    assert!(ready.contains("[+] redis usable"), "{ready}");
    let report = server.stop();
    let hooks = report["hooks"].as_array().unwrap();
    assert!(hooks.iter().any(|hook| hook["name"] == "close_redis" && hook["outcome"] == "done"));
}

#[test]
fn answers_never_swap_between_requests() {
    let Some(redis) = Redis::start() else { return };
    let server = started(&redis);
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                for n in 1..=50 {
                    assert_eq!(hit(&mut client, name), (200, Some(n)), "{name}");
                }
            });
        }
    });
    server.stop();
}

#[test]
fn redis_is_killed_and_comes_back() {
    let Some(redis) = Redis::start() else { return };
    let server = started(&redis);
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(1)));
    redis.kill();
    let mut admin = Client::connect(server.admin);
    until("readiness to notice", SOON, || (admin.get("/readyz").status == 503).then_some(()));
    let response = server.connect().get("/hits/a");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    assert_eq!(server.connect().get("/plaintext").status, 200);
    redis.begin();
    until_ready(&server);
    // It keeps nothing, so a hit that was repeated would show.
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(1)));
    server.stop();
}

#[test]
fn no_hit_is_repeated_or_lost_when_redis_is_killed_under_load() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let Some(redis) = Redis::start_with(&durable) else { return };
    let server = started(&redis);
    let is_over = AtomicBool::new(false);
    // Of each hit the number it was told, if any.
    let told: Vec<Option<u64>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut told) = (server.connect(), Vec::new());
                    while !is_over.load(Ordering::SeqCst) {
                        let (status, number) = hit(&mut client, "shared");
                        assert!(status == 200 || status == 503, "{status}");
                        told.push(number);
                        if number.is_none() {
                            let_pass(Duration::from_millis(2));
                        }
                    }
                    told
                })
            })
            .collect();
        for _ in 0..3 {
            let_pass(Duration::from_millis(300));
            redis.kill();
            let_pass(Duration::from_millis(100));
            redis.begin();
            until_ready(&server);
        }
        is_over.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let mut numbers: Vec<u64> = told.iter().flatten().copied().collect();
    let (done, failed) = (numbers.len() as u64, (told.len() - numbers.len()) as u64);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len() as u64, done, "two hits were told one number");
    let count = parsed(&server.connect().get("/hits/shared"))["hits"].as_u64().unwrap();
    assert!(done > 0 && failed > 0, "{done} done, {failed} failed: no trouble");
    assert!(done <= count && count <= done + failed, "{count} of {done} done and {failed} not");
    server.stop();
}

#[test]
fn a_late_answer_goes_to_nobody() {
    let Some(redis) = Redis::start() else { return };
    let server = started(&redis);
    let mut client = server.connect();
    assert_eq!(hit(&mut client, "a"), (200, Some(1)));
    redis.freeze();
    client.ask("/hits/a");
    let response = client.response();
    assert_eq!(response.status, 504, "{}", response.text());
    redis.thaw();
    until_ready(&server);
    assert_eq!(hit(&mut client, "b"), (200, Some(1)), "not what was asked for before");
    server.stop();
}

#[test]
fn redis_down_at_start_is_waited_for_beside_serving() {
    let Some(redis) = Redis::start_with(&["--requirepass", "tidal"]) else { return };
    redis.kill();
    let url = format!("redis://:tidal@127.0.0.1:{}", redis.port());
    let server = launch(&url).start();
    assert_eq!(Client::connect(server.admin).get("/readyz").status, 503);
    assert_eq!(server.connect().get("/plaintext").status, 200);
    redis.begin();
    until_ready(&server);
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(1)));
    server.stop();
}

#[test]
fn a_wrong_password_is_told_to_operators_without_the_password() {
    let Some(redis) = Redis::start_with(&["--requirepass", "tidal"]) else { return };
    let url = format!("redis://:hunter2@127.0.0.1:{}", redis.port());
    let server = launch(&url).start();
    let told = until("the reason", SOON, || {
        let ready = Client::connect(server.admin).get("/readyz?verbose").text();
        ready.to_lowercase().contains("authentication").then_some(ready)
    });
    assert!(!told.contains("hunter2"), "{told}");
    server.log.wait("database_unavailable");
    let log = server.log.so_far().join("\n");
    assert!(!log.contains("hunter2"), "{log}");
    server.stop();
}

#[test]
fn a_server_that_wants_a_password_is_not_usable_without() {
    let Some(redis) = Redis::start_with(&["--requirepass", "tidal"]) else { return };
    let server = launch(&format!("redis://127.0.0.1:{}", redis.port())).start();
    until("the reason", SOON, || {
        let ready = Client::connect(server.admin).get("/readyz?verbose");
        (ready.status == 503 && ready.text().contains("NOAUTH")).then_some(())
    });
    let response = server.connect().get("/hits/a");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    server.stop();
}

#[test]
fn a_user_who_may_do_little_keeps_its_connections() {
    let Some(redis) = Redis::start() else { return };
    let may = "~ebbtide:* +get +incr +expire +multi +exec +client|id";
    assert_eq!(redis.say(&format!("ACL SETUSER little on >hunter2 {may}")), "+OK");
    let address = format!("redis://little:hunter2@127.0.0.1:{}", redis.port());
    let server = launch(&address).start();
    until_ready(&server);
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(1)));
    // Connections are numbered. All four are there when none has come between two of ours.
    let number = || redis.say("CLIENT ID").trim_start_matches(':').parse::<u32>().unwrap();
    let last = until("every connection", SOON, || Some(number()).filter(|at| number() == at + 1));
    // Past the time for which an answer proves that the server is there.
    let_pass(Duration::from_millis(2500));
    assert_eq!(number(), last + 2, "a connection was made anew");
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(2)));
    // What it may not do is refused, and costs no connection either.
    assert_eq!(redis.say("ACL SETUSER little -get"), "+OK");
    assert_eq!(server.connect().get("/hits/a").status, 500);
    assert_eq!(hit(&mut server.connect(), "a"), (200, Some(3)));
    server.stop();
}
