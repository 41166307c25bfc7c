//! What a run of a job would do, estimated from a sample of its batches; nothing is written.
//!
//! A model ([`footprint`]) computes the bytes, and the commands are counted by the steps of a run (`rounds`).
//! So a plan and the run that follows it differ only by the sample.

pub mod footprint;
mod rarer;
mod sample;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};

pub use self::rarer::Rarer;
pub use self::sample::{MOST_NAMED, Trouble};
use self::sample::{Refused, sample};
pub use self::upkeep::{Upkeep, Verification};
use crate::domain::date::{self, first_dates};
use crate::domain::entry::{Entries, Entry, entries};
use crate::domain::job::{Job, KeyKind, Scope};
use crate::domain::layout::Checks;
use crate::domain::manifest::manifest_key;
use crate::domain::report::FailureKind;
use crate::domain::schedule::Schedule;
use crate::domain::tenant::{Batch, Tenants};
use crate::engine::ports::{
    ENTRIES_A_COMMAND, FENCES_A_COMMAND, Read, STATS_COMMANDS, SourceError, SourceErrorKind,
};
use crate::engine::run::limit::{BatchPermit, Priority};
use crate::engine::run::{Runner, each_once};

/// Due times counted for a day; a job that is due more often is due every second.
const MAX_RUNS_A_DAY: u32 = 86_400;
/// How many keys of a job are looked for in the cache, and how many bytes the value of each may have, since
/// the values come with the answer.
const LOOKED_FOR: usize = 100;
const LOOKED_FOR_BYTES: usize = 64 * 1024;

/// What one run of a job would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tenants that the run would cover.
    pub tenants: u64,
    /// Tenants that the sample read.
    pub sampled: u64,
    /// Queries for rows.
    pub queries: u64,
    /// Keys written.
    pub keys: u64,
    /// Bytes of their names and values, as they are sent.
    pub bytes: u64,
    /// Bytes that these keys and the job's manifests take in the cache.
    pub memory: u64,
    /// The part of `memory` that is in use already, by keys that will be overwritten.
    pub present: u64,
    /// Commands to the cache, if it holds the fences and manifests already.
    pub commands: u64,
    /// Further commands of a run that renews the keys in their manifests.
    pub naming: u64,
    /// Tenants that a run would leave out, and keys that it could not write.
    pub troubles: Vec<Trouble>,
    /// Tenants of the sample that were not read alone, because too many queries had failed by then.
    pub unread: u64,
}

/// Estimates runs.
pub struct Estimator<'a> {
    /// The servers and the bounds. Nothing is written.
    pub runner: &'a Runner,
    /// The active tenants.
    pub list: &'a Arc<Tenants>,
    /// The length of what stands before every key.
    pub prefix: usize,
    /// The moment of the estimate.
    pub now: DateTime<Utc>,
}

/// Totals over the tenants read so far.
#[derive(Default)]
struct Tally {
    sampled: u64,
    keys: u64,
    bytes: u64,
    memory: u64,
    removals: u64,
    naming: u64,
    /// Some of the keys, with the bytes that each will take.
    looked_for: Vec<(String, u64)>,
}

/// The memory of the keys that were looked for in the cache, in bytes.
#[derive(Clone, Copy)]
struct LookedFor {
    /// What those of them take that are in the cache.
    present: u64,
    /// What all of them will take.
    planned: u64,
}

impl Estimator<'_> {
    /// Reads a sample of the job's batches and extrapolates. Tenants that cannot be read are left out and
    /// named; if none can be read, that is an error.
    pub async fn job(&self, job: &Job) -> Result<Estimate, SourceError> {
        let mut refused = Refused::default();
        let (tenants, batches) = self.sample(job, &mut refused);
        let (mut tally, checks) = (Tally::default(), Checks::new(self.runner.layout(), job));
        for batch in batches {
            let mut parts = vec![batch];
            while let Some(part) = parts.pop() {
                let first_dates = first_dates(job, &part, self.now);
                match self.read(job, &part, &first_dates).await {
                    Ok(permit) => {
                        let found = entries(job, &checks, &part, &first_dates, permit.rows());
                        for (kind, tenant, message) in self.count(job, &part, found, &mut tally) {
                            refused.note(kind, tenant, message);
                        }
                    }
                    Err(error) => parts.extend(refused.split(part, error)?),
                }
            }
        }
        refused.is_error_without(tally.sampled)?;
        let looked_for = self.look(&tally.looked_for).await;
        Ok(extrapolated(job, tenants, &tally, looked_for).with(refused))
    }

    /// The batches that an estimate of this job reads, cut as a run cuts them.
    pub fn batches(&self, job: &Job) -> Vec<Batch> {
        self.sample(job, &mut Refused::default()).1
    }

    /// The number of tenants that a run covers, and the batches to read.
    fn sample(&self, job: &Job, refused: &mut Refused) -> (u64, Vec<Batch>) {
        match job.scope {
            Scope::Global => (1, vec![Batch::global()]),
            Scope::Tenants => {
                let positions = self.with_zone(job, refused);
                (positions.len() as u64, sample(job, self.list, &positions))
            }
        }
    }

    /// The tenants with a valid time zone; a run leaves the others out.
    fn with_zone(&self, job: &Job, refused: &mut Refused) -> Vec<u32> {
        let mut positions = each_once(self.list);
        date::keep_with_zone(job, self.list, &mut positions, self.now, |tenant, error| {
            refused.note(FailureKind::TimeZone, tenant.map(str::to_owned), error.to_string());
        });
        positions
    }

    /// Reads the rows of a part; the permit holds them.
    async fn read(
        &self,
        job: &Job,
        part: &Batch,
        first_dates: &[NaiveDate],
    ) -> Result<BatchPermit, SourceError> {
        let limits = &self.runner.limits;
        let permit = self.read_into(limits.batch(Priority::Regular).await, job, part, first_dates);
        match permit.await {
            // A batch can be split; one tenant cannot, so it gets the memory of all batches.
            Err(error) if error.kind == SourceErrorKind::TooLarge && part.len() <= 1 => {
                let permit = limits.giant(Priority::Regular).await;
                self.read_into(permit, job, part, first_dates).await
            }
            read => read,
        }
    }

    async fn read_into(
        &self,
        mut permit: BatchPermit,
        job: &Job,
        batch: &Batch,
        first_dates: &[NaiveDate],
    ) -> Result<BatchPermit, SourceError> {
        let rows = permit.empty_rows(job.key_columns().len());
        let read = Read { batch, first_dates, timeout: job.timeout };
        self.runner.reader.read(job, read, rows).await?;
        Ok(permit)
    }

    /// Adds the figures of the entries of some tenants; answers which of their keys could not be
    /// written.
    fn count(
        &self,
        job: &Job,
        part: &Batch,
        found: Entries<'_>,
        tally: &mut Tally,
    ) -> Vec<(FailureKind, Option<String>, String)> {
        let Entries { writes, removals, failures } = found;
        tally.sampled += part.len().max(1) as u64;
        tally.keys += writes.len() as u64;
        tally.removals += removals.len() as u64;
        let mut named: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for entry in &writes {
            tally.bytes += (entry.key.len() + entry.value.len()) as u64;
            tally.memory += self.footprint(&entry.key, entry.value.len());
            if entry.kind == KeyKind::Data {
                named.entry(entry.slot).or_default().push(entry.key.len() as u64);
            }
        }
        for (slot, names) in named {
            let manifest = manifest_key(&job.name, part.tenant(slot).map(|tenant| tenant.id()));
            tally.memory += footprint::sorted_set(self.length(&manifest), &names);
            // The commands that add the names, and one that sets the manifest's TTL.
            tally.naming += names.len().div_ceil(ENTRIES_A_COMMAND) as u64 + 1;
        }
        let small = |entry: &&Entry<'_>| entry.value.len() <= LOOKED_FOR_BYTES;
        let step = writes.len() / LOOKED_FOR + 1;
        let some = writes.iter().filter(small).step_by(step);
        let with_footprint =
            |entry: &Entry<'_>| (entry.key.clone(), self.footprint(&entry.key, entry.value.len()));
        tally.looked_for.extend(some.map(with_footprint));
        let failures = failures.into_iter();
        failures.map(|(_, failure)| (failure.kind, failure.tenant, failure.message)).collect()
    }

    fn length(&self, key: &str) -> u64 {
        (self.prefix + key.len()) as u64
    }

    fn footprint(&self, key: &str, value: usize) -> u64 {
        footprint::string(self.length(key), value as u64)
    }

    /// Looks for some of these keys in the cache. If the cache does not answer, no key counts as
    /// present.
    async fn look(&self, keys: &[(String, u64)]) -> LookedFor {
        let step = keys.len() / LOOKED_FOR + 1;
        let (names, planned): (Vec<String>, Vec<u64>) = keys.iter().step_by(step).cloned().unzip();
        let found = self.runner.cache.look(&names).await.unwrap_or_default();
        let present = names.iter().zip(found);
        let present = present
            .filter_map(|(name, found)| Some(self.footprint(name, found?.value.len())))
            .sum();
        LookedFor { present, planned: planned.iter().sum() }
    }
}

impl Estimate {
    fn with(self, refused: Refused) -> Self {
        let (troubles, unread) = refused.into_parts();
        Self { troubles, unread, ..self }
    }
}

/// The figures of all tenants, extrapolated from the sample.
fn extrapolated(job: &Job, tenants: u64, tally: &Tally, looked_for: LookedFor) -> Estimate {
    let Tally { sampled, .. } = *tally;
    let all = |count| extrapolate(count, tenants, sampled);
    let memory = all(tally.memory);
    let batch = job.batch.get() as u64;
    let manifests = if job.has_manifests() { tenants } else { 0 };
    // The server's stats before and after the run; the fences before and after each batch.
    let questions = 2 * STATS_COMMANDS as u64 + 2 * looks_at_fences(tenants, batch) + manifests;
    Estimate {
        tenants,
        sampled,
        queries: tenants.div_ceil(batch),
        keys: all(tally.keys),
        bytes: all(tally.bytes),
        memory,
        present: extrapolate(looked_for.present, memory, looked_for.planned),
        commands: questions + all(tally.keys + tally.removals),
        naming: all(tally.naming),
        troubles: Vec::new(),
        unread: 0,
    }
}

/// How many commands read the fences of all tenants once, batch by batch.
fn looks_at_fences(tenants: u64, batch: u64) -> u64 {
    let of_batch = |tenants: u64| tenants.div_ceil(FENCES_A_COMMAND as u64);
    tenants / batch * of_batch(batch) + of_batch(tenants % batch)
}

fn extrapolate(count: u64, all: u64, sampled: u64) -> u64 {
    let exact = u128::from(count) * u128::from(all) / u128::from(sampled.max(1));
    u64::try_from(exact).unwrap_or(u64::MAX)
}

/// How often a job runs in 24 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunsADay {
    /// Its runs.
    pub runs: u32,
    /// How many of them find manifest entries that are no longer fresh (see
    /// [`crate::domain::manifest::is_young`]), and renew them.
    pub naming: u32,
}

impl RunsADay {
    /// The runs of its schedule in the 24 hours after `now`.
    pub fn of(job: &Job, now: DateTime<Utc>) -> Self {
        Self::by(&job.schedule, job.ttl, now)
    }

    fn by(schedule: &Schedule, ttl: Duration, now: DateTime<Utc>) -> Self {
        let end = now + TimeDelta::days(1);
        let mut found = Self { runs: 0, naming: 0 };
        let (mut at, mut named_at) = (now, now);
        while let Some(next) = schedule.next_after(at)
            && next <= end
            && found.runs < MAX_RUNS_A_DAY
        {
            found.runs += 1;
            if named_at + ttl < next {
                found.naming += 1;
                named_at = next;
            }
            at = next;
        }
        found
    }
}
