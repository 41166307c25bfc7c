//! Which shares change their holders.

use std::collections::BTreeMap;

use super::{LEFT_FOR, Lease, Member, SETTLED, Standing, View};
use crate::domain::member::MemberId;
use crate::domain::share::{Share, Shares};

/// A member that works, and the shares that it has or is to have.
struct Worker<'v> {
    member: &'v Member,
    shares: Shares,
}

impl Worker<'_> {
    fn load(&self) -> u32 {
        self.shares.len()
    }
}

/// The shares that are to change their holders, each with its next one. Every member computes the same from the same view.
///
/// Shares that are free, or whose holders do not work, go to the members that have fewest; of several, to the youngest, which
/// stays longest in a rolling deploy. Then those that have most hand shares over to those that have fewest, as long as they
/// are two apart: so a share never moves between members that are as even as can be.
pub fn moves(view: &View) -> BTreeMap<Share, MemberId> {
    let worker = |member| Worker { member, shares: view.held_by(&member.id) };
    let mut workers: Vec<Worker<'_>> =
        view.by_age(&[Standing::Works]).into_iter().map(worker).collect();
    let held = workers.iter().fold(Shares::NONE, |all, worker| all | worker.shares);
    let mut moves = BTreeMap::new();
    for (share, lease) in view.leases().filter(|(share, _)| !held.has(*share)) {
        let is_left = |member: &Member| match lease {
            Lease::Free(since) => *since < LEFT_FOR || member.silent_for <= *since,
            Lease::Held { .. } => true,
        };
        if !is_without_worker(view, lease) {
            continue;
        }
        let takers = workers.iter_mut().rev().filter(|worker| {
            let member = worker.member;
            member.is_awake() && is_left(member)
        });
        if let Some(next) = takers.min_by_key(|worker| worker.load()) {
            next.shares = next.shares | share.into();
            moves.insert(share, next.member.id.clone());
        }
    }
    while let Some((share, to)) = evened(&mut workers) {
        moves.insert(share, to);
    }
    moves
}

/// Whether a share is free, or its holder does not work. A holder that is no member still has its lease.
fn is_without_worker(view: &View, lease: &Lease) -> bool {
    let Some(holder) = lease.holder() else { return true };
    view.member(holder).is_some_and(|member| member.standing != Standing::Works)
}

/// Moves one share from a worker that has most to one that has fewest, if they are two apart. The first shares stay where they
/// are, as the holder of [`Share::FIRST`] has further duties.
fn evened(workers: &mut [Worker<'_>]) -> Option<(Share, MemberId)> {
    let may_get =
        |worker: &&mut Worker<'_>| worker.member.age >= SETTLED && worker.member.is_awake();
    let most = workers.iter().map(Worker::load).max()?;
    let least = workers.iter_mut().filter(may_get).map(|worker| worker.load()).min()?;
    if most < least + 2 {
        return None;
    }
    let from = workers.iter_mut().find(|worker| worker.load() == most)?;
    let share = from.shares.iter().last()?;
    from.shares = from.shares - share.into();
    let to = workers.iter_mut().rev().filter(may_get).find(|worker| worker.load() == least)?;
    to.shares = to.shares | share.into();
    Some((share, to.member.id.clone()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LONG: Duration = Duration::from_secs(100);

    fn id(name: &str) -> MemberId {
        MemberId::parse(name).unwrap()
    }

    fn member(name: &str, age: Duration) -> Member {
        Member {
            id: id(name),
            standing: Standing::Works,
            age,
            silent_for: Duration::ZERO,
            connections: 0,
        }
    }

    fn lease(view: &mut View, shares: std::ops::Range<usize>, by: &str) {
        for lease in &mut view.leases[shares] {
            *lease = Lease::Held { by: id(by), left: LONG };
        }
    }

    /// How many shares each member has after the moves, and how many moved.
    fn after(view: &View) -> (Vec<u32>, usize) {
        let moves = moves(view);
        let shares = |member: &Member| {
            let held = view.held_by(&member.id);
            let came = moves.iter().filter(|(_, to)| **to == member.id).map(|(share, _)| *share);
            let gone = moves.iter().filter(|(_, to)| **to != member.id).map(|(share, _)| *share);
            ((held - gone.collect()) | came.collect()).len()
        };
        (view.members.iter().map(shares).collect(), moves.len())
    }

    #[test]
    fn free_shares_go_round_and_nothing_moves_when_all_is_even() {
        let mut view = View::of(vec![member("a", LONG), member("b", LONG), member("c", LONG)]);
        assert_eq!(after(&view), (vec![21, 21, 22], 64));
        for (shares, by) in [(0..21, "b"), (21..42, "a"), (42..64, "c")] {
            lease(&mut view, shares, by);
        }
        assert_eq!(after(&view), (vec![21, 21, 22], 0));
    }

    #[test]
    fn a_newcomer_gets_shares_from_others_when_it_has_settled() {
        let mut view =
            View::of(vec![member("a", LONG), member("b", LONG), member("c", SETTLED / 2)]);
        lease(&mut view, 0..32, "a");
        lease(&mut view, 32..64, "b");
        assert_eq!(after(&view), (vec![32, 32, 0], 0));
        view.members[2].age = SETTLED;
        assert_eq!(after(&view), (vec![21, 22, 21], 21));
        assert!(!moves(&view).contains_key(&Share::FIRST));
    }

    #[test]
    fn a_leavers_shares_go_to_the_newcomer_in_its_place() {
        let mut view =
            View::of(vec![member("a", LONG), member("b", LONG), member("c", Duration::ZERO)]);
        lease(&mut view, 0..32, "a");
        lease(&mut view, 32..64, "b");
        view.members[0].standing = Standing::Leaves;
        let moves = moves(&view);
        assert_eq!(moves.len(), 32);
        assert!(moves.values().all(|to| *to == id("c")));
    }

    #[test]
    fn a_share_that_its_taker_does_not_take_goes_to_others() {
        let mut view = View::of(vec![member("a", LONG), member("b", LONG)]);
        lease(&mut view, 1..40, "a");
        let first = |view: &View| moves(view)[&Share::FIRST].clone();
        view.members[1].silent_for = Duration::from_millis(1_200);
        assert_eq!(first(&view), id("b"));
        view.leases[0] = Lease::Free(Duration::from_millis(1_100));
        assert_eq!(first(&view), id("a"), "it was silent since the share became free");
        view.leases[0] = Lease::Free(Duration::from_millis(1_300));
        assert_eq!(first(&view), id("b"));
        view.leases[0] = Lease::Free(Duration::ZERO);
        view.members[1].silent_for = Duration::from_millis(3_100);
        assert_eq!(first(&view), id("a"));
    }

    #[test]
    fn a_holder_that_is_no_member_keeps_its_lease() {
        let mut view = View::of(vec![member("a", LONG)]);
        lease(&mut view, 0..64, "gone");
        assert_eq!(after(&view), (vec![0], 0));
    }
}
