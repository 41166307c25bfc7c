//! How many loads may run at a time, and how many may wait: without Redis, all reads come to the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Crash;
use crate::flight::Flight;

/// How many may wait for each load that may run.
const WAITING_PER_LOAD: usize = 64;

#[derive(Debug)]
pub(crate) struct Permits {
    loads: Arc<Semaphore>,
    most_waiting: usize,
    waiting: AtomicUsize,
}

impl Permits {
    pub(crate) fn new(loads: usize) -> Self {
        let most_waiting = loads.saturating_mul(WAITING_PER_LOAD);
        Self {
            loads: Arc::new(Semaphore::new(loads.clamp(1, Semaphore::MAX_PERMITS))),
            most_waiting,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a permit. A flight for which a load waits that has a permit does not need one: otherwise
    /// loads that wait for each other could hold all of them.
    pub(crate) async fn acquire(
        &self,
        flight: &Flight,
    ) -> Result<Option<OwnedSemaphorePermit>, Crash> {
        if let Ok(permit) = Arc::clone(&self.loads).try_acquire_owned() {
            return Ok(Some(permit));
        }
        let Some(_place) = Place::take(&self.waiting, self.most_waiting) else {
            return Err(Crash::Exhausted);
        };
        tokio::select! {
            permit = Arc::clone(&self.loads).acquire_owned() => Ok(permit.ok()),
            () = flight.hurried() => Ok(None),
        }
    }
}

/// A place among those who wait.
struct Place<'p> {
    waiting: &'p AtomicUsize,
}

impl<'p> Place<'p> {
    fn take(waiting: &'p AtomicUsize, most: usize) -> Option<Self> {
        let one_more = |count: usize| (count < most).then_some(count + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Self { waiting })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
