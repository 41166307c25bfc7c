//! A worker as a member of its fleet: what it says about itself, and what it knows of the others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::elsewhere::{RunsNow, runs_now};
use super::fleet::{Fleet, FleetView, OfJob, Summary};
use crate::domain::job::JobName;
use crate::domain::report::Outcome;
use crate::domain::run::{RunId, RunRecord, Trigger};
use crate::domain::share;
use crate::engine::ports::SheetKind;
use crate::engine::run::not_warm::Wanted;
use crate::engine::run::progress::{Progress, ProgressNow};
use crate::engine::schedule::status::{ActiveRun, JobStatus, Status};
use crate::observe::figures::Share;
use crate::observe::news::News;

/// How often a member publishes its summary, and reads those of the others.
const PUBLISH_EVERY: Duration = Duration::from_secs(2);
/// How many tenants that are not warm a summary names.
const MOST_NOT_WARM: usize = 100;
/// How long a summary tells of a run that ended: others miss some summaries without missing a run.
const TELLS_FOR: TimeDelta = TimeDelta::seconds(10);
/// How many runs that ended a summary tells of.
const MOST_ENDED: usize = 200;
/// How many news are looked through for them.
const MOST_NEWS: usize = 1_000;

impl Board {
    /// Publishes this worker's summary and reads those of the others, until the worker stops.
    pub async fn keep_fleet(self: Arc<Self>, stop: CancellationToken) {
        let Some(fleet) = &self.fleet else { return };
        while !stop.is_cancelled() {
            self.beat(fleet).await;
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.runner.clock.sleep(PUBLISH_EVERY) => {}
            }
        }
        // If it stays, it expires.
        drop(fleet.me.sheets.remove(SheetKind::Summary, fleet.me.id.as_str()).await);
    }

    async fn beat(&self, fleet: &Fleet) {
        fleet.publish(&self.summary().await).await;
        let Some(others) = fleet.read().await else { return };
        let jobs = &self.handle.status().jobs;
        let ended = others.iter().flat_map(|member| &member.ended);
        for record in ended.filter(|record| jobs.contains_key(&record.job)) {
            self.handle.recent().note(record);
        }
    }

    /// The members of the fleet, and what they hold.
    pub async fn fleet(&self) -> FleetView {
        let others = self.others();
        FleetView::of(self.fleet.is_some(), &self.summary().await, &others, self.runner.clock.now())
    }

    /// Whether the worker is a member of a fleet.
    pub fn is_in_fleet(&self) -> bool {
        self.fleet.is_some()
    }

    /// The jobs that other members of the fleet run at this moment.
    pub fn running_elsewhere(&self) -> BTreeSet<JobName> {
        let others = self.others();
        let jobs = others.iter().flat_map(|member| &member.jobs);
        let running = jobs.filter(|(_, of_job)| of_job.running.is_some());
        running.filter_map(|(job, _)| JobName::parse(job).ok()).collect()
    }

    /// The name of the fleet, which may be empty; `None` if the worker is not a member of one.
    pub(super) fn fleet_name(&self) -> Option<&str> {
        self.fleet.as_ref().map(|fleet| fleet.me.ownership.fleet_name())
    }

    /// Whether figures that all members would read alike come from this worker: those of the cache server, and the
    /// applications' reads.
    pub fn reads_for_all(&self) -> bool {
        let holds_first = |fleet: &Fleet| fleet.me.ownership.held().has(share::Share::FIRST);
        self.fleet.as_ref().is_none_or(holds_first)
    }

    pub(super) fn others(&self) -> Arc<[Summary]> {
        self.fleet.as_ref().and_then(Fleet::others).unwrap_or_default()
    }

    /// A run of the fleet that goes on, by its id in lists.
    pub fn run_under_way(&self, id: RunId) -> Option<ActiveRun> {
        let name = Some(self.fleet_name()?);
        let (status, others) = (self.handle.status(), self.others());
        let own = status.jobs.values().filter_map(|job| {
            let run = runs_now(name, job).filter(|run| run.id == id)?;
            Some((job.job.name.clone(), run))
        });
        let jobs = others.iter().flat_map(|member| &member.jobs);
        let theirs = jobs.filter_map(|(job, of_job)| {
            let run = of_job.running.clone().filter(|run| run.id == id)?;
            Some((JobName::parse(job).ok()?, run))
        });
        let mut parts = own.chain(theirs);
        let (job, first) = parts.next()?;
        let run = parts.fold(first, |all, (_, part)| all.and(&part));
        let RunsNow { trigger, due_at, started_at, tenants_total, tenants_done, .. } = run;
        let progress = Progress::default();
        progress.expect(tenants_total);
        progress.add_now(ProgressNow { tenants_done, ..ProgressNow::default() });
        let (started_at, progress) = (Some(started_at), Arc::new(progress));
        Some(ActiveRun { id, job, trigger, requested_by: None, due_at, started_at, progress })
    }

    /// What this worker says about itself.
    async fn summary(&self) -> Summary {
        let status = self.handle.status();
        let coverage = self.samples().0;
        let counts = self.runner.not_warm.counts();
        let of_job = |(name, status): (&JobName, &JobStatus)| {
            let Share { part, whole } = coverage.get(name).copied().unwrap_or_default();
            let job = OfJob {
                coverage: (part, whole),
                not_warm: counts.get(name).copied().unwrap_or_default(),
                next_due_at: status.next_due_at,
                running: runs_now(self.fleet_name(), status),
            };
            (name.to_string(), job)
        };
        let first = Wanted { limit: MOST_NOT_WARM, ..Wanted::default() };
        let me = self.fleet.as_ref().map(|fleet| &fleet.me);
        let (id, address) =
            me.map(|me| (me.id.to_string(), me.address.clone())).unwrap_or_default();
        let (ownership, now) = (&self.runner.ownership, self.runner.clock.now());
        let (shares, lease_ends_at) =
            (ownership.held(), ownership.lease_left().map(|left| now + left));
        Summary {
            id,
            replica: self.runner.replica.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address,
            since: status.started_at,
            shares,
            lease_ends_at,
            jobs: status.jobs.iter().map(of_job).collect(),
            tenants_not_warm: self.runner.not_warm.tenants(),
            not_warm: self.own_not_warm(&first).await.tenants,
            ended: self.ended_lately(&status),
        }
    }

    /// The runs that ended here in the last seconds, as far as lists show them.
    fn ended_lately(&self, status: &Status) -> Vec<RunRecord> {
        if self.fleet.is_none() {
            return Vec::new();
        }
        let (news, since) = (&self.runner.metrics.news, self.runner.clock.now() - TELLS_FOR);
        let first = news.latest().saturating_sub(MOST_NEWS as u64);
        let items = news.after(first, MOST_NEWS).unwrap_or_default();
        let ended = items.iter().rev().filter_map(|item| {
            let News::RunFinished(record) = &item.news else { return None };
            Some(record)
        });
        let is_told = |record: &&Arc<RunRecord>| {
            record.finished_at >= since
                && (record.trigger, record.outcome) != (Trigger::Change, Outcome::Ok)
                && status.jobs.contains_key(&record.job)
        };
        ended.filter(is_told).take(MOST_ENDED).map(|record| brief(record)).collect()
    }
}

/// A record whose report has the first failure alone.
fn brief(record: &RunRecord) -> RunRecord {
    let mut brief = record.clone();
    brief.report.failures.truncate(1);
    brief.report.failed_tenants = Vec::new();
    brief
}
