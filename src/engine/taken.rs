//! Keys that were removed for one tenant and may be another's.
//!
//! A key without its tenant in it goes from tenant to tenant. Whoever has it no more removes it, and
//! takes for its own what its new owner wrote a moment ago. So those are warmed again who name a key
//! that was removed. They are looked for after its removal: whoever names it later than that also
//! writes it later.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::handle::Handle;
use super::run::{Runner, Stops};
use super::tries::Refusal;
use crate::domain::change::{Changed, Touched};
use crate::domain::job::{Job, JobName};
use crate::domain::manifest::manifest_key;
use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::observe::event::{self, Server};

/// From one search for a job to its next one; what is removed meanwhile waits for that.
const REST: Duration = Duration::from_secs(1);
/// A search that took long is followed by a rest of so many times as long, so that searching does not
/// become the cache's main occupation.
const REST_TIMES: u32 = 9;
/// Keys of a job that wait; beyond that it runs for all.
const MAX_WAITING: usize = 10_000;
/// Names that a search asks for, each of some 50 bytes; beyond that a run for all costs less.
const MAX_NAMES: usize = 2_000_000;
/// Names that are asked for at once: so many answers are in memory together.
const NAMES_AT_ONCE: usize = 50_000;

/// A key that was removed for a tenant which has it no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) key: String,
    pub(super) from: TenantId,
}

/// The keys that were removed, and whose owners are not looked for yet.
#[derive(Debug, Default)]
pub struct TakenKeys {
    jobs: Mutex<BTreeMap<JobName, Waiting>>,
    news: Notify,
}

/// Those of one job.
#[derive(Debug, Default, PartialEq, Eq)]
struct Waiting {
    /// Each with the tenant for which it was removed; none where those are several.
    keys: HashMap<String, Option<TenantId>>,
    /// They were too many to remember.
    too_many: bool,
    /// Not before this moment on the monotonic clock.
    due_at: Duration,
}

impl TakenKeys {
    /// Keys of a job were removed; whose they are is to be looked for from that moment on.
    pub(super) fn add(&self, job: &JobName, taken: Vec<Taken>, due_at: Duration) {
        if taken.is_empty() {
            return;
        }
        let mut jobs = self.jobs();
        let waiting = jobs.entry(job.clone()).or_default();
        waiting.due_at = waiting.due_at.max(due_at);
        for Taken { key, from } in taken {
            waiting.add(key, Some(&from));
        }
        drop(jobs);
        self.news.notify_one();
    }

    /// Whether owners of keys of this job are to be looked for, now or later.
    pub fn is_waiting(&self, job: &JobName) -> bool {
        self.jobs().get(job).is_some_and(|waiting| !waiting.is_empty())
    }

    /// The moment from which on the owners of some keys are to be looked for.
    fn next_due_at(&self) -> Option<Duration> {
        let jobs = self.jobs();
        jobs.values().filter(|waiting| !waiting.is_empty()).map(|waiting| waiting.due_at).min()
    }

    /// The jobs of which that moment has come.
    fn due(&self, now: Duration) -> Vec<JobName> {
        let jobs = self.jobs();
        let due = jobs.iter().filter(|(_, waiting)| waiting.is_due(now));
        due.map(|(job, _)| job.clone()).collect()
    }

    /// Takes the keys of a job, if they are due.
    fn take_due(&self, job: &JobName, now: Duration) -> Option<Waiting> {
        let mut jobs = self.jobs();
        jobs.get_mut(job).filter(|waiting| waiting.is_due(now)).map(std::mem::take)
    }

    /// Nothing more of a job before that moment; `unfound` could not be looked for.
    fn rest(&self, job: JobName, until: Duration, unfound: Waiting) {
        let mut jobs = self.jobs();
        let waiting = jobs.entry(job).or_default();
        let Waiting { keys, too_many, due_at } = unfound;
        waiting.due_at = waiting.due_at.max(due_at).max(until);
        waiting.too_many |= too_many;
        for (key, from) in keys {
            waiting.add(key, from.as_ref());
        }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobName, Waiting>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.too_many
    }

    fn is_due(&self, now: Duration) -> bool {
        !self.is_empty() && self.due_at <= now
    }

    fn add(&mut self, key: String, from: Option<&TenantId>) {
        if self.too_many {
            return;
        }
        let known = self.keys.entry(key).or_insert_with(|| from.cloned());
        if known.as_ref() != from {
            *known = None;
        }
        if self.keys.len() > MAX_WAITING {
            *self = Self { too_many: true, due_at: self.due_at, ..Self::default() };
        }
    }

    /// Whether somebody else than this tenant had the key removed.
    fn concerns(&self, tenant: &str, key: &str) -> bool {
        let from = self.keys.get(key).and_then(Option::as_ref);
        from.is_none_or(|from| from.as_str() != tenant)
    }
}

impl Runner {
    /// Looks for the owners of removed keys until the worker stops, and has them warmed again.
    pub async fn return_taken_keys(self: Arc<Self>, handle: Handle, stops: Stops) {
        let for_ever = async {
            loop {
                self.until_keys_are_taken().await;
                for job in self.taken.due(self.clock.monotonic()) {
                    if let Some(owners) = self.owners_of_taken(&job).await {
                        handle.changed(Changed::KeysTaken { job, owners }).await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = stops.requested() => {}
            () = for_ever => {}
        }
    }

    async fn until_keys_are_taken(&self) {
        loop {
            let due_in =
                self.taken.next_due_at().map(|at| at.saturating_sub(self.clock.monotonic()));
            match due_in {
                Some(Duration::ZERO) => return,
                Some(due_in) => tokio::select! {
                    () = self.taken.news.notified() => {}
                    () = self.clock.sleep(due_in) => {}
                },
                None => self.taken.news.notified().await,
            }
        }
    }

    /// Whoever may have keys of a job that were removed since the last search; nobody where it is not
    /// time yet, or where the cache could not be asked, which is tried again.
    pub async fn owners_of_taken(&self, job: &JobName) -> Option<Touched> {
        let began = self.clock.monotonic();
        let taken = self.taken.take_due(job, began)?;
        let found = self.owners(job, &taken).await;
        let now = self.clock.monotonic();
        let rest = REST.max(now.saturating_sub(began) * REST_TIMES);
        let (found, unfound) = match found {
            Ok(found) => (Some(found), Waiting::default()),
            Err(_away) => (None, taken),
        };
        self.taken.rest(job.clone(), now + rest, unfound);
        found
    }

    async fn owners(&self, name: &JobName, taken: &Waiting) -> Result<Touched, Refusal> {
        let none = || Touched::Tenants(BTreeSet::new());
        let jobs = self.jobs.get();
        let Some(job) = jobs.get(name).filter(|job| job.has_keys_that_move()) else {
            return Ok(none());
        };
        let keys: Vec<String> = taken.keys.keys().cloned().collect();
        let list = self.list.last();
        let is_small = |list: &Arc<Tenants>| list.len().saturating_mul(keys.len()) <= MAX_NAMES;
        let owners = match list.filter(|list| is_small(list) && !taken.too_many) {
            Some(list) => Touched::Tenants(self.owners_among(job, &list, (taken, &keys)).await?),
            None => Touched::All,
        };
        event::KeysTaken { job: name, keys: keys.len(), owners: &owners }.emit(&self.metrics);
        Ok(owners)
    }

    /// Those of the active tenants that name one of the keys.
    async fn owners_among(
        &self,
        job: &Job,
        list: &Tenants,
        (taken, keys): (&Waiting, &[String]),
    ) -> Result<BTreeSet<TenantId>, Refusal> {
        let mut owners = BTreeSet::new();
        let tenants: Vec<Tenant<'_>> = list.iter().collect();
        for some in tenants.chunks((NAMES_AT_ONCE / keys.len().max(1)).max(1)) {
            let manifest = |tenant: &Tenant<'_>| manifest_key(&job.name, Some(tenant.id()));
            let manifests: Vec<String> = some.iter().map(manifest).collect();
            self.may_ask(Server::Cache)?;
            let named = self.ledger.named_among(&manifests, keys).await;
            self.note_cache(named.as_ref().err());
            for (tenant, named) in some.iter().zip(named?) {
                if named.iter().any(|named| taken.concerns(tenant.id(), &named.key)) {
                    owners.insert(TenantId::new(tenant.id()));
                }
            }
        }
        Ok(owners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn job() -> JobName {
        JobName::parse("pets").unwrap()
    }

    fn taken(key: &str, from: &str) -> Taken {
        Taken { key: key.to_owned(), from: TenantId::new(from) }
    }

    #[test]
    fn keys_wait_together_until_the_last_of_them_is_due_and_the_rest_is_over() {
        let keys = TakenKeys::default();
        assert_eq!((keys.next_due_at(), keys.is_waiting(&job())), (None, false));
        keys.add(&job(), Vec::new(), SECOND);
        assert_eq!(keys.next_due_at(), None);
        keys.add(&job(), vec![taken("a", "1")], SECOND * 2);
        keys.add(&job(), vec![taken("b", "1")], SECOND);
        assert!(keys.is_waiting(&job()) && keys.due(SECOND).is_empty());
        assert_eq!((keys.next_due_at(), keys.due(SECOND * 2)), (Some(SECOND * 2), vec![job()]));
        assert_eq!(keys.take_due(&job(), SECOND), None);
        let first = keys.take_due(&job(), SECOND * 2).unwrap();
        assert_eq!(first.keys.len(), 2);
        assert!(!keys.is_waiting(&job()));

        keys.rest(job(), SECOND * 5, Waiting::default());
        assert_eq!(keys.next_due_at(), None, "nothing waits");
        keys.add(&job(), vec![taken("c", "1")], SECOND * 3);
        assert_eq!(keys.next_due_at(), Some(SECOND * 5));
        keys.rest(job(), SECOND * 6, first);
        assert_eq!(keys.take_due(&job(), SECOND * 6).unwrap().keys.len(), 3);
    }

    #[test]
    fn a_key_concerns_all_but_the_tenant_for_which_it_was_removed() {
        let keys = TakenKeys::default();
        let all = [taken("a", "1"), taken("b", "1"), taken("b", "2"), taken("a", "1")];
        keys.add(&job(), all.to_vec(), Duration::ZERO);
        let waiting = keys.take_due(&job(), Duration::ZERO).unwrap();
        let concerns = |tenant| ["a", "b"].map(|key| waiting.concerns(tenant, key));
        assert_eq!([concerns("1"), concerns("2")], [[false, true], [true, true]]);
    }

    #[test]
    fn keys_too_many_to_remember_are_those_of_everybody() {
        let keys = TakenKeys::default();
        let many = |count: usize| (0..count).map(|n| taken(&n.to_string(), "1")).collect();
        keys.add(&job(), many(MAX_WAITING), SECOND);
        keys.add(&job(), many(MAX_WAITING), SECOND);
        assert!(!keys.jobs()[&job()].too_many, "they are the same");
        keys.add(&job(), vec![taken("one more", "1")], SECOND);
        keys.add(&job(), vec![taken("and one", "1")], SECOND);
        let waiting = keys.take_due(&job(), SECOND).unwrap();
        assert_eq!((waiting.keys.len(), waiting.too_many), (0, true));
    }
}
