//! A run compared with others of its job.

use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;
use super::text::millis;
use crate::domain::run::{RunId, RunRecord};

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

impl Comparison {
    /// Compares a run with one before it.
    pub fn of(run: &RunRecord, before: &RunRecord) -> Self {
        let (now, then) = (&run.report, &before.report);
        Self {
            run: before.id,
            finished_at: Moment(before.finished_at),
            took_ms: Change::of(millis(run.duration()), millis(before.duration())),
            tenants: Change::of(now.tenants.total, then.tenants.total),
            keys: Change::of(now.keys.written, then.keys.written),
            bytes: Change::of(now.bytes, then.bytes),
            queries: Change::of(now.queries, then.queries),
            database_ms: Change::of(millis(now.database), millis(then.database)),
            retries: Change::of(now.retries, then.retries),
        }
    }
}

impl Change {
    #[expect(clippy::cast_precision_loss, reason = "a percentage needs few digits")]
    fn of(now: u64, before: u64) -> Self {
        let grown = || (now as f64 - before as f64) / before as f64 * 100.0;
        Self { now, before, percent: (before > 0).then(grown) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_in_per_cent_of_what_it_was() {
        assert_eq!(Change::of(140, 100).percent, Some(40.0));
        assert_eq!(Change::of(97, 100).percent, Some(-3.0));
        assert_eq!(Change::of(3, 0).percent, None);
    }
}
