//! How columns look in JSON. It must be as preheat writes them (profile `drizzle`), so that a value is the same,
//! whether preheat or this service wrote it.

use axum::Json;
use chrono::{DateTime, Utc};

use crate::error::Error;

/// What most handlers return.
pub(crate) type Answer<T> = Result<Json<T>, Error>;

/// A moment as JavaScript's `Date` writes it.
pub(crate) fn moment(moment: DateTime<Utc>) -> String {
    moment.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
