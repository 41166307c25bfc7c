//! The relay of a fleet in memory, which can be away or lose entries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use preheat::engine::ports::{
    CacheError, CacheErrorKind, MOST_PASSED, PASSED_AT_ONCE, Passed, Relay,
};

/// A relay in memory. Its clones are the same relay, as for several workers.
#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryRelay {
    passed: Arc<Mutex<Vec<Passed>>>,
    is_away: Arc<AtomicBool>,
}

impl MemoryRelay {
    /// While it is away, every call fails.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// Forgets the entry before the last one.
    pub(crate) fn lose_one(&self) {
        let mut passed = self.passed.lock().unwrap();
        let place = passed.len() - 2;
        passed.remove(place);
    }

    fn answer<'a, T: Send + 'a>(
        &'a self,
        answer: impl FnOnce(&mut Vec<Passed>) -> T + Send + 'a,
    ) -> BoxFuture<'a, Result<T, CacheError>> {
        Box::pin(async move {
            if self.is_away.load(Ordering::Relaxed) {
                let message = "connection refused".to_owned();
                return Err(CacheError { kind: CacheErrorKind::Unavailable, message });
            }
            Ok(answer(&mut self.passed.lock().unwrap()))
        })
    }
}

fn number(id: &str) -> u64 {
    id.parse().unwrap()
}

impl Relay for MemoryRelay {
    fn pass<'a>(&'a self, entry: &'a Passed) -> BoxFuture<'a, Result<(), CacheError>> {
        self.answer(|passed| {
            let id = passed.last().map_or(0, |last| number(&last.id)) + 1;
            passed.push(Passed { id: id.to_string(), ..entry.clone() });
            let too_many = passed.len().saturating_sub(MOST_PASSED);
            passed.drain(..too_many);
        })
    }

    fn last(&self) -> BoxFuture<'_, Result<Option<Passed>, CacheError>> {
        self.answer(|passed| passed.last().cloned())
    }

    fn after<'a>(&'a self, id: Option<&'a str>) -> BoxFuture<'a, Result<Vec<Passed>, CacheError>> {
        self.answer(move |passed| {
            let after = id.map_or(0, number);
            let later = passed.iter().filter(|entry| number(&entry.id) > after);
            later.take(PASSED_AT_ONCE).cloned().collect()
        })
    }
}
