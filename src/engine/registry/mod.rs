//! Which tenants may have keys, and which tenant lists preheat does not trust.
//!
//! Every complete tenant list is compared with the registry, a hash in the cache that names the tenants that
//! may have keys. A tenant that is missing from the list is marked as departed at that moment, and `sweep.rs`
//! removes its keys again and again until no run that still has an older list can be under way. The registry
//! survives restarts of the worker; if the cache loses it, the worker writes it again with the tenants that
//! it remembers.
//!
//! Too many missing tenants at once look like a wrong database or a bad deploy. Then no tenant is marked, no
//! key is removed, and no run uses that list.

mod departures;
mod registration;

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use tokio::sync::Mutex;

pub(crate) use self::departures::{Departures, Due};
pub(crate) use self::registration::Departed;
pub use self::registration::Registered;
use self::registration::RegistryDiff;
use crate::domain::fence::fence_key;
use crate::domain::job::{Jobs, Share};
use crate::domain::tenant::Tenants;
use crate::engine::ports::{CacheError, Ledger, Ports};
use crate::observe::event;

/// After this long the registry is read again even if no tenant came or left: the cache may have evicted it
/// or be another server, or another worker may have changed it.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// How much longer than the longest run's timeout a tenant is swept: a last write may still be in flight, and
/// another worker's clock may differ.
const MARGIN: TimeDelta = TimeDelta::minutes(1);

/// Compares tenant lists with the tenants that may have keys.
pub struct Registry {
    max_shrink: Share,
    /// Lists take turns: the lock is held over awaits, since lists are compared one after the other.
    memory: Mutex<Memory>,
    /// The tenants that left, for the task that sweeps them.
    pub(crate) departures: Departures,
}

/// What is known of the last list, so that an equal list needs no question to the cache.
#[derive(Default)]
struct Memory {
    /// The number of the newest list that was compared.
    newest: u64,
    /// The last successful comparison with the registry; `None` if the last one failed or was cancelled.
    seen: Option<Seen>,
    /// The last shrunken list, which was logged in full once: later runs that get the same list fail with the
    /// short message.
    told: Option<Shrank>,
}

#[derive(Clone, Copy)]
struct Seen {
    digest: u64,
    at: Duration,
    /// How often the cache server had been restarted at that time.
    restarts: u64,
}

/// The tenant list lacks more of the known tenants than it may.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error(
    "{gone} of {known} tenants are missing from the tenant list, which has {listed}: more than \
     `tenants.max_shrink` ({max_shrink}) allows; nothing is warmed and nothing removed, as it may be \
     the wrong database or a bad deploy; hint: if the list is right, run `preheat warm` once with \
     `PREHEAT_TENANTS__MAX_SHRINK=100%`"
)]
pub(crate) struct Shrank {
    gone: usize,
    known: usize,
    listed: usize,
    max_shrink: Share,
}

impl Shrank {
    /// The short message, for each of the runs that could not use the list.
    pub(crate) fn in_short(&self) -> String {
        let Self { gone, known, listed: _, max_shrink } = self;
        format!(
            "{gone} of {known} tenants are missing from the tenant list, more than \
             `tenants.max_shrink` ({max_shrink}) allows: nothing is warmed and nothing removed"
        )
    }
}

/// A complete tenant list.
pub(crate) struct ListRead<'a> {
    pub(crate) list: &'a Arc<Tenants>,
    /// The sequence number of the reading: a list whose reading began later has a larger one.
    pub(crate) number: u64,
    /// The jobs at that moment.
    pub(crate) jobs: &'a Jobs,
    /// How often the cache server had been restarted.
    pub(crate) restarts: u64,
}

/// Why no run may use a tenant list.
#[derive(Clone, Debug)]
pub(crate) enum Distrust {
    /// It lacks too many.
    Shrank(Shrank),
    /// Its new tenants could not be registered. Keys that were written now could not be found once their
    /// tenant has left.
    Unregistered(CacheError),
}

impl Registry {
    /// A registry that trusts a list in which up to this share of the known tenants is missing.
    pub fn new(max_shrink: Share) -> Self {
        Self { max_shrink, memory: Mutex::default(), departures: Departures::default() }
    }

    /// All tenants that may have keys, with their columns.
    pub async fn known(&self, ledger: &dyn Ledger) -> Result<Registered, CacheError> {
        Ok(Registered::read(ledger.registry().await?))
    }

    /// The registry's entries for all tenants of a list, as they are written to a cache that has none yet.
    pub(crate) fn first_entries(list: &Tenants) -> Vec<(String, String)> {
        RegistryDiff::between(HashMap::new(), list).added
    }

    /// Whether `gone` of the `known` tenants may be missing from a list.
    pub(crate) fn trust(&self, gone: usize, known: usize, listed: usize) -> Result<(), Shrank> {
        let max_shrink = self.max_shrink;
        if max_shrink.covers(gone, known) {
            return Ok(());
        }
        Err(Shrank { gone, known, listed, max_shrink })
    }

    /// Compares a complete tenant list with the registry, and wakes the task that sweeps departed tenants. A
    /// list whose reading began before that of a list already compared changes nothing.
    pub(crate) async fn take(&self, ports: &Ports, read: ListRead<'_>) -> Result<(), Distrust> {
        let ListRead { list, number, jobs, restarts } = read;
        let mut memory = self.memory.lock().await;
        if number < memory.newest {
            return Ok(());
        }
        memory.newest = number;
        let (digest, now) = (digest(list), ports.clock.monotonic());
        let may_be_there = memory.seen.filter(|seen| seen.restarts == restarts);
        if may_be_there.is_some_and(|seen| seen.is_enough(digest, now)) {
            self.departures.wake();
            return Ok(());
        }
        memory.seen = None;
        let compared = self.compare(ports, list, jobs).await;
        let shrank =
            if let Err(Distrust::Shrank(shrank)) = &compared { Some(shrank) } else { None };
        if let Some(shrank) = shrank
            && memory.told.as_ref() != Some(shrank)
        {
            event::TenantsShrank { message: &shrank.to_string() }.emit(&ports.metrics);
        }
        memory.told = shrank.cloned();
        compared?;
        memory.seen = Some(Seen { digest, at: now, restarts });
        self.departures.wake();
        Ok(())
    }

    /// Compares a list with the registry, and brings the registry up to date.
    async fn compare(
        &self,
        ports: &Ports,
        list: &Arc<Tenants>,
        jobs: &Jobs,
    ) -> Result<(), Distrust> {
        let ledger = ports.ledger.as_ref();
        let unregistered = Distrust::Unregistered;
        let registry = ledger.registry().await.map_err(unregistered)?;
        let mut registry: HashMap<String, String> = registry.into_iter().collect();
        let now = ports.clock.now();
        let lacking = self.departures.remembered().lacking(&registry, now - grace(jobs));
        if !lacking.is_empty() {
            ledger.register(&lacking).await.map_err(unregistered)?;
            registry.extend(lacking);
        }
        let RegistryDiff { known, mut added, back, left, departed } =
            RegistryDiff::between(registry, list);
        self.trust(left.len(), known, list.len()).map_err(Distrust::Shrank)?;
        // New, returning and changed tenants are registered while no sweep runs, so that no sweep removes the
        // keys that they get from here on.
        let turn = if added.is_empty() { None } else { Some(self.departures.turn().await) };
        // A sweep of another worker that is under way may remove keys that are written from here on: moving
        // the fence makes the run that writes them notice.
        let fences: Vec<String> = back.iter().map(|id| fence_key(id)).collect();
        if !fences.is_empty() {
            ports.move_fences(&fences).await.map_err(unregistered)?;
        }
        // Marked before the sweep, so that another worker can continue the sweep if this one does not finish
        // it.
        added.extend(left.iter().map(|tenant| tenant.mark(now)));
        ledger.register(&added).await.map_err(unregistered)?;
        drop(added);
        let left: Vec<Departed> = left.iter().map(|tenant| tenant.since(now)).collect();
        self.departures.set(Arc::clone(list), left, departed);
        drop(turn);
        Ok(())
    }
}

/// How long after a tenant left a run with an older list may still write its keys.
pub(crate) fn grace(jobs: &Jobs) -> TimeDelta {
    let longest = jobs.values().map(|job| job.timeout).max().unwrap_or_default();
    TimeDelta::from_std(longest).unwrap_or(TimeDelta::MAX / 2) + MARGIN
}

impl Seen {
    /// Whether this comparison is recent enough for a list with this digest.
    fn is_enough(self, digest: u64, now: Duration) -> bool {
        self.digest == digest && now.saturating_sub(self.at) < LOOK_AGAIN
    }
}

/// A hash of a list, in which two different lists hardly agree. It ignores the order of the tenants, which a
/// query may leave open.
fn digest(list: &Tenants) -> u64 {
    let names: Vec<&str> = list.column_names().collect();
    let of_one = |hash: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        hash(&mut hasher);
        hasher.finish()
    };
    let tenants = list.iter().map(|tenant| {
        of_one(&|hasher| {
            tenant.id().hash(hasher);
            for name in &names {
                tenant.column(name).hash(hasher);
            }
        })
    });
    let sum = tenants.fold(0, u64::wrapping_add);
    of_one(&|hasher| (sum, list.len(), &names).hash(hasher))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tenants: &[(&str, Option<&str>)]) -> Tenants {
        let mut list = Tenants::with_columns(["plan"]);
        for (id, plan) in tenants {
            list.push(id, [*plan]);
        }
        list
    }

    #[test]
    fn a_lists_digest_depends_on_all_of_it_but_its_order() {
        let of = |tenants: &[_]| digest(&list(tenants));
        let one = of(&[("a", Some("free")), ("b", None)]);
        assert_eq!(one, of(&[("b", None), ("a", Some("free"))]));
        for other in [
            of(&[("a", Some("free"))]),
            of(&[("a", Some("paid")), ("b", None)]),
            of(&[("a", None), ("b", Some("free"))]),
            of(&[("a", Some("free")), ("b", None), ("b", None)]),
            of(&[("ab", Some("free")), ("", None)]),
            of(&[]),
        ] {
            assert_ne!(one, other);
        }
    }
}
