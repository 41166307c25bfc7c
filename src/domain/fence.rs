//! Fences: how a warmer notices that a tenant's data changed while it read and wrote.
//!
//! A writer moves the fence after its commit and before it deletes a key. A warmer reads the fence before
//! its query and again after its writes; [`super::protocol`] says what follows.

use std::time::Duration;

/// Before every fence.
const PREFIX: &str = "preheat:fence";

/// The fence of the data that belongs to no tenant: of jobs for the whole fleet.
pub const FLEET: &str = PREFIX;

/// How long a fence lives that preheat made: longer than any run may take, so that none expires in
/// the middle of one. An application's `INCR` leaves a fence's TTL as it is.
pub const FENCE_TTL: Duration = Duration::from_hours(7 * 24);

/// How long an unverified value lives: long enough for another try, short enough that nothing old stays
/// if there is none.
pub const PROVISIONAL_TTL: Duration = Duration::from_secs(10);

/// Fences begin here. A bare `INCR` begins with 1: after an eviction it could come to a number that
/// a warmer saw before, and one below this may have.
const LOWEST_START: i64 = 1 << 40;
/// Below 2^53, so that JavaScript counts right.
const HIGHEST_START: i64 = 1 << 52;

/// The key of a tenant's fence.
pub fn fence_key(tenant: &str) -> String {
    format!("{PREFIX}:{tenant}")
}

/// A fence as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fence {
    /// There is none; it was never made, or was evicted.
    #[default]
    Missing,
    /// Its number.
    At(i64),
}

impl Fence {
    /// A fence by what its key holds. What is no number is as good as missing: an `INCR` refuses it
    /// too, so that nobody could move it.
    pub fn of(value: &[u8]) -> Self {
        let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        let as_redis_writes_it =
            |number: &i64| itoa::Buffer::new().format(*number).as_bytes() == value;
        number.filter(as_redis_writes_it).map_or(Self::Missing, Self::At)
    }

    /// Whether it has to be given a start before it can be relied on: a missing one, or one whose
    /// number may come again after an eviction.
    pub fn needs_start(self) -> bool {
        match self {
            Self::Missing => true,
            Self::At(number) => number < LOWEST_START,
        }
    }
}

/// A number to start a fence with that no other start is likely to have; `random` is in `0.0..1.0`.
pub fn start_number(random: f64) -> i64 {
    let span = HIGHEST_START - LOWEST_START;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a random number below 2^52"
    )]
    let above = (span as f64 * random) as i64;
    LOWEST_START + above.clamp(0, span - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_read_as_incr_reads_it() {
        for (value, number) in [("0", 0), ("-7", -7), ("9223372036854775807", i64::MAX)] {
            assert_eq!(Fence::of(value.as_bytes()), Fence::At(number));
        }
        for value in ["", "+7", "007", "-0", " 7", "7.0", "now", "9223372036854775808", "\u{664}"] {
            assert_eq!(Fence::of(value.as_bytes()), Fence::Missing, "{value}");
        }
        assert_eq!(Fence::of(b"\xff"), Fence::Missing);
    }

    #[test]
    fn a_fence_that_a_bare_incr_made_is_given_a_start() {
        assert!(Fence::Missing.needs_start() && Fence::At(1).needs_start());
        for random in [0.0, 0.5, 0.999_999_999] {
            let start = start_number(random);
            assert!(!Fence::At(start).needs_start(), "{start}");
            assert!(start < 1 << 53);
        }
        assert_ne!(start_number(0.1), start_number(0.2));
    }
}
