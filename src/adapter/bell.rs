//! tokio-cron-scheduler as a bell: it rings when a job may be due, and every second to show that it
//! is alive. The engine decides what is due, so a ring too many or too few harms nothing.

use std::fmt;
use std::sync::Arc;

use tokio_cron_scheduler::{Job as Rung, JobScheduler, JobSchedulerError};
use uuid::Uuid;

use crate::domain::job::JobName;

/// The function that the bell calls at each ring, with the job that may be due, or with `None` for
/// the heartbeat of each second. It runs on a task of the runtime and must neither block nor panic.
pub type Ring = Arc<dyn Fn(Option<&JobName>) + Send + Sync>;

/// The capacity of the crate's channels. With the crate's default of 200, rings are lost when more
/// jobs are due at once.
const CHANNEL: usize = 4096;

/// Every second.
const HEARTBEAT: &str = "* * * * * *";

/// A bell that rings by cron patterns.
pub struct Bell {
    scheduler: JobScheduler,
    ring: Ring,
    jobs: Vec<Entry>,
}

struct Entry {
    job: JobName,
    pattern: String,
    id: Uuid,
}

/// The bell cannot ring.
#[derive(Debug, thiserror::Error)]
pub enum BellError {
    /// The scheduler rejects a pattern.
    #[error("job `{job}`: cannot ring by `{pattern}`")]
    Pattern {
        /// The job that the pattern belongs to.
        job: JobName,
        /// The pattern.
        pattern: String,
        /// The scheduler's reason.
        source: JobSchedulerError,
    },
    /// The scheduler itself failed.
    #[error("could not {doing} the scheduler")]
    Scheduler {
        /// The operation that failed.
        doing: &'static str,
        /// The scheduler's error.
        source: JobSchedulerError,
    },
}

impl Bell {
    /// Starts to ring by these patterns. A pattern has six fields and means UTC.
    pub async fn start(patterns: &[(JobName, String)], ring: Ring) -> Result<Self, BellError> {
        let failed = |doing| move |source| BellError::Scheduler { doing, source };
        let scheduler =
            JobScheduler::new_with_channel_size(CHANNEL).await.map_err(failed("make"))?;
        let mut bell = Self { scheduler, ring, jobs: Vec::new() };
        let beat = bell.rung(None, HEARTBEAT).map_err(failed("make a beat for"))?;
        bell.scheduler.add(beat).await.map_err(failed("add a beat to"))?;
        bell.replace(patterns).await?;
        bell.scheduler.start().await.map_err(failed("start"))?;
        Ok(bell)
    }

    /// Rings by these patterns from now on. If one of them is wrong, the bell keeps the old ones.
    pub async fn replace(&mut self, patterns: &[(JobName, String)]) -> Result<(), BellError> {
        let mut new = Vec::new();
        for (job, pattern) in patterns {
            let is_there = |entry: &Entry| entry.job == *job && entry.pattern == *pattern;
            if !self.jobs.iter().any(is_there) {
                let rung = self.rung(Some(job.clone()), pattern).map_err(|source| {
                    let (job, pattern) = (job.clone(), pattern.clone());
                    BellError::Pattern { job, pattern, source }
                })?;
                new.push((rung, job.clone(), pattern.clone()));
            }
        }
        let stays = |entry: &Entry| {
            patterns.iter().any(|(job, pattern)| entry.job == *job && entry.pattern == *pattern)
        };
        let (stay, go): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.jobs).into_iter().partition(stays);
        self.jobs = stay;
        for entry in go {
            let removed = self.scheduler.remove(&entry.id).await;
            removed
                .map_err(|source| BellError::Scheduler { doing: "remove a job from", source })?;
        }
        // One after another: the crate's listener dies when many jobs are added at once.
        for (rung, job, pattern) in new {
            let added = self.scheduler.add(rung).await;
            let id =
                added.map_err(|source| BellError::Scheduler { doing: "add a job to", source })?;
            self.jobs.push(Entry { job, pattern, id });
        }
        Ok(())
    }

    /// Stops ringing. This takes half a second at most.
    pub async fn stop(mut self) -> Result<(), BellError> {
        let stopped = self.scheduler.shutdown().await;
        stopped.map_err(|source| BellError::Scheduler { doing: "stop", source })
    }

    fn rung(&self, job: Option<JobName>, pattern: &str) -> Result<Rung, JobSchedulerError> {
        let ring = Arc::clone(&self.ring);
        // Async, because a panic in a sync body ends its entry for ever.
        Rung::new_async(pattern, move |_id, _scheduler| {
            let (ring, job) = (Arc::clone(&ring), job.clone());
            Box::pin(async move { ring(job.as_ref()) })
        })
    }
}

impl fmt::Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = self.jobs.iter().map(|entry| (entry.job.as_str(), entry.pattern.as_str()));
        f.debug_map().entries(jobs).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    fn every_second(name: &str) -> (JobName, String) {
        (JobName::parse(name).unwrap(), "* * * * * *".to_owned())
    }

    async fn next_but_beats(heard: &mut mpsc::Receiver<Option<JobName>>) -> String {
        loop {
            let next = tokio::time::timeout(LONG, heard.recv()).await.unwrap().unwrap();
            if let Some(job) = next {
                return job.to_string();
            }
        }
    }

    #[tokio::test]
    async fn a_bell_beats_each_second_and_rings_for_the_jobs_it_has_now() {
        let (rings, mut heard) = mpsc::channel(1000);
        let ring: Ring = Arc::new(move |job| rings.try_send(job.cloned()).unwrap());
        let mut bell = Bell::start(&[], ring).await.unwrap();
        for _ in 0..2 {
            assert_eq!(tokio::time::timeout(LONG, heard.recv()).await.unwrap(), Some(None));
        }
        bell.replace(&[every_second("a")]).await.unwrap();
        assert_eq!(next_but_beats(&mut heard).await, "a");
        bell.replace(&[every_second("b")]).await.unwrap();
        while next_but_beats(&mut heard).await != "b" {}
        assert_eq!(next_but_beats(&mut heard).await, "b");
        assert_eq!(format!("{bell:?}"), r#"{"b": "* * * * * *"}"#);
        bell.stop().await.unwrap();
    }

    #[tokio::test]
    async fn a_bad_pattern_names_its_job_and_changes_nothing() {
        let mut bell = Bell::start(&[every_second("a")], Arc::new(|_| ())).await.unwrap();
        let bad = (JobName::parse("b").unwrap(), "*/5 * * * *".to_owned());
        let error = bell.replace(&[bad]).await.unwrap_err();
        assert_eq!(error.to_string(), "job `b`: cannot ring by `*/5 * * * *`");
        assert_eq!(format!("{bell:?}"), r#"{"a": "* * * * * *"}"#);
        bell.stop().await.unwrap();
    }
}
