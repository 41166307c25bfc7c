//! The invalidations of a worker: a few at once; its runs warm the keys again. A draining worker accepts
//! none.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::Invalidator;
use super::report::{InvalidateReport, Invalidated};
use super::request::{InvalidateError, InvalidateRequest};
use crate::domain::change::Touched;
use crate::domain::job::JobName;
use crate::domain::report::{Failure, FailureKind};
use crate::engine::run::{Runner, Stops};
use crate::engine::schedule::handle::{Asker, Handle, JobSelection, RunRequest, Ticket};

/// How many invalidations may be under way at once: each loads the cache with at most one slice at a time.
const MAX_INVALIDATIONS: u32 = 16;

/// Removes keys on request in a worker.
pub struct Invalidations {
    invalidator: Invalidator,
    /// Requests the runs that warm the keys again.
    handle: Handle,
    stops: Stops,
    /// One permit for each invalidation that may be under way.
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// The result of a request to remove keys.
#[derive(Clone, Debug)]
pub struct Invalidation {
    /// What was removed.
    pub report: InvalidateReport,
    /// The runs that warm the keys again, if the request asked for them.
    pub runs: Vec<Ticket>,
}

impl Invalidations {
    /// The invalidations of the worker with this engine, until it stops.
    pub fn new(runner: Arc<Runner>, handle: Handle, stops: Stops) -> Arc<Self> {
        Arc::new(Self {
            invalidator: Invalidator::new(runner),
            handle,
            stops,
            permits: Arc::new(Semaphore::new(MAX_INVALIDATIONS as usize)),
            tasks: TaskTracker::new(),
        })
    }

    /// Removes keys, and requests the runs that warm them again if the request says so. It goes on even if
    /// the caller no longer waits for the answer.
    pub async fn invalidate(
        self: &Arc<Self>,
        request: InvalidateRequest,
    ) -> Result<Invalidation, InvalidateError> {
        self.invalidate_by(request, Asker::default()).await
    }

    /// The same, with who asks for it.
    pub async fn invalidate_by(
        self: &Arc<Self>,
        request: InvalidateRequest,
        asker: Asker,
    ) -> Result<Invalidation, InvalidateError> {
        if self.stops.drain.is_cancelled() || self.stops.abort.is_cancelled() {
            return Err(InvalidateError::Draining);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_none_is_left| InvalidateError::Busy)?;
        let invalidations = Arc::clone(self);
        let done = self.tasks.spawn(async move {
            let done = tokio::select! {
                biased;
                () = invalidations.stops.abort.cancelled() => Err(InvalidateError::Draining),
                done = invalidations.remove_and_warm(&request, asker) => done,
            };
            drop(permit);
            done
        });
        // If the task panicked, that was logged, and the worker goes on.
        done.await.unwrap_or(Err(InvalidateError::Draining))
    }

    /// Ends once the worker drains and no invalidation is under way; from then on there are no permits.
    pub async fn drained(&self) {
        self.stops.requested().await;
        // The semaphore is never closed, so this call only waits; its permits are never returned.
        if let Ok(all) = self.permits.acquire_many(MAX_INVALIDATIONS).await {
            all.forget();
        }
    }

    async fn remove_and_warm(
        &self,
        request: &InvalidateRequest,
        asker: Asker,
    ) -> Result<Invalidation, InvalidateError> {
        let done = self.invalidator.invalidate(request, &self.stops).await?;
        let Invalidated { mut report, touched } = done;
        let touched = if request.rewarm { touched } else { BTreeMap::new() };
        let runs = self.warm_again(touched, asker, &mut report).await;
        Ok(Invalidation { report, runs })
    }

    /// Requests a run of each job for the tenants whose keys were removed.
    async fn warm_again(
        &self,
        touched: BTreeMap<JobName, Touched>,
        asker: Asker,
        report: &mut InvalidateReport,
    ) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        for (job, tenants) in touched {
            let request = RunRequest { jobs: JobSelection::One(job), tenants: tenants.into_ids() };
            match self.handle.request_by(request, asker.clone()).await {
                Ok(taken) => tickets.extend(taken),
                Err(error) => {
                    let message = format!("what was removed is not warmed again: {error}");
                    report.fail(Failure::new(FailureKind::Rewarm, None, message));
                }
            }
        }
        tickets
    }
}
