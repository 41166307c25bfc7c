//! Which keys with a data column there are, were, and are no more: the manifests of a round.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::doubt::Recalled;
use super::refused;
use crate::domain::entry::{Entries, Removal, life_of};
use crate::domain::fence::PROBATION;
use crate::domain::job::Scope;
use crate::domain::manifest::{Named, is_fresh, life_of_names, manifest_key, vanished};
use crate::domain::report::Report;
use crate::domain::tenant::Batch;
use crate::engine::batch::Work;
use crate::engine::port::{CacheError, Listing};
use crate::engine::tries::{Refusal, Tries};

/// What is under a key that moves and was written up to so long after a tenant named it counts as that
/// tenant's own; what was written later, somebody else wrote.
const NAMED_BEFORE: Duration = Duration::from_secs(30);

/// A round that took so long since it named its keys names them once more. It is half of the other:
/// what one run wrote at the end of its time another may prolong at the end of its own.
const SLOW: Duration = Duration::from_secs(15);
const _: () = assert!(SLOW.as_secs() * 2 <= NAMED_BEFORE.as_secs());

/// Keys that are looked at at once: their values come with the answer.
const LOOK: usize = 100;

/// A slot's manifest.
pub(super) struct List {
    manifest: String,
    /// The listed keys that there are now.
    pub(super) present: Vec<String>,
    /// Those that a round before wrote and that nothing names any more.
    unnamed: Vec<String>,
    /// Those that it names and that have no data any more.
    vanished: Vec<Named>,
    /// Up to when its names are of keys that cannot exist any more; none where it has none of those.
    outdated: Option<DateTime<Utc>>,
    /// Whether it names all of these, and will for long enough.
    is_fresh: bool,
}

impl Work {
    fn manifest_keys(&self, part: &Batch) -> Vec<String> {
        let job = &self.order.job;
        match job.scope {
            Scope::Tenants => {
                part.tenants().map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
            }
            Scope::Fleet => vec![manifest_key(&job.name, None)],
        }
    }

    /// The keys that the manifests of some tenants name.
    pub(super) async fn named(&self, part: &Batch) -> Result<Vec<Vec<Named>>, Refusal> {
        if !self.order.job.has_listed_keys() {
            return Ok(Vec::new());
        }
        Ok(self.runner.ledger.manifests(&self.manifest_keys(part)).await?)
    }

    /// Names up to this moment are of keys that have expired.
    fn outdated(&self) -> DateTime<Utc> {
        self.runner.clock.now() - life_of_names(&self.order.job)
    }

    /// What there is now, and what has vanished: a key that could not be made this time has not.
    pub(super) fn lists(
        &self,
        open: &Batch,
        named: Vec<Recalled>,
        found: &Entries<'_>,
    ) -> Vec<List> {
        if named.is_empty() {
            return Vec::new();
        }
        let mut present: Vec<Vec<String>> = vec![Vec::new(); named.len()];
        for entry in found.writes.iter().filter(|entry| entry.is_listed) {
            if let Some(keys) = present.get_mut(entry.slot) {
                keys.push(entry.key.clone());
            }
        }
        let (failed, outdated): (HashSet<&str>, _) =
            (found.failed_keys().collect(), self.outdated());
        let (job, now) = (&self.order.job, self.runner.clock.now());
        let lists = self.manifest_keys(open).into_iter().zip(named).zip(present);
        let lists = lists.map(|((manifest, recalled), present)| {
            let Recalled { named, unnamed } = recalled;
            let is_outdated = named.iter().any(|name| name.named_at < outdated);
            let is_young = |name: &&Named| is_fresh(job, name.named_at, now);
            let young = named.iter().filter(is_young).filter(|name| !failed.contains(&*name.key));
            let young = young.count();
            let there = present.iter().map(String::as_str).chain(failed.iter().copied());
            let vanished = vanished(named, there);
            let young_and_there = young - vanished.iter().filter(is_young).count();
            let is_fresh = young_and_there == present.len() && unnamed.is_empty();
            let outdated = is_outdated.then_some(outdated);
            List { manifest, present, unnamed, vanished, outdated, is_fresh }
        });
        lists.collect()
    }

    /// Names the keys that will be written, so that none is ever in the cache unnamed, where they are
    /// not named for long enough already; answers when.
    pub(super) async fn enlist(
        &self,
        open: &Batch,
        lists: &[List],
        report: &mut Report,
    ) -> Result<DateTime<Utc>, Refusal> {
        let mut tries = Tries::new(&self.runner, &self.order, open.len());
        loop {
            let refusal = match self.give_names(lists).await {
                Ok(named_at) => return Ok(named_at),
                Err(error) => Refusal::from(error),
            };
            if !tries.again(&refusal, report).await {
                return Err(refusal);
            }
        }
    }

    async fn give_names(&self, lists: &[List]) -> Result<DateTime<Utc>, CacheError> {
        self.give_names_of(lists.iter().filter(|list| !list.is_fresh)).await
    }

    /// Gives those names as well that were there for long enough.
    pub(super) async fn give_all_names(&self, lists: &[List]) -> Result<DateTime<Utc>, CacheError> {
        self.give_names_of(lists.iter()).await
    }

    async fn give_names_of(
        &self,
        lists: impl Iterator<Item = &List>,
    ) -> Result<DateTime<Utc>, CacheError> {
        let now = self.runner.clock.now();
        let listings = lists.map(List::listing).filter(|listing| !listing.keys.is_empty());
        let listings: Vec<Listing> = listings.collect();
        if !listings.is_empty() {
            let life = life_of_names(&self.order.job);
            self.runner.ledger.enlist(&listings, now, life).await?;
        }
        Ok(now)
    }

    /// Names keys that move once more where their round took long. Says whether it did: those that are
    /// there still then have to be named by another run, whether this works or not.
    pub(super) async fn name_late(&self, lists: &[List], named_at: DateTime<Utc>) -> bool {
        let job = &self.order.job;
        let is_late = job.has_keys_that_move() && self.runner.clock.now() > named_at + SLOW;
        if is_late {
            drop(self.give_all_names(lists).await);
        }
        is_late
    }

    /// Takes the names out that are of keys which cannot exist any more. It comes after they were
    /// removed all the same: a job whose `ttl` was made shorter may have left some that do.
    pub(super) async fn delist(&self, lists: &[List]) {
        let Some(outdated) = lists.iter().filter_map(|list| list.outdated).min() else { return };
        let manifests = lists.iter().filter(|list| list.outdated.is_some());
        let manifests: Vec<String> = manifests.map(|list| list.manifest.clone()).collect();
        // Names too many do no harm, and the next run tries again.
        drop(self.runner.ledger.delist(&manifests, outdated).await);
    }

    /// The keys to remove since their data is gone. What is another tenant's, or another job's, stays.
    ///
    /// A key without its tenant in it may have gone to another tenant (a pet that moved). It stays
    /// where it was `written` in this round, or later than this tenant last named it.
    pub(super) async fn vanished(
        &self,
        open: &Batch,
        (lists, written): (&[List], &HashSet<&str>),
        tallies: &mut [Report],
    ) -> Vec<Removal> {
        let (job, layout) = (&self.order.job, self.checks.layout());
        let of_slots = lists.iter().enumerate();
        let gone = of_slots.flat_map(|(slot, list)| {
            let tenant = open.tenant(slot).map(|tenant| tenant.id());
            let is_own = move |name: &&Named| !layout.is_anothers(job, tenant, &name.key);
            let removal = move |name: &Named| Removal { key: name.key.clone(), slot };
            list.vanished.iter().filter(is_own).map(move |name| (removal(name), name.named_at))
        });
        if !self.order.job.has_keys_that_move() {
            return gone.map(|(removal, _)| removal).collect();
        }
        let gone = gone.filter(|(removal, _)| !written.contains(removal.key.as_str()));
        let gone: Vec<(Removal, DateTime<Utc>)> = gone.collect();
        let mut vanished = Vec::new();
        for some in gone.chunks(LOOK) {
            match self.left_behind(some).await {
                Ok(removals) => vanished.extend(removals),
                Err(error) => {
                    for (Removal { key, slot }, _) in some {
                        if let Some(tally) = tallies.get_mut(*slot) {
                            tally.fail(refused(open, *slot, key, &error));
                        }
                    }
                }
            }
        }
        vanished
    }

    /// Those keys that nobody wrote after the tenant that named them at that moment.
    async fn left_behind(
        &self,
        gone: &[(Removal, DateTime<Utc>)],
    ) -> Result<Vec<Removal>, CacheError> {
        let keys: Vec<String> = gone.iter().map(|(removal, _)| removal.key.clone()).collect();
        let found = self.runner.cache.look(&keys).await?;
        let now = self.runner.clock.now();
        let left_behind = gone.iter().zip(found).filter(|((removal, named_at), found)| {
            let Some(found) = found else { return false };
            let life = life_of(&self.order.job, &removal.key);
            let age = found.ttl.and_then(|left| age(life, left));
            age.is_none_or(|age| now - age <= *named_at + NAMED_BEFORE)
        });
        Ok(left_behind.map(|((removal, _), _)| removal.clone()).collect())
    }
}

/// How long ago a value was written that would live for `life` and has so much left. What has little
/// left may be on probation, and counts as written then. There is no telling of what lives for longer:
/// it was written while the job had another `ttl`, or by somebody else.
fn age(life: Duration, left: Duration) -> Option<Duration> {
    let life = if left <= PROBATION { life.min(PROBATION) } else { life };
    life.checked_sub(left)
}

impl List {
    fn listing(&self) -> Listing {
        Listing { manifest: self.manifest.clone(), keys: self.names().cloned().collect() }
    }

    /// What it has to name.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.present.iter().chain(&self.unnamed)
    }
}
