//! How many of the keys that the active tenants should have are in the cache. Every thirty seconds, and after
//! each run for all tenants, the task looks for a sample of the keys, whatever the runs report as written. In a fleet,
//! each member looks for the keys of its own tenants.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::date;
use crate::domain::job::{Job, Scope};
use crate::domain::manifest::{ManifestEntry, manifest_key};
use crate::domain::owned::static_keys;
use crate::domain::tenant::{Tenant, Tenants};
use crate::engine::ports::CacheError;
use crate::engine::run::{Runner, Stops};
use crate::observe::event;

/// How often it looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The shortest pause between two looks, however many runs end.
const REST: Duration = Duration::from_secs(1);

/// How many static keys of a job one look asks for, and how many data keys: one command asks for all of them.
const MOST_KEYS: usize = 200;
/// Tenants of a job whose static keys are looked for.
const MOST_TENANTS: usize = 100;
/// Tenants of a job whose manifests are read for data keys.
const MOST_MANIFESTS: usize = 20;

/// How many commands a look at a job with this many tenants needs: an `EXISTS`, and a `ZRANGE` for each
/// manifest.
pub(crate) fn commands(job: &Job, tenants: u64) -> u64 {
    let manifests = if job.has_manifests() { tenants.min(MOST_MANIFESTS as u64) } else { 0 };
    1 + manifests
}

impl Runner {
    /// Looks at the coverage of each job until the worker stops.
    pub async fn watch_coverage(self: Arc<Self>, stops: Stops) {
        let for_ever = async {
            loop {
                self.look_at_coverage().await;
                self.clock.sleep(REST).await;
                tokio::select! {
                    biased;
                    () = self.coverage_wanted.notified() => {}
                    () = self.clock.sleep(LOOK_EVERY.saturating_sub(REST)) => {}
                }
            }
        };
        stops.until(for_ever).await;
    }

    /// A job that could not be looked at has no figure: an old one would look like a warm cache.
    async fn look_at_coverage(&self) {
        let Some(list) = self.list.last() else { return };
        let (own, list) = (self.ownership.noticed(), self.ownership.own(list));
        for job in self.jobs.get().values() {
            let mut found = Found::default();
            if job.enabled && !own.of_job(job).is_empty() {
                found = self.coverage_of(job, &list).await.unwrap_or_default();
            }
            // By now the job may have been removed or changed.
            if self.jobs.get().get(&job.name).is_some_and(|still| still == job) {
                let Found { there, expected } = found;
                event::CoverageMeasured { job: &job.name, there, expected }.emit(&self.metrics);
            }
        }
    }

    async fn coverage_of(&self, job: &Job, list: &Tenants) -> Result<Found, CacheError> {
        let mut keys = self.static_keys(job, list);
        keys.extend(self.data_keys(job, list).await?);
        let there = self.cache.exist(&keys).await?;
        Ok(Found { there, expected: keys.len() as u64 })
    }

    fn static_keys(&self, job: &Job, list: &Tenants) -> Vec<String> {
        if job.scope == Scope::Global {
            return self.static_keys_of(job, None);
        }
        let first = list.get(0).map(|tenant| self.static_keys_of(job, Some(tenant)).len());
        let at_most = MOST_KEYS / first.unwrap_or_default().max(1);
        let some = self.some(list, at_most.clamp(1, MOST_TENANTS));
        some.flat_map(|tenant| self.static_keys_of(job, Some(tenant))).collect()
    }

    fn static_keys_of(&self, job: &Job, tenant: Option<Tenant<'_>>) -> Vec<String> {
        let now = self.clock.now();
        let dates = match &job.dates {
            // A tenant without a time zone fails in runs and has no keys.
            Some(dates) => match date::today(dates, tenant, now) {
                Ok(today) => today..=date::last(today, dates.days),
                Err(_no_zone) => return Vec::new(),
            },
            None => now.date_naive()..=now.date_naive(),
        };
        static_keys(job, tenant, &dates)
    }

    /// The keys that a tenant of a job should have: its static keys, and the data keys that its manifest names.
    pub(crate) async fn expected_keys(
        &self,
        job: &Job,
        tenant: Tenant<'_>,
    ) -> Result<Vec<String>, CacheError> {
        let mut keys = self.static_keys_of(job, Some(tenant));
        if job.has_manifests() {
            let manifest = manifest_key(&job.name, Some(tenant.id()));
            let entries = self.ledger.manifests(&[manifest]).await?;
            keys.extend(entries.into_iter().flat_map(newest_keys));
        }
        Ok(keys)
    }

    /// The data keys that some manifests name. For a while a manifest also names keys that have vanished;
    /// these were not renewed by the last run, so they are older than the others.
    async fn data_keys(&self, job: &Job, list: &Tenants) -> Result<Vec<String>, CacheError> {
        if !job.has_manifests() {
            return Ok(Vec::new());
        }
        let manifests: Vec<String> = match job.scope {
            Scope::Global => vec![manifest_key(&job.name, None)],
            Scope::Tenants => {
                let some = self.some(list, MOST_MANIFESTS);
                some.map(|tenant| manifest_key(&job.name, Some(tenant.id()))).collect()
            }
        };
        let each = MOST_KEYS / manifests.len().max(1);
        let entries = self.ledger.manifests(&manifests).await?;
        Ok(entries.into_iter().flat_map(|entries| newest_keys(entries).take(each)).collect())
    }

    /// At most this many tenants, spread over the whole list, and other ones each time.
    fn some<'l>(
        &self,
        list: &'l Tenants,
        most: usize,
    ) -> impl Iterator<Item = Tenant<'l>> + use<'l> {
        let count = most.min(list.len());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let first = (self.clock.random() * list.len() as f64) as usize;
        let place = move |number| (first + number * list.len() / count) % list.len();
        (0..count).filter_map(move |number| list.get(place(number)))
    }
}

/// How many keys were looked for, and how many exist.
#[derive(Clone, Copy, Default)]
struct Found {
    there: u64,
    expected: u64,
}

/// The keys that were added or renewed together with the newest of their manifest.
fn newest_keys(entries: Vec<ManifestEntry>) -> impl Iterator<Item = String> {
    let last = entries.iter().map(|entry| entry.renewed_at).max();
    entries.into_iter().filter(move |entry| Some(entry.renewed_at) == last).map(|entry| entry.key)
}
