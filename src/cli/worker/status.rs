//! `preheat status`: whether the cache is warm, and what is wrong.

use std::fmt::Write;

use serde_json::Value;

use super::{Worker, WorkerOptions, cut, table, text_of, when};
use crate::cli::{Exit, Failure, Global, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    worker: WorkerOptions,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let worker = Worker::of(&options.worker, global)?;
    let overview = worker.get("/api/v1/overview").await?;
    if options.worker.json {
        output::json(&overview)?;
    } else {
        // An older worker knows no fleets.
        let fleet = worker.get("/api/v1/fleet").await.unwrap_or_default();
        output::result(&(text(&overview) + &members(&fleet)))?;
    }
    Ok(match overview["verdict"]["level"].as_str() {
        Some("warning" | "critical") => Exit::Failed,
        Some(_) | None => Exit::Ok,
    })
}

fn text(overview: &Value) -> String {
    let verdict = &overview["verdict"]["sentence"];
    let mut text = format!("{}\n", text_of(verdict));
    let list = |name: &str| overview[name].as_array().cloned().unwrap_or_default();
    for trouble in list("troubles") {
        // The verdict may be the sentence of the worst trouble.
        if trouble["sentence"] != *verdict {
            let _into_a_string =
                writeln!(text, "  {}", output::wrapped(2, &text_of(&trouble["sentence"])));
        }
        text.push_str(&details(&trouble));
    }
    text.push('\n');
    let rows = list("jobs").into_iter().map(|job| row(&job));
    text + &table(&["job", "state", "last", "outcome", "next", "cover"], rows)
}

/// The members of the fleet; empty without one.
fn members(fleet: &Value) -> String {
    if fleet["enabled"] != true {
        return String::new();
    }
    let members = fleet["members"].as_array().cloned().unwrap_or_default();
    let rows = members.iter().map(|member| {
        let shares = member["share_count"].as_u64().unwrap_or_default();
        vec![
            cut(&member["replica"], 32),
            cut(&member["version"], 12),
            when(&member["since"]),
            if shares == 0 { "stands by".to_owned() } else { format!("{shares} of 64") },
            cut(&member["address"], 24),
        ]
    });
    let table = table(&["member", "version", "started", "shares", "address"], rows);
    let vacant = fleet["vacant"].as_str().map(|shares| {
        format!("\nnobody holds the shares {} at this moment\n", output::shown(shares))
    });
    format!("\n{table}{}", vacant.unwrap_or_default())
}

/// Why there is a trouble, since when, and what to do.
fn details(trouble: &Value) -> String {
    let since = Some(&trouble["since"]).filter(|since| !since.is_null()).map(when);
    let lines = [
        ("reason", text_of(&trouble["reason"])),
        ("since", since.unwrap_or_default()),
        ("next", text_of(&trouble["next_step"])),
    ];
    let mut text = String::new();
    for (name, said) in lines.into_iter().filter(|(_, said)| !said.is_empty()) {
        let _into_a_string = writeln!(text, "    {name:6} {}", output::wrapped(11, &said));
    }
    text
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
