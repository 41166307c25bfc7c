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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::domain::schedule::Schedule;
    use crate::overview::testing::{at, change, facts, name, noon};

    fn every(facts: &mut Facts, job: &str, minutes: u64) {
        change(facts, job, |status| {
            let schedule = Schedule::Every(Duration::from_mins(minutes));
            status.next_due_at = schedule.next_after(noon());
            status.job = Arc::new(Job { schedule, ..(*status.job).clone() });
        });
    }

    #[test]
    fn the_hours_cost_is_that_of_each_due_run_by_the_last_one() {
        let mut facts = facts(&["a", "b", "c"]);
        every(&mut facts, "b", 20);
        every(&mut facts, "c", 30);
        facts.recent.get_mut(&name("c")).unwrap().last_full = None;
        let hour = NextHour::of(&facts);
        // `a` at 12:10 … 13:00, `b` at 12:20, 12:40 and 13:00, `c` at 12:30 and 13:00.
        assert_eq!((hour.runs, hour.queries, hour.database_ms), (11, 450, 3_600));
        assert_eq!((hour.keys, hour.bytes), (90, 9_000));
        assert_eq!(hour.unknown, ["c"]);
        let busiest = hour.busiest.unwrap();
        assert_eq!((busiest.minute, busiest.runs), (Moment(at("13:00")), 3));
        assert_eq!((busiest.database_ms, busiest.jobs.len()), (800, 3));
        let together: Vec<_> =
            hour.collisions.iter().map(|one| (one.at.0, one.jobs.len())).collect();
        let expected = [("12:20", 2), ("12:30", 2), ("12:40", 2), ("13:00", 3)];
        assert_eq!(together, expected.map(|(time, jobs)| (at(time), jobs)));
    }

    #[test]
    fn nothing_is_due_of_a_job_that_does_not_run() {
        let mut facts = facts(&["a"]);
        change(&mut facts, "a", |status| status.next_due_at = None);
        assert_eq!(NextHour::of(&facts), NextHour::default());
    }

    #[test]
    fn the_collisions_of_two_hundred_jobs_are_bounded() {
        let names: Vec<String> = (0..200).map(|number| format!("j{number}")).collect();
        let mut facts = facts(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for job in &names {
            change(&mut facts, job, |status| {
                let schedule = Schedule::Every(Duration::from_mins(1));
                status.job = Arc::new(Job { schedule, ..(*status.job).clone() });
            });
        }
        let hour = NextHour::of(&facts);
        assert_eq!((hour.runs, hour.collisions.len()), (12_000, MOST_COLLISIONS));
    }
}
