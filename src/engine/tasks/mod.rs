//! The work beside the runs, each as a task of its own until the worker stops.

pub mod coverage;
pub mod feed;
pub mod fleet;
mod reads;
pub mod relay;
pub mod requests;
pub mod resync;
pub mod supervisor;
pub mod sweep;
