//! A run: one execution of a job, from its start to a final outcome.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::job::JobName;
pub use super::report::Outcome;
use super::report::Report;

/// A run's id: a version 7 uuid, so ids sort by when the runs were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId(pub Uuid);

impl RunId {
    /// A new id for a run that is asked for at this moment.
    pub fn new(at: DateTime<Utc>) -> Self {
        let seconds = u64::try_from(at.timestamp()).unwrap_or_default();
        let moment = uuid::Timestamp::from_unix_time(seconds, at.timestamp_subsec_nanos(), 0, 0);
        Self(Uuid::new_v7(moment))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a run started. It is recorded, never acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Its schedule.
    Schedule,
    /// The worker's start.
    Startup,
    /// A person or a program: a route or a command.
    Request,
    /// Data changed: the change feed said so, or a fence moved.
    Change,
}

impl Trigger {
    /// All of them, for metrics that stand from the start.
    pub const ALL: [Self; 4] = [Self::Schedule, Self::Startup, Self::Request, Self::Change];

    /// Its name in logs, metrics, routes and the history.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Startup => "startup",
            Self::Request => "request",
            Self::Change => "change",
        }
    }
}

/// Why a run that was due or asked for does not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// The job's last run is still going, and its `overlap` says to skip.
    Overlap,
    /// Too many runs wait already.
    QueueFull,
    /// The worker is stopping.
    Draining,
}

impl SkipReason {
    /// All of them, for metrics that stand from the start.
    pub const ALL: [Self; 3] = [Self::Overlap, Self::QueueFull, Self::Draining];

    /// Its name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::QueueFull => "queue_full",
            Self::Draining => "draining",
        }
    }

    /// The reason in words, after a colon.
    pub fn explained(self) -> &'static str {
        match self {
            Self::Overlap => "its last run is still going",
            Self::QueueFull => "too many of its runs wait already",
            Self::Draining => "the worker is stopping",
        }
    }
}

/// A run that ended, as it is kept in the history and shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its id.
    pub id: RunId,
    /// Its job.
    #[serde(serialize_with = "as_text", deserialize_with = "job_name")]
    pub job: JobName,
    /// Why it started.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was due or asked for.
    pub due_at: DateTime<Utc>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// What it did.
    pub report: Report,
    /// Which worker ran it.
    pub replica: String,
    /// The worker's version.
    pub version: String,
}

impl RunRecord {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        (self.finished_at - self.started_at).to_std().unwrap_or_default()
    }
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn job_name<'d, D: Deserializer<'d>>(deserializer: D) -> Result<JobName, D::Error> {
    let text = String::deserialize(deserializer)?;
    JobName::parse(&text).map_err(serde::de::Error::custom)
}
