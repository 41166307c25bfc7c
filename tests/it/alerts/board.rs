//! The board: it can be imported as it is, and each panel says what it shows and shows it.

use std::collections::BTreeSet;

use preheat::observe::metric::Kind;
use serde_json::{Value, json};

use super::expression::{Expression, metric};
use super::{none, read};

pub(super) const BOARD: &str = "deploy/grafana/preheat.json";

fn board() -> Value {
    serde_json::from_str(&read(BOARD)).unwrap()
}

/// A query of a panel.
pub(super) struct Query {
    pub(super) panel: String,
    pub(super) expr: String,
    kind: String,
    legend: String,
}

impl Query {
    /// With values for Grafana's variables, so that it can be parsed and asked.
    pub(super) fn filled(&self) -> String {
        let expr = self.expr.replace("$__rate_interval", "30s");
        let variables = ["$job_name", "$job", "$instance"];
        variables.iter().fold(expr, |expr, variable| expr.replace(variable, ".+"))
    }
}

fn panels(board: &Value) -> impl Iterator<Item = &Value> {
    board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

pub(super) fn queries() -> Vec<Query> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of_panel = |panel: &Value| -> Vec<Query> {
        let targets = panel["targets"].as_array().unwrap().iter();
        let query = |target: &Value| Query {
            panel: text(&panel["title"]),
            expr: text(&target["expr"]),
            kind: text(&panel["type"]),
            legend: text(&target["legendFormat"]),
        };
        targets.map(query).collect()
    };
    panels(&board()).flat_map(of_panel).collect()
}

#[test]
fn the_board_can_be_provisioned_and_imported_as_it_is() {
    let board = board();
    assert_eq!((&board["uid"], &board["id"]), (&json!("preheat"), &Value::Null));
    assert_eq!(board["editable"], false);
    assert_eq!(board.get("__inputs"), None, "only an import from grafana.com fills them");
    let variables = board["templating"]["list"].as_array().unwrap();
    let names: Vec<_> =
        variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance", "job_name"]);
    assert_eq!(
        (&variables[0]["type"], &variables[0]["query"]),
        (&json!("datasource"), &json!("prometheus"))
    );
    for variable in &variables[1..] {
        let name = variable["name"].as_str().unwrap();
        assert_eq!((&variable["type"], &variable["multi"]), (&json!("query"), &json!(true)));
        assert_eq!((&variable["includeAll"], &variable["allValue"]), (&json!(true), &json!(".+")));
        assert_eq!(
            variable["refresh"], 2,
            "{name}: with the time range, so that new workers appear"
        );
        let query = variable["query"]["query"].as_str().unwrap();
        let inside = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (selector, label) = inside.rsplit_once(", ").unwrap();
        assert_eq!(label, name);
        let expression = Expression::parse(selector).unwrap();
        none(expression.problems());
        assert!(expression.labels().unwrap().contains(name), "{query}");
    }
}

#[test]
fn panels_have_a_title_a_description_a_unit_and_a_place_of_their_own() {
    let board = board();
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let mut places = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut problems = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap_or_default();
        let [x, y, w, h] =
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        let mut cells = (y..y + h).flat_map(|row| (x..x + w).map(move |column| (row, column)));
        let is_free = cells.all(|cell| places.insert(cell));
        if title.is_empty() || !ids.insert(panel["id"].as_u64()) || !is_free || x + w > 24 {
            problems.push(format!("{title}: its title, its id or its place"));
        }
    }
    for panel in panels(&board) {
        let title = &panel["title"];
        let described = panel["description"].as_str().is_some_and(|text| text.ends_with('.'));
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
        let targets = panel["targets"].as_array().unwrap();
        let sources = targets.iter().chain([panel]).all(|of| of["datasource"] == source);
        if !described || unit.is_empty() || targets.is_empty() || !sources {
            problems.push(format!("{title}: its description, unit, queries or data source"));
        }
    }
    none(problems);
}

#[test]
fn panels_read_what_exists_of_the_chosen_workers_and_jobs() {
    let mut problems = Vec::new();
    for query in queries() {
        let mut say = |problem: String| problems.push(format!("{}: {problem}", query.panel));
        let expression = match Expression::parse(&query.filled()) {
            Ok(expression) => expression,
            Err(problem) => {
                say(problem);
                continue;
            }
        };
        expression.problems().into_iter().for_each(&mut say);
        let as_written = Expression::parse(&query.expr.replace("$__rate_interval", "30s")).unwrap();
        for selector in as_written.selectors() {
            let name = selector.name.clone().unwrap();
            let of_job = metric(&name).is_some_and(|metric| metric.labels.contains(&"job_name"));
            let wanted = ["job", "instance"].into_iter().chain(of_job.then_some("job_name"));
            for label in wanted {
                let variable = format!("${label}");
                let matchers = &selector.matchers.matchers;
                if !matchers.iter().any(|m| m.name == label && m.value == variable) {
                    say(format!("`{name}` is not limited to the chosen `{label}`"));
                }
            }
        }
        for name in expression.read_bare() {
            if metric(&name).is_some_and(|metric| metric.kind != Kind::Gauge) {
                say(format!("`{name}` only grows: read its rate"));
            }
        }
        // A panel with one number has a fixed range, which its title names.
        let ranges = query.expr.matches('[').count();
        if query.kind != "stat" && query.expr.matches("[$__rate_interval]").count() != ranges {
            say("it looks back for another time than `$__rate_interval`".to_owned());
        }
        let labels = expression.labels().unwrap_or_default();
        for label in query.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
            if !labels.contains(label) {
                say(format!("its result has no label `{label}`"));
            }
        }
    }
    none(problems);
}
