//! Which loads the present task is part of: a loader may ask the cache for other keys.

use std::future::Future;
use std::sync::Arc;

tokio::task_local! {
    static LOADING: Chain;
}

/// The loads from the outermost to the present one. A task that a loader spawns begins a new chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    last: Option<Arc<Link>>,
}

#[derive(Debug)]
struct Link {
    cache: CacheId,
    keys: Vec<Arc<str>>,
    outer: Option<Arc<Self>>,
}

/// Tells caches apart: one may be loaded from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheId(pub(crate) usize);

impl Chain {
    /// That of the present task.
    pub(crate) fn current() -> Self {
        LOADING.try_with(Clone::clone).unwrap_or_default()
    }

    /// Whether the present task is a load of this cache, and so has a permit.
    pub(crate) fn is_loading(&self, cache: CacheId) -> bool {
        self.links().any(|link| link.cache == cache)
    }

    /// Whether the present task loads this key.
    pub(crate) fn has(&self, cache: CacheId, key: &Arc<str>) -> bool {
        self.links().any(|link| link.cache == cache && link.keys.contains(key))
    }

    /// Runs a load of these keys.
    pub(crate) fn run<F: Future>(
        self,
        cache: CacheId,
        keys: Vec<Arc<str>>,
        load: F,
    ) -> impl Future<Output = F::Output> {
        let link = Link { cache, keys, outer: self.last };
        LOADING.scope(Self { last: Some(Arc::new(link)) }, load)
    }

    fn links(&self) -> impl Iterator<Item = &Link> {
        std::iter::successors(self.last.as_deref(), |link| link.outer.as_deref())
    }
}
