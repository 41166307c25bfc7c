//! Keys that no job writes any more: those of jobs that are gone, of templates that were in use
//! before, and of tenants that are not active.
//!
//! They are found slice by slice, from what preheat keeps in the cache for itself: its manifests and
//! its books; and, to be shown only, from all keys (see `strays.rs`). A key that a job there is may write for an active tenant is none of them, whoever
//! listed it: so a job that gets another name loses nothing.

mod strays;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use self::strays::Readers;
use crate::domain::job::{Job, JobName, Jobs, Scope};
use crate::domain::key::KeyTemplate;
use crate::domain::layout::{Layout, Owner};
use crate::domain::manifest::{manifest_key, manifest_pattern, read_manifest_key};
use crate::domain::owned::{known_keys, possible_dates};
use crate::domain::tenant::{Tenant, TenantId};
use crate::engine::port::{CacheError, SourceError};
use crate::engine::roster::OldTemplate;
use crate::engine::run::Runner;
use crate::invalidate::census::{Known, KnownError};

/// Manifests, or tenants, that are looked at at once.
const SLICE: usize = 100;

/// The orphaned keys of a cache, slice by slice. It only reads.
pub struct Orphans {
    runner: Arc<Runner>,
    jobs: Arc<Jobs>,
    known: Arc<Known>,
    layout: Layout,
    /// Tenants that became active since the list was read.
    new: BTreeSet<String>,
    /// Templates that no job there has.
    templates: Vec<OldTemplate>,
    /// Where all keys are read as well.
    readers: Option<Readers>,
    stage: Stage,
}

/// A key that no job writes any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The key.
    pub key: String,
    /// The job that wrote it, which may be gone.
    pub job: Option<JobName>,
    /// For which tenant; none where it was for the fleet.
    pub tenant: Option<TenantId>,
}

/// The search could not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrphansError {
    /// The cache could not be read.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The tenants could not.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The tenant list cannot be trusted to say who is gone.
    #[error("{0}")]
    Shrank(String),
}

impl From<KnownError> for OrphansError {
    fn from(error: KnownError) -> Self {
        match error {
            KnownError::Tenants(error) => Self::Source(error),
            KnownError::Notes(error) => Self::Cache(error),
        }
    }
}

/// Where the search is.
enum Stage {
    /// Among the manifests: those that were found, and where the scan goes on unless it is over.
    Manifests {
        found: VecDeque<String>,
        next: Option<u64>,
    },
    /// Among the tenants that are not active, from this one on.
    Gone {
        position: usize,
    },
    /// Among old templates: this one, and of all tenants from this one on.
    Templates {
        template: usize,
        position: usize,
    },
    /// Among all keys.
    Keys {
        cursor: u64,
    },
    Done,
}

/// Whether a job there is writes a key.
enum Claim {
    No,
    Yes,
    /// If this manifest names it, or is not there yet.
    IfListed(String),
}

impl Orphans {
    /// Begins the search for all that there are.
    pub async fn begin(runner: &Arc<Runner>) -> Result<Self, OrphansError> {
        let known = Known::all(runner).await?;
        let mut orphans = Self::of(runner, &runner.jobs.get(), &Arc::new(known)).await?;
        let Self { jobs, templates, known, .. } = &orphans;
        let active = (known.active(), runner.source.id_class());
        orphans.readers = Readers::new(jobs, templates, active);
        Ok(orphans)
    }

    /// Begins the search for those that may be removed, with all tenants, who are known already.
    pub(crate) async fn of(
        runner: &Arc<Runner>,
        jobs: &Arc<Jobs>,
        known: &Arc<Known>,
    ) -> Result<Self, OrphansError> {
        if let Some(shrank) = known.shrank() {
            return Err(OrphansError::Shrank(shrank.to_string()));
        }
        let mut templates = runner.roster.templates(runner.ledger.as_ref()).await?;
        templates.retain(|old| {
            let same = |job: &Arc<Job>| {
                job.scope == old.scope && job.keys.iter().any(|key| key.template == old.template)
            };
            old.template.is_known() && !jobs.values().any(same)
        });
        Ok(Self {
            runner: Arc::clone(runner),
            jobs: Arc::clone(jobs),
            known: Arc::clone(known),
            layout: runner.layout(),
            new: BTreeSet::new(),
            templates,
            readers: None,
            stage: Stage::Manifests { found: VecDeque::new(), next: Some(0) },
        })
    }

    /// The next slice of keys, which may be empty; `None` where there is no more. Whether a key still
    /// exists is for the cache to say.
    pub async fn next(&mut self) -> Result<Option<Vec<Orphan>>, OrphansError> {
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
                    self.stage = Stage::Gone { position: 0 };
                }
                self.listed(some).await.map(Some)
            }
            Stage::Gone { position } => {
                let from = *position;
                let (some, all) = (from + SLICE, self.known.gone().len());
                self.stage = if some < all {
                    Stage::Gone { position: some }
                } else {
                    Stage::Templates { template: 0, position: 0 }
                };
                self.of_gone(from..some.min(all)).await.map(Some)
            }
            Stage::Templates { template, position } => {
                let (template, from) = (*template, *position);
                self.of_template(template, from).await
            }
            Stage::Keys { cursor } => {
                let cursor = *cursor;
                self.strays(cursor).await
            }
            Stage::Done => Ok(None),
        }
    }

    /// What manifests name that no job there is renews.
    async fn listed(&mut self, manifests: Vec<String>) -> Result<Vec<Orphan>, OrphansError> {
        let owners = manifests.iter().filter_map(|manifest| read_manifest_key(manifest));
        let tenants: Vec<&str> = owners.filter_map(|(_, tenant)| tenant).collect();
        self.look_for_new(&tenants).await?;
        let stale: Vec<(&String, JobName, Option<&str>)> = manifests
            .iter()
            .filter_map(|manifest| {
                let (job, tenant) = read_manifest_key(manifest)?;
                (!self.is_current(&job, tenant)).then_some((manifest, job, tenant))
            })
            .collect();
        let keys: Vec<String> = stale.iter().map(|(manifest, ..)| (*manifest).clone()).collect();
        let named = self.runner.ledger.names(&keys).await?;
        let mut found = Vec::new();
        for ((_, job, tenant), names) in stale.iter().zip(&named) {
            found.extend(names.iter().map(|key| Orphan {
                key: key.clone(),
                job: Some(job.clone()),
                tenant: tenant.map(TenantId::new),
            }));
        }
        self.without_claimed(found).await
    }

    /// The known keys of tenants that are not active.
    async fn of_gone(
        &mut self,
        positions: std::ops::Range<usize>,
    ) -> Result<Vec<Orphan>, OrphansError> {
        let known = Arc::clone(&self.known);
        let gone: Vec<Tenant<'_>> =
            positions.filter_map(|position| known.gone().get(position)).collect();
        let ids: Vec<&str> = gone.iter().map(Tenant::id).collect();
        self.look_for_new(&ids).await?;
        let mut found = Vec::new();
        for tenant in gone.into_iter().filter(|tenant| !self.is_active(tenant.id())) {
            for job in self.jobs.values().filter(|job| job.scope == Scope::Tenants) {
                let dates = possible_dates(job, self.runner.clock.now());
                found.extend(known_keys(job, Some(tenant), &dates).into_iter().map(|key| Orphan {
                    key,
                    job: Some(job.name.clone()),
                    tenant: Some(TenantId::new(tenant.id())),
                }));
            }
        }
        self.without_claimed(found).await
    }

    /// The keys of a template that is not in use any more, of some tenants.
    async fn of_template(
        &mut self,
        template: usize,
        from: usize,
    ) -> Result<Option<Vec<Orphan>>, OrphansError> {
        let Some(old) = self.templates.get(template) else {
            self.stage = Stage::Keys { cursor: 0 };
            return Ok(Some(Vec::new()));
        };
        let now = self.runner.clock.now();
        let orphan = |tenant: Option<Tenant<'_>>, key| Orphan {
            key,
            job: Some(old.job.clone()),
            tenant: tenant.map(|tenant| TenantId::new(tenant.id())),
        };
        let of_one = |tenant: Option<Tenant<'_>>| {
            old.keys(tenant, now).into_iter().map(|key| orphan(tenant, key)).collect::<Vec<_>>()
        };
        let (found, seen) = match old.scope {
            Scope::Fleet => (of_one(None), 0),
            Scope::Tenants => {
                let some: Vec<Tenant<'_>> = self.known.iter().skip(from).take(SLICE).collect();
                (some.iter().flat_map(|tenant| of_one(Some(*tenant))).collect(), some.len())
            }
        };
        self.stage = if seen < SLICE {
            Stage::Templates { template: template + 1, position: 0 }
        } else {
            Stage::Templates { template, position: from + seen }
        };
        self.without_claimed(found).await.map(Some)
    }

    /// Takes note of tenants that were not in the list and are active by now.
    async fn look_for_new(&mut self, ids: &[&str]) -> Result<(), OrphansError> {
        let unknown: BTreeSet<&str> =
            ids.iter().copied().filter(|id| !self.is_active(id)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let unknown: Vec<TenantId> = unknown.into_iter().map(TenantId::new).collect();
        let active = self.runner.source.tenants_among(&unknown).await?;
        self.new.extend(active.iter().map(|tenant| tenant.id().to_owned()));
        Ok(())
    }

    fn is_active(&self, tenant: &str) -> bool {
        self.known.is_active(tenant) || self.new.contains(tenant)
    }

    /// Whether a job there is keeps that manifest.
    fn is_current(&self, job: &JobName, tenant: Option<&str>) -> bool {
        self.jobs.get(job).is_some_and(|job| {
            job.has_manifests()
                && match (job.scope, tenant) {
                    (Scope::Fleet, None) => true,
                    (Scope::Tenants, Some(tenant)) => self.is_active(tenant),
                    (Scope::Fleet, Some(_)) | (Scope::Tenants, None) => false,
                }
        })
    }

    /// Those that no job there is may write.
    async fn without_claimed(&self, found: Vec<Orphan>) -> Result<Vec<Orphan>, OrphansError> {
        let mut claimed: HashSet<&str> = HashSet::new();
        let mut listed: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for orphan in &found {
            let key = orphan.key.as_str();
            for job in self.jobs.values() {
                for index in 0..job.keys.len() {
                    match self.claim(job, index, key) {
                        Claim::No => {}
                        Claim::Yes => drop(claimed.insert(key)),
                        Claim::IfListed(manifest) => {
                            listed.entry(manifest).or_default().push(key);
                        }
                    }
                }
            }
        }
        self.claim_listed(listed, &mut claimed).await?;
        let claimed: HashSet<String> = claimed.into_iter().map(str::to_owned).collect();
        Ok(found.into_iter().filter(|orphan| !claimed.contains(&orphan.key)).collect())
    }

    /// Whether a job writes that key by that template.
    fn claim(&self, job: &Job, index: usize, key: &str) -> Claim {
        let Some(template) = job.keys.get(index).map(|key| &key.template) else { return Claim::No };
        let is_known = template.is_known();
        match (job.scope, self.layout.owner(job, index, key), is_known) {
            (_, Owner::Nobody, _) => Claim::No,
            (Scope::Fleet, _, true) => self.claim_known(job, template, [None], key),
            (Scope::Fleet, _, false) => Claim::IfListed(manifest_key(&job.name, None)),
            (Scope::Tenants, Owner::Tenant(id), true) => {
                let tenant = self.known.active_tenant(id).map(Some);
                self.claim_known(job, template, tenant, key)
            }
            (Scope::Tenants, Owner::Tenant(id), false) if self.is_active(id) => {
                Claim::IfListed(manifest_key(&job.name, Some(id)))
            }
            (Scope::Tenants, Owner::Tenant(_), false) => Claim::No,
            (Scope::Tenants, Owner::WithColumn(column, text), true) => {
                let tenants = self.known.with_column(column, text);
                let active = tenants.filter(|tenant| self.known.is_active(tenant.id()));
                self.claim_known(job, template, active.map(Some), key)
            }
            (Scope::Tenants, Owner::Anyone, true) => {
                self.claim_known(job, template, self.known.active().iter().map(Some), key)
            }
            (Scope::Tenants, Owner::WithColumn(..) | Owner::Anyone, false) => {
                // A shared key ends by its TTL; whose it is nobody can tell.
                Claim::Yes
            }
        }
    }

    /// Whether a key that needs no query is one of these tenants'.
    fn claim_known<'t>(
        &self,
        job: &Job,
        template: &KeyTemplate,
        tenants: impl IntoIterator<Item = Option<Tenant<'t>>>,
        key: &str,
    ) -> Claim {
        let dates = possible_dates(job, self.runner.clock.now());
        let (first, last) = (*dates.start(), *dates.end());
        let is_of = |tenant| {
            let mut dates = first.iter_days().take_while(|date| *date <= last);
            dates.any(|date| template.fill(tenant, Some(date)).as_deref() == Some(key))
        };
        if tenants.into_iter().any(is_of) { Claim::Yes } else { Claim::No }
    }

    /// Keys that a manifest names. One that is not there yet may come to name them: its job did not
    /// run since it got that template.
    async fn claim_listed<'k>(
        &self,
        listed: BTreeMap<String, Vec<&'k str>>,
        claimed: &mut HashSet<&'k str>,
    ) -> Result<(), OrphansError> {
        let (manifests, keys): (Vec<String>, Vec<Vec<&str>>) = listed.into_iter().unzip();
        let mut keys = keys.into_iter();
        for some in manifests.chunks(SLICE) {
            for names in self.runner.ledger.names(some).await? {
                let names: HashSet<String> = names.into_iter().collect();
                let keys = keys.next().unwrap_or_default();
                claimed.extend(
                    keys.into_iter().filter(|key| names.is_empty() || names.contains(*key)),
                );
            }
        }
        Ok(())
    }
}
