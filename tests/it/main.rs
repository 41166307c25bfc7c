//! All integration tests: one binary, since linking takes most of the time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    reason = "a test that cannot go on stops, and real servers run by the real clock"
)]

mod alerts;
mod architecture;
mod audit;
mod browser;
mod cluster;
mod commands;
mod config;
mod conformance;
mod definition;
mod deploy;
mod engine;
mod examples;
mod faults;
mod fleet;
mod generator;
mod http;
mod interleavings;
mod invalidate;
mod jobs;
mod leases;
mod links;
mod live;
mod packaging;
mod parity;
mod sandbox;
mod schedule;
mod sentinel;
mod shipped;
mod simulation;
mod support;
mod worker;
