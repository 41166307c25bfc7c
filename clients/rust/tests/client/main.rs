//! The client against real Redis servers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test that cannot go on stops, and real servers run by the real clock"
)]

mod brief;
mod down;
mod fences;
mod layer;
mod loads;
mod many;
mod metrics;
mod reads;
mod support;
