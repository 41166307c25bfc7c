//! What the verifier found at its last look at each job.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::facts::{Facts, moment};
use super::text::millis;
use super::{Consistency, Moment};
use crate::domain::audit::{Beginning, Difference, Finding, Kind, Values, Wrong};
use crate::domain::job::JobName;
use crate::observe::figures::Findings;

/// Whether an answer has values, which are private data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// For people who may change something: with values.
    WithValues,
    /// For people who may only look: without.
    WithoutValues,
}

/// What the verifier found.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Audit {
    /// When these figures were computed.
    pub as_of: Moment,
    /// All jobs together.
    pub consistency: Consistency,
    /// Whether findings have values: only for a request with the token, or of a person who signed in with it.
    pub has_values: bool,
    /// The enabled jobs, by name.
    pub jobs: Vec<AuditOfJob>,
}

/// What the verifier found at its last look at a job.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct AuditOfJob {
    /// The job.
    pub job: String,
    /// When the look ended; null before the first.
    pub compared_at: Option<Moment>,
    /// How many tenants were compared.
    pub tenants: u64,
    /// How many keys were compared.
    pub keys: u64,
    /// The share of its compared values that equalled the database's.
    pub consistency: Option<f64>,
    /// The share of a sample of its keys that are in the cache.
    pub coverage: Option<f64>,
    /// How many of its tenants are not warm.
    pub not_warm: u64,
    /// How many keys were wrong.
    pub wrong: u64,
    /// The first of them, at most 20.
    pub findings: Vec<WrongKey>,
}

/// A key that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct WrongKey {
    /// The key, without the cache's prefix.
    pub key: String,
    /// Its tenant; null for a job without tenants.
    pub tenant: Option<String>,
    /// What is wrong with it.
    pub kind: Kind,
    /// When the look ended that found it.
    pub found_at: Moment,
    /// How much older the newest row of a stale value is than the database's, in milliseconds; null if the rows
    /// do not say.
    pub behind_ms: Option<u64>,
    /// What is wrong with its TTL, in words.
    pub ttl: Option<String>,
    /// The first places where the values differ; null without values.
    pub differences: Option<Vec<Difference>>,
    /// The value that the database's rows make; null if they make none, and without values.
    pub database: Option<ValuePart>,
    /// The value that the cache has; null if it has none, and without values.
    pub cache: Option<ValuePart>,
}

/// The beginning of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ValuePart {
    /// Its first 2,000 bytes, as text.
    pub text: String,
    /// How many bytes it has in all.
    pub bytes: u64,
    /// Whether the text is only a part of it.
    pub is_cut: bool,
}

impl Audit {
    pub(super) fn of(
        facts: &Facts,
        found: &BTreeMap<JobName, Arc<Findings>>,
        privacy: Privacy,
    ) -> Self {
        let enabled = facts.jobs().map(|status| &status.job.name);
        let enabled = enabled
            .filter(|name| facts.status.jobs.get(*name).is_some_and(|status| status.job.enabled));
        let job = |name: &JobName| {
            let found = found.get(name).map(Arc::as_ref);
            let wrong_key = |at| move |finding: &Finding| WrongKey::of(finding, at, privacy);
            AuditOfJob {
                job: name.to_string(),
                compared_at: moment(found.map(|found| found.at)),
                tenants: found.map_or(0, |found| found.tenants),
                keys: found.map_or(0, |found| found.keys),
                consistency: facts.audits.get(name).and_then(|audited| audited.equal.ratio()),
                coverage: facts.coverage.get(name).and_then(|share| share.ratio()),
                not_warm: facts.not_warm.get(name).map_or(0, |not_warm| not_warm.tenants),
                wrong: found.map_or(0, |found| found.all),
                findings: found.map_or_else(Vec::new, |found| {
                    found.first.iter().map(wrong_key(Moment(found.at))).collect()
                }),
            }
        };
        Self {
            as_of: Moment(facts.now),
            consistency: Consistency::of(facts),
            has_values: privacy == Privacy::WithValues,
            jobs: enabled.map(job).collect(),
        }
    }
}

impl WrongKey {
    fn of(finding: &Finding, found_at: Moment, privacy: Privacy) -> Self {
        let Finding { key, tenant, wrong } = finding;
        let Wrong { kind, differences, behind, ttl, marks: _, values } = wrong;
        let (differences, values) = match privacy {
            Privacy::WithValues => (Some(differences.first.clone()), values.as_deref()),
            Privacy::WithoutValues => (None, None),
        };
        let part = |of: fn(&Values) -> Option<&Beginning>| values.and_then(of).map(ValuePart::of);
        Self {
            key: key.clone(),
            tenant: tenant.clone(),
            kind: *kind,
            found_at,
            behind_ms: behind.map(millis),
            ttl: ttl.map(|ttl| ttl.to_string()),
            differences,
            database: part(|values| values.database.as_ref()),
            cache: part(|values| values.cache.as_ref()),
        }
    }
}

impl ValuePart {
    fn of(beginning: &Beginning) -> Self {
        let Beginning { text, bytes, is_cut } = beginning;
        Self { text: text.clone(), bytes: *bytes as u64, is_cut: *is_cut }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{at, facts, name};
    use super::*;
    use crate::domain::audit::{Held, Keep, Measure, judge};

    #[test]
    fn values_are_only_for_those_who_may_change_something() {
        let measure =
            Measure { ttl: Duration::from_mins(1), differences: 3, values: Keep::Beginnings };
        let wrong = judge(None, Held::Value(b"[\"secret\"]", None), measure).unwrap();
        let finding = Finding { key: "a:1".to_owned(), tenant: Some("1".to_owned()), wrong };
        let found =
            Findings { at: at("11:50"), tenants: 20, keys: 60, all: 25, first: vec![finding] };
        let found = BTreeMap::from([(name("a"), Arc::new(found))]);
        let facts = facts(&["a", "b"]);
        let shown = Audit::of(&facts, &found, Privacy::WithValues);
        let cache = shown.jobs[0].findings[0].cache.as_ref().unwrap();
        assert_eq!(cache.text, "[\"secret\"]");
        assert_eq!((shown.jobs[0].wrong, shown.jobs[1].compared_at), (25, None));
        let hidden = Audit::of(&facts, &found, Privacy::WithoutValues);
        assert!(!serde_json::to_string(&hidden).unwrap().contains("secret"));
        assert_eq!(hidden.jobs[0].findings[0].kind, Kind::Orphaned);
    }
}
