//! What the next hour costs, by the schedule and the last runs.

use std::collections::BTreeMap;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use schemars::JsonSchema;
use serde::Serialize;

use super::Moment;
use super::facts::Facts;
use crate::domain::job::Job;
use crate::domain::run::FullRun;

/// How many due times of a job are looked at: one a second.
const MOST_DUE: usize = 3_600;
/// How many collisions are listed.
const MOST_COLLISIONS: usize = 10;

/// The cost of the runs that are due within the next hour: each is taken to cost as much as the job's last run over
/// all tenants. Runs for changes come on top.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct NextHour {
    /// Runs that are due.
    pub runs: u64,
    /// Queries for rows.
    pub queries: u64,
    /// How long these queries take in all, in milliseconds: the database's time.
    pub database_ms: u64,
    /// Keys to write.
    pub keys: u64,
    /// Bytes of values to write.
    pub bytes: u64,
    /// Jobs that are due but have had no run over all tenants: their cost is not known and not in the sums.
    pub unknown: Vec<String>,
    /// The minute with the most database time; null if nothing is due.
    pub busiest: Option<Busiest>,
    /// Moments at which several jobs are due together, soonest first, at most ten.
    pub collisions: Vec<Collision>,
}

/// The minute with the most database time.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Busiest {
    /// Its start.
    pub minute: Moment,
    /// Runs that are due in it.
    pub runs: u64,
    /// The database's time, in milliseconds.
    pub database_ms: u64,
    /// The jobs that are due in it.
    pub jobs: Vec<String>,
}

/// Several jobs are due at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Collision {
    /// The moment.
    pub at: Moment,
    /// The jobs.
    pub jobs: Vec<String>,
}

impl NextHour {
    pub(super) fn of(facts: &Facts) -> Self {
        let mut hour = Self::default();
        let mut minutes: BTreeMap<DateTime<Utc>, Busiest> = BTreeMap::new();
        let mut moments: BTreeMap<DateTime<Utc>, Vec<&str>> = BTreeMap::new();
        for status in facts.jobs().filter(|status| status.next_due_at.is_some()) {
            let (job, name) = (&status.job, status.job.name.as_str());
            let cost = facts.recent(&job.name).and_then(|recent| recent.last_full);
            let due = due_within_the_hour(job, facts.now);
            if due.is_empty() {
                continue;
            }
            if cost.is_none() {
                hour.unknown.push(name.to_owned());
            }
            for at in due {
                hour.add(cost);
                moments.entry(at).or_default().push(name);
                let minute = at.duration_trunc(TimeDelta::minutes(1)).unwrap_or(at);
                let busy = minutes.entry(minute).or_insert_with(|| Busiest {
                    minute: Moment(minute),
                    runs: 0,
                    database_ms: 0,
                    jobs: Vec::new(),
                });
                busy.runs += 1;
                busy.database_ms += cost.map_or(0, |cost| cost.database_ms);
                if busy.jobs.last().is_none_or(|last| last != name) {
                    busy.jobs.push(name.to_owned());
                }
            }
        }
        // The first of equals.
        let busiest = minutes.into_values().rev();
        hour.busiest = busiest.max_by_key(|busy| (busy.database_ms, busy.runs));
        let several = moments.into_iter().filter(|(_, jobs)| jobs.len() > 1);
        hour.collisions = several
            .take(MOST_COLLISIONS)
            .map(|(at, jobs)| Collision {
                at: Moment(at),
                jobs: jobs.into_iter().map(str::to_owned).collect(),
            })
            .collect();
        hour
    }

    fn add(&mut self, cost: Option<FullRun>) {
        self.runs += 1;
        let Some(FullRun { queries, database_ms, keys, bytes, .. }) = cost else { return };
        self.queries += queries;
        self.database_ms += database_ms;
        self.keys += keys;
        self.bytes += bytes;
    }
}

fn due_within_the_hour(job: &Job, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let end = now + TimeDelta::hours(1);
    let next = |at: &DateTime<Utc>| job.schedule.next_after(*at);
    let due = std::iter::successors(job.schedule.next_after(now), next);
    due.take_while(|at| *at <= end).take(MOST_DUE).collect()
}
