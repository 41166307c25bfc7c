//! Durations as people write them: `90s`, `10m`, `1h30m`.

use std::time::Duration;

/// No stretch of time that a person configures is longer: a year and a day.
pub const LONGEST: Duration = Duration::from_hours(366 * 24);

/// A text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDuration {
    /// A number alone.
    #[error("a duration needs a unit")]
    NoUnit,
    /// Something else.
    #[error("a duration is a number and a unit, as in `90s`, `10m` or `1h30m`")]
    Unreadable,
    /// Less than a millisecond, or between two.
    #[error("a duration is a whole number of milliseconds, at least one")]
    TooFine,
    /// Longer than [`LONGEST`].
    #[error("a duration is at most 366 days")]
    TooLong,
}

/// Reads a duration of a job file or the command line: at least a millisecond, at most [`LONGEST`].
pub fn parse(text: &str) -> Result<Duration, BadDuration> {
    let duration = read(text)?;
    if duration.is_zero() {
        return Err(BadDuration::TooFine);
    }
    if duration > LONGEST {
        return Err(BadDuration::TooLong);
    }
    Ok(duration)
}

/// Reads a duration: any whole number of milliseconds. A setting has limits of its own.
pub fn read(text: &str) -> Result<Duration, BadDuration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(BadDuration::NoUnit);
    }
    let duration =
        humantime::parse_duration(text).map_err(|_told_by_ours| BadDuration::Unreadable)?;
    if duration.subsec_nanos() % 1_000_000 != 0 {
        return Err(BadDuration::TooFine);
    }
    Ok(duration)
}

/// The text of a duration to the millisecond, the way it would be written: `1h30m`.
pub fn text(duration: Duration) -> String {
    const UNITS: [(&str, u128); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut left = duration.as_millis();
    if left == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, milliseconds) in UNITS {
        let count = left / milliseconds;
        left %= milliseconds;
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(milliseconds in 1_u64..31_622_400_000) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse(&text(duration)), Ok(duration));
        }
    }

    #[test]
    fn a_duration_is_read_and_written_the_way_people_write_it() {
        for (written, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400)] {
            assert_eq!(parse(written), Ok(Duration::from_secs(seconds)), "{written}");
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(text(Duration::from_mins(90)), "1h30m");
        assert_eq!(text(Duration::from_secs(90)), "1m30s");
        assert_eq!(text(Duration::from_hours(25) + Duration::from_millis(5)), "1d1h5ms");
        assert_eq!(text(Duration::ZERO), "0s");
    }

    #[test]
    fn a_setting_may_be_nothing_and_longer_than_a_year() {
        assert_eq!(read("0s"), Ok(Duration::ZERO));
        assert_eq!(read("3660d"), Ok(Duration::from_hours(3660 * 24)));
        assert_eq!(read("1us"), Err(BadDuration::TooFine));
    }

    #[test]
    fn what_is_no_duration_says_why() {
        let cases = [
            ("90", BadDuration::NoUnit),
            ("1.5", BadDuration::NoUnit),
            ("", BadDuration::Unreadable),
            ("soon", BadDuration::Unreadable),
            ("-1s", BadDuration::Unreadable),
            ("0s", BadDuration::TooFine),
            ("10us", BadDuration::TooFine),
            ("1s 1us", BadDuration::TooFine),
            ("400d", BadDuration::TooLong),
            ("99999999999999999999s", BadDuration::Unreadable),
        ];
        for (written, problem) in cases {
            assert_eq!(parse(written), Err(problem), "{written}");
        }
    }
}
