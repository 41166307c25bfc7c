//! The present jobs, which a reload replaces.

use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::job::Jobs;

/// The present jobs.
#[derive(Debug, Default)]
pub struct SharedJobs(Mutex<Arc<Jobs>>);

impl SharedJobs {
    /// Replaces the jobs.
    pub fn set(&self, jobs: Jobs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(jobs);
    }

    /// The present jobs.
    pub fn get(&self) -> Arc<Jobs> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
