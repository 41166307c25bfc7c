//! When a job runs: the scheduler's loop, the state of each job, and the handle for the rest of the
//! worker.

mod changing;
pub mod handle;
pub mod health;
mod job_state;
pub mod pauses;
mod pausing;
pub mod scheduler;
pub mod status;
mod taken;
mod takeover;
