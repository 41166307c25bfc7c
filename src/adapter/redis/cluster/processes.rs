//! Which processes serve the slots, as one number that changes when a process is gone.

use std::collections::BTreeSet;

/// The processes of the primaries at the last look.
#[derive(Debug, Default)]
pub(super) struct Processes {
    seen: BTreeSet<u64>,
    /// Changes when a process of [`Self::seen`] is gone: its node was restarted, or another node
    /// has taken its place, and keys may be lost.
    number: u64,
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

    /// Records the processes that answered a question, and returns the number that stands for
    /// them. A node that joined is no change: its keys were moved to it.
    pub(super) fn answered(&mut self, question: u64, now: BTreeSet<u64>) -> u64 {
        if question < self.since {
            return self.number;
        }
        if !self.seen.is_subset(&now) {
            self.number += 1;
            self.since = self.asked + 1;
        }
        self.seen = now;
        self.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_changes_when_a_process_is_gone_and_not_when_one_joins() {
        let mut processes = Processes::default();
        let mut note = |now: &[u64]| {
            let question = processes.ask();
            processes.answered(question, now.iter().copied().collect())
        };
        let first = note(&[1, 2, 3]);
        assert_eq!(note(&[1, 2, 3]), first);
        assert_eq!(note(&[1, 2, 3, 4]), first, "a node joined");
        let second = note(&[1, 2, 4, 5]);
        assert_ne!(second, first, "5 took the place of 3");
        assert_eq!(note(&[1, 2, 4, 5]), second);
        let back = note(&[1, 2, 3, 4]);
        assert!(back != first && back != second, "3 came back, without what 5 was given");
    }

    #[test]
    fn a_late_answer_from_before_a_change_is_no_change() {
        let mut processes = Processes::default();
        let (first, late) = (processes.ask(), processes.ask());
        processes.answered(first, [1, 2].into());
        let question = processes.ask();
        let number = processes.answered(question, [1, 3].into());
        assert_eq!(processes.answered(late, [1, 2].into()), number);
        let question = processes.ask();
        assert_eq!(processes.answered(question, [1, 3].into()), number);
    }
}
