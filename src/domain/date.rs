//! A tenant's local dates: its "today" at a moment, and the days after it.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Days, NaiveDate, Utc};
use chrono_tz::Tz;

use super::job::{DateZone, Dates, Job, Scope};
use super::tenant::{Batch, Tenant, Tenants};

/// A tenant's time zone is missing or unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The tenant's column is NULL, or the tenant query has no such column.
    #[error("the tenant's column `{column}` is NULL; it must name a time zone")]
    Missing {
        /// The column.
        column: String,
    },
    /// The column does not hold the name of a time zone.
    #[error("`{found}` in the tenant's column `{column}` is no IANA time zone")]
    Unknown {
        /// The column.
        column: String,
        /// The column's value.
        found: String,
    },
}

/// The time zone with this name, in upper or lower case: applications also store `europe/berlin`.
pub fn zone(name: &str) -> Option<Tz> {
    static IN_LOWER_CASE: LazyLock<HashMap<String, Tz>> = LazyLock::new(|| {
        chrono_tz::TZ_VARIANTS.iter().map(|zone| (zone.name().to_lowercase(), *zone)).collect()
    });
    let other_case = || IN_LOWER_CASE.get(&name.to_lowercase()).copied();
    name.parse().ok().or_else(other_case)
}

/// A tenant's time zone. `tenant` is `None` for a job without tenants.
pub fn zone_of(dates: &Dates, tenant: Option<Tenant<'_>>) -> Result<Tz, ZoneError> {
    match &dates.zone {
        DateZone::Fixed(zone) => Ok(*zone),
        DateZone::TenantColumn(column) => {
            let Some(name) = tenant.and_then(|tenant| tenant.column(column)) else {
                return Err(ZoneError::Missing { column: column.clone() });
            };
            zone(name).ok_or_else(|| ZoneError::Unknown {
                column: column.clone(),
                found: name.to_owned(),
            })
        }
    }
}

/// A tenant's "today" at a moment. `tenant` is `None` for a job without tenants.
pub fn today(
    dates: &Dates,
    tenant: Option<Tenant<'_>>,
    at: DateTime<Utc>,
) -> Result<NaiveDate, ZoneError> {
    Ok(at.with_timezone(&zone_of(dates, tenant)?).date_naive())
}

/// Removes the tenants without a valid time zone from `positions` of a list, and hands each of them, with the
/// reason, to `left_out`. A job without dates needs no zone.
pub fn keep_with_zone(
    job: &Job,
    list: &Tenants,
    positions: &mut Vec<u32>,
    at: DateTime<Utc>,
    mut left_out: impl FnMut(Option<&str>, ZoneError),
) {
    let Some(dates) = &job.dates else { return };
    positions.retain(|position| {
        let tenant = list.get(*position as usize);
        let today = today(dates, tenant, at);
        let is_kept = today.is_ok();
        if let Err(error) = today {
            left_out(tenant.map(|tenant| tenant.id()), error);
        }
        is_kept
    });
}

/// The "today" of each slot; empty if the job has no dates. The caller first removes tenants without a
/// zone from the batch: see [`keep_with_zone`].
pub fn first_dates(job: &Job, batch: &Batch, at: DateTime<Utc>) -> Vec<NaiveDate> {
    let Some(dates) = &job.dates else { return Vec::new() };
    match job.scope {
        Scope::Global => today(dates, None, at).into_iter().collect(),
        Scope::Tenants => {
            batch.tenants().filter_map(|tenant| today(dates, Some(tenant), at).ok()).collect()
        }
    }
}

/// The last of `days` dates, of which `first` is the first.
pub fn last(first: NaiveDate, days: u16) -> NaiveDate {
    let after = u64::from(days.saturating_sub(1));
    first.checked_add_days(Days::new(after)).unwrap_or(NaiveDate::MAX)
}

/// `days` dates in a row, beginning with `first`.
pub fn all(first: NaiveDate, days: u16) -> impl Iterator<Item = NaiveDate> {
    first.iter_days().take(usize::from(days))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tenant::Tenants;

    fn local(zone: &str, at: &str) -> Result<String, ZoneError> {
        let mut list = Tenants::with_columns(["timezone"]);
        list.push("a", [Some(zone)]);
        let zone = DateZone::TenantColumn("timezone".to_owned());
        let dates = Dates { days: 7, zone, column: None };
        today(&dates, list.get(0), at.parse().unwrap()).map(|date| date.to_string())
    }

    #[test]
    fn hazard_12_today_is_the_tenants_today() {
        let cases = [
            ("UTC", "2026-03-01T00:00:00Z", "2026-03-01"),
            ("America/New_York", "2026-03-01T04:59:59Z", "2026-02-28"),
            ("America/New_York", "2026-03-01T05:00:00Z", "2026-03-01"),
            // The nights in which daylight saving time begins and ends.
            ("America/New_York", "2026-03-09T03:59:59Z", "2026-03-08"),
            ("Europe/Berlin", "2026-10-25T22:59:59Z", "2026-10-25"),
            ("Europe/Berlin", "2026-10-25T23:00:00Z", "2026-10-26"),
            // UTC+14 and UTC-11: three dates at one moment.
            ("Pacific/Kiritimati", "2026-06-01T10:30:00Z", "2026-06-02"),
            ("Pacific/Pago_Pago", "2026-06-01T10:30:00Z", "2026-05-31"),
            // Midnight does not exist on that day in Beirut.
            ("Asia/Beirut", "2026-03-28T22:00:00Z", "2026-03-29"),
            // Stored names may be in lower case.
            ("europe/berlin", "2026-10-25T23:00:00Z", "2026-10-26"),
            ("AMERICA/NEW_YORK", "2026-03-01T04:59:59Z", "2026-02-28"),
            ("utc", "2026-03-01T00:00:00Z", "2026-03-01"),
        ];
        for (zone, at, expected) in cases {
            assert_eq!(local(zone, at).as_deref(), Ok(expected), "{zone} {at}");
        }
    }

    #[test]
    fn a_zone_that_is_none_is_an_error_of_its_tenant() {
        let error = local("Mars/Olympus", "2026-03-01T00:00:00Z").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`Mars/Olympus` in the tenant's column `timezone` is no IANA time zone"
        );
    }

    #[test]
    fn dates_follow_each_other_over_the_end_of_a_month() {
        let first = NaiveDate::from_ymd_opt(2028, 2, 27).unwrap();
        let dates: Vec<_> = all(first, 4).map(|date| date.to_string()).collect();
        assert_eq!(dates, ["2028-02-27", "2028-02-28", "2028-02-29", "2028-03-01"]);
        assert_eq!(last(first, 4).to_string(), "2028-03-01");
        assert_eq!(last(first, 1), first);
    }
}
