//! Dashboards, rules, alerts and their tests name only metrics that beelet serves, and every alert has its page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use beelet::report::dropin_table::{CADVISOR, RESOURCE};
use beelet::report::table::{METRICS, MetricDef};
use serde_json::Value;

fn text(path: &str) -> String {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(full).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All strings under keys of that name.
fn strings(value: &Value, key: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if let (true, Some(text)) = (name == key, inner.as_str()) {
                    out.push(text.to_owned());
                }
                strings(inner, key, out);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| strings(inner, key, out)),
        _ => {}
    }
}

fn all(path: &str, key: &str) -> Vec<String> {
    let text = text(path);
    let value: Value = if path.ends_with(".json") {
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
    } else {
        serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let mut out = Vec::new();
    strings(&value, key, &mut out);
    assert!(!out.is_empty(), "{path} has no {key}");
    out
}

/// All metrics of all endpoints.
fn served() -> impl Iterator<Item = &'static MetricDef> {
    METRICS.iter().chain(CADVISOR).chain(RESOURCE)
}

/// A metric by a name of one of its series.
fn find(name: &str) -> Option<&'static MetricDef> {
    let of = |name: &str| served().find(|m| m.name == name);
    of(name).or_else(|| ["_bucket", "_sum", "_count"].iter().find_map(|end| of(name.strip_suffix(end)?)))
}

/// Names of metrics in an expression: words outside of quotes that begin as ours do and are not labels. A recording rule's
/// name has colons and so is another word.
fn metric_names(expr: &str) -> BTreeSet<String> {
    let unquoted = expr.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let labels: BTreeSet<&str> = served().flat_map(|m| m.labels).copied().collect();
    unquoted
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|w| ["beelet_", "container_", "kubelet_", "process_", "machine_"].iter().any(|p| w.starts_with(p)))
        .filter(|w| !labels.contains(w) && !w.contains(':'))
        .map(str::to_owned)
        .collect()
}

fn expressions() -> Vec<(&'static str, String)> {
    let places = [
        ("dashboards/beelet-rules.yaml", "expr"),
        ("dashboards/beelet-alerts.yaml", "expr"),
        ("dashboards/beelet.json", "expr"),
        ("dashboards/beelet.json", "definition"),
        ("dashboards/tests/rules.yaml", "series"),
        ("dashboards/tests/alerts.yaml", "series"),
    ];
    places.into_iter().flat_map(|(path, key)| all(path, key).into_iter().map(move |e| (path, e))).collect()
}

#[test]
fn every_name_is_served() {
    let mut used = 0;
    for (path, expr) in expressions() {
        for name in metric_names(&expr) {
            assert!(find(&name).is_some(), "{path} asks for {name}, which beelet does not serve:\n{expr}");
            used += 1;
        }
    }
    assert!(used > 50, "only {used} names were found: is the search broken?");
}

#[test]
fn the_search_finds_a_wrong_name() {
    let expr = r#"sum by (container_state) (rate(beelet_wrong_total{container="beelet_x"}[5m])) / a:beelet_b:c"#;
    assert_eq!(metric_names(expr), ["beelet_wrong_total".to_owned()].into());
}

#[test]
fn every_recording_rule_is_tested() {
    let tested = all("dashboards/tests/rules.yaml", "expr");
    for name in all("dashboards/beelet-rules.yaml", "record") {
        assert!(tested.iter().any(|e| e.contains(&name)), "dashboards/tests/rules.yaml does not test {name}");
    }
}

#[test]
fn every_metric_is_documented() {
    let document = text("docs/metrics.md");
    for metric in METRICS {
        assert!(document.contains(&format!("| `{}` |", metric.name)), "{} is not in docs/metrics.md", metric.name);
    }
}

#[test]
fn every_alert_has_a_page_and_a_test() {
    let pages = text("docs/alerts.md");
    let tested = all("dashboards/tests/alerts.yaml", "alertname");
    let links = all("dashboards/beelet-alerts.yaml", "runbook_url");
    for alert in all("dashboards/beelet-alerts.yaml", "alert") {
        assert!(pages.contains(&format!("\n## {alert}\n")), "docs/alerts.md has no section {alert}");
        let anchor = format!("docs/alerts.md#{}", alert.to_lowercase());
        assert!(links.iter().any(|l| l.ends_with(&anchor)), "no runbook_url ends in {anchor}");
        assert!(tested.contains(&alert), "dashboards/tests/alerts.yaml does not test {alert}");
    }
}

#[test]
fn the_dashboard_has_the_shape_that_grafana_reads() {
    let dashboard: Value = serde_json::from_str(&text("dashboards/beelet.json")).expect("JSON");
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36));
    assert!(dashboard["uid"].is_string() && dashboard["title"].is_string());
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert!(variables.iter().any(|v| v["type"] == "datasource" && v["query"] == "prometheus"));
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64()), "{title}: its id stands twice");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().zip(place["w"].as_u64()).is_some_and(|(x, w)| x + w <= 24), "{title} is too wide");
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().expect("targets");
        assert!(!targets.is_empty() && targets.iter().all(|t| t["refId"].is_string()), "{title}");
    }
}
