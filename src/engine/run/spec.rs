//! What a run is to do, its result, and how it is stopped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::limit::Priority;
use super::progress::Progress;
use crate::domain::job::{Job, JobName};
use crate::domain::report::{Failed, MAX_FAILED, Unverified};
use crate::domain::run::{RunId, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::domain::slots::Extent;
use crate::domain::tenant::TenantId;
use crate::domain::trace::TraceParent;
use crate::domain::who::Who;
use crate::engine::ports::Clock;

/// One run to do.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// Its id.
    pub id: RunId,
    /// Its job.
    pub job: Arc<Job>,
    /// Why it starts.
    pub trigger: Trigger,
    /// Who asked for it, if that is known.
    pub requested_by: Option<Who>,
    /// The trace of the request that asked for it.
    pub parent: Option<TraceParent>,
    /// When it was due or asked for.
    pub due_at: DateTime<Utc>,
    /// The same moment on the monotonic clock.
    pub asked_at: Duration,
    /// The tenants to warm; all active ones if it is `None`.
    pub tenants: Option<Vec<TenantId>>,
    /// The shares whose tenants it warms, for as long as the worker holds them. `None`: it warms its tenants even if
    /// other workers hold their shares. So does a command, and every run of a worker without a fleet.
    pub shares: Option<Shares>,
    /// Whether it is only for shares that the worker has just taken, beside others that it held before.
    pub is_takeover: bool,
    /// It leaves out the tenants that have no keys there.
    pub extent: Extent,
    /// When the job's last run over all tenants started, on the monotonic clock: the keys that it wrote may
    /// expire one TTL later.
    pub last_written_at: Option<Duration>,
    /// Where the run reports its progress.
    pub progress: Arc<Progress>,
    /// How its batches queue for their permits.
    pub priority: Priority,
    /// How many failed tenants are named one by one.
    pub most_failed: usize,
    /// Where the run hands over its unverified tenants.
    pub handover: Arc<Handover>,
}

impl RunSpec {
    /// A run that is requested at this moment, for these tenants or for all.
    pub fn on_request(clock: &dyn Clock, job: &Arc<Job>, tenants: Option<Vec<TenantId>>) -> Self {
        let now = clock.now();
        Self {
            id: RunId::new(now),
            job: Arc::clone(job),
            trigger: Trigger::Request,
            parent: None,
            requested_by: None,
            due_at: now,
            asked_at: clock.monotonic(),
            tenants,
            shares: None,
            is_takeover: false,
            extent: Extent::All,
            last_written_at: None,
            progress: Arc::new(Progress::default()),
            priority: Priority::Regular,
            most_failed: MAX_FAILED,
            handover: Arc::default(),
        }
    }

    /// Whether it is for all tenants: in a fleet, for all of the worker's own.
    pub fn is_for_all(&self) -> bool {
        self.covers_all() && !self.is_takeover
    }

    /// Whether it is for all tenants of its shares.
    pub fn covers_all(&self) -> bool {
        self.tenants.is_none() && self.extent == Extent::All
    }
}

/// A run that ended.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// Its record.
    pub record: RunRecord,
    /// The tenants that failed.
    pub failed: Failed,
}

/// Unverified tenants on their way from their run to the place that starts the follow-up.
///
/// A run hands them over when their batch ends, since their values live only for the provisional TTL, and the
/// run itself may go on for much longer. The handover holds each tenant of a run at most once.
#[derive(Debug, Default)]
pub struct Handover {
    unverified: Mutex<BTreeMap<(JobName, RunId), Unverified>>,
    bell: Arc<Notify>,
}

impl Handover {
    /// A handover that rings this bell when something is put in.
    pub(crate) fn ringing(bell: Arc<Notify>) -> Self {
        Self { bell, ..Self::default() }
    }

    /// Ends when something was put in.
    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }

    pub(crate) fn put(&self, spec: &RunSpec, unverified: Unverified) {
        if !unverified.is_empty() {
            let run = (spec.job.name.clone(), spec.id);
            self.lock().entry(run).or_default().add(unverified);
            self.bell.notify_one();
        }
    }

    /// Takes everything out, by job and run.
    pub fn take(&self) -> BTreeMap<(JobName, RunId), Unverified> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(JobName, RunId), Unverified>> {
        self.unverified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two ways to stop a run.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Finish the batches in flight and begin no more.
    pub drain: CancellationToken,
    /// Stop now. Keys still hold whole values, as one command writes each of them.
    pub abort: CancellationToken,
}

impl Stops {
    /// Ends when either is requested.
    pub async fn requested(&self) {
        tokio::select! {
            biased;
            () = self.drain.cancelled() => {}
            () = self.abort.cancelled() => {}
        }
    }

    /// Does a task until it ends or either token is cancelled.
    pub(crate) async fn until(&self, task: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.requested() => {}
            () = task => {}
        }
    }

    /// Gives the batches in flight that long to drain, then aborts them; never ends.
    pub async fn abort_after(&self, clock: &dyn Clock, drain: Duration) {
        self.drain.cancelled().await;
        clock.sleep(drain).await;
        self.abort.cancel();
        std::future::pending::<()>().await;
    }
}
