//! `preheat runs`: the newest runs of a worker.

use std::fmt::Write;

use serde_json::Value;

use super::{Worker, WorkerOptions, encoded, first_failure, table_with_messages, text_of, when};
use crate::adapter::clock::SystemClock;
use crate::cli::{Exit, Failure, Global, complete, output};
use crate::domain::duration;
use crate::engine::ports::Clock;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// The runs of this job alone
    // `jobs` is the folder of all commands.
    #[arg(id = "named_job", long = "job", value_name = "JOB", add = complete::jobs())]
    job: Option<String>,
    /// The runs with this outcome alone: ok, partial, failed, timeout or cancelled
    #[arg(long)]
    outcome: Option<String>,
    /// The runs that started since then: a duration such as 2h, or a time such as 2026-03-01T12:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// How many, from 1 to 500
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Options { job, outcome, since, limit, worker: worker_options } = options;
    let worker = Worker::of(&worker_options, global)?;
    let mut path = format!("/api/v1/runs?limit={limit}");
    let since = since.map(|since| moment(&since)).transpose()?;
    for (name, value) in [("job", job), ("outcome", outcome), ("since", since)] {
        if let Some(value) = value {
            let _into_a_string = write!(path, "&{name}={}", encoded(&value));
        }
    }
    let answer = worker.get(&path).await?;
    if worker_options.json {
        output::json(&answer)?;
        return Ok(Exit::Ok);
    }
    if let Some(why) = answer["history_away"].as_str() {
        output::result(&format!(
            "the run history is away ({}): older runs are missing here\n",
            output::shown(why)
        ))?;
    }
    let runs = answer["runs"].as_array().cloned().unwrap_or_default();
    if runs.is_empty() {
        output::result("no runs\n")?;
        return Ok(Exit::Ok);
    }
    let header = ["job", "started", "why", "outcome", "took", "tenants", "run", "first error"];
    output::result(&table_with_messages(&header, runs.iter().map(row)))?;
    Ok(Exit::Ok)
}

/// The moment that long ago, or the time as it is.
fn moment(since: &str) -> Result<String, Failure> {
    let now = SystemClock::new().now();
    let ago = duration::parse(since)
        .ok()
        .and_then(|ago| now.checked_sub_signed(chrono::TimeDelta::from_std(ago).ok()?));
    match (ago, chrono::DateTime::parse_from_rfc3339(since)) {
        (Some(at), _) => Ok(at.to_rfc3339()),
        (None, Ok(_)) => Ok(since.to_owned()),
        (None, Err(_neither)) => Err(Failure::usage(anyhow::anyhow!(
            "`--since` is a duration such as `2h`, or a time such as `2026-03-01T12:00:00Z`; found `{}`",
            output::shown(since)
        ))),
    }
}

fn row(run: &Value) -> (Vec<String>, String) {
    let took = run["duration_ms"].as_u64().map(std::time::Duration::from_millis);
    let tenants = &run["report"]["tenants"];
    let tenants = format!(
        "{}/{}",
        tenants["ok"].as_u64().unwrap_or_default(),
        tenants["total"].as_u64().unwrap_or_default()
    );
    let cells = vec![
        text_of(&run["job"]),
        when(&run["started_at"]),
        text_of(&run["trigger"]),
        text_of(&run["outcome"]),
        took.map(output::seconds).unwrap_or_default(),
        tenants,
        text_of(&run["id"]),
    ];
    let missing = run["missing_shares"].as_str().map(|shares| {
        format!("no part of it has ended for the shares {} of the tenants", output::shown(shares))
    });
    let notes = [Some(first_failure(run)).filter(|failure| !failure.is_empty()), missing];
    (cells, notes.into_iter().flatten().collect::<Vec<_>>().join("; "))
}
