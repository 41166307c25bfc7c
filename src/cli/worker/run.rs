//! `preheat run`: has a worker run jobs now.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Worker, WorkerOptions, encoded, first_failure, table_with_messages, text_of};
use crate::adapter::clock::SystemClock;
use crate::cli::{Exit, Failure, Global, complete, output};
use crate::engine::ports::Clock;

/// How often `--wait` looks whether the runs have ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// These jobs; all enabled ones if none is named
    #[arg(id = "named_jobs", value_name = "JOB", add = complete::jobs())]
    jobs: Vec<String>,
    /// For this tenant alone; may be given several times
    #[arg(long = "tenant", value_name = "ID")]
    tenants: Vec<String>,
    /// Wait until the runs have ended; the exit code is 1 unless all are ok
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Options { jobs, tenants, wait, worker: worker_options } = options;
    let worker = Worker::of(&worker_options, global)?;
    let body = if tenants.is_empty() { json!({}) } else { json!({ "tenants": tenants }) };
    let mut runs = Vec::new();
    if jobs.is_empty() {
        let answer = worker.post("/api/v1/runs", &body).await?;
        runs.extend(answer["runs"].as_array().cloned().unwrap_or_default());
    }
    for job in &jobs {
        runs.push(worker.post(&format!("/api/v1/jobs/{}/runs", encoded(job)), &body).await?);
    }
    if wait {
        for run in &mut runs {
            *run = ended(&worker, run).await?;
        }
    }
    let is_ok = runs.iter().all(|run| run["outcome"] == "ok");
    if worker_options.json {
        output::json(&json!({ "runs": runs }))?;
    } else {
        let header = ["job", "run", "state", "took", "first error"];
        output::result(&table_with_messages(&header, runs.iter().map(row)))?;
    }
    Ok(if wait && !is_ok { Exit::Failed } else { Exit::Ok })
}

async fn ended(worker: &Worker, run: &Value) -> Result<Value, Failure> {
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap_or_default());
    loop {
        let run = worker.get(&path).await?;
        if run["state"] == "finished" {
            return Ok(run);
        }
        SystemClock::new().sleep(LOOK_EVERY).await;
    }
}

fn row(run: &Value) -> (Vec<String>, String) {
    let took = run["duration_ms"].as_u64().map(Duration::from_millis);
    let state = if run["outcome"].is_null() { &run["state"] } else { &run["outcome"] };
    let cells = vec![
        text_of(&run["job"]),
        text_of(&run["id"]),
        text_of(state),
        took.map(output::seconds).unwrap_or_default(),
    ];
    (cells, first_failure(run))
}
