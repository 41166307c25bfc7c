//! The census: the active tenants, and the departed ones that the registry still has, together.

use std::collections::BTreeSet;

use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::engine::ports::{CacheError, SourceError};
use crate::engine::registry::{Registered, Shrank};
use crate::engine::run::Runner;

/// Tenants that may have keys, by their ids.
#[derive(Debug, Default)]
pub(crate) struct Census {
    active: Index,
    /// Tenants that are not active, but are in the registry or named by the request.
    departed: Index,
    /// Why the list of the active tenants is not trusted.
    shrank: Option<Shrank>,
}

/// A list of tenants that is searched by id.
#[derive(Debug, Default)]
struct Index {
    list: Tenants,
    /// Positions in the order of the ids.
    sorted: Vec<u32>,
}

impl Census {
    /// All tenants. It only reads: it changes nothing in the registry.
    pub(crate) async fn all(runner: &Runner) -> Result<Self, CensusError> {
        let active = Index::new(runner.source.tenants().await?);
        let registered = runner.registry.known(runner.ledger.as_ref()).await?;
        let missing = registered.active.iter().filter(|tenant| active.get(tenant.id()).is_none());
        let (missing, known) = (missing.count(), registered.active.len());
        let shrank = runner.registry.trust(missing, known, active.list.len()).err();
        let departed = Index::new(departed(&registered, &active));
        Ok(Self { active, departed, shrank })
    }

    /// The active ones among these tenants.
    pub(crate) async fn among(
        runner: &Runner,
        ids: &BTreeSet<TenantId>,
    ) -> Result<Self, CensusError> {
        let mut census = Self::default();
        if !ids.is_empty() {
            let ids: Vec<TenantId> = ids.iter().cloned().collect();
            census.active = Index::new(runner.source.tenants_among(&ids).await?);
        }
        Ok(census)
    }

    /// Some of its tenants, as a list with all columns.
    pub(crate) fn list<'t>(&self, tenants: impl Iterator<Item = &'t Tenant<'t>>) -> Tenants {
        let all = [&self.active.list, &self.departed.list];
        let names: BTreeSet<&str> = all.into_iter().flat_map(Tenants::column_names).collect();
        let mut list = Tenants::with_columns(names.iter().copied());
        for tenant in tenants {
            list.push(tenant.id(), names.iter().map(|name| tenant.column(name)));
        }
        list
    }

    /// Why the census cannot tell which tenants have departed.
    pub(crate) fn shrank(&self) -> Option<&Shrank> {
        self.shrank.as_ref()
    }

    /// Adds tenants, of which only the ids are known, as departed ones.
    pub(crate) fn add(&mut self, ids: &BTreeSet<TenantId>) {
        let mut departed = self.departed.list.clone();
        for id in ids.iter().filter(|id| self.get(id.as_str()).is_none()) {
            departed.push(id.as_str(), []);
        }
        self.departed = Index::new(departed);
    }

    /// The tenant of that id.
    pub(crate) fn get(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id).or_else(|| self.departed.get(id))
    }

    /// The tenant of that id, if it is active.
    pub(crate) fn active_tenant(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id)
    }

    /// Whether the tenant is active.
    pub(crate) fn is_active(&self, id: &str) -> bool {
        self.active_tenant(id).is_some()
    }

    /// The tenants that have this text in a column.
    pub(crate) fn with_column<'a>(
        &'a self,
        column: &'a str,
        text: &'a str,
    ) -> impl Iterator<Item = Tenant<'a>> {
        self.iter().filter(move |tenant| tenant.column(column) == Some(text))
    }

    /// The active tenants.
    pub(crate) fn active(&self) -> &Tenants {
        &self.active.list
    }

    /// The departed tenants.
    pub(crate) fn departed(&self) -> &Tenants {
        &self.departed.list
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tenant<'_>> {
        self.active.list.iter().chain(self.departed.list.iter())
    }
}

/// The tenants that may have keys are unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CensusError {
    /// The active tenants could not be read.
    #[error(transparent)]
    Tenants(#[from] SourceError),
    /// The registry could not be read.
    #[error(transparent)]
    Registry(#[from] CacheError),
}

impl Index {
    fn new(list: Tenants) -> Self {
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

/// The tenants of the registry that are not active, whether or not they are marked as departed, as
/// one list.
fn departed(registered: &Registered, now: &Index) -> Tenants {
    let Registered { active, gone } = registered;
    let names: BTreeSet<&str> = active.column_names().chain(gone.column_names()).collect();
    let mut list = Tenants::with_columns(names.iter().copied());
    let all = active.iter().chain(gone.iter());
    for tenant in all.filter(|tenant| now.get(tenant.id()).is_none()) {
        list.push(tenant.id(), names.iter().map(|name| tenant.column(name)));
    }
    list.shrink();
    list
}
