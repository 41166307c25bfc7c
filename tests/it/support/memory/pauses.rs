//! Pauses in memory, in a store that can be away or lose them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use preheat::domain::pause::Pauses;
use preheat::domain::server::Server;
use preheat::engine::ports::{PauseChanges, PauseStore, PauseStoreError};

/// Pauses in memory. Its clones are the same store, as for several workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryPauses {
    pauses: Arc<Mutex<Option<Pauses>>>,
    is_away: Arc<AtomicBool>,
}

impl MemoryPauses {
    /// While it is away, every call fails.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// Forgets everything, as an emptied cache does.
    pub(crate) fn lose(&self) {
        *self.pauses.lock().unwrap() = None;
    }

    /// The names of the jobs that it keeps pauses of.
    pub(crate) fn names(&self) -> Vec<String> {
        let pauses = self.pauses.lock().unwrap();
        pauses.iter().flatten().map(|(job, _)| job.to_string()).collect()
    }

    fn answer<T>(&self, answer: impl FnOnce() -> T) -> Result<T, PauseStoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(PauseStoreError("connection refused".to_owned()));
        }
        Ok(answer())
    }
}

impl PauseStore for MemoryPauses {
    fn pauses(&self) -> BoxFuture<'_, Result<Option<Pauses>, PauseStoreError>> {
        Box::pin(async { self.answer(|| self.pauses.lock().unwrap().clone()) })
    }

    fn keep<'a>(&'a self, changes: &'a PauseChanges) -> BoxFuture<'a, Result<(), PauseStoreError>> {
        Box::pin(async move {
            self.answer(|| {
                let mut kept = self.pauses.lock().unwrap();
                let kept = kept.get_or_insert_default();
                for (job, pause) in changes {
                    match pause {
                        Some(pause) => drop(kept.insert(job.clone(), pause.clone())),
                        None => drop(kept.remove(job)),
                    }
                }
            })
        })
    }

    fn server(&self) -> Server {
        Server::Cache
    }
}
