//! Removes all keys of departed tenants, beside the runs. This task wakes for every tenant list that the
//! registry takes.
//!
//! In a fleet, each member sweeps the departed tenants of its own shares.
//!
//! A departed tenant is swept again with later lists, until no run that still has an older list can be under
//! way; then it is removed from the registry.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::domain::fence::fence_key;
use crate::domain::job::{Job, JobName, Jobs, Key, Scope};
use crate::domain::layout::Layout;
use crate::domain::manifest::manifest_key;
use crate::domain::owned::{possible_dates, static_keys};
use crate::domain::tenant::{Tenant, Tenants};
use crate::engine::ports::{CacheError, CacheErrorKind};
use crate::engine::registry::{Departed, Due, grace};
use crate::engine::run::{Runner, Stops};
use crate::observe::event;

/// How many tenants' keys are in memory at once. A list with new tenants waits for one such slice at most.
const SLICE: usize = 200;
/// Keys that are removed with one call to the cache.
const KEYS_AT_ONCE: usize = 1_000;
/// The longest that the sweep waits for the answer to one call: a list with new tenants, and every run that
/// waits for this list, waits for the sweep.
const LONGEST_CALL: Duration = Duration::from_secs(10);

impl Runner {
    /// Sweeps the tenants that left after each tenant list, until the worker stops.
    pub async fn sweep_departed(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                self.registry.departures.wait().await;
                self.sweep().await;
            }
        };
        stops.until(for_ever).await;
    }

    /// Sweeps the departed tenants, except those that were swept a short while ago. The next sweep does what
    /// this one does not finish or the cache refuses.
    pub async fn sweep(&self) {
        let departures = &self.registry.departures;
        let began = self.clock.monotonic();
        let Due { ids, newly } = departures.due(self.ownership.noticed(), began);
        if ids.is_empty() {
            return;
        }
        let (jobs, mut swept) = (self.jobs.get(), Swept::default());
        let mut failed = None;
        for some in ids.chunks(SLICE) {
            if let Err(error) = self.sweep_or_part(some, &jobs, &mut swept).await {
                failed = Some(error);
                break;
            }
        }
        let again = ids.len() - newly;
        event::TenantsSwept { newly, again, removed: &swept.removed }.emit(&self.metrics);
        let now = self.clock.monotonic();
        departures.rest(now, now.saturating_sub(began));
        if let Some(CacheError { message, kind: _ }) = failed.or(swept.refused) {
            event::SweepIncomplete { message: &message }.emit(&self.metrics);
        }
    }

    /// Sweeps some tenants. If the key of a manifest holds another type, only its own tenant is held back.
    async fn sweep_or_part(
        &self,
        ids: &[String],
        jobs: &Jobs,
        swept: &mut Swept,
    ) -> Result<(), CacheError> {
        let is_of_one = |error: &CacheError| error.kind == CacheErrorKind::WrongType;
        match self.sweep_some(ids, jobs, swept).await {
            Err(error) if is_of_one(&error) => {}
            done => return done,
        }
        for one in ids.chunks(1) {
            match self.sweep_some(one, jobs, swept).await {
                Err(error) if is_of_one(&error) => _ = swept.refused.get_or_insert(error),
                done => done?,
            }
        }
        Ok(())
    }

    /// Sweeps those of the given tenants that have not come back. Removes tenants from the registry once no
    /// run can write their keys any more.
    async fn sweep_some(
        &self,
        ids: &[String],
        jobs: &Jobs,
        swept: &mut Swept,
    ) -> Result<(), CacheError> {
        let departures = &self.registry.departures;
        let _turn = departures.turn().await;
        let (active, departed) = departures.still(ids);
        if departed.is_empty() {
            return Ok(());
        }
        let ids = departed.iter().map(|tenant| tenant.id.as_str()).collect();
        self.not_warm.forget(&ids, &self.metrics);
        let now = self.clock.now();
        let sweep = Sweep { runner: self, jobs, active: &active, now };
        if !sweep.remove_keys_of(&departed, swept).await? {
            return Ok(());
        }
        departures.were_swept(&departed);
        let grace = grace(jobs);
        let is_over = |tenant: &&Departed| tenant.gone_at.is_some_and(|at| at + grace <= now);
        let over: Vec<String> =
            departed.iter().filter(is_over).map(|tenant| tenant.id.clone()).collect();
        if !over.is_empty() {
            self.in_time(self.ledger.deregister(&over)).await?;
            departures.remove(&over);
        }
        Ok(())
    }

    /// The answer to a call to the cache, or an error if the answer does not come in time.
    async fn in_time<T>(
        &self,
        call: impl Future<Output = Result<T, CacheError>>,
    ) -> Result<T, CacheError> {
        tokio::select! {
            biased;
            answer = call => answer,
            () = self.clock.sleep(LONGEST_CALL) => Err(CacheError {
                kind: CacheErrorKind::Unavailable,
                message: format!("the cache did not answer within {LONGEST_CALL:?}"),
            }),
        }
    }
}

/// One sweep, at one moment.
struct Sweep<'a> {
    runner: &'a Runner,
    jobs: &'a Jobs,
    /// The active tenants, whose keys stay.
    active: &'a Tenants,
    now: DateTime<Utc>,
}

/// What a sweep did.
#[derive(Debug, Default)]
struct Swept {
    /// How many existing keys of each job were removed.
    removed: BTreeMap<JobName, u64>,
    /// The first removal that was refused.
    refused: Option<CacheError>,
}

/// A key of a tenant that left.
struct Owned<'j> {
    job: &'j Job,
    key: String,
}

impl<'a> Sweep<'a> {
    /// Removes all keys of some tenants; says whether all of them are gone.
    ///
    /// Their fences move first, so that a batch in flight with an older list notices. If such a batch writes
    /// all the same, the next sweep removes its keys.
    async fn remove_keys_of(
        &self,
        gone: &[Departed],
        swept: &mut Swept,
    ) -> Result<bool, CacheError> {
        let runner = self.runner;
        let fences: Vec<String> = gone.iter().map(|tenant| fence_key(&tenant.id)).collect();
        runner.in_time(runner.move_fences(&fences)).await?;
        let (tenants, layout) = (Departed::list(gone), runner.layout());
        let mut owned = Vec::new();
        for job in self.tenant_jobs() {
            let mut of_job = self.static_keys(job, &layout, &tenants);
            of_job.extend(self.manifest_keys(job, &layout, &tenants).await?);
            let active = self.static_keys_of_active(job, &of_job);
            of_job.retain(|one| !active.contains(&one.key));
            owned.extend(of_job);
        }
        self.remove(&owned, swept).await
    }

    fn tenant_jobs(&self) -> impl Iterator<Item = &'a Job> + use<'a> {
        self.jobs.values().map(AsRef::as_ref).filter(|job| job.scope == Scope::Tenants)
    }

    /// The tenants' static keys, except those that belong to another tenant.
    fn static_keys(&self, job: &'a Job, layout: &Layout, tenants: &Tenants) -> Vec<Owned<'a>> {
        let dates = possible_dates(job, self.now);
        let of_tenant = |tenant: Tenant<'_>| {
            let keys = static_keys(job, Some(tenant), &dates).into_iter();
            let keys = keys.filter(|key| layout.may_write(job, Some(tenant), key));
            keys.map(move |key| Owned { job, key }).collect::<Vec<_>>()
        };
        tenants.iter().flat_map(of_tenant).collect()
    }

    /// The keys that the job's manifests name. The manifests stay: they expire by themselves, and until then
    /// the next sweep needs them. Every job is asked for, since a job without data keys may have had some
    /// before. Keys that belong to another tenant stay.
    async fn manifest_keys(
        &self,
        job: &'a Job,
        layout: &Layout,
        tenants: &Tenants,
    ) -> Result<Vec<Owned<'a>>, CacheError> {
        let (runner, manifests) = (self.runner, manifests_of(job, tenants.iter()));
        let manifests = runner.in_time(runner.ledger.manifest_keys(&manifests)).await?;
        let own = |(tenant, keys): (Tenant<'_>, Vec<String>)| {
            let id = Some(tenant.id());
            let keys = keys.into_iter();
            keys.filter(|key| !layout.is_anothers(job, id, key)).collect::<Vec<_>>()
        };
        let keys = tenants.iter().zip(manifests).flat_map(own);
        Ok(keys.map(|key| Owned { job, key }).collect())
    }

    /// Which of these keys an active tenant has as well: static keys without a tenant's id, whose column
    /// value (such as a web address) has passed from one tenant to another.
    fn static_keys_of_active(&self, job: &Job, owned: &[Owned<'_>]) -> HashSet<String> {
        let is_anonymous = |key: &Key| key.template.is_static() && !key.template.has_tenant();
        if owned.is_empty() || !job.keys.iter().any(is_anonymous) {
            return HashSet::new();
        }
        let candidates: HashSet<&str> = owned.iter().map(|owned| owned.key.as_str()).collect();
        let dates = possible_dates(job, self.now);
        let keys = self.active.iter().flat_map(|tenant| static_keys(job, Some(tenant), &dates));
        keys.filter(|key| candidates.contains(key.as_str())).collect()
    }

    /// Removes the keys, and says whether all of them are gone.
    async fn remove(&self, owned: &[Owned<'a>], swept: &mut Swept) -> Result<bool, CacheError> {
        let mut complete = true;
        for some in owned.chunks(KEYS_AT_ONCE) {
            let keys: Vec<String> = some.iter().map(|owned| owned.key.clone()).collect();
            let results = self.runner.in_time(self.runner.cache.remove(&keys)).await?;
            for (Owned { job, key: _ }, result) in some.iter().zip(results) {
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
        }
        Ok(complete)
    }
}

fn manifests_of<'t>(job: &Job, tenants: impl Iterator<Item = Tenant<'t>>) -> Vec<String> {
    tenants.map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
}
