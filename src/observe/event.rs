//! What happens, each as a struct whose `emit` writes its log line and moves its metrics.
//!
//! A message reads alone; the fields are for searching. `error` is for what someone must act on,
//! `warn` for what someone should look at.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};

use super::metric::Metrics;
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind, TenantCounts};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};

/// A run starts.
#[derive(Clone, Copy, Debug)]
pub struct RunStarted<'a> {
    /// Its id.
    pub run: RunId,
    /// Its job.
    pub job: &'a JobName,
    /// Why it starts.
    pub trigger: Trigger,
    /// How long after its due time, where its schedule started it.
    pub lag: Option<Duration>,
}

impl RunStarted<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { run, job, trigger, lag } = self;
        if let Some(lag) = lag {
            metrics.of_job(job).fired(lag);
        }
        let trigger = trigger.as_str();
        let lag_ms = lag.map(millis);
        info!(%job, %run, trigger, lag_ms, "job `{job}` starts, by {trigger}");
    }
}

/// A run ended.
#[derive(Clone, Copy, Debug)]
pub struct RunFinished<'a> {
    /// What it was and did.
    pub record: &'a RunRecord,
    /// Whether it was for all active tenants: only such a run says how much of the job is warm.
    pub all_tenants: bool,
}

/// One run's line, at the level of its outcome.
macro_rules! run_line {
    ($level:ident, $record:expr) => {{
        let record: &RunRecord = $record;
        let report = &record.report;
        let first = report.failures.first();
        $level!(
            job = %record.job,
            run = %record.id,
            trigger = record.trigger.as_str(),
            outcome = record.outcome.as_str(),
            duration_ms = millis(record.duration()),
            tenants = report.tenants.total,
            tenants_failed = report.tenants.failed,
            keys = report.keys.written,
            keys_failed = report.keys.failed,
            bytes = report.bytes,
            queries = report.queries,
            retries = report.retries,
            failure = first.map(|failure| failure.kind.as_str()),
            tenant = first.and_then(|failure| failure.tenant.as_deref()),
            "{}",
            RunSummary(record)
        );
    }};
}

impl RunFinished<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { record, all_tenants } = self;
        self.count(metrics);
        match record.outcome {
            Outcome::Ok => run_line!(info, record),
            Outcome::Partial | Outcome::Timeout | Outcome::Cancelled => run_line!(warn, record),
            Outcome::Failed => run_line!(error, record),
        }
        if record.report.late {
            let (job, run) = (&record.job, record.id);
            warn!(
                %job, %run, all_tenants,
                "job `{job}` was late: keys may have expired before this run wrote them again; \
                 raise its `ttl` or let it run more often"
            );
        }
    }

    fn count(self, metrics: &Metrics) {
        let Self { record, all_tenants } = self;
        let RunRecord { job, trigger, outcome, finished_at, report, .. } = record;
        metrics.run_count(job, *trigger, *outcome, 1);
        let of_job = metrics.of_job(job);
        of_job.ended(*finished_at, record.duration());
        of_job.tenants(report.tenants.ok, report.tenants.failed);
        of_job.keys(report.keys.written, report.keys.removed, report.keys.failed);
        of_job.wrote(report.bytes);
        if all_tenants {
            of_job.covered(coverage(report.tenants, *outcome));
            if *outcome == Outcome::Ok {
                of_job.succeeded(*finished_at);
            }
        }
    }
}

/// The share of its tenants that a run left warm. Of none, all are warm if the list was read at all.
#[expect(clippy::cast_precision_loss, reason = "numbers of tenants are far below 2^53")]
fn coverage(tenants: TenantCounts, outcome: Outcome) -> f64 {
    match (tenants.total, outcome == Outcome::Ok) {
        (0, true) => 1.0,
        (0, false) => 0.0,
        (total, _) => tenants.ok as f64 / total as f64,
    }
}

/// A run in one sentence.
struct RunSummary<'a>(&'a RunRecord);

impl fmt::Display for RunSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        let tenants = record.report.tenants;
        write!(
            f,
            "job `{}` ended {} after {:.1?}: {} of {} tenants warm, {} keys and {} bytes written",
            record.job,
            record.outcome,
            record.duration(),
            tenants.ok,
            tenants.total,
            record.report.keys.written,
            record.report.bytes,
        )?;
        let Some(Failure { kind, tenant, message, .. }) = record.report.failures.first() else {
            return Ok(());
        };
        write!(f, "; first failure ({})", kind.as_str())?;
        if let Some(tenant) = tenant {
            write!(f, ", tenant `{}`", tenant.escape_debug())?;
        }
        write!(f, ": {message}")
    }
}

/// A run that was due or asked for does not happen.
#[derive(Clone, Copy, Debug)]
pub struct RunSkipped<'a> {
    /// Of which job.
    pub job: &'a JobName,
    /// Why not.
    pub reason: SkipReason,
}

/// Why a run does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The job's last run is still going, and its `overlap` says to skip.
    Overlap,
    /// Too many runs wait already.
    QueueFull,
    /// The worker is stopping.
    Draining,
}

impl SkipReason {
    /// All of them, for metrics that stand from the start.
    pub const ALL: [Self; 3] = [Self::Overlap, Self::QueueFull, Self::Draining];

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::QueueFull => "queue_full",
            Self::Draining => "draining",
        }
    }

    fn explained(self) -> &'static str {
        match self {
            Self::Overlap => "its last run is still going",
            Self::QueueFull => "too many of its runs wait already",
            Self::Draining => "the worker is stopping",
        }
    }
}

impl RunSkipped<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { job, reason } = self;
        metrics.skipped(job, reason, 1);
        let (why, reason) = (reason.explained(), reason.as_str());
        warn!(%job, reason, "a run of job `{job}` is skipped: {why}");
    }
}

/// It is known when a job is due next.
#[derive(Clone, Copy, Debug)]
pub struct NextRun<'a> {
    /// Which job.
    pub job: &'a JobName,
    /// When; `None` where it is disabled or never due again.
    pub at: Option<DateTime<Utc>>,
}

impl NextRun<'_> {
    /// Tells it, to the metrics only.
    pub fn emit(self, metrics: &Metrics) {
        metrics.of_job(self.job).due(self.at);
    }
}

/// A batch failed for a reason that may pass, and will be tried again.
#[derive(Clone, Copy, Debug)]
pub struct BatchRetried<'a> {
    /// Of which job.
    pub job: &'a JobName,
    /// In which run.
    pub run: RunId,
    /// How many tenants it is for.
    pub tenants: usize,
    /// The how-manieth retry this will be, from 1.
    pub retry: u32,
    /// How long until then.
    pub wait: Duration,
    /// What failed.
    pub kind: FailureKind,
    /// What happened.
    pub message: &'a str,
}

impl BatchRetried<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { job, run, tenants, retry, wait, kind, message } = self;
        metrics.of_job(job).retried();
        let (failure, wait_ms) = (kind.as_str(), millis(wait));
        warn!(
            %job, %run, tenants, retry, wait_ms, failure,
            "a batch of job `{job}` failed and is tried again in {wait:.1?}: {message}"
        );
    }
}

/// A batch failed on its data and is cut in two, to find the tenant.
#[derive(Clone, Copy, Debug)]
pub struct BatchSplit<'a> {
    /// Of which job.
    pub job: &'a JobName,
    /// In which run.
    pub run: RunId,
    /// How many tenants it was for.
    pub tenants: usize,
    /// What failed.
    pub kind: FailureKind,
    /// What happened.
    pub message: &'a str,
}

impl BatchSplit<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { job, run, tenants, kind, message } = self;
        let failure = kind.as_str();
        debug!(
            %job, %run, tenants, failure,
            "a batch of job `{job}` with {tenants} tenants failed and is cut in two: {message}"
        );
    }
}

/// One of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Where rows come from.
    Database,
    /// Where entries go.
    Cache,
}

impl Server {
    /// All of them, for metrics that stand from the start.
    pub const ALL: [Self; 2] = [Self::Database, Self::Cache];

    /// Its name in logs, metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
        }
    }
}

/// A server counts as down, or as up again.
#[derive(Clone, Copy, Debug)]
pub struct BreakerChanged<'a> {
    /// Which.
    pub server: Server,
    /// Whether it counts as down.
    pub open: bool,
    /// What happened, where it counts as down.
    pub message: &'a str,
}

impl BreakerChanged<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { server, open, message } = self;
        metrics.set_breaker(server, open);
        let server = server.as_str();
        if open {
            error!(
                server,
                "the {server} counts as down; cached values stay as they are: {message}"
            );
        } else {
            info!(server, "the {server} is back");
        }
    }
}

/// The tenant list is empty.
#[derive(Clone, Copy, Debug)]
pub struct NoTenants<'a> {
    /// The job whose run read it.
    pub job: &'a JobName,
}

impl NoTenants<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let job = self.job;
        warn!(%job, "job `{job}` has nothing to warm: the tenant query returned no tenant");
    }
}

/// The cache pushed out keys while a run wrote.
#[derive(Clone, Copy, Debug)]
pub struct Evictions<'a> {
    /// Of which job.
    pub job: &'a JobName,
    /// In which run.
    pub run: RunId,
    /// How many keys, anybody's.
    pub count: u64,
}

impl Evictions<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { job, run, count } = self;
        warn!(
            %job, %run, count,
            "the cache evicted {count} keys while job `{job}` ran: its memory is too small for \
             what is written to it"
        );
    }
}

/// No ring of the scheduler for too long; the watchdog wakes the jobs instead.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerSilent {
    /// How long.
    pub silent_for: Duration,
}

impl SchedulerSilent {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let silent_for = self.silent_for;
        metrics.scheduler_silent.set(1);
        error!(
            silent_for_ms = millis(silent_for),
            "the scheduler has not rung for {silent_for:.1?}: jobs run by the watchdog; \
             restart the worker"
        );
    }
}

/// The scheduler rings again.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerBack;

impl SchedulerBack {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.scheduler_silent.set(0);
        info!("the scheduler rings again");
    }
}

/// The history cannot be written; told once an outage.
#[derive(Clone, Copy, Debug)]
pub struct HistoryUnavailable<'a> {
    /// What happened.
    pub message: &'a str,
    /// Records that wait to be written.
    pub buffered: usize,
    /// Records that were given up with this failure.
    pub dropped: u64,
}

impl HistoryUnavailable<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { message, buffered, dropped } = self;
        metrics.history_dropped.inc_by(dropped);
        warn!(
            buffered,
            dropped,
            "could not write the history; {buffered} run records wait, runs go on: {message}"
        );
    }
}

/// Further records were given up in an outage that was told already.
#[derive(Clone, Copy, Debug)]
pub struct HistoryDropped {
    /// How many.
    pub dropped: u64,
}

impl HistoryDropped {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let dropped = self.dropped;
        metrics.history_dropped.inc_by(dropped);
        debug!(dropped, "{dropped} run records were given up: the history is still away");
    }
}

/// The history can be written again.
#[derive(Clone, Copy, Debug)]
pub struct HistoryBack;

impl HistoryBack {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        info!("the history can be written again");
    }
}

/// The worker goes on without a history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryDisabled<'a> {
    /// Why.
    pub reason: &'a str,
    /// What an administrator can run to get one.
    pub sql: &'a str,
}

impl HistoryDisabled<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { reason, sql } = self;
        warn!(
            sql,
            "runs are kept in memory only: {reason}; hint: let an administrator run `sql`, or set \
             `[history] enabled = false`"
        );
    }
}

/// Old records were removed from the history.
#[derive(Clone, Copy, Debug)]
pub struct HistoryPruned {
    /// How many.
    pub runs: u64,
}

impl HistoryPruned {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let runs = self.runs;
        debug!(runs, "{runs} run records were older than the retention and are removed");
    }
}

/// The worker works.
#[derive(Clone, Copy, Debug)]
pub struct WorkerStarted<'a> {
    /// Its version.
    pub version: &'a str,
    /// How many jobs it has.
    pub jobs: usize,
}

impl WorkerStarted<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { version, jobs } = self;
        info!(version, jobs, "preheat {version} works, with {jobs} jobs");
    }
}

/// The worker was told to stop.
#[derive(Clone, Copy, Debug)]
pub struct WorkerDraining {
    /// Runs that are under way.
    pub in_flight: usize,
}

impl WorkerDraining {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let in_flight = self.in_flight;
        info!(in_flight, "the worker stops: no new runs, {in_flight} are under way");
    }
}

/// The worker has stopped.
#[derive(Clone, Copy, Debug)]
pub struct WorkerStopped;

impl WorkerStopped {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        info!("the worker has stopped");
    }
}

/// The job files have problems; the last good ones stay in use.
#[derive(Clone, Copy, Debug)]
pub struct JobsRejected<'a> {
    /// All of them, as `check` shows them.
    pub problems: &'a str,
}

impl JobsRejected<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let problems = self.problems;
        metrics.jobs_rejected.set(1);
        error!("the job files have problems, the last good ones stay in use:\n{problems}");
    }
}

/// The job files were read again.
#[derive(Clone, Copy, Debug)]
pub struct JobsReloaded {
    /// How many jobs there are now.
    pub jobs: usize,
}

impl JobsReloaded {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let jobs = self.jobs;
        metrics.jobs_rejected.set(0);
        info!(jobs, "the job files were read again: {jobs} jobs");
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
