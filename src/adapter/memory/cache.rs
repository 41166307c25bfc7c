//! Keys that expire by a clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;

use super::lock;
use crate::domain::entry::Entry;
use crate::engine::port::{
    Book, Cache, CacheError, CacheErrorKind, CacheStats, Clock, Found, KeyResult, Slice,
};

/// Keys in memory, which expire by a clock.
pub struct MemoryCache {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) state: Mutex<CacheState>,
}

#[derive(Default)]
pub(super) struct CacheState {
    values: BTreeMap<String, Stored>,
    pub(super) fences: BTreeMap<String, Kept<i64>>,
    pub(super) manifests: BTreeMap<String, Kept<BTreeSet<String>>>,
    pub(super) books: HashMap<Book, BTreeMap<String, String>>,
    maxmemory: usize,
    hits: u64,
    misses: u64,
    before_write: Option<WriteHook>,
    refuse: Option<RefuseHook>,
}

/// Something that is kept until then.
pub(super) struct Kept<T> {
    pub(super) what: T,
    pub(super) until: Duration,
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

    /// Drops everything, as `FLUSHALL` does.
    pub fn flush(&self) {
        let mut state = lock(&self.state);
        state.values.clear();
        state.fences.clear();
        state.manifests.clear();
        state.books.clear();
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
