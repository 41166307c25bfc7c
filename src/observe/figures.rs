//! The last figures that events told: what an overview shows and no counter holds. Bounded: one entry a job or server,
//! and the last changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::audit::{Finding, JobAudit};
use crate::domain::change::ResyncCause;
use crate::domain::job::JobName;
use crate::domain::reads::ReadCounts;
use crate::domain::server::Server;

/// How many changes' lags are kept.
const MOST_LAGS: usize = 1_000;
/// How many tables are counted by name: far more than jobs name.
const MOST_TABLES: usize = 1_000;
/// How long a bucket of notifications is, and how many there are: a minute in all.
const BUCKET: TimeDelta = TimeDelta::seconds(5);
const BUCKETS: usize = 12;
/// How far back the reads of applications are kept.
pub const READS_WINDOW: TimeDelta = TimeDelta::minutes(5);
/// More looks than there are in that time.
const MOST_READS: usize = 60;

/// The last figures.
#[derive(Debug, Default)]
pub struct Figures(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    coverage: BTreeMap<JobName, Share>,
    audits: BTreeMap<JobName, Audited>,
    findings: BTreeMap<JobName, Arc<Findings>>,
    lags: VecDeque<(DateTime<Utc>, Duration)>,
    feed: FeedFigures,
    /// The buckets of notifications, each with its start.
    heard: VecDeque<(DateTime<Utc>, u64)>,
    tables: BTreeMap<String, Heard>,
    last_resync: Option<Resync>,
    down: BTreeMap<&'static str, Since>,
    turned: BTreeMap<&'static str, Turned>,
    history: Option<Since>,
    /// When the clients' counts were first read.
    reads_since: Option<DateTime<Utc>>,
    /// By how much they have grown since, a bucket a look.
    reads: VecDeque<(DateTime<Utc>, BTreeMap<String, ReadCounts>)>,
}

/// The applications' reads of the last minutes, as their clients count them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The counts by family; empty if no client has counted anything.
    pub families: BTreeMap<String, ReadCounts>,
    /// How long they were counted: [`READS_WINDOW`] at most, and less soon after the first count.
    pub window: TimeDelta,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// The part.
    pub part: u64,
    /// The whole.
    pub whole: u64,
}

impl Share {
    /// The part divided by the whole; `None` if there is nothing.
    #[expect(clippy::cast_precision_loss, reason = "numbers of keys are far below 2^53")]
    pub fn ratio(self) -> Option<f64> {
        (self.whole > 0).then(|| self.part as f64 / self.whole as f64)
    }

    /// Both added.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { part: self.part + other.part, whole: self.whole + other.whole }
    }
}

/// The last comparison of a job with the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audited {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// Tenants that were compared.
    pub tenants: u64,
    /// Values that equal the database's, of the keys that could be judged.
    pub equal: Share,
    /// Keys that were wrong.
    pub findings: u64,
}

/// What the last comparison of a job found to be wrong: at most
/// [`MAX_FINDINGS`](crate::domain::audit::MAX_FINDINGS) keys, with the beginnings of their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// How many tenants were compared.
    pub tenants: u64,
    /// How many keys were compared.
    pub keys: u64,
    /// How many keys are wrong.
    pub all: u64,
    /// The first of them.
    pub first: Vec<Finding>,
}

/// Something is so, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since {
    /// Since when.
    pub at: DateTime<Utc>,
    /// Why.
    pub message: String,
}

/// When a server last began to count as down or as up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turned {
    /// When.
    pub at: DateTime<Utc>,
    /// How often it began to count as down since the worker started.
    pub times_down: u64,
}

/// The change feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedFigures {
    /// Whether it listens; `None` where there is none, or none yet.
    pub listens: Option<bool>,
    /// Why it does not.
    pub reason: Option<String>,
    /// Since when it is so.
    pub since: Option<DateTime<Utc>>,
    /// Tables that lack their triggers.
    pub lacking: usize,
    /// When it last heard of changes.
    pub last_heard_at: Option<DateTime<Utc>>,
    /// Notifications of the last minute.
    pub last_minute: u64,
}

/// What the change feed heard of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Notifications since the worker started.
    pub notifications: u64,
    /// When the last one arrived.
    pub last_at: DateTime<Utc>,
}

/// Jobs had to run for all tenants, outside of their schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resync {
    /// When that turned out.
    pub at: DateTime<Utc>,
    /// Why.
    pub cause: ResyncCause,
    /// Which jobs.
    pub jobs: Vec<JobName>,
}

impl Figures {
    /// Coverage by job.
    pub fn coverage(&self) -> BTreeMap<JobName, Share> {
        self.lock().coverage.clone()
    }

    /// The last comparisons by job.
    pub fn audits(&self) -> BTreeMap<JobName, Audited> {
        self.lock().audits.clone()
    }

    /// What the last comparisons found, by job.
    pub fn findings(&self) -> BTreeMap<JobName, Arc<Findings>> {
        self.lock().findings.clone()
    }

    /// The lags of the last changes that were heard of at this moment or later, in no order.
    pub fn lags_since(&self, since: DateTime<Utc>) -> Vec<Duration> {
        let state = self.lock();
        state.lags.iter().filter(|(at, _)| *at >= since).map(|(_, lag)| *lag).collect()
    }

    /// The change feed at a moment.
    pub fn feed(&self, now: DateTime<Utc>) -> FeedFigures {
        let state = self.lock();
        let young = state.heard.iter().filter(|(at, _)| now - *at < BUCKET * 12);
        FeedFigures { last_minute: young.map(|(_, count)| count).sum(), ..state.feed.clone() }
    }

    /// What the change feed heard, by the table's name in job files.
    pub fn tables(&self) -> BTreeMap<String, Heard> {
        self.lock().tables.clone()
    }

    /// The last time that jobs had to run for all tenants; `None` if they never had to since the worker started.
    pub fn last_resync(&self) -> Option<Resync> {
        self.lock().last_resync.clone()
    }

    /// Since when a server counts as down, and why; `None` while it is up.
    pub fn down(&self, server: Server) -> Option<Since> {
        self.lock().down.get(server.as_str()).cloned()
    }

    /// When a server last began to count as down or as up; `None` if it has counted as up since the worker
    /// started.
    pub fn turned(&self, server: Server) -> Option<Turned> {
        self.lock().turned.get(server.as_str()).copied()
    }

    /// Since when the history cannot be written, and why.
    pub fn history_away(&self) -> Option<Since> {
        self.lock().history.clone()
    }

    /// The reads of applications at a moment.
    pub fn reads(&self, now: DateTime<Utc>) -> Reads {
        let state = self.lock();
        let mut families: BTreeMap<String, ReadCounts> = BTreeMap::new();
        for (_, grown) in state.reads.iter().filter(|(at, _)| now - *at < READS_WINDOW) {
            for (family, counts) in grown {
                *families.entry(family.clone()).or_default() += *counts;
            }
        }
        let window = state.reads_since.map_or(TimeDelta::zero(), |since| now - since);
        Reads { families, window: window.clamp(TimeDelta::zero(), READS_WINDOW) }
    }

    pub(super) fn note_reads(&self, grown: &BTreeMap<String, ReadCounts>, at: DateTime<Utc>) {
        let mut state = self.lock();
        state.reads_since.get_or_insert(at);
        state.reads.push_back((at, grown.clone()));
        while state.reads.len() > MOST_READS {
            state.reads.pop_front();
        }
    }

    pub(super) fn note_coverage(&self, job: &JobName, share: Share) {
        let mut state = self.lock();
        if share.whole == 0 {
            state.coverage.remove(job);
        } else {
            state.coverage.insert(job.clone(), share);
        }
    }

    /// A comparison that judged no key leaves the last one as it was.
    pub(super) fn note_audit(&self, audit: &JobAudit, at: DateTime<Utc>) {
        let JobAudit { job, tenants, counts, findings: first, failures, .. } = audit;
        let equal = Share { part: counts.all_equal(), whole: counts.expected() };
        let (tenants, all) = (*tenants, counts.findings());
        let findings = Findings { at, tenants, keys: equal.whole, all, first: first.clone() };
        let has_compared = equal.whole > 0 || all > 0 || failures.is_empty();
        let mut state = self.lock();
        if has_compared {
            state.findings.insert(job.clone(), Arc::new(findings));
        }
        if equal.whole > 0 {
            let audited = Audited { at, tenants, equal, findings: all };
            state.audits.insert(job.clone(), audited);
        }
    }

    /// The worker has nothing to compare for the job.
    pub(super) fn forget_audit(&self, job: &JobName) {
        let mut state = self.lock();
        state.findings.remove(job);
        state.audits.remove(job);
    }

    pub(super) fn note_lags(&self, lags: &[Duration], at: DateTime<Utc>) {
        let mut state = self.lock();
        state.lags.extend(lags.iter().map(|lag| (at, *lag)));
        let over = state.lags.len().saturating_sub(MOST_LAGS);
        state.lags.drain(..over);
    }

    pub(super) fn note_heard(&self, notifications: usize, at: DateTime<Utc>) {
        let mut state = self.lock();
        state.feed.last_heard_at = Some(at);
        match state.heard.back_mut() {
            Some((began, count)) if at - *began < BUCKET => *count += notifications as u64,
            Some(_) | None => state.heard.push_back((at, notifications as u64)),
        }
        if state.heard.len() > BUCKETS {
            state.heard.pop_front();
        }
    }

    pub(super) fn note_tables(&self, tables: &BTreeMap<&str, u64>, at: DateTime<Utc>) {
        let known = &mut self.lock().tables;
        for (table, more) in tables {
            if let Some(heard) = known.get_mut(*table) {
                heard.notifications += more;
                heard.last_at = at;
            } else if known.len() < MOST_TABLES {
                known.insert((*table).to_owned(), Heard { notifications: *more, last_at: at });
            }
        }
    }

    pub(super) fn note_resync(&self, resync: Resync) {
        self.lock().last_resync = Some(resync);
    }

    pub(super) fn note_feed(&self, listens: Option<bool>, reason: Option<&str>, at: DateTime<Utc>) {
        let feed = &mut self.lock().feed;
        if feed.listens != listens || feed.since.is_none() {
            feed.since = Some(at);
        }
        feed.listens = listens;
        feed.reason = reason.map(str::to_owned);
    }

    pub(super) fn note_lacking(&self, tables: usize) {
        self.lock().feed.lacking = tables;
    }

    pub(super) fn note_server(&self, server: Server, down: Option<Since>, at: DateTime<Utc>) {
        let mut state = self.lock();
        let turned = state.turned.entry(server.as_str()).or_insert(Turned { at, times_down: 0 });
        turned.at = at;
        turned.times_down += u64::from(down.is_some());
        match down {
            Some(since) => drop(state.down.insert(server.as_str(), since)),
            None => drop(state.down.remove(server.as_str())),
        }
    }

    pub(super) fn note_history(&self, away: Option<Since>) {
        self.lock().history = away;
    }

    pub(super) fn forget_job(&self, job: &JobName) {
        let mut state = self.lock();
        state.coverage.remove(job);
        state.audits.remove(job);
        state.findings.remove(job);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    #[test]
    fn notifications_are_counted_for_a_minute() {
        let figures = Figures::default();
        for second in 0..600 {
            figures.note_heard(2, at(second));
        }
        let feed = figures.feed(at(600));
        assert!((100..=120).contains(&feed.last_minute), "{feed:?}");
        assert_eq!(feed.last_heard_at, Some(at(599)));
        assert_eq!(figures.feed(at(700)).last_minute, 0);
    }

    #[test]
    fn reads_are_those_of_the_last_minutes() {
        let figures = Figures::default();
        for second in (0..1_000).step_by(10) {
            let counts = ReadCounts([9, 1, 0, 0, 0]);
            figures.note_reads(&BTreeMap::from([("services".to_owned(), counts)]), at(second));
        }
        let reads = figures.reads(at(990));
        assert_eq!(reads.window, READS_WINDOW);
        assert_eq!(reads.families["services"], ReadCounts([270, 30, 0, 0, 0]));
        assert_eq!(reads.families["services"].hit_rate(), Some(0.9));
        assert!(figures.reads(at(2_000)).families.is_empty());
        assert!(figures.lock().reads.len() <= MOST_READS);
    }

    #[test]
    fn notifications_are_counted_by_table_and_the_tables_are_bounded() {
        let figures = Figures::default();
        figures.note_tables(&BTreeMap::from([("pets", 2), ("staff", 1)]), at(1));
        figures.note_tables(&BTreeMap::from([("pets", 3)]), at(2));
        let heard = |notifications, second| Heard { notifications, last_at: at(second) };
        let expected = [("pets".to_owned(), heard(5, 2)), ("staff".to_owned(), heard(1, 1))];
        assert_eq!(figures.tables(), expected.into());
        for number in 0..2 * MOST_TABLES {
            figures.note_tables(&BTreeMap::from([(number.to_string().as_str(), 1)]), at(3));
        }
        assert_eq!(figures.tables().len(), MOST_TABLES);
        figures.note_tables(&BTreeMap::from([("pets", 1)]), at(4));
        assert_eq!(figures.tables()["pets"], heard(6, 4));
    }

    #[test]
    fn the_lags_are_bounded_and_the_latest_stay() {
        let figures = Figures::default();
        for second in 0..2_000 {
            figures.note_lags(&[Duration::from_millis(second)], at(second.try_into().unwrap()));
        }
        assert_eq!(figures.lags_since(at(0)).len(), MOST_LAGS);
        assert_eq!(figures.lags_since(at(1_999)), [Duration::from_millis(1_999)]);
    }

    #[test]
    fn it_is_known_since_when_a_server_is_up_or_down_and_how_often_it_was_down() {
        let figures = Figures::default();
        assert_eq!(figures.turned(Server::Cache), None);
        let down = |second| Some(Since { at: at(second), message: "refused".to_owned() });
        figures.note_server(Server::Cache, down(1), at(1));
        figures.note_server(Server::Cache, None, at(2));
        figures.note_server(Server::Cache, down(3), at(3));
        figures.note_server(Server::Cache, None, at(4));
        assert_eq!(figures.turned(Server::Cache), Some(Turned { at: at(4), times_down: 2 }));
        assert_eq!((figures.down(Server::Cache), figures.turned(Server::Database)), (None, None));
    }

    #[test]
    fn the_feeds_state_has_its_first_moment_and_its_last_reason() {
        let figures = Figures::default();
        figures.note_feed(Some(false), Some("refused"), at(1));
        figures.note_feed(Some(false), Some("no route"), at(2));
        let feed = figures.feed(at(3));
        assert_eq!((feed.since, feed.reason.as_deref()), (Some(at(1)), Some("no route")));
        figures.note_feed(Some(true), None, at(4));
        assert_eq!(figures.feed(at(5)).since, Some(at(4)));
    }
}
