//! Rows that do not exist. Redis has no key for them, so this process remembers them for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many.
const MOST: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Absent {
    until: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Absent {
    pub(crate) fn has(&self, key: &str) -> bool {
        self.until().get(key).is_some_and(|until| Instant::now() < *until)
    }

    /// Remembers a key; if there are too many, it does not.
    pub(crate) fn add(&self, key: &Arc<str>) {
        let now = Instant::now();
        let mut until = self.until();
        if until.len() >= MOST {
            until.retain(|_, until| now < *until);
        }
        if until.len() < MOST {
            until.insert(Arc::clone(key), now + REMEMBERED);
        }
    }

    pub(crate) fn forget<'k>(&self, keys: impl IntoIterator<Item = &'k str>) {
        let mut until = self.until();
        for key in keys {
            until.remove(key);
        }
    }

    pub(crate) fn forget_all(&self) {
        self.until().clear();
    }

    fn until(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_row_that_does_not_exist_is_remembered_for_a_second() {
        let absent = Absent::default();
        absent.add(&"pet:1".into());
        absent.add(&"pet:2".into());
        assert!(absent.has("pet:1") && !absent.has("pet:3"));
        absent.forget(["pet:2"]);
        assert!(!absent.has("pet:2"));
        tokio::time::advance(REMEMBERED).await;
        assert!(!absent.has("pet:1"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_remembered() {
        let absent = Absent::default();
        let add = |number: usize| absent.add(&number.to_string().into());
        (0..=MOST).for_each(add);
        assert!(absent.has("0") && !absent.has(&MOST.to_string()));
        tokio::time::advance(REMEMBERED).await;
        add(MOST);
        assert!(absent.has(&MOST.to_string()), "others made room");
    }
}
