//! A circuit breaker: while a server is down, batches do not ask it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Clock;
use crate::domain::retry::{Breaker, BreakerState};

/// Consecutive failures, counted over all batches, that open the breaker. The number is below the tries of a
/// batch with the default `retries`, so that a batch's last try comes after the pause.
const FAILURES_TO_OPEN: u32 = 3;
/// How long an open breaker keeps callers away from the server.
const BREAKER_PAUSE: Duration = Duration::from_secs(5);

/// The breaker of one server, shared by all batches.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    breaker: Mutex<Breaker>,
    closed: Notify,
}

/// How a breaker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerChange {
    /// It opened: for a while, callers do not ask the server.
    Opened,
    /// It closed: the server answers again.
    Closed,
}

impl Default for SharedBreaker {
    fn default() -> Self {
        let breaker = Mutex::new(Breaker::new(FAILURES_TO_OPEN, BREAKER_PAUSE));
        Self { breaker, closed: Notify::new() }
    }
}

impl SharedBreaker {
    /// Whether the caller may ask the server at the monotonic moment `now`. A caller that asks must pass the
    /// outcome to [`Self::note`].
    pub(crate) fn try_start(&self, now: Duration) -> bool {
        self.lock().try_start(now)
    }

    /// Records whether the server could be reached; answers how that changed the breaker, if it did.
    pub(crate) fn note(&self, reached: bool, now: Duration) -> Option<BreakerChange> {
        let mut breaker = self.lock();
        let before = breaker.is_open();
        if reached {
            breaker.succeeded();
        } else {
            breaker.failed(now);
        }
        match (before, breaker.is_open()) {
            (false, true) => Some(BreakerChange::Opened),
            (true, false) => {
                self.closed.notify_waiters();
                Some(BreakerChange::Closed)
            }
            (true, true) | (false, false) => None,
        }
    }

    /// How long callers must not ask the server, from the monotonic moment `now` on; `None` if they may ask.
    pub(crate) fn pause_left(&self, now: Duration) -> Option<Duration> {
        self.lock().pause_left(now)
    }

    /// How many questions to the server failed while it counted as down, since the worker started.
    pub(crate) fn in_vain(&self) -> u64 {
        self.lock().in_vain()
    }

    /// What it does with questions at the monotonic moment `now`, and how many in a row did not reach the server.
    pub(crate) fn state(&self, now: Duration) -> (BreakerState, u32) {
        let breaker = self.lock();
        (breaker.state(now), breaker.failures())
    }

    /// Whether the server counts as down.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    /// Waits for `least`, or longer until callers may ask the server again. If an open breaker closes in the
    /// meantime, the wait ends at once.
    pub(crate) async fn pause(&self, least: Duration, clock: &dyn Clock) {
        // Created before the breaker is read, so that a breaker that closes in between is noticed.
        let closed = self.closed.notified();
        let left = self.lock().pause_left(clock.monotonic());
        tokio::select! {
            biased;
            () = closed, if left.is_some() => {}
            () = clock.sleep(least.max(left.unwrap_or_default())) => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
