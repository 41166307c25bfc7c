//! The jobs as they are now, which a reload replaces.

use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::job::Jobs;

/// The jobs as they are now.
#[derive(Debug, Default)]
pub struct SharedJobs(Mutex<Arc<Jobs>>);

impl SharedJobs {
    /// These are the jobs from now on.
    pub fn set(&self, jobs: Jobs) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(jobs);
    }

    /// The jobs at this moment.
    pub fn get(&self) -> Arc<Jobs> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
