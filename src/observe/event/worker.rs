//! The worker: its start and end, and the scheduler that rings.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tracing::{error, info, warn};

use super::{counted, millis};
use crate::domain::spelling;
use crate::observe::metric::unix_seconds;
use crate::observe::news::News;

event! {
    /// Settings come from a `.env` file.
    EnvFileRead<'a> {
        /// The variables that it sets, and the process does not.
        variables: &'a [String],
    }
    log info!("`.env` sets {}", spelling::listed(variables.iter().map(String::as_str), "and"));
}

event! {
    /// Settings that are allowed, but that the operator should know about.
    SettingsNotice<'a> {
        /// One sentence, without a full stop.
        text: &'a str,
    }
    log warn!("{text}");
}

event! {
    /// The worker has started.
    WorkerStarted<'a> {
        version: &'a str,
        /// How many jobs it has.
        jobs: usize,
        /// Where HTTP is served.
        listen: SocketAddr,
        at: DateTime<Utc>,
    }
    metrics |metrics| metrics.started.know(unix_seconds(at));
    log {
        let (address, with) = (listen.to_string(), counted(jobs, "job", "jobs"));
        info!(version, jobs, address, "preheat {version} is running with {with} on http://{listen}");
    };
}

event! {
    /// The worker received a signal to stop.
    WorkerDraining {
        /// Runs that are under way.
        in_flight: usize,
    }
    metrics |metrics| metrics.news.tell(|| News::Draining);
    log {
        let runs = counted(in_flight, "is", "are");
        info!(in_flight, "the worker stops: no new runs, {runs} under way");
    };
}

event! {
    /// The worker has stopped.
    WorkerStopped;
    log info!("the worker has stopped");
}

event! {
    /// A background task panicked, and starts again after a pause.
    TaskPanicked<'a> { task: &'a str, pause: Duration }
    log error!(
        task,
        pause_ms = millis(pause),
        "the background task `{task}` panicked: this is a defect of preheat; it starts again in {pause:.1?}"
    );
}

event! {
    /// The scheduler has not rung for too long; the watchdog wakes the jobs instead.
    SchedulerSilent { silent_for: Duration }
    metrics |metrics| metrics.scheduler_silent.set(1);
    log error!(
        silent_for_ms = millis(silent_for),
        "the scheduler has not rung for {silent_for:.1?}, although it was started anew: the \
         watchdog runs the jobs; restart the worker"
    );
}

event! {
    /// The scheduler rings again.
    SchedulerBack;
    metrics |metrics| metrics.scheduler_silent.set(0);
    log info!("the scheduler rings again");
}

event! {
    /// The scheduler's bell was silent, and was started again.
    BellStartedAnew { silent_for: Duration }
    log warn!(
        silent_for_ms = millis(silent_for),
        "the scheduler was silent for {silent_for:.1?} and is started anew: was the clock set back?"
    );
}

event! {
    /// The bell could not be started, or does not ring for all jobs.
    BellFailed<'a> { message: &'a str }
    log warn!("the scheduler fails, and the watchdog runs the jobs: {message}");
}

#[cfg(test)]
mod tests {
    use super::super::testing::logged;
    use super::*;
    use crate::observe::Metrics;

    #[test]
    fn a_worker_says_where_it_listens() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 40_123));
        let at = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let started = WorkerStarted { version: "1.2.3", jobs: 6, listen, at };
        let metrics = Metrics::new();
        let line = logged(|| started.emit(&metrics));
        assert!(metrics.encode().contains("preheat_start_timestamp_seconds 1700000000.0\n"));
        let message = "preheat 1.2.3 is running with 6 jobs on http://127.0.0.1:40123";
        assert!(line.contains(message), "{line}");
        let line = logged(|| WorkerStarted { jobs: 1, ..started }.emit(&Metrics::new()));
        assert!(line.contains("with 1 job on"), "{line}");
    }
}
