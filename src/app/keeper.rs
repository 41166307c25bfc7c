//! What a worker does besides its runs: it reloads its job files on demand and when they have changed,
//! checks rejected ones again, and restarts the bell if it falls silent.

use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::folder_watch::FolderWatch;
use super::versions::{Changed, Versions, rejected_for};
use super::{AppError, job_defaults};
use crate::adapter::bell::{Bell, Ring};
use crate::adapter::postgres::PostgresSource;
use crate::config::Settings;
use crate::definition;
use crate::domain::job::{Job, JobName, Jobs};
use crate::engine::ports::Clock;
use crate::engine::schedule::handle::Handle;
use crate::engine::schedule::status::RejectedFor;
use crate::observe::event;
use crate::observe::metric::Metrics;
use crate::overview::Board;

/// How often the keeper looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often rejected job files are checked again. It is the longest wait after somebody migrates
/// the database right after the worker's start.
const CHECK_AGAIN: Duration = Duration::from_secs(15);
/// The bell rings every second. If it is silent for this long, it is restarted. It follows the wall
/// clock, so it would be silent for hours if the clock were set back by hours.
const BELL_SILENCE: Duration = Duration::from_secs(5);

/// The parts of the worker that it looks after.
pub(super) struct Keeper<'a> {
    pub(super) settings: &'a Settings,
    /// `None` if only a signal makes the worker read its job files again.
    pub(super) watch: Option<Arc<FolderWatch>>,
    pub(super) versions: Versions,
    pub(super) source: Arc<PostgresSource>,
    pub(super) bell: Bell,
    pub(super) ring: Ring,
    /// Publishes the jobs in use.
    pub(super) jobs_read: watch::Sender<Jobs>,
    pub(super) handle: Handle,
    pub(super) board: Arc<Board>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Arc<Metrics>,
}

impl Keeper<'_> {
    /// Does its work until it is dropped.
    pub(super) async fn keep(&mut self, reload: &Notify) {
        match self.watch.clone() {
            None => self.look_after(reload).await,
            Some(watch) => tokio::select! {
                () = self.look_after(reload) => {}
                never = watch.run(reload) => match never {},
            },
        }
    }

    async fn look_after(&mut self, reload: &Notify) {
        let mut checked_at = self.clock.monotonic();
        loop {
            tokio::select! {
                biased;
                () = reload.notified() => {
                    self.reload().await;
                    checked_at = self.clock.monotonic();
                }
                () = self.clock.sleep(LOOK_EVERY) => {}
            }
            let now = self.clock.monotonic();
            if self.versions.are_open() && now >= checked_at + CHECK_AGAIN {
                self.check_again().await;
                checked_at = self.clock.monotonic();
            }
            let silent_for = self.handle.health().scheduler.silent_for;
            if silent_for > BELL_SILENCE {
                self.start_bell_anew(silent_for).await;
            }
        }
    }

    /// Reads the job files again. If a file itself has problems, nothing changes: the last good
    /// files stay.
    async fn reload(&mut self) {
        let (folder, defaults) = (self.settings.jobs.clone(), job_defaults(self.settings));
        // In a blocking task: the folder may be on a disk that hangs.
        let load = tokio::task::spawn_blocking(move || {
            (definition::contents(&folder), definition::load(&folder, &defaults))
        });
        let files = match load.await {
            Ok((contents, files)) => {
                if let Some(watch) = &self.watch {
                    watch.is_read(contents);
                }
                files.map_err(|problems| {
                    (problems.render(false), problems.iter().map(rejected_for).collect())
                })
            }
            Err(error) => {
                let (file, message) = (self.settings.jobs.display().to_string(), error.to_string());
                let problem =
                    RejectedFor { file, line: None, message: message.clone(), hint: None };
                Err((message, vec![problem]))
            }
        };
        let files = match files {
            Ok(files) => files,
            Err((problems, unreadable)) => {
                self.board.set_unreadable(unreadable);
                event::JobsRejected { problems: &problems }.emit(&self.metrics);
                return;
            }
        };
        self.board.set_unreadable(Vec::new());
        self.versions.read(files);
        self.versions.check(&self.source, self.clock.as_ref()).await;
        self.put_to_use().await;
        let (jobs, rejected) = (self.jobs_read.borrow().len(), self.versions.rejected().len());
        event::JobsReloaded { jobs, rejected }.emit(&self.metrics);
        tell_rejected(&self.versions, &self.metrics);
    }

    async fn check_again(&mut self) {
        let Changed { anything, mended } =
            self.versions.check(&self.source, self.clock.as_ref()).await;
        if !anything {
            return;
        }
        self.put_to_use().await;
        let others_rejected =
            !self.versions.rejected().is_empty() || !self.board.unreadable().is_empty();
        for job in &mended {
            event::QueryMended { job, others_rejected }.emit(&self.metrics);
        }
        tell_rejected(&self.versions, &self.metrics);
    }

    async fn put_to_use(&mut self) {
        let jobs = self.versions.in_use();
        if let Err(error) = self.bell.replace(&bell_patterns(&jobs)).await {
            // A bell with the old patterns is harmless: the scheduler loop looks at the clock
            // itself.
            self.tell_bell_failed(error);
        }
        self.handle.replace_but(jobs.clone(), self.versions.rejections()).await;
        self.board.set_origins(self.versions.origins(self.settings));
        self.jobs_read.send_replace(jobs);
    }

    async fn start_bell_anew(&mut self, silent_for: Duration) {
        let patterns = bell_patterns(&self.jobs_read.borrow());
        match Bell::start(&patterns, Arc::clone(&self.ring)).await {
            Ok(bell) => {
                let silent = std::mem::replace(&mut self.bell, bell);
                // The old bell may be broken in any way.
                drop(tokio::time::timeout(LOOK_EVERY, silent.stop()).await);
                event::BellStartedAnew { silent_for }.emit(&self.metrics);
            }
            Err(error) => self.tell_bell_failed(error),
        }
        // A new bell rings within a second. If it does not, it is restarted after the same time.
        self.clock.sleep(BELL_SILENCE).await;
    }

    fn tell_bell_failed(&self, error: impl Into<anyhow::Error>) {
        let message = format!("{:#}", error.into());
        event::BellFailed { message: &message }.emit(&self.metrics);
    }

    /// Stops the bell.
    pub(super) async fn stop(self) -> Result<(), AppError> {
        Ok(self.bell.stop().await.context("could not stop the bell")?)
    }
}

/// The bell's patterns: the schedule of each enabled job.
pub(super) fn bell_patterns(jobs: &Jobs) -> Vec<(JobName, String)> {
    let pattern = |(name, job): (&JobName, &Arc<Job>)| (name.clone(), job.schedule.bell_pattern());
    jobs.iter().filter(|(_, job)| job.enabled).map(pattern).collect()
}

/// Logs which job files are rejected, and which could not be checked.
pub(super) fn tell_rejected(versions: &Versions, metrics: &Metrics) {
    let rejections = versions.rejections();
    if !rejections.is_empty() {
        let older = rejections.values().filter(|rejection| rejection.older_in_use).count();
        let held = rejections.len() - older;
        event::QueriesRejected { problems: &versions.problems(), held, older }.emit(metrics);
    }
    if let Some((jobs, message)) = versions.unchecked() {
        event::QueriesUnchecked { jobs, message }.emit(metrics);
    }
}
