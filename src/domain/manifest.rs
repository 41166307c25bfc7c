//! Manifests: each names the data keys that may exist for one job and tenant, so that a run can remove
//! the keys whose data is gone. Manifests do not name shared keys.
//!
//! A run adds an entry to the manifest before it writes the entry's key. The entry stays until its key
//! cannot exist any more: no run that read the key's data is under way, and what such runs wrote has
//! expired. Only then is the entry pruned. To prune it together with the removal of the key would be
//! too early: a run that read the data before can still write the key, and then no manifest would name
//! it. So while the entry is there, each run removes the key of vanished data once more, which costs
//! little.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rapidhash::fast::RandomState;

use super::job::{Job, JobName};

/// Every manifest's key begins with this.
const PREFIX: &str = "preheat:manifest:";

/// The clocks of several workers may differ by this much.
const MARGIN: Duration = Duration::from_mins(1);

/// The key of the manifest of a job and a tenant; `None` is a job without tenants.
pub fn manifest_key(job: &JobName, tenant: Option<&str>) -> String {
    match tenant {
        Some(tenant) => format!("{PREFIX}{job}:{tenant}"),
        None => format!("{PREFIX}{job}"),
    }
}

/// A glob for the keys of a job's manifests, or of all manifests. It also matches the manifests of jobs
/// whose names begin with this job's name.
pub fn manifest_pattern(job: Option<&JobName>) -> String {
    match job {
        // No character of a job's name is special in a glob.
        Some(job) => format!("{PREFIX}{job}*"),
        None => format!("{PREFIX}*"),
    }
}

/// The job and the tenant of a manifest's key; the tenant is `None` for a job without tenants. `None`
/// for any other key.
pub fn read_manifest_key(key: &str) -> Option<(JobName, Option<&str>)> {
    let rest = key.strip_prefix(PREFIX)?;
    let (job, tenant) = match rest.split_once(':') {
        Some((job, tenant)) => (job, Some(tenant)),
        None => (rest, None),
    };
    Some((JobName::parse(job).ok()?, tenant))
}

/// An entry of a manifest: a key, and when the entry was added or renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// The key, without the cache's prefix.
    pub key: String,
    /// When a run last added or renewed the entry, which is right before it wrote the key.
    pub renewed_at: DateTime<Utc>,
}

/// The keys of `named` that are not in `present`, so that their data is gone: sorted, each once.
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

/// How old an entry becomes before it is pruned. A run does not renew an entry that is younger than the
/// job's TTL (see [`is_young`]). Even if such a run writes at the end of its `timeout`, the key has
/// expired before the entry is this old.
pub fn entry_life(job: &Job) -> Duration {
    job.ttl.saturating_mul(2).saturating_add(job.timeout).saturating_add(MARGIN)
}

/// Whether an entry is so young that a run which writes its key need not renew the entry.
pub fn is_young(job: &Job, renewed_at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    renewed_at + job.ttl >= now
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
