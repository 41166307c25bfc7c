//! The batches of a run: each is read with one query and written with one pipeline, and split where
//! that helps to find the tenant that fails.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::{JoinError, JoinSet};

use super::limit::BatchPermit;
use super::port::{CacheError, CacheErrorKind, KeyResult, Read};
use super::run::{End, Order, Runner, Stops};
use super::tries::{Refusal, Remedy, Tries};
use crate::domain::date::first_dates;
use crate::domain::entry::{Entries, Entry, Removal, entries};
use crate::domain::job::Scope;
use crate::domain::report::{Failure, FailureKind, Report};
use crate::domain::tenant::Batch;
use crate::observe::event::{self, Server};

/// After so many tenants in a row that fail even alone, where none worked yet, the query itself is
/// taken to be broken: splitting every batch down to single tenants would only load the database.
const LONE_FAILURES_TO_GIVE_UP: u32 = 16;

/// How much later than the run's deadline a server gives a query up: the deadline itself is to end
/// the run, and not a query that failed a moment before.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);

/// The batches of one run.
pub(super) struct Work {
    runner: Arc<Runner>,
    order: Arc<Order>,
    started_at: DateTime<Utc>,
    /// When the run has to be over, on the monotonic clock.
    deadline_at: Duration,
    key_columns: usize,
    /// Why no batch can work; the rest of the run fails with it.
    given_up: OnceLock<Refusal>,
    /// Some tenant could be read.
    worked: AtomicBool,
    /// Tenants that failed alone since one could be read.
    lone_failures: AtomicU32,
}

/// How much of the room for rows a batch gets.
#[derive(Clone, Copy)]
enum Room {
    /// That of one batch.
    Batch,
    /// That of all: nothing else is in flight.
    Giant,
}

impl Work {
    pub(super) fn new(
        runner: Arc<Runner>,
        order: Arc<Order>,
        started_at: DateTime<Utc>,
        deadline_at: Duration,
    ) -> Arc<Self> {
        let key_columns = order.job.key_columns().len();
        Arc::new(Self {
            runner,
            order,
            started_at,
            deadline_at,
            key_columns,
            given_up: OnceLock::new(),
            worked: AtomicBool::new(false),
            lone_failures: AtomicU32::new(0),
        })
    }

    /// Does all batches, at most `job.concurrency` of them at once.
    pub(super) async fn all(
        self: Arc<Self>,
        mut pending: VecDeque<Batch>,
        stops: &Stops,
        mut deadline: BoxFuture<'static, ()>,
        report: &mut Report,
    ) -> End {
        let mut tasks = JoinSet::new();
        let mut draining = false;
        loop {
            while !draining && tasks.len() < self.order.job.concurrency.get() {
                let Some(batch) = pending.pop_front() else { break };
                tasks.spawn(Arc::clone(&self).warm_or_fail(batch));
            }
            tokio::select! {
                biased;
                () = stops.abort.cancelled() => {
                    self.stop(tasks, report).await;
                    return End::Stopped;
                }
                () = &mut deadline => {
                    self.stop(tasks, report).await;
                    return End::Deadline;
                }
                () = stops.drain.cancelled(), if !draining => draining = true,
                ended = tasks.join_next() => match ended {
                    Some(ended) => self.count(ended, report),
                    None if pending.is_empty() => return End::Complete,
                    None => return End::Stopped,
                },
            }
        }
    }

    /// Stops the batches in flight. What they wrote is not counted, but that of those which had
    /// ended is.
    async fn stop(&self, mut tasks: JoinSet<Report>, report: &mut Report) {
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            self.count(ended, report);
        }
    }

    fn count(&self, ended: Result<Report, JoinError>, report: &mut Report) {
        // A batch does not panic (see `warm_or_fail`): one without a report was stopped.
        let Ok(part) = ended else { return };
        self.order.progress.add(&part);
        report.add(part);
    }

    /// A batch whose task always ends with a report, even if preheat itself is at fault.
    async fn warm_or_fail(self: Arc<Self>, batch: Batch) -> Report {
        let warm = AssertUnwindSafe(self.warm(batch.clone())).catch_unwind();
        warm.await.unwrap_or_else(|_panic| {
            let mut report = Report::default();
            let message = "the batch panicked: this is a defect of preheat";
            fail_all(&batch, FailureKind::Internal, message, &mut report);
            report
        })
    }

    /// Warms a batch, split as far as it takes to warm all tenants that can be.
    async fn warm(&self, batch: Batch) -> Report {
        let mut report = Report::default();
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            if let Some(cause) = self.given_up.get() {
                fail_all(&part, cause.kind, &cause.message, &mut report);
                continue;
            }
            let Err(refusal) = self.part(&part, &mut report).await else { continue };
            let alone = match refusal.remedy {
                Remedy::Split => match part.split() {
                    Ok((first, second)) => {
                        self.say_split(first.len() + second.len(), &refusal);
                        parts.extend([second, first]);
                        continue;
                    }
                    Err(alone) => alone,
                },
                Remedy::Wait(_) | Remedy::Fail | Remedy::GiveUp => part,
            };
            fail_all(&alone, refusal.kind, &refusal.message, &mut report);
            self.give_up_after(refusal);
        }
        report
    }

    /// Gives the rest of the run up where what some tenants failed of will fail all others too.
    fn give_up_after(&self, refusal: Refusal) {
        let gives_up = match refusal.remedy {
            Remedy::GiveUp => true,
            // It was tried as often as it may be.
            Remedy::Wait(server) => self.runner.breaker(server).is_open(),
            Remedy::Fail => false,
            Remedy::Split => {
                let in_a_row = self.lone_failures.fetch_add(1, Ordering::Relaxed) + 1;
                // The query worked for some; but a database that is too slow for sixteen tenants,
                // one by one, is in trouble.
                let query_is_good = self.worked.load(Ordering::Relaxed)
                    && refusal.kind != FailureKind::StatementTimeout;
                in_a_row >= LONE_FAILURES_TO_GIVE_UP && !query_is_good
            }
        };
        if gives_up {
            // Another batch may have come to the same at the same time.
            self.given_up.get_or_init(|| refusal);
        }
    }

    fn say_split(&self, tenants: usize, refusal: &Refusal) {
        let (job, run) = (&self.order.job.name, self.order.id);
        let (kind, message) = (refusal.kind, refusal.message.as_str());
        event::BatchSplit { job, run, tenants, kind, message }.emit(&self.runner.metrics);
    }

    /// Reads and writes some tenants. A refusal means that nothing of theirs was written.
    async fn part(&self, part: &Batch, report: &mut Report) -> Result<(), Refusal> {
        let first_dates = first_dates(&self.order.job, part, self.started_at);
        let permit = match self.read(part, &first_dates, Room::Batch, report).await {
            // A batch can be split; one tenant cannot, so it gets the room of all batches.
            Err(refusal) if refusal.kind == FailureKind::TooManyRows && part.len() <= 1 => {
                self.read(part, &first_dates, Room::Giant, report).await?
            }
            read => read?,
        };
        self.worked.store(true, Ordering::Relaxed);
        self.lone_failures.store(0, Ordering::Relaxed);
        let found = entries(&self.order.job, part, &first_dates, permit.rows());
        self.write(part, found, report).await;
        Ok(())
    }

    /// Reads until it works, or may not be tried again; the permit holds the rows. None is held
    /// while it waits: other jobs go on.
    async fn read(
        &self,
        part: &Batch,
        first_dates: &[NaiveDate],
        room: Room,
        report: &mut Report,
    ) -> Result<BatchPermit, Refusal> {
        let mut tries = Tries::new(&self.runner, &self.order, part.len());
        loop {
            let refusal = match self.read_once(part, first_dates, room, report).await {
                Ok(permit) => return Ok(permit),
                Err(refusal) => refusal,
            };
            if !tries.again(&refusal, report).await {
                return Err(refusal);
            }
        }
    }

    async fn read_once(
        &self,
        part: &Batch,
        first_dates: &[NaiveDate],
        room: Room,
        report: &mut Report,
    ) -> Result<BatchPermit, Refusal> {
        let runner = &self.runner;
        let mut permit = match room {
            Room::Batch => runner.limits.batch(self.order.lane).await,
            Room::Giant => runner.limits.giant(self.order.lane).await,
        };
        // Rows that cannot be written afterwards would be read for nothing.
        if runner.breaker(Server::Cache).pause_left(runner.clock.monotonic()).is_some() {
            return Err(Refusal::left_alone(Server::Cache));
        }
        runner.may_ask(Server::Database)?;
        report.queries += 1;
        let left = self.deadline_at.saturating_sub(runner.clock.monotonic());
        let read = Read { batch: part, first_dates, timeout: left + DEADLINE_GRACE };
        let rows = permit.empty_rows(self.key_columns);
        let result = runner.source.read(&self.order.job, read, rows).await;
        runner.note_query(result.as_ref().err());
        result?;
        Ok(permit)
    }

    async fn write(&self, part: &Batch, found: Entries<'_>, report: &mut Report) {
        let Entries { writes, removals, failures } = found;
        let mut outcome = PartOutcome::new(part, self.order.job.scope);
        for (slot, failure) in failures {
            report.keys.failed += 1;
            outcome.fail(slot, failure, report);
        }
        let results = self.write_entries(part, &writes, report).await;
        for (entry, result) in writes.iter().zip(results) {
            match result {
                Ok(()) => {
                    report.keys.written += 1;
                    report.bytes += entry.value.len() as u64;
                }
                Err(error) => {
                    report.keys.failed += 1;
                    outcome.refuse(entry.slot, &entry.key, &error, report);
                }
            }
        }
        self.remove(removals, &mut outcome, report).await;
        outcome.count(report);
    }

    /// Writes the entries, again where that may help: a repeated write is harmless.
    async fn write_entries(
        &self,
        part: &Batch,
        writes: &[Entry<'_>],
        report: &mut Report,
    ) -> Vec<KeyResult> {
        if writes.is_empty() {
            return Vec::new();
        }
        let mut tries = Tries::new(&self.runner, &self.order, part.len());
        loop {
            let results = self.write_once(writes).await;
            let Some(error) = results.iter().find_map(transient) else { return results };
            let refusal = Refusal::from(error.clone());
            if !tries.again(&refusal, report).await {
                self.give_up_after(refusal);
                return results;
            }
        }
    }

    async fn write_once(&self, writes: &[Entry<'_>]) -> Vec<KeyResult> {
        let all = |error: CacheError| writes.iter().map(|_| Err(error.clone())).collect();
        if let Err(refusal) = self.runner.may_ask(Server::Cache) {
            let (kind, message) = (CacheErrorKind::Unavailable, refusal.message);
            return all(CacheError { kind, message });
        }
        let results = self.runner.cache.write(writes).await.unwrap_or_else(all);
        // One answer that is no such error shows that the server is there.
        let unreachable = results.iter().all(|result| transient(result).is_some());
        let error = results.first().and_then(transient).filter(|_| unreachable);
        self.runner.note(Server::Cache, error.map(|error| error.message.as_str()));
        results
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
                // The key counts as failed already: it is here because it could not be written.
                Err(error) => outcome.refuse(slot, key, &error, report),
            }
        }
    }
}

fn transient(result: &KeyResult) -> Option<&CacheError> {
    result.as_ref().err().filter(|error| error.kind.is_transient())
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
