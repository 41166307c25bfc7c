//! A run: one execution of a job, from its start to a final outcome.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::job::JobName;
pub use super::report::Outcome;
use super::report::Report;
use super::who::Who;

/// A run's id: a version 7 UUID, so that ids sort by the time at which the runs were requested.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub struct RunId(#[schemars(with = "String", extend("format" = "uuid"))] pub Uuid);

impl RunId {
    /// A new id for a run that is requested at this moment.
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

/// Why a run started. A run records its trigger and never acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The job was due by its schedule.
    Schedule,
    /// The worker started.
    Startup,
    /// A person or a program asked for it, over HTTP or with a command.
    Request,
    /// Data changed: the change feed reported it, or a fence moved.
    Change,
}

impl Trigger {
    /// All triggers, so that each has its metrics from the start.
    pub const ALL: [Self; 4] = [Self::Schedule, Self::Startup, Self::Request, Self::Change];

    /// The trigger's name in logs, metrics, HTTP answers and the history.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::Startup => "startup",
            Self::Request => "request",
            Self::Change => "change",
        }
    }
}

/// Why a run does not start although it is due or requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// The job's previous run is still under way, and its `overlap` says to skip.
    Overlap,
    /// Too many runs are queued already.
    QueueFull,
    /// The worker is stopping.
    Draining,
    /// The job is paused.
    Paused,
}

impl SkipReason {
    /// All reasons, so that each has its metrics from the start.
    pub const ALL: [Self; 4] = [Self::Overlap, Self::QueueFull, Self::Draining, Self::Paused];

    /// The reason's name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::QueueFull => "queue_full",
            Self::Draining => "draining",
            Self::Paused => "paused",
        }
    }

    /// The reason in words, as a message has it after a colon.
    pub fn explained(self) -> &'static str {
        match self {
            Self::Overlap => "its last run is still going",
            Self::QueueFull => "too many of its runs wait already",
            Self::Draining => "the worker is stopping",
            Self::Paused => "the job is paused",
        }
    }
}

/// A finished run, as the history and the HTTP routes show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run's id.
    pub id: RunId,
    /// The job that ran.
    #[serde(serialize_with = "as_text", deserialize_with = "job_name")]
    pub job: JobName,
    /// Why the run started.
    pub trigger: Trigger,
    /// How the run ended.
    pub outcome: Outcome,
    /// When the run was due or requested.
    pub due_at: DateTime<Utc>,
    /// When the run started.
    pub started_at: DateTime<Utc>,
    /// When the run ended.
    pub finished_at: DateTime<Utc>,
    /// What the run did.
    pub report: Report,
    /// The worker that ran it.
    pub replica: String,
    /// That worker's version.
    pub version: String,
    /// Who asked for the run, if somebody did over HTTP.
    #[serde(default)]
    pub requested_by: Option<Who>,
}

impl RunRecord {
    /// How long the run took.
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
