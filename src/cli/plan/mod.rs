//! `preheat plan`: shows what runs would do, and what they cost.

mod changes;
mod pages;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use indicatif::MultiProgress;
use serde::Serialize;

use self::changes::{Changes, Feed, FeedDocument, Feeds, Worker, WorkerDocument};
use self::pages::SamplePages;
use super::{Exit, Failure, Global, complete, output};
use crate::app::{App, worker_shares};
use crate::config::Audit;
use crate::domain::duration;
use crate::domain::job::{DateZone, Dates, Job, Overlap, Scope, Shape};
use crate::domain::json::{Case, ColumnCodec, Encoding, Profile};
use crate::domain::report::FailureKind;
use crate::domain::size;
use crate::engine::ports::{CacheStats, SourceError};
use crate::engine::run::limit::{Priority, Shares};
use crate::estimate::{Estimate, Estimator, Rarer, RunsADay, Trouble, Upkeep, Verification};

/// How many due times are shown for each job.
const DUE_TIMES: usize = 5;
/// Above this share of `maxmemory`, memory is tight: data that the worker does not know of grows
/// too.
const TIGHT: f64 = 0.7;
/// The column where the text of a line begins.
const TITLE: usize = 15;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The jobs; all if none is named
    #[arg(value_name = "JOB", add = complete::jobs())]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The document that `--json` prints; `docs/plan.md` explains its members.
#[derive(Serialize)]
struct Plan {
    jobs: Vec<JobPlan>,
    /// One run of each enabled job that is shown.
    total: Load,
    /// The cache commands of one run of each job if the cache is empty, with the additional ones of
    /// the first pass.
    first_pass_cache_commands: u64,
    /// The load of one day: the runs of these jobs, and the worker's other commands to the cache.
    day: Load,
    memory: Memory,
    maxmemory: Option<u64>,
    share_of_maxmemory: Option<f64>,
    /// Null if the cache has no limit, or does not report it.
    fits: Option<bool>,
    worker: WorkerDocument,
    #[serde(skip)]
    worker_text: String,
}

/// Bytes in the cache.
#[derive(Serialize)]
struct Memory {
    /// For the keys of all enabled jobs that are shown, with their manifests.
    keys: u64,
    /// For the fences and the registry.
    upkeep: u64,
    /// The part of the two that is in the cache already.
    present: u64,
    /// In use now, by any client; null if the cache does not report it.
    used: Option<u64>,
    /// In use when all keys are warm.
    used_when_warm: Option<u64>,
}

#[derive(Serialize)]
struct JobPlan {
    job: Effective,
    next_due: Vec<DateTime<Utc>>,
    tenants: u64,
    sampled_tenants: u64,
    run: Load,
    memory: u64,
    runs_a_day: u32,
    day: Load,
    /// What the runs for changes have cost; null if no worker says so.
    changes: Option<Changes>,
    feed: FeedDocument,
    /// Null where a rarer schedule would save nothing, or would make values old.
    rarer: Option<RarerDocument>,
    pages: Option<pages::Document>,
    /// Why `pages` is null.
    pages_refused: Option<String>,
    #[serde(skip)]
    pages_text: Vec<(&'static str, String)>,
    troubles: Vec<TroubleDocument>,
    /// Tenants of the sample that were not read alone, because too many had failed before.
    unread_tenants: u64,
}

/// A longer TTL with a rarer schedule.
#[derive(Serialize)]
struct RarerDocument {
    ttl: String,
    schedule: String,
    runs_a_day: u32,
    /// What it saves in a day.
    saves: Load,
}

/// What was found out about a job.
struct Found {
    job: Arc<Job>,
    estimate: Estimate,
    pages: Result<SamplePages, SourceError>,
    changes: Option<Changes>,
    feed: Feed,
}

/// Something that a run could not read or write.
#[derive(Serialize)]
struct TroubleDocument {
    kind: FailureKind,
    message: String,
    /// How often it happened in the sample.
    count: u64,
    /// The first tenants it happened to.
    tenants: Vec<String>,
}

/// The job as it will run, with the defaults filled in.
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
    order: Vec<String>,
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
    let list = Arc::new(app.runner.reader.tenants().await?);
    let estimator = Estimator {
        runner: &app.runner,
        list: &list,
        prefix: loaded.settings.cache.prefix.len(),
        now: app.runner.clock.now(),
    };
    let worker = Worker::ask(loaded.settings.http.listen).await;
    let feeds = Feeds::look(&app.source, &loaded, &worker).await;
    let mut found = Vec::new();
    for job in jobs {
        // The estimate reads the same batches, and would bring their pages into the server's memory.
        let pages = SamplePages::count(&app.source, &estimator, &job).await;
        let estimate = estimator.job(&job).await?;
        let (changes, feed) = (worker.changes(&job, estimator.now), feeds.of(&job).await);
        found.push(Found { job, estimate, pages, changes, feed });
    }
    let enabled = found.iter().filter(|found| found.job.enabled);
    let enabled: Vec<_> = enabled.map(|found| (Arc::clone(&found.job), &found.estimate)).collect();
    let Audit { interval, sample } = loaded.settings.audit;
    let verification = interval.map(|interval| Verification { interval, sample });
    let upkeep = estimator.upkeep(&enabled, verification).await;
    // If the cache does not report its memory, the rest of the plan is still useful.
    let stats = app.runner.cache.stats().await.ok();
    let shares = worker_shares(&loaded.settings, loaded.settings.database.max_connections);
    let jobs = found.iter().map(|found| JobPlan::new(found, shares, estimator.now)).collect();
    let common = Common { upkeep, stats, worker };
    let plan = Plan::new(jobs, &enabled, &common);
    if options.json {
        output::json(&plan)?;
    } else {
        plan.print()?;
    }
    Ok(if plan.fits == Some(false) { Exit::Failed } else { Exit::Ok })
}

/// What the jobs of a worker have in common.
struct Common {
    upkeep: Upkeep,
    stats: Option<CacheStats>,
    worker: Worker,
}

impl Plan {
    fn new(jobs: Vec<JobPlan>, enabled: &[(Arc<Job>, &Estimate)], common: &Common) -> Self {
        let Common { upkeep, stats, ref worker } = *common;
        let estimates = || enabled.iter().map(|(_, estimate)| *estimate);
        let sum = |load: fn(&JobPlan) -> Load| {
            let enabled = jobs.iter().filter(|plan| plan.job.enabled);
            enabled.fold(Load::default(), |sum, plan| sum.plus(load(plan)))
        };
        let total = sum(|plan| plan.run);
        let naming: u64 = estimates().map(|found| found.naming).sum();
        let upkeep_of_day = Load { cache_commands: upkeep.day_commands, ..Load::default() };
        let memory = Memory::new(estimates(), upkeep, stats);
        let maxmemory = stats.map(|stats| stats.maxmemory).filter(|bytes| *bytes > 0);
        #[expect(clippy::cast_precision_loss, reason = "a share for people")]
        let share = |used: u64| maxmemory.map(|most| used as f64 / most as f64);
        let share_of_maxmemory = memory.used_when_warm.and_then(share);
        Self {
            total,
            first_pass_cache_commands: total.cache_commands + naming + upkeep.first_commands,
            day: sum(|plan| plan.day).plus(upkeep_of_day),
            memory,
            maxmemory,
            share_of_maxmemory,
            fits: share_of_maxmemory.map(|share| share <= 1.0),
            worker: worker.document(),
            worker_text: worker.text(),
            jobs,
        }
    }
}

impl Memory {
    fn new<'a>(
        enabled: impl Iterator<Item = &'a Estimate>,
        upkeep: Upkeep,
        stats: Option<CacheStats>,
    ) -> Self {
        let (mut keys, mut present) = (0, upkeep.present);
        for found in enabled {
            keys += found.memory;
            present += found.present;
        }
        let used = stats.map(|stats| stats.used_memory).filter(|used| *used > 0);
        let upkeep = upkeep.memory;
        let warm = |used: u64| used.saturating_sub(present) + keys + upkeep;
        Self { keys, upkeep, present, used, used_when_warm: used.map(warm) }
    }
}

impl JobPlan {
    fn new(found: &Found, shares: Shares, now: DateTime<Utc>) -> Self {
        let Found { job, estimate, pages, changes, feed } = found;
        let Estimate { queries, keys, bytes, commands, .. } = *estimate;
        let run = Load { queries, keys, bytes, cache_commands: commands };
        let of_day = |RunsADay { runs, naming }| {
            let renewed = u64::from(naming) * estimate.naming;
            run.times(runs.into()).plus(Load { cache_commands: renewed, ..Load::default() })
        };
        let runs = if job.enabled { RunsADay::of(job, now) } else { RunsADay::default() };
        let day = of_day(runs);
        let rarer = match feed {
            Feed::HearsAll => Rarer::of(job, now),
            Feed::Misses(_) => None,
        };
        let mut next_due = Vec::new();
        let mut at = now;
        while job.enabled && next_due.len() < DUE_TIMES {
            let Some(next) = job.schedule.next_after(at) else { break };
            next_due.push(next);
            at = next;
        }
        Self {
            job: Effective::of(job, shares),
            next_due,
            tenants: estimate.tenants,
            sampled_tenants: estimate.sampled,
            run,
            memory: estimate.memory,
            runs_a_day: runs.runs,
            day,
            changes: *changes,
            feed: feed.document(),
            rarer: rarer.map(|rarer| RarerDocument {
                ttl: duration::text(rarer.ttl),
                schedule: format!("every {}", duration::text(rarer.interval)),
                runs_a_day: rarer.runs.runs,
                saves: day.less(of_day(rarer.runs)),
            }),
            pages: pages.as_ref().ok().map(SamplePages::document),
            pages_refused: pages.as_ref().err().map(|error| error.message.clone()),
            pages_text: pages_text(pages),
            troubles: estimate.troubles.iter().map(TroubleDocument::of).collect(),
            unread_tenants: estimate.unread,
        }
    }
}

/// The lines about pages, each with its name.
fn pages_text(pages: &Result<SamplePages, SourceError>) -> Vec<(&'static str, String)> {
    match pages {
        Ok(pages) => {
            let scattered = pages.scattered().map(|text| ("scattered", text));
            [("pages", pages.text())].into_iter().chain(scattered).collect()
        }
        Err(error) => vec![("pages", output::shown(&error.message))],
    }
}

impl RarerDocument {
    fn text(&self, runs_a_day: u32) -> String {
        let Self { ttl, schedule, runs_a_day: runs, saves } = self;
        format!(
            "`ttl = \"{ttl}\"` with `schedule = \"{schedule}\"`, which leaves room for one failed run, makes \
             {} instead of {} and saves {} a day, if the values do not depend on the time; see \"Rarer runs\" in docs/changes.md",
            output::counted((*runs).into(), "run", "runs"),
            output::count(runs_a_day.into()),
            saves.text()
        )
    }
}

impl TroubleDocument {
    fn of(trouble: &Trouble) -> Self {
        let Trouble { kind, message, tenants, count } = trouble.clone();
        Self { kind, message, count, tenants }
    }

    /// One line for people, with the known tenants.
    fn text(&self) -> String {
        let Self { kind, message, count, tenants } = self;
        let ids: Vec<_> = tenants.iter().map(|id| format!("`{}`", output::shown(id))).collect();
        let more = match count.saturating_sub(tenants.len() as u64) {
            0 => String::new(),
            more => format!(" and {} more", output::count(more)),
        };
        let whose = match tenants.len() {
            0 => String::new(),
            1 => format!(", tenant {}{more}", ids.concat()),
            _ => format!(", tenants {}{more}", ids.join(", ")),
        };
        let times = output::count(*count);
        format!("{}, {times} in the sample{whose}: {}", kind.as_str(), output::shown(message))
    }
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

    fn less(self, other: Self) -> Self {
        Self {
            queries: self.queries.saturating_sub(other.queries),
            keys: self.keys.saturating_sub(other.keys),
            bytes: self.bytes.saturating_sub(other.bytes),
            cache_commands: self.cache_commands.saturating_sub(other.cache_commands),
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
    fn of(job: &Job, shares: Shares) -> Self {
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
            concurrency: shares.of_job(job, Priority::Regular),
            tables: job.tables.iter().map(|table| table.name.clone()).collect(),
            tenants: job.scope == Scope::Tenants,
            order: job.query.order.iter().map(ToString::to_string).collect(),
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
        parts.push(format!("at most {}", size::text(*max_bytes)));
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
    let by = dates.column.as_ref().map(|column| format!(", by `{column}`")).unwrap_or_default();
    format!("{} days from today in {zone}{by}", dates.days)
}

impl Plan {
    fn print(&self) -> io::Result<()> {
        let mut lines: Vec<String> = self.jobs.iter().flat_map(JobPlan::lines).collect();
        let enabled = self.jobs.iter().filter(|plan| plan.job.enabled).count() as u64;
        let jobs = output::counted(enabled, "enabled job", "enabled jobs");
        let mut say = |name: &str, text: String| lines.push(line(name, &text));
        say(&format!("{jobs} and a worker"), String::new());
        say("  each once", self.total.text());
        let first = output::count(self.first_pass_cache_commands);
        say("  first pass", format!("{first} cache commands, where the cache is empty"));
        say("  a day", self.day.text());
        say("  worker", self.worker_text.clone());
        let Memory { keys, upkeep, present, .. } = self.memory;
        let all = output::memory(keys + upkeep);
        let (upkeep, present) = (output::memory(upkeep), output::memory(present));
        say("  memory", format!("{all}, {upkeep} of it fences and registry; {present} is there"));
        output::result(&(lines.join("\n") + "\n"))?;
        let share = line("  maxmemory", &self.share()) + "\n";
        let is_tight = self.share_of_maxmemory.is_some_and(|share| share > TIGHT);
        if is_tight { output::caution(&share) } else { output::result(&share) }
    }

    /// The share of `maxmemory` that will be in use.
    fn share(&self) -> String {
        let Memory { used, used_when_warm, .. } = self.memory;
        let (Some(used), Some(warm)) = (used, used_when_warm) else {
            return "the cache does not say how much memory it has".to_owned();
        };
        let (now, warm) = (output::memory(used), output::memory(warm));
        let (Some(most), Some(share)) = (self.maxmemory, self.share_of_maxmemory) else {
            return format!("{warm} in use when all is warm ({now} now); the cache has no bound");
        };
        let most = output::memory(most);
        let verdict = if share > 1.0 {
            "; it does not fit: raise `maxmemory`, or warm fewer keys, or smaller ones"
        } else if share > TIGHT {
            "; it is tight: the cache evicts keys or refuses writes when it is full"
        } else {
            ""
        };
        let percent = share * 100.0;
        format!("{warm} in use when all is warm ({now} now), {percent:.1}% of {most}{verdict}")
    }
}

impl JobPlan {
    fn lines(&self) -> Vec<String> {
        let job = &self.job;
        let state = if job.enabled { "" } else { " (disabled)" };
        let description = output::shown(&job.description);
        let mut lines = vec![output::wrapped(2, &format!("{}{state}: {description}", job.name))];
        let mut say = |name: &str, text: String| lines.push(line(&format!("  {name}"), &text));
        say("schedule", job.schedule.clone());
        let due = self.next_due.iter().map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
        let due = due.collect::<Vec<_>>().join(" ");
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
            say("key", output::shown(key));
        }
        if !job.order.is_empty() {
            say("order", output::shown(&job.order.join(", ")));
        }
        say("value", output::shown(&job.encode.text()));
        let (tenants, sampled) = (output::count(self.tenants), output::count(self.sampled_tenants));
        say("tenants", format!("{tenants} ({sampled} sampled)"));
        say("a run", self.run.text());
        let runs = output::counted(self.runs_a_day.into(), "run", "runs");
        say("a day", format!("{runs}: {}", self.day.text()));
        if let Some(changes) = &self.changes {
            say("changes", changes.text());
        }
        say("feed", self.feed.text());
        if let Some(rarer) = &self.rarer {
            say("rarer", rarer.text(self.runs_a_day));
        }
        for (name, text) in &self.pages_text {
            say(name, text.clone());
        }
        say("memory", output::memory(self.memory));
        for trouble in &self.troubles {
            say("will fail", trouble.text());
        }
        if self.unread_tenants > 0 {
            let tenants = output::counted(self.unread_tenants, "tenant", "tenants");
            let why = "they share a query with some that cannot be read";
            say("not read", format!("{tenants} of the sample: {why}"));
        }
        lines.push(String::new());
        lines
    }
}

fn line(name: &str, text: &str) -> String {
    if text.is_empty() {
        return name.to_owned();
    }
    format!("{name:<TITLE$}{}", output::wrapped(TITLE, text))
}

fn when(job: &Effective) -> String {
    let start = if job.on_start { "at start and on schedule" } else { "on schedule" };
    let required = if job.required { ", required for readiness" } else { "" };
    format!("{start}, overlap {}{required}", job.overlap)
}
