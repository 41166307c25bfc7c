//! Removing all keys of tenants that are gone.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};

use super::note::Leaving;
use crate::domain::fence::{fence_key, start_number};
use crate::domain::job::{Job, JobName, Jobs, Key, Scope};
use crate::domain::layout::Layout;
use crate::domain::manifest::{Named, manifest_key};
use crate::domain::owned::{known_keys, possible_dates};
use crate::domain::tenant::{Tenant, Tenants};
use crate::engine::port::CacheError;
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
    job: &'j Job,
    key: String,
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
        let (tenants, layout) = (Leaving::list(gone), self.runner.layout());
        let mut owned = Vec::new();
        for job in self.tenant_jobs() {
            let mut of_job = self.known(job, &layout, &tenants);
            of_job.extend(self.listed(job, &layout, &tenants).await?);
            let active = self.static_keys_of_active(job, &of_job);
            of_job.retain(|one| !active.contains(&one.key));
            owned.extend(of_job);
        }
        self.remove(owned, swept).await
    }

    fn tenant_jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.jobs.values().map(AsRef::as_ref).filter(|job| job.scope == Scope::Tenants)
    }

    /// The keys that are known without asking, but those that are another tenant's.
    fn known(&self, job: &'a Job, layout: &Layout, tenants: &Tenants) -> Vec<Owned<'a>> {
        let dates = possible_dates(job, self.now);
        let of_tenant = |tenant: Tenant<'_>| {
            let keys = known_keys(job, Some(tenant), &dates).into_iter();
            let keys = keys.filter(|key| layout.may_write(job, Some(tenant), key));
            keys.map(move |key| Owned { job, key }).collect::<Vec<_>>()
        };
        tenants.iter().flat_map(of_tenant).collect()
    }

    /// The keys that the job's manifests name; those end by themselves, and until then the next sweep
    /// needs them. Every job is asked for, as one that has no data column now may have had one.
    /// What is another tenant's stays.
    async fn listed(
        &self,
        job: &'a Job,
        layout: &Layout,
        tenants: &Tenants,
    ) -> Result<Vec<Owned<'a>>, CacheError> {
        let named = self.runner.ledger.manifests(&manifests_of(job, tenants.iter())).await?;
        let own = |(tenant, named): (Tenant<'_>, Vec<Named>)| {
            let id = Some(tenant.id());
            let keys = named.into_iter().map(|Named { key, named_at: _ }| key);
            keys.filter(|key| !layout.is_anothers(job, id, key)).collect::<Vec<_>>()
        };
        let keys = tenants.iter().zip(named).flat_map(own);
        Ok(keys.map(|key| Owned { job, key }).collect())
    }

    /// The keys among these that an active tenant has as well: static keys without a tenant's id, where
    /// what was one tenant's is another's now (a web address).
    fn static_keys_of_active(&self, job: &Job, owned: &[Owned<'_>]) -> HashSet<String> {
        let is_anonymous = |key: &Key| key.template.is_known() && !key.template.has_tenant();
        if owned.is_empty() || !job.keys.iter().any(is_anonymous) {
            return HashSet::new();
        }
        let candidates: HashSet<&str> = owned.iter().map(|owned| owned.key.as_str()).collect();
        let dates = possible_dates(job, self.now);
        let keys = self.active.iter().flat_map(|tenant| known_keys(job, Some(tenant), &dates));
        keys.filter(|key| candidates.contains(key.as_str())).collect()
    }

    /// Removes the keys, and says whether all of them are gone.
    async fn remove(&self, owned: Vec<Owned<'a>>, swept: &mut Swept) -> Result<bool, CacheError> {
        if owned.is_empty() {
            return Ok(true);
        }
        let keys: Vec<String> = owned.iter().map(|owned| owned.key.clone()).collect();
        let results = self.runner.cache.remove(&keys).await;
        let mut complete = true;
        for (Owned { job, key: _ }, result) in owned.into_iter().zip(results?) {
            match result {
                Ok(existed) => {
                    *swept.removed.entry(job.name.clone()).or_default() += u64::from(existed);
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

fn manifests_of<'t>(job: &Job, tenants: impl Iterator<Item = Tenant<'t>>) -> Vec<String> {
    tenants.map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
}
