//! When a job runs and how a run goes.

pub mod port;
