//! Records of runs that ended. The worker hands them to the history in the background, so that a history
//! which cannot be written never fails or delays a run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::recent::{MOST_RUNS, Recent};
use crate::domain::job::JobName;
use crate::domain::retry::backoff;
use crate::domain::run::{Outcome, RunFilter, RunId, RunPlace, RunRecord};
use crate::domain::share::Shares;
use crate::domain::whole;
use crate::engine::ports::{Beside, Clock, History, HistoryError};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// How many records wait while the history cannot be written; above that, the oldest are dropped. At a few
/// kilobytes each, they take a few megabytes.
const MAX_WAITING: usize = 1_000;
/// How many records are written at once.
const MAX_APPEND: usize = 100;
/// How many records are read for each run that a page of a list still lacks, where a fleet's runs have parts.
const PARTS_A_RUN: usize = 4;
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
        Self::for_shares(Shares::ALL, history, (clock, metrics), retention)
    }

    /// The same, for a worker whose runs together are for these shares: its own, or all of a fleet.
    pub fn for_shares(
        whole: Shares,
        history: Arc<dyn History>,
        (clock, metrics): (Arc<dyn Clock>, Arc<Metrics>),
        retention: Duration,
    ) -> Arc<Self> {
        let waiting = Mutex::default();
        let (arrived, recent) = (Notify::new(), Recent::for_shares(whole));
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

    /// One page of the runs that the filter wants, newest first, including those that are not written yet. The parts of a
    /// fleet's run are one run, which stands where the newest of its parts that the filter wants stands.
    pub async fn page(&self, filter: &RunFilter) -> Result<RunPage, HistoryError> {
        // One more shows whether another page follows.
        let mut wanted = RunFilter { limit: filter.limit + 1, ..filter.clone() };
        let mut runs = Runs::new(filter);
        loop {
            let records = self.find(&wanted).await?;
            let is_last = records.len() < wanted.limit;
            wanted.after = records.last().map(RunRecord::place);
            let due: Vec<_> = records.iter().filter(|it| is_part(it)).map(|it| it.due_at).collect();
            // Without a fleet, this is all.
            let parts = if due.is_empty() { Vec::new() } else { self.parts(&due).await? };
            runs.add(records, parts);
            if is_last || runs.found.len() > filter.limit {
                return Ok(runs.page());
            }
            wanted.limit = filter.limit.saturating_mul(PARTS_A_RUN);
        }
    }

    /// The records that the filter wants, newest first, including those that are not written yet.
    async fn find(&self, filter: &RunFilter) -> Result<Vec<RunRecord>, HistoryError> {
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

    /// The parts of the runs that were due, or requested, in the same milliseconds as these moments.
    async fn parts(&self, due: &[DateTime<Utc>]) -> Result<Vec<RunRecord>, HistoryError> {
        let mut parts = self.history.parts(due).await?;
        let millis: BTreeSet<i64> = due.iter().map(DateTime::timestamp_millis).collect();
        for waiting in self.waiting() {
            let is_due = waiting.shares.is_some()
                && millis.contains(&waiting.due_at.timestamp_millis())
                && parts.iter().all(|part| part.id != waiting.id);
            if is_due {
                parts.push(RunRecord::clone(&waiting));
            }
        }
        Ok(parts)
    }

    /// The runs of a fleet that these are parts of; while the history is away, each as it is.
    pub(crate) async fn whole_runs(&self, runs: Vec<Arc<RunRecord>>) -> Vec<Arc<RunRecord>> {
        let due: Vec<_> = runs.iter().filter(|run| is_part(run)).map(|run| run.due_at).collect();
        if due.is_empty() {
            return runs;
        }
        let parts = self.parts(&due).await.unwrap_or_default();
        let whole = |run: Arc<RunRecord>| {
            let of_run = parts.iter().filter(|part| part.listed_id() == run.listed_id());
            whole::one(of_run.cloned().collect()).map_or(run, Arc::new)
        };
        runs.into_iter().map(whole).collect()
    }

    /// A fleet's run, by the records of its parts.
    async fn whole(&self, id: RunId) -> Result<Option<RunRecord>, HistoryError> {
        let Some(due_at) = id.millisecond() else { return Ok(None) };
        let mut parts = self.parts(&[due_at]).await?;
        parts.retain(|part| part.part_of().is_some_and(|(run, _)| run == id));
        Ok(whole::one(parts))
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
        whole::together(newest(records, filter))
    }

    /// The runs of the same job beside this one, including those that are not written yet.
    pub async fn beside(&self, run: &RunRecord) -> Result<Beside, HistoryError> {
        let mut beside = self.history.beside(run).await?;
        if let Some((id, _)) = beside.last_ok.as_ref().and_then(RunRecord::part_of) {
            let is_like = |before: &RunRecord| {
                before.outcome == Outcome::Ok
                    && !run.parts.is_empty()
                    && whole::missing(before) == whole::missing(run)
            };
            beside.last_ok = self.whole(id).await?.filter(is_like);
        }
        let waiting = self.waiting();
        let is_other = |record: &&Arc<RunRecord>| {
            record.job == run.job && record.listed_id() != run.listed_id()
        };
        let of_job = || waiting.iter().filter(is_other);
        // Records wait in the order in which their runs ended: a written one may have started later.
        let later = of_job().filter(|record| record.place() > run.place());
        if let (None, Some(later)) = (beside.later, later.min_by_key(|record| record.place())) {
            beside.later = Some(later.listed_id());
        }
        Ok(beside)
    }

    /// Recalls the last runs of these jobs from the history, with one query, or with two if a fleet did them. If the
    /// history is away, it tries again until it is stopped.
    pub async fn recall(&self, jobs: Vec<JobName>, stop: CancellationToken) {
        let mut failures = 0;
        loop {
            match self.recall_once(&jobs).await {
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

    async fn recall_once(&self, jobs: &[JobName]) -> Result<Vec<RunRecord>, HistoryError> {
        let records = self.history.recall(jobs, MOST_RUNS).await?;
        if records.iter().any(is_part) {
            return self.history.recall(jobs, MOST_RUNS * PARTS_A_RUN).await;
        }
        Ok(records)
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

    /// One run: a record, or the sum of the parts of a fleet's run.
    pub async fn get(&self, id: RunId) -> Result<Option<RunRecord>, HistoryError> {
        if let Some(record) = self.waiting().iter().find(|record| record.id == id) {
            return Ok(Some(RunRecord::clone(record)));
        }
        match self.history.get(id).await? {
            Some(record) => Ok(Some(record)),
            None => self.whole(id).await,
        }
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

fn is_part(record: &RunRecord) -> bool {
    record.part_of().is_some()
}

/// A list of runs, while the records that the filter wants are read, newest first.
struct Runs<'f> {
    filter: &'f RunFilter,
    /// The fleet's runs that were met already.
    met: BTreeSet<RunId>,
    /// The runs, each with its place.
    found: Vec<(RunPlace, RunRecord)>,
}

/// One page of a list of runs.
#[derive(Clone, Debug, Default)]
pub struct RunPage {
    /// The runs, newest first.
    pub runs: Vec<RunRecord>,
    /// The place after which the next page begins; `None` if this is the last.
    pub next: Option<RunPlace>,
}

impl<'f> Runs<'f> {
    fn new(filter: &'f RunFilter) -> Self {
        Self { filter, met: BTreeSet::new(), found: Vec::new() }
    }

    /// Adds the next records; `parts` are all parts of their runs.
    fn add(&mut self, records: Vec<RunRecord>, parts: Vec<RunRecord>) {
        let mut of_run: BTreeMap<RunId, Vec<RunRecord>> = BTreeMap::new();
        for part in parts {
            if let Some((run, _)) = part.part_of() {
                of_run.entry(run).or_default().push(part);
            }
        }
        for record in records {
            let Some((run, _)) = record.part_of() else {
                self.found.push((record.place(), record));
                continue;
            };
            if !self.met.insert(run) {
                continue;
            }
            let place = record.place();
            let parts = of_run.remove(&run).unwrap_or_else(|| vec![record]);
            self.add_run(place, parts);
        }
    }

    /// Adds a run whose newest part on this page stands at that place.
    fn add_run(&mut self, place: RunPlace, parts: Vec<RunRecord>) {
        let anywhere = RunFilter { after: None, ..self.filter.clone() };
        let newest = parts.iter().filter(|part| anywhere.matches(part)).map(RunRecord::place).max();
        if newest.is_some_and(|newest| newest > place) {
            // It stands on an earlier page.
            return;
        }
        let is_wanted =
            |run: &RunRecord| self.filter.outcome.is_none_or(|outcome| run.outcome == outcome);
        self.found.extend(whole::one(parts).filter(is_wanted).map(|run| (place, run)));
    }

    fn page(mut self) -> RunPage {
        let has_more = self.found.len() > self.filter.limit;
        self.found.truncate(self.filter.limit);
        let next = self.found.last().map(|(place, _)| *place).filter(|_| has_more);
        RunPage { runs: self.found.into_iter().map(|(_, run)| run).collect(), next }
    }
}
