//! `preheat status`: whether the cache is warm, and what is wrong.

use std::fmt::Write;

use serde_json::Value;

use super::{Worker, WorkerOptions, cut, table, when};
use crate::cli::{Exit, Failure, Global, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let overview = Worker::of(&options.worker, global)?.get("/api/v1/overview").await?;
    if options.worker.json {
        output::json(&overview)?;
    } else {
        output::result(&text(&overview))?;
    }
    Ok(match overview["verdict"]["level"].as_str() {
        Some("warning" | "critical") => Exit::Failed,
        Some(_) | None => Exit::Ok,
    })
}

fn text(overview: &Value) -> String {
    let mut text = format!("{}\n", shown(&overview["verdict"]["sentence"]));
    let list = |name: &str| overview[name].as_array().cloned().unwrap_or_default();
    for trouble in list("troubles") {
        let _into_a_string = writeln!(text, "  {}", shown(&trouble["sentence"]));
    }
    text.push('\n');
    let rows = list("jobs").into_iter().map(|job| row(&job));
    text + &table(&["job", "state", "last", "outcome", "next", "cover"], rows)
}

/// It fits into 80 columns.
fn row(job: &Value) -> Vec<String> {
    let coverage = job["coverage"].as_f64().map(|share| format!("{:.1}%", share * 100.0));
    vec![
        cut(&job["name"], 24),
        cut(&job["state"], 8),
        when(&job["last_run"]["finished_at"]),
        cut(&job["last_run"]["outcome"], 9),
        when(&job["next_due_at"]),
        coverage.unwrap_or_else(|| "-".to_owned()),
    ]
}

fn shown(value: &Value) -> String {
    output::shown(value.as_str().unwrap_or_default())
}
