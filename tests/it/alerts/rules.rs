//! Each alert reads what exists, and has its tests and its section of the runbook.

use std::collections::{BTreeMap, BTreeSet};

use preheat::domain::duration;
use serde::Deserialize;
use std::time::Duration;

use super::expression::{Expression, OF_PODS, labels_of_series};
use super::{none, read, yaml};

pub(super) const RULES: &str = "deploy/prometheus/rules.yml";
const TESTS: &str = "deploy/prometheus/tests.yml";
const ALERTMANAGER: &str = "deploy/prometheus/alertmanager.yml";
const RUNBOOK: &str = "docs/runbook.md";

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    pub(super) alert: String,
    pub(super) expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

pub(super) fn rules() -> Vec<Rule> {
    yaml::<Rules>(RULES).groups.into_iter().flat_map(|group| group.rules).collect()
}

fn names() -> Vec<String> {
    rules().into_iter().map(|rule| rule.alert).collect()
}

#[test]
fn alerts_read_metrics_labels_and_values_that_exist() {
    let of_rule = |rule: Rule| match Expression::parse(&rule.expr) {
        Ok(expression) => expression.problems(),
        Err(problem) => vec![problem],
    };
    let of_rule = |rule: Rule| {
        let name = rule.alert.clone();
        of_rule(rule).into_iter().map(move |problem| format!("{name}: {problem}"))
    };
    none(rules().into_iter().flat_map(of_rule).collect());
}

#[test]
fn alerts_say_how_bad_it_is_what_happened_and_what_to_do() {
    let mut problems = Vec::new();
    for Rule { alert, expr, r#for, labels, annotations } in rules() {
        let mut expect = |is_so: bool, what: &str| {
            if !is_so {
                problems.push(format!("{alert}: {what}"));
            }
        };
        let severity = labels.get("severity").map(String::as_str);
        expect(matches!(severity, Some("critical" | "warning" | "info")), "no known severity");
        expect(labels.len() == 1, "other labels");
        let known = ["description", "runbook_url", "summary"];
        expect(annotations.keys().eq(known), "other annotations than the three");
        let link = format!("/docs/runbook.md#{}", alert.to_lowercase());
        expect(annotations["runbook_url"].ends_with(&link), "another runbook link");
        // A single odd scrape fires nothing: either the alert waits, or it looks back.
        let waits = duration_of(&r#for) >= Duration::from_mins(1);
        let looks_back =
            expr.contains("increase(") || expr.contains("changes(") || expr.contains("time()");
        expect(waits || looks_back, "fires after a single scrape");
        let has = Expression::parse(&expr).unwrap().labels().unwrap();
        for text in annotations.values() {
            for label in text.split("$labels.").skip(1).filter_map(|rest| rest.split(' ').next()) {
                expect(has.contains(label), &format!("it has no label `{label}`"));
            }
        }
    }
    none(problems);
}

fn duration_of(text: &str) -> Duration {
    if text == "0m" { Duration::ZERO } else { duration::parse(text).unwrap() }
}

#[test]
fn the_runbook_has_a_section_for_each_alert_in_the_order_of_the_rules_and_no_other() {
    let runbook = read(RUNBOOK);
    let sections: Vec<_> = runbook.split("\n## ").skip(1).collect();
    let titles: Vec<_> = sections.iter().map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(titles, names());
    for section in sections {
        let parts = ["\n**Means**", "\n**Users see**", "\n**Look at**", "\n**Do**"];
        let at: Vec<_> = parts.iter().map(|part| section.find(part)).collect();
        assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{parts:?} in {section}");
    }
}

#[derive(Deserialize)]
struct Tests {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    name: String,
    input_series: Vec<Input>,
    alert_rule_test: Vec<Look>,
}

#[derive(Deserialize)]
struct Input {
    series: String,
    values: String,
}

#[derive(Deserialize)]
struct Look {
    eval_time: String,
    alertname: String,
    #[serde(default)]
    exp_alerts: Vec<serde_json::Value>,
}

impl Test {
    /// The minutes at which it looks at the alert, and whether the alert fires then, in the order of time.
    fn looks(&self, alert: &str) -> Vec<(u64, bool)> {
        let looks = self.alert_rule_test.iter().filter(|look| look.alertname == alert);
        let mut looks: Vec<_> = looks
            .map(|look| {
                let minute = look.eval_time.strip_suffix('m').unwrap().parse().unwrap();
                (minute, !look.exp_alerts.is_empty())
            })
            .collect();
        looks.sort_unstable();
        looks
    }

    /// It looks at the alert while all is well, right before it fires, when it fires, and when it is over.
    fn shows_when(&self, alert: &str, waits: Duration) -> bool {
        let looks = self.looks(alert);
        let Some(fires) = looks.iter().position(|look| look.1) else { return false };
        let before = fires.checked_sub(1).map(|index| looks[index].0);
        let waits_long = before.is_some_and(|minute| minute + 1 == looks[fires].0);
        let is_well = if waits.is_zero() { fires > 0 } else { fires > 1 };
        is_well && waits_long && looks.last().is_some_and(|look| !look.1)
    }

    /// All its series end, and the alert is silent then.
    fn shows_absence(&self, alert: &str) -> bool {
        let ends = |input: &Input| input.values.ends_with("stale");
        self.input_series.iter().all(ends) && self.looks(alert).last().is_some_and(|look| !look.1)
    }
}

#[test]
fn each_alert_is_tested_while_well_before_it_fires_afterwards_and_where_its_series_are_absent() {
    let Tests { tests } = yaml(TESTS);
    let mut problems = Vec::new();
    for rule in rules() {
        let alert = rule.alert;
        if !tests.iter().any(|test| test.shows_when(&alert, duration_of(&rule.r#for))) {
            problems.push(format!("{alert}: no test shows when it fires, and when it ends"));
        }
        // This alert fires because a series is absent.
        let shows_absence = tests.iter().any(|test| test.shows_absence(&alert));
        if !shows_absence && alert != "PreheatAbsent" {
            problems.push(format!("{alert}: no test shows that it is silent without its series"));
        }
    }
    let names = names();
    for test in &tests {
        for look in test.alert_rule_test.iter().filter(|look| !names.contains(&look.alertname)) {
            problems.push(format!("{}: there is no alert `{}`", test.name, look.alertname));
        }
        for Input { series, .. } in &test.input_series {
            let selector = Expression::parse(series).unwrap().selectors().remove(0);
            let given = selector.matchers.matchers.into_iter().map(|matcher| matcher.name);
            let given = given.filter(|label| label != OF_PODS);
            let real = selector.name.as_deref().and_then(labels_of_series);
            if real != Some(given.collect()) {
                problems.push(format!("{}: no worker has such a series: {series}", test.name));
            }
        }
    }
    none(problems);
}

#[derive(Deserialize)]
struct Alertmanager {
    inhibit_rules: Vec<Inhibition>,
}

#[derive(Deserialize)]
struct Inhibition {
    source_matchers: Vec<String>,
    target_matchers: Vec<String>,
    equal: Vec<String>,
}

#[test]
fn inhibitions_name_alerts_that_exist_and_no_warning_silences_a_critical_one() {
    let rules: BTreeMap<_, _> =
        rules().into_iter().map(|rule| (rule.alert.clone(), rule)).collect();
    let matched = |matchers: &[String]| -> BTreeSet<&str> {
        let listed = |matcher: &str| -> Vec<String> {
            let names = matcher.split('"').nth(1).unwrap().split('|');
            names.map(str::to_owned).collect()
        };
        let mut found: BTreeSet<&str> = rules.keys().map(String::as_str).collect();
        for matcher in matchers {
            let listed = listed(matcher);
            if listed != ["Preheat.+"] {
                assert!(listed.iter().all(|name| rules.contains_key(name)), "{matcher}");
                let keeps = !matcher.contains('!');
                found.retain(|name| listed.iter().any(|listed| listed == name) == keeps);
            }
        }
        found
    };
    for rule in yaml::<Alertmanager>(ALERTMANAGER).inhibit_rules {
        let Inhibition { source_matchers, target_matchers, equal } = rule;
        let (sources, targets) = (matched(&source_matchers), matched(&target_matchers));
        assert!(!sources.is_empty() && !targets.is_empty(), "{source_matchers:?}");
        let is_critical = |name: &&str| rules[*name].labels["severity"] == "critical";
        let wakes = sources.iter().all(is_critical);
        assert!(wakes || !targets.iter().any(is_critical), "{source_matchers:?}");
        for name in sources.union(&targets).filter(|name| **name != "PreheatAbsent") {
            let labels = Expression::parse(&rules[*name].expr).unwrap().labels().unwrap();
            // Alertmanager takes a label that both sides lack for equal.
            let is_missing = |label: &&String| !labels.contains(*label) && *label != OF_PODS;
            let mut missing = equal.iter().filter(is_missing);
            assert_eq!(missing.next(), None, "{name}, in {source_matchers:?}");
        }
    }
}
