//! Shares and times as sentences have them.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// A ratio in per cent with two places, rounded down, so that only all is 100 %.
pub(super) fn percent(ratio: f64) -> String {
    let hundredths = (ratio.clamp(0.0, 1.0) * 10_000.0 + 1e-6).floor() / 100.0;
    format!("{hundredths} %")
}

/// A time span in its largest unit: `40 s`, `2 min`, `3 h`, `4 d`.
pub(super) fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A moment of today as `14:07 UTC`, another with its date.
pub(super) fn moment(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let form = if at.date_naive() == now.date_naive() { "%H:%M UTC" } else { "%Y-%m-%d %H:%M UTC" };
    at.format(form).to_string()
}

/// A duration in whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_written_for_people() {
        let shares = [1.0, 0.999_99, 0.9998, 0.985, 0.0].map(percent);
        assert_eq!(shares, ["100 %", "99.99 %", "99.98 %", "98.5 %", "0 %"]);
        let spans = [-5, 59, 60, 3_599, 7_200, 172_800].map(|s| span(TimeDelta::seconds(s)));
        assert_eq!(spans, ["0 s", "59 s", "1 min", "59 min", "2 h", "2 d"]);
        let now: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
        assert_eq!(moment(now + TimeDelta::minutes(127), now), "14:07 UTC");
        assert_eq!(moment(now - TimeDelta::days(1), now), "2026-02-28 12:00 UTC");
    }
}
