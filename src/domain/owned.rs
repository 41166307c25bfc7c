//! The keys that a tenant has, or may have, without asking the database.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};

use super::job::{Job, Key};
use super::tenant::Tenant;

/// A local date is at most a day away from the one in UTC.
const ZONES: u64 = 1;

/// The keys of a job for a tenant, or for the fleet where there is none, that are known before the
/// query; those with `{date}` for each of these dates. Keys with a data column are in the manifest.
pub fn known_keys(
    job: &Job,
    tenant: Option<Tenant<'_>>,
    dates: &RangeInclusive<NaiveDate>,
) -> Vec<String> {
    let (first, last) = (*dates.start(), *dates.end());
    let mut keys = Vec::new();
    for Key { template, .. } in &job.keys {
        if template.has_date() {
            let dates = first.iter_days().take_while(|date| *date <= last);
            keys.extend(dates.filter_map(|date| template.fill(tenant, Some(date))));
        } else {
            keys.extend(template.fill(tenant, None));
        }
    }
    keys
}

/// Every date of which a job may have a key at a moment: in any time zone, and written by any run
/// whose keys have not expired.
pub fn possible_dates(job: &Job, now: DateTime<Utc>) -> RangeInclusive<NaiveDate> {
    const DAY: u64 = Duration::from_hours(24).as_secs();
    let today = now.date_naive();
    let days = job.dates.as_ref().map_or(0, |dates| dates.days);
    let behind = job.ttl.as_secs().div_ceil(DAY);
    let first = today.checked_sub_days(Days::new(behind + ZONES)).unwrap_or(today);
    let last = today.checked_add_days(Days::new(u64::from(days) + ZONES)).unwrap_or(today);
    first..=last
}
