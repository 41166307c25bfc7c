//! Tenants that could not be read even alone: the next runs read each of them apart, so that they cost a
//! query each and the others' batches are not split to find them again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::job::JobName;
use crate::domain::tenant::Tenants;

/// So many of a job are remembered; others are found by splitting, as ever.
const MOST: usize = 10_000;

/// The tenants that failed alone when they were read last, by job. The worker forgets them when it stops.
#[derive(Debug, Default)]
pub struct BrokenTenants(Mutex<BTreeMap<JobName, HashSet<u64>>>);

impl BrokenTenants {
    /// These failed alone.
    pub(crate) fn note(&self, job: &JobName, tenants: impl IntoIterator<Item = u64>) {
        let mut all = self.lock();
        let known = all.entry(job.clone()).or_default();
        for tenant in tenants {
            if known.len() < MOST {
                known.insert(tenant);
            }
        }
    }

    /// This one was read.
    pub(crate) fn works(&self, job: &JobName, tenant: &str) {
        if let Some(known) = self.lock().get_mut(job) {
            known.remove(&hash(tenant));
        }
    }

    /// Whether it failed alone when it was read last.
    pub(crate) fn has(&self, job: &JobName, tenant: &str) -> bool {
        self.lock().get(job).is_some_and(|known| known.contains(&hash(tenant)))
    }

    /// Parts some positions of a list: those to read together, and those to read apart.
    pub(crate) fn part(
        &self,
        job: &JobName,
        list: &Tenants,
        positions: Vec<u32>,
    ) -> (Vec<u32>, Vec<u32>) {
        let all = self.lock();
        let Some(known) = all.get(job).filter(|known| !known.is_empty()) else {
            return (positions, Vec::new());
        };
        let is_known = |position: &u32| {
            list.get(*position as usize).is_some_and(|tenant| known.contains(&hash(tenant.id())))
        };
        let (apart, together) = positions.into_iter().partition(is_known);
        (together, apart)
    }

    /// Forgets whoever is not in a complete list any more.
    pub(crate) fn keep(&self, job: &JobName, list: &Tenants) {
        let mut all = self.lock();
        let Some(known) = all.get_mut(job).filter(|known| !known.is_empty()) else { return };
        let listed = list.iter().map(|tenant| hash(tenant.id()));
        *known = listed.filter(|tenant| known.contains(tenant)).collect();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<JobName, HashSet<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number in the place of an id, which two tenants hardly have in common.
pub(crate) fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
