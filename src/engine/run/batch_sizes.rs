//! How many tenants each job's batches have: see [`BatchSize`]. The worker forgets it when it stops: then the
//! configured size is tried first.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::batch_size::{BatchSize, BatchSizeNow, Observed};
use crate::domain::job::{Job, JobName, Query};

/// The sizes of all jobs' batches.
#[derive(Debug, Default)]
pub struct BatchSizes {
    /// How long a query may take; without it, each batch is as large as configured.
    target: Option<Duration>,
    jobs: Mutex<BTreeMap<JobName, OfJob>>,
}

#[derive(Debug)]
struct OfJob {
    /// Another query begins with the configured size.
    query: Query,
    fit: Arc<BatchFit>,
}

/// The size of one job's batches.
#[derive(Debug)]
pub struct BatchFit {
    configured: NonZeroUsize,
    size: Option<Mutex<BatchSize>>,
}

impl BatchSizes {
    /// Sizes with which a query takes at most `target`, if smaller batches can achieve that.
    pub fn new(target: Option<Duration>) -> Self {
        Self { target, jobs: Mutex::default() }
    }

    /// Forgets the jobs that no longer exist.
    pub(crate) fn keep_jobs(&self, exists: impl Fn(&JobName) -> bool) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).retain(|job, _| exists(job));
    }

    /// The size of this job's batches.
    pub fn of(&self, job: &Job) -> Arc<BatchFit> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_job) = jobs.get(&job.name)
            && of_job.fit.configured == job.batch
            && of_job.query == job.query
        {
            return Arc::clone(&of_job.fit);
        }
        let size = self.target.map(|target| Mutex::new(BatchSize::new(job.batch, target)));
        let fit = Arc::new(BatchFit { configured: job.batch, size });
        let of_job = OfJob { query: job.query.clone(), fit: Arc::clone(&fit) };
        jobs.insert(job.name.clone(), of_job);
        fit
    }
}

impl BatchFit {
    /// The size at this moment.
    pub fn now(&self) -> BatchSizeNow {
        let configured = self.configured;
        let as_configured = BatchSizeNow { configured, now: configured, because: None };
        self.size().map_or(as_configured, |size| size.now())
    }

    /// Takes note of a batch of a run over `all` tenants; the new size, if that changed it.
    pub(crate) fn observe(&self, observed: Observed, all: usize) -> Option<BatchSizeNow> {
        let mut size = self.size()?;
        let before = size.now();
        size.observe(observed, all);
        let after = size.now();
        (before.now != after.now).then_some(after)
    }

    fn size(&self) -> Option<MutexGuard<'_, BatchSize>> {
        let size = self.size.as_ref()?;
        Some(size.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
