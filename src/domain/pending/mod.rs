//! The pending set of a job: the tenants to warm again, because their data changed or because they are
//! unverified, and from which moment on. It decides, and does no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::domain::fence::PROVISIONAL_TTL;
use crate::domain::job::Scope;
use crate::domain::report::{Failed, FailedTenant, FailureKind, MAX_FAILED, Unverified};
use crate::domain::run::{Outcome, RunRecord};
use crate::domain::slots::Extent;
use crate::domain::tenant::TenantId;

/// After a tenant was warmed, its next changes wait this many times as long as the warming took. However
/// often its data changes, it is then warmed for at most a quarter of the time.
const REST_PER_WORK: u32 = 3;
/// The shortest such rest. It bounds what the duration of a warming does not show: a transaction, log lines,
/// moved fences. One tenant is warmed at most fifty times a second.
pub(crate) const SHORTEST_REST: Duration = Duration::from_millis(20);
/// The longest such rest, which bounds the age of an old value. Only a tenant that takes longer than ten
/// seconds is warmed for more than a quarter of the time.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How long after its batch an unverified tenant is tried again; the wait doubles with each try.
pub(crate) const FOLLOW_UP: Duration = Duration::from_secs(1);
/// The longest wait for a follow-up. It is shorter than [`PROVISIONAL_TTL`] and leaves time for the run
/// itself, so that a tenant whose data never stops changing still stays cached.
const LONGEST_FOLLOW_UP: Duration = Duration::from_secs(5);
const _: () = assert!(LONGEST_FOLLOW_UP.as_secs() < PROVISIONAL_TTL.as_secs());

/// The longest wait after a failure: each failure is a line in the log and a record in the history.
const LONGEST_AFTER_FAILURE: Duration = Duration::from_secs(30);
/// The longest wait while the cache refuses all writes. preheat cannot make room in a full cache or a primary
/// of a replica, so waiting for somebody else's work is all that is left. The first, short waits cover a
/// failover, which takes seconds.
const LONGEST_WITHOUT_WRITES: Duration = Duration::from_mins(5);
/// After this many failures that waiting does not help, the tenant waits for its next change or for the
/// schedule.
const MAX_FAILURES: u32 = 5;

/// With more pending tenants than this, none is remembered by itself: the job runs for all tenants instead.
pub(crate) const MAX_PENDING: usize = MAX_FAILED;
/// The shortest time between the starts of two runs for all tenants, whatever asks for them.
pub(crate) const EVERYTHING_COOLDOWN: Duration = Duration::from_secs(5);

/// The owner of keys: a tenant, or `None` for a global job.
pub(crate) type Owner = Option<TenantId>;

/// The pending set of one job.
#[derive(Debug)]
pub(crate) struct PendingSet {
    most: usize,
    wanted: HashMap<Owner, Wanted>,
    /// The owners with changed data, by the moment when they are due.
    changed_due: BTreeSet<(Duration, Owner)>,
    /// The unverified owners, by the moment when they are due.
    unverified_due: BTreeSet<(Duration, Owner)>,
    /// The owners whose next run has to wait for their last one. It is bounded: it has only the owners of runs
    /// that are under way or that ended within the longest rest, at most [`MAX_PENDING`] for each run.
    rests: HashMap<Owner, Rest>,
    everything: Option<Everything>,
    everything_rests_until: Duration,
}

/// The reason for a run beside the regular ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Cause {
    /// Data changed.
    #[default]
    Change,
    /// Tenants are unverified. Their values live only for [`PROVISIONAL_TTL`], so their follow-up neither
    /// waits for a run for changes nor is part of one, which may take long.
    Unverified,
}

/// An owner whose keys are to be warmed again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// From which moment on. All moments here are on the monotonic clock.
    due_at: Duration,
    /// When the feed reported the first change that is not in the cache yet; `None` without a change.
    heard_at: Option<Duration>,
    /// For an unverified owner: a run that begins before this moment does not complete it, since commands of
    /// the last run may still be on their way to the cache.
    repeat_at: Option<Duration>,
    /// How many runs in a row left it unverified.
    unverified: u32,
    /// How many runs in a row failed for it.
    failed: u32,
}

/// Why the next run for an owner has to wait.
#[derive(Clone, Copy, Debug)]
enum Rest {
    /// A run for it is under way; this many in a row failed before.
    UnderWay { failed: u32 },
    /// Its last run took time. An unverified owner does not wait for that: its values may expire before.
    Warmed { until: Duration },
    /// Its last run failed, and this many in a row. Further changes do not make the next try come sooner.
    Failed { until: Duration, failed: u32 },
}

/// When an owner is due whose run is under way: [`PendingSet::rest`] replaces it at the end of the run.
const UNTIL_ITS_RUN_ENDS: Duration = Duration::MAX;

/// The keys of all tenants are to be warmed again, or of all whose keys the cache may have lost.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Everything {
    /// Only tenants with keys there need it.
    extent: Extent,
    due_at: Duration,
    /// Any run that begins after this moment covers it.
    asked_at: Duration,
    failed: u32,
}

/// What a run took from the pending set; [`PendingSet::ended`] completes it or puts it back.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    cause: Cause,
    /// When the run began.
    began_at: Duration,
    /// Without the tenants that the run has handed over as unverified.
    wanted: BTreeMap<Owner, Wanted>,
    everything: Option<Everything>,
}

impl Wanted {
    fn cause(self) -> Cause {
        if self.unverified > 0 { Cause::Unverified } else { Cause::Change }
    }

    fn and(self, other: Self) -> Self {
        Self {
            due_at: self.due_at.min(other.due_at),
            heard_at: match (self.heard_at, other.heard_at) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            },
            repeat_at: self.repeat_at.max(other.repeat_at),
            unverified: self.unverified.max(other.unverified),
            failed: self.failed.max(other.failed),
        }
    }
}

impl Rest {
    /// The rest after a warming that took this long and ended now.
    fn after(took: Duration, now: Duration) -> Self {
        let rest = took.saturating_mul(REST_PER_WORK).clamp(SHORTEST_REST, LONGEST_REST);
        Self::Warmed { until: now + rest }
    }

    /// From when on the owner may be warmed again for that cause.
    fn until(self, cause: Cause) -> Duration {
        match (self, cause) {
            (Self::UnderWay { .. }, Cause::Change) => UNTIL_ITS_RUN_ENDS,
            (Self::Warmed { until }, Cause::Change) | (Self::Failed { until, .. }, _) => until,
            (Self::UnderWay { .. } | Self::Warmed { .. }, Cause::Unverified) => Duration::ZERO,
        }
    }

    /// How many runs in a row failed.
    fn failed(self) -> u32 {
        match self {
            Self::UnderWay { failed } | Self::Failed { failed, .. } => failed,
            Self::Warmed { .. } => 0,
        }
    }

    fn is_over(self, now: Duration) -> bool {
        self.until(Cause::Change) <= now
    }
}

impl Everything {
    fn and(self, other: Self) -> Self {
        Self {
            extent: self.extent.and(other.extent),
            due_at: self.due_at.min(other.due_at),
            asked_at: self.asked_at.max(other.asked_at),
            failed: self.failed.max(other.failed),
        }
    }
}

impl Claim {
    /// The tenants that the run covers, as its specification has them.
    pub(crate) fn tenants(&self, scope: Scope) -> Option<Vec<TenantId>> {
        match scope {
            Scope::Tenants => Some(self.wanted.keys().filter_map(Option::clone).collect()),
            Scope::Global => None,
        }
    }

    /// The reason for the run.
    pub(crate) fn cause(&self) -> Cause {
        self.cause
    }

    /// The moment after which a run for all tenants must begin, or have begun.
    pub(crate) fn asked_at(&self) -> Option<Duration> {
        self.everything.as_ref().map(|everything| everything.asked_at)
    }

    /// Only tenants with keys there need the run for all tenants.
    pub(crate) fn extent(&self) -> Extent {
        self.everything.as_ref().map_or(Extent::All, |everything| everything.extent.clone())
    }

    /// Has the same run complete another claim as well.
    pub(crate) fn join(&mut self, other: Self) {
        for (whose, wanted) in other.wanted {
            let known = self.wanted.get(&whose).copied();
            self.wanted.insert(whose, known.map_or(wanted, |known| known.and(wanted)));
        }
        self.everything = match (self.everything.take(), other.everything) {
            (Some(one), Some(other)) => Some(one.and(other)),
            (one, other) => one.or(other),
        };
    }
}

impl Default for PendingSet {
    fn default() -> Self {
        Self::with_room_for(MAX_PENDING)
    }
}

impl PendingSet {
    fn with_room_for(most: usize) -> Self {
        Self {
            most,
            wanted: HashMap::new(),
            changed_due: BTreeSet::new(),
            unverified_due: BTreeSet::new(),
            rests: HashMap::new(),
            everything: None,
            everything_rests_until: Duration::ZERO,
        }
    }

    /// Adds an owner whose data changed; the feed reported that at `heard_at`.
    pub(crate) fn changed(&mut self, whose: Owner, heard_at: Duration, now: Duration) {
        let failed = self.rests.get(&whose).map_or(0, |rest| rest.failed());
        let heard_at = Some(heard_at);
        self.want(whose, Wanted { due_at: now, heard_at, failed, ..Wanted::default() });
    }

    /// Records that all data may have changed; any run that began after `asked_at` reads the changes.
    pub(crate) fn everything_changed(&mut self, asked_at: Duration, now: Duration) {
        self.want_everything(Everything { extent: Extent::All, due_at: now, asked_at, failed: 0 });
    }

    /// Records that the cache has lost something.
    pub(crate) fn cache_lost(&mut self, lost: Extent, now: Duration) {
        self.want_everything(Everything { extent: lost, due_at: now, asked_at: now, failed: 0 });
    }

    /// Adds the tenants that a run of the job left unverified. The run may still go on, but does not come to
    /// them again. `claim` is what the run took from this set, if known.
    pub(crate) fn handed_over(
        &mut self,
        unverified: Unverified,
        mut claim: Option<&mut Claim>,
        now: Duration,
    ) {
        let Unverified { tenants, global } = unverified;
        for whose in tenants.into_iter().map(Some).chain(global.then_some(None)) {
            let mut wanted = Wanted::default();
            if let Some(claim) = claim.as_deref_mut()
                && let Some(taken) = claim.wanted.remove(&whose)
            {
                // A change makes its follow-up come sooner, but not without a rest either.
                self.rest(&whose, Rest::after(now.saturating_sub(claim.began_at), now));
                wanted = taken;
            }
            self.unverified(whose, wanted, now);
        }
    }

    /// Settles the claim of a run that has ended; answers how long each of its changes waited for the cache.
    ///
    /// Each warmed owner rests in proportion to `slowest_batch`, the time that the run's slowest batch took,
    /// from the end of the run. In a batch of several owners nobody knows which one made it slow; and a small
    /// owner does not rest longer because the run had many batches.
    pub(crate) fn ended(
        &mut self,
        claim: Claim,
        failures: &Failures<'_>,
        slowest_batch: Duration,
        now: Duration,
    ) -> Vec<Duration> {
        let mut lags = Vec::new();
        for (whose, wanted) in claim.wanted {
            if let Some(longest) = failures.of_one(whose.as_ref()) {
                self.failed(whose, wanted, longest, now);
            } else {
                self.rest(&whose, Rest::after(slowest_batch, now));
                lags.extend(wanted.heard_at.map(|heard_at| now.saturating_sub(heard_at)));
            }
        }
        if let Some(everything) = claim.everything {
            self.everything_ended(everything, failures, now);
        }
        lags
    }

    fn unverified(&mut self, whose: Owner, wanted: Wanted, now: Duration) {
        let due_at = now + doubled(FOLLOW_UP, wanted.unverified, LONGEST_FOLLOW_UP);
        let unverified = wanted.unverified + 1;
        let repeat_at = Some(due_at);
        self.want(whose, Wanted { due_at, repeat_at, unverified, failed: 0, ..wanted });
    }

    fn failed(&mut self, whose: Owner, wanted: Wanted, wait: Wait, now: Duration) {
        let until = now + wait.after(wanted.failed);
        let failed = wanted.failed + 1;
        self.rest(&whose, Rest::Failed { until, failed });
        if wait.goes_on_after(failed) {
            self.want(whose, Wanted { due_at: until, failed, ..wanted });
        }
    }

    /// Begins an owner's rest. A change that came while its run was under way waits for the end of the rest.
    fn rest(&mut self, whose: &Owner, rest: Rest) {
        self.rests.insert(whose.clone(), rest);
        let waits = self.wanted.get_mut(whose).filter(|one| one.due_at == UNTIL_ITS_RUN_ENDS);
        if let Some(one) = waits {
            let cause = one.cause();
            one.due_at = rest.until(cause);
            let due_at = one.due_at;
            self.due(cause).remove(&(UNTIL_ITS_RUN_ENDS, whose.clone()));
            self.due(cause).insert((due_at, whose.clone()));
        }
    }

    fn everything_ended(&mut self, everything: Everything, failures: &Failures<'_>, now: Duration) {
        match &failures.who {
            Who::Tenants(tenants) => {
                for (tenant, kind) in tenants {
                    let whose = Some(TenantId::new(tenant));
                    self.failed(whose, Wanted::default(), Wait::of(*kind), now);
                }
            }
            Who::Anybody if failures.wait.goes_on_after(everything.failed + 1) => {
                let due_at = now + failures.wait.after(everything.failed);
                let failed = everything.failed + 1;
                self.want_everything(Everything { due_at, asked_at: now, failed, ..everything });
            }
            Who::Anybody | Who::Nobody => {}
        }
    }

    /// How many owners wait.
    pub(crate) fn len(&self) -> u64 {
        self.wanted.len() as u64
    }

    /// When an owner is due, or all owners are; `None` if neither waits.
    pub(crate) fn due_at(&self, whose: &Owner) -> Option<Duration> {
        let one = self.wanted.get(whose).map(|wanted| wanted.due_at);
        let one = one.filter(|due_at| *due_at != UNTIL_ITS_RUN_ENDS);
        let all = self.everything.as_ref().map(|everything| everything.due_at);
        one.into_iter().chain(all).min()
    }

    /// When the feed reported the oldest change that waits.
    pub(crate) fn oldest_change(&self) -> Option<Duration> {
        self.wanted.values().filter_map(|wanted| wanted.heard_at).min()
    }

    /// The earliest moment when an owner is due for that cause, as far as that is known: an owner whose run is
    /// under way is due some time after it.
    pub(crate) fn next_due_at(&self, cause: Cause) -> Option<Duration> {
        let due = match cause {
            Cause::Change => &self.changed_due,
            Cause::Unverified => &self.unverified_due,
        };
        due.first().map(|(due_at, _)| *due_at).filter(|due_at| *due_at < UNTIL_ITS_RUN_ENDS)
    }

    fn due(&mut self, cause: Cause) -> &mut BTreeSet<(Duration, Owner)> {
        match cause {
            Cause::Change => &mut self.changed_due,
            Cause::Unverified => &mut self.unverified_due,
        }
    }

    /// The moment when a run for all tenants is due.
    pub(crate) fn everything_due_at(&self) -> Option<Duration> {
        self.everything.as_ref().map(|everything| everything.due_at)
    }

    /// Takes all owners that are due for that cause, for a run that begins now; `None` if there are none.
    pub(crate) fn take_due(&mut self, cause: Cause, now: Duration) -> Option<Claim> {
        self.next_due_at(cause).filter(|due_at| *due_at <= now)?;
        self.rests.retain(|_, rest| !rest.is_over(now));
        let mut wanted = BTreeMap::new();
        while let Some((due_at, whose)) = self.due(cause).pop_first() {
            if due_at > now {
                self.due(cause).insert((due_at, whose));
                break;
            }
            let Some(one) = self.wanted.remove(&whose) else { continue };
            self.rests.insert(whose.clone(), Rest::UnderWay { failed: one.failed });
            if let Some(due_at) = one.repeat_at.filter(|at| *at > now) {
                self.want(whose.clone(), Wanted { due_at, heard_at: None, ..one });
            }
            wanted.insert(whose, one);
        }
        Some(Claim { cause, began_at: now, wanted, everything: None })
    }

    /// Takes the claim for all tenants, for a run that begins now or is queued.
    pub(crate) fn take_everything(&mut self, now: Duration) -> Claim {
        self.everything_rests_until = now + EVERYTHING_COOLDOWN;
        Claim { everything: self.everything.take(), ..Claim::default() }
    }

    /// Forgets the changes of owners for which `is_kept` is false. Unverified owners stay: the worker that left them
    /// unverified warms them again, since its own values may have been the last to be written.
    pub(crate) fn keep_changes(&mut self, is_kept: impl Fn(&Owner) -> bool) {
        let changed_due = &mut self.changed_due;
        self.wanted.retain(|whose, one| {
            let is_kept = one.cause() == Cause::Unverified || is_kept(whose);
            if !is_kept {
                changed_due.remove(&(one.due_at, whose.clone()));
            }
            is_kept
        });
    }

    /// Forgets that all data may have changed.
    pub(crate) fn forget_everything(&mut self) {
        self.everything = None;
    }

    /// Counts the waiting changes as heard now, so that the time for which their job was paused is no lag.
    pub(crate) fn resumed(&mut self, now: Duration) {
        for wanted in self.wanted.values_mut() {
            wanted.heard_at = wanted.heard_at.map(|_before| now);
        }
    }

    /// Empties the set.
    pub(crate) fn clear(&mut self) {
        *self = Self::with_room_for(self.most);
    }

    fn want(&mut self, whose: Owner, mut wanted: Wanted) {
        let rest = self.rests.get(&whose).copied();
        let until = |cause| rest.map_or(Duration::ZERO, |rest| rest.until(cause));
        let all_due_at = wanted.due_at.max(until(Cause::Unverified));
        wanted.due_at = wanted.due_at.max(until(wanted.cause()));
        let known = self.wanted.get(&whose).copied();
        if known.is_none() && self.wanted.len() >= self.most {
            // Every waiting owner is covered by the run for all tenants, which waits for the end of no run.
            let repeat_at = self.wanted.values().chain([&wanted]).filter_map(|one| one.repeat_at);
            let due_at = repeat_at.max().map_or(all_due_at, |at| at.max(all_due_at));
            self.wanted.clear();
            self.changed_due.clear();
            self.unverified_due.clear();
            self.want_everything(Everything {
                extent: Extent::All,
                due_at,
                asked_at: due_at,
                failed: 0,
            });
            return;
        }
        let all = known.map_or(wanted, |known| known.and(wanted));
        if let Some(known) = known {
            self.due(known.cause()).remove(&(known.due_at, whose.clone()));
        }
        self.due(all.cause()).insert((all.due_at, whose.clone()));
        self.wanted.insert(whose, all);
    }

    fn want_everything(&mut self, more: Everything) {
        let due_at = more.due_at.max(self.everything_rests_until);
        let more = Everything { due_at, ..more };
        self.everything = Some(match self.everything.take() {
            Some(known) => known.and(more),
            None => more,
        });
    }
}

/// A wait that doubles each time, up to the longest.
fn doubled(first: Duration, times: u32, longest: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(longest)
}

/// The owners for which a run failed.
pub(crate) struct Failures<'a> {
    who: Who<'a>,
    /// The longest of its failures' waits.
    wait: Wait,
}

/// Whether waiting helps against a failure, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    /// Waiting does not help: it is tried [`MAX_FAILURES`] times in all.
    InVain,
    /// A server cannot be reached.
    ForServer,
    /// The cache refuses all writes.
    ForWrites,
}

impl Wait {
    /// How long to wait after a failure that comes after this many failures in a row.
    fn after(self, failures: u32) -> Duration {
        let longest = match self {
            Self::InVain | Self::ForServer => LONGEST_AFTER_FAILURE,
            Self::ForWrites => LONGEST_WITHOUT_WRITES,
        };
        doubled(FOLLOW_UP, failures, longest)
    }

    /// Whether there is another try after this many failures in a row.
    fn goes_on_after(self, failures: u32) -> bool {
        self != Self::InVain || failures < MAX_FAILURES
    }
}

enum Who<'a> {
    Nobody,
    /// These tenants, each with its first failure.
    Tenants(HashMap<&'a str, FailureKind>),
    Anybody,
}

impl<'a> Failures<'a> {
    /// The failures of a run and of its tenants.
    pub(crate) fn of(record: &RunRecord, failed: &'a Failed) -> Self {
        let waits = record.report.failures.iter().map(|failure| Wait::of(failure.kind));
        let wait = waits.max().unwrap_or(Wait::InVain);
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
        Self { who, wait }
    }

    /// Whether the run failed for this owner; if so, which wait helps.
    fn of_one(&self, whose: Option<&TenantId>) -> Option<Wait> {
        match (&self.who, whose) {
            (Who::Nobody, _) => None,
            (Who::Tenants(tenants), Some(tenant)) => {
                tenants.get(tenant.as_str()).map(|kind| Wait::of(*kind))
            }
            (Who::Tenants(_), None) | (Who::Anybody, _) => Some(self.wait),
        }
    }
}

impl Wait {
    fn of(kind: FailureKind) -> Self {
        match kind {
            // The tenant list could not be read.
            FailureKind::Tenants
            | FailureKind::TenantsShrank
            | FailureKind::DatabaseUnavailable
            | FailureKind::Locked
            | FailureKind::CacheUnavailable
            | FailureKind::CacheRestarted => Self::ForServer,
            FailureKind::CacheFull | FailureKind::CacheReadOnly | FailureKind::CacheMoved => {
                Self::ForWrites
            }
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
            | FailureKind::Internal => Self::InVain,
        }
    }
}

#[cfg(test)]
mod tests;
