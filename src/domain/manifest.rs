//! Manifests: which keys with a data column may exist, so that those whose data is gone can be removed.
//!
//! A name is in its manifest before its key is written, and stays until its key cannot exist any
//! more: no run that read the key's data is under way, and what was written has expired. Taking it out
//! when the key is removed would be too early: a run that read before that writes the key again, and
//! nobody would find it. So a name that vanished is removed again with each run, which costs little.

use std::collections::HashSet;
use std::hash::Hash;
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

/// Those of some names whose keys have no data any more, in order and each once.
pub fn vanished<'k, K: Ord + Hash + 'k>(
    named: impl IntoIterator<Item = K>,
    present: impl IntoIterator<Item = &'k K>,
) -> Vec<K> {
    let mut vanished: Vec<K> = named.into_iter().collect();
    if !vanished.is_empty() {
        let present: HashSet<&K, RandomState> = present.into_iter().collect();
        vanished.retain(|key| !present.contains(key));
        vanished.sort_unstable();
        vanished.dedup();
    }
    vanished
}

/// How long a name stays that no run gives again. A run need not give names again that are younger
/// than the job's TTL (see [`is_young`]): what it writes has expired when they end, even if it writes
/// at its very end.
pub fn life_of_names(job: &Job) -> Duration {
    job.ttl.saturating_mul(2).saturating_add(job.timeout).saturating_add(MARGIN)
}

/// Whether a name is young enough that a run which renews its key need not renew the name.
pub fn is_young(job: &Job, named_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    named_at + job.ttl >= now
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
        assert_eq!(vanished(["c", "a", "b", "a"], &["b", "d"]), ["a", "c"]);
        assert!(vanished(Vec::<u8>::new(), &[1]).is_empty());
    }
}
