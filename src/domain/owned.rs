//! The keys that a tenant may have, as far as they follow from the job alone, without the database.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};

use super::job::{Job, Key};
use super::tenant::Tenant;

/// Local dates differ from the date in UTC by at most this many days.
const ZONES: u64 = 1;

/// The static keys of a job for a tenant; `None` is a job without tenants. A template with `{date}`
/// gives one key for each of `dates`. Data keys are not among them: the manifest names those.
pub fn static_keys(
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

/// Every date for which a job may have a key in the cache at a moment: for tenants in any time zone,
/// and from any run whose keys have not expired yet.
pub fn possible_dates(job: &Job, now: DateTime<Utc>) -> RangeInclusive<NaiveDate> {
    const DAY: u64 = Duration::from_hours(24).as_secs();
    let today = now.date_naive();
    let days = job.dates.as_ref().map_or(0, |dates| dates.days);
    let behind = job.ttl.as_secs().div_ceil(DAY);
    let first = today.checked_sub_days(Days::new(behind + ZONES)).unwrap_or(today);
    let last = today.checked_add_days(Days::new(u64::from(days) + ZONES)).unwrap_or(today);
    first..=last
}
