//! The tenants that may have keys: those that are active, and those that preheat noted while they
//! were.

use std::collections::BTreeSet;

use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::engine::port::{CacheError, SourceError};
use crate::engine::roster::{Noted, Shrank};
use crate::engine::run::Runner;

/// Tenants by their ids.
#[derive(Debug, Default)]
pub(crate) struct Known {
    active: Index,
    /// Tenants that are not active, as far as somebody named them or preheat noted them.
    gone: Index,
    /// Why the list of those that are active is not to be trusted.
    shrank: Option<Shrank>,
}

/// A list in which ids are found.
#[derive(Debug, Default)]
struct Index {
    list: Tenants,
    /// Positions in the order of the ids.
    sorted: Vec<u32>,
}

impl Known {
    /// All tenants. The roster is asked, and nothing is told to it: this only reads.
    pub(crate) async fn all(runner: &Runner) -> Result<Self, KnownError> {
        let active = Index::new(runner.source.tenants().await?);
        let noted = runner.roster.known(runner.ledger.as_ref()).await?;
        let missing = noted.active.iter().filter(|tenant| active.get(tenant.id()).is_none());
        let (gone, known) = (missing.count(), noted.active.len());
        let shrank = runner.roster.trust(gone, known, active.list.len()).err();
        let gone = Index::new(of_noted(&noted, |id| active.get(id).is_none()));
        Ok(Self { active, gone, shrank })
    }

    /// These tenants only; one that is not active has the columns that were noted, if `noted_columns`
    /// says that they are of use.
    pub(crate) async fn some(
        runner: &Runner,
        ids: &BTreeSet<TenantId>,
        noted_columns: bool,
    ) -> Result<Self, KnownError> {
        let mut known = Self::default();
        if ids.is_empty() {
            return Ok(known);
        }
        let wanted: Vec<TenantId> = ids.iter().cloned().collect();
        known.active = Index::new(runner.source.tenants_among(&wanted).await?);
        if noted_columns && ids.iter().any(|id| !known.is_active(id.as_str())) {
            let noted = runner.roster.known(runner.ledger.as_ref()).await?;
            let wanted = |id: &str| !known.is_active(id) && ids.contains(&TenantId::new(id));
            known.gone = Index::new(of_noted(&noted, wanted));
        }
        Ok(known)
    }

    /// Why it may not be said who is gone.
    pub(crate) fn shrank(&self) -> Option<&Shrank> {
        self.shrank.as_ref()
    }

    /// Takes in tenants of which nothing is known but their ids.
    pub(crate) fn add(&mut self, ids: &BTreeSet<TenantId>) {
        let mut gone = self.gone.list.clone();
        for id in ids.iter().filter(|id| self.get(id.as_str()).is_none()) {
            gone.push(id.as_str(), []);
        }
        self.gone = Index::new(gone);
    }

    /// The tenant of that id.
    pub(crate) fn get(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id).or_else(|| self.gone.get(id))
    }

    /// The tenant of that id, if it is active.
    pub(crate) fn active_tenant(&self, id: &str) -> Option<Tenant<'_>> {
        self.active.get(id)
    }

    /// Whether the tenant is active.
    pub(crate) fn is_active(&self, id: &str) -> bool {
        self.active_tenant(id).is_some()
    }

    /// Those that have this text in a column.
    pub(crate) fn with_column<'a>(
        &'a self,
        column: &'a str,
        text: &'a str,
    ) -> impl Iterator<Item = Tenant<'a>> {
        self.iter().filter(move |tenant| tenant.column(column) == Some(text))
    }

    /// Those that are active.
    pub(crate) fn active(&self) -> &Tenants {
        &self.active.list
    }

    /// Those that are not.
    pub(crate) fn gone(&self) -> &Tenants {
        &self.gone.list
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Tenant<'_>> {
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

/// The noted tenants that are wanted, gone or not, as one list.
fn of_noted(noted: &Noted, wanted: impl Fn(&str) -> bool) -> Tenants {
    let Noted { active, gone } = noted;
    let names: BTreeSet<&str> = active.column_names().chain(gone.column_names()).collect();
    let mut list = Tenants::with_columns(names.iter().copied());
    for tenant in active.iter().chain(gone.iter()).filter(|tenant| wanted(tenant.id())) {
        list.push(tenant.id(), names.iter().map(|name| tenant.column(name)));
    }
    list.shrink();
    list
}
