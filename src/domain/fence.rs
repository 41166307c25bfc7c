//! Fences: by its fence a warmer notices that a tenant's data changed while the warmer read and wrote.
//!
//! A writer moves the fence after its commit and before it deletes a key. A warmer reads the fence
//! before its query and again after its writes. [`super::protocol`] says what it does with both.

use std::time::Duration;

/// Every fence's key begins with this.
const PREFIX: &str = "preheat:fence";

/// The key of the fence for jobs without tenants.
pub const GLOBAL: &str = PREFIX;

/// The TTL of a fence that preheat starts: longer than any run may take, so that no fence expires
/// during a run. An application's `INCR` does not change a fence's TTL.
pub const FENCE_TTL: Duration = Duration::from_hours(7 * 24);

/// How long an unverified value lives: long enough until the next run writes it again, and short enough
/// that an old value soon goes if no run comes.
pub const PROVISIONAL_TTL: Duration = Duration::from_secs(10);

/// The lowest number with which preheat starts a fence. An `INCR` of a missing fence gives 1, so after
/// an eviction such a fence can reach a number that a warmer has already seen. A number below this one
/// may come from such an `INCR`.
const LOWEST_START: i64 = 1 << 40;
/// Below 2^53, so that JavaScript reads the number exactly.
const HIGHEST_START: i64 = 1 << 52;

/// The key of a tenant's fence.
pub fn fence_key(tenant: &str) -> String {
    format!("{PREFIX}:{tenant}")
}

/// The state of a fence when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fence {
    /// The cache has no such fence: none was made yet, or it was evicted.
    #[default]
    Missing,
    /// The fence has this number.
    At(i64),
}

impl Fence {
    /// The fence whose key holds this value. A value that is not a number counts as missing, because
    /// `INCR` refuses it too, so that nobody could move such a fence.
    pub fn of(value: &[u8]) -> Self {
        let number = str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        let as_redis_writes_it =
            |number: &i64| itoa::Buffer::new().format(*number).as_bytes() == value;
        number.filter(as_redis_writes_it).map_or(Self::Missing, Self::At)
    }

    /// Whether the fence needs a start before a warmer can rely on it: it is missing, or it has a
    /// number that may come again after an eviction.
    pub fn needs_start(self) -> bool {
        match self {
            Self::Missing => true,
            Self::At(number) => number < LOWEST_START,
        }
    }
}

/// A random number to start a fence with; two starts hardly ever get the same one. `random` is in
/// `0.0..1.0`.
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
