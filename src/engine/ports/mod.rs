//! What the engine needs of the world. Adapters stand behind these traits; one conformance suite
//! runs against every adapter of a port, the in-memory one included.
//!
//! The traits hand out boxed futures so that the engine is compiled once, whatever it is wired to:
//! a call is a batch, and a box a batch costs nothing.

mod breaker;
mod guard;

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;

pub use self::guard::{Ports, Unguarded};
use crate::domain::change::Change;
use crate::domain::entry::Entry;
use crate::domain::fence::Fence;
use crate::domain::job::{Job, JobName};
use crate::domain::manifest::Named;
use crate::domain::report::FailureKind;
use crate::domain::row::Rows;
use crate::domain::run::{RunId, RunRecord};
use crate::domain::tenant::{Batch, IdClass, TenantId, Tenants};

/// Where tenants and rows come from.
pub trait Source: Send + Sync {
    /// The active tenants, complete, in the order of the tenant query.
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>>;

    /// Those of some tenants that are active, with the columns of the tenant query.
    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>>;

    /// What the tenants' ids may be, as the last list had it; any text before the first.
    fn id_class(&self) -> IdClass;

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
    /// The server counts as down and was not asked.
    LeftAlone,
    /// No connection, or it was lost: try again, and count it for the breaker.
    Unavailable,
    /// The server gave up for a reason that passes (a deadlock, a serialization failure, an
    /// administrator): try again.
    Transient,
    /// A lock was not to be had in time (`lock_timeout`): others hold the table. Try again.
    Locked,
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
    /// Whether the query or its data is why, and not the server: then it fails again.
    pub fn is_about_query(self) -> bool {
        match self {
            Self::Data | Self::Encoding | Self::TooLarge | Self::Foreign | Self::Definition => true,
            Self::LeftAlone
            | Self::Unavailable
            | Self::Transient
            | Self::Locked
            | Self::Timeout => false,
        }
    }

    /// The name under which a report counts it.
    pub fn failure_kind(self) -> FailureKind {
        match self {
            Self::LeftAlone | Self::Unavailable => FailureKind::DatabaseUnavailable,
            Self::Timeout => FailureKind::StatementTimeout,
            Self::Locked => FailureKind::Locked,
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

    /// Gives keys the rest of a life, longer or shorter than what they had; a key that is not there
    /// stays away.
    fn expire<'a>(
        &'a self,
        keys: &'a [(String, Duration)],
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// What keys hold and how long they will, in their order; `None` where there is no such key. One
    /// that holds no text, as an application's list, is an error of the whole.
    /// The values of a call are in memory together: ask for a few megabytes at once.
    fn look<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Found>>, CacheError>>;

    /// How many of these keys there are, whatever they hold. It is one command: ask for some hundreds.
    fn exist<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<u64, CacheError>>;

    /// A slice of the keys that match a glob (see [`crate::domain::glob`]), from `cursor` on, 0 being
    /// the start: all kinds of keys, preheat's own too. The whole is seen when the next cursor is 0;
    /// until then a slice may be empty, and a key may come more than once. Keys that are no UTF-8 are
    /// left out.
    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>>;

    /// What the server says of its memory and its use.
    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>>;
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its value.
    pub value: Vec<u8>,
    /// What is left of its life; `None` where it never expires.
    pub ttl: Option<Duration>,
}

/// A slice of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Where the next slice begins; 0 where this was the last.
    pub next: u64,
    /// Its keys.
    pub keys: Vec<String>,
}

/// What preheat keeps in the cache for itself, beside the values: fences, manifests, and books in
/// which it notes what it has to remember over a restart. Keys are without the cache's prefix.
pub trait Ledger: Send + Sync {
    /// How fences stand, in their order.
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>>;

    /// Gives each of these fences a start: one that is missing is made with that number, one that is
    /// there is raised by it. Answers how they stand then. `keys` come with how they stood; a fence
    /// that somebody made meanwhile stays as it is. What stands in a fence's place and is no number
    /// is replaced.
    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>>;

    /// Moves fences; one that is missing, or is no number, is made with that number first.
    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// The keys that each of these manifests names; none where there is no such manifest.
    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<Named>>, CacheError>>;

    /// Names keys in manifests as of `now`, those too that are named already, and lets each manifest
    /// live for `ttl` from now; one that would be empty is not made.
    fn enlist<'a>(
        &'a self,
        manifests: &'a [Listing],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// Takes the names out of manifests that were last named before that moment, to the millisecond;
    /// a manifest that is empty then is gone.
    fn delist<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// All notes of a book, in no order: their names and texts.
    fn notes(&self, book: Book) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>>;

    /// Writes notes into a book, over those of the same name, and lets the book live for
    /// [`BOOK_TTL`] from now.
    fn note<'a>(
        &'a self,
        book: Book,
        notes: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// Strikes notes out of a book.
    fn strike<'a>(
        &'a self,
        book: Book,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<(), CacheError>>;
}

impl dyn Ledger {
    /// The keys that each of these manifests names, whenever that was.
    pub async fn names(&self, manifests: &[String]) -> Result<Vec<Vec<String>>, CacheError> {
        let keys = |named: Vec<Named>| named.into_iter().map(|named| named.key).collect();
        Ok(self.manifests(manifests).await?.into_iter().map(keys).collect())
    }
}

/// Keys of one manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The manifest.
    pub manifest: String,
    /// Keys that it names, or will.
    pub keys: Vec<String>,
}

/// A book of notes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Book {
    /// The tenants that may have keys, with their columns.
    Tenants,
}

impl Book {
    /// Its key.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tenants => "preheat:tenants",
        }
    }
}

/// How long a book lives after the last note: longer than a worker is likely to be away.
pub const BOOK_TTL: Duration = Duration::from_hours(30 * 24);

/// Fences that one command looks at. This and the next two say how many commands a question takes, for
/// whoever has to know before it is asked.
pub const FENCES_A_COMMAND: usize = 500;

/// Names of a manifest, or notes of a book, in one command: the server does nothing else meanwhile.
pub const NAMES_A_COMMAND: usize = 1_000;

/// Commands in which the server says what [`Cache::stats`] answers.
pub const STATS_COMMANDS: usize = 4;

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
    /// The server counts as down and was not asked.
    LeftAlone,
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
            Self::LeftAlone | Self::Unavailable | Self::Transient => FailureKind::CacheUnavailable,
            Self::Full => FailureKind::CacheFull,
            Self::ReadOnly => FailureKind::CacheReadOnly,
            Self::Moved => FailureKind::CacheMoved,
            Self::WrongType => FailureKind::CacheWrongType,
            Self::Permission => FailureKind::CachePermission,
            Self::Refused => FailureKind::CacheRefused,
        }
    }

    /// Whether the server refuses all writes alike, and not this one: each further one is asked in vain.
    pub fn is_of_all_writes(self) -> bool {
        match self {
            Self::Full | Self::ReadOnly | Self::Moved => true,
            Self::LeftAlone
            | Self::Unavailable
            | Self::Transient
            | Self::WrongType
            | Self::Permission
            | Self::Refused => false,
        }
    }

    /// Whether trying again may help.
    pub fn is_transient(self) -> bool {
        match self {
            Self::LeftAlone | Self::Unavailable | Self::Transient => true,
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
    /// Which process of the server answered: after a restart, or a failover, another number. `None`
    /// where it does not tell.
    pub process: Option<u64>,
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
    /// Keys there are, of all databases and anybody's; `None` where it does not tell.
    pub keys: Option<u64>,
}

/// Where one can listen for changes of the database.
pub trait FeedSource: Send + Sync {
    /// Begins to listen: every change that is committed after this has succeeded is heard of.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>>;
}

/// A connected stream of changes.
pub trait Feed: Send {
    /// The next changes, as soon as there are some; never none. It may be dropped while it waits,
    /// and loses nothing by that. After an error the feed is of no more use, and anything may have
    /// changed since; a connection that was lost is such an error, and never mended in silence.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>>;
}

/// Changes cannot be listened for, or not any more. The message never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FeedError(pub String);

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
