//! The keys that a tenant has, or may have, without asking the database.

use std::ops::RangeInclusive;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveDate, Utc};

use super::job::Job;
use super::key::KeyTemplate;
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
    let mut keys = Vec::new();
    for key in &job.keys {
        template_keys(&key.template, tenant, dates, &mut keys);
    }
    keys
}

/// The keys of one template that are known before the query, added to `keys`.
pub fn template_keys(
    template: &KeyTemplate,
    tenant: Option<Tenant<'_>>,
    dates: &RangeInclusive<NaiveDate>,
    keys: &mut Vec<String>,
) {
    if !template.has_date() {
        keys.extend(template.fill(tenant, None));
        return;
    }
    let mut date = *dates.start();
    while date <= *dates.end() {
        keys.extend(template.fill(tenant, Some(date)));
        let Some(next) = date.succ_opt() else { break };
        date = next;
    }
}

/// Every date of which a job may have a key at a moment: in any time zone, and written by any run
/// whose keys have not expired.
pub fn possible_dates(job: &Job, now: DateTime<Utc>) -> RangeInclusive<NaiveDate> {
    dates_alive(job.dates.as_ref().map_or(0, |dates| dates.days), job.ttl, now)
}

/// The same of keys for so many dates that live for so long.
pub fn dates_alive(days: u16, ttl: Duration, now: DateTime<Utc>) -> RangeInclusive<NaiveDate> {
    const DAY: u64 = Duration::from_hours(24).as_secs();
    let today = now.date_naive();
    let behind = ttl.as_secs().div_ceil(DAY);
    let first = today.checked_sub_days(Days::new(behind + ZONES)).unwrap_or(today);
    let last = today.checked_add_days(Days::new(u64::from(days) + ZONES)).unwrap_or(today);
    first..=last
}
