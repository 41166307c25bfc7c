//! The history of runs.

use chrono::{DateTime, Utc};
use tracing::{debug, info, warn};

use super::counted;
use crate::domain::job::JobName;
use crate::observe::figures::Since;
use crate::observe::metric::{PerJob, unix_seconds};

event! {
    /// The history cannot be written; emitted once an outage.
    HistoryUnavailable<'a> {
        message: &'a str,
        /// Records that wait to be written.
        buffered: usize,
        /// Records that were dropped with this failure.
        dropped: u64,
        at: DateTime<Utc>,
    }
    metrics |metrics| {
        metrics.history_dropped.inc_by(dropped);
        metrics.figures().note_history(Some(Since { at, message: message.to_owned() }));
    };
    log warn!(
        buffered,
        dropped,
        "could not write the history; {} and runs go on: {message}",
        counted(buffered, "run record waits", "run records wait")
    );
}

event! {
    /// Further records were dropped in the same outage.
    HistoryDropped { dropped: u64 }
    metrics |metrics| metrics.history_dropped.inc_by(dropped);
    log {
        let records = counted(dropped, "run record was", "run records were");
        debug!(dropped, "{records} given up: the history is still away");
    };
}

event! {
    /// The worker had to end before all records could be written.
    HistoryLost { lost: u64 }
    metrics |metrics| metrics.history_dropped.inc_by(lost);
    log {
        let records = counted(lost, "run record is", "run records are");
        warn!(lost, "{records} lost: the history could not be written before the end");
    };
}

event! {
    /// The history can be written again.
    HistoryBack;
    metrics |metrics| metrics.figures().note_history(None);
    log info!("the history can be written again");
}

event! {
    /// The history says when a job last succeeded, in this worker or in one before it.
    SuccessRecalled<'a> { job: &'a JobName, at: DateTime<Utc> }
    metrics |metrics| metrics.last_success.of(job).set(unix_seconds(at));
}

event! {
    /// The worker works without a history.
    HistoryDisabled<'a> {
        reason: &'a str,
        /// What an administrator can run to get one.
        sql: &'a str,
    }
    log warn!(
        sql,
        "runs are kept in memory only: {reason}; hint: `preheat migrate` prints the SQL for an \
         administrator; or set `[history] enabled = false`"
    );
}

event! {
    /// Old records were removed from the history.
    HistoryPruned { runs: u64 }
    log debug!(
        runs,
        "removed {} older than the retention", counted(runs, "run record", "run records")
    );
}
