//! The worker's figures: what the cache answers, holds and lacks, and how fast changes reach it.

use std::cmp::Reverse;
use std::time::Duration;

use chrono::TimeDelta;
use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;
use super::day::{Day, STEP};
use super::facts::{Facts, moment};
use super::text::millis;
use crate::domain::deadline::percentile;
use crate::domain::reads::ReadCounts;
use crate::observe::figures::{Audited, Share};

/// How long the memory must have been measured before its growth says anything, in values.
const ENOUGH: usize = 36;
const DAY: Duration = Duration::from_hours(24);

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
    /// The reads of applications that use preheat's clients.
    pub reads: Reads,
}

/// The reads of applications in the last five minutes, as preheat's clients count them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Reads {
    /// The share of these reads whose value came from the cache; null if no client reported any.
    pub ratio: Option<f64>,
    /// How long the window is, in milliseconds: five minutes, less soon after the first report; 0 before it.
    pub window_ms: u64,
    /// The families with reads in the window: those with the most misses first.
    pub families: Vec<ReadsOfFamily>,
}

/// The reads of one family.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct ReadsOfFamily {
    /// The job whose keys were read; `other` for keys of no job.
    pub family: String,
    /// The share of the reads whose value came from the cache; null if there were none.
    pub ratio: Option<f64>,
    /// Reads whose value came from the cache.
    pub hits: u64,
    /// Reads that loaded the value because the cache did not have it.
    pub misses: u64,
    /// Reads that waited for a load of the same process.
    pub joined: u64,
    /// Reads that loaded the value because the cache did not answer in time, or was not asked.
    pub bypassed: u64,
    /// Misses whose value was not written, because the tenant's fence had moved.
    pub refused: u64,
}

/// The hit rate of the cache server, by its own counters, over reads of any client. preheat is one of them: without
/// readers this is the rate of its own look-ups. `reads` has the applications' reads alone.
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
    /// The share of a sample of the expected keys that the last looks found, over all jobs; null before the first look
    /// and while the cache is away.
    pub ratio: Option<f64>,
    /// Active tenants; null before the first tenant list.
    pub tenants: Option<u64>,
    /// Active tenants that are warm in every job; null before the first tenant list and while the cache is away.
    pub tenants_warm: Option<u64>,
    /// Tenants that are not warm in some job.
    pub tenants_not_warm: u64,
}

/// How many values equal the database's, by the verifier's samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Consistency {
    /// The share of compared keys whose value equals the database's, over all jobs; null before the first comparison,
    /// and in the overview while a server is away.
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

impl Figures {
    pub(super) fn of(facts: &Facts, day: &Day) -> Self {
        Self {
            hit_rate: HitRate::of(facts, day),
            coverage: Coverage::of(facts),
            consistency: Consistency::of(facts),
            freshness: Freshness::of(facts, day),
            reads: Reads::of(facts),
        }
    }
}

impl Reads {
    fn of(facts: &Facts) -> Self {
        let mut all = ReadCounts::default();
        let mut families = Vec::new();
        for (family, counts) in &facts.reads.families {
            all += *counts;
            if !counts.is_zero() {
                families.push(ReadsOfFamily::of(family, *counts));
            }
        }
        families.sort_by_key(|family| Reverse(family.misses + family.bypassed));
        let window_ms = facts.reads.window.num_milliseconds().unsigned_abs();
        Self { ratio: all.hit_rate(), window_ms, families }
    }
}

impl ReadsOfFamily {
    /// All reads of the family.
    pub fn reads(&self) -> u64 {
        self.hits + self.misses + self.joined + self.bypassed
    }

    fn of(family: &str, counts: ReadCounts) -> Self {
        let ReadCounts([hits, misses, joined, bypassed, refused]) = counts;
        let (family, ratio) = (family.to_owned(), counts.hit_rate());
        Self { family, ratio, hits, misses, joined, bypassed, refused }
    }
}

impl HitRate {
    fn of(facts: &Facts, day: &Day) -> Self {
        let window = facts.usage.window;
        Self {
            ratio: window.hit_rate(),
            hits: window.hits,
            misses: window.misses,
            window_ms: millis(facts.usage.window_length),
            day: day.hit_rate(),
        }
    }
}

impl Coverage {
    fn of(facts: &Facts) -> Self {
        let all = facts.coverage.values().copied().fold(Share::default(), Share::and);
        let tenants_not_warm = facts.tenants_not_warm;
        Self {
            ratio: all.ratio(),
            tenants: facts.active,
            // While the cache is away, nobody knows what it still has.
            tenants_warm: facts
                .active
                .filter(|_| facts.cache_down.is_none())
                .map(|active| active.saturating_sub(tenants_not_warm)),
            tenants_not_warm,
        }
    }
}

impl Consistency {
    pub(super) fn of(facts: &Facts) -> Self {
        let audits = || facts.audits.values();
        let equal = audits().map(|audited| audited.equal).fold(Share::default(), Share::and);
        let ratio = equal.ratio();
        Self {
            ratio,
            nines: ratio.and_then(nines),
            tenants: audits().map(|audited| audited.tenants).sum(),
            keys: equal.whole,
            findings: audits().map(|Audited { findings, .. }| findings).sum(),
            at: moment(audits().map(|audited| audited.at).max()),
        }
    }
}

/// The number of leading nines of a ratio; `None` for all.
fn nines(ratio: f64) -> Option<u32> {
    let wrong = 1.0 - ratio;
    (wrong > 0.0)
        .then(|| (1..=300).take_while(|n| wrong <= 0.1_f64.powi(*n) * (1.0 + 1e-9)).count())?
        .try_into()
        .ok()
}

impl Freshness {
    pub(super) fn of(facts: &Facts, day: &Day) -> Self {
        let at = |per_cent| percentile(facts.lags.iter().copied(), per_cent);
        let milliseconds = |lag: Duration| lag.as_secs_f64() * 1_000.0;
        Self {
            p50_ms: at(50).map(milliseconds),
            p99_ms: at(99).map(milliseconds),
            changes: facts.lags.len() as u64,
            day: day.freshness(),
        }
    }
}

impl CacheMemory {
    pub(super) fn of(facts: &Facts, day: &Day) -> Self {
        let line = day.memory();
        let last = facts.usage.last;
        let stats = last.map(|(_, stats)| stats);
        let age = last.map(|(age, _)| TimeDelta::from_std(age).unwrap_or_default());
        let used = stats.map(|stats| stats.used_memory);
        let max = stats.map(|stats| stats.maxmemory).filter(|max| *max > 0);
        let mut jobs: Vec<JobShare> =
            facts.jobs().filter_map(|status| JobShare::of(facts, &status.job.name, used)).collect();
        jobs.sort_by(|one, other| other.bytes.cmp(&one.bytes).then(one.job.cmp(&other.job)));
        Self {
            as_of: moment(age.map(|age| facts.now - age)),
            used,
            max,
            keys: stats.and_then(|stats| stats.keys),
            evicted_last_hour: stats.map(|_| facts.usage.evicted_last_hour),
            days_until_full: used
                .zip(max)
                .and_then(|(used, max)| days_until_full(&line, used, max)),
            jobs,
            day: line,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a server's memory are below 2^53")]
impl JobShare {
    fn of(facts: &Facts, job: &crate::domain::job::JobName, used: Option<u64>) -> Option<Self> {
        let bytes = facts.recent(job)?.last_full?.bytes;
        let share = used.filter(|used| *used > 0).map(|used| bytes as f64 / used as f64);
        Some(Self { job: job.to_string(), bytes, share })
    }
}

/// In how many days the memory is full if it goes on growing as in the measured time.
#[expect(clippy::cast_precision_loss, reason = "bytes of a server's memory are below 2^53")]
fn days_until_full(line: &Line, used: u64, max: u64) -> Option<f64> {
    let first = line.values.iter().position(Option::is_some)?;
    let before = f64::from((*line.values.get(first)?)?);
    let steps = line.values.len() - 1 - first;
    if steps < ENOUGH {
        return None;
    }
    let days = STEP.as_secs_f64() * steps as f64 / DAY.as_secs_f64();
    let growth = (used as f64 - before) / days;
    (growth > 0.0).then(|| (max as f64 - used as f64).max(0.0) / growth)
}

impl Feed {
    pub(super) fn of(facts: &Facts) -> Self {
        let feed = &facts.feed;
        let state = match (feed.listens, feed.lacking) {
            (None, _) => FeedState::Off,
            (Some(false), _) => FeedState::Away,
            (Some(true), 0) => FeedState::Connected,
            (Some(true), _) => FeedState::Lacking,
        };
        let pending = facts.pending.as_ref();
        Self {
            state,
            reason: feed.reason.clone(),
            since: moment(feed.since),
            last_heard_at: moment(feed.last_heard_at),
            last_minute: feed.last_minute,
            tables_without_triggers: feed.lacking as u64,
            waiting: pending.map_or(0, |pending| pending.waiting),
            oldest_waiting_ms: pending.and_then(|pending| pending.oldest).map(millis),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_are_counted_from_the_first() {
        let cases = [(0.5, 0), (0.9, 1), (0.985, 1), (0.99, 2), (0.9998, 3), (0.999, 3)];
        for (ratio, expected) in cases {
            assert_eq!(nines(ratio), Some(expected), "{ratio}");
        }
        assert_eq!(nines(1.0), None);
    }

    #[test]
    fn a_memory_that_grows_is_full_some_day_and_a_short_look_says_nothing() {
        let line = |values: Vec<Option<f32>>| Line { until: None, step_ms: 300_000, values };
        // From 100 to 200 bytes in a day of 288 steps.
        let mut values: Vec<Option<f32>> = vec![Some(100.0); 289];
        let full = days_until_full(&line(values.clone()), 200, 400).unwrap();
        assert!((full - 2.0).abs() < 1e-9, "{full}");
        assert_eq!(days_until_full(&line(values.clone()), 100, 400), None, "it does not grow");
        values.truncate(30);
        assert_eq!(days_until_full(&line(values), 200, 400), None, "two hours and a half");
        assert_eq!(days_until_full(&line(vec![None; 288]), 200, 400), None);
    }
}
