//! The last 24 hours of each figure, in memory of a fixed size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{JobSeries, Line, Moment};
use crate::domain::job::JobName;
use crate::engine::run::cache_usage::Counts;

/// How far the values are apart.
pub(super) const STEP: Duration = Duration::from_mins(5);
/// How many values a line has.
const MOST: usize = 288;

/// The lines of all figures.
#[derive(Debug, Default)]
pub(super) struct Day(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    hit_rate: Ring,
    memory: Ring,
    freshness: Ring,
    jobs: BTreeMap<JobName, JobRings>,
    /// The cache's counts at the last value.
    counted: Counts,
}

#[derive(Debug, Default)]
struct JobRings {
    coverage: Ring,
    consistency: Ring,
    p95_ms: Ring,
}

/// The values of one figure; NaN is a gap.
#[derive(Debug, Default)]
struct Ring {
    /// The number of the last value's step since 1970.
    last: Option<i64>,
    values: VecDeque<f32>,
}

/// The values of one step.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) counts: Counts,
    pub(super) memory: Option<u64>,
    pub(super) p99: Option<Duration>,
    pub(super) jobs: BTreeMap<JobName, JobSample>,
}

/// The values of one step and job.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct JobSample {
    pub(super) coverage: Option<f64>,
    pub(super) consistency: Option<f64>,
    pub(super) p95: Option<Duration>,
}

impl Ring {
    #[expect(clippy::cast_possible_truncation, reason = "a figure on a chart needs no more digits")]
    fn push(&mut self, step: i64, value: Option<f64>) {
        let gap = self.last.map_or(0, |last| step.saturating_sub(last).saturating_sub(1));
        let gap = usize::try_from(gap).unwrap_or_default().min(MOST);
        self.values.extend(std::iter::repeat_n(f32::NAN, gap));
        self.values.push_back(value.map_or(f32::NAN, |value| value as f32));
        let over = self.values.len().saturating_sub(MOST);
        self.values.drain(..over);
        self.last = Some(step);
    }

    fn line(&self) -> Line {
        let until = self.last.and_then(|step| DateTime::from_timestamp(step * step_seconds(), 0));
        let values = self.values.iter().map(|value| (!value.is_nan()).then_some(*value));
        Line {
            until: until.map(Moment),
            step_ms: super::text::millis(STEP),
            values: values.collect(),
        }
    }
}

fn step_seconds() -> i64 {
    i64::try_from(STEP.as_secs()).unwrap_or(i64::MAX)
}

fn millis(duration: Option<Duration>) -> Option<f64> {
    duration.map(|duration| duration.as_secs_f64() * 1_000.0)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a server's memory are below 2^53")]
fn bytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64)
}

impl Day {
    /// Adds the values of the step that ends at this moment. Jobs that are not in the sample are forgotten.
    pub(super) fn push(&self, at: DateTime<Utc>, sample: Sample) {
        let step = at.timestamp().div_euclid(step_seconds());
        let mut lines = self.lock();
        let grown = sample.counts.since(lines.counted);
        lines.counted = sample.counts;
        lines.hit_rate.push(step, grown.hit_rate());
        lines.memory.push(step, bytes(sample.memory));
        lines.freshness.push(step, millis(sample.p99));
        lines.jobs.retain(|job, _| sample.jobs.contains_key(job));
        for (job, JobSample { coverage, consistency, p95 }) in sample.jobs {
            let rings = lines.jobs.entry(job).or_default();
            rings.coverage.push(step, coverage);
            rings.consistency.push(step, consistency);
            rings.p95_ms.push(step, millis(p95));
        }
    }

    pub(super) fn hit_rate(&self) -> Line {
        self.lock().hit_rate.line()
    }

    pub(super) fn memory(&self) -> Line {
        self.lock().memory.line()
    }

    pub(super) fn freshness(&self) -> Line {
        self.lock().freshness.line()
    }

    pub(super) fn of_job(&self, job: &JobName) -> JobSeries {
        let lines = self.lock();
        let Some(rings) = lines.jobs.get(job) else { return JobSeries::default() };
        let JobRings { coverage, consistency, p95_ms } = rings;
        JobSeries {
            coverage: coverage.line(),
            consistency: consistency.line(),
            p95_ms: p95_ms.line(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(step * step_seconds(), 0).unwrap()
    }

    fn sample(hits: u64, misses: u64) -> Sample {
        let counts = Counts { hits, misses, evicted: 0 };
        Sample { counts, memory: Some(5), ..Sample::default() }
    }

    #[test]
    fn a_value_is_of_its_step_and_a_gap_is_a_gap() {
        let day = Day::default();
        day.push(at(10), sample(8, 2));
        day.push(at(11), sample(8, 2));
        day.push(at(14), sample(9, 5));
        let line = day.hit_rate();
        assert_eq!(line.values, [Some(0.8), None, None, None, Some(0.25)]);
        assert_eq!(line.until, Some(Moment(at(14))));
    }

    #[test]
    fn two_hundred_jobs_take_no_more_than_a_day() {
        let day = Day::default();
        let name = |number| JobName::parse(&format!("j{number}")).unwrap();
        let jobs: BTreeMap<_, _> = (0..200).map(|n| (name(n), JobSample::default())).collect();
        for step in 0..1_000 {
            day.push(at(step), Sample { jobs: jobs.clone(), ..sample(0, 0) });
        }
        let lines = day.lock();
        assert_eq!(lines.jobs.len(), 200);
        for rings in lines.jobs.values() {
            for ring in [&rings.coverage, &rings.consistency, &rings.p95_ms] {
                assert_eq!(ring.values.len(), MOST);
                assert!(ring.values.capacity() <= 2 * MOST, "{}", ring.values.capacity());
            }
        }
        drop(lines);
        day.push(at(1_000), sample(0, 0));
        assert!(day.lock().jobs.is_empty(), "jobs that are gone are forgotten");
    }
}
