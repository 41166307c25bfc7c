//! The tenant list that all runs share.

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

/// The positions of all tenants of a list, each once. A tenant query with a join may name a tenant twice, and
/// its rows would then be split over two slots.
pub(crate) fn each_once(list: &Tenants) -> Vec<u32> {
    let mut seen = HashSet::with_capacity(list.len());
    let first = list.iter().zip(0..).filter(|(tenant, _)| seen.insert(tenant.id()));
    first.map(|(_, position)| position).collect()
}

/// The positions of the wanted tenants, each once, and the wanted tenants that the list lacks.
pub(crate) fn select<'w>(list: &Tenants, wanted: &'w [TenantId]) -> (Vec<u32>, Vec<&'w str>) {
    let mut left: HashSet<&str> = wanted.iter().map(TenantId::as_str).collect();
    let found = list.iter().zip(0..).filter(|(tenant, _)| left.remove(tenant.id()));
    let found = found.map(|(_, position)| position).collect();
    let wanted = wanted.iter().map(TenantId::as_str);
    (found, wanted.filter(|id| left.remove(id)).collect())
}

/// Runs no longer join a reading of the tenant list that takes longer than this: it may hang, and the runs
/// that join it would hang one after another.
const LONGEST_TO_JOIN: Duration = Duration::from_secs(5);

/// The tenant list that runs share: runs that start together read it with one query.
///
/// A run may use only a list whose reading began after the run was requested. An older list could lack a
/// tenant that the application created just before it requested the run.
pub struct TenantList(Arc<Shelf>);

/// What a reading needs. A reading continues even if the run that began it has ended.
struct Shelf {
    ports: Ports,
    registry: Arc<Registry>,
    cache_process: Arc<CacheProcess>,
    jobs: Arc<SharedJobs>,
    reading: Mutex<Option<ListReading>>,
    listed: Mutex<Option<Listed>>,
}

/// The last complete list.
struct Listed {
    tenants: Arc<Tenants>,
    /// Hashes of their ids, in order.
    hashes: Vec<u64>,
    /// How often the cache server had been restarted when the registry took the list.
    restarts: u64,
    /// The sequence number of its reading.
    number: u64,
}

struct ListReading {
    began: Duration,
    /// Its sequence number; the registry takes lists in this order.
    number: u64,
    future: WeakShared<ListFuture>,
}

pub(crate) type ListFuture = BoxFuture<'static, Result<Arc<Tenants>, ListError>>;

/// Why a run has no tenant list to use.
#[derive(Clone, Debug)]
pub(crate) enum ListError {
    /// It could not be read.
    Source(SourceError),
    /// It is not trusted.
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
    /// A list that is handed to the registry each time that it is read.
    pub(crate) fn new(
        ports: Ports,
        registry: Arc<Registry>,
        cache_process: Arc<CacheProcess>,
        jobs: Arc<SharedJobs>,
    ) -> Self {
        let (reading, listed) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shelf { ports, registry, cache_process, jobs, reading, listed }))
    }

    /// A list whose reading began at or after the monotonic moment `since`: the reading under way, or a new
    /// one.
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
        *reading = shared.downgrade().map(|future| ListReading { began: now, number, future });
        shared
    }

    /// Whether the last complete list agrees with `active` about each of the tenants in `some`, and the
    /// registry cannot have lost that list.
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
    /// Records a complete list that the registry took. Two readings may end in another order than they began;
    /// the one that began last counts.
    fn note(&self, list: &Arc<Tenants>, restarts: u64, number: u64) {
        let mut hashes: Vec<u64> = list.iter().map(|tenant| hash(tenant.id())).collect();
        hashes.sort_unstable();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.as_ref().is_none_or(|listed| listed.number <= number) {
            *listed = Some(Listed { tenants: Arc::clone(list), hashes, restarts, number });
        }
    }

    /// Reads the list with one query. However many runs wait for the result, it counts once for the breaker
    /// and is compared with the registry once.
    async fn read(self: Arc<Self>, number: u64) -> Result<Arc<Tenants>, ListError> {
        let list = Arc::new(self.ports.source.tenants().await.map_err(ListError::Source)?);
        let restarts = self.cache_process.restarts();
        let read = ListRead { list: &list, number, jobs: &self.jobs.get(), restarts };
        self.registry.take(&self.ports, read).await.map_err(ListError::Distrusted)?;
        self.note(&list, restarts, number);
        Ok(list)
    }
}
