//! When a job runs and how a run goes.

pub mod handle;
pub mod port;
pub mod scheduler;
pub mod status;
