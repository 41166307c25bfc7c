//! A cache and a ledger whose answers a test decides.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use preheat::domain::entry::Entry;
use preheat::domain::fence::Fence;
use preheat::domain::manifest::ManifestEntry;
use preheat::engine::ports::{
    Cache, CacheError, CacheStats, Found, KeyResult, Ledger, ManifestEntries, Size, Slice,
};

use super::ready;
use crate::support::memory::MemoryCache;

/// A call to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Fences,
    StartFences,
    MoveFences,
    Manifests,
    AddEntries,
    Prune,
    ReadRegistry,
    Register,
    Deregister,
}

/// A call to the cache.
pub(crate) enum CacheCall<'a> {
    Write(&'a [Entry<'a>]),
    Remove(&'a [String]),
    Expire,
    Look,
    Exist,
    Scan,
    Stats,
}

/// The future result of a call.
pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, CacheError>>;

/// How the calls to a server behave. Calls without a rule go to the memory; `then` is the call to the memory,
/// which runs only if the rule awaits it.
pub(crate) trait Rules: Send + Sync + 'static {
    fn on_ledger<'a, T: Send + 'a>(&'a self, _call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        then
    }

    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        _call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        then
    }

    fn write<'a>(
        &'a self,
        memory: &'a MemoryCache,
        entries: &'a [Entry<'a>],
    ) -> Answer<'a, Vec<KeyResult>> {
        self.on_cache(CacheCall::Write(entries), memory.write(entries))
    }

    fn look<'a>(
        &'a self,
        memory: &'a MemoryCache,
        keys: &'a [String],
    ) -> Answer<'a, Vec<Option<Found>>> {
        self.on_cache(CacheCall::Look, memory.look(keys))
    }

    fn stats<'a>(&'a self, memory: &'a MemoryCache) -> Answer<'a, CacheStats> {
        self.on_cache(CacheCall::Stats, memory.stats())
    }
}

/// Cache and ledger in memory, with the rules of a test around them. The tests implement the two ports only
/// here.
pub(crate) struct Around<R> {
    pub(crate) inner: Arc<MemoryCache>,
    rules: R,
}

impl<R> Around<R> {
    pub(crate) fn with(inner: Arc<MemoryCache>, rules: R) -> Arc<Self> {
        Arc::new(Self { inner, rules })
    }
}

impl<R> Deref for Around<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.rules
    }
}

/// A hook before every call to the ledger, which may delay or fail the call.
pub(crate) struct BeforeLedger(Mutex<Hook>);

type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync>;

/// The ledger in memory, with such a hook.
pub(crate) type HookedLedger = Around<BeforeLedger>;

impl HookedLedger {
    pub(crate) fn new(inner: Arc<MemoryCache>) -> Self {
        Self { inner, rules: BeforeLedger(Mutex::new(Arc::new(|_| ready(Ok(()))))) }
    }
}

impl BeforeLedger {
    pub(crate) fn before<F>(&self, hook: F)
    where
        F: Fn(Call) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync + 'static,
    {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }
}

impl Rules for BeforeLedger {
    fn on_ledger<'a, T: Send + 'a>(&'a self, call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        let hook = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async move {
            hook(call).await?;
            then.await
        })
    }
}

impl<R: Rules> Cache for Around<R> {
    fn write<'a>(&'a self, entries: &'a [Entry<'a>]) -> Answer<'a, Vec<KeyResult>> {
        self.rules.write(&self.inner, entries)
    }

    fn remove<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<Result<bool, CacheError>>> {
        self.rules.on_cache(CacheCall::Remove(keys), self.inner.remove(keys))
    }

    fn expire<'a>(&'a self, keys: &'a [(String, Duration)]) -> Answer<'a, ()> {
        self.rules.on_cache(CacheCall::Expire, self.inner.expire(keys))
    }

    fn look<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<Option<Found>>> {
        self.rules.look(&self.inner, keys)
    }

    fn sizes<'a>(&'a self, keys: &'a [String]) -> Answer<'a, Vec<Option<Size>>> {
        self.rules.on_cache(CacheCall::Look, self.inner.sizes(keys))
    }

    fn exist<'a>(&'a self, keys: &'a [String]) -> Answer<'a, u64> {
        self.rules.on_cache(CacheCall::Exist, self.inner.exist(keys))
    }

    fn scan<'a>(&'a self, pattern: &'a str, cursor: u64) -> Answer<'a, Slice> {
        self.rules.on_cache(CacheCall::Scan, self.inner.scan(pattern, cursor))
    }

    fn stats(&self) -> Answer<'_, CacheStats> {
        self.rules.stats(&self.inner)
    }
}

impl<R: Rules> Ledger for Around<R> {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.rules.on_ledger(Call::Fences, self.inner.fences(keys))
    }

    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.rules.on_ledger(Call::StartFences, self.inner.start_fences(keys, number))
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.rules.on_ledger(Call::MoveFences, self.inner.move_fences(keys, number))
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<ManifestEntry>>, CacheError>> {
        self.rules.on_ledger(Call::Manifests, self.inner.manifests(keys))
    }

    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.rules.on_ledger(Call::AddEntries, self.inner.add_entries(manifests, now, ttl))
    }

    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.rules.on_ledger(Call::Prune, self.inner.prune(manifests, before))
    }

    fn registry(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        self.rules.on_ledger(Call::ReadRegistry, self.inner.registry())
    }

    fn register<'a>(
        &'a self,
        entries: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.rules.on_ledger(Call::Register, self.inner.register(entries))
    }

    fn deregister<'a>(&'a self, tenants: &'a [String]) -> BoxFuture<'a, Result<(), CacheError>> {
        self.rules.on_ledger(Call::Deregister, self.inner.deregister(tenants))
    }

    fn reads<'a>(&'a self, fields: &'a [String]) -> BoxFuture<'a, Result<Vec<u64>, CacheError>> {
        self.inner.reads(fields)
    }
}

/// The keys that a manifest names.
pub(crate) async fn names(cache: &MemoryCache, manifest: String) -> Vec<String> {
    let ledger: &dyn Ledger = cache;
    ledger.manifest_keys(&[manifest]).await.unwrap().remove(0)
}
