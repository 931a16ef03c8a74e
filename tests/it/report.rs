//! What the report tells of a shutdown.

use ebbtide::{ConnectionState, Policy, Report, RequestOutcome};
use serde_json::Value;

use super::client::{Client, request, upload};
use super::support::{Gate, Served, app, ms, pace, pattern};

fn json(report: &Report) -> Value {
    serde_json::from_str(&report.to_json()).expect("JSON")
}

#[test]
fn the_slowest_requests_of_a_shutdown_are_named_and_those_before_it_are_not() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut early = served.client();
    early.send(request("/wait"));
    gate.let_one();
    early.read_response().expect(200, "waited");
    let mut sending = served.client();
    let body = upload("/echo", "tide");
    sending.send(&body[..body.len() - 1]);
    served.until("it is begun", |counts| counts.in_flight == 1);
    let mut waiting = served.client();
    waiting.send(request("/wait?secret=1"));
    gate.until_arrived(2);
    served.begin_shutdown();
    pace(ms(20));
    gate.open();
    waiting.read_response().expect(200, "waited");
    served.until_finished(RequestOutcome::Answered, 2);
    pace(ms(20));
    sending.send(&body[body.len() - 1..]);
    sending.read_response().expect(200, "tide");
    drop((early, waiting, sending));
    let report = served.report();
    let json = json(&report);
    let told: Vec<(&str, &str, &str)> = report
        .slowest
        .iter()
        .map(|line| (line.outcome, line.path.as_str(), line.waited_for))
        .collect();
    let expected =
        [("answered", "/echo", "the request body"), ("answered", "/wait", "its handler")];
    assert_eq!(told, expected, "slowest first");
    let line = &json["slowest"][0];
    assert!(line["age_seconds"].as_f64() >= line["ended_seconds"].as_f64(), "{line}");
    assert!(line["ended_seconds"].as_f64() >= Some(0.04), "{line}");
    assert_eq!(line["route"], "/echo");
}

#[test]
fn a_slow_reader_is_among_the_slowest_with_what_it_waited_for() {
    let served = Served::start(app(&Gate::default()));
    let mut client = Client::with_small_window(served.address());
    client.send(request("/bytes/4000000"));
    served.until_in_state(ConnectionState::Streaming, 1);
    served.begin_shutdown();
    pace(ms(20));
    assert_eq!(client.read_response().body, pattern(4_000_000));
    drop(client);
    let report = served.report();
    assert_eq!(report.slowest.len(), 1, "{report:?}");
    let line = &report.slowest[0];
    assert_eq!((&*line.path, line.outcome), ("/bytes/4000000", "answered"));
    assert_eq!(line.waited_for, "the client to take the response");
}

#[test]
fn no_more_than_ten_of_the_slowest_are_told() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut clients: Vec<Client> = (0..12).map(|_| served.client()).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.send(request(&format!("/wait?{n}")));
    }
    gate.until_arrived(12);
    served.begin_shutdown();
    gate.open();
    for client in &mut clients {
        client.read_response().expect(200, "waited");
    }
    drop(clients);
    let report = served.report();
    assert_eq!(report.slowest.len(), 10);
    assert!(report.slowest.is_sorted_by(|a, b| a.age_seconds >= b.age_seconds), "{report:?}");
}

#[test]
fn phases_and_dates_are_told_in_the_json() {
    let policy = Policy { timeout: ms(3000), delay: ms(50), ..Policy::default() };
    let served = Served::ending(policy, app(&Gate::default()));
    served.client().get("/hello").expect(200, "hello");
    served.begin_shutdown();
    let report = served.report();
    let json = json(&report);
    assert_eq!(json["version"], 1);
    let names: Vec<&str> = report.phases.iter().map(|(phase, _)| phase.name()).collect();
    assert_eq!(names[..2], ["lame_duck", "draining"]);
    let mut end = 0.0;
    for (phase, name) in json["phases"].as_array().expect("a list").iter().zip(names) {
        assert_eq!(phase["name"], name);
        let start = phase["start_seconds"].as_f64().expect("a number");
        assert!((start - end).abs() < 0.000_01, "{json}");
        end = start + phase["seconds"].as_f64().expect("a number");
        assert_eq!(phase["seconds"], json["phases_seconds"][name]);
    }
    let date = |name: &str| json[name].as_str().expect("a date").to_owned();
    let (started, ended) = (date("started_at"), date("ended_at"));
    assert_eq!((started.len(), &started[10..11], &started[23..]), (24, "T", "Z"));
    assert!(started < ended, "{started} {ended}");
}

#[test]
fn nothing_hidden_is_in_the_json() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let handle = served.handle.clone();
    drop(served);
    let mut report = handle.finished();
    report.reason = "a\u{9b}31m\u{202e}\u{7f}\"\\".to_owned();
    let text = report.to_json();
    assert!(text.contains(r#""a\u009b31m\u202e\u007f\"\\""#), "{text}");
    assert_eq!(json(&report)["reason"], report.reason);
}
