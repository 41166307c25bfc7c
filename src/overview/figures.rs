//! The worker's figures: what the cache answers, holds and lacks, and how fast changes reach it.

use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;

/// The last 24 hours of one figure: a value each five minutes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Line {
    /// The moment of the last value; null while there is none.
    pub until: Option<Moment>,
    /// How far the values are apart, in milliseconds.
    pub step_ms: u64,
    /// The values, at most 288. Null where nothing was measured: a gap, not a zero.
    pub values: Vec<Option<f32>>,
}

/// The four figures below the verdict.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Figures {
    /// The share of reads that found their key.
    pub hit_rate: HitRate,
    /// The share of expected keys that are in the cache.
    pub coverage: Coverage,
    /// The share of values that equal the database's.
    pub consistency: Consistency,
    /// How fast changes reach the cache.
    pub freshness: Freshness,
}

/// The hit rate of the cache server, by its own counters, over reads of any client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct HitRate {
    /// The share of the window's reads that found their key; null if there were none, or the server has not answered.
    pub ratio: Option<f64>,
    /// Reads of the window that found their key.
    pub hits: u64,
    /// Reads of the window that did not.
    pub misses: u64,
    /// How long the window is, in milliseconds: five minutes, less soon after the start.
    pub window_ms: u64,
    /// The last 24 hours.
    pub day: Line,
}

/// How many expected keys are in the cache, and how many tenants are warm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Coverage {
    /// The share of a sample of the expected keys that the last looks found, over all jobs; null before the first look.
    pub ratio: Option<f64>,
    /// Active tenants; null before the first tenant list.
    pub tenants: Option<u64>,
    /// Active tenants that are warm in every job; null before the first tenant list.
    pub tenants_warm: Option<u64>,
    /// Tenants that are not warm in some job.
    pub tenants_not_warm: u64,
}

/// How many values equal the database's, by the verifier's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Consistency {
    /// The share of compared keys whose value equals the database's, over all jobs; null before the first comparison.
    pub ratio: Option<f64>,
    /// The number of leading nines of the ratio: 3 for 99.9 %. Null before the first comparison, and where all
    /// values were equal.
    pub nines: Option<u32>,
    /// How many tenants were compared, over all jobs.
    pub tenants: u64,
    /// How many keys were compared, over all jobs.
    pub keys: u64,
    /// How many of these keys were found wrong.
    pub findings: u64,
    /// When the verifier last compared; null before the first time.
    pub at: Option<Moment>,
}

/// How long changes took from their notification until one job had written the tenant's keys again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Freshness {
    /// Half of the window's changes were as fast, in milliseconds; null if there were none.
    pub p50_ms: Option<f64>,
    /// 99 % of the window's changes were as fast, in milliseconds; null if there were none.
    pub p99_ms: Option<f64>,
    /// How many changes the window has: the last 1,000 of the last five minutes.
    pub changes: u64,
    /// The p99 of each five minutes in the last 24 hours, in milliseconds.
    pub day: Line,
}

/// The cache's memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct CacheMemory {
    /// When the cache last answered; null before the first answer.
    pub as_of: Option<Moment>,
    /// Bytes in use, by the server's count; null before the first answer.
    pub used: Option<u64>,
    /// The server's limit; null if it has none, or has not answered.
    pub max: Option<u64>,
    /// Keys of all applications; null if the server does not report it.
    pub keys: Option<u64>,
    /// Keys that the server evicted within the last hour, for lack of memory; null before the first answer.
    pub evicted_last_hour: Option<u64>,
    /// In how many days the memory is full, at the growth of the last 24 hours; null where it does not grow, has
    /// no limit, or was measured for less than three hours.
    pub days_until_full: Option<f64>,
    /// The jobs by the bytes that their last run over all tenants wrote, largest first.
    pub jobs: Vec<JobShare>,
    /// The used bytes of the last 24 hours.
    pub day: Line,
}

/// What one job keeps in the cache.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct JobShare {
    /// The job.
    pub job: String,
    /// The bytes of values that its last run over all tenants wrote.
    pub bytes: u64,
    /// These bytes as a share of the used memory; null where that is not known.
    pub share: Option<f64>,
}

/// Whether the worker hears of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedState {
    /// There is none: the settings or the database rule it out. The schedules keep the cache fresh.
    #[default]
    Off,
    /// It is connected and hears of every change.
    Connected,
    /// It is connected, but tables lack their triggers, so that it does not hear of all changes.
    Lacking,
    /// It lost its connection and tries again.
    Away,
}

/// The change feed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Feed {
    /// Whether it works.
    pub state: FeedState,
    /// Why it does not, as far as that is known.
    pub reason: Option<String>,
    /// Since when it is in this state; null while it was never on.
    pub since: Option<Moment>,
    /// When the last notification arrived; null before the first.
    pub last_heard_at: Option<Moment>,
    /// Notifications of the last minute.
    pub last_minute: u64,
    /// Tables without their triggers.
    pub tables_without_triggers: u64,
    /// Tenants that wait to be warmed again, over all jobs: each counts once a job.
    pub waiting: u64,
    /// How old the oldest change is that is not in the cache yet, in milliseconds; null if none waits.
    pub oldest_waiting_ms: Option<u64>,
}
