//! The engine's interface for the rest of the worker: request runs, look at runs, read status and health.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot, watch};

use super::status::{ActiveRun, Health, Rejections, Status};
use crate::domain::change::Changed;
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::pause::Pauses;
use crate::domain::run::{RunFilter, RunId, RunRecord};
use crate::domain::tenant::TenantId;
use crate::domain::trace::TraceParent;
use crate::domain::who::Who;
use crate::engine::ports::Clock;
pub use crate::engine::ports::{Beside, HistoryError};
use crate::engine::run::not_warm::Owner;
use crate::engine::run::recent::Recent;
use crate::engine::run::record::Records;
pub use crate::engine::run::record::RunPage;

/// The handle to the engine. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    pub(crate) beats: Arc<super::health::Beats>,
    pub(crate) records: Arc<Records>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Where requests go, if the worker is a member of a fleet.
    fleet: Option<FleetRuns>,
}

/// The runs that are requested of a fleet: a task beside the engine shares them out.
#[derive(Clone)]
pub struct FleetRuns {
    pub(crate) ask: mpsc::Sender<FleetAsk>,
    pub(crate) runs: watch::Receiver<FleetRunViews>,
}

/// A notice after each change of a run.
pub struct RunChanges {
    status: watch::Receiver<Arc<Status>>,
    fleet: Option<watch::Receiver<FleetRunViews>>,
}

/// A request of a fleet, on its way to the task.
pub(crate) struct FleetAsk {
    pub(crate) request: RunRequest,
    pub(crate) asker: Asker,
    pub(crate) reply: oneshot::Sender<Result<Vec<Ticket>, RequestError>>,
}

/// Runs that were requested of a fleet, by their ids.
pub(crate) type FleetRunViews = Arc<BTreeMap<RunId, RunView>>;

/// A request for runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunRequest {
    /// The jobs to run.
    pub jobs: JobSelection,
    /// The tenants to warm; `None` for all active ones. A tenant that is not active is not warmed; the report
    /// counts it as failed.
    pub tenants: Option<Vec<TenantId>>,
}

/// Who asks for runs.
#[derive(Clone, Debug, Default)]
pub struct Asker {
    /// Their name, if it is known.
    pub by: Option<Who>,
    /// The trace that their request belongs to.
    pub parent: Option<TraceParent>,
    /// When they asked the fleet; the worker then runs the job for its own shares. `None` if they asked this worker alone.
    pub asked_at: Option<DateTime<Utc>>,
}

impl From<Who> for Asker {
    fn from(by: Who) -> Self {
        Self { by: Some(by), ..Self::default() }
    }
}

/// Which jobs are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JobSelection {
    /// All that are enabled.
    All,
    /// One.
    One(JobName),
}

/// Why a request was refused. A refused request starts none of its runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no such job.
    #[error("there is no job `{0}`")]
    UnknownJob(JobName),
    /// The job is not enabled.
    #[error("job `{0}` is disabled: its file says `enabled = false`")]
    Disabled(JobName),
    /// The job is held, as its file is rejected.
    #[error("job `{0}` is held: the database refuses its query; `GET /api/v1/jobs/{0}` says why")]
    Rejected(JobName),
    /// Tenants were named for a job that has none.
    #[error("job `{0}` warms all tenants together: it takes no tenants")]
    TakesNoTenants(JobName),
    /// Too many runs of the job wait already.
    #[error("the queue of job `{0}` is full: try again when one of its runs has ended")]
    QueueFull(JobName),
    /// Too many requests at once.
    #[error("too many requests at once: try again in a moment")]
    Busy,
    /// The worker is stopping.
    #[error("the worker is stopping and takes on no more runs")]
    Draining,
    /// The other workers of the fleet cannot be asked.
    #[error("the fleet cannot be asked for runs while the cache does not answer: {0}")]
    FleetAway(String),
}

/// A run that the engine has accepted.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The run as it was when the engine accepted it.
    pub run: ActiveRun,
    pub(crate) done: watch::Receiver<Option<Arc<RunRecord>>>,
}

impl Ticket {
    /// The run's record once it has ended; `None` if the engine stopped before.
    pub async fn finished(mut self) -> Option<Arc<RunRecord>> {
        self.done.wait_for(Option::is_some).await.ok().and_then(|record| record.clone())
    }
}

/// A run, active or ended.
#[derive(Clone, Debug)]
pub enum RunView {
    /// It waits or is under way.
    Active(ActiveRun),
    /// It has ended.
    Finished(Arc<RunRecord>),
}

/// What waits to be warmed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Tenants that wait, over all jobs: each counts once a job.
    pub waiting: u64,
    /// How old the oldest change is that is not in the cache yet.
    pub oldest: Option<Duration>,
    /// When each of the tenants that were asked for is tried again, in their order; `None` if nothing is due.
    pub next_tries: Vec<Option<DateTime<Utc>>>,
}

/// A command from the handle to the loop.
pub(crate) enum Command {
    Request {
        request: RunRequest,
        asker: Asker,
        reply: oneshot::Sender<Result<Vec<Ticket>, RequestError>>,
    },
    Changed(Changed),
    Pending {
        of: Vec<(JobName, Owner)>,
        reply: oneshot::Sender<Pending>,
    },
    Pauses {
        /// All pauses from now on.
        pauses: Pauses,
        /// Who resumed jobs, if that is why there are fewer.
        by: Option<Who>,
        /// Dropped when they are in effect.
        done: oneshot::Sender<()>,
    },
    Replace {
        jobs: Jobs,
        rejections: Rejections,
        /// Dropped when the jobs are replaced.
        done: oneshot::Sender<()>,
    },
}

impl Handle {
    /// The handle of an engine.
    pub(crate) fn new(
        commands: mpsc::Sender<Command>,
        status: watch::Receiver<Arc<Status>>,
        beats: Arc<super::health::Beats>,
        records: Arc<Records>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { commands, status, beats, records, clock, fleet: None }
    }

    /// The same, for a worker whose requests go to its fleet.
    #[must_use]
    pub fn in_fleet(self, fleet: Option<FleetRuns>) -> Self {
        Self { fleet, ..self }
    }

    /// Requests runs; they queue behind the runs under way. If a run of the same job for the same tenants
    /// waits already, the answer is that run: it will read the same present state.
    pub async fn request(&self, request: RunRequest) -> Result<Vec<Ticket>, RequestError> {
        self.request_by(request, Asker::default()).await
    }

    /// The same, with who asks for the runs.
    pub async fn request_by(
        &self,
        request: RunRequest,
        asker: Asker,
    ) -> Result<Vec<Ticket>, RequestError> {
        let (reply, answer) = oneshot::channel();
        let sent = if let Some(fleet) = &self.fleet {
            let ask = FleetAsk { request, asker, reply };
            fleet.ask.try_send(ask).map_err(|error| refused(&error))
        } else {
            let command = Command::Request { request, asker, reply };
            self.commands.try_send(command).map_err(|error| refused(&error))
        };
        sent?;
        answer.await.unwrap_or(Err(RequestError::Draining))
    }

    /// Reports changed data whose fences have been moved; the engine warms its keys before anything else.
    /// Waits while the engine is busy: no change is lost.
    pub async fn changed(&self, changed: Changed) {
        // A worker that stops warms nothing any more.
        drop(self.commands.send(Command::Changed(changed)).await);
    }

    /// Replaces all pauses, and ends when the new ones are in effect. `by` resumed the jobs whose pauses are gone.
    pub(crate) async fn set_pauses(&self, pauses: Pauses, by: Option<Who>) {
        let (done, is_done) = oneshot::channel();
        // A worker that stops pauses nothing any more.
        drop(self.commands.send(Command::Pauses { pauses, by, done }).await);
        drop(is_done.await);
    }

    /// Replaces the jobs. A job that stays the same goes on unchanged; a job that is new or changed runs once
    /// if its file says `on_start`. A run under way ends as it began, even if its job is gone. If a job is
    /// gone or disabled, its waiting runs are cancelled.
    pub async fn replace(&self, jobs: Jobs) {
        drop(self.replaced(jobs, Rejections::default()).await);
    }

    /// The same, with rejected files. A held job is among the jobs, and disabled. Ends when the jobs are
    /// replaced.
    pub async fn replace_but(&self, jobs: Jobs, rejections: Rejections) {
        drop(self.replaced(jobs, rejections).await.await);
    }

    async fn replaced(&self, jobs: Jobs, rejections: Rejections) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        // A worker that stops needs no jobs any more.
        drop(self.commands.send(Command::Replace { jobs, rejections, done }).await);
        is_done
    }

    /// The present status.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// The status, with a notice after each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// A notice after each change of a run: of this worker's, and of those that were requested of its fleet.
    pub fn run_changes(&self) -> RunChanges {
        let mut fleet = self.fleet.as_ref().map(|fleet| fleet.runs.clone());
        if let Some(runs) = &mut fleet {
            runs.mark_unchanged();
        }
        RunChanges { status: self.status.clone(), fleet }
    }

    /// Whether the process works.
    pub fn health(&self) -> Health {
        self.beats.health(self.clock.monotonic())
    }

    /// The wall clock, as the engine sees it.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// A run by its id: an active one, or one of the history.
    pub async fn run(&self, id: RunId) -> Result<Option<RunView>, HistoryError> {
        let requested = self.fleet.as_ref().and_then(|fleet| fleet.runs.borrow().get(&id).cloned());
        if requested.is_some() {
            return Ok(requested);
        }
        let status = self.status();
        if let Some(run) = status.leaving.iter().find(|run| run.id == id) {
            return Ok(Some(RunView::Active(run.clone())));
        }
        for job in status.jobs.values() {
            let active = job.running.iter().chain(&job.queued).find(|run| run.id == id);
            if let Some(run) = active {
                return Ok(Some(RunView::Active(run.clone())));
            }
            if let Some(last) = job.last_run.as_ref().filter(|run| run.id == id) {
                return Ok(Some(RunView::Finished(Arc::clone(last))));
            }
        }
        Ok(self.records.get(id).await?.map(Arc::new).map(RunView::Finished))
    }

    /// The runs of a fleet that these are parts of, as far as the history can be read; a run that is no part is left as it
    /// is.
    pub async fn whole_runs(&self, runs: Vec<Arc<RunRecord>>) -> Vec<Arc<RunRecord>> {
        self.records.whole_runs(runs).await
    }

    /// One page of the runs that have ended and that the filter wants, newest first.
    pub async fn runs(&self, filter: &RunFilter) -> Result<RunPage, HistoryError> {
        self.records.page(filter).await
    }

    /// The runs that the filter wants and that the worker knows while the history is away: those that are not written
    /// yet, and the last one of each job.
    pub fn known_runs(&self, filter: &RunFilter) -> Vec<RunRecord> {
        let status = self.status();
        self.records.known(status.jobs.values().filter_map(|job| job.last_run.as_ref()), filter)
    }

    /// The runs of the same job beside a run that has ended.
    pub async fn beside(&self, run: &RunRecord) -> Result<Beside, HistoryError> {
        self.records.beside(run).await
    }

    /// The last runs of each job, as the worker remembers them.
    pub fn recent(&self) -> &Recent {
        &self.records.recent
    }

    /// What waits to be warmed again, and when these tenants are tried again. The answer comes from the engine's loop;
    /// `None` if the loop has ended or is too busy.
    pub async fn pending(&self, of: Vec<(JobName, Owner)>) -> Option<Pending> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(Command::Pending { of, reply }).ok()?;
        answer.await.ok()
    }
}

impl RunChanges {
    /// Ends after a change since the last one; `None` if the engine has stopped.
    pub async fn changed(&mut self) -> Option<()> {
        let of_fleet = async {
            match &mut self.fleet {
                Some(runs) => runs.changed().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.status.changed() => changed.ok(),
            Some(()) = of_fleet => Some(()),
        }
    }
}

/// The jobs of a request.
pub(crate) fn requested<'j>(
    mut jobs: impl Iterator<Item = &'j Arc<Job>>,
    is_rejected: impl Fn(&JobName) -> bool,
    wanted: &JobSelection,
    names_tenants: bool,
) -> Result<Vec<Arc<Job>>, RequestError> {
    let takes_tenants = |job: &Job| job.scope == Scope::Tenants;
    let name = match wanted {
        JobSelection::All => {
            let is_meant = |job: &&Arc<Job>| job.enabled && (!names_tenants || takes_tenants(job));
            return Ok(jobs.filter(is_meant).cloned().collect());
        }
        JobSelection::One(name) => name,
    };
    match jobs.find(|job| job.name == *name) {
        None => Err(RequestError::UnknownJob(name.clone())),
        Some(job) if !job.enabled && is_rejected(name) => Err(RequestError::Rejected(name.clone())),
        Some(job) if !job.enabled => Err(RequestError::Disabled(name.clone())),
        Some(job) if names_tenants && !takes_tenants(job) => {
            Err(RequestError::TakesNoTenants(name.clone()))
        }
        Some(job) => Ok(vec![Arc::clone(job)]),
    }
}

fn refused<T>(error: &mpsc::error::TrySendError<T>) -> RequestError {
    match error {
        mpsc::error::TrySendError::Full(_) => RequestError::Busy,
        mpsc::error::TrySendError::Closed(_) => RequestError::Draining,
    }
}
