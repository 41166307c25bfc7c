//! A ledger that does what a test says before each call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use preheat::adapter::memory::MemoryCache;
use preheat::domain::fence::Fence;
use preheat::domain::manifest::Named;
use preheat::engine::port::{Book, CacheError, Ledger, Listing};

use super::ready;

/// A call to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Fences,
    StartFences,
    MoveFences,
    Manifests,
    NamedAmong,
    Enlist,
    Delist,
    Notes,
    Note,
    Strike,
}

type Hook = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync>;

/// The ledger in memory, with a hook before every call that may wait or fail it.
pub(crate) struct HookedLedger {
    inner: Arc<MemoryCache>,
    hook: Mutex<Hook>,
}

impl HookedLedger {
    pub(crate) fn new(inner: Arc<MemoryCache>) -> Self {
        Self { inner, hook: Mutex::new(Arc::new(|_| ready(Ok(())))) }
    }

    pub(crate) fn before<F>(&self, hook: F)
    where
        F: Fn(Call) -> BoxFuture<'static, Result<(), CacheError>> + Send + Sync + 'static,
    {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(hook);
    }

    fn after_hook<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        then: BoxFuture<'a, Result<T, CacheError>>,
    ) -> BoxFuture<'a, Result<T, CacheError>> {
        let hook = Arc::clone(&self.hook.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async move {
            hook(call).await?;
            then.await
        })
    }
}

impl Ledger for HookedLedger {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.after_hook(Call::Fences, self.inner.fences(keys))
    }

    fn start_fences<'a>(
        &'a self,
        keys: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.after_hook(Call::StartFences, self.inner.start_fences(keys, number))
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.after_hook(Call::MoveFences, self.inner.move_fences(keys, number))
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<Named>>, CacheError>> {
        self.after_hook(Call::Manifests, self.inner.manifests(keys))
    }

    fn named_among<'a>(
        &'a self,
        manifests: &'a [String],
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<Named>>, CacheError>> {
        self.after_hook(Call::NamedAmong, self.inner.named_among(manifests, keys))
    }

    fn enlist<'a>(
        &'a self,
        manifests: &'a [Listing],
        now: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.after_hook(Call::Enlist, self.inner.enlist(manifests, now, ttl))
    }

    fn delist<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.after_hook(Call::Delist, self.inner.delist(manifests, before))
    }

    fn notes(&self, book: Book) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        self.after_hook(Call::Notes, self.inner.notes(book))
    }

    fn note<'a>(
        &'a self,
        book: Book,
        notes: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.after_hook(Call::Note, self.inner.note(book, notes))
    }

    fn strike<'a>(
        &'a self,
        book: Book,
        names: &'a [String],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.after_hook(Call::Strike, self.inner.strike(book, names))
    }
}

/// The keys that a manifest names.
pub(crate) async fn names(cache: &MemoryCache, manifest: String) -> Vec<String> {
    let ledger: &dyn Ledger = cache;
    ledger.names(&[manifest]).await.unwrap().remove(0)
}
