//! Shares: the fixed parts of all work that the replicas of a fleet divide among each other.
//!
//! A tenant belongs to the share of its id, a global job to the share of its name, for ever and on every replica
//! and version: the hash is part of what replicas agree on.

use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::job::{Job, JobName, Scope};
use super::tenant::Tenants;

/// How many shares there are: more than replicas, so that parts are even, and few enough to lease one by one.
pub const SHARES: u8 = 64;

/// One share, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share(u8);

impl Share {
    /// The share with the least number. Its holder also does what one replica alone is to do.
    pub const FIRST: Self = Self(0);

    /// The share with this number, if there is one.
    pub fn new(number: u8) -> Option<Self> {
        (number < SHARES).then_some(Self(number))
    }

    /// The share of a tenant.
    pub fn of_tenant(id: &str) -> Self {
        Self::of(id)
    }

    /// The share of a global job.
    pub fn of_job(job: &JobName) -> Self {
        Self::of(job.as_str())
    }

    fn of(text: &str) -> Self {
        // The last bits alone are uneven for texts that differ in their last byte, so all bits are used.
        let hash = fnv(text.bytes());
        let folded = hash ^ (hash >> 32) ^ (hash >> 16);
        Self(u8::try_from(folded % u64::from(SHARES)).unwrap_or_default())
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// FNV-1a: a hash that is the same on every replica and version.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    bytes.fold(0xcbf2_9ce4_8422_2325, step)
}

/// A set of shares.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Shares(u64);

impl Shares {
    /// No share.
    pub const NONE: Self = Self(0);
    /// All shares.
    pub const ALL: Self = Self(u64::MAX);

    /// The set with these bits: the lowest one stands for the first share.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The part of the replica with this number, of so many that number themselves from 0; `None` if there is no
    /// such part.
    pub fn part(replica: u8, of: u8) -> Option<Self> {
        let exists = replica < of && of <= SHARES;
        exists.then(|| (0..SHARES).filter(|share| share % of == replica).map(Share).collect())
    }

    /// The set that this text shows, as [`Display`](fmt::Display) writes it; `None` if it shows none.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().and_then(Share::new);
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (Share(first), Share(last)) = (number(first)?, number(last)?);
            (first <= last).then(|| (first..=last).map(Share).collect::<Self>())
        };
        let ranges = text.split(", ").filter(|range| !range.is_empty());
        ranges.map(range).try_fold(Self::NONE, |all, some| Some(all | some?))
    }

    /// Whether the share is in it.
    pub fn has(self, share: Share) -> bool {
        self.0 & (1 << share.0) != 0
    }

    /// Whether all these shares are in it.
    pub fn has_all(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }

    /// Whether a tenant's share is in it.
    pub fn has_tenant(self, id: &str) -> bool {
        self == Self::ALL || self.has(Share::of_tenant(id))
    }

    /// Those of them that a job has work in: a global job has work in its own share alone.
    #[must_use]
    pub fn of_job(self, job: &Job) -> Self {
        match job.scope {
            Scope::Tenants => self,
            Scope::Global => self & Share::of_job(&job.name).into(),
        }
    }

    /// The tenants of a list whose shares are in it.
    pub fn only(self, list: Arc<Tenants>) -> Arc<Tenants> {
        if self == Self::ALL {
            return list;
        }
        Arc::new(list.only(|tenant| self.has_tenant(tenant.id())))
    }

    /// Whether it has no share.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many shares it has.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Its shares, by their numbers.
    pub fn iter(self) -> impl Iterator<Item = Share> {
        (0..SHARES).map(Share).filter(move |share| self.has(*share))
    }
}

impl From<Share> for Shares {
    fn from(share: Share) -> Self {
        Self(1 << share.0)
    }
}

impl FromIterator<Share> for Shares {
    fn from_iter<I: IntoIterator<Item = Share>>(shares: I) -> Self {
        shares.into_iter().fold(Self::NONE, |all, share| all | share.into())
    }
}

impl BitOr for Shares {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Shares {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Shares {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// As ranges: `0-3, 7`.
impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = *self;
        let mut separator = "";
        while let Some(first) = rest.iter().next() {
            let run = rest.iter().zip(first.0..).take_while(|(share, number)| share.0 == *number);
            let run: Vec<Share> = run.map(|(share, _)| share).collect();
            match run.last().filter(|last| **last != first) {
                Some(last) => write!(f, "{separator}{first}-{last}")?,
                None => write!(f, "{separator}{first}")?,
            }
            separator = ", ";
            rest = rest - run.into_iter().collect();
        }
        Ok(())
    }
}

impl Serialize for Shares {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'d> Deserialize<'d> for Shares {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let message = || serde::de::Error::custom(format!("`{text}` is no set of shares"));
        Self::parse(&text).ok_or_else(message)
    }
}

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shares({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(numbers: &[u8]) -> Shares {
        numbers.iter().map(|number| Share::new(*number).unwrap()).collect()
    }

    #[test]
    fn a_tenants_share_never_changes() {
        let ids = ["", "1", "2", "acme", "018f3c1e-7c5a-7d61-9b1e-0a6d4ad5c001"];
        let found = ids.map(|id| Share::of_tenant(id).number());
        assert_eq!(found, [35, 49, 24, 58, 0]);
    }

    #[test]
    fn tenants_are_spread_evenly_over_the_shares() {
        let uuid = |number: u32| format!("018f3c1e-7c5a-7d61-9b1e-0a6d{number:08x}");
        let ids: [&dyn Fn(u32) -> String; 3] =
            [&|number| number.to_string(), &uuid, &|number| format!("clinic-{number:05}")];
        for id in ids {
            let mut counts = [0_u32; SHARES as usize];
            for number in 0..6_400 {
                counts[usize::from(Share::of_tenant(&id(number)).number())] += 1;
            }
            assert!(counts.iter().all(|count| (50..=150).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn parts_cover_all_shares_once_and_are_even() {
        for of in 1..=SHARES {
            let parts: Vec<_> = (0..of).map(|replica| Shares::part(replica, of).unwrap()).collect();
            let all = parts.iter().fold(Shares::NONE, |all, part| {
                assert!((all & *part).is_empty());
                all | *part
            });
            assert_eq!(all, Shares::ALL);
            let sizes = parts.iter().map(|part| part.len());
            assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
        }
        assert_eq!(
            [(0, 0), (5, 5), (0, 65)].map(|(replica, of)| Shares::part(replica, of)),
            [None; 3]
        );
    }

    #[test]
    fn a_set_is_shown_as_ranges() {
        for (numbers, shown) in
            [(&[][..], ""), (&[0], "0"), (&[0, 1, 2, 3, 7], "0-3, 7"), (&[1, 62, 63], "1, 62-63")]
        {
            assert_eq!(shares(numbers).to_string(), shown);
            assert_eq!(Shares::parse(shown), Some(shares(numbers)));
        }
        for text in ["64", "3-1", "1-", "-1", "a", "1,2", "1 2", "0-99"] {
            assert_eq!(Shares::parse(text), None, "{text}");
        }
        assert_eq!(Shares::ALL.to_string(), "0-63");
        assert!(Shares::ALL.has_all(shares(&[3])) && !shares(&[3]).has_all(shares(&[3, 4])));
        assert_eq!(shares(&[1, 2, 3]) - shares(&[2]), shares(&[1, 3]));
    }
}
