//! How pages write numbers, sizes, times and states: each kind of value has one form everywhere.
//!
//! A state is never a colour alone: it is a shape, a word and a class.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeZone, Utc};
use maud::{Markup, html};

pub(super) use crate::domain::count::count;
use crate::domain::report::{FailureKind, Outcome};
use crate::domain::run::Trigger;
use crate::domain::shown::shown;

/// What stands where a value is not known. Screen readers read `title`.
pub(super) fn unknown() -> Markup {
    html! { span.unknown title="not known yet" { "–" } }
}

/// The value, or what stands for an unknown one.
pub(super) fn or_unknown<T>(value: Option<T>, write: impl FnOnce(T) -> Markup) -> Markup {
    value.map_or_else(unknown, write)
}

/// A count with its noun: `1 tenant`, `2 tenants`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// A number of bytes in decimal units, as cache servers are sold: `96 MB`, `1.1 GB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 { format!("{number} B") } else { format!("{} {name}", two_digits(value)) }
}

/// A positive number with two digits that count below ten, and no fraction from there on.
fn two_digits(value: f64) -> String {
    if value < 9.95 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A duration with two units at most: `12 ms`, `0.71 s`, `3 min 20 s`, `2 d 4 h`.
pub(super) fn span(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.as_millis());
    match seconds {
        0 if millis == 0 && !duration.is_zero() => "<1 ms".to_owned(),
        0 if millis < 100 => format!("{millis} ms"),
        0 => format!("{:.2} s", duration.as_secs_f64()),
        1..10 => format!("{:.1} s", tenths(duration)),
        10..60 => format!("{seconds} s"),
        60..3600 => pair(seconds / 60, "min", seconds % 60, "s"),
        3600..86_400 => pair(seconds / 3600, "h", seconds / 60 % 60, "min"),
        86_400.. => pair(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// Seconds, cut off after the first digit: a wait of 9.99 seconds is not yet one of ten.
fn tenths(duration: Duration) -> f64 {
    f64::from(u32::try_from(duration.as_millis() / 100).unwrap_or(u32::MAX)) / 10.0
}

fn pair(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large} {large_unit}")
    } else {
        format!("{large} {large_unit} {small} {small_unit}")
    }
}

/// A share in per cent. It is cut off, not rounded: only all is `100 %`, and only nothing is `0 %`.
pub(super) fn percent(share: f64) -> String {
    let percent = (share * 100.0).clamp(0.0, 100.0);
    if !percent.is_finite() {
        return "–".to_owned();
    }
    let (text, least) = if percent >= 99.0 {
        (format!("{:.2}", (percent * 100.0 + 1e-6).floor() / 100.0), "")
    } else if percent >= 9.95 {
        (format!("{:.1}", (percent * 10.0 + 1e-6).floor() / 10.0), "")
    } else if percent > 0.0 && percent < 0.01 {
        ("0.01".to_owned(), "<")
    } else {
        (format!("{percent:.2}"), "")
    };
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        text.as_str()
    };
    format!("{least}{text} %")
}

/// A moment as seen from another: `4 min ago`, `in 5 min 56 s`, `now`.
///
/// `live.js` writes the same text each second.
pub(super) fn relative(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    let milliseconds = (at - now).num_milliseconds();
    let apart = Duration::from_secs(milliseconds.unsigned_abs() / 1000);
    match (apart.as_secs(), milliseconds > 0) {
        (0, _) => "now".to_owned(),
        (_, true) => format!("in {}", coarse(apart)),
        (_, false) => format!("{} ago", coarse(apart)),
    }
}

/// Whole seconds in at most two units; far moments have one.
fn coarse(apart: Duration) -> String {
    let seconds = apart.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..600 => pair(seconds / 60, "min", seconds % 60, "s"),
        600..3600 => format!("{} min", seconds / 60),
        3600..86_400 => pair(seconds / 3600, "h", seconds / 60 % 60, "min"),
        86_400.. => pair(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// A moment to the second, with its zone: `2026-03-29 12:10:04 UTC`.
pub(super) fn absolute<Z: TimeZone>(at: &DateTime<Z>) -> String
where
    Z::Offset: std::fmt::Display,
{
    at.format("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// A moment as seen from now. Its title is the time with its zone; the page's script keeps it up to date.
pub(super) fn ago(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    html! {
        time data-rel datetime=(machine(at)) title=(absolute(&at)) { (relative(at, now)) }
    }
}

/// A moment's time, and how far it is from now.
pub(super) fn moment(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    html! { span.moment { (clock(at, now)) " " span.muted { "(" (ago(at, now)) ")" } } }
}

/// A moment's time of day, with its date where that is another day than now's.
pub(super) fn clock(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    let is_today = at.date_naive() == now.date_naive();
    let text = at.format(if is_today { "%H:%M:%S UTC" } else { "%Y-%m-%d %H:%M UTC" });
    html! { time datetime=(machine(at)) title=(absolute(&at)) { (text) } }
}

fn machine(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// How many characters of a run's id a list shows: the last ones, since the first are the time.
const SHORT: usize = 8;

/// The end of an id, with all of it as the title.
pub(super) fn short_id(id: &str) -> Markup {
    let all = shown(id);
    let skipped = all.chars().count().saturating_sub(SHORT);
    let end: String = all.chars().skip(skipped).collect();
    html! { code.id title=(all) { @if skipped > 0 { "…" } (end) } }
}

/// How many characters of a long text from data a list shows.
const LONGEST: usize = 120;

/// A text from data in one line; a long one is cut off, with all of it as the title.
pub(super) fn text(data: &str) -> Markup {
    let all = shown(data);
    if all.chars().count() <= LONGEST {
        return html! { (all) };
    }
    let begin: String = all.chars().take(LONGEST).collect();
    html! { span title=(all) { (begin) "…" } }
}

/// How something is, from the best to the worst: its shape, its class, and how urgent it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All is well.
    Ok,
    /// It is under way.
    Running,
    /// A person stopped it.
    Paused,
    /// There is nothing to judge: it never ran, is disabled, or was cancelled.
    Idle,
    /// Somebody may want to know it.
    Info,
    /// Part of it went wrong, or it is late.
    Partial,
    /// It went wrong.
    Failed,
}

impl Look {
    /// The class of its colours in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Idle => "idle",
            Self::Info => "info",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }

    /// Its shape, in a box of 12 by 12: a disc, a half disc, two strokes, a ring, a diamond, a
    /// triangle, a square.
    fn shape(self) -> &'static str {
        match self {
            Self::Ok => "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10z",
            Self::Running => "M6 1a5 5 0 1 1 0 10zM6 1a5 5 0 1 0 0 10v-1.5a3.5 3.5 0 1 1 0-7z",
            Self::Paused => "M2 1h3v10h-3zM7 1h3v10h-3z",
            Self::Idle => {
                "M6 1a5 5 0 1 1 0 10a5 5 0 1 1 0-10zM6 2.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7z"
            }
            Self::Info => "M6 0l6 6l-6 6l-6-6z",
            Self::Partial => "M6 .5l6 11h-12z",
            Self::Failed => "M1 1h10v10h-10z",
        }
    }
}

/// The shape alone, for a place whose words stand beside it.
pub(super) fn mark(look: Look) -> Markup {
    html! {
        svg class={ "mark " (look.class()) } viewBox="0 0 12 12" width="12" height="12" aria-hidden="true" {
            path d=(look.shape()) {}
        }
    }
}

/// A state: its shape and its word.
pub(super) fn state(look: Look, word: &str) -> Markup {
    html! { span class={ "state " (look.class()) } { (mark(look)) " " (word) } }
}

/// How an outcome looks.
pub(super) fn look(outcome: Outcome) -> Look {
    match outcome {
        Outcome::Ok => Look::Ok,
        Outcome::Partial => Look::Partial,
        Outcome::Failed | Outcome::Timeout => Look::Failed,
        Outcome::Cancelled => Look::Idle,
    }
}

/// An outcome's word.
pub(super) fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Partial => "partial",
        Outcome::Failed => "failed",
        Outcome::Timeout => "timed out",
        Outcome::Cancelled => "cancelled",
    }
}

/// An outcome: its shape and its word.
pub(super) fn outcome(outcome: Outcome) -> Markup {
    state(look(outcome), outcome_word(outcome))
}

/// A kind of failure in words.
pub(super) fn failure(kind: FailureKind) -> String {
    kind.as_str().replace('_', " ")
}

/// Why a run started, as the second half of a sentence.
pub(super) fn trigger_reason(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Schedule => "it was due by its schedule",
        Trigger::Startup => "the worker started",
        Trigger::Request => "somebody asked for it",
        Trigger::Change => "data changed, or tenants were left to warm again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "tenant"), "1 tenant");
        assert_eq!(counted(0, "tenant"), "0 tenants");
    }

    #[test]
    fn sizes_have_two_or_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (96_400_000, "96 MB"),
            (999_900, "1.0 MB"),
            (1_100_000_000, "1.1 GB"),
            (u64::MAX, "18447 PB"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let cases = [
            (0, "0 ms"),
            (7, "7 ms"),
            (99, "99 ms"),
            (710, "0.71 s"),
            (9_990, "9.9 s"),
            (59_999, "59 s"),
            (200_000, "3 min 20 s"),
            (600_000, "10 min"),
            (3_900_000, "1 h 5 min"),
            (187_200_000, "2 d 4 h"),
        ];
        for (millis, text) in cases {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
        assert_eq!(span(Duration::from_micros(40)), "<1 ms");
    }

    #[test]
    fn only_all_is_a_hundred_per_cent() {
        let cases = [
            (1.0, "100 %"),
            (0.999_999, "99.99 %"),
            (0.9998, "99.98 %"),
            (0.996, "99.6 %"),
            (0.5, "50 %"),
            (0.0312, "3.12 %"),
            (0.000_001, "<0.01 %"),
            (0.0, "0 %"),
            (f64::NAN, "–"),
        ];
        for (share, text) in cases {
            assert_eq!(percent(share), text, "{share}");
        }
    }

    #[test]
    fn a_moment_is_told_as_seen_from_now() {
        let now = at("2026-03-29T12:10:04Z");
        let cases = [
            ("2026-03-29T12:10:04.900Z", "now"),
            ("2026-03-29T12:10:01Z", "3 s ago"),
            ("2026-03-29T12:06:00Z", "4 min 4 s ago"),
            ("2026-03-29T11:40:00Z", "30 min ago"),
            ("2026-03-29T12:16:00Z", "in 5 min 56 s"),
            ("2026-03-27T10:10:04Z", "2 d 2 h ago"),
        ];
        for (then, text) in cases {
            assert_eq!(relative(at(then), now), text);
        }
        let html = ago(at("2026-03-29T12:10:01Z"), now).into_string();
        assert_eq!(
            html,
            "<time data-rel datetime=\"2026-03-29T12:10:01.000Z\" \
             title=\"2026-03-29 12:10:01 UTC\">3 s ago</time>"
        );
    }

    #[test]
    fn data_is_text_whatever_it_holds() {
        let hostile = "<script>alert(1)</script>\u{202e}\n";
        let html = text(hostile).into_string();
        assert_eq!(html, "&lt;script&gt;alert(1)&lt;/script&gt;\\u{202e}\\n");
        let long = text(&"é<".repeat(100)).into_string();
        assert!(long.starts_with("<span title=\"é&lt;"), "{long}");
        assert!(long.ends_with("…</span>"), "{long}");
    }
}
