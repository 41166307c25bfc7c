//! preheat's own data in the cache, and the commands that a worker sends besides those of its runs.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use super::{Estimate, Estimator, extrapolate, footprint, looks_at_fences};
use crate::domain::fence::{Fence, GLOBAL, fence_key};
use crate::domain::job::{Job, Scope};
use crate::domain::tenant::Tenants;
use crate::engine::ports::{ENTRIES_A_COMMAND, REGISTRY_KEY, STATS_COMMANDS};
use crate::engine::registry::{self, Registry};
use crate::engine::run::cache_process;
use crate::engine::run::each_once;
use crate::engine::run::marker::{MARKERS, RENEW_EVERY, marker_keys};
use crate::engine::tasks::coverage;

/// How many fences are looked at to extrapolate how many exist.
const SAMPLED_FENCES: usize = 500;
const DAY: Duration = Duration::from_hours(24);

/// What the jobs of a worker have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Bytes that the fences, the registry and the markers take in the cache.
    pub memory: u64,
    /// The part of `memory` that is in use already.
    pub present: u64,
    /// Commands of the first pass over an empty cache, besides those of each job's run: the fences are
    /// started, the markers are created, and the tenants are registered.
    pub first_commands: u64,
    /// Commands of a worker in a day, besides those of its runs: it asks the cache for its stats, reads the
    /// markers and the registry, looks for some keys, and verifies a sample of them.
    pub day_commands: u64,
}

/// How often a worker compares some tenants of each job with the database.
#[derive(Clone, Copy, Debug)]
pub struct Verification {
    /// From the start of one audit to that of the next.
    pub interval: Duration,
    /// How many tenants of each job.
    pub sample: NonZeroUsize,
}

/// The parts of a whole, and how many of them exist already.
#[derive(Clone, Copy, Default)]
struct Stock {
    memory: u64,
    present: u64,
}

impl Estimator<'_> {
    /// Estimates what the enabled jobs have in common.
    pub async fn upkeep(
        &self,
        jobs: &[(Arc<Job>, &Estimate)],
        verification: Option<Verification>,
    ) -> Upkeep {
        let fences = self.fences(jobs).await;
        let registry = self.registry().await;
        let entries = (self.list.len() as u64).div_ceil(ENTRIES_A_COMMAND as u64);
        Upkeep {
            memory: fences.memory + registry.memory,
            present: fences.present + registry.present,
            first_commands: self.starts_of_fences(jobs) + MAKE_MARKERS + LOOK_AT_REGISTRY + entries,
            day_commands: day_commands(self.list, jobs, verification),
        }
    }

    async fn fences(&self, jobs: &[(Arc<Job>, &Estimate)]) -> Stock {
        let has = |scope| jobs.iter().any(|(job, _)| job.scope == scope);
        let mut keys = if has(Scope::Tenants) { self.fence_keys() } else { Vec::new() };
        // The markers are numbers, like the fences.
        keys.extend(marker_keys(|keys| vec![0; keys.len()]).keys);
        let memory: u64 = keys.iter().map(|key| footprint::number(self.length(key))).sum();
        let step = keys.len() / SAMPLED_FENCES + 1;
        let some: Vec<String> = keys.into_iter().step_by(step).collect();
        let found = self.runner.ledger.fences(&some).await.unwrap_or_default();
        let present = found.iter().filter(|fence| **fence != Fence::Missing).count();
        let global = if has(Scope::Global) { footprint::number(self.length(GLOBAL)) } else { 0 };
        Stock {
            memory: memory + global,
            present: extrapolate(present as u64, memory, some.len() as u64),
        }
    }

    fn fence_keys(&self) -> Vec<String> {
        let tenants = each_once(self.list).into_iter();
        let tenants = tenants.filter_map(|position| self.list.get(position as usize));
        tenants.map(|tenant| fence_key(tenant.id())).collect()
    }

    /// The registry as it will be once it has every tenant of the list.
    async fn registry(&self) -> Stock {
        let mut entries = self.runner.ledger.registry().await.unwrap_or_default();
        let present = self.size_of_registry(&entries);
        let known: HashSet<String> = entries.iter().map(|(id, _)| id.clone()).collect();
        let new = Registry::first_entries(self.list).into_iter();
        entries.extend(new.filter(|(id, _)| !known.contains(id)));
        Stock { memory: self.size_of_registry(&entries), present }
    }

    fn size_of_registry(&self, entries: &[(String, String)]) -> u64 {
        if entries.is_empty() {
            return 0;
        }
        let lengths = entries.iter().map(|(id, text)| (id.len() as u64, text.len() as u64));
        footprint::hash(self.length(REGISTRY_KEY), &lengths.collect::<Vec<_>>())
    }

    /// The first run that needs a fence creates it and then reads it again.
    fn starts_of_fences(&self, jobs: &[(Arc<Job>, &Estimate)]) -> u64 {
        let of_tenants = jobs.iter().filter(|(job, _)| job.scope == Scope::Tenants);
        let looks = of_tenants
            .map(|(job, found)| looks_at_fences(found.tenants, job.batch.get() as u64))
            .max();
        let tenants = looks.map_or(0, |looks| self.list.len() as u64 + looks);
        let has_global = jobs.iter().any(|(job, _)| job.scope == Scope::Global);
        tenants + if has_global { 2 } else { 0 }
    }
}

/// The markers are created and then read again.
const MAKE_MARKERS: u64 = MARKERS as u64 + 1;

/// A look at the registry: one command reads it, one renews its TTL.
const LOOK_AT_REGISTRY: u64 = 2;

fn day_commands(
    list: &Tenants,
    jobs: &[(Arc<Job>, &Estimate)],
    verification: Option<Verification>,
) -> u64 {
    let times_a_day = |pause: Duration| {
        u64::try_from(DAY.as_millis() / pause.as_millis().max(1)).unwrap_or(u64::MAX)
    };
    let watch = times_a_day(cache_process::LOOK_EVERY) * (STATS_COMMANDS as u64 + 1)
        + times_a_day(RENEW_EVERY) * MARKERS as u64;
    let covered = jobs.iter().map(|(job, found)| coverage::commands(job, found.tenants));
    let covered = times_a_day(coverage::LOOK_EVERY).saturating_mul(covered.sum());
    let further_slices = (list.len() as u64).div_ceil(ENTRIES_A_COMMAND as u64).saturating_sub(1);
    let registry = times_a_day(registry::LOOK_AGAIN) * (LOOK_AT_REGISTRY + further_slices);
    let verified = verification.map_or(0, |Verification { interval, sample }| {
        let of_job = |(job, found): &(Arc<Job>, &Estimate)| {
            let tenants = found.tenants.min(sample.get() as u64);
            let manifests = if job.has_manifests() { tenants } else { 0 };
            // Each key's value and its TTL.
            extrapolate(2 * found.keys, tenants, found.tenants) + manifests
        };
        times_a_day(interval).saturating_mul(jobs.iter().map(of_job).sum())
    });
    watch + covered + registry + verified
}
