//! How a run goes: tenants → batches → rows → entries → the cache, and what became of it.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::limit::{BatchPermit, BreakerChange, Limits, SharedBreaker};
use super::port::{
    Cache, CacheError, Clock, KeyResult, Read, Source, SourceError, SourceErrorKind,
};
use super::status::Progress;
use crate::domain::date::{self, first_dates};
use crate::domain::entry::{Entries, Entry, Removal, entries};
use crate::domain::job::{Job, Scope};
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::retry::backoff;
use crate::domain::run::{Outcome, RunId, RunRecord, Trigger};
use crate::domain::tenant::{Batch, TenantId, Tenants, batches};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// After so many tenants in a row that fail even alone, with none that worked, the query itself is
/// taken to be broken: splitting every batch down to single tenants would only load the database.
const LONE_FAILURES_TO_GIVE_UP: u32 = 16;

/// What runs need of the world, and the bounds that they share.
pub struct Runner {
    /// Where tenants and rows come from.
    pub source: Arc<dyn Source>,
    /// Where entries go.
    pub cache: Arc<dyn Cache>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where runs are counted.
    pub metrics: Arc<Metrics>,
    /// Batches in flight over all jobs.
    pub limits: Arc<Limits>,
    /// Stops asking either server while it is down.
    pub breakers: Breakers,
    /// The tenant list that runs share.
    pub list: TenantList,
    /// The name of this worker in records.
    pub replica: String,
}

/// A breaker for each server.
#[derive(Debug, Default)]
pub struct Breakers {
    database: SharedBreaker,
    cache: SharedBreaker,
}

/// One run to do.
#[derive(Clone, Debug)]
pub struct Order {
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
    /// When the job's last good run started: what it wrote may expire a TTL later.
    pub last_success_started_at: Option<DateTime<Utc>>,
    /// Where it says how far it is.
    pub progress: Arc<Progress>,
}

/// The two ways to stop a run.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Finish the batches in flight and begin no more.
    pub drain: CancellationToken,
    /// Stop now. Keys are whole values all the same: each is written by one command.
    pub abort: CancellationToken,
}

/// How the work of a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Deadline,
    Stopped,
}

impl Runner {
    /// Does a run, from its start to a final outcome. It never fails: what failed is in the record.
    pub async fn run(self: Arc<Self>, order: Order, stops: Stops) -> RunRecord {
        let started_at = self.clock.now();
        let lag = (started_at - order.due_at).to_std().unwrap_or_default();
        let lag = (order.trigger == Trigger::Schedule).then_some(lag);
        let (run, job) = (order.id, &order.job.name);
        event::RunStarted { run, job, trigger: order.trigger, lag }.emit(&self.metrics);

        let evicted_before = self.evicted().await;
        let order = Arc::new(order);
        let mut report = Report::default();
        let end = self.work(&order, &stops, started_at, &mut report).await;
        let finished_at = self.clock.now();
        self.look_back(&order, finished_at, evicted_before, &mut report).await;

        let outcome = match end {
            End::Complete => report.outcome(),
            End::Deadline => Outcome::Timeout,
            End::Stopped => Outcome::Cancelled,
        };
        self.record(&order, outcome, (started_at, finished_at), report)
    }

    /// What is kept of a run that ended.
    pub(super) fn record(
        &self,
        order: &Order,
        outcome: Outcome,
        (started_at, finished_at): (DateTime<Utc>, DateTime<Utc>),
        report: Report,
    ) -> RunRecord {
        RunRecord {
            id: order.id,
            job: order.job.name.clone(),
            trigger: order.trigger,
            outcome,
            due_at: order.due_at,
            started_at,
            finished_at,
            report,
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    async fn work(
        self: &Arc<Self>,
        order: &Arc<Order>,
        stops: &Stops,
        started_at: DateTime<Utc>,
        report: &mut Report,
    ) -> End {
        let mut deadline = self.clock.sleep(order.job.timeout);
        let planned = tokio::select! {
            biased;
            () = stops.drain.cancelled() => return End::Stopped,
            () = stops.abort.cancelled() => return End::Stopped,
            () = &mut deadline => return passed_deadline(order, report),
            planned = self.plan(order, started_at, report) => planned,
        };
        order.progress.expect(report.tenants.total);
        order.progress.add(report);
        let work = Arc::new(Work {
            runner: Arc::clone(self),
            order: Arc::clone(order),
            started_at,
            key_columns: order.job.key_columns().len(),
            broken: AtomicBool::new(false),
            lone_failures: AtomicU32::new(0),
        });
        work.all(planned, stops, deadline, report).await
    }

    /// Cuts the run's tenants into batches; those that cannot be warmed are counted at once.
    async fn plan(
        &self,
        order: &Order,
        started_at: DateTime<Utc>,
        report: &mut Report,
    ) -> VecDeque<Batch> {
        let job = &order.job;
        if job.scope == Scope::Fleet {
            report.tenants.total = 1;
            return VecDeque::from([Batch::fleet()]);
        }
        let list = match self.tenants(order, report).await {
            Ok(list) => list,
            Err(error) => {
                let message = format!("could not read the tenant list: {error}");
                report.fail(Failure::new(FailureKind::Tenants, None, message));
                return VecDeque::new();
            }
        };
        if list.is_empty() {
            event::NoTenants { job: &job.name }.emit(&self.metrics);
        }
        let mut positions = select(&list, order.tenants.as_deref(), report);
        report.tenants.total += positions.len() as u64;
        if let Some(dates) = &job.dates {
            positions.retain(|&position| {
                let tenant = list.get(position as usize);
                let today = date::today(dates, tenant, started_at);
                if let Err(error) = &today {
                    let id = tenant.map(|tenant| tenant.id().to_owned());
                    report.fail(Failure::new(FailureKind::TimeZone, id, error.to_string()));
                    report.tenants.failed += 1;
                }
                today.is_ok()
            });
        }
        batches(&list, &positions, job.batch.get()).into()
    }

    /// The tenant list, read after the run was due: the present state.
    async fn tenants(
        &self,
        order: &Order,
        report: &mut Report,
    ) -> Result<Arc<Tenants>, SourceError> {
        let mut retry = 0;
        let mut since = order.asked_at;
        loop {
            self.ask_database()?;
            let now = self.clock.monotonic();
            let result = self.list.read(&self.source, since, now).await;
            since = self.clock.monotonic();
            self.note_database(result.as_ref().err());
            match result {
                Err(error) if is_transient(error.kind) && retry < order.job.retries => {
                    self.wait_to_retry(
                        order,
                        0,
                        retry,
                        (error.kind.failure_kind(), &error.message),
                    )
                    .await;
                    report.retries += 1;
                    retry += 1;
                }
                result => return result,
            }
        }
    }

    async fn wait_to_retry(
        &self,
        order: &Order,
        tenants: usize,
        retry: u32,
        (kind, message): (FailureKind, &str),
    ) {
        let wait = backoff(retry, self.clock.random());
        let (job, run) = (&order.job.name, order.id);
        event::BatchRetried { job, run, tenants, retry, wait, kind, message }.emit(&self.metrics);
        self.clock.sleep(wait).await;
    }

    fn ask_database(&self) -> Result<(), SourceError> {
        if self.breakers.database.allows(self.clock.monotonic()) {
            return Ok(());
        }
        Err(SourceError {
            kind: SourceErrorKind::Unavailable,
            message: "the database is down and is not asked for some seconds".to_owned(),
        })
    }

    fn ask_cache(&self) -> Result<(), &'static str> {
        let allowed = self.breakers.cache.allows(self.clock.monotonic());
        allowed.then_some(()).ok_or("the cache is down and is not asked for some seconds")
    }

    fn note_database(&self, error: Option<&SourceError>) {
        let reached = error.is_none_or(|error| error.kind != SourceErrorKind::Unavailable);
        let change = self.breakers.database.note(reached, self.clock.monotonic());
        self.say_breaker("database", change, error.map(|error| error.message.as_str()));
    }

    fn note_cache(&self, error: Option<&CacheError>) {
        let reached = error.is_none_or(|error| !error.kind.is_transient());
        let change = self.breakers.cache.note(reached, self.clock.monotonic());
        self.say_breaker("cache", change, error.map(|error| error.message.as_str()));
    }

    fn say_breaker(&self, server: &str, change: Option<BreakerChange>, error: Option<&str>) {
        let Some(change) = change else { return };
        let message = match change {
            BreakerChange::Opened => format!("the {server} is down: {}", error.unwrap_or_default()),
            BreakerChange::Closed => format!("the {server} answers again"),
        };
        let open = change == BreakerChange::Opened;
        event::BreakerChanged { open, message: &message }.emit(&self.metrics);
    }

    /// The server's count of evicted keys; a cache that does not tell is no failure.
    async fn evicted(&self) -> Option<u64> {
        self.cache.stats().await.ok().map(|stats| stats.evicted)
    }

    /// What can only be said once the run is over: keys pushed out while it went on, and whether it
    /// came too late for keys that the run before it wrote.
    async fn look_back(
        &self,
        order: &Order,
        finished_at: DateTime<Utc>,
        evicted_before: Option<u64>,
        report: &mut Report,
    ) {
        let job = &order.job;
        if let (Some(before), Some(after)) = (evicted_before, self.evicted().await) {
            report.evicted = after.saturating_sub(before);
        }
        if report.evicted > 0 {
            event::Evictions { job: &job.name, run: order.id, count: report.evicted }
                .emit(&self.metrics);
        }
        let shortest = job.ttl.saturating_sub(job.ttl_jitter.of(job.ttl));
        report.late = order.last_success_started_at.is_some_and(|written_at| {
            (finished_at - written_at).to_std().is_ok_and(|age| age > shortest)
        });
    }
}

/// The tenants that a run is for: positions in the list. Those that were asked for and are not
/// active fail.
fn select(list: &Tenants, wanted: Option<&[TenantId]>, report: &mut Report) -> Vec<u32> {
    let position = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    let Some(wanted) = wanted else { return (0..position(list.len())).collect() };
    let mut left: HashSet<&str> = wanted.iter().map(TenantId::as_str).collect();
    let found = list
        .iter()
        .enumerate()
        .filter(|(_, tenant)| left.remove(tenant.id()))
        .map(|(index, _)| position(index))
        .collect();
    for id in wanted.iter().filter(|id| left.remove(id.as_str())) {
        let message = format!("tenant `{id}` is not among the active tenants");
        report.fail(Failure::new(FailureKind::Tenants, Some(id.to_string()), message));
        report.tenants.total += 1;
        report.tenants.failed += 1;
    }
    found
}

/// The batches of one run.
struct Work {
    runner: Arc<Runner>,
    order: Arc<Order>,
    started_at: DateTime<Utc>,
    key_columns: usize,
    /// The query cannot work for any batch.
    broken: AtomicBool,
    /// Tenants that failed alone since one worked.
    lone_failures: AtomicU32,
}

impl Work {
    /// Does all batches, at most `job.concurrency` of them at once.
    async fn all(
        self: Arc<Self>,
        mut pending: VecDeque<Batch>,
        stops: &Stops,
        mut deadline: BoxFuture<'static, ()>,
        report: &mut Report,
    ) -> End {
        let mut tasks = JoinSet::new();
        let mut draining = false;
        loop {
            if self.broken.load(Ordering::Relaxed) {
                let given_up: usize = pending.drain(..).map(|batch| batch.len()).sum();
                report.tenants.failed += given_up as u64;
            }
            while !draining && tasks.len() < self.order.job.concurrency.get() {
                let Some(batch) = pending.pop_front() else { break };
                tasks.spawn(Arc::clone(&self).warm(batch));
            }
            tokio::select! {
                biased;
                () = stops.abort.cancelled() => {
                    tasks.shutdown().await;
                    return End::Stopped;
                }
                () = &mut deadline => {
                    tasks.shutdown().await;
                    return passed_deadline(&self.order, report);
                }
                () = stops.drain.cancelled(), if !draining => draining = true,
                ended = tasks.join_next() => match ended {
                    Some(Ok(part)) => {
                        self.order.progress.add(&part);
                        report.add(part);
                    }
                    Some(Err(panic)) => {
                        let message = format!("a batch stopped: {panic}");
                        report.fail(Failure::new(FailureKind::Internal, None, message));
                    }
                    None if pending.is_empty() => return End::Complete,
                    None => return End::Stopped,
                },
            }
        }
    }

    /// Warms a batch, split as far as it takes to warm all tenants that can be.
    async fn warm(self: Arc<Self>, batch: Batch) -> Report {
        let mut report = Report::default();
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            if let Err(message) = self.runner.ask_cache() {
                // Rows that cannot be written afterwards would be read for nothing.
                fail_all(&part, FailureKind::CacheUnavailable, message, &mut report);
                continue;
            }
            let error = match self.part(&part, &mut report).await {
                Ok(()) => {
                    self.lone_failures.store(0, Ordering::Relaxed);
                    continue;
                }
                Err(error) => error,
            };
            if self.may_split(&error) {
                match part.split() {
                    Ok((first, second)) => {
                        self.say_split(first.len() + second.len(), &error);
                        parts.extend([second, first]);
                    }
                    Err(alone) => {
                        self.note_lone_failure();
                        fail_all(&alone, error.kind.failure_kind(), &error.message, &mut report);
                    }
                }
            } else {
                fail_all(&part, error.kind.failure_kind(), &error.message, &mut report);
            }
        }
        report
    }

    /// Whether fewer tenants may fare better.
    fn may_split(&self, error: &SourceError) -> bool {
        match error.kind {
            SourceErrorKind::Timeout
            | SourceErrorKind::Data
            | SourceErrorKind::Encoding
            | SourceErrorKind::TooLarge => !self.broken.load(Ordering::Relaxed),
            SourceErrorKind::Definition => {
                self.broken.store(true, Ordering::Relaxed);
                false
            }
            SourceErrorKind::Unavailable
            | SourceErrorKind::Transient
            | SourceErrorKind::Foreign => false,
        }
    }

    fn note_lone_failure(&self) {
        let before = self.lone_failures.fetch_add(1, Ordering::Relaxed);
        if before + 1 >= LONE_FAILURES_TO_GIVE_UP {
            self.broken.store(true, Ordering::Relaxed);
        }
    }

    fn say_split(&self, tenants: usize, error: &SourceError) {
        let (job, run) = (&self.order.job.name, self.order.id);
        let (kind, message) = (error.kind.failure_kind(), error.message.as_str());
        event::BatchSplit { job, run, tenants, kind, message }.emit(&self.runner.metrics);
    }

    /// Reads and writes some tenants. An error means that nothing of theirs was written.
    async fn part(&self, part: &Batch, report: &mut Report) -> Result<(), SourceError> {
        let first_dates = first_dates(&self.order.job, part, self.started_at);
        let mut permit = self.runner.limits.batch().await;
        let read = self.read(part, &first_dates, &mut permit, report).await;
        if let Err(error) = read {
            // A batch can be split; one tenant cannot, so it gets the room of all batches.
            if error.kind != SourceErrorKind::TooLarge || part.len() > 1 {
                return Err(error);
            }
            drop(permit);
            permit = self.runner.limits.giant().await;
            self.read(part, &first_dates, &mut permit, report).await?;
        }
        let (rows, _) = permit.rows();
        let found = entries(&self.order.job, part, &first_dates, rows);
        self.write(part, found, report).await;
        Ok(())
    }

    async fn read(
        &self,
        part: &Batch,
        first_dates: &[NaiveDate],
        permit: &mut BatchPermit,
        report: &mut Report,
    ) -> Result<(), SourceError> {
        let job = &self.order.job;
        let (rows, bytes) = permit.rows();
        let mut retry = 0;
        loop {
            self.runner.ask_database()?;
            rows.reset(self.key_columns, bytes);
            report.queries += 1;
            let read = Read { batch: part, first_dates, timeout: job.timeout };
            let result = self.runner.source.read(job, read, rows).await;
            self.runner.note_database(result.as_ref().err());
            match result {
                Err(error) if is_transient(error.kind) && retry < job.retries => {
                    let reason = (error.kind.failure_kind(), error.message.as_str());
                    self.runner.wait_to_retry(&self.order, part.len(), retry, reason).await;
                    report.retries += 1;
                    retry += 1;
                }
                result => return result,
            }
        }
    }

    async fn write(&self, part: &Batch, found: Entries<'_>, report: &mut Report) {
        let Entries { writes, removals, failures } = found;
        let mut outcome = PartOutcome::new(part, self.order.job.scope);
        for (slot, failure) in failures {
            outcome.fail(slot, failure, report);
        }
        let results = self.write_entries(&writes, report).await;
        for (entry, result) in writes.iter().zip(results) {
            match result {
                Ok(()) => {
                    report.keys.written += 1;
                    report.bytes += entry.value.len() as u64;
                }
                Err(error) => outcome.refuse(entry.slot, &entry.key, &error, report),
            }
        }
        self.remove(removals, &mut outcome, report).await;
        outcome.count(report);
    }

    /// Writes the entries, again where that may help: a repeated write is harmless.
    async fn write_entries(&self, writes: &[Entry<'_>], report: &mut Report) -> Vec<KeyResult> {
        let mut retry = 0;
        loop {
            let results = match self.runner.cache.write(writes).await {
                Ok(results) => results,
                Err(error) => writes.iter().map(|_| Err(error.clone())).collect(),
            };
            let transient =
                |result: &&KeyResult| result.as_ref().is_err_and(|error| error.kind.is_transient());
            let error = results.iter().find(transient).and_then(|result| result.as_ref().err());
            self.runner.note_cache(error);
            match error {
                Some(error) if retry < self.order.job.retries => {
                    let reason = (error.kind.failure_kind(), error.message.as_str());
                    let tenants = writes.len();
                    self.runner.wait_to_retry(&self.order, tenants, retry, reason).await;
                    report.retries += 1;
                    retry += 1;
                }
                _ => return results,
            }
        }
    }

    async fn remove(
        &self,
        removals: Vec<Removal>,
        outcome: &mut PartOutcome<'_>,
        report: &mut Report,
    ) {
        if removals.is_empty() {
            return;
        }
        let (slots, keys): (Vec<_>, Vec<_>) =
            removals.into_iter().map(|removal| (removal.slot, removal.key)).unzip();
        let results = match self.runner.cache.remove(&keys).await {
            Ok(results) => results,
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        };
        for ((slot, key), result) in slots.into_iter().zip(&keys).zip(results) {
            match result {
                Ok(existed) => report.keys.removed += u64::from(existed),
                Err(error) => outcome.refuse(slot, key, &error, report),
            }
        }
    }
}

/// What became of the tenants of a part.
struct PartOutcome<'a> {
    part: &'a Batch,
    failed: Vec<bool>,
}

impl<'a> PartOutcome<'a> {
    fn new(part: &'a Batch, scope: Scope) -> Self {
        let slots = match scope {
            Scope::Tenants => part.len(),
            Scope::Fleet => 1,
        };
        Self { part, failed: vec![false; slots] }
    }

    fn fail(&mut self, slot: usize, failure: Failure, report: &mut Report) {
        if let Some(failed) = self.failed.get_mut(slot) {
            *failed = true;
        }
        report.keys.failed += 1;
        report.fail(failure);
    }

    fn refuse(&mut self, slot: usize, key: &str, error: &CacheError, report: &mut Report) {
        let failure = Failure {
            kind: error.kind.failure_kind(),
            tenant: self.part.tenant(slot).map(|tenant| tenant.id().to_owned()),
            key: Some(key.to_owned()),
            message: error.message.clone(),
            count: 1,
        };
        self.fail(slot, failure, report);
    }

    fn count(self, report: &mut Report) {
        let failed = self.failed.iter().filter(|failed| **failed).count();
        report.tenants.failed += failed as u64;
        report.tenants.ok += (self.failed.len() - failed) as u64;
    }
}

/// Nothing of a part could be written.
fn fail_all(part: &Batch, kind: FailureKind, message: &str, report: &mut Report) {
    let first = part.tenant(0).map(|tenant| tenant.id().to_owned());
    let tenants = part.len().max(1) as u64;
    let mut failure = Failure::new(kind, first, message.to_owned());
    failure.count = tenants;
    report.fail(failure);
    report.tenants.failed += tenants;
}

fn passed_deadline(order: &Order, report: &mut Report) -> End {
    let left = report.tenants.left();
    let timeout = order.job.timeout;
    let message = format!("the run did not end within {timeout:?}; {left} tenants were left");
    report.fail(Failure::new(FailureKind::Deadline, None, message));
    End::Deadline
}

fn is_transient(kind: SourceErrorKind) -> bool {
    match kind {
        SourceErrorKind::Unavailable | SourceErrorKind::Transient => true,
        SourceErrorKind::Timeout
        | SourceErrorKind::Data
        | SourceErrorKind::Encoding
        | SourceErrorKind::TooLarge
        | SourceErrorKind::Foreign
        | SourceErrorKind::Definition => false,
    }
}

/// The tenant list as runs share it: those that start together read it with one query.
///
/// A run may use only a list whose reading began after the run was asked for, or it would miss a
/// tenant that the application created before it triggered the run.
#[derive(Default)]
pub struct TenantList {
    reading: Mutex<Option<Reading>>,
}

struct Reading {
    began: Duration,
    future: WeakShared<ListFuture>,
}

type ListFuture = BoxFuture<'static, Result<Arc<Tenants>, SourceError>>;

impl TenantList {
    /// A list whose reading began at or after the monotonic moment `since`: one that is being read,
    /// or a new one that begins `now`.
    fn read(&self, source: &Arc<dyn Source>, since: Duration, now: Duration) -> Shared<ListFuture> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let young = reading.as_ref().filter(|reading| reading.began >= since);
        if let Some(shared) = young.and_then(|reading| reading.future.upgrade()) {
            return shared;
        }
        let source = Arc::clone(source);
        let future: ListFuture = async move { source.tenants().await.map(Arc::new) }.boxed();
        let shared = future.shared();
        *reading = shared.downgrade().map(|future| Reading { began: now, future });
        shared
    }
}
