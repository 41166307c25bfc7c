//! One bound over everything: batches in flight, and with them connections and bytes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::retry::Breaker;
use crate::domain::row::Rows;

/// What the rows of one batch may take. A hundred tenants with a hundred products each take about
/// half of it; what takes more is split.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What the rows of one tenant alone may take. Such a tenant waits until no other batch is in
/// flight, so this is the bound on all rows together while it is read.
pub const GIANT_BYTES: usize = 256 * 1024 * 1024;

/// Failures in a row after which a server is not asked any more for a while.
const FAILURES_TO_OPEN: u32 = 5;
/// How long it is left alone.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

/// The batches in flight over all jobs.
///
/// A batch holds its permit from before its query until after its last write, so `concurrency`
/// bounds the connections that are used, the pipelines that are open and, times [`BATCH_BYTES`],
/// the memory that rows take.
#[derive(Debug)]
pub struct Limits {
    batches: Arc<Semaphore>,
    concurrency: u32,
    /// Memory of batches that ended, for the next ones.
    spare: Mutex<Vec<Rows>>,
}

/// The right to have one batch in flight, and memory for its rows. Both go back when it is dropped.
#[derive(Debug)]
pub struct BatchPermit {
    limits: Arc<Limits>,
    rows: Rows,
    bytes: usize,
    _permit: OwnedSemaphorePermit,
}

impl Limits {
    /// At most so many batches in flight.
    pub fn new(concurrency: u32) -> Arc<Self> {
        let concurrency = concurrency.max(1);
        Arc::new(Self {
            batches: Arc::new(Semaphore::new(concurrency as usize)),
            concurrency,
            spare: Mutex::new(Vec::new()),
        })
    }

    /// Waits for the right to have a batch in flight. Whoever asked first gets it first, whatever
    /// its job.
    pub async fn batch(self: &Arc<Self>) -> BatchPermit {
        self.acquire(1, BATCH_BYTES).await
    }

    /// Waits until nothing else is in flight, for one tenant that is too large for a batch.
    pub async fn giant(self: &Arc<Self>) -> BatchPermit {
        self.acquire(self.concurrency, GIANT_BYTES).await
    }

    async fn acquire(self: &Arc<Self>, permits: u32, bytes: usize) -> BatchPermit {
        let semaphore = Arc::clone(&self.batches);
        let Ok(permit) = semaphore.acquire_many_owned(permits).await else {
            unreachable!("the semaphore is never closed")
        };
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let rows = spare.unwrap_or_default();
        BatchPermit { limits: Arc::clone(self), rows, bytes, _permit: permit }
    }
}

impl BatchPermit {
    /// The memory for the batch's rows, and how many bytes of it may be used.
    pub fn rows(&mut self) -> (&mut Rows, usize) {
        (&mut self.rows, self.bytes)
    }
}

impl Drop for BatchPermit {
    fn drop(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.shrink(BATCH_BYTES);
        let mut spare = self.limits.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.limits.concurrency as usize {
            spare.push(rows);
        }
    }
}

/// The breaker of one server, shared by all batches.
#[derive(Debug)]
pub struct SharedBreaker(Mutex<Breaker>);

/// A breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerChange {
    /// The server is not asked any more for a while.
    Opened,
    /// It answers again.
    Closed,
}

impl Default for SharedBreaker {
    fn default() -> Self {
        Self(Mutex::new(Breaker::new(FAILURES_TO_OPEN, BREAKER_PAUSE)))
    }
}

impl SharedBreaker {
    /// Whether the server may be asked at the monotonic moment `now`.
    pub fn allows(&self, now: Duration) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).try_start(now)
    }

    /// Takes note of whether the server could be reached; says if that changed the breaker.
    pub fn note(&self, reached: bool, now: Duration) -> Option<BreakerChange> {
        let mut breaker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = breaker.is_open();
        if reached {
            breaker.succeeded();
        } else {
            breaker.failed(now);
        }
        match (before, breaker.is_open()) {
            (false, true) => Some(BreakerChange::Opened),
            (true, false) => Some(BreakerChange::Closed),
            (true, true) | (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn a_giant_waits_until_nothing_else_is_in_flight_and_then_has_everything() {
        let limits = Limits::new(2);
        let first = limits.batch().await;
        let giant = limits.giant();
        tokio::pin!(giant);
        assert!(giant.as_mut().now_or_never().is_none());
        assert!(limits.batch().now_or_never().is_none(), "a batch queues behind the giant");
        drop(first);
        let mut giant = giant.await;
        assert_eq!(giant.rows().1, GIANT_BYTES);
        assert!(limits.batch().now_or_never().is_none());
        drop(giant);
        assert!(limits.batch().now_or_never().is_some());
    }
}
