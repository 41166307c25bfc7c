//! Job files and their queries.

use tracing::{error, info, warn};

use super::counted;
use crate::domain::job::JobName;

event! {
    /// The job files have problems; the last good ones stay in use.
    JobsRejected<'a> {
        /// All of them, as `check` shows them.
        problems: &'a str,
    }
    metrics |metrics| metrics.jobs_rejected.set(1);
    log error!("the job files have problems, the last good ones stay in use:\n{problems}");
}

event! {
    /// The job files were read again.
    JobsReloaded {
        /// How many jobs there are now.
        jobs: usize,
        /// How many of their files are rejected.
        rejected: usize,
    }
    metrics |metrics| metrics.jobs_rejected.set(i64::from(rejected > 0));
    log info!(
        jobs,
        rejected,
        "the job files were read again: {}", counted(jobs, "job", "jobs")
    );
}

event! {
    /// The database refuses the queries of job files; emitted once for the same problems.
    QueriesRejected<'a> {
        /// All of them, as `check` shows them.
        problems: &'a str,
        /// Jobs that do not run.
        held: usize,
        /// Jobs that use the last good version of their file.
        older: usize,
    }
    metrics |metrics| metrics.jobs_rejected.set(1);
    log error!(
        held,
        older,
        "the database refuses queries of job files: {} held, {} on with the last good version; \
         they are tried again:\n{problems}",
        counted(held, "job is", "jobs are"),
        counted(older, "job goes", "jobs go")
    );
}

event! {
    /// The query of a job that was rejected works.
    QueryMended<'a> {
        job: &'a JobName,
        /// Whether files are still rejected.
        others_rejected: bool,
    }
    metrics |metrics| metrics.jobs_rejected.set(i64::from(others_rejected));
    log info!(%job, "the query of job `{job}` works: its file is in use");
}

event! {
    /// Queries could not be checked; the worker uses the job files as they are, and checks again
    /// later.
    QueriesUnchecked<'a> {
        /// Of how many jobs.
        jobs: usize,
        message: &'a str,
    }
    log {
        let queries = counted(jobs, "query", "queries");
        warn!(jobs, "{queries} could not be checked before use and will be tried again: {message}");
    };
}
