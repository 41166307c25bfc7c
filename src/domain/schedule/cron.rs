//! Cron expressions in a time zone, correct also on the days on which the clocks change.
//!
//! [`croner`] decides which local times match an expression. This module decides at which instants
//! these local times happen, because local clocks skip an hour in spring and repeat an hour in autumn:
//!
//! - **Skipped hour.** If an expression has times in the skipped hour, it is due once, right after that
//!   hour. An expression for every hour (`*`) misses nothing and simply goes on.
//! - **Repeated hour.** An expression with fixed times (no `*` in seconds, minutes and hours) is due
//!   once, in the first of the two hours. An expression with a `*` there, such as `0 */10 * * * *`, is
//!   due in both.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use chrono::offset::Offset;
use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use super::{ScheduleError, ScheduleProblem};

/// A cron expression in a time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    expression: String,
    zone: Tz,
    pattern: croner::Cron,
    to_the_minute: bool,
}

/// The values that one field of an expression may have.
struct Field {
    name: &'static str,
    allowed: &'static str,
    last: u16,
    /// The words that the field may contain, in capitals.
    words: &'static [&'static str],
    /// Full names; the first three letters of each are a word of `words`.
    names: &'static [&'static str],
}

const FIELDS: [Field; 7] = [
    Field { name: "second", allowed: "0-59", last: 59, words: &[], names: &[] },
    Field { name: "minute", allowed: "0-59", last: 59, words: &[], names: &[] },
    Field { name: "hour", allowed: "0-23", last: 23, words: &[], names: &[] },
    Field {
        name: "day",
        allowed: "1-31, `L` or `15W`",
        last: 31,
        words: &["L", "W", "LW"],
        names: &[],
    },
    Field {
        name: "month",
        allowed: "1-12 or JAN-DEC",
        last: 12,
        words: &MONTHS,
        names: &MONTH_NAMES,
    },
    Field {
        name: "weekday",
        allowed: "0-7, SUN-SAT, `5L` or `5#2`",
        last: 7,
        words: &WEEKDAYS,
        names: &WEEKDAY_NAMES,
    },
    Field { name: "year", allowed: "1-5000", last: 5000, words: &[], names: &[] },
];

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];

const WEEKDAYS: [&str; 8] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "L"];

const MONTH_NAMES: [&str; 12] = [
    "JANUARY",
    "FEBRUARY",
    "MARCH",
    "APRIL",
    "MAY",
    "JUNE",
    "JULY",
    "AUGUST",
    "SEPTEMBER",
    "OCTOBER",
    "NOVEMBER",
    "DECEMBER",
];

const WEEKDAY_NAMES: [&str; 7] =
    ["SUNDAY", "MONDAY", "TUESDAY", "WEDNESDAY", "THURSDAY", "FRIDAY", "SATURDAY"];

/// Larger than any offset from UTC that a zone ever had.
const LARGEST_OFFSET: TimeDelta = TimeDelta::hours(16);

impl Cron {
    /// Parses an expression of six fields, of seven with the year, or of five without seconds.
    pub fn parse(text: &str, zone: Tz) -> Result<Self, ScheduleError> {
        let fields = split(text);
        let whole = text.len() - text.trim_start().len()..text.trim_end().len();
        let whole = whole.start.min(whole.end)..whole.end;
        let to_the_minute = fields.len() == 5;
        if !(5..=7).contains(&fields.len()) {
            let problem = ScheduleProblem::FieldCount { found: fields.len() };
            return Err(ScheduleError { problem, at: whole });
        }
        let mut canonical = Vec::with_capacity(fields.len());
        for ((at, found), field) in
            fields.iter().zip(FIELDS.iter().skip(usize::from(to_the_minute)))
        {
            canonical.push(field.canonical(found));
            if !canonical.last().is_some_and(|text| field.allows(text)) {
                let Field { name, allowed, .. } = *field;
                let problem = ScheduleProblem::Field { found: (*found).to_owned(), name, allowed };
                return Err(ScheduleError { problem, at: at.clone() });
            }
        }
        let expression = fields.iter().map(|(_, field)| *field).collect::<Vec<_>>().join(" ");
        let never = || ScheduleError { problem: ScheduleProblem::Never, at: whole.clone() };
        let pattern: croner::Cron =
            canonical.join(" ").parse().map_err(|_fields_are_right| never())?;
        if pattern.find_next_occurrence(&DateTime::UNIX_EPOCH.naive_utc(), true).is_err() {
            return Err(never());
        }
        Ok(Self { expression, zone, pattern, to_the_minute })
    }

    /// The expression, with one space between its fields.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// The expression's time zone.
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// Whether the expression has five fields, so that it has no seconds.
    pub fn is_to_the_minute(&self) -> bool {
        self.to_the_minute
    }

    /// The first due time later than `now`; `None` if there is none any more.
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut clock = self.clock(now);
        let next = loop {
            clock = self.pattern.find_next_occurrence(&clock, false).ok()?;
            if let Some(due) = self.instants(clock).into_iter().flatten().find(|due| *due > now) {
                break due;
            }
        };
        let again = self.first_of_second_pass(now).filter(|again| *again < next);
        Some(again.unwrap_or(next))
    }

    /// The longest time between two due times; `None` for an expression whose years end.
    ///
    /// It compares the times of a day with each other, then the matching days, and then looks at each
    /// change of the clocks separately. So the work is the same for every expression.
    pub fn longest_gap(&self) -> Option<Duration> {
        /// More than two years: ordinary expressions repeat by then.
        const DAYS: usize = 800;
        /// Leap days are hardly ever further apart.
        const YEARS: i64 = 12;
        let times = self.times_of_day()?;
        let mut longest = times.widest;
        let mut clock = WINDOW_START;
        let mut before: Option<NaiveDate> = None;
        for _ in 0..DAYS {
            let date = self.pattern.find_next_occurrence(&clock, true).ok()?.date();
            if let Some(before) = before {
                let days = date.signed_duration_since(before).num_days();
                longest = longest.max(days * SECONDS_A_DAY - times.last + times.first);
                if (date - WINDOW_START.date()).num_days() > YEARS * 366 {
                    break;
                }
            }
            before = Some(date);
            clock = date.checked_add_days(Days::new(1))?.and_time(NaiveTime::MIN);
        }
        let around_changes = self.clock_changes(DAYS).map(|change| self.gap_around(change));
        let longest = around_changes.flatten().fold(longest, i64::max);
        u64::try_from(longest).ok().map(Duration::from_secs)
    }

    /// The seconds of a minute at which the expression may be due, as a cron field.
    pub(super) fn bell_seconds(&self) -> String {
        let mut seconds = self.pattern.pattern.seconds.values();
        if self.makes_up() && !seconds.contains(&0) {
            seconds.insert(0, 0);
        }
        if seconds.len() == 60 {
            return "*".to_owned();
        }
        seconds.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
    }

    /// Whether the expression is due in both passes of a repeated hour.
    fn repeats(&self) -> bool {
        let pattern = &self.pattern.pattern;
        [&pattern.seconds, &pattern.minutes, &pattern.hours].iter().any(|field| field.from_wildcard)
    }

    /// Whether the expression is due right after a skipped hour that contains one of its times.
    fn makes_up(&self) -> bool {
        self.pattern.pattern.hours.values().len() < 24
    }

    fn clock(&self, at: DateTime<Utc>) -> NaiveDateTime {
        at.with_timezone(&self.zone).naive_local()
    }

    fn offset(&self, at: DateTime<Utc>) -> i32 {
        self.zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
    }

    /// The instants, in order, at which the expression is due for a matching local time.
    fn instants(&self, clock: NaiveDateTime) -> [Option<DateTime<Utc>>; 2] {
        match self.zone.from_local_datetime(&clock) {
            chrono::LocalResult::Single(at) => [Some(at.to_utc()), None],
            chrono::LocalResult::Ambiguous(first, second) => {
                [Some(first.to_utc()), self.repeats().then(|| second.to_utc())]
            }
            chrono::LocalResult::None => {
                [self.makes_up().then(|| self.end_of_gap(clock)).flatten(), None]
            }
        }
    }

    /// The instant at which the local clock skips this time.
    fn end_of_gap(&self, clock: NaiveDateTime) -> Option<DateTime<Utc>> {
        let before = clock.and_utc().checked_sub_signed(LARGEST_OFFSET)?;
        let after = clock.and_utc().checked_add_signed(LARGEST_OFFSET)?;
        Some(first_second(before, after, |at| self.clock(at) >= clock))
    }

    /// If `now` is in the first pass of a repeated hour: the first time at which the expression is due
    /// in the second pass, or after it.
    fn first_of_second_pass(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if !self.repeats() {
            return None;
        }
        let (first, second) = match self.zone.from_local_datetime(&self.clock(now)) {
            chrono::LocalResult::Ambiguous(first, second) => (first.to_utc(), second.to_utc()),
            chrono::LocalResult::Single(_) | chrono::LocalResult::None => return None,
        };
        if now != first {
            return None;
        }
        let change = first_second(first, second, |at| self.offset(at) != self.offset(first));
        let clock = self.pattern.find_next_occurrence(&self.clock(change), true).ok()?;
        self.zone.from_local_datetime(&clock).latest().map(|due| due.to_utc())
    }

    /// The instants at which the zone's offset changes, in this many days from [`WINDOW_START`] on.
    fn clock_changes(&self, days: usize) -> impl Iterator<Item = DateTime<Utc>> {
        let starts = WINDOW_START.and_utc().date_naive().iter_days().take(days);
        starts.filter_map(|day| {
            let from = day.and_time(NaiveTime::MIN).and_utc();
            let until = from.checked_add_days(Days::new(1))?;
            let before = self.offset(from);
            (before != self.offset(until))
                .then(|| first_second(from, until, |at| self.offset(at) != before))
        })
    }

    /// The seconds from the last due time before a change of the clocks to the first after it.
    fn gap_around(&self, change: DateTime<Utc>) -> Option<i64> {
        let last_second = change - TimeDelta::seconds(1);
        let clock = self.clock(last_second);
        let before = self.pattern.find_previous_occurrence(&clock, true).ok()?;
        let before = self.zone.from_local_datetime(&before).earliest()?.to_utc();
        let after = self.next_after(last_second)?;
        Some((after - before).num_seconds())
    }

    fn times_of_day(&self) -> Option<Span> {
        let pattern = &self.pattern.pattern;
        let instant = Span { first: 0, last: 0, widest: 0 };
        let minute = instant.repeated(&pattern.seconds.values(), 1)?;
        let hour = minute.repeated(&pattern.minutes.values(), 60)?;
        hour.repeated(&pattern.hours.values(), 3600)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.expression, self.zone)?;
        if self.to_the_minute { f.write_str(", to the minute") } else { Ok(()) }
    }
}

/// The first day for which gaps are measured. It is recent, because the rules of today's zones count.
const WINDOW_START: NaiveDateTime =
    NaiveDate::from_ymd_opt(2026, 1, 1).unwrap().and_time(NaiveTime::MIN);

const SECONDS_A_DAY: i64 = 24 * 60 * 60;

/// A summary of times in seconds: the first, the last, and the widest gap between neighbours.
#[derive(Clone, Copy)]
struct Span {
    first: i64,
    last: i64,
    widest: i64,
}

impl Span {
    /// The summary of these times repeated in each of these units, which have this many seconds.
    fn repeated(self, units: &[u16], seconds: i64) -> Option<Self> {
        let between = units.windows(2).filter_map(|pair| {
            let [earlier, later] = pair else { return None };
            Some(i64::from(later - earlier) * seconds - self.last + self.first)
        });
        Some(Self {
            first: i64::from(*units.first()?) * seconds + self.first,
            last: i64::from(*units.last()?) * seconds + self.last,
            widest: between.fold(self.widest, i64::max),
        })
    }
}

impl Field {
    /// A field's text in the form that [`croner`] takes: names as three capital letters, and `5/15`,
    /// which in Quartz means "every 15, beginning with 5", as a range with a step.
    fn canonical(&self, text: &str) -> String {
        let text = text.to_uppercase();
        let parts = text.split(',').map(|part| {
            let part = self.with_short_names(part);
            match part.split_once('/') {
                Some((from, step)) if is_one_value(from) => {
                    // A week ends with Saturday (6): 7 is Sunday again.
                    let last =
                        if self.name == "weekday" { "6".to_owned() } else { self.last.to_string() };
                    format!("{from}-{last}/{step}")
                }
                Some(_) | None => part,
            }
        });
        parts.collect::<Vec<_>>().join(",")
    }

    fn with_short_names(&self, part: &str) -> String {
        let mut short = part.to_owned();
        for name in self.names {
            let abbreviated = name.get(..3).unwrap_or(name);
            let mut words = short.split(|char: char| !char.is_alphabetic());
            if words.any(|word| word == *name || word.strip_suffix('L') == Some(name)) {
                short = short.replace(name, abbreviated);
            }
        }
        short
    }

    /// Whether a text is valid for this field.
    ///
    /// croner reads `MON` as `1` in every field, and accepts empty lists. So this function checks words
    /// and steps itself, and lets croner parse each field alone.
    fn allows(&self, text: &str) -> bool {
        let mut words =
            text.split(|char: char| !char.is_alphabetic()).filter(|word| !word.is_empty());
        let is_known = |word: &str| {
            let last = word.strip_suffix('L').unwrap_or(word);
            self.words.contains(&word) || self.words.contains(&last)
        };
        let step_is_in_range = |part: &str| match part.split_once('/') {
            Some((_, step)) => step.parse().is_ok_and(|step: u16| step <= self.last),
            None => true,
        };
        words.all(is_known)
            && text.split(',').all(|part| !part.is_empty() && step_is_in_range(part))
            && self.is_read_by_croner(text)
    }

    fn is_read_by_croner(&self, text: &str) -> bool {
        let alone = FIELDS.map(|field| if field.name == self.name { text } else { "*" });
        let Ok(cron) = alone.join(" ").parse::<croner::Cron>() else { return false };
        let croner::CronPattern {
            seconds, minutes, hours, days, months, days_of_week, years, ..
        } = cron.pattern;
        [seconds, minutes, hours, days, months, days_of_week, years]
            .iter()
            .all(|field| field.has_modifiers() || !field.values().is_empty())
    }
}

/// Whether a text is one number or name, and not a range, a list or `*`.
fn is_one_value(text: &str) -> bool {
    !text.is_empty() && text.chars().all(char::is_alphanumeric)
}

/// The fields of an expression, each with its range of bytes in the text.
fn split(text: &str) -> Vec<(Range<usize>, &str)> {
    text.split_whitespace()
        .map(|field| {
            let start = field.as_ptr().addr() - text.as_ptr().addr();
            (start..start + field.len(), field)
        })
        .collect()
}

/// The first whole second after `before` at which `holds` is true. It must be true at `after`, and stay
/// true from that first second on.
fn first_second(
    before: DateTime<Utc>,
    after: DateTime<Utc>,
    holds: impl Fn(DateTime<Utc>) -> bool,
) -> DateTime<Utc> {
    let at = |seconds: i64| DateTime::from_timestamp(seconds, 0).unwrap_or(after);
    let (mut before, mut after_) = (before.timestamp(), after.timestamp());
    while after_ - before > 1 {
        let middle = before.midpoint(after_);
        if holds(at(middle)) {
            after_ = middle;
        } else {
            before = middle;
        }
    }
    at(after_)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::Timelike;
    use chrono_tz::Africa::Casablanca;
    use chrono_tz::America::New_York;
    use chrono_tz::Asia::Beirut;
    use chrono_tz::Atlantic::Azores;
    use chrono_tz::Australia::Lord_Howe;
    use chrono_tz::Europe::Berlin;
    use proptest::prelude::*;

    use super::*;

    fn cron(expression: &str, zone: Tz) -> Cron {
        Cron::parse(expression, zone).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    /// The due times between two instants, as a local clock shows them.
    fn due(expression: &str, zone: Tz, from: &str, until: &str) -> Vec<String> {
        let cron = cron(expression, zone);
        let mut now = at(from);
        let mut found = Vec::new();
        while let Some(next) = cron.next_after(now).filter(|next| *next <= at(until)) {
            found.push(next.with_timezone(&zone).format("%d %H:%M:%S %Z").to_string());
            now = next;
        }
        found
    }

    #[test]
    fn an_expression_is_due_by_the_clock_of_its_zone() {
        let cases = [
            ("0 30 2 * * *", Berlin, "2026-06-01T00:29:59Z", "2026-06-01T00:30:00Z"),
            ("0 30 2 * * *", Berlin, "2026-06-01T00:30:00Z", "2026-06-02T00:30:00Z"),
            ("0 30 2 * * *", Berlin, "2026-06-01T00:29:59.999Z", "2026-06-01T00:30:00Z"),
            ("*/15 * * * * *", Tz::UTC, "2026-06-01T00:00:00.5Z", "2026-06-01T00:00:15Z"),
            ("*/10 * * * *", Tz::UTC, "2026-06-01T00:00:00Z", "2026-06-01T00:10:00Z"),
            ("0 0 9 * * MON-FRI", New_York, "2026-06-05T14:00:00Z", "2026-06-08T13:00:00Z"),
            ("0 0 0 29 2 *", Tz::UTC, "2026-06-05T14:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 12 L * *", Tz::UTC, "2026-02-05T14:00:00Z", "2026-02-28T12:00:00Z"),
            ("0 0 12 * * FRI#2", Tz::UTC, "2026-06-01T14:00:00Z", "2026-06-12T12:00:00Z"),
            ("0 0 12 * * friL", Tz::UTC, "2026-06-01T14:00:00Z", "2026-06-26T12:00:00Z"),
            ("0 0 0 1 jan * 2030", Tz::UTC, "2026-06-01T14:00:00Z", "2030-01-01T00:00:00Z"),
            ("0 0 9 * * Monday-friday", New_York, "2026-06-05T14:00:00Z", "2026-06-08T13:00:00Z"),
            ("0 0 0 1 JANUARY,july *", Tz::UTC, "2026-06-01T14:00:00Z", "2026-07-01T00:00:00Z"),
            ("0 0 12 * * fridayL", Tz::UTC, "2026-06-01T14:00:00Z", "2026-06-26T12:00:00Z"),
            ("0 0 12 * * Friday#2", Tz::UTC, "2026-06-01T14:00:00Z", "2026-06-12T12:00:00Z"),
            ("0 0/15 * * * *", Tz::UTC, "2026-06-01T00:00:00Z", "2026-06-01T00:15:00Z"),
            ("0 5/15 * * * *", Tz::UTC, "2026-06-01T00:00:00Z", "2026-06-01T00:05:00Z"),
            ("0 5/15 * * * *", Tz::UTC, "2026-06-01T00:50:00Z", "2026-06-01T01:05:00Z"),
            ("5/20 * * * *", Tz::UTC, "2026-06-01T00:46:00Z", "2026-06-01T01:05:00Z"),
            ("0 0 0 * * MON/2", Tz::UTC, "2026-06-05T14:00:00Z", "2026-06-08T00:00:00Z"),
            ("0 0 0 * * tuesday/3", Tz::UTC, "2026-06-05T14:00:00Z", "2026-06-09T00:00:00Z"),
            ("0 0 0 1 MARCH/3 *", Tz::UTC, "2026-06-05T14:00:00Z", "2026-09-01T00:00:00Z"),
            ("0 0 0 10/10 * *", Tz::UTC, "2026-06-21T14:00:00Z", "2026-06-30T00:00:00Z"),
            ("0 7,10/20 * * * *", Tz::UTC, "2026-06-01T00:00:00Z", "2026-06-01T00:07:00Z"),
        ];
        for (expression, zone, now, expected) in cases {
            let next = cron(expression, zone).next_after(at(now));
            assert_eq!(next, Some(at(expected)), "{expression} in {zone} after {now}");
        }
        assert_eq!(cron("0 0 0 1 1 * 2020", Tz::UTC).next_after(at("2026-01-01T00:00:00Z")), None);
    }

    #[test]
    fn hazard_25_a_time_that_the_clock_skips_is_due_once_right_after_the_gap() {
        let spring =
            |expression| due(expression, Berlin, "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
        assert_eq!(spring("0 30 2 * * *"), ["29 03:00:00 CEST"]);
        assert_eq!(spring("30 59 2 * * *"), ["29 03:00:00 CEST"]);
        // Several skipped times, and a time right at the end of the skipped hour, are due once.
        assert_eq!(spring("0 0,30 2,3 * * *"), ["29 03:00:00 CEST", "29 03:30:00 CEST"]);
        assert_eq!(spring("0 */20 2 * * *"), ["29 03:00:00 CEST"]);
        assert_eq!(spring("0 30 2,14 * * *"), ["29 03:00:00 CEST", "29 14:30:00 CEST"]);
        // An expression for every hour misses nothing.
        assert_eq!(spring("0 30 * * * *").len(), 23);
        // Clocks skip half an hour on Lord Howe, and midnight in Beirut and on the Azores.
        let lord_howe =
            due("0 15 2 * * *", Lord_Howe, "2026-10-03T12:00:00Z", "2026-10-04T12:00:00Z");
        assert_eq!(lord_howe, ["04 02:30:00 +11"]);
        let beirut = due("0 0 0 * * *", Beirut, "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z");
        assert_eq!(beirut, ["29 01:00:00 EEST"]);
        let azores = due("0 30 0 * * *", Azores, "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z");
        assert_eq!(azores, ["29 01:00:00 +00"]);
    }

    #[test]
    fn hazard_25_a_time_that_the_clock_shows_twice_is_due_once() {
        let autumn =
            |expression| due(expression, Berlin, "2026-10-24T22:00:00Z", "2026-10-25T22:00:00Z");
        assert_eq!(autumn("0 30 2 * * *"), ["25 02:30:00 CEST"]);
        assert_eq!(autumn("0 0,30 2 * * *"), ["25 02:00:00 CEST", "25 02:30:00 CEST"]);
        assert_eq!(autumn("0 30 2,14 * * *"), ["25 02:30:00 CEST", "25 14:30:00 CET"]);
    }

    #[test]
    fn hazard_25_an_expression_for_every_few_minutes_goes_on_through_the_repeated_hour() {
        let autumn =
            |expression| due(expression, Berlin, "2026-10-24T23:59:00Z", "2026-10-25T02:00:00Z");
        assert_eq!(
            autumn("0 */30 * * * *"),
            [
                "25 02:00:00 CEST",
                "25 02:30:00 CEST",
                "25 02:00:00 CET",
                "25 02:30:00 CET",
                "25 03:00:00 CET"
            ]
        );
        assert_eq!(autumn("0 */20 2 * * *").len(), 6);
    }

    #[test]
    fn hazard_16_the_longest_gap_of_an_expression_is_known() {
        let minutes = |expression, zone| {
            cron(expression, zone).longest_gap().map(|gap| gap.as_secs_f64() / 60.0)
        };
        let day = 24.0 * 60.0;
        assert_eq!(minutes("* * * * * *", Berlin), Some(1.0 / 60.0));
        assert_eq!(minutes("0 */10 * * * *", Berlin), Some(10.0));
        assert_eq!(minutes("0 0,10,45 * * * *", Berlin), Some(35.0));
        assert_eq!(minutes("0 */25 * * * *", Berlin), Some(25.0));
        assert_eq!(minutes("0 0 */7 * * *", Tz::UTC), Some(7.0 * 60.0));
        assert_eq!(minutes("0 30 2 * * *", Tz::UTC), Some(day));
        // The night in which the clock goes back is an hour longer.
        assert_eq!(minutes("0 30 2 * * *", Berlin), Some(day + 60.0));
        assert_eq!(minutes("0 */10 8-17 * * *", Berlin), Some(15.0 * 60.0 + 10.0));
        assert_eq!(minutes("0 0 0,12 * * *", Lord_Howe), Some(12.5 * 60.0));
        assert_eq!(minutes("* * 9-16 * * MON-FRI", Tz::UTC), Some(64.0 * 60.0 + 1.0 / 60.0));
        assert_eq!(minutes("0 0 0 1 * *", Tz::UTC), Some(31.0 * day));
        assert_eq!(minutes("0 0 0 29 2 *", Tz::UTC), Some(1461.0 * day));
        assert_eq!(minutes("0 0 0 * * * 2026-2027", Tz::UTC), None);
        assert_eq!(minutes("0 0 0 1 1 * 2020", Tz::UTC), None);
    }

    #[test]
    fn an_expression_that_other_crons_write_is_due_as_the_short_one() {
        let pairs = [
            ("0 0/15 * * * *", "0 */15 * * * *"),
            ("0 5/15 * * * *", "0 5,20,35,50 * * * *"),
            ("10/30 * * * * *", "10,40 * * * * *"),
            ("0 0 0 * JANUARY-March monday", "0 0 0 * 1-3 1"),
            ("0 0 0 * * 0/3", "0 0 0 * * 0,3,6"),
        ];
        for (one, other) in pairs {
            let [one, other] = [one, other].map(|text| cron(text, Tz::UTC));
            let mut now = at("2026-02-27T00:00:00Z");
            for _ in 0..50 {
                assert_eq!(one.next_after(now), other.next_after(now), "{one} after {now}");
                now = one.next_after(now).unwrap();
            }
            assert_eq!(one.longest_gap(), other.longest_gap(), "{one}");
            assert_eq!(one.bell_seconds(), other.bell_seconds(), "{one}");
        }
        assert_eq!(cron("0 0/15 * * * *", Tz::UTC).expression(), "0 0/15 * * * *", "as written");
    }

    #[test]
    fn a_field_that_says_nothing_is_named_with_its_place() {
        let cases = [
            ("0 60 * * * *", "minute", 2..4),
            ("0 0 24 * * *", "hour", 4..6),
            ("0 */90 * * * *", "minute", 2..6),
            ("0 60/10 * * * *", "minute", 2..7),
            ("0 0/90 * * * *", "minute", 2..6),
            ("0 /10 * * * *", "minute", 2..5),
            ("0 0/ * * * *", "minute", 2..4),
            ("0 , * * * *", "minute", 2..3),
            ("0 1, * * * *", "minute", 2..4),
            ("MON 0 * * * *", "second", 0..3),
            ("0 0 0 1 MON *", "month", 8..11),
            ("0 0 0 1 * JAN", "weekday", 10..13),
            ("0 0 0 32 * *", "day", 6..8),
            ("60 * * * *", "minute", 0..2),
            ("0 0 0 * * MONDAYS", "weekday", 10..17),
            ("0 0 0 * MONDAY *", "month", 8..14),
            ("0 0 0 * * MOND", "weekday", 10..14),
            ("0 0 0 * * * 0", "year", 12..13),
            ("0 5-1 * * * *", "minute", 2..5),
            ("0 \u{e4} * * * *", "minute", 2..4),
        ];
        for (expression, expected, place) in cases {
            let ScheduleError { problem, at } = Cron::parse(expression, Tz::UTC).unwrap_err();
            let ScheduleProblem::Field { name, .. } = problem else {
                panic!("{expression}: {problem}");
            };
            assert_eq!((name, at), (expected, place), "{expression}");
        }
        for expression in ["0 0 0 30 2 *", "0 0 0 31 4,6 *"] {
            let error = Cron::parse(expression, Tz::UTC).unwrap_err();
            assert_eq!(error.problem, ScheduleProblem::Never, "{expression}");
        }
    }

    /// A field of minutes or hours, in each way to write one.
    fn field(last: u16) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (1..=last).prop_map(|step| format!("*/{step}")),
            (0..=last).prop_map(|value| value.to_string()),
            (0..=last, 0..=last).prop_map(|(a, b)| format!("{a},{b}")),
            (0..=last, 0..=last).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        ]
    }

    /// The due times by the rules in the module's doc, computed minute by minute.
    fn expected(cron: &Cron, from: DateTime<Utc>, minutes: i64) -> BTreeSet<DateTime<Utc>> {
        let matches = |clock: NaiveDateTime| cron.pattern.is_time_matching(&clock).unwrap();
        let mut due = BTreeSet::new();
        for minute in 0..minutes {
            let now = from + TimeDelta::minutes(minute);
            let clock = cron.clock(now);
            let before = cron.clock(now - TimeDelta::minutes(1));
            let shown_before = cron.zone.from_local_datetime(&clock).earliest().unwrap() < now;
            let skipped = (1..(clock - before).num_minutes())
                .any(|minute| matches(before + TimeDelta::minutes(minute)));
            let every_hour = cron.pattern.pattern.hours.values().len() == 24;
            if matches(clock) && (cron.repeats() || !shown_before) || skipped && !every_hour {
                due.insert(now);
            }
        }
        due
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn hazard_25_due_times_around_a_change_of_the_clocks_are_those_of_the_rules(
            minute in field(59),
            hour in field(23),
            (zone, change) in prop::sample::select(vec![
                (Berlin, "2026-03-29T01:00:00Z"),
                (Berlin, "2026-10-25T01:00:00Z"),
                (New_York, "2026-03-08T07:00:00Z"),
                (New_York, "2026-11-01T06:00:00Z"),
                (Lord_Howe, "2026-10-03T15:30:00Z"),
                (Lord_Howe, "2026-04-04T15:00:00Z"),
                (Beirut, "2026-03-28T22:00:00Z"),
                (Casablanca, "2026-02-15T02:00:00Z"),
                (Casablanca, "2026-03-22T02:00:00Z"),
            ]),
        ) {
            let cron = cron(&format!("0 {minute} {hour} * * *"), zone);
            let from = at(change) - TimeDelta::hours(30);
            let until = from + TimeDelta::hours(60);
            let expected = expected(&cron, from, 60 * 60);
            let mut found = BTreeSet::new();
            let mut now = from - TimeDelta::seconds(1);
            while let Some(next) = cron.next_after(now).filter(|next| *next < until) {
                prop_assert!(next > now);
                found.insert(next);
                now = next;
            }
            prop_assert_eq!(&found, &expected);
            let longest = cron.longest_gap().unwrap();
            for (earlier, later) in found.iter().zip(found.iter().skip(1)) {
                prop_assert!((*later - *earlier).to_std().unwrap() <= longest);
            }
        }

        #[test]
        fn a_due_time_is_later_than_now_and_never_earlier_for_a_later_now(
            (second, minute, hour) in (field(59), field(59), field(23)),
            zone in prop::sample::select(vec![Tz::UTC, Berlin, New_York, Lord_Howe, Casablanca]),
            now in 1_767_000_000_000_i64..1_830_000_000_000,
            later in 0_i64..100_000_000,
        ) {
            let cron = cron(&format!("{second} {minute} {hour} * * *"), zone);
            let due = |ms| {
                let now = DateTime::from_timestamp_millis(ms).unwrap();
                (now, cron.next_after(now).unwrap())
            };
            let (now, next) = due(now);
            prop_assert!(next > now);
            prop_assert!((next - now).to_std().unwrap() <= cron.longest_gap().unwrap());
            prop_assert!(next <= due(now.timestamp_millis() + later).1);
            let bell = format!("{} * * * * *", cron.bell_seconds());
            let bell: croner::Cron = bell.parse().unwrap();
            prop_assert!(bell.is_time_matching(&next.naive_utc()).unwrap(), "silent at {}", next);
            prop_assert_eq!(next.nanosecond(), 0);
        }
    }
}
