//! Whether the cache accepts writes. A cache that is full, is a replica, or is the wrong node of a cluster
//! answers every read and refuses every write: a run would read rows from the database that it cannot write.
//!
//! A run notices this with its first batch and gives up. From then on every run of every job first tries one
//! small write, and asks the database only after the cache has accepted it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::domain::entry::{Entry, Value};
use crate::domain::job::{KeyKind, Shape};
use crate::domain::report::FailureKind;
use crate::domain::row::Rows;
use crate::engine::ports::{Cache, CacheError};

/// The key of that small write, and its TTL: the key has no use once the cache has accepted it.
const PROBE: &str = "preheat:probe";
const PROBE_TTL: Duration = Duration::from_secs(10);

/// Whether the cache refused every write at the last attempt.
#[derive(Debug, Default)]
pub struct CacheWrites {
    are_refused: AtomicBool,
}

impl CacheWrites {
    /// Records why something failed.
    pub(crate) fn note_failure(&self, kind: FailureKind) {
        if kind.is_of_all_writes() {
            self.are_refused.store(true, Ordering::Relaxed);
        }
    }

    /// Whether it refused every write at the last attempt.
    pub fn are_refused(&self) -> bool {
        self.are_refused.load(Ordering::Relaxed)
    }

    /// Records that the cache accepted a write.
    pub(crate) fn note_accepted(&self) {
        self.are_refused.store(false, Ordering::Relaxed);
    }

    /// Returns an error if the cache refused every write at the last attempt and still does. It is no error
    /// here if the cache cannot be reached: a run waits for a server that is away.
    pub(crate) async fn look(&self, cache: &dyn Cache) -> Result<(), CacheError> {
        if !self.are_refused() {
            return Ok(());
        }
        match probe(cache).await {
            Err(error) if error.kind.is_of_all_writes() => Err(error),
            Ok(()) => {
                self.note_accepted();
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }
}

async fn probe(cache: &dyn Cache) -> Result<(), CacheError> {
    let rows = Rows::default();
    let (key, value) = (PROBE.to_owned(), Value::new(&rows, Vec::new(), Shape::Object));
    let entry = Entry { key, slot: 0, value, ttl: PROBE_TTL, kind: KeyKind::Static };
    cache.write(&[entry]).await?.pop().unwrap_or(Ok(()))
}
