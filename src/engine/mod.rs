//! When a job runs and how a run goes.

mod batch;
pub(crate) mod breaker;
pub mod broken;
mod changes;
pub mod coverage;
pub mod estimate;
pub mod feed;
pub mod follow_up;
pub mod handle;
pub(crate) mod job_reader;
pub mod limit;
mod marker;
pub mod port;
pub mod ports;
pub mod record;
pub mod registry;
pub mod restart;
pub mod run;
pub mod scheduler;
pub mod status;
mod sweep;
pub(crate) mod tries;
mod warm;
pub mod writes;
