//! The applications' reads through the clients (`clients/`), which count them by family: the job whose keys they read.

use std::ops::AddAssign;

/// The key of the clients' counts: a hash with one field for each family and result. The clients renew its TTL of a
/// day, so an application that is gone leaves nothing behind.
pub const READS_KEY: &str = "preheat:reads";

/// The family of keys that no builder made.
pub const OTHER_FAMILY: &str = "other";

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadResult {
    /// The value came from the cache.
    Hit,
    /// The reader loaded it.
    Miss,
    /// The reader waited for a load of the same process.
    Joined,
    /// The cache was not asked, or did not answer in time, and the reader loaded the value.
    Bypass,
    /// A miss whose value was not written, because the tenant's fence had moved. It is counted in addition to the miss.
    Refused,
}

impl ReadResult {
    /// All results, in the order of [`ReadCounts`].
    pub const ALL: [Self; 5] = [Self::Hit, Self::Miss, Self::Joined, Self::Bypass, Self::Refused];

    /// Its name in fields, labels and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Joined => "joined",
            Self::Bypass => "bypass",
            Self::Refused => "refused",
        }
    }
}

/// The fields of a family, in the order of [`ReadResult::ALL`].
pub fn fields(family: &str) -> impl Iterator<Item = String> {
    ReadResult::ALL.into_iter().map(move |result| format!("{family}:{}", result.as_str()))
}

/// How many reads of a family had each result, in the order of [`ReadResult::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadCounts(pub [u64; ReadResult::ALL.len()]);

impl ReadCounts {
    /// How many reads had this result.
    pub fn of(self, result: ReadResult) -> u64 {
        let Self([hit, miss, joined, bypass, refused]) = self;
        match result {
            ReadResult::Hit => hit,
            ReadResult::Miss => miss,
            ReadResult::Joined => joined,
            ReadResult::Bypass => bypass,
            ReadResult::Refused => refused,
        }
    }

    /// All reads. A refused fill is no read of its own.
    pub fn reads(self) -> u64 {
        let Self([hit, miss, joined, bypass, _refused]) = self;
        hit + miss + joined + bypass
    }

    /// The share of reads whose value came from the cache; `None` if there were none.
    #[expect(clippy::cast_precision_loss, reason = "reads of some minutes are far below 2^53")]
    pub fn hit_rate(self) -> Option<f64> {
        let reads = self.reads();
        (reads > 0).then(|| self.of(ReadResult::Hit) as f64 / reads as f64)
    }

    /// Whether nothing was counted.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// How much each count has grown. A smaller count began at zero again, with the hash: it came since.
    #[must_use]
    pub fn grown_since(self, earlier: Self) -> Self {
        let grown = |(now, before): (u64, u64)| if now >= before { now - before } else { now };
        let mut pairs = self.0.into_iter().zip(earlier.0).map(grown);
        Self(std::array::from_fn(|_| pairs.next().unwrap_or_default()))
    }
}

impl AddAssign for ReadCounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_fill_is_no_read_of_its_own() {
        let counts = ReadCounts([6, 2, 1, 1, 2]);
        assert_eq!((counts.reads(), counts.hit_rate()), (10, Some(0.6)));
        assert_eq!(ReadCounts([0, 0, 0, 0, 3]).hit_rate(), None);
    }

    #[test]
    fn a_count_that_fell_began_at_zero_again() {
        let (before, after) = (ReadCounts([10, 5, 0, 0, 0]), ReadCounts([12, 1, 0, 0, 0]));
        assert_eq!(after.grown_since(before), ReadCounts([2, 1, 0, 0, 0]));
    }

    #[test]
    fn the_fields_are_those_of_the_contract() {
        let fields: Vec<String> = fields("services").collect();
        assert_eq!(fields[0], "services:hit");
        assert_eq!(fields.len(), ReadResult::ALL.len());
        let counts = ReadCounts([0, 1, 2, 3, 4]);
        for (nth, result) in (0..).zip(ReadResult::ALL) {
            assert_eq!(counts.of(result), nth);
        }
    }
}
