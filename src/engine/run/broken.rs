//! Tenants that could not be read even alone. The next runs read each of them apart: that costs one query a
//! tenant, and the batches of the other tenants need not be split to find them again.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::job::JobName;
use crate::domain::tenant::Tenants;

/// How many tenants of a job are remembered; further ones are found by splitting.
const MOST: usize = 10_000;

/// By job, the tenants that failed alone at their last read. The worker forgets them when it stops.
#[derive(Debug, Default)]
pub struct BrokenTenants(Mutex<BTreeMap<JobName, HashSet<u64>>>);

impl BrokenTenants {
    /// Records that these tenants failed alone.
    pub(crate) fn note(&self, job: &JobName, tenants: impl IntoIterator<Item = u64>) {
        let mut all = self.lock();
        let known = all.entry(job.clone()).or_default();
        for tenant in tenants {
            if known.len() < MOST {
                known.insert(tenant);
            }
        }
    }

    /// Records that this tenant could be read.
    pub(crate) fn works(&self, job: &JobName, tenant: &str) {
        if let Some(known) = self.lock().get_mut(job) {
            known.remove(&hash(tenant));
        }
    }

    /// Whether this tenant failed alone at its last read.
    pub(crate) fn has(&self, job: &JobName, tenant: &str) -> bool {
        self.lock().get(job).is_some_and(|known| known.contains(&hash(tenant)))
    }

    /// Divides positions of a list into those to read together and those to read apart.
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

    /// Forgets the tenants that a complete list no longer has.
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

/// A hash in the place of an id; two tenants hardly ever share one.
pub(crate) fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
