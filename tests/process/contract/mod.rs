//! What `deploy` says of the server is what the server says of itself: grace periods against the
//! budget, ports against listeners, names of settings and metrics against those that there are.

mod kubernetes;
mod promql;
mod shipped;
mod watching;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use ebbtide::internal::metrics;
use serde_json::{Value, json};

use crate::support::beside_others;
use crate::support::client::Client;
use crate::support::server::Launch;
use shipped::{Place, base, duration, of_kind, places, text};

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

/// Whoever asks the server without being told where finds it where it is by default.
#[test]
fn the_proxies_and_prometheus_ask_where_the_server_is() {
    let image = places().remove(0);
    let port = |address: &str| address.rsplit_once(':').expect("a port").1.to_owned();
    let listen = port(&image.value("listen"));
    for (file, start) in [("nginx/ebbtide.conf", "server "), ("haproxy/ebbtide.cfg", "server one ")]
    {
        let text = text(file);
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix(start));
        let address = lines.find(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let address = address.expect(file).split([' ', ';']).next().expect("an address");
        assert_eq!(port(address), listen, "{file}");
    }
    let config = shipped::yaml(&text("prometheus/prometheus.yml")).remove(0);
    let target = &config["scrape_configs"][0]["static_configs"][0]["targets"][0];
    assert_eq!(*target, image.value("admin_listen"));
}

/// What the exit statuses and signals of the server mean to systemd.
#[test]
fn the_unit_takes_the_ends_of_the_server_for_what_they_are() {
    let unit = text("systemd/ebbtide.service");
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    for (key, value) in [
        ("Type", "notify"),
        ("KillMode", "mixed"),
        ("KillSignal", "SIGTERM"),
        ("Restart", "on-failure"),
        // Requests were lost; a hook failed.
        ("SuccessExitStatus", "3 4"),
        // Bad configuration.
        ("RestartPreventExitStatus", "78"),
        ("StartLimitIntervalSec", "0"),
        ("Requires", "ebbtide.socket"),
    ] {
        assert_eq!(values(key), [value], "{key}");
    }
    // SIGHUP is a shutdown.
    assert_eq!(values("ExecReload"), [""; 0]);
    assert!(text("systemd/ebbtide.socket").contains("\nListenStream="));
    // A look at every worker costs nothing; a drain may take all its time and is no hang.
    let watchdog: f64 = values("WatchdogSec")[0].parse().expect("seconds");
    assert!(watchdog >= 10.0, "{watchdog} s");
}
