//! What the engine is doing, for its observers: jobs, runs, progress, health, readiness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::domain::job::{Job, JobName};
use crate::domain::pause::Pause;
use crate::domain::run::{RunId, RunRecord, Trigger};
use crate::domain::share::Shares;
use crate::domain::who::Who;
pub use crate::engine::run::batch_sizes::BatchFit;
pub use crate::engine::run::progress::{Progress, ProgressNow};

/// The progress of a worker that has not begun to work: which servers it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starting {
    /// The servers that it needs, in display order.
    pub servers: Vec<NeededServer>,
}

/// A server that the worker needs before it can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededServer {
    /// What it is for: `database`, `cache`, `history`.
    pub role: &'static str,
    /// Where it is, without user and password.
    pub address: String,
    /// Whether it can be reached.
    pub state: ServerState,
}

/// Whether a server can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerState {
    /// The first try is under way.
    #[default]
    Unknown,
    /// The last try failed; it is tried again.
    Away {
        /// Why it failed.
        message: String,
    },
    /// The worker has reached it.
    Connected,
}

impl Starting {
    /// The servers that could not be reached at the last try.
    pub fn away(&self) -> impl Iterator<Item = (&NeededServer, &str)> {
        self.servers.iter().filter_map(|server| match &server.state {
            ServerState::Away { message } => Some((server, message.as_str())),
            ServerState::Unknown | ServerState::Connected => None,
        })
    }
}

/// The whole status at one moment. The engine publishes a new one after each change.
#[derive(Clone, Debug)]
pub struct Status {
    /// When the worker started.
    pub started_at: DateTime<Utc>,
    /// Whether the worker still accepts runs.
    pub phase: Phase,
    /// The shares that the worker holds; `None` if there is no fleet.
    pub shares: Option<Shares>,
    /// The jobs, by name.
    pub jobs: BTreeMap<JobName, JobStatus>,
    /// Runs under way of jobs that no longer exist.
    pub leaving: Vec<ActiveRun>,
    /// The jobs whose files are rejected, because the database refuses their queries.
    pub rejections: Rejections,
}

/// Rejected job files, by their job.
pub type Rejections = BTreeMap<JobName, Rejection>;

/// A job's file is not used as it is, because the database refuses its query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// What is wrong; at least one.
    pub problems: Vec<RejectedFor>,
    /// Whether an older version of the file, with a query that works, is used meanwhile. If not, the job is
    /// held and never runs.
    pub older_in_use: bool,
}

/// A reason why a file is rejected: a query that the database refuses, or a file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedFor {
    /// Where the problem was found: a job file, or the setting of the tenant query.
    pub file: String,
    /// In which line, from 1.
    pub line: Option<usize>,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Whether the worker still accepts runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does.
    Running,
    /// The worker received a signal to stop; it finishes the runs in flight.
    Draining,
}

/// A job at one moment.
#[derive(Clone, Debug)]
pub struct JobStatus {
    /// Its definition.
    pub job: Arc<Job>,
    /// When its schedule is due next; `None` where it is disabled, paused or never due again.
    pub next_due_at: Option<DateTime<Utc>>,
    /// The run under way.
    pub running: Option<ActiveRun>,
    /// Runs that wait for it, in order.
    pub queued: Vec<ActiveRun>,
    /// The run that ended last. Runs for changes that ended `ok` do not count: there are too many.
    pub last_run: Option<Arc<RunRecord>>,
    /// When the last `ok` run over all tenants ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// The job's shares that the worker holds and for which no run has been `ok` since it took them. Without a fleet, they
    /// are all shares or none.
    pub unwarmed: Shares,
    /// How many tenants its batches have, and why they are fewer than configured, if they are.
    pub batch: Arc<BatchFit>,
    /// Why the job is paused, if it is. Then only people start its runs, and it is never due.
    pub pause: Option<Pause>,
}

/// A run that has not ended.
#[derive(Clone, Debug)]
pub struct ActiveRun {
    /// Its id.
    pub id: RunId,
    /// Its job.
    pub job: JobName,
    /// Why it starts.
    pub trigger: Trigger,
    /// Who asked for it, if that is known.
    pub requested_by: Option<Who>,
    /// When it was due or asked for.
    pub due_at: DateTime<Utc>,
    /// When it started; `None` while it waits.
    pub started_at: Option<DateTime<Utc>>,
    /// How far it is.
    pub progress: Arc<Progress>,
}

/// Whether the process works: whether the scheduler ticks and the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// How long ago the scheduler rang last.
    pub scheduler: Beat,
    /// How long ago the engine's loop last went round.
    pub engine: Beat,
}

/// A repeated sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// How long ago it came last.
    pub silent_for: Duration,
    /// How long it may be silent.
    pub limit: Duration,
}

impl Beat {
    /// Whether the last one is recent enough.
    pub fn is_alive(self) -> bool {
        self.silent_for <= self.limit
    }
}

impl Health {
    /// Whether both the scheduler and the loop are alive.
    pub fn is_alive(self) -> bool {
        self.scheduler.is_alive() && self.engine.is_alive()
    }
}

/// Whether the application may send traffic that needs a warm cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Every required job has succeeded once, paused ones aside: in a fleet, for the shares that the worker holds. A
    /// worker that holds none is a stand-by, and ready.
    Ready,
    /// No enabled job is required, so there was nothing to wait for.
    Unasked,
    /// These required jobs have not succeeded yet.
    Waiting {
        /// Their names.
        jobs: Vec<JobName>,
    },
    /// Required jobs have not succeeded, but `ready_within` has passed. The worker is ready all the same,
    /// since a cold cache is slow and no worker at all is worse.
    GaveUp {
        /// Their names.
        jobs: Vec<JobName>,
    },
    /// These jobs are held: their files are rejected, and no older version is in use. The worker is not ready
    /// for as long as that lasts, since nothing warms their keys.
    Rejected {
        /// Their names.
        held: Vec<JobName>,
        /// Required jobs that have not succeeded yet.
        jobs: Vec<JobName>,
    },
    /// The worker is draining.
    Draining,
}

impl Status {
    /// Whether the job is held: its file is rejected, and no older version is in use.
    pub fn is_held(&self, job: &JobName) -> bool {
        self.rejections.get(job).is_some_and(|rejection| !rejection.older_in_use)
    }

    /// Readiness at a moment.
    pub fn readiness(&self, now: DateTime<Utc>, ready_within: Duration) -> Readiness {
        if self.phase == Phase::Draining {
            return Readiness::Draining;
        }
        let waiting = |status: &&JobStatus| {
            let job = &status.job;
            let is_awaited = job.required && job.enabled && status.pause.is_none();
            is_awaited && !status.unwarmed.is_empty()
        };
        let jobs: Vec<_> =
            self.jobs.values().filter(waiting).map(|status| status.job.name.clone()).collect();
        let held: Vec<_> =
            self.rejections.keys().filter(|job| self.is_held(job)).cloned().collect();
        if !held.is_empty() {
            return Readiness::Rejected { held, jobs };
        }
        let waited = (now - self.started_at).to_std().unwrap_or_default();
        let any = self.jobs.values().any(|status| status.job.required && status.job.enabled);
        match jobs.is_empty() {
            true if !any => Readiness::Unasked,
            true => Readiness::Ready,
            false if waited > ready_within => Readiness::GaveUp { jobs },
            false => Readiness::Waiting { jobs },
        }
    }
}
