//! The slots of a Redis Cluster, and the tenants that have keys in some of them.

use std::fmt;
use std::sync::Arc;

use super::fence::{self, fence_key};
use super::job::Job;
use super::tenant::Tenant;

/// How many slots every cluster has.
pub const SLOTS: u16 = 16_384;

/// A set of slots.
#[derive(Clone, PartialEq, Eq)]
pub struct Slots(Box<[u64]>);

impl Slots {
    /// Whether it has this slot.
    pub fn contains(&self, slot: u16) -> bool {
        let (word, bit) = place(slot);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many slots it has.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether it has no slot.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Adds a slot.
    pub fn insert(&mut self, slot: u16) {
        let (word, bit) = place(slot);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    /// Adds the slots of another set.
    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }
}

/// The word of a slot, and its bit there.
fn place(slot: u16) -> (usize, u64) {
    (usize::from(slot / 64), 1 << (slot % 64))
}

impl Default for Slots {
    fn default() -> Self {
        Self(vec![0; usize::from(SLOTS / 64)].into())
    }
}

impl FromIterator<u16> for Slots {
    fn from_iter<I: IntoIterator<Item = u16>>(slots: I) -> Self {
        let mut all = Self::default();
        slots.into_iter().for_each(|slot| all.insert(slot));
        all
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots", self.len())
    }
}

/// A part of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    All,
    /// These slots: of nodes that may have lost keys.
    Slots(Arc<Slots>),
}

impl Extent {
    /// Both parts together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Slots(mut one), Self::Slots(other)) => {
                Arc::make_mut(&mut one).add(&other);
                Self::Slots(one)
            }
            (Self::All, _) | (_, Self::All) => Self::All,
        }
    }

    /// Whether a job is to run for a tenant (`None`: for a global job) if the cache lost this part. A value may be lost; or
    /// moves of the fence, and then an old value of a late warmer may pass for a fresh one. `slot` tells the slot of a key.
    /// Keys with a date or with a column of the query may be in any slot.
    pub fn concerns(
        &self,
        job: &Job,
        tenant: Option<Tenant<'_>>,
        slot: impl Fn(&str) -> u16,
    ) -> bool {
        let Self::Slots(slots) = self else { return true };
        let is_lost = |key: &str| slots.contains(slot(key));
        let fence = tenant.map_or_else(|| fence::GLOBAL.to_owned(), |one| fence_key(one.id()));
        let mut templates = job.keys.iter().map(|key| &key.template);
        is_lost(&fence)
            || templates.any(|template| {
                !template.is_static()
                    || template.has_date()
                    || template.fill(tenant, None).is_some_and(|key| is_lost(&key))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::tests::example;
    use crate::domain::job::{Key, Scope, Shape};
    use crate::domain::key::KeyTemplate;
    use crate::domain::tenant::Tenants;

    fn lost(slots: &[u16]) -> Extent {
        Extent::Slots(Arc::new(slots.iter().copied().collect()))
    }

    #[test]
    fn a_set_has_what_was_put_in() {
        let mut slots: Slots = [0, 63, 64, 16_383].into_iter().collect();
        assert_eq!(slots.len(), 4);
        let all = |slots: &Slots| (0..=u16::MAX).filter(|slot| slots.contains(*slot)).collect();
        let found: Vec<u16> = all(&slots);
        assert_eq!(found, [0, 63, 64, 16_383]);
        slots.add(&[64, 65].into_iter().collect());
        assert_eq!(slots.len(), 5);
        assert!(Slots::default().is_empty() && !slots.is_empty());
    }

    #[test]
    fn two_losses_are_one_of_both() {
        assert_eq!(lost(&[1]).and(lost(&[2])), lost(&[1, 2]));
        assert_eq!(lost(&[1]).and(Extent::All), Extent::All);
        assert_eq!(Extent::All.and(lost(&[1])), Extent::All);
    }

    #[test]
    fn a_loss_concerns_the_tenants_whose_values_or_fences_were_in_the_slots() {
        let job = |templates: &[&str]| {
            let key = |text: &&str| Key {
                template: KeyTemplate::parse(text, "tenant_id").unwrap(),
                shape: Shape::List,
                unique: None,
            };
            example("list", templates.iter().map(key).collect())
        };
        let tenants = {
            let mut all = Tenants::default();
            all.push("7", []);
            all.push("8", []);
            all
        };
        // The slot of a key is the number at its end, and a fence's a hundred more.
        let slot = |key: &str| {
            let number: u16 = key.rsplit(':').next().unwrap().parse().unwrap_or(500);
            number + if key.starts_with("preheat:fence") { 100 } else { 0 }
        };
        let concerned = |job: &Job, lost: &Extent| -> Vec<&str> {
            let is_concerned = |tenant: &Tenant<'_>| lost.concerns(job, Some(*tenant), slot);
            tenants.iter().filter(is_concerned).map(|tenant| tenant.id()).collect()
        };
        let one = job(&["list:{tenant_id}"]);
        assert_eq!(concerned(&one, &Extent::All), ["7", "8"]);
        assert_eq!(concerned(&one, &lost(&[8])), ["8"]);
        assert_eq!(concerned(&one, &lost(&[107, 9])), ["7"], "its fence");
        assert!(concerned(&one, &lost(&[9])).is_empty());
        let two = job(&["static:9", "list:{tenant_id}"]);
        assert_eq!(concerned(&two, &lost(&[9])), ["7", "8"]);
        for anywhere in ["a:{date}:{tenant_id}", "a:{item}:{tenant_id}"] {
            assert_eq!(concerned(&job(&[anywhere]), &lost(&[9])), ["7", "8"], "{anywhere}");
        }
        let global = Job { scope: Scope::Global, ..job(&["all:5"]) };
        assert!(lost(&[5]).concerns(&global, None, slot));
        assert!(lost(&[600]).concerns(&global, None, slot), "the fence");
        assert!(!lost(&[6]).concerns(&global, None, slot));
    }
}
