//! Charts: SVG that is drawn here, without a script. Coordinates are whole numbers inside the `viewBox`. Each
//! chart says in words what it shows, and large ones have a table with the same numbers.
//!
//! Outcomes differ in shape as well as in colour: a full bar is `ok`, one with a notch `partial`, a hollow one
//! failed, and a stub was cancelled. Labels of axes are HTML beside the drawing, so that they stay legible on a
//! narrow screen.

use std::time::Duration;

use chrono::{DateTime, Utc};
use maud::{Markup, html};

use super::words;
use crate::domain::report::Outcome;

/// How many runs a job's bars show at most.
pub(super) const MAX_BARS: usize = 50;

/// A run as a bar: how long it took, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    /// Its height.
    pub(super) took: Duration,
    /// Its shape.
    pub(super) outcome: Outcome,
}

/// The last runs of a job in the place of a word, the newest at the right. Runs as long as `limit` or longer
/// have full height.
pub(super) fn sparkline(bars: &[Bar], limit: Option<Duration>) -> Markup {
    const SLOT: u32 = 4;
    const WIDTH: u32 = 200;
    const HEIGHT: u32 = 24;
    let bars = newest(bars);
    if bars.is_empty() {
        return html! { span.muted { "no runs yet" } };
    }
    let scale =
        Scale::of(bars.iter().map(|bar| bar.took), limit, Ends { bottom: HEIGHT, least: 5 });
    let skipped = to_u32(MAX_BARS.saturating_sub(bars.len()));
    let shapes = paths(bars.iter().enumerate().map(|(place, bar)| {
        let left = (skipped + to_u32(place)) * SLOT;
        (bar.outcome, Column { left, width: SLOT - 1, top: scale.y(bar.took), bottom: HEIGHT })
    }));
    html! {
        svg.spark viewBox=(view_box(WIDTH, HEIGHT)) width=(WIDTH) height=(HEIGHT) role="img"
            aria-label=(bars_in_words(bars)) {
            (shapes)
        }
    }
}

/// What bars show, in a sentence: `last 50 runs: 48 ok, 2 partial; the longest took 1.2 s`.
pub(super) fn bars_in_words(bars: &[Bar]) -> String {
    let bars = newest(bars);
    let longest = bars.iter().map(|bar| bar.took).max().unwrap_or_default();
    let counts: Vec<_> = Outcome::ALL
        .into_iter()
        .map(|outcome| (outcome, bars.iter().filter(|bar| bar.outcome == outcome).count()))
        .filter(|(_, count)| *count > 0)
        .map(|(outcome, count)| format!("{count} {}", words::outcome_word(outcome)))
        .collect();
    match bars.len() {
        0 => "no runs yet".to_owned(),
        1 => {
            let word = bars.first().map(|bar| words::outcome_word(bar.outcome)).unwrap_or_default();
            format!("last run: {word}; it took {}", words::span(longest))
        }
        runs => format!(
            "last {runs} runs: {}; the longest took {}",
            counts.join(", "),
            words::span(longest)
        ),
    }
}

fn newest(bars: &[Bar]) -> &[Bar] {
    bars.get(bars.len().saturating_sub(MAX_BARS)..).unwrap_or_default()
}

/// A run of a chart of durations.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Its height and shape.
    pub(super) bar: Bar,
    /// When it started.
    pub(super) started_at: DateTime<Utc>,
    /// Its page.
    pub(super) link: String,
}

/// A level of a chart that durations are compared with, such as the interval.
#[derive(Clone, Debug)]
pub(super) struct Level {
    /// Its name.
    pub(super) name: &'static str,
    /// Its class in the style sheet.
    pub(super) class: &'static str,
    /// Its height.
    pub(super) at: Duration,
}

/// How long a job's runs took, oldest first, on a logarithmic scale, against such levels as its interval and
/// its TTL.
pub(super) fn durations(runs: &[Run], levels: &[Level], now: DateTime<Utc>) -> Markup {
    const SLOT: u32 = 12;
    const HEIGHT: u32 = 120;
    const WIDTH: u32 = SLOT * 50;
    let runs = runs.get(runs.len().saturating_sub(MAX_BARS)..).unwrap_or_default();
    let bars: Vec<_> = runs.iter().map(|run| run.bar).collect();
    let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
        return html! { p.muted { "No run has ended yet." } };
    };
    let all = bars.iter().map(|bar| bar.took).chain(levels.iter().map(|level| level.at));
    let scale = Scale::logarithmic(all, Ends { bottom: HEIGHT, least: 6 });
    let skipped = to_u32(MAX_BARS.saturating_sub(runs.len()));
    let columns = runs.iter().enumerate().map(|(place, run)| {
        let left = (skipped + to_u32(place)) * SLOT;
        let top = scale.y(run.bar.took);
        (run, Column { left, width: SLOT - 3, top, bottom: HEIGHT })
    });
    html! {
        figure.chart {
            figcaption {
                b { "Duration of the last " (words::counted(runs.len() as u64, "run")) }
                @for level in levels {
                    span class={ "key level " (level.class) } { (level.name) " " (words::span(level.at)) }
                }
            }
            div.plot {
                svg viewBox=(view_box(WIDTH, HEIGHT)) preserveAspectRatio="none" role="group"
                    aria-label=(bars_in_words(&bars)) {
                    @for level in levels {
                        path class={ "level " (level.class) } vector-effect="non-scaling-stroke" d={ "M0 " (scale.y(level.at)) "H" (WIDTH) } {}
                    }
                    @for (run, column) in columns {
                        @let title = run_in_words(run);
                        a href=(run.link) aria-label=(title) tabindex="-1" {
                            path class=(words::look(run.bar.outcome).class()) fill-rule="evenodd"
                                d=(column.shape(run.bar.outcome)) { title { (title) } }
                        }
                    }
                }
            }
            div.axis {
                span { (words::clock(first.started_at, now)) }
                span.muted { "logarithmic scale" }
                span { (words::clock(last.started_at, now)) }
            }
            (durations_table(runs, now))
        }
    }
}

fn run_in_words(run: &Run) -> String {
    let Bar { took, outcome } = run.bar;
    format!(
        "{}: {}, took {}",
        words::absolute(&run.started_at),
        words::outcome_word(outcome),
        words::span(took)
    )
}

fn durations_table(runs: &[Run], now: DateTime<Utc>) -> Markup {
    html! {
        details.twin id="durations-table" {
            summary { "The same as a table" }
            table {
                thead { tr { th scope="col" { "Started" } th scope="col" { "Outcome" } th scope="col" { "Took" } } }
                tbody {
                    @for run in runs.iter().rev() {
                        tr {
                            td { a href=(run.link) { (words::clock(run.started_at, now)) } }
                            td { (words::outcome(run.bar.outcome)) }
                            td.number { (words::span(run.bar.took)) }
                        }
                    }
                }
            }
        }
    }
}

/// A figure over time, at equal distances, oldest first. A value that is not known is a gap.
#[derive(Clone, Debug)]
pub(super) struct Series<'a> {
    /// What it is.
    pub(super) name: &'a str,
    /// Its values.
    pub(super) values: &'a [Option<f64>],
    /// The time between two of them.
    pub(super) step: Duration,
    /// The moment of the last value.
    pub(super) until: DateTime<Utc>,
    /// Which values the height covers.
    pub(super) range: Span,
    /// How a value is written.
    pub(super) write: fn(f64) -> String,
}

/// Which values a chart's height covers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Span {
    /// From zero to the largest value.
    FromZero,
    /// Shares: from a round value below the smallest to all.
    Share,
}

/// A series as a line, with the same numbers by the hour as a table. `id` tells it from the page's others.
pub(super) fn series(id: &str, series: &Series<'_>) -> Markup {
    const WIDTH: u32 = 600;
    const HEIGHT: u32 = 120;
    let Series { name, values, write, until, .. } = series;
    let known: Vec<f64> = finite(values).flatten().collect();
    let Some(last) = known.last() else {
        return html! {
            figure.chart { figcaption { b { (name) } } p.muted { "Nothing is known yet." } }
        };
    };
    let (low, high) = series.range.bounds(&known);
    let (line, area) = line(&finite(values).collect::<Vec<_>>(), (low, high), (WIDTH, HEIGHT));
    let smallest = known.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let said =
        format!("{name}: {} now, from {} to {}", write(*last), write(smallest), write(largest));
    html! {
        figure.chart {
            figcaption { b { (name) } span { (write(*last)) } }
            div.plot {
                span.high aria-hidden="true" { (write(high)) }
                span.low aria-hidden="true" { (write(low)) }
                svg viewBox=(view_box(WIDTH, HEIGHT)) preserveAspectRatio="none" role="img"
                    aria-label=(said) {
                    path.area d=(area) {}
                    path.line d=(line) vector-effect="non-scaling-stroke" {}
                }
            }
            div.axis {
                span { (words::clock(series.at(0), *until)) }
                span { (words::clock(*until, *until)) }
            }
            (series_table(id, series))
        }
    }
}

/// A series in the place of a word.
pub(super) fn small_series(name: &str, values: &[Option<f64>], range: Span) -> Markup {
    const WIDTH: u32 = 120;
    const HEIGHT: u32 = 24;
    let values: Vec<_> = finite(values).collect();
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    if known.len() < 2 {
        return html! {};
    }
    let (line, area) = line(&values, range.bounds(&known), (WIDTH, HEIGHT));
    html! {
        svg.spark.trend viewBox=(view_box(WIDTH, HEIGHT)) width=(WIDTH) height=(HEIGHT)
            preserveAspectRatio="none" role="img" aria-label={ (name) ", last 24 hours" } {
            path.area d=(area) {}
            path.line d=(line) vector-effect="non-scaling-stroke" {}
        }
    }
}

impl Series<'_> {
    fn at(&self, place: usize) -> DateTime<Utc> {
        let before = to_u32(self.values.len().saturating_sub(place + 1));
        let earlier = chrono::Duration::from_std(self.step * before).unwrap_or_default();
        self.until - earlier
    }

    /// How many values make an hour.
    fn an_hour(&self) -> usize {
        let step = self.step.as_secs().max(1);
        usize::try_from(3600 / step).unwrap_or(1).max(1)
    }
}

fn series_table(id: &str, series: &Series<'_>) -> Markup {
    let Series { values, write, until, .. } = series;
    let hours: Vec<_> = values.chunks(series.an_hour()).collect();
    let hour = series.an_hour();
    html! {
        details.twin id={ (id) "-table" } {
            summary { "The same as a table" }
            table {
                thead { tr {
                    th scope="col" { "From" } th scope="col" { "Least" } th scope="col" { "Most" }
                } }
                tbody {
                    @for (place, hour_values) in hours.iter().enumerate().rev() {
                        @let known: Vec<f64> = finite(hour_values).flatten().collect();
                        @let at = series.at(place * hour);
                        tr {
                            td { (words::clock(at, *until)) }
                            @if known.is_empty() {
                                td.number { (words::unknown()) } td.number { (words::unknown()) }
                            } @else {
                                td.number { (write(known.iter().copied().fold(f64::INFINITY, f64::min))) }
                                td.number { (write(known.iter().copied().fold(f64::NEG_INFINITY, f64::max))) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A value as a part of a whole, as a bar of fixed width. The words beside it say the same.
pub(super) fn gauge(part: f64, class: &str) -> Markup {
    const WIDTH: u32 = 60;
    const HEIGHT: u32 = 8;
    let length = scaled(part, WIDTH);
    html! {
        svg class={ "gauge " (class) } viewBox=(view_box(WIDTH, HEIGHT)) width=(WIDTH) height=(HEIGHT)
            aria-hidden="true" {
            path.whole d={ "M0 0H" (WIDTH) "V" (HEIGHT) "H0z" } {}
            path.part d={ "M0 0H" (length) "V" (HEIGHT) "H0z" } {}
        }
    }
}

/// Parts of a whole side by side, with a key below. Empty parts are left out.
pub(super) fn parts(name: &str, parts: &[(&'static str, Duration)]) -> Markup {
    const WIDTH: u32 = 600;
    const HEIGHT: u32 = 16;
    let whole: Duration = parts.iter().map(|(_, part)| *part).sum();
    let seen: Vec<_> = parts.iter().filter(|(_, part)| !part.is_zero()).collect();
    let mut from = Duration::ZERO;
    let mut drawn = Vec::with_capacity(seen.len());
    for (part_name, part) in &seen {
        let left = scaled(ratio(from, whole), WIDTH);
        from += *part;
        let right = scaled(ratio(from, whole), WIDTH);
        drawn.push((*part_name, format!("M{left} 0H{right}V{HEIGHT}H{left}z")));
    }
    let said: Vec<_> = seen
        .iter()
        .map(|(part_name, part)| format!("{part_name} {}", words::span(*part)))
        .collect();
    html! {
        figure.chart.parts {
            svg viewBox=(view_box(WIDTH, HEIGHT)) preserveAspectRatio="none" role="img"
                aria-label={ (name) ": " (said.join(", ")) } {
                @for (part_name, shape) in &drawn {
                    path class={ "part " (part_name) } d=(shape) {}
                }
            }
            figcaption {
                @for (part_name, part) in &seen {
                    span class={ "key part " (part_name) } { (part_name) " " (words::span(*part)) }
                }
            }
        }
    }
}

/// The line through the known values, and the area below it. Each gap begins a new piece.
fn line(
    values: &[Option<f64>],
    (low, high): (f64, f64),
    (width, height): (u32, u32),
) -> (String, String) {
    let last = values.len().saturating_sub(1);
    let x = |place: usize| scaled(ratio_of(to_u32(place), to_u32(last)), width);
    // The line is two pixels wide, and stays inside the box.
    let y = |value: f64| {
        height - 1 - scaled((value - low) / (high - low).max(f64::MIN_POSITIVE), height - 2)
    };
    let (mut line, mut area) = (String::new(), String::new());
    let places: Vec<_> = values.iter().enumerate().collect();
    for piece in places.chunk_by(|(_, one), (_, other)| one.is_some() == other.is_some()) {
        let points: Vec<_> = piece
            .iter()
            .filter_map(|(place, value)| value.map(|value| (x(*place), y(value))))
            .collect();
        let (Some(first), Some(end)) = (points.first(), points.last()) else { continue };
        // A line without length is not drawn everywhere.
        let begin = if first == end { first.0.min(width - 1) } else { first.0 };
        append(&mut line, format_args!("M{begin} {}", first.1));
        append(&mut area, format_args!("M{begin} {height}"));
        for (x, y) in &points {
            append(&mut line, format_args!("L{x} {y}"));
            append(&mut area, format_args!("L{x} {y}"));
        }
        if first == end {
            append(&mut line, format_args!("H{}", begin + 1));
            append(&mut area, format_args!("H{}", begin + 1));
        }
        append(&mut area, format_args!("V{height}z"));
    }
    (line, area)
}

impl Span {
    /// The values at the bottom and at the top.
    fn bounds(self, known: &[f64]) -> (f64, f64) {
        let smallest = known.iter().copied().fold(f64::INFINITY, f64::min);
        let largest = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::FromZero => (0.0, if largest > 0.0 { largest } else { 1.0 }),
            Self::Share => {
                let bottom = [0.999, 0.99, 0.95, 0.9, 0.5].into_iter().find(|at| smallest >= *at);
                (bottom.unwrap_or(0.0), 1.0)
            }
        }
    }
}

/// A bar's place.
#[derive(Clone, Copy, Debug)]
struct Column {
    left: u32,
    width: u32,
    top: u32,
    bottom: u32,
}

impl Column {
    /// The outline of this bar. It is filled by the rule `evenodd`, so that an inner outline is a hole.
    fn shape(self, outcome: Outcome) -> String {
        let Self { left, width, top, bottom } = self;
        let right = left + width;
        match outcome {
            Outcome::Ok => format!("M{left} {top}H{right}V{bottom}H{left}z"),
            Outcome::Partial => {
                let (cap, below) = (top + 1, (top + 3).min(bottom));
                format!(
                    "M{left} {top}H{right}V{cap}H{left}zM{left} {below}H{right}V{bottom}H{left}z"
                )
            }
            Outcome::Failed | Outcome::Timeout => {
                let inner = width / 3;
                let (inner_left, inner_right) = (left + inner, right - inner);
                let (inner_top, inner_bottom) = (top + 1, bottom - 1);
                format!(
                    "M{left} {top}H{right}V{bottom}H{left}z\
                     M{inner_left} {inner_top}H{inner_right}V{inner_bottom}H{inner_left}z"
                )
            }
            Outcome::Cancelled => {
                let stub = bottom - 2;
                format!("M{left} {stub}H{right}V{bottom}H{left}z")
            }
        }
    }
}

/// One path for all bars of an outcome: a list of 200 jobs stays small.
fn paths(columns: impl Iterator<Item = (Outcome, Column)>) -> Markup {
    let columns: Vec<_> = columns.collect();
    let of = |outcome: Outcome| -> String {
        columns.iter().filter(|(of, _)| *of == outcome).map(|(of, at)| at.shape(*of)).collect()
    };
    html! {
        @for outcome in Outcome::ALL {
            @let shapes = of(outcome);
            @if !shapes.is_empty() {
                path class=(words::look(outcome).class()) fill-rule="evenodd" d=(shapes) {}
            }
        }
    }
}

/// Where bars end.
#[derive(Clone, Copy, Debug)]
struct Ends {
    /// The coordinate of their bottom. The top is 0.
    bottom: u32,
    /// The height of the shortest.
    least: u32,
}

/// How durations become heights.
#[derive(Clone, Copy, Debug)]
struct Scale {
    low: f64,
    high: f64,
    is_logarithmic: bool,
    ends: Ends,
}

impl Scale {
    /// Linear, or logarithmic where the longest is more than twenty times the shortest.
    fn of(all: impl Iterator<Item = Duration>, limit: Option<Duration>, ends: Ends) -> Self {
        const FAR_APART: f64 = 20.0;
        let limit = limit.map_or(f64::INFINITY, |limit| limit.as_secs_f64().max(SHORTEST));
        let (low, high) = extremes(all);
        let (low, high) = (low.min(limit), high.min(limit));
        if high / low > FAR_APART {
            return Self { low, high, is_logarithmic: true, ends };
        }
        Self { low: 0.0, high, is_logarithmic: false, ends }
    }

    fn logarithmic(all: impl Iterator<Item = Duration>, ends: Ends) -> Self {
        let (low, high) = extremes(all);
        Self { low, high, is_logarithmic: true, ends }
    }

    /// The coordinate of a duration's top.
    fn y(self, duration: Duration) -> u32 {
        let Self { low, high, is_logarithmic, ends: Ends { bottom, least } } = self;
        let value = duration.as_secs_f64().max(SHORTEST);
        let share = match is_logarithmic {
            true if high > low => (value / low).ln() / (high / low).ln(),
            true => 1.0,
            false => value / high,
        };
        bottom - least - scaled(share, bottom - least)
    }
}

/// Shorter durations look like this one: a millisecond, in seconds.
const SHORTEST: f64 = 0.001;

/// The shortest and the longest, in seconds, neither of them zero.
fn extremes(all: impl Iterator<Item = Duration>) -> (f64, f64) {
    let all = all.map(|duration| duration.as_secs_f64().max(SHORTEST));
    let (low, high) =
        all.fold((f64::INFINITY, SHORTEST), |(low, high), one| (low.min(one), high.max(one)));
    (low.min(high), high)
}

/// A share as a whole number of pixels, from 0 to all of them.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number is between 0 and `pixels`; one that is none becomes 0"
)]
fn scaled(share: f64, pixels: u32) -> u32 {
    (share.clamp(0.0, 1.0) * f64::from(pixels)).round() as u32
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

fn ratio_of(part: u32, whole: u32) -> f64 {
    if whole == 0 { 1.0 } else { f64::from(part) / f64::from(whole) }
}

fn finite(values: &[Option<f64>]) -> impl Iterator<Item = Option<f64>> {
    values.iter().map(|value| value.filter(|value| value.is_finite()))
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn view_box(width: u32, height: u32) -> String {
    format!("0 0 {width} {height}")
}

fn append(path: &mut String, part: std::fmt::Arguments<'_>) {
    path.push_str(&part.to_string());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether all coordinates of the drawings are inside their boxes, which begin at 0.
    fn is_inside(html: &str) -> Result<(), TestCaseError> {
        let drawings = html.split("<svg").skip(1).filter(|svg| !svg.starts_with(" class=\"mark"));
        for svg in drawings {
            let size = svg.split("viewBox=\"0 0 ").nth(1).unwrap().split('"').next().unwrap();
            let (width, height) = size.split_once(' ').unwrap();
            let (width, height): (i64, i64) = (width.parse().unwrap(), height.parse().unwrap());
            let svg = svg.split("</svg>").next().unwrap();
            for path in svg.split(" d=\"").skip(1) {
                let path = path.split('"').next().unwrap();
                let (mut x, mut y) = (0, 0);
                for step in steps(path) {
                    match step {
                        (b'M' | b'L', at) => (x, y) = (at[0], at[1]),
                        (b'H', at) => x = at[0],
                        (b'V', at) => y = at[0],
                        (b'z', _) => {}
                        (other, _) => prop_assert!(false, "{} in {path}", char::from(other)),
                    }
                    prop_assert!(
                        (0..=width).contains(&x) && (0..=height).contains(&y),
                        "{x} {y}: {path}"
                    );
                }
            }
        }
        Ok(())
    }

    fn steps(path: &str) -> Vec<(u8, Vec<i64>)> {
        let mut steps: Vec<(u8, String)> = Vec::new();
        for byte in path.bytes() {
            match (byte.is_ascii_alphabetic(), steps.last_mut()) {
                (true, _) => steps.push((byte, String::new())),
                (false, Some((_, numbers))) => numbers.push(char::from(byte)),
                (false, None) => panic!("{path}"),
            }
        }
        let numbers =
            |text: String| text.split_whitespace().map(|one| one.parse().unwrap()).collect();
        steps.into_iter().map(|(command, text)| (command, numbers(text))).collect()
    }

    fn any_bar() -> impl Strategy<Value = Bar> {
        let took = prop_oneof![Just(0), Just(1000), 0..u64::MAX / 2, 0..10_000_u64];
        (took, 0..Outcome::ALL.len()).prop_map(|(millis, at)| Bar {
            took: Duration::from_millis(millis),
            outcome: Outcome::ALL[at],
        })
    }

    fn any_value() -> impl Strategy<Value = Option<f64>> {
        prop_oneof![
            Just(None),
            Just(Some(1.0)),
            (0.0..1.0).prop_map(Some),
            any::<f64>().prop_map(Some),
            Just(Some(f64::NAN)),
        ]
    }

    proptest! {
        #[test]
        fn bars_stay_inside_their_box(
            bars in prop::collection::vec(any_bar(), 0..70),
            limit in prop::option::of(0..100_000_u64),
        ) {
            let limit = limit.map(Duration::from_millis);
            is_inside(&sparkline(&bars, limit).into_string())?;
            let runs: Vec<_> = bars.iter().map(|bar| run(*bar)).collect();
            let levels: Vec<_> = limit.iter().map(|at| Level { name: "interval", class: "interval", at: *at }).collect();
            is_inside(&durations(&runs, &levels, now()).into_string())?;
        }

        #[test]
        fn lines_stay_inside_their_box(values in prop::collection::vec(any_value(), 0..300)) {
            for range in [Span::FromZero, Span::Share] {
                is_inside(&series("x", &of(&values, range)).into_string())?;
                is_inside(&small_series("x", &values, range).into_string())?;
            }
        }

        #[test]
        fn parts_stay_inside_their_box(all in prop::collection::vec(0..u64::MAX / 8, 0..6), share: f64) {
            let all: Vec<_> = all.iter().map(|part| ("x", Duration::from_millis(*part))).collect();
            is_inside(&parts("Time", &all).into_string())?;
            is_inside(&gauge(share, "ok").into_string())?;
        }
    }

    fn now() -> DateTime<Utc> {
        "2026-03-29T12:10:04Z".parse().unwrap()
    }

    fn run(bar: Bar) -> Run {
        Run { bar, started_at: now(), link: "../runs/1".to_owned() }
    }

    fn of(values: &[Option<f64>], range: Span) -> Series<'_> {
        let step = Duration::from_mins(5);
        Series { name: "Coverage", values, step, until: now(), range, write: words::percent }
    }

    fn bar(millis: u64, outcome: Outcome) -> Bar {
        Bar { took: Duration::from_millis(millis), outcome }
    }

    #[test]
    fn outcomes_differ_in_shape() {
        let bars = Outcome::ALL.map(|outcome| bar(1000, outcome));
        let html = sparkline(&bars, None).into_string();
        insta::assert_snapshot!(html);
    }

    #[test]
    fn a_run_that_takes_as_long_as_the_interval_has_full_height() {
        let minute = Some(Duration::from_mins(1));
        let html = sparkline(&[bar(30_000, Outcome::Ok), bar(300_000, Outcome::Ok)], minute);
        assert!(html.into_string().contains("M192 9H195V24H192zM196 0H199V24H196z"));
    }

    #[test]
    fn a_gap_is_a_gap() {
        let values = [Some(0.5), Some(1.0), None, Some(0.0), None, Some(1.0), Some(1.0)];
        let html = series("coverage", &of(&values, Span::FromZero)).into_string();
        insta::assert_snapshot!(html);
    }

    #[test]
    fn nothing_known_is_said_in_words() {
        assert!(sparkline(&[], None).into_string().contains("no runs yet"));
        assert!(durations(&[], &[], now()).into_string().contains("No run has ended yet."));
        let html = series("x", &of(&[None, None], Span::Share)).into_string();
        assert!(html.contains("Nothing is known yet."), "{html}");
        assert_eq!(bars_in_words(&[bar(710, Outcome::Ok)]), "last run: ok; it took 0.71 s");
    }

    #[test]
    fn a_list_of_many_runs_stays_small() {
        let bars: Vec<_> = (0..50).map(|place| bar(place * 37 % 900, Outcome::Ok)).collect();
        let html = sparkline(&bars, None).into_string();
        assert!(html.len() < 1_500, "{}", html.len());
    }
}
