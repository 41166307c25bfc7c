//! All ports in memory: for tests, and the history's ring where there is no table for it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use futures::future::BoxFuture;

use crate::domain::date;
use crate::domain::entry::Entry;
use crate::domain::fence::{FENCE_TTL, Fence};
use crate::domain::job::{DATE_COLUMN, Job, JobName, Scope};
use crate::domain::row::{KeyText, Rows, RowsFull};
use crate::domain::run::{RunId, RunRecord};
use crate::domain::tenant::{TenantId, Tenants};
use crate::engine::port::{
    Book, Cache, CacheError, CacheErrorKind, CacheStats, Clock, Found, History, HistoryError,
    KeyResult, Ledger, Listing, Read, Slice, Source, SourceError, SourceErrorKind,
};

/// Tenants and rows in memory; failures and delays come from hooks.
#[derive(Default)]
pub struct MemorySource {
    state: Mutex<SourceState>,
}

#[derive(Default)]
struct SourceState {
    tenants: Tenants,
    tables: HashMap<JobName, Vec<MemoryRow>>,
    before_tenants: Option<TenantsHook>,
    before_read: Option<ReadHook>,
    reads: Vec<ReadSeen>,
}

type TenantsHook = Arc<dyn Fn() -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync>;
type ReadHook = Arc<dyn Fn(ReadSeen) -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync>;

/// A row of a job's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryRow {
    /// The id of its tenant; for a job without tenants it is not looked at.
    pub tenant: String,
    /// Its JSON.
    pub json: String,
    /// The text of its columns that keys may name, `date` among them; one that is missing is NULL.
    pub columns: BTreeMap<String, String>,
}

impl MemoryRow {
    /// A row with these columns for keys.
    pub fn new<'c>(
        tenant: &str,
        json: &str,
        columns: impl IntoIterator<Item = (&'c str, &'c str)>,
    ) -> Self {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let columns = columns.into_iter().map(own).collect();
        Self { tenant: tenant.to_owned(), json: json.to_owned(), columns }
    }
}

/// A read as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadSeen {
    /// Of which job.
    pub job: JobName,
    /// Of which tenants, in slot order.
    pub tenants: Vec<String>,
    /// Each slot's first date.
    pub first_dates: Vec<NaiveDate>,
    /// Its bound.
    pub timeout: Duration,
}

impl MemorySource {
    /// A source with these tenants and no rows.
    pub fn new(tenants: Tenants) -> Self {
        let state = SourceState { tenants, ..SourceState::default() };
        Self { state: Mutex::new(state) }
    }

    /// Replaces the tenants.
    pub fn set_tenants(&self, tenants: Tenants) {
        lock(&self.state).tenants = tenants;
    }

    /// Replaces the rows of a job, in the order in which they are read.
    pub fn set_rows(&self, job: &JobName, rows: Vec<MemoryRow>) {
        lock(&self.state).tables.insert(job.clone(), rows);
    }

    /// Comes before every read of the tenant list: it may wait, fail or change this source.
    pub fn before_tenants<F>(&self, hook: F)
    where
        F: Fn() -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_tenants = Some(Arc::new(hook));
    }

    /// Comes before every read of rows: it may wait, fail or change this source.
    pub fn before_read<F>(&self, hook: F)
    where
        F: Fn(ReadSeen) -> BoxFuture<'static, Result<(), SourceError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_read = Some(Arc::new(hook));
    }

    /// All reads of rows so far, those that failed among them.
    pub fn reads(&self) -> Vec<ReadSeen> {
        lock(&self.state).reads.clone()
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySource").finish_non_exhaustive()
    }
}

impl Source for MemorySource {
    fn tenants(&self) -> BoxFuture<'_, Result<Tenants, SourceError>> {
        Box::pin(async {
            let hook = lock(&self.state).before_tenants.clone();
            if let Some(hook) = hook {
                hook().await?;
            }
            Ok(lock(&self.state).tenants.clone())
        })
    }

    fn tenants_among<'a>(
        &'a self,
        ids: &'a [TenantId],
    ) -> BoxFuture<'a, Result<Tenants, SourceError>> {
        Box::pin(async move {
            let all = self.tenants().await?;
            Ok(all.only(|tenant| ids.iter().any(|id| id.as_str() == tenant.id())))
        })
    }

    fn read<'a>(
        &'a self,
        job: &'a Job,
        read: Read<'a>,
        rows: &'a mut Rows,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let seen = ReadSeen {
                job: job.name.clone(),
                tenants: read.batch.tenants().map(|tenant| tenant.id().to_owned()).collect(),
                first_dates: read.first_dates.to_vec(),
                timeout: read.timeout,
            };
            let hook = {
                let mut state = lock(&self.state);
                state.reads.push(seen.clone());
                state.before_read.clone()
            };
            if let Some(hook) = hook {
                hook(seen.clone()).await?;
            }
            let state = lock(&self.state);
            let table = state.tables.get(&job.name).map(Vec::as_slice).unwrap_or_default();
            push_matching(job, &seen, table, rows)
        })
    }
}

/// Pushes the rows of a table that the read asks for.
fn push_matching(
    job: &Job,
    seen: &ReadSeen,
    table: &[MemoryRow],
    rows: &mut Rows,
) -> Result<(), SourceError> {
    let slots: HashMap<&str, usize> =
        seen.tenants.iter().enumerate().map(|(slot, id)| (id.as_str(), slot)).collect();
    let columns = job.key_columns();
    for row in table {
        let slot = match job.scope {
            Scope::Tenants => slots.get(row.tenant.as_str()).copied(),
            Scope::Fleet => Some(0),
        };
        let Some(slot) = slot else { continue };
        if !is_of_dates(job, seen.first_dates.get(slot).copied(), row) {
            continue;
        }
        let pushed: Result<(), RowsFull> = rows.push(
            u32::try_from(slot).unwrap_or(u32::MAX),
            |out| {
                out.extend_from_slice(row.json.as_bytes());
                Ok(())
            },
            |column, out| {
                let value = columns.get(column).and_then(|name| row.columns.get(*name));
                let Some(value) = value else { return Ok(KeyText::Null) };
                out.extend_from_slice(value.as_bytes());
                Ok(KeyText::Written)
            },
        );
        pushed.map_err(|full| SourceError {
            kind: SourceErrorKind::TooLarge,
            message: format!("job `{}`: {full}", job.name),
        })?;
    }
    Ok(())
}

/// Whether a row is of one of its tenant's dates, where the job has dates.
fn is_of_dates(job: &Job, first: Option<NaiveDate>, row: &MemoryRow) -> bool {
    let (Some(dates), Some(first)) = (&job.dates, first) else { return true };
    let Some(date) = row.columns.get(DATE_COLUMN) else { return true };
    date.parse().is_ok_and(|date: NaiveDate| first <= date && date <= date::last(first, dates.days))
}

/// Keys in memory, which expire by a clock.
pub struct MemoryCache {
    clock: Arc<dyn Clock>,
    state: Mutex<CacheState>,
}

#[derive(Default)]
struct CacheState {
    values: BTreeMap<String, Stored>,
    fences: BTreeMap<String, Kept<i64>>,
    manifests: BTreeMap<String, Kept<BTreeSet<String>>>,
    books: HashMap<Book, BTreeMap<String, String>>,
    maxmemory: usize,
    hits: u64,
    misses: u64,
    before_write: Option<WriteHook>,
    refuse: Option<RefuseHook>,
}

/// Something that is kept until then.
struct Kept<T> {
    what: T,
    until: Duration,
}

struct Stored {
    value: Vec<u8>,
    ttl: Duration,
    until: Duration,
}

type WriteHook =
    Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync>;
type RefuseHook = Arc<dyn Fn(&str) -> Option<CacheError> + Send + Sync>;

impl MemoryCache {
    /// An empty cache whose keys expire by this clock.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// A key's value, while it lives.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let now = self.clock.monotonic();
        let mut state = lock(&self.state);
        let found = state.values.get(key).filter(|stored| stored.until > now);
        let value = found.map(|stored| stored.value.clone());
        let counter = if value.is_some() { &mut state.hits } else { &mut state.misses };
        *counter += 1;
        value
    }

    /// The TTL with which a key was written, while it lives.
    pub fn ttl(&self, key: &str) -> Option<Duration> {
        let now = self.clock.monotonic();
        let state = lock(&self.state);
        state.values.get(key).filter(|stored| stored.until > now).map(|stored| stored.ttl)
    }

    /// Drops a key, a fence or a manifest, as a server does that is short of memory.
    pub fn evict(&self, key: &str) {
        let mut state = lock(&self.state);
        state.values.remove(key);
        state.fences.remove(key);
        state.manifests.remove(key);
    }

    /// The keys that live, in order.
    pub fn keys(&self) -> Vec<String> {
        let now = self.clock.monotonic();
        let state = lock(&self.state);
        let living = state.values.iter().filter(|(_, stored)| stored.until > now);
        living.map(|(key, _)| key.clone()).collect()
    }

    /// Refuses writes beyond so many bytes of values, as a server without eviction does; 0 is no
    /// bound.
    pub fn set_maxmemory(&self, bytes: usize) {
        lock(&self.state).maxmemory = bytes;
    }

    /// Comes before every write, with its keys: it may wait or fail the whole of it.
    pub fn before_write<F>(&self, hook: F)
    where
        F: Fn(Vec<String>) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_write = Some(Arc::new(hook));
    }

    /// Is asked for every key that is written or removed, and may refuse it.
    pub fn refuse<F>(&self, hook: F)
    where
        F: Fn(&str) -> Option<CacheError> + Send + Sync + 'static,
    {
        lock(&self.state).refuse = Some(Arc::new(hook));
    }
}

impl CacheState {
    fn used(&self) -> usize {
        self.values.iter().map(|(key, stored)| key.len() + stored.value.len()).sum()
    }

    fn write(&mut self, entry: &Entry<'_>, now: Duration) -> KeyResult {
        if let Some(error) = self.refuse.as_ref().and_then(|refuse| refuse(&entry.key)) {
            return Err(error);
        }
        if self.maxmemory > 0 && self.used() >= self.maxmemory {
            let kind = CacheErrorKind::Full;
            return Err(CacheError { kind, message: "the cache is full".to_owned() });
        }
        let until = now.saturating_add(entry.ttl);
        let stored = Stored { value: entry.value.to_vec(), ttl: entry.ttl, until };
        self.values.insert(entry.key.clone(), stored);
        Ok(())
    }

    fn remove(&mut self, key: &str, now: Duration) -> Result<bool, CacheError> {
        if let Some(error) = self.refuse.as_ref().and_then(|refuse| refuse(key)) {
            return Err(error);
        }
        Ok(self.values.remove(key).is_some_and(|stored| stored.until > now))
    }
}

impl fmt::Debug for MemoryCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCache").finish_non_exhaustive()
    }
}

impl Cache for MemoryCache {
    fn write<'a>(
        &'a self,
        entries: &'a [Entry<'a>],
    ) -> BoxFuture<'a, Result<Vec<KeyResult>, CacheError>> {
        Box::pin(async move {
            let hook = lock(&self.state).before_write.clone();
            if let Some(hook) = hook {
                hook(entries.iter().map(|entry| entry.key.clone()).collect()).await?;
            }
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.values.retain(|_, stored| stored.until > now);
            Ok(entries.iter().map(|entry| state.write(entry, now)).collect())
        })
    }

    fn remove<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Result<bool, CacheError>>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            Ok(keys.iter().map(|key| state.remove(key, now)).collect())
        })
    }

    fn expire<'a>(
        &'a self,
        keys: &'a [(String, Duration)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.values.retain(|_, stored| stored.until > now);
            for (key, ttl) in keys {
                if let Some(stored) = state.values.get_mut(key) {
                    (stored.ttl, stored.until) = (*ttl, now.saturating_add(*ttl));
                }
            }
            Ok(())
        })
    }

    fn look<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Found>>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let state = lock(&self.state);
            let found = |key: &String| {
                let stored = state.values.get(key).filter(|stored| stored.until > now)?;
                let ttl = Some(stored.until.saturating_sub(now));
                Some(Found { value: stored.value.clone(), ttl })
            };
            Ok(keys.iter().map(found).collect())
        })
    }

    /// All at once: `*` is the one character that means something.
    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        _cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let state = lock(&self.state);
            let values = state.values.iter().filter(|(_, stored)| stored.until > now);
            let manifests = state.manifests.iter().filter(|(_, kept)| kept.until > now);
            let all = values.map(|(key, _)| key).chain(manifests.map(|(key, _)| key));
            let keys = all.filter(|key| matches(pattern, key)).cloned().collect();
            Ok(Slice { next: 0, keys })
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>> {
        Box::pin(async {
            let state = lock(&self.state);
            Ok(CacheStats {
                used_memory: state.used() as u64,
                maxmemory: state.maxmemory as u64,
                hits: state.hits,
                misses: state.misses,
                evicted: 0,
            })
        })
    }
}

/// Whether a text matches a pattern whose stars stand for anything.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((literal, rest)) => text.strip_prefix(literal).is_some_and(|text| {
            text.char_indices()
                .map(|(at, _)| at)
                .chain([text.len()])
                .any(|at| text.get(at..).is_some_and(|text| matches(rest, text)))
        }),
    }
}

impl CacheState {
    fn fence(&mut self, key: &str, now: Duration) -> Option<&mut i64> {
        self.fences.retain(|_, kept| kept.until > now);
        self.fences.get_mut(key).map(|kept| &mut kept.what)
    }

    fn start_fence(&mut self, key: &str, number: i64, now: Duration) {
        let until = now.saturating_add(FENCE_TTL);
        self.fences.insert(key.to_owned(), Kept { what: number, until });
    }
}

impl Ledger for MemoryCache {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            let fence =
                |key: &String| state.fence(key, now).map_or(Fence::Missing, |at| Fence::At(*at));
            Ok(keys.iter().map(fence).collect())
        })
    }

    fn start_fences<'a>(
        &'a self,
        fences: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            let start = |(key, seen): &(String, Fence)| {
                match (seen, state.fence(key, now)) {
                    (Fence::At(_), Some(at)) => *at += number,
                    (Fence::Missing, Some(_)) => {}
                    (Fence::At(_) | Fence::Missing, None) => state.start_fence(key, number, now),
                }
                state.fence(key, now).map_or(Fence::Missing, |at| Fence::At(*at))
            };
            Ok(fences.iter().map(start).collect())
        })
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            for key in keys {
                match state.fence(key, now) {
                    Some(at) => *at += 1,
                    None => state.start_fence(key, number + 1, now),
                }
            }
            Ok(())
        })
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<String>>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.manifests.retain(|_, kept| kept.until > now);
            let named = |key: &String| {
                let kept = state.manifests.get(key);
                kept.map(|kept| kept.what.iter().cloned().collect()).unwrap_or_default()
            };
            Ok(keys.iter().map(named).collect())
        })
    }

    fn enlist<'a>(
        &'a self,
        manifests: &'a [Listing],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let until = self.clock.monotonic().saturating_add(ttl);
            let mut state = lock(&self.state);
            for Listing { manifest, keys } in manifests {
                if keys.is_empty() && !state.manifests.contains_key(manifest) {
                    continue;
                }
                let none = || Kept { what: BTreeSet::new(), until };
                let kept = state.manifests.entry(manifest.clone()).or_insert_with(none);
                kept.what.extend(keys.iter().cloned());
                kept.until = until;
            }
            Ok(())
        })
    }

    fn delist<'a>(&'a self, manifests: &'a [Listing]) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let mut state = lock(&self.state);
            for Listing { manifest, keys } in manifests {
                if let Some(kept) = state.manifests.get_mut(manifest) {
                    kept.what.retain(|key| !keys.contains(key));
                }
            }
            state.manifests.retain(|_, kept| !kept.what.is_empty());
            Ok(())
        })
    }

    fn notes(&self, book: Book) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        Box::pin(async move {
            let state = lock(&self.state);
            let notes = state.books.get(&book).into_iter().flatten();
            Ok(notes.map(|(name, text)| (name.clone(), text.clone())).collect())
        })
    }

    fn note<'a>(
        &'a self,
        book: Book,
        notes: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            lock(&self.state).books.entry(book).or_default().extend(notes.iter().cloned());
            Ok(())
        })
    }

    fn strike<'a>(
        &'a self,
        book: Book,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            if let Some(notes) = lock(&self.state).books.get_mut(&book) {
                notes.retain(|name, _| !names.contains(name));
            }
            Ok(())
        })
    }
}

/// The newest runs, in memory.
#[derive(Debug)]
pub struct MemoryHistory {
    capacity: usize,
    records: Mutex<VecDeque<RunRecord>>,
}

impl MemoryHistory {
    /// A history of at most so many runs; the oldest goes first.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, records: Mutex::default() }
    }
}

impl History for MemoryHistory {
    fn append<'a>(&'a self, records: &'a [RunRecord]) -> BoxFuture<'a, Result<(), HistoryError>> {
        Box::pin(async move {
            let mut kept = lock(&self.records);
            for record in records {
                if kept.iter().any(|known| known.id == record.id) {
                    continue;
                }
                let place = kept.partition_point(|known| order(known) <= order(record));
                kept.insert(place, record.clone());
                if kept.len() > self.capacity {
                    kept.pop_front();
                }
            }
            Ok(())
        })
    }

    fn recent<'a>(
        &'a self,
        job: Option<&'a JobName>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = lock(&self.records);
            let wanted = |record: &&RunRecord| job.is_none_or(|job| record.job == *job);
            Ok(kept.iter().rev().filter(wanted).take(limit).cloned().collect())
        })
    }

    fn get(&self, id: RunId) -> BoxFuture<'_, Result<Option<RunRecord>, HistoryError>> {
        Box::pin(async move {
            let kept = lock(&self.records);
            Ok(kept.iter().find(|record| record.id == id).cloned())
        })
    }

    fn prune(&self, before: DateTime<Utc>) -> BoxFuture<'_, Result<u64, HistoryError>> {
        Box::pin(async move {
            let mut kept = lock(&self.records);
            let all = kept.len();
            kept.retain(|record| record.finished_at >= before);
            Ok((all - kept.len()) as u64)
        })
    }
}

/// Newest first is the reverse of this, in every history.
fn order(record: &RunRecord) -> (DateTime<Utc>, RunId) {
    (record.started_at, record.id)
}

/// What a hook that panicked left behind is whole: nothing here breaks off halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
