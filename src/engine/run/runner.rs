//! What all runs share: the servers, the bounds, and what they remember from run to run.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::batch_sizes::BatchSizes;
use super::broken::BrokenTenants;
use super::cache_process::CacheProcess;
use super::cache_writes::CacheWrites;
use super::last_changes::LastChanges;
use super::limit::Limits;
use super::not_warm::NotWarm;
use super::ownership::Ownership;
use super::shared_jobs::SharedJobs;
use super::tenant_list::TenantList;
use crate::domain::layout::Layout;
use crate::engine::ports::{Ports, Traces};
use crate::engine::registry::Registry;

/// What runs need of the world, and the bounds that they share.
pub struct Runner {
    /// The servers, each behind its breaker.
    pub ports: Ports,
    /// Batches in flight over all jobs.
    pub limits: Arc<Limits>,
    /// How many tenants each job's batches have.
    pub batch_sizes: BatchSizes,
    /// Tenants that failed alone at their last read.
    pub broken: BrokenTenants,
    /// Tenants that are not warm, and why.
    pub not_warm: NotWarm,
    /// When tenants' data last changed, as far as the change feed reported it.
    pub(crate) last_changes: LastChanges,
    /// Which process of the cache server answers, and whether it was emptied.
    pub cache_process: Arc<CacheProcess>,
    /// Whether the cache accepts writes.
    pub cache_writes: CacheWrites,
    /// Which shares of the work the worker holds.
    pub ownership: Arc<Ownership>,
    /// The tenant list that runs share.
    pub list: TenantList,
    /// Notified when the coverage is to be looked at early.
    pub(crate) coverage_wanted: Notify,
    /// The registry, with which complete tenant lists are compared: a departed tenant loses its
    /// keys.
    pub registry: Arc<Registry>,
    /// All present jobs, including disabled ones.
    pub jobs: Arc<SharedJobs>,
    /// The name of this worker in records.
    pub replica: String,
    /// Where traces of runs go, if they are wanted.
    pub traces: Option<Arc<dyn Traces>>,
}

impl Deref for Runner {
    type Target = Ports;

    fn deref(&self) -> &Ports {
        &self.ports
    }
}

impl Runner {
    /// A runner with these servers and within these bounds; `replica` is the worker's name in
    /// records.
    pub fn new(ports: Ports, limits: Arc<Limits>, registry: Registry, replica: String) -> Self {
        let registry = Arc::new(registry);
        let cache_process: Arc<CacheProcess> = Arc::default();
        let jobs: Arc<SharedJobs> = Arc::default();
        let list = TenantList::new(
            ports.clone(),
            Arc::clone(&registry),
            Arc::clone(&cache_process),
            Arc::clone(&jobs),
        );
        Self {
            ports,
            limits,
            batch_sizes: BatchSizes::default(),
            broken: BrokenTenants::default(),
            not_warm: NotWarm::default(),
            last_changes: LastChanges::default(),
            cache_process,
            cache_writes: CacheWrites::default(),
            ownership: Arc::default(),
            list,
            coverage_wanted: Notify::new(),
            registry,
            jobs,
            replica,
            traces: None,
        }
    }

    /// The same, whose batches have fewer tenants than configured while their queries take longer than that.
    #[must_use]
    pub fn with_target_batch_time(self, target: Option<Duration>) -> Self {
        Self { batch_sizes: BatchSizes::new(target), ..self }
    }

    /// The same, as a member of a fleet.
    #[must_use]
    pub fn with_ownership(self, ownership: Arc<Ownership>) -> Self {
        Self { ownership, ..self }
    }

    /// Which keys belong to which tenant, by the present jobs.
    pub(crate) fn layout(&self) -> Layout {
        Layout::new(&self.jobs.get(), self.source.id_class())
    }
}
