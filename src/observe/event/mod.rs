//! What happens: each event is declared once, with its log line and the metrics that it moves.
//!
//! A message reads alone; the fields are for searching. `error` is for what someone must act on,
//! `warn` for what someone should look at.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// Declares an event: its fields, then the metrics that it moves, then its log line. Both expressions
/// name the fields by their names; either may be left out.
///
/// ```ignore
/// event! {
///     /// The job files were read again.
///     JobsReloaded { jobs: usize, rejected: usize }
///     metrics |metrics| metrics.jobs_rejected.set(i64::from(rejected > 0));
///     log info!(jobs, rejected, "the job files were read again: {jobs} jobs");
/// }
/// ```
///
/// The event is a struct, and `emit(&metrics)` writes its log line and moves its metrics. All events are
/// emitted in this one way, so that an event can gain a metric without a change at the place that emits it.
/// An event that moves no metric has `log()` as well, for places that have no metrics.
macro_rules! event {
    ($(#[$doc:meta])* $name:ident; $($tells:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl $name {
            event!(@emit {} $($tells)*);
        }
    };
    (
        $(#[$doc:meta])* $name:ident $(<$life:lifetime>)? {
            $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)?
        }
        $($tells:tt)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name $(<$life>)? {
            $($(#[$field_doc])* pub(crate) $field: $type),*
        }

        impl $(<$life>)? $name $(<$life>)? {
            event!(@emit { $($field),* } $($tells)*);
        }
    };
    (@emit $fields:tt metrics |$metrics:ident| $moves:expr; $(log $log:expr;)?) => {
        pub(crate) fn emit(self, $metrics: &crate::observe::Metrics) {
            let Self $fields = self;
            $moves;
            $($log;)?
        }
    };
    (@emit $fields:tt log $log:expr;) => {
        #[allow(dead_code, reason = "an event of a place that has no metrics")]
        pub(crate) fn emit(self, _: &crate::observe::Metrics) {
            self.log();
        }

        pub(crate) fn log(self) {
            let Self $fields = self;
            $log;
        }
    };
}

mod audit;
mod cache;
mod feed;
mod fleet;
mod history;
mod http;
mod jobs;
mod run;
mod server;
mod tenants;
mod trace;
mod worker;

pub(crate) use self::audit::*;
pub(crate) use self::cache::*;
pub(crate) use self::feed::*;
pub(crate) use self::fleet::*;
pub(crate) use self::history::*;
pub(crate) use self::http::*;
pub(crate) use self::jobs::*;
pub(crate) use self::run::*;
pub(crate) use self::server::*;
pub(crate) use self::tenants::*;
pub(crate) use self::trace::*;
pub(crate) use self::worker::*;
pub(crate) use crate::domain::run::SkipReason;
pub(crate) use crate::domain::server::Server;

/// Some things: `1 job`, `6 jobs`.
fn counted(number: impl TryInto<u64>, one: &str, several: &str) -> String {
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {}", if number == 1 { one } else { several })
}

/// A time for people and programs: `2026-03-01T12:10:00Z`.
fn moment(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A number of bytes: `1.5 MB`.
fn bytes(count: u64) -> impl std::fmt::Display {
    indicatif::DecimalBytes(count)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod testing {
    use std::io;
    use std::sync::{Arc, Mutex};

    use crate::domain::job::JobName;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log lines of what `emit` does.
    pub(super) fn logged(emit: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_max_level(tracing::Level::DEBUG)
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(subscriber, emit);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    pub(super) fn job() -> JobName {
        JobName::parse("services").unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::testing::{job, logged};
    use super::*;
    use crate::domain::report::FailureKind;
    use crate::domain::run::RunId;
    use crate::observe::Metrics;

    #[test]
    fn each_state_that_comes_and_goes_is_a_gauge() {
        let metrics = Metrics::new();
        let shows = |line: &str| metrics.encode().contains(line);
        BreakerChanged {
            server: Server::Cache,
            open: true,
            message: "refused",
            at: chrono::DateTime::UNIX_EPOCH,
        }
        .emit(&metrics);
        SchedulerSilent { silent_for: Duration::from_secs(12) }.emit(&metrics);
        JobsRejected { problems: "jobs/a.toml: …" }.emit(&metrics);
        assert!(shows("preheat_breaker_open{server=\"cache\"} 1\n"));
        assert!(shows("preheat_scheduler_silent 1\n"));
        assert!(shows("preheat_jobs_rejected 1\n"));
        CacheRestarted.emit(&metrics);
        assert!(shows("preheat_cache_restarts_total 1\n"));
        CacheEmptied.emit(&metrics);
        assert!(shows("preheat_cache_flushes_total 1\n"));
        FeedConnected { at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        assert!(shows("preheat_change_feed_connected 1\n"));
        FeedLost { message: "refused", at: chrono::DateTime::UNIX_EPOCH }.emit(&metrics);
        assert!(shows("preheat_change_feed_connected 0\n"));
        BreakerChanged {
            server: Server::Cache,
            open: false,
            message: "it answers",
            at: chrono::DateTime::UNIX_EPOCH,
        }
        .emit(&metrics);
        SchedulerBack.emit(&metrics);
        JobsReloaded { jobs: 6, rejected: 0 }.emit(&metrics);
        assert!(shows("preheat_breaker_open{server=\"cache\"} 0\n"));
        assert!(shows("preheat_scheduler_silent 0\n"));
        assert!(shows("preheat_jobs_rejected 0\n"));
    }

    #[test]
    fn what_is_skipped_retried_or_dropped_is_counted_and_said() {
        let metrics = Metrics::new();
        let job = job();
        let run = RunId(Uuid::nil());
        let lines = logged(|| {
            RunSkipped { job: &job, reason: SkipReason::Overlap }.emit(&metrics);
            BatchRetried {
                job: &job,
                run,
                tenants: 100,
                retry: 1,
                wait: Duration::from_millis(80),
                kind: FailureKind::DatabaseUnavailable,
                message: "connection refused",
            }
            .emit(&metrics);
            HistoryUnavailable {
                message: "disk full",
                buffered: 5,
                dropped: 2,
                at: chrono::DateTime::UNIX_EPOCH,
            }
            .emit(&metrics);
            HistoryDropped { dropped: 3 }.emit(&metrics);
        });
        insta::assert_snapshot!(lines, @r#"
         WARN a run of job `services` is skipped: its last run is still going job=services reason="overlap"
         WARN a batch of job `services` failed and is tried again in 80.0ms: connection refused job=services run=00000000-0000-0000-0000-000000000000 tenants=100 retry=1 wait_ms=80 failure="database_unavailable"
         WARN could not write the history; 5 run records wait and runs go on: disk full buffered=5 dropped=2
        DEBUG 3 run records were given up: the history is still away dropped=3
        "#);
        let page = metrics.encode();
        for expected in [
            "preheat_runs_skipped_total{job_name=\"services\",reason=\"overlap\"} 1\n",
            "preheat_batch_retries_total{job_name=\"services\"} 1\n",
            "preheat_history_dropped_total 5\n",
        ] {
            assert!(page.contains(expected), "{expected} in\n{page}");
        }
    }
}
