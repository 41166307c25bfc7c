//! Which processes serve the slots, as one number that changes when a process is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::slots::{Extent, Slots};

/// The processes of the primaries at the last look.
#[derive(Debug, Default)]
pub(super) struct Processes {
    /// Each with its slots.
    seen: BTreeMap<u64, Slots>,
    /// Changes when a process of [`Self::seen`] that had slots is gone: its node was restarted, or another node has taken
    /// its place, and keys may be lost.
    number: u64,
    /// The slots whose keys may be lost since the number changed.
    lost: Arc<Slots>,
    /// How many questions were asked.
    asked: u64,
    /// The number of the first question that was asked after the last change. The answer to an
    /// earlier question may be older than the change.
    since: u64,
}

impl Processes {
    /// The number of a question that is about to be asked.
    pub(super) fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    /// Records the processes that answered a question, each with its slots, and returns the number that stands for them.
    /// A node that joined is no change: its keys were moved to it.
    pub(super) fn answered(&mut self, question: u64, now: BTreeMap<u64, Slots>) -> u64 {
        if question < self.since {
            return self.number;
        }
        let lost = self.lost(&now);
        if !lost.is_empty() {
            self.number += 1;
            self.lost = Arc::new(lost);
            self.since = self.asked + 1;
        }
        self.seen = now;
        self.number
    }

    /// The slots of the processes that are gone, and, if there are any, those of the processes that are new: slots may
    /// have moved to a process that is gone after the last look.
    fn lost(&self, now: &BTreeMap<u64, Slots>) -> Slots {
        let missing = |these: &BTreeMap<u64, Slots>, those: &BTreeMap<u64, Slots>| {
            let mut all = Slots::default();
            let missing = these.iter().filter(|(process, _)| !those.contains_key(process));
            missing.for_each(|(_, slots)| all.add(slots));
            all
        };
        let mut lost = missing(&self.seen, now);
        if !lost.is_empty() {
            lost.add(&missing(now, &self.seen));
        }
        lost
    }

    /// What may be lost since another number stood for the processes, if this one does now.
    pub(super) fn lost_between(&self, before: u64, now: u64) -> Extent {
        if now == self.number && before + 1 == now {
            Extent::Slots(Arc::clone(&self.lost))
        } else {
            Extent::All
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes with their slots.
    fn with<const N: usize>(all: [(u64, &[u16]); N]) -> BTreeMap<u64, Slots> {
        all.map(|(process, slots)| (process, slots.iter().copied().collect())).into()
    }

    /// Asks, and records these processes as the answer.
    fn noted(processes: &mut Processes, now: BTreeMap<u64, Slots>) -> u64 {
        let question = processes.ask();
        processes.answered(question, now)
    }

    #[test]
    fn the_number_changes_when_a_process_with_slots_is_gone_and_not_when_one_joins_or_leaves() {
        let mut processes = Processes::default();
        let mut note = |now| noted(&mut processes, now);
        let first = note(with([(1, &[1]), (2, &[2]), (3, &[3])]));
        assert_eq!(note(with([(1, &[1]), (2, &[2]), (3, &[3])])), first);
        assert_eq!(note(with([(1, &[1]), (2, &[]), (3, &[3]), (4, &[2])])), first, "4 joined");
        assert_eq!(note(with([(1, &[1]), (3, &[3]), (4, &[2])])), first, "2 had no slots any more");
        let second = note(with([(1, &[1]), (4, &[2]), (5, &[3])]));
        assert_ne!(second, first, "5 took the place of 3");
        assert_eq!(note(with([(1, &[1]), (4, &[2]), (5, &[3])])), second);
        let back = note(with([(1, &[1]), (3, &[3]), (4, &[2])]));
        assert!(back != first && back != second, "3 came back, without what 5 was given");
    }

    #[test]
    fn only_the_slots_of_the_nodes_that_are_gone_are_lost() {
        let mut processes = Processes::default();
        let lost = |slots: &[u16]| Extent::Slots(Arc::new(slots.iter().copied().collect()));
        let first = noted(&mut processes, with([(1, &[1, 10]), (2, &[2]), (3, &[3])]));
        // Slot 2 had moved to 3 since the last look.
        let second = noted(&mut processes, with([(1, &[1, 10]), (5, &[2, 3]), (2, &[])]));
        assert_eq!(processes.lost_between(first, second), lost(&[2, 3]));
        let third = noted(&mut processes, with([(6, &[1, 10]), (5, &[2, 3])]));
        assert_eq!(processes.lost_between(second, third), lost(&[1, 10]));
        assert_eq!(processes.lost_between(first, third), Extent::All, "two changes");
        assert_eq!(processes.lost_between(first, second), Extent::All, "of the past");
    }

    #[test]
    fn a_late_answer_from_before_a_change_is_no_change() {
        let mut processes = Processes::default();
        let [old, new] = [2, 3].map(|second| with([(1, &[1]), (second, &[2])]));
        let (first, late) = (processes.ask(), processes.ask());
        processes.answered(first, old.clone());
        let number = noted(&mut processes, new.clone());
        assert_eq!(processes.answered(late, old), number);
        assert_eq!(noted(&mut processes, new), number);
    }
}
