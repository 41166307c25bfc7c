//! What the worker says about itself: one event is one log line and its metrics, in one place; every
//! metric is declared once.
//!
//! - **A new metric** is one more line in `metric/mod.rs`: copy the line of a metric with the same type and
//!   labels. `/metrics`, the list in `docs/metrics.md` and the series that begin and end with a job follow
//!   from it. A new set of labels is a line in `metric/label.rs`.
//! - **A new event** is one more `event!` in the file of its theme under `event/`: copy a similar one. The
//!   code emits it as `event::Name { … }.emit(&metrics)`. An event that people or programs want to hear of over
//!   HTTP tells it to the [`news`] as well.

pub(crate) mod event;
pub mod figures;
pub mod metric;
pub mod news;
mod process;

pub use metric::Metrics;
