//! Whether the cache takes writes. One that is full, a replica, or another key's node of a cluster answers
//! every read and refuses every write: what a run reads from the database for it is read for nothing.
//!
//! A run finds that out with its first batch and gives up. From then on every run of every job tries one
//! small write first, and asks the database only once that was taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::domain::entry::{Entry, Value};
use crate::domain::job::{KeyKind, Shape};
use crate::domain::report::FailureKind;
use crate::domain::row::Rows;
use crate::engine::ports::{Cache, CacheError};

/// The key that is written to find out, and how long it lives: it has served as soon as it was taken.
const PROBE: &str = "preheat:probe";
const PROBE_TTL: Duration = Duration::from_secs(10);

/// Whether the cache refused all writes when it was last written to.
#[derive(Debug, Default)]
pub struct CacheWrites {
    are_refused: AtomicBool,
}

impl CacheWrites {
    /// Takes note of why something could not be done.
    pub(crate) fn note_failure(&self, kind: FailureKind) {
        use FailureKind::{CacheFull, CacheMoved, CacheReadOnly};
        if matches!(kind, CacheFull | CacheReadOnly | CacheMoved) {
            self.are_refused.store(true, Ordering::Relaxed);
        }
    }

    /// A write was taken.
    pub(crate) fn note_taken(&self) {
        self.are_refused.store(false, Ordering::Relaxed);
    }

    /// An error where this cache refused all writes when it was last written to, and still does. Whether it
    /// can be reached is not asked here: a run waits for a server that is away.
    pub(crate) async fn look(&self, cache: &dyn Cache) -> Result<(), CacheError> {
        if !self.are_refused.load(Ordering::Relaxed) {
            return Ok(());
        }
        match probe(cache).await {
            Err(error) if error.kind.is_of_all_writes() => Err(error),
            Ok(()) => {
                self.note_taken();
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
