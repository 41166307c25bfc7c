//! Removing all keys of tenants that are gone.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, Utc};

use super::SLICE;
use super::note::Leaving;
use crate::domain::fence::{fence_key, start_number};
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::layout::Layout;
use crate::domain::manifest::{Named, manifest_key};
use crate::domain::owned::{known_keys, possible_dates};
use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::engine::changes::FOLLOW_UP;
use crate::engine::port::CacheError;
use crate::engine::run::Runner;
use crate::engine::taken::Taken;

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
    /// Whose it was.
    tenant: TenantId,
    key: String,
    /// When the tenant last named it; none where it is known without a name.
    named_at: Option<DateTime<Utc>>,
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
            let mut listed = self.listed(job, &tenants).await?;
            listed.retain(|one| !layout.is_anothers(job, Some(one.tenant.as_str()), &one.key));
            of_job.extend(listed);
            let shared = self.shared(job, &of_job).await?;
            of_job.retain(|one| !shared.contains(&one.key));
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
            let owned = move |key, tenant| Owned { job, tenant, key, named_at: None };
            let keys = known_keys(job, Some(tenant), &dates).into_iter();
            let keys = keys.filter(|key| layout.may_write(job, Some(tenant), key));
            let id = TenantId::new(tenant.id());
            keys.map(move |key| owned(key, id.clone())).collect::<Vec<_>>()
        };
        tenants.iter().flat_map(of_tenant).collect()
    }

    /// The keys that the job's manifests name; those end by themselves, and until then the next sweep
    /// needs them. Every job is asked for, as one that has no data column now may have had one.
    async fn listed(&self, job: &'a Job, tenants: &Tenants) -> Result<Vec<Owned<'a>>, CacheError> {
        let named = self.runner.ledger.manifests(&manifests_of(job, tenants.iter())).await?;
        let of_tenant = |(tenant, named): (Tenant<'_>, Vec<Named>)| {
            let tenant = TenantId::new(tenant.id());
            let owned = move |Named { key, named_at }| Owned {
                job,
                tenant: tenant.clone(),
                key,
                named_at: Some(named_at),
            };
            named.into_iter().map(owned)
        };
        Ok(tenants.iter().zip(named).flat_map(of_tenant).collect())
    }

    /// The keys among these that an active tenant has as well: of a template without the tenant's id,
    /// where what was one tenant's is another's now (a pet, a web address). Names outlive their keys,
    /// so that of two tenants that named one it belongs to whoever did so last.
    async fn shared(&self, job: &Job, owned: &[Owned<'_>]) -> Result<HashSet<String>, CacheError> {
        let anonymous = || job.keys.iter().filter(|key| !key.template.has_tenant());
        let mut shared = HashSet::new();
        if owned.is_empty() || anonymous().next().is_none() {
            return Ok(shared);
        }
        let mut candidates: HashMap<&str, Option<DateTime<Utc>>> = HashMap::new();
        for Owned { key, named_at, .. } in owned {
            let last = candidates.entry(key).or_default();
            *last = (*last).max(*named_at);
        }
        let is_candidate = |key: &String| candidates.contains_key(key.as_str());
        let dates = possible_dates(job, self.now);
        for tenant in self.active.iter() {
            shared.extend(known_keys(job, Some(tenant), &dates).into_iter().filter(is_candidate));
        }
        if anonymous().any(|key| !key.template.is_known()) {
            let active: Vec<Tenant<'_>> = self.active.iter().collect();
            for some in active.chunks(SLICE) {
                let of_job = manifests_of(job, some.iter().copied());
                let named = self.runner.ledger.manifests(&of_job).await?.into_iter().flatten();
                let later = named.filter(|Named { key, named_at }| {
                    let of_gone = candidates.get(key.as_str());
                    of_gone
                        .is_some_and(|of_gone| of_gone.is_none_or(|of_gone| *named_at >= of_gone))
                });
                shared.extend(later.map(|named| named.key));
            }
        }
        Ok(shared)
    }

    /// Removes the keys, and says whether all of them are gone.
    async fn remove(&self, owned: Vec<Owned<'a>>, swept: &mut Swept) -> Result<bool, CacheError> {
        if owned.is_empty() {
            return Ok(true);
        }
        let keys: Vec<String> = owned.iter().map(|owned| owned.key.clone()).collect();
        let results = self.runner.cache.remove(&keys).await;
        self.note_taken(&owned, results.as_deref());
        let mut complete = true;
        for (Owned { job, .. }, result) in owned.into_iter().zip(results?) {
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

    /// Takes note of keys that are gone, or may go, and may be those of an active tenant whose name
    /// for them is older.
    fn note_taken(
        &self,
        owned: &[Owned<'a>],
        results: Result<&[Result<bool, CacheError>], &CacheError>,
    ) {
        let may_be_gone = |place: usize| match results.map(|results| results.get(place)) {
            Ok(Some(result)) => result.as_ref().map_or_else(|e| e.kind.is_transient(), |e| *e),
            Ok(None) => false,
            Err(error) => error.kind.is_transient(),
        };
        let mut taken: BTreeMap<&JobName, Vec<Taken>> = BTreeMap::new();
        for (place, Owned { job, tenant, key, .. }) in owned.iter().enumerate() {
            if job.has_keys_that_move() && may_be_gone(place) {
                let one = Taken { key: key.clone(), from: tenant.clone() };
                taken.entry(&job.name).or_default().push(one);
            }
        }
        // What was not answered is done by then.
        let due_at = self.runner.clock.monotonic() + FOLLOW_UP;
        for (job, taken) in taken {
            self.runner.taken.add(job, taken, due_at);
        }
    }
}

fn manifests_of<'t>(job: &Job, tenants: impl Iterator<Item = Tenant<'t>>) -> Vec<String> {
    tenants.map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
}
