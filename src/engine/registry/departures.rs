//! The tenants that left: tenant lists report them here, and the sweeping task takes them from
//! here.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::registration::{Departed, Remembered};
use crate::domain::share::Shares;
use crate::domain::tenant::Tenants;

/// After a sweep, tenants that were swept once before wait for this many times the sweep's
/// duration. Only the rare run with an older list needs a repeated sweep, so it may not become the
/// cache's main load.
const REST: u32 = 9;

/// What the tenant lists hand to the sweeping task.
#[derive(Default)]
pub(crate) struct Departures {
    state: Mutex<State>,
    /// Held during a sweep of some tenants, and by a list while it registers tenants.
    turn: tokio::sync::Mutex<()>,
    /// Wakes the task that sweeps.
    news: Notify,
}

#[derive(Default)]
struct State {
    remembered: Remembered,
    /// The departed tenants that this worker has never swept.
    unswept: HashSet<String>,
    /// Until when, on the monotonic clock, tenants that were swept before are not swept again.
    rests_until: Duration,
}

/// The tenants to sweep at one moment.
pub(crate) struct Due {
    pub(crate) ids: Vec<String>,
    /// How many of them this worker has never swept; they come first.
    pub(crate) newly: usize,
}

impl Departures {
    /// What the registry said after the last list.
    pub(crate) fn remembered(&self) -> Remembered {
        self.lock().remembered.clone()
    }

    /// Replaces the state after a list: the active tenants, those that left with this list, and
    /// those that had left before.
    pub(crate) fn set(&self, active: Arc<Tenants>, left: Vec<Departed>, before: Vec<Departed>) {
        let mut state = self.lock();
        state.unswept.extend(left.iter().map(|tenant| tenant.id.clone()));
        let departed: Vec<Departed> = left.into_iter().chain(before).collect();
        let ids: HashSet<&str> = departed.iter().map(|tenant| tenant.id.as_str()).collect();
        state.unswept.retain(|id| ids.contains(id.as_str()));
        state.remembered = Remembered { active, departed };
    }

    /// Wakes the sweeping task: the registry was compared with a list.
    pub(crate) fn wake(&self) {
        self.news.notify_one();
    }

    /// Waits for [`Self::wake`].
    pub(crate) async fn wait(&self) {
        self.news.notified().await;
    }

    /// While the caller holds this, no tenant is swept and none comes back.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The tenants of these shares to sweep at this monotonic moment.
    pub(crate) fn due(&self, own: Shares, now: Duration) -> Due {
        let state = self.lock();
        let departed = state.remembered.departed.iter();
        let ids = departed.map(|tenant| &tenant.id).filter(|id| own.has_tenant(id)).cloned();
        let (mut ids, again): (Vec<String>, Vec<String>) =
            ids.partition(|id| state.unswept.contains(id));
        let newly = ids.len();
        if now >= state.rests_until {
            ids.extend(again);
        }
        Due { ids, newly }
    }

    /// The active tenants, and which of the given tenants are still departed.
    pub(crate) fn still(&self, ids: &[String]) -> (Arc<Tenants>, Vec<Departed>) {
        let state = self.lock();
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let Remembered { active, departed } = &state.remembered;
        let departed = departed.iter().filter(|tenant| ids.contains(tenant.id.as_str()));
        (Arc::clone(active), departed.cloned().collect())
    }

    /// Records that all keys of these tenants were removed.
    pub(crate) fn were_swept(&self, tenants: &[Departed]) {
        let mut state = self.lock();
        for tenant in tenants {
            state.unswept.remove(&tenant.id);
        }
    }

    /// Records that these tenants are no longer in the registry.
    pub(crate) fn remove(&self, ids: &[String]) {
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut state = self.lock();
        state.remembered.departed.retain(|tenant| !ids.contains(tenant.id.as_str()));
    }

    /// Records that a sweep of this duration ended at this monotonic moment.
    pub(crate) fn rest(&self, now: Duration, took: Duration) {
        self.lock().rests_until = now + took * REST;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
