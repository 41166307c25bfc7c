//! When a job runs and how a run goes, in five rooms. Each room imports from those before it only.
//!
//! 1. [`ports`]: what the engine needs of the world; each server behind its circuit breaker.
//! 2. [`registry`]: which tenants may have keys.
//! 3. [`run`]: how a run goes, from its tenants to its report.
//! 4. [`schedule`]: when a job runs; the one loop that decides.
//! 5. [`tasks`]: the work beside the runs: the change feed, sweeping, resync, coverage.

pub mod ports;
pub mod registry;
pub mod run;
pub mod schedule;
pub mod tasks;
