//! Fences, manifests and books.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;

use super::cache::{CacheState, Kept, MemoryCache};
use super::lock;
use crate::domain::fence::{FENCE_TTL, Fence};
use crate::engine::port::{Book, CacheError, Ledger, Listing};

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
