//! The change feed: when data changes in the database, preheat warms its keys again at once.
//!
//! For each change, the fences of the affected tenants move first, so that no run that read before the change
//! has the last word. Then the shared keys that the change took from a tenant are removed, and then the
//! engine warms the tenants again. While the feed is disconnected, any data may change unnoticed: each time
//! the feed connects, all fences move, and every job with tables runs once.
//!
//! In a fleet, every member hears of all changes and keeps those of its own tenants. Where one of them reads the log for
//! all, the fences have moved before the others hear of a change ([`super::relay`]). A member may drop a change of a tenant
//! whose share it takes a moment later: to take a share is to move its fences and to run for it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::domain::change::{
    Change, ChangeSource, ChangeSourceId, Changed, Touched, TouchedTenants, WatchedTables,
};
use crate::domain::job::JobName;
use crate::domain::share::{Share, Shares};
use crate::domain::tenant::TenantId;
use crate::engine::ports::Ports;
use crate::engine::ports::{Feed, FeedError, FeedSource};
use crate::engine::run::Runner;
use crate::engine::run::fences::{Fences, LONGEST_WAIT};
use crate::engine::run::retry::{Refusal, Remedy};
use crate::engine::schedule::handle::Handle;
use crate::observe::event;

/// Changes that arrive this soon after the first one are handled together with it: those of one transaction,
/// and of transactions that commit at the same time.
const COALESCE: Duration = Duration::from_millis(5);
/// How many tenants' changes are collected for one job; with more of them, all tenants count as changed.
const MAX_GATHERED: usize = 10_000;
/// How many shared keys are collected for removal; further ones live until their TTL.
const MAX_GONE: usize = 10_000;
/// How many keys one pipeline removes.
const AT_ONCE: usize = 1_000;
/// How long the first try may take.
const BEGIN: Duration = Duration::from_secs(5);
/// How many different reasons of one outage are reported.
const MAX_REASONS: usize = 20;
/// How many unknown triggers, which belong to no job, are reported.
const MAX_UNKNOWN: usize = 100;

/// Listens for changes and hands them to the engine.
pub struct Feeder {
    source: Arc<dyn FeedSource>,
    handle: Handle,
    runner: Arc<Runner>,
    tenant_column: String,
}

/// How far [`Feeder::begin`] came.
#[derive(Default)]
pub struct Begun(Beginning);

#[derive(Default)]
enum Beginning {
    #[default]
    Nothing,
    /// It is connected.
    Connected(Box<dyn Feed>),
    /// All fences were moved as well, at that monotonic moment.
    FencesMoved(Box<dyn Feed>, Duration),
}

impl Feeder {
    /// A feeder for the jobs of `runner`. `tenant_column` is the name of the column with the tenant's id, for
    /// tables whose job names none.
    pub fn new(
        source: Arc<dyn FeedSource>,
        handle: Handle,
        runner: Arc<Runner>,
        tenant_column: String,
    ) -> Self {
        Self { source, handle, runner, tenant_column }
    }

    /// Connects, if the first try succeeds. Runs that begin later then need no repetition: they read every
    /// change that the feed has missed.
    pub async fn begin(&self) -> Begun {
        let first_try = async {
            let Ok(feed) = self.source.connect().await else { return Beginning::Nothing };
            match self.runner.try_to_move(&Fences::All).await {
                Ok(()) => Beginning::FencesMoved(feed, self.runner.clock.monotonic()),
                Err(_later) => Beginning::Connected(feed),
            }
        };
        Begun(tokio::select! {
            biased;
            begun = first_try => begun,
            () = self.runner.clock.sleep(BEGIN) => Beginning::Nothing,
        })
    }

    /// Listens until the worker stops.
    pub async fn run(&self, begun: Begun, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.listen_for_ever(begun) => {}
        }
    }

    async fn listen_for_ever(&self, Begun(mut begun): Begun) {
        let mut watched = WatchedNow::default();
        let (mut tries, mut told) = (0, BTreeSet::new());
        loop {
            let (feed, moved_at) = match std::mem::take(&mut begun) {
                Beginning::FencesMoved(feed, at) => (feed, Some(at)),
                Beginning::Connected(feed) => (feed, None),
                Beginning::Nothing => (self.connect(&mut tries, &mut told).await, None),
            };
            event::FeedConnected { at: self.runner.clock.now() }.emit(&self.runner.metrics);
            let connected_at = self.runner.clock.monotonic();
            let error = self.listen(feed, moved_at, &mut watched).await;
            event::FeedLost { message: &error.0, at: self.runner.clock.now() }
                .emit(&self.runner.metrics);
            told = BTreeSet::from([error.0]);
            // A connection that breaks soon after it was made is not made again without a pause.
            if self.runner.clock.monotonic().saturating_sub(connected_at) > LONGEST_WAIT {
                tries = 0;
            }
        }
    }

    /// Connects, without a pause if no try has failed just now. It reports each reason of an outage once.
    async fn connect(&self, tries: &mut u32, told: &mut BTreeSet<String>) -> Box<dyn Feed> {
        loop {
            if let Some(retry) = tries.checked_sub(1) {
                self.runner.wait_to_retry(retry).await;
            }
            *tries = tries.saturating_add(1);
            match self.source.connect().await {
                Ok(feed) => return feed,
                Err(error) if told.len() < MAX_REASONS && !told.contains(&error.0) => {
                    event::FeedLost { message: &error.0, at: self.runner.clock.now() }
                        .emit(&self.runner.metrics);
                    told.insert(error.0);
                }
                Err(_as_before) => {}
            }
        }
    }

    /// Takes changes from the feed until it breaks, and hands them on meanwhile. Changes that are not handed
    /// on by then are covered by the resync that follows the next connection.
    async fn listen(
        &self,
        mut feed: Box<dyn Feed>,
        moved_at: Option<Duration>,
        watched: &mut WatchedNow,
    ) -> FeedError {
        let Ports { clock, metrics, .. } = &self.runner.ports;
        let mut gathered = Gathered::default();
        let mut together = clock.sleep(COALESCE);
        let mut handing_on = Some(self.hand_on_everything(moved_at).boxed());
        loop {
            let is_idle = handing_on.is_none();
            tokio::select! {
                biased;
                () = whole(&mut handing_on), if !is_idle => handing_on = None,
                () = &mut together, if is_idle && !gathered.is_empty() => {
                    handing_on = Some(self.hand_on(std::mem::take(&mut gathered)).boxed());
                }
                heard = feed.next() => {
                    let changes = match heard {
                        Ok(changes) => changes,
                        Err(error) => return error,
                    };
                    watched.refresh(&self.runner, &self.tenant_column);
                    let (notifications, at) = (changes.len(), clock.now());
                    let tables = &watched.count(&changes);
                    event::ChangesHeard { notifications, tables, at }.emit(metrics);
                    if gathered.is_empty() {
                        gathered.heard_at = clock.monotonic();
                        together = clock.sleep(COALESCE);
                    }
                    for change in changes {
                        self.gather(change, watched, &mut gathered);
                    }
                }
            }
        }
    }

    fn gather(&self, change: Change, watched: &mut WatchedNow, gathered: &mut Gathered) {
        let held = self.runner.ownership.noticed();
        if held.is_empty() {
            return;
        }
        let Change { source: id, mut tenants, gone, is_fenced } = change;
        if let Some(ids) = &mut tenants {
            ids.retain(|id| held.has_tenant(id));
        }
        if let Some(source) = watched.tables.find(&id) {
            let ids = self.runner.source.id_class();
            // A change does not say whose the gone keys were, so every member removes them, after the fences of its own
            // tenants have moved.
            gathered.remove(watched.tables.gone_keys(source, &gone, ids));
            let concerned = gathered.add(source, tenants.as_deref(), held);
            if concerned && !is_fenced {
                gathered.fences.add(Some(&source.tenants), tenants.as_deref());
            }
            return;
        }
        // The trigger matches no present job. Moving one fence too many does no harm.
        if watched.is_news(&id) {
            event::ChangeUnknown { source: id.as_str() }.emit(&self.runner.metrics);
        }
        if !is_fenced {
            gathered.fences.add(None, tenants.as_deref());
        }
    }

    /// Reports that any data may have changed while the feed was not connected; moves all fences first,
    /// unless that was done at `moved_at`.
    async fn hand_on_everything(&self, moved_at: Option<Duration>) {
        let moved_at = if let Some(at) = moved_at {
            at
        } else {
            self.runner.move_all(&Fences::All).await;
            self.runner.clock.monotonic()
        };
        self.handle.changed(Changed::Everything { moved_at }).await;
    }

    async fn hand_on(&self, gathered: Gathered) {
        let Gathered { heard_at, fences, gone, jobs } = gathered;
        self.runner.move_all(&fences).await;
        self.remove(gone.into_iter().collect()).await;
        self.handle.changed(Changed::Jobs { jobs, heard_at }).await;
    }

    /// Removes shared keys; it tries again for as long as the cache is away. If the cache refuses to remove a
    /// key, the key lives until its TTL: another try would be refused too, and would hold up the changes for
    /// ever.
    async fn remove(&self, mut keys: Vec<String>) {
        let mut tries = 0;
        while let Err(refusal) = self.try_to_remove(&mut keys).await {
            let for_good = match refusal.remedy {
                Remedy::Wait(_) | Remedy::AwaitLock | Remedy::StandBy(_) => false,
                Remedy::Split | Remedy::Fail | Remedy::GiveUp => true,
            };
            let (keys, message) = (keys.len(), refusal.message.as_str());
            if for_good {
                event::GoneKeysLeft { keys, message }.emit(&self.runner.metrics);
                return;
            }
            if tries == 0 {
                event::GoneKeysWait { keys, message }.emit(&self.runner.metrics);
            }
            self.runner.wait_to_retry(tries).await;
            tries = tries.saturating_add(1);
        }
    }

    /// Removes keys, and leaves in `keys` those that could not be removed; answers why the last of them could
    /// not.
    async fn try_to_remove(&self, keys: &mut Vec<String>) -> Result<(), Refusal> {
        let (mut left, mut refusal) = (Vec::new(), Ok(()));
        for some in keys.chunks(AT_ONCE) {
            let results = match self.runner.cache.remove(some).await {
                Ok(results) => results,
                Err(error) => {
                    left.extend_from_slice(some);
                    refusal = Err(error.into());
                    continue;
                }
            };
            for (key, result) in some.iter().zip(results) {
                if let Err(error) = result {
                    left.push(key.clone());
                    refusal = Err(error.into());
                }
            }
        }
        *keys = left;
        refusal
    }
}

async fn whole(future: &mut Option<BoxFuture<'_, ()>>) {
    if let Some(future) = future {
        future.await;
    }
}

/// The tables that the jobs watch now.
#[derive(Default)]
struct WatchedNow {
    tables: WatchedTables,
    /// The triggers without a job that were reported already.
    unknown: HashSet<ChangeSourceId>,
}

impl WatchedNow {
    fn refresh(&mut self, runner: &Runner, tenant_column: &str) {
        if self.tables.refresh(runner.jobs.get(), tenant_column) {
            self.unknown.clear();
        }
    }

    /// How many of these changes are of each table.
    fn count(&self, changes: &[Change]) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for source in changes.iter().filter_map(|change| self.tables.find(&change.source)) {
            *counts.entry(source.table.as_str()).or_default() += 1;
        }
        counts
    }

    fn is_news(&mut self, unknown: &ChangeSourceId) -> bool {
        self.unknown.len() < MAX_UNKNOWN && self.unknown.insert(unknown.clone())
    }
}

/// Changes that are handed on together.
#[derive(Debug, Default)]
struct Gathered {
    /// When the feed reported the first of them.
    heard_at: Duration,
    fences: Fences,
    /// Shared keys to remove.
    gone: BTreeSet<String>,
    jobs: BTreeMap<JobName, Touched>,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        let Self { heard_at: _, fences, gone, jobs } = self;
        jobs.is_empty() && gone.is_empty() && *fences == Fences::default()
    }

    /// Adds shared keys that are gone from a tenant.
    fn remove(&mut self, gone: Vec<String>) {
        for key in gone {
            if self.gone.len() >= MAX_GONE {
                return;
            }
            self.gone.insert(key);
        }
    }

    /// Adds a change of one of the tables that jobs watch, for a worker that holds these shares. Answers whether it
    /// concerns the worker.
    fn add(&mut self, source: &ChangeSource, tenants: Option<&[String]>, held: Shares) -> bool {
        let is_global = source.tenants == TouchedTenants::Global;
        let is_own = |job: &&JobName| !is_global || held.has(Share::of_job(job));
        let jobs: Vec<&JobName> = source.jobs.iter().filter(is_own).collect();
        if jobs.is_empty() || tenants.is_some_and(<[String]>::is_empty) {
            return false;
        }
        let touched = match tenants {
            Some(ids) if !is_global => Touched::Tenants(ids.iter().map(TenantId::new).collect()),
            Some(_) | None => Touched::All,
        };
        for job in jobs {
            self.touch(job, &touched);
        }
        true
    }

    fn touch(&mut self, job: &JobName, touched: &Touched) {
        let none = || Touched::Tenants(BTreeSet::new());
        let known = self.jobs.entry(job.clone()).or_insert_with(none);
        match (&mut *known, touched) {
            (Touched::All, Touched::All | Touched::Tenants(_)) => {}
            (Touched::Tenants(_), Touched::All) => *known = Touched::All,
            (Touched::Tenants(tenants), Touched::Tenants(more)) => {
                tenants.extend(more.iter().cloned());
                if tenants.len() > MAX_GATHERED {
                    *known = Touched::All;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(tenants: TouchedTenants) -> ChangeSource {
        let jobs = ["a", "b"].map(|name| JobName::parse(name).unwrap()).to_vec();
        let (id, table, keys) = (ChangeSourceId::new("x"), "t".to_owned(), BTreeMap::new());
        ChangeSource { id, table, tenants, jobs, keys }
    }

    fn ids(numbers: std::ops::Range<usize>) -> Vec<String> {
        numbers.map(|number| number.to_string()).collect()
    }

    fn tenants(numbers: std::ops::Range<usize>) -> BTreeSet<TenantId> {
        ids(numbers).into_iter().map(TenantId::new).collect()
    }

    #[test]
    fn changes_of_a_tenant_are_gathered_once_for_each_job() {
        let column = source(TouchedTenants::Column("tenant_id".to_owned()));
        let mut gathered = Gathered::default();
        assert!(gathered.is_empty());
        assert!(gathered.add(&column, Some(&ids(0..2)), Shares::ALL));
        assert!(gathered.add(&column, Some(&ids(1..3)), Shares::ALL));
        assert!(gathered.jobs.values().all(|touched| *touched == Touched::Tenants(tenants(0..3))));
        assert_eq!(gathered.jobs.len(), 2);
    }

    #[test]
    fn a_global_change_is_of_all_tenants() {
        let mut gathered = Gathered::default();
        assert!(gathered.add(&source(TouchedTenants::Global), None, Shares::ALL));
        assert!(gathered.jobs.values().all(|touched| *touched == Touched::All));
    }

    #[test]
    fn a_member_keeps_changes_of_the_global_jobs_that_it_holds() {
        let shares = ["a", "b"].map(|name| Share::of_job(&JobName::parse(name).unwrap()));
        assert_ne!(shares[0], shares[1]);
        let mut gathered = Gathered::default();
        gathered.add(&source(TouchedTenants::Global), None, Shares::ALL - shares[0].into());
        assert_eq!(gathered.jobs.keys().map(JobName::as_str).collect::<Vec<_>>(), ["b"]);
        let mut gathered = Gathered::default();
        let others = Shares::ALL - shares[0].into() - shares[1].into();
        assert!(!gathered.add(&source(TouchedTenants::Global), None, others));
        assert!(gathered.is_empty());
    }

    #[test]
    fn keys_that_are_gone_are_gathered_up_to_a_bound() {
        let mut gathered = Gathered::default();
        let column = source(TouchedTenants::Column("tenant_id".to_owned()));
        assert!(!gathered.add(&column, Some(&[]), Shares::ALL), "it is a change of nobody");
        assert!(gathered.is_empty());
        gathered.remove(ids(0..3));
        assert!(!gathered.is_empty());
        gathered.remove(ids(0..MAX_GONE + 7));
        assert_eq!(gathered.gone.len(), MAX_GONE);
        assert_eq!(gathered.fences, Fences::default());
    }

    #[test]
    fn any_tenant_and_too_many_tenants_are_all() {
        let column = source(TouchedTenants::Column("tenant_id".to_owned()));
        let many = [ids(0..MAX_GATHERED), ids(MAX_GATHERED..MAX_GATHERED + 1)].map(Some).to_vec();
        for changes in [vec![None], many] {
            let mut gathered = Gathered::default();
            gathered.add(&column, Some(&ids(0..1)), Shares::ALL);
            for tenants in changes {
                gathered.add(&column, tenants.as_deref(), Shares::ALL);
            }
            gathered.add(&column, Some(&ids(1..2)), Shares::ALL);
            assert!(gathered.jobs.values().all(|touched| *touched == Touched::All));
        }
    }
}
