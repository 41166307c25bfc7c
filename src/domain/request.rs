//! Runs that somebody requested of a fleet. The members share a record of the request: what is asked, and each part that a
//! member has done. A request is done when its parts cover all shares that it needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use super::job::{Job, JobName, Scope};
use super::report::Report;
use super::run::{Outcome, RunId, RunRecord, Trigger};
use super::share::{Share, Shares};
use super::tenant::TenantId;
use super::who::Who;
use super::whole;

/// What is asked of a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetRequest {
    /// The jobs, each with the shares in which it has work.
    pub jobs: BTreeMap<String, Shares>,
    /// The tenants to warm; `None` for all active ones.
    pub tenants: Option<Vec<String>>,
    /// When it was asked, to the millisecond: all its runs were due then.
    pub at: DateTime<Utc>,
    /// Who asked.
    pub by: Option<Who>,
}

/// What a member did of one job of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DonePart {
    /// The shares that it did.
    pub shares: Shares,
    /// The record of its run; the report has the first failure of each kind.
    pub record: RunRecord,
}

/// A request, with what was done of it.
#[derive(Clone, Debug)]
pub struct Requested {
    /// What is asked.
    pub request: FleetRequest,
    /// The parts of each job that were done, by their runs.
    pub parts: BTreeMap<JobName, BTreeMap<RunId, DonePart>>,
}

/// The field of a request's record that says what is asked.
const ASKED: &str = "asked";
/// The name of a part's field begins so; its run's id follows.
const PART: &str = "part:";

impl FleetRequest {
    /// A request for these jobs, asked at this moment.
    pub fn new(
        jobs: &[Arc<Job>],
        tenants: Option<&[TenantId]>,
        at: DateTime<Utc>,
        by: Option<Who>,
    ) -> Self {
        let of_tenants = tenants.map_or(Shares::ALL, |tenants| {
            tenants.iter().map(|tenant| Share::of_tenant(tenant.as_str())).collect()
        });
        let needs = |job: &Arc<Job>| {
            let shares = match job.scope {
                Scope::Tenants => of_tenants,
                Scope::Global => Share::of_job(&job.name).into(),
            };
            (job.name.to_string(), shares)
        };
        let tenants = tenants.map(|all| all.iter().map(ToString::to_string).collect());
        Self { jobs: jobs.iter().map(needs).collect(), tenants, at: at.trunc_subsecs(3), by }
    }

    /// The tenants to warm in these shares; `None` for all active ones.
    pub fn tenants_in(&self, shares: Shares) -> Option<Vec<TenantId>> {
        let tenants = self.tenants.as_ref()?.iter();
        let own = tenants.filter(|tenant| shares.has(Share::of_tenant(tenant)));
        Some(own.map(TenantId::new).collect())
    }

    /// The record of a run of one of its jobs that did not take place.
    pub fn record(&self, job: &JobName, outcome: Outcome, now: DateTime<Utc>) -> RunRecord {
        RunRecord {
            id: self.run(job),
            job: job.clone(),
            trigger: Trigger::Request,
            outcome,
            due_at: self.at,
            started_at: now,
            finished_at: now,
            report: Report::default(),
            replica: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            all_tenants: Some(self.tenants.is_none()),
            requested_by: self.by.clone(),
            shares: None,
            fleet: None,
            parts: Vec::new(),
        }
    }

    /// The id of the run of one of its jobs.
    pub fn run(&self, job: &JobName) -> RunId {
        RunId::of_fleet("", job, Trigger::Request, self.at)
    }

    /// Its jobs, each with the shares in which it has work.
    pub fn jobs(&self) -> impl Iterator<Item = (JobName, Shares)> {
        self.jobs.iter().filter_map(|(job, shares)| Some((JobName::parse(job).ok()?, *shares)))
    }

    /// The field that says what is asked, with its text.
    pub fn field(&self) -> (&'static str, String) {
        (ASKED, serde_json::to_string(self).unwrap_or_default())
    }
}

impl DonePart {
    /// The field of this part, with its text.
    pub fn field(&self) -> (String, String) {
        (format!("{PART}{}", self.record.id), serde_json::to_string(self).unwrap_or_default())
    }
}

impl Requested {
    /// A request of which nothing was done yet.
    pub fn new(request: FleetRequest) -> Self {
        Self { request, parts: BTreeMap::new() }
    }

    /// The request that a record's fields say; `None` if they say none. A part that a newer version wrote, and this one
    /// cannot read, is not done.
    pub fn read(fields: &BTreeMap<String, String>) -> Option<Self> {
        let request = serde_json::from_str(fields.get(ASKED)?).ok()?;
        let mut requested = Self::new(request);
        for (name, text) in fields {
            let part = name.strip_prefix(PART).and_then(|_id| serde_json::from_str(text).ok());
            if let Some(part) = part {
                requested.add(part);
            }
        }
        Some(requested)
    }

    /// Adds a part that was done.
    pub fn add(&mut self, part: DonePart) {
        self.parts.entry(part.record.job.clone()).or_default().insert(part.record.id, part);
    }

    /// Adds the parts that others know of the same request.
    pub fn add_all(&mut self, known: Self) {
        known.parts.into_values().flat_map(BTreeMap::into_values).for_each(|part| self.add(part));
    }

    /// The shares of a job that were not done yet.
    pub fn left(&self, job: &JobName) -> Shares {
        let needed = self.request.jobs.get(job.as_str()).copied().unwrap_or_default();
        let parts = self.parts.get(job).into_iter().flat_map(BTreeMap::values);
        parts.fold(needed, |left, part| left - part.shares)
    }

    /// Whether all of it was done.
    pub fn is_done(&self) -> bool {
        self.request.jobs().all(|(job, _)| self.left(&job).is_empty())
    }

    /// The run of a job, as far as it was done.
    pub fn run(&self, job: &JobName) -> Option<RunRecord> {
        let parts = self.parts.get(job).into_iter().flat_map(BTreeMap::values);
        let run = whole::one(parts.map(|part| part.record.clone()).collect())?;
        Some(RunRecord { id: self.request.run(job), ..run })
    }

    /// The worst outcome of its runs.
    pub fn outcome(&self) -> Outcome {
        let runs = || self.request.jobs().filter_map(|(job, _)| self.run(&job));
        let has = |outcome: &Outcome| runs().any(|run| run.outcome == *outcome);
        Outcome::ALL.into_iter().rev().find(has).unwrap_or(Outcome::Ok)
    }
}
