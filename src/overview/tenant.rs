//! Tenants: those that are not warm, and everything about one of them.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Moment;
use super::facts::moment;
use crate::domain::report::FailureKind;
use crate::engine::run::not_warm::{Entry, Listed, Reason};

/// A tenant that is not warm in one job: its keys may be missing, old, or live for the provisional TTL only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NotWarmTenant {
    /// The tenant's id; null for a job without tenants.
    pub tenant: Option<String>,
    /// The job.
    pub job: String,
    /// The kind of failure; null if its data kept changing while it was warmed (`fenced`).
    pub kind: Option<FailureKind>,
    /// What happened at the last try.
    pub message: String,
    /// Since when it is not warm.
    pub since: Moment,
    /// How often it was tried since then.
    pub tries: u64,
    /// When it is tried again; null if nothing is due.
    pub next_try_at: Option<Moment>,
}

/// One page of the tenants that are not warm, by job and id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NotWarmTenants {
    /// The tenants of this page.
    pub tenants: Vec<NotWarmTenant>,
    /// How many there are that match the filters, over all pages.
    pub total: u64,
    /// How many more there are that the worker does not know by name: it remembers 10,000 of its own, and 100 of each
    /// other member of its fleet.
    pub more: u64,
    /// Active tenants; null before the first tenant list.
    pub active: Option<u64>,
    /// The `cursor` of the next page; null if this is the last.
    pub next: Option<String>,
}

/// Whether a tenant is warm in a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    /// The last run that covered it wrote all its keys, as far as the worker remembers.
    Warm,
    /// It is not: `not_warm` says why.
    NotWarm,
    /// No run has covered it since the worker started, or its keys could not be looked at.
    Unknown,
    /// The job is disabled or held.
    Off,
    /// The tenant is not active, so that the job does not warm it.
    NotActive,
}

/// Everything about one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TenantDetail {
    /// Its id.
    pub id: String,
    /// Whether it is in the tenant list; null before the first list.
    pub active: Option<bool>,
    /// Its time zone, by the tenant query, where jobs have dates.
    pub timezone: Option<String>,
    /// Its fence: the version counter that moves when its data changed. Null if there is none yet.
    pub fence: Option<i64>,
    /// When the change feed last reported a change of its data; null if that was before the worker started, or
    /// too many tenants have changed since.
    pub last_change_at: Option<Moment>,
    /// Each job with tenants.
    pub jobs: Vec<JobOfTenant>,
}

/// One tenant in one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct JobOfTenant {
    /// The job.
    pub job: String,
    /// Whether the tenant is warm in it.
    pub state: WarmState,
    /// Why it is not warm.
    pub not_warm: Option<NotWarmTenant>,
    /// Why its keys could not be looked at.
    pub problem: Option<String>,
    /// How many keys it should have, as far as its manifest and the key templates say.
    pub keys_expected: u64,
    /// How many of the first 1,000 of them are in the cache.
    pub keys_present: u64,
    /// The shortest TTL that is left, in milliseconds.
    pub shortest_ttl_ms: Option<u64>,
    /// Its keys, at most 100.
    pub keys: Vec<KeyOfTenant>,
    /// How many more keys it has.
    pub more_keys: u64,
}

/// A key that a tenant should have. Values are private data and are not shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KeyOfTenant {
    /// The key, without the cache's prefix.
    pub key: String,
    /// Whether it is in the cache.
    pub present: bool,
    /// The TTL that is left, in milliseconds; null if the key is missing or never expires.
    pub ttl_ms: Option<u64>,
    /// The size of its value; null if the key is missing.
    pub bytes: Option<u64>,
}

impl NotWarmTenant {
    pub(super) fn new(listed: Listed, next_try_at: Option<DateTime<Utc>>) -> Self {
        let Listed { job, owner, entry } = listed;
        let Entry { reason, message, since, tries } = entry;
        let kind = match reason {
            Reason::Failed(kind) => Some(kind),
            Reason::Unverified => None,
        };
        Self {
            tenant: owner.map(|tenant| tenant.to_string()),
            job: job.to_string(),
            kind,
            message: message.to_string(),
            since: Moment(since),
            tries,
            next_try_at: moment(next_try_at),
        }
    }
    /// What is known of it.
    pub(super) fn entry(&self) -> Entry {
        Entry {
            reason: self.kind.map_or(Reason::Unverified, Reason::Failed),
            message: self.message.as_str().into(),
            since: self.since.0,
            tries: self.tries,
        }
    }

    /// Its place in the list, as the next page's request has it: the job and, after a colon, the tenant.
    pub(super) fn cursor(&self) -> String {
        match &self.tenant {
            Some(tenant) => format!("{}:{tenant}", self.job),
            None => self.job.clone(),
        }
    }
}
