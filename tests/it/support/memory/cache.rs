//! A cache in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;

use super::lock;
use preheat::domain::entry::Entry;
use preheat::domain::fence::Fence;
use preheat::domain::glob;
use preheat::domain::reads::READS_KEY;
use preheat::domain::slots::{Extent, Slots};
use preheat::engine::ports::{
    Cache, CacheError, CacheErrorKind, CacheStats, Clock, Found, KeyResult, Size, Slice,
};

/// The beginning of the keys that preheat keeps for itself.
const OWN: &str = "preheat:";

/// A TTL that never ends.
const NEVER: Duration = Duration::MAX;

/// A cache in memory, whose keys expire by a clock.
pub(crate) struct MemoryCache {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) state: Mutex<CacheState>,
}

/// What a server holds; preheat's own keys are keys like any other.
#[derive(Default)]
pub(super) struct CacheState {
    keys: BTreeMap<String, Kept>,
    /// Changes with each restart.
    process: u64,
    /// The slots of the node that was restarted last; `None` if all of it was.
    lost: Option<Arc<Slots>>,
    maxmemory: usize,
    hits: u64,
    misses: u64,
    evicted: u64,
    before_write: Option<WriteHook>,
    refuse: Option<RefuseHook>,
    is_away: bool,
}

/// A key's content, and when it expires.
struct Kept {
    what: What,
    ttl: Duration,
    until: Duration,
}

enum What {
    Text(Vec<u8>),
    Hash(Fields),
}

/// The fields of a hash.
pub(super) type Fields = BTreeMap<String, String>;

type WriteHook =
    Arc<dyn Fn(Vec<String>) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync>;
type RefuseHook = Arc<dyn Fn(&str) -> Option<CacheError> + Send + Sync>;

impl MemoryCache {
    /// An empty cache whose keys expire by this clock.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// A key's value, if it exists.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let now = self.clock.monotonic();
        let mut state = lock(&self.state);
        let value = state.kept(key, now).and_then(|kept| kept.text().map(<[u8]>::to_vec));
        let counter = if value.is_some() { &mut state.hits } else { &mut state.misses };
        *counter += 1;
        value
    }

    /// The TTL that a key was last given, if it exists; `None` for one that never expires.
    pub(crate) fn ttl(&self, key: &str) -> Option<Duration> {
        let now = self.clock.monotonic();
        let mut state = lock(&self.state);
        state.kept(key, now).map(|kept| kept.ttl).filter(|ttl| *ttl < NEVER)
    }

    /// The existing keys, in order, without preheat's own.
    pub(crate) fn keys(&self) -> Vec<String> {
        let now = self.clock.monotonic();
        let mut state = lock(&self.state);
        state.purge(now);
        state.keys.keys().filter(|key| !key.starts_with(OWN)).cloned().collect()
    }

    /// Writes a key as another program might: it never expires.
    pub(crate) fn set(&self, key: &str, value: impl Into<Vec<u8>>) {
        let now = self.clock.monotonic();
        lock(&self.state).put(key, value.into(), NEVER, now);
    }

    /// `INCR`, as an application moves a fence: a missing one starts at 1 and never expires.
    pub(crate) fn incr(&self, key: &str) -> Result<i64, CacheError> {
        let now = self.clock.monotonic();
        lock(&self.state).add(key, 1, now)
    }

    /// Removes a key of any type, as a server does that is short of memory.
    pub(crate) fn evict(&self, key: &str) {
        let mut state = lock(&self.state);
        state.evicted += u64::from(state.keys.remove(key).is_some());
    }

    /// Adds to a field of the clients' counts of reads, as `HINCRBY` does.
    pub(crate) fn count_reads(&self, field: &str, more: u64) {
        let mut state = lock(&self.state);
        let fields = state.make_hash(READS_KEY, Duration::ZERO).unwrap();
        let count = fields.get(field).map_or(0, |count| count.parse::<u64>().unwrap());
        fields.insert(field.to_owned(), (count + more).to_string());
    }

    /// Removes all keys, as `FLUSHALL` does.
    pub(crate) fn flush(&self) {
        lock(&self.state).keys.clear();
    }

    /// Removes all keys and becomes another process, as a restarted server does that saves nothing.
    pub(crate) fn restart(&self) {
        let mut state = lock(&self.state);
        state.keys.clear();
        state.process += 1;
        state.lost = None;
        (state.hits, state.misses, state.evicted) = (0, 0, 0);
    }

    /// Removes the keys of these slots and becomes another process, as a cluster does of which a node is restarted. The
    /// slot of a key is its last byte.
    pub(crate) fn restart_node(&self, slots: &[u16]) {
        let mut state = lock(&self.state);
        state.keys.retain(|key, _| !slots.contains(&slot(key)));
        state.process += 1;
        state.lost = Some(Arc::new(slots.iter().copied().collect()));
    }

    /// Refuses writes above this many bytes of values, as a server without eviction does; 0 is no bound.
    /// preheat's own keys do not count.
    pub(crate) fn set_maxmemory(&self, bytes: usize) {
        lock(&self.state).maxmemory = bytes;
    }

    /// Calls the hook before every write, with the write's keys: the hook may wait, or fail the whole write.
    pub(crate) fn before_write<F>(&self, hook: F)
    where
        F: Fn(Vec<String>) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync + 'static,
    {
        lock(&self.state).before_write = Some(Arc::new(hook));
    }

    /// Whether every question about keys or the server's state fails, as that to a server that is away.
    pub(crate) fn set_away(&self, is_away: bool) {
        lock(&self.state).is_away = is_away;
    }

    /// Calls the hook for every key that is written or removed: the hook may refuse it.
    pub(crate) fn refuse<F>(&self, hook: F)
    where
        F: Fn(&str) -> Option<CacheError> + Send + Sync + 'static,
    {
        lock(&self.state).refuse = Some(Arc::new(hook));
    }
}

impl Kept {
    fn text(&self) -> Option<&[u8]> {
        match &self.what {
            What::Text(text) => Some(text),
            What::Hash(_) => None,
        }
    }

    fn renew(&mut self, ttl: Duration, now: Duration) {
        (self.ttl, self.until) = (ttl, now.saturating_add(ttl));
    }
}

impl CacheState {
    fn answers(&self) -> Result<(), CacheError> {
        let (kind, message) = (CacheErrorKind::Unavailable, "connection refused".to_owned());
        if self.is_away { Err(CacheError { kind, message }) } else { Ok(()) }
    }

    fn purge(&mut self, now: Duration) {
        self.keys.retain(|_, kept| kept.until > now);
    }

    /// The content of a key, if it exists.
    fn kept(&mut self, key: &str, now: Duration) -> Option<&mut Kept> {
        if self.keys.get(key).is_some_and(|kept| kept.until <= now) {
            self.keys.remove(key);
        }
        self.keys.get_mut(key)
    }

    /// `SET`
    pub(super) fn put(&mut self, key: &str, value: Vec<u8>, ttl: Duration, now: Duration) {
        let until = now.saturating_add(ttl);
        self.keys.insert(key.to_owned(), Kept { what: What::Text(value), ttl, until });
    }

    /// `PEXPIRE`
    pub(super) fn renew(&mut self, key: &str, ttl: Duration, now: Duration) {
        if let Some(kept) = self.kept(key, now) {
            kept.renew(ttl, now);
        }
    }

    /// The value of a fence.
    pub(super) fn fence(&mut self, key: &str, now: Duration) -> Fence {
        let value = self.kept(key, now).and_then(|kept| kept.text());
        value.map_or(Fence::Missing, Fence::of)
    }

    /// `INCRBY`
    pub(super) fn add(&mut self, key: &str, number: i64, now: Duration) -> Result<i64, CacheError> {
        let sum = match (self.fence(key, now), self.kept(key, now)) {
            (Fence::At(at), Some(_)) => at.checked_add(number).ok_or_else(no_number)?,
            (Fence::Missing, Some(kept)) if kept.text().is_some() => return Err(no_number()),
            (_, Some(_)) => return Err(wrong_type()),
            (_, None) => number,
        };
        let text = sum.to_string().into_bytes();
        match self.kept(key, now) {
            Some(kept) => kept.what = What::Text(text),
            None => self.put(key, text, NEVER, now),
        }
        Ok(sum)
    }

    /// The hash under a key, which is created if it is missing.
    pub(super) fn make_hash(
        &mut self,
        key: &str,
        now: Duration,
    ) -> Result<&mut Fields, CacheError> {
        self.kept(key, now); // one that has expired is none
        let none = || Kept { what: What::Hash(Fields::new()), ttl: NEVER, until: NEVER };
        match &mut self.keys.entry(key.to_owned()).or_insert_with(none).what {
            What::Hash(fields) => Ok(fields),
            What::Text(_) => Err(wrong_type()),
        }
    }

    /// The fields of a hash; empty if there is no such key.
    pub(super) fn hash(&mut self, key: &str, now: Duration) -> Result<Fields, CacheError> {
        match self.kept(key, now).map(|kept| &kept.what) {
            Some(What::Hash(fields)) => Ok(fields.clone()),
            Some(What::Text(_)) => Err(wrong_type()),
            None => Ok(Fields::new()),
        }
    }

    /// `HDEL`: a hash without fields is removed.
    pub(super) fn take_out(
        &mut self,
        key: &str,
        names: &[String],
        now: Duration,
    ) -> Result<(), CacheError> {
        let Some(kept) = self.kept(key, now) else { return Ok(()) };
        let What::Hash(fields) = &mut kept.what else { return Err(wrong_type()) };
        for name in names {
            fields.remove(name);
        }
        if fields.is_empty() {
            self.keys.remove(key);
        }
        Ok(())
    }

    fn used(&self) -> usize {
        let values = self.keys.iter().filter(|(key, _)| !key.starts_with(OWN));
        values.map(|(key, kept)| key.len() + kept.text().map_or(0, <[u8]>::len)).sum()
    }

    fn write(&mut self, entry: &Entry<'_>, now: Duration) -> KeyResult {
        if let Some(error) = self.refuse.as_ref().and_then(|refuse| refuse(&entry.key)) {
            return Err(error);
        }
        if self.maxmemory > 0 && self.used() >= self.maxmemory {
            let kind = CacheErrorKind::Full;
            return Err(CacheError { kind, message: "the cache is full".to_owned() });
        }
        self.put(&entry.key, entry.value.to_vec(), entry.ttl, now);
        Ok(())
    }

    fn remove(&mut self, key: &str, now: Duration) -> Result<bool, CacheError> {
        if let Some(error) = self.refuse.as_ref().and_then(|refuse| refuse(key)) {
            return Err(error);
        }
        Ok(self.kept(key, now).is_some() && self.keys.remove(key).is_some())
    }

    fn look(&mut self, key: &str, now: Duration) -> Result<Option<Found>, CacheError> {
        let Some(kept) = self.kept(key, now) else { return Ok(None) };
        let value = kept.text().ok_or_else(wrong_type)?.to_vec();
        let ttl = (kept.until < NEVER).then(|| kept.until.saturating_sub(now));
        Ok(Some(Found { value, ttl }))
    }
}

fn wrong_type() -> CacheError {
    let message = "the key holds something of another type".to_owned();
    CacheError { kind: CacheErrorKind::WrongType, message }
}

fn no_number() -> CacheError {
    let message = "the key holds no number, or one that is too large".to_owned();
    CacheError { kind: CacheErrorKind::Refused, message }
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
            state.purge(now);
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
            for (key, ttl) in keys {
                state.renew(key, *ttl, now);
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
            let mut state = lock(&self.state);
            keys.iter().map(|key| state.look(key, now)).collect()
        })
    }

    fn sizes<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<Size>>, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.answers()?;
            let size = |found: Found| Size { bytes: found.value.len() as u64, ttl: found.ttl };
            keys.iter().map(|key| Ok(state.look(key, now)?.map(size))).collect()
        })
    }

    fn exist<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<u64, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.answers()?;
            Ok(keys.iter().filter(|key| state.kept(key, now).is_some()).count() as u64)
        })
    }

    /// The whole scan in one page.
    fn scan<'a>(
        &'a self,
        pattern: &'a str,
        _cursor: u64,
    ) -> BoxFuture<'a, Result<Slice, CacheError>> {
        Box::pin(async move {
            let now = self.clock.monotonic();
            let mut state = lock(&self.state);
            state.purge(now);
            let keys = state.keys.keys().filter(|key| glob::matches(pattern, key));
            Ok(Slice { next: 0, keys: keys.cloned().collect() })
        })
    }

    fn stats(&self) -> BoxFuture<'_, Result<CacheStats, CacheError>> {
        Box::pin(async {
            let state = lock(&self.state);
            state.answers()?;
            Ok(CacheStats {
                process: Some(state.process),
                used_memory: state.used() as u64,
                maxmemory: state.maxmemory as u64,
                hits: state.hits,
                misses: state.misses,
                evicted: state.evicted,
                keys: Some(state.keys.len() as u64),
            })
        })
    }

    fn slot(&self, key: &str) -> u16 {
        slot(key)
    }

    fn lost_between(&self, _before: u64, _now: u64) -> Extent {
        lock(&self.state).lost.clone().map_or(Extent::All, Extent::Slots)
    }
}

fn slot(key: &str) -> u16 {
    key.bytes().last().map(u16::from).unwrap()
}
