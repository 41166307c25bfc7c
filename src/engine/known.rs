//! The tenants that may have keys: those that are active, and those that preheat noted while they
//! were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::port::{Book, CacheError, Ledger, SourceError};
use super::run::Runner;
use crate::domain::tenant::{Tenant, TenantId, Tenants};

/// Tenants by their ids.
#[derive(Debug, Default)]
pub(super) struct Known {
    active: Index,
    /// Tenants that are not active, as far as somebody named them or preheat noted them.
    gone: Index,
}

/// A list in which ids are found.
#[derive(Debug, Default)]
struct Index {
    list: Arc<Tenants>,
    /// Positions in the order of the ids.
    sorted: Vec<u32>,
}

impl Known {
    /// All tenants.
    pub(super) async fn all(runner: &Arc<Runner>) -> Result<Self, KnownError> {
        let active = Index::new(runner.active_tenants().await?);
        let gone = noted(runner.ledger.as_ref(), |id| active.get(id).is_none()).await?;
        Ok(Self { active, gone: Index::new(Arc::new(gone)) })
    }

    /// These tenants only; one that is not active has the columns that were noted, if `noted_columns`
    /// says that they are of use.
    pub(super) async fn some(
        runner: &Arc<Runner>,
        ids: &BTreeSet<TenantId>,
        noted_columns: bool,
    ) -> Result<Self, KnownError> {
        let mut known = Self::default();
        if ids.is_empty() {
            return Ok(known);
        }
        let wanted: Vec<TenantId> = ids.iter().cloned().collect();
        let active = runner.source.tenants_among(&wanted).await;
        runner.note_query(active.as_ref().err());
        known.active = Index::new(Arc::new(active?));
        if noted_columns && ids.iter().any(|id| !known.is_active(id.as_str())) {
            let wanted = |id: &str| !known.is_active(id) && ids.contains(&TenantId::new(id));
            known.gone = Index::new(Arc::new(noted(runner.ledger.as_ref(), wanted).await?));
        }
        Ok(known)
    }

    /// Takes in tenants of which nothing is known but their ids.
    pub(super) fn add(&mut self, ids: &BTreeSet<TenantId>) {
        let mut gone = Tenants::clone(&self.gone.list);
        for id in ids.iter().filter(|id| self.get(id.as_str()).is_none()) {
            gone.push(id.as_str(), []);
        }
        self.gone = Index::new(Arc::new(gone));
    }

    /// The tenant of that id.
    pub(super) fn get(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id).or_else(|| self.gone.get(id))
    }

    /// The tenant of that id, if it is active.
    pub(super) fn active_tenant(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id)
    }

    /// Whether the tenant is active.
    pub(super) fn is_active(&self, id: &str) -> bool {
        self.active_tenant(id).is_some()
    }

    /// Those that are active.
    pub(super) fn active(&self) -> &Arc<Tenants> {
        &self.active.list
    }

    /// Those that are not.
    pub(super) fn gone(&self) -> &Arc<Tenants> {
        &self.gone.list
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = Tenant<'_>> {
        self.active.list.iter().chain(self.gone.list.iter())
    }
}

/// Who has keys is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KnownError {
    /// The active tenants could not be read.
    #[error(transparent)]
    Tenants(#[from] SourceError),
    /// What preheat noted could not be.
    #[error(transparent)]
    Notes(#[from] CacheError),
}

impl Index {
    fn new(list: Arc<Tenants>) -> Self {
        let id = |position: &u32| list.get(*position as usize).map(|tenant| tenant.id());
        let mut sorted: Vec<u32> = list.iter().zip(0..).map(|(_, position)| position).collect();
        sorted.sort_unstable_by(|a, b| id(a).cmp(&id(b)));
        Self { list, sorted }
    }

    fn get(&self, id: &str) -> Option<Tenant<'_>> {
        let tenant = |position: &u32| self.list.get(*position as usize);
        let found = self
            .sorted
            .binary_search_by(|position| tenant(position).map(|tenant| tenant.id()).cmp(&Some(id)));
        found.ok().and_then(|index| self.sorted.get(index)).and_then(tenant)
    }
}

/// The noted tenants that are wanted.
async fn noted(ledger: &dyn Ledger, wanted: impl Fn(&str) -> bool) -> Result<Tenants, CacheError> {
    let book = ledger.notes(Book::Tenants).await?;
    let noted: Vec<(String, BTreeMap<String, Option<String>>)> = book
        .into_iter()
        .filter(|(id, _)| wanted(id))
        // A note that a later version wrote otherwise is as good as one without columns.
        .map(|(id, text)| (id, serde_json::from_str(&text).unwrap_or_default()))
        .collect();
    let names: BTreeSet<&String> = noted.iter().flat_map(|(_, columns)| columns.keys()).collect();
    let mut tenants = Tenants::with_columns(names.iter().map(|name| name.as_str()));
    for (id, columns) in &noted {
        tenants.push(id, names.iter().map(|name| columns.get(*name)?.as_deref()));
    }
    tenants.shrink();
    Ok(tenants)
}
