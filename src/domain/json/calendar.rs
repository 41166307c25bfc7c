//! Days and microseconds as dates and times, in the text forms of Postgres, XML Schema and JavaScript.
//!
//! Postgres counts from 2000-01-01 in the Gregorian calendar, which it extends into the past.

/// Microseconds of a day.
pub(super) const DAY: i64 = 86_400_000_000;

/// Days from 1970-01-01 to 2000-01-01.
const EPOCH: i64 = 10_957;

/// The largest distance from 1970 that a JavaScript `Date` can hold, in milliseconds (ECMA-262,
/// 21.4.1.1).
const JS_LIMIT: i64 = 8_640_000_000_000_000;

/// A day of the calendar; year 0 is 1 BC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Civil {
    year: i64,
    month: u8,
    day: u8,
}

/// A `date`; two of its values are not days.
pub(super) enum Date {
    Finite(i64),
    Infinity,
    MinusInfinity,
}

/// A `timestamp` or `timestamptz` in microseconds since 2000; two of its values are not moments.
pub(super) enum Moment {
    Finite(i64),
    Infinity,
    MinusInfinity,
}

impl Date {
    pub(super) fn from_wire(bytes: [u8; 4]) -> Self {
        match i32::from_be_bytes(bytes) {
            i32::MAX => Self::Infinity,
            i32::MIN => Self::MinusInfinity,
            days => Self::Finite(i64::from(days)),
        }
    }
}

impl Moment {
    pub(super) fn from_wire(bytes: [u8; 8]) -> Self {
        match i64::from_be_bytes(bytes) {
            i64::MAX => Self::Infinity,
            i64::MIN => Self::MinusInfinity,
            microseconds => Self::Finite(microseconds),
        }
    }
}

/// The parts of a moment's text after its date.
#[derive(Clone, Copy)]
pub(super) struct MomentStyle {
    pub(super) separator: u8,
    pub(super) zone: &'static [u8],
}

/// `2026-03-01`, `0044-03-15 BC`, `infinity`
pub(super) fn write_date(date: &Date, out: &mut Vec<u8>) {
    match date {
        Date::Finite(days) => {
            let civil = civil_from_days(*days);
            push_date(civil, out);
            push_era(civil, out);
        }
        Date::Infinity => out.extend_from_slice(b"infinity"),
        Date::MinusInfinity => out.extend_from_slice(b"-infinity"),
    }
}

/// `2026-03-01 12:30:00.25+00`, `infinity`
pub(super) fn write_moment(moment: &Moment, style: MomentStyle, out: &mut Vec<u8>) {
    match moment {
        Moment::Finite(microseconds) => {
            let civil = civil_from_days(microseconds.div_euclid(DAY));
            push_date(civil, out);
            out.push(style.separator);
            write_time(microseconds.rem_euclid(DAY), out);
            out.extend_from_slice(style.zone);
            push_era(civil, out);
        }
        Moment::Infinity => out.extend_from_slice(b"infinity"),
        Moment::MinusInfinity => out.extend_from_slice(b"-infinity"),
    }
}

/// `12:30:00`, `12:30:00.25`; from the microseconds of a day, up to `24:00:00`.
pub(super) fn write_time(microseconds: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&clock(microseconds / 1_000_000));
    write_fraction(microseconds % 1_000_000, out);
}

/// `.25`, and nothing for zero; from the microseconds of a second.
pub(super) fn write_fraction(microseconds: i64, out: &mut Vec<u8>) {
    if microseconds == 0 {
        return;
    }
    out.push(b'.');
    let groups = [microseconds / 10_000, microseconds / 100 % 100, microseconds % 100].map(two);
    out.extend_from_slice(groups.as_flattened());
    while out.last() == Some(&b'0') {
        out.pop();
    }
}

/// A zone's offset as Postgres writes it: `+02`, `-03:30`, `+00:53:28`; from the seconds east of
/// Greenwich.
pub(super) fn write_zone(seconds: i64, out: &mut Vec<u8>) {
    out.push(if seconds < 0 { b'-' } else { b'+' });
    let distance = seconds.abs();
    let [hour, minute, second] = [distance / 3600, distance / 60 % 60, distance % 60];
    out.extend_from_slice(&two(hour));
    if minute != 0 || second != 0 {
        out.push(b':');
        out.extend_from_slice(&two(minute));
    }
    if second != 0 {
        out.push(b':');
        out.extend_from_slice(&two(second));
    }
}

/// The JSON that `pg` gives for a date in a process whose time zone is UTC.
pub(super) fn write_js_date(date: &Date, out: &mut Vec<u8>) {
    match date {
        Date::Finite(days) => push_js(mend_year_zero(civil_from_days(*days)), 0, out),
        Date::Infinity | Date::MinusInfinity => out.extend_from_slice(b"null"),
    }
}

/// The JSON that `pg` gives for a moment in a process whose time zone is UTC.
pub(super) fn write_js_moment(moment: &Moment, out: &mut Vec<u8>) {
    match moment {
        Moment::Finite(microseconds) => {
            let civil = mend_year_zero(civil_from_days(microseconds.div_euclid(DAY)));
            push_js(civil, microseconds.rem_euclid(DAY), out);
        }
        Moment::Infinity | Moment::MinusInfinity => out.extend_from_slice(b"null"),
    }
}

/// The JSON that `drizzle-orm` gives for a moment: it calls `new Date` with Postgres' text. That text
/// is not ISO 8601, so V8's fallback parser reads it. That parser takes a year below 100 for a day, a
/// month or a two-digit year, and does not know BC.
pub(super) fn write_drizzle_moment(moment: &Moment, infinity: &'static [u8], out: &mut Vec<u8>) {
    let Moment::Finite(microseconds) = moment else {
        out.extend_from_slice(infinity);
        return;
    };
    let civil = civil_from_days(microseconds.div_euclid(DAY));
    let understood = match civil.year {
        ..=0 | 13..=31 => None,
        1..=12 => u8::try_from(civil.year).ok().map(|month| Civil {
            year: 2000 + i64::from(civil.day),
            month,
            day: civil.month,
        }),
        32..=49 => Some(Civil { year: civil.year + 2000, ..civil }),
        50..=99 => Some(Civil { year: civil.year + 1900, ..civil }),
        100.. => Some(civil),
    };
    match understood {
        Some(civil) => push_js(civil, microseconds.rem_euclid(DAY), out),
        None => out.extend_from_slice(b"null"),
    }
}

/// `pg` first makes a date of the year 0 in 1900, which had no 29 February.
fn mend_year_zero(civil: Civil) -> Civil {
    match civil {
        Civil { year: 0, month: 2, day: 29 } => Civil { year: 0, month: 3, day: 1 },
        other => other,
    }
}

/// `Date.prototype.toJSON` (ECMA-262, 21.4.4.36): quoted, in milliseconds, or `null` out of range.
fn push_js(civil: Civil, microseconds: i64, out: &mut Vec<u8>) {
    let milliseconds = microseconds / 1000;
    // Only far years can be out of range, so only for them the milliseconds are computed.
    if !(-200_000..=200_000).contains(&civil.year) {
        let at = days_from_civil(civil) * (DAY / 1000) + milliseconds;
        if at.abs() > JS_LIMIT {
            out.extend_from_slice(b"null");
            return;
        }
    }
    let [m1, m2, m3, m4, m5, m6] = month_and_day(civil);
    let [t1, t2, t3, t4, t5, t6, t7, t8] = clock(milliseconds / 1000);
    let [_, f1, f2, f3] = four(milliseconds % 1000);
    if (0..=9999).contains(&civil.year) {
        let [y1, y2, y3, y4] = four(civil.year);
        out.extend_from_slice(&[b'"', y1, y2, y3, y4]);
    } else {
        out.extend_from_slice(if civil.year < 0 { b"\"-" } else { b"\"+" });
        let year = civil.year.abs();
        out.extend_from_slice(&two(year / 10_000));
        out.extend_from_slice(&four(year % 10_000));
    }
    out.extend_from_slice(&[
        m1, m2, m3, m4, m5, m6, b'T', t1, t2, t3, t4, t5, t6, t7, t8, b'.', f1, f2, f3, b'Z', b'"',
    ]);
}

/// The date as Postgres writes it, without the era.
fn push_date(civil: Civil, out: &mut Vec<u8>) {
    let year = if civil.year > 0 { civil.year } else { 1 - civil.year };
    if year <= 9999 {
        out.extend_from_slice(&four(year));
    } else {
        out.extend_from_slice(itoa::Buffer::new().format(year).as_bytes());
    }
    out.extend_from_slice(&month_and_day(civil));
}

fn push_era(civil: Civil, out: &mut Vec<u8>) {
    if civil.year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

/// `-03-01`
fn month_and_day(civil: Civil) -> [u8; 6] {
    let [[m, n], [d, e]] = [civil.month, civil.day].map(|part| two(i64::from(part)));
    [b'-', m, n, b'-', d, e]
}

/// `12:30:00`
#[expect(clippy::many_single_char_names, reason = "digits have no names")]
fn clock(seconds: i64) -> [u8; 8] {
    let [[h, i], [m, n], [s, t]] = [seconds / 3600, seconds / 60 % 60, seconds % 60].map(two);
    [h, i, b':', m, n, b':', s, t]
}

/// The two digits of every number below 100.
#[expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "the compiler evaluates it"
)]
const PAIRS: [[u8; 2]; 100] = {
    let mut table = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        table[number] = [b'0' + number as u8 / 10, b'0' + number as u8 % 10];
        number += 1;
    }
    table
};

/// Two digits of a number below 100.
fn two(number: i64) -> [u8; 2] {
    usize::try_from(number).ok().and_then(|number| PAIRS.get(number)).copied().unwrap_or(*b"00")
}

/// Four digits of a number below 10,000.
pub(super) fn four(number: i64) -> [u8; 4] {
    let [[a, b], [c, d]] = [number / 100, number % 100].map(two);
    [a, b, c, d]
}

/// The date of a day counted from 2000-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "month and day are small by construction"
)]
fn civil_from_days(days: i64) -> Civil {
    // Years begin on 1 March here, so that the leap day is the last day of its year.
    let days = days + EPOCH + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    Civil { year, month: month as u8, day: day as u8 }
}

/// The days from 1970-01-01 to a date (the same source, `days_from_civil`).
fn days_from_civil(civil: Civil) -> i64 {
    let year = civil.year - i64::from(civil.month <= 2);
    let month = i64::from(civil.month);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + i64::from(civil.day) - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, NaiveDate};
    use proptest::prelude::*;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn dates_agree_with_chrono(days in -90_000_000_i64..90_000_000) {
            let epoch = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap();
            let expected = epoch.checked_add_signed(chrono::Duration::days(days)).unwrap();
            let civil = civil_from_days(days);
            prop_assert_eq!(civil.year, i64::from(expected.year()));
            prop_assert_eq!(u32::from(civil.month), expected.month());
            prop_assert_eq!(u32::from(civil.day), expected.day());
            prop_assert_eq!(days_from_civil(civil), days + EPOCH);
        }

        #[test]
        fn any_eight_bytes_are_some_moment(bytes: [u8; 8]) {
            let moment = Moment::from_wire(bytes);
            text(|out| write_js_moment(&moment, out));
            text(|out| write_drizzle_moment(&moment, b"null", out));
        }
    }

    #[test]
    fn far_dates_are_what_javascript_says() {
        let day =
            |year, month, day| Date::Finite(days_from_civil(Civil { year, month, day }) - EPOCH);
        let cases = [
            (day(2026, 3, 1), "\"2026-03-01T00:00:00.000Z\""),
            (day(0, 1, 1), "\"0000-01-01T00:00:00.000Z\""),
            (day(0, 2, 29), "\"0000-03-01T00:00:00.000Z\""),
            (day(-43, 3, 15), "\"-000043-03-15T00:00:00.000Z\""),
            (day(10_000, 1, 1), "\"+010000-01-01T00:00:00.000Z\""),
            (day(275_760, 9, 13), "\"+275760-09-13T00:00:00.000Z\""),
            (day(275_760, 9, 14), "null"),
            (Date::Infinity, "null"),
        ];
        for (date, expected) in cases {
            assert_eq!(text(|out| write_js_date(&date, out)), expected);
        }
    }

    #[test]
    fn zones_have_as_many_parts_as_they_need() {
        let cases = [(0, "+00"), (7200, "+02"), (-12_600, "-03:30"), (3208, "+00:53:28")];
        for (seconds, expected) in cases {
            assert_eq!(text(|out| write_zone(seconds, out)), expected);
        }
    }
}
