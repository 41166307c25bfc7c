//! The search for keys that no job writes any more: those named by the manifests of removed jobs and departed
//! tenants, and the static keys of departed tenants.
//!
//! It goes slice by slice over preheat's own data in the cache, and only reads. A key that a job may write
//! for an active tenant is no orphan, whichever manifest names it: so a renamed job has no orphans. The
//! search does not look for orphans of shared keys, since no manifest names them and their values show no
//! owner; these expire by their TTL. So do static keys of a template that was changed.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::key::KeyTemplate;
use crate::domain::layout::{Layout, Owner};
use crate::domain::manifest::{manifest_key, manifest_pattern, read_manifest_key};
use crate::domain::owned::{possible_dates, static_keys};
use crate::domain::tenant::{Tenant, TenantId};
use crate::engine::ports::{CacheError, SourceError};
use crate::engine::run::Runner;
use crate::invalidate::census::{Census, CensusError};

/// How many manifests, or tenants, one slice covers.
const SLICE: usize = 100;

/// A search under way.
pub(super) struct Search {
    runner: Arc<Runner>,
    jobs: Arc<Jobs>,
    census: Census,
    layout: Layout,
    /// Tenants that became active since the census was read.
    new: BTreeSet<String>,
    stage: Stage,
}

/// A key that no job writes any more. Whether it still exists is for the cache to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) key: String,
    /// The job that wrote it, which may be gone.
    pub(super) job: JobName,
    /// The tenant it was written for; `None` for a key of a global job.
    pub(super) tenant: Option<TenantId>,
}

/// The search could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SearchError {
    /// The cache could not be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The tenants could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tenant list lacks so many tenants that the search cannot tell which have departed.
    #[error("{0}")]
    Shrank(String),
}

impl From<CensusError> for SearchError {
    fn from(error: CensusError) -> Self {
        match error {
            CensusError::Tenants(error) => Self::Source(error),
            CensusError::Registry(error) => Self::Cache(error),
        }
    }
}

/// The stage of the search.
enum Stage {
    /// The manifests: those found so far, and the cursor of the scan unless it is over.
    Manifests {
        found: VecDeque<String>,
        next: Option<u64>,
    },
    /// The departed tenants, from this position on.
    Departed {
        position: usize,
    },
    Done,
}

/// Whether an existing job writes a key.
enum Written {
    No,
    Yes,
    /// Only if this manifest names it, or does not exist yet.
    IfNamedBy(String),
}

impl Search {
    /// Begins a search with the present jobs and tenants.
    pub(super) async fn begin(runner: &Arc<Runner>) -> Result<Self, SearchError> {
        let census = Census::all(runner).await?;
        if let Some(shrank) = census.shrank() {
            return Err(SearchError::Shrank(shrank.to_string()));
        }
        Ok(Self {
            runner: Arc::clone(runner),
            jobs: runner.jobs.get(),
            census,
            // The tenants have been read, so the form of their ids is known.
            layout: runner.layout(),
            new: BTreeSet::new(),
            stage: Stage::Manifests { found: VecDeque::new(), next: Some(0) },
        })
    }

    /// The next slice of orphans, which may be empty; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Orphan>>, SearchError> {
        match &mut self.stage {
            Stage::Manifests { found, next: Some(cursor) } if found.len() < SLICE => {
                let slice = self.runner.cache.scan(&manifest_pattern(None), *cursor).await?;
                found.extend(slice.keys);
                let next = Some(slice.next).filter(|next| *next > 0);
                let found = std::mem::take(found);
                self.stage = Stage::Manifests { found, next };
                Ok(Some(Vec::new()))
            }
            Stage::Manifests { found, next } => {
                let some: Vec<String> = found.drain(..found.len().min(SLICE)).collect();
                if found.is_empty() && next.is_none() {
                    self.stage = Stage::Departed { position: 0 };
                }
                self.named(some).await.map(Some)
            }
            Stage::Departed { position } => {
                let (from, all) = (*position, self.census.departed().len());
                let to = (from + SLICE).min(all);
                self.stage = if to < all { Stage::Departed { position: to } } else { Stage::Done };
                self.of_departed(from..to).await.map(Some)
            }
            Stage::Done => Ok(None),
        }
    }

    /// The keys that are named in manifests which no existing job renews.
    async fn named(&mut self, manifests: Vec<String>) -> Result<Vec<Orphan>, SearchError> {
        let owners = manifests.iter().filter_map(|manifest| read_manifest_key(manifest));
        let tenants: Vec<String> =
            owners.filter_map(|(_, tenant)| tenant.map(str::to_owned)).collect();
        self.look_for_new(&tenants).await?;
        let stale: Vec<(&String, JobName, Option<&str>)> = manifests
            .iter()
            .filter_map(|manifest| {
                let (job, tenant) = read_manifest_key(manifest)?;
                (!self.is_renewed(&job, tenant)).then_some((manifest, job, tenant))
            })
            .collect();
        let keys: Vec<String> = stale.iter().map(|(manifest, ..)| (*manifest).clone()).collect();
        let named = self.runner.ledger.manifest_keys(&keys).await?;
        let mut found = Vec::new();
        for ((_, job, tenant), names) in stale.iter().zip(named) {
            let tenant = tenant.map(TenantId::new);
            let orphan = |key| Orphan { key, job: job.clone(), tenant: tenant.clone() };
            found.extend(names.into_iter().map(orphan));
        }
        self.without_written(found).await
    }

    /// The static keys of departed tenants.
    async fn of_departed(&mut self, positions: Range<usize>) -> Result<Vec<Orphan>, SearchError> {
        let at = |position| self.census.departed().get(position);
        let ids: Vec<String> =
            positions.clone().filter_map(at).map(|tenant| tenant.id().to_owned()).collect();
        self.look_for_new(&ids).await?;
        let mut found = Vec::new();
        let departed = positions.filter_map(|position| self.census.departed().get(position));
        for tenant in departed.filter(|tenant| !self.is_active(tenant.id())) {
            for job in self.jobs.values().filter(|job| job.scope == Scope::Tenants) {
                let dates = possible_dates(job, self.runner.clock.now());
                found.extend(static_keys(job, Some(tenant), &dates).into_iter().map(|key| {
                    Orphan { key, job: job.name.clone(), tenant: Some(TenantId::new(tenant.id())) }
                }));
            }
        }
        self.without_written(found).await
    }

    /// Records tenants that are active now and are not active in the census.
    async fn look_for_new(&mut self, ids: &[String]) -> Result<(), SearchError> {
        let others: BTreeSet<&str> =
            ids.iter().map(String::as_str).filter(|id| !self.is_active(id)).collect();
        if others.is_empty() {
            return Ok(());
        }
        let others: Vec<TenantId> = others.into_iter().map(TenantId::new).collect();
        let active = self.runner.source.tenants_among(&others).await?;
        self.new.extend(active.iter().map(|tenant| tenant.id().to_owned()));
        Ok(())
    }

    fn is_active(&self, tenant: &str) -> bool {
        self.census.is_active(tenant) || self.new.contains(tenant)
    }

    /// Whether an existing job renews that manifest.
    fn is_renewed(&self, job: &JobName, tenant: Option<&str>) -> bool {
        self.jobs.get(job).is_some_and(|job| {
            job.has_manifests()
                && match (job.scope, tenant) {
                    (Scope::Global, None) => true,
                    (Scope::Tenants, Some(tenant)) => self.is_active(tenant),
                    (Scope::Global, Some(_)) | (Scope::Tenants, None) => false,
                }
        })
    }

    /// The keys among these that no existing job may write.
    async fn without_written(&self, found: Vec<Orphan>) -> Result<Vec<Orphan>, SearchError> {
        let mut written: HashSet<&str> = HashSet::new();
        let mut if_named: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for orphan in &found {
            let key = orphan.key.as_str();
            for job in self.jobs.values() {
                for index in 0..job.keys.len() {
                    match self.writes(job, index, key) {
                        Written::No => {}
                        Written::Yes => drop(written.insert(key)),
                        Written::IfNamedBy(manifest) => {
                            if_named.entry(manifest).or_default().push(key);
                        }
                    }
                }
            }
        }
        self.add_named(if_named, &mut written).await?;
        let written: HashSet<String> = written.into_iter().map(str::to_owned).collect();
        Ok(found.into_iter().filter(|orphan| !written.contains(&orphan.key)).collect())
    }

    /// Whether a job writes that key, by the template at this position.
    fn writes(&self, job: &Job, index: usize, key: &str) -> Written {
        let Some(template) = job.keys.get(index).map(|key| &key.template) else {
            return Written::No;
        };
        let is_static = template.is_static();
        match (job.scope, self.layout.owner(job, index, key), is_static) {
            (_, Owner::Nobody, _) => Written::No,
            (Scope::Global, _, true) => self.writes_static(job, template, [None], key),
            (Scope::Global, _, false) => Written::IfNamedBy(manifest_key(&job.name, None)),
            (Scope::Tenants, Owner::Tenant(id), true) => {
                let tenant = self.census.active_tenant(id).map(Some);
                self.writes_static(job, template, tenant, key)
            }
            (Scope::Tenants, Owner::Tenant(id), false) if self.is_active(id) => {
                Written::IfNamedBy(manifest_key(&job.name, Some(id)))
            }
            (Scope::Tenants, Owner::Tenant(_), false) => Written::No,
            (Scope::Tenants, Owner::WithColumn(column, text), true) => {
                let tenants = self.census.with_column(column, text);
                let active = tenants.filter(|tenant| self.census.is_active(tenant.id()));
                self.writes_static(job, template, active.map(Some), key)
            }
            (Scope::Tenants, Owner::Anyone, true) => {
                let active = self.census.active().iter().map(Some);
                self.writes_static(job, template, active, key)
            }
            // A shared key: its value shows no owner.
            (Scope::Tenants, Owner::WithColumn(..) | Owner::Anyone, false) => Written::Yes,
        }
    }

    /// Whether a static key belongs to one of these tenants.
    fn writes_static<'t>(
        &self,
        job: &Job,
        template: &KeyTemplate,
        tenants: impl IntoIterator<Item = Option<Tenant<'t>>>,
        key: &str,
    ) -> Written {
        let dates = possible_dates(job, self.runner.clock.now());
        let (first, last) = (*dates.start(), *dates.end());
        let is_of = |tenant| {
            let mut dates = first.iter_days().take_while(|date| *date <= last);
            dates.any(|date| template.fill(tenant, Some(date)).as_deref() == Some(key))
        };
        if tenants.into_iter().any(is_of) { Written::Yes } else { Written::No }
    }

    /// Adds the keys that existing manifests name. A manifest that does not exist yet may name them later:
    /// its job has not run since it got that template.
    async fn add_named<'k>(
        &self,
        if_named: BTreeMap<String, Vec<&'k str>>,
        written: &mut HashSet<&'k str>,
    ) -> Result<(), SearchError> {
        let (manifests, keys): (Vec<String>, Vec<Vec<&str>>) = if_named.into_iter().unzip();
        let mut keys = keys.into_iter();
        for some in manifests.chunks(SLICE) {
            for names in self.runner.ledger.manifest_keys(some).await? {
                let names: HashSet<String> = names.into_iter().collect();
                let keys = keys.next().unwrap_or_default();
                written.extend(
                    keys.into_iter().filter(|key| names.is_empty() || names.contains(*key)),
                );
            }
        }
        Ok(())
    }
}
