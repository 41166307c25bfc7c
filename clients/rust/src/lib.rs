#![doc = include_str!("../README.md")]

mod absent;
mod background;
mod breaker;
mod cache;
mod chain;
mod connection;
mod counts;
mod error;
mod flight;
#[cfg(feature = "axum")]
mod http;
mod invalidate;
mod key;
mod many;
mod names;
mod permits;
mod problem;
mod protocol;
mod read;
mod scripts;
#[cfg(test)]
mod vectors;

pub use cache::{Builder, Cache};
pub use connection::{Connection, InvalidUrl};
pub use counts::{Reads, Stats};
pub use error::{Error, FenceState, InvalidationFailed};
#[cfg(feature = "axum")]
pub use http::{Cached, CachedService};
pub use invalidate::Changed;
pub use key::{Fill, Key};
pub use problem::Problem;
