//! Every metric: its name, type, labels and help text, declared once. Labels are bounded: a job is
//! one, a tenant never.

#[macro_use]
mod declare;
mod label;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(super) use self::declare::PerJob;
use self::declare::{Buckets, Declared, ForeignCounter, Known};
pub use self::declare::{Declaration, Kind};
use self::label::{KeyOutcome, OfBuild, OfConnections, OfJob, OfKeys, OfTenants, TenantOutcome};
pub(super) use self::label::{OfFindings, OfReads, OfRun, OfServer, OfSkip, OfTrigger};
use crate::domain::job::JobName;
use crate::domain::report::{KeyCounts, TenantCounts};
use crate::domain::server::Server;
use crate::observe::figures::Figures;
use crate::observe::news::NewsLog;
use crate::observe::process::Process;

type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
type Ratio = Gauge<f64, std::sync::atomic::AtomicU64>;

/// In seconds: from a job with one small tenant to one that nearly fills an hour.
const DURATIONS: Buckets = Buckets(&[
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
]);
/// The scheduler looks twice a second: a lag of up to about a second is usual, and a longer one is
/// a queue or a stall.
const FIRE_LAGS: Buckets =
    Buckets(&[0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0]);
/// A change is usually in the cache within milliseconds. If it takes seconds, it waits for a
/// server, or the data keeps changing.
const CHANGE_LAGS: Buckets =
    Buckets(&[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);

metrics! {
    runs: Family<OfRun, Counter>, "preheat_runs_total",
        "Runs that ended, by why they started and how they ended";
    queries: Family<OfTrigger, Counter>, "preheat_queries_total",
        "Queries for rows that runs sent to the database, by why the runs started";
    run_bytes: Family<OfTrigger, Counter>, "preheat_run_bytes_total",
        "Bytes of the values that runs wrote, by why the runs started";
    runs_for_all: Family<OfTrigger, Counter>, "preheat_runs_over_all_tenants_total",
        "Runs over all tenants that ended, by why they started";
    run_duration: Family<OfJob, Histogram, Buckets> = Family::new_with_constructor(DURATIONS),
        "preheat_run_duration_seconds",
        "How long runs took, from their start to their end";
    last_success: Family<OfJob, Seconds>, "preheat_last_success_timestamp_seconds",
        "When a run over all tenants last ended `ok`, as a Unix time, by the history also before \
         the worker's start; absent before the first";
    last_run: Family<OfJob, Seconds>, "preheat_last_run_timestamp_seconds",
        "When a run last ended, however it ended, as a Unix time; absent before the first";
    next_run: Family<OfJob, Seconds>, "preheat_next_run_timestamp_seconds",
        "When the job is due next, as a Unix time; absent where it is disabled, paused or never due again";
    late_after: Family<OfJob, Seconds>, "preheat_job_late_after_timestamp_seconds",
        "From when on the job is late, as a Unix time: its last success, or the worker's start where \
         none is known, and two of the longest gaps of its schedule; absent where it is paused, \
         disabled or held, or its schedule ends";
    ttl_margin: Family<OfJob, Seconds>, "preheat_job_ttl_margin_seconds",
        "Time between the end of the job's next run and the moment when the first key of its last \
         run expires; negative if keys expire before they are written again; absent before the \
         first run over all tenants and where no run is due";
    not_warm: Family<OfJob, Gauge>, "preheat_tenants_not_warm",
        "Tenants whose keys the last run that covered them could not write and verify; absent \
         until the job's first batch has ended";
    paused_since: Family<OfJob, Seconds>, "preheat_job_paused_since_timestamp_seconds",
        "Since when the job is paused, as a Unix time; absent while it is not";
    fire_lag: Family<OfJob, Histogram, Buckets> = Family::new_with_constructor(FIRE_LAGS),
        "preheat_fire_lag_seconds",
        "How long after their due time scheduled runs started";
    runs_skipped: Family<OfSkip, Counter>, "preheat_runs_skipped_total",
        "Runs that were due or asked for and did not happen, by reason";
    tenants: Family<OfTenants, Counter>, "preheat_tenants_total",
        "Tenants by how their part of a run ended: `ok` if all their keys were written, `fenced` \
         if their data kept changing, so that they are warmed again, else `failed`";
    keys: Family<OfKeys, Counter>, "preheat_keys_total",
        "Keys by what became of them";
    bytes: Family<OfJob, Counter>, "preheat_bytes_total",
        "Bytes of the values that were written";
    coverage: Family<OfJob, Ratio>, "preheat_coverage_ratio",
        "Share of a sample of the active tenants' keys that the last look found in the cache; the \
         worker looks every thirty seconds; absent until the tenants are known, and while the cache \
         is away";
    consistency: Family<OfJob, Ratio>, "preheat_consistency_ratio",
        "Share of the keys that the verifier expected in the cache whose value was the \
         database's; absent until the first measurement";
    audit_findings: Family<OfFindings, Gauge>, "preheat_audit_findings",
        "Keys of the verifier's last sample that were wrong for a minute, by what was wrong; \
         absent until the first measurement";
    last_audit: Family<OfJob, Seconds>, "preheat_last_audit_timestamp_seconds",
        "When the verifier last compared the job, as a Unix time; absent before the first \
         comparison";
    change_lag: Histogram = CHANGE_LAGS.new_metric(), "preheat_change_lag_seconds",
        "Time from the notification of a tenant's change until one job had written the tenant's \
         keys again";
    change_notifications: Counter, "preheat_change_notifications_total",
        "Notifications of changes that the worker received";
    change_feed_connected: Known, "preheat_change_feed_connected",
        "1 while the worker hears of every change to the jobs' tables, else 0: it does not \
         listen, or a table lacks its triggers; absent where there is to be no change feed, and \
         until the worker has looked for one";
    change_feed_lacking: Known, "preheat_change_feed_tables_without_triggers",
        "Tables of the jobs whose change feed triggers are missing or disabled; `preheat changes \
         install` creates them; absent until the worker has looked for them";
    batch_tenants: Family<OfJob, Gauge>, "preheat_batch_tenants",
        "Tenants in one query of the job: as many as configured, or fewer while its queries take \
         longer than `runner.target_batch_time`; absent for a job without tenants";
    batch_retries: Family<OfJob, Counter>, "preheat_batch_retries_total",
        "Batches that were tried again after a failure that may pass";
    breaker_open: Family<OfServer, Gauge>, "preheat_breaker_open",
        "1 while the worker counts the `database` or the `cache` as down and sends it single \
         tries only, or waits for it at its start, else 0";
    permits: Family<OfJob, Gauge>, "preheat_permits",
        "Permits that the job holds now; each allows one batch in flight";
    concurrency_limit: Known, "preheat_concurrency_limit",
        "Permits that there are: so many batches of all jobs may be in flight at once";
    fleet_members: Known, "preheat_fleet_members",
        "Live members of the fleet, as this worker sees them; absent without a fleet";
    fleet_shares: Known, "preheat_fleet_shares",
        "Shares of the tenants, of 64, that this worker holds; absent without a fleet";
    db_connections: Family<OfConnections, Gauge>, "preheat_db_connections",
        "Connections to the database: `idle`, `in_use`, and `max`, the number allowed; absent \
         until the worker has reached the servers";
    cache_hits: ForeignCounter, "preheat_cache_hits_total",
        "Reads by any client, preheat included, that found their key, as the cache server counts \
         them; absent until its first answer";
    cache_misses: ForeignCounter, "preheat_cache_misses_total",
        "Reads by any client, preheat included, that did not find their key, as the cache server \
         counts them; absent until its first answer";
    reads: Family<OfReads, Counter>, "preheat_reads_total",
        "Reads of applications through the clients, as they count them, by the job whose keys they \
         read (`other` for keys of no job), since the worker's start; `refused` counts misses whose \
         value was not written, in addition to `miss`; absent until a client has counted";
    cache_evicted: ForeignCounter, "preheat_cache_evicted_keys_total",
        "Keys of any client that the cache evicted for lack of memory, as the cache server counts \
         them; absent until its first answer";
    cache_evicted_during_runs: Family<OfJob, Counter>, "preheat_cache_evicted_during_run_total",
        "Keys of any client that the cache evicted while the job ran, as the cache server counts \
         them; runs at the same time count the same keys";
    cache_used_memory: Known<u64>, "preheat_cache_used_memory_bytes",
        "Memory that the cache server uses, for the keys of all clients; absent until its first answer";
    cache_max_memory: Known<u64>, "preheat_cache_max_memory_bytes",
        "Memory that the cache server may use (`maxmemory`); absent where it has no limit, and until \
         its first answer";
    cache_restarts: Counter, "preheat_cache_restarts_total",
        "How often the cache server was another process than before (restarted, failed over, \
         replaced), so that every job ran once";
    cache_flushes: Counter, "preheat_cache_flushes_total",
        "How often the cache was emptied without a restart (FLUSHALL, FLUSHDB), so that every job \
         ran once";
    several_caches: Gauge, "preheat_cache_several_servers",
        "1 while several servers answer behind the cache's address, so that another server's answer \
         starts no run, else 0";
    history_dropped: Counter, "preheat_history_dropped_total",
        "Run records that the worker gave up because it could not write the history for too long";
    history_pending: Known, "preheat_history_pending",
        "Run records that wait to be written to the history";
    jobs_rejected: Gauge, "preheat_jobs_rejected",
        "1 while job files on disk have problems and are not in use as they are, else 0";
    scheduler_silent: Gauge, "preheat_scheduler_silent",
        "1 while the scheduler does not ring and the watchdog wakes the jobs, else 0";
    started: Known<f64>, "preheat_start_timestamp_seconds",
        "When the worker started and its counters began, as a Unix time; absent until it has reached \
         the servers";
    build_info: Family<OfBuild, Gauge>, "preheat_build_info",
        "Always 1; the label is the version that is running";
    process_cpu: ForeignCounter<f64>, "process_cpu_seconds_total",
        "Processor time of this process, in user and system mode; like all figures of the process, \
         absent where the system has no `/proc`";
    process_resident: Known<u64>, "process_resident_memory_bytes",
        "Memory of this process that is in RAM";
    process_virtual: Known<u64>, "process_virtual_memory_bytes",
        "Address space of this process";
    process_open_fds: Known<u64>, "process_open_fds",
        "Open files and connections of this process";
    process_max_fds: Known<u64>, "process_max_fds",
        "How many files and connections this process may have open; absent where there is no limit";
    process_started: Known<f64>, "process_start_time_seconds",
        "When this process started, as a Unix time";
}

/// What [`Metrics`] keeps besides the values that are scraped.
#[derive(Debug, Default)]
struct State {
    /// The jobs that have series.
    jobs: Mutex<BTreeSet<JobName>>,
    feed: Mutex<FeedState>,
    figures: Figures,
}

/// What the gauges of the change feed are computed from.
#[derive(Debug, Default)]
struct FeedState {
    /// Whether the feed listens; `None` while there is to be none.
    listens: Option<bool>,
    lacking: usize,
}

/// The cache server's counters since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not find their key.
    pub misses: u64,
    /// Keys evicted for lack of memory.
    pub evicted: u64,
}

impl Metrics {
    /// All metrics; those without a job have series at once.
    pub fn new() -> Arc<Self> {
        let metrics = Self::registered();
        for server in Server::ALL {
            metrics.set_breaker(server, false);
        }
        metrics.build_info.get_or_create(&OfBuild { version: env!("CARGO_PKG_VERSION") }).set(1);
        Arc::new(metrics)
    }

    /// Sets the present jobs. The counters and histograms of each job exist from here on, with 0 until
    /// something happens. If a job no longer exists, its gauges are removed, since an alert on its last
    /// success would never end; its counters stay, since they count past events.
    pub fn register_jobs<'a>(&self, names: impl Iterator<Item = &'a JobName>) {
        let now: BTreeSet<_> = names.cloned().collect();
        let mut known = self.state.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(&now) {
            self.remove_job(gone);
            self.state.figures.forget_job(gone);
        }
        for job in &now {
            self.add_job(job);
        }
        *known = now;
    }

    /// The last figures, for an overview.
    pub fn figures(&self) -> &Figures {
        &self.state.figures
    }

    /// Sets how many tenants of a job are not warm.
    pub fn set_not_warm(&self, job: &JobName, tenants: u64) {
        self.not_warm.of(job).set(i64::try_from(tenants).unwrap_or(i64::MAX));
    }

    /// Sets from when on a job is late; `None` if it never is.
    pub fn set_late_after(&self, job: &JobName, at: Option<DateTime<Utc>>) {
        match at {
            Some(at) => {
                self.late_after.of(job).set(unix_seconds(at));
            }
            None => self.late_after.forget(job),
        }
    }

    /// Sets the TTL margin of a job; `None` if it is not known.
    pub fn set_ttl_margin(&self, job: &JobName, margin: Option<TimeDelta>) {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of days are far below 2^53")]
        let seconds = margin.map(|margin| margin.num_milliseconds() as f64 / 1000.0);
        match seconds {
            Some(seconds) => {
                self.ttl_margin.of(job).set(seconds);
            }
            None => self.ttl_margin.forget(job),
        }
    }

    /// Sets the number of connections to the database.
    pub fn set_db_connections(&self, idle: u32, in_use: u32, max: u32) {
        for (state, count) in [("idle", idle), ("in_use", in_use), ("max", max)] {
            self.db_connections.get_or_create(&OfConnections { state }).set(i64::from(count));
        }
    }

    /// Sets the permits that jobs hold; a job that is not in the map holds none.
    pub fn set_permits(&self, held: &BTreeMap<JobName, u32>) {
        for job in self.state.jobs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            self.permits.of(job).set(held.get(job).copied().unwrap_or_default().into());
        }
    }

    /// Sets how many tenants the batches of a job have.
    pub fn set_batch_tenants(&self, job: &JobName, tenants: NonZeroUsize) {
        self.batch_tenants.of(job).set(whole(tenants.get()));
    }

    /// Sets how many permits there are.
    pub fn set_concurrency_limit(&self, permits: u32) {
        self.concurrency_limit.know(permits.into());
    }

    /// Sets how many run records wait to be written.
    pub fn set_history_pending(&self, records: usize) {
        self.history_pending.know(whole(records));
    }

    /// Sets how many tables lack triggers of the change feed.
    pub fn set_feed_lacking(&self, tables: usize) {
        self.state.figures.note_lacking(tables);
        self.change_feed_lacking.know(whole(tables));
        self.set_feed(|feed| feed.lacking = tables);
    }

    /// Sets whether the change feed listens; `None` where there is to be none.
    pub(super) fn set_feed_listens(&self, listens: Option<bool>) {
        self.set_feed(|feed| feed.listens = listens);
    }

    fn set_feed(&self, change: impl FnOnce(&mut FeedState)) {
        let mut feed = self.state.feed.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut feed);
        let FeedState { listens, lacking } = *feed;
        let connected = listens.map(|listens| i64::from(listens && lacking == 0));
        self.change_feed_connected.set(connected.map(ConstGauge::new));
    }

    /// Sets the cache server's own counters, which start again when the server does.
    pub fn set_cache_counters(&self, counts: CacheCounts) {
        let CacheCounts { hits, misses, evicted } = counts;
        self.cache_hits.count(hits);
        self.cache_misses.count(misses);
        self.cache_evicted.count(evicted);
    }

    /// Sets the memory that the cache server uses, and its limit; `None` if it has no limit.
    pub fn set_cache_memory(&self, used: u64, limit: Option<u64>) {
        self.cache_used_memory.know(used);
        self.cache_max_memory.set(limit.map(ConstGauge::new));
    }

    /// Shows no figures of the cache server: another member of the fleet does.
    pub fn leave_cache_server_out(&self) {
        for counter in [&self.cache_hits, &self.cache_misses, &self.cache_evicted] {
            counter.set(None);
        }
        self.cache_used_memory.set(None);
        self.cache_max_memory.set(None);
    }

    /// Reads the figures of this process from the operating system, which takes some microseconds.
    pub fn look_at_process(&self) {
        let Some(Process { cpu, resident, virtual_size, open_files, max_files, started }) =
            Process::look()
        else {
            return;
        };
        self.process_cpu.count(cpu);
        self.process_resident.know(resident);
        self.process_virtual.know(virtual_size);
        self.process_open_fds.know(open_files);
        self.process_max_fds.set(max_files.map(ConstGauge::new));
        self.process_started.know(started);
    }

    pub(super) fn set_breaker(&self, server: Server, open: bool) {
        self.breaker_open.get_or_create(&OfServer { server }).set(i64::from(open));
    }

    pub(super) fn count_tenants(&self, job: &JobName, counts: TenantCounts) {
        let TenantCounts { total: _, ok, failed, fenced } = counts;
        for (outcome, count) in [
            (TenantOutcome::Ok, ok),
            (TenantOutcome::Failed, failed),
            (TenantOutcome::Fenced, fenced),
        ] {
            self.tenants.get_or_create(&OfTenants { job_name: job.clone(), outcome }).inc_by(count);
        }
    }

    pub(super) fn count_keys(&self, job: &JobName, counts: KeyCounts) {
        let KeyCounts { written, removed, failed, fenced } = counts;
        for (outcome, count) in [
            (KeyOutcome::Written, written),
            (KeyOutcome::Removed, removed),
            (KeyOutcome::Failed, failed),
            (KeyOutcome::Fenced, fenced),
        ] {
            self.keys.get_or_create(&OfKeys { job_name: job.clone(), outcome }).inc_by(count);
        }
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
}

/// The only difference between the formats that matters for these metrics: OpenMetrics describes a
/// counter without its `_total`, the older format with it.
fn comment_with_full_name(line: &str) -> Cow<'_, str> {
    let comment = ["# HELP ", "# TYPE "].into_iter().find_map(|start| {
        let (name, rest) = line.strip_prefix(start)?.split_once(' ')?;
        let counter =
            DECLARED.iter().find(|known| known.kind == Kind::Counter && known.stem() == name)?;
        Some(format!("{start}{} {rest}", counter.name))
    });
    comment.map_or(Cow::Borrowed(line), Cow::Owned)
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a Unix time in milliseconds is far below 2^53")]
pub(super) fn unix_seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit;
    use crate::domain::reads::ReadResult;
    use crate::domain::run::{Outcome, Trigger};

    fn job(name: &str) -> JobName {
        JobName::parse(name).unwrap()
    }

    fn filled() -> Arc<Metrics> {
        let metrics = Metrics::new();
        metrics.register_jobs([job("services"), job("slots")].iter());
        metrics.set_cache_counters(CacheCounts { hits: 12, misses: 3, evicted: 5 });
        metrics.set_cache_memory(1 << 20, Some(1 << 30));
        metrics.set_db_connections(1, 2, 4);
        metrics.set_concurrency_limit(4);
        metrics.set_history_pending(0);
        metrics.fleet_members.know(3);
        metrics.fleet_shares.know(21);
        metrics.set_permits(&BTreeMap::new());
        metrics.set_batch_tenants(&job("slots"), NonZeroUsize::MIN);
        metrics.set_feed_lacking(0);
        metrics.set_feed_listens(Some(true));
        metrics.look_at_process();
        metrics.started.know(1_700_000_000.0);
        let job = job("slots");
        for seconds in [&metrics.last_success, &metrics.last_run, &metrics.next_run] {
            seconds.of(&job).set(1_700_000_000.0);
        }
        let read = OfReads { family: "slots".to_owned(), result: ReadResult::Hit };
        metrics.reads.get_or_create(&read).inc();
        let stale = OfFindings { job_name: job.clone(), kind: audit::Kind::Stale };
        metrics.audit_findings.get_or_create(&stale).set(1);
        metrics.last_audit.of(&job).set(1_700_000_000.0);
        metrics.consistency.of(&job).set(0.5);
        metrics.coverage.of(&job).set(0.5);
        metrics.set_late_after(&job, DateTime::from_timestamp(1_700_000_000, 0));
        metrics.set_ttl_margin(&job, Some(TimeDelta::milliseconds(-1_500)));
        metrics.set_not_warm(&job, 3);
        metrics.paused_since.of(&job).set(1_700_000_000.0);
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
                let labels =
                    format!("job_name=\"slots\",trigger=\"{trigger}\",outcome=\"{outcome}\"");
                assert_eq!(sample(&page, &format!("preheat_runs_total{{{labels}}}")), Some(0.0));
            }
        }
        for series in [
            "preheat_queries_total{job_name=\"slots\",trigger=\"change\"}",
            "preheat_run_bytes_total{job_name=\"slots\",trigger=\"schedule\"}",
            "preheat_runs_over_all_tenants_total{job_name=\"slots\",trigger=\"change\"}",
            "preheat_runs_skipped_total{job_name=\"slots\",reason=\"overlap\"}",
            "preheat_runs_skipped_total{job_name=\"slots\",reason=\"queue_full\"}",
            "preheat_tenants_total{job_name=\"slots\",outcome=\"failed\"}",
            "preheat_keys_total{job_name=\"slots\",outcome=\"fenced\"}",
            "preheat_keys_total{job_name=\"slots\",outcome=\"removed\"}",
            "preheat_cache_evicted_during_run_total{job_name=\"slots\"}",
            "preheat_fire_lag_seconds_count{job_name=\"slots\"}",
            "preheat_permits{job_name=\"slots\"}",
            "preheat_run_duration_seconds_sum{job_name=\"slots\"}",
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
    fn what_is_not_known_is_absent() {
        let metrics = Metrics::new();
        metrics.register_jobs([job("services")].iter());
        let page = metrics.encode();
        // Those whose value is known from the start: nothing is wrong yet, as far as the worker knows.
        let states = [
            "preheat_breaker_open",
            "preheat_build_info",
            "preheat_cache_several_servers",
            "preheat_jobs_rejected",
            "preheat_scheduler_silent",
        ];
        for gauge in DECLARED.iter().filter(|declared| declared.kind == Kind::Gauge) {
            let is_there = page.contains(&format!("# TYPE {} ", gauge.name));
            assert_eq!(is_there, states.contains(&gauge.name), "{}:\n{page}", gauge.name);
        }
        assert!(!page.contains("cache_hits"));
        metrics.set_cache_counters(CacheCounts { hits: 12, misses: 3, evicted: 5 });
        assert_eq!(sample(&metrics.encode(), "preheat_cache_hits_total"), Some(12.0));
        assert_eq!(sample(&metrics.encode(), "preheat_cache_misses_total"), Some(3.0));
        assert_eq!(sample(&metrics.encode(), "preheat_cache_evicted_keys_total"), Some(5.0));
    }

    #[test]
    fn a_change_feed_is_connected_if_it_listens_for_all_tables_and_absent_where_there_is_none() {
        let metrics = Metrics::new();
        let connected = || sample(&metrics.encode(), "preheat_change_feed_connected");
        metrics.set_feed_lacking(2);
        assert_eq!(connected(), None, "nobody has said that there is to be a feed");
        for (listens, lacking, shown) in [
            (Some(true), 2, Some(0.0)),
            (Some(true), 0, Some(1.0)),
            (Some(false), 0, Some(0.0)),
            (None, 0, None),
        ] {
            metrics.set_feed_listens(listens);
            metrics.set_feed_lacking(lacking);
            assert_eq!(connected(), shown, "{listens:?} {lacking}");
        }
    }

    #[test]
    fn a_job_that_is_gone_keeps_its_counters_and_loses_its_gauges() {
        let metrics = filled();
        let gone = job("slots");
        metrics.fire_lag.of(&gone).observe(0.6);
        metrics.next_run.of(&gone).set(1_700_000_000.0);
        let next = "preheat_next_run_timestamp_seconds{job_name=\"slots\"}";
        assert_eq!(sample(&metrics.encode(), next), Some(1_700_000_000.0));

        metrics.register_jobs([job("services")].iter());
        let page = metrics.encode();
        assert_eq!(sample(&page, next), None);
        assert!(!page.contains("_audit"), "neither a finding nor the time of an audit:\n{page}");
        assert_eq!(sample(&page, "preheat_fire_lag_seconds_count{job_name=\"slots\"}"), Some(1.0));
        assert!(!page.contains("_not_warm") && !page.contains("_margin"), "{page}");
        let kept = "preheat_fire_lag_seconds_count{job_name=\"services\"}";
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
