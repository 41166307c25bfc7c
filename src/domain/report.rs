//! What a run did: counts and failures. The reports of its batches add up to the run's report.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tenant::TenantId;
use super::trace::BatchTraces;

/// How many different failures a report describes.
pub const MAX_FAILURES: usize = 20;

/// How many failed tenants a report names for each kind of failure.
pub const MAX_NAMED: usize = 100;

/// How many failed tenants of a run are named one by one: as many as a job's pending set holds.
pub const MAX_FAILED: usize = 10_000;

/// What a run, or a part of one, did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Report {
    /// Tenants, counted by their result.
    pub tenants: TenantCounts,
    /// Keys, counted by their result.
    pub keys: KeyCounts,
    /// Bytes of the written values.
    pub bytes: u64,
    /// Queries for rows, including those of retries and splits.
    pub queries: u64,
    /// How long these queries took in all, in milliseconds: several at once count each. Rows become JSON while they
    /// are read, which is a part of it.
    #[serde(rename = "database_ms", with = "whole_millis")]
    #[schemars(with = "u64")]
    pub database: Duration,
    /// Where else the time of the batches went.
    pub time: BatchTime,
    /// How often a batch was tried again after a transient failure.
    pub retries: u64,
    /// Whether so much time had passed since the last writes that keys may have expired before this run.
    pub late: bool,
    /// Keys that the cache evicted during the run, including keys of others.
    pub evicted: u64,
    /// One entry for each kind of failure, with the first failure of that kind.
    pub failures: Vec<Failure>,
    /// The first failed tenants, grouped by the kind of their first failure.
    pub failed_tenants: Vec<FailedOfKind>,
    /// The slowest batches, and those that failed. They are not kept in the history.
    #[serde(skip)]
    pub batches: BatchTraces,
    /// All failed tenants. It is only there while the run goes on: the history keeps `failed_tenants`
    /// alone.
    #[serde(skip)]
    pub failed: Vec<FailedTenant>,
    /// The tenants of a batch that are unverified. The batch takes them out at its end.
    #[serde(skip)]
    pub unverified: Unverified,
}

/// How long the batches spent outside of the database, in milliseconds: several at once count each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BatchTime {
    /// They waited for permits, since other batches had them.
    #[serde(rename = "permit_ms", with = "whole_millis")]
    #[schemars(with = "u64")]
    pub permit: Duration,
    /// Rows were put together to keys and values.
    #[serde(rename = "encode_ms", with = "whole_millis")]
    #[schemars(with = "u64")]
    pub encode: Duration,
    /// The cache answered: fences, manifests, values, TTLs.
    #[serde(rename = "cache_ms", with = "whole_millis")]
    #[schemars(with = "u64")]
    pub cache: Duration,
    /// They waited before they tried again.
    #[serde(rename = "retry_ms", with = "whole_millis")]
    #[schemars(with = "u64")]
    pub retry: Duration,
}

impl BatchTime {
    fn add(&mut self, other: Self) {
        let Self { permit, encode, cache, retry } = other;
        self.permit += permit;
        self.encode += encode;
        self.cache += cache;
        self.retry += retry;
    }
}

/// Durations as whole milliseconds. They are summed up as they are: a thousand queries of half a millisecond took
/// half a second.
mod whole_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        of: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(of.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// Tenants whose first failure is of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedOfKind {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The ids of the first such tenants.
    pub tenants: Vec<String>,
    /// How many more such tenants there are.
    pub more: u64,
}

/// A failed tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedTenant {
    /// The tenant's id.
    pub tenant: String,
    /// The kind of its first failure.
    pub kind: FailureKind,
    /// The message of that failure.
    pub message: Arc<str>,
}

/// Tenants, counted by their result. A job without tenants counts as one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TenantCounts {
    /// How many tenants the run covers.
    pub total: u64,
    /// Tenants whose keys are all warm.
    pub ok: u64,
    /// Tenants for which something failed.
    pub failed: u64,
    /// Tenants whose data changed in every round. Their values live for the provisional TTL, and
    /// follow-up runs warm them again until their data stands still.
    #[serde(default)]
    pub fenced: u64,
}

impl TenantCounts {
    /// Tenants that the run has finished, whatever their result.
    pub fn done(&self) -> u64 {
        self.ok + self.failed + self.fenced
    }

    /// Tenants that the run has not reached.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.done())
    }
}

/// Keys, counted by their result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyCounts {
    /// Keys that were written with their full TTL.
    pub written: u64,
    /// Keys that were removed, because their data is gone or cannot be cached.
    pub removed: u64,
    /// Keys that should have been written and were not.
    pub failed: u64,
    /// Keys that were written with the provisional TTL, because their tenant's data changed in every
    /// round.
    #[serde(default)]
    pub fenced: u64,
}

/// All failures of one kind, with the details of the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The tenant of the first failure; `None` if it concerns no single tenant.
    pub tenant: Option<String>,
    /// The key of the first failure; `None` if it concerns no single key.
    pub key: Option<String>,
    /// The message of the first failure.
    pub message: String,
    /// How many failures of this kind there were.
    pub count: u64,
}

/// A kind of failure. A report has one entry for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The tenant list could not be read, or a requested tenant is not in it.
    Tenants,
    /// The tenant list lacks more tenants than `tenants.max_shrink` allows.
    TenantsShrank,
    /// The database could not be reached, or the connection broke.
    DatabaseUnavailable,
    /// The database refused the query, or the query failed on a tenant's data.
    Query,
    /// The query took longer than its statement timeout.
    StatementTimeout,
    /// Another session, such as a migration, kept a table locked.
    Locked,
    /// The query returned a row of a tenant that is not in the batch.
    ForeignRow,
    /// A value cannot be written as JSON.
    Encoding,
    /// The tenant has more rows than a batch may hold.
    TooManyRows,
    /// The tenant's time zone is missing or unknown.
    TimeZone,
    /// A value is larger than `max_bytes`.
    ValueTooLarge,
    /// The rows make two different values for one key.
    KeyConflict,
    /// The key could also be another tenant's: an id or a value contains text that separates them in
    /// keys.
    AmbiguousKey,
    /// There are several rows for a key whose value is one object.
    SeveralRows,
    /// The cache could not be reached, or the connection broke.
    CacheUnavailable,
    /// The cache is full and evicts nothing: `OOM`.
    CacheFull,
    /// The cache is a replica: `READONLY`.
    CacheReadOnly,
    /// The cache is a node of a cluster, and another node has the key: `MOVED`.
    CacheMoved,
    /// The cache server was restarted, failed over, replaced or emptied during the run: what the run
    /// wrote before may be lost.
    CacheRestarted,
    /// The key holds a value of another type: `WRONGTYPE`.
    CacheWrongType,
    /// The cache user may not write the key: `NOPERM`.
    CachePermission,
    /// The cache refused for another reason.
    CacheRefused,
    /// The run's deadline passed.
    Deadline,
    /// The run was stopped.
    Cancelled,
    /// An invalidation removed keys, but could not ask a job to warm them again.
    Rewarm,
    /// preheat itself has a defect.
    Internal,
}

impl FailureKind {
    /// All kinds, as lists of choices have them.
    pub const ALL: [Self; 26] = [
        Self::Tenants,
        Self::TenantsShrank,
        Self::DatabaseUnavailable,
        Self::Query,
        Self::StatementTimeout,
        Self::Locked,
        Self::ForeignRow,
        Self::Encoding,
        Self::TooManyRows,
        Self::TimeZone,
        Self::ValueTooLarge,
        Self::KeyConflict,
        Self::AmbiguousKey,
        Self::SeveralRows,
        Self::CacheUnavailable,
        Self::CacheFull,
        Self::CacheReadOnly,
        Self::CacheMoved,
        Self::CacheRestarted,
        Self::CacheWrongType,
        Self::CachePermission,
        Self::CacheRefused,
        Self::Deadline,
        Self::Cancelled,
        Self::Rewarm,
        Self::Internal,
    ];

    /// Whether the cache refuses every write for this reason, whichever key it is for.
    pub fn is_of_all_writes(self) -> bool {
        matches!(self, Self::CacheFull | Self::CacheReadOnly | Self::CacheMoved)
    }

    /// The kind's name in logs and reports.
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
    /// One failure that concerns no single key.
    pub fn new(kind: FailureKind, tenant: Option<String>, message: String) -> Self {
        Self { kind, tenant, key: None, message, count: 1 }
    }
}

impl Report {
    /// Counts a failure in its kind's entry. A new kind gets an entry while there is room.
    pub fn fail(&mut self, failure: Failure) {
        merge(&mut self.failures, failure);
    }

    /// Counts a tenant as failed, with its first failure. `tenant` is `None` for a job without tenants.
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

    /// Adds the report of a part of the run, except `tenants.total`, which only the whole run knows.
    pub fn add(&mut self, part: Self) {
        let Self { tenants, keys, bytes, queries, database, retries, late, evicted, .. } = part;
        let Self { time, batches, failures, failed_tenants, failed, unverified, .. } = part;
        self.tenants.ok += tenants.ok;
        self.tenants.failed += tenants.failed;
        self.tenants.fenced += tenants.fenced;
        self.keys.written += keys.written;
        self.keys.removed += keys.removed;
        self.keys.failed += keys.failed;
        self.keys.fenced += keys.fenced;
        self.bytes += bytes;
        self.queries += queries;
        self.database += database;
        self.time.add(time);
        self.retries += retries;
        self.late |= late;
        self.evicted += evicted;
        self.batches.extend(batches);
        self.unverified.add(unverified);
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

    /// The outcome of a run with this report, if nothing stopped the run. A fenced tenant is not a
    /// failure: its keys are there, and a follow-up run warms it again.
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

/// Counts a failure in its kind's entry. A new kind gets an entry while there is room.
pub(super) fn merge(failures: &mut Vec<Failure>, failure: Failure) {
    if let Some(same) = failures.iter_mut().find(|known| known.kind == failure.kind) {
        same.count += failure.count;
    } else if failures.len() < MAX_FAILURES {
        failures.push(failure);
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything is warm.
    Ok,
    /// Something failed, and something was written.
    Partial,
    /// Nothing could be warmed.
    Failed,
    /// The run's deadline passed.
    Timeout,
    /// The run was stopped.
    Cancelled,
}

impl Outcome {
    /// All outcomes, so that each has its metrics from the start.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Partial, Self::Failed, Self::Timeout, Self::Cancelled];

    /// The outcome's name in logs, metrics, HTTP answers and the history.
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

/// The tenants of a run that failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failed {
    /// Each tenant with its first failure, as many as the run names.
    pub tenants: Vec<FailedTenant>,
    /// Whether these are all failed tenants, and the run came to every tenant.
    pub is_complete: bool,
}

/// The tenants of a job whose keys were written but are not verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unverified {
    /// The tenants.
    pub tenants: BTreeSet<TenantId>,
    /// Whether the keys of a job without tenants are unverified.
    pub global: bool,
}

impl Unverified {
    /// Whether all keys are verified.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty() && !self.global
    }

    /// Adds others to these.
    pub fn add(&mut self, other: Self) {
        self.tenants.extend(other.tenants);
        self.global |= other.global;
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
            one.fail_tenant(None, FailureKind::Query, &"the global".into());
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
    fn times_shorter_than_a_millisecond_add_up() {
        let half = Duration::from_micros(500);
        let mut report = Report::default();
        for _ in 0..1_000 {
            let time = BatchTime { permit: half, encode: half, cache: half, retry: half };
            report.add(Report { database: half, time, ..Report::default() });
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["database_ms"], 500);
        let time = serde_json::json!(
            { "permit_ms": 500, "encode_ms": 500, "cache_ms": 500, "retry_ms": 500 }
        );
        assert_eq!(json["time"], time);
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
        let older = serde_json::json!({ "database_ms": 7 });
        let older: Report = serde_json::from_value(older).unwrap();
        assert_eq!((older.database, older.time), (half * 14, BatchTime::default()));
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
