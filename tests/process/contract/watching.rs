//! The dashboard and the alerts against `/metrics`: what they ask for is there, with those labels.

use std::collections::{BTreeMap, BTreeSet};

use ebbtide::internal::metrics;
use serde_json::Value;

use super::promql::{Asked, aggregates, asked, grouped};
use super::shipped::{duration, places, text, yaml};
use crate::support::server::Launch;
use crate::support::{SOON, beside_others, until};

/// A question to Prometheus, and what is written about its answer.
struct Question {
    place: String,
    expression: String,
    /// Texts with labels in them: `{{label}}` of the dashboard, `{{ $labels.label }}` of alerts.
    texts: Vec<String>,
}

fn string(of: &Value, field: &str) -> String {
    of[field].as_str().unwrap_or_else(|| panic!("no {field}: {of:#}")).to_owned()
}

fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/dashboard.json")).expect("JSON")
}

fn panels() -> Vec<Question> {
    let dashboard = dashboard();
    let mut questions = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            questions.push(Question {
                place: string(panel, "title"),
                expression: string(target, "expr"),
                texts: vec![string(target, "legendFormat")],
            });
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().expect("annotations") {
        questions.push(Question {
            place: string(annotation, "name"),
            expression: string(annotation, "expr"),
            texts: vec![string(annotation, "titleFormat")],
        });
    }
    questions
}

fn alerts() -> Vec<Question> {
    let rules = yaml(&text("prometheus/alerts.yml")).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").iter();
    let question = |rule: &Value| {
        let texts = ["summary", "description"].map(|field| string(&rule["annotations"], field));
        let texts = texts.map(|text| text.replace("{{ $labels.", "{{").replace(" }}", "}}"));
        Question {
            place: string(rule, "alert"),
            expression: string(rule, "expr"),
            texts: texts.to_vec(),
        }
    };
    rules.map(question).collect()
}

/// All that a server measures: each metric's series, and of a histogram those it is made of.
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
    // It has no series before a clean-up hook has ended: a server that runs does not show it.
    let hooks = metrics::names().into_iter().find(|row| row.0 == SHOWN_BY_HOOKS).expect("a row");
    metrics.insert(hooks.0.to_owned(), vec![format!("{}{{{}=\"\"}} 0", hooks.0, hooks.2)]);
    // Prometheus makes this one.
    metrics.insert("up".to_owned(), vec!["up 1".to_owned()]);
    metrics
}

const SHOWN_BY_HOOKS: &str = "shutdown_hook_seconds";

/// Labels that Prometheus adds.
const ADDED: [&str; 2] = ["job", "instance"];

fn has_label(series: &[String], label: &str) -> bool {
    let (first, later) = (format!("{{{label}=\""), format!(",{label}=\""));
    ADDED.contains(&label)
        || series.iter().any(|series| series.contains(&first) || series.contains(&later))
}

#[test]
fn every_metric_of_dashboard_and_alerts_is_one_that_a_server_shows() {
    let _turn = beside_others();
    let live = live_metrics();
    let (panels, alerts) = (panels(), alerts());
    assert!(panels.len() >= 20 && alerts.len() >= 10);
    let mut used = BTreeSet::new();
    for Question { place, expression, .. } in panels.iter().chain(&alerts) {
        let metrics = asked(expression);
        assert!(!metrics.is_empty(), "{place}: {expression}");
        for Asked { name, labels } in metrics {
            assert!(labels.iter().any(|(label, _)| label == "job"), "{place}: {name} of any job");
            let series = live.get(&name).unwrap_or_else(|| panic!("{place}: no metric {name}"));
            for (label, values) in labels.iter().filter(|(label, _)| !ADDED.contains(&&**label)) {
                assert!(has_label(series, label), "{place}: {name} has no {label}: {series:?}");
                for value in values {
                    let wanted = format!("{label}=\"{value}\"");
                    let has = series.iter().any(|series| series.contains(&wanted));
                    assert!(has, "{place}: {name} has no {wanted}: {series:?}");
                }
            }
            used.insert(name);
        }
    }
    assert!(used.len() >= 20, "{used:?}");
}

/// A label that is not there groups everything into one, and is nothing in a text: no error tells.
#[test]
fn every_label_that_is_grouped_by_or_shown_is_there() {
    let _turn = beside_others();
    let live = live_metrics();
    let mut shown = 0;
    for Question { place, expression, texts } in panels().into_iter().chain(alerts()) {
        let groups = grouped(&expression);
        let metrics = asked(&expression);
        for (Asked { name, .. }, label) in
            metrics.iter().flat_map(|metric| groups.iter().map(move |label| (metric, label)))
        {
            assert!(has_label(&live[name], label), "{place}: {name} has no {label}");
        }
        let pieces = texts.iter().flat_map(|text| text.split("{{").skip(1));
        for label in pieces.filter_map(|piece| Some(piece.split_once("}}")?.0)) {
            if label.starts_with(" $value") {
                continue;
            }
            let is_there = if aggregates(&expression) {
                groups.contains(label)
            } else {
                metrics.iter().all(|metric| has_label(&live[&metric.name], label))
            };
            assert!(is_there, "{place}: {label} in a text, not in {expression}");
            shown += 1;
        }
    }
    assert!(shown >= 20, "{shown} labels");
}

#[test]
fn the_variables_of_the_dashboard_have_values() {
    let _turn = beside_others();
    let live = live_metrics();
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let mut checked = 0;
    for variable in variables.filter(|variable| variable["type"] == "query") {
        let query = string(&variable["query"], "query");
        assert_eq!(query, string(variable, "definition"));
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (expression, label) = inside.and_then(|inside| inside.rsplit_once(", ")).expect("both");
        for Asked { name, .. } in asked(expression) {
            assert!(has_label(&live[&name], label), "{query}");
            checked += 1;
        }
    }
    assert_eq!(checked, 2);
}

#[test]
fn the_panels_of_the_dashboard_do_not_cover_each_other() {
    let dashboard = dashboard();
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

/// promtool runs the cases; that each alert has one of both kinds is held here.
#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let cases = yaml(&text("prometheus/alerts.test.yml")).remove(0);
    let cases = cases["tests"].as_array().expect("tests");
    let of_all = cases.iter().flat_map(|case| case["alert_rule_test"].as_array().expect("cases"));
    let (firing, silent): (Vec<&Value>, Vec<&Value>) =
        of_all.partition(|case| case["exp_alerts"].is_array());
    for Question { place, .. } in alerts() {
        for (what, cases) in [("fires", &firing), ("stays silent", &silent)] {
            let is_there = cases.iter().any(|case| case["alertname"] == *place);
            assert!(is_there, "no case in which {place} {what}");
        }
        // Where all is well, each of them is silent.
        let well = cases[0]["alert_rule_test"].as_array().expect("cases").iter();
        assert!(well.clone().any(|case| case["alertname"] == *place), "{place} when all is well");
    }
}

/// The alert on a slow shutdown comes before the budget of any place is used up.
#[test]
fn the_alert_on_a_slow_shutdown_comes_before_its_end() {
    let alerts = alerts();
    let slow = alerts.iter().find(|alert| alert.place == "EbbtideShutdownSlow").unwrap();
    let limit: f64 = slow.expression.rsplit_once("> ").unwrap().1.trim().parse().unwrap();
    for place in places() {
        assert!(limit < duration(&place.value("shutdown_timeout")), "{}", place.name);
    }
}
