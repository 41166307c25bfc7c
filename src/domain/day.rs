//! The day of a row: which of its tenant's dates the row belongs to, by a moment in one of its columns.

use std::collections::HashMap;
use std::ops::Range;

use chrono::{DateTime, NaiveDate, Offset, TimeZone};
use chrono_tz::Tz;

use super::date;
use super::job::Dates;
use super::json::ColumnType;
use super::tenant::Batch;

const SECONDS_OF_DAY: i64 = 86_400;
const MICROSECONDS: i64 = 1_000_000;
/// Seconds from 1970-01-01 to 2000-01-01.
const EPOCH: i64 = 10_957 * SECONDS_OF_DAY;
/// A local date begins less than two days before and after it begins in UTC: no zone has ever been a
/// whole day away from UTC.
const MARGIN: i64 = 2;

/// What a column says about the moment of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentType {
    /// `timestamptz`: an instant. Its date depends on the time zone.
    Instant,
    /// `timestamp`: what clock and calendar show where the tenant is.
    WallTime,
    /// `date`
    Date,
}

impl MomentType {
    /// All of them; the most frequent one first.
    pub const ALL: [Self; 3] = [Self::Instant, Self::WallTime, Self::Date];

    /// The type of a column's moments; `None` if the column has none. A domain counts as its base type.
    #[expect(clippy::wildcard_enum_match_arm, reason = "no other type says a date")]
    pub fn of(ty: &ColumnType) -> Option<Self> {
        match ty.base() {
            ColumnType::Timestamptz => Some(Self::Instant),
            ColumnType::Timestamp => Some(Self::WallTime),
            ColumnType::Date => Some(Self::Date),
            _ => None,
        }
    }

    /// The type's name in Postgres.
    pub fn name(self) -> &'static str {
        match self {
            Self::Instant => "timestamptz",
            Self::WallTime => "timestamp",
            Self::Date => "date",
        }
    }
}

/// The days of each slot of a batch.
///
/// A moment is a number, as Postgres stores it: of microseconds since 2000-01-01 00:00 (in UTC for an
/// instant), or of days since then for a date. The largest and the smallest number, Postgres' infinities,
/// are on no day.
#[derive(Debug)]
pub struct BatchDays {
    /// The different tables of the slots.
    tables: Vec<Table>,
    /// The position of each slot's table.
    of_slot: Vec<usize>,
}

/// The days of a slot. A slot has a day or none from each of these moments on, up to the next one.
#[derive(Debug, Default)]
struct Table {
    starts: Vec<(i64, Option<u16>)>,
}

impl BatchDays {
    /// The days of a batch's slots; `first_dates` is the "today" of each slot. A tenant without a time zone
    /// has no days.
    pub fn new(dates: &Dates, ty: MomentType, batch: &Batch, first_dates: &[NaiveDate]) -> Self {
        let mut days = Self { tables: Vec::new(), of_slot: Vec::with_capacity(first_dates.len()) };
        let mut known: HashMap<(Option<Tz>, NaiveDate), usize> = HashMap::new();
        for (slot, first) in first_dates.iter().enumerate() {
            let zone = match ty {
                MomentType::Instant => date::zone_of(dates, batch.tenant(slot)).ok(),
                MomentType::WallTime | MomentType::Date => None,
            };
            let table = *known.entry((zone, *first)).or_insert_with(|| {
                days.tables.push(match (ty, zone) {
                    (MomentType::Instant, Some(zone)) => Table::of_zone(zone, *first, dates.days),
                    (MomentType::Instant, None) => Table::default(),
                    (MomentType::WallTime, _) => {
                        Table::of_calendar(SECONDS_OF_DAY * MICROSECONDS, *first, dates.days)
                    }
                    (MomentType::Date, _) => Table::of_calendar(1, *first, dates.days),
                });
                days.tables.len() - 1
            });
            days.of_slot.push(table);
        }
        days
    }

    /// The position of a moment's date among the dates of a slot; `None` if it is none of them.
    pub fn day(&self, slot: usize, moment: i64) -> Option<u16> {
        self.tables.get(*self.of_slot.get(slot)?)?.day(moment)
    }

    /// The first moment of all slots' days, and the first one after them. In between may be moments that
    /// are on no day of some slot. `None` if there are no days.
    pub fn bounds(&self) -> Option<Range<i64>> {
        let bounds = self
            .tables
            .iter()
            .filter_map(|table| Some((table.starts.first()?.0, table.starts.last()?.0)));
        let (start, end) = bounds.reduce(|(start, end), (other_start, other_end)| {
            (start.min(other_start), end.max(other_end))
        })?;
        Some(start..end)
    }
}

impl Table {
    fn day(&self, moment: i64) -> Option<u16> {
        let after = self.starts.partition_point(|(start, _)| *start <= moment);
        self.starts.get(after.checked_sub(1)?)?.1
    }

    /// The days by a clock without a zone; a day has this many units.
    fn of_calendar(unit: i64, first: NaiveDate, days: u16) -> Self {
        let first = number(first);
        let start = |day: u16| (first + i64::from(day)) * unit;
        let mut starts: Vec<_> = (0..days).map(|day| (start(day), Some(day))).collect();
        starts.push((start(days), None));
        Self { starts }
    }

    /// The days in a time zone, each from the first instant at which the local date is that day's. Most
    /// days are one piece of time. A day may be two, because a clock that is set back just after midnight
    /// shows the date before once more; and none, because a zone has skipped a date.
    fn of_zone(zone: Tz, first: NaiveDate, days: u16) -> Self {
        let first = days_since_1970(first);
        let end = first + i64::from(days);
        let pieces = pieces(zone, (first - MARGIN)..(end + MARGIN));
        let of_local_day =
            |day: i64| u16::try_from(day - first).ok().filter(|position| *position < days);
        let last = pieces.iter().rposition(|(_, day)| *day < end).unwrap_or_default();
        let mut starts: Vec<(i64, Option<u16>)> = pieces
            .iter()
            .take(last + 2)
            .skip_while(|(_, day)| *day < first)
            .map(|(start, day)| ((start - EPOCH) * MICROSECONDS, of_local_day(*day)))
            .collect();
        if let Some((_, after)) = starts.last_mut() {
            *after = None;
        }
        starts.dedup_by_key(|(_, day)| *day);
        Self { starts }
    }
}

/// A date as a moment of a column of dates: the days from 2000-01-01 to it.
pub fn number(date: NaiveDate) -> i64 {
    days_since_1970(date) - EPOCH / SECONDS_OF_DAY
}

fn days_since_1970(date: NaiveDate) -> i64 {
    date.signed_duration_since(DateTime::UNIX_EPOCH.date_naive()).num_days()
}

/// The local dates in a time zone, from the beginning of a day to that of another in UTC: the instants in
/// seconds since 1970 at which another local date begins, and that date in days since 1970.
fn pieces(zone: Tz, days: Range<i64>) -> Vec<(i64, i64)> {
    let mut pieces: Vec<(i64, i64)> = Vec::new();
    let (mut at, to) = (days.start * SECONDS_OF_DAY, days.end * SECONDS_OF_DAY);
    while at < to {
        let offset = offset(zone, at);
        let until = next_offset(zone, at, offset, to);
        while at < until {
            let day = (at + offset).div_euclid(SECONDS_OF_DAY);
            if pieces.last().is_none_or(|(_, before)| *before != day) {
                pieces.push((at, day));
            }
            at = until.min((day + 1) * SECONDS_OF_DAY - offset);
        }
    }
    pieces
}

/// The first second from `at` on with another offset than this one; `to` if there is none before.
fn next_offset(zone: Tz, at: i64, same: i64, to: i64) -> i64 {
    // No zone has changed its offset twice within six days since 1970.
    const STEP: i64 = SECONDS_OF_DAY;
    let mut before = at;
    while before < to {
        let mut after = to.min(before + STEP);
        if offset(zone, after) == same {
            before = after;
            continue;
        }
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            if offset(zone, middle) == same {
                before = middle;
            } else {
                after = middle;
            }
        }
        return after;
    }
    to
}

/// A zone's offset from UTC at a second since 1970, in seconds.
fn offset(zone: Tz, at: i64) -> i64 {
    let at = DateTime::from_timestamp(at, 0).unwrap_or_default().naive_utc();
    zone.offset_from_utc_datetime(&at).fix().local_minus_utc().into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{Days, TimeDelta, Utc};

    use super::*;
    use crate::domain::job::DateZone;
    use crate::domain::tenant::Tenants;

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    fn instant(text: &str) -> i64 {
        let at: DateTime<Utc> = text.parse().unwrap();
        at.timestamp_micros() - EPOCH * MICROSECONDS
    }

    fn shown(moment: i64) -> String {
        let at = DateTime::from_timestamp_micros(moment + EPOCH * MICROSECONDS).unwrap();
        at.format("%m-%dT%H:%M").to_string()
    }

    fn in_zone(zone: &str, first: &str, days: u16) -> BatchDays {
        let zone = DateZone::Fixed(zone.parse().unwrap());
        let dates = Dates { days, zone, column: Some("at".to_owned()) };
        BatchDays::new(&dates, MomentType::Instant, &Batch::global(), &[day(first)])
    }

    /// The position of a date among `days` dates, of which `first` is the first, by counting.
    fn position(first: NaiveDate, days: u16, date: NaiveDate) -> Option<u16> {
        let after = date.signed_duration_since(first).num_days();
        u16::try_from(after).ok().filter(|position| *position < days)
    }

    /// Each start with the day from there on; `-` for none.
    #[track_caller]
    fn check(zone: &str, first: &str, days: u16, expected: &[(&str, &str)]) {
        let found = in_zone(zone, first, days);
        let text = |day: &Option<u16>| day.map_or("-".to_owned(), |day| day.to_string());
        let starts = found.tables[0].starts.iter();
        let starts: Vec<_> = starts.map(|(at, day)| (shown(*at), text(day))).collect();
        let starts: Vec<_> = starts.iter().map(|(at, day)| (at.as_str(), day.as_str())).collect();
        assert_eq!(starts, expected, "{zone} {first}");
    }

    #[test]
    fn hazard_12_a_day_is_the_time_in_which_the_local_date_is_its_date() {
        check(
            "UTC",
            "2026-03-01",
            2,
            &[("03-01T00:00", "0"), ("03-02T00:00", "1"), ("03-03T00:00", "-")],
        );
        check("Pacific/Kiritimati", "2026-06-02", 1, &[("06-01T10:00", "0"), ("06-02T10:00", "-")]);
        check("Pacific/Pago_Pago", "2026-06-02", 1, &[("06-02T11:00", "0"), ("06-03T11:00", "-")]);
        // A day of 23 hours and one of 25.
        check("America/New_York", "2026-03-08", 1, &[("03-08T05:00", "0"), ("03-09T04:00", "-")]);
        check("Europe/Berlin", "2026-10-25", 1, &[("10-24T22:00", "0"), ("10-25T23:00", "-")]);
        // Midnight is skipped in Beirut in spring. In autumn the hour before it comes twice.
        check("Asia/Beirut", "2026-03-29", 1, &[("03-28T22:00", "0"), ("03-29T21:00", "-")]);
        check("Asia/Beirut", "2026-10-24", 1, &[("10-23T21:00", "0"), ("10-24T22:00", "-")]);
        // The clock was set back at 00:01: after a minute of the next date, this one came again.
        let twice = [
            ("11-06T02:30", "0"),
            ("11-07T02:30", "-"),
            ("11-07T02:31", "0"),
            ("11-07T03:30", "-"),
        ];
        check("America/St_Johns", "2010-11-06", 1, &twice);
        let twice = [
            ("11-07T02:30", "0"),
            ("11-07T02:31", "-"),
            ("11-07T03:30", "0"),
            ("11-08T03:30", "-"),
        ];
        check("America/St_Johns", "2010-11-07", 1, &twice);
        // Apia skipped 30 December 2011.
        check(
            "Pacific/Apia",
            "2011-12-29",
            3,
            &[("12-29T10:00", "0"), ("12-30T10:00", "2"), ("12-31T10:00", "-")],
        );
        check("Pacific/Apia", "2011-12-30", 1, &[("12-30T10:00", "-")]);
    }

    #[test]
    fn hazard_12_moments_at_the_edges_and_infinities_are_on_the_right_day_or_on_none() {
        let found = in_zone("America/New_York", "2026-03-07", 2);
        for (at, expected) in [
            ("2026-03-07T04:59:59.999999Z", None),
            ("2026-03-07T05:00:00Z", Some(0)),
            ("2026-03-08T04:59:59.999999Z", Some(0)),
            ("2026-03-08T05:00:00Z", Some(1)),
            ("2026-03-09T03:59:59.999999Z", Some(1)),
            ("2026-03-09T04:00:00Z", None),
        ] {
            assert_eq!(found.day(0, instant(at)), expected, "{at}");
        }
        assert_eq!((found.day(0, i64::MIN), found.day(0, i64::MAX)), (None, None));
        assert_eq!(found.day(1, instant("2026-03-07T12:00:00Z")), None, "there is no such slot");
    }

    fn two_zones(ty: MomentType) -> BatchDays {
        let mut list = Tenants::with_columns(["timezone"]);
        for zone in [Some("Pacific/Kiritimati"), Some("Pacific/Pago_Pago"), None] {
            list.push("tenant", [zone]);
        }
        let zone = DateZone::TenantColumn("timezone".to_owned());
        let dates = Dates { days: 2, zone, column: Some("at".to_owned()) };
        let batch = Batch::new(Arc::new(list), vec![0, 1, 2]);
        let first = [day("2026-06-02"), day("2026-05-31"), day("2026-06-01")];
        BatchDays::new(&dates, ty, &batch, &first)
    }

    #[test]
    fn hazard_12_the_bounds_of_a_batch_reach_over_the_days_of_all_its_tenants() {
        let found = two_zones(MomentType::Instant);
        let bounds = instant("2026-05-31T11:00:00Z")..instant("2026-06-03T10:00:00Z");
        assert_eq!(found.bounds(), Some(bounds));
        let noon = instant("2026-06-01T12:00:00Z");
        assert_eq!([0, 1, 2].map(|slot| found.day(slot, noon)), [Some(0), Some(1), None]);

        let midnight = |text: &str| instant(&format!("{text}T00:00:00Z"));
        let found = two_zones(MomentType::WallTime);
        assert_eq!(found.bounds(), Some(midnight("2026-05-31")..midnight("2026-06-04")));
        let at = midnight("2026-06-02");
        assert_eq!([0, 1, 2].map(|slot| found.day(slot, at)), [Some(0), None, Some(1)]);
        assert_eq!([0, 1, 2].map(|slot| found.day(slot, at - 1)), [None, Some(1), Some(0)]);

        let number = |text: &str| midnight(text) / (SECONDS_OF_DAY * MICROSECONDS);
        let found = two_zones(MomentType::Date);
        assert_eq!(found.bounds(), Some(number("2026-05-31")..number("2026-06-04")));
        let date = number("2026-06-02");
        assert_eq!([0, 1, 2].map(|slot| found.day(slot, date)), [Some(0), None, Some(1)]);
        assert_eq!(found.day(0, i32::MAX.into()), None);

        let zone = DateZone::Fixed(Tz::UTC);
        let dates = Dates { days: 2, zone, column: Some("at".to_owned()) };
        let none = BatchDays::new(&dates, MomentType::Instant, &Batch::global(), &[]);
        assert_eq!(none.bounds(), None);
    }

    /// Every zone's years, by steps that meet every hour of the day.
    #[test]
    fn hazard_12_every_zone_has_the_date_that_its_clock_shows() {
        let first = day("2026-01-01");
        for zone in chrono_tz::TZ_VARIANTS {
            let found = in_zone(zone.name(), "2026-01-01", 366);
            let start: DateTime<Utc> = "2025-12-30T00:00:00Z".parse().unwrap();
            for step in 0..(370 * 24 / 7) {
                let at = start + TimeDelta::hours(step * 7);
                let local = at.with_timezone(&zone).date_naive();
                let expected = position(first, 366, local);
                let moment = at.timestamp_micros() - EPOCH * MICROSECONDS;
                assert_eq!(found.day(0, moment), expected, "{zone} {at}");
            }
            assert_eq!(found.tables[0].starts.last().unwrap().1, None);
        }
        assert_eq!(position(first, 2, first + Days::new(2)), None);
    }
}
