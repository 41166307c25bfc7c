//! Fences: how a warmer notices that a tenant's data changed while it read and wrote.
//!
//! Whoever changes data moves the fence after the commit and before a key is deleted. A warmer looks
//! at the fence before its query and again after its writes. Where it stood still, the warmer's
//! value was written before anybody deleted it; where it moved, the warmer reads and writes again.
//! This is the lease of the memcache paper (Nishtala et al., "Scaling Memcache at Facebook", 2013,
//! section 3.2.1) without a script in the server, so that it works on a cluster and over HTTP too.

use std::time::Duration;

/// Before every fence.
const PREFIX: &str = "preheat:fence";

/// The fence of the data that belongs to no tenant: of jobs for the whole fleet.
pub const FLEET: &str = PREFIX;

/// How long a fence lives that preheat made: longer than any run may take, so that none expires in
/// the middle of one. An application's `INCR` leaves a fence's TTL as it is.
pub const FENCE_TTL: Duration = Duration::from_hours(7 * 24);

/// How long a value lives that is not proven yet: long enough for another try, short enough that
/// nothing old stays if there is none.
pub const PROBATION: Duration = Duration::from_secs(10);

/// How often a tenant is read in one run before it counts as fenced.
pub const ROUNDS: u32 = 3;

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

/// How long what is written in a round may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as the job says.
    Full,
    /// [`PROBATION`]: the data is known to be changing. What is proven afterwards gets its full life
    /// then.
    Probation,
}

/// The rounds of some slots of a batch: who has to be read and written, and again.
///
/// It decides and does nothing: whoever drives it reads fences, reads rows and writes values. A round
/// is: fences ([`Self::begin`], [`Self::stand`]), query, writes, fences again ([`Self::look`]).
#[derive(Clone, Debug)]
pub struct Rounds {
    round: u32,
    life: Life,
    /// The slots of this round, each with its fence before the query.
    open: Vec<(usize, Fence)>,
}

/// What the look after a round's writes showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Their fence stood still: what was written is proven.
    pub settled: Vec<usize>,
    /// Their fence moved: what was written may be old.
    pub moved: Vec<usize>,
}

impl Rounds {
    /// The first round of slots whose fences were just read, in the order of the slots; `life` is
    /// that of its values.
    pub fn begin(fences: impl IntoIterator<Item = Fence>, life: Life) -> Self {
        Self { round: 1, life, open: fences.into_iter().enumerate().collect() }
    }

    /// The slots to read and write in this round.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = usize> {
        self.open.iter().map(|(slot, _)| *slot)
    }

    /// How long this round's values may live until they are proven.
    pub fn life(&self) -> Life {
        self.life
    }

    /// Takes the fences as they stand before the query of another round, in the order of
    /// [`Self::slots`]. Those of the look before would do, were it not for one that was evicted: it
    /// has to be started again, or a second eviction would not be seen.
    pub fn stand(&mut self, fences: &[Fence]) {
        for ((_, before), now) in self.open.iter_mut().zip(fences) {
            *before = *now;
        }
    }

    /// Takes the fences after the round's writes, in the order of [`Self::slots`]. The slots whose
    /// fence moved are those of the next round, where there is one; and so are those whose fence
    /// could not be relied on before the query, since it may have come to the same again.
    pub fn look(&mut self, fences: &[Fence]) -> Verdict {
        let mut verdict = Verdict::default();
        let mut open = Vec::new();
        let now = fences.iter().copied().map(Some).chain(std::iter::repeat(None));
        for ((slot, before), now) in self.open.drain(..).zip(now) {
            if now == Some(before) && !before.needs_start() {
                verdict.settled.push(slot);
            } else {
                verdict.moved.push(slot);
                open.push((slot, now.unwrap_or_default()));
            }
        }
        self.open = open;
        self.round += 1;
        self.life = Life::Probation;
        verdict
    }

    /// There is no further round: how the fences stand could not be found out.
    pub fn abandon(&mut self) {
        self.open.clear();
    }

    /// Whether slots are left that may be read again; those that are left and may not are fenced.
    pub fn goes_on(&self) -> bool {
        !self.open.is_empty() && self.round <= ROUNDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So far above the lowest start.
    fn at(number: i64) -> Fence {
        Fence::At(LOWEST_START + number)
    }

    #[test]
    fn a_slot_whose_fence_moved_is_read_again_until_it_stands_still() {
        let mut rounds = Rounds::begin([at(1), at(2), at(4)], Life::Full);
        assert_eq!(
            (rounds.slots().collect::<Vec<_>>(), rounds.life()),
            (vec![0, 1, 2], Life::Full)
        );
        let verdict = rounds.look(&[at(1), at(3), at(4)]);
        assert_eq!(verdict, Verdict { settled: vec![0, 2], moved: vec![1] });
        assert!(rounds.goes_on());
        assert_eq!((rounds.slots().collect::<Vec<_>>(), rounds.life()), (vec![1], Life::Probation));
        let verdict = rounds.look(&[at(3)]);
        assert_eq!(verdict, Verdict { settled: vec![1], moved: vec![] });
        assert!(!rounds.goes_on());
    }

    #[test]
    fn an_evicted_fence_counts_as_moved_and_so_does_one_that_was_not_read() {
        let mut rounds = Rounds::begin([at(1), at(2)], Life::Full);
        assert_eq!(rounds.look(&[Fence::Missing]).moved, [0, 1]);
    }

    #[test]
    fn a_fence_that_had_no_start_proves_nothing() {
        let bare = [Fence::Missing, Fence::At(1), at(1)];
        let mut rounds = Rounds::begin(bare, Life::Full);
        assert_eq!(rounds.look(&bare), Verdict { settled: vec![2], moved: vec![0, 1] });
    }

    #[test]
    fn rounds_are_bounded() {
        let mut rounds = Rounds::begin([at(0)], Life::Full);
        for round in 1..=ROUNDS {
            assert!(rounds.goes_on(), "{round}");
            rounds.look(&[at(i64::from(round))]);
        }
        assert!(!rounds.goes_on());
        assert_eq!(rounds.slots().collect::<Vec<_>>(), [0], "it is fenced");
    }

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
