//! `preheat pause` and `preheat resume`.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Worker, WorkerOptions, cut, encoded};
use crate::cli::{Exit, Failure, Global, complete, output};

/// Which jobs.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// These jobs
    #[arg(id = "named_jobs", value_name = "JOB", add = complete::jobs())]
    jobs: Vec<String>,
    /// All jobs
    #[arg(long)]
    all: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct PauseOptions {
    #[command(flatten)]
    which: Which,
    /// Why, for others
    #[arg(long)]
    note: String,
    /// When the pause ends by itself, as in 2026-03-01T14:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "for_")]
    until: Option<String>,
    /// How long the pause lasts, such as 20m
    #[arg(id = "for_", long = "for", value_name = "DURATION")]
    length: Option<String>,
    #[command(flatten)]
    worker: WorkerOptions,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ResumeOptions {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn pause(global: &Global, options: PauseOptions) -> Result<Exit, Failure> {
    let PauseOptions { which, note, until, length, worker } = options;
    let body = json!({ "note": note, "until": until, "for": length });
    change(global, &worker, &which, ("pause", body)).await
}

pub(in crate::cli) async fn resume(
    global: &Global,
    options: ResumeOptions,
) -> Result<Exit, Failure> {
    let ResumeOptions { which, worker } = options;
    change(global, &worker, &which, ("resume", json!({}))).await
}

async fn change(
    global: &Global,
    options: &WorkerOptions,
    which: &Which,
    (action, body): (&str, Value),
) -> Result<Exit, Failure> {
    let worker = Worker::of(options, global)?;
    let mut paths: Vec<_> =
        which.jobs.iter().map(|job| format!("/api/v1/jobs/{}/{action}", encoded(job))).collect();
    if which.all {
        paths.push(format!("/api/v1/{action}"));
    }
    let (mut jobs, mut is_kept, mut kept_in) = (Vec::new(), true, Value::Null);
    for path in paths {
        let answer = worker.post(&path, &body).await?;
        jobs.extend(answer["jobs"].as_array().cloned().unwrap_or_default());
        is_kept &= answer["kept"] == true;
        kept_in = answer["kept_in"].clone();
    }
    if options.json {
        output::json(&json!({ "jobs": jobs, "kept": is_kept, "kept_in": kept_in }))?;
    } else {
        output::result(&jobs.iter().map(line).collect::<String>())?;
    }
    if !is_kept {
        let server = kept_in.as_str().unwrap_or("server");
        output::problem(&format!(
            "warning: it is in effect, but the {server} has not kept it yet; the worker goes on trying"
        ));
    }
    Ok(Exit::Ok)
}

fn line(job: &Value) -> String {
    let mut text = format!("job `{}` ", cut(&job["job"], 64));
    let pause = &job["pause"];
    if pause.is_null() {
        return text + if job["was_paused"] == false { "was not paused\n" } else { "is resumed\n" };
    }
    text.push_str("is paused");
    if let Some(until) = pause["until"].as_str() {
        let _into_a_string = write!(text, " until {}", output::shown(until));
    }
    let _into_a_string =
        writeln!(text, " by {}: {}", cut(&pause["by"], 64), cut(&pause["note"], 200));
    text
}
