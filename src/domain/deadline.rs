//! When a job is late, and how much time its keys have left: pure functions of its schedule, its TTL and its last runs.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// How many of a schedule's longest gaps may pass without a success.
const GAPS: u32 = 2;

/// From when on a job is late: two of its schedule's longest gaps after its last success. Where no success is known, the
/// worker's start takes its place.
pub fn late_after(
    last_success_at: Option<DateTime<Utc>>,
    worker_started_at: DateTime<Utc>,
    longest_gap: Duration,
) -> Option<DateTime<Utc>> {
    let from = last_success_at.unwrap_or(worker_started_at);
    from.checked_add_signed(TimeDelta::from_std(longest_gap.checked_mul(GAPS)?).ok()?)
}

/// When the first key of a run expires: the shortest TTL after the run's start.
pub fn first_expiry(started_at: DateTime<Utc>, shortest_ttl: Duration) -> Option<DateTime<Utc>> {
    started_at.checked_add_signed(TimeDelta::from_std(shortest_ttl).ok()?)
}

/// How much time is left between the end of the next run and the first expiry; negative if keys expire before that.
pub fn ttl_margin(
    first_expiry: DateTime<Utc>,
    next_start: DateTime<Utc>,
    duration: Duration,
) -> Option<TimeDelta> {
    let next_end = next_start.checked_add_signed(TimeDelta::from_std(duration).ok()?)?;
    Some(first_expiry - next_end)
}

/// The duration that 95 % of these do not exceed; `None` if there are none.
pub fn p95(durations: impl IntoIterator<Item = Duration>) -> Option<Duration> {
    percentile(durations, 95)
}

/// The smallest of these values that at least that many per cent of them do not exceed; `None` if there are none.
pub fn percentile<T: Ord + Copy>(
    values: impl IntoIterator<Item = T>,
    per_cent: usize,
) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    let place = (values.len() * per_cent).div_ceil(100);
    values.get(place.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn at(text: &str) -> DateTime<Utc> {
        format!("2026-03-01T{text}Z").parse().unwrap()
    }

    #[test]
    fn a_job_is_late_two_gaps_after_its_last_success_or_the_workers_start() {
        let start = at("12:00:00");
        assert_eq!(late_after(None, start, 10 * MINUTE), Some(at("12:20:00")));
        let earlier = Some(at("11:55:00"));
        assert_eq!(late_after(earlier, start, 10 * MINUTE), Some(at("12:15:00")));
        let later = Some(at("12:30:00"));
        assert_eq!(late_after(later, start, 10 * MINUTE), Some(at("12:50:00")));
        assert_eq!(late_after(None, start, Duration::MAX), None);
    }

    #[test]
    fn the_margin_is_what_is_left_when_the_next_run_has_ended() {
        let expiry = first_expiry(at("12:00:00"), 27 * MINUTE).unwrap();
        assert_eq!(expiry, at("12:27:00"));
        let margin = |next: &str, took| ttl_margin(expiry, at(next), took).unwrap().num_seconds();
        assert_eq!(margin("12:10:00", MINUTE), 16 * 60);
        assert_eq!(margin("12:27:00", MINUTE), -60);
        assert_eq!(first_expiry(at("12:00:00"), Duration::MAX), None);
        assert_eq!(ttl_margin(expiry, at("12:10:00"), Duration::MAX), None);
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let seconds = |seconds: &[u64]| p95(seconds.iter().copied().map(Duration::from_secs));
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&[7]), Some(Duration::from_secs(7)));
        assert_eq!(seconds(&[9, 1]), Some(Duration::from_secs(9)));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(seconds(&hundred), Some(Duration::from_secs(95)));
        assert_eq!(percentile(1..=100, 50), Some(50));
        assert_eq!(percentile(1..=100, 99), Some(99));
    }
}
