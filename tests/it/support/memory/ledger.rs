//! Fences, manifests and the registry: numbers and hashes, as on a server.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;

use super::cache::{CacheState, MemoryCache};
use super::lock;
use preheat::domain::fence::{FENCE_TTL, Fence};
use preheat::domain::manifest::ManifestEntry;
use preheat::domain::reads::READS_KEY;
use preheat::engine::ports::{CacheError, Ledger, ManifestEntries, REGISTRY_KEY, REGISTRY_TTL};

impl MemoryCache {
    /// Runs an operation at the present moment.
    fn at_once<'a, T: Send + 'a>(
        &'a self,
        operation: impl FnOnce(&mut CacheState, Duration) -> T + Send + 'a,
    ) -> BoxFuture<'a, T> {
        Box::pin(async move { operation(&mut lock(&self.state), self.clock.monotonic()) })
    }
}

impl CacheState {
    fn replace_fence(&mut self, key: &str, number: i64, now: Duration) {
        self.put(key, number.to_string().into_bytes(), FENCE_TTL, now);
    }

    fn start_fence(&mut self, key: &str, seen: Fence, number: i64, now: Duration) -> Fence {
        match (seen, self.fence(key, now)) {
            (_, Fence::Missing) => self.replace_fence(key, number, now),
            (Fence::Missing, Fence::At(_)) => {}
            (Fence::At(_), Fence::At(_)) => {
                if self.add(key, number, now).is_ok() {
                    self.renew(key, FENCE_TTL, now);
                }
            }
        }
        self.fence(key, now)
    }

    fn move_fence(&mut self, key: &str, number: i64, now: Duration) {
        let is_fence = self.fence(key, now) != Fence::Missing;
        if !is_fence || self.add(key, 1, now).is_err() {
            self.replace_fence(key, number + 1, now);
        }
    }
}

fn manifest_entry((key, at): (String, String)) -> ManifestEntry {
    let at = at.parse().ok().and_then(DateTime::from_timestamp_millis);
    ManifestEntry { key, renewed_at: at.unwrap_or_default() }
}

impl Ledger for MemoryCache {
    fn fences<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.at_once(|state, now| Ok(keys.iter().map(|key| state.fence(key, now)).collect()))
    }

    fn start_fences<'a>(
        &'a self,
        fences: &'a [(String, Fence)],
        number: i64,
    ) -> BoxFuture<'a, Result<Vec<Fence>, CacheError>> {
        self.at_once(move |state, now| {
            let start = |(key, seen): &(String, Fence)| state.start_fence(key, *seen, number, now);
            Ok(fences.iter().map(start).collect())
        })
    }

    fn move_fences<'a>(
        &'a self,
        keys: &'a [String],
        number: i64,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.at_once(move |state, now| {
            for key in keys {
                state.move_fence(key, number, now);
            }
            Ok(())
        })
    }

    fn manifests<'a>(
        &'a self,
        keys: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Vec<ManifestEntry>>, CacheError>> {
        self.at_once(|state, now| {
            let manifest =
                |key: &String| Ok(state.hash(key, now)?.into_iter().map(manifest_entry).collect());
            keys.iter().map(manifest).collect()
        })
    }

    fn add_entries<'a>(
        &'a self,
        manifests: &'a [ManifestEntries],
        at: DateTime<Utc>,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.at_once(move |state, now| {
            let at = at.timestamp_millis().to_string();
            for ManifestEntries { manifest, keys } in manifests {
                if !keys.is_empty() {
                    let names = keys.iter().map(|key| (key.clone(), at.clone()));
                    state.make_hash(manifest, now)?.extend(names);
                }
                state.renew(manifest, ttl, now);
            }
            Ok(())
        })
    }

    fn prune<'a>(
        &'a self,
        manifests: &'a [String],
        before: DateTime<Utc>,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.at_once(move |state, now| {
            let before = before.timestamp_millis();
            for manifest in manifests {
                let all = state.hash(manifest, now)?.into_iter().map(manifest_entry);
                let old = all.filter(|entry| entry.renewed_at.timestamp_millis() < before);
                let old: Vec<String> = old.map(|entry| entry.key).collect();
                state.take_out(manifest, &old, now)?;
            }
            Ok(())
        })
    }

    fn registry(&self) -> BoxFuture<'_, Result<Vec<(String, String)>, CacheError>> {
        self.at_once(move |state, now| Ok(state.hash(REGISTRY_KEY, now)?.into_iter().collect()))
    }

    fn register<'a>(
        &'a self,
        entries: &'a [(String, String)],
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        self.at_once(move |state, now| {
            if !entries.is_empty() {
                state.make_hash(REGISTRY_KEY, now)?.extend(entries.iter().cloned());
            }
            state.renew(REGISTRY_KEY, REGISTRY_TTL, now);
            Ok(())
        })
    }

    fn deregister<'a>(&'a self, tenants: &'a [String]) -> BoxFuture<'a, Result<(), CacheError>> {
        self.at_once(move |state, now| state.take_out(REGISTRY_KEY, tenants, now))
    }

    fn reads<'a>(&'a self, fields: &'a [String]) -> BoxFuture<'a, Result<Vec<u64>, CacheError>> {
        self.at_once(move |state, now| {
            let hash = state.hash(READS_KEY, now)?;
            let count = |field| hash.get(field).and_then(|count| count.parse().ok());
            Ok(fields.iter().map(|field| count(field).unwrap_or_default()).collect())
        })
    }
}
