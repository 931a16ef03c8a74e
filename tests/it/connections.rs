//! `/connections` on the admin listener: what holds a shutdown, and what it would wait for.

use ebbtide::{ConnectionState, Hook, Options, Phase, Policy, Report, Workers};
use serde_json::Value;

use super::client::{Client, request, upload};
use super::support::{Gate, Served, app, ms, now, options, wait_until};

/// The answer, and its rows.
fn ask(admin: &mut Client) -> (Value, Vec<Value>) {
    let answer = admin.get("/connections");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let told: Value = serde_json::from_str(answer.text()).expect("JSON");
    let rows = told["connections"].as_array().expect("a list").clone();
    (told, rows)
}

/// The only row there is, once it is in that state.
fn only(admin: &mut Client, state: &str) -> Value {
    let mut last = Vec::new();
    wait_until(&format!("a connection is {state}"), || {
        last = ask(admin).1;
        last.len() == 1 && last[0]["state"] == state
    });
    last.remove(0)
}

fn why(row: &Value) -> &str {
    row["why"].as_str().expect("words")
}

/// `words (end in N s)`, with N at most `seconds` and near it.
fn assert_waits(row: &Value, words: &str, end: &str, seconds: f64) {
    let told = why(row);
    let left = told.strip_prefix(&format!("{words} ({end} in "));
    let left = left.and_then(|rest| rest.strip_suffix(" s)")?.parse::<f64>().ok());
    assert!(left.is_some_and(|left| left <= seconds + 0.11 && left > seconds - 5.0), "{told}");
}

#[test]
fn each_state_is_told_with_what_it_waits_for() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut admin = served.admin_client();
    let (told, rows) = ask(&mut admin);
    assert_eq!((rows.len(), &told["phase"]), (0, &"running".into()));
    assert_eq!((&told["seconds_left"], &told["more"]), (&Value::Null, &0.into()));

    let mut client = served.client();
    assert_waits(&only(&mut admin, "new"), "a first request", "408", 10.0);
    client.send("GET /hel");
    let row = only(&mut admin, "reading_head");
    assert_waits(&row, "an incomplete head", "408", 10.0);
    assert_eq!(row["request"], Value::Null);
    client.send("lo HTTP/1.1\r\nHost: x\r\n\r\n");
    client.read_response().expect(200, "hello");
    assert_waits(&only(&mut admin, "idle"), "a next request", "keep-alive ends", 75.0);
    client.send("GET");
    let row = only(&mut admin, "reading_head");
    assert_waits(&row, "an incomplete head", "408", 10.0);
    client.send(" /wait?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    let row = only(&mut admin, "handling");
    assert_eq!(why(&row), "its handler");
    assert_eq!(row["request"]["method"], "GET");
    assert_eq!(row["request"]["path"], "/wait");
    assert_eq!(row["request"]["route"], "/wait");
    assert_eq!(row["request"]["age_seconds"], row["since_seconds"]);
    assert_eq!(row["worker"], 0);
    assert!(row["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{row}");
    gate.let_one();
    client.read_response().expect(200, "waited");
    assert_waits(&only(&mut admin, "hibernating"), "a next request", "keep-alive ends", 75.0);

    let body = upload("/echo", "tide");
    client.send(&body[..body.len() - 1]);
    assert_eq!(why(&only(&mut admin, "handling")), "the request body");
    client.send(&body[body.len() - 1..]);
    client.read_response().expect(200, "tide");
    client.send(request("/stream"));
    let row = only(&mut admin, "streaming");
    assert_eq!((why(&row), &row["request"]["path"]), ("the response body", &"/stream".into()));
    client.reset();

    let mut slow = Client::with_small_window(served.address());
    served.until("the first is gone", |counts| counts.open() == 1);
    slow.send(request("/bytes/4000000"));
    wait_until("the kernel takes no more", || {
        why(&only(&mut admin, "streaming")) == "the client to take the response"
    });
    let row = only(&mut admin, "streaming");
    assert_eq!(row["request"]["path"], "/bytes/4000000");
    slow.reset();

    let mut closing = served.client();
    // One that asked for the close in so many words would not be waited for.
    closing.send("GET /hello HTTP/1.0\r\nHost: x\r\n\r\n");
    served.until("the reader is gone", |counts| counts.open() == 1);
    wait_until("the response is acknowledged", || {
        why(&only(&mut admin, "lingering")) == "the client to close"
    });
}

#[test]
fn the_oldest_come_first_and_a_drain_says_how_long_it_waits() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(30_000), idle_window: ms(15_000), ..Policy::default() };
    let policy = Policy { first_byte_grace: ms(15_000), ..policy };
    let served = Served::ending(policy, app(&gate));
    let mut admin = served.admin_client();
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let mut idle = served.client();
    idle.get("/hello").expect(200, "hello");
    let fresh = served.client();
    served.until("all are there", |counts| counts.open() == 3);
    served.begin_shutdown();
    served.until_in_state(ConnectionState::Hibernating, 1);
    let (told, rows) = ask(&mut admin);
    assert_eq!(told["phase"], "draining");
    let left = told["seconds_left"].as_f64().expect("a number");
    assert!((25.0..=30.0).contains(&left), "{told}");
    assert_eq!((&told["open"], &told["requests_in_flight"]), (&3.into(), &1.into()));
    assert_eq!((&told["states"]["handling"], &told["states"]["new"]), (&1.into(), &1.into()));
    assert_eq!(told["unanswered_workers"], serde_json::json!([]));
    let states: Vec<&str> = rows.iter().filter_map(|row| row["state"].as_str()).collect();
    assert_eq!(states, ["handling", "hibernating", "new"], "{told}");
    let ages: Vec<f64> = rows.iter().filter_map(|row| row["since_seconds"].as_f64()).collect();
    assert!(ages.is_sorted_by(|a, b| a >= b), "{ages:?}");
    assert_waits(&rows[1], "a next request", "idle window ends", 15.0);
    assert_waits(&rows[2], "a first request", "grace ends", 15.0);
    gate.open();
    waiting.read_response().expect(200, "waited");
    drop((waiting, idle, fresh));
    served.report();
}

#[test]
fn a_blocked_worker_is_told_from_outside_and_not_waited_for() {
    let gate = Gate::default();
    let options = Options { workers: Workers::Count(2), ..options() };
    let served = Served::with(options, app(&gate));
    let mut admin = served.admin_client();
    // Two on each worker at some time, whatever the kernel's hash says.
    let mut waiting = Vec::new();
    wait_until("both workers have one that waits", || {
        let mut client = served.client();
        client.send(request("/wait"));
        waiting.push(client);
        gate.until_arrived(waiting.len());
        let rows = ask(&mut admin).1;
        [0, 1].iter().all(|worker| rows.iter().any(|row| row["worker"] == *worker))
    });
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(waiting.len() + 1);
    let began = now();
    let (told, rows) = ask(&mut admin);
    let took = now() - began;
    assert!((ms(240)..ms(1500)).contains(&took), "{took:?}");
    assert_eq!(rows.len(), waiting.len() + 1, "{told}");
    let blocked: Vec<&Value> =
        rows.iter().filter(|row| row["request"]["path"] == "/block").collect();
    assert_eq!(blocked.len(), 1, "{told}");
    assert_eq!(why(blocked[0]), "its handler, which holds the worker");
    assert_eq!(blocked[0]["state"], "handling");
    assert_eq!(told["unanswered_workers"], serde_json::json!([blocked[0]["worker"]]));
    for row in rows.iter().filter(|row| row["request"]["path"] == "/wait") {
        assert_eq!((why(row), &row["state"]), ("its handler", &"handling".into()));
    }
    assert_eq!(told["more"], 0);
    gate.open();
    blocking.read_response().expect(200, "blocked");
    assert_eq!(ask(&mut admin).0["unanswered_workers"], serde_json::json!([]));
}

#[test]
fn a_blocked_worker_does_not_hold_the_answers_in_a_drain() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(2000), ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut admin = served.admin_client();
    let mut blocking = served.client();
    blocking.send(request("/block"));
    gate.until_arrived(1);
    served.begin_shutdown();
    let (told, rows) = ask(&mut admin);
    assert_eq!((&told["phase"], rows.len()), (&"draining".into(), 1), "{told}");
    assert_eq!(why(&rows[0]), "its handler, which holds the worker");
    let report: Report = served.report();
    assert_eq!((report.cut, &*report.lost[0].path), (1, "/block"));
    gate.open();
}

#[test]
fn one_thread_tells_of_its_connections_too() {
    let gate = Gate::default();
    let served = Served::with(Options { workers: Workers::Count(0), ..options() }, app(&gate));
    let mut admin = served.admin_client();
    let mut client = served.client();
    client.send(request("/wait"));
    let row = only(&mut admin, "handling");
    assert_eq!((why(&row), &row["worker"]), ("its handler", &0.into()));
    gate.open();
    client.read_response().expect(200, "waited");
    assert_eq!(served.phase(), Phase::Running);
}

#[test]
fn a_path_that_a_terminal_would_obey_is_told_escaped() {
    let gate = Gate::default();
    let served = Served::start(app(&gate).route(
        "/obey/{what}",
        ebbtide::get({
            let gate = gate.clone();
            move |_: ebbtide::Request| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    "obeyed"
                }
            }
        }),
    ));
    let mut client = served.client();
    client.send("GET /obey/\u{9b}31m\u{202e} HTTP/1.1\r\nHost: x\r\n\r\n");
    gate.until_arrived(1);
    let mut admin = served.admin_client();
    let answer = admin.get("/connections");
    assert!(answer.text().contains(r"/obey/\u009b31m\u202e"), "{}", answer.text());
    gate.open();
    client.read_response().expect(200, "obeyed");
}

#[test]
fn hooks_and_other_work_are_told_as_well() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut admin = served.admin_client();
    let held = gate.clone();
    let hook = Hook::http_drained("close the archive", move |_| {
        held.block();
        Ok(())
    });
    served.handle.on_cleanup(hook);
    let work = served.handle.add_connection();
    served.begin_shutdown();
    let (told, _) = ask(&mut admin);
    assert_eq!((&told["phase"], &told["other_work"]), (&"draining".into(), &1.into()), "{told}");
    assert_eq!(told["hooks_running"], serde_json::json!([]));
    drop(work);
    gate.until_arrived(1);
    let (told, _) = ask(&mut admin);
    assert_eq!((&told["phase"], &told["other_work"]), (&"cleaning_up".into(), &0.into()));
    assert_eq!(told["hooks_running"][0]["name"], "close the archive", "{told}");
    gate.open();
    let report = served.report();
    let read = ebbtide::internal::report::read::read(report.to_json().as_bytes());
    let style = ebbtide::internal::report::draw::Style::Plain;
    let drawn = ebbtide::internal::report::draw::draw(&read.expect("a report"), style);
    assert!(drawn.contains("\nClean-up hooks\n  close the archive "), "{drawn}");
}
