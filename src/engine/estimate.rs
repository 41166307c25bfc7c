//! What a run would do, estimated from a sample of real batches; nothing is written.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use super::limit::BATCH_BYTES;
use super::port::{Read, Source, SourceError};
use crate::domain::date::{self, first_dates};
use crate::domain::entry::entries;
use crate::domain::job::{Job, Jobs, Scope};
use crate::domain::layout::{Checks, Layout};
use crate::domain::row::Rows;
use crate::domain::schedule::Schedule;
use crate::domain::tenant::{Batch, Tenants, batches};

/// Batches that are read for an estimate: from the list's start, middle and end, since the oldest
/// tenants are seldom the size of the newest.
const SAMPLE_BATCHES: usize = 3;
/// Due times counted for a day; a job that is due more often is due every second.
const MAX_RUNS_A_DAY: u32 = 86_400;

/// What one run of a job would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tenants that the run is for.
    pub tenants: u64,
    /// Tenants that the sample read.
    pub sampled: u64,
    /// Queries for rows.
    pub queries: u64,
    /// Keys written.
    pub keys: u64,
    /// Bytes of their names and values.
    pub bytes: u64,
}

/// Reads a sample of the job's batches and extrapolates.
pub async fn estimate(
    source: &dyn Source,
    job: &Job,
    list: &Arc<Tenants>,
    now: DateTime<Utc>,
) -> Result<Estimate, SourceError> {
    let (tenants, sample) = match job.scope {
        Scope::Fleet => (1, vec![Batch::fleet()]),
        Scope::Tenants => {
            let positions = with_zone(job, list, now);
            (positions.len() as u64, sample(job, list, &positions))
        }
    };
    let queries = match job.scope {
        Scope::Fleet => 1,
        Scope::Tenants => tenants.div_ceil(job.batch.get() as u64),
    };
    let mut found = Estimate { tenants, queries, ..Estimate::default() };
    let mut rows = Rows::default();
    let alone = Jobs::from([(job.name.clone(), Arc::new(job.clone()))]);
    let checks = Checks::new(Layout::new(&alone, source.id_class()), job);
    for batch in &sample {
        let first_dates = first_dates(job, batch, now);
        rows.reset(job.key_columns().len(), BATCH_BYTES);
        let read = Read { batch, first_dates: &first_dates, timeout: job.timeout };
        source.read(job, read, &mut rows).await?;
        let entries = entries(job, &checks, batch, &first_dates, &rows);
        found.sampled += batch.len().max(1) as u64;
        found.keys += entries.writes.len() as u64;
        let bytes = entries.writes.iter().map(|entry| entry.key.len() + entry.value.len());
        found.bytes += bytes.sum::<usize>() as u64;
    }
    let sampled = found.sampled.max(1);
    found.keys = extrapolate(found.keys, tenants, sampled);
    found.bytes = extrapolate(found.bytes, tenants, sampled);
    Ok(found)
}

fn extrapolate(count: u64, tenants: u64, sampled: u64) -> u64 {
    let exact = u128::from(count) * u128::from(tenants) / u128::from(sampled);
    u64::try_from(exact).unwrap_or(u64::MAX)
}

fn with_zone(job: &Job, list: &Tenants, now: DateTime<Utc>) -> Vec<u32> {
    let has_zone = |position: &u32| match &job.dates {
        Some(dates) => date::today(dates, list.get(*position as usize), now).is_ok(),
        None => true,
    };
    (0..u32::try_from(list.len()).unwrap_or(u32::MAX)).filter(has_zone).collect()
}

fn sample(job: &Job, list: &Arc<Tenants>, positions: &[u32]) -> Vec<Batch> {
    let mut all = batches(list, positions, job.batch.get());
    let last_index = all.len().saturating_sub(1);
    let mut picked: Vec<usize> =
        (0..SAMPLE_BATCHES).map(|step| last_index * step / (SAMPLE_BATCHES - 1)).collect();
    picked.dedup();
    // From the end, so that the indices of those before stay.
    picked.retain(|index| *index < all.len());
    picked.into_iter().rev().map(|index| all.swap_remove(index)).collect()
}

/// How often a schedule is due in the 24 hours after `now`.
pub fn runs_a_day(schedule: &Schedule, now: DateTime<Utc>) -> u32 {
    let end = now + TimeDelta::days(1);
    let mut at = now;
    let mut runs = 0;
    while runs < MAX_RUNS_A_DAY {
        match schedule.next_after(at) {
            Some(next) if next <= end => at = next,
            _ => break,
        }
        runs += 1;
    }
    runs
}
