//! One bound over everything: batches in flight, and with them connections and bytes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::port::Clock;
use crate::domain::retry::Breaker;
use crate::domain::row::Rows;

/// What the rows of one batch may take. A hundred tenants with a hundred products each take about
/// half of it; what takes more is split.
pub const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Memory that a batch's rows leave for the next batch's: what most batches take. The rest goes back.
const SPARE_BYTES: usize = BATCH_BYTES / 2;

/// What the rows of one tenant alone may take. Such a tenant waits until no other batch is in
/// flight, so this is the bound on all rows together while it is read.
pub const GIANT_BYTES: usize = 256 * 1024 * 1024;

/// Failures in a row, of all batches, after which a server is not asked any more for a while. Fewer
/// than a batch's tries with the default `retries`, so that its last try comes after the pause.
const FAILURES_TO_OPEN: u32 = 3;
/// How long it is left alone.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

/// Who gets a permit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lane {
    /// In the order of asking.
    #[default]
    Regular,
    /// Before all that are regular: data changed, and somebody may be reading what was.
    Urgent,
}

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
    /// The memory for the batch's rows, empty for rows with so many key columns, and bounded.
    pub fn empty_rows(&mut self, key_columns: usize) -> &mut Rows {
        self.rows.reset(key_columns, self.bytes);
        &mut self.rows
    }

    /// The batch's rows.
    pub fn rows(&self) -> &Rows {
        &self.rows
    }
}

impl Drop for BatchPermit {
    fn drop(&mut self) {
        let mut rows = std::mem::take(&mut self.rows);
        rows.shrink(SPARE_BYTES);
        let mut spare = self.limits.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.limits.concurrency as usize {
            spare.push(rows);
        }
    }
}

/// The breaker of one server, shared by all batches.
#[derive(Debug)]
pub struct SharedBreaker {
    breaker: Mutex<Breaker>,
    closed: Notify,
}

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
        let breaker = Mutex::new(Breaker::new(FAILURES_TO_OPEN, BREAKER_PAUSE));
        Self { breaker, closed: Notify::new() }
    }
}

impl SharedBreaker {
    /// Whether the server may be asked at the monotonic moment `now`; what comes of it must be
    /// told to [`Self::note`].
    pub fn try_start(&self, now: Duration) -> bool {
        self.lock().try_start(now)
    }

    /// Takes note of whether the server could be reached; says if that changed the breaker.
    pub fn note(&self, reached: bool, now: Duration) -> Option<BreakerChange> {
        let mut breaker = self.lock();
        let before = breaker.is_open();
        if reached {
            breaker.succeeded();
        } else {
            breaker.failed(now);
        }
        match (before, breaker.is_open()) {
            (false, true) => Some(BreakerChange::Opened),
            (true, false) => {
                self.closed.notify_waiters();
                Some(BreakerChange::Closed)
            }
            (true, true) | (false, false) => None,
        }
    }

    /// How long the server may not be asked, at the monotonic moment `now`; `None` where it may.
    pub fn pause_left(&self, now: Duration) -> Option<Duration> {
        self.lock().pause_left(now)
    }

    /// Whether the server counts as down.
    pub fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    /// Ends when the server may be asked again, but not before `least` has passed while nobody found
    /// it up.
    pub async fn pause(&self, least: Duration, clock: &dyn Clock) {
        // Made before the look at the breaker, so that its closing in between is not missed.
        let closed = self.closed.notified();
        let left = self.lock().pause_left(clock.monotonic());
        tokio::select! {
            biased;
            () = closed, if left.is_some() => {}
            () = clock.sleep(least.max(left.unwrap_or_default())) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
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
        let giant = giant.await;
        assert_eq!(giant.bytes, GIANT_BYTES);
        assert!(limits.batch().now_or_never().is_none());
        drop(giant);
        assert!(limits.batch().now_or_never().is_some());
    }
}
