//! The documents name metrics that exist.

use std::collections::BTreeSet;

use preheat::observe::metric::DECLARED;

use super::expression::Expression;
use super::{ROOT, none, read};

/// Names in the documents that begin like a metric's and are something else: the change feed's publication and
/// channel.
const OTHERS: [&str; 1] = ["preheat_changes"];

#[test]
fn documents_name_metrics_and_labels_that_exist() {
    let mut paths = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned()];
    for entry in std::fs::read_dir(format!("{ROOT}/docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "md") {
            paths.push(format!("docs/{}", path.file_name().unwrap().to_str().unwrap()));
        }
    }
    let mut found = 0;
    let mut problems = Vec::new();
    for path in paths {
        for span in code(&read(&path)).filter(|span| span.contains("preheat_")) {
            found += 1;
            problems.extend(problems_of(&span).map(|problem| format!("{path}: {problem}")));
        }
    }
    assert!(found > 50, "{found}");
    none(problems);
}

/// The code within the lines of a document: what is between two backticks.
fn code(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>().into_iter()
}

fn problems_of(span: &str) -> impl Iterator<Item = String> {
    // `preheat_permits{job_name}` names labels without values.
    let (name, inside) = span.split_once('{').unwrap_or((span, ""));
    let inside = inside.trim_end_matches('}');
    let names_labels = !inside.is_empty() && !inside.contains('=');
    let is_bare = DECLARED.iter().any(|declared| declared.name == span);
    let problems = if OTHERS.contains(&span) || is_bare {
        Vec::new()
    } else if names_labels {
        let declared = DECLARED.iter().find(|declared| declared.name == name);
        let known: BTreeSet<_> =
            declared.into_iter().flat_map(|d| d.labels.iter().copied()).collect();
        let unknown = inside.split(',').filter(|label| !known.contains(label.trim()));
        unknown.map(|label| format!("`{name}` has no label `{label}`")).collect()
    } else {
        match Expression::parse(span) {
            Ok(expression) => expression.problems(),
            // A file's name, a command, or SQL.
            Err(_) => Vec::new(),
        }
    };
    problems.into_iter()
}
