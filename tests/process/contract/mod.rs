//! What `deploy` says of the server is what the server says of itself: grace periods against the
//! budget, ports against listeners, names of settings and metrics against those that there are.

mod kubernetes;
mod promql;
mod shipped;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ebbtide::internal::metrics;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::server::Launch;
use crate::support::{SOON, beside_others, until};
use promql::{Asked, asked};
use shipped::{Place, base, duration, of_kind, places, text, yaml};

/// What an orchestrator has to wait beyond the budget, in seconds.
const MARGIN: f64 = 5.0;

#[test]
fn every_grace_period_is_the_budget_and_five_seconds_more() {
    for place in places() {
        let budget = duration(&place.value("shutdown_timeout"));
        let Place { name, grace, .. } = place;
        assert!(grace >= budget + MARGIN, "{name}: {grace} s for a budget of {budget} s");
    }
}

#[test]
fn every_setting_that_a_place_gives_is_a_key_and_is_taken() {
    for place in places() {
        let config = place.config();
        for (variable, value) in &place.settings {
            let source = format!("environment variable {variable}");
            let taken = config.iter().any(|row| row.2 == source);
            assert!(taken, "{}: {variable}={value} sets nothing: {config:#?}", place.name);
        }
        assert_eq!(place.value("lab_routes"), "false", "{}", place.name);
        assert_eq!(place.value("log_format"), "json", "{}", place.name);
    }
}

/// Whether the server listens on a port where others than itself can come to it.
fn is_reachable(place: &Place, port: u16) -> bool {
    let listen = place.value("listen");
    let admin = place.value("admin_listen");
    let addresses = listen.split(',').chain([&*admin]).filter_map(|text| text.trim().parse().ok());
    addresses
        .into_iter()
        .any(|address: SocketAddr| address.port() == port && !address.ip().is_loopback())
}

#[test]
fn every_port_that_others_use_is_one_that_the_server_listens_on_for_others() {
    let mut checked = 0;
    for place in places() {
        for (what, port) in &place.ports {
            assert!(is_reachable(&place, *port), "{}: {what} {port}", place.name);
            checked += 1;
        }
    }
    assert!(checked >= 8, "{checked} ports");
    // The socket of systemd is bound by systemd.
    let socket = text("systemd/ebbtide.socket");
    let listen = socket.lines().find_map(|line| line.strip_prefix("ListenStream="));
    let address: SocketAddr = listen.unwrap().parse().unwrap();
    assert!(!address.ip().is_loopback());
}

#[test]
fn every_probe_asks_for_a_path_that_is_answered() {
    let _turn = beside_others();
    let documents = base();
    let spec = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let server = Launch::new().start();
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &spec["containers"][0][probe]["httpGet"];
        assert_eq!(get["port"], "admin", "{probe}");
        let path = get["path"].as_str().unwrap();
        assert_eq!(Client::connect(server.admin).get(path).status, 200, "{probe} {path}");
    }
    server.stop();
}

/// What the Pod Security Standard "restricted" asks for, which the production namespace enforces,
/// and what a rolling deployment without losses needs.
#[test]
fn the_pod_asks_for_no_privilege_and_leaves_after_its_successor_is_ready() {
    let documents = base();
    let deployment = of_kind(&documents, "Deployment");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    for (place, wanted) in [
        (&deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"], json!(0)),
        (&pod["enableServiceLinks"], json!(false)),
        (&pod["automountServiceAccountToken"], json!(false)),
        (&pod["securityContext"]["runAsNonRoot"], json!(true)),
        (&pod["securityContext"]["seccompProfile"]["type"], json!("RuntimeDefault")),
        (&container["securityContext"]["allowPrivilegeEscalation"], json!(false)),
        (&container["securityContext"]["readOnlyRootFilesystem"], json!(true)),
        (&container["securityContext"]["capabilities"], json!({ "drop": ["ALL"] })),
        // A sleep before SIGTERM would be a second delay.
        (&container["lifecycle"], Value::Null),
    ] {
        assert_eq!(*place, wanted, "{pod:#}");
    }
    let user = image_user();
    assert_eq!(pod["securityContext"]["runAsUser"].to_string(), user);
    let delay = duration(&places().last().unwrap().value("shutdown_delay"));
    assert!(delay > 0.0, "endpoints are removed while requests still come");
}

fn image_user() -> String {
    let dockerfile = text("docker/Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER ")).expect("a user");
    user.split(':').next().unwrap().to_owned()
}

/// In comments and texts, too: whoever reads of a key looks for it.
#[test]
fn every_key_that_is_named_is_a_key() {
    let keys: BTreeSet<String> = places()[0].config().into_iter().map(|row| row.0).collect();
    let metrics: BTreeSet<&str> = metrics::names().iter().map(|row| row.0).collect();
    let events = ["shutdown_report", "shutdown_phase"];
    let mut named = BTreeSet::new();
    for file in shipped::files() {
        let text = std::fs::read_to_string(&file).unwrap().to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("shutdown_")) {
            let is_known = keys.contains(word) || metrics.contains(word) || events.contains(&word);
            assert!(is_known, "{}: there is no {word}", file.display());
            named.insert(word.to_owned());
        }
    }
    assert!(named.len() >= 6, "{named:?}");
}

/// 8 MiB and 12 KiB for each connection that is at work: what a limit of memory has to be.
#[test]
fn the_memory_of_every_place_is_enough_for_its_connections() {
    for place in places() {
        let Some(memory) = place.memory else { continue };
        let connections: u64 = place.value("max_connections").parse().expect("a number");
        let needed = (8 << 20) + connections * (12 << 10);
        assert!(memory >= needed, "{}: {memory} bytes for {connections}", place.name);
    }
}

/// The health check of the image asks the listener that the image's settings give it.
#[test]
fn the_health_check_of_the_image_finds_the_server() {
    let dockerfile = text("docker/Dockerfile");
    let list = dockerfile.rsplit_once("    CMD ").expect("a list").1;
    let list: Vec<String> = serde_json::from_str(list.trim()).expect("the form of a list");
    assert_eq!(list[0], "/ebbtide");
    let image = places().remove(0);
    let arguments: Vec<&str> = list[1..].iter().map(String::as_str).collect();
    let asked = image.command(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&asked.stderr);
    // Nobody is there to answer in this place, or somebody is; it is the right place in any case.
    let admin = image.value("admin_listen");
    assert!(asked.status.success() || said.contains(&admin), "{said}");
}

#[test]
fn the_proxies_wait_longer_than_requests_and_let_connections_go_earlier() {
    let value = |key: &str| duration(&places().remove(0).value(key));
    let seconds = |file: &str, name: &str| -> f64 {
        let text = text(file);
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(name));
        duration(lines.next().expect(name).trim_end_matches(';').trim())
    };
    let kept = seconds("nginx/ebbtide.conf", "keepalive_timeout ");
    assert!(kept < value("shutdown_idle_window") && kept < value("keep_alive_timeout"));
    let answer = seconds("haproxy/ebbtide.cfg", "timeout server ");
    assert!(answer > value("request_timeout") && answer < value("keep_alive_timeout"));
}

/// All that the server measures: each metric's series, and of a histogram those it is made of.
fn live_metrics() -> BTreeMap<String, Vec<String>> {
    let server = Launch::new().env("DATABASE_URL", "sqlite::memory:").start();
    assert_eq!(server.connect().get("/json").status, 200);
    until("the first requests to be counted", SOON, || {
        server.metrics().contains("http_requests_total{").then_some(())
    });
    let mut metrics: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in server.metrics().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, _) = rest.split_once(' ').unwrap();
            metrics.entry(name.to_owned()).or_default();
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            metrics.entry(name.to_owned()).or_default().push(line.to_owned());
        }
    }
    server.stop();
    metrics
}

/// The expressions of the dashboard, each with the title of its panel.
fn dashboard() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).expect("JSON");
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |of: &Value, field: &str| of[field].as_str().expect(field).to_owned();
            expressions.push((text(panel, "title"), text(target, "expr")));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        expressions
            .push(("annotation".to_owned(), annotation["expr"].as_str().unwrap().to_owned()));
    }
    expressions
}

fn alerts() -> Vec<(String, String)> {
    let rules = yaml(&text("prometheus/alerts.yml")).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").iter();
    let text = |rule: &Value, field: &str| rule[field].as_str().expect(field).to_owned();
    rules.map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

/// The one metric that has no series before a clean-up hook has ended: a server that runs does not
/// show it, the table of metrics does.
const SHOWN_BY_HOOKS: &str = "shutdown_hook_seconds";

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["job", "instance"];

#[test]
fn every_metric_of_dashboard_and_alerts_is_one_that_a_server_shows() {
    let _turn = beside_others();
    let live = live_metrics();
    let (dashboard, alerts) = (dashboard(), alerts());
    assert!(dashboard.len() >= 20 && alerts.len() >= 10);
    let mut used = BTreeSet::new();
    for (place, expression) in dashboard.iter().chain(&alerts) {
        let metrics = asked(expression);
        assert!(!metrics.is_empty(), "{place}: {expression}");
        for Asked { name, labels } in metrics {
            assert!(labels.iter().any(|(label, _)| label == "job"), "{place}: {name} of any job");
            // Prometheus makes this one.
            if name == "up" {
                continue;
            }
            if name == SHOWN_BY_HOOKS {
                assert!(metrics::names().iter().any(|row| row.0 == name), "{place}: {name}");
                continue;
            }
            let series = live.get(&name).unwrap_or_else(|| panic!("{place}: no metric {name}"));
            for (label, value) in labels.iter().filter(|(label, _)| !ADDED.contains(&&**label)) {
                let wanted = format!("{label}=\"{value}");
                let has = series.iter().any(|series| series.contains(&wanted));
                assert!(has, "{place}: {name} has no {wanted}: {series:?}");
            }
            used.insert(name);
        }
    }
    assert!(used.len() >= 20, "{used:?}");
}

#[test]
fn the_panels_of_the_dashboard_do_not_cover_each_other() {
    let dashboard: Value = serde_json::from_str(&text("grafana/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().unwrap();
    let mut taken = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title}");
        let at = |field: &str| panel["gridPos"][field].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                let before = taken.insert((x, y), title);
                assert!(before.is_none(), "{title} covers {before:?}");
            }
        }
    }
}

/// The alert on a slow shutdown comes before the budget of any place is used up.
#[test]
fn the_alert_on_a_slow_shutdown_comes_before_its_end() {
    let alerts = alerts();
    let (_, slow) = alerts.iter().find(|(name, _)| name == "EbbtideShutdownSlow").unwrap();
    let limit: f64 = slow.rsplit_once("> ").unwrap().1.trim().parse().unwrap();
    for place in places() {
        assert!(limit < duration(&place.value("shutdown_timeout")), "{}", place.name);
    }
}
