//! What the other members of a fleet do for a job.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Moment, Running};
use crate::domain::run::{RunId, Trigger};
use crate::engine::schedule::status::{ActiveRun, JobStatus};

/// A run under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunsNow {
    /// Its id in lists.
    pub(super) id: RunId,
    pub(super) trigger: Trigger,
    pub(super) due_at: DateTime<Utc>,
    pub(super) started_at: DateTime<Utc>,
    pub(super) tenants_total: u64,
    pub(super) tenants_done: u64,
}

/// What other members do for a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Elsewhere {
    pub(super) next_due_at: Option<DateTime<Utc>>,
    /// The run that began first, and the parts of the same run.
    running: Option<RunsNow>,
}

impl Elsewhere {
    pub(super) fn note(&mut self, run: Option<&RunsNow>) {
        let Some(run) = run else { return };
        self.running = Some(match self.running.take() {
            Some(known) if known.id == run.id => known.and(run),
            Some(known) if known.started_at <= run.started_at => known,
            Some(_) | None => run.clone(),
        });
    }

    /// The run under way in all the fleet, where the worker's own one is a part of it.
    pub(super) fn with(&self, own: Option<Running>) -> Option<Running> {
        let theirs = self.running.as_ref();
        let Some(mut own) = own else { return theirs.map(Running::from) };
        if let Some(theirs) = theirs.filter(|theirs| theirs.id == own.id) {
            own.started_at = own.started_at.min(Moment(theirs.started_at));
            own.tenants_total += theirs.tenants_total;
            own.tenants_done += theirs.tenants_done;
        }
        Some(own)
    }
}

impl From<&RunsNow> for Running {
    fn from(run: &RunsNow) -> Self {
        Self {
            id: run.id,
            trigger: run.trigger,
            started_at: Moment(run.started_at),
            tenants_total: run.tenants_total,
            tenants_done: run.tenants_done,
        }
    }
}

impl RunsNow {
    /// Two parts of one run.
    pub(super) fn and(self, other: &Self) -> Self {
        Self {
            started_at: self.started_at.min(other.started_at),
            tenants_total: self.tenants_total + other.tenants_total,
            tenants_done: self.tenants_done + other.tenants_done,
            ..self
        }
    }
}

/// The id under which lists show a run once it has ended.
/// `fleet` is the name of the fleet, if the worker is in one.
pub(super) fn id_in_lists(fleet: Option<&str>, run: &ActiveRun) -> RunId {
    match (fleet, run.trigger) {
        (Some(fleet), Trigger::Schedule | Trigger::Request) => {
            RunId::of_fleet(fleet, &run.job, run.trigger, run.due_at)
        }
        (None, _) | (Some(_), Trigger::Startup | Trigger::Change) => run.id,
    }
}

/// The run of a job that is under way here.
pub(super) fn runs_now(fleet: Option<&str>, status: &JobStatus) -> Option<RunsNow> {
    let run = status.running.as_ref()?;
    let progress = run.progress.now();
    Some(RunsNow {
        id: id_in_lists(fleet, run),
        trigger: run.trigger,
        due_at: run.due_at,
        started_at: run.started_at?,
        tenants_total: progress.tenants_total,
        tenants_done: progress.tenants_done,
    })
}
