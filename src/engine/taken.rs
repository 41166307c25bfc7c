//! Keys that were removed for one tenant and may be another's.
//!
//! A key without its tenant in it goes from tenant to tenant. Whoever has it no more removes it, and
//! takes for its own what its new owner wrote a moment ago. So those are warmed again who name a key
//! that was removed. They are looked for after its removal: whoever names it later than that also
//! writes it later.
//!
//! What was written for a tenant and not proven comes to the same, where the tenant does not write it
//! again: it may have taken the place of its owner's value, and goes by itself.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::handle::Handle;
use super::run::{Runner, Stops};
use super::tries::Refusal;
use crate::domain::change::{Changed, Touched};
use crate::domain::fence::PROBATION;
use crate::domain::job::{Job, JobName};
use crate::domain::manifest::manifest_key;
use crate::domain::tenant::{Tenant, TenantId, Tenants};
use crate::observe::event::{self, Server};

/// From one search for a job to its next one; what is removed meanwhile waits for that.
const REST: Duration = Duration::from_secs(1);
/// A search that took long is followed by a rest of so many times as long, up to the longest, so that
/// searching does not become the cache's main occupation.
const REST_TIMES: u32 = 9;
const LONGEST_REST: Duration = Duration::from_secs(5);
/// Keys of a job that wait; beyond that it runs for all.
const MAX_WAITING: usize = 10_000;
/// Where so many wait, no more are taken in that were only not proven.
const MAX_UNPROVEN: usize = MAX_WAITING / 2;
/// Up to so many keys are asked for one by one. Where they are more, whole manifests are read, as each
/// run reads them.
const FEW: usize = 10;
/// Manifests that are asked at once.
const SLICE: usize = 200;

/// A key that was removed, or written in vain, for a tenant which has it no more.
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
#[derive(Debug, Default)]
struct Waiting {
    keys: HashMap<String, Wait>,
    /// They were too many to remember: everybody may have some, from that moment on.
    everybody: Option<Duration>,
    /// Nothing before this moment, as all here on the monotonic clock.
    rests_until: Duration,
}

/// A key whose owner is to be looked for.
#[derive(Debug)]
struct Wait {
    /// For whom it was removed; none where those are several.
    from: Option<TenantId>,
    /// From this moment on.
    due_at: Duration,
    /// It was only written and not proven, for the last time at this moment; none where it was removed.
    unproven_since: Option<Duration>,
}

/// Keys whose owners are looked for now.
#[derive(Debug, PartialEq, Eq)]
enum Search {
    /// Each with the tenant for which it was removed; none where those are several.
    Keys(HashMap<String, Option<TenantId>>),
    /// They were too many to remember.
    Everybody,
}

impl TakenKeys {
    /// Keys of a job were removed; whose they are is to be looked for from that moment on.
    pub(super) fn add(&self, job: &JobName, taken: Vec<Taken>, due_at: Duration) {
        if taken.is_empty() {
            return;
        }
        let mut jobs = self.jobs();
        let waiting = jobs.entry(job.clone()).or_default();
        for Taken { key, from } in taken {
            waiting.add(key, Wait { from: Some(from), due_at, unproven_since: None });
        }
        drop(jobs);
        self.news.notify_one();
    }

    /// The same of keys that were written and not proven, once they are gone by themselves. Whoever is
    /// warmed again until then and has them still puts that off, or settles it. A run that was cut off
    /// leaves many of them, and that is no reason for another one: beyond some, the rest are their
    /// owners' next run's.
    pub(super) fn add_unproven(&self, job: &JobName, keys: Vec<Taken>, now: Duration) {
        if keys.is_empty() {
            return;
        }
        let mut jobs = self.jobs();
        let waiting = jobs.entry(job.clone()).or_default();
        for Taken { key, from } in keys {
            if waiting.keys.len() < MAX_UNPROVEN || waiting.keys.contains_key(&key) {
                let unproven_since = Some(now);
                let wait = Wait { from: Some(from), due_at: now + PROBATION, unproven_since };
                waiting.add(key, wait);
            }
        }
        drop(jobs);
        self.news.notify_one();
    }

    /// A tenant was found to have these keys, and they were written and proven, by a round that began at
    /// that moment: what was not proven of them before took nobody's place.
    pub(super) fn proven(&self, job: &JobName, tenant: &str, keys: &[String], began: Duration) {
        let mut jobs = self.jobs();
        let Some(waiting) = jobs.get_mut(job).filter(|waiting| !waiting.keys.is_empty()) else {
            return;
        };
        let is_settled = |wait: &Wait| {
            let of_tenant = wait.from.as_ref().is_some_and(|from| from.as_str() == tenant);
            of_tenant && wait.unproven_since.is_some_and(|since| since <= began)
        };
        for key in keys {
            if waiting.keys.get(key).is_some_and(is_settled) {
                waiting.keys.remove(key);
            }
        }
    }

    /// Whether owners of keys of this job are to be looked for, now or later.
    pub fn is_waiting(&self, job: &JobName) -> bool {
        self.jobs().get(job).is_some_and(|waiting| waiting.next_due_at().is_some())
    }

    /// The moment from which on the owners of some keys are to be looked for.
    fn next_due_at(&self) -> Option<Duration> {
        self.jobs().values().filter_map(Waiting::next_due_at).min()
    }

    /// The jobs of which that moment has come.
    fn due(&self, now: Duration) -> Vec<JobName> {
        let jobs = self.jobs();
        let is_due = |waiting: &Waiting| waiting.next_due_at().is_some_and(|at| at <= now);
        let due = jobs.iter().filter(|(_, waiting)| is_due(waiting));
        due.map(|(job, _)| job.clone()).collect()
    }

    /// Takes the keys of a job that are due.
    fn take_due(&self, job: &JobName, now: Duration) -> Option<Search> {
        self.jobs().get_mut(job)?.take_due(now)
    }

    /// Nothing more of a job before that moment; what could not be looked for waits for it too.
    fn rest(&self, job: JobName, until: Duration, unfound: Option<Search>) {
        let mut jobs = self.jobs();
        let waiting = jobs.entry(job).or_default();
        waiting.rests_until = waiting.rests_until.max(until);
        match unfound {
            Some(Search::Keys(keys)) => {
                for (key, from) in keys {
                    waiting.add(key, Wait { from, due_at: until, unproven_since: None });
                }
            }
            Some(Search::Everybody) => waiting.forget(until),
            None => {}
        }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<JobName, Waiting>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn next_due_at(&self) -> Option<Duration> {
        let of_keys = || self.keys.values().map(|wait| wait.due_at).min();
        self.everybody.or_else(of_keys).map(|at| at.max(self.rests_until))
    }

    fn take_due(&mut self, now: Duration) -> Option<Search> {
        self.next_due_at().filter(|at| *at <= now)?;
        if self.everybody.take().is_some() {
            return Some(Search::Everybody);
        }
        let due = self.keys.extract_if(|_, wait| wait.due_at <= now);
        Some(Search::Keys(due.map(|(key, wait)| (key, wait.from)).collect()))
    }

    /// A key that waits already waits for the later moment.
    fn add(&mut self, key: String, wait: Wait) {
        let due_at = wait.due_at;
        if let Some(everybody) = &mut self.everybody {
            *everybody = due_at.max(*everybody);
            return;
        }
        match self.keys.entry(key) {
            Entry::Occupied(mut known) => known.get_mut().add(wait),
            Entry::Vacant(vacant) => {
                vacant.insert(wait);
            }
        }
        if self.keys.len() > MAX_WAITING {
            let last = self.keys.values().map(|wait| wait.due_at).max();
            self.forget(last.unwrap_or(due_at));
        }
    }

    /// Remembers no key, but that everybody may have some from that moment on.
    fn forget(&mut self, due_at: Duration) {
        self.keys = HashMap::new();
        self.everybody = Some(due_at);
    }
}

impl Wait {
    fn add(&mut self, other: Self) {
        let Self { from, due_at, unproven_since } = other;
        self.due_at = self.due_at.max(due_at);
        // What was removed once is not settled by a proof.
        self.unproven_since = self.unproven_since.and(unproven_since);
        if self.from != from {
            self.from = None;
        }
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
        let rest = (now.saturating_sub(began) * REST_TIMES).clamp(REST, LONGEST_REST);
        let (found, unfound) = match found {
            Ok(found) => (Some(found), None),
            Err(_away) => (None, Some(taken)),
        };
        self.taken.rest(job.clone(), now + rest, unfound);
        found
    }

    async fn owners(&self, name: &JobName, search: &Search) -> Result<Touched, Refusal> {
        let jobs = self.jobs.get();
        let Some(job) = jobs.get(name).filter(|job| job.has_keys_that_move()) else {
            return Ok(Touched::Tenants(BTreeSet::new()));
        };
        let (keys, owners) = match (search, self.list.last()) {
            (Search::Keys(taken), Some(list)) => {
                let keys: Vec<String> = taken.keys().cloned().collect();
                // For this tenant it was removed, and for nobody else.
                let is_from = |tenant: &str, key: &str| {
                    let from = taken.get(key).and_then(Option::as_ref);
                    from.is_some_and(|from| from.as_str() == tenant)
                };
                let concerns = |tenant: &str, key: &str| !is_from(tenant, key);
                let owners = self.tenants_that_name(job, &list, &keys, concerns).await?;
                (keys.len(), Touched::Tenants(owners))
            }
            (Search::Keys(taken), None) => (taken.len(), Touched::All),
            (Search::Everybody, _) => (MAX_WAITING, Touched::All),
        };
        event::KeysTaken { job: name, keys, owners: &owners }.emit(&self.metrics);
        Ok(owners)
    }

    /// Those of some tenants that name one of the keys which concern them.
    pub(super) async fn tenants_that_name(
        &self,
        job: &Job,
        list: &Tenants,
        keys: &[String],
        concerns: impl Fn(&str, &str) -> bool,
    ) -> Result<BTreeSet<TenantId>, Refusal> {
        let mut found = BTreeSet::new();
        let wanted: HashSet<&str> = keys.iter().map(String::as_str).collect();
        let tenants: Vec<Tenant<'_>> = list.iter().collect();
        for some in tenants.chunks(SLICE) {
            let manifest = |tenant: &Tenant<'_>| manifest_key(&job.name, Some(tenant.id()));
            let manifests: Vec<String> = some.iter().map(manifest).collect();
            self.may_ask(Server::Cache)?;
            let named = if keys.len() <= FEW {
                self.ledger.named_among(&manifests, keys).await
            } else {
                self.ledger.manifests(&manifests).await
            };
            self.note_cache(named.as_ref().err());
            for (tenant, named) in some.iter().zip(named?) {
                let mut keys = named.iter().map(|named| named.key.as_str());
                if keys.any(|key| wanted.contains(key) && concerns(tenant.id(), key)) {
                    found.insert(TenantId::new(tenant.id()));
                }
            }
        }
        Ok(found)
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

    fn keys(search: Option<Search>) -> Vec<(String, Option<TenantId>)> {
        let Some(Search::Keys(keys)) = search else { panic!("{search:?}") };
        let mut keys: Vec<_> = keys.into_iter().collect();
        keys.sort_by(|(one, _), (other, _)| one.cmp(other));
        keys
    }

    fn from(key: &str, tenant: Option<&str>) -> (String, Option<TenantId>) {
        (key.to_owned(), tenant.map(TenantId::new))
    }

    #[test]
    fn a_key_waits_until_it_is_due_and_the_rest_is_over() {
        let all = TakenKeys::default();
        assert_eq!((all.next_due_at(), all.is_waiting(&job())), (None, false));
        all.add(&job(), Vec::new(), SECOND);
        assert_eq!(all.next_due_at(), None);
        all.add(&job(), vec![taken("a", "1")], SECOND * 3);
        all.add(&job(), vec![taken("b", "1")], SECOND);
        assert!(all.is_waiting(&job()) && all.due(SECOND / 2).is_empty());
        assert_eq!((all.next_due_at(), all.due(SECOND)), (Some(SECOND), vec![job()]));
        assert_eq!(all.take_due(&job(), SECOND / 2), None);
        assert_eq!(keys(all.take_due(&job(), SECOND)), [from("b", Some("1"))]);
        assert_eq!((all.is_waiting(&job()), all.next_due_at()), (true, Some(SECOND * 3)));

        all.rest(job(), SECOND * 5, None);
        assert_eq!(all.next_due_at(), Some(SECOND * 5));
        assert_eq!(all.take_due(&job(), SECOND * 4), None);
        let unfound = all.take_due(&job(), SECOND * 5);
        assert!(!all.is_waiting(&job()), "nothing waits");
        all.rest(job(), SECOND * 6, unfound);
        assert_eq!(keys(all.take_due(&job(), SECOND * 6)), [from("a", Some("1"))]);
    }

    #[test]
    fn a_key_that_is_removed_again_waits_longer() {
        let all = TakenKeys::default();
        all.add(&job(), vec![taken("a", "1"), taken("b", "1")], SECOND * 2);
        all.add(&job(), vec![taken("a", "1")], SECOND * 3);
        all.add(&job(), vec![taken("a", "1")], SECOND);
        assert_eq!(keys(all.take_due(&job(), SECOND * 2)), [from("b", Some("1"))]);
        assert_eq!(all.next_due_at(), Some(SECOND * 3));
    }

    #[test]
    fn a_key_that_was_removed_for_two_may_be_that_of_either() {
        let all = TakenKeys::default();
        let some = ["1", "2", "2"].map(|tenant| taken("b", tenant));
        all.add(&job(), some.into(), SECOND);
        all.add(&job(), vec![taken("a", "1"), taken("a", "1")], SECOND);
        assert_eq!(keys(all.take_due(&job(), SECOND)), [from("a", Some("1")), from("b", None)]);
    }

    #[test]
    fn keys_too_many_to_remember_are_those_of_everybody() {
        let all = TakenKeys::default();
        let many = |count: usize| (0..count).map(|n| taken(&n.to_string(), "1")).collect();
        all.add(&job(), many(MAX_WAITING), SECOND);
        all.add(&job(), many(MAX_WAITING), SECOND * 2);
        assert_eq!(all.jobs()[&job()].everybody, None, "they are the same");
        all.add(&job(), vec![taken("one more", "1")], SECOND);
        all.add(&job(), vec![taken("and one", "1")], SECOND);
        assert_eq!(all.take_due(&job(), SECOND), None, "some of them are not due");
        assert_eq!(all.take_due(&job(), SECOND * 2), Some(Search::Everybody));
        assert!(!all.is_waiting(&job()));
    }

    #[test]
    fn keys_that_were_not_proven_are_never_too_many() {
        let all = TakenKeys::default();
        all.add(&job(), vec![taken("a", "1")], SECOND);
        let many = (0..MAX_WAITING * 2).map(|n| taken(&n.to_string(), "1"));
        all.add_unproven(&job(), many.collect(), SECOND);
        all.add_unproven(&job(), vec![taken("a", "1")], Duration::ZERO);
        assert_eq!(keys(all.take_due(&job(), PROBATION)), [from("a", Some("1"))]);
        assert_eq!(keys(all.take_due(&job(), PROBATION + SECOND)).len(), MAX_UNPROVEN - 1);
    }

    #[test]
    fn a_proof_settles_what_was_not_proven_before_its_round_and_nothing_else() {
        let all = TakenKeys::default();
        let some = || ["late", "mine", "other", "removed"].map(str::to_owned);
        all.add_unproven(&job(), some().map(|key| taken(&key, "1")).into(), SECOND);
        all.add_unproven(&job(), vec![taken("late", "1")], SECOND * 3);
        all.add_unproven(&job(), vec![taken("other", "2")], SECOND);
        all.add(&job(), vec![taken("removed", "1")], SECOND);
        all.proven(&job(), "1", &some(), SECOND * 2);
        let left = [from("late", Some("1")), from("other", None), from("removed", Some("1"))];
        assert_eq!(keys(all.take_due(&job(), PROBATION * 2)), left);
    }
}
