//! The run history for workers without a table for it: the newest runs, until the worker ends.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use crate::domain::job::JobName;
use crate::domain::run::{FullRun, Outcome, RunFilter, RunId, RunRecord};
use crate::engine::ports::{Beside, History, HistoryError};

/// The newest runs, in memory.
#[derive(Debug)]
pub struct MemoryHistory {
    capacity: usize,
    records: Mutex<VecDeque<RunRecord>>,
}

impl MemoryHistory {
    /// A history of at most `capacity` runs. When it is full, the oldest run is dropped.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, records: Mutex::default() }
    }

    /// The records. A panic while they are locked leaves them whole, so a poisoned lock is ignored.
    fn records(&self) -> MutexGuard<'_, VecDeque<RunRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History for MemoryHistory {
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>> {
        Box::pin(async move {
            let mut kept = self.records();
            for record in records {
                if kept.iter().any(|known| known.id == record.id) {
                    continue;
                }
                let place = kept.partition_point(|known| known.place() <= record.place());
                kept.insert(place, record.clone());
                if kept.len() > self.capacity {
                    kept.pop_front();
                }
            }
            Ok(())
        })
    }

    fn find<'a>(
        &'a self,
        filter: &'a RunFilter,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = self.records();
            let found = kept.iter().rev().filter(|record| filter.matches(record));
            Ok(found.take(filter.limit).cloned().collect())
        })
    }

    fn recall<'a>(
        &'a self,
        jobs: &'a [JobName],
        newest: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = self.records();
            let mut found = Vec::new();
            for job in jobs {
                let of_job = || kept.iter().rev().filter(|record| record.job == *job);
                let is_ok = |record: &&RunRecord| record.outcome == Outcome::Ok;
                found.extend(of_job().take(newest).cloned());
                found.extend(of_job().find(|record| FullRun::of(record).is_some()).cloned());
                found.extend(of_job().filter(is_ok).find(|record| record.is_for_all()).cloned());
            }
            Ok(found)
        })
    }

    fn beside<'a>(&'a self, run: &'a RunRecord) -> BoxFuture<'a, Result<Beside, HistoryError>> {
        Box::pin(async move {
            let kept = self.records();
            let is_beside = |record: &&RunRecord| {
                record.job == run.job && record.listed_id() != run.listed_id()
            };
            let of_job = || kept.iter().filter(is_beside);
            let earlier = || of_job().rev().filter(|record| record.place() < run.place());
            let is_like = |record: &&RunRecord| {
                record.outcome == Outcome::Ok && record.is_for_all() == run.is_for_all()
            };
            let later = of_job().find(|record| record.place() > run.place());
            Ok(Beside {
                earlier: earlier().next().map(RunRecord::listed_id),
                later: later.map(RunRecord::listed_id),
                last_ok: earlier().find(is_like).cloned(),
            })
        })
    }

    fn parts<'a>(
        &'a self,
        due: &'a [DateTime<Utc>],
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let due: Vec<i64> = due.iter().map(DateTime::timestamp_millis).collect();
            let is_part = |record: &&RunRecord| {
                record.shares.is_some() && due.contains(&record.due_at.timestamp_millis())
            };
            Ok(self.records().iter().filter(is_part).cloned().collect())
        })
    }

    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = self.records();
            Ok(kept.iter().find(|record| record.id == id).cloned())
        })
    }

    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            let mut kept = self.records();
            let all = kept.len();
            kept.retain(|record| record.finished_at >= before);
            Ok((all - kept.len()) as u64)
        })
    }
}
