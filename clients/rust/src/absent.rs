//! Rows that do not exist. Redis has no key for them, so this process remembers them for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many.
const MOST: usize = 1000;

#[derive(Debug, Default)]
pub(crate) struct Absent {
    until: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Absent {
    pub(crate) fn has(&self, key: &str, now: Instant) -> bool {
        self.until().get(key).is_some_and(|until| now < *until)
    }

    /// Remembers a key; if there are too many, it does not.
    pub(crate) fn add(&self, key: &Arc<str>, now: Instant) {
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

    #[test]
    fn a_row_that_does_not_exist_is_remembered_for_a_second() {
        let (absent, now) = (Absent::default(), Instant::now());
        absent.add(&"pet:1".into(), now);
        absent.add(&"pet:2".into(), now);
        assert!(absent.has("pet:1", now) && !absent.has("pet:3", now));
        absent.forget(["pet:2"]);
        assert!(!absent.has("pet:2", now));
        assert!(!absent.has("pet:1", now + REMEMBERED));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let (absent, now) = (Absent::default(), Instant::now());
        let add = |number: usize, now| absent.add(&number.to_string().into(), now);
        (0..=MOST).for_each(|number| add(number, now));
        let last = MOST.to_string();
        assert!(absent.has("0", now) && !absent.has(&last, now));
        let later = now + REMEMBERED;
        add(MOST, later);
        assert!(absent.has(&last, later), "others made room");
    }
}
