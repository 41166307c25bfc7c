//! Facts for the tests of this room.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::facts::{Facts, NotWarmOfJob};
use crate::domain::job::tests::example;
use crate::domain::job::{Job, JobName};
use crate::domain::report::FailureKind;
use crate::domain::run::{FullRun, Outcome, RunBrief, RunId, Trigger};
use crate::domain::share::Shares;
use crate::engine::run::batch_sizes::BatchSizes;
use crate::engine::run::cache_usage::UsageNow;
use crate::engine::run::not_warm::{Entry, Reason};
use crate::engine::run::recent::RecentRuns;
use crate::engine::schedule::status::{Beat, Health, JobStatus, Phase, Rejections, Status};
use crate::observe::figures::{FeedFigures, Reads};

pub(super) fn at(text: &str) -> DateTime<Utc> {
    format!("2026-03-01T{text}:00Z").parse().unwrap()
}

/// Twelve o'clock: the moment of all facts.
pub(super) fn noon() -> DateTime<Utc> {
    at("12:00")
}

pub(super) fn name(job: &str) -> JobName {
    JobName::parse(job).unwrap()
}

/// Jobs that are due every ten minutes, with a TTL of thirty. All is well: the last run of each started five minutes
/// ago, and 5,000 tenants are warm.
pub(super) fn facts(jobs: &[&str]) -> Facts {
    let health = Beat { silent_for: Duration::ZERO, limit: Duration::from_secs(10) };
    let status = Status {
        shares: None,
        started_at: at("08:00"),
        phase: Phase::Running,
        jobs: jobs.iter().map(|job| (name(job), status(example(job, Vec::new())))).collect(),
        leaving: Vec::new(),
        rejections: Rejections::new(),
    };
    Facts {
        now: noon(),
        replica: "worker-7".to_owned(),
        status: Arc::new(status),
        unreadable: Vec::new(),
        health: Health { scheduler: health, engine: health },
        recent: jobs.iter().map(|job| (name(job), recent())).collect(),
        not_warm: BTreeMap::new(),
        tenants_not_warm: 0,
        active: Some(5_000),
        vacant: Shares::NONE,
        coverage: BTreeMap::new(),
        audits: BTreeMap::new(),
        usage: UsageNow::default(),
        reads: Reads::default(),
        lags: Vec::new(),
        feed: FeedFigures::default(),
        pending: None,
        database_down: None,
        cache_down: None,
        history_away: None,
        writes_refused: false,
        fleet: None,
        elsewhere: BTreeMap::new(),
    }
}

fn status(job: Job) -> JobStatus {
    let batch = BatchSizes::default().of(&job);
    JobStatus {
        next_due_at: job.schedule.next_after(noon()),
        job: Arc::new(job),
        running: None,
        queued: Vec::new(),
        last_run: None,
        last_success_at: None,
        unwarmed: Shares::ALL,
        pause: None,
        batch,
    }
}

/// The runs of a job that had one, five minutes ago, which took a minute.
pub(super) fn recent() -> RecentRuns {
    let (started_at, finished_at) = (at("11:55"), at("11:56"));
    let run = RunBrief {
        id: RunId::new(started_at),
        trigger: Trigger::Schedule,
        outcome: Outcome::Ok,
        due_at: started_at,
        started_at,
        finished_at,
        all_tenants: true,
        shares: None,
        keys: 10,
    };
    let full = FullRun {
        started_at,
        finished_at,
        tenants: 5_000,
        queries: 50,
        database_ms: 400,
        keys: 10,
        bytes: 1_000,
    };
    RecentRuns {
        runs: [run].into(),
        last_success_at: Some(finished_at),
        last_full: Some(full),
        ..RecentRuns::default()
    }
}

/// Changes a job.
pub(super) fn change(facts: &mut Facts, job: &str, change: impl FnOnce(&mut JobStatus)) {
    let status = Arc::get_mut(&mut facts.status).unwrap();
    change(status.jobs.get_mut(&name(job)).unwrap());
}

/// Tenants of a job are not warm since 11:40, and are tried again at 12:20.
pub(super) fn not_warm(facts: &mut Facts, job: &str, tenants: u64) {
    let summary = Entry {
        reason: Reason::Failed(FailureKind::Query),
        message: "division by zero".into(),
        since: at("11:40"),
        tries: 3,
    };
    let next_try_at = Some(noon() + TimeDelta::minutes(20));
    let of_job = NotWarmOfJob { tenants, summary: Some(summary), next_try_at };
    facts.not_warm.insert(name(job), of_job);
    facts.tenants_not_warm = facts.tenants_not_warm.max(tenants);
}
