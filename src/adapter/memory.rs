//! The run history for workers without a table for it: the newest runs, until the worker ends.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use crate::domain::job::JobName;
use crate::domain::run::{RunId, RunRecord};
use crate::engine::ports::{History, HistoryError};

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
                let place = kept.partition_point(|known| order(known) <= order(record));
                kept.insert(place, record.clone());
                if kept.len() > self.capacity {
                    kept.pop_front();
                }
            }
            Ok(())
        })
    }

    fn recent<'a>(
        &'a self,
        job: Option<&'a JobName>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = self.records();
            let wanted = |record: &&RunRecord| job.is_none_or(|job| record.job == *job);
            Ok(kept.iter().rev().filter(wanted).take(limit).cloned().collect())
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

/// The order of runs. Every history lists the newest first, the reverse of this.
fn order(record: &RunRecord) -> (DateTime<Utc>, RunId) {
    (record.started_at, record.id)
}
