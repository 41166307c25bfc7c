//! Manifests: which keys with a data column exist, so that those whose data is gone can be removed.
//!
//! A manifest always names at least the keys that exist: names are added before the keys are
//! written and taken out after the keys are removed. So a crash, or two warmers at once, leave names
//! too many and never too few.

use std::collections::HashSet;

use super::job::JobName;

/// Before every manifest.
const PREFIX: &str = "preheat:manifest:";

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

/// What a complete read changes in one manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Keys to name before they are written.
    pub new: Vec<String>,
    /// Keys whose data is gone: to remove, and then to take out.
    pub vanished: Vec<String>,
}

impl Difference {
    /// Between the keys that a manifest names and those that there are now.
    pub fn between<'k>(named: Vec<String>, present: impl IntoIterator<Item = &'k str>) -> Self {
        let mut left: HashSet<String> = named.into_iter().collect();
        let mut new = Vec::new();
        for key in present {
            if !left.remove(key) {
                new.push(key.to_owned());
            }
        }
        let mut vanished: Vec<String> = left.into_iter().collect();
        vanished.sort_unstable();
        Self { new, vanished }
    }
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
    fn what_is_new_and_what_has_vanished_is_told_apart() {
        let named = ["a", "b", "c"].map(str::to_owned).to_vec();
        let found = Difference::between(named, ["b", "d"]);
        assert_eq!(found.new, ["d"]);
        assert_eq!(found.vanished, ["a", "c"]);
    }
}
