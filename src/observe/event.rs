//! What happens, each as a struct whose `emit` writes its log line and moves its metrics.
//!
//! A message reads alone; the fields are for searching. `error` is for what someone must act on,
//! `warn` for what someone should look at.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};

use super::metric::Metrics;
use crate::domain::audit::{JobAudit, Kind};
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind, KeyCounts};
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
        debug!(%job, %run, trigger, lag_ms, "job `{job}` starts, by {trigger}");
    }
}

/// A run ended.
#[derive(Clone, Copy, Debug)]
pub struct RunFinished<'a> {
    /// What it was and did.
    pub record: &'a RunRecord,
    /// Whether it was for all active tenants: only such a run says how much of the job is warm.
    pub all_tenants: bool,
    /// Whether its record is kept. One that is not is one of many, and told to those who look
    /// closely.
    pub kept: bool,
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
            tenants_fenced = report.tenants.fenced,
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
        let Self { record, all_tenants, kept } = self;
        self.count(metrics);
        match (record.outcome, kept) {
            (Outcome::Ok, true) => run_line!(info, record),
            (Outcome::Ok, false) => run_line!(debug, record),
            (Outcome::Partial | Outcome::Timeout | Outcome::Cancelled, _) => {
                run_line!(warn, record);
            }
            (Outcome::Failed, _) => run_line!(error, record),
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
        let Self { record, all_tenants, kept: _ } = self;
        let RunRecord { job, trigger, outcome, finished_at, report, .. } = record;
        metrics.run_count(job, *trigger, *outcome, 1);
        let of_job = metrics.of_job(job);
        of_job.ended(*finished_at, record.duration());
        of_job.tenants(report.tenants);
        of_job.keys(report.keys);
        of_job.wrote(report.bytes);
        if all_tenants && *outcome == Outcome::Ok {
            of_job.succeeded(*finished_at);
        }
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
            "job `{}` ended {} after {:.1?}: {} of {} warm, {} and {} written",
            record.job,
            record.outcome,
            record.duration(),
            tenants.ok,
            counted(tenants.total, "tenant", "tenants"),
            counted(record.report.keys.written, "key", "keys"),
            counted(record.report.bytes, "byte", "bytes"),
        )?;
        if tenants.fenced > 0 {
            write!(f, "; the data of {} kept changing", tenants.fenced)?;
        }
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

/// Something of a tenant failed in a run.
#[derive(Clone, Copy, Debug)]
pub struct TenantFailed<'a> {
    /// The job.
    pub job: &'a JobName,
    /// The run.
    pub run: RunId,
    /// The tenant.
    pub tenant: &'a str,
    /// What failed first.
    pub kind: FailureKind,
    /// What happened.
    pub message: &'a str,
}

impl TenantFailed<'_> {
    /// Tells it, to the log only: the report counts it.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { job, run, tenant, kind, message } = self;
        let failure = kind.as_str();
        debug!(
            %job, %run, tenant, failure,
            "tenant `{}` of job `{job}` failed ({failure}): {message}", tenant.escape_debug()
        );
    }
}

/// A run settled changes: what they changed is in the cache.
#[derive(Clone, Copy, Debug)]
pub struct ChangesSettled<'a> {
    /// Of which job.
    pub job: &'a JobName,
    /// How long ago each was heard of.
    pub lags: &'a [Duration],
}

impl ChangesSettled<'_> {
    /// Tells it, where there are any.
    pub fn emit(self, metrics: &Metrics) {
        let Self { job, lags } = self;
        let Some(longest) = lags.iter().max() else { return };
        for lag in lags {
            metrics.change_settled(*lag);
        }
        let (tenants, lag_ms) = (lags.len(), millis(*longest));
        let changed = counted(tenants as u64, "change is", "changes are");
        debug!(%job, tenants, lag_ms, "{changed} warm again in job `{job}`");
    }
}

/// Changes of the database are heard of from now on.
#[derive(Clone, Copy, Debug)]
pub struct FeedConnected;

impl FeedConnected {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.set_feed_listens(true);
        info!("the change feed is connected: what jobs with tables have is warmed once");
    }
}

/// Changes of the database are not heard of; told once an outage.
#[derive(Clone, Copy, Debug)]
pub struct FeedLost<'a> {
    /// What happened.
    pub message: &'a str,
}

impl FeedLost<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let message = self.message;
        metrics.set_feed_listens(false);
        warn!(
            "the change feed is away: changes wait for the jobs' schedules until it is back: \
             {message}"
        );
    }
}

/// There is no change feed, or none any more; told once a reason.
#[derive(Clone, Copy, Debug)]
pub struct FeedOff<'a> {
    /// Why.
    pub reason: &'a str,
    /// Whether somebody meant to have one.
    pub is_fault: bool,
}

impl FeedOff<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { reason, is_fault } = self;
        metrics.set_feed_listens(false);
        let text = "there is no change feed, and the jobs' schedules alone keep the cache fresh";
        if is_fault {
            warn!("{text}: {reason}");
        } else {
            info!("{text}: {reason}");
        }
    }
}

/// The change feed does not hear of all changes; told once for the same tables.
#[derive(Clone, Copy, Debug)]
pub struct FeedLacks<'a> {
    /// Of which.
    pub what: &'a str,
}

impl FeedLacks<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let what = self.what;
        warn!("the change feed does not hear of {what}; hint: run `preheat changes install`");
    }
}

/// The feed may have missed changes of some tables, so that their jobs run once.
#[derive(Clone, Copy, Debug)]
pub struct ChangesMissed<'a> {
    /// Which.
    pub tables: &'a str,
}

impl ChangesMissed<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let tables = self.tables;
        info!(
            "changes of {tables} may have been missed, as triggers were made, mended or switched on, \
             or another table has the name: jobs that name them in `tables` run once"
        );
    }
}

/// A trigger could not tell the tenants, so that all are warmed; told once a table and reason.
#[derive(Clone, Copy, Debug)]
pub struct TriggerBlind<'a> {
    /// The table.
    pub table: &'a str,
    /// The SQLSTATE of what went wrong.
    pub code: &'a str,
}

impl TriggerBlind<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { table, code } = self;
        warn!(
            code,
            "the trigger on `{table}` cannot tell whose rows changed (SQLSTATE {code}), so that all \
             tenants are warmed; hint: its query runs with the rights of the role that writes, and \
             fails where row-level security would hide rows; see `preheat changes install`"
        );
    }
}

/// Changes were heard of.
#[derive(Clone, Copy, Debug)]
pub struct ChangesHeard {
    /// How many notifications.
    pub notifications: usize,
}

impl ChangesHeard {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let notifications = self.notifications;
        metrics.notifications.inc_by(notifications as u64);
        let heard = counted(notifications as u64, "notification", "notifications");
        debug!(notifications, "{heard} of changes");
    }
}

/// A trigger told of a change in a way that no job has; told once each.
#[derive(Clone, Copy, Debug)]
pub struct ChangeUnknown<'a> {
    /// What the trigger calls where the change came from.
    pub source: &'a str,
}

impl ChangeUnknown<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let source = self.source;
        warn!(
            source,
            "changes come from a trigger that no job has; hint: `preheat changes install` makes the \
             triggers that the jobs have now"
        );
    }
}

/// Fences could not be moved; told once for what is waiting.
#[derive(Clone, Copy, Debug)]
pub struct FencesUnmoved<'a> {
    /// What happened.
    pub message: &'a str,
}

impl FencesUnmoved<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let message = self.message;
        warn!("changes wait, as their tenants' fences could not be moved: {message}");
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
            "a batch of job `{job}` with {} failed and is cut in two: {message}",
            counted(tenants as u64, "tenant", "tenants")
        );
    }
}

/// Keys were removed on request.
#[derive(Clone, Copy, Debug)]
pub struct Invalidated<'a> {
    /// How many.
    pub removed: u64,
    /// How many the cache refused to remove.
    pub failed: u64,
    /// How many fences were moved before.
    pub fences: u64,
    /// How many of each job, where the job is known.
    pub by_job: &'a BTreeMap<JobName, u64>,
    /// The first failure.
    pub failure: Option<&'a Failure>,
}

impl Invalidated<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { removed, failed, fences, by_job, failure } = self;
        for (job, removed) in by_job {
            metrics.of_job(job).removed(*removed);
        }
        let Some(Failure { kind, message, .. }) = failure else {
            let keys = counted(removed, "key was", "keys were");
            let moved = counted(fences, "fence", "fences");
            info!(removed, fences, "{keys} removed on request, after {moved}");
            return;
        };
        let failure = kind.as_str();
        warn!(
            removed,
            failed,
            fences,
            failure,
            "keys could not all be removed on request, {removed} were: {message}"
        );
    }
}

/// A job has held all permits that it may hold, and gave none of them back, for long; told once until
/// it does.
#[derive(Clone, Copy, Debug)]
pub struct PermitsHeld<'a> {
    /// The job.
    pub job: &'a JobName,
    /// How many it holds.
    pub permits: u32,
    /// How many are left for others.
    pub left: u32,
    /// For how long, at least.
    pub held_for: Duration,
}

impl PermitsHeld<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { job, permits, left, held_for } = self;
        warn!(
            %job, permits, left,
            "job `{job}` has held all permits that it may hold, {permits} of {}, for {held_for:.0?}: \
             its query is slow, or waits for a lock; other jobs have {left} permits",
            permits + left
        );
    }
}

/// A server counts as down, or as up again.
#[derive(Clone, Copy, Debug)]
pub struct BreakerChanged<'a> {
    /// Which.
    pub server: Server,
    /// Whether it counts as down.
    pub open: bool,
    /// What happened.
    pub message: &'a str,
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
    /// Both, for metrics that stand from the start.
    pub const ALL: [Self; 2] = [Self::Database, Self::Cache];

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
        }
    }
}

impl BreakerChanged<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { server, open, message } = self;
        metrics.set_breaker(server, open);
        let server = server.as_str();
        if open {
            error!(server, "the {server} counts as down and is left alone for a while: {message}");
        } else {
            info!(server, "the {server} is back: {message}");
        }
    }
}

/// Something that is allowed and should be known to whoever runs this.
#[derive(Clone, Copy, Debug)]
pub struct SettingsNotice<'a> {
    /// One sentence, without a full stop.
    pub text: &'a str,
}

impl SettingsNotice<'_> {
    /// Tells it, to the log only.
    pub fn emit(self) {
        warn!("{}", self.text);
    }
}

/// The database is a replica of another.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseIsReplica<'a> {
    /// The server and database.
    pub server: &'a str,
}

impl DatabaseIsReplica<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let server = self.server;
        warn!(
            server,
            "database `{server}` is a replica: what it has not received yet is warmed as it was \
             before, even right after a change; hint: let `database.url` lead to the primary"
        );
    }
}

/// A setting is there that has no effect any more.
#[derive(Clone, Copy, Debug)]
pub struct PgbouncerIsSet;

impl PgbouncerIsSet {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        info!(
            "`database.pgbouncer` has no effect any more and can be left out: queries are right \
             behind every pooler in transaction or session mode"
        );
    }
}

/// The cache server is another process than before.
#[derive(Clone, Copy, Debug)]
pub struct CacheRestarted;

impl CacheRestarted {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.cache_restarts.inc();
        warn!(
            "the cache server is another process than before: it was restarted, failed over or \
             replaced, and may have lost anything; everything is warmed again"
        );
    }
}

/// Several servers answer behind the cache's address.
#[derive(Clone, Copy, Debug)]
pub struct SeveralCaches;

impl SeveralCaches {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.several_caches.set(1);
        error!(
            "several servers answer behind the cache's address: what one is told, another does not \
             know, so that keys are missing or old for some readers; hint: preheat needs one server, \
             so `cache.url` must name it and no load balancer or proxy that shares out commands or \
             connections; until one answers alone, nothing is warmed again because another one answers"
        );
    }
}

/// One server answers behind the cache's address, where several did.
#[derive(Clone, Copy, Debug)]
pub struct OneCacheAgain;

impl OneCacheAgain {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.several_caches.set(0);
        info!("one server answers behind the cache's address again; everything is warmed again");
    }
}

/// The cache lost its keys, and is the same process as before.
#[derive(Clone, Copy, Debug)]
pub struct CacheEmptied;

impl CacheEmptied {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        metrics.cache_flushes.inc();
        warn!(
            "the cache was emptied (FLUSHALL, FLUSHDB or the like): the keys that preheat keeps for \
             itself are gone; everything is warmed again"
        );
    }
}

/// The cache pushed out keys for want of memory; told at most every ten minutes.
#[derive(Clone, Copy, Debug)]
pub struct KeysEvicted {
    /// How many, anybody's, since it was told last.
    pub count: u64,
    /// Bytes in use.
    pub used_memory: u64,
    /// The bound on them.
    pub maxmemory: u64,
}

impl KeysEvicted {
    /// Tells it, to the log only: the server counts them itself.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { count, used_memory, maxmemory } = self;
        warn!(
            count,
            used_memory,
            maxmemory,
            "the cache has evicted {count} keys, anybody's, for want of memory: {used_memory} of \
             {maxmemory} bytes are in use; what was evicted is missing until its job runs again; \
             hint: raise `maxmemory`, or let jobs write less (`preheat plan` says how much they write)"
        );
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

/// A tenant list lacks so many tenants that no run goes by it.
#[derive(Clone, Copy, Debug)]
pub struct TenantsShrank<'a> {
    /// How many, and what to do.
    pub message: &'a str,
}

impl TenantsShrank<'_> {
    /// Tells it, to the log only: the runs that fail for it are counted.
    pub fn emit(self, _metrics: &Metrics) {
        let message = self.message;
        error!("{message}");
    }
}

/// Keys of tenants that are not active any more were removed.
#[derive(Clone, Copy, Debug)]
pub struct TenantsSwept<'a> {
    /// How many tenants are gone since the last list.
    pub newly: usize,
    /// How many that were gone before were swept again.
    pub again: usize,
    /// How many keys of each job were removed.
    pub removed: &'a BTreeMap<JobName, u64>,
}

impl TenantsSwept<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { newly, again, removed } = self;
        for (job, count) in removed {
            metrics.of_job(job).keys(KeyCounts { removed: *count, ..KeyCounts::default() });
        }
        let keys: u64 = removed.values().sum();
        match (newly, keys) {
            (0, 0) => debug!(again, "no run wrote keys of tenants that are not active any more"),
            (0, _) => info!(
                again,
                keys,
                "removed {} that runs with an older tenant list wrote of tenants that are not \
                 active any more",
                counted(keys, "key", "keys")
            ),
            (_, _) => info!(
                newly,
                again,
                keys,
                "tenants that are not active any more since the last list: {newly}; {} removed",
                counted(keys, "key of theirs is", "keys of theirs are")
            ),
        }
    }
}

/// The tenant list could not be compared with the tenants that may have keys, or not all keys of who
/// is gone could be removed.
#[derive(Clone, Copy, Debug)]
pub struct SweepIncomplete<'a> {
    /// What happened.
    pub message: &'a str,
}

impl SweepIncomplete<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let message = self.message;
        warn!(
            "could not remove all keys of tenants that are not active any more; the next tenant \
             list will: {message}"
        );
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
        debug!(
            %job, %run, count,
            "the cache evicted {} while job `{job}` ran",
            counted(count, "key", "keys")
        );
    }
}

/// Some keys of a job were looked for.
#[derive(Clone, Copy, Debug)]
pub struct CoverageMeasured<'a> {
    /// The job.
    pub job: &'a JobName,
    /// How many of them there were.
    pub there: u64,
    /// How many there should be; none where nobody knows of any.
    pub expected: u64,
}

impl CoverageMeasured<'_> {
    /// Tells it, to the metrics only.
    pub fn emit(self, metrics: &Metrics) {
        let Self { job, there, expected } = self;
        #[expect(clippy::cast_precision_loss, reason = "some hundred keys")]
        let share = (expected > 0).then(|| there as f64 / expected as f64);
        metrics.of_job(job).covered(share);
    }
}

/// The verifier has compared some tenants of a job.
#[derive(Clone, Copy, Debug)]
pub struct AuditFinished<'a> {
    /// What it found.
    pub audit: &'a JobAudit,
    /// When.
    pub at: DateTime<Utc>,
}

impl AuditFinished<'_> {
    /// Tells it. Of a finding only the key is told: values are data.
    pub fn emit(self, metrics: &Metrics) {
        let Self { audit, at } = self;
        let JobAudit { job, tenants, counts, .. } = audit;
        metrics.of_job(job).audited(counts, at);
        let (expected, findings) = (counts.expected(), counts.findings());
        if let Some(failure) = audit.failures.first() {
            let (kind, message) = (failure.kind.as_str(), failure.message.as_str());
            warn!(
                %job, failure = kind, tenants_failed = audit.tenants_failed,
                "not all of job `{job}` could be compared with the database ({kind}): {message}"
            );
        }
        let Some(first) = audit.findings.first() else {
            debug!(%job, tenants, expected, "job `{job}` is as in the database: {audit}");
            return;
        };
        let [stale, missing, orphaned, wrong_ttl] = Kind::ALL.map(|kind| counts.of_kind(kind));
        let (key, kind) = (first.key.escape_debug(), first.wrong.kind.as_str());
        warn!(
            %job, tenants, expected, stale, missing, orphaned, wrong_ttl,
            "keys of job `{job}` are not as in the database, {findings} in all: {audit}; the first is \
             `{key}` ({kind})"
        );
    }
}

/// The verifier could not compare anything.
#[derive(Clone, Copy, Debug)]
pub struct AuditFailed<'a> {
    /// Why not.
    pub message: &'a str,
}

impl AuditFailed<'_> {
    /// Tells it, to the log only: what was measured before stands, and grows old.
    pub fn emit(self, _metrics: &Metrics) {
        let message = self.message;
        warn!("could not compare the cache with the database: {message}");
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
            "the scheduler has not rung for {silent_for:.1?}, though it was started anew: jobs run by \
             the watchdog; restart the worker"
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

/// The bell was silent, and was started anew.
#[derive(Clone, Copy, Debug)]
pub struct BellStartedAnew {
    /// For how long it was silent.
    pub silent_for: Duration,
}

impl BellStartedAnew {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let silent_for = self.silent_for;
        warn!(
            silent_for_ms = millis(silent_for),
            "the scheduler was silent for {silent_for:.1?} and is started anew: was the clock set back?"
        );
    }
}

/// The bell could not be started, or does not ring for the jobs there are.
#[derive(Clone, Copy, Debug)]
pub struct BellFailed<'a> {
    /// What happened.
    pub message: &'a str,
}

impl BellFailed<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let message = self.message;
        warn!("the scheduler fails, and the watchdog runs the jobs: {message}");
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
            "could not write the history; {} and runs go on: {message}",
            counted(buffered as u64, "run record waits", "run records wait")
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
        let records = counted(dropped, "run record was", "run records were");
        debug!(dropped, "{records} given up: the history is still away");
    }
}

/// Records could not be written until the worker had to end.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLost {
    /// How many.
    pub lost: u64,
}

impl HistoryLost {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let lost = self.lost;
        metrics.history_dropped.inc_by(lost);
        let records = counted(lost, "run record is", "run records are");
        warn!(lost, "{records} lost: the history could not be written before the end");
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
            "runs are kept in memory only: {reason}; hint: `preheat migrate` prints the SQL for an \
             administrator; or set `[history] enabled = false`"
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
        let records = counted(runs, "run record is", "run records are");
        debug!(runs, "{records} older than the retention and removed");
    }
}

/// A server is away at the worker's start, or away for another reason than before.
#[derive(Clone, Copy, Debug)]
pub struct ServerAwaited<'a> {
    /// What it is for.
    pub role: &'a str,
    /// Which of the two servers of runs it is, where it is one of them.
    pub server: Option<Server>,
    /// Why it could not be reached.
    pub message: &'a str,
}

impl ServerAwaited<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { role, server, message } = self;
        if let Some(server) = server {
            metrics.set_breaker(server, true);
        }
        warn!(
            server = role,
            "the worker waits for the {role} and tries again until it is there: {message}"
        );
    }
}

/// A server that was away at the worker's start is there.
#[derive(Clone, Copy, Debug)]
pub struct ServerReached<'a> {
    /// What it is for.
    pub role: &'a str,
    /// Which of the two servers of runs it is, where it is one of them.
    pub server: Option<Server>,
    /// Where it is.
    pub address: &'a str,
}

impl ServerReached<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { role, server, address } = self;
        if let Some(server) = server {
            metrics.set_breaker(server, false);
        }
        info!(server = role, "the {role} `{address}` is there");
    }
}

/// The worker works.
#[derive(Clone, Copy, Debug)]
pub struct WorkerStarted<'a> {
    /// Its version.
    pub version: &'a str,
    /// How many jobs it has.
    pub jobs: usize,
    /// Where HTTP is served.
    pub listen: SocketAddr,
}

impl WorkerStarted<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { version, jobs, listen } = self;
        let (address, with) = (listen.to_string(), counted(jobs as u64, "job", "jobs"));
        info!(version, jobs, address, "preheat {version} works, with {with}, on http://{listen}");
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
        let runs = counted(in_flight as u64, "is", "are");
        info!(in_flight, "the worker stops: no new runs, {runs} under way");
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
    /// How many of their files are rejected.
    pub rejected: usize,
}

impl JobsReloaded {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { jobs, rejected } = self;
        metrics.jobs_rejected.set(i64::from(rejected > 0));
        info!(
            jobs,
            rejected,
            "the job files were read again: {}",
            counted(jobs as u64, "job", "jobs")
        );
    }
}

/// The database refuses the queries of job files; told once for the same problems.
#[derive(Clone, Copy, Debug)]
pub struct QueriesRejected<'a> {
    /// All of them, as `check` shows them.
    pub problems: &'a str,
    /// Jobs that are held.
    pub held: usize,
    /// Jobs that go on by the last good version of their file.
    pub older: usize,
}

impl QueriesRejected<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { problems, held, older } = self;
        metrics.jobs_rejected.set(1);
        let (held_jobs, older_jobs) = (
            counted(held as u64, "job is", "jobs are"),
            counted(older as u64, "job goes", "jobs go"),
        );
        error!(
            held,
            older,
            "the database refuses queries of job files: {held_jobs} held, {older_jobs} on by the last \
             good version; they are tried again:\n{problems}"
        );
    }
}

/// The query of a job that was rejected works.
#[derive(Clone, Copy, Debug)]
pub struct QueryMended<'a> {
    /// The job.
    pub job: &'a JobName,
    /// Whether files are still rejected.
    pub others_rejected: bool,
}

impl QueryMended<'_> {
    /// Tells it.
    pub fn emit(self, metrics: &Metrics) {
        let Self { job, others_rejected } = self;
        metrics.jobs_rejected.set(i64::from(others_rejected));
        info!(%job, "the query of job `{job}` works: its file is in use");
    }
}

/// Queries could not be checked; the job files are in use as they are, and checked again.
#[derive(Clone, Copy, Debug)]
pub struct QueriesUnchecked<'a> {
    /// Of how many jobs.
    pub jobs: usize,
    /// Why not.
    pub message: &'a str,
}

impl QueriesUnchecked<'_> {
    /// Tells it, to the log only.
    pub fn emit(self, _metrics: &Metrics) {
        let Self { jobs, message } = self;
        let queries = counted(jobs as u64, "query", "queries");
        warn!(jobs, "{queries} could not be checked before use, and will be again: {message}");
    }
}

/// Some things: `1 job`, `6 jobs`.
fn counted(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use uuid::Uuid;

    use super::*;
    use crate::domain::report::{Report, TenantCounts};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log shows of what `emit` does.
    fn logged(emit: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_max_level(tracing::Level::DEBUG)
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, emit);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn job() -> JobName {
        JobName::parse("services").unwrap()
    }

    #[test]
    fn a_worker_says_where_it_listens() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 40_123));
        let started = WorkerStarted { version: "1.2.3", jobs: 6, listen };
        let line = logged(|| started.emit(&Metrics::new()));
        let message = "preheat 1.2.3 works, with 6 jobs, on http://127.0.0.1:40123";
        assert!(line.contains(message), "{line}");
        let line = logged(|| WorkerStarted { jobs: 1, ..started }.emit(&Metrics::new()));
        assert!(line.contains("with 1 job, on"), "{line}");
    }

    fn record(outcome: Outcome, failures: Vec<Failure>) -> RunRecord {
        let started_at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let failed = failures.len() as u64;
        RunRecord {
            id: crate::domain::run::RunId(Uuid::nil()),
            job: job(),
            trigger: Trigger::Schedule,
            outcome,
            due_at: started_at,
            started_at,
            finished_at: started_at + Duration::from_millis(1234),
            report: Report {
                tenants: TenantCounts { total: 4, ok: 4 - failed, failed, fenced: 0 },
                keys: KeyCounts { written: 7, removed: 0, failed, fenced: 0 },
                bytes: 2048,
                queries: 3,
                failures,
                ..Report::default()
            },
            replica: "here".to_owned(),
            version: "0".to_owned(),
        }
    }

    fn broken() -> Failure {
        Failure {
            kind: FailureKind::Query,
            tenant: Some("a\nb".to_owned()),
            key: None,
            message: "division by zero".to_owned(),
            count: 1,
        }
    }

    #[test]
    fn a_run_that_ended_ok_moves_its_last_success_and_reads_alone() {
        let metrics = Metrics::new();
        let ok = record(Outcome::Ok, vec![]);
        let line =
            logged(|| RunFinished { record: &ok, all_tenants: true, kept: true }.emit(&metrics));
        insta::assert_snapshot!(line, @r#"
         INFO job `services` ended ok after 1.2s: 4 of 4 tenants warm, 7 keys and 2048 bytes written job=services run=00000000-0000-0000-0000-000000000000 trigger="schedule" outcome="ok" duration_ms=1234 tenants=4 tenants_failed=0 tenants_fenced=0 keys=7 keys_failed=0 bytes=2048 queries=3 retries=0
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_total{job=\"services\",trigger=\"schedule\",outcome=\"ok\"} 1\n",
            "preheat_last_success_timestamp_seconds{job=\"services\"} 1700000001.234\n",
            "preheat_run_duration_seconds_sum{job=\"services\"} 1.234\n",
            "preheat_tenants_total{job=\"services\",outcome=\"ok\"} 4\n",
            "preheat_keys_total{job=\"services\",outcome=\"written\"} 7\n",
            "preheat_bytes_total{job=\"services\"} 2048\n",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
    }

    #[test]
    fn hazard_27_a_partial_run_warns_names_the_tenant_and_is_no_success() {
        let metrics = Metrics::new();
        let partial = record(Outcome::Partial, vec![broken()]);
        let line = logged(|| {
            RunFinished { record: &partial, all_tenants: true, kept: true }.emit(&metrics);
        });
        insta::assert_snapshot!(line, @r#"
         WARN job `services` ended partial after 1.2s: 3 of 4 tenants warm, 7 keys and 2048 bytes written; first failure (query), tenant `a\nb`: division by zero job=services run=00000000-0000-0000-0000-000000000000 trigger="schedule" outcome="partial" duration_ms=1234 tenants=4 tenants_failed=1 tenants_fenced=0 keys=7 keys_failed=1 bytes=2048 queries=3 retries=0 failure="query" tenant="a\nb"
        "#);
        let page = metrics.encode();
        assert!(page.contains("preheat_last_run_timestamp_seconds{job=\"services\"} 1700000001."));
        assert!(!page.contains("preheat_last_success_timestamp_seconds{job=\"services\"}"));
    }

    #[test]
    fn one_of_many_runs_for_changes_is_counted_and_told_to_those_who_look_closely() {
        let metrics = Metrics::new();
        let mut record = record(Outcome::Ok, vec![]);
        record.trigger = Trigger::Change;
        record.report.tenants = TenantCounts { total: 4, ok: 3, failed: 0, fenced: 1 };
        record.report.keys.fenced = 2;
        let lags = [Duration::from_millis(30), Duration::from_millis(20)];
        let lines = logged(|| {
            RunFinished { record: &record, all_tenants: false, kept: false }.emit(&metrics);
            ChangesSettled { job: &record.job, lags: &lags }.emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
        DEBUG job `services` ended ok after 1.2s: 3 of 4 tenants warm, 7 keys and 2048 bytes written; the data of 1 kept changing job=services run=00000000-0000-0000-0000-000000000000 trigger="change" outcome="ok" duration_ms=1234 tenants=4 tenants_failed=0 tenants_fenced=1 keys=7 keys_failed=0 bytes=2048 queries=3 retries=0
        DEBUG 2 changes are warm again in job `services` job=services tenants=2 lag_ms=30
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_total{job=\"services\",trigger=\"change\",outcome=\"ok\"} 1\n",
            "preheat_tenants_total{job=\"services\",outcome=\"fenced\"} 1\n",
            "preheat_keys_total{job=\"services\",outcome=\"fenced\"} 2\n",
            "preheat_change_lag_seconds_count 2\n",
            "preheat_change_lag_seconds_sum 0.05\n",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
    }

    #[test]
    fn a_run_for_some_tenants_says_nothing_about_the_whole_job() {
        let metrics = Metrics::new();
        let ok = record(Outcome::Ok, vec![]);
        RunFinished { record: &ok, all_tenants: false, kept: true }.emit(&metrics);
        let page = metrics.encode();
        assert!(page.contains("preheat_runs_total{job=\"services\""));
        assert!(!page.contains("preheat_last_success_timestamp_seconds{job=\"services\"}"));
    }

    #[test]
    fn levels_follow_who_must_act() {
        let metrics = Metrics::new();
        let cases = [
            (Outcome::Ok, "INFO"),
            (Outcome::Partial, "WARN"),
            (Outcome::Timeout, "WARN"),
            (Outcome::Cancelled, "WARN"),
            (Outcome::Failed, "ERROR"),
        ];
        for (outcome, level) in cases {
            let ended = record(outcome, vec![]);
            let line = logged(|| {
                RunFinished { record: &ended, all_tenants: true, kept: true }.emit(&metrics);
            });
            assert_eq!(line.trim_start().split(' ').next(), Some(level), "{line}");
        }
    }

    #[test]
    fn hazard_16_a_run_that_came_too_late_says_so() {
        let metrics = Metrics::new();
        let mut late = record(Outcome::Ok, vec![]);
        late.report.late = true;
        let lines =
            logged(|| RunFinished { record: &late, all_tenants: true, kept: true }.emit(&metrics));
        assert!(lines.contains("WARN job `services` was late: keys may have expired"), "{lines}");
    }

    #[test]
    fn each_state_that_comes_and_goes_is_a_gauge() {
        let metrics = Metrics::new();
        let shows = |line: &str| metrics.encode().contains(line);
        BreakerChanged { server: Server::Cache, open: true, message: "refused" }.emit(&metrics);
        SchedulerSilent { silent_for: Duration::from_secs(12) }.emit(&metrics);
        JobsRejected { problems: "jobs/a.toml: …" }.emit(&metrics);
        assert!(shows("preheat_breaker_open{server=\"cache\"} 1\n"));
        assert!(shows("preheat_scheduler_silent 1\n"));
        assert!(shows("preheat_jobs_rejected 1\n"));
        CacheRestarted.emit(&metrics);
        assert!(shows("preheat_cache_restarts_total 1\n"));
        CacheEmptied.emit(&metrics);
        assert!(shows("preheat_cache_flushes_total 1\n"));
        FeedConnected.emit(&metrics);
        assert!(shows("preheat_change_feed_connected 1\n"));
        FeedLost { message: "refused" }.emit(&metrics);
        assert!(shows("preheat_change_feed_connected 0\n"));
        BreakerChanged { server: Server::Cache, open: false, message: "it answers" }.emit(&metrics);
        SchedulerBack.emit(&metrics);
        JobsReloaded { jobs: 6, rejected: 0 }.emit(&metrics);
        assert!(shows("preheat_breaker_open{server=\"cache\"} 0\n"));
        assert!(shows("preheat_scheduler_silent 0\n"));
        assert!(shows("preheat_jobs_rejected 0\n"));
    }

    #[test]
    fn keys_of_tenants_that_are_gone_are_counted_and_said() {
        let metrics = Metrics::new();
        let removed = BTreeMap::from([(job(), 7), (JobName::parse("slots").unwrap(), 2)]);
        let lines = logged(|| {
            TenantsSwept { newly: 3, again: 1, removed: &removed }.emit(&metrics);
            TenantsSwept { newly: 0, again: 4, removed: &removed }.emit(&metrics);
            TenantsSwept { newly: 0, again: 4, removed: &BTreeMap::new() }.emit(&metrics);
            SweepIncomplete { message: "connection refused" }.emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
         INFO tenants that are not active any more since the last list: 3; 9 keys of theirs are removed newly=3 again=1 keys=9
         INFO removed 9 keys that runs with an older tenant list wrote of tenants that are not active any more again=4 keys=9
        DEBUG no run wrote keys of tenants that are not active any more again=4
         WARN could not remove all keys of tenants that are not active any more; the next tenant list will: connection refused
        "#);
        let page = metrics.encode();
        assert!(page.contains("preheat_keys_total{job=\"services\",outcome=\"removed\"} 14\n"));
        assert!(page.contains("preheat_keys_total{job=\"slots\",outcome=\"removed\"} 4\n"));
    }

    #[test]
    fn a_finding_of_the_verifier_is_named_by_its_key_and_no_value_is_told() {
        use crate::domain::audit::{Differences, Finding, Held, Measure, judge};
        let rows = crate::domain::row::Rows::default();
        let shape = crate::domain::job::Shape::List;
        let expected = crate::domain::entry::Value::new(&rows, Vec::new(), shape);
        let measure = Measure { ttl: Duration::from_mins(30), differences: 3 };
        let wrong = judge(Some(&expected), Held::Value(b"[\"secret\"]", None), measure).unwrap();
        assert_ne!(wrong.differences, Differences::default());
        let mut audit = JobAudit::new(job(), true);
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let metrics = Metrics::new();
        let line = logged(|| AuditFinished { audit: &audit, at }.emit(&metrics));
        assert!(line.trim_start().starts_with("DEBUG"), "all is well: {line}");
        let finding = Finding { key: "services:a\nb".to_owned(), tenant: None, wrong };
        audit.find(finding, Duration::ZERO);
        let line = logged(|| AuditFinished { audit: &audit, at }.emit(&metrics));
        insta::assert_snapshot!(line, @r"
         WARN keys of job `services` are not as in the database, 1 in all: 0 % consistent within 60s; the first is `services:a\nb` (stale) job=services tenants=0 expected=1 stale=1 missing=0 orphaned=0 wrong_ttl=0
        ");
        let series = "preheat_audit_findings{job=\"services\",kind=\"stale\"} 1\n";
        assert!(metrics.encode().contains(series), "{}", metrics.encode());
        let line = logged(|| AuditFailed { message: "no connection" }.emit(&metrics));
        assert_eq!(
            line.trim(),
            "WARN could not compare the cache with the database: no connection"
        );
    }

    #[test]
    fn what_is_skipped_retried_or_dropped_is_counted_and_said() {
        let metrics = Metrics::new();
        let job = job();
        let run = crate::domain::run::RunId(Uuid::nil());
        let lines = logged(|| {
            RunSkipped { job: &job, reason: SkipReason::Overlap }.emit(&metrics);
            BatchRetried {
                job: &job,
                run,
                tenants: 100,
                retry: 1,
                wait: Duration::from_millis(80),
                kind: FailureKind::DatabaseUnavailable,
                message: "connection refused",
            }
            .emit(&metrics);
            HistoryUnavailable { message: "disk full", buffered: 5, dropped: 2 }.emit(&metrics);
            HistoryDropped { dropped: 3 }.emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
         WARN a run of job `services` is skipped: its last run is still going job=services reason="overlap"
         WARN a batch of job `services` failed and is tried again in 80.0ms: connection refused job=services run=00000000-0000-0000-0000-000000000000 tenants=100 retry=1 wait_ms=80 failure="database_unavailable"
         WARN could not write the history; 5 run records wait and runs go on: disk full buffered=5 dropped=2
        DEBUG 3 run records were given up: the history is still away dropped=3
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_skipped_total{job=\"services\",reason=\"overlap\"} 1\n",
            "preheat_batch_retries_total{job=\"services\"} 1\n",
            "preheat_history_dropped_total 5\n",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
    }
}
