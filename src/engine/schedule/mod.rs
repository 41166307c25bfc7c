//! When a job runs: the scheduler's loop, what it knows of each job, and its outside.

pub mod handle;
pub mod health;
mod job_state;
mod pending;
pub mod scheduler;
pub mod status;

pub(crate) use self::pending::FOLLOW_UP;
