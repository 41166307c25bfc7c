//! The pauses of the jobs: changed here, in effect in the scheduler, kept in a store.
//!
//! A change is in effect at once, even while the store cannot be reached: people pause jobs when something is
//! wrong. What could not be kept is kept later. The store is the truth otherwise: each worker reads it every
//! few seconds, so all replicas follow the last change.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio_util::sync::CancellationToken;

use super::handle::{Handle, JobSelection};
use super::status::Phase;
use crate::domain::job::JobName;
use crate::domain::pause::{Pause, Pauses};
use crate::domain::server::Server;
use crate::domain::who::Who;
use crate::engine::ports::{Clock, PauseChanges, PauseStore, PauseStoreError};
use crate::observe::event;
use crate::observe::metric::Metrics;

/// How often the store is read. Another replica follows a change within this time.
pub const READ_EVERY: Duration = Duration::from_secs(10);
/// The same in a fleet, whose members are to do the same things.
pub const READ_IN_FLEET_EVERY: Duration = Duration::from_secs(3);
/// How long a caller waits until its change is kept. After that it is kept in the background.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// The pauses of a worker's jobs.
pub struct PauseBook {
    store: Arc<dyn PauseStore>,
    handle: Handle,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    /// Nobody talks to the store under this lock, so that a store that hangs delays no change.
    in_effect: AsyncMutex<InEffect>,
    /// Changes that are in effect and not kept yet.
    unkept: Mutex<PauseChanges>,
    /// Locked while the store is read or written, so that it receives changes in their order.
    storing: AsyncMutex<()>,
    /// Rung when a change could not be kept at once.
    behind: Notify,
    read_every: Duration,
}

#[derive(Default)]
struct InEffect {
    pauses: Pauses,
    /// How many changes there were on this worker.
    changes: u64,
}

/// What became of a request to pause or resume jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseAnswer {
    /// The jobs that the request was about, each with its pause now.
    pub jobs: Vec<(JobName, Option<Pause>)>,
    /// Those of them that were paused before the request.
    pub paused_before: BTreeSet<JobName>,
    /// Whether the change is kept already. If not, it is in effect on this worker, which goes on trying.
    pub is_kept: bool,
    /// Which server keeps it.
    pub kept_by: Server,
}

/// Why a request to pause or resume jobs was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// There is no such job.
    #[error("there is no job `{0}`")]
    UnknownJob(JobName),
    /// The pause would be over before it begins.
    #[error("the pause would end before it begins: `until` is in the past")]
    Over,
    /// The worker is stopping.
    #[error("the worker is stopping: ask again when it is back")]
    Draining,
}

impl PauseBook {
    /// The pauses in effect when the worker starts, and where they are kept; they are read again that often.
    pub fn new(
        store: Arc<dyn PauseStore>,
        handle: Handle,
        pauses: Pauses,
        metrics: Arc<Metrics>,
        read_every: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            clock: Arc::clone(&handle.clock),
            handle,
            metrics,
            in_effect: AsyncMutex::new(InEffect { pauses, changes: 0 }),
            unkept: Mutex::default(),
            storing: AsyncMutex::default(),
            behind: Notify::new(),
            read_every,
        })
    }

    /// Which server keeps the pauses.
    pub fn kept_by(&self) -> Server {
        self.store.server()
    }

    /// Pauses one job or all. A job that is paused already gets the new note and end, and stays paused since
    /// the same moment; among all jobs, it keeps its pause as it is.
    pub async fn pause(&self, jobs: JobSelection, pause: Pause) -> Result<PauseAnswer, PauseError> {
        if pause.is_over(self.clock.now()) {
            return Err(PauseError::Over);
        }
        let mut in_effect = self.in_effect.lock().await;
        let known = self.known(&jobs)?;
        let keeps_its_own = jobs == JobSelection::All;
        let mut changes = PauseChanges::new();
        for job in &known {
            let new = match self.pause_of(&in_effect.pauses, job) {
                Some(_) if keeps_its_own => continue,
                Some(before) => Pause { since: before.since, ..pause.clone() },
                None => pause.clone(),
            };
            changes.insert(job.clone(), Some(new));
        }
        let paused_before = self.paused_among(&in_effect.pauses, &known);
        let jobs = self.change(&mut in_effect, known, changes, None).await;
        drop(in_effect);
        Ok(self.answer(jobs, paused_before).await)
    }

    /// Resumes one job or all. A job that is not paused stays as it is.
    pub async fn resume(&self, jobs: JobSelection, by: Who) -> Result<PauseAnswer, PauseError> {
        let mut in_effect = self.in_effect.lock().await;
        let known = match &jobs {
            // A job that is gone may still have a pause.
            JobSelection::One(job) if in_effect.pauses.contains_key(job) => vec![job.clone()],
            JobSelection::One(_) | JobSelection::All => self.known(&jobs)?,
        };
        let gone = in_effect.pauses.keys().filter(|_| jobs == JobSelection::All);
        let changes = known.iter().chain(gone).map(|job| (job.clone(), None)).collect();
        let paused_before = self.paused_among(&in_effect.pauses, &known);
        let jobs = self.change(&mut in_effect, known, changes, Some(by)).await;
        drop(in_effect);
        Ok(self.answer(jobs, paused_before).await)
    }

    /// Keeps what could not be kept, and follows the changes of other workers, until it is stopped.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut is_away = false;
        while !stop.is_cancelled() {
            let synced = self.sync().await;
            match &synced {
                Ok(()) if is_away => event::PausesBack.emit(&self.metrics),
                Err(PauseStoreError(message)) if !is_away => {
                    event::PausesUnavailable { message }.emit(&self.metrics);
                }
                Ok(()) | Err(_) => {}
            }
            is_away = synced.is_err();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.behind.notified(), if !is_away => {}
                () = self.clock.sleep(self.read_every) => {}
            }
        }
    }

    fn known(&self, jobs: &JobSelection) -> Result<Vec<JobName>, PauseError> {
        let status = self.handle.status();
        if status.phase == Phase::Draining {
            return Err(PauseError::Draining);
        }
        match jobs {
            JobSelection::All => Ok(status.jobs.keys().cloned().collect()),
            JobSelection::One(job) if status.jobs.contains_key(job) => Ok(vec![job.clone()]),
            JobSelection::One(job) => Err(PauseError::UnknownJob(job.clone())),
        }
    }

    fn pause_of<'a>(&self, pauses: &'a Pauses, job: &JobName) -> Option<&'a Pause> {
        pauses.get(job).filter(|pause| !pause.is_over(self.clock.now()))
    }

    fn paused_among(&self, pauses: &Pauses, jobs: &[JobName]) -> BTreeSet<JobName> {
        jobs.iter().filter(|job| self.pause_of(pauses, job).is_some()).cloned().collect()
    }

    /// Puts changes into effect; answers with the pauses of those jobs from now on.
    async fn change(
        &self,
        in_effect: &mut InEffect,
        jobs: Vec<JobName>,
        changes: PauseChanges,
        by: Option<Who>,
    ) -> Vec<(JobName, Option<Pause>)> {
        let InEffect { pauses, changes: count } = in_effect;
        for (job, change) in &changes {
            match change {
                Some(pause) => drop(pauses.insert(job.clone(), pause.clone())),
                None => drop(pauses.remove(job)),
            }
        }
        *count += 1;
        self.unkept().extend(changes);
        self.handle.set_pauses(pauses.clone(), by).await;
        let of_job = |job: JobName| {
            let pause = self.pause_of(pauses, &job).cloned();
            (job, pause)
        };
        jobs.into_iter().map(of_job).collect()
    }

    /// Waits a moment for the changes to be kept.
    async fn answer(
        &self,
        jobs: Vec<(JobName, Option<Pause>)>,
        paused_before: BTreeSet<JobName>,
    ) -> PauseAnswer {
        let is_kept =
            tokio::time::timeout(MAX_WAIT, self.keep()).await.is_ok_and(|kept| kept.is_ok());
        if !is_kept {
            self.behind.notify_one();
        }
        PauseAnswer { jobs, paused_before, is_kept, kept_by: self.kept_by() }
    }

    /// Keeps all changes that are not kept yet.
    async fn keep(&self) -> Result<(), PauseStoreError> {
        let _turn = self.storing.lock().await;
        let changes = self.unkept().clone();
        if changes.is_empty() {
            return Ok(());
        }
        self.store.keep(&changes).await?;
        self.unkept().retain(|job, pause| changes.get(job) != Some(pause));
        Ok(())
    }

    /// Keeps what is not kept yet, and puts the store's pauses into effect.
    async fn sync(&self) -> Result<(), PauseStoreError> {
        self.keep().await?;
        let before = self.in_effect.lock().await.changes;
        let stored = self.store.pauses().await?;
        let mut in_effect = self.in_effect.lock().await;
        if in_effect.changes != before {
            // What was read is older than the last change; it is read again in a moment.
            self.behind.notify_one();
            return Ok(());
        }
        let Some(mut stored) = stored else {
            // The store has lost them.
            let lost =
                in_effect.pauses.iter().map(|(job, pause)| (job.clone(), Some(pause.clone())));
            self.unkept().extend(lost);
            drop(in_effect);
            return self.keep().await;
        };
        let now = self.clock.now();
        stored.retain(|_, pause| !pause.is_over(now));
        in_effect.pauses.retain(|_, pause| !pause.is_over(now));
        if stored != in_effect.pauses {
            in_effect.pauses.clone_from(&stored);
            self.handle.set_pauses(stored, None).await;
        }
        Ok(())
    }

    fn unkept(&self) -> MutexGuard<'_, PauseChanges> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
