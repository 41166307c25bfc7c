//! Rows that do not exist. Redis has no key for them, so this process remembers them for a moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::Entry;

/// How long.
const REMEMBERED: Duration = Duration::from_secs(1);
/// How many.
const MOST: usize = 1000;

/// The rows, each with whom it was looked for: what one tenant does not find, another may.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    until: Mutex<HashMap<Sought, Instant>>,
}

/// A key and its fence.
type Sought = (Arc<str>, Option<Arc<str>>);

impl Absent {
    pub(crate) fn has(&self, entry: &Entry, now: Instant) -> bool {
        self.until().get(&sought(entry)).is_some_and(|until| now < *until)
    }

    /// Remembers a key; if there are too many, it does not.
    pub(crate) fn add(&self, entry: &Entry, now: Instant) {
        let mut until = self.until();
        if until.len() >= MOST {
            until.retain(|_, until| now < *until);
        }
        if until.len() < MOST {
            until.insert(sought(entry), now + REMEMBERED);
        }
    }

    pub(crate) fn forget(&self, keys: &[&str]) {
        self.until().retain(|(key, _), _| !keys.contains(&&**key));
    }

    pub(crate) fn forget_fence(&self, fence: &str) {
        self.until().retain(|(_, of), _| of.as_deref() != Some(fence));
    }

    fn until(&self) -> MutexGuard<'_, HashMap<Sought, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sought(entry: &Entry) -> Sought {
    (Arc::clone(&entry.key), entry.fence.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Fill, Key};
    use crate::names::Names;

    fn pet(id: usize, tenant: &str) -> Entry {
        let tenant = Some(tenant.to_owned());
        let key = Key::<()>::new(format!("pet:{id}"), tenant, REMEMBERED, "pets", Fill::Brief);
        Entry::new(&Names::new(String::new()), &key)
    }

    #[test]
    fn a_row_that_does_not_exist_is_remembered_for_a_second_and_for_its_tenant() {
        let (absent, now) = (Absent::default(), Instant::now());
        for (id, tenant) in [(1, "42"), (2, "42"), (3, "43")] {
            absent.add(&pet(id, tenant), now);
        }
        assert!(absent.has(&pet(1, "42"), now));
        assert!(!absent.has(&pet(1, "43"), now) && !absent.has(&pet(3, "42"), now));
        absent.forget(&["pet:2"]);
        assert!(!absent.has(&pet(2, "42"), now));
        absent.forget_fence("preheat:fence:43");
        assert!(!absent.has(&pet(3, "43"), now) && absent.has(&pet(1, "42"), now));
        assert!(!absent.has(&pet(1, "42"), now + REMEMBERED));
    }

    #[test]
    fn only_so_many_are_remembered() {
        let (absent, now) = (Absent::default(), Instant::now());
        (0..=MOST).for_each(|id| absent.add(&pet(id, "42"), now));
        let last = pet(MOST, "42");
        assert!(absent.has(&pet(0, "42"), now) && !absent.has(&last, now));
        let later = now + REMEMBERED;
        absent.add(&last, later);
        assert!(absent.has(&last, later), "others made room");
    }
}
