//! The engine from outside: ask for runs, look at them, see how it is.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot, watch};

use super::status::{ActiveRun, Health, Rejections, Status};
use crate::domain::change::Changed;
use crate::domain::job::{JobName, Jobs};
use crate::domain::run::{RunId, RunRecord, Trigger};
use crate::domain::tenant::TenantId;
use crate::engine::ports::Clock;
pub use crate::engine::ports::HistoryError;
use crate::engine::run::record::Records;

/// The engine from outside. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    pub(crate) beats: Arc<super::health::Beats>,
    pub(crate) records: Arc<Records>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Runs that are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunRequest {
    /// Of which jobs.
    pub jobs: JobSelection,
    /// For which tenants; `None` for all active ones. Tenants that are not active are not warmed;
    /// the report counts them as failed.
    pub tenants: Option<Vec<TenantId>>,
}

/// Which jobs are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JobSelection {
    /// All that are enabled.
    All,
    /// One.
    One(JobName),
}

/// Why a request was not taken on. Nothing of it was.
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
    #[error("job `{0}` warms the whole fleet: it takes no tenants")]
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
}

/// A run that was taken on.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// The run as it was then.
    pub run: ActiveRun,
    pub(crate) done: watch::Receiver<Option<Arc<RunRecord>>>,
}

impl Ticket {
    /// The run's record, once it has ended; `None` where the engine stopped before.
    pub async fn finished(mut self) -> Option<Arc<RunRecord>> {
        self.done.wait_for(Option::is_some).await.ok().and_then(|record| record.clone())
    }
}

/// A run, wherever it is in its life.
#[derive(Clone, Debug)]
pub enum RunView {
    /// It waits or is under way.
    Active(ActiveRun),
    /// It has ended.
    Finished(Arc<RunRecord>),
}

/// What the handle asks of the loop.
pub(crate) enum Command {
    Request {
        request: RunRequest,
        trigger: Trigger,
        reply: oneshot::Sender<Result<Vec<Ticket>, RequestError>>,
    },
    Changed(Changed),
    Replace {
        jobs: Jobs,
        rejections: Rejections,
        /// Dropped when it is done.
        done: oneshot::Sender<()>,
    },
}

impl Handle {
    /// Asks for runs; they queue behind what is going on. A run of the same job for the same tenants
    /// that waits already is the answer: it will read the same present state.
    pub async fn request(&self, request: RunRequest) -> Result<Vec<Ticket>, RequestError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Request { request, trigger: Trigger::Request, reply };
        match self.commands.try_send(command) {
            Ok(()) => answer.await.unwrap_or(Err(RequestError::Draining)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(RequestError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(RequestError::Draining),
        }
    }

    /// Data changed, and the fences of whose it is were moved: it is warmed again before anything
    /// else. Waits while the engine is busy: no change is lost.
    pub async fn changed(&self, changed: Changed) {
        // A worker that stops warms nothing any more.
        drop(self.commands.send(Command::Changed(changed)).await);
    }

    /// These are the jobs from now on. One that stays the same goes on as if nothing had happened;
    /// one that is new or changed runs once if it says `on_start`. A run under way ends as it began,
    /// even where its job is gone; of a job that is gone or disabled, runs that wait are cancelled.
    pub async fn replace(&self, jobs: Jobs) {
        drop(self.replaced(jobs, Rejections::default()).await);
    }

    /// The same where files are rejected; jobs that are held are among the jobs, and disabled. Ends
    /// when it is done.
    pub async fn replace_but(&self, jobs: Jobs, rejections: Rejections) {
        drop(self.replaced(jobs, rejections).await.await);
    }

    async fn replaced(&self, jobs: Jobs, rejections: Rejections) -> oneshot::Receiver<()> {
        let (done, is_done) = oneshot::channel();
        // A worker that stops needs no jobs any more.
        drop(self.commands.send(Command::Replace { jobs, rejections, done }).await);
        is_done
    }

    /// Everything at this moment.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Everything, again after each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Whether the process works.
    pub fn health(&self) -> Health {
        self.beats.health(self.clock.monotonic())
    }

    /// The wall clock, as the engine sees it.
    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// A run by its id: one that has not ended, or one of the history.
    pub async fn run(&self, id: RunId) -> Result<Option<RunView>, HistoryError> {
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

    /// The newest runs that have ended, newest first.
    pub async fn recent_runs(
        &self,
        job: Option<&JobName>,
        limit: usize,
    ) -> Result<Vec<RunRecord>, HistoryError> {
        self.records.recent(job, limit).await
    }
}
