//! Job files and their queries.

use tracing::{error, info, warn};

use super::{counted, moment};
use crate::domain::job::JobName;
use crate::domain::pause::Pause;
use crate::domain::who::Who;
use crate::observe::metric::{PerJob, unix_seconds};
use crate::observe::news::News;

event! {
    /// The job files have problems; the last good ones stay in use.
    JobsRejected<'a> {
        /// All of them, as `check` shows them.
        problems: &'a str,
    }
    metrics |metrics| {
        metrics.jobs_rejected.set(1);
        metrics.news.tell(|| News::JobsRejected { problems: problems.to_owned() });
    };
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
    metrics |metrics| {
        metrics.jobs_rejected.set(i64::from(rejected > 0));
        metrics.news.tell(|| News::JobsReloaded { jobs, rejected });
    };
    log info!(
        jobs,
        rejected,
        "the job files were read again: {}", counted(jobs, "job", "jobs")
    );
}

event! {
    /// A job is paused, or its pause has another note or end.
    JobPaused<'a> { job: &'a JobName, pause: &'a Pause }
    metrics |metrics| {
        metrics.paused_since.of(job).set(unix_seconds(pause.since));
        metrics.news.tell(|| News::JobPaused { job: job.clone(), pause: pause.clone() });
    };
    log {
        let Pause { note, by, since: _, until } = pause;
        let until = until.map_or("resumed".to_owned(), moment);
        info!(%job, %by, %note, until, "job `{job}` is paused by {by} until {until}: {note}");
    };
}

event! {
    /// A job is not paused any more.
    JobResumed<'a> {
        job: &'a JobName,
        /// Who resumed it, if this worker knows.
        by: Option<&'a Who>,
        /// Whether the pause ended by itself.
        is_over: bool,
    }
    metrics |metrics| {
        metrics.paused_since.forget(job);
        metrics.news.tell(|| News::JobResumed { job: job.clone(), by: by.cloned() });
    };
    log match by {
        Some(by) => info!(%job, %by, "job `{job}` is resumed by {by}"),
        None if is_over => info!(%job, "the pause of job `{job}` is over"),
        None => info!(%job, "job `{job}` is resumed"),
    };
}

event! {
    /// The pauses could not be read or kept; emitted once an outage.
    PausesUnavailable<'a> { message: &'a str }
    log warn!(
        "could not read or keep the pauses of jobs, and those in effect stay: {message}; this is \
         not said again until it works"
    );
}

event! {
    /// The pauses can be read and kept again.
    PausesBack;
    log info!("the pauses of jobs can be read and kept again");
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
    metrics |metrics| {
        metrics.jobs_rejected.set(1);
        metrics.news.tell(|| News::JobsRejected { problems: problems.to_owned() });
    };
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
