//! Records of runs that ended. The worker hands them to the history in the background, so that a history
//! which cannot be written never fails or delays a run.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::recent::{MOST_RUNS, Recent};
use crate::domain::job::JobName;
use crate::domain::retry::backoff;
use crate::domain::run::{RunFilter, RunId, RunRecord};
use crate::engine::ports::{Beside, Clock, History, HistoryError};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// How many records wait while the history cannot be written; above that, the oldest are dropped. At a few
/// kilobytes each, they take a few megabytes.
const MAX_WAITING: usize = 1_000;
/// How many records are written at once.
const MAX_APPEND: usize = 100;
/// How often old records are removed.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

/// Records on their way into the history, and the history behind them.
pub struct Records {
    history: Arc<dyn History>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    retention: Duration,
    waiting: Mutex<Waiting>,
    arrived: Notify,
    /// The last runs of each job.
    pub recent: Recent,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Arc<RunRecord>>,
    dropped: u64,
}

impl Records {
    /// Records go to `history` and stay there for `retention`.
    pub fn new(
        history: Arc<dyn History>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        retention: Duration,
    ) -> Arc<Self> {
        let waiting = Mutex::default();
        let (arrived, recent) = (Notify::new(), Recent::default());
        Arc::new(Self { history, clock, metrics, retention, waiting, arrived, recent })
    }

    /// Takes a record; it never waits.
    pub fn push(&self, record: Arc<RunRecord>) {
        self.recent.note(&record);
        let mut waiting = self.lock();
        if waiting.records.len() >= MAX_WAITING {
            waiting.records.pop_front();
            waiting.dropped += 1;
        }
        waiting.records.push_back(record);
        drop(waiting);
        self.arrived.notify_one();
    }

    /// The records that the filter wants, newest first, including those that are not written yet.
    pub async fn find(&self, filter: &RunFilter) -> Result<Vec<RunRecord>, HistoryError> {
        let mut records = self.unwritten(filter);
        records.extend(self.history.find(filter).await?);
        Ok(newest(records, filter))
    }

    /// The records that the filter wants and that are not written yet.
    fn unwritten(&self, filter: &RunFilter) -> Vec<RunRecord> {
        let waiting = self.waiting();
        let wanted = waiting.iter().filter(|record| filter.matches(record));
        wanted.map(|record| RunRecord::clone(record)).collect()
    }

    /// The records that the filter wants among these and those that are not written yet, newest first: what is known
    /// while the history is away.
    pub(crate) fn known<'r>(
        &self,
        others: impl Iterator<Item = &'r Arc<RunRecord>>,
        filter: &RunFilter,
    ) -> Vec<RunRecord> {
        let mut records = self.unwritten(filter);
        let wanted = others.filter(|record| filter.matches(record));
        records.extend(wanted.map(|record| RunRecord::clone(record)));
        newest(records, filter)
    }

    /// The records of the same job beside this one, including those that are not written yet.
    pub async fn beside(&self, run: &RunRecord) -> Result<Beside, HistoryError> {
        let mut beside = self.history.beside(run).await?;
        let waiting = self.waiting();
        let of_job = || waiting.iter().filter(|record| record.job == run.job);
        // Records wait in the order in which their runs ended: a written one may have started later.
        let later = of_job().filter(|record| record.place() > run.place());
        if let (None, Some(later)) = (beside.later, later.min_by_key(|record| record.place())) {
            beside.later = Some(later.id);
        }
        Ok(beside)
    }

    /// Recalls the last runs of these jobs from the history, with one query. If the history is away, it tries again
    /// until it is stopped.
    pub async fn recall(&self, jobs: Vec<JobName>, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            match self.history.recall(&jobs, MOST_RUNS).await {
                Ok(records) => return self.remember(&records),
                Err(_) => failures += 1,
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.clock.sleep(backoff(failures, 1.0)) => {}
            }
        }
    }

    fn remember(&self, records: &[RunRecord]) {
        for record in records {
            self.recent.note(record);
        }
        for (job, recent) in self.recent.all() {
            if let Some(at) = recent.last_success_at {
                event::SuccessRecalled { job: &job, at }.emit(&self.metrics);
            }
        }
    }

    /// One record.
    pub async fn get(&self, id: RunId) -> Result<Option<RunRecord>, HistoryError> {
        if let Some(record) = self.waiting().iter().find(|record| record.id == id) {
            return Ok(Some(RunRecord::clone(record)));
        }
        self.history.get(id).await
    }

    /// Writes records to the history and removes old ones, until it is stopped. Then it tries once more to
    /// write the records that wait.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut failures = 0;
        let mut next_prune = Duration::ZERO;
        loop {
            let written = self.write_waiting().await;
            self.say(written.as_ref().err(), &mut failures);
            if stop.is_cancelled() {
                return;
            }
            if written.is_ok() && self.clock.monotonic() >= next_prune {
                self.prune().await;
                next_prune = self.clock.monotonic() + PRUNE_EVERY;
            }
            let pause = match written {
                Ok(()) => next_prune.saturating_sub(self.clock.monotonic()),
                Err(_) => backoff(failures, 1.0),
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.arrived.notified(), if failures == 0 => {}
                () = self.clock.sleep(pause) => {}
            }
        }
    }

    /// Drops the records that still wait: they are not written any more.
    pub fn give_up(&self) {
        let lost = std::mem::take(&mut self.lock().records).len();
        if lost > 0 {
            event::HistoryLost { lost: lost as u64 }.emit(&self.metrics);
        }
    }

    async fn write_waiting(&self) -> Result<(), HistoryError> {
        loop {
            let some = self.waiting();
            let some: Vec<RunRecord> =
                some.iter().take(MAX_APPEND).map(|record| RunRecord::clone(record)).collect();
            if some.is_empty() {
                return Ok(());
            }
            self.history.append(&some).await?;
            // More may have been dropped in the meantime: remove by id, not by count.
            self.lock().records.retain(|record| some.iter().all(|kept| kept.id != record.id));
        }
    }

    async fn prune(&self) {
        let retention = chrono::TimeDelta::from_std(self.retention).ok();
        // A retention that reaches beyond the calendar keeps all records.
        let before = retention.and_then(|all| self.clock.now().checked_sub_signed(all));
        let Some(before) = before else { return };
        // If the history cannot be pruned now, the task tries again in an hour.
        if let Ok(runs @ 1..) = self.history.prune(before).await {
            event::HistoryPruned { runs }.emit(&self.metrics);
        }
    }

    fn say(&self, error: Option<&HistoryError>, failures: &mut u32) {
        let (buffered, dropped) = {
            let mut waiting = self.lock();
            (waiting.records.len(), std::mem::take(&mut waiting.dropped))
        };
        match error {
            Some(error) if *failures == 0 => {
                let message = error.0.as_str();
                let at = self.clock.now();
                event::HistoryUnavailable { message, buffered, dropped, at }.emit(&self.metrics);
            }
            Some(_) | None if dropped > 0 => {
                event::HistoryDropped { dropped }.emit(&self.metrics);
            }
            Some(_) | None => {}
        }
        if error.is_some() {
            *failures += 1;
        } else if std::mem::take(failures) > 0 {
            event::HistoryBack.emit(&self.metrics);
        }
    }

    /// How many records wait to be written.
    pub fn pending(&self) -> usize {
        self.lock().records.len()
    }

    fn waiting(&self) -> Vec<Arc<RunRecord>> {
        self.lock().records.iter().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As many records as the filter wants, newest first, each once.
fn newest(mut records: Vec<RunRecord>, filter: &RunFilter) -> Vec<RunRecord> {
    records.sort_by_key(|record| Reverse(record.place()));
    records.dedup_by_key(|record| record.id);
    records.truncate(filter.limit);
    records
}
