//! What changes cost beside the schedule: the counters of a running worker, and whether the change
//! feed hears of all that a job reads.

use std::net::SocketAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::super::load::Loaded;
use super::super::output;
use crate::adapter::postgres::{ChangesError, Looked, PostgresSource, ReadRelation};
use crate::app;
use crate::config::ChangesMode;
use crate::domain::change::change_sources;
use crate::domain::duration;
use crate::domain::job::{Job, JobName, Scope};
use crate::domain::run::Trigger;
use crate::engine::ports::SourceError;
use crate::http;

/// Counters of less time say nothing about a day.
const SHORTEST: Duration = Duration::from_mins(10);
const DAY: Duration = Duration::from_hours(24);

/// The worker that the settings lead to.
pub(super) enum Worker {
    Counts(Counts),
    /// There is none, or it does not say.
    Unknown {
        address: SocketAddr,
        why: String,
    },
}

/// What a worker has counted.
pub(super) struct Counts {
    address: SocketAddr,
    since: DateTime<Utc>,
    /// Its metrics.
    page: String,
}

#[derive(Serialize)]
pub(super) struct WorkerDocument {
    address: SocketAddr,
    counting_since: Option<DateTime<Utc>>,
    problem: Option<String>,
}

/// What the runs for changes of one job cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Changes {
    #[serde(flatten)]
    counted: Cost,
    /// How many of the runs were for all tenants, because any tenant's data may have changed.
    runs_for_all: u64,
    /// The same rate for a day; null if the worker has counted for a short time only.
    day: Option<Cost>,
    #[serde(skip)]
    within: Duration,
}

/// Queries, and the bytes of the values that came of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Cost {
    queries: u64,
    bytes: u64,
}

impl Worker {
    /// Asks the worker of these settings what it has counted.
    pub(super) async fn ask(listen: SocketAddr) -> Self {
        let address = http::reachable(listen);
        let unknown = |why: String| Self::Unknown { address, why };
        let page = match http::metrics(listen).await {
            Ok(page) => page,
            Err(http::HealthError::Unreachable { .. }) => {
                return unknown(format!("no worker answers at {address}"));
            }
            Err(http::HealthError::Unwell { .. }) => return unknown(not_counting(address)),
        };
        let since = value(&page, "preheat_start_timestamp_seconds");
        match since.and_then(|seconds| DateTime::from_timestamp(whole_seconds(seconds), 0)) {
            None => unknown(not_counting(address)),
            Some(since) if since == DateTime::UNIX_EPOCH => {
                unknown(format!("the worker at {address} waits for its servers"))
            }
            Some(since) => Self::Counts(Counts { address, since, page }),
        }
    }

    pub(super) fn document(&self) -> WorkerDocument {
        match self {
            Self::Counts(Counts { address, since, .. }) => {
                WorkerDocument { address: *address, counting_since: Some(*since), problem: None }
            }
            Self::Unknown { address, why } => WorkerDocument {
                address: *address,
                counting_since: None,
                problem: Some(why.clone()),
            },
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Counts(Counts { address, since, .. }) => {
                let since = since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                format!("at {address}, counting since {since}")
            }
            Self::Unknown { why, .. } => format!("{why}, so what changes cost is unknown"),
        }
    }

    /// What the changes of a job have cost so far; `None` if the worker does not say.
    pub(super) fn changes(&self, job: &Job, now: DateTime<Utc>) -> Option<Changes> {
        match self {
            Self::Counts(counts) => counts.changes(&job.name, job.scope, now),
            Self::Unknown { .. } => None,
        }
    }

    /// Why the worker does not hear of every change, if it says so. Its metrics do not tell more.
    fn unheard(&self) -> Option<String> {
        let Self::Counts(Counts { address, page, .. }) = self else { return None };
        let is_deaf = value(page, "preheat_change_feed_connected") != Some(1.0);
        is_deaf.then(|| {
            format!(
                "the worker at {address} does not hear of every change at present; its log says why"
            )
        })
    }
}

impl Counts {
    fn changes(&self, job: &JobName, scope: Scope, now: DateTime<Utc>) -> Option<Changes> {
        let trigger = Trigger::Change.as_str();
        let counted = |metric: &str| {
            let series = format!("{metric}{{job_name=\"{job}\",trigger=\"{trigger}\"}}");
            value(&self.page, &series).map(whole)
        };
        let runs_for_all = match scope {
            Scope::Tenants => counted("preheat_runs_over_all_tenants_total")?,
            Scope::Global => 0,
        };
        let counted = Cost {
            queries: counted("preheat_queries_total")?,
            bytes: counted("preheat_run_bytes_total")?,
        };
        let within = (now - self.since).to_std().unwrap_or_default();
        Some(Changes { counted, runs_for_all, day: counted.of_day(within), within })
    }
}

impl Cost {
    /// The same rate for a day.
    fn of_day(self, within: Duration) -> Option<Self> {
        let a_day = |count: u64| {
            let count = u128::from(count) * DAY.as_millis() / within.as_millis().max(1);
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        let Self { queries, bytes } = self;
        (within >= SHORTEST).then(|| Self { queries: a_day(queries), bytes: a_day(bytes) })
    }

    fn text(self) -> String {
        let queries = output::counted(self.queries, "query", "queries");
        format!("{queries}, {}", output::bytes(self.bytes))
    }
}

impl Changes {
    pub(super) fn text(&self) -> String {
        let Self { counted, runs_for_all, day, within } = self;
        let (counted, within) = (counted.text(), duration::text(minutes(*within)));
        let among = match runs_for_all {
            0 => String::new(),
            some => format!(" (incl. {} for all tenants)", output::counted(*some, "run", "runs")),
        };
        let counted = format!("{counted} within {within}{among}");
        match day {
            Some(day) => format!("{counted}; at this rate {} a day", day.text()),
            None => format!("{counted}, too short a time for a rate"),
        }
    }
}

fn not_counting(address: SocketAddr) -> String {
    format!("what answers at {address} is no worker that counts its queries")
}

/// To the minute, or to the second if it is less.
fn minutes(duration: Duration) -> Duration {
    let step = if duration < Duration::from_mins(1) { 1 } else { 60 };
    Duration::from_secs(duration.as_secs() / step * step)
}

/// The value of a series on a page in the Prometheus text format.
fn value(page: &str, series: &str) -> Option<f64> {
    let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok();
    page.lines().find_map(value)
}

#[expect(clippy::cast_possible_truncation, reason = "a Unix time")]
fn whole_seconds(seconds: f64) -> i64 {
    seconds as i64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
fn whole(count: f64) -> u64 {
    count as u64
}

/// Whether the change feed hears of all data that a job's values depend on.
pub(super) enum Feed {
    HearsAll,
    /// The reason why a change may go unheard.
    Misses(String),
}

#[derive(Serialize)]
pub(super) struct FeedDocument {
    hears_all: bool,
    reason: Option<String>,
}

/// The state of the change feed, for all jobs.
pub(super) struct Feeds<'a> {
    source: &'a PostgresSource,
    mode: ChangesMode,
    looked: Result<Looked, ChangesError>,
    /// Why the triggers are not heard.
    unheard: Option<String>,
}

impl<'a> Feeds<'a> {
    /// Looks for the triggers that the jobs need.
    pub(super) async fn look(source: &'a PostgresSource, loaded: &Loaded, worker: &Worker) -> Self {
        let sources = change_sources(loaded.files.jobs(), source.tenant_column());
        let mode = loaded.settings.changes.enabled;
        let looked = source.look(&sources).await;
        let unheard = match &looked {
            Ok(Looked { ways, .. }) if ways.wal => {
                match app::log_problem(source, &loaded.settings, *ways).await {
                    Ok(problem) => problem.map(|problem| {
                        format!("the write-ahead log cannot be read: {}", problem.message)
                    }),
                    Err(error) => Some(error.to_string()),
                }
            }
            Ok(_) | Err(_) => None,
        };
        let unheard = unheard.or_else(|| worker.unheard());
        Self { source, mode, looked, unheard }
    }

    /// Whether the change feed hears of all that a job reads.
    pub(super) async fn of(&self, job: &Job) -> Feed {
        if self.mode == ChangesMode::Off {
            return Feed::Misses("off: `changes.enabled` is false".to_owned());
        }
        if job.tables.is_empty() {
            return Feed::Misses("hears nothing of the job, which has no `tables`".to_owned());
        }
        match self.missed(job).await {
            Ok(None) => Feed::HearsAll,
            Ok(Some(why)) => Feed::Misses(why),
            Err(error) => Feed::Misses(error.message),
        }
    }

    async fn missed(&self, job: &Job) -> Result<Option<String>, SourceError> {
        let is_missed = |relation: &&ReadRelation| !relation.is_watched;
        let read = self.source.relations(job).await?;
        if read.is_empty() {
            return Ok(Some("the server does not tell which tables the query reads".to_owned()));
        }
        if let Some(ReadRelation { name, .. }) = read.iter().find(is_missed) {
            return Ok(Some(format!("`tables` does not list `{name}`, which the query reads")));
        }
        if job.scope == Scope::Tenants {
            let read = self.source.tenant_relations(job).await?;
            if let Some(ReadRelation { name, .. }) = read.iter().find(is_missed) {
                let why = format!("`tables` does not list `{name}`, which the tenant query reads");
                return Ok(Some(why));
            }
        }
        Ok(self.unheard(job))
    }

    /// Why a change of the job's `tables` may go unheard.
    fn unheard(&self, job: &Job) -> Option<String> {
        let standing = match &self.looked {
            Ok(looked) => &looked.standing,
            Err(error) => return Some(error.to_string()),
        };
        let is_whole = |name: &String| standing.whole.contains(name);
        let mut names = job.tables.iter().map(|table| &table.name);
        if let Some(name) = names.find(|name| !is_whole(name)) {
            return Some(format!("`{name}` lacks triggers: `preheat changes install`"));
        }
        self.unheard.clone()
    }
}

impl Feed {
    pub(super) fn document(&self) -> FeedDocument {
        match self {
            Self::HearsAll => FeedDocument { hears_all: true, reason: None },
            Self::Misses(why) => FeedDocument { hears_all: false, reason: Some(why.clone()) },
        }
    }
}

impl FeedDocument {
    pub(super) fn text(&self) -> String {
        match &self.reason {
            None => "hears of every change to what the job reads".to_owned(),
            Some(why) => output::shown(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(since: DateTime<Utc>) -> Counts {
        let page = "# TYPE preheat_queries_total counter\n\
            preheat_queries_total{job_name=\"slots\",trigger=\"schedule\"} 90\n\
            preheat_queries_total{job_name=\"slots\",trigger=\"change\"} 12\n\
            preheat_run_bytes_total{job_name=\"slots\",trigger=\"change\"} 3000\n\
            preheat_runs_over_all_tenants_total{job_name=\"slots\",trigger=\"change\"} 2\n";
        let address = SocketAddr::from(([127, 0, 0, 1], 9464));
        Counts { address, since, page: page.to_owned() }
    }

    fn changes(job: &str, within: Duration) -> Option<Changes> {
        let since = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        counts(since).changes(&JobName::parse(job).unwrap(), Scope::Tenants, since + within)
    }

    #[test]
    fn what_changes_cost_is_counted_since_the_worker_started_and_extrapolated_to_a_day() {
        let found = changes("slots", Duration::from_secs(6 * 3600 + 59)).unwrap();
        assert_eq!(
            found.text(),
            "12 queries, 3.00 kB within 6h (incl. 2 runs for all tenants); at this rate 47 queries, 11.97 kB a day"
        );
        let found = Changes { runs_for_all: 0, ..found };
        assert!(found.text().starts_with("12 queries, 3.00 kB within 6h; at this rate "));
        assert_eq!(changes("services", Duration::from_hours(6)), None);
    }

    #[test]
    fn a_worker_that_has_just_started_gives_no_rate() {
        let found = changes("slots", Duration::from_secs(90)).unwrap();
        assert_eq!(found.day, None);
        let said = "12 queries, 3.00 kB within 1m (incl. 2 runs for all tenants), too short a time for a rate";
        assert_eq!(found.text(), said);
        let found = changes("slots", Duration::from_millis(2500)).unwrap();
        assert!(found.text().contains("within 2s"), "{}", found.text());
    }

    #[test]
    fn a_worker_that_does_not_hear_is_named_with_where_to_look() {
        let said = |page: &str| {
            let counts = Counts { page: page.to_owned(), ..counts(DateTime::UNIX_EPOCH) };
            Worker::Counts(counts).unheard()
        };
        assert_eq!(said("preheat_change_feed_connected 1\n"), None);
        let deaf = "the worker at 127.0.0.1:9464 does not hear of every change at present; its log says why";
        assert_eq!(said("preheat_change_feed_connected 0\n").unwrap(), deaf);
        assert_eq!(said("").unwrap(), deaf, "it has no feed");
    }

    #[test]
    fn a_series_is_found_by_its_whole_name() {
        let page = "a_total{job_name=\"x\"} 1\na 2.5e3\n";
        assert_eq!(value(page, "a"), Some(2500.0));
        assert_eq!(value(page, "a_total{job_name=\"x\"}"), Some(1.0));
        assert_eq!(value(page, "a_total"), None);
    }
}
