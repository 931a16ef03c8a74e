//! Health endpoints and metrics, on both listeners.

use ebbtide::{HealthOn, Options, Request, Router, get};

use super::client::{Client, request};
use super::support::{Gate, Served, app, options, wait_until};

#[test]
fn health_is_told_on_both_listeners() {
    let served = Served::start(app(&Gate::default()));
    served.until_ready();
    for mut client in [served.client(), served.admin_client()] {
        for path in ["/livez", "/readyz", "/healthz", "/readyz?verbose"] {
            let answer = client.get(path);
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        }
    }
}

#[test]
fn health_can_be_kept_off_the_public_listener() {
    let options = Options { health_on: HealthOn::AdminOnly, ..options() };
    let served = Served::with(options, app(&Gate::default()));
    served.until_ready();
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(served.client().get(path).status, 404, "{path}");
        assert_eq!(served.admin_client().get(path).status, 200, "{path}");
    }
}

#[test]
fn the_admin_listener_serves_nothing_else_and_the_public_one_no_metrics() {
    let served = Served::start(app(&Gate::default()));
    assert_eq!(served.client().get("/metrics").status, 404);
    assert_eq!(served.admin_client().get("/hello").status, 404);
    assert_eq!(served.admin_client().get("/metrics").status, 200);
}

#[test]
fn a_router_may_have_health_routes_of_its_own() {
    let router = Router::new().route("/readyz", get(|_: Request| "mine"));
    let served = Served::start(router);
    served.client().get("/readyz").expect(200, "mine");
    assert_eq!(served.client().get("/livez").status, 200);
    assert_ne!(served.admin_client().get("/readyz").text(), "mine");
}

#[test]
fn a_server_without_an_admin_listener_is_healthy_too() {
    let options = Options { admin_listen: None, ..options() };
    let served = Served::with(options, app(&Gate::default()));
    let mut client = served.client();
    wait_until("it is ready", || client.get("/readyz").status == 200);
}

#[test]
fn readiness_turns_when_the_shutdown_begins_and_liveness_does_not() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    served.until_ready();
    let mut admin = served.admin_client();
    served.begin_shutdown();
    let answer = admin.get("/readyz");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.text().contains("draining"), "it says why: {answer:?}");
    assert_eq!(admin.get("/healthz").status, 503);
    assert_eq!(admin.get("/livez").status, 200, "a restart would mend nothing");
    // Also for one who comes later: the admin listener closes last.
    assert_eq!(served.admin_client().get("/readyz").status, 503);
    gate.open();
    waiting.read_response().expect(200, "waited");
    drop((waiting, admin));
    assert_eq!(served.report().exit_status, 0);
}

#[test]
fn an_idle_admin_client_does_not_hold_the_shutdown() {
    let served = Served::start(app(&Gate::default()));
    let mut idle = served.admin_client();
    assert_eq!(idle.get("/livez").status, 200);
    let silent = served.admin_client();
    let began = super::support::now();
    served.begin_shutdown();
    let report = served.report();
    assert!(super::support::now() - began < super::support::SLACK);
    assert_eq!(report.exit_status, 0);
    drop((idle, silent));
}

/// The value of a metric with exactly these labels.
fn metric(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

fn metrics(admin: &mut Client) -> String {
    admin.get("/metrics").text().to_owned()
}

#[test]
fn metrics_tell_what_was_served() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut admin = served.admin_client();
    let mut client = served.client();
    for _ in 0..5 {
        client.get("/hello").expect(200, "hello");
    }
    client.get("/unknown");
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    let requests = |method: &str, code: u16| {
        format!("http_requests_total{{code=\"{code}\",method=\"{method}\"}}")
    };
    let mut text = String::new();
    wait_until("the workers have told", || {
        text = metrics(&mut admin);
        metric(&text, &requests("GET", 200)) == Some(5.0)
            && metric(&text, &requests("GET", 404)) == Some(1.0)
    });
    for (name, value) in [
        ("http_requests_in_flight", 1.0),
        ("http_requests_finished_total{outcome=\"answered\"}", 6.0),
        ("http_requests_finished_total{outcome=\"refused\"}", 0.0),
        ("http_connections_accepted_total", 2.0),
        ("http_connections{state=\"handling\"}", 1.0),
        ("http_rejected_total{code=\"400\"}", 0.0),
        ("http_late_bytes_total", 0.0),
        ("active_connections_at_shutdown", 0.0),
        ("forced_shutdown_total", 0.0),
        ("log_lines_dropped_total", 0.0),
    ] {
        assert_eq!(metric(&text, name), Some(value), "{name} in\n{text}");
    }
    assert_eq!(metric(&text, "shutdown_duration_seconds"), Some(0.0));
    gate.open();
    waiting.read_response().expect(200, "waited");
}

#[test]
fn metrics_tell_of_the_shutdown_while_it_lasts() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut waiting = served.client();
    waiting.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    let mut admin = served.admin_client();
    let text = metrics(&mut admin);
    assert_eq!(metric(&text, "active_connections_at_shutdown"), Some(1.0), "{text}");
    assert_eq!(metric(&text, "forced_shutdown_total"), Some(0.0));
    wait_until("the time is told", || {
        metric(&metrics(&mut admin), "shutdown_duration_seconds").is_some_and(|s| s >= 1.0)
    });
    gate.open();
    waiting.read_response().expect(200, "waited");
}

#[test]
fn every_metric_has_its_help_and_its_type() {
    let served = Served::start(app(&Gate::default()));
    served.client().get("/hello").expect(200, "hello");
    let answer = served.admin_client().get("/metrics");
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")));
    let text = answer.text();
    assert!(text.ends_with('\n'));
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().expect("a name");
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .filter(|family| text.contains(&format!("# TYPE {family} histogram")))
            .unwrap_or(name);
        assert!(text.contains(&format!("# HELP {family} ")), "{line}");
        assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
    }
}
