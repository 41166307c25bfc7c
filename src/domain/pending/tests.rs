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
    Unverified { tenants: names.iter().map(TenantId::new).collect(), global: false }
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
    changes.ended(claim, &OK, ZERO, now)
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
fn the_first_change_is_due_at_once_and_the_next_one_a_rest_after_the_run_ended() {
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
    assert_eq!(next_due_at(&changes), Some(ms(1030) + SHORTEST_REST));
    let claim = take(&mut changes, ms(1030) + SHORTEST_REST).unwrap();
    assert_eq!(names(Some(&claim)), ["a"]);
    assert_eq!(complete(&mut changes, claim, ms(1300)), [ms(290)], "since the first of the two");
    assert_eq!(next_due_at(&changes), None);
}

/// Warms `a`, whose batch takes that long, from `now` on; answers when the run ends.
fn warm_a(changes: &mut PendingSet, took: Duration, now: Duration) -> Duration {
    let claim = take(changes, now).unwrap();
    assert_eq!(names(Some(&claim)), ["a"]);
    changes.ended(claim, &OK, took, now + took);
    now + took
}

#[test]
fn a_tenant_rests_three_times_as_long_as_its_batch_took_between_a_floor_and_a_ceiling() {
    for (took, rest) in [(0, 20), (5, 20), (10, 30), (2_000, 6_000), (60_000, 30_000)] {
        let mut changes = PendingSet::default();
        changes.changed(tenant("a"), ZERO, ZERO);
        let ended_at = warm_a(&mut changes, ms(took), ZERO);
        changes.changed(tenant("a"), ended_at, ended_at);
        assert_eq!(next_due_at(&changes), Some(ended_at + ms(rest)), "after {took} ms");
    }
}

/// Lets `a` change each millisecond for that long, where each warming takes `took`; answers the moments when
/// its runs begin.
fn runs_of_a_burst(time: Duration, took: Duration) -> Vec<Duration> {
    let mut changes = PendingSet::default();
    let mut under_way: Option<(Claim, Duration)> = None;
    let (mut now, mut began, mut waits) = (ZERO, Vec::new(), false);
    while now < time || waits || under_way.is_some() {
        if now < time {
            changes.changed(tenant("a"), now, now);
            waits = true;
        }
        if let Some((claim, ended_at)) = under_way.take_if(|(_, ended_at)| *ended_at <= now) {
            changes.ended(claim, &OK, took, ended_at);
        }
        if let Some(claim) = take(&mut changes, now) {
            assert!(under_way.is_none(), "its runs do not overlap");
            under_way = Some((claim, now + took));
            began.push(now);
            waits = false;
        }
        now += ms(1);
    }
    assert_eq!(next_due_at(&changes), None);
    assert!(began.last().unwrap() >= &time.saturating_sub(ms(1)), "the last change is warmed too");
    began
}

#[test]
fn a_thousand_changes_of_one_tenant_in_a_second_start_a_bounded_number_of_runs() {
    let runs = |took| runs_of_a_burst(SECOND, took).len();
    assert_eq!(runs(ZERO), 51, "50 in the second, and one for the last changes");
    assert_eq!(runs(ms(5)), 41);
    assert_eq!(runs(ms(20)), 14);
}

#[test]
fn a_giant_that_never_stops_changing_is_warmed_for_a_quarter_of_the_time() {
    for took in [ms(200), SECOND * 2, SECOND * 10] {
        let began = runs_of_a_burst(SECOND * 120, took);
        let pairs = || began.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
        assert!(pairs().all(|between| between >= took * 4), "{began:?}");
        assert!(pairs().all(|between| between <= took * 4 + ms(2)), "and no less: {began:?}");
    }
}

#[test]
fn a_tenant_whose_run_is_under_way_waits_for_its_end_and_others_do_not() {
    let mut changes = PendingSet::default();
    changes.changed(tenant("giant"), ZERO, ZERO);
    let giant = take(&mut changes, ZERO).unwrap();
    changes.changed(tenant("giant"), ms(10), ms(10));
    assert_eq!(next_due_at(&changes), None, "nobody knows yet");
    changes.changed(tenant("small"), ms(10), ms(10));
    assert_eq!(names(take(&mut changes, ms(10)).as_ref()), ["small"]);
    assert!(take(&mut changes, SECOND).is_none());
    changes.ended(giant, &OK, SECOND, SECOND);
    assert_eq!(next_due_at(&changes), Some(SECOND * 4));
    assert_eq!(names(take(&mut changes, SECOND * 4).as_ref()), ["giant"]);
}

#[test]
fn a_change_during_a_run_that_fails_waits_as_the_failure_does() {
    for tries in [1, MAX_FAILURES] {
        let mut changes = PendingSet::default();
        changes.changed(tenant("a"), ZERO, ZERO);
        let mut now = ZERO;
        for _ in 1..tries {
            let claim = take(&mut changes, now).unwrap();
            changes.ended(claim, &failing(FailureKind::Query, &["a"]), ZERO, now);
            now = next_due_at(&changes).unwrap();
        }
        let claim = take(&mut changes, now).unwrap();
        changes.changed(tenant("a"), now, now);
        changes.ended(claim, &failing(FailureKind::Query, &["a"]), SECOND * 10, now);
        assert_eq!(next_due_at(&changes), Some(now + SECOND * (1 << (tries - 1))));
    }
}

#[test]
fn a_follow_up_does_not_wait_for_a_rest_but_a_change_that_hurries_it_does() {
    let mut changes = PendingSet::default();
    changes.changed(tenant("a"), ZERO, ZERO);
    let now = warm_a(&mut changes, SECOND * 5, ZERO);
    changes.handed_over(unverified(&["a"]), None, now);
    changes.changed(tenant("a"), now, now);
    assert_eq!(next_due_at(&changes), Some(now + FOLLOW_UP), "its values may expire before");

    for (took, due_at) in [(ms(10), ms(30)), (SECOND * 2, FOLLOW_UP)] {
        let mut changes = PendingSet::default();
        changes.changed(tenant("a"), ZERO, ZERO);
        let mut claim = take(&mut changes, ZERO).unwrap();
        changes.handed_over(unverified(&["a"]), Some(&mut claim), took);
        changes.changed(tenant("a"), took, took);
        assert_eq!(next_due_at(&changes), Some(took + due_at), "it took {took:?}");
    }
}

#[test]
fn a_rest_that_is_over_takes_no_memory() {
    let mut changes = PendingSet::default();
    for number in 0..1_000 {
        changes.changed(tenant(&number.to_string()), ZERO, ZERO);
    }
    let claim = take(&mut changes, ZERO).unwrap();
    changes.ended(claim, &OK, ms(5), ms(5));
    changes.changed(tenant("a"), SECOND, SECOND);
    warm_a(&mut changes, ms(5), SECOND);
    assert_eq!(changes.rests.len(), 1);
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
    assert_eq!(names(take(&mut changes, SECOND).as_ref()), ["c"]);
    assert_eq!(names(take_unverified(&mut changes, SECOND * 2).as_ref()), ["a"]);
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
            changes.ended(everything, &failures, ZERO, now);
            let some = take(&mut changes, now).unwrap();
            changes.ended(some, &failures, ZERO, now);
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
        changes.ended(claim, &failures, ZERO, now);
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
        let lags = changes.ended(claim, &failures, ZERO, now);
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
    assert_eq!(changes.ended(claim, &failures, ZERO, ZERO).len(), 1, "`c`");
    let mut now = ZERO;
    for _ in 1..MAX_FAILURES {
        now = next_due_at(&changes).unwrap();
        let claim = take(&mut changes, now).unwrap();
        assert_eq!(names(Some(&claim)).len(), 3);
        changes.ended(claim, &failures, ZERO, now);
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
fn too_many_are_everybody_without_a_wait_for_the_run_of_one() {
    let mut changes = PendingSet::with_room_for(2);
    changes.changed(tenant("giant"), ZERO, ZERO);
    let _under_way = take(&mut changes, ZERO);
    for name in ["a", "b", "giant"] {
        changes.changed(tenant(name), ZERO, ms(5));
    }
    assert_eq!(changes.everything_due_at(), Some(ms(5)));
}

#[test]
fn a_run_for_everybody_that_failed_is_repeated_for_whom_it_failed() {
    let mut changes = PendingSet::default();
    changes.everything_changed(ZERO, ZERO);
    let claim = changes.take_everything(ZERO);
    let failures = failing(FailureKind::Encoding, &["a", "b"]);
    changes.ended(claim, &failures, ZERO, SECOND);
    assert_eq!(changes.everything_due_at(), None);
    assert_eq!(names(take(&mut changes, SECOND * 2).as_ref()), ["a", "b"]);

    let mut changes = PendingSet::default();
    changes.everything_changed(ZERO, ZERO);
    let claim = changes.take_everything(ZERO);
    let failures = failing(FailureKind::Tenants, &[]);
    changes.ended(claim, &failures, ZERO, SECOND);
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
    /// The end of each owner's rest.
    rested_at: HashMap<Owner, Duration>,
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
            let rested_at = self.rested_at.get(whose).copied().unwrap_or_default();
            let is_follow_up = claim.cause() == Cause::Unverified;
            assert!(is_follow_up || self.now >= rested_at, "{whose:?} is warmed too often");
        }
        self.running = Some(claim);
    }

    fn end(&mut self, some: &BTreeSet<u8>, failed: bool) {
        let Some(mut claim) = self.running.take() else { return };
        let left: Vec<String> = some.iter().map(ToString::to_string).collect();
        self.stale.extend(left.iter().map(|name| tenant(name)));
        let took = self.now.saturating_sub(claim.began_at);
        let rested_at = claim.wanted.keys().map(|whose| {
            let fails = failed && !left.iter().any(|name| tenant(name) == *whose);
            let rest = (took * 3).clamp(SHORTEST_REST, LONGEST_REST);
            (whose.clone(), self.now + if fails { FOLLOW_UP } else { rest })
        });
        self.rested_at.extend(rested_at);
        let failures = if failed {
            self.stale.extend(claim.wanted.keys().cloned());
            failing(FailureKind::CacheUnavailable, &[])
        } else {
            OK
        };
        let left: Vec<&str> = left.iter().map(String::as_str).collect();
        self.changes.handed_over(unverified(&left), Some(&mut claim), self.now);
        self.changes.ended(claim, &failures, took, self.now);
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
            rested_at: HashMap::new(),
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
