//! The ports in memory: a source, and a cache with its ledger.

mod cache;
mod leases;
mod ledger;
mod pauses;
mod relay;
mod sheets;
mod source;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use cache::MemoryCache;
pub(crate) use leases::{LeaseServer, MemoryLeases};
pub(crate) use pauses::MemoryPauses;
pub(crate) use relay::MemoryRelay;
pub(crate) use sheets::MemorySheets;
pub(crate) use source::{MemoryRow, MemorySource, ReadSeen};

/// The lock may be poisoned by a hook that panicked; the data are complete, since no operation here
/// stops halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
