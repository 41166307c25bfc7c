//! Invalidation: after a write was committed, its tenant's fence moves and the keys go.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;

use redis::{ErrorKind, RedisError, Value, cmd};

use crate::cache::Cache;
use crate::error::{FenceState, InvalidationFailed};
use crate::key::{Fence, Key};
use crate::names::{FENCE_TTL, fence_start};
use crate::problem::{Failure, Problem};
use crate::protocol::{Protocol, is_cross_slot};

/// How long Redis may take for an invalidation, if the deadline of reads is not longer: a value that stays is
/// worse than a write that waits.
const INVALIDATED_WITHIN: Duration = Duration::from_secs(1);

/// What a write changed: a key, or what a builder of `preheat keys` returns.
pub trait Changed {
    /// The type of the key's value.
    type Value;
    /// Why there is no key.
    type Error: StdError + 'static;

    /// The key, or why there is none.
    fn into_key(self) -> Result<Key<Self::Value>, Self::Error>;
}

impl<T> Changed for Key<T> {
    type Value = T;
    type Error = Infallible;

    fn into_key(self) -> Result<Self, Infallible> {
        Ok(self)
    }
}

impl<T, E: StdError + 'static> Changed for Result<Key<T>, E> {
    type Value = T;
    type Error = E;

    fn into_key(self) -> Self {
        self
    }
}

impl Cache {
    /// Removes the keys that a write made old. **After the commit**: the write has happened, so this never
    /// fails, and the answer to the write does not depend on it.
    ///
    /// A text that makes no key leaves out its own key only ([`Problem::Key`]). `false`: old values may be read
    /// until preheat hears of the change, or until their TTL ends; the listener of `on_problem` has the reason.
    pub fn changed<C: Changed>(
        &self,
        keys: impl IntoIterator<Item = C>,
    ) -> impl Future<Output = bool> {
        let (mut known, mut is_complete) = (Vec::new(), true);
        for changed in keys {
            match changed.into_key() {
                Ok(key) => known.push(key),
                Err(error) => {
                    self.shared.protocol.problems.note(Problem::Key, &error);
                    is_complete = false;
                }
            }
        }
        async move { self.invalidate(known).await.is_ok() && is_complete }
    }

    /// As [`Cache::changed`], for those who want the error. Keys of several types fit into one call with
    /// [`Key::any`].
    ///
    /// The fences of their tenants move, so that no load that began before can fill an old value.
    pub async fn invalidate<T>(
        &self,
        keys: impl IntoIterator<Item = Key<T>>,
    ) -> Result<(), InvalidationFailed> {
        if !self.shared.is_enabled {
            return Ok(());
        }
        let names = &self.shared.protocol.names;
        let mut by_fence: BTreeMap<Fence, Vec<String>> = BTreeMap::new();
        for key in keys {
            by_fence.entry(key.fence().clone()).or_default().push(names.key(key.key()));
        }
        self.forget(&by_fence);
        let invalidated = self.shared.protocol.invalidate(&by_fence).await;
        // Loads that callers began meanwhile may have read the fence before it moved.
        self.forget(&by_fence);
        invalidated
    }

    /// Moves a tenant's fence: what loads and warmers read before is not written. It removes no key; the
    /// worker's change feed and `preheat invalidate --tenant` do.
    pub async fn invalidate_tenant(&self, tenant: &str) -> Result<(), InvalidationFailed> {
        if !self.shared.is_enabled {
            return Ok(());
        }
        let fence = Fence::Tenant(tenant.to_owned());
        let forget = || {
            if let Some(fence) = self.shared.protocol.names.fence(&fence) {
                self.shared.flights.drop_fence(&fence);
                self.shared.absent.forget_fence(&fence);
            }
        };
        forget();
        let by_fence = BTreeMap::from([(fence.clone(), Vec::new())]);
        let invalidated = self.shared.protocol.invalidate(&by_fence).await;
        forget();
        invalidated
    }

    /// Forgets what this process knows of the keys.
    fn forget(&self, by_fence: &BTreeMap<Fence, Vec<String>>) {
        let keys: Vec<&str> = by_fence.values().flatten().map(String::as_str).collect();
        self.shared.flights.drop_keys(&keys);
        self.shared.absent.forget(&keys);
    }
}

/// What one attempt reached.
#[derive(Default)]
struct Reached {
    fence_moved: bool,
    removed: usize,
}

/// Whether the server refused a transaction, perhaps because its keys are in several slots of a cluster: redis
/// does not keep the error of an `EXEC`.
fn is_transaction_refused(error: &RedisError) -> bool {
    is_cross_slot(error) || error.kind() == ErrorKind::UnexpectedReturnType
}

impl Protocol {
    /// Moves each fence and removes its keys. All of it may happen twice, so each is tried once more.
    async fn invalidate(
        &self,
        by_fence: &BTreeMap<Fence, Vec<String>>,
    ) -> Result<(), InvalidationFailed> {
        let mut all = Reached { fence_moved: true, removed: 0 };
        let mut failed = None;
        for (fence, keys) in by_fence {
            let fence = self.names.fence(fence);
            let mut reached = Reached::default();
            let mut result = self.invalidate_one(fence.as_deref(), keys, &mut reached).await;
            if result.is_err() {
                result = self.invalidate_one(fence.as_deref(), keys, &mut reached).await;
            }
            failed = failed.or(self.noted(result).err());
            all.fence_moved &= reached.fence_moved;
            all.removed += reached.removed;
        }
        let Some(source) = failed else { return Ok(()) };
        let fence = if all.fence_moved { FenceState::Moved } else { FenceState::Unknown };
        Err(InvalidationFailed { fence, removed: all.removed, source })
    }

    async fn invalidate_one(
        &self,
        fence: Option<&str>,
        keys: &[String],
        reached: &mut Reached,
    ) -> Result<(), Failure> {
        if self.is_cluster() {
            return self.invalidate_one_by_one(fence, keys, reached).await;
        }
        match self.invalidate_at_once(fence, keys).await {
            Ok(()) => {
                *reached = Reached { fence_moved: true, removed: keys.len() };
                Ok(())
            }
            Err(Failure::Redis(error)) if is_transaction_refused(&error) => {
                self.invalidate_one_by_one(fence, keys, reached).await?;
                self.note_cluster(); // what does not work at once does work so
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    async fn invalidate_at_once(
        &self,
        fence: Option<&str>,
        keys: &[String],
    ) -> Result<(), Failure> {
        let mut commands = redis::pipe();
        commands.atomic();
        if let Some(fence) = fence {
            commands.cmd("SET").arg(fence).arg(fence_start());
            commands.arg("NX").arg("EX").arg(FENCE_TTL.as_secs());
            commands.cmd("INCR").arg(fence);
        }
        if !keys.is_empty() {
            commands.cmd("UNLINK").arg(keys);
        }
        if commands.is_empty() {
            return Ok(());
        }
        let sent = self.connection.send_all(commands);
        self.judged(sent, self.invalidation_deadline()).await.map(drop)
    }

    /// On a cluster: the fence has moved before the first key goes.
    async fn invalidate_one_by_one(
        &self,
        fence: Option<&str>,
        keys: &[String],
        reached: &mut Reached,
    ) -> Result<(), Failure> {
        let send = async |command| -> Result<Value, Failure> {
            self.judged(self.connection.send(command), self.invalidation_deadline()).await
        };
        if let Some(fence) = fence {
            let mut start = cmd("SET");
            start.arg(fence).arg(fence_start()).arg("NX").arg("EX").arg(FENCE_TTL.as_secs());
            send(start).await?;
            send(cmd("INCR").arg(fence).take()).await?;
        }
        reached.fence_moved = true;
        reached.removed = 0;
        for key in keys {
            send(cmd("UNLINK").arg(key).take()).await?;
            reached.removed += 1;
        }
        Ok(())
    }

    /// While Redis is left alone, a write does not wait long for it.
    fn invalidation_deadline(&self) -> Duration {
        if self.breaker.is_open() { self.deadline } else { self.deadline.max(INVALIDATED_WITHIN) }
    }
}
