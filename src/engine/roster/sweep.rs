//! Removing all keys of tenants that are gone.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};

use super::SLICE;
use super::note::Leaving;
use crate::domain::fence::{fence_key, start_number};
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::manifest::manifest_key;
use crate::domain::owned::{known_keys, possible_dates};
use crate::domain::tenant::{Tenant, Tenants};
use crate::engine::port::{CacheError, Listing};
use crate::engine::run::Runner;

/// One sweep, at a moment.
pub(super) struct Sweep<'a> {
    pub(super) runner: &'a Runner,
    pub(super) jobs: &'a Jobs,
    /// The tenants that are active, which keep what is theirs.
    pub(super) active: &'a Tenants,
    pub(super) now: DateTime<Utc>,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// How many keys of each job were there and are not any more.
    pub(super) removed: BTreeMap<JobName, u64>,
    /// The first removal that was refused.
    pub(super) refused: Option<CacheError>,
    /// How many tenants were struck out of the book.
    pub(super) struck: usize,
}

/// A key of a tenant that is gone.
struct Owned<'j> {
    job: &'j JobName,
    key: String,
    /// The manifest that names it, by its position; none for a known key.
    manifest: Option<usize>,
}

impl<'a> Sweep<'a> {
    /// Sweeps some tenants; says whether all their keys are gone.
    ///
    /// Their fences move first, so that a batch with an older list that is in flight notices; what
    /// such a batch writes all the same the next sweep finds.
    pub(super) async fn slice(
        &self,
        gone: &[Leaving],
        swept: &mut Swept,
    ) -> Result<bool, CacheError> {
        let ledger = &self.runner.ledger;
        let fences: Vec<String> = gone.iter().map(|tenant| fence_key(&tenant.id)).collect();
        ledger.move_fences(&fences, start_number(self.runner.clock.random())).await?;
        let tenants = Leaving::list(gone);
        let mut manifests: Vec<Listing> = Vec::new();
        let mut owned = Vec::new();
        for job in self.tenant_jobs() {
            let mut of_job = self.known(job, &tenants);
            of_job.extend(self.listed(job, &tenants, &mut manifests).await?);
            let shared = self.shared(job, &of_job).await?;
            for one in of_job {
                // Its name leaves the manifest of who is gone, and it stays.
                let another_has_it = shared.contains(&one.key);
                if another_has_it { one.take_out(&mut manifests) } else { owned.push(one) }
            }
        }
        let complete = self.remove(owned, &mut manifests, swept).await?;
        manifests.retain(|listing| !listing.keys.is_empty());
        if !manifests.is_empty() {
            ledger.delist(&manifests).await?;
        }
        Ok(complete)
    }

    fn tenant_jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.jobs.values().map(AsRef::as_ref).filter(|job| job.scope == Scope::Tenants)
    }

    fn known(&self, job: &'a Job, tenants: &Tenants) -> Vec<Owned<'a>> {
        let dates = possible_dates(job, self.now);
        let keys = tenants.iter().flat_map(|tenant| known_keys(job, Some(tenant), &dates));
        keys.map(|key| Owned { job: &job.name, key, manifest: None }).collect()
    }

    /// The keys that the job's manifests name; the manifests are added without names. Every job is
    /// asked for, as one that has no data column now may have had one.
    async fn listed(
        &self,
        job: &'a Job,
        tenants: &Tenants,
        manifests: &mut Vec<Listing>,
    ) -> Result<Vec<Owned<'a>>, CacheError> {
        let of_job = manifests_of(job, tenants.iter());
        let named = self.runner.ledger.manifests(&of_job).await?;
        let mut owned = Vec::new();
        for (manifest, keys) in of_job.into_iter().zip(named) {
            let position = Some(manifests.len());
            manifests.push(Listing { manifest, keys: Vec::new() });
            let keys = keys.into_iter();
            owned.extend(keys.map(|key| Owned { job: &job.name, key, manifest: position }));
        }
        Ok(owned)
    }

    /// The keys among these that an active tenant has as well: of a template without the tenant's id,
    /// where what was one tenant's is another's now (a pet, a web address).
    async fn shared(&self, job: &Job, owned: &[Owned<'_>]) -> Result<HashSet<String>, CacheError> {
        let anonymous = || job.keys.iter().filter(|key| !key.template.has_tenant());
        let mut shared = HashSet::new();
        if owned.is_empty() || anonymous().next().is_none() {
            return Ok(shared);
        }
        let candidates: HashSet<&str> = owned.iter().map(|owned| owned.key.as_str()).collect();
        let is_candidate = |key: &String| candidates.contains(key.as_str());
        let dates = possible_dates(job, self.now);
        for tenant in self.active.iter() {
            shared.extend(known_keys(job, Some(tenant), &dates).into_iter().filter(is_candidate));
        }
        if anonymous().any(|key| !key.template.is_known()) {
            let active: Vec<Tenant<'_>> = self.active.iter().collect();
            for some in active.chunks(SLICE) {
                let of_job = manifests_of(job, some.iter().copied());
                let named = self.runner.ledger.manifests(&of_job).await?;
                shared.extend(named.into_iter().flatten().filter(is_candidate));
            }
        }
        Ok(shared)
    }

    /// Removes the keys, and says whether all of them are gone. Those that are leave their
    /// manifests.
    async fn remove(
        &self,
        mut owned: Vec<Owned<'a>>,
        manifests: &mut [Listing],
        swept: &mut Swept,
    ) -> Result<bool, CacheError> {
        if owned.is_empty() {
            return Ok(true);
        }
        let keys: Vec<String> =
            owned.iter_mut().map(|owned| std::mem::take(&mut owned.key)).collect();
        let results = self.runner.cache.remove(&keys).await?;
        let mut complete = true;
        for ((mut owned, key), result) in owned.into_iter().zip(keys).zip(results) {
            match result {
                Ok(existed) => {
                    *swept.removed.entry(owned.job.clone()).or_default() += u64::from(existed);
                    owned.key = key;
                    owned.take_out(manifests);
                }
                Err(error) => {
                    complete = false;
                    swept.refused.get_or_insert(error);
                }
            }
        }
        Ok(complete)
    }
}

impl Owned<'_> {
    /// Names it among those that leave its manifest.
    fn take_out(self, manifests: &mut [Listing]) {
        if let Some(listing) = self.manifest.and_then(|position| manifests.get_mut(position)) {
            listing.keys.push(self.key);
        }
    }
}

fn manifests_of<'t>(job: &Job, tenants: impl Iterator<Item = Tenant<'t>>) -> Vec<String> {
    tenants.map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
}
