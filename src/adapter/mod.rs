//! The world, behind [`crate::engine::port`]. Adapters return, they don't log.

pub mod clock;
pub mod memory;
