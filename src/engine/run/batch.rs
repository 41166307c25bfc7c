//! The batches of a run. Each is read with one query and written with one pipeline (see `warm.rs`); a batch
//! that fails is split where that helps to find the failing tenants.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::batch_sizes::BatchFit;
use super::broken::hash;
use super::limit::Priority;
use super::ownership::Begun;
use super::retry::{Refusal, Remedy};
use super::runner::Runner;
use super::spec::{RunSpec, Stops};
use crate::domain::batch_size::Observed;
use crate::domain::layout::Checks;
use crate::domain::report::{Failure, FailureKind, Report, Unverified};
use crate::domain::share::{Share, Shares};
use crate::domain::tenant::{Batch, Tenants};
use crate::observe::event;

/// How the work of a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    Deadline,
    Stopped,
    /// The worker may hold no share any more.
    SharesLost,
}

/// When a run began, and when it has to be over.
pub(crate) struct Deadline {
    pub(crate) started_at: DateTime<Utc>,
    /// The moment on the monotonic clock at which it has to be over.
    pub(crate) at: Duration,
    pub(crate) passed: BoxFuture<'static, ()>,
    /// Cancelled when the worker loses the shares that the run is for.
    pub(crate) tenure: CancellationToken,
}

/// If this many tenants in a row fail even alone, and none could be read before, the query itself counts as
/// broken: splitting every batch down to single tenants would only load the database.
pub(crate) const LONE_FAILURES_TO_GIVE_UP: u32 = 16;

/// How often a batch looks whether a lease that is over was renewed.
const LEASE_LOOK: Duration = Duration::from_millis(100);

/// The tenants of a run that no batch has begun with, in the order of their list.
#[derive(Default)]
pub(crate) struct Pending {
    list: Arc<Tenants>,
    together: VecDeque<u32>,
    /// Each is read alone, after the others: by then it is known whether the query works for any tenant.
    apart: VecDeque<u32>,
    /// Whether the batch of a job without tenants is left.
    global: bool,
}

impl Pending {
    /// These positions of the list.
    pub(crate) fn new(list: Arc<Tenants>, together: Vec<u32>, apart: Vec<u32>) -> Self {
        Self { list, together: together.into(), apart: apart.into(), global: false }
    }

    /// A job without tenants.
    pub(crate) fn global() -> Self {
        Self { global: true, ..Self::default() }
    }

    /// The next batch, of at most that many tenants.
    fn next(&mut self, most: NonZeroUsize) -> Option<Batch> {
        if std::mem::take(&mut self.global) {
            return Some(Batch::global());
        }
        let (from, most) = if self.together.is_empty() {
            (&mut self.apart, 1)
        } else {
            (&mut self.together, most.get())
        };
        let positions: Vec<u32> = from.drain(..most.min(from.len())).collect();
        (!positions.is_empty()).then(|| Batch::new(Arc::clone(&self.list), positions))
    }

    /// All that is left.
    fn rest(self) -> Option<Batch> {
        let is_left = !self.is_empty();
        let positions = self.together.into_iter().chain(self.apart).collect();
        is_left.then(|| Batch::new(self.list, positions))
    }

    fn is_empty(&self) -> bool {
        self.together.is_empty() && self.apart.is_empty() && !self.global
    }
}

/// The batches of one run.
pub(crate) struct Work {
    pub(crate) runner: Arc<Runner>,
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) started_at: DateTime<Utc>,
    /// When the run has to be over, on the monotonic clock.
    pub(crate) deadline_at: Duration,
    tenure: CancellationToken,
    pub(crate) key_columns: usize,
    /// Which checks its keys need.
    pub(crate) checks: Checks,
    /// How many tenants a batch has.
    fit: Arc<BatchFit>,
    /// How many tenants are read together, if the times of their queries say how many fit into a batch.
    teaches: Option<usize>,
    /// Why no batch can work; the rest of the run fails with it.
    given_up: OnceLock<Refusal>,
    /// The message of the last read that met a lock, unless a read has worked since.
    locked: Mutex<Option<String>>,
    /// Whether some tenant could be read.
    worked: AtomicBool,
    /// How many tenants have failed alone since the last successful read.
    lone_failures: AtomicU32,
    /// Hashes of the tenants that failed alone.
    alone: Mutex<Vec<u64>>,
}

impl Work {
    pub(crate) fn new(
        runner: Arc<Runner>,
        spec: Arc<RunSpec>,
        deadline: &Deadline,
        pending: &Pending,
    ) -> Arc<Self> {
        let Deadline { started_at, at: deadline_at, ref tenure, passed: _ } = *deadline;
        let key_columns = spec.job.key_columns().len();
        let checks = Checks::new(runner.layout(), &spec.job);
        let fit = runner.batch_sizes.of(&spec.job);
        // The few tenants of a change say little about those of a batch.
        let for_all = spec.is_for_all() && spec.priority == Priority::Regular;
        let teaches = for_all.then_some(pending.together.len());
        Arc::new(Self {
            runner,
            spec,
            started_at,
            deadline_at,
            tenure: tenure.clone(),
            key_columns,
            checks,
            fit,
            teaches,
            given_up: OnceLock::new(),
            locked: Mutex::default(),
            worked: AtomicBool::new(false),
            lone_failures: AtomicU32::new(0),
            alone: Mutex::default(),
        })
    }

    /// Does all batches, at most as many of them at once as the job may have in flight.
    pub(crate) async fn all(
        self: &Arc<Self>,
        mut pending: Pending,
        stops: &Stops,
        mut deadline: BoxFuture<'static, ()>,
        report: &mut Report,
    ) -> End {
        let mut tasks = JoinSet::new();
        let mut in_flight = HashMap::new();
        let at_once = self.runner.limits.shares().of_job(&self.spec.job, self.spec.priority);
        let mut draining = false;
        loop {
            let waits = self.is_lease_over();
            while !draining && !waits && tasks.len() < at_once {
                let Some(batch) = pending.next(self.fit.now().now) else { break };
                let Some((batch, begun)) = self.begin(batch, report) else { continue };
                let warming = Arc::clone(self).warm_or_fail(batch.clone());
                let task = tasks.spawn(async move {
                    let report = warming.await;
                    drop(begun);
                    report
                });
                in_flight.insert(task.id(), batch);
            }
            tokio::select! {
                biased;
                () = stops.abort.cancelled() => {
                    self.stop(tasks, &mut in_flight, report).await;
                    return End::Stopped;
                }
                () = self.tenure.cancelled() => {
                    self.stop(tasks, &mut in_flight, report).await;
                    return End::SharesLost;
                }
                () = &mut deadline => {
                    self.stop(tasks, &mut in_flight, report).await;
                    self.note_not_reached(in_flight.into_values().chain(pending.rest()));
                    return End::Deadline;
                }
                () = stops.drain.cancelled(), if !draining => draining = true,
                () = self.leased(), if waits => {}
                ended = tasks.join_next_with_id(), if !waits || !tasks.is_empty() => match ended {
                    Some(ended) => self.count(ended, &mut in_flight, report),
                    None if pending.is_empty() => return End::Complete,
                    None => return End::Stopped,
                },
            }
        }
    }

    /// Ends when the worker has a lease. While it is over, and nobody has noticed, no batch begins and nothing is written:
    /// a process that was suspended in between does not know how long that was. The run is stopped as soon as somebody
    /// notices.
    pub(crate) async fn leased(&self) {
        while self.is_lease_over() {
            self.runner.clock.sleep(LEASE_LOOK).await;
        }
    }

    fn is_lease_over(&self) -> bool {
        self.spec.shares.is_some() && self.runner.ownership.is_over()
    }

    /// Begins a batch for the tenants whose shares the worker still holds. The other tenants leave the run: the worker
    /// that took their shares has started for them.
    fn begin(&self, batch: Batch, report: &mut Report) -> Option<(Batch, Option<Begun>)> {
        if self.spec.shares.is_none() {
            return Some((batch, None));
        }
        let share = |slot| match batch.tenant(slot) {
            Some(tenant) => Share::of_tenant(tenant.id()),
            None => Share::of_job(&self.spec.job.name),
        };
        let slots = 0..batch.len().max(1);
        let shares: Shares = slots.clone().map(share).collect();
        let begun = self.runner.ownership.begin(shares);
        if begun.held == shares {
            return Some((batch, Some(begun)));
        }
        let held: Vec<usize> = slots.clone().filter(|slot| begun.held.has(share(*slot))).collect();
        report.tenants.total -= (slots.len() - held.len()) as u64;
        self.spec.progress.expect(report.tenants.total);
        (!held.is_empty()).then(|| (batch.some(held), Some(begun)))
    }

    /// Stops the batches in flight. The report counts the batches that had ended by then, and nothing of the
    /// others.
    async fn stop(
        &self,
        mut tasks: JoinSet<Report>,
        in_flight: &mut HashMap<Id, Batch>,
        report: &mut Report,
    ) {
        tasks.abort_all();
        while let Some(ended) = tasks.join_next_with_id().await {
            self.count(ended, in_flight, report);
        }
    }

    fn count(
        &self,
        ended: Result<(Id, Report), JoinError>,
        in_flight: &mut HashMap<Id, Batch>,
        report: &mut Report,
    ) {
        // A batch does not panic (see `warm_or_fail`): one without a report was stopped.
        let Ok((task, part)) = ended else { return };
        in_flight.remove(&task);
        self.spec.progress.add(&part);
        report.add(part);
        report.failed.truncate(self.spec.most_failed);
    }

    /// A batch whose task always ends with a report, even if preheat itself is at fault.
    async fn warm_or_fail(self: Arc<Self>, batch: Batch) -> Report {
        let warm = AssertUnwindSafe(self.warm(batch.clone())).catch_unwind();
        let mut report = warm.await.unwrap_or_else(|_panic| {
            let mut report = Report::default();
            let message = "the batch panicked: this is a defect of preheat";
            fail_all(&batch, FailureKind::Internal, message, &mut report);
            report
        });
        self.note_warmed(&batch, &mut report);
        report
    }

    /// Records the tenants of a batch that are not warm now.
    fn note_warmed(&self, batch: &Batch, report: &mut Report) {
        self.runner.not_warm.settle(&self.spec, batch, report, &self.runner.ports);
        // The run's report does not collect them: they are handed over for follow-ups.
        report.unverified = Unverified::default();
    }

    /// Records that the deadline passed before these batches had ended.
    fn note_not_reached(&self, batches: impl Iterator<Item = Batch>) {
        let message = "the run's deadline passed before the tenant was warm";
        for batch in batches {
            let mut report = Report::default();
            fail_all(&batch, FailureKind::Deadline, message, &mut report);
            self.note_warmed(&batch, &mut report);
        }
    }

    /// Warms a batch, and splits it until every tenant that can be warmed is warmed.
    async fn warm(&self, batch: Batch) -> Report {
        let mut report = Report::default();
        let mut parts = vec![batch];
        let mut is_whole = true;
        while let Some(part) = parts.pop() {
            let teaches = std::mem::take(&mut is_whole) && self.teaches.is_some();
            if let Some(cause) = self.given_up.get() {
                fail_all(&part, cause.kind, &cause.message, &mut report);
                continue;
            }
            let Err(refusal) = self.part(&part, teaches, &mut report).await else { continue };
            let alone = match refusal.remedy {
                Remedy::Split => match part.split() {
                    Ok((first, second)) => {
                        self.say_split(first.len() + second.len(), &refusal);
                        parts.extend([second, first]);
                        continue;
                    }
                    Err(alone) => {
                        self.fail_alone(&alone, refusal, &mut report);
                        continue;
                    }
                },
                Remedy::Wait(_)
                | Remedy::AwaitLock
                | Remedy::StandBy(_)
                | Remedy::Fail
                | Remedy::GiveUp => part,
            };
            fail_all(&alone, refusal.kind, &refusal.message, &mut report);
            self.give_up_after(refusal);
        }
        report
    }

    /// Fails a tenant that cannot be read even alone. If the same tenant failed alone in an earlier run too,
    /// its failure says nothing about the query, unless the query is too slow.
    fn fail_alone(&self, alone: &Batch, refusal: Refusal, report: &mut Report) {
        fail_all(alone, refusal.kind, &refusal.message, report);
        let tenant = alone.tenant(0);
        let job = &self.spec.job.name;
        let is_known = tenant.is_some_and(|tenant| self.runner.broken.has(job, tenant.id()));
        if let Some(tenant) = tenant {
            self.alone().push(hash(tenant.id()));
        }
        if !is_known || refusal.kind == FailureKind::StatementTimeout {
            self.give_up_after(refusal);
        }
    }

    /// Remembers the tenants that failed alone, for the next runs; if the whole query fails, no single tenant
    /// is to blame.
    pub(crate) fn note_broken(&self) {
        if self.given_up.get().is_none() {
            let alone = std::mem::take(&mut *self.alone());
            self.runner.broken.note(&self.spec.job.name, alone);
        }
    }

    fn alone(&self) -> MutexGuard<'_, Vec<u64>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up the rest of the run if the reason why some tenants failed will make all others fail too.
    pub(crate) fn give_up_after(&self, refusal: Refusal) {
        let gives_up = match refusal.remedy {
            Remedy::GiveUp => true,
            // Its retries are used up.
            Remedy::Wait(server) | Remedy::StandBy(server) => self.runner.breaker(server).is_open(),
            Remedy::AwaitLock | Remedy::Fail => false,
            Remedy::Split => {
                let in_a_row = self.lone_failures.fetch_add(1, Ordering::Relaxed) + 1;
                // The query worked for some tenants; but if the database is too slow even for sixteen tenants
                // one by one, it is in trouble.
                let query_is_good = self.worked.load(Ordering::Relaxed)
                    && refusal.kind != FailureKind::StatementTimeout;
                in_a_row >= LONE_FAILURES_TO_GIVE_UP && !query_is_good
            }
        };
        self.runner.cache_writes.note_failure(refusal.kind);
        if gives_up {
            // Another batch may have given up at the same time.
            self.given_up.get_or_init(|| refusal);
        }
    }

    fn say_split(&self, tenants: usize, refusal: &Refusal) {
        let (job, run) = (&self.spec.job.name, self.spec.id);
        let (kind, message) = (refusal.kind, refusal.message.as_str());
        event::BatchSplit { job, run, tenants, kind, message }.emit(&self.runner.metrics);
    }

    /// Takes note of the time of a batch's first query: further batches may be of another size.
    pub(crate) fn observe(&self, tenants: usize, took: Duration, error: Option<FailureKind>) {
        let (Some(all), Some(tenants)) = (self.teaches, NonZeroUsize::new(tenants)) else { return };
        // A query that failed for another reason says nothing about how long it takes.
        if !matches!(error, None | Some(FailureKind::StatementTimeout)) {
            return;
        }
        if let Some(size) = self.fit.observe(Observed { tenants, took }, all) {
            let (job, run) = (&self.spec.job.name, self.spec.id);
            event::BatchesResized { job, run, size }.emit(&self.runner.metrics);
        }
    }

    /// Records that some tenants could be read.
    pub(crate) fn it_worked(&self) {
        self.worked.store(true, Ordering::Relaxed);
        self.lone_failures.store(0, Ordering::Relaxed);
        *self.locked() = None;
    }

    /// The message of the last read that met a lock, unless a read has worked since.
    pub(crate) fn locked(&self) -> MutexGuard<'_, Option<String>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails a part of which nothing could be written.
pub(crate) fn fail_all(part: &Batch, kind: FailureKind, message: &str, report: &mut Report) {
    let first = part.tenant(0).map(|tenant| tenant.id().to_owned());
    let tenants = part.len().max(1) as u64;
    let mut failure = Failure::new(kind, first, message.to_owned());
    failure.count = tenants;
    report.fail(failure);
    let message = Arc::from(message);
    for slot in 0..part.len().max(1) {
        report.fail_tenant(part.tenant(slot).map(|tenant| tenant.id()), kind, &message);
    }
}
