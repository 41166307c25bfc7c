//! The names in Redis, and the numbers that go with them: the same in the clients of all languages.
//! `clients/vectors.json` has examples of each.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use crate::key::Fence;

/// How long a fence that a reader starts lives: longer than any load.
pub(crate) const FENCE_TTL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a reader that died keeps the others from loading a key.
pub(crate) const LEASE: Duration = Duration::from_secs(5);

/// The longest life of a fill that may be older than the data.
pub(crate) const BRIEF: Duration = Duration::from_secs(10);

/// How long counts stay that no worker reads.
pub(crate) const READS_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The lowest number with which a fence starts: what a bare `INCR` makes is far below.
const LOWEST_START: u64 = 1 << 40;
/// The bound of the numbers with which a fence starts: JavaScript reads all of them exactly.
const START_BOUND: u64 = 1 << 52;

/// Names with the prefix of all keys.
#[derive(Debug)]
pub(crate) struct Names {
    prefix: String,
}

impl Names {
    pub(crate) fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// A key as it is in Redis.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The fence's key; none for keys that have no fence.
    pub(crate) fn fence(&self, fence: &Fence) -> Option<String> {
        match fence {
            Fence::None => None,
            Fence::Global => Some(format!("{}preheat:fence", self.prefix)),
            Fence::Tenant(tenant) => Some(format!("{}preheat:fence:{tenant}", self.prefix)),
        }
    }

    /// The lease of a key, given as it is in Redis. It lies in the key's slot of a cluster, as far as the
    /// key's braces allow that.
    pub(crate) fn lease(&self, key: &str) -> String {
        format!("{}preheat:lease:{{{}}}{key}", self.prefix, hash_tag(key).unwrap_or(key))
    }

    /// The hash of the clients' counts.
    pub(crate) fn reads(&self) -> String {
        format!("{}preheat:reads", self.prefix)
    }
}

/// The part of a key that decides its slot: the text between its first `{` and the next `}`, unless there is
/// none between them.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, after) = key.split_once('{')?;
    let (tag, _) = after.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

/// A random number with which a fence may start.
pub(crate) fn fence_start() -> u64 {
    LOWEST_START + random() % (START_BOUND - LOWEST_START)
}

/// A text that no other reader makes.
pub(crate) fn token() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// The keys of the standard library's hasher come from the system's random numbers.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_fence_starts_with_a_number_of_its_own_within_the_bounds() {
        let starts: HashSet<u64> = (0..1000).map(|_| fence_start()).collect();
        assert_eq!(starts.len(), 1000);
        assert!(starts.iter().all(|start| (LOWEST_START..START_BOUND).contains(start)));
    }

    #[test]
    fn tokens_differ() {
        let tokens: HashSet<String> = (0..1000).map(|_| token()).collect();
        assert_eq!(tokens.len(), 1000);
    }
}
