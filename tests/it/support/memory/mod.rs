//! The ports in memory: a source, and a cache with its ledger.

mod cache;
mod ledger;
mod source;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use cache::MemoryCache;
pub(crate) use source::{MemoryRow, MemorySource, ReadSeen};

/// What a hook that panicked left behind is whole: nothing here breaks off halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
