//! Trying again: how long to wait, and when to stop asking.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

/// The longest first wait; each further wait may be twice as long.
const FIRST: Duration = Duration::from_millis(100);
/// No wait is longer than this.
const LONGEST: Duration = Duration::from_secs(10);

/// How long to wait before a retry: exponential backoff with "full jitter" (Brooker, "Exponential
/// Backoff And Jitter", AWS 2015). Jitter takes a random share of the wait, so that batches which
/// failed together do not retry together. `retry` counts from 0, `random` is uniform in `0.0..1.0`.
pub fn backoff(retry: u32, random: f64) -> Duration {
    let longest = FIRST.saturating_mul(1 << retry.min(20)).min(LONGEST);
    longest.mul_f64(random.clamp(0.0, 1.0))
}

/// A circuit breaker stops requests to a server that is down. After some failures in a row it opens.
/// After a pause it lets one try through, and the result of that try closes it or keeps it open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    state: State,
    /// How many tries in a row did not reach the server.
    failures: u32,
    failures_to_open: u32,
    pause: Duration,
    in_vain: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// No try may start until that moment.
    Open {
        until: Duration,
    },
    /// One try is under way. If its result never comes, another try may start at that moment.
    HalfOpen {
        until: Duration,
    },
}

/// What a breaker does with tries, for those who look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// It lets all through: the server counts as up.
    Closed,
    /// It lets none through: the server counts as down and is left alone for some seconds.
    Open,
    /// It lets one through at a time, to find out whether the server is back.
    HalfOpen,
}

impl Breaker {
    /// A closed breaker that opens for `pause` after this many failures in a row.
    pub fn new(failures_to_open: u32, pause: Duration) -> Self {
        Self { state: State::Closed, failures: 0, failures_to_open, pause, in_vain: 0 }
    }

    /// Whether a try may start at the monotonic moment `now`. If so, the caller must report its result
    /// with [`Self::succeeded`] or [`Self::failed`].
    pub fn try_start(&mut self, now: Duration) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } | State::HalfOpen { until } if now >= until => {
                self.state = State::HalfOpen { until: now + self.pause };
                true
            }
            State::Open { .. } | State::HalfOpen { .. } => false,
        }
    }

    /// A try reached the server.
    pub fn succeeded(&mut self) {
        self.state = State::Closed;
        self.failures = 0;
    }

    /// A try did not reach the server, at the monotonic moment `now`.
    pub fn failed(&mut self, now: Duration) {
        match self.state {
            State::HalfOpen { .. } => self.in_vain += 1,
            // These tries had started before the breaker opened.
            State::Closed | State::Open { .. } => {}
        }
        self.failures = self.failures.saturating_add(1);
        if self.is_open() || self.failures >= self.failures_to_open {
            self.state = State::Open { until: now + self.pause };
        }
    }

    /// How long from the monotonic moment `now` no try may start; `None` if one may start now.
    pub fn pause_left(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Open { until } | State::HalfOpen { until } => {
                until.checked_sub(now).filter(|left| !left.is_zero())
            }
        }
    }

    /// How many tries of a half-open breaker did not reach the server, since the breaker was made.
    pub fn in_vain(&self) -> u64 {
        self.in_vain
    }

    /// Whether tries are stopped at present.
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    /// What it does with tries at the monotonic moment `now`.
    pub fn state(&self, now: Duration) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// How many tries in a row did not reach the server.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_double_up_to_a_bound() {
        let waits: Vec<_> = (0..9).map(|retry| backoff(retry, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff(3, 0.0), Duration::ZERO);
        assert_eq!(backoff(u32::MAX, 1.0), LONGEST);
    }

    #[test]
    fn a_breaker_opens_after_failures_in_a_row_and_lets_one_try_through_after_its_pause() {
        let mut breaker = Breaker::new(2, SECOND * 5);
        breaker.failed(SECOND);
        breaker.succeeded();
        breaker.failed(SECOND);
        assert!(breaker.try_start(SECOND));
        breaker.failed(SECOND);
        assert!(breaker.is_open());
        assert_eq!((breaker.state(SECOND * 2), breaker.failures()), (BreakerState::Open, 2));
        assert_eq!(breaker.pause_left(SECOND * 2), Some(SECOND * 4));
        assert!(!breaker.try_start(SECOND * 5));
        assert_eq!(breaker.pause_left(SECOND * 6), None);
        assert_eq!(breaker.state(SECOND * 6), BreakerState::HalfOpen);
        assert!(breaker.try_start(SECOND * 6));
        assert!(!breaker.try_start(SECOND * 6), "one try at a time");
        breaker.failed(SECOND * 7);
        assert!(!breaker.try_start(SECOND * 11));
        assert!(breaker.try_start(SECOND * 12));
        assert_eq!(breaker.pause_left(SECOND * 12), Some(SECOND * 5), "while one try is under way");
        assert_eq!((breaker.state(SECOND * 12), breaker.failures()), (BreakerState::HalfOpen, 3));
        breaker.succeeded();
        assert_eq!((breaker.state(SECOND * 12), breaker.failures()), (BreakerState::Closed, 0));
        assert_eq!(breaker.pause_left(SECOND * 12), None);
        assert!(breaker.try_start(SECOND * 12) && breaker.try_start(SECOND * 12));
    }

    #[test]
    fn only_tries_that_a_breaker_lets_through_to_find_out_count_as_in_vain() {
        let mut breaker = Breaker::new(2, SECOND * 5);
        for _ in 0..4 {
            breaker.failed(SECOND);
        }
        assert!(breaker.is_open());
        assert_eq!(breaker.in_vain(), 0, "they had started while it was closed");
        assert!(breaker.try_start(SECOND * 6));
        assert_eq!(breaker.in_vain(), 0, "nobody knows yet");
        breaker.failed(SECOND * 7);
        assert_eq!(breaker.in_vain(), 1);
        assert!(breaker.try_start(SECOND * 12));
        breaker.succeeded();
        assert_eq!(breaker.in_vain(), 1);
    }
}
