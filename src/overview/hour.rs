//! What the next hour costs, by the schedule and the last runs.

use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;

/// The cost of the runs that are due within the next hour: each is taken to cost as much as the job's last run over
/// all tenants. Runs for changes come on top.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct NextHour {
    /// Runs that are due.
    pub runs: u64,
    /// Queries for rows.
    pub queries: u64,
    /// How long these queries take in all, in milliseconds: the database's time.
    pub database_ms: u64,
    /// Keys to write.
    pub keys: u64,
    /// Bytes of values to write.
    pub bytes: u64,
    /// Jobs that are due but have had no run over all tenants: their cost is not known and not in the sums.
    pub unknown: Vec<String>,
    /// The minute with the most database time; null if nothing is due.
    pub busiest: Option<Busiest>,
    /// Moments at which several jobs are due together, soonest first, at most ten.
    pub collisions: Vec<Collision>,
}

/// The minute with the most database time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Busiest {
    /// Its start.
    pub minute: Moment,
    /// Runs that are due in it.
    pub runs: u64,
    /// The database's time, in milliseconds.
    pub database_ms: u64,
    /// The jobs that are due in it.
    pub jobs: Vec<String>,
}

/// Several jobs are due at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Collision {
    /// The moment.
    pub at: Moment,
    /// The jobs.
    pub jobs: Vec<String>,
}
