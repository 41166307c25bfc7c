//! What a run did: counts and failures. Reports add up: batch by batch to a run's.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How many different failures a report tells apart; the rest is counted only.
pub const MAX_FAILURES: usize = 20;

/// How many failed tenants of each kind of failure a report names.
pub const MAX_NAMED: usize = 100;

/// What a run, or a part of one, did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Tenants by what became of them.
    pub tenants: TenantCounts,
    /// Keys by what became of them.
    pub keys: KeyCounts,
    /// Bytes of the values that were written.
    pub bytes: u64,
    /// Queries that were sent for rows; retries and splits are among them.
    pub queries: u64,
    /// Batches that were tried again after a transient failure.
    pub retries: u64,
    /// Whether it took so long that keys may have expired before it wrote them again.
    pub late: bool,
    /// Keys that the cache pushed out for want of memory while the run went on.
    pub evicted: u64,
    /// The first failures of different kinds.
    pub failures: Vec<Failure>,
    /// The first tenants that failed, by the kind of their first failure.
    pub failed_tenants: Vec<FailedOfKind>,
    /// All tenants that failed, while the run goes on; what is kept of it has the first ones only.
    #[serde(skip)]
    pub failed: Vec<FailedTenant>,
}

/// Tenants that failed in one way first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedOfKind {
    /// What failed.
    pub kind: FailureKind,
    /// The ids of the first ones.
    pub tenants: Vec<String>,
    /// How many more there were.
    pub more: u64,
}

/// A tenant of which something failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTenant {
    /// Its id.
    pub tenant: String,
    /// What failed first.
    pub kind: FailureKind,
    /// What happened.
    pub message: Arc<str>,
}

/// Tenants by what became of them. The fleet of a job without tenants counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantCounts {
    /// How many the run was for.
    pub total: u64,
    /// All their keys are warm.
    pub ok: u64,
    /// Something of theirs failed.
    pub failed: u64,
    /// Their data changed in every round: their keys are there for some seconds, and they are warmed
    /// again until their data stands still.
    #[serde(default)]
    pub fenced: u64,
}

impl TenantCounts {
    /// Those that the run came to, whatever became of them.
    pub fn done(&self) -> u64 {
        self.ok + self.failed + self.fenced
    }

    /// Those that the run did not come to.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.done())
    }
}

/// Keys by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// Written, with their TTL.
    pub written: u64,
    /// Removed, as their data is gone or may not be cached.
    pub removed: u64,
    /// Not written though they should have been.
    pub failed: u64,
    /// Written with a life of some seconds, since their tenant's data changed in every round.
    #[serde(default)]
    pub fenced: u64,
}

/// One kind of failure, with its first instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// The first tenant it happened to; none where it is not about a tenant.
    pub tenant: Option<String>,
    /// The first key it happened to, where it is about a key.
    pub key: Option<String>,
    /// The first message.
    pub message: String,
    /// How often.
    pub count: u64,
}

/// What failed. Failures of one kind are one line of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The tenant list could not be read.
    Tenants,
    /// The tenant list lacks more tenants than `tenants.max_shrink` trusts.
    TenantsShrank,
    /// The database could not be reached, or hung up.
    DatabaseUnavailable,
    /// The query was refused or broke on a tenant's data.
    Query,
    /// The query took longer than its statement timeout.
    StatementTimeout,
    /// A table stayed locked by others, as by a migration.
    Locked,
    /// A row belonged to a tenant that was not asked for.
    ForeignRow,
    /// A value has no JSON.
    Encoding,
    /// The tenant's rows are more than a batch may hold.
    TooManyRows,
    /// The tenant's time zone is no time zone.
    TimeZone,
    /// A value is larger than `max_bytes`.
    ValueTooLarge,
    /// Two different values for one key.
    KeyConflict,
    /// The key may be another tenant's as well: an id or a value holds text that parts them in keys.
    AmbiguousKey,
    /// An object's key got more than one row.
    SeveralRows,
    /// The cache could not be reached, or hung up.
    CacheUnavailable,
    /// The cache is full and evicts nothing: `OOM`.
    CacheFull,
    /// The cache is a replica: `READONLY`.
    CacheReadOnly,
    /// The cache is a cluster's node and the key is another's: `MOVED`.
    CacheMoved,
    /// The cache server was restarted, failed over, replaced or emptied while the run went on: what it
    /// wrote before may be lost.
    CacheRestarted,
    /// The key holds another type: `WRONGTYPE`.
    CacheWrongType,
    /// The cache user may not write the key: `NOPERM`.
    CachePermission,
    /// The cache refused for another reason.
    CacheRefused,
    /// The run's deadline passed.
    Deadline,
    /// The run was told to stop.
    Cancelled,
    /// A job could not be asked to warm again what was removed.
    Rewarm,
    /// preheat itself failed: a defect.
    Internal,
}

impl FailureKind {
    /// Its name in logs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenants => "tenants",
            Self::TenantsShrank => "tenants_shrank",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::Query => "query",
            Self::StatementTimeout => "statement_timeout",
            Self::Locked => "locked",
            Self::ForeignRow => "foreign_row",
            Self::Encoding => "encoding",
            Self::TooManyRows => "too_many_rows",
            Self::TimeZone => "time_zone",
            Self::ValueTooLarge => "value_too_large",
            Self::KeyConflict => "key_conflict",
            Self::AmbiguousKey => "ambiguous_key",
            Self::SeveralRows => "several_rows",
            Self::CacheUnavailable => "cache_unavailable",
            Self::CacheFull => "cache_full",
            Self::CacheReadOnly => "cache_read_only",
            Self::CacheMoved => "cache_moved",
            Self::CacheRestarted => "cache_restarted",
            Self::CacheWrongType => "cache_wrong_type",
            Self::CachePermission => "cache_permission",
            Self::CacheRefused => "cache_refused",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Rewarm => "rewarm",
            Self::Internal => "internal",
        }
    }
}

impl Failure {
    /// One failure that is not about a key.
    pub fn new(kind: FailureKind, tenant: Option<String>, message: String) -> Self {
        Self { kind, tenant, key: None, message, count: 1 }
    }
}

impl Report {
    /// Adds a failure: to its kind's line, or as a new one while there is room.
    pub fn fail(&mut self, failure: Failure) {
        merge(&mut self.failures, failure);
    }

    /// Counts a tenant as failed, with its first failure; the fleet of a job without tenants has no id.
    pub fn fail_tenant(&mut self, tenant: Option<&str>, kind: FailureKind, message: &Arc<str>) {
        self.tenants.failed += 1;
        let Some(tenant) = tenant.map(str::to_owned) else { return };
        self.name_failed(FailedOfKind { kind, tenants: vec![tenant.clone()], more: 0 });
        self.failed.push(FailedTenant { tenant, kind, message: Arc::clone(message) });
    }

    fn name_failed(&mut self, part: FailedOfKind) {
        let FailedOfKind { kind, tenants, more } = part;
        let known = self.failed_tenants.iter().position(|known| known.kind == kind);
        let place = known.unwrap_or(self.failed_tenants.len());
        if known.is_none() {
            self.failed_tenants.push(FailedOfKind { kind, tenants: Vec::new(), more: 0 });
        }
        let Some(known) = self.failed_tenants.get_mut(place) else { return };
        let room = MAX_NAMED.saturating_sub(known.tenants.len());
        known.more += more + tenants.len().saturating_sub(room) as u64;
        known.tenants.extend(tenants.into_iter().take(room));
    }

    /// Adds what another part did; `tenants.total` is the run's own and is not added.
    pub fn add(&mut self, part: Self) {
        let Self { tenants, keys, bytes, queries, retries, late, evicted, .. } = part;
        let Self { failures, failed_tenants, failed, .. } = part;
        self.tenants.ok += tenants.ok;
        self.tenants.failed += tenants.failed;
        self.tenants.fenced += tenants.fenced;
        self.keys.written += keys.written;
        self.keys.removed += keys.removed;
        self.keys.failed += keys.failed;
        self.keys.fenced += keys.fenced;
        self.bytes += bytes;
        self.queries += queries;
        self.retries += retries;
        self.late |= late;
        self.evicted += evicted;
        for failure in failures {
            self.fail(failure);
        }
        self.add_failed(failed_tenants, failed);
    }

    /// Adds tenants that another part counted as failed.
    pub fn add_failed(&mut self, named: Vec<FailedOfKind>, all: Vec<FailedTenant>) {
        for of_kind in named {
            self.name_failed(of_kind);
        }
        self.failed.extend(all);
    }

    /// How a run with this report ended, where nothing stopped it. A fenced tenant is no failure: its
    /// keys are there, and it is warmed again.
    pub fn outcome(&self) -> Outcome {
        let clean = self.failures.is_empty() && self.tenants.left() == 0 && self.keys.failed == 0;
        let something = self.keys.written > 0 || self.tenants.ok > 0 || self.tenants.fenced > 0;
        match (clean, something) {
            (true, _) => Outcome::Ok,
            (false, true) => Outcome::Partial,
            (false, false) => Outcome::Failed,
        }
    }
}

/// Adds a failure to some: to its kind's line, or as a new one while there is room.
pub(super) fn merge(failures: &mut Vec<Failure>, failure: Failure) {
    if let Some(same) = failures.iter_mut().find(|known| known.kind == failure.kind) {
        same.count += failure.count;
    } else if failures.len() < MAX_FAILURES {
        failures.push(failure);
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything is warm.
    Ok,
    /// Something failed, something was written.
    Partial,
    /// Nothing was written that should have been.
    Failed,
    /// Its deadline passed.
    Timeout,
    /// It was told to stop.
    Cancelled,
}

impl Outcome {
    /// All of them, for metrics that stand from the start.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Partial, Self::Failed, Self::Timeout, Self::Cancelled];

    /// Its name in logs, metrics, routes and the history.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind, tenant: &str) -> Failure {
        Failure {
            kind,
            tenant: Some(tenant.to_owned()),
            key: None,
            message: format!("of {tenant}"),
            count: 1,
        }
    }

    #[test]
    fn failures_of_one_kind_are_one_line_that_names_the_first() {
        let mut report = Report::default();
        report.fail(failure(FailureKind::Query, "a"));
        let mut part = Report::default();
        part.fail(failure(FailureKind::Query, "b"));
        part.fail(failure(FailureKind::CacheFull, "b"));
        report.add(part);
        let lines: Vec<_> = report.failures.iter().map(|f| (f.message.as_str(), f.count)).collect();
        assert_eq!(lines, [("of a", 2), ("of b", 1)]);
    }

    #[test]
    fn the_first_tenants_of_each_kind_are_named_and_the_rest_is_counted() {
        let mut report = Report::default();
        for part in 0..3 {
            let mut one = Report::default();
            for number in 0..60 {
                let id = format!("{part}.{number}");
                one.fail_tenant(Some(&id), FailureKind::Query, &"broken".into());
            }
            one.fail_tenant(Some("late"), FailureKind::StatementTimeout, &"slow".into());
            one.fail_tenant(None, FailureKind::Query, &"the fleet".into());
            report.add(one);
        }
        let named = report.failed_tenants.iter();
        let named: Vec<_> = named.map(|of| (of.kind, of.tenants.len(), of.more)).collect();
        let expected = [(FailureKind::Query, 100, 80), (FailureKind::StatementTimeout, 3, 0)];
        assert_eq!(named, expected);
        assert_eq!(report.failed_tenants[0].tenants[60], "1.0");
        assert_eq!((report.failed.len(), report.tenants.failed), (183, 186));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json.get("failed").is_none());
        assert_eq!(serde_json::from_value::<Report>(json).unwrap().failed, []);
    }

    #[test]
    fn hazard_27_a_partial_failure_is_never_ok() {
        let mut report = Report::default();
        assert_eq!(report.outcome(), Outcome::Ok);
        report.tenants.total = 2;
        assert_eq!(report.outcome(), Outcome::Failed);
        report.tenants.ok = 1;
        assert_eq!(report.outcome(), Outcome::Partial);
        report.tenants.ok = 2;
        report.keys.written = 2;
        assert_eq!(report.outcome(), Outcome::Ok);
        report.keys.failed = 1;
        assert_eq!(report.outcome(), Outcome::Partial);
    }
}
