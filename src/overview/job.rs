//! A job: its line in the list, and its page.

use chrono::{DateTime, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::elsewhere::id_in_lists;
use super::facts::{Deadlines, Facts, moment};
use super::text::millis;
use super::{DefinedField, Level, Line, Moment, NotWarmTenant};
use crate::domain::batch_size::BatchSizeNow;
use crate::domain::job::Scope;
use crate::domain::pause::Pause;
use crate::domain::report::{Failure, FailureKind};
use crate::domain::run::{Outcome, RunBrief, RunFailure, RunId, Trigger};
use crate::domain::schedule::Schedule;
use crate::engine::schedule::status::{ActiveRun, JobStatus};

/// How many due times a job's page lists.
const NEXT_DUE: usize = 5;

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its file says `enabled = false`.
    Disabled,
    /// Its file is rejected, and no older version is in use.
    Held,
    /// Somebody paused it.
    Paused,
    /// A run goes on.
    Running,
    /// It waits for its next due time, or for a request.
    Idle,
}

/// A job in one line.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct JobLine {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it is doing.
    pub state: JobState,
    /// How bad the worst of its troubles is.
    pub level: Level,
    /// As in the job file: `every 10m`, or a cron expression.
    pub schedule: String,
    /// The time zone of a cron expression.
    pub timezone: Option<String>,
    /// The longest time between two due times, in milliseconds; null for a schedule that ends.
    pub gap_ms: Option<u64>,
    /// The TTL of its keys, in milliseconds, without jitter.
    pub ttl_ms: u64,
    /// When it is due next.
    pub next_due_at: Option<Moment>,
    /// The run under way.
    pub running: Option<Running>,
    /// How many of its runs wait.
    pub queued: u64,
    /// The run that ended last, however it ended; null if it never ran.
    pub last_run: Option<LastRun>,
    /// When the last `ok` run over all tenants ended.
    pub last_success_at: Option<Moment>,
    /// The last runs, oldest first, at most 50. Runs for changes that ended `ok` are not among them.
    pub runs: Vec<RunBar>,
    /// How long 95 % of these runs took at most, in milliseconds.
    pub p95_ms: Option<u64>,
    /// From when on it is late: two of its longest gaps after its last success. Null while it is paused, disabled
    /// or held, or its schedule ends.
    pub late_after: Option<Moment>,
    /// Whether that moment has passed.
    pub is_late: bool,
    /// How much time is left, in milliseconds, between the end of the next run and the moment when the first key
    /// expires. Negative: keys expire before they are written again.
    pub ttl_margin_ms: Option<i64>,
    /// When the first key expires if nothing runs.
    pub expires_at: Option<Moment>,
    /// The share of a sample of its keys that are in the cache; null before the first look and while the cache is away.
    pub coverage: Option<f64>,
    /// The share of its compared values that equal the database's; null before the first comparison and while a server
    /// is away.
    pub consistency: Option<f64>,
    /// The share of the applications' reads of its keys in the last minutes whose value came from the cache; null if
    /// no client reported any.
    pub hit_rate: Option<f64>,
    /// How many of its tenants are not warm.
    pub not_warm: u64,
    /// The first failure of the last run over all tenants that was not `ok`, if no `ok` one came after it.
    pub first_failure: Option<FirstFailure>,
    /// Keys that the last run over all tenants wrote.
    pub keys: Option<u64>,
    /// Bytes of the values that this run wrote.
    pub bytes: Option<u64>,
    /// The pause, while it is paused.
    pub pause: Option<PauseView>,
}

/// A run under way.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Running {
    /// Its id.
    pub id: RunId,
    /// Why it started.
    pub trigger: Trigger,
    /// When it started.
    pub started_at: Moment,
    /// Tenants that it covers; 0 until the tenant list is read.
    pub tenants_total: u64,
    /// Tenants that it is done with.
    pub tenants_done: u64,
}

/// The run that ended last.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct LastRun {
    /// Its id.
    pub id: RunId,
    /// Why it started.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: Outcome,
    /// When it ended.
    pub finished_at: Moment,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// One of the last runs, as little as a bar needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RunBar {
    /// Its id.
    pub id: RunId,
    /// Why it started.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: Outcome,
    /// When it started.
    pub started_at: Moment,
    /// How long it waited after it was due or asked for, in milliseconds.
    pub waited_ms: u64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Keys that it wrote.
    pub keys: u64,
}

/// The first failure of a run.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct FirstFailure {
    /// The run.
    pub run: RunId,
    /// The kind of failure.
    pub kind: FailureKind,
    /// The tenant, if it concerns one.
    pub tenant: Option<String>,
    /// What happened.
    pub message: String,
    /// How many failures of this kind there were.
    pub count: u64,
}

/// A pause.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct PauseView {
    /// Why the job is paused.
    pub note: String,
    /// Who paused it.
    pub by: String,
    /// Since when.
    pub since: Moment,
    /// When it ends by itself; null if somebody has to resume the job.
    pub until: Option<Moment>,
}

/// A job's page.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct JobDetail {
    /// Its line in the list.
    pub line: JobLine,
    /// The next five due times.
    pub next_due: Vec<Moment>,
    /// Runs that were due or asked for and did not happen, newest first, at most 20.
    pub skipped: Vec<Skip>,
    /// The last 24 hours.
    pub day: JobSeries,
    /// The first tenants that are not warm, at most 20.
    pub not_warm: Vec<NotWarmTenant>,
    /// How many tenants one query is for; null where the job has no tenants.
    pub batch: Option<BatchOfJob>,
    /// What its file says, with the defaults where it says nothing. Fields without a value are left out.
    pub definition: Vec<DefinedField>,
}

/// How many tenants one query of a job is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BatchOfJob {
    /// As many as the job's file or `runner.batch` says.
    pub configured: usize,
    /// As many as the next query is for.
    pub now: usize,
    /// Why they are fewer than configured, if they are.
    pub reason: Option<String>,
}

impl BatchOfJob {
    /// As it is at this moment; `None` where the job has no tenants.
    pub(crate) fn of(status: &JobStatus) -> Option<Self> {
        let BatchSizeNow { configured, now, because } = status.batch.now();
        let reason = because.map(|why| why.to_string());
        let batch = Self { configured: configured.get(), now: now.get(), reason };
        (status.job.scope == Scope::Tenants).then_some(batch)
    }
}

/// A run that did not happen.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Skip {
    /// When it was due or asked for.
    pub at: Moment,
    /// Why it did not happen: `overlap`, `queue_full`, `draining`, `paused`.
    pub reason: String,
}

/// A job's last 24 hours, a value each five minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct JobSeries {
    /// The share of its keys that were in the cache.
    pub coverage: Line,
    /// The share of its values that equalled the database's.
    pub consistency: Line,
    /// How long 95 % of its last runs took at most, in milliseconds.
    pub p95_ms: Line,
}

impl JobLine {
    /// A job's line; `level` is that of its worst trouble.
    pub(super) fn of(facts: &Facts, status: &JobStatus, level: Level) -> Self {
        let JobStatus { job, next_due_at, running, queued, pause, .. } = status;
        let recent = facts.recent(&job.name).cloned().unwrap_or_default();
        let Deadlines { late_after, expires_at, ttl_margin, p95 } = facts.deadlines(status);
        let elsewhere = facts.elsewhere.get(&job.name).cloned().unwrap_or_default();
        let own = running.as_ref().and_then(|run| Running::of(run, facts.fleet.as_deref()));
        let running = elsewhere.with(own);
        let (schedule, timezone) = match &job.schedule {
            Schedule::Every(_) => (job.schedule.to_string(), None),
            Schedule::Cron(cron) => (cron.expression().to_owned(), Some(cron.zone().to_string())),
        };
        Self {
            name: job.name.to_string(),
            description: job.description.clone(),
            state: state(facts, status, running.is_some()),
            level,
            schedule,
            timezone,
            gap_ms: job.schedule.longest_gap().map(millis),
            ttl_ms: millis(job.ttl),
            next_due_at: moment([*next_due_at, elsewhere.next_due_at].into_iter().flatten().min()),
            running,
            queued: queued.len() as u64,
            last_run: recent.runs.iter().max_by_key(|run| run.finished_at).map(LastRun::of),
            last_success_at: moment(recent.last_success_at),
            runs: recent.runs.iter().map(RunBar::of).collect(),
            p95_ms: p95.map(millis),
            late_after: moment(late_after),
            is_late: late_after.is_some_and(|at| facts.now > at),
            ttl_margin_ms: ttl_margin.map(|margin| margin.num_milliseconds()),
            expires_at: moment(expires_at),
            coverage: facts.coverage.get(&job.name).and_then(|share| share.ratio()),
            consistency: facts.audits.get(&job.name).and_then(|audited| audited.equal.ratio()),
            hit_rate: facts.reads.families.get(job.name.as_str()).and_then(|it| it.hit_rate()),
            not_warm: facts.not_warm.get(&job.name).map_or(0, |not_warm| not_warm.tenants),
            first_failure: recent.open_failure().and_then(FirstFailure::of),
            keys: recent.last_full.map(|full| full.keys),
            bytes: recent.last_full.map(|full| full.bytes),
            pause: pause.as_ref().map(PauseView::of),
        }
    }
}

fn state(facts: &Facts, status: &JobStatus, is_running: bool) -> JobState {
    let JobStatus { job, pause, .. } = status;
    match (is_running, pause, job.enabled) {
        (true, _, _) => JobState::Running,
        (false, _, false) if facts.status.is_held(&job.name) => JobState::Held,
        (false, _, false) => JobState::Disabled,
        (false, Some(_), true) => JobState::Paused,
        (false, None, true) => JobState::Idle,
    }
}

impl Running {
    fn of(run: &ActiveRun, fleet: Option<&str>) -> Option<Self> {
        let progress = run.progress.now();
        Some(Self {
            id: id_in_lists(fleet, run),
            trigger: run.trigger,
            started_at: Moment(run.started_at?),
            tenants_total: progress.tenants_total,
            tenants_done: progress.tenants_done,
        })
    }
}

impl LastRun {
    fn of(run: &RunBrief) -> Self {
        Self {
            id: run.id,
            trigger: run.trigger,
            outcome: run.outcome,
            finished_at: Moment(run.finished_at),
            took_ms: millis(run.duration()),
        }
    }
}

impl RunBar {
    fn of(run: &RunBrief) -> Self {
        let waited = (run.started_at - run.due_at).max(TimeDelta::zero());
        Self {
            id: run.id,
            trigger: run.trigger,
            outcome: run.outcome,
            started_at: Moment(run.started_at),
            waited_ms: waited.num_milliseconds().unsigned_abs(),
            took_ms: millis(run.duration()),
            keys: run.keys,
        }
    }
}

impl FirstFailure {
    fn of(failed: &RunFailure) -> Option<Self> {
        let Failure { kind, tenant, message, count, .. } = failed.failure.clone()?;
        Some(Self { run: failed.run, kind, tenant, message, count })
    }
}

impl PauseView {
    fn of(pause: &Pause) -> Self {
        Self {
            note: pause.note.to_string(),
            by: pause.by.to_string(),
            since: Moment(pause.since),
            until: moment(pause.until),
        }
    }
}

/// The job's next due times, unless it is paused or disabled.
pub(super) fn next_due(status: &JobStatus) -> Vec<Moment> {
    let next = |at: &DateTime<Utc>| status.job.schedule.next_after(*at);
    std::iter::successors(status.next_due_at, next).take(NEXT_DUE).map(Moment).collect()
}
