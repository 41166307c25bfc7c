//! What the engine needs of the world. Adapters stand behind these traits; one conformance suite
//! runs against every adapter of a port, the in-memory one included.
//!
//! The traits return boxed futures, so that the engine is compiled once for all adapters. A call covers a
//! whole batch, so one box a call costs nothing.

mod breaker;
mod guard;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;

pub use self::guard::{Ports, Unguarded};
use crate::domain::change::Change;
use crate::domain::entry::Entry;
use crate::domain::fence::Fence;
use crate::domain::fleet::{Beat, Release, View};
use crate::domain::job::{Job, JobName};
use crate::domain::manifest::ManifestEntry;
use crate::domain::pause::{Pause, Pauses};
use crate::domain::report::FailureKind;
use crate::domain::row::Rows;
use crate::domain::run::{RunFilter, RunId, RunRecord};
use crate::domain::server::Server;
use crate::domain::slots::Extent;
use crate::domain::tenant::{Batch, IdClass, TenantId, Tenants};
use crate::domain::trace::{BatchTraces, TraceParent};

/// Where tenants and rows come from.
pub trait Source: Send + Sync {
    /// The active tenants, complete, in the order of the tenant query.
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>>;

    /// Which of these tenants are active, with the columns of the tenant query.
    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>>;

    /// Which characters the tenants' ids may have, by the last tenant list; any text before the first list.
    fn id_class(&self) -> IdClass;

    /// Reads the rows of one batch into `rows`, which the caller has reset for the job's key columns. After
    /// an error the content of `rows` is meaningless: the caller must not write it.
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
    /// Which tenants to read; for a job without tenants, the one slot without an id.
    pub batch: &'a Batch,
    /// Each slot's "today" where the job has dates, and empty otherwise.
    pub first_dates: &'a [NaiveDate],
    /// The longest time that the whole read may take. The server gets it as its statement timeout.
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
    /// Others hold a lock on the table for longer than `lock_timeout`: try again.
    Locked,
    /// The statement took too long: try with fewer tenants.
    Timeout,
    /// The query broke on data (a division by zero, an invalid cast): other tenants may be fine.
    Data,
    /// A value cannot be written as JSON: other tenants may be fine.
    Encoding,
    /// The rows take more memory than a batch may: try with fewer tenants.
    TooLarge,
    /// A row belongs to a tenant that was not asked for: the whole batch is wrong.
    Foreign,
    /// The query itself is wrong (an unknown column, no privilege): no batch can work.
    Definition,
}

impl SourceErrorKind {
    /// Whether the query or its data caused the error, and not the server: then a repeated read fails too.
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
    /// Writes the entries, each with its TTL; the answers are in their order. A large batch goes out in
    /// several pipelines, so an error for the whole call may come after some entries were written. Writing
    /// them again is harmless.
    fn write<'a>(
        &'a self,
        entries: &'a [Entry<'a>],
    ) -> BoxFuture<'a, Result<Vec<KeyResult>, CacheError>>;

    /// Removes keys; the answers, in their order, say whether each key existed.
    fn remove<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Result<bool, CacheError>>, CacheError>>;

    /// Sets the keys' TTLs, longer or shorter than they were; a key that does not exist is not created.
    fn expire<'a>(
        &'a self,
        keys: &'a [(String, Duration)],
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// The values and TTLs of keys, in their order; `None` for a key that does not exist. If a key holds
    /// another type, such as an application's list, the whole call is an error. All values of a call are in
    /// memory together: ask for a few megabytes at once.
    fn look<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Found>>, CacheError>>;

    /// The TTLs and sizes of keys, in their order; `None` for a key that does not exist. Values are not read. If a key
    /// holds another type, such as an application's list, the whole call is an error.
    fn sizes<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Size>>, CacheError>>;

    /// How many of these keys exist, of whatever type. Ask for some hundreds at once.
    fn exist<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<u64, CacheError>>;

    /// One page of the keys that match a glob (see [`crate::domain::glob`]), from `cursor` on; 0 is the
    /// start. It includes keys of all types, and preheat's own. The scan is complete when the next cursor is
    /// 0; until then a page may be empty, and a key may appear more than once. Keys that are not UTF-8 are
    /// left out. If slots of a Redis Cluster move to other nodes meanwhile, the scan ends with an error, because it may
    /// have missed keys.
    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>>;

    /// The figures about memory and use, of all servers of the cache together.
    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>>;

    /// A number for each key: keys with equal numbers are on the same server, as far as is known now.
    fn servers(&self, keys: &[String]) -> Vec<usize> {
        vec![0; keys.len()]
    }

    /// The slot of a key in a Redis Cluster.
    fn slot(&self, _key: &str) -> u16 {
        0
    }

    /// What the cache may have lost between two answers to [`Self::stats`], whose [`CacheStats::process`] was the one
    /// number and then the other.
    fn lost_between(&self, _before: u64, _now: u64) -> Extent {
        Extent::All
    }
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its value.
    pub value: Vec<u8>,
    /// Its remaining TTL; `None` if it never expires.
    pub ttl: Option<Duration>,
}

/// How large a value is, and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The bytes of the value.
    pub bytes: u64,
    /// Its remaining TTL; `None` if it never expires.
    pub ttl: Option<Duration>,
}

/// One page of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The cursor of the next page; 0 if this is the last.
    pub next: u64,
    /// Its keys.
    pub keys: Vec<String>,
}

/// preheat's own data in the cache, besides the values: fences, manifests, and the registry, which preheat must
/// remember over a restart. Keys are without the cache's prefix.
pub trait Ledger: Send + Sync {
    /// The present values of fences, in their order.
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>>;

    /// Makes sure that each of these fences has a value: creates a missing one with that number, and raises
    /// an existing one by it. Answers the values afterwards. `keys` come with the values that the caller has
    /// read; if another worker has created a fence since then, that fence stays as it is. A value that is not
    /// a number is replaced.
    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>>;

    /// Moves fences; one that is missing, or not a number, is created with that number first.
    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// The entries of each of these manifests; empty if there is no such manifest.
    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<ManifestEntry>>, CacheError>>;

    /// Adds entries to manifests, or renews them, as of `now`, and sets each manifest's TTL to `ttl`. A
    /// manifest without entries is not created.
    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// Prunes manifests: removes the entries that were last renewed before that moment (in milliseconds). A
    /// manifest that is empty then is gone.
    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// All entries of the registry, in no order: each a tenant's id and the text that is kept of it.
    fn registry(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>>;

    /// Adds entries to the registry, replaces those of the same tenants, and sets the registry's TTL to
    /// [`REGISTRY_TTL`].
    fn register<'a>(
        &'a self,
        entries: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// Removes tenants from the registry.
    fn deregister<'a>(&'a self, tenants: &'a [String]) -> BoxFuture<'a, Result<(), CacheError>>;

    /// The counts in these fields of the applications' reads, in their order; 0 for a field that does not exist. It is
    /// one command.
    fn reads<'a>(&'a self, fields: &'a [String]) -> BoxFuture<'a, Result<Vec<u64>, CacheError>>;
}

impl dyn Ledger {
    /// The keys that each of these manifests names, whenever they were added.
    pub async fn manifest_keys(
        &self,
        manifests: &[String],
    ) -> Result<Vec<Vec<String>>, CacheError> {
        let keys =
            |entries: Vec<ManifestEntry>| entries.into_iter().map(|entry| entry.key).collect();
        Ok(self.manifests(manifests).await?.into_iter().map(keys).collect())
    }
}

/// Entries to add to one manifest, or to renew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntries {
    /// The manifest.
    pub manifest: String,
    /// The keys to add or renew.
    pub keys: Vec<String>,
}

/// The registry's key: a hash of the tenants that may have keys, with their columns.
pub const REGISTRY_KEY: &str = "preheat:tenants";

/// The registry's TTL after its last change: longer than a worker is likely to be away.
pub const REGISTRY_TTL: Duration = Duration::from_hours(30 * 24);

/// How many fences one command reads. This constant and the next two give the number of commands for a call,
/// for callers that announce it before they ask.
pub const FENCES_A_COMMAND: usize = 500;

/// Entries of a manifest, or of the registry, in one command: while it runs, the server does nothing else.
pub const ENTRIES_A_COMMAND: usize = 1_000;

/// How many commands [`Cache::stats`] sends to a server.
pub const STATS_COMMANDS: usize = 4;

/// The result of writing one key.
pub type KeyResult = Result<(), CacheError>;

/// A command failed, for all its keys or for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CacheError {
    /// What kind of failure it is.
    pub kind: CacheErrorKind,
    /// What happened, for people.
    pub message: String,
}

/// Why the cache did not do a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheErrorKind {
    /// The server counts as down and was not asked.
    LeftAlone,
    /// No connection, it was lost, or no answer came in time: try again.
    Unavailable,
    /// The server is loading its data, or a failover is under way (`LOADING`, `TRYAGAIN`, `MASTERDOWN`,
    /// `CLUSTERDOWN`, `NOREPLICAS`): try again.
    Transient,
    /// `OOM`: `maxmemory` is reached and nothing may be evicted.
    Full,
    /// `READONLY`: it is a replica.
    ReadOnly,
    /// `MOVED` or `ASK`: the server is a node of a cluster, and the key belongs to another node.
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

    /// Whether the server refuses every write, and not only this one: then further writes fail as well.
    pub fn is_of_all_writes(self) -> bool {
        self.failure_kind().is_of_all_writes()
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

/// What the cache server reports about itself; the counters start with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Identifies the server's process: the number changes with a restart or a failover; on a Redis Cluster, of
    /// any primary. `None` if a server does not report it.
    pub process: Option<u64>,
    /// Bytes in use.
    pub used_memory: u64,
    /// The limit of used memory; 0 if there is none.
    pub maxmemory: u64,
    /// Reads that found their key.
    pub hits: u64,
    /// Reads that did not find their key.
    pub misses: u64,
    /// Keys that the server evicted for lack of memory.
    pub evicted: u64,
    /// How many keys the server has, in all its databases, of all applications; `None` if it does not report
    /// that.
    pub keys: Option<u64>,
}

/// The source of the change feed.
pub trait FeedSource: Send + Sync {
    /// Begins to listen. The feed reports every change that is committed after this call has succeeded.
    fn connect(&self) -> BoxFuture<'_, Result<Box<dyn Feed>, FeedError>>;
}

/// A connected stream of changes.
pub trait Feed: Send {
    /// Waits for the next changes and returns at least one. A caller may drop this future while it waits, and
    /// loses no change. After an error the feed is unusable and any data may have changed; a lost connection
    /// is such an error, and the feed never reconnects silently.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<Change>, FeedError>>;
}

/// The feed could not be connected, or it broke. The message never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FeedError(pub String);

/// The leases of a fleet. The server that keeps them times them by its own clock, and does each call as a whole.
pub trait Leases: Send + Sync {
    /// A member beats: it registers, its leases are renewed, and it leases those of the shares that it claims which nobody else
    /// has. Answers the fleet as it is then.
    fn beat<'a>(&'a self, beat: &'a Beat) -> BoxFuture<'a, Result<View, CacheError>>;

    /// A member ends leases. Answers whether it was done: it is not if the server knows another beat as the member's last one.
    fn release<'a>(&'a self, release: &'a Release) -> BoxFuture<'a, Result<bool, CacheError>>;
}

/// The key of a fleet's members: a hash with a field a member.
pub const MEMBERS_KEY: &str = "preheat:{fleet}:members";

/// The key of a fleet's leases: a hash with a field a share.
pub const LEASES_KEY: &str = "preheat:{fleet}:leases";

/// Passes the changes of the write-ahead log from the member of a fleet that reads it to the others.
pub trait Relay: Send + Sync {
    /// Adds an entry after all others. The relay keeps about the last [`MOST_PASSED`] entries, for [`RELAY_TTL`].
    fn pass<'a>(&'a self, entry: &'a Passed) -> BoxFuture<'a, Result<(), CacheError>>;

    /// The last entry.
    fn last(&self) -> BoxFuture<'_, Result<Option<Passed>, CacheError>>;

    /// The entries after the one with this id, in their order, or the first ones; at most [`PASSED_AT_ONCE`].
    fn after<'a>(&'a self, id: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Passed>, CacheError>>;
}

/// The key of a fleet's relay: a stream.
pub const RELAY_KEY: &str = "preheat:{fleet}:changes";
/// How many entries a relay keeps at least. A member looks twenty times a second, so it falls behind only if it is away.
pub const MOST_PASSED: usize = 10_000;
/// How many entries one look takes.
pub const PASSED_AT_ONCE: usize = 500;
/// How long a relay outlives its last entry.
pub const RELAY_TTL: Duration = Duration::from_hours(1);

/// An entry of a relay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The id that the relay gave it.
    pub id: String,
    /// Who read it: a random number for each time that a member begins to read.
    pub reader: u64,
    /// The number of the reader's entry, from 0: the first one has no changes.
    pub number: u64,
    /// The changes.
    pub changes: Vec<Change>,
}

/// Where runs that ended are kept.
pub trait History: Send + Sync {
    /// Stores the records; a record that exists already stays as it is.
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>>;

    /// The records that the filter wants, newest first.
    fn find<'a>(
        &'a self,
        filter: &'a RunFilter,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>>;

    /// The newest records, newest first.
    fn recent<'a>(
        &'a self,
        job: Option<&'a JobName>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move { self.find(&RunFilter::newest(job, limit)).await })
    }

    /// What a worker remembers of each of these jobs when it starts: its newest records, that many, and besides them its
    /// last run over all tenants that came to every tenant, and the last that ended `ok`. They come in no order, and
    /// some more than once. Their reports have the first failure alone.
    fn recall<'a>(
        &'a self,
        jobs: &'a [JobName],
        newest: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>>;

    /// The records with shares of runs that were due, or requested, in the same milliseconds as these moments.
    fn parts<'a>(
        &'a self,
        due: &'a [DateTime<Utc>],
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>>;

    /// One record.
    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>>;

    /// The records of the same job beside this one, or beside the run that it sums up.
    fn beside<'a>(&'a self, run: &'a RunRecord) -> BoxFuture<'a, Result<Beside, HistoryError>>;

    /// Removes the records of runs that ended before that moment; answers how many there were.
    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>>;
}

/// The records beside a record, of the same job.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The run before it, as lists name it.
    pub earlier: Option<RunId>,
    /// The run after it, as lists name it.
    pub later: Option<RunId>,
    /// The last `ok` run before it that was like it: over all tenants, or for some.
    pub last_ok: Option<RunRecord>,
}

/// The history could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HistoryError(pub String);

/// Where traces of runs go.
pub trait Traces: Send + Sync {
    /// Takes the trace of a run that ended; it never waits.
    fn run_ended(&self, run: &RunTrace<'_>);

    /// Sends what waits, and ends. It blocks for some seconds at most.
    fn close(&self);
}

/// A run, as a trace shows it.
#[derive(Clone, Copy, Debug)]
pub struct RunTrace<'r> {
    /// Its record.
    pub record: &'r RunRecord,
    /// Its slowest batches, and those that failed.
    pub batches: &'r BatchTraces,
    /// When it began, on the monotonic clock.
    pub began_at: Duration,
    /// The trace of the request that asked for it.
    pub parent: Option<TraceParent>,
}

/// Where pauses are kept, so that they outlive the worker and every replica knows them.
pub trait PauseStore: Send + Sync {
    /// All pauses; `None` if the store has never kept any, or has lost them.
    fn pauses(&self) -> BoxFuture<'_, Result<Option<Pauses>, PauseStoreError>>;

    /// Keeps these pauses in place of the jobs' earlier ones, and removes those of the jobs with `None`.
    fn keep<'a>(&'a self, changes: &'a PauseChanges) -> BoxFuture<'a, Result<(), PauseStoreError>>;

    /// Which server keeps them.
    fn server(&self) -> Server;
}

/// New pauses by job; `None` for a job that is resumed.
pub type PauseChanges = BTreeMap<JobName, Option<Pause>>;

/// The pauses could not be read or kept. The message never holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PauseStoreError(pub String);

/// The key of the pauses in the cache, where no history keeps them: a hash of JSON texts by job. It has no
/// TTL. Its field `""` is always there, so that an emptied cache can be told from the end of all pauses.
pub const PAUSES_KEY: &str = "preheat:pauses";

/// Small texts that the members of a fleet share. A sheet has fields, which members set, and vanishes some time after
/// one was set last.
pub trait Sheets: Send + Sync {
    /// Sets a field of a sheet, which vanishes when that time has passed without another such call. The first field makes
    /// the sheet.
    fn put<'a>(
        &'a self,
        sheet: (SheetKind, &'a str),
        field: &'a str,
        text: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>>;

    /// All sheets of a kind, in no order.
    fn read(&self, kind: SheetKind) -> BoxFuture<'_, Result<Vec<Sheet>, CacheError>>;

    /// Removes a sheet.
    fn remove<'a>(&'a self, kind: SheetKind, id: &'a str) -> BoxFuture<'a, Result<(), CacheError>>;
}

/// What a sheet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SheetKind {
    /// What a member says about itself.
    Summary,
    /// Runs that somebody requested of the fleet.
    Request,
}

impl SheetKind {
    /// The key of the ids of these sheets.
    pub fn key(self) -> String {
        format!("preheat:{{fleet}}:{}", self.word())
    }

    /// The key of one of these sheets.
    pub fn key_of(self, id: &str) -> String {
        format!("preheat:{{fleet}}:{}:{id}", self.word())
    }

    fn word(self) -> &'static str {
        match self {
            Self::Summary => "summary",
            Self::Request => "request",
        }
    }
}

/// A sheet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet {
    /// Its id.
    pub id: String,
    /// Its fields with their texts.
    pub fields: BTreeMap<String, String>,
}

/// The time.
pub trait Clock: Send + Sync {
    /// The wall clock's time.
    fn now(&self) -> DateTime<Utc>;

    /// Time since some fixed moment; it never goes back.
    fn monotonic(&self) -> Duration;

    /// Ends after that duration.
    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()>;

    /// A uniform random number in `0.0..1.0`.
    fn random(&self) -> f64;
}
