//! The manifests of Kubernetes among themselves. A schema takes any selector, also one that selects
//! nothing: that each finds the pods it is meant for is held here, of what kustomize renders.

use serde_json::{Value, json};

use super::shipped::{all_of_kind, base, of_kind, rendered, text, yaml};

/// What is applied: the base, which has no component, and what kustomize makes of the overlay.
fn installations() -> Vec<(&'static str, Vec<Value>)> {
    let mut installations = vec![("base", base())];
    installations.extend(rendered());
    installations
}

/// Whether labels are those that a selector asks for. One that asks for nothing is none: here it
/// selects no pod (in a `PodDisruptionBudget`) and there all of them (in a `NetworkPolicy`).
fn selects(selector: &Value, labels: &Value) -> bool {
    let wanted = selector.as_object().expect("a selector");
    !wanted.is_empty() && wanted.iter().all(|(name, value)| labels[name] == *value)
}

fn pod_of(documents: &[Value]) -> &Value {
    &of_kind(documents, "Deployment")["spec"]["template"]
}

#[test]
fn every_selector_selects_the_pods() {
    for (name, documents) in installations() {
        let pod = pod_of(&documents);
        let labels = &pod["metadata"]["labels"];
        let mut selectors = vec![
            &of_kind(&documents, "Deployment")["spec"]["selector"]["matchLabels"],
            &of_kind(&documents, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
            &of_kind(&documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
            &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        ];
        selectors.extend(all_of_kind(&documents, "Service").map(|of| &of["spec"]["selector"]));
        for selector in selectors {
            assert!(selects(selector, labels), "{name}: {selector} of {labels}");
        }
    }
}

/// Requests come from everywhere, and to the admin port comes nobody but Prometheus: a peer that is
/// none of these pods.
#[test]
fn the_admin_port_is_open_to_prometheus_alone() {
    for (name, documents) in installations() {
        let policy = &of_kind(&documents, "NetworkPolicy")["spec"];
        assert_eq!(policy["policyTypes"], json!(["Ingress"]), "{name}");
        let rules = policy["ingress"].as_array().expect("rules");
        let rule_of = |port: &str| -> &Value {
            let wanted = json!([{ "port": port }]);
            let mut found = rules.iter().filter(|rule| rule["ports"] == wanted);
            let rule = found.next().unwrap_or_else(|| panic!("{name}: no rule for {port}"));
            assert!(found.next().is_none(), "{name}: two rules for {port}");
            rule
        };
        assert_eq!(rules.len(), 2, "{name}: {policy:#}");
        assert_eq!(rule_of("http")["from"], Value::Null, "{name}");
        let peers = rule_of("admin")["from"].as_array().expect("peers");
        assert_eq!(peers.len(), 1, "{name}: {peers:#?}");
        let wanted = json!({ "app.kubernetes.io/name": "prometheus" });
        assert_eq!(peers[0]["podSelector"]["matchLabels"], wanted, "{name}");
        assert!(peers[0]["namespaceSelector"]["matchLabels"].is_object(), "{name}: {peers:#?}");
    }
}

#[test]
fn the_autoscaler_scales_this_deployment_by_what_its_pods_ask_for() {
    for (name, documents) in installations() {
        let scaler = &of_kind(&documents, "HorizontalPodAutoscaler")["spec"];
        let deployment = of_kind(&documents, "Deployment");
        let target = &scaler["scaleTargetRef"];
        for field in ["apiVersion", "kind"] {
            assert_eq!(target[field], deployment[field], "{name}");
        }
        assert_eq!(target["name"], deployment["metadata"]["name"], "{name}");
        // Two would want to rule.
        assert_eq!(deployment["spec"]["replicas"], Value::Null, "{name}");
        // A utilization is one of what is requested.
        let container = &pod_of(&documents)["spec"]["containers"][0];
        for metric in scaler["metrics"].as_array().expect("metrics") {
            let resource = metric["resource"]["name"].as_str().expect("a resource");
            let requested = &container["resources"]["requests"][resource];
            assert!(requested.is_string(), "{name}: {resource} is not requested");
        }
        // While one pod is gone from its node another one serves.
        let least = scaler["minReplicas"].as_u64().expect("a number");
        let budget = &of_kind(&documents, "PodDisruptionBudget")["spec"]["maxUnavailable"];
        let share = || -> Option<u64> { budget.as_str()?.strip_suffix('%')?.parse().ok() };
        let of_least = || share().map(|percent| (least * percent).div_ceil(100));
        let gone = budget.as_u64().or_else(of_least).expect("a number, or a share");
        assert!(gone > 0 && least > gone, "{name}: {gone} of {least} pods");
    }
}

/// From the Prometheus operator to the pod: monitor, Service, container's port; and the job's name
/// is that of alerts and dashboard.
#[test]
fn the_service_monitor_finds_the_metrics_of_every_pod() {
    let Some((name, documents)) = rendered().pop() else { return };
    let monitor = of_kind(&documents, "ServiceMonitor");
    let wanted = &monitor["spec"]["selector"]["matchLabels"];
    let mut found = all_of_kind(&documents, "Service")
        .filter(|service| selects(wanted, &service["metadata"]["labels"]));
    let service = found.next().unwrap_or_else(|| panic!("{name}: no Service has {wanted}"));
    assert!(found.next().is_none(), "{name}: every pod would be scraped twice");
    assert_eq!(monitor["metadata"]["namespace"], service["metadata"]["namespace"], "{name}");
    // Pods that leave are worth scraping too.
    assert_eq!(service["spec"]["publishNotReadyAddresses"], json!(true), "{name}");

    let endpoint = &monitor["spec"]["endpoints"][0];
    assert_eq!(endpoint["path"], "/metrics", "{name}");
    let ports = service["spec"]["ports"].as_array().expect("ports").iter();
    let port = ports.clone().find(|port| port["name"] == endpoint["port"]);
    let port = port.unwrap_or_else(|| panic!("{name}: no port {}", endpoint["port"]));
    let container = &pod_of(&documents)["spec"]["containers"][0];
    let named = |wanted: &Value| {
        let mut ports = container["ports"].as_array().expect("ports").iter();
        ports.any(|port| port["name"] == *wanted)
    };
    assert!(named(&port["targetPort"]), "{name}: no container's port {}", port["targetPort"]);

    let job = monitor["spec"]["jobLabel"].as_str().expect("a label");
    let config = yaml(&text("prometheus/prometheus.yml")).remove(0);
    assert_eq!(service["metadata"]["labels"][job], config["scrape_configs"][0]["job_name"]);
}

/// The components change what they are for, and leave nothing that they replace.
#[test]
fn the_database_component_takes_the_address_from_a_secret() {
    let Some((name, documents)) = rendered().pop() else { return };
    let container = &pod_of(&documents)["spec"]["containers"][0];
    let variables = container["env"].as_array().expect("variables").iter();
    let urls: Vec<&Value> = variables.filter(|of| of["name"] == "DATABASE_URL").collect();
    let secret = json!({ "secretKeyRef": { "key": "url", "name": "ebbtide-database" } });
    assert_eq!(urls, [&json!({ "name": "DATABASE_URL", "valueFrom": secret })], "{name}");
}
