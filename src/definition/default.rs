//! The defaults of a job file's fields.

use std::time::Duration;

use chrono_tz::Tz;

use crate::domain::job::Share;

pub(super) const TIMEZONE: Tz = Tz::UTC;
pub(super) const ON_START: bool = true;
pub(super) const REQUIRED: bool = false;
pub(super) const ENABLED: bool = true;
pub(super) const TENANTS: bool = true;
/// Several times the duration of a run for thousands of tenants.
pub(super) const TIMEOUT: Duration = Duration::from_mins(5);
pub(super) const RETRIES: u64 = 3;
/// Redis serves values of this size, but slowly; larger ones hold up every other client.
pub(super) const MAX_BYTES: u64 = 5 << 20;
pub(super) const MAX_BYTES_TEXT: &str = "5MiB";

/// Enough to spread the expiry of one run's keys over minutes.
pub(super) fn ttl_jitter() -> Share {
    Share::from_percent(10.0).unwrap_or(Share::NONE)
}
