//! What an operator asks of a worker: is every tenant warm, and if not, which one, why, since when, and what
//! happens next?
//!
//! The types are the JSON of the API and what the dashboard draws. Pure functions compute them from the engine's
//! [`Status`](crate::engine::schedule::status::Status) and from what the worker remembers in memory of a fixed size;
//! no answer reads the history. Moments are in UTC, durations in milliseconds, sizes in bytes, ratios from 0 to 1.
//! A figure that is not known yet is null, never 0.

mod audit;
mod board;
mod changes;
mod day;
mod definition;
mod elsewhere;
mod facts;
mod figures;
mod fleet;
mod hour;
mod job;
mod limits;
mod membership;
mod run;
mod tenant;
#[cfg(test)]
mod testing;
mod text;
mod troubles;
mod verdict;

use chrono::{DateTime, SecondsFormat, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::audit::{Audit, AuditOfJob, Privacy, ValuePart, WrongKey};
pub use self::board::{Board, Sought, read_cursor};
pub use self::changes::{Changes, LastResync, WatchedTable};
pub use self::definition::{DefinedField, Origins};
pub use self::figures::{
    CacheMemory, Consistency, Coverage, Feed, FeedState, Figures, Freshness, HitRate, JobShare,
    Line, Reads, ReadsOfFamily,
};
pub use self::fleet::{FleetMember, FleetView, MemberView};
pub use self::hour::{Busiest, Collision, NextHour};
pub use self::job::{
    BatchOfJob, FirstFailure, JobDetail, JobLine, JobSeries, JobState, LastRun, PauseView, RunBar,
    Running, Skip,
};
pub use self::limits::{Connections, Limits, Permits, PermitsOfJob, RowMemory, ServerBreaker};
pub use self::run::{Change, Comparison, Neighbors};
pub use self::tenant::{
    JobOfTenant, KeyOfTenant, NotWarmTenant, NotWarmTenants, TenantDetail, WarmState,
};
pub use self::verdict::{Level, Link, LinkKind, Trouble, TroubleKind, Verdict};
pub use crate::engine::run::not_warm::Wanted;

/// A moment, which is written in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub struct Moment(#[schemars(with = "String", extend("format" = "date-time"))] pub DateTime<Utc>);

impl<'d> Deserialize<'d> for Moment {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        DateTime::deserialize(deserializer).map(Self)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// The whole worker at one glance.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Overview {
    /// When these figures were computed.
    pub as_of: Moment,
    /// When the worker started.
    pub started_at: Moment,
    /// The worker's name in run records.
    pub replica: String,
    /// The worker's version.
    pub version: String,
    /// Whether the cache is warm, in one sentence.
    pub verdict: Verdict,
    /// What is wrong, worst first. A page shows the first five.
    pub troubles: Vec<Trouble>,
    /// Hit rate, coverage, consistency and freshness.
    pub figures: Figures,
    /// The jobs: those in trouble first, the others by name.
    pub jobs: Vec<JobLine>,
    /// What the next hour costs.
    pub next_hour: NextHour,
    /// The cache's memory, and what the jobs take of it.
    pub cache: CacheMemory,
    /// The change feed.
    pub feed: Feed,
}
