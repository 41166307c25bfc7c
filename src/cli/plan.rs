//! `preheat plan`: what would happen.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use indicatif::MultiProgress;
use serde::Serialize;

use super::{Exit, Failure, Global, output};
use crate::app::App;
use crate::domain::duration;
use crate::domain::job::{DateZone, Dates, Job, Overlap, Scope, Shape};
use crate::domain::json::{Case, ColumnCodec, Encoding, Profile};
use crate::engine::estimate::{Estimate, estimate, runs_a_day};

/// Due times shown of each job.
const DUE_TIMES: usize = 5;
/// What Redis takes for a key besides its name and value: the entries of its two tables (keys and
/// expiries), the object and the string headers. Measured at 90 to 130 bytes with Redis 7.
const KEY_OVERHEAD: u64 = 120;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all if none is named
    #[arg(value_name = "JOB")]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Plan {
    jobs: Vec<JobPlan>,
    /// Of all enabled jobs shown, each once.
    total: Load,
    /// `maxmemory` of the cache; none where it has no bound or does not say.
    maxmemory: Option<u64>,
    /// The share of it that the keys of `total` would take, with their overhead.
    share_of_maxmemory: Option<f64>,
}

#[derive(Serialize)]
struct JobPlan {
    job: Effective,
    next_due: Vec<DateTime<Utc>>,
    tenants: u64,
    sampled_tenants: u64,
    run: Load,
    runs_a_day: u32,
    day: Load,
}

/// The job as it will run, defaults filled in.
#[derive(Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "it has the fields of a job file")]
struct Effective {
    name: String,
    description: String,
    enabled: bool,
    schedule: String,
    ttl: String,
    ttl_jitter: String,
    on_start: bool,
    required: bool,
    timeout: String,
    overlap: &'static str,
    retries: u32,
    batch: usize,
    concurrency: usize,
    tables: Vec<String>,
    tenants: bool,
    dates: Option<String>,
    keys: Vec<String>,
    encode: Encode,
}

#[derive(Serialize)]
struct Encode {
    profile: &'static str,
    case: &'static str,
    omit: Vec<String>,
    columns: BTreeMap<String, &'static str>,
    max_bytes: usize,
}

/// Work for the database and the cache.
#[derive(Clone, Copy, Default, Serialize)]
struct Load {
    queries: u64,
    keys: u64,
    bytes: u64,
    cache_commands: u64,
}

pub(super) async fn run(global: &Global, options: Options) -> Result<Exit, Failure> {
    let loaded = global.load(&MultiProgress::new())?;
    let jobs = loaded.select_any(&options.names)?;
    let app = App::connect(&loaded.settings, loaded.files.jobs().clone()).await?;
    let now = app.runner.clock.now();
    let list = Arc::new(app.runner.reader.tenants().await?);

    let mut plans = Vec::new();
    for job in &jobs {
        let found = estimate(app.runner.reader.as_ref(), job, &list, now).await?;
        plans.push(plan_job(job, found, now));
    }
    // A cache that does not tell its memory is no reason not to plan.
    let stats = app.runner.cache.stats().await.ok();
    let plan = sum_up(plans, stats.map(|stats| stats.maxmemory).filter(|bytes| *bytes > 0));
    if options.json {
        output::json(&plan)?;
    } else {
        output::result(&plan.text())?;
    }
    Ok(Exit::Ok)
}

fn plan_job(job: &Job, found: Estimate, now: DateTime<Utc>) -> JobPlan {
    let Estimate { tenants, sampled, queries, keys, bytes } = found;
    let run = Load { queries, keys, bytes, cache_commands: keys };
    let runs = if job.enabled { runs_a_day(&job.schedule, now) } else { 0 };
    let mut next_due = Vec::new();
    let mut at = now;
    while job.enabled && next_due.len() < DUE_TIMES {
        let Some(next) = job.schedule.next_after(at) else { break };
        next_due.push(next);
        at = next;
    }
    JobPlan {
        job: Effective::of(job),
        next_due,
        tenants,
        sampled_tenants: sampled,
        run,
        runs_a_day: runs,
        day: run.times(u64::from(runs)),
    }
}

fn sum_up(jobs: Vec<JobPlan>, maxmemory: Option<u64>) -> Plan {
    let enabled = jobs.iter().filter(|plan| plan.job.enabled);
    let total = enabled.fold(Load::default(), |sum, plan| sum.plus(plan.run));
    let memory = total.bytes + total.keys * KEY_OVERHEAD;
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share_of_maxmemory = maxmemory.map(|most| memory as f64 / most as f64);
    Plan { jobs, total, maxmemory, share_of_maxmemory }
}

impl Load {
    fn times(self, runs: u64) -> Self {
        Self {
            queries: self.queries * runs,
            keys: self.keys * runs,
            bytes: self.bytes * runs,
            cache_commands: self.cache_commands * runs,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            queries: self.queries + other.queries,
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
            cache_commands: self.cache_commands + other.cache_commands,
        }
    }

    fn text(self) -> String {
        format!(
            "{}, {}, {}, {}",
            output::counted(self.queries, "query", "queries"),
            output::counted(self.keys, "key", "keys"),
            output::bytes(self.bytes),
            output::counted(self.cache_commands, "cache command", "cache commands")
        )
    }
}

impl Effective {
    fn of(job: &Job) -> Self {
        Self {
            name: job.name.to_string(),
            description: job.description.clone(),
            enabled: job.enabled,
            schedule: job.schedule.to_string(),
            ttl: duration::text(job.ttl),
            ttl_jitter: job.ttl_jitter.to_string(),
            on_start: job.on_start,
            required: job.required,
            timeout: duration::text(job.timeout),
            overlap: match job.overlap {
                Overlap::Skip => "skip",
                Overlap::Queue => "queue",
            },
            retries: job.retries,
            batch: job.batch.get(),
            concurrency: job.concurrency.get(),
            tables: job.tables.iter().map(|table| table.name.clone()).collect(),
            tenants: job.scope == Scope::Tenants,
            dates: job.dates.as_ref().map(dates_text),
            keys: job
                .keys
                .iter()
                .map(|key| format!("{} ({})", key.template, shape(key.shape)))
                .collect(),
            encode: Encode::of(&job.encoding),
        }
    }
}

impl Encode {
    fn of(encoding: &Encoding) -> Self {
        let Encoding { profile, case, omit, columns, max_bytes } = encoding;
        let codec = |codec: &ColumnCodec| match codec {
            ColumnCodec::Number => "number",
            ColumnCodec::String => "string",
            ColumnCodec::Json => "json",
        };
        Self {
            profile: match profile {
                Profile::Drizzle => "drizzle",
                Profile::NodePostgres => "node-postgres",
                Profile::Postgres => "postgres",
            },
            case: match case {
                Case::Keep => "keep",
                Case::Camel => "camel",
            },
            omit: omit.clone(),
            columns: columns.iter().map(|(name, own)| (name.clone(), codec(own))).collect(),
            max_bytes: *max_bytes,
        }
    }

    fn text(&self) -> String {
        let Self { profile, case, omit, columns, max_bytes } = self;
        let mut parts = vec![format!("as {profile} has it")];
        if *case != "keep" {
            parts.push(format!("{case} case"));
        }
        if !omit.is_empty() {
            parts.push(format!("without {}", omit.join(", ")));
        }
        parts.extend(columns.iter().map(|(column, codec)| format!("{column} as {codec}")));
        parts.push(format!("at most {}", output::bytes(*max_bytes as u64)));
        parts.join("; ")
    }
}

fn shape(shape: Shape) -> &'static str {
    match shape {
        Shape::List => "list",
        Shape::Object => "object",
    }
}

fn dates_text(dates: &Dates) -> String {
    let zone = match &dates.zone {
        DateZone::Fixed(zone) => zone.to_string(),
        DateZone::TenantColumn(column) => format!("tenant.{column}"),
    };
    format!("{} days from today in {zone}", dates.days)
}

impl Plan {
    fn text(&self) -> String {
        let mut lines: Vec<String> = self.jobs.iter().flat_map(JobPlan::lines).collect();
        let enabled = self.jobs.iter().filter(|plan| plan.job.enabled).count() as u64;
        let jobs = output::counted(enabled, "enabled job", "enabled jobs");
        lines.push(format!("{jobs}, each once: {}", self.total.text()));
        lines.push(match (self.share_of_maxmemory, self.maxmemory) {
            (Some(share), Some(most)) => {
                format!(
                    "share of the cache's maxmemory: {:.1}% of {}",
                    share * 100.0,
                    output::bytes(most)
                )
            }
            _ => "share of the cache's maxmemory: it has no bound, or does not tell".to_owned(),
        });
        lines.join("\n") + "\n"
    }
}

impl JobPlan {
    fn lines(&self) -> Vec<String> {
        let job = &self.job;
        let state = if job.enabled { "" } else { " (disabled)" };
        let mut lines = vec![format!("{}{state}: {}", job.name, job.description)];
        let mut say = |name: &str, text: String| lines.push(format!("  {name:<12} {text}"));
        say("schedule", job.schedule.clone());
        let due = self.next_due.iter().map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
        let due = due.collect::<Vec<_>>().join("  ");
        say("next due", if due.is_empty() { "never".to_owned() } else { due });
        say("ttl", format!("{} less up to {}", job.ttl, job.ttl_jitter));
        let retries = output::counted(job.retries.into(), "retry", "retries");
        say("timeout", format!("{}, {retries}", job.timeout));
        let tenants = output::counted(job.batch as u64, "tenant", "tenants");
        let batches = output::counted(job.concurrency as u64, "batch", "batches");
        say("bounds", format!("{tenants} a query, {batches} at once"));
        say("when", when(job));
        if let Some(dates) = &job.dates {
            say("dates", dates.clone());
        }
        for key in &job.keys {
            say("key", key.clone());
        }
        say("value", job.encode.text());
        let (tenants, sampled) = (output::count(self.tenants), output::count(self.sampled_tenants));
        say("tenants", format!("{tenants} ({sampled} sampled)"));
        say("a run", self.run.text());
        let runs = output::counted(self.runs_a_day.into(), "run", "runs");
        say("a day", format!("{runs}: {}", self.day.text()));
        lines.push(String::new());
        lines
    }
}

fn when(job: &Effective) -> String {
    let start = if job.on_start { "at start and on schedule" } else { "on schedule" };
    let required = if job.required { ", required for readiness" } else { "" };
    format!("{start}, overlap {}{required}", job.overlap)
}
