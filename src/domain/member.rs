//! Members of a fleet: the replicas that share the tenants.

use std::fmt;
use std::sync::Arc;

use super::random;

/// The name of one member. Each process draws its own when it starts, so that a replica that starts again is never
/// taken for the one that it replaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// How many letters and digits an id has at most.
    const LONGEST: usize = 64;

    /// The id that follows from a random number in `0.0..1.0`.
    pub fn random(uniform: f64) -> Self {
        Self(format!("{:014x}", random::bits(uniform)).into())
    }

    /// The id with this text; `None` if the text has other characters than letters and digits, or too many.
    pub fn parse(text: &str) -> Option<Self> {
        let is_right = !text.is_empty()
            && text.len() <= Self::LONGEST
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_right.then(|| Self(text.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_letters_and_digits() {
        assert_eq!(MemberId::random(0.0).as_str(), "00000000000000");
        let ids = [0.25, 0.250_000_1, 0.999_999].map(MemberId::random);
        for id in &ids {
            assert_eq!(MemberId::parse(id.as_str()).as_ref(), Some(id));
        }
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        for wrong in ["", "a b", "{a}", "ä", &"a".repeat(65)] {
            assert_eq!(MemberId::parse(wrong), None, "{wrong}");
        }
    }
}
