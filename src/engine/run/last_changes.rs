//! When tenants' data last changed, as far as the change feed reported it and the worker remembers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};

use crate::domain::tenant::TenantId;

/// How many tenants each half holds.
const MOST: usize = 5_000;

/// The last changes, in two halves: when the younger half is full, the older one is forgotten.
#[derive(Debug, Default)]
pub(crate) struct LastChanges(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    younger: HashMap<TenantId, DateTime<Utc>>,
    older: HashMap<TenantId, DateTime<Utc>>,
}

impl LastChanges {
    /// Records that a tenant's data changed.
    pub(crate) fn note(&self, tenant: &TenantId, at: DateTime<Utc>) {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if halves.younger.len() >= MOST && !halves.younger.contains_key(tenant) {
            halves.older = std::mem::take(&mut halves.younger);
        }
        halves.younger.insert(tenant.clone(), at);
    }

    /// When a tenant's data last changed.
    pub(crate) fn of(&self, tenant: &TenantId) -> Option<DateTime<Utc>> {
        let halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        halves.younger.get(tenant).or_else(|| halves.older.get(tenant)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_changes_are_remembered_and_no_more_than_two_halves() {
        let changes = LastChanges::default();
        let tenant = |number: usize| TenantId::new(number.to_string());
        let at = |number: usize| DateTime::from_timestamp(i64::try_from(number).unwrap(), 0);
        for number in 0..3 * MOST {
            changes.note(&tenant(number), at(number).unwrap());
        }
        assert_eq!(changes.of(&tenant(0)), None);
        assert_eq!(changes.of(&tenant(3 * MOST - 1)), at(3 * MOST - 1));
        assert_eq!(changes.of(&tenant(2 * MOST)), at(2 * MOST));
        changes.note(&tenant(2 * MOST), at(7).unwrap());
        assert_eq!(changes.of(&tenant(2 * MOST)), at(7));
        let halves = changes.0.lock().unwrap();
        assert!(halves.younger.len() + halves.older.len() <= 2 * MOST);
    }
}
