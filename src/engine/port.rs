//! What the engine needs of the world. Adapters stand behind these traits; one conformance suite
//! runs against every adapter of a port, the in-memory one included.
//!
//! The traits hand out boxed futures so that the engine is compiled once, whatever it is wired to:
//! a call is a batch, and a box a batch costs nothing.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;

use crate::domain::entry::Entry;
use crate::domain::job::{Job, JobName};
use crate::domain::report::FailureKind;
use crate::domain::row::Rows;
use crate::domain::run::{RunId, RunRecord};
use crate::domain::tenant::{Batch, Tenants};

/// Where tenants and rows come from.
pub trait Source: Send + Sync {
    /// The active tenants, complete, in the order of the tenant query.
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>>;

    /// Reads the rows of one batch into `rows`, which the caller has reset for the job's key
    /// columns. On an error what `rows` holds is meaningless and must not be written.
    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> BoxFuture<'a, Result<(), SourceError>>;
}

/// Which rows to read.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Of which tenants; for a job without tenants the one slot without an id.
    pub batch: &'a Batch,
    /// Each slot's "today" where the job has dates, and empty otherwise.
    pub first_dates: &'a [NaiveDate],
    /// The longest time that the whole read may take; the server is told as well.
    pub timeout: Duration,
}

/// A read failed. The message says what was being done; it never holds a password or a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// What to do about it.
    pub kind: SourceErrorKind,
    /// What happened, for people.
    pub message: String,
}

/// What to do about a failed read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// No connection, or it was lost: try again, and count it for the breaker.
    Unavailable,
    /// The server gave up for a reason that passes (a deadlock, a serialization failure, an
    /// administrator): try again.
    Transient,
    /// The statement took too long: with fewer tenants it may not.
    Timeout,
    /// The query broke on data (a division by zero, an invalid cast): other tenants may be fine.
    Data,
    /// A value has no JSON: other tenants may be fine.
    Encoding,
    /// The rows are more than a batch may hold: fewer tenants have fewer.
    TooLarge,
    /// A row belongs to a tenant that was not asked for: the whole batch is wrong.
    Foreign,
    /// The query itself is wrong (an unknown column, no privilege): no batch can work.
    Definition,
}

impl SourceErrorKind {
    /// The name under which a report counts it.
    pub fn failure_kind(self) -> FailureKind {
        match self {
            Self::Unavailable => FailureKind::DatabaseUnavailable,
            Self::Timeout => FailureKind::StatementTimeout,
            Self::Transient | Self::Data | Self::Definition => FailureKind::Query,
            Self::Encoding => FailureKind::Encoding,
            Self::TooLarge => FailureKind::TooManyRows,
            Self::Foreign => FailureKind::ForeignRow,
        }
    }
}

/// Where entries go.
pub trait Cache: Send + Sync {
    /// Writes the entries, each with its TTL; the answers are in their order. Large batches go out
    /// in several pipelines, so an error of the whole may come after some were written: a repeated
    /// write is harmless.
    fn write<'a>(
        &'a self,
        entries: &'a [Entry<'a>],
    ) -> BoxFuture<'a, Result<Vec<KeyResult>, CacheError>>;

    /// Removes keys; the answers, whether there was such a key, are in their order.
    fn remove<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Result<bool, CacheError>>, CacheError>>;

    /// What the server says of its memory and its use.
    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>>;
}

/// What became of one key.
pub type KeyResult = Result<(), CacheError>;

/// A write failed, whole or of one key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CacheError {
    /// What happened.
    pub kind: CacheErrorKind,
    /// The same for people.
    pub message: String,
}

/// What happened to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheErrorKind {
    /// No connection, it was lost, or no answer came in time: try again.
    Unavailable,
    /// It is loading its data, or a failover is under way (`LOADING`, `TRYAGAIN`, `MASTERDOWN`,
    /// `CLUSTERDOWN`): try again.
    Transient,
    /// `OOM`: `maxmemory` is reached and nothing may be evicted.
    Full,
    /// `READONLY`: it is a replica.
    ReadOnly,
    /// `MOVED` or `ASK`: it is a cluster's node and the key is another's.
    Moved,
    /// `WRONGTYPE`.
    WrongType,
    /// `NOPERM` or `NOAUTH`.
    Permission,
    /// Anything else.
    Refused,
}

impl CacheErrorKind {
    /// The name under which a report counts it.
    pub fn failure_kind(self) -> FailureKind {
        match self {
            Self::Unavailable | Self::Transient => FailureKind::CacheUnavailable,
            Self::Full => FailureKind::CacheFull,
            Self::ReadOnly => FailureKind::CacheReadOnly,
            Self::Moved => FailureKind::CacheMoved,
            Self::WrongType => FailureKind::CacheWrongType,
            Self::Permission => FailureKind::CachePermission,
            Self::Refused => FailureKind::CacheRefused,
        }
    }

    /// Whether trying again may help.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Unavailable | Self::Transient => true,
            Self::Full
            | Self::ReadOnly
            | Self::Moved
            | Self::WrongType
            | Self::Permission
            | Self::Refused => false,
        }
    }
}

/// What the cache server says of itself; the counters are since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes in use.
    pub used_memory: u64,
    /// The bound on them; 0 where there is none.
    pub maxmemory: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Keys pushed out for want of memory.
    pub evicted: u64,
}

/// Where runs that ended are kept.
pub trait History: Send + Sync {
    /// Keeps the records; one that is there already stays as it is.
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>>;

    /// The newest records, newest first.
    fn recent<'a>(
        &'a self,
        job: Option<&'a JobName>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>>;

    /// One record.
    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>>;

    /// Removes records of runs that ended before that moment; answers how many.
    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>>;
}

/// The history could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HistoryError(pub String);

/// The time.
pub trait Clock: Send + Sync {
    /// What a clock on the wall shows.
    fn now(&self) -> DateTime<Utc>;

    /// Time since some fixed moment; it never goes back.
    fn monotonic(&self) -> Duration;

    /// Ends after that time.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// A uniform random number in `0.0..1.0`.
    fn random(&self) -> f64;
}
