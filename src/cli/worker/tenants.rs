//! `preheat tenants`: the tenants that are not warm, and why.

use serde_json::Value;

use super::{Worker, WorkerOptions, encoded, table_with_messages, text_of, when};
use crate::cli::{Exit, Failure, Global, complete, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Those that are not warm, which is all that a worker remembers by name
    #[arg(long)]
    not_warm: bool,
    /// In this job alone
    // `jobs` is the folder of all commands.
    #[arg(id = "named_job", long = "job", value_name = "JOB", add = complete::jobs())]
    job: Option<String>,
    /// How many, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let Options { not_warm: _, job, limit, worker: worker_options } = options;
    let worker = Worker::of(&worker_options, global)?;
    let mut path = format!("/api/v1/tenants?warm=false&limit={limit}");
    if let Some(job) = job {
        path.push_str("&job=");
        path.push_str(&encoded(&job));
    }
    let answer = worker.get(&path).await?;
    if worker_options.json {
        output::json(&answer)?;
    } else {
        output::result(&text(&answer))?;
    }
    let is_any = answer["total"].as_u64().unwrap_or_default() > 0;
    Ok(if is_any { Exit::Failed } else { Exit::Ok })
}

fn text(answer: &Value) -> String {
    let number = |name: &str| answer[name].as_u64().unwrap_or_default();
    let (total, more) = (number("total"), number("more"));
    let active = answer["active"].as_u64().map(output::count);
    if total == 0 {
        return match active {
            Some(active) => format!("no tenant of {active} is known to be cold\n"),
            None => "no tenant is known to be cold\n".to_owned(),
        };
    }
    let tenants = answer["tenants"].as_array().cloned().unwrap_or_default();
    let of = active.map(|active| format!(" of {active} active ones")).unwrap_or_default();
    let shown = output::count(tenants.len() as u64);
    let mut text = format!("{} not warm{of}; {shown} shown\n\n", output::count(total + more));
    let header = ["tenant", "job", "why", "since", "tries", "next try", "message"];
    text.push_str(&table_with_messages(&header, tenants.iter().map(row)));
    text
}

fn row(tenant: &Value) -> (Vec<String>, String) {
    let cells = vec![
        text_of(&tenant["tenant"]),
        text_of(&tenant["job"]),
        text_of(&tenant["kind"]),
        when(&tenant["since"]),
        tenant["tries"].as_u64().unwrap_or_default().to_string(),
        when(&tenant["next_try_at"]),
    ];
    (cells, text_of(&tenant["message"]))
}
