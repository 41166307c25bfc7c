//! What a `PromQL` expression reads, and which labels its result has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use preheat::domain::job::JobName;
use preheat::observe::metric::{DECLARED, Declaration, Kind, Metrics};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{self, BinaryExpr, Call, Expr, LabelModifier, VectorSelector, token};
use promql_parser::util::{ExprVisitor, walk_expr};

/// The labels that Prometheus gives to every series that it scrapes.
const OF_SCRAPE: [&str; 2] = ["job", "instance"];

/// A label that Prometheus gives where it scrapes pods. `by` and `on` may name it: series without it have it empty.
pub(super) const OF_PODS: &str = "namespace";

type Labels = BTreeSet<String>;

pub(super) struct Expression(Expr);

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        parser::parse(text).map(Self).map_err(|error| format!("`{text}`: {error}"))
    }

    /// The series that it reads.
    pub(super) fn selectors(&self) -> Vec<VectorSelector> {
        let mut found = Found::default();
        walk_expr(&mut found, &self.0).unwrap();
        found.selectors
    }

    /// The metrics that it reads as they are, without `rate` or `increase` around them.
    pub(super) fn read_bare(&self) -> Vec<String> {
        let mut found = Found::default();
        walk_expr(&mut found, &self.0).unwrap();
        found.bare
    }

    /// What it reads and what no worker has: metrics, labels, values of labels.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for VectorSelector { name, matchers, .. } in self.selectors() {
            let name = name.unwrap_or_default();
            let Some(labels) = labels_of_series(&name) else {
                problems.push(format!("there is no series `{name}`"));
                continue;
            };
            assert!(matchers.or_matchers.is_empty(), "{name}");
            for matcher in &matchers.matchers {
                if !labels.contains(&matcher.name) {
                    problems.push(format!("`{name}` has no label `{}`", matcher.name));
                }
                problems.extend(unknown_values(&name, matcher));
            }
        }
        match self.labels() {
            Ok(_) => {}
            Err(problem) => problems.push(problem),
        }
        problems
    }

    /// The labels of its result.
    pub(super) fn labels(&self) -> Result<Labels, String> {
        labels(&self.0)
    }
}

#[derive(Default)]
struct Found {
    selectors: Vec<VectorSelector>,
    bare: Vec<String>,
}

impl ExprVisitor for Found {
    type Error = std::convert::Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Self::Error> {
        match expr {
            Expr::VectorSelector(selector) => {
                self.bare.extend(selector.name.clone());
                self.selectors.push(selector.clone());
            }
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(_)
            | Expr::Unary(_)
            | Expr::Binary(_)
            | Expr::Paren(_)
            | Expr::Subquery(_)
            | Expr::NumberLiteral(_)
            | Expr::StringLiteral(_)
            | Expr::Call(_)
            | Expr::Extension(_) => {}
        }
        Ok(true)
    }
}

fn labels(expr: &Expr) -> Result<Labels, String> {
    Ok(match expr {
        Expr::Aggregate(aggregate) => {
            let inner = labels(&aggregate.expr)?;
            match &aggregate.modifier {
                None => Labels::new(),
                Some(LabelModifier::Include(by)) => {
                    let by: Labels = by.labels.iter().cloned().collect();
                    if let Some(unknown) = by.difference(&inner).find(|label| *label != OF_PODS) {
                        return Err(format!("`{expr}` has no label `{unknown}` to aggregate by"));
                    }
                    by
                }
                Some(LabelModifier::Exclude(without)) => {
                    inner.into_iter().filter(|label| !without.labels.contains(label)).collect()
                }
            }
        }
        Expr::Unary(unary) => labels(&unary.expr)?,
        Expr::Paren(paren) => labels(&paren.expr)?,
        Expr::Subquery(subquery) => labels(&subquery.expr)?,
        Expr::Binary(binary) => {
            let (left, right) = (labels(&binary.lhs)?, labels(&binary.rhs)?);
            let is_scalar = |side: &Expr| side.value_type() == ValueType::Scalar;
            let matching = binary.modifier.as_ref().and_then(|m| m.matching.as_ref());
            if let Some(matching) = matching {
                return of_matching(binary, matching, left, &right);
            }
            if is_scalar(&binary.lhs) {
                right
            } else if is_scalar(&binary.rhs) || binary.op.id() == token::T_LOR || left == right {
                left
            } else {
                return Err(format!("the sides of `{expr}` have different labels"));
            }
        }
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => Labels::new(),
        Expr::VectorSelector(selector) => of_selector(selector),
        Expr::MatrixSelector(matrix) => of_selector(&matrix.vs),
        Expr::Call(call) => of_call(call)?,
    })
}

/// `and` and `unless` keep the series of their left side as they are, whatever they match by.
fn of_matching(
    binary: &BinaryExpr,
    matching: &LabelModifier,
    left: Labels,
    right: &Labels,
) -> Result<Labels, String> {
    let keeps_left = [token::T_LAND, token::T_LUNLESS].contains(&binary.op.id());
    let LabelModifier::Include(on) = matching else {
        return Err(format!("`{binary}` loses labels: it matches without some of them"));
    };
    if !keeps_left {
        return Err(format!("`{binary}` loses labels: it matches by some of them"));
    }
    let is_missing =
        |label: &&String| !(left.contains(*label) && right.contains(*label)) && *label != OF_PODS;
    let missing = on.labels.iter().find(is_missing);
    match missing {
        Some(label) => Err(format!("not both sides of `{binary}` have the label `{label}`")),
        None => Ok(left),
    }
}

fn of_selector(selector: &VectorSelector) -> Labels {
    selector.name.as_deref().and_then(labels_of_series).unwrap_or_default()
}

fn of_call(call: &Call) -> Result<Labels, String> {
    let mut all = Labels::new();
    for argument in &call.args.args {
        all.extend(labels(argument)?);
    }
    match call.func.name {
        "histogram_quantile" => {
            all.remove("le");
        }
        // The labels that it can know: those that the selector demands.
        "absent" => {
            let mut found = Found::default();
            for argument in &call.args.args {
                walk_expr(&mut found, argument).unwrap();
            }
            let matchers = found.selectors.into_iter().flat_map(|s| s.matchers.matchers);
            let demanded = matchers.filter(|matcher| matcher.op == MatchOp::Equal);
            all = demanded.map(|matcher| matcher.name).collect();
        }
        _ => {}
    }
    Ok(all)
}

/// The metric of a series, by the name that the series has in Prometheus.
pub(super) fn metric(series: &str) -> Option<&'static Declaration> {
    DECLARED.iter().find(|declared| match declared.kind {
        Kind::Counter | Kind::Gauge => declared.name == series,
        // No series has the name of the histogram itself.
        Kind::Histogram => {
            let part = series.strip_prefix(declared.name);
            matches!(part, Some("_bucket" | "_sum" | "_count"))
        }
    })
}

/// Its labels in Prometheus; `None` if nobody makes such a series.
pub(super) fn labels_of_series(name: &str) -> Option<Labels> {
    let own = match (metric(name), name) {
        (Some(declared), _) => declared.labels,
        (None, "up") => &[],
        (None, _) => return None,
    };
    let bucket = name.ends_with("_bucket").then_some("le");
    let all = own.iter().copied().chain(OF_SCRAPE).chain(bucket);
    Some(all.map(str::to_owned).collect())
}

/// The values of labels with a closed set of values, by series and label. All counters of a job stand from its
/// start, so the page of a worker has them all.
static VALUES: LazyLock<BTreeMap<(String, String), BTreeSet<String>>> = LazyLock::new(|| {
    let metrics = Metrics::new();
    metrics.register_jobs([JobName::parse("any").unwrap()].iter());
    let mut values: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for line in metrics.encode().lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').unwrap().0;
        for selector in Expression::parse(series).unwrap().selectors() {
            let name = selector.name.unwrap();
            for Matcher { name: label, value, .. } in selector.matchers.matchers {
                values.entry((name.clone(), label)).or_default().insert(value);
            }
        }
    }
    values
});

fn unknown_values(series: &str, matcher: &Matcher) -> Vec<String> {
    let known = VALUES.get(&(series.to_owned(), matcher.name.clone()));
    let (Some(known), false) = (known, matcher.value.contains('$') || matcher.name == "job_name")
    else {
        return Vec::new();
    };
    let asked = matcher.value.split('|').filter(|value| !known.contains(*value));
    asked.map(|value| format!("`{series}` never has {}=\"{value}\"", matcher.name)).collect()
}

#[test]
fn an_expression_that_reads_what_does_not_exist_or_loses_labels_is_found() {
    let problems = |text: &str| Expression::parse(text).unwrap().problems();
    for (text, problem) in [
        ("preheat_runs > 1", "there is no series `preheat_runs`"),
        ("preheat_fire_lag_seconds > 1", "there is no series `preheat_fire_lag_seconds`"),
        ("preheat_runs_total{tenant=\"a\"}", "`preheat_runs_total` has no label `tenant`"),
        (
            "preheat_runs_total{outcome=~\"ok|bad\"}",
            "`preheat_runs_total` never has outcome=\"bad\"",
        ),
        (
            "sum by (state) (preheat_permits)",
            "`sum by (state) (preheat_permits)` has no label `state` to aggregate by",
        ),
        (
            "preheat_permits / preheat_concurrency_limit",
            "the sides of `preheat_permits / preheat_concurrency_limit` have different labels",
        ),
        ("interval > 3", "there is no series `interval`"),
        (
            "preheat_permits and on (job_name) preheat_fleet_shares",
            "not both sides of `preheat_permits and on (job_name) preheat_fleet_shares` have the \
             label `job_name`",
        ),
    ] {
        assert_eq!(problems(text), [problem], "{text}");
    }
    let labels = |text: &str| {
        let labels = Expression::parse(text).unwrap().labels().unwrap();
        labels.into_iter().collect::<Vec<_>>().join(" ")
    };
    for (text, has) in [
        ("time() - preheat_last_success_timestamp_seconds > 0", "instance job job_name"),
        ("rate(preheat_fire_lag_seconds_bucket[5m])", "instance job job_name le"),
        (
            "histogram_quantile(0.9, sum by (job, le) (rate(preheat_change_lag_seconds_bucket[5m])))",
            "job",
        ),
        ("absent(up{job=\"preheat\"})", "job"),
        ("count(preheat_permits) or vector(0)", ""),
        ("up unless on (job, namespace) sum by (job) (preheat_fleet_shares) >= 64", "instance job"),
    ] {
        assert_eq!(labels(text), has, "{text}");
        assert_eq!(problems(text), [""; 0], "{text}");
    }
}
