//! Runs and their batches.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{debug, error, info, warn};

use super::{bytes, counted, millis};
use crate::domain::batch_size::BatchSizeNow;
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind};
use crate::domain::run::{Outcome, RunId, RunRecord, SkipReason, Trigger};
use crate::observe::Metrics;
use crate::observe::metric::{OfRun, OfSkip, OfTrigger, PerJob, unix_seconds};
use crate::observe::news::News;

event! {
    /// A job has another due time; `None` if it is disabled or never due again.
    NextRun<'a> { job: &'a JobName, at: Option<DateTime<Utc>> }
    metrics |metrics| match at {
        Some(at) => {
            metrics.next_run.of(job).set(unix_seconds(at));
        }
        None => metrics.next_run.forget(job),
    };
}

event! {
    /// A run that was due or asked for does not happen.
    RunSkipped<'a> { job: &'a JobName, reason: SkipReason }
    metrics |metrics| {
        metrics.runs_skipped.get_or_create(&OfSkip { job_name: job.clone(), reason }).inc();
        metrics.news.tell(|| News::RunSkipped { job: job.clone(), reason });
    };
    log {
        let (why, explained) = (reason.as_str(), reason.explained());
        match reason {
            // It was said once that the job is paused.
            SkipReason::Paused => {
                debug!(%job, reason = why, "a run of job `{job}` is skipped: {explained}");
            }
            SkipReason::Overlap | SkipReason::QueueFull | SkipReason::Draining => {
                warn!(%job, reason = why, "a run of job `{job}` is skipped: {explained}");
            }
        }
    };
}

event! {
    /// A run starts.
    RunStarted<'a> {
        run: RunId,
        job: &'a JobName,
        trigger: Trigger,
        /// How long after its due time it starts; `None` if its schedule did not start it.
        lag: Option<Duration>,
    }
    metrics |metrics| {
        if let Some(lag) = lag {
            metrics.fire_lag.of(job).observe(lag.as_secs_f64());
        }
        metrics.news.tell(|| News::RunStarted { run, job: job.clone(), trigger });
    };
    log {
        let trigger = trigger.as_str();
        debug!(%job, %run, trigger, lag_ms = lag.map(millis), "job `{job}` starts, by {trigger}");
    };
}

event! {
    /// A run ended.
    RunFinished<'a> {
        record: &'a RunRecord,
        /// Whether it was for all active tenants: only such a run shows how much of the job is
        /// warm.
        all_tenants: bool,
        /// Whether its record is kept. A run without a kept record is one of many, and logged at
        /// `debug`.
        kept: bool,
    }
    metrics |metrics| {
        count_run(metrics, record, all_tenants);
        metrics.news.tell(|| News::RunFinished(Arc::new(record.clone())));
    };
    log log_run(record, all_tenants, kept);
}

fn count_run(metrics: &Metrics, record: &RunRecord, all_tenants: bool) {
    let RunRecord { job, trigger, outcome, finished_at, report, .. } = record;
    let of_run = OfRun { job_name: job.clone(), trigger: *trigger, outcome: *outcome };
    metrics.runs.get_or_create(&of_run).inc();
    let of_trigger = OfTrigger { job_name: job.clone(), trigger: *trigger };
    metrics.queries.get_or_create(&of_trigger).inc_by(report.queries);
    metrics.run_bytes.get_or_create(&of_trigger).inc_by(report.bytes);
    if all_tenants {
        metrics.runs_for_all.get_or_create(&of_trigger).inc();
    }
    metrics.last_run.of(job).set(unix_seconds(*finished_at));
    metrics.run_duration.of(job).observe(record.duration().as_secs_f64());
    metrics.count_tenants(job, report.tenants);
    metrics.count_keys(job, report.keys);
    metrics.bytes.of(job).inc_by(report.bytes);
    if all_tenants && *outcome == Outcome::Ok {
        metrics.last_success.of(job).set(unix_seconds(*finished_at));
    }
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

fn log_run(record: &RunRecord, all_tenants: bool, kept: bool) {
    match (record.outcome, kept) {
        (Outcome::Ok, true) => run_line!(info, record),
        (Outcome::Ok, false) => run_line!(debug, record),
        (Outcome::Partial | Outcome::Timeout | Outcome::Cancelled, _) => run_line!(warn, record),
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

/// A run in one sentence.
struct RunSummary<'a>(&'a RunRecord);

impl fmt::Display for RunSummary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        let tenants = record.report.tenants;
        write!(
            f,
            "job `{}` ended {} after {:.1?}: {} of {} warm, {}, {}",
            record.job,
            record.outcome,
            record.duration(),
            tenants.ok,
            counted(tenants.total, "tenant", "tenants"),
            counted(record.report.keys.written, "key", "keys"),
            bytes(record.report.bytes),
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

event! {
    /// A run could not write all of a tenant's keys; the report counts it.
    TenantFailed<'a> {
        job: &'a JobName,
        run: RunId,
        tenant: &'a str,
        /// The kind of the first failure.
        kind: FailureKind,
        message: &'a str,
    }
    log {
        let failure = kind.as_str();
        debug!(
            %job, %run, tenant, failure,
            "tenant `{}` of job `{job}` failed ({failure}): {message}", tenant.escape_debug()
        );
    };
}

event! {
    /// A batch failed for a reason that may pass, and will be tried again.
    BatchRetried<'a> {
        job: &'a JobName,
        run: RunId,
        /// How many tenants the batch has.
        tenants: usize,
        /// The number of this retry, from 1.
        retry: u32,
        /// How long the batch waits before that retry.
        wait: Duration,
        kind: FailureKind,
        message: &'a str,
    }
    metrics |metrics| metrics.batch_retries.of(job).inc();
    log warn!(
        %job, %run, tenants, retry, wait_ms = millis(wait), failure = kind.as_str(),
        "a batch of job `{job}` failed and is tried again in {wait:.1?}: {message}"
    );
}

event! {
    /// The batches of a job have another size from now on.
    BatchesResized<'a> { job: &'a JobName, run: RunId, size: BatchSizeNow }
    metrics |metrics| metrics.set_batch_tenants(job, size.now);
    log {
        let BatchSizeNow { configured, now, because } = size;
        let tenants = counted(now.get(), "tenant", "tenants");
        match because {
            // That they grow again, step by step, is no news.
            Some(why) if now < why.query.tenants => info!(
                %job, %run, configured, tenants = now, took_ms = millis(why.query.took),
                "the batches of job `{job}` now have {tenants} instead of {configured}: {why}"
            ),
            Some(_) | None => debug!(
                %job, %run, configured, tenants = now,
                "the batches of job `{job}` now have {tenants} of {configured}"
            ),
        }
    };
}

event! {
    /// A batch failed on its data and is split in two, to find the tenant.
    BatchSplit<'a> {
        job: &'a JobName,
        run: RunId,
        /// How many tenants the batch had.
        tenants: usize,
        kind: FailureKind,
        message: &'a str,
    }
    log debug!(
        %job, %run, tenants, failure = kind.as_str(),
        "a batch of job `{job}` with {} failed and is cut in two: {message}",
        counted(tenants, "tenant", "tenants")
    );
}

event! {
    /// A job has long held all the permits that it may hold, and has returned none; emitted once
    /// until it returns one.
    PermitsHeld<'a> {
        job: &'a JobName,
        /// How many it holds.
        permits: u32,
        /// How many are left for other jobs.
        left: u32,
        /// For how long, at least.
        held_for: Duration,
    }
    log warn!(
        %job, permits, left,
        "job `{job}` has held all permits that it may hold, {permits} of {}, for {held_for:.0?}: \
         its query is slow, or waits for a lock; other jobs have {left} permits",
        permits + left
    );
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::ChangesWarmed;
    use super::super::testing::{job, logged};
    use super::*;
    use crate::domain::report::{KeyCounts, Report, TenantCounts};

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
            requested_by: None,
            shares: None,
            fleet: None,
            parts: Vec::new(),
            all_tenants: Some(true),
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
         INFO job `services` ended ok after 1.2s: 4 of 4 tenants warm, 7 keys, 2.05 kB job=services run=00000000-0000-0000-0000-000000000000 trigger="schedule" outcome="ok" duration_ms=1234 tenants=4 tenants_failed=0 tenants_fenced=0 keys=7 keys_failed=0 bytes=2048 queries=3 retries=0
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_total{job_name=\"services\",trigger=\"schedule\",outcome=\"ok\"} 1\n",
            "preheat_last_success_timestamp_seconds{job_name=\"services\"} 1700000001.234\n",
            "preheat_run_duration_seconds_sum{job_name=\"services\"} 1.234\n",
            "preheat_tenants_total{job_name=\"services\",outcome=\"ok\"} 4\n",
            "preheat_keys_total{job_name=\"services\",outcome=\"written\"} 7\n",
            "preheat_bytes_total{job_name=\"services\"} 2048\n",
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
         WARN job `services` ended partial after 1.2s: 3 of 4 tenants warm, 7 keys, 2.05 kB; first failure (query), tenant `a\nb`: division by zero job=services run=00000000-0000-0000-0000-000000000000 trigger="schedule" outcome="partial" duration_ms=1234 tenants=4 tenants_failed=1 tenants_fenced=0 keys=7 keys_failed=1 bytes=2048 queries=3 retries=0 failure="query" tenant="a\nb"
        "#);
        let page = metrics.encode();
        assert!(
            page.contains("preheat_last_run_timestamp_seconds{job_name=\"services\"} 1700000001.")
        );
        assert!(
            page.contains("preheat_runs_over_all_tenants_total{job_name=\"services\","),
            "{page}"
        );
        assert!(!page.contains("preheat_last_success_timestamp_seconds{job_name=\"services\"}"));
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
            ChangesWarmed { job: &record.job, lags: &lags, at: chrono::DateTime::UNIX_EPOCH }
                .emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
        DEBUG job `services` ended ok after 1.2s: 3 of 4 tenants warm, 7 keys, 2.05 kB; the data of 1 kept changing job=services run=00000000-0000-0000-0000-000000000000 trigger="change" outcome="ok" duration_ms=1234 tenants=4 tenants_failed=0 tenants_fenced=1 keys=7 keys_failed=0 bytes=2048 queries=3 retries=0
        DEBUG 2 changes have reached the cache in job `services` job=services tenants=2 lag_ms=30
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_total{job_name=\"services\",trigger=\"change\",outcome=\"ok\"} 1\n",
            "preheat_queries_total{job_name=\"services\",trigger=\"change\"} 3\n",
            "preheat_run_bytes_total{job_name=\"services\",trigger=\"change\"} 2048\n",
            "preheat_tenants_total{job_name=\"services\",outcome=\"fenced\"} 1\n",
            "preheat_keys_total{job_name=\"services\",outcome=\"fenced\"} 2\n",
            "preheat_change_lag_seconds_count 2\n",
            "preheat_change_lag_seconds_sum 0.05\n",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
        assert!(!page.contains("preheat_runs_over_all_tenants_total{"), "{page}");
    }

    #[test]
    fn a_run_for_some_tenants_says_nothing_about_the_whole_job() {
        let metrics = Metrics::new();
        let ok = record(Outcome::Ok, vec![]);
        RunFinished { record: &ok, all_tenants: false, kept: true }.emit(&metrics);
        let page = metrics.encode();
        assert!(page.contains("preheat_runs_total{job_name=\"services\""));
        assert!(!page.contains("preheat_last_success_timestamp_seconds{job_name=\"services\"}"));
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
}
