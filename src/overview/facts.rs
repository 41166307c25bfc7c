//! All facts at one moment, from which the figures, the lines and the verdict are computed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Moment;
use super::elsewhere::Elsewhere;
use crate::domain::deadline;
use crate::domain::job::{Job, JobName};
use crate::domain::run::RunBrief;
use crate::domain::share::Shares;
use crate::engine::run::cache_usage::UsageNow;
use crate::engine::run::not_warm::Entry;
use crate::engine::run::recent::RecentRuns;
use crate::engine::schedule::handle::Pending;
use crate::engine::schedule::status::{Health, JobStatus, RejectedFor, Status};
use crate::observe::figures::{Audited, FeedFigures, Reads, Share, Since};

/// All facts at one moment.
pub(super) struct Facts {
    pub(super) now: DateTime<Utc>,
    pub(super) replica: String,
    pub(super) status: Arc<Status>,
    /// What is wrong with the job files that were read last.
    pub(super) unreadable: Vec<RejectedFor>,
    pub(super) health: Health,
    pub(super) recent: BTreeMap<JobName, RecentRuns>,
    pub(super) not_warm: BTreeMap<JobName, NotWarmOfJob>,
    /// Tenants that are not warm in some job.
    pub(super) tenants_not_warm: u64,
    /// Active tenants, by the last tenant list; on a worker with a fixed part of them, those of its part.
    pub(super) active: Option<u64>,
    /// The shares that no member of the fleet holds.
    pub(super) vacant: Shares,
    pub(super) coverage: BTreeMap<JobName, Share>,
    pub(super) audits: BTreeMap<JobName, Audited>,
    pub(super) usage: UsageNow,
    pub(super) reads: Reads,
    /// How long the last changes took.
    pub(super) lags: Vec<Duration>,
    pub(super) feed: FeedFigures,
    pub(super) pending: Option<Pending>,
    pub(super) database_down: Option<Since>,
    pub(super) cache_down: Option<Since>,
    pub(super) history_away: Option<Since>,
    pub(super) writes_refused: bool,
    /// The name of the fleet, which may be empty; `None` if the worker is not a member of one.
    pub(super) fleet: Option<String>,
    /// What other members of the fleet do, by job.
    pub(super) elsewhere: BTreeMap<JobName, Elsewhere>,
}

/// The tenants of a job that are not warm.
#[derive(Clone, Debug, Default)]
pub(super) struct NotWarmOfJob {
    pub(super) tenants: u64,
    /// Since when, and the most frequent reason.
    pub(super) summary: Option<Entry>,
    /// When the first of them is tried again.
    pub(super) next_try_at: Option<DateTime<Utc>>,
}

/// What follows from a job's schedule, its TTL and its last runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deadlines {
    pub(super) late_after: Option<DateTime<Utc>>,
    pub(super) expires_at: Option<DateTime<Utc>>,
    pub(super) ttl_margin: Option<chrono::TimeDelta>,
    pub(super) p95: Option<Duration>,
}

impl Deadlines {
    /// The deadlines of a job. The worker knows of the job's runs since `told_since`, if at all. A job that is paused,
    /// disabled or held is never late or due.
    pub(super) fn of(
        job: &JobStatus,
        recent: Option<&RecentRuns>,
        told_since: Option<DateTime<Utc>>,
    ) -> Self {
        let runs = recent.iter().flat_map(|recent| &recent.runs);
        let p95 = deadline::p95(runs.filter(|run| run.all_tenants).map(RunBrief::duration));
        let is_warmed = job.job.enabled && job.pause.is_none();
        let last_success_at = recent.and_then(|recent| recent.last_success_at);
        let gap = job.job.schedule.longest_gap().filter(|_| is_warmed);
        let late_after = gap
            .zip(told_since)
            .and_then(|(gap, started_at)| deadline::late_after(last_success_at, started_at, gap));
        let last_full = recent.and_then(|recent| recent.last_full);
        let expires_at = last_full
            .and_then(|full| deadline::first_expiry(full.started_at, job.job.shortest_ttl()));
        let running = job.running.as_ref().and_then(|run| run.started_at);
        let next_start = running.or(job.next_due_at).filter(|_| is_warmed);
        let ttl_margin = expires_at.zip(next_start).and_then(|(expires_at, next_start)| {
            deadline::ttl_margin(expires_at, next_start, p95.unwrap_or_default())
        });
        Self { late_after, expires_at, ttl_margin, p95 }
    }
}

impl Facts {
    /// Whether the worker has a fixed part of the tenants.
    pub(super) fn has_part(&self) -> bool {
        self.fleet.is_none() && self.status.shares.is_some()
    }

    pub(super) fn jobs(&self) -> impl Iterator<Item = &JobStatus> {
        self.status.jobs.values()
    }

    pub(super) fn recent(&self, job: &JobName) -> Option<&RecentRuns> {
        self.recent.get(job)
    }

    pub(super) fn deadlines(&self, job: &JobStatus) -> Deadlines {
        let told_since = told_since(self.fleet.is_some(), &self.status, &job.job);
        Deadlines::of(job, self.recent(&job.job.name), told_since)
    }

    /// Whether a job never had a run that ended, as far as the worker remembers.
    pub(super) fn never_ran(&self, job: &JobName) -> bool {
        let is_told = self.status.jobs.get(job).is_none_or(|status| {
            told_since(self.fleet.is_some(), &self.status, &status.job).is_some()
        });
        is_told && self.recent(job).is_none_or(|recent| recent.runs.is_empty())
    }
}

/// Since when the worker knows of a job's runs. `None` if it never does: a global job belongs to a worker with another fixed
/// part, and such workers tell each other nothing.
pub(super) fn told_since(is_in_fleet: bool, status: &Status, job: &Job) -> Option<DateTime<Utc>> {
    let is_own = status.shares.is_none_or(|held| !held.of_job(job).is_empty());
    (is_in_fleet || is_own).then_some(status.started_at)
}

pub(super) fn moment(at: Option<DateTime<Utc>>) -> Option<Moment> {
    at.map(Moment)
}
