//! Manifests: which keys with a data column may exist, so that those whose data is gone can be removed.
//!
//! A name is in its manifest before its key is written, and stays until its key cannot exist any
//! more: no run that read the key's data is under way, and what was written has expired. Taking it out
//! when the key is removed would be too early: a run that read before that writes the key again, and
//! nobody would find it. So a name that vanished is removed again with each run, which costs little.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rapidhash::fast::RandomState;

use super::job::{Job, JobName};

/// Before every manifest.
const PREFIX: &str = "preheat:manifest:";

/// For clocks of several workers that differ.
const MARGIN: Duration = Duration::from_mins(1);

/// The key of the manifest of a job and tenant; of a job for the whole fleet where there is none.
pub fn manifest_key(job: &JobName, tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("{PREFIX}{job}:{tenant}"),
        None => format!("{PREFIX}{job}"),
    }
}

/// A glob for the manifests of a job, or of all jobs.
pub fn manifest_pattern(job: Option<&JobName>) -> String {
    match job {
        // A job's name has no character that means something in a glob.
        Some(job) => format!("{PREFIX}{job}*"),
        None => format!("{PREFIX}*"),
    }
}

/// Whose manifest a key is: the job, and the tenant where it is not the fleet's.
pub fn read_manifest_key(key: &str) -> Option<(JobName, Option<&str>)> {
    let rest = key.strip_prefix(PREFIX)?;
    let (job, tenant) = match rest.split_once(':') {
        Some((job, tenant)) => (job, Some(tenant)),
        None => (rest, None),
    };
    Some((JobName::parse(job).ok()?, tenant))
}

/// A key that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The key, without the cache's prefix.
    pub key: String,
    /// When a run last named it, which is right before it wrote it.
    pub named_at: DateTime<Utc>,
}

/// The keys that a manifest names and that have no data any more, in order.
pub fn vanished<'k>(
    named: impl IntoIterator<Item = Named>,
    present: impl IntoIterator<Item = &'k str>,
) -> Vec<Named> {
    let present: HashSet<&str, RandomState> = present.into_iter().collect();
    let named = named.into_iter();
    let mut vanished: Vec<Named> =
        named.filter(|named| !present.contains(named.key.as_str())).collect();
    vanished.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    vanished
}

/// How long a name stays that no run gives again. A run need not give names again that are younger
/// than the job's TTL (see [`is_fresh`]): what it writes has expired when they end, even if it writes
/// at its very end.
pub fn life_of_names(job: &Job) -> Duration {
    job.ttl.saturating_mul(2).saturating_add(job.timeout).saturating_add(MARGIN)
}

/// Whether a name need not be given again at this moment. Where keys may go from one tenant to
/// another it always is: when it was given tells whose a key is.
pub fn is_fresh(job: &Job, named_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    !job.has_keys_that_move() && named_at + job.ttl >= now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifests_key_says_whose_it_is_whatever_the_tenants_id() {
        let job = JobName::parse("pets").unwrap();
        for tenant in [Some("7"), Some("a:b:*"), Some(""), None] {
            let key = manifest_key(&job, tenant);
            assert_eq!(read_manifest_key(&key), Some((job.clone(), tenant)), "{key}");
        }
        assert_eq!(read_manifest_key("preheat:fence:7"), None);
        assert_eq!(read_manifest_key("preheat:manifest:a b:7"), None);
    }

    #[test]
    fn what_has_vanished_is_what_is_named_and_not_there() {
        let named = |key: &str| Named { key: key.to_owned(), named_at: DateTime::UNIX_EPOCH };
        let found = vanished(["c", "a", "b"].map(named), ["b", "d"]);
        assert_eq!(found, ["a", "c"].map(named));
    }
}
