//! A run: one execution of a job, from its start to a final outcome.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use super::job::JobName;
pub use super::report::Outcome;
use super::report::{Failure, Report, TenantCounts};
use super::share::{Shares, fnv};
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

    /// The id of a fleet's run, which is the same on every replica: of the run of this job that was due, or requested, in
    /// that millisecond. Several fleets may keep one history: the name `fleet` gives each of them its own ids for scheduled runs. A
    /// requested run needs no name, since two fleets hardly ever get requests in the same millisecond.
    pub fn of_fleet(fleet: &str, job: &JobName, trigger: Trigger, due_at: DateTime<Utc>) -> Self {
        let millis = due_at.timestamp_millis();
        let fleet = match trigger {
            Trigger::Schedule if !fleet.is_empty() => format!(" {fleet}"),
            Trigger::Schedule | Trigger::Request | Trigger::Startup | Trigger::Change => {
                String::new()
            }
        };
        let hash = fnv(format!("{job} {} {millis}{fleet}", trigger.as_str()).bytes());
        let mut rest = [0; 10];
        for (to, from) in rest.iter_mut().zip(hash.to_be_bytes()) {
            *to = from;
        }
        let millis = u64::try_from(millis).unwrap_or_default();
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &rest).into_uuid())
    }

    /// The millisecond in which the run was requested, or due, by its id; `None` if the id does not say so.
    pub fn millisecond(self) -> Option<DateTime<Utc>> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
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
    /// Whether it was for all active tenants; `None` in records of versions that did not keep it.
    #[serde(default)]
    pub all_tenants: Option<bool>,
    /// Who asked for the run, if somebody did over HTTP.
    #[serde(default)]
    pub requested_by: Option<Who>,
    /// For which shares of the tenants it was, as a part of a run of the whole fleet. `None` if it is no part: the run of
    /// a worker without a fleet, or of a job without tenants.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// Which fleet's run it is a part of, by the prefix of the fleet's cache; `None` if there is none.
    #[serde(default)]
    pub fleet: Option<String>,
    /// The records that this one sums up; empty if it sums up none (see [`whole`](super::whole)). The history keeps each
    /// of them, and not their sum.
    #[serde(skip)]
    pub parts: Vec<RunPart>,
}

/// What one worker of a fleet did of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunPart {
    /// The id of its own record.
    pub id: RunId,
    /// For which shares of the tenants it was.
    pub shares: Shares,
    /// How it ended.
    pub outcome: Outcome,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Its tenants, counted by their result.
    pub tenants: TenantCounts,
    /// Keys that it wrote.
    pub keys: u64,
    /// The worker that did it.
    pub replica: String,
    /// That worker's version.
    pub version: String,
}

impl RunRecord {
    /// What the record is as a part of a run; `None` if it is no part. What a worker starts by itself at its start, or for
    /// changed tenants, is no part of what others do.
    pub fn part_of(&self) -> Option<(RunId, Shares)> {
        let shares = self.shares?;
        match self.trigger {
            Trigger::Schedule | Trigger::Request => {
                let fleet = self.fleet.as_deref().unwrap_or_default();
                Some((RunId::of_fleet(fleet, &self.job, self.trigger, self.due_at), shares))
            }
            Trigger::Startup | Trigger::Change => None,
        }
    }

    /// The id of the run in lists: that of the run that it is a part of, or its own.
    pub fn listed_id(&self) -> RunId {
        self.part_of().map_or(self.id, |(run, _)| run)
    }

    /// Whether the run was for all active tenants. A record that does not say so was if its trigger never
    /// names tenants.
    pub fn is_for_all(&self) -> bool {
        self.all_tenants.unwrap_or(match self.trigger {
            Trigger::Schedule | Trigger::Startup => true,
            Trigger::Request | Trigger::Change => false,
        })
    }

    /// Its place in the order of runs; every list has the newest first, the reverse of this order.
    pub fn place(&self) -> RunPlace {
        RunPlace { started_at: self.started_at, id: self.id }
    }

    /// The least that a list of runs needs.
    pub fn brief(&self) -> RunBrief {
        RunBrief {
            id: self.id,
            trigger: self.trigger,
            outcome: self.outcome,
            due_at: self.due_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            all_tenants: self.is_for_all(),
            shares: self.shares,
            keys: self.report.keys.written,
        }
    }

    /// How long the run took.
    pub fn duration(&self) -> Duration {
        (self.finished_at - self.started_at).to_std().unwrap_or_default()
    }
}

impl RunPart {
    /// What a record is as a part of a run; `None` if it is no part.
    pub(crate) fn of(record: &RunRecord) -> Option<Self> {
        let (_, shares) = record.part_of()?;
        let RunRecord { id, outcome, started_at, finished_at, report, replica, version, .. } =
            record;
        Some(Self {
            id: *id,
            shares,
            outcome: *outcome,
            started_at: *started_at,
            finished_at: *finished_at,
            tenants: report.tenants,
            keys: report.keys.written,
            replica: replica.clone(),
            version: version.clone(),
        })
    }
}

/// A run's place in the order of runs: by its start, and among runs that started together by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunPlace {
    /// When the run started.
    pub started_at: DateTime<Utc>,
    /// Its id.
    pub id: RunId,
}

/// Which runs of the history are wanted; the newest come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Runs of this job alone.
    pub job: Option<JobName>,
    /// Runs with this outcome alone.
    pub outcome: Option<Outcome>,
    /// Runs with this trigger alone.
    pub trigger: Option<Trigger>,
    /// Runs that started at this moment or later.
    pub since: Option<DateTime<Utc>>,
    /// Runs that started before this moment.
    pub until: Option<DateTime<Utc>>,
    /// Runs that come after this one in the list, so are older.
    pub after: Option<RunPlace>,
    /// At most this many.
    pub limit: usize,
}

impl RunFilter {
    /// The newest runs, of one job or of all.
    pub fn newest(job: Option<&JobName>, limit: usize) -> Self {
        Self { job: job.cloned(), limit, ..Self::default() }
    }

    /// Whether a run is wanted.
    pub fn matches(&self, run: &RunRecord) -> bool {
        let Self { job, outcome, trigger, since, until, after, limit: _ } = self;
        job.as_ref().is_none_or(|job| run.job == *job)
            && outcome.is_none_or(|outcome| run.outcome == outcome)
            && trigger.is_none_or(|trigger| run.trigger == trigger)
            && since.is_none_or(|since| run.started_at >= since)
            && until.is_none_or(|until| run.started_at < until)
            && after.is_none_or(|after| run.place() < after)
    }
}

/// The least that a list of runs needs of one that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunBrief {
    /// The run's id.
    pub id: RunId,
    /// Why it started.
    pub trigger: Trigger,
    /// How it ended.
    pub outcome: Outcome,
    /// When it was due or requested.
    pub due_at: DateTime<Utc>,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Whether it was for all active tenants.
    pub all_tenants: bool,
    /// For which shares of the tenants it was, if it is a part of a run (see [`RunRecord::shares`]).
    pub shares: Option<Shares>,
    /// Keys that it wrote.
    pub keys: u64,
}

impl RunBrief {
    /// Whether it came to every active tenant of its shares.
    pub fn came_to_all(&self) -> bool {
        match self.outcome {
            Outcome::Ok | Outcome::Partial => self.all_tenants,
            Outcome::Failed | Outcome::Timeout | Outcome::Cancelled => false,
        }
    }

    /// How long it took.
    pub fn duration(&self) -> Duration {
        (self.finished_at - self.started_at).to_std().unwrap_or_default()
    }
}

/// What a run over all tenants cost and wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullRun {
    /// When it started: its keys expire one TTL later at the earliest.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// Tenants that it covered.
    pub tenants: u64,
    /// Queries for rows.
    pub queries: u64,
    /// How long these took in all, in milliseconds.
    pub database_ms: u64,
    /// Keys that it wrote.
    pub keys: u64,
    /// Bytes of the values that it wrote.
    pub bytes: u64,
}

impl FullRun {
    /// The costs of a run that came to every active tenant; `None` for any other run.
    pub fn of(record: &RunRecord) -> Option<Self> {
        record.brief().came_to_all().then(|| Self::costs(record))
    }

    /// The costs of any run.
    pub(crate) fn costs(record: &RunRecord) -> Self {
        let RunRecord { started_at, finished_at, ref report, .. } = *record;
        Self {
            started_at,
            finished_at,
            tenants: report.tenants.total,
            queries: report.queries,
            database_ms: u64::try_from(report.database.as_millis()).unwrap_or(u64::MAX),
            keys: report.keys.written,
            bytes: report.bytes,
        }
    }

    /// The costs of two parts of a run.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            started_at: self.started_at.min(other.started_at),
            finished_at: self.finished_at.max(other.finished_at),
            tenants: self.tenants + other.tenants,
            queries: self.queries + other.queries,
            database_ms: self.database_ms + other.database_ms,
            keys: self.keys + other.keys,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// A run that was not `ok`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFailure {
    /// The run.
    pub run: RunId,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// How it ended.
    pub outcome: Outcome,
    /// Its first failure.
    pub failure: Option<Failure>,
}

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn job_name<'d, D: Deserializer<'d>>(deserializer: D) -> Result<JobName, D::Error> {
    let text = String::deserialize(deserializer)?;
    JobName::parse(&text).map_err(serde::de::Error::custom)
}
