//! What operators watch with: alerts and their runbook, the cases that try them, the dashboard, and the names of metrics
//! in all of these.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use chrono::DateTime;
use serde::Deserialize;
use serde_json::Value;
use tollgate::{
    service::{Metrics, cache::CacheSize},
    store::database::PoolUse,
};

/// A file of rules, as Prometheus reads it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFile {
    groups: Vec<RuleGroup>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleGroup {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: Option<String>,
    record: Option<String>,
    expr: String,
    #[serde(rename = "for")]
    _after: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A file of cases, as `promtool test rules` reads it; what is not looked at here is left to it.
#[derive(Deserialize)]
struct CaseFile {
    rule_files: Vec<String>,
    tests: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(default)]
    alert_rule_test: Vec<AlertCase>,
}

#[derive(Deserialize)]
struct AlertCase {
    alertname: String,
    exp_alerts: Vec<Value>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).expect(path)
}

/// The files of a folder with an ending.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).expect(folder).map(|entry| entry.expect("an entry").path());
    let files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == ending)).collect();
    assert!(!files.is_empty(), "{folder} holds no .{ending}");
    files
}

fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for path in files("deploy/prometheus/rules", "yml") {
        let text = fs::read_to_string(&path).expect("a file");
        let file: RuleFile = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for group in file.groups {
            assert!(group.name.starts_with("tollgate-"), "{}", group.name);
            rules.extend(group.rules);
        }
    }
    rules
}

fn alerts() -> BTreeMap<String, Rule> {
    let mut alerts = BTreeMap::new();
    for rule in rules() {
        if let Some(name) = rule.alert.clone() {
            assert!(alerts.insert(name.clone(), rule).is_none(), "{name} stands twice");
        }
    }
    assert!(alerts.len() >= 15, "{:?}", alerts.keys());
    alerts
}

/// The metrics that there are, with their kinds: a service's that has done a little of everything.
fn described() -> BTreeMap<String, String> {
    let metrics = Metrics::new().expect("metrics");
    metrics.expect_operation("list-scopes");
    metrics.expect_denial("hooks", "secret", "wrong");
    metrics.expect_issuer("hooks", "https://tenant.example.com");
    metrics.observe_pools(&[PoolUse { pool: "hooks", open: 1, idle: 1, limit: 1 }]);
    metrics.observe_cache(&CacheSize { held: 1, held_bytes: 1, absent: 1, absent_bytes: 1 });
    metrics.observe_tls_expiry(Some(DateTime::UNIX_EPOCH));
    let text = metrics.render();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// Their names, and those of what histograms are made of.
fn metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, kind) in described() {
        if kind == "histogram" {
            names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
        names.insert(name);
    }
    names
}

/// The words of an expression that name metrics of the service or its process, and series that rules record.
fn named(expression: &str) -> BTreeSet<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let words = expression.split(|letter| !is_part(letter));
    words.filter(|word| ["tollgate_", "tollgate:", "process_"].iter().any(|start| word.starts_with(start))).collect()
}

fn check_names(place: &str, expression: &str, known: &BTreeSet<String>, recorded: &BTreeSet<String>) {
    for name in named(expression) {
        let is_known = known.contains(name) || recorded.contains(name);
        assert!(is_known, "{place} asks for {name}, which is neither a metric nor recorded");
    }
}

fn recorded() -> BTreeSet<String> {
    rules().into_iter().filter_map(|rule| rule.record).collect()
}

#[test]
fn rules_name_metrics_that_there_are() {
    let (known, recorded) = (metrics(), recorded());
    assert!(recorded.len() >= 5);
    for rule in rules() {
        let place = rule.alert.or(rule.record).expect("an alert or a record");
        assert!(!named(&rule.expr).is_empty() || rule.expr.contains("up{"), "{place} asks for nothing of ours");
        check_names(&place, &rule.expr, &known, &recorded);
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_it_is_about() {
    for (name, rule) in alerts() {
        assert!(name.starts_with("Tollgate"), "{name}");
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("critical" | "warning")), "{name}: {severity:?}");
        let annotation =
            |key: &str| rule.annotations.get(key).unwrap_or_else(|| panic!("{name} has no {key}")).as_str();
        assert!(
            !annotation("summary").ends_with('.') && annotation("summary").len() <= 80,
            "{name}: the summary is a headline"
        );
        assert!(annotation("description").ends_with('.'), "{name}: the description is of sentences");
        assert_eq!(annotation("runbook_url"), format!("docs/runbook.md#{}", name.to_lowercase()));
        assert_eq!(rule.annotations.len(), 3, "{name}");
    }
}

#[test]
fn every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() {
    let runbook = read("docs/runbook.md");
    let mut entries = BTreeMap::new();
    for section in runbook.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').expect("a text");
        if title.starts_with("Tollgate") {
            assert!(entries.insert(title.to_owned(), text).is_none(), "{title} stands twice");
        }
    }
    assert_eq!(entries.keys().collect::<Vec<_>>(), alerts().keys().collect::<Vec<_>>());
    for (title, text) in &entries {
        let parts = ["**Means:**", "**Users feel:**", "**Look:**", "**Do:**"].map(|part| text.find(part));
        assert!(parts.is_sorted() && parts[0].is_some(), "{title} lacks a part, or has them in another order");
    }
    // Links within it lead somewhere.
    for link in runbook.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(entries.keys().any(|title| title.to_lowercase() == link), "#{link} leads nowhere");
    }
    let known = metrics();
    check_names("the runbook", &runbook, &known, &recorded());
}

#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() {
    let (mut fires, mut rests, mut names) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let all_rules: BTreeSet<_> =
        files("deploy/prometheus/rules", "yml").into_iter().map(|file| canonical(&file)).collect();
    for path in files("tests/watch/rules", "yml") {
        let text = fs::read_to_string(&path).expect("a file");
        let file: CaseFile = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let folder = path.parent().expect("a folder");
        let loaded: BTreeSet<_> = file.rule_files.iter().map(|rules| canonical(&folder.join(rules))).collect();
        assert_eq!(loaded, all_rules, "{} loads other rules", path.display());
        for case in file.tests {
            assert!(names.insert(case.name.clone()), "{} stands twice", case.name);
            for alert in case.alert_rule_test {
                let set = if alert.exp_alerts.is_empty() { &mut rests } else { &mut fires };
                set.insert(alert.alertname);
            }
        }
    }
    let alerts: BTreeSet<_> = alerts().into_keys().collect();
    assert_eq!(fires, alerts, "each fires in some case");
    assert_eq!(rests, alerts, "each rests in some case");
}

fn canonical(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_documented_metrics_are_the_ones_that_there_are() {
    let text = read("docs/watch.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `tollgate_"));
    let documented: BTreeMap<_, _> = rows
        .map(|row| {
            let mut cells = row.split(" | ");
            let name = cells.next().and_then(|cell| cell.strip_suffix('`')).expect("a name");
            (format!("tollgate_{name}"), cells.next().expect("a kind").to_owned())
        })
        .collect();
    let there: BTreeMap<_, _> = described().into_iter().filter(|(name, _)| name.starts_with("tollgate_")).collect();
    assert_eq!(documented, there);
}

/// A panel of the dashboard as far as it is looked at here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Panel {
    id: u32,
    title: String,
    #[serde(rename = "type")]
    kind: String,
    grid_pos: Place,
    datasource: Option<Value>,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    panels: Vec<Value>,
}

#[derive(Deserialize)]
struct Place {
    x: u32,
    y: u32,
    w: u32,
    h: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    expr: String,
    ref_id: String,
    datasource: Value,
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are_and_no_panel_hides_another() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/tollgate.json")).expect("JSON");
    assert_eq!(dashboard["uid"], "tollgate");
    assert!(dashboard["id"].is_null(), "Grafana gives the number");
    let panels: Vec<Panel> = serde_json::from_value(dashboard["panels"].clone()).expect("panels");
    assert!(panels.len() >= 30, "{}", panels.len());
    let (known, recorded) = (metrics(), recorded());
    let (mut ids, mut cells, mut titles) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    let chosen = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
    for panel in &panels {
        let Panel { id, title, kind, grid_pos: Place { x, y, w, h }, datasource, targets, panels } = panel;
        assert!(ids.insert(*id), "{title}: the id {id} stands twice");
        assert!(titles.insert(title), "{title} stands twice");
        assert!(panels.is_empty(), "{title}: panels stand beside their row, where they are looked at");
        assert!(x + w <= 24 && *w > 0 && *h > 0, "{title} does not fit");
        for cell in (*x..x + w).flat_map(|x| (*y..y + h).map(move |y| (x, y))) {
            assert_eq!(cells.insert(cell, title), None, "{title} hides another");
        }
        assert_eq!(targets.is_empty(), kind == "row", "{title}");
        if kind == "row" {
            continue;
        }
        assert_eq!(datasource.as_ref(), Some(&chosen), "{title}");
        let names: BTreeSet<_> = targets.iter().map(|target| &target.ref_id).collect();
        assert_eq!(names.len(), targets.len(), "{title}");
        for Target { expr, datasource, ref_id } in targets {
            assert_eq!(*datasource, chosen, "{title}, {ref_id}");
            assert!(!named(expr).is_empty(), "{title}, {ref_id} asks for nothing of ours");
            check_names(title, expr, &known, &recorded);
        }
    }
    // The runbook sends its readers to panels of these names.
    let runbook = read("docs/runbook.md");
    let sent: BTreeSet<_> = runbook.split('*').filter(|text| panels.iter().any(|panel| panel.title == *text)).collect();
    assert!(sent.len() >= 5, "{sent:?}");
}

#[test]
fn grafana_is_told_where_prometheus_and_the_dashboard_are() {
    let yaml = |path: &str| -> Value { serde_yaml::from_str(&read(path)).expect(path) };
    let sources = yaml("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(sources["apiVersion"], 1);
    assert_eq!(sources["datasources"][0]["type"], "prometheus");
    let dashboards = yaml("deploy/grafana/provisioning/dashboards/tollgate.yml");
    assert_eq!(dashboards["apiVersion"], 1);
    assert_eq!(dashboards["providers"][0]["type"], "file");
}
