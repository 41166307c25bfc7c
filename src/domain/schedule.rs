//! When a job is due.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// When a job is due: a pure function of the time.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// On the epoch grid: at every multiple of the interval since 1970, the same instant on every
    /// replica.
    Every(Duration),
    /// By a cron expression in a time zone.
    Cron(Cron),
}

/// A cron expression in a time zone.
#[derive(Clone, Debug)]
pub struct Cron {
    /// As it was written.
    pub expression: String,
    /// Its zone.
    pub zone: chrono_tz::Tz,
}

impl Schedule {
    /// The first due time later than `now`; `None` if there is none any more.
    pub fn next_after(&self, _now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        None
    }
}
