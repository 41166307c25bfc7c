//! How a run goes: tenants → batches → rows → entries → the cache, and what is recorded of it. The batches
//! themselves are in `batch.rs`.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::batch::{Deadline, End, Pending, Work};
use super::limit::Priority;
use super::retry::{Refusal, Tries};
use super::runner::Runner;
use super::spec::{RunResult, RunSpec, Stops};
use super::tenant_list::{ListError, each_once, select};
use crate::domain::job::Scope;
use crate::domain::report::{Failed, FailedTenant, Failure, FailureKind, Report};
use crate::domain::run::{Outcome, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::domain::{date, duration};
use crate::engine::ports::{CacheError, CacheStats, RunTrace};
use crate::observe::event;

impl Runner {
    /// Does a run, from its start to its outcome. It never returns an error: the record names what failed.
    pub async fn run(self: Arc<Self>, spec: RunSpec, stops: Stops) -> RunResult {
        let started_at = self.clock.now();
        let (began_at, timeout) = (self.clock.monotonic(), spec.job.timeout);
        let deadline = Deadline {
            started_at,
            at: began_at.saturating_add(timeout),
            passed: self.clock.sleep(timeout),
            tenure: spec.shares.map(|_| self.ownership.tenure()).unwrap_or_default(),
        };
        let lag = (started_at - spec.due_at).to_std().unwrap_or_default();
        let lag = (spec.trigger == Trigger::Schedule).then_some(lag);
        let (run, job) = (spec.id, &spec.job.name);
        event::RunStarted { run, job, trigger: spec.trigger, lag }.emit(&self.metrics);

        let spec = Arc::new(spec);
        let before = self.stats(&spec, &stops).await.and_then(Result::ok);
        // A restart that is noticed before this moment came before the run wrote anything.
        let restarts = self.cache_process.restarts();
        let mut report = Report::default();
        let end = self.work(&spec, &stops, deadline, &mut report).await;
        say_why_it_ended(end, &spec, &mut report);
        let after = self.stats(&spec, &stops).await;
        if spec.priority == Priority::Regular && self.cache_process.restarts() > restarts {
            say_that_it_was_restarted(&mut report);
        } else if let Some(Err(error)) = &after {
            say_that_it_is_away(error, &mut report);
        }
        let after = after.and_then(Result::ok);
        self.look_back(&spec, before.zip(after), &mut report);

        let outcome = match end {
            End::Complete => report.outcome(),
            End::Deadline => Outcome::Timeout,
            End::Stopped | End::SharesLost => Outcome::Cancelled,
        };
        let failed = self.failed(&spec, &mut report);
        let record = self.record(&spec, outcome, started_at, report);
        if let Some(traces) = &self.traces {
            let (batches, parent) = (&record.report.batches, spec.parent);
            traces.run_ended(&RunTrace { record: &record, batches, began_at, parent });
        }
        RunResult { record, failed }
    }

    /// Takes the failed tenants out of a report, and emits an event for each of them.
    fn failed(&self, spec: &RunSpec, report: &mut Report) -> Failed {
        let tenants = std::mem::take(&mut report.failed);
        let is_complete =
            tenants.len() as u64 == report.tenants.failed && report.tenants.left() == 0;
        for FailedTenant { tenant, kind, message } in &tenants {
            let (job, run) = (&spec.job.name, spec.id);
            let (kind, message) = (*kind, message.as_ref());
            event::TenantFailed { job, run, tenant, kind, message }.emit(&self.metrics);
        }
        Failed { tenants, is_complete }
    }

    /// The record of a run that ended.
    pub(crate) fn record(
        &self,
        spec: &RunSpec,
        outcome: Outcome,
        started_at: DateTime<Utc>,
        report: Report,
    ) -> RunRecord {
        RunRecord {
            id: spec.id,
            job: spec.job.name.clone(),
            trigger: spec.trigger,
            outcome,
            due_at: spec.due_at,
            started_at,
            finished_at: self.clock.now(),
            report,
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            all_tenants: Some(spec.is_for_all()),
            requested_by: spec.requested_by.clone(),
            shares: spec.shares.map(|own| whole_job(spec.job.scope, own)),
            fleet: spec
                .shares
                .map(|_| self.ownership.fleet_name().to_owned())
                .filter(|it| !it.is_empty()),
            parts: Vec::new(),
        }
    }

    async fn work(
        self: &Arc<Self>,
        spec: &Arc<RunSpec>,
        stops: &Stops,
        mut deadline: Deadline,
        report: &mut Report,
    ) -> End {
        let planned = tokio::select! {
            biased;
            () = stops.requested() => return End::Stopped,
            () = deadline.tenure.cancelled() => return End::SharesLost,
            () = &mut deadline.passed => return End::Deadline,
            planned = self.plan(spec, deadline.started_at, report) => planned,
        };
        spec.progress.expect(report.tenants.total);
        spec.progress.add(report);
        let work = Work::new(Arc::clone(self), Arc::clone(spec), &deadline, &planned);
        let end = work.all(planned, stops, deadline.passed, report).await;
        if let (End::Deadline, Some(message)) = (end, work.locked().take()) {
            // The reason why it did not end in time comes before the timeout itself.
            report.fail(Failure::new(FailureKind::Locked, None, message));
        }
        work.note_broken();
        end
    }

    /// The run's tenants; those that cannot be warmed are counted as failed at once.
    async fn plan(
        self: &Arc<Self>,
        spec: &RunSpec,
        started_at: DateTime<Utc>,
        report: &mut Report,
    ) -> Pending {
        let job = &spec.job;
        if let Err(error) = self.cache_writes.look(self.cache.as_ref()).await {
            report.fail(Failure::new(error.kind.failure_kind(), None, error.message));
            return Pending::default();
        }
        let slot = |key: &str| self.cache.slot(key);
        let is_concerned = |tenant: Option<Tenant<'_>>| spec.extent.concerns(job, tenant, slot);
        if job.scope == Scope::Global {
            let is_own = spec.shares.is_none_or(|shares| !shares.of_job(job).is_empty());
            let is_own = is_own && is_concerned(None);
            report.tenants.total = u64::from(is_own);
            return if is_own { Pending::global() } else { Pending::default() };
        }
        let read = match (&spec.tenants, spec.priority) {
            (Some(changed), Priority::Urgent) => self.active_among(changed, spec, report).await,
            (Some(_) | None, Priority::Regular) | (None, Priority::Urgent) => {
                self.listed(spec, report).await
            }
        };
        let (list, mut positions) = match read {
            Ok(planned) => planned,
            Err(refusal) => {
                self.cache_writes.note_failure(refusal.kind);
                let Refusal { kind, message, remedy: _ } = refusal;
                report.fail(Failure::new(kind, None, message));
                return Pending::default();
            }
        };
        if let Some(shares) = spec.shares {
            let is_own = |tenant: Tenant<'_>| shares.has_tenant(tenant.id());
            positions.retain(|position| list.get(*position as usize).is_some_and(is_own));
        }
        positions.retain(|position| is_concerned(list.get(*position as usize)));
        report.tenants.total += positions.len() as u64;
        date::keep_with_zone(job, &list, &mut positions, started_at, |tenant, error| {
            let message = error.to_string();
            if let Some(tenant) = tenant {
                self.not_warm.fail(spec, tenant, (FailureKind::TimeZone, &message), &self.ports);
            }
            fail_one(FailureKind::TimeZone, tenant, message, report);
        });
        if spec.is_for_all() {
            self.broken.keep(&job.name, &list);
            let own = spec.shares.unwrap_or(Shares::ALL);
            self.not_warm.keep_tenants(&job.name, &list, own, &self.metrics);
        }
        let (together, apart) = self.broken.part(&job.name, &list, positions);
        Pending::new(list, together, apart)
    }

    /// The complete tenant list, and the positions of the tenants that this run covers.
    async fn listed(
        self: &Arc<Self>,
        spec: &RunSpec,
        report: &mut Report,
    ) -> Result<(Arc<Tenants>, Vec<u32>), Refusal> {
        let list = self.tenants(spec, report).await?;
        if list.is_empty() {
            event::NoTenants { job: &spec.job.name }.emit(&self.metrics);
        }
        let Some(wanted) = spec.tenants.as_deref() else {
            let positions = each_once(&list);
            return Ok((list, positions));
        };
        let (positions, not_active) = select(&list, wanted);
        for id in not_active {
            let message = format!("tenant `{}` is not among the active tenants", id.escape_debug());
            report.tenants.total += 1;
            fail_one(FailureKind::Tenants, Some(id), message, report);
        }
        Ok((list, positions))
    }

    /// Reads with one small query which of the changed tenants are active; the others are no failure. If the
    /// answer disagrees with the last complete list about one of them, the run reads a new complete list and
    /// uses that: a new tenant must be registered before its keys are written, and a departed one must be
    /// swept. The small query alone would leave a tenant that appeared and disappeared again unregistered,
    /// and would not update one that disappeared and came back.
    async fn active_among(
        self: &Arc<Self>,
        changed: &[TenantId],
        spec: &RunSpec,
        report: &mut Report,
    ) -> Result<(Arc<Tenants>, Vec<u32>), Refusal> {
        let mut tries = Tries::new(self, spec, changed.len());
        let mut list = loop {
            let refusal = match self.read_among(changed).await {
                Ok(list) => break Arc::new(list),
                Err(refusal) => refusal,
            };
            if !tries.again(&refusal, report).await {
                return Err(refusal);
            }
        };
        if !self.list.agrees(changed, &list) {
            list = self.list.read(self.clock.monotonic()).await?;
        }
        let (positions, _not_active) = select(&list, changed);
        Ok((list, positions))
    }

    async fn read_among(&self, tenants: &[TenantId]) -> Result<Tenants, Refusal> {
        let list = self.source.tenants_among(tenants).await;
        Ok(list.map_err(ListError::Source)?)
    }

    /// The tenant list, read after the run was asked for, so that it is the present state.
    async fn tenants(
        self: &Arc<Self>,
        spec: &RunSpec,
        report: &mut Report,
    ) -> Result<Arc<Tenants>, Refusal> {
        let mut tries = Tries::new(self, spec, 0);
        let mut since = spec.asked_at;
        loop {
            let read = self.list.read(since);
            let refusal = match read.await {
                Ok(list) => return Ok(list),
                Err(error) => Refusal::from(error),
            };
            if !tries.again(&refusal, report).await {
                return Err(refusal);
            }
            since = self.clock.monotonic();
        }
    }

    /// The cache's stats, if the run asks for them. A run for a change does not ask: it is small and urgent.
    async fn stats(&self, spec: &RunSpec, stops: &Stops) -> Option<Result<CacheStats, CacheError>> {
        if spec.priority == Priority::Urgent {
            return None;
        }
        tokio::select! {
            biased;
            () = stops.abort.cancelled() => None,
            stats = self.cache_process.stats(&self.ports) => Some(stats),
        }
    }

    /// Adds what is known only after the run: how many keys the cache evicted meanwhile, and whether the run
    /// came too late for keys that the run before it wrote.
    fn look_back(
        &self,
        spec: &RunSpec,
        stats: Option<(CacheStats, CacheStats)>,
        report: &mut Report,
    ) {
        let job = &spec.job;
        // Another server has its own counter.
        let same = stats.filter(|(before, after)| before.process == after.process);
        report.evicted =
            same.map_or(0, |(before, after)| after.evicted.saturating_sub(before.evicted));
        if report.evicted > 0 {
            event::Evictions { job: &job.name, run: spec.id, count: report.evicted }
                .emit(&self.metrics);
        }
        let now = self.clock.monotonic();
        report.late =
            spec.last_written_at.is_some_and(|at| now.saturating_sub(at) > job.shortest_ttl());
    }
}

/// The shares that a run was for: one worker does all of a job without tenants.
fn whole_job(scope: Scope, own: Shares) -> Shares {
    match scope {
        Scope::Global if !own.is_empty() => Shares::ALL,
        Scope::Global | Scope::Tenants => own,
    }
}

/// Counts a tenant as failed that is not read at all.
fn fail_one(kind: FailureKind, tenant: Option<&str>, message: String, report: &mut Report) {
    report.fail_tenant(tenant, kind, &message.as_str().into());
    report.fail(Failure::new(kind, tenant.map(str::to_owned), message));
}

fn say_why_it_ended(end: End, spec: &RunSpec, report: &mut Report) {
    let left = report.tenants.left();
    let (kind, message) = match end {
        End::Complete => return,
        End::Deadline => {
            let timeout = duration::text(spec.job.timeout);
            let message = format!("the run did not end within {timeout}: {left} tenants were left");
            (FailureKind::Deadline, message)
        }
        End::Stopped => {
            let message = format!("the run was stopped: {left} tenants were left");
            (FailureKind::Cancelled, message)
        }
        End::SharesLost => {
            let message = format!("the worker lost its shares: {left} tenants were left");
            (FailureKind::Cancelled, message)
        }
    };
    report.fail(Failure::new(kind, None, message));
}

/// The cache server was restarted during the run: of no tenant is it known whether its keys were written
/// after the restart.
fn say_that_it_was_restarted(report: &mut Report) {
    let message = "the cache server was restarted, replaced or emptied while the run went on: what \
                   was written before may be lost";
    fail_what_was_written(FailureKind::CacheRestarted, message.to_owned(), report);
}

/// The cache did not answer at the end of a run in which nothing else failed. It may come back as another
/// process, without what the run wrote: until it answers, the run is not `ok`. A cache that refuses to report
/// its stats is no failure.
fn say_that_it_is_away(error: &CacheError, report: &mut Report) {
    if error.kind.is_transient() && report.outcome() == Outcome::Ok {
        let message = format!(
            "the cache did not answer at the end of the run: what was written may be lost: {}",
            error.message
        );
        fail_what_was_written(error.kind.failure_kind(), message, report);
    }
}

fn fail_what_was_written(kind: FailureKind, message: String, report: &mut Report) {
    let written = std::mem::take(&mut report.tenants.ok);
    if written == 0 {
        return;
    }
    report.tenants.failed += written;
    let failure = Failure::new(kind, None, message);
    report.fail(Failure { count: written, ..failure });
}
