//! When a job is due.

mod cron;

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

pub use self::cron::Cron;
use super::duration::{self, BadDuration};

/// When a job is due: a pure function of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// On the epoch grid: at every multiple of the interval since 1970. Every replica is due at the same
    /// instant, and changes of local clocks do not matter.
    Every(Duration),
    /// By a cron expression in a time zone.
    Cron(Box<Cron>),
}

/// The shortest allowed interval, because the bell rings at most once a second.
pub const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// Why a text is not a schedule, and where in the text the problem is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ScheduleError {
    /// What is wrong.
    pub problem: ScheduleProblem,
    /// The range of bytes in the text that has the problem.
    pub at: Range<usize>,
}

/// The reasons why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleProblem {
    /// The text after `every` is not a duration.
    #[error("{0}")]
    Interval(BadDuration),
    /// The interval is too short.
    #[error("an interval is at least 1s")]
    TooOften,
    /// Too few or too many fields.
    #[error(
        "a cron expression has six fields, `second minute hour day month weekday`, and this has {found}"
    )]
    FieldCount {
        /// The number of fields.
        found: usize,
    },
    /// A field with an invalid value.
    #[error("`{found}` is no {name} of a cron expression")]
    Field {
        /// The text of the field.
        found: String,
        /// The field's name.
        name: &'static str,
        /// The values that the field may have.
        allowed: &'static str,
    },
    /// Each field is valid, but together they match no time.
    #[error("no time matches this cron expression")]
    Never,
}

impl Schedule {
    /// Parses `every DURATION`, or a cron expression, whose times are in this zone.
    pub fn parse(text: &str, zone: Tz) -> Result<Self, ScheduleError> {
        match text.trim_start().strip_prefix("every") {
            Some(interval) if !interval.starts_with(|char: char| char.is_alphanumeric()) => {
                let at = text.len() - interval.trim_start().len()..text.trim_end().len();
                let at = at.start.min(at.end)..at.end;
                parse_interval(interval).map_err(|problem| ScheduleError { problem, at })
            }
            Some(_) | None => Ok(Self::Cron(Box::new(Cron::parse(text, zone)?))),
        }
    }

    /// The first due time later than `now`; `None` if there is none any more.
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::Every(interval) => {
                let interval = i64::try_from(interval.as_millis()).ok().filter(|&ms| ms > 0)?;
                let passed = now.timestamp_millis().div_euclid(interval);
                let next = passed.checked_add(1)?.checked_mul(interval)?;
                DateTime::from_timestamp_millis(next)
            }
            Self::Cron(cron) => cron.next_after(now),
        }
    }

    /// The longest time between two due times; `None` for a schedule that ends.
    pub fn longest_gap(&self) -> Option<Duration> {
        match self {
            Self::Every(interval) => Some(*interval),
            Self::Cron(cron) => cron.longest_gap(),
        }
    }

    /// The six-field cron pattern, in UTC, of the bell that wakes the engine whenever the schedule may
    /// be due. The bell may ring more often; [`Self::next_after`] decides what is due.
    pub fn bell_pattern(&self) -> String {
        match self {
            Self::Every(interval) => {
                let on_the_minute = interval.as_millis() % 60_000 == 0;
                if on_the_minute { "0 * * * * *" } else { "* * * * * *" }.to_owned()
            }
            Self::Cron(cron) => format!("{} * * * * *", cron.bell_seconds()),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(interval) => write!(f, "every {}", duration::text(*interval)),
            Self::Cron(cron) => cron.fmt(f),
        }
    }
}

fn parse_interval(text: &str) -> Result<Schedule, ScheduleProblem> {
    let interval = duration::parse(text).map_err(ScheduleProblem::Interval)?;
    if interval < SHORTEST_INTERVAL {
        return Err(ScheduleProblem::TooOften);
    }
    Ok(Schedule::Every(interval))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn every(text: &str) -> Schedule {
        Schedule::parse(text, Tz::UTC).unwrap()
    }

    #[test]
    fn an_interval_is_due_on_the_epoch_grid() {
        let cases = [
            ("every 10m", "2026-03-01T12:34:56Z", "2026-03-01T12:40:00Z"),
            ("every 10m", "2026-03-01T12:40:00Z", "2026-03-01T12:50:00Z"),
            ("every 10m", "2026-03-01T12:39:59.999999999Z", "2026-03-01T12:40:00Z"),
            ("every 1500ms", "1970-01-01T00:00:01.5Z", "1970-01-01T00:00:03Z"),
            ("every 1h", "1969-12-31T23:30:00Z", "1970-01-01T00:00:00Z"),
            ("every 7d", "2026-03-01T00:00:00Z", "2026-03-05T00:00:00Z"),
        ];
        for (text, now, due) in cases {
            let next = every(text).next_after(now.parse().unwrap());
            assert_eq!(next, Some(due.parse().unwrap()), "{text} after {now}");
        }
        assert_eq!(every("every 90s").next_after(DateTime::<Utc>::MAX_UTC), None);
    }

    #[test]
    fn hazard_25_an_interval_does_not_see_the_clocks_change() {
        let ten = every("every 10m");
        let mut now: DateTime<Utc> = "2026-10-24T22:00:00Z".parse().unwrap();
        let end: DateTime<Utc> = "2026-10-25T04:00:00Z".parse().unwrap();
        while now < end {
            let next = ten.next_after(now).unwrap();
            assert_eq!(next - now, chrono::TimeDelta::minutes(10));
            now = next;
        }
    }

    #[test]
    fn hazard_22_the_bell_rings_whenever_a_job_may_be_due() {
        let bell = |text| every(text).bell_pattern();
        assert_eq!(bell("every 10m"), "0 * * * * *");
        assert_eq!(bell("every 90s"), "* * * * * *");
        assert_eq!(bell("every 1m 500ms"), "* * * * * *");
        assert_eq!(bell("* * * * * *"), "* * * * * *");
        assert_eq!(bell("15,45 * * * * *"), "15,45 * * * * *");
        assert_eq!(bell("*/20 * * * * *"), "0,20,40 * * * * *");
        assert_eq!(bell("*/5 * * * *"), "0 * * * * *");
        // A time in the hour that daylight saving time skips is due right after it, which is on the
        // minute.
        assert_eq!(bell("30 30 2 * * *"), "0,30 * * * * *");
    }

    #[test]
    fn a_schedule_reads_back_as_it_was_meant() {
        assert_eq!(every("every 90m").to_string(), "every 1h30m");
        assert_eq!(every(" every  1h 30m ").to_string(), "every 1h30m");
        let cron = Schedule::parse("0  30 2 * * *", chrono_tz::Europe::Berlin).unwrap();
        assert_eq!(cron.to_string(), "0 30 2 * * * in Europe/Berlin");
        assert_eq!(every("30 2 * * *").to_string(), "30 2 * * * in UTC, to the minute");
    }

    #[test]
    fn what_is_wrong_with_a_schedule_is_said_with_its_place() {
        let cases = [
            ("every 90", ScheduleProblem::Interval(BadDuration::NoUnit), 6..8),
            ("every day", ScheduleProblem::Interval(BadDuration::Unreadable), 6..9),
            ("every", ScheduleProblem::Interval(BadDuration::Unreadable), 5..5),
            ("every ", ScheduleProblem::Interval(BadDuration::Unreadable), 5..5),
            ("every 500ms", ScheduleProblem::TooOften, 6..11),
            ("every 400d", ScheduleProblem::Interval(BadDuration::TooLong), 6..10),
            ("", ScheduleProblem::FieldCount { found: 0 }, 0..0),
            ("everything", ScheduleProblem::FieldCount { found: 1 }, 0..10),
            ("10m", ScheduleProblem::FieldCount { found: 1 }, 0..3),
            ("@daily", ScheduleProblem::FieldCount { found: 1 }, 0..6),
        ];
        for (text, problem, at) in cases {
            let found = Schedule::parse(text, Tz::UTC).unwrap_err();
            assert_eq!(found, ScheduleError { problem, at }, "`{text}`");
        }
    }

    proptest! {
        #[test]
        fn an_interval_is_due_later_than_now_on_the_grid_and_within_one_interval(
            interval in 1_000_u64..100_000_000,
            now in -1_000_000_000_000_i64..4_000_000_000_000,
            nanos in 0_u32..1_000_000,
        ) {
            let schedule = Schedule::Every(Duration::from_millis(interval));
            let now = DateTime::from_timestamp_millis(now).unwrap()
                + Duration::from_nanos(u64::from(nanos));
            let next = schedule.next_after(now).unwrap();
            prop_assert!(next > now);
            prop_assert!((next - now).to_std().unwrap() <= Duration::from_millis(interval));
            prop_assert_eq!(next.timestamp_subsec_nanos() % 1_000_000, 0);
            prop_assert_eq!(next.timestamp_millis().rem_euclid(i64::try_from(interval).unwrap()), 0);
        }

        #[test]
        fn a_later_now_never_has_an_earlier_due_time(
            interval in 1_000_u64..100_000_000,
            now in 0_i64..4_000_000_000_000,
            later in 0_i64..200_000_000,
        ) {
            let schedule = Schedule::Every(Duration::from_millis(interval));
            let at = |ms| schedule.next_after(DateTime::from_timestamp_millis(ms).unwrap()).unwrap();
            prop_assert!(at(now) <= at(now + later));
        }

        #[test]
        fn any_text_is_a_schedule_or_a_problem_within_it(text in "\\PC{0,40}") {
            if let Err(error) = Schedule::parse(&text, Tz::UTC) {
                prop_assert!(text.get(error.at.clone()).is_some(), "{:?}", error);
            }
        }
    }
}
