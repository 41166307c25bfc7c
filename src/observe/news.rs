//! What has just happened, for clients that follow the worker over HTTP. The newest items are kept, so that
//! a client that was away for a moment misses nothing. The worker never waits for a reader: a reader that is
//! too slow loses the oldest items, and learns that it did.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::domain::audit::JobAudit;
use crate::domain::job::JobName;
use crate::domain::pause::Pause;
use crate::domain::run::{RunId, RunRecord, SkipReason, Trigger};
use crate::domain::server::Server;
use crate::domain::who::Who;

/// How many are kept: at a few kilobytes each, they take a few megabytes.
const MAX_KEPT: usize = 1_000;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum News {
    /// A run started.
    RunStarted {
        /// The run.
        run: RunId,
        /// Its job.
        job: JobName,
        /// Why it started.
        trigger: Trigger,
    },
    /// A run ended. The record of an `ok` run for changes is nowhere else.
    RunFinished(Arc<RunRecord>),
    /// A run that was due or asked for does not happen.
    RunSkipped {
        /// Its job.
        job: JobName,
        /// Why.
        reason: SkipReason,
    },
    /// Somebody paused a job, or changed its pause.
    JobPaused {
        /// The job.
        job: JobName,
        /// The pause.
        pause: Pause,
    },
    /// A job is not paused any more.
    JobResumed {
        /// The job.
        job: JobName,
        /// Who resumed it, if the worker knows.
        by: Option<Who>,
    },
    /// The job files were read again, and are in use.
    JobsReloaded {
        /// How many jobs there are now.
        jobs: usize,
        /// How many of their files are rejected.
        rejected: usize,
    },
    /// The job files have problems; the last good ones stay in use.
    JobsRejected {
        /// All problems, as text.
        problems: String,
    },
    /// The verifier has compared some tenants of a job.
    AuditFinished {
        /// What it found.
        audit: Arc<JobAudit>,
        /// When it ended.
        at: DateTime<Utc>,
    },
    /// The change feed is connected.
    FeedConnected,
    /// The change feed lost its connection.
    FeedLost {
        /// Why.
        message: String,
    },
    /// A server counts as down, or as up again.
    ServerChanged {
        /// The server.
        server: Server,
        /// Whether it counts as down.
        is_down: bool,
        /// Why.
        message: String,
    },
    /// The cache server lost its keys.
    CacheLost,
    /// Keys were removed on request.
    KeysRemoved {
        /// How many.
        removed: u64,
        /// How many the cache refused to remove.
        failed: u64,
        /// How many of each job, where the job is known.
        by_job: BTreeMap<JobName, u64>,
    },
    /// The worker stops: it starts no more runs.
    Draining,
}

impl News {
    /// The job that it is about, if it is about one.
    pub fn job(&self) -> Option<&JobName> {
        match self {
            Self::RunStarted { job, .. }
            | Self::RunSkipped { job, .. }
            | Self::JobPaused { job, .. }
            | Self::JobResumed { job, .. } => Some(job),
            Self::RunFinished(record) => Some(&record.job),
            Self::AuditFinished { audit, .. } => Some(&audit.job),
            Self::JobsReloaded { .. }
            | Self::JobsRejected { .. }
            | Self::FeedConnected
            | Self::FeedLost { .. }
            | Self::ServerChanged { .. }
            | Self::CacheLost
            | Self::KeysRemoved { .. }
            | Self::Draining => None,
        }
    }
}

/// News with its place in the order of all news.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its number. The first one is 1.
    pub number: u64,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// What happened.
    pub news: News,
}

/// The news that a reader asks for are not kept any more, or never were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

type Clock = Box<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// The newest news of a worker. It keeps none until it is started, since nobody can read them.
#[derive(Default)]
pub struct NewsLog {
    clock: OnceLock<Clock>,
    kept: Mutex<VecDeque<Arc<Item>>>,
    latest: watch::Sender<u64>,
}

impl NewsLog {
    /// Keeps the news from now on, with their times by this clock.
    pub fn start(&self, clock: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) {
        // The first clock is as good as another.
        drop(self.clock.set(Box::new(clock)));
    }

    /// Adds news. The closure makes them, if anybody can read them.
    pub(super) fn tell(&self, news: impl FnOnce() -> News) {
        let Some(clock) = self.clock.get() else { return };
        let (at, news) = (clock(), news());
        let mut kept = self.kept();
        let number = *self.latest.borrow() + 1;
        if kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(Arc::new(Item { number, at, news }));
        self.latest.send_replace(number);
    }

    /// The number of the newest; 0 if there is none yet.
    pub fn latest(&self) -> u64 {
        *self.latest.borrow()
    }

    /// The number of the newest, with a notice after each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The next ones after this number, oldest first, at most as many as `limit`.
    pub fn after(&self, number: u64, limit: usize) -> Result<Vec<Arc<Item>>, Lost> {
        let kept = self.kept();
        let latest = *self.latest.borrow();
        let first = kept.front().map_or(latest + 1, |item| item.number);
        if number > latest || number + 1 < first {
            return Err(Lost);
        }
        let known = usize::try_from(number + 1 - first).unwrap_or(usize::MAX);
        Ok(kept.iter().skip(known).take(limit).cloned().collect())
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Item>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for NewsLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewsLog").field("latest", &self.latest()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> NewsLog {
        let log = NewsLog::default();
        log.start(|| DateTime::UNIX_EPOCH);
        log
    }

    fn numbers(log: &NewsLog, after: u64, limit: usize) -> Result<Vec<u64>, Lost> {
        Ok(log.after(after, limit)?.iter().map(|item| item.number).collect())
    }

    #[test]
    fn nothing_is_kept_before_somebody_can_read() {
        let log = NewsLog::default();
        log.tell(|| unreachable!("nobody reads"));
        assert_eq!((log.latest(), numbers(&log, 0, 9)), (0, Ok(vec![])));
    }

    #[test]
    fn a_reader_goes_on_where_it_was() {
        let log = log();
        for _ in 0..5 {
            log.tell(|| News::FeedConnected);
        }
        assert_eq!(numbers(&log, 0, 2), Ok(vec![1, 2]));
        assert_eq!(numbers(&log, 2, 9), Ok(vec![3, 4, 5]));
        assert_eq!(numbers(&log, 5, 9), Ok(vec![]));
        assert_eq!(numbers(&log, 6, 9), Err(Lost), "of another worker");
    }

    #[test]
    fn a_slow_reader_learns_that_it_lost_news_and_nobody_waits_for_it() {
        let log = log();
        for _ in 0..=MAX_KEPT {
            log.tell(|| News::CacheLost);
        }
        assert_eq!(numbers(&log, 0, 1), Err(Lost));
        assert_eq!(numbers(&log, 1, 1), Ok(vec![2]));
        assert_eq!(log.kept().len(), MAX_KEPT);
    }

    #[tokio::test]
    async fn each_news_wakes_the_readers() {
        let log = log();
        let mut arrived = log.subscribe();
        log.tell(|| News::Draining);
        arrived.changed().await.unwrap();
        assert_eq!(*arrived.borrow_and_update(), 1);
    }
}
