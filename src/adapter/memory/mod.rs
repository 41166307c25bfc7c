//! All ports in memory: for tests, and the history's ring where there is no table for it.

mod cache;
mod history;
mod ledger;
mod source;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use cache::MemoryCache;
pub use history::MemoryHistory;
pub use source::{MemoryRow, MemorySource, ReadSeen};

/// What a hook that panicked left behind is whole: nothing here breaks off halfway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
