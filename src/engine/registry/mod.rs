//! Which tenants may have keys, and tenant lists that are not trusted.
//!
//! Every complete tenant list is compared with the registry, a hash in the cache that names the tenants that
//! may have keys. A tenant that the list lacks is marked with the moment, and `sweep.rs` removes its keys
//! until no run can be under way that still has an older list. The registry outlives restarts; where the
//! cache lost it, it is written anew, with the tenants that the worker remembers.
//!
//! Too many missing at once look like a wrong database or a bad deploy. Nothing is marked or removed
//! then, and no run goes by that list.

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
use self::registration::Changes;
pub(crate) use self::registration::Departed;
pub use self::registration::Registered;
use crate::domain::fence::{fence_key, start_number};
use crate::domain::job::{Jobs, Share};
use crate::domain::tenant::Tenants;
use crate::engine::ports::Ports;
use crate::engine::ports::{Book, CacheError, Ledger};
use crate::observe::event;

/// After this long the registry is looked at even if no tenant came or left: it may have been evicted, the
/// cache may be another one, or another worker may have changed it.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_mins(10);

/// How much longer than the longest run a tenant is swept: a last write may still be on its way, and
/// another worker's clock may differ.
const MARGIN: TimeDelta = TimeDelta::minutes(1);

/// Compares tenant lists with the tenants that may have keys.
pub struct Registry {
    max_shrink: Share,
    /// Lists take turns: held over awaits, since one list is compared after the other.
    memory: Mutex<Memory>,
    /// The tenants that left, for the task that sweeps them.
    pub(crate) departures: Departures,
}

/// What is known of the last list, so that one that is the same asks nothing of the cache.
#[derive(Default)]
struct Memory {
    /// The newest list that had its turn.
    newest: u64,
    /// The last look at the registry; none where it failed or was cut off.
    seen: Option<Seen>,
    /// That the last list shrank, which was told: each run by the same list fails for it in short.
    told: Option<Shrank>,
}

#[derive(Clone, Copy)]
struct Seen {
    digest: u64,
    at: Duration,
    /// How often the cache server had been restarted by then.
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
    /// The same in short, for each of the runs that could not go by the list.
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
    /// Lists that were begun later have larger numbers.
    pub(crate) number: u64,
    /// The jobs at that moment.
    pub(crate) jobs: &'a Jobs,
    /// How often the cache server had been restarted.
    pub(crate) restarts: u64,
}

/// Why no run may go by a tenant list.
#[derive(Clone, Debug)]
pub(crate) enum Distrust {
    /// It lacks too many.
    Shrank(Shrank),
    /// Its new tenants could not be registered: keys that are written now would be found by nobody once
    /// their tenant is gone.
    Unregistered(CacheError),
}

impl Registry {
    /// One that trusts a list which lacks up to this share of the known tenants.
    pub fn new(max_shrink: Share) -> Self {
        Self { max_shrink, memory: Mutex::default(), departures: Departures::default() }
    }

    /// All tenants that may have keys, with their columns.
    pub async fn known(&self, ledger: &dyn Ledger) -> Result<Registered, CacheError> {
        Ok(Registered::read(ledger.notes(Book::Tenants).await?))
    }

    /// The entries of all tenants of a list, as they are written where the cache has none yet.
    pub(crate) fn first_entries(list: &Tenants) -> Vec<(String, String)> {
        Changes::between(HashMap::new(), list).added
    }

    /// Whether a list may say that `gone` of the `known` tenants are so.
    pub(crate) fn trust(&self, gone: usize, known: usize, listed: usize) -> Result<(), Shrank> {
        let max_shrink = self.max_shrink;
        if max_shrink.covers(gone, known) {
            return Ok(());
        }
        Err(Shrank { gone, known, listed, max_shrink })
    }

    /// Takes a complete tenant list, and wakes the task that sweeps the tenants that left. One that was
    /// begun before another that had its turn already says nothing new about who left.
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
        let registry = ledger.notes(Book::Tenants).await.map_err(unregistered)?;
        let mut registry: HashMap<String, String> = registry.into_iter().collect();
        let now = ports.clock.now();
        let lacking = self.departures.remembered().lacking(&registry, now - grace(jobs));
        if !lacking.is_empty() {
            ledger.note(Book::Tenants, &lacking).await.map_err(unregistered)?;
            registry.extend(lacking);
        }
        let Changes { known, mut added, back, left, departed } = Changes::between(registry, list);
        self.trust(left.len(), known, list.len()).map_err(Distrust::Shrank)?;
        // What a tenant that came back, or has other columns now, gets from here on is not swept.
        let turn = if added.is_empty() { None } else { Some(self.departures.turn().await) };
        // A worker elsewhere that sweeps it at this moment may remove what is written from here on.
        let fences: Vec<String> = back.iter().map(|id| fence_key(id)).collect();
        if !fences.is_empty() {
            let number = start_number(ports.clock.random());
            ledger.move_fences(&fences, number).await.map_err(unregistered)?;
        }
        // Marked before it is swept: another worker may go on with what this one does not end.
        added.extend(left.iter().map(|tenant| tenant.mark(now)));
        ledger.note(Book::Tenants, &added).await.map_err(unregistered)?;
        drop(added);
        let left: Vec<Departed> = left.iter().map(|tenant| tenant.since(now)).collect();
        self.departures.set(Arc::clone(list), left, departed);
        drop(turn);
        Ok(())
    }
}

/// How long after its tenant left a run with an older list may still write.
pub(crate) fn grace(jobs: &Jobs) -> TimeDelta {
    let longest = jobs.values().map(|job| job.timeout).max().unwrap_or_default();
    TimeDelta::from_std(longest).unwrap_or(TimeDelta::MAX / 2) + MARGIN
}

impl Seen {
    /// Whether a list with this digest needs no look at the registry.
    fn is_enough(self, digest: u64, now: Duration) -> bool {
        self.digest == digest && now.saturating_sub(self.at) < LOOK_AGAIN
    }
}

/// A number that two lists hardly have in common. The order of the tenants does not count: a query may
/// leave it open.
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
