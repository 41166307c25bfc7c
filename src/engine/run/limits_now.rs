//! The permits and the bounds of memory at one moment, for those who look at them.

use std::collections::BTreeMap;

use crate::domain::job::JobName;

/// The permits and the bounds of memory at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsNow {
    /// How many permits there are.
    pub permits: u32,
    /// How many of them only batches for changes get.
    pub for_changes: u32,
    /// How many of them regular batches hold, and batches for changes.
    pub held: (u32, u32),
    /// How many regular batches wait for one, and how many for changes.
    pub waiting: (usize, usize),
    /// How many permits each job holds; a job that holds none is not among them.
    pub jobs: BTreeMap<JobName, u32>,
    /// How many bytes the rows of one batch may take.
    pub batch_bytes: usize,
    /// How many bytes the rows of one tenant may take.
    pub tenant_bytes: usize,
    /// How many bytes all rows together may take: those of a batch for each permit, or those of the largest tenant,
    /// beside which batches for changes go on.
    pub all_bytes: usize,
}
