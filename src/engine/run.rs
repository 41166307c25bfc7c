//! How a run goes: tenants → batches → rows → entries → the cache, and what became of it. The
//! batches themselves are in `batch.rs`.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::batch::Work;
use super::broken::{BrokenTenants, hash};
use super::changes::MAX_PENDING;
use super::coverage::Coverage;
use super::limit::{Limits, Priority};
use super::port::{CacheStats, Clock, SourceError};
use super::ports::Ports;
use super::registry::{Distrust, ListRead, Registry};
use super::restart::CacheProcess;
use super::status::Progress;
use super::tries::{Refusal, Remedy, Tries};
use super::writes::CacheWrites;
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::layout::Layout;
use crate::domain::report::{FailedTenant, Failure, FailureKind, Report};
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::tenant::{Batch, TenantId, Tenants, batches};
use crate::domain::{date, duration};
use crate::observe::event;

/// What runs need of the world, and the bounds that they share.
pub struct Runner {
    /// The servers, each behind its breaker.
    pub ports: Ports,
    /// Batches in flight over all jobs.
    pub limits: Arc<Limits>,
    /// Tenants that failed alone when they were read last.
    pub broken: BrokenTenants,
    /// Which process of the cache server answers, and whether it was emptied.
    pub cache_process: CacheProcess,
    /// Whether the cache takes writes.
    pub cache_writes: CacheWrites,
    /// The tenant list that runs share.
    pub list: TenantList,
    /// Has the coverage looked at.
    pub coverage: Coverage,
    /// What complete lists are compared with: a tenant that left loses its keys.
    pub registry: Registry,
    /// All jobs there are, those that are disabled among them.
    pub jobs: SharedJobs,
    /// The name of this worker in records.
    pub replica: String,
}

/// The jobs as they are now.
#[derive(Debug, Default)]
pub struct SharedJobs(Mutex<Arc<Jobs>>);

impl SharedJobs {
    /// These are the jobs from now on.
    pub fn set(&self, jobs: Jobs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(jobs);
    }

    /// The jobs at this moment.
    pub fn get(&self) -> Arc<Jobs> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Deref for Runner {
    type Target = Ports;

    fn deref(&self) -> &Ports {
        &self.ports
    }
}

/// One run to do.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Its id.
    pub id: RunId,
    /// Its job.
    pub job: Arc<Job>,
    /// Why it starts.
    pub trigger: Trigger,
    /// When it was due or asked for.
    pub due_at: DateTime<Utc>,
    /// The same moment on the monotonic clock.
    pub asked_at: Duration,
    /// The tenants to warm; all active ones where it is `None`.
    pub tenants: Option<Vec<TenantId>>,
    /// When the job's last run that came to all tenants started, on the monotonic clock: what it
    /// wrote may expire a TTL later.
    pub last_written_at: Option<Duration>,
    /// Where it says how far it is.
    pub progress: Arc<Progress>,
    /// How its batches queue for their permits.
    pub priority: Priority,
    /// How many tenants that failed are told one by one.
    pub most_failed: usize,
    /// Where it hands its unverified tenants over.
    pub handover: Arc<Handover>,
}

impl RunSpec {
    /// A run that somebody asks for at this moment, for these tenants or all.
    pub fn on_request(clock: &dyn Clock, job: &Arc<Job>, tenants: Option<Vec<TenantId>>) -> Self {
        let now = clock.now();
        Self {
            id: RunId::new(now),
            job: Arc::clone(job),
            trigger: Trigger::Request,
            due_at: now,
            asked_at: clock.monotonic(),
            tenants,
            last_written_at: None,
            progress: Arc::new(Progress::default()),
            priority: Priority::Regular,
            most_failed: MAX_PENDING,
            handover: Arc::default(),
        }
    }
}

/// A run that ended.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// What is kept of it.
    pub record: RunRecord,
    /// The tenants that failed.
    pub failed: Failed,
}

/// The tenants of a run that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// Each with its first failure, as many as the run's specification says.
    pub tenants: Vec<FailedTenant>,
    /// Whether these are all, and the run came to every tenant.
    pub is_complete: bool,
}

/// The tenants of a job whose keys were written and could not be verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unverified {
    /// The tenants.
    pub tenants: BTreeSet<TenantId>,
    /// Whether the keys of a job without tenants are unverified.
    pub fleet: bool,
}

impl Unverified {
    /// Whether all keys are verified.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && !self.fleet
    }

    /// Adds others to these.
    pub fn add(&mut self, other: Self) {
        self.tenants.extend(other.tenants);
        self.fleet |= other.fleet;
    }
}

/// Unverified tenants on their way from their run to the place that starts the follow-up.
///
/// A run hands them over when their batch ends: their values live for the provisional TTL, and the run
/// itself may go on for much longer. It holds each tenant of a run at most once.
#[derive(Debug, Default)]
pub struct Handover {
    unverified: Mutex<BTreeMap<(JobName, RunId), Unverified>>,
    bell: Arc<Notify>,
}

impl Handover {
    /// One that rings this bell when something is in it.
    pub(super) fn ringing(bell: Arc<Notify>) -> Self {
        Self { bell, ..Self::default() }
    }

    /// Ends when something was put in.
    pub(super) async fn rung(&self) {
        self.bell.notified().await;
    }

    pub(super) fn put(&self, spec: &RunSpec, unverified: Unverified) {
        if !unverified.is_empty() {
            let run = (spec.job.name.clone(), spec.id);
            self.lock().entry(run).or_default().add(unverified);
            self.bell.notify_one();
        }
    }

    /// Takes out all that is in it, by job and run.
    pub fn take(&self) -> BTreeMap<(JobName, RunId), Unverified> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(JobName, RunId), Unverified>> {
        self.unverified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two ways to stop a run.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Finish the batches in flight and begin no more.
    pub drain: CancellationToken,
    /// Stop now. Keys are whole values all the same: each is written by one command.
    pub abort: CancellationToken,
}

impl Stops {
    /// Ends when either is asked for.
    pub async fn requested(&self) {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => {}
            () = self.abort.cancelled() => {}
        }
    }

    /// Aborts what is in flight when it has had that time to drain; never ends.
    pub async fn abort_after(&self, clock: &dyn Clock, drain: Duration) {
        self.drain.cancelled().await;
        clock.sleep(drain).await;
        self.abort.cancel();
        std::future::pending::<()>().await;
    }
}

/// How the work of a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Deadline,
    Stopped,
}

/// When a run has to be over.
pub(super) struct Deadline {
    /// The moment on the monotonic clock.
    pub(super) at: Duration,
    pub(super) passed: BoxFuture<'static, ()>,
}

impl Runner {
    /// Whose the keys of all jobs are, as they are now.
    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.jobs.get(), self.source.id_class())
    }

    /// Does a run, from its start to a final outcome. It never fails: what failed is in the record.
    pub async fn run(self: Arc<Self>, spec: RunSpec, stops: Stops) -> RunResult {
        let started_at = self.clock.now();
        let timeout = spec.job.timeout;
        let deadline = Deadline {
            at: self.clock.monotonic().saturating_add(timeout),
            passed: self.clock.sleep(timeout),
        };
        let lag = (started_at - spec.due_at).to_std().unwrap_or_default();
        let lag = (spec.trigger == Trigger::Schedule).then_some(lag);
        let (run, job) = (spec.id, &spec.job.name);
        event::RunStarted { run, job, trigger: spec.trigger, lag }.emit(&self.metrics);

        let spec = Arc::new(spec);
        let before = self.stats(&spec, &stops).await;
        // One that showed by this came before anything was written.
        let restarts = self.cache_process.restarts();
        let mut report = Report::default();
        let end = self.work(&spec, &stops, (started_at, deadline), &mut report).await;
        say_why_it_ended(end, &spec, &mut report);
        let after = self.stats(&spec, &stops).await;
        self.look_back(&spec, before.zip(after), &mut report);
        if spec.priority == Priority::Regular && self.cache_process.restarts() > restarts {
            say_that_it_may_be_lost(&mut report);
        }

        let outcome = match end {
            End::Complete => report.outcome(),
            End::Deadline => Outcome::Timeout,
            End::Stopped => Outcome::Cancelled,
        };
        let failed = self.failed(&spec, &mut report);
        let record = self.record(&spec, outcome, (started_at, self.clock.now()), report);
        RunResult { record, failed }
    }

    /// Takes the tenants that failed out of a report, which names the first ones.
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

    /// What is kept of a run that ended.
    pub(super) fn record(
        &self,
        spec: &RunSpec,
        outcome: Outcome,
        (started_at, finished_at): (DateTime<Utc>, DateTime<Utc>),
        report: Report,
    ) -> RunRecord {
        RunRecord {
            id: spec.id,
            job: spec.job.name.clone(),
            trigger: spec.trigger,
            outcome,
            due_at: spec.due_at,
            started_at,
            finished_at,
            report,
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    async fn work(
        self: &Arc<Self>,
        spec: &Arc<RunSpec>,
        stops: &Stops,
        (started_at, mut deadline): (DateTime<Utc>, Deadline),
        report: &mut Report,
    ) -> End {
        let planned = tokio::select! {
            biased;
            () = stops.requested() => return End::Stopped,
            () = &mut deadline.passed => return End::Deadline,
            planned = self.plan(spec, started_at, report) => planned,
        };
        spec.progress.expect(report.tenants.total);
        spec.progress.add(report);
        let work = Work::new(Arc::clone(self), Arc::clone(spec), started_at, deadline.at);
        let end = work.all(planned, stops, deadline.passed, report).await;
        if let (End::Deadline, Some(message)) = (end, work.locked().take()) {
            // Why it did not end in time comes before that it did not.
            report.fail(Failure::new(FailureKind::Locked, None, message));
        }
        work.note_broken();
        end
    }

    /// Cuts the run's tenants into batches; those that cannot be warmed are counted at once.
    async fn plan(
        self: &Arc<Self>,
        spec: &RunSpec,
        started_at: DateTime<Utc>,
        report: &mut Report,
    ) -> VecDeque<Batch> {
        let job = &spec.job;
        if let Err(error) = self.cache_writes.look(self.cache.as_ref()).await {
            report.fail(Failure::new(error.kind.failure_kind(), None, error.message));
            return VecDeque::new();
        }
        if job.scope == Scope::Fleet {
            report.tenants.total = 1;
            return VecDeque::from([Batch::fleet()]);
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
                return VecDeque::new();
            }
        };
        report.tenants.total += positions.len() as u64;
        if let Some(dates) = &job.dates {
            positions.retain(|&position| {
                let tenant = list.get(position as usize);
                let today = date::today(dates, tenant, started_at);
                if let Err(error) = &today {
                    let id = tenant.map(|tenant| tenant.id());
                    fail_one(FailureKind::TimeZone, id, error.to_string(), report);
                }
                today.is_ok()
            });
        }
        if spec.tenants.is_none() {
            self.broken.keep(&job.name, &list);
        }
        let (together, apart) = self.broken.part(&job.name, &list, positions);
        let mut all = batches(&list, &together, job.batch.get());
        // After the others: by then it is known whether the query works for anybody.
        all.extend(batches(&list, &apart, 1));
        all.into()
    }

    /// The complete list, and whom of it the run is for.
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

    /// The active ones among tenants whose data changed, with one small query. That others are not
    /// active any more is no failure. Where it says of one of them what the last complete list did
    /// not, a new one is read, so that the registry has who came before anything is written of it,
    /// and who left is swept; then that list counts. By the small query a tenant that came and went
    /// meanwhile would be written and registered nowhere, and one that went and came left as it was.
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
        if !self.list.agrees(changed, &list, self.cache_process.restarts()) {
            list = self.list.read(self, self.clock.monotonic()).await?;
        }
        let (positions, _not_active) = select(&list, changed);
        Ok((list, positions))
    }

    async fn read_among(&self, tenants: &[TenantId]) -> Result<Tenants, Refusal> {
        let list = self.source.tenants_among(tenants).await;
        Ok(list.map_err(ListError::Source)?)
    }

    /// The tenant list, read after the run was asked for: the present state.
    async fn tenants(
        self: &Arc<Self>,
        spec: &RunSpec,
        report: &mut Report,
    ) -> Result<Arc<Tenants>, Refusal> {
        let mut tries = Tries::new(self, spec, 0);
        let mut since = spec.asked_at;
        loop {
            let read = self.list.read(self, since);
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

    /// What the cache says of itself; that it does not tell is no failure. A run for a change does not
    /// ask: it is small, and in a hurry.
    async fn stats(&self, spec: &RunSpec, stops: &Stops) -> Option<CacheStats> {
        if spec.priority == Priority::Urgent {
            return None;
        }
        let stats = tokio::select! {
            biased;
            () = stops.abort.cancelled() => return None,
            stats = self.cache_stats() => stats,
        };
        stats.ok()
    }

    /// What can only be said once the run is over: keys pushed out while it went on, and whether it
    /// came too late for keys that the run before it wrote.
    fn look_back(
        &self,
        spec: &RunSpec,
        stats: Option<(CacheStats, CacheStats)>,
        report: &mut Report,
    ) {
        let job = &spec.job;
        // Another server has a counter of its own.
        let same = stats.filter(|(before, after)| before.process == after.process);
        report.evicted =
            same.map_or(0, |(before, after)| after.evicted.saturating_sub(before.evicted));
        if report.evicted > 0 {
            event::Evictions { job: &job.name, run: spec.id, count: report.evicted }
                .emit(&self.metrics);
        }
        let shortest = job.ttl.saturating_sub(job.ttl_jitter.of(job.ttl));
        let now = self.clock.monotonic();
        report.late = spec.last_written_at.is_some_and(|at| now.saturating_sub(at) > shortest);
    }
}

/// A tenant that is not read at all.
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
    };
    report.fail(Failure::new(kind, None, message));
}

/// The cache server was restarted while a run went on: of no tenant is it known whether what was
/// written of it came after that.
fn say_that_it_may_be_lost(report: &mut Report) {
    let written = std::mem::take(&mut report.tenants.ok);
    if written == 0 {
        return;
    }
    report.tenants.failed += written;
    let message = "the cache server was restarted, replaced or emptied while the run went on: what \
                   was written before may be lost";
    let failure = Failure::new(FailureKind::CacheRestarted, None, message.to_owned());
    report.fail(Failure { count: written, ..failure });
}

/// The positions of all tenants of a list. A tenant query with a join may name a tenant twice; its rows
/// would be torn apart.
pub(super) fn each_once(list: &Tenants) -> Vec<u32> {
    let mut seen = HashSet::with_capacity(list.len());
    let first = list.iter().zip(0..).filter(|(tenant, _)| seen.insert(tenant.id()));
    first.map(|(_, position)| position).collect()
}

/// The positions of some tenants, each once, and those of them that the list does not have.
fn select<'w>(list: &Tenants, wanted: &'w [TenantId]) -> (Vec<u32>, Vec<&'w str>) {
    let mut left: HashSet<&str> = wanted.iter().map(TenantId::as_str).collect();
    let found = list.iter().zip(0..).filter(|(tenant, _)| left.remove(tenant.id()));
    let found = found.map(|(_, position)| position).collect();
    let wanted = wanted.iter().map(TenantId::as_str);
    (found, wanted.filter(|id| left.remove(id)).collect())
}

/// A reading of the tenant list that takes longer is not joined any more: it may hang, and runs that
/// wait for it would hang one after another.
const LONGEST_TO_JOIN: Duration = Duration::from_secs(5);

/// The tenant list as runs share it: those that start together read it with one query.
///
/// A run may use only a list whose reading began after the run was asked for, or it would miss a
/// tenant that the application created before it triggered the run.
#[derive(Default)]
pub struct TenantList {
    reading: Mutex<Option<Reading>>,
    listed: Mutex<Option<Listed>>,
}

/// What the last complete list had.
struct Listed {
    tenants: Arc<Tenants>,
    /// Hashes of their ids, in order.
    hashes: Vec<u64>,
    /// How often the cache server had been restarted when the registry took them.
    restarts: u64,
    /// The sequence number of its reading.
    number: u64,
}

struct Reading {
    began: Duration,
    /// Its sequence number: the registry takes lists in this order.
    number: u64,
    future: WeakShared<ListFuture>,
}

type ListFuture = BoxFuture<'static, Result<Arc<Tenants>, ListError>>;

/// Why there is no tenant list to go by.
#[derive(Clone, Debug)]
enum ListError {
    /// It could not be read.
    Source(SourceError),
    /// No run may go by it.
    Distrusted(Distrust),
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Source(error) => Self { kind: FailureKind::Tenants, ..Self::from(error) },
            ListError::Distrusted(Distrust::Unregistered(error)) => error.into(),
            ListError::Distrusted(Distrust::Shrank(shrank)) => Self {
                kind: FailureKind::TenantsShrank,
                message: shrank.in_short(),
                remedy: Remedy::GiveUp,
            },
        }
    }
}

impl TenantList {
    /// A list whose reading began at or after the monotonic moment `since`: one that is being read,
    /// or a new one.
    fn read(&self, runner: &Arc<Runner>, since: Duration) -> Shared<ListFuture> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let now = runner.clock.monotonic();
        let since = since.max(now.saturating_sub(LONGEST_TO_JOIN));
        let young = reading.as_ref().filter(|reading| reading.began >= since);
        if let Some(shared) = young.and_then(|reading| reading.future.upgrade()) {
            return shared;
        }
        let number = reading.as_ref().map_or(0, |before| before.number + 1);
        let shared = read_list(Arc::clone(runner), number).boxed().shared();
        *reading = shared.downgrade().map(|future| Reading { began: now, number, future });
        shared
    }
}

impl TenantList {
    /// Whether the last complete list had those among some tenants that are active, and not the
    /// others, and the registry cannot have lost it.
    fn agrees(&self, some: &[TenantId], active: &Tenants, restarts: u64) -> bool {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listed) = listed.as_ref().filter(|listed| listed.restarts == restarts) else {
            return false;
        };
        let active: HashSet<&str> = active.iter().map(|tenant| tenant.id()).collect();
        some.iter().map(TenantId::as_str).all(|id| {
            let was_listed = listed.hashes.binary_search(&hash(id)).is_ok();
            active.contains(id) == was_listed
        })
    }

    /// The last complete list.
    pub(super) fn last(&self) -> Option<Arc<Tenants>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.as_ref().map(|listed| Arc::clone(&listed.tenants))
    }

    /// A complete list was read, and the registry took it. Two readings may end in the other order than
    /// they began; the one that began last counts.
    fn note(&self, list: &Arc<Tenants>, restarts: u64, number: u64) {
        let mut hashes: Vec<u64> = list.iter().map(|tenant| hash(tenant.id())).collect();
        hashes.sort_unstable();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.as_ref().is_none_or(|listed| listed.number <= number) {
            *listed = Some(Listed { tenants: Arc::clone(list), hashes, restarts, number });
        }
    }
}

/// One query, whose result counts once for the breaker however many runs wait for it, and is compared
/// once with the tenants that may have keys.
async fn read_list(runner: Arc<Runner>, number: u64) -> Result<Arc<Tenants>, ListError> {
    let list = Arc::new(runner.source.tenants().await.map_err(ListError::Source)?);
    let restarts = runner.cache_process.restarts();
    let read = ListRead { list: &list, number, jobs: &runner.jobs.get(), restarts };
    runner.registry.take(&runner.ports, read).await.map_err(ListError::Distrusted)?;
    runner.list.note(&list, restarts, number);
    Ok(list)
}
