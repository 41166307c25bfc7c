//! Which shares of the work this worker holds, and what it still does for shares that it gives back.
//!
//! A worker alone holds all of them for ever. In a fleet the shares come and go: the task that leases them takes them here,
//! gives them back and loses them. The runs keep to the shares that are held at the moment when a batch begins, and the scheduler starts for
//! the shares that were taken.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::job::Job;
use crate::domain::share::{SHARES, Share, Shares};
use crate::domain::tenant::Tenants;
use crate::engine::ports::Clock;

/// The shares that this worker holds.
#[derive(Debug)]
pub struct Ownership {
    /// Whether there is no fleet.
    is_alone: bool,
    /// Whether it never takes or loses a share.
    is_fixed: bool,
    /// The name of the fleet; empty if it has none.
    fleet: String,
    held: watch::Sender<Shares>,
    /// `None` if the shares are held for ever.
    lease: Option<Lease>,
    /// The shares that were taken since the scheduler asked last. It is changed under the lock of `held`.
    taken: Mutex<Shares>,
    /// Cancelled when the worker may hold no share any more, and replaced then.
    tenure: Mutex<CancellationToken>,
    in_flight: Arc<InFlight>,
}

/// Until when the shares are held, by the monotonic clock.
struct Lease {
    clock: Arc<dyn Clock>,
    /// In milliseconds.
    until: AtomicU64,
}

/// How many batches in flight have tenants of each share.
#[derive(Debug)]
struct InFlight {
    batches: [AtomicU32; SHARES as usize],
    ended: Notify,
}

/// A batch in flight; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Begun {
    /// The shares for which the batch goes on: those of its shares that the worker held when the batch was counted.
    pub(crate) held: Shares,
    in_flight: Arc<InFlight>,
}

/// What became of the shares since the scheduler asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShareNews {
    /// The shares that the worker holds now.
    pub(crate) held: Shares,
    /// Those of them that it took meanwhile. It may have held some of them before, and lost them for a moment.
    pub(crate) taken: Shares,
}

/// The ownership of a worker without a fleet, which holds all shares.
impl Default for Ownership {
    fn default() -> Self {
        Self { is_alone: true, ..Self::of(Shares::ALL) }
    }
}

impl Ownership {
    /// The ownership of a member of a fleet that begins with these shares.
    pub fn of(shares: Shares) -> Self {
        let batches = std::array::from_fn(|_| AtomicU32::new(0));
        Self {
            is_alone: false,
            is_fixed: false,
            fleet: String::new(),
            held: watch::Sender::new(shares),
            lease: None,
            taken: Mutex::default(),
            tenure: Mutex::default(),
            in_flight: Arc::new(InFlight { batches, ended: Notify::new() }),
        }
    }

    /// The ownership of a worker with a fixed part of the tenants.
    pub fn of_part(shares: Shares) -> Self {
        Self { is_fixed: true, ..Self::of(shares) }
    }

    /// The ownership of a worker that leases its shares, and holds none yet.
    pub fn leased(clock: Arc<dyn Clock>) -> Self {
        let lease = Lease { clock, until: AtomicU64::new(0) };
        Self { lease: Some(lease), ..Self::of(Shares::NONE) }
    }

    /// The same in the fleet of this name, which tells fleets apart that keep one history.
    #[must_use]
    pub fn in_fleet_of(self, fleet: &str) -> Self {
        Self { fleet: fleet.to_owned(), ..self }
    }

    /// The name of the fleet; empty if it has none.
    pub fn fleet_name(&self) -> &str {
        &self.fleet
    }

    /// The shares that the worker holds at this moment. A process that was suspended for longer than its lease holds none when it
    /// goes on, even before anybody has noticed.
    pub fn held(&self) -> Shares {
        if self.is_over() { Shares::NONE } else { self.noticed() }
    }

    /// Whether the lease is over. Until somebody notices, runs begin no batch and write nothing.
    pub(crate) fn is_over(&self) -> bool {
        self.lease.as_ref().is_some_and(Lease::is_over)
    }

    /// How much longer its shares are leased, unless it renews the lease; `None` if it leases none.
    pub fn lease_left(&self) -> Option<Duration> {
        self.lease.as_ref().map(Lease::left).filter(|left| !left.is_zero())
    }

    /// The shares are leased until then, by the monotonic clock.
    pub fn lasts(&self, until: Duration) {
        if let Some(lease) = &self.lease {
            lease.until.store(milliseconds(until), Ordering::SeqCst);
        }
    }

    /// The shares that the worker holds as far as it has noticed: it drops no change and no run for a share before it has
    /// noticed that the share went, since it starts again only for shares that it takes.
    pub(crate) fn noticed(&self) -> Shares {
        *self.held.borrow()
    }

    /// The shares that the worker holds as far as it has noticed; `None` if there is no fleet.
    pub fn in_fleet(&self) -> Option<Shares> {
        (!self.is_alone).then(|| self.noticed())
    }

    /// The worker's fixed part of the tenants, if it has one.
    pub fn fixed(&self) -> Option<Shares> {
        self.is_fixed.then(|| self.noticed())
    }

    /// What a run of a job is bound to that begins now: the job's shares that the worker holds; `None` if there is no
    /// fleet.
    pub(crate) fn bound(&self, job: &Job) -> Option<Shares> {
        self.in_fleet().map(|held| held.of_job(job))
    }

    /// The tenants of a list whose shares the worker holds.
    pub(crate) fn own(&self, list: Arc<Tenants>) -> Arc<Tenants> {
        self.noticed().only(list)
    }

    /// The shares that the worker holds as far as it has noticed, with a notice after each change.
    pub fn subscribe(&self) -> watch::Receiver<Shares> {
        self.held.subscribe()
    }

    /// Cancelled when [`Self::lose_all`] is called the next time.
    pub fn tenure(&self) -> CancellationToken {
        self.token().clone()
    }

    /// Adds shares.
    pub fn take(&self, shares: Shares) {
        self.change(|held| {
            let mut taken = self.taken();
            *taken = *taken | (shares - held);
            held | shares
        });
    }

    /// Gives shares back: no batch begins for them any more. Those in flight go on (see [`Self::idle`]).
    pub fn give_back(&self, shares: Shares) {
        self.change(|held| held - shares);
    }

    /// Gives all shares back and stops all batches in flight.
    pub fn lose_all(&self) {
        let tenure = std::mem::take(&mut *self.token());
        self.change(|_held| Shares::NONE);
        tenure.cancel();
    }

    /// Ends when no batch in flight has a tenant of these shares.
    pub async fn idle(&self, shares: Shares) {
        loop {
            let mut ended = std::pin::pin!(self.in_flight.ended.notified());
            ended.as_mut().enable();
            if self.in_flight.of(shares) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// What became of the shares since this was asked last.
    pub(crate) fn news(&self) -> ShareNews {
        // While it is borrowed, nothing changes.
        let held = self.held.borrow();
        let taken = std::mem::take(&mut *self.taken());
        ShareNews { held: *held, taken: taken & *held }
    }

    /// A batch with tenants of these shares begins. It goes on without the shares that the worker does not hold, and does
    /// not count for them.
    pub(crate) fn begin(&self, shares: Shares) -> Begun {
        // The batch counts before it looks what is held: if a share is given back in between, `idle` waits for the batch.
        self.in_flight.each(shares, |batches| {
            batches.fetch_add(1, Ordering::SeqCst);
        });
        let held = self.noticed() & shares;
        self.in_flight.end(shares - held);
        Begun { held, in_flight: Arc::clone(&self.in_flight) }
    }

    fn change(&self, change: impl FnOnce(Shares) -> Shares) {
        self.held.send_if_modified(|held| {
            let before = std::mem::replace(held, change(*held));
            before != *held
        });
    }

    fn taken(&self) -> MutexGuard<'_, Shares> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token(&self) -> MutexGuard<'_, CancellationToken> {
        self.tenure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn left(&self) -> Duration {
        let now = milliseconds(self.clock.monotonic());
        Duration::from_millis(self.until.load(Ordering::SeqCst).saturating_sub(now))
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("until", &self.until).finish_non_exhaustive()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl InFlight {
    fn each(&self, shares: Shares, mut on: impl FnMut(&AtomicU32)) {
        let of_share = |share: Share| self.batches.get(usize::from(share.number()));
        shares.iter().filter_map(of_share).for_each(&mut on);
    }

    /// A batch with tenants of these shares ends.
    fn end(&self, shares: Shares) {
        if shares.is_empty() {
            return;
        }
        self.each(shares, |batches| {
            batches.fetch_sub(1, Ordering::SeqCst);
        });
        self.ended.notify_waiters();
    }

    fn of(&self, shares: Shares) -> u32 {
        let mut sum = 0;
        self.each(shares, |batches| sum += batches.load(Ordering::SeqCst));
        sum
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.in_flight.end(self.held);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn shares(bits: u64) -> Shares {
        Shares::from_bits(bits)
    }

    #[test]
    fn shares_come_and_go_and_only_changes_are_told() {
        let ownership = Ownership::of(Shares::NONE);
        let mut told = ownership.subscribe();
        ownership.take(shares(0b111));
        assert!(told.has_changed().unwrap());
        assert_eq!(*told.borrow_and_update(), shares(0b111));
        ownership.take(shares(0b1));
        assert!(!told.has_changed().unwrap());
        ownership.give_back(shares(0b10));
        assert_eq!(ownership.held(), shares(0b101));
    }

    #[test]
    fn a_share_is_idle_when_its_last_batch_ended() {
        let ownership = Ownership::default();
        let [one, other] = [0b11, 0b10].map(|bits| ownership.begin(shares(bits)));
        assert_eq!(ownership.idle(shares(0b100)).now_or_never(), Some(()));
        assert_eq!(ownership.idle(shares(0b1)).now_or_never(), None);
        drop(one);
        assert_eq!(ownership.idle(shares(0b1)).now_or_never(), Some(()));
        assert_eq!(ownership.idle(shares(0b11)).now_or_never(), None);
        drop(other);
        assert_eq!(ownership.idle(Shares::ALL).now_or_never(), Some(()));
    }

    #[test]
    fn a_batch_that_begins_is_told_which_shares_are_left_and_counts_for_these_alone() {
        let ownership = Ownership::of(Shares::ALL);
        ownership.give_back(shares(0b10));
        let begun = ownership.begin(shares(0b11));
        assert_eq!(begun.held, shares(0b1));
        assert_eq!(ownership.idle(shares(0b10)).now_or_never(), Some(()));
        assert_eq!(ownership.idle(shares(0b1)).now_or_never(), None);
    }

    #[test]
    fn the_news_tell_of_a_share_that_was_lost_and_taken_again() {
        let ownership = Ownership::of(shares(0b1));
        let news = || {
            let ShareNews { held, taken } = ownership.news();
            (held.bits(), taken.bits())
        };
        assert_eq!(news(), (0b1, 0), "the worker began with it");
        ownership.take(shares(0b11));
        assert_eq!(news(), (0b11, 0b10));
        ownership.lose_all();
        ownership.take(shares(0b111));
        ownership.give_back(shares(0b100));
        assert_eq!(news(), (0b11, 0b11));
        assert_eq!(news(), (0b11, 0));
    }

    #[test]
    fn a_worker_without_a_fleet_binds_no_run() {
        assert_eq!(Ownership::default().in_fleet(), None);
        assert_eq!(Ownership::of(Shares::ALL).in_fleet(), Some(Shares::ALL));
    }

    #[test]
    fn to_lose_all_ends_the_tenure_and_the_next_one_is_new() {
        let ownership = Ownership::default();
        let before = ownership.tenure();
        ownership.lose_all();
        assert!(before.is_cancelled() && ownership.held().is_empty());
        assert!(!ownership.tenure().is_cancelled());
    }
}
