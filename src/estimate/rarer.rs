//! A longer TTL with a rarer schedule, for a job whose changes the change feed hears.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::RunsADay;
use crate::domain::job::Job;
use crate::domain::schedule::Schedule;

/// With room for one failed run: a key outlives two intervals, and the runs at their end.
const TTL: Duration = Duration::from_hours(24);
const INTERVAL: Duration = Duration::from_hours(8);

/// A TTL and an interval that cost the database less than the job's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rarer {
    /// The TTL.
    pub ttl: Duration,
    /// From one run to the next.
    pub interval: Duration,
    /// The runs of a day.
    pub runs: RunsADay,
}

impl Rarer {
    /// What a job may have whose data changes only by changes that the change feed hears; `None` if
    /// that saves nothing, or leaves no room for a failed run.
    ///
    /// A job with dates is left out: at midnight its last day is new, although no data has changed.
    pub fn of(job: &Job, now: DateTime<Utc>) -> Option<Self> {
        let ttl = TTL.max(job.ttl);
        let least = ttl.saturating_sub(job.ttl_jitter.of(ttl));
        let runs = RunsADay::by(&Schedule::Every(INTERVAL), ttl, now);
        let is_rarer = runs.runs < RunsADay::of(job, now).runs;
        let has_room = 2 * INTERVAL + job.timeout <= least;
        let is_for = job.enabled && job.dates.is_none() && is_rarer && has_room;
        is_for.then_some(Self { ttl, interval: INTERVAL, runs })
    }
}
