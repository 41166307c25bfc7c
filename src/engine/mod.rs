//! When a job runs and how a run goes.

pub mod audit;
mod batch;
mod breaker;
pub mod broken;
mod changes;
pub mod coverage;
pub mod estimate;
pub mod feed;
pub mod handle;
pub mod invalidate;
mod known;
pub mod limit;
mod marker;
pub mod orphans;
pub mod port;
pub mod ports;
pub mod record;
pub mod restart;
pub mod roster;
pub mod run;
pub mod scheduler;
pub mod status;
mod tries;
mod warm;
