//! Answers of axum services with a cached value's JSON as their body.

mod answer;
mod etag;
mod layer;

pub use layer::{Cached, CachedService};
