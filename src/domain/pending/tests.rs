use std::collections::HashSet;

use super::*;
use proptest::prelude::*;

const ZERO: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_secs(1);
const OK: Failures<'static> = Failures { who: Who::Nobody, wait: Wait::InVain };

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn tenant(name: &str) -> Owner {
    TenantId::new(name).into()
}

fn unverified(names: &[&str]) -> Unverified {
    Unverified { tenants: names.iter().map(TenantId::new).collect(), fleet: false }
}

fn names(claim: Option<&Claim>) -> Vec<String> {
    let tenants = claim.and_then(|claim| claim.tenants(Scope::Tenants)).unwrap_or_default();
    tenants.iter().map(ToString::to_string).collect()
}

/// A run that failed in that way, for these tenants; without any, for an unknown set of tenants.
fn failing<'a>(kind: FailureKind, tenants: &[&'a str]) -> Failures<'a> {
    let who = match tenants {
        [] => Who::Anybody,
        _ => Who::Tenants(tenants.iter().map(|tenant| (*tenant, kind)).collect()),
    };
    Failures { who, wait: Wait::of(kind) }
}

/// Ends a run at `now` without failures.
fn complete(changes: &mut PendingSet, claim: Claim, now: Duration) -> Vec<Duration> {
    changes.ended(claim, &OK, now)
}

fn take(changes: &mut PendingSet, now: Duration) -> Option<Claim> {
    changes.take_due(Cause::Change, now)
}

fn take_unverified(changes: &mut PendingSet, now: Duration) -> Option<Claim> {
    changes.take_due(Cause::Unverified, now)
}

fn next_due_at(changes: &PendingSet) -> Option<Duration> {
    let causes = [Cause::Change, Cause::Unverified];
    causes.iter().filter_map(|cause| changes.next_due_at(*cause)).min()
}

#[test]
fn the_first_change_is_due_at_once_and_the_next_one_a_cooldown_after_the_run_began() {
    let mut changes = PendingSet::default();
    assert!(take(&mut changes, SECOND).is_none());
    changes.changed(tenant("a"), ms(990), SECOND);
    let claim = take(&mut changes, SECOND).unwrap();
    assert_eq!(names(Some(&claim)), ["a"]);
    changes.changed(tenant("a"), ms(1010), ms(1010));
    changes.changed(tenant("a"), ms(1020), ms(1020));
    changes.changed(tenant("b"), ms(1020), ms(1020));
    assert_eq!(complete(&mut changes, claim, ms(1030)), [ms(40)]);
    assert_eq!(names(take(&mut changes, ms(1030)).as_ref()), ["b"]);
    assert_eq!(next_due_at(&changes), Some(SECOND + COOLDOWN));
    let claim = take(&mut changes, SECOND + COOLDOWN).unwrap();
    assert_eq!(names(Some(&claim)), ["a"]);
    assert_eq!(complete(&mut changes, claim, ms(1300)), [ms(290)], "since the first of the two");
    assert_eq!(next_due_at(&changes), None);
}

#[test]
fn a_tenant_that_stays_unverified_is_tried_again_at_longer_and_longer_intervals() {
    let mut changes = PendingSet::default();
    changes.handed_over(unverified(&["a"]), None, ZERO);
    let mut now = ZERO;
    let mut waits = Vec::new();
    for _ in 0..5 {
        let due_at = next_due_at(&changes).unwrap();
        waits.push(due_at.saturating_sub(now).as_secs());
        now = due_at;
        let mut claim = take_unverified(&mut changes, now).unwrap();
        changes.handed_over(unverified(&["a"]), Some(&mut claim), now);
        assert!(complete(&mut changes, claim, now).is_empty());
    }
    assert_eq!(waits, [1, 2, 4, 5, 5]);
}

#[test]
fn a_change_hurries_a_run_but_does_not_complete_what_may_still_be_on_its_way() {
    let mut changes = PendingSet::default();
    changes.handed_over(unverified(&["a"]), None, ZERO);
    changes.changed(tenant("a"), ms(100), ms(100));
    let claim = take_unverified(&mut changes, ms(100)).unwrap();
    assert_eq!(complete(&mut changes, claim, ms(110)), [ms(10)]);
    assert_eq!(next_due_at(&changes), Some(SECOND));
    let claim = take_unverified(&mut changes, SECOND).unwrap();
    assert!(complete(&mut changes, claim, SECOND).is_empty());
    assert_eq!(next_due_at(&changes), None);
}

#[test]
fn an_unverified_tenant_is_no_part_of_a_run_for_changes_which_may_be_long() {
    let mut changes = PendingSet::default();
    for name in ["a", "b"] {
        changes.changed(tenant(name), ZERO, ZERO);
    }
    let mut long = take(&mut changes, ZERO).unwrap();
    changes.handed_over(unverified(&["a"]), Some(&mut long), SECOND);
    changes.changed(tenant("a"), SECOND, SECOND);
    changes.changed(tenant("c"), SECOND, SECOND);
    assert_eq!(names(Some(&long)), ["b"], "it does not come to `a` again");
    assert_eq!(names(take_unverified(&mut changes, SECOND).as_ref()), ["a"]);
    assert_eq!(names(take(&mut changes, SECOND).as_ref()), ["c"]);
    assert_eq!(complete(&mut changes, long, SECOND * 2), [SECOND * 2]);
}

#[test]
fn while_the_cache_refuses_all_writes_a_job_is_repeated_every_five_minutes() {
    for kind in [FailureKind::CacheFull, FailureKind::CacheReadOnly, FailureKind::CacheMoved] {
        let failures = failing(kind, &[]);
        let mut changes = PendingSet::default();
        changes.everything_changed(ZERO, ZERO);
        changes.changed(tenant("a"), ZERO, ZERO);
        let (mut now, mut waits) = (ZERO, Vec::new());
        for _ in 0..12 {
            let everything = changes.take_everything(now);
            changes.ended(everything, &failures, now);
            let some = take(&mut changes, now).unwrap();
            changes.ended(some, &failures, now);
            let due_at = changes.everything_due_at().unwrap();
            waits.push(due_at.saturating_sub(now).as_secs());
            assert!(next_due_at(&changes).unwrap() <= due_at);
            now = due_at;
        }
        assert_eq!(waits[waits.len() - 2..], [300, 300], "{kind:?}");
    }
}

#[test]
fn a_server_that_is_away_loses_no_change_however_long() {
    let mut changes = PendingSet::default();
    changes.changed(tenant("a"), ZERO, ZERO);
    let mut now = ZERO;
    for _ in 0..20 {
        let claim = take(&mut changes, now).unwrap();
        let failures = failing(FailureKind::DatabaseUnavailable, &[]);
        changes.ended(claim, &failures, now);
        let due_at = next_due_at(&changes).unwrap();
        assert!(due_at <= now + LONGEST_AFTER_FAILURE);
        now = due_at;
    }
    let claim = take(&mut changes, now).unwrap();
    assert_eq!(complete(&mut changes, claim, now), [now]);
}

#[test]
fn what_fails_for_good_is_given_up_and_changes_do_not_hurry_it() {
    let mut changes = PendingSet::default();
    let failures = failing(FailureKind::ValueTooLarge, &["a"]);
    changes.changed(tenant("a"), ZERO, ZERO);
    changes.changed(tenant("b"), ZERO, ZERO);
    let mut now = ZERO;
    let mut runs = 0;
    while let Some(due_at) = next_due_at(&changes) {
        now = due_at;
        let claim = take(&mut changes, now).unwrap();
        let lags = changes.ended(claim, &failures, now);
        assert_eq!(lags.len(), usize::from(runs == 0), "`b` is done with the first run");
        runs += 1;
        if next_due_at(&changes).is_some() {
            changes.changed(tenant("a"), now, now);
        }
    }
    assert_eq!((runs, now), (MAX_FAILURES, SECOND * 15));
    changes.changed(tenant("a"), now, now);
    assert_eq!(next_due_at(&changes), Some(now + SECOND * 16));
}

#[test]
fn several_that_fail_in_one_way_leave_the_others_of_their_run_done() {
    let mut changes = PendingSet::default();
    for name in ["a", "b", "c", "d"] {
        changes.changed(tenant(name), ZERO, ZERO);
    }
    let claim = take(&mut changes, ZERO).unwrap();
    let mut failures = failing(FailureKind::Query, &["a", "b"]);
    if let Who::Tenants(tenants) = &mut failures.who {
        tenants.insert("d", FailureKind::CacheUnavailable);
    }
    assert_eq!(changes.ended(claim, &failures, ZERO).len(), 1, "`c`");
    let mut now = ZERO;
    for _ in 1..MAX_FAILURES {
        now = next_due_at(&changes).unwrap();
        let claim = take(&mut changes, now).unwrap();
        assert_eq!(names(Some(&claim)).len(), 3);
        changes.ended(claim, &failures, now);
    }
    now += LONGEST_AFTER_FAILURE;
    let left = take(&mut changes, now);
    assert_eq!(names(left.as_ref()), ["d"], "what may pass by waiting is not given up");
}

#[test]
fn too_many_are_everybody() {
    let mut changes = PendingSet::with_room_for(2);
    for name in ["a", "b", "a"] {
        changes.changed(tenant(name), ZERO, ZERO);
    }
    assert_eq!(changes.everything_due_at(), None);
    changes.changed(tenant("c"), ZERO, ms(5));
    assert_eq!((changes.everything_due_at(), next_due_at(&changes)), (Some(ms(5)), None));
    let claim = changes.take_everything(ms(5));
    assert_eq!(changes.everything_due_at(), None);
    changes.everything_changed(ms(6), ms(6));
    assert_eq!(changes.everything_due_at(), Some(ms(5) + EVERYTHING_COOLDOWN));
    assert!(complete(&mut changes, claim, ms(7)).is_empty());
}

#[test]
fn a_run_for_everybody_that_failed_is_repeated_for_whom_it_failed() {
    let mut changes = PendingSet::default();
    changes.everything_changed(ZERO, ZERO);
    let claim = changes.take_everything(ZERO);
    let failures = failing(FailureKind::Encoding, &["a", "b"]);
    changes.ended(claim, &failures, SECOND);
    assert_eq!(changes.everything_due_at(), None);
    assert_eq!(names(take(&mut changes, SECOND * 2).as_ref()), ["a", "b"]);

    let mut changes = PendingSet::default();
    changes.everything_changed(ZERO, ZERO);
    let claim = changes.take_everything(ZERO);
    let failures = failing(FailureKind::Tenants, &[]);
    changes.ended(claim, &failures, SECOND);
    assert_eq!(changes.everything_due_at(), Some(EVERYTHING_COOLDOWN));
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Change(u8),
    Begin,
    /// The run under way ends: it leaves some tenants unverified, and it may have failed.
    End(BTreeSet<u8>, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u64..700).prop_map(Step::Wait),
        4 => (0_u8..7).prop_map(Step::Change),
        2 => Just(Step::Begin),
        2 => (prop::collection::btree_set(0_u8..7, 0..3), prop::bool::weighted(0.2))
            .prop_map(|(unverified, failed)| Step::End(unverified, failed)),
    ];
    prop::collection::vec(step, 1..80)
}

/// What must hold whatever happens: no owner is forgotten, none is warmed too often.
struct Model {
    changes: PendingSet,
    now: Duration,
    running: Option<Claim>,
    began: HashMap<Owner, Duration>,
    /// The owners that a later run must cover.
    stale: HashSet<Owner>,
}

impl Model {
    fn turn(&mut self, step: Step) {
        match step {
            Step::Wait(time) => self.now += ms(time),
            Step::Change(number) => {
                let whose = tenant(&number.to_string());
                self.changes.changed(whose.clone(), self.now, self.now);
                self.stale.insert(whose);
            }
            Step::Begin if self.running.is_none() => self.begin(),
            Step::Begin => {}
            Step::End(some, failed) => self.end(&some, failed),
        }
        let changes = &self.changes;
        assert!(changes.wanted.len() <= changes.most);
        let due = changes.changed_due.len() + changes.unverified_due.len();
        assert_eq!(changes.wanted.len(), due);
        for whose in &self.stale {
            let known = changes.wanted.contains_key(whose) || changes.everything.is_some();
            assert!(known, "{whose:?} is forgotten");
        }
    }

    fn begin(&mut self) {
        if self.changes.everything_due_at().is_some_and(|due_at| due_at <= self.now) {
            self.stale.clear();
            let claim = self.changes.take_everything(self.now);
            complete(&mut self.changes, claim, self.now);
        }
        let unverified = take_unverified(&mut self.changes, self.now);
        let claim = unverified.or_else(|| take(&mut self.changes, self.now));
        let Some(claim) = claim else { return };
        for whose in claim.wanted.keys() {
            self.stale.remove(whose);
            if let Some(began) = self.began.insert(whose.clone(), self.now) {
                assert!(self.now >= began + COOLDOWN, "{whose:?} is warmed too often");
            }
        }
        self.running = Some(claim);
    }

    fn end(&mut self, some: &BTreeSet<u8>, failed: bool) {
        let Some(mut claim) = self.running.take() else { return };
        let left: Vec<String> = some.iter().map(ToString::to_string).collect();
        self.stale.extend(left.iter().map(|name| tenant(name)));
        let failures = if failed {
            self.stale.extend(claim.wanted.keys().cloned());
            failing(FailureKind::CacheUnavailable, &[])
        } else {
            OK
        };
        let left: Vec<&str> = left.iter().map(String::as_str).collect();
        self.changes.handed_over(unverified(&left), Some(&mut claim), self.now);
        self.changes.ended(claim, &failures, self.now);
    }
}

proptest! {
    #[test]
    fn nobody_is_forgotten_and_nobody_is_warmed_too_often(
        steps in steps(),
        room in prop_oneof![Just(3_usize), Just(100)],
    ) {
        let mut model = Model {
            changes: PendingSet::with_room_for(room),
            now: ZERO,
            running: None,
            began: HashMap::new(),
            stale: HashSet::new(),
        };
        for step in steps {
            model.turn(step);
        }
        model.turn(Step::End(BTreeSet::new(), false));
        for _ in 0..100 {
            let changes = &model.changes;
            let due = next_due_at(changes).into_iter().chain(changes.everything_due_at());
            let Some(due_at) = due.min() else { break };
            model.now = model.now.max(due_at);
            model.turn(Step::Begin);
            model.turn(Step::End(BTreeSet::new(), false));
        }
        prop_assert!(model.stale.is_empty(), "it comes to rest: {:?}", model.stale);
        prop_assert_eq!(next_due_at(&model.changes), None);
    }
}
