//! Which shares of the work this worker holds, and what it still does for shares that it gives back.
//!
//! A worker alone holds all of them for ever. In a fleet the shares come and go: whoever leases them takes them here, gives them
//! back and loses them, and the runs keep to what is held at the moment when a batch begins.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::domain::share::{SHARES, Share, Shares};

/// The shares that this worker holds.
#[derive(Debug)]
pub struct Ownership {
    held: watch::Sender<Shares>,
    /// Cancelled when the worker may hold no share any more, and replaced then.
    tenure: Mutex<CancellationToken>,
    in_flight: Arc<InFlight>,
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
    /// Which of its shares the worker held when the batch was counted. The batch goes on for these alone: who gives the
    /// others back does not wait for it.
    pub(crate) held: Shares,
    shares: Shares,
    in_flight: Arc<InFlight>,
}

impl Default for Ownership {
    fn default() -> Self {
        Self::of(Shares::ALL)
    }
}

impl Ownership {
    /// The ownership of a worker that begins with these shares.
    pub fn of(shares: Shares) -> Self {
        let batches = std::array::from_fn(|_| AtomicU32::new(0));
        Self {
            held: watch::Sender::new(shares),
            tenure: Mutex::default(),
            in_flight: Arc::new(InFlight { batches, ended: Notify::new() }),
        }
    }

    /// The shares that the worker holds at this moment.
    pub fn held(&self) -> Shares {
        *self.held.borrow()
    }

    /// The same, with a notice after each change.
    pub fn subscribe(&self) -> watch::Receiver<Shares> {
        self.held.subscribe()
    }

    /// Cancelled when [`Self::lose_all`] is called the next time.
    pub fn tenure(&self) -> CancellationToken {
        self.token().clone()
    }

    /// Adds shares.
    pub fn take(&self, shares: Shares) {
        self.change(|held| held | shares);
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

    /// A batch with tenants of these shares begins.
    pub(crate) fn begin(&self, shares: Shares) -> Begun {
        self.in_flight.each(shares, |batches| {
            batches.fetch_add(1, Ordering::SeqCst);
        });
        Begun { held: self.held() & shares, shares, in_flight: Arc::clone(&self.in_flight) }
    }

    fn change(&self, change: impl FnOnce(Shares) -> Shares) {
        self.held.send_if_modified(|held| {
            let before = std::mem::replace(held, change(*held));
            before != *held
        });
    }

    fn token(&self) -> MutexGuard<'_, CancellationToken> {
        self.tenure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    fn each(&self, shares: Shares, mut on: impl FnMut(&AtomicU32)) {
        let of_share = |share: Share| self.batches.get(usize::from(share.number()));
        shares.iter().filter_map(of_share).for_each(&mut on);
    }

    fn of(&self, shares: Shares) -> u32 {
        let mut sum = 0;
        self.each(shares, |batches| sum += batches.load(Ordering::SeqCst));
        sum
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.in_flight.each(self.shares, |batches| {
            batches.fetch_sub(1, Ordering::SeqCst);
        });
        self.in_flight.ended.notify_waiters();
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
    fn a_batch_that_begins_is_told_which_shares_are_left() {
        let ownership = Ownership::default();
        ownership.give_back(shares(0b10));
        assert_eq!(ownership.begin(shares(0b11)).held, shares(0b1));
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
