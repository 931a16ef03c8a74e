//! Failures reach Sentry with what leads to their cause, and Sentry never holds the exit. Its part
//! is played by servers of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::server::{Launch, Server};
use crate::support::{SLACK, SOON, until};

/// Takes events as Sentry does and shows them.
struct Project {
    dsn: String,
    events: Receiver<Value>,
    /// Whether it answers; what comes before waits.
    answers: Arc<(Mutex<bool>, Condvar)>,
}

impl Project {
    fn start(answers: bool) -> Project {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, events) = channel();
        let answers = Arc::new((Mutex::new(answers), Condvar::new()));
        let gate = Arc::clone(&answers);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (sender, gate) = (sender.clone(), Arc::clone(&gate));
                std::thread::spawn(move || serve(&stream.unwrap(), &sender, &gate));
            }
        });
        Project { dsn: format!("http://public@127.0.0.1:{port}/7"), events, answers }
    }

    fn answer(&self) {
        *self.answers.0.lock().unwrap() = true;
        self.answers.1.notify_all();
    }

    fn event(&self) -> Value {
        self.events.recv_timeout(SOON).expect("an event")
    }
}

/// One connection: envelopes in, `{}` out.
fn serve(mut stream: &TcpStream, events: &Sender<Value>, gate: &(Mutex<bool>, Condvar)) {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let start = head.len();
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
            let line = head[start..].trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        assert!(head.starts_with("POST /api/7/envelope/ HTTP/1.1"), "{head}");
        assert!(head.contains("sentry_key=public"), "{head}");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        // Envelope header, item header, item.
        let mut lines = body.split(|byte| *byte == b'\n').map(serde_json::from_slice::<Value>);
        let (_, item) = (lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap());
        assert_eq!(item["type"], "event");
        // The test may be over.
        let _shown = events.send(lines.next().unwrap().unwrap());
        let open = gate.0.lock().unwrap();
        drop(gate.1.wait_while(open, |open| !*open).unwrap());
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

fn launch(dsn: &str) -> Launch {
    Launch::new().env("SENTRY_DSN", dsn).env("DATABASE_URL", "off")
}

/// Makes a handler panic; returns the request's id.
fn panic(server: &Server) -> String {
    let response = server.connect().get("/panic");
    assert_eq!(response.status, 500);
    response.header("x-request-id").expect("an id to look for").to_owned()
}

/// The clean-up's report of the hook.
fn flushed(report: &Value) -> &Value {
    let hooks = report["hooks"].as_array().unwrap();
    hooks.iter().find(|hook| hook["name"] == "flush_sentry").expect("the hook ran")
}

#[test]
fn a_panic_arrives_with_its_route_its_request_and_where_it_was() {
    let project = Project::start(true);
    let server = launch(&project.dsn).start();
    let id = panic(&server);
    let event = project.event();
    assert_eq!(event["level"], "fatal");
    assert_eq!(event["transaction"], "GET /panic");
    assert_eq!(event["tags"]["route"], "/panic");
    assert_eq!(event["tags"]["request_id"], id.as_str());
    assert_eq!(event["request"]["method"], "GET");
    let exception = &event["exception"]["values"][0];
    assert_eq!(exception["value"], "asked for by the client");
    assert_eq!(exception["mechanism"]["handled"], false);
    let frames = exception["stacktrace"]["frames"].as_array().unwrap();
    let function = |frame: &Value| frame["function"].as_str().unwrap_or_default().to_owned();
    assert!(
        frames.iter().any(|frame| function(frame).contains("app::lab::panic")),
        "{:#?}",
        frames.iter().map(function).collect::<Vec<_>>()
    );
    // The log names the same request.
    assert_eq!(server.log.wait("handler_panicked")["request_id"], id.as_str());
    let report = server.stop();
    assert_eq!(flushed(&report)["outcome"], "done");
    assert!(project.events.try_recv().is_err(), "one panic is one event");
}

#[test]
fn a_response_of_500_and_above_arrives_with_its_route_and_one_below_does_not() {
    let project = Project::start(true);
    let server = launch(&project.dsn).env("REQUEST_TIMEOUT", "200ms").start();
    assert_eq!(server.connect().get("/nowhere").status, 404);
    let response = server.connect().get("/sleep/60000?secret=1");
    assert_eq!(response.status, 503);
    let event = project.event();
    assert_eq!(event["message"], "GET /sleep/{ms}: 503");
    assert_eq!(event["transaction"], "GET /sleep/{ms}");
    assert_eq!(event["tags"]["status"], "503");
    assert_eq!(event["tags"]["request_id"], response.header("x-request-id").unwrap());
    assert_eq!(event["extra"]["path"], "/sleep/60000");
    assert_eq!(event["fingerprint"], serde_json::json!(["GET", "/sleep/{ms}", "503"]));
    assert!(!event.to_string().contains("secret"), "{event:#}");
}

#[test]
fn a_flood_of_failures_is_counted_and_holds_nobody() {
    let project = Project::start(true);
    let server = launch(&project.dsn).start();
    let mut client = server.connect();
    for _ in 0..300 {
        assert_eq!(client.get("/panic").status, 500);
        client = server.connect();
    }
    // The others are told of with events of later seconds.
    let mut passed_over = 0;
    until("events that tell of the others", SOON, || {
        panic(&server);
        let told = |event: Value| event["extra"]["failures_passed_over"].as_u64();
        passed_over += project.events.try_iter().filter_map(told).sum::<u64>();
        (passed_over >= 200).then_some(())
    });
    server.stop();
}

#[test]
fn the_exit_waits_for_an_event_on_its_way() {
    let project = Project::start(false);
    let mut server = launch(&project.dsn).start();
    panic(&server);
    project.event();
    server.signal("TERM");
    server.log.wait_for("the clean-up", |line| line["phase"] == "cleaning_up");
    project.answer();
    let exit = server.exit(SOON);
    let report = server.log.report();
    assert_eq!((exit.status, &flushed(&report)["outcome"]), (0, &Value::from("done")));
}

#[test]
fn a_silent_sentry_holds_the_exit_no_longer_than_its_limit() {
    let project = Project::start(false);
    let mut server = launch(&project.dsn).start();
    panic(&server);
    project.event();
    let before = server.signal("INT");
    let exit = server.exit(SOON);
    let took = exit.at - before;
    assert!(took < FLUSH_MAX + SLACK, "{took:?}");
    let report = server.log.report();
    assert_eq!(exit.status, 4, "{report:#}");
    let hook = flushed(&report);
    assert_eq!(
        (&hook["outcome"], &hook["error"]),
        (&"failed".into(), &"Sentry does not answer".into())
    );
}

#[test]
fn a_sentry_that_is_gone_is_said_once_and_in_the_end() {
    // Nobody listens there: the port is below those that the kernel gives out.
    let dsn = format!("http://public@127.0.0.1:{}/7", crate::services::free_port());
    let mut server = launch(&dsn).start();
    panic(&server);
    server.log.wait("sentry_failed");
    panic(&server);
    let before = Instant::now();
    server.signal("INT");
    let exit = server.exit(SOON);
    assert!(exit.at - before < SLACK, "it does not wait for nobody");
    assert_eq!(server.log.events("sentry_failed").len(), 1);
    let report = server.log.report();
    assert_eq!(exit.status, 4, "{report:#}");
    assert_eq!(flushed(&report)["error"], "2 events did not reach Sentry");
}

#[test]
fn a_dead_sentry_that_nothing_was_for_is_no_failure() {
    let dsn = format!("http://public@127.0.0.1:{}/7", crate::services::free_port());
    let server = launch(&dsn).start();
    assert_eq!(flushed(&server.stop())["outcome"], "done");
}

#[test]
fn what_is_no_dsn_is_a_bad_configuration_and_not_repeated() {
    let ended = launch("https://hunter2").finish();
    assert_eq!(ended.status, 78);
    assert!(ended.stderr.starts_with("ebbtide: sentry_dsn: not a DSN"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
}

/// The hook's limit, as the README has it.
const FLUSH_MAX: Duration = Duration::from_secs(2);
