//! What is to be warmed again of one job, because data changed or because it could not be proven:
//! whose keys, and from when on. It decides and does nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::run::{Failed, Unsettled};
use crate::domain::fence::PROVISIONAL_TTL;
use crate::domain::job::Scope;
use crate::domain::report::{FailedTenant, FailureKind};
use crate::domain::run::{Outcome, RunRecord};
use crate::domain::tenant::TenantId;

/// The next run for somebody begins so long after the last one at the earliest, however many changes
/// come: four reads a second of one tenant are what it may cost the database.
pub(super) const COOLDOWN: Duration = Duration::from_millis(250);

/// How long after a run whoever it left unsettled is tried again; the wait doubles each time.
pub(super) const FOLLOW_UP: Duration = Duration::from_secs(1);
/// No wait of an unsettled one is longer. It is shorter than [`PROVISIONAL_TTL`] with time for the run
/// itself, so that a tenant that never stops writing stays cached all the same.
const LONGEST_FOLLOW_UP: Duration = Duration::from_secs(5);
const _: () = assert!(LONGEST_FOLLOW_UP.as_secs() < PROVISIONAL_TTL.as_secs());

/// No wait after a failure is longer: each failure is a line of the log and of the history.
const LONGEST_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// After so many failures that do not pass by waiting, the next change or the schedule is waited
/// for.
const MAX_FAILURES: u32 = 5;

/// Whoever waits beyond this is not remembered one by one: the job runs for everybody instead.
pub(super) const MAX_PENDING: usize = 10_000;
/// The next run for everybody begins so long after the last one began at the earliest: whatever asks
/// for more of them asks for too much.
pub(super) const EVERYTHING_COOLDOWN: Duration = Duration::from_secs(5);

/// Whose keys: a tenant's, or those of the fleet of a job without tenants.
pub(super) type Whose = Option<TenantId>;

/// What is to be warmed again of one job.
#[derive(Debug)]
pub(super) struct Changes {
    most: usize,
    wanted: HashMap<Whose, Wanted>,
    /// The same by the moment they are due.
    due: BTreeSet<(Duration, Whose)>,
    /// Who may not be warmed again yet: whose last run began, or failed, just now. It has those of
    /// the runs that began within the longest rest, each of at most [`MAX_PENDING`].
    rests: HashMap<Whose, Rest>,
    everything: Option<Everything>,
    everything_rests_until: Duration,
}

/// Somebody's keys are to be warmed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// From this moment on, as all here on the monotonic clock.
    due_at: Duration,
    /// When the first change was heard of that is not in the cache yet, if it was a change.
    heard_at: Option<Duration>,
    /// It is unsettled: a run that begins before this moment does not settle it, as what the last
    /// run sent may still be on its way to the cache.
    repeat_at: Option<Duration>,
    /// Runs in a row that left it unsettled.
    unsettled: u32,
    /// Runs in a row in which it failed.
    failed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Duration,
    failed: u32,
}

/// Everybody's keys are to be warmed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Everything {
    due_at: Duration,
    /// A run that begins later will do.
    asked_at: Duration,
    failed: u32,
}

/// What a run was begun for; [`Changes::ended`] takes it back.
#[derive(Debug, Default)]
pub(super) struct Claim {
    wanted: Vec<(Whose, Wanted)>,
    everything: Option<Everything>,
}

impl Wanted {
    fn and(self, other: Self) -> Self {
        Self {
            due_at: self.due_at.min(other.due_at),
            heard_at: match (self.heard_at, other.heard_at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
            repeat_at: self.repeat_at.max(other.repeat_at),
            unsettled: self.unsettled.max(other.unsettled),
            failed: self.failed.max(other.failed),
        }
    }
}

impl Everything {
    fn and(self, other: Self) -> Self {
        Self {
            due_at: self.due_at.min(other.due_at),
            asked_at: self.asked_at.max(other.asked_at),
            failed: self.failed.max(other.failed),
        }
    }
}

impl Claim {
    /// The tenants that the run is for, as an order has them.
    pub(super) fn tenants(&self, scope: Scope) -> Option<Vec<TenantId>> {
        match scope {
            Scope::Tenants => {
                Some(self.wanted.iter().filter_map(|(whose, _)| whose.clone()).collect())
            }
            Scope::Fleet => None,
        }
    }

    /// The moment after which a run for everybody has to begin, or have begun.
    pub(super) fn asked_at(&self) -> Option<Duration> {
        self.everything.map(|everything| everything.asked_at)
    }

    /// The same run is for this as well.
    pub(super) fn join(&mut self, other: Self) {
        self.wanted.extend(other.wanted);
        self.everything = match (self.everything, other.everything) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        };
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::with_room_for(MAX_PENDING)
    }
}

impl Changes {
    fn with_room_for(most: usize) -> Self {
        Self {
            most,
            wanted: HashMap::new(),
            due: BTreeSet::new(),
            rests: HashMap::new(),
            everything: None,
            everything_rests_until: Duration::ZERO,
        }
    }

    /// Somebody's data changed; that was heard of at `heard_at`.
    pub(super) fn changed(&mut self, whose: Whose, heard_at: Duration, now: Duration) {
        let failed = self.rests.get(&whose).map_or(0, |rest| rest.failed);
        let heard_at = Some(heard_at);
        self.want(whose, Wanted { due_at: now, heard_at, failed, ..Wanted::default() });
    }

    /// Anybody's data may have changed; a run that began after `asked_at` has it.
    pub(super) fn everything_changed(&mut self, asked_at: Duration, now: Duration) {
        self.want_everything(Everything { due_at: now, asked_at, failed: 0 });
    }

    /// A run of the job has ended, which was begun for `claim` and perhaps for others too; answers
    /// how long the changes that it settled took.
    pub(super) fn ended(
        &mut self,
        claim: Claim,
        failures: &Failures<'_>,
        unsettled: &Unsettled,
        now: Duration,
    ) -> Vec<Duration> {
        let mut lags = Vec::new();
        let mut told: HashSet<Whose> = unsettled.tenants.iter().cloned().map(Some).collect();
        told.extend(unsettled.fleet.then_some(None));
        for (whose, wanted) in claim.wanted {
            if told.remove(&whose) {
                self.unsettled(whose, wanted, now);
            } else if let Some(may_pass) = failures.of_one(whose.as_ref()) {
                self.failed(whose, wanted, may_pass, now);
            } else {
                if let Some(rest) = self.rests.get_mut(&whose) {
                    rest.failed = 0;
                }
                lags.extend(wanted.heard_at.map(|heard_at| now.saturating_sub(heard_at)));
            }
        }
        for whose in told {
            self.unsettled(whose, Wanted::default(), now);
        }
        if let Some(everything) = claim.everything {
            self.everything_ended(everything, failures, now);
        }
        lags
    }

    fn unsettled(&mut self, whose: Whose, wanted: Wanted, now: Duration) {
        let due_at = now + doubled(FOLLOW_UP, wanted.unsettled, LONGEST_FOLLOW_UP);
        let unsettled = wanted.unsettled + 1;
        let repeat_at = Some(due_at);
        self.want(whose, Wanted { due_at, repeat_at, unsettled, failed: 0, ..wanted });
    }

    fn failed(&mut self, whose: Whose, wanted: Wanted, may_pass: bool, now: Duration) {
        let until = now + doubled(FOLLOW_UP, wanted.failed, LONGEST_AFTER_FAILURE);
        let failed = wanted.failed + 1;
        // Changes go on to be heard of; what fails again is not tried again sooner for that.
        self.rests.insert(whose.clone(), Rest { until, failed });
        if may_pass || failed < MAX_FAILURES {
            self.want(whose, Wanted { due_at: until, failed, ..wanted });
        }
    }

    fn everything_ended(&mut self, everything: Everything, failures: &Failures<'_>, now: Duration) {
        match &failures.who {
            Who::Tenants(tenants) => {
                for (tenant, kind) in tenants {
                    let whose = Some(TenantId::new(tenant));
                    self.failed(whose, Wanted::default(), passes(*kind), now);
                }
            }
            Who::Anybody if failures.may_pass || everything.failed + 1 < MAX_FAILURES => {
                let wait = doubled(FOLLOW_UP, everything.failed, LONGEST_AFTER_FAILURE);
                let failed = everything.failed + 1;
                self.want_everything(Everything { due_at: now + wait, asked_at: now, failed });
            }
            Who::Anybody | Who::Nobody => {}
        }
    }

    /// The moment from which on somebody is due, if anybody is at all.
    pub(super) fn next_due_at(&self) -> Option<Duration> {
        self.due.first().map(|(due_at, _)| *due_at)
    }

    /// The moment from which on everybody is due.
    pub(super) fn everything_due_at(&self) -> Option<Duration> {
        self.everything.map(|everything| everything.due_at)
    }

    /// Takes whoever is due, for a run that begins now; nothing where nobody is.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<Claim> {
        self.next_due_at().filter(|due_at| *due_at <= now)?;
        self.rests.retain(|_, rest| rest.until > now);
        let mut wanted = Vec::new();
        while let Some((due_at, whose)) = self.due.pop_first() {
            if due_at > now {
                self.due.insert((due_at, whose));
                break;
            }
            let Some(one) = self.wanted.remove(&whose) else { continue };
            self.rests.insert(whose.clone(), Rest { until: now + COOLDOWN, failed: one.failed });
            if let Some(due_at) = one.repeat_at.filter(|at| *at > now) {
                self.want(whose.clone(), Wanted { due_at, heard_at: None, ..one });
            }
            wanted.push((whose, one));
        }
        Some(Claim { wanted, everything: None })
    }

    /// Takes everything, for a run that begins now or waits.
    pub(super) fn take_everything(&mut self, now: Duration) -> Claim {
        self.everything_rests_until = now + EVERYTHING_COOLDOWN;
        Claim { wanted: Vec::new(), everything: self.everything.take() }
    }

    /// Forgets it all.
    pub(super) fn clear(&mut self) {
        *self = Self::with_room_for(self.most);
    }

    fn want(&mut self, whose: Whose, mut wanted: Wanted) {
        if let Some(rest) = self.rests.get(&whose) {
            wanted.due_at = wanted.due_at.max(rest.until);
        }
        let known = self.wanted.get(&whose).copied();
        if known.is_none() && self.wanted.len() >= self.most {
            // Whoever waits is part of everybody.
            let repeat_at = self.wanted.values().chain([&wanted]).filter_map(|one| one.repeat_at);
            let due_at = repeat_at.max().map_or(wanted.due_at, |at| at.max(wanted.due_at));
            self.wanted.clear();
            self.due.clear();
            self.want_everything(Everything { due_at, asked_at: due_at, failed: 0 });
            return;
        }
        let all = known.map_or(wanted, |known| known.and(wanted));
        if let Some(known) = known {
            self.due.remove(&(known.due_at, whose.clone()));
        }
        self.due.insert((all.due_at, whose.clone()));
        self.wanted.insert(whose, all);
    }

    fn want_everything(&mut self, more: Everything) {
        let due_at = more.due_at.max(self.everything_rests_until);
        let more = Everything { due_at, ..more };
        self.everything = Some(self.everything.map_or(more, |known| known.and(more)));
    }
}

/// A wait that doubles each time, up to the longest.
fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// For whom a run failed.
pub(super) struct Failures<'a> {
    who: Who<'a>,
    /// Some of it may pass by waiting: a server was away.
    may_pass: bool,
}

enum Who<'a> {
    Nobody,
    /// These, each with what failed first.
    Tenants(HashMap<&'a str, FailureKind>),
    Anybody,
}

impl<'a> Failures<'a> {
    /// Those of a run and of its tenants that failed.
    pub(super) fn of(record: &RunRecord, failed: &'a Failed) -> Self {
        let may_pass = record.report.failures.iter().any(|failure| passes(failure.kind));
        let of_one = |one: &'a FailedTenant| (one.tenant.as_str(), one.kind);
        let who = match record.outcome {
            Outcome::Ok => Who::Nobody,
            Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled
                if failed.is_complete && !failed.tenants.is_empty() =>
            {
                Who::Tenants(failed.tenants.iter().map(of_one).collect())
            }
            Outcome::Partial | Outcome::Failed | Outcome::Timeout | Outcome::Cancelled => {
                Who::Anybody
            }
        };
        Self { who, may_pass }
    }

    /// Whether it failed for somebody; then, whether that may pass by waiting.
    fn of_one(&self, whose: Option<&TenantId>) -> Option<bool> {
        match (&self.who, whose) {
            (Who::Nobody, _) => None,
            (Who::Tenants(tenants), Some(tenant)) => {
                tenants.get(tenant.as_str()).map(|kind| passes(*kind))
            }
            (Who::Tenants(_), None) | (Who::Anybody, _) => Some(self.may_pass),
        }
    }
}

/// Whether waiting helps against a failure.
fn passes(kind: FailureKind) -> bool {
    match kind {
        // The tenant list could not be read.
        FailureKind::Tenants
        | FailureKind::TenantsShrank
        | FailureKind::DatabaseUnavailable
        | FailureKind::Locked
        | FailureKind::CacheUnavailable
        | FailureKind::CacheFull
        | FailureKind::CacheReadOnly
        | FailureKind::CacheMoved
        | FailureKind::CacheRestarted => true,
        FailureKind::Query
        | FailureKind::StatementTimeout
        | FailureKind::ForeignRow
        | FailureKind::Encoding
        | FailureKind::TooManyRows
        | FailureKind::TimeZone
        | FailureKind::ValueTooLarge
        | FailureKind::KeyConflict
        | FailureKind::AmbiguousKey
        | FailureKind::SeveralRows
        | FailureKind::CacheWrongType
        | FailureKind::CachePermission
        | FailureKind::CacheRefused
        | FailureKind::Deadline
        | FailureKind::Cancelled
        | FailureKind::Rewarm
        | FailureKind::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ZERO: Duration = Duration::ZERO;
    const SECOND: Duration = Duration::from_secs(1);
    const OK: Failures<'static> = Failures { who: Who::Nobody, may_pass: false };

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn tenant(name: &str) -> Whose {
        TenantId::new(name).into()
    }

    fn unsettled(names: &[&str]) -> Unsettled {
        Unsettled { tenants: names.iter().map(TenantId::new).collect(), fleet: false }
    }

    fn names(claim: Option<&Claim>) -> Vec<String> {
        let tenants = claim.and_then(|claim| claim.tenants(Scope::Tenants)).unwrap_or_default();
        tenants.iter().map(ToString::to_string).collect()
    }

    /// A run that failed in that way: for these tenants, or nobody knows for whom.
    fn failing<'a>(kind: FailureKind, tenants: &[&'a str]) -> Failures<'a> {
        let who = match tenants {
            [] => Who::Anybody,
            _ => Who::Tenants(tenants.iter().map(|tenant| (*tenant, kind)).collect()),
        };
        Failures { who, may_pass: passes(kind) }
    }

    /// A run that ends at `now`, with all well.
    fn settle(changes: &mut Changes, claim: Claim, now: Duration) -> Vec<Duration> {
        changes.ended(claim, &OK, &unsettled(&[]), now)
    }

    #[test]
    fn the_first_change_is_due_at_once_and_the_next_one_a_cooldown_after_the_run_began() {
        let mut changes = Changes::default();
        assert!(changes.take_due(SECOND).is_none());
        changes.changed(tenant("a"), ms(990), SECOND);
        let claim = changes.take_due(SECOND).unwrap();
        assert_eq!(names(Some(&claim)), ["a"]);
        changes.changed(tenant("a"), ms(1010), ms(1010));
        changes.changed(tenant("a"), ms(1020), ms(1020));
        changes.changed(tenant("b"), ms(1020), ms(1020));
        assert_eq!(settle(&mut changes, claim, ms(1030)), [ms(40)]);
        assert_eq!(names(changes.take_due(ms(1030)).as_ref()), ["b"]);
        assert_eq!(changes.next_due_at(), Some(SECOND + COOLDOWN));
        let claim = changes.take_due(SECOND + COOLDOWN).unwrap();
        assert_eq!(names(Some(&claim)), ["a"]);
        assert_eq!(settle(&mut changes, claim, ms(1300)), [ms(290)], "since the first of the two");
        assert_eq!(changes.next_due_at(), None);
    }

    #[test]
    fn whoever_never_settles_is_tried_again_at_longer_and_longer_intervals() {
        let mut changes = Changes::default();
        changes.ended(Claim::default(), &OK, &unsettled(&["a"]), ZERO);
        let mut now = ZERO;
        let mut waits = Vec::new();
        for _ in 0..5 {
            let due_at = changes.next_due_at().unwrap();
            waits.push(due_at.saturating_sub(now).as_secs());
            now = due_at;
            let claim = changes.take_due(now).unwrap();
            assert!(changes.ended(claim, &OK, &unsettled(&["a"]), now).is_empty());
        }
        assert_eq!(waits, [1, 2, 4, 5, 5]);
    }

    #[test]
    fn a_change_hurries_a_run_but_does_not_settle_what_may_still_be_on_its_way() {
        let mut changes = Changes::default();
        changes.ended(Claim::default(), &OK, &unsettled(&["a"]), ZERO);
        changes.changed(tenant("a"), ms(100), ms(100));
        let claim = changes.take_due(ms(100)).unwrap();
        assert_eq!(settle(&mut changes, claim, ms(110)), [ms(10)]);
        assert_eq!(changes.next_due_at(), Some(SECOND));
        let claim = changes.take_due(SECOND).unwrap();
        assert!(settle(&mut changes, claim, SECOND).is_empty());
        assert_eq!(changes.next_due_at(), None);
    }

    #[test]
    fn a_server_that_is_away_loses_no_change_however_long() {
        let mut changes = Changes::default();
        changes.changed(tenant("a"), ZERO, ZERO);
        let mut now = ZERO;
        for _ in 0..20 {
            let claim = changes.take_due(now).unwrap();
            let failures = failing(FailureKind::DatabaseUnavailable, &[]);
            changes.ended(claim, &failures, &unsettled(&[]), now);
            let due_at = changes.next_due_at().unwrap();
            assert!(due_at <= now + LONGEST_AFTER_FAILURE);
            now = due_at;
        }
        let claim = changes.take_due(now).unwrap();
        assert_eq!(settle(&mut changes, claim, now), [now]);
    }

    #[test]
    fn what_fails_for_good_is_given_up_and_changes_do_not_hurry_it() {
        let mut changes = Changes::default();
        let failures = failing(FailureKind::ValueTooLarge, &["a"]);
        changes.changed(tenant("a"), ZERO, ZERO);
        changes.changed(tenant("b"), ZERO, ZERO);
        let mut now = ZERO;
        let mut runs = 0;
        while let Some(due_at) = changes.next_due_at() {
            now = due_at;
            let claim = changes.take_due(now).unwrap();
            let lags = changes.ended(claim, &failures, &unsettled(&[]), now);
            assert_eq!(lags.len(), usize::from(runs == 0), "`b` is settled with the first run");
            runs += 1;
            if changes.next_due_at().is_some() {
                changes.changed(tenant("a"), now, now);
            }
        }
        assert_eq!((runs, now), (MAX_FAILURES, SECOND * 15));
        changes.changed(tenant("a"), now, now);
        assert_eq!(changes.next_due_at(), Some(now + SECOND * 16));
    }

    #[test]
    fn several_that_fail_in_one_way_leave_the_others_of_their_run_settled() {
        let mut changes = Changes::default();
        for name in ["a", "b", "c", "d"] {
            changes.changed(tenant(name), ZERO, ZERO);
        }
        let claim = changes.take_due(ZERO).unwrap();
        let mut failures = failing(FailureKind::Query, &["a", "b"]);
        if let Who::Tenants(tenants) = &mut failures.who {
            tenants.insert("d", FailureKind::CacheUnavailable);
        }
        assert_eq!(changes.ended(claim, &failures, &unsettled(&[]), ZERO).len(), 1, "`c`");
        let mut now = ZERO;
        for _ in 1..MAX_FAILURES {
            now = changes.next_due_at().unwrap();
            let claim = changes.take_due(now).unwrap();
            assert_eq!(names(Some(&claim)).len(), 3);
            changes.ended(claim, &failures, &unsettled(&[]), now);
        }
        now += LONGEST_AFTER_FAILURE;
        let left = changes.take_due(now);
        assert_eq!(names(left.as_ref()), ["d"], "what may pass by waiting is not given up");
    }

    #[test]
    fn too_many_are_everybody() {
        let mut changes = Changes::with_room_for(2);
        for name in ["a", "b", "a"] {
            changes.changed(tenant(name), ZERO, ZERO);
        }
        assert_eq!(changes.everything_due_at(), None);
        changes.changed(tenant("c"), ZERO, ms(5));
        assert_eq!((changes.everything_due_at(), changes.next_due_at()), (Some(ms(5)), None));
        let claim = changes.take_everything(ms(5));
        assert_eq!(changes.everything_due_at(), None);
        changes.everything_changed(ms(6), ms(6));
        assert_eq!(changes.everything_due_at(), Some(ms(5) + EVERYTHING_COOLDOWN));
        assert!(settle(&mut changes, claim, ms(7)).is_empty());
    }

    #[test]
    fn a_run_for_everybody_that_failed_is_repeated_for_whom_it_failed() {
        let mut changes = Changes::default();
        changes.everything_changed(ZERO, ZERO);
        let claim = changes.take_everything(ZERO);
        let failures = failing(FailureKind::Encoding, &["a", "b"]);
        changes.ended(claim, &failures, &unsettled(&[]), SECOND);
        assert_eq!(changes.everything_due_at(), None);
        assert_eq!(names(changes.take_due(SECOND * 2).as_ref()), ["a", "b"]);

        let mut changes = Changes::default();
        changes.everything_changed(ZERO, ZERO);
        let claim = changes.take_everything(ZERO);
        let failures = failing(FailureKind::Tenants, &[]);
        changes.ended(claim, &failures, &unsettled(&[]), SECOND);
        assert_eq!(changes.everything_due_at(), Some(EVERYTHING_COOLDOWN));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Change(u8),
        Begin,
        /// The run under way ends: for some it is unsettled, and it may have failed.
        End(BTreeSet<u8>, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (0_u64..700).prop_map(Step::Wait),
            4 => (0_u8..7).prop_map(Step::Change),
            2 => Just(Step::Begin),
            2 => (prop::collection::btree_set(0_u8..7, 0..3), prop::bool::weighted(0.2))
                .prop_map(|(unsettled, failed)| Step::End(unsettled, failed)),
        ];
        prop::collection::vec(step, 1..80)
    }

    /// What must hold whatever comes: nobody is forgotten, nobody is warmed too often.
    struct Model {
        changes: Changes,
        now: Duration,
        running: Option<Claim>,
        began: HashMap<Whose, Duration>,
        /// Who has to be in a run that is still to begin.
        stale: HashSet<Whose>,
    }

    impl Model {
        fn take(&mut self, step: Step) {
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
            assert_eq!(changes.wanted.len(), changes.due.len());
            for whose in &self.stale {
                let known = changes.wanted.contains_key(whose) || changes.everything.is_some();
                assert!(known, "{whose:?} is forgotten");
            }
        }

        fn begin(&mut self) {
            if self.changes.everything_due_at().is_some_and(|due_at| due_at <= self.now) {
                self.stale.clear();
                let claim = self.changes.take_everything(self.now);
                settle(&mut self.changes, claim, self.now);
            }
            let Some(claim) = self.changes.take_due(self.now) else { return };
            for (whose, _) in &claim.wanted {
                self.stale.remove(whose);
                if let Some(began) = self.began.insert(whose.clone(), self.now) {
                    assert!(self.now >= began + COOLDOWN, "{whose:?} is warmed too often");
                }
            }
            self.running = Some(claim);
        }

        fn end(&mut self, some: &BTreeSet<u8>, failed: bool) {
            let Some(claim) = self.running.take() else { return };
            let left: Vec<String> = some.iter().map(ToString::to_string).collect();
            self.stale.extend(left.iter().map(|name| tenant(name)));
            let failures = if failed {
                self.stale.extend(claim.wanted.iter().map(|(whose, _)| whose.clone()));
                failing(FailureKind::CacheUnavailable, &[])
            } else {
                OK
            };
            let left: Vec<&str> = left.iter().map(String::as_str).collect();
            self.changes.ended(claim, &failures, &unsettled(&left), self.now);
        }
    }

    proptest! {
        #[test]
        fn nobody_is_forgotten_and_nobody_is_warmed_too_often(
            steps in steps(),
            room in prop_oneof![Just(3_usize), Just(100)],
        ) {
            let mut model = Model {
                changes: Changes::with_room_for(room),
                now: ZERO,
                running: None,
                began: HashMap::new(),
                stale: HashSet::new(),
            };
            for step in steps {
                model.take(step);
            }
            model.take(Step::End(BTreeSet::new(), false));
            for _ in 0..100 {
                let changes = &model.changes;
                let due = changes.next_due_at().into_iter().chain(changes.everything_due_at());
                let Some(due_at) = due.min() else { break };
                model.now = model.now.max(due_at);
                model.take(Step::Begin);
                model.take(Step::End(BTreeSet::new(), false));
            }
            prop_assert!(model.stale.is_empty(), "it comes to rest: {:?}", model.stale);
            prop_assert_eq!(model.changes.next_due_at(), None);
        }
    }
}
