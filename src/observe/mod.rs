//! What the worker says about itself: one event is one log line and its metrics, emitted in one
//! place; every metric is declared once.

pub mod event;
pub mod metric;

pub use metric::Metrics;
