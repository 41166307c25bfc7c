//! Moves fences for data that may have changed: no run that read before that has the last word.

use std::collections::BTreeSet;
use std::time::Duration;

use super::retry::Refusal;
use super::runner::Runner;
use crate::domain::change::TouchedTenants;
use crate::domain::fence::{GLOBAL, fence_key};
use crate::domain::job::Scope;
use crate::domain::retry::backoff;
use crate::domain::share::{Share, Shares};
use crate::domain::tenant::TenantId;
use crate::observe::event;

/// How many fences one pipeline moves.
const AT_ONCE: usize = 1_000;
/// How many tenants' fences are collected; with more of them, all move.
const MAX_GATHERED: usize = 10_000;
/// The longest wait before another try: a change may be waiting for it.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Which fences to move.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fences {
    /// Those of all active tenants whose shares the worker holds, and the global fence if it holds a global job.
    All,
    /// The same for these shares.
    Of(Shares),
    /// These.
    Some {
        /// The global fence.
        global: bool,
        /// Those of these tenants.
        tenants: BTreeSet<TenantId>,
    },
}

impl Default for Fences {
    fn default() -> Self {
        Self::Some { global: false, tenants: BTreeSet::new() }
    }
}

impl Fences {
    /// Adds the fences of data that changed. `found` is how a trigger finds the tenants of a changed row; `None` if no job
    /// watches the table.
    pub(crate) fn add(&mut self, found: Option<&TouchedTenants>, tenants: Option<&[String]>) {
        let Self::Some { global, tenants: known } = self else { return };
        match (found, tenants) {
            (Some(TouchedTenants::Global), _) => *global = true,
            (Some(TouchedTenants::Column(_) | TouchedTenants::Sql(_)), None) => *self = Self::All,
            (Some(TouchedTenants::Column(_) | TouchedTenants::Sql(_)) | None, Some(more)) => {
                known.extend(more.iter().map(TenantId::new));
                if known.len() > MAX_GATHERED {
                    *self = Self::All;
                }
            }
            (None, None) => {}
        }
    }
}

impl Runner {
    /// Moves fences; it tries again for as long as the servers are away.
    pub(crate) async fn move_all(&self, fences: &Fences) {
        let mut tries = 0;
        while let Err(refusal) = self.try_to_move(fences).await {
            if tries == 0 {
                event::FencesUnmoved { message: &refusal.message }.emit(&self.metrics);
            }
            self.wait_to_retry(tries).await;
            tries = tries.saturating_add(1);
        }
    }

    /// Moves fences, if the servers are there.
    pub(crate) async fn try_to_move(&self, fences: &Fences) -> Result<(), Refusal> {
        let keys = match fences {
            Fences::All => self.fences_of(self.ownership.noticed()).await?,
            Fences::Of(shares) => self.fences_of(*shares).await?,
            Fences::Some { global, tenants } => {
                let tenants = tenants.iter().map(|tenant| fence_key(tenant.as_str()));
                global.then(|| GLOBAL.to_owned()).into_iter().chain(tenants).collect()
            }
        };
        for some in keys.chunks(AT_ONCE) {
            self.move_fences(some).await?;
        }
        Ok(())
    }

    /// The fences of all active tenants of these shares; the global fence too, if one of them has a global job.
    async fn fences_of(&self, shares: Shares) -> Result<Vec<String>, Refusal> {
        if shares.is_empty() {
            return Ok(Vec::new());
        }
        let list = self.source.tenants().await?;
        let own = list.iter().filter(|tenant| shares.has_tenant(tenant.id()));
        let tenants = own.map(|tenant| fence_key(tenant.id()));
        let jobs = self.jobs.get();
        let mut global = jobs.values().filter(|job| job.scope == Scope::Global);
        let has_global =
            shares == Shares::ALL || global.any(|job| shares.has(Share::of_job(&job.name)));
        Ok(has_global.then(|| GLOBAL.to_owned()).into_iter().chain(tenants).collect())
    }

    /// Waits before another try, after this many others.
    pub(crate) async fn wait_to_retry(&self, retries: u32) {
        let wait = backoff(retries, self.clock.random()).min(LONGEST_WAIT);
        self.clock.sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|number| number.to_string()).collect()
    }

    fn some(global: bool, tenants: std::ops::Range<usize>) -> Fences {
        let tenants = ids(tenants).into_iter().map(TenantId::new).collect();
        Fences::Some { global, tenants }
    }

    #[test]
    fn changes_move_the_fences_of_the_tenants_that_they_name() {
        let column = TouchedTenants::Column("tenant_id".to_owned());
        let mut fences = Fences::default();
        fences.add(Some(&column), Some(&ids(0..2)));
        fences.add(Some(&column), Some(&ids(1..3)));
        assert_eq!(fences, some(false, 0..3));
        fences.add(Some(&TouchedTenants::Global), None);
        assert_eq!(fences, some(true, 0..3));
        fences.add(None, Some(&ids(3..4)));
        fences.add(None, None);
        assert_eq!(fences, some(true, 0..4), "of an unknown table");
    }

    #[test]
    fn any_tenant_and_too_many_tenants_are_all() {
        let column = TouchedTenants::Column("tenant_id".to_owned());
        let any = [None].to_vec();
        let many = [ids(0..MAX_GATHERED), ids(MAX_GATHERED..MAX_GATHERED + 1)].map(Some).to_vec();
        for changes in [any, many] {
            let mut fences = Fences::default();
            for tenants in changes {
                fences.add(Some(&column), tenants.as_deref());
            }
            fences.add(Some(&column), Some(&ids(1..2)));
            assert_eq!(fences, Fences::All);
        }
    }
}
