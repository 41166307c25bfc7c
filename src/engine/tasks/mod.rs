//! The work beside the runs, each as a task of its own until the worker stops.

pub mod coverage;
pub mod feed;
mod reads;
pub mod resync;
pub mod supervisor;
pub mod sweep;
