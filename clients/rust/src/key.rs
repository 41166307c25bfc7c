//! What a cache key stands for.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// How long the fill of a reader may live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The key's TTL. For keys that are known before the job's query runs: a tenant's list, a tenant's day.
    Full,
    /// Ten seconds at most. For keys with a column of the query in them (`products:{tenant_id}:{category}`,
    /// `pet:{id}`): preheat removes those whose data is gone, and a reader's fill is not in its books.
    Brief,
    /// Nothing is filled; preheat alone writes the key.
    Never,
}

/// Which fence says that the data of a key changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fence {
    /// None: nobody said whose data it is.
    None,
    /// The one of all jobs without tenants.
    Global,
    /// The tenant's.
    Tenant(String),
}

/// A cache key with everything that a reader must know of it; `T` is its value.
///
/// `preheat keys --lang rust` writes functions that make these keys from the job files, so that readers and
/// the worker agree.
pub struct Key<T> {
    key: String,
    fence: Fence,
    ttl: Duration,
    family: &'static str,
    fill: Fill,
    is_shared: bool,
    value: PhantomData<fn() -> T>,
}

/// The family of keys that no job describes.
const OTHER: &str = "other";

impl<T> Key<T> {
    /// The key of a job.
    ///
    /// `key` is without the prefix. `tenant` is the tenant's id as text, also for shared keys (`pet:{id}`);
    /// `None` is for jobs without tenants only. `ttl` is the job's, and `family` its name.
    pub fn new(
        key: impl Into<String>,
        tenant: Option<String>,
        ttl: Duration,
        family: &'static str,
        fill: Fill,
    ) -> Self {
        let fence = tenant.map_or(Fence::Global, Fence::Tenant);
        let key = key.into();
        Self { key, fence, ttl, family, fill, is_shared: false, value: PhantomData }
    }

    /// A key without its tenant in it (`pet:{id}`), with the tenant for whom it is read. Its value may be another
    /// tenant's, so the reader must check whose it is.
    pub fn shared(
        key: impl Into<String>,
        tenant: Option<String>,
        ttl: Duration,
        family: &'static str,
        fill: Fill,
    ) -> Self {
        Self { is_shared: true, ..Self::new(key, tenant, ttl, family, fill) }
    }

    /// A key of no job. It has no fence, so a fill lives for ten seconds at most: nobody could say that the
    /// value has become old while it was loaded.
    pub fn plain(key: impl Into<String>, ttl: Duration) -> Self {
        let key = key.into();
        let (fence, family, fill) = (Fence::None, OTHER, Fill::Full);
        Self { key, fence, ttl, family, fill, is_shared: false, value: PhantomData }
    }

    /// The same key, with the tenant whose data it has: a fill lives for its whole TTL.
    #[must_use]
    pub fn of_tenant(mut self, tenant: impl Into<String>) -> Self {
        self.fence = Fence::Tenant(tenant.into());
        self
    }

    /// The same key with its value as any JSON, so that keys of several types fit into one list.
    pub fn any(self) -> Key<serde_json::Value> {
        let Self { key, fence, ttl, family, fill, is_shared, value: _ } = self;
        Key { key, fence, ttl, family, fill, is_shared, value: PhantomData }
    }

    /// Its text, without the prefix.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Its tenant's id; none for a job without tenants and for a plain key.
    pub fn tenant(&self) -> Option<&str> {
        match &self.fence {
            Fence::Tenant(tenant) => Some(tenant),
            Fence::None | Fence::Global => None,
        }
    }

    /// The TTL of a full fill.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The job that describes it: the label of counts.
    pub fn family(&self) -> &'static str {
        self.family
    }

    /// How it may be filled.
    pub fn fill(&self) -> Fill {
        self.fill
    }

    /// Whether its value may be another tenant's.
    pub fn is_shared(&self) -> bool {
        self.is_shared
    }

    pub(crate) fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        let Self { key, fence, ttl, family, fill, is_shared, value } = self;
        Self {
            key: key.clone(),
            fence: fence.clone(),
            ttl: *ttl,
            family,
            fill: *fill,
            is_shared: *is_shared,
            value: *value,
        }
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, fence, ttl, family, fill, is_shared, value: _ } = self;
        f.debug_struct("Key")
            .field("key", key)
            .field("fence", fence)
            .field("ttl", ttl)
            .field("family", family)
            .field("fill", fill)
            .field("is_shared", is_shared)
            .finish()
    }
}
