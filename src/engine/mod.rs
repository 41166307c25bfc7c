//! When a job runs and how a run goes.

mod batch;
mod changes;
pub mod estimate;
pub mod feed;
pub mod handle;
pub mod limit;
pub mod port;
pub mod record;
pub mod roster;
mod rounds;
pub mod run;
pub mod scheduler;
pub mod status;
mod tries;
