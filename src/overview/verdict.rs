//! The verdict and the troubles behind it.

use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;

/// How much something matters. The order is from harmless to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    Ok,
    /// Somebody wanted it so, or it passes by itself.
    Info,
    /// Somebody should look at it today.
    Warning,
    /// Somebody should look at it now: keys are missing or soon will be.
    Critical,
}

/// Whether the cache is warm, in one sentence: the sentence of the worst trouble, or that all is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Verdict {
    /// How bad it is.
    pub level: Level,
    /// Such as "19 tenants are not warm."
    pub sentence: String,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Trouble {
    /// How bad it is.
    pub level: Level,
    /// What kind of trouble it is.
    pub kind: TroubleKind,
    /// What is wrong, in one sentence.
    pub sentence: String,
    /// Why it is so, as far as that is known.
    pub reason: Option<String>,
    /// Since when it is so, as far as that is known.
    pub since: Option<Moment>,
    /// Where to read more.
    pub link: Link,
    /// What happens next, or what to do about it.
    pub next_step: String,
}

/// The kinds of trouble, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// The worker stops and starts no more runs.
    Draining,
    /// The scheduler or the engine's loop is silent: nothing is scheduled.
    SchedulerSilent,
    /// The database cannot be reached.
    DatabaseDown,
    /// The cache cannot be reached.
    CacheDown,
    /// The cache refuses all writes.
    CacheRefusesWrites,
    /// No member of the fleet holds some shares of the tenants.
    SharesVacant,
    /// A job's file is rejected, and no older version is in use.
    JobHeld,
    /// A job has not succeeded for longer than two of its intervals.
    JobLate,
    /// A job's keys expire before its next run has written them.
    KeysExpire,
    /// A job's last run over all tenants failed or ran out of time.
    RunFailed,
    /// Tenants are not warm.
    NotWarm,
    /// Fewer keys than expected are in the cache.
    CoverageLow,
    /// Values differ from the database.
    Inconsistent,
    /// The change feed does not report changes.
    FeedDown,
    /// A job's file is rejected, and an older version is in use.
    FileRejected,
    /// Job files have problems, and the last good files stay in use, all of them.
    FilesUnreadable,
    /// The cache evicted keys.
    Evicting,
    /// The run history cannot be written.
    HistoryLosing,
    /// A job is paused.
    Paused,
    /// Jobs have not run yet.
    NeverRan,
}

/// What a trouble, or a figure, points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Link {
    /// What kind of page or resource it is.
    pub kind: LinkKind,
    /// The job's name, the run's id or the tenant's id. For a list, the job that it is narrowed to; null for the whole list.
    pub name: Option<String>,
}

/// What a link can point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// All jobs.
    Jobs,
    /// One job.
    Job,
    /// The list of runs.
    Runs,
    /// One run.
    Run,
    /// The list of tenants that are not warm.
    Tenants,
    /// One tenant.
    Tenant,
    /// The verifier's findings.
    Audit,
    /// The change feed.
    Changes,
    /// The settings, with rejected files and breakers.
    Settings,
}
