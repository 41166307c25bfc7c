//! How a run goes: from its specification, through batches of tenants, to its report.

mod batch;
pub mod batch_sizes;
pub mod broken;
pub mod cache_process;
pub mod cache_usage;
pub mod cache_writes;
pub(crate) mod fences;
mod last_changes;
mod lifecycle;
pub mod limit;
pub mod limits_now;
pub(crate) mod marker;
pub mod not_warm;
pub mod ownership;
pub mod progress;
pub mod recent;
pub mod record;
pub(crate) mod retry;
mod runner;
mod shared_jobs;
mod spec;
mod tenant_list;
mod warm;

pub(crate) use self::batch::LONE_FAILURES_TO_GIVE_UP;
pub use self::runner::Runner;
pub use self::shared_jobs::SharedJobs;
pub use self::spec::{Handover, RunResult, RunSpec, Stops};
pub use self::tenant_list::TenantList;
pub(crate) use self::tenant_list::each_once;
pub use crate::domain::report::{Failed, Unverified};
