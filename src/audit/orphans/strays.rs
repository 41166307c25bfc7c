//! Keys of tenants that nobody knows: neither active nor noted, as when the cache lost the book.
//!
//! They are found by their texts alone, in all keys of the cache: a template says which tenant a key is
//! of. That somebody else wrote a key of this kind cannot be told from it; so what is found is shown, and
//! never removed.

use std::collections::{BTreeSet, HashSet};

use super::{Orphan, Orphans, OrphansError, Stage};
use crate::domain::job::{Jobs, Scope};
use crate::domain::key::is_own;
use crate::domain::manifest::manifest_key;
use crate::domain::tenant::{IdClass, IdForm, TenantId, Tenants};
use crate::engine::roster::OldTemplate;

/// Reads tenants from keys.
pub(super) struct Readers {
    /// Templates with a tenant's id, those in use and old ones.
    templates: Vec<OldTemplate>,
    form: IdForm,
    ids: IdClass,
    /// The tenants that were read and that nobody knows.
    strangers: BTreeSet<String>,
}

/// A key, and as whose it may be read: by which of the templates, and which tenant's.
struct Reading {
    key: String,
    owners: Vec<(usize, String)>,
}

impl Readers {
    /// None where no key tells its tenant, or nobody knows what a tenant's id looks like.
    pub(super) fn new(
        jobs: &Jobs,
        old: &[OldTemplate],
        (active, ids): (&Tenants, IdClass),
    ) -> Option<Self> {
        let in_use = jobs.values().flat_map(|job| {
            job.keys.iter().map(|key| OldTemplate {
                job: job.name.clone(),
                template: key.template.clone(),
                scope: job.scope,
                days: job.dates.as_ref().map_or(0, |dates| dates.days),
                ttl: job.ttl,
            })
        });
        let mut templates: Vec<OldTemplate> = in_use.chain(old.iter().cloned()).collect();
        templates.retain(|one| one.scope == Scope::Tenants && one.template.has_tenant());
        let form = IdForm::of(active).filter(|_| !templates.is_empty())?;
        Some(Self { templates, form, ids, strangers: BTreeSet::new() })
    }

    fn read(&self, key: String) -> Option<Reading> {
        if is_own(&key) {
            return None;
        }
        let mut owners = Vec::new();
        for (place, of) in self.templates.iter().enumerate() {
            let Some(id) = of.template.tenant_of(&key, self.ids) else { continue };
            owners.extend(self.form.fits(id).then(|| (place, id.to_owned())));
        }
        (!owners.is_empty()).then_some(Reading { key, owners })
    }
}

impl Orphans {
    /// The strays among a slice of all keys.
    pub(super) async fn strays(
        &mut self,
        cursor: u64,
    ) -> Result<Option<Vec<Orphan>>, OrphansError> {
        let Some(readers) = &self.readers else {
            self.stage = Stage::Done;
            return Ok(None);
        };
        let slice = self.runner.cache.scan("*", cursor).await?;
        self.stage = if slice.next == 0 { Stage::Done } else { Stage::Keys { cursor: slice.next } };
        let read: Vec<Reading> =
            slice.keys.into_iter().filter_map(|key| readers.read(key)).collect();
        let unheard_of: Vec<&str> = read
            .iter()
            .flat_map(|reading| &reading.owners)
            .map(|(_, id)| id.as_str())
            .filter(|id| self.known.get(id).is_none() && !readers.strangers.contains(*id))
            .collect();
        self.look_for_new(&unheard_of).await?;
        let mut strays = Vec::new();
        for Reading { key, owners } in read {
            if owners.iter().any(|(_, id)| self.is_active(id)) {
                continue;
            }
            strays.extend(owners.into_iter().next().map(|(place, id)| (key, place, id)));
        }
        self.meet(strays.iter().map(|(_, _, id)| id))?;
        let strays = self.without_noted(strays).await?;
        self.without_claimed(strays).await.map(Some)
    }

    /// Takes note of who nobody knows. Too many of them, and it is the list that lacks them.
    fn meet<'i>(&mut self, ids: impl Iterator<Item = &'i String>) -> Result<(), OrphansError> {
        let Some(readers) = &mut self.readers else { return Ok(()) };
        let strangers = ids.filter(|id| self.known.get(id).is_none()).cloned();
        readers.strangers.extend(strangers);
        let (gone, listed) = (readers.strangers.len(), self.known.active().len());
        let trusted = self.runner.roster.trust(gone, listed + gone, listed);
        trusted.map_err(|shrank| OrphansError::Shrank(shrank.to_string()))
    }

    /// Those that were not found before by what preheat noted.
    async fn without_noted(
        &self,
        strays: Vec<(String, usize, String)>,
    ) -> Result<Vec<Orphan>, OrphansError> {
        let Some(Readers { templates, .. }) = &self.readers else { return Ok(Vec::new()) };
        let now = self.runner.clock.now();
        let mut manifests = BTreeSet::new();
        let mut found = Vec::new();
        for (key, place, id) in strays {
            let Some(of) = templates.get(place) else { continue };
            let noted = self.known.get(&id);
            if noted.is_some_and(|tenant| of.keys(Some(tenant), now).contains(&key)) {
                continue;
            }
            if !of.template.is_known() {
                manifests.insert(manifest_key(&of.job, Some(&id)));
            }
            let tenant = Some(TenantId::new(id));
            found.push(Orphan { key, job: Some(of.job.clone()), tenant });
        }
        let manifests: Vec<String> = manifests.into_iter().collect();
        let named = self.runner.ledger.names(&manifests).await?;
        let named: HashSet<String> = named.into_iter().flatten().collect();
        found.retain(|orphan| !named.contains(&orphan.key));
        Ok(found)
    }
}
