//! Every metric: its name, help and labels, declared once. Labels are bounded: a job is one, a
//! tenant never.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Utc};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder, text,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::event::{Server, SkipReason};
use crate::domain::audit::{self, AuditCounts};
use crate::domain::job::JobName;
use crate::domain::report::{KeyCounts, TenantCounts};
use crate::domain::run::{Outcome, Trigger};

/// What is declared of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// Its name, as it is scraped.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it counts, without a full stop.
    pub help: &'static str,
}

/// A metric's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts observations by size.
    Histogram,
}

impl Kind {
    /// Its name in the exposition formats.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// How many there are.
const COUNT: usize = 32;

/// All of them, in the order of the documentation.
pub const DECLARED: [&Declaration; COUNT] = [
    &RUNS,
    &RUN_DURATION,
    &LAST_SUCCESS,
    &LAST_RUN,
    &NEXT_RUN,
    &FIRE_LAG,
    &RUNS_SKIPPED,
    &TENANTS,
    &KEYS,
    &BYTES,
    &COVERAGE,
    &CONSISTENCY,
    &AUDIT_FINDINGS,
    &LAST_AUDIT,
    &CHANGE_LAG,
    &CHANGE_NOTIFICATIONS,
    &CHANGE_FEED_CONNECTED,
    &CHANGE_FEED_LACKING,
    &BATCH_RETRIES,
    &BREAKER_OPEN,
    &PERMITS,
    &DB_CONNECTIONS,
    &CACHE_HITS,
    &CACHE_MISSES,
    &CACHE_EVICTED,
    &CACHE_RESTARTS,
    &CACHE_FLUSHES,
    &SEVERAL_CACHES,
    &HISTORY_DROPPED,
    &JOBS_REJECTED,
    &SCHEDULER_SILENT,
    &BUILD_INFO,
];

const RUNS: Declaration = Declaration {
    name: "preheat_runs_total",
    kind: Kind::Counter,
    labels: &["job", "trigger", "outcome"],
    help: "Runs that ended, by why they started and how they ended",
};
const RUN_DURATION: Declaration = Declaration {
    name: "preheat_run_duration_seconds",
    kind: Kind::Histogram,
    labels: &["job"],
    help: "How long runs took, from their start to their end",
};
const LAST_SUCCESS: Declaration = Declaration {
    name: "preheat_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "When a run over all tenants last ended `ok`, as a Unix time; 0 before the first",
};
const LAST_RUN: Declaration = Declaration {
    name: "preheat_last_run_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "When a run last ended, however it ended, as a Unix time; 0 before the first",
};
const NEXT_RUN: Declaration = Declaration {
    name: "preheat_next_run_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "When the job is due next, as a Unix time; 0 where it is disabled or never due again",
};
const FIRE_LAG: Declaration = Declaration {
    name: "preheat_fire_lag_seconds",
    kind: Kind::Histogram,
    labels: &["job"],
    help: "How long after their due time scheduled runs started",
};
const RUNS_SKIPPED: Declaration = Declaration {
    name: "preheat_runs_skipped_total",
    kind: Kind::Counter,
    labels: &["job", "reason"],
    help: "Runs that were due or asked for and did not happen, by reason",
};
const TENANTS: Declaration = Declaration {
    name: "preheat_tenants_total",
    kind: Kind::Counter,
    labels: &["job", "outcome"],
    help: "Tenants that runs came to: `ok` where all their keys were written, `fenced` where their \
           data kept changing and they are warmed again, else `failed`",
};
const KEYS: Declaration = Declaration {
    name: "preheat_keys_total",
    kind: Kind::Counter,
    labels: &["job", "outcome"],
    help: "Keys by what became of them",
};
const BYTES: Declaration = Declaration {
    name: "preheat_bytes_total",
    kind: Kind::Counter,
    labels: &["job"],
    help: "Bytes of the values that were written",
};
const COVERAGE: Declaration = Declaration {
    name: "preheat_coverage_ratio",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "Share of some keys of the active tenants that were in the cache when they were last looked for, \
           every thirty seconds; absent until the tenants are known",
};
const CONSISTENCY: Declaration = Declaration {
    name: "preheat_consistency_ratio",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "Share of the keys that the verifier expected whose value was the database's; absent until \
           it was measured",
};
const AUDIT_FINDINGS: Declaration = Declaration {
    name: "preheat_audit_findings",
    kind: Kind::Gauge,
    labels: &["job", "kind"],
    help: "Keys of the verifier's last sample with which something was wrong for a minute, by what; \
           absent until it was measured",
};
const LAST_AUDIT: Declaration = Declaration {
    name: "preheat_last_audit_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "When the verifier last compared the job, as a Unix time; absent before the first time",
};
const CHANGE_LAG: Declaration = Declaration {
    name: "preheat_change_lag_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "Time from hearing of a tenant's change to its keys being warm again, in one job",
};
const CHANGE_NOTIFICATIONS: Declaration = Declaration {
    name: "preheat_change_notifications_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Notifications of changes that were heard of",
};
const CHANGE_FEED_CONNECTED: Declaration = Declaration {
    name: "preheat_change_feed_connected",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while every change of the jobs' tables is heard of, else 0: where the worker does not \
           listen, and where a table lacks its triggers",
};
const CHANGE_FEED_LACKING: Declaration = Declaration {
    name: "preheat_change_feed_tables_without_triggers",
    kind: Kind::Gauge,
    labels: &[],
    help: "Tables of the jobs that lack triggers of the change feed, or have them switched off; \
           `preheat changes install` makes them",
};
const BATCH_RETRIES: Declaration = Declaration {
    name: "preheat_batch_retries_total",
    kind: Kind::Counter,
    labels: &["job"],
    help: "Batches that were tried again after a failure that may pass",
};
const BREAKER_OPEN: Declaration = Declaration {
    name: "preheat_breaker_open",
    kind: Kind::Gauge,
    labels: &["server"],
    help: "1 while the `database` or the `cache` counts as down and is left alone but for single \
           tries, or is waited for at the start, else 0",
};
const PERMITS: Declaration = Declaration {
    name: "preheat_permits",
    kind: Kind::Gauge,
    labels: &["job"],
    help: "Permits to have a batch in flight that the job holds now",
};
const DB_CONNECTIONS: Declaration = Declaration {
    name: "preheat_db_connections",
    kind: Kind::Gauge,
    labels: &["state"],
    help: "Connections to the database: open and `idle`, `in_use`, and the `max` allowed; absent until \
           the servers were reached",
};
const CACHE_HITS: Declaration = Declaration {
    name: "preheat_cache_hits_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Reads of anybody that found their key: the cache server's own counter; \
           absent until the server told it",
};
const CACHE_MISSES: Declaration = Declaration {
    name: "preheat_cache_misses_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Reads of anybody that did not find their key: the cache server's own counter; \
           absent until the server told it",
};
const CACHE_EVICTED: Declaration = Declaration {
    name: "preheat_cache_evicted_keys_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Keys of anybody that the cache pushed out for want of memory: the cache server's own counter; \
           absent until the server told it",
};
const CACHE_FLUSHES: Declaration = Declaration {
    name: "preheat_cache_flushes_total",
    kind: Kind::Counter,
    labels: &[],
    help: "How often the cache was emptied without a restart (FLUSHALL, FLUSHDB) and every job ran once \
           for it",
};
const CACHE_RESTARTS: Declaration = Declaration {
    name: "preheat_cache_restarts_total",
    kind: Kind::Counter,
    labels: &[],
    help: "How often the cache server was another process than before (restarted, failed over, replaced) \
           and every job ran once for it",
};
const SEVERAL_CACHES: Declaration = Declaration {
    name: "preheat_cache_several_servers",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while several servers answer behind the cache's address, so that no change of the server is \
           answered with a run of every job, else 0",
};
const HISTORY_DROPPED: Declaration = Declaration {
    name: "preheat_history_dropped_total",
    kind: Kind::Counter,
    labels: &[],
    help: "Run records that were given up, as the history could not be written for too long",
};
const JOBS_REJECTED: Declaration = Declaration {
    name: "preheat_jobs_rejected",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while job files on disk have problems and are not in use as they are, else 0",
};
const SCHEDULER_SILENT: Declaration = Declaration {
    name: "preheat_scheduler_silent",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while the scheduler does not ring and the watchdog wakes the jobs, else 0",
};
const BUILD_INFO: Declaration = Declaration {
    name: "preheat_build_info",
    kind: Kind::Gauge,
    labels: &["version"],
    help: "1, with what is running as labels",
};

/// What becomes of a tenant in a run; the label of `preheat_tenants_total`.
const TENANT_OUTCOMES: [&str; 3] = ["ok", "failed", "fenced"];
/// What becomes of a key in a run; the label of `preheat_keys_total`.
const KEY_OUTCOMES: [&str; 4] = ["written", "removed", "failed", "fenced"];

/// From a job of one small tenant to one that nearly fills an hour, in seconds.
const DURATION_BUCKETS: [f64; 15] =
    [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
/// The scheduler looks twice a second: up to about a second is usual, more is a queue or a stall.
const LAG_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A change is in the cache within milliseconds; what takes seconds waits for a server, or keeps
/// changing.
const CHANGE_LAG_BUCKETS: [f64; 13] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// The metrics of one worker.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Whose series stand.
    jobs: Mutex<BTreeSet<JobName>>,
    runs: Family<OfRun, Counter>,
    run_duration: Family<OfJob, Histogram, fn() -> Histogram>,
    last_success: Family<OfJob, Seconds>,
    last_run: Family<OfJob, Seconds>,
    next_run: Family<OfJob, Seconds>,
    fire_lag: Family<OfJob, Histogram, fn() -> Histogram>,
    runs_skipped: Family<OfReason, Counter>,
    tenants: Family<OfOutcome, Counter>,
    keys: Family<OfOutcome, Counter>,
    bytes: Family<OfJob, Counter>,
    coverage: Family<OfJob, Ratio>,
    consistency: Family<OfJob, Ratio>,
    audit_findings: Family<OfKind, Gauge>,
    last_audit: Family<OfJob, Seconds>,
    change_lag: Histogram,
    pub(super) notifications: Counter,
    feed: Mutex<FeedState>,
    feed_connected: Gauge,
    feed_lacking: Gauge,
    batch_retries: Family<OfJob, Counter>,
    breaker_open: Family<OfServer, Gauge>,
    permits: Family<OfJob, Gauge>,
    db_connections: Family<OfState, Gauge>,
    cache: Arc<CacheCounters>,
    pub(super) cache_restarts: Counter,
    pub(super) cache_flushes: Counter,
    pub(super) several_caches: Gauge,
    pub(super) history_dropped: Counter,
    pub(super) jobs_rejected: Gauge,
    pub(super) scheduler_silent: Gauge,
    build_info: Family<OfBuild, Gauge>,
}

/// What the gauges of the change feed are made from.
#[derive(Debug, Default)]
struct FeedState {
    listens: bool,
    lacking: usize,
}

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Ratio = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    job: JobName,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRun {
    job: JobName,
    trigger: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    job: JobName,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    job: JobName,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    job: JobName,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfServer {
    server: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBuild {
    version: &'static str,
}

impl EncodeLabelValue for JobName {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl Metrics {
    /// All metrics; those without a job stand at once.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::default(),
            jobs: Mutex::default(),
            runs: Family::default(),
            run_duration: Family::new_with_constructor(durations),
            last_success: Family::default(),
            last_run: Family::default(),
            next_run: Family::default(),
            fire_lag: Family::new_with_constructor(lags),
            runs_skipped: Family::default(),
            tenants: Family::default(),
            keys: Family::default(),
            bytes: Family::default(),
            coverage: Family::default(),
            consistency: Family::default(),
            audit_findings: Family::default(),
            last_audit: Family::default(),
            change_lag: Histogram::new(CHANGE_LAG_BUCKETS),
            notifications: Counter::default(),
            feed: Mutex::default(),
            feed_connected: Gauge::default(),
            feed_lacking: Gauge::default(),
            batch_retries: Family::default(),
            breaker_open: Family::default(),
            permits: Family::default(),
            db_connections: Family::default(),
            cache: Arc::default(),
            cache_restarts: Counter::default(),
            cache_flushes: Counter::default(),
            several_caches: Gauge::default(),
            history_dropped: Counter::default(),
            jobs_rejected: Gauge::default(),
            scheduler_silent: Gauge::default(),
            build_info: Family::default(),
        };
        metrics.register();
        for server in Server::ALL {
            metrics.set_breaker(server, false);
        }
        metrics.build_info.get_or_create(&OfBuild { version: env!("CARGO_PKG_VERSION") }).set(1);
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let mut registry = Registry::default();
        let to = &mut registry;
        declare(to, &RUNS, &self.runs);
        declare(to, &RUN_DURATION, &self.run_duration);
        declare(to, &LAST_SUCCESS, &self.last_success);
        declare(to, &LAST_RUN, &self.last_run);
        declare(to, &NEXT_RUN, &self.next_run);
        declare(to, &FIRE_LAG, &self.fire_lag);
        declare(to, &RUNS_SKIPPED, &self.runs_skipped);
        declare(to, &TENANTS, &self.tenants);
        declare(to, &KEYS, &self.keys);
        declare(to, &BYTES, &self.bytes);
        declare(to, &COVERAGE, &self.coverage);
        declare(to, &CONSISTENCY, &self.consistency);
        declare(to, &AUDIT_FINDINGS, &self.audit_findings);
        declare(to, &LAST_AUDIT, &self.last_audit);
        declare(to, &CHANGE_LAG, &self.change_lag);
        declare(to, &CHANGE_NOTIFICATIONS, &self.notifications);
        declare(to, &CHANGE_FEED_CONNECTED, &self.feed_connected);
        declare(to, &CHANGE_FEED_LACKING, &self.feed_lacking);
        declare(to, &BATCH_RETRIES, &self.batch_retries);
        declare(to, &BREAKER_OPEN, &self.breaker_open);
        declare(to, &PERMITS, &self.permits);
        declare(to, &DB_CONNECTIONS, &self.db_connections);
        to.register_collector(Box::new(Arc::clone(&self.cache)));
        declare(to, &CACHE_RESTARTS, &self.cache_restarts);
        declare(to, &CACHE_FLUSHES, &self.cache_flushes);
        declare(to, &SEVERAL_CACHES, &self.several_caches);
        declare(to, &HISTORY_DROPPED, &self.history_dropped);
        declare(to, &JOBS_REJECTED, &self.jobs_rejected);
        declare(to, &SCHEDULER_SILENT, &self.scheduler_silent);
        declare(to, &BUILD_INFO, &self.build_info);
        self.registry = registry;
    }

    /// These are the jobs now. Each one's series stand from here on, with 0 until something
    /// happens. Of a job that is gone the gauges go, since an alert on its last success would never
    /// end; its counters stay, as they counted what happened.
    pub fn register_jobs<'a>(&self, names: impl Iterator<Item = &'a JobName>) {
        let now: BTreeSet<_> = names.cloned().collect();
        let mut known = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(&now) {
            self.remove_gauges(gone);
        }
        for job in &now {
            self.create_series(job);
        }
        *known = now;
    }

    fn create_series(&self, job: &JobName) {
        for trigger in Trigger::ALL {
            for outcome in Outcome::ALL {
                self.run_count(job, trigger, outcome, 0);
            }
        }
        for reason in SkipReason::ALL {
            self.skipped(job, reason, 0);
        }
        for outcome in TENANT_OUTCOMES {
            drop(self.tenants.get_or_create(&OfOutcome { job: job.clone(), outcome }));
        }
        for outcome in KEY_OUTCOMES {
            drop(self.keys.get_or_create(&OfOutcome { job: job.clone(), outcome }));
        }
        let job = OfJob { job: job.clone() };
        drop(self.run_duration.get_or_create(&job));
        drop(self.last_success.get_or_create(&job));
        drop(self.last_run.get_or_create(&job));
        drop(self.next_run.get_or_create(&job));
        drop(self.fire_lag.get_or_create(&job));
        drop(self.bytes.get_or_create(&job));
        drop(self.batch_retries.get_or_create(&job));
        drop(self.permits.get_or_create(&job));
    }

    fn remove_gauges(&self, job: &JobName) {
        for kind in audit::Kind::ALL.map(audit::Kind::as_str) {
            self.audit_findings.remove(&OfKind { job: job.clone(), kind });
        }
        let job = OfJob { job: job.clone() };
        self.last_audit.remove(&job);
        self.last_success.remove(&job);
        self.last_run.remove(&job);
        self.next_run.remove(&job);
        self.coverage.remove(&job);
        self.consistency.remove(&job);
        self.permits.remove(&job);
    }

    /// The connections to the database at this moment.
    pub fn set_db_connections(&self, idle: u32, in_use: u32, max: u32) {
        for (state, count) in [("idle", idle), ("in_use", in_use), ("max", max)] {
            self.db_connections.get_or_create(&OfState { state }).set(i64::from(count));
        }
    }

    /// The permits that jobs hold at this moment; a job that is not among them holds none.
    pub fn set_permits(&self, held: &BTreeMap<JobName, u32>) {
        for job in self.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let permits = held.get(job).copied().unwrap_or_default();
            self.permits.get_or_create(&OfJob { job: job.clone() }).set(permits.into());
        }
    }

    /// Whether the change feed listens.
    pub(super) fn set_feed_listens(&self, listens: bool) {
        self.set_feed(|feed| feed.listens = listens);
    }

    /// How many tables lack triggers of the change feed.
    pub fn set_feed_lacking(&self, tables: usize) {
        self.set_feed(|feed| feed.lacking = tables);
    }

    fn set_feed(&self, change: impl FnOnce(&mut FeedState)) {
        let mut feed = self.feed.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut feed);
        let FeedState { listens, lacking } = *feed;
        self.feed_connected.set(i64::from(listens && lacking == 0));
        self.feed_lacking.set(i64::try_from(lacking).unwrap_or(i64::MAX));
    }

    /// The cache server's own counters. They start again when the server does.
    pub fn set_cache_counters(&self, stats: CacheCounts) {
        *self.cache.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(stats);
    }

    /// In the Prometheus text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        for line in self.encode_openmetrics().lines() {
            if line == "# EOF" {
                continue;
            }
            page.push_str(&comment_with_full_name(line));
            page.push('\n');
        }
        page
    }

    /// In the OpenMetrics text format, version 1.0.0.
    pub fn encode_openmetrics(&self) -> String {
        let mut page = String::new();
        if text::encode(&mut page, &self.registry).is_err() {
            // Writing to a string cannot fail, and no metric's own encoding does.
            page.clear();
        }
        page
    }

    pub(super) fn set_breaker(&self, server: Server, open: bool) {
        let server = server.as_str();
        self.breaker_open.get_or_create(&OfServer { server }).set(i64::from(open));
    }

    pub(super) fn run_count(&self, job: &JobName, trigger: Trigger, outcome: Outcome, add: u64) {
        let (trigger, outcome) = (trigger.as_str(), outcome.as_str());
        self.runs.get_or_create(&OfRun { job: job.clone(), trigger, outcome }).inc_by(add);
    }

    pub(super) fn skipped(&self, job: &JobName, reason: SkipReason, add: u64) {
        let reason = reason.as_str();
        self.runs_skipped.get_or_create(&OfReason { job: job.clone(), reason }).inc_by(add);
    }

    pub(super) fn change_settled(&self, lag: std::time::Duration) {
        self.change_lag.observe(lag.as_secs_f64());
    }

    pub(super) fn of_job(&self, job: &JobName) -> JobMetrics<'_> {
        JobMetrics { metrics: self, label: OfJob { job: job.clone() } }
    }
}

/// The metrics of one job.
pub(super) struct JobMetrics<'a> {
    metrics: &'a Metrics,
    label: OfJob,
}

impl JobMetrics<'_> {
    pub(super) fn ended(&self, at: DateTime<Utc>, duration: std::time::Duration) {
        self.metrics.last_run.get_or_create(&self.label).set(unix_seconds(at));
        self.metrics.run_duration.get_or_create(&self.label).observe(duration.as_secs_f64());
    }

    pub(super) fn succeeded(&self, at: DateTime<Utc>) {
        self.metrics.last_success.get_or_create(&self.label).set(unix_seconds(at));
    }

    pub(super) fn due(&self, at: Option<DateTime<Utc>>) {
        self.metrics.next_run.get_or_create(&self.label).set(at.map_or(0.0, unix_seconds));
    }

    pub(super) fn fired(&self, lag: std::time::Duration) {
        self.metrics.fire_lag.get_or_create(&self.label).observe(lag.as_secs_f64());
    }

    /// This share of the keys that were looked for was there; none where it is not known.
    pub(super) fn covered(&self, share: Option<f64>) {
        match share {
            Some(share) => drop(self.metrics.coverage.get_or_create(&self.label).set(share)),
            None => drop(self.metrics.coverage.remove(&self.label)),
        }
    }

    /// The verifier compared some tenants. Of no key there is no share.
    pub(super) fn audited(&self, counts: &AuditCounts, at: DateTime<Utc>) {
        let metrics = self.metrics;
        metrics.last_audit.get_or_create(&self.label).set(unix_seconds(at));
        for kind in audit::Kind::ALL {
            let label = OfKind { job: self.label.job.clone(), kind: kind.as_str() };
            let count = i64::try_from(counts.of_kind(kind)).unwrap_or(i64::MAX);
            metrics.audit_findings.get_or_create(&label).set(count);
        }
        if let Some(consistency) = counts.consistency() {
            metrics.consistency.get_or_create(&self.label).set(consistency);
        }
    }

    pub(super) fn retried(&self) {
        self.metrics.batch_retries.get_or_create(&self.label).inc();
    }

    pub(super) fn wrote(&self, bytes: u64) {
        self.metrics.bytes.get_or_create(&self.label).inc_by(bytes);
    }

    pub(super) fn tenants(&self, counts: TenantCounts) {
        let TenantCounts { total: _, ok, failed, fenced } = counts;
        for (outcome, count) in TENANT_OUTCOMES.into_iter().zip([ok, failed, fenced]) {
            let label = OfOutcome { job: self.label.job.clone(), outcome };
            self.metrics.tenants.get_or_create(&label).inc_by(count);
        }
    }

    pub(super) fn removed(&self, keys: u64) {
        let label = OfOutcome { job: self.label.job.clone(), outcome: "removed" };
        self.metrics.keys.get_or_create(&label).inc_by(keys);
    }

    pub(super) fn keys(&self, counts: KeyCounts) {
        let KeyCounts { written, removed, failed, fenced } = counts;
        for (outcome, count) in KEY_OUTCOMES.into_iter().zip([written, removed, failed, fenced]) {
            let label = OfOutcome { job: self.label.job.clone(), outcome };
            self.metrics.keys.get_or_create(&label).inc_by(count);
        }
    }
}

/// What the cache server counted, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Keys pushed out for want of memory.
    pub evicted: u64,
}

/// The cache server's counters are not ours to count: each scrape shows what the server said last.
#[derive(Debug, Default)]
struct CacheCounters {
    latest: Mutex<Option<CacheCounts>>,
}

impl Collector for CacheCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let latest = *self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(CacheCounts { hits, misses, evicted }) = latest else { return Ok(()) };
        let counters = [(&CACHE_HITS, hits), (&CACHE_MISSES, misses), (&CACHE_EVICTED, evicted)];
        for (declared, value) in counters {
            let counter = ConstCounter::new(value);
            // The registry adds this full stop itself to what it is given.
            let help = format!("{}.", declared.help);
            let kind = counter.metric_type();
            counter.encode(encoder.encode_descriptor(stem(declared), &help, None, kind)?)?;
        }
        Ok(())
    }
}

fn declare(registry: &mut Registry, declared: &Declaration, metric: &(impl Metric + Clone)) {
    registry.register(stem(declared), declared.help, metric.clone());
}

/// The name without the suffix that the encoder adds.
fn stem(declared: &Declaration) -> &'static str {
    match declared.kind {
        Kind::Counter => declared.name.strip_suffix("_total").unwrap_or(declared.name),
        Kind::Gauge | Kind::Histogram => declared.name,
    }
}

/// The one difference between the formats that concerns these metrics: OpenMetrics describes a
/// counter without its `_total`, the older format with it.
fn comment_with_full_name(line: &str) -> std::borrow::Cow<'_, str> {
    let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
        let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
        let counter =
            DECLARED.iter().find(|known| known.kind == Kind::Counter && stem(known) == name)?;
        Some(format!("{start}{} {rest}", counter.name))
    });
    comment.map_or(std::borrow::Cow::Borrowed(line), std::borrow::Cow::Owned)
}

fn durations() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

fn lags() -> Histogram {
    Histogram::new(LAG_BUCKETS)
}

#[expect(clippy::cast_precision_loss, reason = "a Unix time in milliseconds is far below 2^53")]
fn unix_seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::observe::event::{CoverageMeasured, NextRun, RunStarted};

    fn job(name: &str) -> JobName {
        JobName::parse(name).unwrap()
    }

    fn filled() -> Arc<Metrics> {
        let metrics = Metrics::new();
        metrics.register_jobs([job("services"), job("slots")].iter());
        metrics.set_cache_counters(CacheCounts { hits: 12, misses: 3, evicted: 5 });
        metrics.set_db_connections(1, 2, 4);
        let mut counts = AuditCounts { stale: 1, ..AuditCounts::default() };
        counts.equal(Duration::ZERO);
        metrics.of_job(&job("slots")).audited(&counts, DateTime::UNIX_EPOCH);
        metrics.of_job(&job("slots")).covered(Some(0.5));
        metrics
    }

    /// The value of one sample, by its full name with labels.
    fn sample(page: &str, series: &str) -> Option<f64> {
        let line = page.lines().find(|line| line.rsplit_once(' ').is_some_and(|l| l.0 == series));
        line.and_then(|line| line.rsplit_once(' ')).map(|(_, value)| value.parse().unwrap())
    }

    #[test]
    fn each_metric_is_scraped_under_its_declared_name_with_its_type_help_and_labels() {
        let page = filled().encode();
        for declared in DECLARED {
            let Declaration { name, kind, labels, help } = declared;
            let kind = kind.as_str();
            assert!(page.contains(&format!("# HELP {name} {help}.\n")), "{name} in\n{page}");
            assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name} in\n{page}");
            let suffix = match declared.kind {
                Kind::Counter | Kind::Gauge => "",
                Kind::Histogram => "_count",
            };
            let series = page.lines().find(|line| {
                let rest = line.strip_prefix(&format!("{name}{suffix}"));
                rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            });
            let found: Vec<_> = series
                .and_then(|line| line.split_once('{')?.1.split_once('}'))
                .map(|(inside, _)| {
                    inside.split(',').map(|l| l.split_once('=').unwrap().0).collect()
                })
                .unwrap_or_default();
            assert_eq!(found, *labels, "{name}");
        }
        let described = page.lines().filter(|line| line.starts_with("# TYPE")).count();
        assert_eq!(described, DECLARED.len(), "nothing is scraped that is not declared");
    }

    #[test]
    fn a_tenant_is_never_a_label() {
        let labels = DECLARED.iter().flat_map(|declared| declared.labels);
        assert!(labels.clone().count() > 10);
        assert!(labels.into_iter().all(|label| !label.contains("tenant")));
    }

    #[test]
    fn all_series_of_a_job_stand_from_the_start_with_0() {
        let page = filled().encode();
        for trigger in Trigger::ALL.map(Trigger::as_str) {
            for outcome in Outcome::ALL {
                let labels = format!("job=\"slots\",trigger=\"{trigger}\",outcome=\"{outcome}\"");
                assert_eq!(sample(&page, &format!("preheat_runs_total{{{labels}}}")), Some(0.0));
            }
        }
        for series in [
            "preheat_runs_skipped_total{job=\"slots\",reason=\"overlap\"}",
            "preheat_runs_skipped_total{job=\"slots\",reason=\"queue_full\"}",
            "preheat_tenants_total{job=\"slots\",outcome=\"failed\"}",
            "preheat_keys_total{job=\"slots\",outcome=\"fenced\"}",
            "preheat_keys_total{job=\"slots\",outcome=\"removed\"}",
            "preheat_last_success_timestamp_seconds{job=\"slots\"}",
            "preheat_fire_lag_seconds_count{job=\"slots\"}",
            "preheat_permits{job=\"slots\"}",
            "preheat_run_duration_seconds_sum{job=\"slots\"}",
            "preheat_change_lag_seconds_count",
            "preheat_history_dropped_total",
        ] {
            assert_eq!(sample(&page, series), Some(0.0), "{series}");
        }
        let version = env!("CARGO_PKG_VERSION");
        let info = format!("preheat_build_info{{version=\"{version}\"}}");
        assert_eq!(sample(&page, &info), Some(1.0));
    }

    #[test]
    fn what_was_never_measured_is_absent() {
        let metrics = Metrics::new();
        metrics.register_jobs([job("services")].iter());
        let page = metrics.encode();
        assert!(!page.contains("consistency"));
        assert!(!page.contains("cache_hits"));
        metrics.set_cache_counters(CacheCounts { hits: 12, misses: 3, evicted: 5 });
        assert_eq!(sample(&metrics.encode(), "preheat_cache_hits_total"), Some(12.0));
        assert_eq!(sample(&metrics.encode(), "preheat_cache_misses_total"), Some(3.0));
        assert_eq!(sample(&metrics.encode(), "preheat_cache_evicted_keys_total"), Some(5.0));
    }

    #[test]
    fn coverage_is_absent_until_it_is_known_and_where_it_is_not_any_more() {
        let metrics = Metrics::new();
        let job = job("slots");
        metrics.register_jobs([job.clone()].iter());
        let shown = || sample(&metrics.encode(), "preheat_coverage_ratio{job=\"slots\"}");
        assert_eq!(shown(), None);
        let measured = |there, expected| {
            CoverageMeasured { job: &job, there, expected }.emit(&metrics);
            shown()
        };
        assert_eq!(measured(3, 4), Some(0.75));
        assert_eq!(measured(0, 4), Some(0.0));
        assert_eq!(measured(0, 0), None);
        assert_eq!(measured(4, 4), Some(1.0));
        metrics.register_jobs([].iter());
        assert_eq!(shown(), None);
    }

    #[test]
    fn a_job_that_is_gone_keeps_its_counters_and_loses_its_gauges() {
        let metrics = filled();
        let gone = job("slots");
        RunStarted {
            run: crate::domain::run::RunId::new(DateTime::UNIX_EPOCH),
            job: &gone,
            trigger: Trigger::Schedule,
            lag: Some(Duration::from_millis(600)),
        }
        .emit(&metrics);
        NextRun { job: &gone, at: DateTime::from_timestamp(1_700_000_000, 0) }.emit(&metrics);
        let next = "preheat_next_run_timestamp_seconds{job=\"slots\"}";
        assert_eq!(sample(&metrics.encode(), next), Some(1_700_000_000.0));

        metrics.register_jobs([job("services")].iter());
        let page = metrics.encode();
        assert_eq!(sample(&page, next), None);
        assert_eq!(sample(&page, "preheat_fire_lag_seconds_count{job=\"slots\"}"), Some(1.0));
        let kept = "preheat_next_run_timestamp_seconds{job=\"services\"}";
        assert_eq!(sample(&page, kept), Some(0.0));
    }

    #[test]
    fn openmetrics_ends_with_its_marker_and_the_older_format_has_none() {
        let metrics = filled();
        assert!(metrics.encode_openmetrics().ends_with("# EOF\n"));
        assert!(metrics.encode_openmetrics().contains("# TYPE preheat_runs counter\n"));
        assert!(!metrics.encode().contains("# EOF"));
    }
}
