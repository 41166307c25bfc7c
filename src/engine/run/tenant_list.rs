//! The tenant list as runs share it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use super::broken::hash;
use super::cache_process::CacheProcess;
use super::retry::{Refusal, Remedy};
use super::shared_jobs::SharedJobs;
use crate::domain::report::FailureKind;
use crate::domain::tenant::{TenantId, Tenants};
use crate::engine::ports::{Ports, SourceError};
use crate::engine::registry::{Distrust, ListRead, Registry};

/// The positions of all tenants of a list. A tenant query with a join may name a tenant twice; its rows
/// would be torn apart.
pub(crate) fn each_once(list: &Tenants) -> Vec<u32> {
    let mut seen = HashSet::with_capacity(list.len());
    let first = list.iter().zip(0..).filter(|(tenant, _)| seen.insert(tenant.id()));
    first.map(|(_, position)| position).collect()
}

/// The positions of some tenants, each once, and those of them that the list does not have.
pub(crate) fn select<'w>(list: &Tenants, wanted: &'w [TenantId]) -> (Vec<u32>, Vec<&'w str>) {
    let mut left: HashSet<&str> = wanted.iter().map(TenantId::as_str).collect();
    let found = list.iter().zip(0..).filter(|(tenant, _)| left.remove(tenant.id()));
    let found = found.map(|(_, position)| position).collect();
    let wanted = wanted.iter().map(TenantId::as_str);
    (found, wanted.filter(|id| left.remove(id)).collect())
}

/// A reading of the tenant list that takes longer is not joined any more: it may hang, and runs that
/// wait for it would hang one after another.
const LONGEST_TO_JOIN: Duration = Duration::from_secs(5);

/// The tenant list as runs share it: those that start together read it with one query.
///
/// A run may use only a list whose reading began after the run was asked for, or it would miss a
/// tenant that the application created before it triggered the run.
pub struct TenantList(Arc<Shelf>);

/// What a reading needs, which goes on when the run that began it is gone.
struct Shelf {
    ports: Ports,
    registry: Arc<Registry>,
    cache_process: Arc<CacheProcess>,
    jobs: Arc<SharedJobs>,
    reading: Mutex<Option<Reading>>,
    listed: Mutex<Option<Listed>>,
}

/// What the last complete list had.
struct Listed {
    tenants: Arc<Tenants>,
    /// Hashes of their ids, in order.
    hashes: Vec<u64>,
    /// How often the cache server had been restarted when the registry took them.
    restarts: u64,
    /// The sequence number of its reading.
    number: u64,
}

struct Reading {
    began: Duration,
    /// Its sequence number: the registry takes lists in this order.
    number: u64,
    future: WeakShared<ListFuture>,
}

pub(crate) type ListFuture = BoxFuture<'static, Result<Arc<Tenants>, ListError>>;

/// Why there is no tenant list to go by.
#[derive(Clone, Debug)]
pub(crate) enum ListError {
    /// It could not be read.
    Source(SourceError),
    /// No run may go by it.
    Distrusted(Distrust),
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Source(error) => Self { kind: FailureKind::Tenants, ..Self::from(error) },
            ListError::Distrusted(Distrust::Unregistered(error)) => error.into(),
            ListError::Distrusted(Distrust::Shrank(shrank)) => Self {
                kind: FailureKind::TenantsShrank,
                message: shrank.in_short(),
                remedy: Remedy::GiveUp,
            },
        }
    }
}

impl TenantList {
    /// A list that the registry takes each time that it is read.
    pub(crate) fn new(
        ports: Ports,
        registry: Arc<Registry>,
        cache_process: Arc<CacheProcess>,
        jobs: Arc<SharedJobs>,
    ) -> Self {
        let (reading, listed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shelf { ports, registry, cache_process, jobs, reading, listed }))
    }

    /// A list whose reading began at or after the monotonic moment `since`: one that is being read,
    /// or a new one.
    pub(crate) fn read(&self, since: Duration) -> Shared<ListFuture> {
        let list = &self.0;
        let mut reading = list.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let now = list.ports.clock.monotonic();
        let since = since.max(now.saturating_sub(LONGEST_TO_JOIN));
        let young = reading.as_ref().filter(|reading| reading.began >= since);
        if let Some(shared) = young.and_then(|reading| reading.future.upgrade()) {
            return shared;
        }
        let number = reading.as_ref().map_or(0, |before| before.number + 1);
        let shared = Arc::clone(list).read(number).boxed().shared();
        *reading = shared.downgrade().map(|future| Reading { began: now, number, future });
        shared
    }

    /// Whether the last complete list had those among some tenants that are active, and not the
    /// others, and the registry cannot have lost it.
    pub(crate) fn agrees(&self, some: &[TenantId], active: &Tenants) -> bool {
        let listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(listed) =
            listed.as_ref().filter(|listed| listed.restarts == self.0.cache_process.restarts())
        else {
            return false;
        };
        let active: HashSet<&str> = active.iter().map(|tenant| tenant.id()).collect();
        some.iter().map(TenantId::as_str).all(|id| {
            let was_listed = listed.hashes.binary_search(&hash(id)).is_ok();
            active.contains(id) == was_listed
        })
    }

    /// The last complete list.
    pub(crate) fn last(&self) -> Option<Arc<Tenants>> {
        let listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.as_ref().map(|listed| Arc::clone(&listed.tenants))
    }
}

impl Shelf {
    /// A complete list was read, and the registry took it. Two readings may end in the other order than
    /// they began; the one that began last counts.
    fn note(&self, list: &Arc<Tenants>, restarts: u64, number: u64) {
        let mut hashes: Vec<u64> = list.iter().map(|tenant| hash(tenant.id())).collect();
        hashes.sort_unstable();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.as_ref().is_none_or(|listed| listed.number <= number) {
            *listed = Some(Listed { tenants: Arc::clone(list), hashes, restarts, number });
        }
    }

    /// One query, whose result counts once for the breaker however many runs wait for it, and is compared
    /// once with the tenants that may have keys.
    async fn read(self: Arc<Self>, number: u64) -> Result<Arc<Tenants>, ListError> {
        let list = Arc::new(self.ports.source.tenants().await.map_err(ListError::Source)?);
        let restarts = self.cache_process.restarts();
        let read = ListRead { list: &list, number, jobs: &self.jobs.get(), restarts };
        self.registry.take(&self.ports, read).await.map_err(ListError::Distrusted)?;
        self.note(&list, restarts, number);
        Ok(list)
    }
}
