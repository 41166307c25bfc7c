//! What a batch wrote and did not prove.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::manifests::List;
use crate::domain::manifest::Named;
use crate::domain::tenant::{Batch, TenantId};
use crate::engine::batch::Work;
use crate::engine::run::Order;
use crate::engine::taken::Taken;

/// The names of a slot, with those that its manifest has lost.
pub(super) struct Recalled {
    pub(super) named: Vec<Named>,
    /// Those that no manifest has any more. They are in `named` as well.
    pub(super) unnamed: Vec<String>,
}

/// Slots whose keys are written and not proven. When it is dropped, by whatever ends the batch, those
/// that are left have to be warmed again.
pub(super) struct Doubt<'w> {
    work: &'w Work,
    part: &'w Batch,
    slots: BTreeSet<usize>,
    /// Those of which something was sent, in whatever round, that may still come: what a server that
    /// did not answer does with it nobody knows.
    pub(super) lost: BTreeSet<usize>,
    /// The listed keys that rounds wrote which proved nothing, with when they were named. The cache may
    /// have lost their names since, as where it was restarted and the write came to the new process.
    /// Where keys move, it has those of the round under way as well.
    written: HashMap<usize, HashMap<String, DateTime<Utc>>>,
}

impl<'w> Doubt<'w> {
    pub(super) fn new(work: &'w Work, part: &'w Batch) -> Self {
        Self { work, part, slots: BTreeSet::new(), lost: BTreeSet::new(), written: HashMap::new() }
    }

    /// What a slot's round wrote is not proven.
    pub(super) fn remember(&mut self, slot: usize, list: &List, named_at: DateTime<Utc>) {
        let names = list.names().map(|key| (key.clone(), named_at));
        self.written.entry(slot).or_default().extend(names);
    }

    /// What the manifests of slots name, and what they named when it was written.
    pub(super) fn recall(&self, slots: &[usize], named: Vec<Vec<Named>>) -> Vec<Recalled> {
        let recall = |(slot, mut named): (&usize, Vec<Named>)| {
            let Some(written) = self.written.get(slot) else {
                return Recalled { named, unnamed: Vec::new() };
            };
            let known: HashSet<&str> = named.iter().map(|named| named.key.as_str()).collect();
            let unnamed = written.iter().filter(|(key, _)| !known.contains(key.as_str()));
            let unnamed = unnamed.map(|(key, at)| Named { key: key.clone(), named_at: *at });
            let unnamed: Vec<Named> = unnamed.collect();
            named.extend(unnamed.iter().cloned());
            Recalled { named, unnamed: unnamed.into_iter().map(|named| named.key).collect() }
        };
        slots.iter().zip(named).map(recall).collect()
    }

    /// Keys of these slots are about to be written, under the names that were given then; says whether
    /// it is for the first time.
    pub(super) fn begin(
        &mut self,
        slots: &[usize],
        lists: &[List],
        named_at: DateTime<Utc>,
    ) -> bool {
        let is_first = self.slots.is_empty();
        self.slots.extend(slots);
        if self.work.order.job.has_keys_that_move() {
            for (slot, list) in slots.iter().zip(lists) {
                self.remember(*slot, list, named_at);
            }
        }
        is_first
    }

    /// What the slot's last round wrote is proven; that round began at this monotonic moment.
    pub(super) fn settle(&mut self, slot: usize, list: Option<&List>, began: Duration) {
        if self.lost.contains(&slot) {
            return;
        }
        self.slots.remove(&slot);
        let Order { job, .. } = self.work.order.as_ref();
        let Some(tenant) = self.part.tenant(slot).filter(|_| job.has_keys_that_move()) else {
            return;
        };
        let mut written = self.written.remove(&slot).unwrap_or_default();
        let present = list.map(|list| list.present.as_slice()).unwrap_or_default();
        for key in present {
            written.remove(key);
        }
        self.give_away(slot, written.into_keys());
        self.work.runner.taken.proven(&job.name, tenant.id(), present, began);
    }

    /// Keys that move and that were written for a tenant which may not have them: that value may have
    /// taken the place of their owner's, and it ends by itself.
    fn give_away(&self, slot: usize, keys: impl Iterator<Item = String>) {
        let Some(tenant) = self.part.tenant(slot) else { return };
        if self.work.order.job.has_keys_that_move() {
            let taken = keys.map(|key| Taken { key, from: TenantId::new(tenant.id()) });
            self.work.uncertain().unproven.extend(taken);
        }
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let written = self.written.remove(slot).unwrap_or_default();
            self.give_away(*slot, written.into_keys());
            let mut unsettled = self.work.unsettled();
            match self.part.tenant(*slot) {
                Some(tenant) => {
                    unsettled.tenants.insert(TenantId::new(tenant.id()));
                }
                None => unsettled.fleet = true,
            }
        }
    }
}
