//! A run compared with others of its job.

use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;
use crate::domain::run::RunId;

/// A run compared with the last `ok` run of its job before it, of the same kind: over all tenants, or for some.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Comparison {
    /// The `ok` run.
    pub run: RunId,
    /// When it ended.
    pub finished_at: Moment,
    /// How long they took, in milliseconds.
    pub took_ms: Change,
    /// How many tenants they covered.
    pub tenants: Change,
    /// How many keys they wrote.
    pub keys: Change,
    /// How many bytes of values they wrote.
    pub bytes: Change,
    /// How many queries for rows they sent.
    pub queries: Change,
    /// How long these queries took in all, in milliseconds.
    pub database_ms: Change,
    /// How many batches they tried again.
    pub retries: Change,
}

/// A figure of two runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Change {
    /// The figure of this run.
    pub now: u64,
    /// The figure of the run before.
    pub before: u64,
    /// By how many per cent it grew; negative if it shrank, null if it was 0 before.
    pub percent: Option<f64>,
}

/// The runs of the same job beside a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Neighbors {
    /// The run before it.
    pub earlier: Option<RunId>,
    /// The run after it.
    pub later: Option<RunId>,
}
