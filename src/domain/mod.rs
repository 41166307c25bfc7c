//! The domain: preheat's values, and pure functions over them. No I/O, no async, no clock.

pub mod audit;
pub mod change;
pub mod date;
pub mod duration;
pub mod entry;
pub mod fence;
pub mod glob;
pub mod job;
pub mod json;
pub mod key;
pub mod layout;
pub mod manifest;
pub mod owned;
pub(crate) mod pending;
pub mod protocol;
mod reading;
pub mod report;
pub mod retry;
pub mod row;
pub mod run;
pub mod schedule;
pub mod server;
pub mod server_url;
pub mod shown;
pub mod size;
pub mod spelling;
pub mod tenant;
